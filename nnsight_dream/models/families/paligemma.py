"""PaliGemma and PaliGemma 2, in which image tokens see the text behind them."""

from __future__ import annotations

from dataclasses import replace

import torch

from .gemma import GEMMA3
from .llava import LLAVA

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
