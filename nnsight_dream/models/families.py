"""What is particular to each family of vision-language models: one frozen record each, and nothing else knows a family.

A record says where layers, tower and image tokens are and how a picture becomes the model's pixel input; what its
fields mean is told in `family.py`.
Numbers that belong to a checkpoint (mean, std, size, token ids) are read from the checkpoint, never written here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ..engine.pixels import PixelFormat, merged_patches, one_of_several, placed_patches, sized_pixels, stated
from .family import Family, cells, first


def _square(config: Any, pixels: PixelFormat) -> tuple[int, int]:
    side = math.isqrt(config.mm_tokens_per_image)
    return side, side


def _pooled(processor: Any, config: Any) -> PixelFormat:
    side = math.isqrt(config.mm_tokens_per_image)
    return PixelFormat.of(processor, cell=config.vision_config.patch_size, any_size=True, square=True, tokens=side)


def _stated_size(pixels: PixelFormat) -> dict[str, Any]:
    return {"size": dict(zip(("height", "width"), pixels.size, strict=True))}


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


CANVAS = 448  # the side in pixels of the pictures of arXiv 2601.08017, for models that take any size


def _multimodal_types(ids: torch.Tensor, image: int) -> dict[str, torch.Tensor]:
    return {"mm_token_type_ids": (ids == image).long()}


def _image_types(ids: torch.Tensor, image: int) -> dict[str, torch.Tensor]:
    return {"token_type_ids": (ids == image).long()}


def _is_stack(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4


RESIDUAL = {"resid_pre": ("", "input"), "resid_post": ("", "output")}


# blocks as Llama has them: two norms, each before its module
_PLAIN_KINDS = {**RESIDUAL, "attn_out": ("self_attn", "output"), "mlp_out": ("mlp", "output")}


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
    pixels=_pooled,
    views=_stated_size,
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
    kinds={**RESIDUAL, "mlp_out": ("mlp", "output")},
    hooks={k: v for k, v in _PLAIN_HOOKS.items() if k != "attn.hook_z"},
)


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
    views=lambda pixels: {"crop_to_patches": False, **_stated_size(pixels)},
    kinds=_PLAIN_KINDS,
    hooks=_PLAIN_HOOKS,
)


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
    kinds=_PLAIN_KINDS,
    hooks=_PLAIN_HOOKS,
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
    seen=lambda made: {"pixel_values": made["pixel_values"][:, 0]},
    encode=_first_view,
    tiles_behind=True,
)


LLAVA_ONEVISION = replace(LLAVA_NEXT, name="llava_onevision", model_types=("llava_onevision",))


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


PALIGEMMA = replace(
    LLAVA,
    name="paligemma",
    model_types=("paligemma",),
    towers=(),
    decoders=("gemma",),
    extra=lambda ids, image: {"token_type_ids": torch.zeros_like(ids)},  # all is prefix, which sees all of itself
    text=lambda ids: {"token_type_ids": torch.zeros_like(ids)},  # else a padding mask would turn it causal
    looks_ahead=True,
    chat_template=(
        "{% for m in messages %}{% if m.content is string %}{{ bos_token }}{{ m.content }}{% else %}"
        "{% for c in m.content if c.type == 'image' %}<image>{% endfor %}{{ bos_token }}"
        "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endif %}{{ '\\n' }}{% endfor %}"
    ),
)


PALIGEMMA2 = replace(PALIGEMMA, name="paligemma2", decoders=("gemma2",), kinds=GEMMA3.kinds, hooks=GEMMA3.hooks)


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
    kinds=_PLAIN_KINDS,
    hooks=_PLAIN_HOOKS,
)


SMOLVLM = replace(IDEFICS3, name="smolvlm", model_types=("smolvlm",))


def _within_budget(processor: Any, config: Any) -> PixelFormat:
    """Gemma 4's processor brings every picture to as many tokens as are allowed; here a square one."""
    patch, pool = processor.patch_size, processor.pooling_kernel_size
    side = math.isqrt(processor.max_soft_tokens) * patch * pool
    return PixelFormat.of(processor, (side, side), cell=patch * pool, any_size=True, patch=patch)


def _unpadded(made: Any) -> dict[str, torch.Tensor]:
    real = made["image_position_ids"][0, :, 0] >= 0
    return {name: made[name][:, real] for name in ("pixel_values", "image_position_ids")}


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
    extra=_multimodal_types,
)


# no tower: patches of a whole token's size go straight into the projector
GEMMA4_UNIFIED = replace(
    GEMMA4,
    name="gemma4_unified",
    model_types=("gemma4_unified",),
    tower="",
    stand_in="Gemma4ImageProcessorPil",
    pixels=lambda processor, config: replace((made := _within_budget(processor, config)), patch=made.cell),
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


def _by_code(processor: Any, config: Any) -> PixelFormat:
    return PixelFormat.of(processor, cell=2 ** (len(config.vq_config.channel_multiplier) - 1))


def _soft_codes(root: Any, inputs: dict[str, torch.Tensor], temperature: float) -> torch.Tensor:
    """Straight-through estimate (Bengio et al. 2013): tokens as the model makes them, with the gradient of soft ones.

    Chameleon replaces each cell of a picture by the nearest word of a code book, through which no gradient passes.
    Here it passes as if words were mixed, by softmax(-squared distance / temperature). It is not the gradient of
    what the model computes, but a biased guess: the lower the temperature the truer, and the more often nought.
    """
    codes = root.vqmodel.quantize.embedding.weight
    cells = root.vqmodel.quant_conv(root.vqmodel.encoder(inputs["pixel_values"])).flatten(2).transpose(1, 2)
    far = torch.cdist(cells.float(), codes.float()).square()
    soft = (-far / temperature).softmax(-1)
    hard = torch.nn.functional.one_hot(far.argmin(-1), len(codes)).to(soft)
    words = root.embed_tokens.weight[root.vocabulary_mapping.img2bpe_mapping_tensor.long().to(codes.device)]
    return (hard + soft - soft.detach()).to(words.dtype) @ words


# early fusion: a picture becomes words of the vocabulary. No gradient passes but by the surrogate
CHAMELEON = Family(
    name="chameleon",
    model_types=("chameleon",),
    root="model",
    layers="model.layers",
    tower="model.vqmodel",
    projector="",
    placeholder="{image}",
    wrapped="<racm3:break>{image}<eoss>",
    pixels=_by_code,
    surrogate=_soft_codes,
    kinds=_PLAIN_KINDS,
    hooks=_PLAIN_HOOKS,
    chat_template=(
        "{{ bos_token }}{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}"
        "{% endif %}{% endfor %}"
    ),
)


FAMILIES: tuple[Family, ...] = (
    GEMMA3,
    GEMMA3N,
    GEMMA4,
    GEMMA4_UNIFIED,
    INTERNVL,
    QWEN2_VL,
    QWEN2_5_VL,
    QWEN3_VL,
    QWEN3_5,
    LLAVA,
    LLAVA_NEXT,
    LLAVA_ONEVISION,
    PIXTRAL,
    MISTRAL3,
    PALIGEMMA,
    PALIGEMMA2,
    IDEFICS3,
    SMOLVLM,
    CHAMELEON,
)


def known_families() -> str:
    """The families by name, with the model types of their configs."""
    return ", ".join(f"{f.name} ({', '.join(f.model_types)})" for f in FAMILIES)


def family_of(config: Any) -> Family | None:
    """The record for a Hugging Face config, or None for one of an unknown family."""
    decoder, tower = config.get_text_config().model_type, getattr(config, "vision_config", None)
    for family in FAMILIES:
        if (
            config.model_type in family.model_types
            and decoder in (family.decoders or (decoder,))
            and (not family.towers or getattr(tower, "model_type", None) in family.towers)
        ):
            return family
    return None
