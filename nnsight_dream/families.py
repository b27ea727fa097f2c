"""What is particular to each family of vision-language models: one frozen record each, and nothing else knows a family.

A record says where layers, tower and image tokens are and how a picture becomes the model's pixel input.
Numbers that belong to a checkpoint (mean, std, size, token ids) are read from the checkpoint, never written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class PixelFormat:
    """How a checkpoint's image processor turns a picture into numbers.

    `size` is (height, width) in pixels; `mean` and `std` are per RGB channel, for values in [0, 1];
    `resample` is PIL's number of the interpolation (2 bilinear, 3 bicubic).
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int = 2

    @classmethod
    def of(cls, processor: Any) -> PixelFormat:
        """Read the numbers off a Hugging Face image processor."""
        size = processor.size
        height, width = (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],) * 2
        scale = processor.rescale_factor * 255 if processor.do_rescale else 255.0
        mean = tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0)
        std = tuple(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0)
        return cls(
            (int(height), int(width)),
            tuple(m / scale for m in mean),  # type: ignore[arg-type]
            tuple(s / scale for s in std),  # type: ignore[arg-type]
            int(processor.resample if processor.resample is not None else 2),
        )


def resize(pictures: torch.Tensor, size: tuple[int, int], resample: int) -> torch.Tensor:
    """Resize (B, 3, H, W) in [0, 1] as PIL does, differentiably: within one 8-bit step of it.

    PIL rounds to 8 bits and clips between its two one-dimensional passes; bilinear needs neither to stay in range,
    bicubic overshoots, so it is done in two clipped passes here too.
    """
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    if resample == 2:
        return F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)
    if resample == 3:
        wide = F.interpolate(pictures, (pictures.shape[-2], size[1]), mode="bicubic", antialias=True)
        return F.interpolate(wide.clamp(0, 1), size, mode="bicubic", antialias=True).clamp(0, 1)
    raise ValueError(
        f"this checkpoint's image processor resizes with PIL filter {resample}; 2 (bilinear) and 3 (bicubic) "
        "have differentiable twins here. Give a canvas of the model's own size so that nothing is resized."
    )


def normalised(pictures: torch.Tensor, pixels: PixelFormat) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [0, 1] as `pixel_values` (B, 3, height, width): resized, (x - mean) / std."""
    x = resize(pictures, pixels.size, pixels.resample)
    mean = torch.tensor(pixels.mean, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(pixels.std, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (x - mean) / std


def plain_pixels(pictures: torch.Tensor, pixels: PixelFormat) -> dict[str, torch.Tensor]:
    """The common case: `pixel_values` and nothing else."""
    return {"pixel_values": normalised(pictures, pixels)}


def _square(config: Any) -> tuple[int, int]:
    side = math.isqrt(config.mm_tokens_per_image)
    return side, side


def _image_types(ids: torch.Tensor, image: int) -> dict[str, torch.Tensor]:
    return {"token_type_ids": (ids == image).long()}


@dataclass(frozen=True)
class Family:
    """One family of vision-language models, as facts.

    `root` is the module that takes token ids and pixels and has no head; `layers` the decoder's blocks.
    `kinds` maps a site kind to (module path below a block, "output" or "input"); `hooks` does so for other hooks of
    TransformerLens, by their names there.
    `wrapped` is the text that the family's processor puts for one image: `{begin}`, `{image}` (repeated by the
    grid) and `{end}` are the checkpoint's own tokens; `placeholder` is what its chat template writes there.
    `pack` makes the pixel inputs, `extra` the other inputs that depend on the token ids.
    `begin_id` and `end_id` name the config fields that hold the ids of the tokens around an image.
    `masks` says that the decoder takes ready attention masks as a dict by layer type.
    """

    name: str
    model_types: tuple[str, ...]
    root: str
    layers: str
    tower: str
    projector: str
    placeholder: str
    wrapped: str
    begin_id: str
    end_id: str
    grid: Callable[[Any], tuple[int, int]]
    pack: Callable[[torch.Tensor, PixelFormat], dict[str, torch.Tensor]] = plain_pixels
    extra: Callable[[torch.Tensor, int], dict[str, torch.Tensor]] = lambda ids, image: {}
    kinds: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    hooks: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    masks: bool = False


_RESIDUAL = {"resid_pre": ("", "input"), "resid_post": ("", "output")}

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

FAMILIES: tuple[Family, ...] = (GEMMA3,)


def family_of(config: Any) -> Family:
    """The record for a Hugging Face config; raises ValueError that lists the known families."""
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(f"{f.name} ({', '.join(f.model_types)})" for f in FAMILIES)
    raise ValueError(
        f"no family record for model_type {config.model_type!r}; known families: {known}. "
        "Write a nnsight_dream.families.Family for it and pass it as nd.load(..., family=record)."
    )
