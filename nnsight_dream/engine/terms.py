"""Terms that add up to what is climbed: towards directions and features, away from a direction, smoothness.

A term of your own is any callable from a `Step` to (J,). See `engine.plain` for the rules of this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .checks import real

if TYPE_CHECKING:
    from .optimise import Step


@dataclass(frozen=True)
class TotalVariation:
    """Minus `weight` times the mean absolute difference between neighbouring pixels: smoother pictures."""

    _ships = ("__call__",)

    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", real(self.weight, "weight"))

    def __call__(self, step: Step) -> torch.Tensor:
        """(J,) the term for each picture."""
        x = step.pictures
        down = (x[..., 1:, :] - x[..., :-1, :]).abs().flatten(1).mean(1)
        right = (x[..., :, 1:] - x[..., :, :-1]).abs().flatten(1).mean(1)
        return -self.weight * (down + right)


def pooled_scores(
    patches: torch.Tensor,
    directions: torch.Tensor,
    centres: torch.Tensor,
    pooling: Any,
    score: Any,
    grid: tuple[int, int],
    progress: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (J, batch) and patch weights (J, batch, n) of patches (J, batch, n, d)."""
    jobs, batch, n, d = patches.shape
    centred = (patches - centres[:, None, None]).reshape(jobs * batch, n, d)
    towards = directions.repeat_interleave(batch, 0)
    pooled, weights = pooling(centred, towards, grid, progress)
    return score(pooled, towards).reshape(jobs, batch), weights.reshape(jobs, batch, n)


def placed(pooling: Any, site: Any) -> Any:
    """A pooling as it is at a site: one that weighs places gets the places of the chosen tokens."""
    if site.tokens == "image" or not hasattr(pooling, "at_tokens"):
        return pooling
    return pooling.at_tokens(site.tokens)


def direction_term(
    site: Any, directions: torch.Tensor, centres: torch.Tensor, pooling: Any, score: Any, rows: Any = None
) -> Callable[[Step], torch.Tensor]:
    """The term of jobs that climb directions (J, d) at one site; `rows` of the step are theirs, all if None."""
    pooling = placed(pooling, site)

    def term(step: Step) -> torch.Tensor:
        every = step.patches[site].unflatten(0, (-1, step.batch))
        mine = list(rows) if rows is not None else list(range(len(every)))
        scores = pooled_scores(every[mine], directions, centres, pooling, score, step.grid, step.progress)[0].mean(1)
        places = torch.tensor(mine, dtype=torch.long, device=scores.device)
        return scores.new_zeros(len(every)).index_put((places,), scores)

    return term


def away_term(
    site: Any, vector: torch.Tensor, centre: torch.Tensor, weight: float, pooling: Any
) -> Callable[[Step], torch.Tensor]:
    """Minus `weight` times the likeness of all jobs' pictures to a direction (d,)."""
    pooling = placed(pooling, site)

    def term(step: Step) -> torch.Tensor:
        patches = step.patches[site] - centre
        towards = vector.expand(len(patches), -1)
        pooled, _ = pooling(patches, towards, step.grid, step.progress)
        likeness = torch.nn.functional.cosine_similarity(pooled, towards, dim=-1)
        scores: torch.Tensor = -weight * likeness.unflatten(0, (-1, step.batch)).mean(1)
        return scores

    return term


def feature_term(site: Any, feature: Any, most: float | None, job: int) -> Callable[[Step], torch.Tensor]:
    """The term of the job that climbs a feature: its value, averaged over image tokens and views."""

    def term(step: Step) -> torch.Tensor:
        every = step.patches[site].unflatten(0, (-1, step.batch))
        value = feature.value(every[job], most).mean()
        places = torch.tensor([job], dtype=torch.long, device=value.device)
        scores: torch.Tensor = value.new_zeros(len(every)).index_put((places,), value[None])
        return scores

    return term
