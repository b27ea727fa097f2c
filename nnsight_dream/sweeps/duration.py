"""How long a sweep will take here: a few real steps, timed within a second or two, and what goes with each picture."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..models.reading import read_pictures
from ..synthesis.timing import BUDGET, UNEVEN, least_seconds, timed_steps
from .store import Store

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from .sweep import Chunk, Plan


@dataclass(frozen=True)
class _Probe:
    """What was timed at a layer: seconds of a view in a step, of a picture's reading, and of a picture's end."""

    layer: int
    view: float
    reading: float
    ending: float


def estimate(vlm: VLM, planned: Plan, store: Store | None = None) -> float | None:
    """Seconds that the rest of a plan will take here, as busy as the machine is now; None where that is not known.

    A few steps of a small batch are timed at the lowest and the highest layer, with the plan's own settings; steps cost
    by the view, and grow evenly from layer to layer. Added are the centres, the readings of finished pictures and
    writing them. Words, which take little, and judges are not in it. It takes one to two seconds; None is for models on
    a server, for models so large that a step cannot be timed in that time, and for times that vary too much.
    """
    chunks = list(planned.chunks if store is None else planned.left(store))
    if not chunks:
        return 0.0
    if (vlm.remote is not None and vlm.remote.away) or least_seconds(
        vlm, vlm.site(chunks[0].jobs[0].layer).layer
    ) > BUDGET / 4:
        return None
    layers = sorted({vlm.site(c.jobs[0].layer).layer for c in chunks})
    probes = []
    for layer in dict.fromkeys((layers[0], layers[-1])):
        chunk = next(c for c in chunks if vlm.site(c.jobs[0].layer).layer == layer)
        if (probe := _timed(vlm, chunk, layer, BUDGET / 2)) is None:
            return None
        probes.append(probe)
    low, high = probes[0], probes[-1]

    def between(name: str, layer: int) -> float:
        share = (layer - low.layer) / max(1, high.layer - low.layer)
        return getattr(low, name) + share * (getattr(high, name) - getattr(low, name))

    total, centres = 0.0, set()
    for chunk in chunks:
        layer, settings = vlm.site(chunk.jobs[0].layer).layer, chunk.settings
        pictures = len(chunk.jobs)
        total += pictures * settings.batch * settings.steps * between("view", layer)
        total += pictures * between("ending", layer)
        mark = (chunk.jobs[0].layer, id(settings.centre) if isinstance(settings.centre, torch.Tensor) else "")
        if mark not in centres:
            centres.add(mark)
            total += _pictures_of(settings.centre) * between("reading", layer)
    return total


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


def _climbed(vlm: VLM, chunk: Chunk, layer: int, count: int) -> _Probe | None:
    site = vlm.site(chunk.jobs[0].layer)
    steps, last, prototypes = timed_steps(vlm, site, chunk.settings, count)
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
