"""Reading whole sparse autoencoders: which features make a picture, which fire for a word, how strange a picture is.

All numbers are `sae.encode`'s and `sae.decode`'s own, of the sae-lens object in hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import choice, strict, whole
from ..directions.text import texts_in
from ..io.pictures import as_tensors
from . import ranges as ranges_of
from . import reference as references
from .encoding import chunks, dense, encoded, most, patches, site_of
from .responses import word_tokens
from .weights import TRANSCODERS, facts_of

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM


BY = ("range", "activation")


@dataclass(frozen=True)
class Active:
    """A feature that fires for pictures: its highest and mean activation over image tokens, the share it fires for.

    of_range   `max` as a share of the highest activation on reference pictures; None where that was not asked for, or
               where the feature fires on none of them
    word       the word for which it fires most, of those that the bundled model was shown; "" where there is none, and
               for other models
    """

    index: int
    max: float
    mean: float
    share: float
    of_range: float | None = None
    word: str = ""


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
def features_of(
    vlm: VLM, sae: Any, images: Any, top: int = 20, *, by: str | None = None, reference: Any = None
) -> list[Active]:
    """The features that make pictures, over all their image tokens, the foremost first.

    sae      a sae-lens object whose metadata say where it reads
    images   a PIL image, a Prototype, a tensor (3, H, W) or (B, 3, H, W) in [0, 1], or a list of these
    top      how many at most; features that never fire are left out
    by       "range": by the highest activation as a share of the feature's own range, its highest activation on the
             reference pictures; those that fire on none of these come last. "activation": by the highest activation. If
             not given, "range" for the bundled model and where a reference is given, else "activation"
    reference   the real pictures of the range: images, tensors, paths, a folder or `Pictures`; if not given, all the
             bundled ones for the bundled model, and 48 of them, of which it is warned, for others

    Features differ in how strongly they fire at all, so that a few come first for every picture if activations are
    ranked as they are. Of 48 features of the bundled autoencoder (the 16 that are clearest for one word and its
    picture, and 32 drawn from all that fire), 7 are among the five foremost of their own prototype by range and 2 by
    activation (26 fire on it at all); of 287 features 76 and 11 are on the second of the pictures that fire them most.

    Raises TypeError for what is no autoencoder, ValueError for one of another model, for no picture, for `top` below 1
    and another `by`.

    >>> import nnsight_dream as nd
    >>> from nnsight_dream import demo
    >>> tree = demo.pictures(["Christmas"])[0].image
    >>> found = nd.features_of(nd.load("demo"), nd.demo_sae(), tree, top=3)
    >>> len(found), round(found[0].of_range, 3)  # no bundled picture fires that feature more
    (3, 1.0)
    """
    top = whole(top, "top", 1)
    by = ("range" if vlm.is_demo or reference is not None else "activation") if by is None else choice(by, "by", BY)
    choice_of = references.chosen(reference)
    site = site_of(vlm, sae)
    width, count = sae.W_enc.shape[-1], 0
    highest, total, fires = torch.full((width,), -torch.inf), torch.zeros(width), torch.zeros(width)
    for tokens in _seen(vlm, images, site):
        for acts in encoded(sae, tokens):
            highest = torch.maximum(highest, acts.amax(0))
            total, fires, count = total + acts.sum(0), fires + (acts != 0).sum(0), count + len(acts)
    ranges = ranges_of.highest(vlm, sae, site, choice_of) if by == "range" else torch.zeros(width)
    shares = torch.where(ranges > 0, highest / ranges.clamp(min=1e-30), 0.0)
    order = highest.argsort(descending=True, stable=True)
    order = order[shares[order].argsort(descending=True, stable=True)]  # of equal shares the more active first
    best: list[int] = order[highest[order] > 0][:top].tolist()
    words = ranges_of.top_words(vlm, sae, site) if vlm.is_demo and best else [""] * width
    return [
        Active(
            i,
            float(highest[i]),
            float(total[i]) / count,
            float(fires[i]) / count,
            float(shares[i]) if ranges[i] > 0 else None,
            words[i],
        )
        for i in best
    ]


@strict
def strangeness(vlm: VLM, sae: Any, images: Any, *, reference: Any = None) -> Strangeness:
    """How unusual pictures' image tokens are for an autoencoder, beside those of real pictures.

        FVU = sum |h - decode(encode(h))|^2 / sum |h - m|^2,    m the mean image token of the reference pictures

    reference   the real pictures: images, tensors, paths, a folder or `Pictures`; 48 bundled emoji if not given, of
                which any model but the bundled one is warned

    A climbed picture may be far from all that the autoencoder saw in training; its features are then to be doubted.

    Raises ValueError for a transcoder, which reconstructs another place; otherwise as `features_of`.

    >>> import nnsight_dream as nd
    >>> from nnsight_dream import demo
    >>> fox = demo.pictures(["fox"])[0].image
    >>> nd.strangeness(nd.load("demo"), nd.demo_sae(), fox).fvu < 1
    True
    """
    if facts_of(sae).architecture in TRANSCODERS:
        raise ValueError("a transcoder does not reconstruct what it reads: strangeness is for autoencoders")
    site, choice = site_of(vlm, sae), references.chosen(reference)
    real = references.pictures_of(vlm, choice)
    mean = references.reference_mean(vlm, site, choice)
    here = _reconstruction(sae, _seen(vlm, images, site), mean)
    there = _reconstruction(sae, (tokens for _, tokens in patches(vlm, real, site)), mean)
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

    >>> import nnsight_dream as nd
    >>> best = nd.candidates(nd.load("demo"), nd.demo_sae(), words="Christmas", top=2)
    >>> best[0].word > best[1].word > 0
    True
    """
    top = whole(top, "top", 1)
    if words is None and images is None:
        raise ValueError("candidates of what? Give words='octopus', images=[...], or both")
    site = site_of(vlm, sae)
    word = None if words is None else _mean_of_most(sae, word_tokens(vlm, texts_in(words, "words"), site))
    picture = None if images is None else _mean_of_most(sae, _seen(vlm, images, site))
    available = [values for values in (word, picture) if values is not None]
    shares = [values / highest if (highest := values.max()) > 0 else values for values in available]
    score = available[0] if len(available) == 1 else torch.minimum(shares[0], shares[1])
    best = score.topk(min(top, len(score)))
    return [
        Candidate(i, None if word is None else float(word[i]), None if picture is None else float(picture[i]), value)
        for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if value > 0
    ]


def _pictures(images: Any) -> list[torch.Tensor]:
    """Pictures as tensors; prototypes are taken by their image."""
    return as_tensors(images, "images")


def _seen(vlm: VLM, images: Any, site: Site) -> Iterator[torch.Tensor]:
    return (tokens for _, tokens in patches(vlm, _pictures(images), site))


def _mean_of_most(sae: Any, groups: Iterable[torch.Tensor]) -> torch.Tensor:
    """(features,): the most over each group's tokens, averaged over the groups."""
    total, count = torch.zeros(sae.W_enc.shape[-1]), 0
    for tokens in groups:
        total += most(sae, tokens)
        count += 1
    return total / count


def _reconstruction(sae: Any, groups: Iterable[torch.Tensor], mean: torch.Tensor) -> tuple[float, float]:
    """(FVU, L0) of tokens."""
    error, spread, active, count = 0.0, 0.0, 0, 0
    for tokens in groups:
        for part in chunks(sae, tokens):
            with torch.no_grad():
                acts = sae.encode(part)
                back = sae.decode(acts)
            error += float((back.double() - part.double()).square().sum())
            active += int((dense(acts) != 0).sum())
        spread += float((tokens - mean).double().square().sum())
        count += len(tokens)
    if not math.isfinite(error):
        raise ValueError(
            "the reconstruction of this autoencoder is not finite: its numbers overflow; use it in float32"
        )
    return (error / spread if spread else math.inf if error else 0.0), active / count
