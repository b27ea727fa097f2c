"""What the command prints: on consoles of all kinds, as text or as one JSON document."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import arguments

MOST = 1000  # characters of an error; what was given may be as long as a book


def short(text: str) -> str:
    """A text in one line, its middle left out where it is longer than MOST characters."""
    text = " ".join(text.split())
    return text if len(text) <= MOST else f"{text[: MOST // 2]} ... {text[-MOST // 2 :]}"


@contextlib.contextmanager
def printable(*streams: Any) -> Iterator[None]:
    """Within the block, characters that an output's encoding lacks (cp1252, ascii) are written as escapes."""
    before = [(stream, stream.errors) for stream in streams if hasattr(stream, "reconfigure")]
    for stream, errors in before:
        if errors in ("strict", "surrogateescape"):  # the second is what LC_ALL=C gives
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in before:
            with contextlib.suppress(ValueError, OSError):  # closed meanwhile, or its reader went away
                stream.reconfigure(errors=errors)


@contextlib.contextmanager
def short_warnings() -> Iterator[None]:
    """Within the block, warnings are one line for the reader, without the line of code that gave them."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: _noted(f"note: {short(str(message))}") + "\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def no_output() -> None:
    """Let what is still to be printed go nowhere, so that Python ends in silence."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def width_of(stream: Any) -> int | None:
    """Columns of the terminal that a stream is; None of a pipe or file, whose reader cuts lines as it likes."""
    return shutil.get_terminal_size().columns if stream is not None and stream.isatty() else None


def wrapped(text: str, width: int | None, hang: int = 4, first: str = "") -> str:
    """A text in lines of at most `width` characters, all but the first indented by `hang`; whole for None.

    Names and paths are broken only where a line of their own is too short for them.
    """
    if width is None:
        return first + text
    lines = textwrap.wrap(
        text, max(width, hang + 20), initial_indent=first, subsequent_indent=" " * hang, break_on_hyphens=False
    )
    return "\n".join(lines) or first.rstrip()


def say(text: str, hang: int = 4, first: str = "") -> None:
    """One line of output, on a terminal in as many as it takes."""
    print(wrapped(text, width_of(sys.stdout), hang, first))


def _noted(text: str) -> str:
    return wrapped(text, width_of(sys.stderr), 4, "nnsight-dream: ")


def note(text: str) -> None:
    """One line to stderr, beside the output; on a terminal in as many as it takes."""
    print(_noted(text), file=sys.stderr)


def distinct(values: Sequence[Any], name: str) -> list[Any]:
    """Values without repeats, which would only make the same picture again; says what is left out."""
    kept = list(dict.fromkeys(values))
    if len(kept) < len(values):
        twice = next(v for v in kept if values.count(v) > 1)
        note(f"note: {name} {twice!r} is given twice and drawn once")
    return kept


def console() -> Any:
    """A rich console that takes texts as they are, and leaves a broken pipe to `main`."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:  # rich would end the program
            raise BrokenPipeError

    width = None if sys.stdout.isatty() else 10_000  # what reads a pipe cuts lines as it likes
    return Plain(markup=False, width=width)  # a folder or label may hold brackets


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Within the block a terminal says what is waited for."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(f"{escape(text)} ...", spinner="line"):
        yield


def picture_paths(place: Path) -> dict[str, str]:
    """What JSON says of where a prototype is saved."""
    from ..synthesis.prototype import HEAT, LARGE, PICTURE

    named = {"picture": PICTURE, "large": LARGE, "heat": HEAT}
    return {"folder": str(place)} | {k: str(place / name) for k, name in named.items() if (place / name).is_file()}


def print_json(value: Any) -> None:
    """One JSON document, in ASCII where the output's encoding has less than Unicode."""
    whole = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
    print(json.dumps(value, ensure_ascii=not whole, indent=1))


def print_facts(facts: Mapping[str, Any]) -> None:
    """A table of two columns, on a terminal no wider than that; a mapping has a line for each of its entries."""
    width, column = width_of(sys.stdout), max(map(len, facts), default=0) + 3
    for key, value in facts.items():
        first = f" {key}".ljust(column)
        if not isinstance(value, dict):
            print(wrapped(repr(value) if "\n" in str(value) else str(value), width, column, first))
            continue
        wide = max([11, *map(len, value)]) + 1
        longest = max((len(f"{v}") for v in value.values()), default=0)
        indent = column
        if width is not None and column + wide + longest > width:  # beneath its name there is more room
            print(first.rstrip())
            first, indent = " " * 3, 3
        for name, entry in value.items():
            print(wrapped(str(entry), width, indent + wide, first + name.ljust(wide)))
            first = " " * indent


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with a line of headings, numbers to the right; on a terminal no wider than that."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head, *cells in zip(heads, *rows, strict=True):
        digits = all(cell[:1].isdigit() or cell == "-" for cell in cells)
        table.add_column(head, justify="right" if digits else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    screen = console()
    with screen.capture() as caught:
        screen.print(table)
    print("\n".join(line.rstrip() for line in caught.get().splitlines()))


def prototype_row(prototype: Any, verdict: Any) -> dict[str, Any]:
    """What JSON says of a prototype, and of its judge's `Verdict` where there is one."""
    row = {
        "concept": prototype.label,
        "layer": prototype.site.layer,
        "sites": [prototype.site.tl_name, prototype.hf_name],
        "seed": prototype.seed,
        "steps": len(prototype.history),
        "interrupted": prototype.interrupted,
        "scores": dict(prototype.scores),
        "reach": None if prototype.reach is None else prototype.reach.record(),
    }
    if prototype.readings is not None:
        row["readings"] = dict(prototype.readings)
    if verdict is not None:
        row["judge"] = dict(zip(verdict.names[:5], verdict.probabilities[:5], strict=True))
    return row


def print_prototypes(prototypes: Any, verdicts: Sequence[Any], places: Sequence[Path], out: Path) -> None:
    """Each prototype with its picture, or where that is, and its judge's verdict; saves all as one sheet in `out`."""
    from rich.text import Text

    from ..io.files import save_new
    from ..synthesis.blocks import Tiles, shows_blocks, to_png
    from ..synthesis.prototypes import lines_of

    screen = console()
    seen = [
        [] if verdict is None else [Text(f"judge: {verdict.top} {verdict.probabilities[0]:.0%}")]
        for verdict in verdicts
    ]
    if shows_blocks(screen):
        cells = iter([(p.image, [*lines_of(p), *line]) for p, line in zip(prototypes, seen, strict=True)])
        screen.print(Tiles([[next(cells) for _ in row] for row in prototypes.rows]))
    else:
        for prototype, verdict, place in zip(prototypes, verdicts, places, strict=True):
            say(_line(prototype, verdict, place))
    sheet = save_new(out / "grid.png", to_png(prototypes.grid()))
    some = "1 picture" if len(prototypes) == 1 else f"{len(prototypes)} pictures"
    say(f"saved {some} in {out}; all at one look: {sheet}")


def _line(prototype: Any, verdict: Any, place: Path) -> str:
    """A prototype in one line, with the path of its picture."""
    from ..synthesis.blocks import reading_rows
    from ..synthesis.prototype import LARGE, PICTURE

    picture = next((place / name for name in (LARGE, PICTURE) if (place / name).is_file()), place)
    scores = ", ".join(f"{name} {score}" for name, score in prototype.scores_in_words().items())
    share = dict(reading_rows(prototype.readings)).get("tokens firing")
    firing = "" if share is None else f"; {share} of tokens firing"
    judged = "" if verdict is None else f"; judge: {verdict}"
    reached = "" if (reach := prototype.reach) is None or reach.reached is None else f"; {reach}"
    label = arguments.brief(prototype.label)
    return f"{label}, layer {prototype.site.layer}, seed {prototype.seed}: {scores}{firing}{reached}{judged}; {picture}"
