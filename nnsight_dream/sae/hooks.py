"""Which site of which model: hook names of sparse autoencoders, and whether one belongs to the model at hand."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .. import arguments
from ..models import bridge
from ..models.sites import Site

if TYPE_CHECKING:
    from ..models.vlm import VLM


# the decoder's layers as text-only and multimodal classes call them
_STACK = re.compile(r"(?:(?:model|language_model|text_model)\.)*layers\.(?=\d)")


_TUNED = re.compile(r"[-_](it|instruct|chat|sft|dpo|rl|pt|base|hf|bf16|fp16)\b")


_KNOWN = re.compile(
    r"(?<![a-z])(gemma|qwen|m?llama|mistral|mixtral|gpt|pythia|phi|opt|bloom|falcon|olmo|smollm)[-_]?(\d+(?:[._]\d+)?)?(?![\d.]*b)"
)


def resolve(vlm: VLM, where: str | int | Site) -> Site:
    """The site of a model that an autoencoder's hook name means.

    A Hugging Face name of the text-only class (`model.layers.9.output`) is rebased to the model's own decoder; a name
    of TransformerLens is taken by its meaning there. Raises ValueError for a name that means nothing here.

    >>> import nnsight_dream as nd
    >>> str(resolve(nd.load("demo"), "model.layers.3"))
    'layer 4 (blocks.3.hook_resid_post)'
    """
    if not isinstance(where, str):
        return vlm.site(where)
    if (match := re.fullmatch(r"blocks\.(\d+)\.hook_mlp_in", where)) and vlm.bridge is None:
        raise ValueError(
            f"site {where!r} means two things: TransformerLens has the input of the norm before the MLP there, "
            f"Gemma Scope 2 its output. Say which with site='blocks.{match[1]}.hook_resid_mid' or "
            f"site='blocks.{match[1]}.mlp.hook_in'"
        )
    site = vlm.site(_STACK.sub(f"{vlm.family.layers}.", where, count=1) if _STACK.match(where) else where)
    return site if vlm.bridge is None else bridge.sae_input(vlm, site)


def check(vlm: VLM, site: Site, model: str | None, tag: str | None, label: str) -> None:
    """Warn where an autoencoder was trained on other weights, as far as its metadata tell.

    model   the name of the model that it was trained on; tag   that model's `weights_tag` at the site, if it was kept
    label   what the autoencoder, or its feature, is called in messages

    Raises ValueError where it was trained on a model of another family.
    """
    away = vlm.remote is not None and vlm.remote.away  # the weights cannot be looked at
    if model is None or (tag is not None and not away and tag == vlm.weights_tag(site)):
        return
    mine, theirs = _short(vlm.id), _short(model)
    if mine == theirs:
        return
    if _TUNED.sub("", mine) == _TUNED.sub("", theirs):
        note = "the same model before or after tuning: most features keep their meaning, but check it on pictures"
    elif _strangers(vlm.config.get_text_config().model_type, theirs):
        raise ValueError(
            f"{label} was trained on {model}, a model of another family than {vlm.id} "
            f"({vlm.config.get_text_config().model_type}). If its weights do belong here, say so: "
            "feature.but(model=None)"
        )
    else:
        note = (
            "it means something here only if this model was made from that one, as a VLM is from its text-only backbone"
        )
    # the same text for all features of one autoencoder, so that it is shown once
    arguments.warn(f"this autoencoder was trained on {model}, not on {vlm.id}: {note}")


def _short(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()


def _strangers(model_type: str, name: str) -> bool:
    """Whether the name of a model shows that it is of another family than a text model's type ("gemma3_text")."""
    mine, theirs = _KNOWN.search(model_type), _KNOWN.search(name)
    if mine is None or theirs is None:
        return False
    if mine[1].removeprefix("m") != theirs[1].removeprefix("m"):  # mllama is a llama
        return True
    versions = [m[2].replace("_", ".") for m in (mine, theirs) if m[2]]
    return len(versions) == 2 and versions[0] != versions[1]
