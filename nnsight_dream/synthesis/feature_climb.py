"""A feature's objective in a climb, and its readings of the finished picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..engine import terms
from ..engine.measure import measured_feature
from ..sae.reference import reference_norm

if TYPE_CHECKING:
    from ..engine.optimise import Step
    from ..models.sites import Site
    from ..models.vlm import VLM
    from ..sae.feature import Feature


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
        return terms.feature_term(self.site, self.feature, self.most, self.job)(step)


def objective(vlm: VLM, feature: Feature, site: Site, job: int, at_once: int = 16) -> FeatureObjective:
    """The objective of a job, its tensors on the model's device and the guard in the site's own units."""
    guarded = feature.guard is not None and feature.objective == "encoder"
    most = float(feature.guard or 0) * reference_norm(vlm, site, feature.reference, at_once) if guarded else None
    return FeatureObjective(site, feature.to(vlm.device), most, job)


def measure(
    vlm: VLM, feature: Feature, site: Site, patches: torch.Tensor, at_once: int = 16
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
        norm                mean norm of the patches over that of the feature's reference pictures
        parts               for sums: index, weight and these of each latent alone
    """
    norm = reference_norm(vlm, site, feature.reference, at_once)
    found, heat, readings = measured_feature(feature, alone(feature), patches, norm)
    return found, heat.numpy(), readings


def alone(feature: Feature) -> list[Feature]:
    """Of a sum of latents each as a feature of its own; nothing for a single one."""
    if len(feature.parts) == 1:
        return []
    return [feature.but(parts=((1.0, one),), objective="encoder") for _, one in feature.parts]
