"""Sweeps over a Ray cluster: a model in each worker, chunks handed out as workers get free, lost workers replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .store import Store
from .vlm import VLM

if TYPE_CHECKING:
    from .sweeps import Chunk, Swept, Tell


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
        return lambda left, done, tell: self._work(left, done, tell, store, vlm.weights_tag)

    def _work(self, left: list[Chunk], done: Swept, tell: Tell, store: Store, tag: Callable[[Any], str]) -> None:
        ray = _ray()
        from .sweeps import settle

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
                    busy[worker.run.remote(chunk, tag(chunk.jobs[0].layer))] = (worker, chunk, attempt)
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

        from .vlm import load

        torch.set_num_threads(threads)
        self.vlm = load(model, **options)

    def run(self, chunk: Chunk, tag: str) -> list[Any]:
        """Pictures, or errors in their place."""
        from .sweeps import run

        here = self.vlm.weights_tag(chunk.jobs[0].layer)
        if here != tag:
            raise ValueError(
                f"this worker's {self.vlm.id!r} has other weights than the planner's: is it another revision?"
            )
        return [_portable(r) for r in run(self.vlm, chunk)]


def _portable(result: Any) -> Any:
    """Errors of any class travel as plain ones: a class may not be importable, or not pickle, on the other side."""
    return RuntimeError(f"{type(result).__name__}: {result}") if isinstance(result, Exception) else result


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("sweeps over a cluster need Ray: pip install 'nnsight-dream[ray]'") from error
    return ray
