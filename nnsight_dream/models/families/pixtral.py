"""Pixtral and Mistral 3, whose processors keep a picture's shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...engine.pixels import PixelFormat, sized_pixels
from ..family import CANVAS
from .llava import LLAVA


def _longest(pixels: PixelFormat) -> dict[str, Any]:
    return {"size": {"longest_edge": max(pixels.size)}}


def _side_of(processor: Any, cell: int) -> tuple[int, int]:
    """What Pixtral's processor makes of the paper's canvas: no longer than it allows, rounded up to whole cells."""
    side = min(CANVAS, processor.size["longest_edge"])
    return (-(-side // cell) * cell,) * 2


def _by_rows(processor: Any, config: Any) -> PixelFormat:
    cell = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    return PixelFormat.of(processor, _side_of(processor, cell), cell=cell, any_size=True)


PIXTRAL = replace(
    LLAVA,
    name="pixtral",
    towers=("pixtral",),
    wrapped="{image}[IMG_END]",
    between="[IMG_BREAK]",
    pixels=_by_rows,
    pack=sized_pixels,
    views=_longest,
)


MISTRAL3 = replace(PIXTRAL, name="mistral3", model_types=("mistral3",))
