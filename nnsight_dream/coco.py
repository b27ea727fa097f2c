"""Segmentations as COCO writes them: polygons and run lengths, plain and packed, to one mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


def outlines(segments: Iterable[Any], size: tuple[int, int]) -> Image.Image:
    """The union of segmentations as a mask of a size (width, height): 255 inside, 0 elsewhere.

    Raises ValueError for run lengths of another size.
    """
    from PIL import Image, ImageDraw

    mask = Image.new("L", size, 0)
    draw = ImageDraw.Draw(mask)
    for segment in segments:
        if isinstance(segment, dict):
            runs = Image.fromarray(255 * _runs(segment, size).astype(np.uint8))
            mask.paste(255, mask=runs)
            continue
        for polygon in segment:
            if len(polygon) >= 6:  # fewer numbers enclose nothing
                draw.polygon([float(v) for v in polygon], fill=255)
    return mask


def _runs(segment: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Run lengths, column by column and zeros first, as a mask (height, width)."""
    height, width = segment["size"]
    if (width, height) != size:
        raise ValueError(f"run lengths of {width} x {height} for a picture of {size[0]} x {size[1]}")
    counts = segment["counts"]
    runs = unpacked(counts) if isinstance(counts, (str, bytes)) else counts
    if sum(runs) != width * height:
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
