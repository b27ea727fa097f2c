"""The canvas that settings mean for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.canvas import Native

if TYPE_CHECKING:
    from ..engine.optimise import Canvas
    from ..models.vlm import VLM


def canvas_for(vlm: VLM, chosen: Canvas | Native) -> Canvas:
    """The canvas that a choice means for a model. Raises ValueError for `Native` where its pictures are not square."""
    if not isinstance(chosen, Native):
        return chosen
    height, width = vlm.image_size
    if height != width:
        raise ValueError(
            f"canvas={chosen!r}: {vlm.id} sees pictures of {height} x {width} pixels, and canvases are square; give "
            f"one with a size, such as MultiResolution({max(height, width)}), or load with a square image_size="
        )
    return chosen.at(height)
