"""The directions of a sweep's jobs, random ones beside them, and jobs of directions and features in hand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..directions.direction import Direction
from ..directions.sources import from_tensor
from ..directions.text import concept
from ..models.vlm import VLM
from ..sae.feature import Feature
from ..sae.reference import described
from ..synthesis.digests import digest
from ..synthesis.request import check_aims
from .jobs import Job


class AimJob(Job):
    """A job of a direction or feature in hand, `aim`, whose content is part of its key; its record is a Job's."""

    aim: Direction | Feature
    content: str

    def __init__(self, vlm: VLM, aim: Direction | Feature, seed: int = 0):
        (site,) = check_aims(vlm, [aim])
        Job.__init__(self, aim.label.strip() or "a direction", layer=vlm.hf_name(site), seed=seed)
        if isinstance(aim, Feature):
            content: Any = (aim.parts, aim.objective, aim.guard, described(aim.reference))
        else:
            content = (aim.vector, str(site))
        object.__setattr__(self, "aim", aim)
        object.__setattr__(self, "content", digest(content))

    def key(self, **given: Any) -> str:
        """As a job's, of its content too."""
        return super().key(**given, aim=self.content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AimJob) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.content)


def jobs_of_aims(vlm: VLM, aims: Sequence[Direction | Feature], seed: int = 0) -> list[Job]:
    """A job for each direction or feature, for `nd.sweep`.

    Raises TypeError for what is neither, ValueError for one of another model.
    """
    return [AimJob(vlm, aim, seed) for aim in aims]


def directions_of(vlm: VLM, jobs: Sequence[Job]) -> Iterator[Direction | Feature | Exception]:
    """A direction for each job of a layer, in their order; an exception where a word cannot be read."""
    words = list(dict.fromkeys(j.words for j in jobs if not isinstance(j, AimJob)))
    layer = jobs[0].layer
    of: dict[str, Direction | Exception] = {}
    try:
        of.update(zip(words, concept(vlm, words, layer) if words else [], strict=True))
    except Exception:
        for word in words:
            try:
                of[word] = concept(vlm, word, layer)
            except Exception as error:
                of[word] = error
    for job in jobs:
        if isinstance(job, AimJob):
            yield job.aim
            continue
        direction = of[job.words]
        yield random_direction(vlm, job, direction) if job.control and isinstance(direction, Direction) else direction


def random_direction(vlm: VLM, job: Job, like: Direction) -> Direction:
    """A random direction with the norm of another; the same for the same concept and seed, whatever else runs."""
    seed = int.from_bytes(hashlib.sha256(f"{job.concept} {job.seed}".encode()).digest()[:7], "big")
    vector = torch.randn(like.vector.shape, generator=torch.Generator().manual_seed(seed))
    vector = vector / vector.norm() * like.norm
    return from_tensor(vlm, vector, like.site, label=f"random ({job.concept})")
