"""The atlas as a folder: sheets of pictures, and one page to look through them, opened from disk."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import arguments
from ..io.files import check_folder, digest, make_folder, write_whole
from ..io.html_pages import Page
from ..report.pages import filled, template, written
from ..synthesis.blocks import image_tag
from . import layout, sheets
from .likeness import Likeness, likeness

INDEX = "index.html"


LARGE = 256  # most pixels a side of the picture that a click shows, where the tile is smaller


FEW = 12  # pictures, of fewer than which no likeness of neighbours is computed


MODALITIES = ("", "text", "picture", "both", "neither")


VERDICTS = ("", "yes", "no")


REACHED = (None, True, False)


@dataclass(frozen=True)
class Tile:
    """What an atlas shows of a picture.

    name       what it is called; `number` of a feature, None for a direction
    words      those that go with it, the most active first
    rate       share of the pictures read, 0 to 1, that it fires on; None where that is not known
    modality   what it fires for: "text", "picture", "both", "neither", or "" where that is not known
    verdict    whether a judge named it: "yes", "no", or "" where none was asked; `answer` is the judge's answer
    link       its page on Neuronpedia; `card` the address of its card, from the atlas's folder
    facts      further lines, such as its scores
    reached    whether it reaches what real pictures do, None where that is not known; `reach` says it in words

    Raises ValueError for another modality, verdict or `reached`, and for a rate outside 0 to 1.
    """

    name: str
    number: int | None = None
    words: tuple[str, ...] = ()
    rate: float | None = None
    modality: str = ""
    verdict: str = ""
    answer: str = ""
    link: str = ""
    card: str = ""
    facts: tuple[str, ...] = ()
    reached: bool | None = None
    reach: str = ""

    def __post_init__(self) -> None:
        arguments.choice(self.modality, "modality", MODALITIES)
        arguments.choice(self.verdict, "verdict", VERDICTS)
        if self.reached not in REACHED:
            raise ValueError(f"reached={self.reached!r}: True, False or None is needed")
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise ValueError(f"rate={self.rate!r}: a share from 0 to 1, or None, is needed")


@dataclass(frozen=True, eq=False)
class Atlas:
    """A written atlas: its `index` page, `cells` (n, 2) by column and row, and how alike neighbours are.

    likeness   None of fewer than twelve pictures, of which it says nothing
    failed     of directions without a picture: label and error
    """

    index: Page
    cells: np.ndarray
    likeness: Likeness | None = None
    failed: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"<Atlas of {self}>"

    def _repr_html_(self) -> str:
        """The whole map as one picture, and a link to its page."""
        picture, words = sheets.overview(self.index.parent / "sheets"), html.escape(str(self))
        shown = "" if picture is None else image_tag(picture, f"Map of {len(self.cells)} pictures")
        return f"<div>{shown}</div><div>{words}</div><div>{self.index._repr_html_()}</div>"

    def __str__(self) -> str:
        summary = f"{len(self.cells)} pictures in {self.index}"
        return summary + (f"; {self.likeness}" if self.likeness else "")


def write(
    pictures: Iterable[Image.Image],
    tiles: Sequence[Tile],
    vectors: Any,
    folder: str | Path,
    *,
    points: Any = None,
    tile: int = 64,
    title: str = "Atlas",
    told: str = "",
    seed: int = 0,
) -> Atlas:
    """Write an atlas: `index.html`, and beside it the folder `sheets`, and `pictures` where they are larger than tiles.

    pictures   PIL images, one for each of `tiles`; taken one by one, so that they need not be held
    vectors    (n, d), by which they are laid out: near in cosine, near in the map
    points     (n, 2): a layout of your own in place of t-SNE, such as that of UMAP
    tile       pixels a side of a picture in the map, 16 to 128; 64 or 32 are usual
    told       a line below the title

    The page loads nothing but these files. Raises ValueError for no picture, not one tile and vector for each, or
    another size of tile; ImportError without scikit-learn, where no points are given; OSError.
    """
    place = check_folder(folder)
    size = arguments.whole(tile, "tile", 16, 128)
    several, _ = arguments.several(tiles, Tile, "tiles", "a Tile, or a list of them, is")
    rows = np.asarray(vectors, dtype=np.float32)
    if not several or rows.ndim != 2 or len(rows) != len(several):
        raise ValueError(f"{len(several)} tiles and vectors of shape {rows.shape}: at least one, and a row for each")
    flat = np.asarray(layout.flat(rows, seed=seed) if points is None else points, dtype=np.float64)
    if len(flat) != len(several):
        raise ValueError(f"{len(flat)} points for {len(several)} tiles: one for each is needed")
    cells = layout.snapped(flat)
    make_folder(place)
    small, large = [], []
    for picture in pictures:
        small.append(sheets.thumbnail(picture, size))
        large.append(_large(picture, place / "pictures") if min(picture.size) > size else "")
    if len(small) != len(several):
        raise ValueError(f"{len(small)} pictures for {len(several)} tiles: one for each is needed")
    alike = likeness(small, cells, seed=seed) if len(small) >= FEW else None
    data = dict(
        title=title,
        told=" ".join(filter(None, (told, _likeness_sentence(alike)))),
        columns=int(cells[:, 0].max() + 1),
        rows=int(cells[:, 1].max() + 1),
        tile=size,
        levels=sheets.write_sheets(small, cells, size, place / "sheets"),
        cells=cells.tolist(),
        near=layout.nearest(rows).tolist() if len(rows) > 1 else [[]],
        large=large if any(large) else [],
        **_table(several),
    )
    return Atlas(written(place / INDEX, filled(template("atlas"), data=data)), cells, alike)


def _likeness_sentence(alike: Likeness | None) -> str:
    if alike is None:
        return ""
    own, random, low, high = (
        f"{round(x, 2) + 0.0:.2f}" for x in (alike.neighbours, alike.random, alike.low, alike.high)
    )
    return (
        f"Neighbours' pictures correlate by {own}, pictures dealt out at random by {random} (95 % of draws: {low} to "
        f"{high})."
    )


def _table(tiles: Sequence[Tile]) -> dict[str, Any]:
    """Tiles as columns; words once, by number."""
    words: dict[str, int] = {}
    listed = [[words.setdefault(w, len(words)) for w in t.words] for t in tiles]
    return dict(
        vocabulary=list(words),
        words=listed,
        names=[t.name for t in tiles],
        numbers=[t.number for t in tiles],
        rates=[None if t.rate is None else round(t.rate, 5) for t in tiles],
        modalities=[MODALITIES.index(t.modality) for t in tiles],
        verdicts=[VERDICTS.index(t.verdict) for t in tiles],
        answers=[t.answer for t in tiles] if any(t.answer for t in tiles) else [],
        reached=[REACHED.index(t.reached) for t in tiles],
        reach=[t.reach for t in tiles] if any(t.reach for t in tiles) else [],
        links=[t.link for t in tiles] if any(t.link for t in tiles) else [],
        cards=[t.card for t in tiles] if any(t.card for t in tiles) else [],
        facts=[list(t.facts) for t in tiles] if any(t.facts for t in tiles) else [],
    )


def _large(picture: Image.Image, folder: Path) -> str:
    """Keep a picture that is larger than its tile; returns its address."""
    preview = picture.convert("RGB")
    preview.thumbnail((LARGE, LARGE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    preview.save(buffer, "WEBP", quality=85)
    data = buffer.getvalue()
    name = f"{digest(data)[:20]}.webp"
    make_folder(folder)
    if not (folder / name).is_file():
        write_whole(folder / name, data)
    return f"pictures/{name}"
