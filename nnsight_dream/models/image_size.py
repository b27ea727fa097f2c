"""Which sizes of pictures a model can see: what `image_size=` of `load` may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import arguments

if TYPE_CHECKING:
    from ..engine.pixels import PixelFormat
    from .vlm import VLM


_SIDES = "a side in pixels, or (height, width), is"


def image_size_of(vlm: VLM, asked: int | tuple[int, int]) -> tuple[int, int]:
    """The requested (height, width) in pixels, from a side or both.

    Raises ValueError, with the nearest size that will do, where the model cannot see such pictures.
    """
    sides = [asked, asked] if arguments.is_whole(asked) else arguments.listed(asked, "image_size", _SIDES)
    size = tuple(arguments.whole(n, "image_size", 1) for n in sides)
    cell = vlm.pixels.cell
    if not vlm.pixels.any_size and size != vlm.image_size:
        raise ValueError(
            f"image_size={asked!r}: {vlm.id} ({vlm.family.name}) sees pictures of {vlm.image_size[0]} x "
            f"{vlm.image_size[1]} pixels only; leave image_size= out"
        )
    if vlm.pixels.square and len(set(size)) > 1:
        raise ValueError(
            f"image_size={asked!r}: {vlm.family.name} takes square pictures only; did you mean {max(size)}?"
        )
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 and n % (cell or n) == 0 for n in size):
        near = max(cell, round(max(size) / cell) * cell)
        if vlm.pixels.tokens:
            near = _nearest(vlm.pixels, max(size))
        raise ValueError(
            f"image_size={asked!r}: give a side or (height, width) in multiples of {cell} pixels, the side of an image "
            f"token of {vlm.id}; did you mean {near}?"
        )
    if not vlm.pixels.fits(size):  # type: ignore[arg-type]
        raise ValueError(
            f"image_size={asked!r}: {vlm.id} ({vlm.family.name}) makes {vlm.pixels.tokens} x {vlm.pixels.tokens} image "
            f"tokens of every picture; sizes that these divide evenly are {vlm.pixels.sizes}. Did you mean "
            f"{_nearest(vlm.pixels, max(size))}?"
        )
    return size  # type: ignore[return-value]


def _nearest(pixels: PixelFormat, side: int) -> int:
    """The side nearest to another of which square pictures fit."""
    most = max(side, pixels.tokens * pixels.cell) + pixels.tokens * pixels.cell
    fit = [n for n in range(pixels.cell, most + 1, pixels.cell) if pixels.fits((n, n))]
    return min(fit, key=lambda n: abs(n - side))
