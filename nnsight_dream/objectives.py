"""What is climbed: patches are pooled into one vector, the vector is scored against a direction, terms add up.

Every choice is a value: a pooling, a score, a centre or a term of your own is any callable of the same form.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from . import arguments, shipped_scores
from .pictures import as_image, as_tensors, content
from .shipped import Step
from .sites import Site
from .trace import mean_patches
from .vectors import Direction, climbable
from .vlm import VLM

if TYPE_CHECKING:
    from PIL import Image

Pooling = Callable[[torch.Tensor, torch.Tensor, tuple[int, int], float], tuple[torch.Tensor, torch.Tensor]]
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


# -- poolings ----------------------------------------------------------------------------------------------------


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
            raise ValueError(f"sigma={arguments.shown(self.sigma)}: two numbers are needed, at the first and last step")
        object.__setattr__(self, "tau", arguments.real(self.tau, "tau", above=0))
        object.__setattr__(self, "sigma", tuple(arguments.real(value, "sigma", above=0) for value in sigma))

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


# -- scores ------------------------------------------------------------------------------------------------------


def cosine(pooled: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """cos(r, v) for r and v (B, d): (B,) in [-1, 1]."""
    return F.cosine_similarity(pooled, direction, dim=-1)


def dot(pooled: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """r . v / |v| for r and v (B, d): (B,), in units of the activation."""
    return (pooled * F.normalize(direction, dim=-1)).sum(-1)


def reported(pooling: Any) -> dict[str, Any]:
    """The poolings by which a finished picture is scored: attention, the climb's own where it was one, mean and max."""
    own = pooling if isinstance(pooling, Attention) else Attention()
    return {"attention": own, "mean": Mean(), "max": Max()}


# -- centres -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grey:
    """The mean patch of a uniform grey picture (pixels 0.5), as the paper does."""

    _ships = ("pictures",)

    def of(self, vlm: VLM, site: Site, at_once: int = 16) -> torch.Tensor:
        """(d,) the centre at a site, from at most `at_once` pictures a pass."""
        return mean_patches(vlm, self.pictures(*vlm.image_size), [site], at_once)[vlm.site(site)]

    def pictures(self, height: int, width: int) -> list[torch.Tensor]:
        """The picture; it needs no size but the model's own, since grey stays grey when resized."""
        return [torch.full((1, 3, height, width), 0.5, dtype=torch.float32, device="cpu")]


@dataclass(frozen=True)
class NaturalNoise:
    """The mean patch over noise whose amplitude falls as 1 / frequency, as that of natural pictures does."""

    _ships = ("pictures",)

    count: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", arguments.whole(self.count, "count", 1))
        object.__setattr__(self, "seed", arguments.whole(self.seed, "seed", 0, arguments.SEED_MOST))

    def of(self, vlm: VLM, site: Site, at_once: int = 16) -> torch.Tensor:
        """(d,) the centre at a site, from at most `at_once` pictures a pass."""
        return mean_patches(vlm, self.pictures(*vlm.image_size), [site], at_once)[vlm.site(site)]

    def pictures(self, height: int, width: int) -> list[torch.Tensor]:
        """The pictures (count, 3, height, width); made where they are needed, which may be a server."""
        place: Any = {"dtype": torch.float32, "device": "cpu"}
        generator = torch.Generator().manual_seed(self.seed)
        white = torch.randn(self.count, 3, height, width, generator=generator, **place)
        fy, fx = torch.fft.fftfreq(height, **place)[:, None], torch.fft.rfftfreq(width, **place)[None]
        fall = 1 / (fy**2 + fx**2).sqrt().clamp(min=1 / max(height, width))
        noise = torch.fft.irfft2(torch.fft.rfft2(white) * fall, s=(height, width))
        noise = noise / noise.flatten(1).std(1)[:, None, None, None]
        return [(0.5 + 0.2 * noise).clamp(0, 1)]


@functools.cache
def _bundled() -> Pictures:
    from . import demo

    return Pictures(tuple(p.image for p in demo.pictures()))


@dataclass(frozen=True, eq=False)
class Pictures:
    """The mean patch over reference pictures (PIL images or paths, any size); `Pictures.bundled()` are the demo's own.

    Two of the same pictures in the same order are equal, so that a centre is computed once for them, also where they
    came by pickle (a worker gets its settings anew with every chunk). Raises ValueError for no picture.
    """

    images: Sequence[Image.Image]

    def __post_init__(self) -> None:
        from PIL import Image

        files = (str, os.PathLike, bytes, np.ndarray)
        form = "a PIL image, or a list of them, is"
        images, _ = arguments.several(self.images, (Image.Image, torch.Tensor, *files), "images", form)
        held = (as_image(image, "images") if isinstance(image, files) else image for image in images)
        object.__setattr__(self, "images", tuple(held))
        if not self.images:
            raise ValueError("Pictures() holds no picture: give a non-empty list of PIL images")

    @functools.cached_property
    def _content(self) -> bytes:
        return b"".join(content(image) for image in self.images)

    @property
    def digest(self) -> str:
        """A hash of what they show, for records."""
        return hashlib.sha256(self._content).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Pictures) and self._content == other._content)

    def __hash__(self) -> int:
        return hash(self._content)

    def of(self, vlm: VLM, site: Site, at_once: int = 16) -> torch.Tensor:
        """(d,) the centre at a site, from at most `at_once` pictures a pass."""
        return mean_patches(vlm, as_tensors(list(self.images), "images"), [site], at_once)[vlm.site(site)]

    @staticmethod
    def bundled() -> Pictures:
        """The labelled pictures that come with the package; the same object each time."""
        return _bundled()

    def __repr__(self) -> str:
        return f"Pictures({len(self.images)} images)"


# -- objectives and terms ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Objective:
    """score(pool(patches - centre), direction), averaged over a job's views; one direction for each job.

    directions, centres   (J, d); jobs   the rows of the step that these are, for jobs at different sites
    """

    site: Site
    directions: torch.Tensor
    centres: torch.Tensor
    pooling: Pooling
    score: Score = cosine
    jobs: tuple[int, ...] | None = None

    def parts(self, patches: torch.Tensor, grid: tuple[int, int], progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (J, batch) and patch weights (J, batch, n) of patches (J, batch, n, d)."""
        pooling = shipped_scores.placed(self.pooling, self.site)
        return shipped_scores.pooled_scores(patches, self.directions, self.centres, pooling, self.score, grid, progress)

    def __call__(self, step: Step) -> torch.Tensor:
        """(J of the step,) the score of each job; 0 for jobs that are not these."""
        towards = (self.directions, self.centres, self.pooling, self.score)
        return shipped_scores.direction_term(self.site, *towards, self.jobs)(step)


@dataclass(frozen=True)
class TotalVariation:
    """Minus `weight` times the mean absolute difference between neighbouring pixels: smoother pictures."""

    _ships = ("__call__",)

    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", arguments.real(self.weight, "weight"))

    def __call__(self, step: Step) -> torch.Tensor:
        """(J,) the term for each picture."""
        x = step.pictures
        down = (x[..., 1:, :] - x[..., :-1, :]).abs().flatten(1).mean(1)
        right = (x[..., :, 1:] - x[..., :, :-1]).abs().flatten(1).mean(1)
        return -self.weight * (down + right)


@dataclass(frozen=True, eq=False)
class Away:
    """Minus `weight` times the likeness to another direction: "this, but not that".

    Its centre is the run's own kind of centre, at the direction's site.
    """

    direction: Direction
    weight: float = 0.5
    pooling: Any = Mean()

    def __post_init__(self) -> None:
        if not isinstance(self.direction, Direction):
            mend = "see nd.concept, nd.from_tensor"
            if hasattr(self.direction, "parts"):
                mend = "of two features at one site make the difference: a - 0.5 * b"
            raise TypeError(f"Away takes a Direction, not {arguments.shown(self.direction)}; {mend}")
        if isinstance(self.pooling, type) or not callable(self.pooling):
            raise ValueError(f"pooling={arguments.shown(self.pooling)}: a value such as Mean() is needed")
        object.__setattr__(self, "weight", arguments.real(self.weight, "weight"))

    @property
    def site(self) -> Site:
        """Where it must be read."""
        return self.direction.site

    def bound(self, centre: torch.Tensor) -> _BoundAway:
        """The term with its centre (d,) at hand."""
        return _BoundAway(self.site, climbable(self.direction.vector).to(centre), centre, self.weight, self.pooling)


@dataclass(frozen=True, eq=False)
class _BoundAway:
    site: Site
    vector: torch.Tensor
    centre: torch.Tensor
    weight: float
    pooling: Pooling

    def __call__(self, step: Step) -> torch.Tensor:
        return shipped_scores.away_term(self.site, self.vector, self.centre, self.weight, self.pooling)(step)


def group(
    jobs: Sequence[tuple[Site, torch.Tensor, torch.Tensor] | None], pooling: Pooling, score: Score
) -> list[Objective]:
    """Objectives for (site, direction, centre) jobs, one for each site, together covering all jobs but None."""
    objectives = []
    for site in dict.fromkeys(job[0] for job in jobs if job is not None):
        rows = tuple(i for i, job in enumerate(jobs) if job is not None and job[0] == site)
        stacked = [torch.stack([jobs[i][k] for i in rows]) for k in (1, 2)]  # type: ignore[index,misc]
        objectives.append(Objective(site, stacked[0], stacked[1], pooling, score, rows))
    return objectives
