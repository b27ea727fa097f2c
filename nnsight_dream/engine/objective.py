"""Objectives that share sites and poolings, grouped for one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from . import terms
from .pooling import cosine

if TYPE_CHECKING:
    from collections.abc import Hashable as Site

    from .optimise import Step
    from .pooling import Pooling, ScoreFunction


@dataclass(frozen=True, eq=False)
class Objective:
    """score(pool(patches - centre), direction), averaged over a job's views; one direction for each job.

    directions, centres   (J, d); jobs   the rows of the step that these are, for jobs at different sites
    """

    site: Site
    directions: torch.Tensor
    centres: torch.Tensor
    pooling: Pooling
    score: ScoreFunction = cosine
    jobs: tuple[int, ...] | None = None

    def parts(self, patches: torch.Tensor, grid: tuple[int, int], progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (J, batch) and patch weights (J, batch, n) of patches (J, batch, n, d)."""
        pooling = terms.placed(self.pooling, self.site)
        return terms.pooled_scores(patches, self.directions, self.centres, pooling, self.score, grid, progress)

    def __call__(self, step: Step) -> torch.Tensor:
        """(J of the step,) the score of each job; 0 for jobs that are not these."""
        towards = (self.directions, self.centres, self.pooling, self.score)
        return terms.direction_term(self.site, *towards, self.jobs)(step)
