"""Climbing features: what synthesize asks of a feature at each step, and what is read of the finished picture."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import shipped_scores
from .features import Feature
from .pictures import as_tensors
from .shipped import Step
from .sites import Site
from .trace import read_pictures
from .vlm import VLM

if TYPE_CHECKING:
    from PIL import Image

REFERENCES = 48


@functools.cache
def reference_pictures() -> tuple[Image.Image, ...]:
    """48 of the bundled pictures, evenly chosen over all concepts: what real pictures' activations are measured on."""
    from . import demo

    every = demo.pictures()
    count = min(REFERENCES, len(every))
    return tuple(every[round(i * (len(every) - 1) / max(1, count - 1))].image for i in range(count))


def reference_norm(vlm: VLM, site: Site) -> float:
    """R: the mean norm of a patch of the reference pictures at a site; computed once for each model and site."""
    kept = vlm._cache.setdefault("norms", {})
    key = (site, vlm.device, vlm.dtype)
    if key not in kept:

        def read(part: torch.Tensor) -> dict[Site, torch.Tensor]:
            return {site: read_pictures(vlm, part.to(vlm.device), [site])[site].float()}

        pictures = torch.cat(as_tensors(list(reference_pictures()), "pictures"))
        kept[key] = shipped_scores.mean_norm(read, pictures, site)
    return float(kept[key])


@dataclass(frozen=True, eq=False)
class FeatureObjective:
    """A feature's value, averaged over image tokens and a job's views: the objective of one job.

        score = mean over views and tokens of value(h),    see `features`

    most   the norm to which activations are cut ("encoder"), or None; job   the row of the step that it is for
    """

    site: Site
    feature: Feature
    most: float | None
    job: int

    def __call__(self, step: Step) -> torch.Tensor:
        """(J of the step,) the score of the job; 0 for others."""
        return shipped_scores.feature_term(self.site, self.feature, self.most, self.job)(step)


def objective(vlm: VLM, feature: Feature, site: Site, job: int) -> FeatureObjective:
    """The objective of a job, its tensors on the model's device and the guard in the site's own units."""
    guarded = feature.guard is not None and feature.objective == "encoder"
    most = float(feature.guard or 0) * reference_norm(vlm, site) if guarded else None
    return FeatureObjective(site, feature.to(vlm.device), most, job)


def measure(
    vlm: VLM, feature: Feature, site: Site, patches: torch.Tensor
) -> tuple[dict[str, float], np.ndarray, dict[str, Any]]:
    """Scores, heat and readings of a picture's patches (n, d), all without guard.

    Scores: the means over tokens of the pre-activation ("encoder") and of the cosine with the decoder row ("decoder",
    not for transcoders). Heat (n,): what is climbed, less its least, as shares of 1: max(0, v - min v) / sum.

    Readings, of several latents those of their weighted sum:

        pre_max, pre_mean   the pre-activation over tokens
        threshold           above which it fires; None for top-k (then `top_k` is true) and for sums
        act_max             the highest activation; for top-k what it would be among the k
        firing              the share of tokens for which it fires; None for top-k, where that depends on all latents
        cosine, cosine_max  with the decoder row over tokens: mean and highest; not for transcoders
        norm                mean norm of the patches over that of the reference pictures
        parts               for sums: index, weight and these of each latent alone
    """
    found, heat, readings = shipped_scores.measured_feature(feature, alone(feature), patches, reference_norm(vlm, site))
    return found, heat.numpy(), readings


def alone(feature: Feature) -> list[Feature]:
    """Of a sum of latents each as a feature of its own; nothing for a single one."""
    if len(feature.parts) == 1:
        return []
    return [feature.but(parts=((1.0, one),), objective="encoder") for _, one in feature.parts]
