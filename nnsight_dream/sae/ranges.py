"""Ranges: how strongly each feature of an autoencoder fires at most on reference pictures, and for which word.

Both are kept with the VLM, and in the user's cache folder by what decides them: weights, autoencoder and pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..demo import bundle
from ..directions.centres import Pictures
from ..io import cache
from . import reference as references
from .encoding import fingerprint, most, patches
from .responses import word_tokens

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM


def highest(vlm: VLM, sae: Any, site: Site, reference: references.Reference | None) -> torch.Tensor:
    """(features,): each one's highest activation over the image tokens of the reference pictures.

    reference   as `reference.chosen` gives it; None: of the bundled model all its pictures, of others the default
    """
    choice = Pictures.bundled() if reference is None and vlm.is_demo else reference

    def read() -> torch.Tensor:
        pictures = references.pictures_of(vlm, choice)
        return torch.stack([most(sae, tokens) for _, tokens in patches(vlm, pictures, site)]).amax(0)

    of = Pictures(references.reference_pictures()).digest if choice is None else references.described(choice)
    return _kept(vlm, sae, site, "pictures", of, read)


def top_words(vlm: VLM, sae: Any, site: Site) -> list[str]:
    """Of each feature the word, among those that the bundled model was shown, for which it fires most; "" for none."""
    words = [c.name for c in bundle.concepts()]

    def read() -> torch.Tensor:
        fires = torch.stack([most(sae, tokens) for tokens in word_tokens(vlm, words, site)])
        return torch.where(fires.amax(0) > 0, fires.argmax(0), -1).float()

    best = _kept(vlm, sae, site, "words", repr(words), read)
    return [words[int(i)] if i >= 0 else "" for i in best.tolist()]


def _kept(vlm: VLM, sae: Any, site: Site, what: str, of: str, read: Callable[[], torch.Tensor]) -> torch.Tensor:
    """A vector (features,) that was read before, by this VLM or another process, or is read now."""
    kept = vlm.memo.ranges.at(vlm, site)
    place = (what, of, fingerprint(sae), vlm.device, vlm.dtype)
    if place in kept:
        return kept[place]
    local, key = vlm.remote is None, ""
    if local:
        about = (vlm.weights_tag(site), vlm.fingerprint(site), site, vlm.dtype, vlm.device.type, vlm.image_size)
        key = hashlib.sha256(repr((about, what, of, place[2])).encode()).hexdigest()[:32]
    cached = cache.read("ranges", key, int(sae.W_enc.shape[-1])) if local else None
    kept[place] = read() if cached is None else cached
    if local and cached is None:
        cache.write("ranges", key, kept[place])
    return kept[place]
