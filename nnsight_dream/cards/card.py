"""Cards: everything about a feature of a sparse autoencoder at one look, and what features are read on.

features/17-1f3a…/seed0/ minus-seed0/ …   prototypes, as `Prototype.save` writes them
                  fires.png real-0.png …  where it fires on the first prototype; the pictures that activate it most
                  card.json               the whole record; written last: with it the folder counts
failed/17-1f3a….json                      features that raised, with their error
locks/                                    who works on what; free once their holder is gone
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .. import arguments
from ..io import records
from ..io.files import DIGEST, damage, is_sealed
from ..io.pictures import ENDINGS, files, read
from ..synthesis.blocks import picture_row
from ..synthesis.prototype import Prototype
from ..synthesis.reach import Reach
from ..synthesis.recorded import ground_of

RECORD = "card.json"


TOP = 8  # words, pictures, tokens and neighbours that are kept


@dataclass(frozen=True, eq=False)
class Material:
    """What features are read on: words, and pictures with a name each.

    categories   of words, as a judge is told them with a hint; a word may have none
    covers       of each picture what is opaque (255) and clear (0), mode L, or None; nothing where none is known

    Raises ValueError for no word, no picture, or not one name, and one cover, for each picture.
    """

    words: tuple[str, ...]
    pictures: tuple[Image.Image, ...]
    names: tuple[str, ...]
    categories: Mapping[str, str] = field(default_factory=dict)
    covers: tuple[Image.Image | None, ...] = ()

    def __post_init__(self) -> None:
        if self.covers and len(self.covers) != len(self.pictures):
            raise ValueError(f"{len(self.pictures)} pictures but {len(self.covers)} covers: one for each is needed")
        if not self.words or not self.pictures or len(self.names) != len(self.pictures):
            raise ValueError(
                f"{len(self.words)} words, {len(self.pictures)} pictures and {len(self.names)} names: at least one "
                "word and one picture are needed, and a name for each picture"
            )

    @classmethod
    def bundled(cls) -> Material:
        """The names of the bundled concepts, and the bundled picture of each.

        >>> import nnsight_dream as nd
        >>> len(nd.Material.bundled().pictures), nd.Material.bundled().categories["octopus"]
        (477, 'animal')
        """
        from ..demo import bundle

        pictures = bundle.pictures()
        names = tuple(p.name for p in pictures)
        categories = {c.name: c.category for c in bundle.concepts()}
        return cls(names, tuple(p.image for p in pictures), names, categories, tuple(p.mask for p in pictures))

    @classmethod
    def of_folder(cls, folder: str | Path, words: Sequence[str] | None = None) -> Material:
        """The pictures of a folder, named by their files; the bundled words unless others are given.

        Raises FileNotFoundError for a folder without pictures.
        """
        there = files(folder)
        if not there:
            raise FileNotFoundError(f"{folder} holds no picture: files ending in {', '.join(ENDINGS)} are looked for")
        bundled = cls.bundled()
        texts = bundled.words if words is None else tuple(words)
        pictures = tuple(read(p, p.name) for p in there)
        names, covers = tuple(p.stem for p in there), tuple(picture.cover for picture in pictures)
        return cls(texts, tuple(picture.image for picture in pictures), names, bundled.categories, covers)


@dataclass(frozen=True)
class Shot:
    """One picture of a card: its seed, the share of the settings' steps that it was climbed for, and its sign."""

    seed: int
    strength: float = 1.0
    negative: bool = False

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{'minus-' if self.negative else ''}seed{self.seed}" + (
            "" if self.strength == 1 else f"-strength{self.strength:g}"
        )


@dataclass(frozen=True, eq=False)
class Card:
    """The record of a feature.

    words, shown      (word or name of a real picture, activation), the most active first
    top, bottom       tokens that the decoder row raises most and least, see `top_logits`; `note` on them
    near              (feature, cosine of decoder rows), the nearest first
    makes             (feature, highest, mean activation, share of tokens) of the first prototype, see `features_of`
    fires             (rows, cols) the feature's activation on the first prototype, by `sae.encode`
    middle            (d,) the first prototype's mean image token, less that of real pictures
    most_real         the highest activation on any of the material's pictures
    strange           FVU and L0 of the first prototype beside those of real pictures; None for transcoders
    facts             plain data: model, site, autoencoder, settings, versions
    """

    index: int
    key: str
    folder: Path
    shots: tuple[Shot, ...]
    words: tuple[tuple[str, float], ...]
    shown: tuple[tuple[str, float], ...]
    top: tuple[tuple[str, float], ...]
    bottom: tuple[tuple[str, float], ...]
    note: str
    near: tuple[tuple[int, float], ...]
    makes: tuple[tuple[int, float, float, float], ...]
    fires: tuple[tuple[float, ...], ...]
    middle: tuple[float, ...]
    most_real: float
    strange: Mapping[str, float] | None
    link: str | None
    facts: Mapping[str, Any]

    def prototype(self, shot: Shot | None = None) -> Prototype:
        """One of its pictures; the first by default."""
        return Prototype.load(self.folder / (shot or self.shots[0]).name)

    def reach(self, prototype: Prototype | None = None) -> Reach:
        """The activation of a prototype, the first by default, over the highest on any of the material's pictures."""
        prototype = prototype or self.prototype()
        if prototype.reach is not None:
            return prototype.reach
        score, pictures = float((prototype.readings or {}).get("act_max", 0.0)), int(self.facts.get("pictures", 0))
        return Reach.between("activation", score, self.most_real, None, pictures, ground_of(prototype))

    @property
    def label(self) -> str:
        """Its most activating word, "" if it fires for none."""
        return self.words[0][0] if self.words else ""

    def __repr__(self) -> str:
        return f"<Card of {self}>"

    def __str__(self) -> str:
        words = ", ".join(word for word, _ in self.words[:3]) or "none"
        seen = ", ".join(name for name, _ in self.shown[:3]) or "none"
        return f"feature {self.index}: most active for the words {words}, on the pictures of {seen}; {self.folder}"

    def _repr_html_(self) -> str:
        rows = {
            "words": ", ".join(f"{word} ({active:.1f})" for word, active in self.words),
            "pictures": ", ".join(f"{name} ({active:.1f})" for name, active in self.shown),
            "tokens it raises": ", ".join(token for token, _ in self.top),
            "nearest": ", ".join(f"feature {number} ({cosine:.2f})" for number, cosine in self.near),
            "folder": str(self.folder),
        }
        table = "".join(picture_row(name, value or "none") for name, value in rows.items())
        return f"{self.prototype()._repr_html_()}<table>{table}</table>"

    @classmethod
    def load(cls, folder: str | Path) -> Card:
        """Read a finished card; raises FileNotFoundError where there is none.

        Raises ValueError for a broken record, and where a file is not as it was written: make_cards makes it anew.
        """
        place = arguments.folder(folder)
        if not (place / RECORD).is_file():
            raise FileNotFoundError(f"{place} holds no {RECORD}: the card was not finished; make_cards goes on with it")
        try:
            record = json.loads((place / RECORD).read_text(encoding="utf-8"))
            records.check(record, records.CARD)
            if not is_sealed(record):
                raise ValueError("it is not as it was written")
            if wrong := damage(place, record.pop("files", {})):
                raise ValueError(wrong)
            record.pop(DIGEST, None)
            for shot in record["shots"]:
                records.check(shot, records.SHOT)
            record["shots"] = tuple(Shot(**s) for s in record["shots"])
            for name in ("words", "shown", "top", "bottom", "near", "makes", "fires"):
                record[name] = tuple(map(tuple, record[name]))
            return cls(key=place.name, folder=place, **{**record, "middle": tuple(record["middle"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{place / RECORD} is no card ({error!r}): remove the folder to make it anew") from error


def is_there(place: Path) -> bool:
    """Whether a card is finished, and whole; a warning says what is wrong with one that is not."""
    if not (place / RECORD).is_file():
        return False
    try:
        Card.load(place)
    except (OSError, ValueError) as error:
        arguments.warn(f"a finished card is not whole and is made anew: {error}")
        return False
    return True


def cards_of(folder: str | Path) -> list[Card]:
    """The finished cards of a folder, by feature. Raises ValueError for a broken record."""
    cards = [Card.load(record.parent) for record in (arguments.folder(folder) / "features").glob(f"*/{RECORD}")]
    return sorted(cards, key=lambda c: (c.index, c.key))
