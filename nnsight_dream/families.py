"""What is particular to each family of vision-language models: one frozen record each, and nothing else knows a family.

A record says where layers, tower and image tokens are and how a picture becomes the model's pixel input.
Numbers that belong to a checkpoint (mean, std, size, token ids) are read from the checkpoint, never written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .pixels import PixelFormat, merged_patches, plain_pixels, stated


def _square(config: Any, pixels: PixelFormat) -> tuple[int, int]:
    side = math.isqrt(config.mm_tokens_per_image)
    return side, side


def _cells(config: Any, pixels: PixelFormat) -> tuple[int, int]:
    """The grid of a model that takes pictures of any whole number of cells."""
    return pixels.size[0] // pixels.cell, pixels.size[1] // pixels.cell


CANVAS = 448  # the side in pixels of the pictures of arXiv 2601.08017, for models that take any size


def _multimodal_types(ids: torch.Tensor, image: int) -> dict[str, torch.Tensor]:
    return {"mm_token_type_ids": (ids == image).long()}


def _image_types(ids: torch.Tensor, image: int) -> dict[str, torch.Tensor]:
    return {"token_type_ids": (ids == image).long()}


@dataclass(frozen=True)
class Family:
    """One family of vision-language models, as facts.

    A config belongs to it by `model_types` and, where families share one, by the types of its `decoders` and `towers`.
    `root` is the module that takes token ids and pixels and has no head; `layers` the decoder's blocks.
    `kinds` maps a site kind to (module path below a block, "output" or "input"); `hooks` does so for other hooks of
    TransformerLens, by their names there. `states` takes (batch, tokens, width) out of what a block gives.

    `wrapped` is the text that the family's processor puts for one image: `{begin}`, `{image}` (repeated by the
    grid, rows joined by `between`) and `{end}` are the checkpoint's own tokens; `placeholder` is what its chat template
    writes there. `begin_id` and `end_id` name the config fields that hold the ids of the tokens around an image, if
    there are any. `spare` image tokens behind the grid are no patches. `looks_ahead` says that image tokens see the
    text behind them. `chat_template` serves checkpoints that have none.

    `pixels` reads the numbers of the image processor (processor, config), `grid` the rows and columns of image tokens
    (config, numbers), `pack` makes the pixel inputs (pictures, numbers), `extra` the other inputs that depend on the
    token ids (ids, image id), `text` those of text alone (ids). `views` are the options with which the image
    processor makes one view of that size of a picture, and cuts nothing up.
    `masks` says that the decoder takes ready attention masks as a dict by layer type, `positions` that it takes ready
    position ids; both are then made once.
    """

    name: str
    model_types: tuple[str, ...]
    root: str
    layers: str
    tower: str
    projector: str
    placeholder: str
    wrapped: str
    begin_id: str = ""
    end_id: str = ""
    grid: Callable[[Any, PixelFormat], tuple[int, int]] = _cells
    pack: Callable[[torch.Tensor, PixelFormat], dict[str, torch.Tensor]] = plain_pixels
    extra: Callable[[torch.Tensor, int], dict[str, torch.Tensor]] = lambda ids, image: {}
    kinds: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    hooks: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    masks: bool = False
    positions: bool = False
    pixels: Callable[[Any, Any], PixelFormat] = stated
    views: Callable[[PixelFormat], dict[str, Any]] = lambda pixels: {}
    text: Callable[[torch.Tensor], dict[str, torch.Tensor]] = lambda ids: {}
    states: Callable[[Any, Any], Any] = lambda value, config: value[0] if isinstance(value, tuple) else value
    decoders: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()
    between: str = ""
    spare: int = 0
    looks_ahead: bool = False
    chat_template: str | None = None


_RESIDUAL = {"resid_pre": ("", "input"), "resid_post": ("", "output")}
# blocks as Llama has them: two norms, each before its module
_PLAIN_KINDS = {**_RESIDUAL, "attn_out": ("self_attn", "output"), "mlp_out": ("mlp", "output")}
_PLAIN_HOOKS = {
    "hook_resid_mid": ("post_attention_layernorm", "input"),
    "attn.hook_z": ("self_attn.o_proj", "input"),
    "mlp.hook_in": ("mlp", "input"),
    "mlp.hook_out": ("mlp", "output"),
}

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
    extra=_image_types,  # without them image tokens silently attend causally
    kinds={
        **_RESIDUAL,
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
)


def _merged(processor: Any, config: Any) -> PixelFormat:
    """Qwen's processors keep a picture's shape; the size is what they make of the paper's canvas."""
    patch, merge = processor.patch_size, processor.merge_size
    side = math.isqrt(processor.get_number_of_image_patches(CANVAS, CANVAS)) * patch
    frames = processor.temporal_patch_size
    return PixelFormat.of(processor, (side, side), cell=patch * merge, patch=patch, merge=merge, frames=frames)


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
    extra=_multimodal_types,  # without them positions are those of text, silently
    positions=True,
    kinds=_PLAIN_KINDS,
    hooks=_PLAIN_HOOKS,
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
    kinds={**_RESIDUAL, "mlp_out": ("mlp", "output")},
    hooks={k: v for k, v in _PLAIN_HOOKS.items() if k != "attn.hook_z"},
)

FAMILIES: tuple[Family, ...] = (GEMMA3, QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_5)


def family_of(config: Any) -> Family:
    """The record for a Hugging Face config; raises ValueError that lists the known families."""
    decoder, tower = config.get_text_config().model_type, getattr(config, "vision_config", None)
    for family in FAMILIES:
        if (
            config.model_type in family.model_types
            and decoder in (family.decoders or (decoder,))
            and (not family.towers or getattr(tower, "model_type", None) in family.towers)
        ):
            return family
    known = ", ".join(f"{f.name} ({', '.join(f.model_types)})" for f in FAMILIES)
    raise ValueError(
        f"no family record for model_type {config.model_type!r}; known families: {known}. "
        "Write a nnsight_dream.families.Family for it and pass it as nd.load(..., family=record)."
    )
