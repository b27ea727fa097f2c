"""Several prototypes: a list that shows itself as a grid, and is saved picture by picture."""

from __future__ import annotations

import html
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from PIL import Image, ImageDraw

from .. import arguments
from .blocks import Tiles, image_tag
from .prototype import RECORD, Prototype, save_beside

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


class Prototypes(list[Prototype]):
    """Several prototypes: a list that shows itself as a grid; of lists of them, each is a row of it.

    rows   how many there are in each row, where they come in rows by themselves

    Raises ValueError for rows that are not as many.

    >>> nd_prototypes = Prototypes()
    >>> len(nd_prototypes), nd_prototypes.rows
    (0, [])
    """

    def __init__(self, prototypes: Iterable[Prototype | Iterable[Prototype]] = (), rows: Sequence[int] = ()):
        items = [p if isinstance(p, Prototype) else list(p) for p in prototypes]
        if any(isinstance(p, list) for p in items):
            nested = [p if isinstance(p, list) else [p] for p in items]
            rows = rows or [len(row) for row in nested]
            super().__init__(p for row in nested for p in row)
        else:
            super().__init__(p for p in items if isinstance(p, Prototype))
        if rows and sum(rows) != len(self):
            raise ValueError(f"rows={arguments.shown(list(rows))}: there are {len(self)} prototypes in all")
        self._lengths = tuple(rows)

    @property
    def rows(self) -> list[Prototypes]:
        """The prototypes of each list of directions that were asked for; one row of all where there was one list."""
        starts = [sum(self._lengths[:i]) for i in range(len(self._lengths))]
        rows = [self[a : a + n] for a, n in zip(starts, self._lengths, strict=True)]
        return rows if sum(self._lengths) == len(self) and rows else [self][: len(self)]

    @property
    def images(self) -> list[Image.Image]:
        """The pictures, in order."""
        return [p.image for p in self]

    @overload
    def __getitem__(self, place: SupportsIndex) -> Prototype: ...

    @overload
    def __getitem__(self, place: slice) -> Prototypes: ...

    def __getitem__(self, place: SupportsIndex | slice) -> Prototype | Prototypes:
        item: Any = super().__getitem__(place)
        return Prototypes(item) if isinstance(place, slice) else item

    def __add__(self, other: Any) -> Any:
        return Prototypes([*self, *other]) if isinstance(other, Prototypes) else super().__add__(other)

    def __repr__(self) -> str:
        names = [f"{arguments.brief(p.label, 24)} at layer {p.site.layer}, seed {p.seed}" for p in self[:3]]
        more = f"; and {len(self) - 3} more" if len(self) > 3 else ""
        return f"Prototypes({len(self)}: {'; '.join(names)}{more})"

    def grid(self, columns: int | None = None, side: int = 128, labels: bool = True) -> Image.Image:
        """One contact sheet, `side` pixels a picture, row by row.

        columns   in a row; if not given as many as `rows` have, or 8 at most

        Raises ValueError for no prototype.
        """
        if not self:
            raise ValueError("there is no prototype to show")
        lines = self._lines(columns)
        strip = 16 if labels else 0
        sheet = Image.new("RGB", (max(map(len, lines)) * side, len(lines) * (side + strip)), "white")
        draw = ImageDraw.Draw(sheet)
        for row, line in enumerate(lines):
            for column, prototype in enumerate(line):
                x, y = column * side, row * (side + strip)
                sheet.paste(prototype.image.resize((side, side), Image.Resampling.BICUBIC), (x, y + strip))
                if labels:
                    draw.text((x + 3, y + 2), f"{prototype.label} L{prototype.site.layer}"[: side // 6], fill="black")
        return sheet

    def _lines(self, columns: int | None, most: int = 8) -> list[list[Prototype]]:
        """The pictures line by line: the rows as they are, unless they are longer than a line."""
        rows = self.rows if columns is None and max(self._lengths, default=0) > 1 else [self]
        columns = columns or most
        return [list(row[i : i + columns]) for row in rows for i in range(0, len(row), columns)]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Save each into a folder of its own below `folder`; returns `folder`.

        Nothing is overwritten: a picture that differs from one of the same word, layer and seed that is there gets a
        number, and a warning says so. Raises OSError where nothing can be written.
        """
        place = arguments.folder(folder)
        moved = [f"{old.name} is there already and stays: see {new.name}" for old, new in self.save_each(place)[1]]
        if moved:
            more = f"; and {len(moved) - 3} more" if len(moved) > 3 else ""
            arguments.warn(f"in {place} {'; '.join(moved[:3])}{more}")
        return place

    def save_each(self, folder: str | os.PathLike[str]) -> tuple[list[Path], list[tuple[Path, Path]]]:
        """As `save`; returns the folder of each, and (name asked for, name given) where another picture was there."""
        place = arguments.folder(folder)
        written: list[Path] = []
        moved: list[tuple[Path, Path]] = []
        for prototype in self:
            target = place / f"{_slug(prototype.label)}-layer{prototype.site.layer}-seed{prototype.seed}"
            chosen = save_beside(prototype, target, set(written))
            if chosen != target and target not in written:
                moved.append((target, chosen))
            written.append(chosen)
        return written, moved

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Prototypes:
        """Those that `save` wrote into folders below `folder`, by name, or the one that is saved in it.

        Raises FileNotFoundError where there is none, and as `Prototype.load` does.
        """
        return cls(Prototype.load(place) for place in saved_in(folder))

    def _repr_html_(self) -> str:
        if len(self) == 1:
            return self[0]._repr_html_()
        lines = "".join(f"<div>{''.join(map(_tile, line))}</div>" for line in self._lines(None, most=len(self)))
        return f'<div style="font:12px sans-serif">{lines}</div>'

    def __rich__(self) -> RenderableType:
        return Tiles([[(p.image, lines_of(p)) for p in row] for row in self.rows])


def saved_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders, at or below `folder`, in which a prototype is saved, by name.

    Raises FileNotFoundError where there is none.
    """
    place = arguments.folder(folder, must_exist=True)
    folders = sorted({path.parent for path in place.rglob(RECORD) if path.is_file()})
    if not folders:
        raise FileNotFoundError(f"{place} holds no saved prototype: give a folder that save wrote into")
    return folders


def lines_of(prototype: Prototype) -> list[Text]:
    """The lines of text above a picture that is one of many in a terminal."""
    from rich.text import Text

    name, score = next(iter(prototype.scores_in_words().items()), ("", ""))
    stopped = ", stopped early" if prototype.interrupted else ""
    score, _, real = score.partition(" (")
    beside = [Text(real.rstrip(")"), style="dim")] if real else []
    reach = prototype.known_reach()
    if reach is not None and reach.reached is not None:
        beside.append(Text(reach.verdict))
    return [
        Text(arguments.brief(prototype.label), style="bold"),
        Text(f"layer {prototype.site.layer}, seed {prototype.seed}{stopped}"),
        Text(f"{name} {score}", style="dim"),
        *beside,
    ]


def _tile(prototype: Prototype) -> str:
    """A prototype as one of many: the picture, and under it what it is."""
    name, score = next(iter(prototype.scores.items()), ("", 0.0))
    label = html.escape(arguments.brief(prototype.label))
    names = html.escape(f"{prototype.site.tl_name} = {prototype.hf_name}")
    reach = prototype.reach
    reached = "" if reach is None or reach.reached is None else f"<br>{html.escape(reach.verdict)}"
    return (
        f'<figure title="{names}" style="display:inline-block;margin:4px;width:132px;vertical-align:top">'
        f"{image_tag(prototype.enlarged(128), prototype.label)}<figcaption><b>{label}</b><br>"
        f"layer {int(prototype.site.layer)}, seed {int(prototype.seed)}<br>{html.escape(name)} {score:.3f}"
        f"{', stopped early' if prototype.interrupted else ''}{reached}</figcaption></figure>"
    )


def _slug(label: str) -> str:
    """A label as a folder's name: letters, digits and hyphens, and the code point and name of an emoji or a sign.

    >>> _slug("San Francisco!"), _slug("🐙")
    ('San-Francisco', 'u1f419-octopus')
    """
    plain = re.sub(r"[^\w-]+", "-", label).strip("-")[:60].strip("-")
    signs = [c for c in label if not c.isspace() and ord(c) >= 0x80 and unicodedata.category(c) in ("So", "Sk")]
    if plain and not signs:
        return plain
    signs = signs or [c for c in label if ord(c) >= 0x80 and unicodedata.category(c) not in ("Cf", "Mn", "Zs")]
    codes = "-".join(f"u{ord(c):x}" for c in signs)
    names = "-".join(unicodedata.name(c, "") for c in signs)
    sign_slug = re.sub(r"[^a-z0-9]+", "-", f"{codes} {names}".lower()).strip("-")[:60].strip("-")
    return "-".join(filter(None, (plain[: max(0, 59 - len(sign_slug))].strip("-"), sign_slug))) or "direction"
