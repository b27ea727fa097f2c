"""Sweeps: many jobs into a store, in batches, resumed where they stopped, on one machine or many."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import arguments
from .concepts import concept
from .digests import digest
from .directions import from_tensor
from .objectives import Attention, Max, Mean
from .prototype import Prototype
from .settings import Choice, Settings, checked, choose
from .store import Job, Store
from .synthesis import climb_pairs
from .vectors import Direction
from .vlm import VLM, load

Tell = Callable[[str, "Chunk", int], None]
POOLINGS = {"mean": Mean, "max": Max}


@dataclass(frozen=True)
class Chunk:
    """Jobs that are climbed together: same site, same settings. It is done whole or not at all.

    What is together is decided by the list of jobs alone, never by what is left of it: so an interrupted sweep, a
    sharded one and one over many workers give the same bits as one that ran through.
    """

    keys: tuple[str, ...]
    jobs: tuple[Job, ...]
    settings: Settings

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
        """Chunks of which anything is missing."""
        return [c for c in self.chunks if not all(store.has(k) for k in c.keys)]


@dataclass
class Swept:
    """What a sweep did: how many jobs were `made`, were there (`found`), and `failed`, by key with the error."""

    store: Store
    made: int = 0
    found: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        """Whether every job is there."""
        return not self.failed and not self.interrupted

    def __str__(self) -> str:
        stopped = ", interrupted" if self.interrupted else ""
        return f"{self.made} made, {self.found} there before, {len(self.failed)} failed{stopped}; {self.store.folder}"


def jobs_of(
    concepts: Iterable[tuple[str, str, str]],
    layers: Sequence[int | str] | int | str,
    *,
    seeds: Sequence[int] | int = (0,),
    poolings: Sequence[str] | str = ("",),
    controls: int = 0,
) -> list[Job]:
    """Every concept (name, category, prompt) at every layer, for every seed and pooling.

    layers, seeds, poolings   one, or a list of them
    controls   that many of the concepts, evenly spread, are also made with a random direction in their place

    Raises TypeError for concepts of another form, ValueError for nothing to do and for more controls than concepts.

    >>> import nnsight_dream as nd
    >>> [(j.concept, j.layer) for j in nd.jobs_of([("fox", "animal", ""), ("calm", "", "calm sea")], [1, 4])]
    [('fox', 1), ('calm', 1), ('fox', 4), ('calm', 4)]
    """
    named = _concepts(concepts)
    layers, seeds, poolings = _axes(layers, seeds, poolings)
    if not named or not layers or not seeds or not poolings:
        raise ValueError("nothing to do: at least one concept, layer, seed and pooling are needed")
    if not arguments.is_whole(controls) or not 0 <= controls <= len(named):
        raise ValueError(f"controls={arguments.shown(controls)}: from 0 to the number of concepts, {len(named)}")
    spread = {round(i * len(named) / controls) for i in range(controls)} if controls else set()
    return [
        Job(name, category, layer, seed, prompt, control, pooling)
        for layer in layers
        for pooling in poolings
        for seed in seeds
        for control in ("", "random")
        for i, (name, category, prompt) in enumerate(named)
        if not control or i in spread
    ]


FORM = (
    "concepts= is a list of (name, category, prompt), such as [('octopus', 'animal', '')], and layers= such as [1, 4]"
)


def _concepts(concepts: Any) -> list[tuple[str, str, str]]:
    try:
        items = arguments.listed(concepts, "concepts", "")
    except TypeError:
        raise TypeError(f"{FORM}; got concepts={arguments.shown(concepts)}") from None
    for i, item in enumerate(items):
        three = isinstance(item, (tuple, list)) and len(item) == 3
        if not (three and all(isinstance(part, str) for part in item) and item[0].strip()):
            mend = f"; of a word alone: ({item!r}, '', '')" if isinstance(item, str) and len(item) < 80 else ""
            raise TypeError(f"{FORM}; concepts[{i}] is {arguments.shown(item)}{mend}")
    return [tuple(item) for item in items]


def _axes(layers: Any, seeds: Any, poolings: Any) -> tuple[list[Any], list[int], list[str]]:
    """Layers, seeds and poolings, of which one may stand for a list, as lists; they may be empty."""
    if isinstance(layers, str) and layers.strip().isdecimal():  # "14": the layer 14, or 1 and 4?
        raise ValueError(
            f"layers={layers!r} is a text; of one layer write layers=[{int(layers)}], of several such as layers=[1, 4]"
        )
    names, _ = arguments.several(poolings, str, "poolings", "a pooling such as 'mean', or a list of them, is")
    return (
        [] if arguments.is_empty(layers) else arguments.layers(layers, "layers")[0],
        [] if arguments.is_empty(seeds) else arguments.seeds(seeds, "seeds")[0],
        names,
    )


def plan(vlm: VLM, jobs: Iterable[Job], *, settings: Choice = None, shard: tuple[int, int] = (0, 1)) -> Plan:
    """Sort jobs into chunks; see `sweep` for the arguments and what they raise."""
    index, count = _shard(shard)
    jobs, _ = arguments.several(jobs, Job, "jobs", "a Job, or a list of them as nd.jobs_of gives, is")
    settings = checked(settings)
    groups: dict[tuple[Any, str], list[tuple[str, Job, Settings]]] = {}
    impossible: list[tuple[str, Job, Exception]] = []
    tags: dict[Any, str] = {}
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
            tags[site] = vlm.weights_tag(site)
        told = dict(model=vlm.id, revision=vlm.revision, weights=tags[site], dtype=str(vlm.dtype), settings=whole)
        told |= vlm.chosen
        groups.setdefault((site, whole), []).append((job.key(**told), job, chosen))
    chunks = []
    for members in groups.values():
        each = members[0][2].together
        for start in range(0, len(members), each):
            part = members[start : start + each]
            chunks.append(Chunk(tuple(k for k, _, _ in part), tuple(j for _, j, _ in part), part[0][2]))
    mine = impossible if index == 0 else []
    return Plan(tuple(chunks[index::count]), tuple(mine))


def _shard(shard: Any) -> tuple[int, int]:
    pair = shard if isinstance(shard, (tuple, list)) else ()
    if len(pair) != 2 or not all(map(arguments.is_whole, pair)) or not 0 <= pair[0] < pair[1]:
        raise ValueError(f"shard={arguments.shown(shard)}: (i, n) with i from 0 to n - 1 is needed")
    return int(pair[0]), int(pair[1])


def _settings(vlm: VLM, job: Job, layer: int, choice: Choice) -> Settings:
    chosen = choose(vlm, layer, choice)
    if job.pooling == "attention" and not isinstance(chosen.pooling, Attention):
        return chosen.but(pooling=Attention())
    return chosen.but(pooling=POOLINGS[job.pooling]()) if job.pooling in POOLINGS else chosen


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
    settings   for all jobs, or a function from the layer (from 1) to settings, or a preset's name, "demo" or "paper";
               the demo's or the paper's if not given
    shard      (i, n): only the i-th part of n, counted from 0; parts share a folder or have one each
    progress   True a display, False nothing, None a display in a terminal or notebook and plain lines elsewhere
    ray        an `nnsight_dream.ray_workers.Cluster`: spread over its workers
    remote_concurrency   of a model on a server: how many jobs are in flight there at once. Their ids are kept in the
               store, so that a client that was killed collects what it sent

    Stopped at any moment and called again, it goes on: what is finished is not made anew, the rest gets the same bits
    as if it had run through. Several processes may work on one folder. A job that raises is recorded, the others go on.

    Raises ValueError for a wrong shard or concurrency; OSError where the folder cannot be written (a full disk ends a
    sweep).
    """
    concurrency = arguments.whole(remote_concurrency, "remote_concurrency", 1)
    store = folder if isinstance(folder, Store) else Store(folder)
    if not isinstance(vlm, VLM):
        vlm = load(vlm)
    planned = plan(vlm, jobs, settings=settings, shard=shard)
    from .sweep_display import display

    done = Swept(store)
    for key, job, error in planned.impossible:
        store.fail(key, job, error)
        done.failed[key] = str(error)
    left = planned.left(store)
    done.found = planned.jobs - sum(len(c.jobs) for c in left)
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
            raise TypeError(f"ray={arguments.shown(ray)}: an nnsight_dream.ray_workers.Cluster is needed, or None")
        return ray.work(vlm, store)
    if vlm.remote is not None and vlm.remote.away:
        from . import remote_sweeps

        return remote_sweeps.work(vlm, store, concurrency, _directions, settle)
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
    """Keep what came of a chunk: pictures, and errors in their place."""
    for key, job, result in zip(chunk.keys, chunk.jobs, results, strict=True):
        if isinstance(result, Exception):
            store.fail(key, job, result)
            done.failed[key] = str(result)
        elif store.has(key):
            done.found += 1
        else:
            store.put(key, job, result)
            done.made += 1


def run(vlm: VLM, chunk: Chunk, watch: Callable[..., None] | None = None) -> list[Prototype | Exception]:
    """Climb a chunk: a prototype, or what it raised, for each of its jobs. Raises KeyboardInterrupt."""
    found: list[Direction | Exception] = list(_directions(vlm, chunk.jobs))
    good = [(d, j) for d, j in zip(found, chunk.jobs, strict=True) if isinstance(d, Direction)]
    results = iter(_climbed(vlm, good, chunk.settings, watch))
    return [next(results) if isinstance(d, Direction) else d for d in found]


def _climbed(
    vlm: VLM, good: list[tuple[Direction, Job]], settings: Settings, watch: Callable[..., None] | None
) -> list[Prototype | Exception]:
    """All together; should that raise, one by one, so that only the culprit fails."""
    if not good:
        return []
    try:
        made = climb_pairs(vlm, [(d, j.seed) for d, j in good], settings, watch)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if len(good) == 1:
            return [error]
        return [r for one in good for r in _climbed(vlm, [one], settings, None)]
    if any(p.interrupted for p in made):
        raise KeyboardInterrupt
    return list(made)


def _directions(vlm: VLM, jobs: Sequence[Job]) -> Iterator[Direction | Exception]:
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
        found = of[job.words]
        yield _random(vlm, job, found) if job.control and isinstance(found, Direction) else found


def _random(vlm: VLM, job: Job, like: Direction) -> Direction:
    """A random direction with the norm of another; the same for the same concept and seed, whatever else runs."""
    seed = int.from_bytes(hashlib.sha256(f"{job.concept} {job.seed}".encode()).digest()[:7], "big")
    vector = torch.randn(like.vector.shape, generator=torch.Generator().manual_seed(seed))
    vector = vector / vector.norm() * like.norm
    return from_tensor(vlm, vector, like.site, label=f"random ({job.concept})")


def estimate(vlm: VLM, planned: Plan, store: Store | None = None) -> float:
    """Seconds that the rest of a plan will take here, from two steps of one chunk at each layer and pooling."""
    left = planned.chunks if store is None else planned.left(store)
    rates: dict[tuple[Any, str], float] = {}
    total = 0.0
    for chunk in left:
        kind = (chunk.jobs[0].layer, chunk.jobs[0].pooling)
        if kind not in rates:
            rates[kind] = _seconds_a_step(vlm, chunk) / len(chunk.jobs)
        total += rates[kind] * len(chunk.jobs) * chunk.settings.steps
    return total


def _seconds_a_step(vlm: VLM, chunk: Chunk) -> float:
    spent = []
    for steps in (1, 3):
        probe = dataclasses.replace(chunk, settings=chunk.settings.but(steps=steps))
        began = time.perf_counter()
        run(vlm, probe)
        spent.append(time.perf_counter() - began)
    return max(1e-4, (spent[1] - spent[0]) / 2)
