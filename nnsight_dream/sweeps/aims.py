"""The directions of a sweep's jobs, and random ones beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ..directions.direction import Direction
from ..directions.sources import from_tensor
from ..directions.text import concept
from ..models.vlm import VLM
from .jobs import Job

if TYPE_CHECKING:
    pass


def directions_of(vlm: VLM, jobs: Sequence[Job]) -> Iterator[Direction | Exception]:
    """A direction for each job of a layer, in their order; an exception where a word cannot be read."""
    words = list(dict.fromkeys(j.words for j in jobs))
    layer = jobs[0].layer
    of: dict[str, Direction | Exception] = {}
    try:
        of.update(zip(words, concept(vlm, words, layer), strict=True))
    except Exception:
        for word in words:
            try:
                of[word] = concept(vlm, word, layer)
            except Exception as error:
                of[word] = error
    for job in jobs:
        direction = of[job.words]
        yield random_direction(vlm, job, direction) if job.control and isinstance(direction, Direction) else direction


def random_direction(vlm: VLM, job: Job, like: Direction) -> Direction:
    """A random direction with the norm of another; the same for the same concept and seed, whatever else runs."""
    seed = int.from_bytes(hashlib.sha256(f"{job.concept} {job.seed}".encode()).digest()[:7], "big")
    vector = torch.randn(like.vector.shape, generator=torch.Generator().manual_seed(seed))
    vector = vector / vector.norm() * like.norm
    return from_tensor(vlm, vector, like.site, label=f"random ({job.concept})")
