"""Gemma 3, 3n and 4 of Google."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ...engine.pixels import PixelFormat, placed_patches, stated
from ..family import RESIDUAL, Family, cells, first, multimodal_types, stated_size


def _square(config: Any, pixels: PixelFormat) -> tuple[int, int]:
    side = math.isqrt(config.mm_tokens_per_image)
    return side, side


def _pooled(processor: Any, config: Any) -> PixelFormat:
    side = math.isqrt(config.mm_tokens_per_image)
    return PixelFormat.of(processor, cell=config.vision_config.patch_size, any_size=True, square=True, tokens=side)


def _interpolated(root: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Gemma 3's image tokens of pictures of another size than its own, as many as ever.

    Gemma 3 refuses such pictures. SigLIP, its tower, takes them with positions interpolated by its own rule; a token is
    then the mean of the patches in its cell of the picture, or shares a patch with its neighbours. The projector takes
    means of as many patches as it was made for: it gets equal ones.
    """
    projector = root.multi_modal_projector
    patches = root.vision_tower(inputs["pixel_values"], interpolate_pos_encoding=True).last_hidden_state
    side = math.isqrt(patches.shape[1])
    grid = patches.transpose(1, 2).unflatten(2, (side, side))
    pooled = torch.nn.functional.avg_pool2d(grid, max(1, side // projector.tokens_per_side))
    times = projector.patches_per_image // pooled.shape[-1]
    equal = pooled.repeat_interleave(times, 2).repeat_interleave(times, 3)
    return projector(equal.flatten(2).transpose(1, 2))


def _image_types(ids: torch.Tensor, image: int) -> dict[str, torch.Tensor]:
    return {"token_type_ids": (ids == image).long()}


def _is_stack(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4


GEMMA3 = Family(
    name="gemma3",
    model_types=("gemma3",),
    root="model",
    layers="model.language_model.layers",
    tower="model.vision_tower",
    projector="model.multi_modal_projector",
    placeholder="{begin}",
    wrapped="\n\n{begin}{image}{end}\n\n",
    begin_id="boi_token_index",
    end_id="eoi_token_index",
    grid=_square,
    pixels=_pooled,
    views=stated_size,
    resized=_interpolated,
    extra=_image_types,  # without them image tokens silently attend causally
    kinds={
        **RESIDUAL,
        # TransformerLens reads these after the block's post-norms (Gemma 3 has them), as does Gemma Scope 2
        "attn_out": ("post_attention_layernorm", "output"),
        "mlp_out": ("post_feedforward_layernorm", "output"),
    },
    hooks={
        "hook_resid_mid": ("pre_feedforward_layernorm", "input"),
        "attn.hook_z": ("self_attn.o_proj", "input"),
        "mlp.hook_in": ("mlp", "input"),
        "mlp.hook_out": ("mlp", "output"),
    },
    masks=True,
    overflows=True,  # Gemma 3 and 4: https://unsloth.ai/blog/gemma3
)


def _within_budget(processor: Any, config: Any) -> PixelFormat:
    """Gemma 4's processor brings every picture to as many tokens as are allowed; here a square one."""
    patch, pool = processor.patch_size, processor.pooling_kernel_size
    side = math.isqrt(processor.max_soft_tokens) * patch * pool
    return PixelFormat.of(processor, (side, side), cell=patch * pool, any_size=True, patch=patch)


def _unpadded(inputs: Any) -> dict[str, torch.Tensor]:
    real = inputs["image_position_ids"][0, :, 0] >= 0
    return {name: inputs[name][:, real] for name in ("pixel_values", "image_position_ids")}


GEMMA4 = replace(
    GEMMA3,
    name="gemma4",
    model_types=("gemma4",),
    projector="model.embed_vision",
    placeholder="{image}",
    wrapped="{begin}{image}{end}",
    begin_id="boi_token_id",
    end_id="eoi_token_id",
    grid=cells,
    resized=None,
    views=lambda pixels: {},
    pixels=_within_budget,
    pack=placed_patches,
    seen=_unpadded,
    extra=multimodal_types,
)


# no tower: patches of a whole token's size go straight into the projector
GEMMA4_UNIFIED = replace(
    GEMMA4,
    name="gemma4_unified",
    model_types=("gemma4_unified",),
    tower="",
    stand_in="Gemma4ImageProcessorPil",
    pixels=lambda processor, config: replace((form := _within_budget(processor, config)), patch=form.cell),
)


GEMMA3N = replace(
    GEMMA3,
    name="gemma3n",
    model_types=("gemma3n",),
    projector="model.embed_vision",
    placeholder="{image}",
    grid=lambda config, pixels: (math.isqrt(config.vision_soft_tokens_per_image),) * 2,
    pixels=stated,
    resized=None,
    views=lambda pixels: {},
    # four streams run side by side (AltUp); this one is the residual stream that goes on
    states=lambda value, config: value[config.get_text_config().altup_active_idx] if _is_stack(value) else first(value),
    begin_id="boi_token_id",
    end_id="eoi_token_id",
)
