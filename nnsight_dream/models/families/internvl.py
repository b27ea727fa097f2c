"""InternVL."""

from __future__ import annotations

from typing import Any

from ...engine.pixels import PixelFormat
from ..family import PLAIN_HOOKS, PLAIN_KINDS, Family, stated_size


def _shrunk(processor: Any, config: Any) -> PixelFormat:
    patch = config.vision_config.patch_size
    side = patch if isinstance(patch, int) else patch[0]
    return PixelFormat.of(processor, cell=round(side / config.downsample_ratio), any_size=True, square=True)


INTERNVL = Family(
    name="internvl",
    model_types=("internvl",),
    root="model",
    layers="model.language_model.layers",
    tower="model.vision_tower",
    projector="model.multi_modal_projector",
    placeholder="{image}",
    wrapped="<img>{image}</img>",
    pixels=_shrunk,
    views=lambda pixels: {"crop_to_patches": False, **stated_size(pixels)},
    kinds=PLAIN_KINDS,
    hooks=PLAIN_HOOKS,
)
