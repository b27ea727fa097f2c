"""Readouts: what a decoder row writes towards (tokens, by the model's own head), and which other rows are like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import shown, strict, whole
from ..directions.direction import unit
from ..models import place
from .encoding import check_whole
from .feature import Feature
from .weights import checked

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM


DIRECT = "direct path alone: final norm and head of the row itself, all later layers left out"


AT_ONCE = 2**25  # numbers of a decoder that are held in float32


@dataclass(frozen=True)
class Logits:
    """Tokens that a direction raises most and least: (text, logit), the strongest first; `note` says what is left out.

    Both are empty where the model has no head for the direction; `note` then says why.
    """

    top: tuple[tuple[str, float], ...]
    bottom: tuple[tuple[str, float], ...]
    note: str


@strict
def top_logits(vlm: VLM, vector: torch.Tensor | Feature, site: Site | int | str, count: int = 8) -> Logits:
    """The tokens that a vector (d_model,) in the residual stream would raise most and least, seen by the head alone.

        logits = lm_head(norm(vector)),    norm the model's final one, in the model's own type

    The length of the vector is lost in the norm. What the layers between do to it is left out: the more of them there
    are, the less the tokens need to mean. A model loaded with `up_to_layer` has the same head: the tokens are the same.

    vector   or a feature of one latent, whose decoder row is taken; nothing is read of a transcoder's

    Raises ValueError for a count below 1, a vector of another width, or a feature of several latents.

    >>> import nnsight_dream as nd
    >>> vlm = nd.load("demo")
    >>> fox = nd.concept(vlm, "fox", layer=8)
    >>> len(nd.top_logits(vlm, fox.vector, fox.site, count=3).top)
    3
    """
    count = whole(count, "count", 1)
    where = vlm.site(site)
    if isinstance(vector, Feature):
        if len(vector.parts) > 1:
            raise ValueError(f"{vector.label} has {len(vector.parts)} latents: give one, or a vector of your own")
        row = vector.parts[0][1].decoder
        if row is None:
            return Logits((), (), "its decoder row writes to another place than it reads")
        vector = row
    if not isinstance(vector, torch.Tensor):
        raise TypeError(f"vector={shown(vector)}: a tensor (d_model,) or a Feature is needed")
    if vector.shape != (vlm.width_at(where),):
        raise ValueError(f"the vector is {tuple(vector.shape)}; {vlm.describe(where)} needs ({vlm.width_at(where)},)")
    if not bool(vector.isfinite().all()):
        raise ValueError(f"{int((~vector.isfinite()).sum())} of the vector's {vector.numel()} numbers are not finite")
    if where.kind not in _residual(vlm):
        return Logits((), (), f"{vlm.hf_name(where)} is not in the residual stream, which alone the head reads")
    norm, head, missing = _head(vlm)
    if missing:
        return Logits((), (), missing)
    weight = next(head.parameters())
    with torch.no_grad(), vlm.quiet():
        logits = head(norm(vector.to(weight.device, weight.dtype)[None, None]))[0, 0].float().cpu()
    note, deepest = DIRECT, vlm.memo.checkpoint_layers or vlm.layers
    if deepest > vlm.layers:
        note += f" (layers {vlm.layers + 1} to {deepest} of the checkpoint are not even loaded)"
    best, least = logits.topk(min(count, len(logits))), (-logits).topk(min(count, len(logits)))
    return Logits(_decoded(vlm, best.indices, logits), _decoded(vlm, least.indices, logits), note)


def _residual(vlm: VLM) -> set[str]:
    """The kinds of site that are in the residual stream, or are added to it as they are."""
    middle = vlm.family.hooks.get("hook_resid_mid")
    return {"resid_pre", "resid_post", "attn_out", "mlp_out"} | ({".".join(middle)} if middle else set())


def _head(vlm: VLM) -> tuple[Any, Any, str]:
    """(final norm, head, "") or why there is none."""
    place.weightless(vlm, "the language-model head")
    own: Any = getattr(vlm.hf, "get_output_embeddings", lambda: None)
    head = own()
    if head is None:
        return None, None, f"{type(vlm.hf).__name__} was loaded without a language-model head"
    path = f"{vlm.family.layers.rpartition('.')[0]}.norm"
    try:
        return vlm.hf.get_submodule(path), head, ""
    except AttributeError:
        return None, None, f"this model has no final norm {path}"


def _decoded(vlm: VLM, ids: torch.Tensor, logits: torch.Tensor) -> tuple[tuple[str, float], ...]:
    return tuple((vlm.tokenizer.decode([i]), float(logits[i])) for i in ids.tolist())


def nearest_rows(sae: Any, index: int, count: int = 8) -> list[tuple[int, float]]:
    """The features whose decoder rows have the highest cosine with a feature's own: (number, cosine), itself left out.

    Rows of zeros have cosine 0. Raises IndexError for a feature that is not there, ValueError for a count below 1 and
    numbers that are not finite.
    """
    check_whole(sae)
    rows, count = sae.W_dec.detach(), whole(count, "count", 1)
    index = checked(index, len(rows))
    own = unit(rows[index].float())
    chunks = [(unit(part.float()) @ own).cpu() for part in rows.split(max(1, AT_ONCE // rows.shape[1]))]
    cosines = torch.cat(chunks)
    cosines[index] = -torch.inf
    best = cosines.topk(min(count, len(cosines) - 1))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
