"""What is particular to each family of vision-language models: one frozen record each, and nothing else knows a family.

A record says where layers, tower and image tokens are and how a picture becomes the model's pixel input; what its
fields mean is told in `family.py`. A new family is a file here, and a line in `FAMILIES`.
Numbers that belong to a checkpoint (mean, std, size, token ids) are read from the checkpoint, never written here.
"""

from __future__ import annotations

from typing import Any

from ..family import Family
from .chameleon import CHAMELEON
from .gemma import GEMMA3, GEMMA3N, GEMMA4, GEMMA4_UNIFIED
from .idefics import IDEFICS3, SMOLVLM
from .internvl import INTERNVL
from .llava import LLAVA, LLAVA_NEXT, LLAVA_ONEVISION
from .paligemma import PALIGEMMA, PALIGEMMA2
from .pixtral import MISTRAL3, PIXTRAL
from .qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_5, QWEN3_VL

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
