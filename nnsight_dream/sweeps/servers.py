"""Sweeps of a remote model: several jobs in flight, their ids in the store, so that a killed client loses none.

Each ascent is a detached job. Its id is written before it is waited for; whoever sweeps the same folder next collects
it, done or still running, in place of sending it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import torch

from ..engine import jobs as shipped_jobs
from ..remote import run
from ..remote.client import TRIES, WAITS, send_detached, wait_for
from ..remote.errors import Lost, ServerError
from ..synthesis.ascent import prototypes
from ..synthesis.notes import opened, sealed
from ..synthesis.prototype import Prototype

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from ..synthesis.ascent import Ascent
    from ..synthesis.request import Aim
    from .jobs import Job
    from .store import Store


Results = list[Prototype | Exception]


def work(
    vlm: VLM, store: Store, concurrency: int, directions: Callable[..., Any], settle: Callable[..., None]
) -> Callable[[list[Any], Any, Callable[..., None]], None]:
    """What works through chunks on a server, `concurrency` at once; the last two arguments are `sweeps`' own."""

    def works(left: list[Any], done: Any, tell: Callable[..., None]) -> None:
        while left:
            held = []
            for chunk, results in _in_flight(vlm, store, left, concurrency, directions, tell):
                if results is None:
                    held.append(chunk)
                else:
                    settle(store, chunk, results, done)
                    tell("done", chunk, 0)
            if len(held) == len(left):
                time.sleep(0.5)
            left = held

    return works


def _in_flight(
    vlm: VLM, store: Store, left: list[Any], concurrency: int, directions: Callable[..., Any], tell: Callable[..., None]
) -> Iterator[tuple[Any, Results | None]]:
    """(chunk, what came of it) as they end; None where another process is at it."""
    stop = threading.Event()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="ascent") as pool:
        waiting: dict[Future[Results | None], Any] = {}
        queue = list(left)
        try:
            while queue or waiting:
                while queue and len(waiting) < concurrency:
                    chunk = queue.pop(0)
                    tell("begun", chunk, 0)
                    waiting[pool.submit(_claimed, vlm, store, chunk, directions, stop)] = chunk
                ready, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield waiting.pop(future), future.result()
        finally:
            stop.set()  # threads end at their next question; jobs on the server go on, and are collected later


def _claimed(
    vlm: VLM, store: Store, chunk: Any, directions: Callable[..., Any], stop: threading.Event
) -> Results | None:
    with store.claim(chunk.name) as mine:
        if not mine:
            return None
        if all(store.has(key) for key in chunk.keys):
            return [store_entry(store, key) for key in chunk.keys]
        return _served(vlm, store, chunk, directions, stop)


def store_entry(store: Store, key: str) -> Prototype:
    """A prototype that is there already."""
    return Prototype.load(store.place(key))


def _served(vlm: VLM, store: Store, chunk: Any, directions: Callable[..., Any], stop: threading.Event) -> Results:
    aims: list[Aim | Exception] = list(directions(vlm, chunk.jobs))
    good = [(d, j) for d, j in zip(aims, chunk.jobs, strict=True) if not isinstance(d, Exception)]
    results = iter(_together(vlm, store, chunk.name, good, chunk.settings, stop) if good else [])
    return [d if isinstance(d, Exception) else next(results) for d in aims]


def _together(
    vlm: VLM, store: Store, name: str, good: list[tuple[Aim, Job]], settings: Any, stop: threading.Event
) -> Results:
    """All in one ascent; should that raise, one by one, so that only the culprit fails."""
    from ..synthesis.prepared import prepare

    try:
        (ascent,) = prepare(vlm, [(d, j.seed) for d, j in good], settings)
        return list(recorded(ascent, store, name, stop))
    except ServerError as error:
        return [error] * len(good)  # no job's fault
    except Exception as error:
        if len(good) == 1:
            return [error]
        return [r for i, pair in enumerate(good) for r in _together(vlm, store, f"{name}-{i}", [pair], settings, stop)]


def recorded(ascent: Ascent, store: Store, name: str, stop: threading.Event) -> list[Prototype]:
    """The prototypes of an ascent whose jobs are recorded in a store under a name; goes on where a record ends."""
    where = str(ascent.vlm.remote)
    for trial in range(TRIES):
        try:
            return _pieces(ascent, store, name, where, stop)
        except Lost:
            store.drop_job(name)
            if trial + 1 == TRIES:
                raise
            time.sleep(WAITS[trial])
        except Exception:
            store.drop_job(name)
            raise
    raise AssertionError


def _pieces(ascent: Ascent, store: Store, name: str, where: str, stop: threading.Event) -> list[Prototype]:
    def check(state: str) -> None:
        if stop.is_set():
            raise KeyboardInterrupt

    job = store.kept_job(name, where)
    while True:
        sent_here = job is None
        if job is None:
            note = sealed(ascent.note, ascent.history)
            job = send_detached(ascent.vlm, run.payload(ascent.vlm, shipped_jobs.ascent, ascent.piece(note)))
            store.keep_job(name, where, job)
        try:
            pieces = wait_for(ascent.vlm, job, check)
        except LookupError:
            if sent_here:
                raise Lost(f"{where} no longer knows job {job}") from None
            pieces = None  # an old record's: done long ago and thrown away there
        if pieces is None:
            job = None
            continue
        if not sent_here:
            ascent.history = opened(pieces.get("note") if isinstance(pieces, dict) else None, job)["history"]
        if ascent.take(pieces):
            store.drop_job(name)
            return prototypes(ascent.note, torch.cat(ascent.history), pieces)
        job = None
