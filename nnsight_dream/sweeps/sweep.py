"""Sweeps: many jobs into a store, in batches, resumed where they stopped, on one machine or many."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import arguments
from ..engine.pooling import Attention, Max, Mean, WithoutSinks, is_attention
from ..io.files import check_folder
from ..models.load import load
from ..models.vlm import VLM
from ..synthesis.digests import digest
from ..synthesis.real_pictures import keep_reach
from ..synthesis.settings import checked, choose
from ..synthesis.synthesize import climb_pairs
from .aims import directions_of
from .jobs import Job
from .store import Store

if TYPE_CHECKING:
    from ..synthesis.prototype import Prototype
    from ..synthesis.request import Aim
    from ..synthesis.settings import Choice, Settings


Tell = Callable[[str, "Chunk", int], None]


POOLINGS: Mapping[str, type[Mean] | type[Max]] = {"mean": Mean, "max": Max}


@dataclass(frozen=True)
class Chunk:
    """Jobs that are climbed together: same site, same settings. It is done whole or not at all.

    What is together is decided by the list of jobs alone, never by what is left of it: so an interrupted sweep, a
    sharded one and one over many workers give the same bits as one that ran through.
    """

    keys: tuple[str, ...]
    jobs: tuple[Job, ...]
    settings: Settings
    of: Mapping[str, Any] = field(default_factory=dict)  # what decides beside the job, see `identity`

    def alone(self, i: int) -> Chunk:
        """One of its jobs by itself."""
        return dataclasses.replace(self, keys=(self.keys[i],), jobs=(self.jobs[i],))

    @property
    def name(self) -> str:
        """A name of its own, the same in every process."""
        return hashlib.sha256(" ".join(self.keys).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Plan:
    """What a sweep will do: its `chunks` (of this shard), and jobs that cannot be, with the error."""

    chunks: tuple[Chunk, ...]
    impossible: tuple[tuple[str, Job, Exception], ...] = ()

    @property
    def jobs(self) -> int:
        """How many pictures there will be."""
        return sum(len(c.jobs) for c in self.chunks)

    def left(self, store: Store) -> list[Chunk]:
        """Chunks of which anything is missing; where all that is missing failed before, those jobs one by one."""
        chunks = []
        for chunk in self.chunks:
            missing = [i for i, key in enumerate(chunk.keys) if not store.has(key)]
            if 0 < len(missing) < len(chunk.keys) and all(store.has_failed(chunk.keys[i]) for i in missing):
                chunks += [chunk.alone(i) for i in missing]
            elif missing:
                chunks.append(chunk)
        return chunks


@dataclass
class Swept:
    """The result of a sweep: how many jobs were `made`, were there (`found`), and `failed`, by key with the error.

    damaged   jobs that were there but not whole, by key, with what was wrong: they were to be made anew
    keys      of all its jobs; the store may hold others, of other settings or models
    """

    store: Store
    made: int = 0
    found: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    damaged: dict[str, str] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()

    @property
    def ok(self) -> bool:
        """Whether every job is there."""
        return not self.failed and not self.interrupted

    def __str__(self) -> str:
        stopped = ", interrupted" if self.interrupted else ""
        damaged = f", {len(self.damaged)} of them anew since damaged" if self.damaged else ""
        counts = f"{self.made} made{damaged}, {self.found} there before, {len(self.failed)} failed"
        return f"{counts}{stopped}, in {self.store.folder}"


def plan(vlm: VLM, jobs: Iterable[Job], *, settings: Choice = None, shard: tuple[int, int] = (0, 1)) -> Plan:
    """Sort jobs into chunks; see `sweep` for the arguments and what they raise."""
    index, count = _shard(shard)
    jobs, _ = arguments.several(jobs, Job, "jobs", "a Job, or a list of them as nd.jobs_of gives, is")
    settings = checked(settings)
    groups: dict[tuple[Any, str], tuple[Settings, dict[str, Any], list[tuple[str, Job]]]] = {}
    impossible: list[tuple[str, Job, Exception]] = []
    tags: dict[Any, dict[str, Any]] = {}
    choices: dict[tuple[Any, str], tuple[Settings, str]] = {}  # with what tells them apart
    for job in dict.fromkeys(jobs):
        try:
            site = vlm.site(job.layer)
        except (ValueError, TypeError) as error:
            impossible.append((job.key(model=vlm.id), job, error))
            continue
        if (site, job.pooling) not in choices:
            chosen = _settings(vlm, job, site.layer, settings)
            choices[site, job.pooling] = chosen, digest(chosen)
        chosen, whole = choices[site, job.pooling]
        if site not in tags:
            tags[site] = identity(vlm, site)
        of = {**tags[site], "settings": whole}
        groups.setdefault((site, whole), (chosen, of, []))[2].append((job.key(**of), job))
    chunks = []
    for chosen, of, members in groups.values():
        for start in range(0, len(members), chosen.pictures_per_pass):
            keys, some = zip(*members[start : start + chosen.pictures_per_pass], strict=True)
            chunks.append(Chunk(keys, some, chosen, of))
    mine = impossible if index == 0 else []
    return Plan(tuple(chunks[index::count]), tuple(mine))


def identity(vlm: VLM, site: Any) -> dict[str, Any]:
    """What of a model decides about its pictures at a site, as plain data."""
    identifiers = dict(model=vlm.id, revision=vlm.revision, weights=vlm.weights_tag(site), dtype=str(vlm.dtype))
    return {**identifiers, **vlm.chosen}


def _shard(shard: Any) -> tuple[int, int]:
    pair = shard if isinstance(shard, (tuple, list)) else ()
    if len(pair) != 2 or not all(map(arguments.is_whole, pair)) or not 0 <= pair[0] < pair[1]:
        raise ValueError(f"shard={arguments.shown(shard)}: (i, n) with i from 0 to n - 1 is needed")
    return int(pair[0]), int(pair[1])


def _settings(vlm: VLM, job: Job, layer: int, choice: Choice) -> Settings:
    chosen = choose(vlm, layer, choice)
    if (job.pooling == "attention" and is_attention(chosen.pooling)) or job.pooling not in ("attention", *POOLINGS):
        return chosen
    pooling: Any = POOLINGS.get(job.pooling, Attention)()
    own = chosen.pooling
    return chosen.but(pooling=WithoutSinks(pooling, own.times) if isinstance(own, WithoutSinks) else pooling)


@arguments.strict
def sweep(
    vlm: VLM | str | Path,
    jobs: Iterable[Job],
    folder: str | Path | Store,
    *,
    settings: Choice = None,
    shard: tuple[int, int] = (0, 1),
    progress: bool | None = None,
    ray: Any = None,
    remote_concurrency: int = 1,
) -> Swept:
    """Make the picture of every job, and keep it in a store.

    vlm        a model, or what `nd.load` takes
    settings   for all jobs, or a function from the layer (from 1) to settings, or a preset's name, see `synthesize`
    shard      (i, n): only the i-th part of n, counted from 0; parts share a folder or have one each
    progress   True a display, False nothing, None a display in a terminal or notebook and plain lines elsewhere
    ray        an `nnsight_dream.sweeps.Cluster`: spread over its workers
    remote_concurrency   of a model on a server: how many jobs are in flight there at once. Their ids are kept in the
               store, so that a client that was killed collects what it sent

    Stopped at any moment and called again, it goes on: what is finished is not made anew, the rest gets the same bits
    as if it had run through. Several processes may work on one folder. A job that raises is recorded, the others go on;
    called again, it is tried by itself. Whatever is not as it was written is made anew, with a warning.

    Raises ValueError for a wrong shard or concurrency, and for links that lead out of the store; OSError where the
    folder cannot be written, before any work (a full disk ends a sweep).
    """
    concurrency = arguments.whole(remote_concurrency, "remote_concurrency", 1)
    store = folder if isinstance(folder, Store) else Store(folder)
    check_folder(store.folder)
    if not isinstance(vlm, VLM):
        vlm = load(vlm)
    planned = plan(vlm, jobs, settings=settings, shard=shard)
    from .display import display

    store.tidy()
    done = Swept(store, keys=frozenset(key for chunk in planned.chunks for key in chunk.keys))
    for key, job, error in planned.impossible:
        store.fail(key, job, error)
        done.failed[key] = str(error)
    left = planned.left(store)
    done.found = planned.jobs - sum(len(c.jobs) for c in left)
    done.damaged = {key: flaw for c in left for key in c.keys if (flaw := store.flaw(key))}
    if done.damaged:
        key, flaw = next(iter(done.damaged.items()))
        count = "one finished job is" if len(done.damaged) == 1 else f"{len(done.damaged)} finished jobs are"
        arguments.warn(f"in {store.folder} {count} not whole and made anew: {key}: {flaw}")
    work = _work(vlm, store, ray, concurrency)
    with display(progress, planned, done) as tell:
        try:
            work(left, done, tell)
        except KeyboardInterrupt:
            done.interrupted = True
    return done


def _work(vlm: VLM, store: Store, ray: Any, concurrency: int) -> Callable[[list[Chunk], Swept, Tell], None]:
    if ray is not None:
        if isinstance(ray, type) or not hasattr(ray, "work"):
            raise TypeError(f"ray={arguments.shown(ray)}: an nnsight_dream.sweeps.Cluster is needed, or None")
        return ray.work(vlm, store)
    if vlm.remote is not None and vlm.remote.away:
        from . import servers as remote_sweeps

        return remote_sweeps.work(vlm, store, concurrency, directions_of, settle)
    return _here(vlm, store)


def _here(vlm: VLM, store: Store) -> Callable[[list[Chunk], Swept, Tell], None]:
    """Work through chunks in this process, leaving to other processes what they hold, until nothing is left."""

    def work(left: list[Chunk], done: Swept, tell: Tell) -> None:
        while left:
            held = []
            for chunk in left:
                with store.claim(chunk.name) as mine:
                    if not mine:
                        held.append(chunk)
                    elif all(store.has(k) for k in chunk.keys):  # another process finished it meanwhile
                        done.found += len(chunk.jobs)
                        tell("found", chunk, 0)
                    else:
                        tell("begun", chunk, 0)
                        watch: Callable[..., None] = lambda step, scores, chunk=chunk: tell("step", chunk, step)  # noqa: E731
                        settle(store, chunk, run(vlm, chunk, watch), done)
                        tell("done", chunk, 0)
            if len(held) == len(left):
                time.sleep(0.5)
            left = held

    return work


def settle(store: Store, chunk: Chunk, results: Iterable[Prototype | Exception], done: Swept) -> None:
    """Keep what came of a chunk: pictures, and errors in their place; the errors first, so that no kill between the
    two lets a later sweep take a job that fails for one that was not reached."""
    fresh = []
    for key, job, result in zip(chunk.keys, chunk.jobs, results, strict=True):
        if store.has(key):
            done.found += 1
        elif isinstance(result, Exception):
            store.fail(key, job, result)
            done.failed[key] = str(result)
        else:
            fresh.append((key, job, result))
    for key, job, result in fresh:
        store.note(key, chunk.of)
        store.put(key, job, result)
        done.made += 1


def run(vlm: VLM, chunk: Chunk, watch: Callable[..., None] | None = None) -> list[Prototype | Exception]:
    """Climb a chunk: a prototype, or what it raised, for each of its jobs. Raises KeyboardInterrupt."""
    aims = list(directions_of(vlm, chunk.jobs))
    good = [(d, j) for d, j in zip(aims, chunk.jobs, strict=True) if not isinstance(d, Exception)]
    results = iter(_climbed(vlm, good, chunk.settings, watch))
    return [d if isinstance(d, Exception) else next(results) for d in aims]


def _climbed(
    vlm: VLM, good: list[tuple[Aim, Job]], settings: Settings, watch: Callable[..., None] | None
) -> list[Prototype | Exception]:
    """All together; should that raise, one by one, so that only the culprit fails."""
    if not good:
        return []
    try:
        prototypes = climb_pairs(vlm, [(d, j.seed) for d, j in good], settings, watch)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if len(good) == 1:
            return [error]
        return [r for pair in good for r in _climbed(vlm, [pair], settings, None)]
    if any(p.interrupted for p in prototypes):
        raise KeyboardInterrupt
    keep_reach(vlm, prototypes, [d for d, _ in good], settings)
    return list(prototypes)


def estimate(vlm: VLM, planned: Plan, store: Store | None = None) -> float | None:
    """Seconds that the rest of a plan will take here, or None where that is not known; see `sweep_time.estimate`."""
    from . import duration as sweep_time

    return sweep_time.estimate(vlm, planned, store)
