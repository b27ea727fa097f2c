"""How long a step takes here: a few real ones, timed within a second or two."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import torch

from ..directions.sources import from_tensor
from .synthesize import climb_pairs

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM
    from .prototype import Prototype
    from .settings import Settings


BUDGET = 1.8  # seconds that timing may take


STEPS = 3  # that are timed, after one that is not


UNEVEN = 5.0  # a slowest step that took so many times the quickest tells nothing


# operations a second that a machine does at least, to know beforehand that a step would take too long to be timed
SLOWEST = {"cpu": 2e10, "cuda": 1e13, "mps": 5e11}


def seconds_a_step(vlm: VLM, layer: int | str | Site, settings: Settings) -> float | None:
    """Seconds of a step of one picture's ascent here, from a few real ones; None where a step takes too long for that.

    None also for a model through whose choice of words no gradient passes. Raises as `synthesize`.
    """
    site = vlm.site(layer)
    if not vlm.passes_gradient:
        return None
    if (vlm.remote is not None and vlm.remote.away) or least_seconds(vlm, site.layer) > BUDGET:
        return None
    steps, *_ = timed_steps(vlm, site, settings, 1)
    return None if max(steps) > UNEVEN * min(steps) else sum(steps) / len(steps)


def least_seconds(vlm: VLM, layer: int) -> float:
    """Seconds that a view of a step takes at least, by the number of weights that every image token meets."""
    family = vlm.family
    tower = sum(p.numel() for p in vlm.hf.get_submodule(family.tower).parameters()) if family.tower else 0
    stack = vlm.hf.get_submodule(family.layers)
    blocks = sum(p.numel() for block in list(stack)[:layer] for p in block.parameters())  # type: ignore[call-overload]
    tokens = vlm.grid[0] * vlm.grid[1]
    return 4 * (tower + blocks) * tokens / SLOWEST.get(vlm.device.type, SLOWEST["cpu"])


def timed_steps(vlm: VLM, site: Site, settings: Settings, count: int) -> tuple[list[float], float, list[Prototype]]:
    """Climb towards random directions: seconds of each step after the first, when the last was done, the pictures."""
    stamps: list[float] = []
    width = vlm.width_at(site)
    settings = settings.but(steps=STEPS + 1, centre=torch.zeros(width))  # the centre's pictures are not read
    generator = torch.Generator().manual_seed(0)
    aims = [from_tensor(vlm, torch.randn(width, generator=generator), site, label="timed") for _ in range(count)]

    def watch(step: int, scores: torch.Tensor) -> None:
        scores.sum().item()  # waits for a device that is asked from afar
        stamps.append(time.perf_counter())

    prototypes = climb_pairs(vlm, [(aim, 0) for aim in aims], settings, watch)
    return [b - a for a, b in itertools.pairwise(stamps)], stamps[-1], prototypes
