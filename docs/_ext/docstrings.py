"""Docstrings of this package as reStructuredText: their tables of arguments, indented formulas and `names`.

A docstring is plain text that reads well in a terminal: names in single backticks, formulas indented by four spaces,
and tables whose lines begin with a name, two spaces or more, and what it is. This says so in Sphinx's own terms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import nnsight_dream

ROW = re.compile(r"(?P<names>[A-Za-z_*][\w*]*(?:, [A-Za-z_*][\w*]*)*) {2,}(?P<text>\S.*)")
PUBLIC = set(nnsight_dream.__all__)


def marked(text: str, own: str) -> str:
    """A line of prose: names in backticks are links where they are public, and code elsewhere."""

    def code(found: re.Match[str]) -> str:
        name = found[1].removeprefix("nd.").removesuffix("()")
        if name in PUBLIC and name != own:
            return f":py:obj:`~nnsight_dream.{name}`"
        return f"``{found[1]}``"

    pieces = re.split(r"(`[^`]+`)", text)
    plain = [re.sub(r"([*|_\\])", r"\\\1", piece) if number % 2 == 0 else piece for number, piece in enumerate(pieces)]
    return re.sub(r"`([^`]+)`", code, "".join(plain))


def table(lines: list[str], own: str) -> Iterator[str]:
    """Rows `name   what it is`, with further lines indented, as a list of fields."""
    for line in lines:
        if found := ROW.fullmatch(line):
            names = ", ".join(f"``{name}``" for name in found["names"].split(", "))
            yield f"* {names} -- {marked(found['text'], own)}"
        else:
            yield f"  {marked(line.strip(), own)}"


def converted(lines: list[str], own: str) -> Iterator[str]:
    """The paragraphs of a docstring, each in its form."""
    for blank, group in groupby(lines, key=lambda line: not line.strip()):
        paragraph = list(group)
        if blank:
            yield ""
        elif paragraph[0].startswith(">>>"):
            yield from paragraph
        elif paragraph[0].startswith("    "):
            yield from ["::", "", *paragraph]
        else:
            yield from mixed(paragraph, own)


def mixed(paragraph: list[str], own: str) -> Iterator[str]:
    """A paragraph that may have prose before and behind a table."""
    part: list[str] = []
    inside = False
    for line in paragraph:
        begins = bool(ROW.fullmatch(line))
        goes_on = inside and line.startswith("  ")
        if (begins or goes_on) != inside and part:
            yield from [*(table(part, own) if inside else (marked(one, own) for one in part)), ""]
            part = []
        inside = begins or goes_on
        part.append(line)
    yield from table(part, own) if inside else (marked(line, own) for line in part)


def process(app: Any, kind: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's own hook: the lines are changed in place."""
    lines[:] = converted([line.rstrip() for line in lines], name.rpartition(".")[2])


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
