"""The bundle: the small model, its judge, its autoencoders, real pictures and the list of concepts."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import arguments

if TYPE_CHECKING:
    from PIL import Image


_SIDE, _COLUMNS = 64, 22


@dataclass(frozen=True)
class DemoConcept:
    """A thing that the bundled model was shown: its name, its category, and other names it was told."""

    name: str
    category: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Picture:
    """A labelled picture: `image` RGB 64 x 64, `mask` what is thing (255) and what is ground (0)."""

    name: str
    category: str
    image: Image.Image
    mask: Image.Image


def folder() -> Path:
    """Where the bundled data are; raises FileNotFoundError where this installation lacks them."""
    place = Path(__file__).parents[1] / "data"
    if not (place / "concepts.json").is_file():
        raise FileNotFoundError(
            f"this installation has no bundled data in {place}: install the wheel, or make them with "
            "`python recipes/train_demo.py` from a checkout"
        )
    return place


@functools.cache
def concepts() -> tuple[DemoConcept, ...]:
    """Everything the bundled model was shown, in the order of its categories.

    >>> from nnsight_dream import demo
    >>> next(c for c in demo.concepts() if c.name == "squirrel").aliases
    ('chipmunk',)
    """
    rows = json.loads((folder() / "concepts.json").read_text(encoding="utf-8"))
    return tuple(DemoConcept(row["name"], row["category"], tuple(row["aliases"])) for row in rows)


def pictures(names: Iterable[str] | None = None, *, background: float = 1.0) -> list[Picture]:
    """One picture of each concept, by artists (Twemoji's) that neither the model nor the judge was trained on.

    names        which; all by default
    background   grey value of the ground, from 0 (black) to 1 (white)

    Raises ValueError for a name that is not among `concepts()`, with the nearest, and for a background out of range.

    >>> from nnsight_dream import demo
    >>> demo.pictures(["octopus"])[0].image.size
    (64, 64)
    """
    from PIL import Image

    if not arguments.is_real(background) or not 0 <= background <= 1:
        raise ValueError(
            f"background={arguments.shown(background)}: a grey value from 0 (black) to 1 (white) is needed"
        )
    index_of = {c.name: i for i, c in enumerate(concepts())}
    form = "a concept's name, or a list of them, is"
    wanted = list(index_of) if names is None else arguments.several(names, str, "names", form)[0]
    for name in wanted:
        if name not in index_of:
            near = ", ".join(difflib.get_close_matches(name, index_of, 3, 0.0))
            raise ValueError(
                f"no picture of {arguments.shown(name)}; the nearest names are {near}; demo.concepts() has them all"
            )
    sheet = _sheet(folder() / "pictures" / "held_out.webp")
    result = []
    for name in wanted:
        i = index_of[name]
        x, y = i % _COLUMNS * _SIDE, i // _COLUMNS * _SIDE
        art = sheet.crop((x, y, x + _SIDE, y + _SIDE))
        ground = Image.new("RGBA", art.size, (round(255 * background),) * 3 + (255,))
        ground.alpha_composite(art)
        result.append(Picture(name, concepts()[i].category, ground.convert("RGB"), art.getchannel("A")))
    return result


@functools.lru_cache(maxsize=1)
def _sheet(path: Path) -> Image.Image:
    """The sheet of all pictures, RGBA, which takes longer to decode than a picture to be read."""
    from PIL import Image

    with Image.open(path) as file:
        return file.convert("RGBA")


def sae_folder(name: str | int | None = None) -> Path:
    """Where a bundled sparse autoencoder is: that of a layer (4 or "layer4"), or the first there is.

    Raises FileNotFoundError where there is none, ValueError for a layer that has none.
    """
    there = {p.name: p for p in sorted((folder() / "sae").glob("*")) if (p / "cfg.json").is_file()}
    if not there:
        raise FileNotFoundError(
            f"this installation has no bundled sparse autoencoder in {folder() / 'sae'}: install the wheel, or make "
            "one with `python recipes/train_demo_sae.py` from a checkout"
        )
    if name is None:
        return next(iter(there.values()))
    wanted = str(name) if str(name) in there else f"layer{name}"
    if wanted not in there:
        raise ValueError(f"no bundled sparse autoencoder {arguments.shown(name)}; there is {', '.join(there)}")
    return there[wanted]


@contextlib.contextmanager
def unshown_allowed(on: bool = True) -> Iterator[None]:
    """For a block in which `unshown` words raise no warning: the user knows of them already."""
    with warnings.catch_warnings():
        if on:
            warnings.filterwarnings("ignore", "the demo model was never shown")
        yield


def unshown(text: str) -> str:
    """Empty for a word that the bundled model was shown; else a sentence that says so, with the nearest.

    >>> unshown("octopus"), unshown("octopsu")[:66]
    ('', "the demo model was never shown 'octopsu'; did you mean 'octopus'? ")
    """
    canonical = {name.casefold(): c.name for c in concepts() for name in (*c.aliases, c.name)}
    query = text.strip().casefold()
    if not query or query in canonical:
        return ""
    signs = " ".join(unicodedata.name(c, "") for c in query if unicodedata.category(c) == "So").lower()
    near = difflib.get_close_matches(query[:100], canonical, 3) or difflib.get_close_matches(signs, canonical, 1, 0.7)
    names = list(dict.fromkeys(canonical[n] for n in near)) or sorted(canonical.values())[::90][:3]
    ask = f"did you mean {' or '.join(map(repr, names))}?" if near else f"it knows such as {', '.join(names)}."
    return (
        f"the demo model was never shown {arguments.brief(text)!r}; {ask} Of other words its direction means little "
        "(all that it knows: nnsight-dream concepts)"
    )
