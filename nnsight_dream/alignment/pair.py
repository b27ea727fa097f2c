"""A pair: a picture with its captions, mask and group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..io.pictures import read
from .coco import outlines

if TYPE_CHECKING:
    from PIL import Image

    from ..io.pictures import Read


@dataclass(frozen=True, eq=False)
class Pair:
    """A picture and its captions.

    name      which picture it is, for messages
    captions  one text or more
    group     what belongs together, such as the thing that several pictures show; the name if there is nothing else
    source    the picture: a file, its bytes, or whatever `pictures` reads;  covering, likewise, its mask or None
    """

    name: str
    captions: tuple[str, ...]
    group: str
    source: Any = field(repr=False)
    covering: Any = field(repr=False, default=None)

    @property
    def image(self) -> Image.Image:
        """The picture, upright, RGB, on white where it is transparent; read anew each time.

        Raises ValueError with its name.
        """
        return read(self.source, self.name).image

    @property
    def mask(self) -> Image.Image | None:
        """What is thing (255) and what is ground (0), of the picture's size; None where that is not known.

        Without a mask of its own, a picture's alpha channel is one. Raises ValueError for a mask of another size, or
        outlines that are none.
        """
        picture = read(self.source, self.name)
        if self.covering is None:
            return picture.cover
        if isinstance(self.covering, Outlines):
            try:
                mask = outlines(self.covering.segments, picture.size)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from None
            return mask if mask.size == picture.image.size else mask.resize(picture.image.size, 4)  # 4: box
        return _mask(read(self.covering, f"the mask of {self.name}"), picture, self.name)


def _mask(raw: Read, picture: Read, name: str) -> Image.Image:
    """A mask's brightness; what of it is clear is ground."""
    from PIL import ImageChops

    if raw.size != picture.size:
        raise ValueError(f"{name}: the picture is {picture.size[0]} x {picture.size[1]}, its mask {raw.size}")
    mask = raw.image.convert("L")
    return mask if raw.cover is None else ImageChops.subtract(mask, ImageChops.invert(raw.cover))  # white to black


@dataclass(frozen=True)
class Outlines:
    """A mask as polygons or runs of COCO's, drawn when it is looked at."""

    segments: tuple[Any, ...]


def pair(name: str, source: Any, captions: Any, group: Any = None, mask: Any = None) -> Pair:
    """A pair, checked. Raises ValueError for missing or empty captions, and for half a character in one."""
    several, form = () if captions is None else captions, "a caption, or a list of them, is"
    items = [captions] if isinstance(captions, str) else arguments.listed(several, name, form)
    texts = tuple(c.strip() for c in items if isinstance(c, str) and c.strip())
    if not texts or len(texts) < len(items):
        raise ValueError(f"{name}: one caption or more is needed, none of them empty; got {arguments.shown(captions)}")
    for caption in texts:
        arguments.text(caption, f"{name}: caption")
    return Pair(name, texts, name if group is None or group == "" else str(group), source, mask)


def whole(found: Iterable[Pair], where: Any) -> list[Pair]:
    """The pairs in a list, if there are any and no name stands twice. Raises ValueError."""
    pairs = list(found)
    if not pairs:
        raise ValueError(f"{where}: no pair of a picture and a caption in it")
    names = [p.name for p in pairs]
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise ValueError(f"{where}: {twice!r} comes twice; give each picture once, with all its captions")
    return pairs
