"""Chameleon, in which a picture becomes words of the vocabulary."""

from __future__ import annotations

from typing import Any

import torch

from ...engine.pixels import PixelFormat
from ..family import PLAIN_HOOKS, PLAIN_KINDS, Family


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
    kinds=PLAIN_KINDS,
    hooks=PLAIN_HOOKS,
    chat_template=(
        "{{ bos_token }}{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}"
        "{% endif %}{% endfor %}"
    ),
)
