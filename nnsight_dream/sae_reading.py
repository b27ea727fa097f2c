"""Reading whole sparse autoencoders: which features make a picture, which fire for a word, how strange a picture is.

All numbers are `sae.encode`'s and `sae.decode`'s own, of the sae-lens object in hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import sae_models
from .arguments import strict
from .concepts import _texts
from .feature_climb import reference_pictures
from .latents import TRANSCODERS, facts_of
from .pictures import as_tensors
from .responses import word_tokens
from .sites import Site
from .trace import read_pictures
from .vlm import VLM

AT_ONCE = 2**26  # most activations, tokens x features, that are held


@dataclass(frozen=True)
class Active:
    """A feature that fires for pictures: its highest and mean activation over image tokens, the share it fires for."""

    index: int
    max: float
    mean: float
    share: float


@dataclass(frozen=True)
class Strangeness:
    """How unusual activations are for an autoencoder, beside those of real pictures.

    fvu    squared error of the reconstruction over the variance about the mean token of the reference pictures
    l0     how many features fire for a token, on average
    """

    fvu: float
    l0: float
    reference_fvu: float
    reference_l0: float


@dataclass(frozen=True)
class Candidate:
    """A feature that fires for words, pictures or both.

    word       activation, the most over a word's own tokens, averaged over the words; None if none were given
    picture    activation, the most over a picture's image tokens, averaged over the pictures; likewise
    score      what it is ranked by
    """

    index: int
    word: float | None
    picture: float | None
    score: float


@strict
def features_of(vlm: VLM, sae: Any, images: Any, top: int = 20) -> list[Active]:
    """The features that make pictures: those of highest activation over all their image tokens, the highest first.

    sae      a sae-lens object whose metadata say where it reads
    images   a PIL image, a Prototype, a tensor (3, H, W) or (B, 3, H, W) in [0, 1], or a list of these
    top      how many at most; features that never fire are left out

    Raises TypeError for what is no autoencoder, ValueError for one of another model, for no picture or for `top` below
    1.
    """
    _least_one(top)
    site = site_of(vlm, sae)
    width, count = sae.W_enc.shape[-1], 0
    most, total, fires = torch.full((width,), -torch.inf), torch.zeros(width), torch.zeros(width)
    for tokens in _patches(vlm, _pictures(images), site):
        for acts in _encoded(sae, tokens):
            most = torch.maximum(most, acts.amax(0))
            total, fires, count = total + acts.sum(0), fires + (acts != 0).sum(0), count + len(acts)
    best = most.topk(min(top, len(most)))
    return [
        Active(i, value, float(total[i]) / count, float(fires[i]) / count)
        for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if value > 0
    ]


@strict
def strangeness(vlm: VLM, sae: Any, images: Any) -> Strangeness:
    """How unusual pictures' image tokens are for an autoencoder, beside those of 48 bundled pictures.

        FVU = sum |h - decode(encode(h))|^2 / sum |h - m|^2,    m the mean image token of the reference pictures

    A climbed picture may be far from all that the autoencoder saw in training; its features are then to be doubted.

    Raises ValueError for a transcoder, which reconstructs another place; otherwise as `features_of`.
    """
    if facts_of(sae).architecture in TRANSCODERS:
        raise ValueError("a transcoder does not reconstruct what it reads: strangeness is for autoencoders")
    site = site_of(vlm, sae)
    kept = vlm._cache.setdefault("reference means", {})
    references = as_tensors(list(reference_pictures()), "pictures")
    key = (site, vlm.device, vlm.dtype)
    if key not in kept:
        rows = list(_patches(vlm, references, site))
        kept[key] = (sum(r.double().sum(0) for r in rows) / sum(map(len, rows))).float()  # type: ignore[union-attr]
    here = _reconstruction(sae, _patches(vlm, _pictures(images), site), kept[key])
    there = _reconstruction(sae, _patches(vlm, references, site), kept[key])
    return Strangeness(*here, *there)


@strict
def candidates(vlm: VLM, sae: Any, words: Any = None, images: Any = None, top: int = 20) -> list[Candidate]:
    """The features most active on words, on pictures, or on both alike, the most active first.

    words    a text or a list; read at their own tokens in the chat template, as `concept` reads them
    images   as in `features_of`
    top      how many at most

    Ranked by activation; with words and pictures by the lesser of the two, each as a share of the highest that any
    feature has, so that a feature must fire for both. Raises ValueError for neither words nor pictures; otherwise as
    `features_of` and `concept`.
    """
    _least_one(top)
    if words is None and images is None:
        raise ValueError("candidates of what? Give words='octopus', images=[...], or both")
    site = site_of(vlm, sae)
    said = None if words is None else _mean_of_most(sae, word_tokens(vlm, _texts(words, "words"), site))
    seen = None if images is None else _mean_of_most(sae, _patches(vlm, _pictures(images), site))
    known = [values for values in (said, seen) if values is not None]
    shares = [values / values.max().clamp(min=1e-30) for values in known]
    score = known[0] if len(known) == 1 else torch.minimum(shares[0], shares[1])
    best = score.topk(min(top, len(score)))
    return [
        Candidate(i, None if said is None else float(said[i]), None if seen is None else float(seen[i]), value)
        for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if value > 0
    ]


# -- the parts ---------------------------------------------------------------------------------------------------


def site_of(vlm: VLM, sae: Any) -> Site:
    """Where a sae-lens object reads in a model; raises and warns as `Feature.site` does."""
    facts = facts_of(sae)
    where = facts.told("hf_hook_name") or facts.told("hook_name")
    if where is None:
        raise ValueError(
            "this autoencoder's metadata name no hook_name; set sae.cfg.metadata.hook_name = 'blocks.9.hook_resid_post'"
        )
    site = sae_models.resolve(vlm, where)
    if sae.W_enc.shape[0] != vlm.width_at(site):
        raise ValueError(
            f"this autoencoder reads {sae.W_enc.shape[0]} numbers, but {vlm.describe(site)} of {vlm.id} is "
            f"{vlm.width_at(site)} wide: it belongs to another model or site"
        )
    sae_models.check(vlm, site, facts.told("model_name"), facts.told("weights_tag"), "this autoencoder")
    return site


def _least_one(top: int) -> None:
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ValueError(f"top={top!r}: a whole number of at least 1 is needed")


def _pictures(images: Any) -> list[torch.Tensor]:
    """Pictures as tensors; prototypes are taken by their image."""
    several = images if isinstance(images, (list, tuple)) else [images]
    return as_tensors([getattr(one, "image", one) for one in several], "images")


def _patches(vlm: VLM, pictures: Iterable[torch.Tensor], site: Site) -> Iterator[torch.Tensor]:
    """Activations (n, d) of one picture's image tokens after the other, float32."""
    for group in pictures:
        for part in group.split(16):
            with torch.no_grad():
                found = read_pictures(vlm, part.to(vlm.device), [site])[site]
            yield from found.float()


def _chunks(sae: Any, tokens: torch.Tensor) -> Sequence[torch.Tensor]:
    """Tokens (n, d) a few at a time, so that their activations (n, d_sae) fit; as the object wants them."""
    tokens = tokens.to(sae.W_enc.device, sae.W_enc.dtype)
    if getattr(sae, "hook_z_reshaping_mode", False):  # it flattens heads itself
        tokens = tokens[:, None]
    return tokens.split(max(1, AT_ONCE // int(sae.W_enc.shape[-1])))


def _encoded(sae: Any, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    for part in _chunks(sae, tokens):
        with torch.no_grad():
            acts = sae.encode(part)
        yield (acts.to_dense() if acts.is_sparse else acts).float().cpu()


def _mean_of_most(sae: Any, groups: Iterable[torch.Tensor]) -> torch.Tensor:
    """(features,): the most over each group's tokens, averaged over the groups."""
    total, count = torch.zeros(sae.W_enc.shape[-1]), 0
    for tokens in groups:
        total += torch.stack([acts.amax(0) for acts in _encoded(sae, tokens)]).amax(0)
        count += 1
    return total / count


def _reconstruction(sae: Any, groups: Iterable[torch.Tensor], mean: torch.Tensor) -> tuple[float, float]:
    """(FVU, L0) of tokens."""
    error, spread, active, count = 0.0, 0.0, 0, 0
    for tokens in groups:
        for part in _chunks(sae, tokens):
            with torch.no_grad():
                acts = sae.encode(part)
                back = sae.decode(acts)
            error += float((back.float() - part.float()).square().sum())
            active += int((acts.to_dense() != 0).sum() if acts.is_sparse else (acts != 0).sum())
        spread += float((tokens - mean).square().sum())
        count += len(tokens)
    return error / max(spread, 1e-30), active / count
