"""Idefics3 and SmolVLM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...engine.pixels import PixelFormat, one_of_several
from ..family import PLAIN_HOOKS, PLAIN_KINDS, Family


def _one_view(processor: Any, config: Any) -> PixelFormat:
    side = processor.max_image_size["longest_edge"]
    return PixelFormat.of(processor, (side, side), cell=config.vision_config.patch_size * config.scale_factor)


IDEFICS3 = Family(
    name="idefics3",
    model_types=("idefics3",),
    root="model",
    layers="model.text_model.layers",
    tower="model.vision_model",
    projector="model.connector",
    placeholder="{image}",
    wrapped="<fake_token_around_image><global-img>{image}<fake_token_around_image>",
    pixels=_one_view,
    pack=one_of_several,
    # do_resize is the detour over four times the size, made to cut tiles from
    views=lambda pixels: {"do_image_splitting": False, "do_resize": False},
    kinds=PLAIN_KINDS,
    hooks=PLAIN_HOOKS,
)


SMOLVLM = replace(IDEFICS3, name="smolvlm", model_types=("smolvlm",))
