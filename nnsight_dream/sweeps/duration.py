"""How long a sweep will take here: a few real steps, timed within a second or two, and what goes with each picture."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..directions.sources import from_tensor
from ..models.reading import read_pictures
from ..synthesis.synthesize import climb_pairs
from .store import Store

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM
    from ..synthesis.prototype import Prototype
    from ..synthesis.settings import Settings
    from .sweep import Chunk, Plan


BUDGET = 1.8  # seconds that timing may take


STEPS = 3  # that are timed, after one that is not


UNEVEN = 5.0  # a slowest step that took so many times the quickest tells nothing


# operations a second that a machine does at least, to know beforehand that a step would take too long to be timed
SLOWEST = {"cpu": 2e10, "cuda": 1e13, "mps": 5e11}


@dataclass(frozen=True)
class _Probe:
    """What was timed at a layer: seconds of a view in a step, of a picture's reading, and of a picture's end."""

    layer: int
    view: float
    reading: float
    ending: float


def estimate(vlm: VLM, planned: Plan, store: Store | None = None) -> float | None:
    """Seconds that the rest of a plan will take here, as busy as the machine is now; None where that cannot be told.

    A few steps of a small batch are timed at the lowest and the highest layer, with the plan's own settings; steps cost
    by the view, and grow evenly from layer to layer. Added are the centres, the readings of finished pictures and
    writing them. Words, which take little, and judges are not in it. It takes one to two seconds; None is for models on
    a server, for models so large that a step cannot be timed in that time, and for times that vary too much.
    """
    left = list(planned.chunks if store is None else planned.left(store))
    if not left:
        return 0.0
    if (vlm.remote is not None and vlm.remote.away) or _least_seconds(
        vlm, vlm.site(left[0].jobs[0].layer).layer
    ) > BUDGET / 4:
        return None
    layers = sorted({vlm.site(c.jobs[0].layer).layer for c in left})
    probes = []
    for layer in dict.fromkeys((layers[0], layers[-1])):
        chunk = next(c for c in left if vlm.site(c.jobs[0].layer).layer == layer)
        if (probe := _timed(vlm, chunk, layer, BUDGET / 2)) is None:
            return None
        probes.append(probe)
    low, high = probes[0], probes[-1]

    def between(name: str, layer: int) -> float:
        share = (layer - low.layer) / max(1, high.layer - low.layer)
        return getattr(low, name) + share * (getattr(high, name) - getattr(low, name))

    total, centres = 0.0, set()
    for chunk in left:
        layer, settings = vlm.site(chunk.jobs[0].layer).layer, chunk.settings
        pictures = len(chunk.jobs)
        total += pictures * settings.batch * settings.steps * between("view", layer)
        total += pictures * between("ending", layer)
        mark = (chunk.jobs[0].layer, id(settings.centre) if isinstance(settings.centre, torch.Tensor) else "")
        if mark not in centres:
            centres.add(mark)
            total += _pictures_of(settings.centre) * between("reading", layer)
    return total


def seconds_a_step(vlm: VLM, layer: int | str, settings: Settings) -> float | None:
    """Seconds of a step of one picture's ascent here, from a few real ones; None where a step takes too long for that.

    None also for a model through whose choice of words no gradient passes. Raises as `synthesize`.
    """
    site = vlm.site(layer)
    if not vlm.passes_gradient:
        return None
    if (vlm.remote is not None and vlm.remote.away) or _least_seconds(vlm, site.layer) > BUDGET:
        return None
    steps, *_ = _steps(vlm, site, settings, 1)
    return None if max(steps) > UNEVEN * min(steps) else sum(steps) / len(steps)


def _least_seconds(vlm: VLM, layer: int) -> float:
    """Seconds that a view of a step takes at least, by the number of weights that every image token meets."""
    family = vlm.family
    tower = sum(p.numel() for p in vlm.hf.get_submodule(family.tower).parameters()) if family.tower else 0
    stack = vlm.hf.get_submodule(family.layers)
    blocks = sum(p.numel() for block in list(stack)[:layer] for p in block.parameters())  # type: ignore[call-overload]
    tokens = vlm.grid[0] * vlm.grid[1]
    return 4 * (tower + blocks) * tokens / SLOWEST.get(vlm.device.type, SLOWEST["cpu"])


def _timed(vlm: VLM, chunk: Chunk, layer: int, budget: float) -> _Probe | None:
    """Climb a few pictures for a few steps; as many as the budget lets one climb, up to the chunk's own."""
    began, count, rate = time.perf_counter(), min(2, len(chunk.jobs)), None
    while True:
        rate = _climbed(vlm, chunk, layer, count)
        spent = time.perf_counter() - began
        bigger = min(4 * count, len(chunk.jobs))
        if rate is None or bigger == count or spent + spent * bigger / count > budget:
            return rate
        count = bigger


def _steps(vlm: VLM, site: Site, settings: Settings, count: int) -> tuple[list[float], float, list[Prototype]]:
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


def _climbed(vlm: VLM, chunk: Chunk, layer: int, count: int) -> _Probe | None:
    site = vlm.site(chunk.jobs[0].layer)
    steps, last, prototypes = _steps(vlm, site, chunk.settings, count)
    measuring = (time.perf_counter() - last) / count
    if max(steps) > UNEVEN * min(steps):
        return None
    with tempfile.TemporaryDirectory() as folder:
        writing = _seconds(lambda: Store(folder).put("timed", chunk.jobs[0], prototypes[0]))
    pictures = torch.rand(2, 3, *vlm.image_size, device=vlm.device)
    reading = _seconds(lambda: read_pictures(vlm, pictures, [site])[site].float().sum().item()) / len(pictures)
    view = sum(steps) / len(steps) / (count * chunk.settings.batch)
    return _Probe(layer, view, reading, measuring + writing)


def _seconds(run: Any) -> float:
    began = time.perf_counter()
    with torch.no_grad():
        run()
    return time.perf_counter() - began


def _pictures_of(centre: Any) -> int:
    """How many pictures a centre is read from."""
    if isinstance(centre, torch.Tensor):
        return 0
    images: Sequence[Any] | None = getattr(centre, "images", None)
    return len(images) if images is not None else int(getattr(centre, "count", 1))
