"""A climb put together of the engine's parts, for terms, sites and beginnings that `nd.synthesize` does not take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import nnsight_dream as nd
from nnsight_dream.engine import optimise
from nnsight_dream.engine.read import reader
from nnsight_dream.models.reading import reading


def group(jobs: Sequence[tuple[nd.Site, torch.Tensor, torch.Tensor]], pooling: Any, score: Any) -> list[nd.Objective]:
    """Objectives of (site, direction, centre) jobs, one for each site."""
    objectives = []
    for site in dict.fromkeys(job[0] for job in jobs):
        rows = tuple(i for i, job in enumerate(jobs) if job[0] == site)
        directions, centres = (torch.stack([jobs[i][k] for i in rows]) for k in (1, 2))
        objectives.append(nd.Objective(site, directions, centres, pooling, score, rows))
    return objectives


def ascend(
    vlm: nd.VLM,
    canvas: Any,
    augment: Sequence[Any],
    terms: Sequence[Any],
    sites: Sequence[nd.Site],
    plan: optimise.Climb,
    generators: list[torch.Generator],
    watch: Callable[[int, torch.Tensor], None] | None = None,
    parts: list[torch.Tensor] | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor, bool]:
    """The canvas's parts, the scores (steps, J), and whether it was interrupted."""
    how = reading(vlm, [vlm.site(s) for s in sites], pictures=True)
    with vlm.quiet():
        read, device = reader(vlm.model, how)
        begun = canvas.start(len(generators), generators, device) if parts is None else parts
        begun = [part.detach().clone().requires_grad_(True) for part in begun]
        optimiser, steps = optimise.optimiser_of(plan, begun), range(plan.steps)
        history, interrupted = optimise.climb(
            read, canvas, augment, terms, plan, generators, begun, optimiser, steps, vlm.grid, how.cut, watch
        )
    return [p.detach() for p in begun], torch.stack(history), interrupted
