"""Poolings of patches into one vector, and scores of that vector against a direction.

A pooling or score of your own is any callable of the same form. See `engine.plain` for the rules of this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .checks import real, shown

Pooling = Callable[[torch.Tensor, torch.Tensor, tuple[int, int], float], tuple[torch.Tensor, torch.Tensor]]


ScoreFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Attention:
    """Patches weighed by likeness to the direction and by nearness to the middle (arXiv 2601.08017, section 2.2).

        s_i = cos(h_i - c, v)     g_i = exp(-|p_i - centre|^2 / 2 sigma^2)     w_i ~ g_i exp(s_i / tau), sum 1

    `sigma` goes linearly from its first to its second value over the run, in units of a 16 x 16 grid. p_i is the
    token's own place in the picture's grid, also at a site of some tokens or of tokens in another order (`at_tokens`).
    With `detach` no gradient flows through the weights; the paper does not say (the default lets it flow).
    """

    _ships = ("__call__", "at_tokens")

    tau: float = 0.5
    sigma: tuple[float, float] = (2.0, 16.0)
    detach: bool = False

    def __post_init__(self) -> None:
        sigma = self.sigma if isinstance(self.sigma, (tuple, list)) else (self.sigma, self.sigma)
        if len(sigma) != 2:
            raise ValueError(f"sigma={shown(self.sigma)}: two numbers are needed, at the first and last step")
        object.__setattr__(self, "tau", real(self.tau, "tau", above=0))
        object.__setattr__(self, "sigma", tuple(real(value, "sigma", above=0) for value in sigma))

    def __call__(
        self,
        patches: torch.Tensor,
        direction: torch.Tensor,
        grid: tuple[int, int],
        progress: float,
        tokens: tuple[int, ...] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Centred patches (B, n, d) and directions (B, d) to pooled (B, d) and weights (B, n).

        tokens   the patches' places in the grid, row by row from 0; None: all, in order. Patches that are neither have
                 no place, and are weighed by likeness alone
        """
        rows, cols = grid
        likeness = F.cosine_similarity(patches, direction[:, None], dim=-1)
        if tokens is not None or patches.shape[1] == rows * cols:
            sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * progress
            near = _gaussian(rows, cols, sigma, patches)
            near = near if tokens is None else near[:, list(tokens)]
        else:
            near = torch.zeros_like(likeness)
        weights = (likeness / self.tau + near).softmax(-1)
        if self.detach:
            weights = weights.detach()
        return torch.einsum("bn,bnd->bd", weights, patches), weights

    def at_tokens(self, tokens: tuple[int, ...]) -> Pooling:
        """The pooling for patches at these places of the grid; a pooling of your own may have it too."""

        def placed(
            patches: torch.Tensor, direction: torch.Tensor, grid: tuple[int, int], progress: float
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return self(patches, direction, grid, progress, tokens)

        return placed


def _gaussian(rows: int, cols: int, sigma: float, like: torch.Tensor) -> torch.Tensor:
    """(1, rows * cols) logarithm of the spatial prior; sigma in units of a 16 x 16 grid, scaled on each side."""
    y = (torch.arange(rows, dtype=like.dtype, device=like.device) - (rows - 1) / 2) * (16 / rows)
    x = (torch.arange(cols, dtype=like.dtype, device=like.device) - (cols - 1) / 2) * (16 / cols)
    return (-(y[:, None] ** 2 + x[None] ** 2) / (2 * sigma**2)).reshape(1, -1)


@dataclass(frozen=True)
class Mean:
    """The plain mean over patches (arXiv 2601.08017, appendix G)."""

    _ships = ("__call__",)

    def __call__(
        self, patches: torch.Tensor, direction: torch.Tensor, grid: tuple[int, int], progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Centred patches (B, n, d) to their mean (B, d); weights (B, n) are all 1 / n."""
        weights = torch.full_like(patches[..., 0], 1 / patches.shape[1])
        return patches.mean(1), weights


@dataclass(frozen=True)
class Max:
    """The one patch most like the direction (arXiv 2601.08017, appendix D)."""

    _ships = ("__call__",)

    def __call__(
        self, patches: torch.Tensor, direction: torch.Tensor, grid: tuple[int, int], progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Centred patches (B, n, d) to the one of highest cosine (B, d); its weight is 1."""
        best = F.cosine_similarity(patches, direction[:, None], dim=-1).argmax(-1)
        weights = F.one_hot(best, patches.shape[1]).to(patches.dtype)
        return patches[torch.arange(len(patches), device=patches.device), best], weights


#: So many times the median norm of a picture's patches, each less the centre, a patch's must be to be called a sink.
SINK = 5.0


def sinks(patches: torch.Tensor, times: float = SINK) -> torch.Tensor:
    """Which of centred patches (B, n, d) are far longer than the others of their picture: (B, n), true or false.

    Such tokens hold no place of the picture: models put aside in them what they need for themselves (Darcet et al.
    2024, "Vision Transformers Need Registers"; Sun et al. 2024, "Massive Activations in Large Language Models").
    """
    norms = torch.linalg.vector_norm(patches.detach().float(), dim=-1)
    far: torch.Tensor = norms > times * norms.median(-1, keepdim=True).values
    return far


@dataclass(frozen=True)
class WithoutSinks:
    """Another pooling, of those patches that are no `sinks`: their weights are set to 0, and the rest sum to 1.

        settings = nd.Settings.paper(12).but(pooling=nd.WithoutSinks(nd.Attention(tau=0.5)))

    times   how many times as long as the median patch of its picture, both less the centre, a sink is
    """

    _ships = ("__call__", "at_tokens")

    pooling: Pooling = Attention()
    times: float = SINK

    def __post_init__(self) -> None:
        if isinstance(self.pooling, type) or not callable(self.pooling):
            raise ValueError(f"pooling={shown(self.pooling)}: a pooling is needed, such as Attention() or Mean()")
        object.__setattr__(self, "times", real(self.times, "times", above=1))

    def __call__(
        self, patches: torch.Tensor, direction: torch.Tensor, grid: tuple[int, int], progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Centred patches (B, n, d) and directions (B, d) to pooled (B, d) and weights (B, n)."""
        return _without(self.pooling, sinks(patches, self.times), patches, direction, grid, progress)

    def at_tokens(self, tokens: tuple[int, ...]) -> Pooling:
        """The pooling for patches at these places of the grid."""
        inner = self.pooling.at_tokens(tokens) if hasattr(self.pooling, "at_tokens") else self.pooling

        def placed(
            patches: torch.Tensor, direction: torch.Tensor, grid: tuple[int, int], progress: float
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return _without(inner, sinks(patches, self.times), patches, direction, grid, progress)

        return placed


def is_attention(pooling: Any) -> bool:
    """Whether a pooling is attention, of all patches or without sinks."""
    return isinstance(pooling.pooling if isinstance(pooling, WithoutSinks) else pooling, Attention)


def _without(
    pooling: Pooling,
    out: torch.Tensor,
    patches: torch.Tensor,
    direction: torch.Tensor,
    grid: tuple[int, int],
    progress: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result of a pooling without the patches marked `out` (B, n)."""
    # what points away from the direction draws no attention, and is never the one most like it
    masked = torch.where(out[..., None], -direction[:, None], patches)
    weights = pooling(masked, direction, grid, progress)[1].masked_fill(out, 0.0)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return torch.einsum("bn,bnd->bd", weights, patches), weights


def cosine(pooled: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """cos(r, v) for r and v (B, d): (B,) in [-1, 1]."""
    return F.cosine_similarity(pooled, direction, dim=-1)


def dot(pooled: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """r . v / |v| for r and v (B, d): (B,), in units of the activation."""
    return (pooled * F.normalize(direction, dim=-1)).sum(-1)


def reported(pooling: Any) -> dict[str, Any]:
    """The poolings by which a finished picture is scored: attention, the climb's own where it was one, mean and max."""
    own = pooling if is_attention(pooling) else Attention()
    return {"attention": own, "mean": Mean(), "max": Max()}
