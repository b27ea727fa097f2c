"""LLaVA, LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...engine.pixels import PixelFormat
from ..family import PLAIN_HOOKS, PLAIN_KINDS, Family


def _by_patch(processor: Any, config: Any) -> PixelFormat:
    return PixelFormat.of(processor, cell=config.vision_config.patch_size)


LLAVA = Family(
    name="llava",
    model_types=("llava",),
    towers=("clip_vision_model", "siglip_vision_model"),
    root="model",
    layers="model.language_model.layers",
    tower="model.vision_tower",
    projector="model.multi_modal_projector",
    placeholder="{image}",
    wrapped="{image}",
    pixels=_by_patch,
    kinds=PLAIN_KINDS,
    hooks=PLAIN_HOOKS,
)


def _whole_view(processor: Any, config: Any) -> PixelFormat:
    size = processor.size
    side = size.get("shortest_edge") or size["height"]
    return PixelFormat.of(processor, (side, side), cell=config.vision_config.patch_size)


def _first_view(root: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The image tokens of the whole picture, which stand before those of its tiles; no line ends among them."""
    config = root.config
    states = root.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    layers = config.vision_feature_layer
    chosen = states[layers] if isinstance(layers, int) else torch.cat([states[i] for i in layers], -1)
    if config.vision_feature_select_strategy == "default":
        chosen = chosen[:, 1:]
    return tuple(root.multi_modal_projector(chosen))


LLAVA_NEXT = replace(
    LLAVA,
    name="llava_next",
    model_types=("llava_next",),
    towers=(),
    pixels=_whole_view,
    seen=lambda batch: {"pixel_values": batch["pixel_values"][:, 0]},
    encode=_first_view,
    tiles_behind=True,
)


LLAVA_ONEVISION = replace(LLAVA_NEXT, name="llava_onevision", model_types=("llava_onevision",))
