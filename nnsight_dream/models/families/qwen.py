"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ...engine.pixels import PixelFormat, merged_patches
from ..family import CANVAS, PLAIN_HOOKS, PLAIN_KINDS, RESIDUAL, Family, multimodal_types


def _merged(processor: Any, config: Any) -> PixelFormat:
    """Qwen's processors keep a picture's shape; the size is what they make of the paper's canvas."""
    patch, merge = processor.patch_size, processor.merge_size
    side = math.isqrt(processor.get_number_of_image_patches(CANVAS, CANVAS)) * patch
    frames = processor.temporal_patch_size
    return PixelFormat.of(
        processor, (side, side), cell=patch * merge, any_size=True, patch=patch, merge=merge, frames=frames
    )


def _about(pixels: PixelFormat) -> dict[str, Any]:
    area = pixels.size[0] * pixels.size[1]  # one pixel of room: the processor rounds quotients up and down
    return {"size": {"shortest_edge": area - 1, "longest_edge": area + 1}}


QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    model_types=("qwen2_5_vl",),
    root="model",
    layers="model.language_model.layers",
    tower="model.visual",
    projector="model.visual.merger",
    placeholder="{image}",
    wrapped="{image}",
    pixels=_merged,
    views=_about,
    pack=merged_patches,
    extra=multimodal_types,  # without them positions are those of text, silently
    positions=True,
    kinds=PLAIN_KINDS,
    hooks=PLAIN_HOOKS,
)


QWEN2_VL = replace(QWEN2_5_VL, name="qwen2_vl", model_types=("qwen2_vl",))


# The tower's inner layers are added to image tokens behind the first blocks ("DeepStack"): not yet in a block's
# resid_post (nor in Hugging Face's hidden states), but in the next block's resid_pre
QWEN3_VL = replace(QWEN2_5_VL, name="qwen3_vl", model_types=("qwen3_vl", "qwen3_vl_moe"))


# three blocks of four have linear attention, "linear_attn", and no "self_attn"
QWEN3_5 = replace(
    QWEN2_5_VL,
    name="qwen3_5",
    model_types=("qwen3_5", "qwen3_5_moe"),
    kinds={**RESIDUAL, "mlp_out": ("mlp", "output")},
    hooks={k: v for k, v in PLAIN_HOOKS.items() if k != "attn.hook_z"},
)
