"""What is done to pictures and captions before they are compared: looks that should not matter, meaning that should."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import choice

if TYPE_CHECKING:
    from PIL import Image

    from .pairs import Pair


Tagger = Callable[[str], Iterable[tuple[str, str]]]


_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Manipulation:
    """A change of pictures or of captions.

    name      for tables
    of        "pictures", by `change(pair) -> PIL image`, or "words", by `change(caption) -> str`
    """

    name: str
    of: str
    change: Callable[[Any], Any]


def greyscale() -> Manipulation:
    """Pictures by their luminance alone (ITU-R BT.601)."""
    return Manipulation("greyscale", "pictures", lambda pair: pair.image.convert("L").convert("RGB"))


def rotated(degrees: float) -> Manipulation:
    """Pictures turned anticlockwise; what comes into the corners is mid grey. Their size stays."""

    def change(pair: Pair) -> Image.Image:
        from PIL import Image

        return pair.image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=_GREY)

    return Manipulation(f"rotated {degrees:g}°", "pictures", change)


def things() -> Manipulation:
    """Pictures of things only, the rest mid grey. Raises ValueError for a picture without a mask."""
    return Manipulation("things only", "pictures", lambda pair: _masked(pair, keep_things=True))


def stuff() -> Manipulation:
    """Pictures of all but the things, which are mid grey. Raises ValueError for a picture without a mask."""
    return Manipulation("stuff only", "pictures", lambda pair: _masked(pair, keep_things=False))


def _masked(pair: Pair, keep_things: bool) -> Image.Image:
    from PIL import Image

    mask = pair.mask
    if mask is None:
        raise ValueError(
            f"{pair.name}: no mask, so things and stuff cannot be told apart; give one (a `mask` column, fox.mask.png "
            "beside fox.png, an alpha channel, or instances= of COCO) or leave things() and stuff() out"
        )
    picture, grey = pair.image, Image.new("RGB", mask.size, _GREY)
    return Image.composite(picture, grey, mask) if keep_things else Image.composite(grey, picture, mask)


def scrambled(seed: int = 0) -> Manipulation:
    """Captions with their words in another order, drawn for each caption; one of fewer than two words stays."""

    def change(caption: str) -> str:
        words = caption.split()
        if len(set(words)) < 2:
            return caption
        digest = hashlib.sha256(f"{seed} {caption}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "big"))  # the same in any order of captions
        shuffled = words
        while shuffled == words:
            shuffled = [words[i] for i in random.permutation(len(words))]
        return " ".join(shuffled)

    return Manipulation("scrambled words", "words", change)


def only(part: str, tagger: Tagger | None = None) -> Manipulation:
    """Captions of "nouns" or "verbs" only, in their order.

    tagger   gives (word, tag) of each word of a text, tags as in the Penn Treebank (NN..., VB...) or universal (NOUN,
             PROPN, VERB); NLTK's if not given, which needs its data

    Applied, raises ValueError for a caption in which nothing is left, ImportError or LookupError where NLTK or its data
    are missing.
    """
    begins = {"nouns": ("NN", "NOUN", "PROPN"), "verbs": ("VB", "VERB")}
    choice(part, "part", tuple(begins))

    def change(caption: str) -> str:
        words = [word for word, tag in (tagger or _nltk)(caption) if tag.startswith(begins[part])]
        if not words:
            raise ValueError(
                f"{caption!r} has no {part}, so nothing is left of it; leave such pairs out, or choose captions that "
                "have some"
            )
        return " ".join(words)

    return Manipulation(f"{part} only", "words", change)


def _nltk(caption: str) -> Iterable[tuple[str, str]]:
    try:
        import nltk
    except ImportError as error:
        raise ImportError("nouns and verbs are told by NLTK: pip install nltk, or pass tagger=") from error
    try:
        return nltk.pos_tag(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", caption))
    except LookupError as error:
        raise LookupError(
            "NLTK's tagger is not on this machine: python -m nltk.downloader averaged_perceptron_tagger_eng, or pass "
            "tagger=, a function from a text to (word, tag) pairs"
        ) from error
