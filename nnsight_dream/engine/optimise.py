"""The climb: gradient ascent step by step, with checks of every gradient.

Objectives go up, and the one minus sign is in `climb`. See `engine.plain` for the rules of this folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .canvas import full_precision


class Step:
    """What an objective or an added term sees at one step.

    pictures   (J, 3, H, W) clean pictures, one a job
    views      (J * batch, 3, H, W) augmented, job by job
    patches    by site (J * batch, n, d), float32
    progress   0 at the first step, 1 at the last
    """

    def __init__(
        self,
        pictures: torch.Tensor,
        views: torch.Tensor,
        patches: dict[Any, torch.Tensor],
        batch: int,
        grid: tuple[int, int],
        progress: float,
    ) -> None:
        self.pictures: torch.Tensor = pictures
        self.views: torch.Tensor = views
        self.patches = patches
        self.batch: int = batch
        self.grid: tuple[int, int] = grid
        self.progress: float = progress


def optimiser_of(plan: Any, parts: list[torch.Tensor]) -> torch.optim.Optimizer:
    """The optimiser that a plan names, on a canvas's parts."""
    if plan.optimiser == "sgd":
        return torch.optim.SGD(parts, lr=plan.rate, momentum=0.9)
    if plan.optimiser == "normalised":  # `climb` gives each gradient its length
        return torch.optim.SGD(parts, lr=plan.rate)
    return torch.optim.Adam(parts, lr=plan.rate)


def clipped(gradients: Any, most: float, exactly: bool = False) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Each job's gradient scaled to a norm of at most `most`, or of `exactly` that, over all its parts; and the norms
    (J,) before."""
    squares = [g.detach().abs().square().flatten(1).sum(1) for g in gradients]
    norm = torch.stack(squares).sum(0).sqrt()
    factor = most / norm.clamp(min=1e-30)
    if not exactly:
        factor = factor.clamp(max=1.0)
    return [g * factor.view(-1, *[1] * (g.ndim - 1)) for g in gradients], norm


def in_pixels(
    canvas: Any, parts: list[torch.Tensor], gradients: list[torch.Tensor], pictures: torch.Tensor
) -> list[torch.Tensor]:
    """Gradients of norm 1 scaled so that a step along each changes the pixels of its picture by 1, root mean square.

    To first order, as a small step shows; so a step is as long on every canvas, of any size.
    """
    small = 1e-3 * math.sqrt(pictures[0].numel())
    with torch.no_grad(), full_precision(parts[0]):
        near = canvas.render([part - small * gradient for part, gradient in zip(parts, gradients, strict=True)])
    moved = (near - pictures).square().flatten(1).mean(1).sqrt() / small
    factor = 1 / moved.clamp(min=1e-12)
    return [gradient * factor.view(-1, *[1] * (gradient.ndim - 1)) for gradient in gradients]


def rate_at(plan: Any, step: int) -> float:
    """The rate of a step; all steps of a "normalised" climb are together as long as the plan's rate."""
    share = 0.5 * (1 + math.cos(math.pi * step / plan.steps)) if plan.schedule == "cosine" else 1.0  # never 0
    if plan.optimiser == "normalised":
        share /= 0.5 * (plan.steps + 1) if plan.schedule == "cosine" else plan.steps
    rate: float = plan.rate * share
    return rate


def climb(
    read: Any,
    canvas: Any,
    augment: Any,
    terms: Any,
    plan: Any,
    generators: list[torch.Generator],
    parts: list[torch.Tensor],
    optimiser: torch.optim.Optimizer,
    steps: range,
    grid: tuple[int, int],
    cut: str,
    tell: Any = None,
) -> tuple[list[torch.Tensor], bool]:
    """Climb the sum of `terms`, each (J,), by moving parts of the canvas, for some `steps` of a plan (a range).

    read   from views to patches by site, float32 on the parts' device; cut   what to say where no gradient comes back
    plan   steps, batch, rate, clip, schedule, and `at_once`: the most views in a pass, None for all
    Returns the scores (J,) of each step that was done, and whether a KeyboardInterrupt ended it.

    Raises RuntimeError where no gradient comes back, FloatingPointError for a score or gradient that is not finite.
    """
    history = []
    for step in steps:
        try:
            progress = step / max(1, plan.steps - 1)
            with torch.enable_grad():
                with full_precision(parts[0]):
                    pictures = canvas.render(parts)
                    views = pictures.repeat_interleave(plan.batch, 0)
                    for change in augment:
                        views = change(views, generators, plan.batch)
                score, gradients = slopes(read, terms, plan, pictures, views, parts, grid, step, progress, cut)
            if any(g is None for g in gradients):
                raise RuntimeError(cut.format(step=step))
            if plan.optimiser == "normalised":
                scaled, norm = clipped(gradients, 1.0, exactly=True)
                scaled = in_pixels(canvas, parts, scaled, pictures.detach())
            else:
                scaled, norm = clipped(gradients, plan.clip)
            prove_norms(norm, step)
            for part, gradient in zip(parts, scaled, strict=True):
                part.grad = gradient
            for group in optimiser.param_groups:
                group["lr"] = rate_at(plan, step)
            optimiser.step()
            history.append(score.detach())
            if tell is not None:
                preview = (pictures.detach(),) if getattr(tell, "shows", False) else ()
                tell(step, history[-1], *preview)
        except KeyboardInterrupt:
            return history, True
    return history, False


def slopes(
    read: Any,
    terms: Any,
    plan: Any,
    pictures: torch.Tensor,
    views: torch.Tensor,
    parts: list[torch.Tensor],
    grid: tuple[int, int],
    step: int,
    progress: float,
    cut: str,
) -> tuple[torch.Tensor, Any]:
    """The scores (J,) of a step, and the parts' gradient of minus their sum; at most `plan.at_once` views a pass."""
    passes = 1 if plan.at_once is None else -(-len(views) // plan.at_once)
    kept: Any = None
    if passes == 1:
        patches = read(views)
    else:
        patches, kept = read_in_turn(read, views, passes)
    with full_precision(parts[0]):
        now = Step(pictures, views, patches, plan.batch, grid, progress)
        score = added([term(now) for term in terms], len(pictures))
    prove_score(score, step, cut)
    falling = -score.sum()  # the one minus sign
    if passes == 1:
        return score, torch.autograd.grad(falling, parts, allow_unused=True)
    pulls = torch.autograd.grad(falling, list(patches.values()), retain_graph=True, allow_unused=True)
    pulled = {site: pull for site, pull in zip(patches, pulls, strict=True) if pull is not None}
    through = carried_back(read, kept, pulled, cut.format(step=step))
    return score, torch.autograd.grad([falling, views], parts, [None, through], allow_unused=True)


def added(scores: list[Any], jobs: int) -> torch.Tensor:
    """The sum of terms, each (J,). Raises ValueError for a term of another shape."""
    try:
        return torch.stack(scores).sum(0)
    except (RuntimeError, TypeError):
        shapes = [tuple(s.shape) if isinstance(s, torch.Tensor) else type(s).__name__ for s in scores]
        if all(shape == (jobs,) for shape in shapes):
            raise
        raise ValueError(
            f"the objectives and terms of a step give {shapes}; each must give a tensor of {(jobs,)}, a number for "
            "each of the pictures that are climbed together"
        ) from None


def read_in_turn(read: Any, views: torch.Tensor, passes: int) -> tuple[dict[Any, torch.Tensor], Any]:
    """Patches by site, all of them leaves of a graph, of views that are read in several passes; and what comes back.

    Passes are as equal as can be. No pass but the last keeps its activations, so that memory is that of one: for the
    gradient the others are run once more, when the score of all views is known (Gao et al. 2021, arXiv 2101.06983).
    """
    pieces = [piece.requires_grad_(True) for piece in views.detach().tensor_split(passes)]
    with torch.no_grad():
        seen = [read(piece) for piece in pieces[:-1]]
    last = read(pieces[-1])
    seen.append({site: patches.detach() for site, patches in last.items()})
    leaves = {site: torch.cat([by_site[site] for by_site in seen]).requires_grad_(True) for site in last}
    return leaves, (pieces, last)


def carried_back(read: Any, kept: Any, pulled: dict[Any, torch.Tensor], cut: str) -> torch.Tensor:
    """The gradient at the views (J * batch, 3, H, W), pass by pass, from that at their patches by site.

    Raises RuntimeError where no gradient comes back; `cut` is what it says.
    """
    pieces, patches = kept
    ends = torch.tensor([len(piece) for piece in pieces], dtype=torch.long, device="cpu").cumsum(0).tolist()
    slopes = []
    for piece, end in reversed(list(zip(pieces, ends, strict=True))):
        patches = read(piece) if patches is None else patches
        reached = [site for site in pulled if patches[site].requires_grad]
        if pulled and not reached:
            raise RuntimeError(cut)
        towards = [pulled[site][end - len(piece) : end] for site in reached]
        (slope,) = torch.autograd.grad([patches[site] for site in reached], piece, towards) if reached else (None,)
        slopes.append(torch.zeros_like(piece) if slope is None else slope)
        patches = None  # one pass's activations at a time
    return torch.cat(slopes[::-1])


def prove_score(score: torch.Tensor, step: int, cut: str) -> None:
    """Raise for a score that is not finite, or that no gradient can come from."""
    if not torch.isfinite(score).all():
        bad = (~torch.isfinite(score)).nonzero().flatten().tolist()
        raise FloatingPointError(
            f"step {step}: the score of job {bad} is not finite. A direction of zeros, a score or term of your own, "
            "or float16 activations can cause it; load the model with dtype=torch.bfloat16 or torch.float32."
        )
    if not score.requires_grad:
        raise RuntimeError(cut.format(step=step))


def prove_norms(norm: torch.Tensor, step: int) -> None:
    """Raise for gradients that are not finite, or at the first step zero."""
    if not torch.isfinite(norm).all():
        raise FloatingPointError(
            f"step {step}: the gradient is not finite; load the model with dtype=torch.bfloat16 or torch.float32"
        )
    if step == 0 and (norm == 0).any():
        raise RuntimeError(
            f"step 0: the gradient at the picture is exactly zero for job {(norm == 0).nonzero().flatten().tolist()}. "
            "A freshly made Gemma 3 has a projector of zeros (load trained weights), or the objective does not depend "
            "on the picture (a direction of zeros, weights that are all zero)."
        )


def eight_bit(canvas: Any, parts: list[torch.Tensor]) -> torch.Tensor:
    """The pictures (J, H, W, 3) of a canvas's parts, as the 8-bit values that a file holds."""
    with torch.no_grad():
        rendered: torch.Tensor = canvas.render(parts).clamp(0, 1)
    return (rendered * 255).round().byte().permute(0, 2, 3, 1)


class Canvas(Protocol):
    """How pictures are held: see `canvas.py`."""

    @property
    def size(self) -> int: ...

    def start(self, jobs: int, generators: list[torch.Generator], device: torch.device) -> list[torch.Tensor]: ...

    def render(self, parts: list[torch.Tensor]) -> torch.Tensor: ...


Augmentation = Callable[[torch.Tensor, list[torch.Generator], int], torch.Tensor]


Term = Callable[[Step], torch.Tensor]


@dataclass(frozen=True)
class Climb:
    """How an ascent goes: `steps` of an optimiser on the canvas's parts, gradients clipped job by job.

    With the optimiser "normalised" there is no momentum and no clipping: the parts of a picture move along their
    gradient by so much that its pixels change by `rate`, root mean square, in all steps together, were these to go
    straight.

    at_once   the most views in one pass: more of a step go in turn. None: all in one
    """

    steps: int
    batch: int
    rate: float
    clip: float
    optimiser: str = "sgd"
    schedule: str = "constant"
    at_once: int | None = None
