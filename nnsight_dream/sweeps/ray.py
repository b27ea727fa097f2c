"""Sweeps over a Ray cluster: a model in each worker, chunks handed out as workers get free, lost workers replaced."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from .store import Store
    from .sweep import Chunk, Swept, Tell


@dataclass(frozen=True)
class Cluster:
    """Workers of a Ray cluster.

    model      what each worker gives to `nd.load`: "demo", a hub id, or a folder that every machine has
    workers    how many; each holds one model
    address    of a running cluster ("auto", "ray://host:10001"), or None to start one on this machine
    resources  of one worker, as Ray takes them: {"num_cpus": 1, "num_gpus": 1}
    attempts   how often a chunk is tried when workers are lost over it
    options    further arguments of `nd.load`
    device     of each worker's model, "cuda" or "cpu"; None: the best that Ray lets a worker see, so a GPU for those
               with num_gpus

    Size of pictures, type of weights, surrogate gradient and the first layer's number are those of the model that the
    sweep is planned with, unless `options` say otherwise; a worker whose model then differs from the planner's in what
    decides about pictures ends the sweep with a ValueError before it makes any.

    Results come back to the caller, who alone writes the store: workers need no shared disk.
    """

    model: str
    workers: int = 1
    address: str | None = None
    resources: dict[str, float] = field(default_factory=lambda: {"num_cpus": 1})
    attempts: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    device: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            raise TypeError(f"model={self.model!r}: a worker loads the model by name: 'demo', a hub id or a folder")
        for name in ("workers", "attempts"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: a whole number of at least 1 is needed")
        if self.device is not None:
            if self.options.get("device", self.device) != self.device:
                raise ValueError(f"device={self.device!r} and options={self.options!r} say two devices: give one")
            object.__setattr__(self, "options", {**self.options, "device": self.device})

    def work(self, vlm: VLM, store: Store) -> Callable[[list[Chunk], Swept, Tell], None]:
        """What a sweep calls with the chunks that are left. Raises ValueError for a model of another name."""
        if vlm.id != self.model:
            raise ValueError(f"the sweep is planned for {vlm.id!r}, but the workers would load {self.model!r}")
        options = {k: v for k, v in _like(vlm).items() if k not in self.options}
        worker = dataclasses.replace(self, options={**options, **self.options})
        return lambda left, done, tell: worker._work(left, done, tell, store, lambda layer: whole_identity(vlm, layer))

    def _work(
        self, left: list[Chunk], done: Swept, tell: Tell, store: Store, identity: Callable[[Any], dict[str, Any]]
    ) -> None:
        ray = _ray()
        from .sweep import settle

        if not left:
            return
        started = not ray.is_initialized()
        if started:
            ray.init(address=self.address, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
        waiting = [(chunk, 1) for chunk in reversed(left)]
        make = ray.remote(_Worker).options(**self.resources).remote
        threads = max(1, int(self.resources.get("num_cpus", 1)))
        free = [make(self.model, self.options, threads) for _ in range(min(self.workers, len(left)))]
        busy: dict[Any, tuple[Any, Chunk, int]] = {}
        arrived: list[tuple[Chunk, list[Any]]] = []
        try:
            while waiting or busy or arrived:
                while waiting and free:
                    (chunk, attempt), worker = waiting.pop(), free.pop()
                    busy[worker.run.remote(chunk, identity(chunk.jobs[0].layer))] = (worker, chunk, attempt)
                    tell("begun", chunk, 0)
                while arrived:  # the workers are at the next chunks meanwhile
                    chunk, results = arrived.pop()
                    settle(store, chunk, results, done)
                    tell("done", chunk, 0)
                ready = ray.wait(list(busy), num_returns=1, timeout=1.0)[0] if busy else []
                for ref in ready:
                    worker, chunk, attempt = busy.pop(ref)
                    try:
                        results = ray.get(ref)
                    except (
                        ray.exceptions.RayTaskError
                    ) as error:  # the worker lives: the fault is in the chunk or the model
                        free.append(worker)
                        if isinstance(error.cause, UnlikeModel):
                            raise ValueError(str(error.cause)) from None
                        results = [RuntimeError(str(error.cause or error))] * len(chunk.jobs)
                    except ray.exceptions.RayError as error:  # the worker is lost
                        free.append(make(self.model, self.options, threads))
                        if attempt < self.attempts:
                            waiting.append((chunk, attempt + 1))
                            continue
                        lost = RuntimeError(f"workers were lost over it {attempt} times: {type(error).__name__}")
                        results = [lost] * len(chunk.jobs)
                    else:
                        free.append(worker)
                    arrived.append((chunk, results))
        finally:
            for worker in [*free, *(w for w, _, _ in busy.values())]:
                ray.kill(worker)
            if started:
                ray.shutdown()


class _Worker:
    """Holds a model in a process of its own."""

    def __init__(self, model: str, options: dict[str, Any], threads: int):
        import torch

        from ..models.load import load

        torch.set_num_threads(threads)
        self.vlm = load(model, **options)

    def run(self, chunk: Chunk, expected: dict[str, Any]) -> list[Any]:
        """Pictures, or errors in their place. Raises UnlikeModel where this model is not the planner's."""
        from .sweep import run

        here = whole_identity(self.vlm, chunk.jobs[0].layer)
        if unlike := [name for name in {**expected, **here} if expected.get(name) != here.get(name)]:
            pairs = [f"{n} {_short(here.get(n))}, planned with {_short(expected.get(n))}" for n in unlike]
            raise UnlikeModel(
                f"the model of a worker, {self.vlm.id!r}, is not that of the sweep: {'; '.join(pairs)}. Plan with the "
                "same, or give Cluster(options=...) what nd.load needs; other weights mean another revision or file"
            )
        return [_portable(r) for r in run(self.vlm, chunk)]


class UnlikeModel(ValueError):
    """A worker's model differs from the planner's in what decides about pictures."""


def whole_identity(vlm: VLM, layer: Any) -> dict[str, Any]:
    """What decides about a model's pictures of words at a layer, on whatever machine it is loaded, as plain data."""
    from .sweep import identity

    prompt = vlm.image_prompt
    text = f"{vlm.chat_template} {prompt.text} {prompt.ids.tolist()} {vlm.pixels}"
    return {
        **identity(vlm, vlm.site(layer)),
        "site": vlm.hf_name(vlm.site(layer)),
        "image_size": list(vlm.image_size),
        "straight_through": vlm.straight_through,
        "template, prompt and pixels": hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:12],
    }


def _like(vlm: VLM) -> dict[str, Any]:
    """Options of `nd.load` that make a model like this one."""
    options: dict[str, Any] = {"dtype": vlm.dtype, "first_layer": vlm.first_layer}
    if vlm.own_size is not None:
        options["image_size"] = tuple(vlm.image_size)
    if vlm.straight_through is not None:
        options["straight_through"] = vlm.straight_through
    if vlm.checkpoint_tower:
        options["checkpoint_tower"] = True
    return options


def _short(value: Any) -> str:
    return "none" if value is None else str(value)


def _portable(result: Any) -> Any:
    """Errors of any class travel as plain ones: a class may not be importable, or not pickle, on the other side."""
    return RuntimeError(f"{type(result).__name__}: {result}") if isinstance(result, Exception) else result


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("sweeps over a cluster need Ray: pip install 'nnsight-dream[ray]'") from error
    return ray
