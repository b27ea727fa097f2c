"""Segmentations as COCO writes them: polygons and run lengths, plain and packed, to one mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import shown, whole

if TYPE_CHECKING:
    from PIL import Image


FAR = 1e6  # pixels; coordinates beyond are none


def outlines(segments: Iterable[Any], size: tuple[int, int]) -> Image.Image:
    """The union of segmentations as a mask of a size (width, height): 255 inside, 0 elsewhere.

    Raises ValueError for run lengths of another size or that are none, and polygons that are not finite.
    """
    from PIL import Image, ImageDraw

    mask = Image.new("L", size, 0)
    draw = ImageDraw.Draw(mask)
    for segment in segments:
        if isinstance(segment, dict):
            runs = Image.fromarray(255 * _runs(segment, size).astype(np.uint8))
            mask.paste(255, mask=runs)
            continue
        for points in map(_polygon, _polygons(segment)):
            if len(points) >= 6:  # fewer numbers enclose nothing
                draw.polygon(points, fill=255)
    return mask


def _polygons(segment: Any) -> Sequence[Any]:
    """The polygons of a segmentation: a list of lists of numbers, or one such list."""
    if segment is None:
        return []
    if not isinstance(segment, (list, tuple)):
        raise ValueError(f"a segmentation is a list of polygons or run lengths; got {shown(segment)}")
    return [segment] if segment and isinstance(segment[0], (int, float)) else segment


def _polygon(numbers: Any) -> list[float]:
    """A polygon's x and y in turn. Raises ValueError for what is not finite, no number, or out of all reach."""
    try:
        points = np.asarray(numbers, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.array(np.nan)
    if points.ndim != 1 or len(points) % 2 or not bool((abs(points) < FAR).all()):
        raise ValueError(f"a polygon is x and y in turn, finite numbers of pixels; got {shown(numbers)}")
    return [float(v) for v in points]


def _runs(segment: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Run lengths, column by column and zeros first, as a mask (height, width)."""
    try:
        height, width = map(int, segment["size"])
        counts = segment["counts"]
        runs = unpacked(counts) if isinstance(counts, (str, bytes)) else [whole(n, "a run length", 0) for n in counts]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"run lengths are counts and a size (height, width); got {shown(segment)} ({error})") from None
    if (width, height) != size:
        raise ValueError(f"run lengths of {width} x {height} for a picture of {size[0]} x {size[1]}")
    if sum(runs) != width * height or min(runs, default=0) < 0:
        raise ValueError(f"run lengths of {sum(runs)} pixels in all for a picture of {width} x {height}")
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    return values.reshape(width, height).T.astype(bool)


def unpacked(text: str | bytes) -> Sequence[int]:
    """COCO's packed run lengths: numbers of five bits a character, from 48, the sixth bit says that more follow; from
    the fourth number on, differences from the number before the last.

    >>> unpacked("6X1")
    [6, 40]
    """
    runs: list[int] = []
    value = shift = 0
    for code in text.encode() if isinstance(text, str) else text:
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:  # negative
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
