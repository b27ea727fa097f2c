"""A model without its numbers: modules of the right shapes, made from a config."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from . import hub
from .families import family_of, known_families
from .parts import Parts, processor_at, wrap
from .prompt import ImagePrompt

if TYPE_CHECKING:
    from .family import Family
    from .vlm import VLM


OPENING = 8  # tokens before a picture where no tokenizer is there to tell: Gemma 3's template writes 6


def without_numbers(
    x: Any, dtype: torch.dtype | None, device: str, attention: str, processor: Any, family: Family | None
) -> tuple[VLM, list[str]]:
    """A VLM whose weights are shapes alone, by a config and, where it is there, a processor; and what was assumed.

    x         "demo", a hub id, a folder or a Hugging Face config; else TypeError
    device    "cpu" or "cuda", by which the type is chosen if `dtype` is not given

    Raises ValueError for an unknown family and for a config that does not tell enough.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig

    assumed: list[str] = []
    if isinstance(x, (str, Path)):
        name = str(x)
        with hub.door(x) as place:
            config = AutoConfig.from_pretrained(place)
            family = family or family_of(config)
            if processor is None and family is not None:
                processor = _processor_if_there(place, family, assumed)
    elif isinstance(x, PretrainedConfig):
        name = str(x.name_or_path) or "a config"
        config = copy.deepcopy(x)
        family = family or family_of(config)
    else:
        raise TypeError(
            f"cannot estimate a {type(x).__name__}: give 'demo', a hub id, a folder or a Hugging Face config"
        )
    if family is None:
        raise ValueError(
            f"no family record for model_type {config.model_type!r}; give family=, or a model of a known family: "
            f"{known_families()}"
        )
    if dtype is None:
        own = getattr(config, "dtype", None) or config.get_text_config().dtype
        dtype = torch.bfloat16 if device == "cuda" else own or torch.float32
    with torch.device("meta"):
        hf = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention).eval()
    if processor is not None:
        return wrap(None, hf, processor, family, name), assumed
    try:
        vlm = wrap(None, hf, Parts(object(), _numbers(config)), family, name)
        vlm.memo.assumed_prompt = _prompt(vlm)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"the config of {name} does not tell how {family.name} sees pictures ({error}); pass processor=, or a "
            "folder with its processor's files"
        ) from error
    assumed.append(f"pictures of {vlm.image_size[0]} x {vlm.image_size[1]} pixels, by the config")
    assumed.append(f"{OPENING} tokens before the picture")
    return vlm, assumed


def _processor_if_there(place: str, family: Family, assumed: list[str]) -> Any:
    """A checkpoint's processor, or None, which is noted."""
    try:
        return processor_at(place, family)
    except (OSError, ValueError, ImportError) as error:
        if hub.foreign(error):
            raise
        assumed.append(f"no processor facts ({str(error).splitlines()[0][:80]})")
        return None


def _numbers(config: Any) -> Any:
    """The settings of an image processor that families read, as far as a config holds them."""
    vision = config.vision_config
    facts: dict[str, Any] = {"do_rescale": True, "rescale_factor": 1 / 255, "resample": 2, "do_normalize": True}
    facts |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": getattr(vision, "patch_size", None)}
    if getattr(vision, "spatial_merge_size", None):
        patch, merge = vision.patch_size, vision.spatial_merge_size
        facts |= {"merge_size": merge, "temporal_patch_size": vision.temporal_patch_size, "size": {}}
        facts["get_number_of_image_patches"] = lambda h, w: h // (patch * merge) * (w // (patch * merge)) * merge**2
    else:
        side = vision.image_size
        side = side if isinstance(side, int) else side[0]
        facts |= {"size": {"height": side, "width": side}, "max_image_size": {"longest_edge": side}}
    return SimpleNamespace(**facts)


def _prompt(vlm: VLM) -> ImagePrompt:
    """A prompt of as many tokens as a picture's has, about."""
    rows, cols = vlm.grid
    image = vlm.config.image_token_id
    row = [image] * cols + [1] * bool(vlm.family.between)
    ids = torch.tensor([1] * OPENING + row * rows)
    if vlm.family.between:
        ids = ids[:-1]
    return ImagePrompt(ids, (ids == image).nonzero().flatten(), vlm.family.extra(ids[None], image), "")
