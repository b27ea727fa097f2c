"""What a sweep shows while it works: a bar in a terminal or notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ..synthesis.progress import bar, is_live

EVERY = 30.0  # seconds between plain lines


@contextmanager
def display(progress: bool | None, planned: Any, done: Any, out: TextIO | None = None) -> Iterator[Callable[..., None]]:
    """Yields a function to call at each event: ("begun" | "step" | "done" | "found", chunk, step from 0)."""
    out = out or sys.stderr
    if progress is False:
        yield lambda event, chunk, step: None
        return
    live = is_live(progress, out)
    counted = _Count(planned, done)
    if not live:
        lines = _Lines(counted, out)
        yield lines.tell
        print(f"sweep: {done}", file=out, flush=True)
        return
    with bar("sweep", planned.jobs, out) as progress_bar:
        progress_bar.at(done.found, counted.beside_a_bar())

        def tell(event: str, chunk: Any, step: int) -> None:
            counted.tell(event, chunk, step)
            progress_bar.at(counted.pictures, counted.beside_a_bar())

        yield tell
    print(f"sweep: {done}", file=out, flush=True)


class _Count:
    """How far a sweep is, how fast, and how long it will take."""

    def __init__(self, planned: Any, done: Any):
        self.planned, self.done = planned, done
        self.running: dict[str, tuple[int, float]] = {}  # jobs of a chunk, share of its steps that is done
        self.began, self.there = time.monotonic(), done.found

    def tell(self, event: str, chunk: Any, step: int) -> None:
        if event in ("done", "found"):
            self.running.pop(chunk.name, None)
        else:
            share = (step + 1) / max(1, chunk.settings.steps) if event == "step" else 0.0
            self.running[chunk.name] = (len(chunk.jobs), share)

    @property
    def pictures(self) -> float:
        """Finished and failed jobs, and the shares of those under way."""
        under_way = sum(jobs * share for jobs, share in self.running.values())
        return self.done.found + self.done.made + len(self.done.failed) + under_way

    @property
    def speed(self) -> float:
        """Pictures a second."""
        return (self.pictures - self.there) / max(1e-9, time.monotonic() - self.began)

    def beside_a_bar(self) -> str:
        """What the bar, its count and its time do not say."""
        failed = [f"{len(self.done.failed)} failed"] if self.done.failed else []
        return ", ".join([*failed, *([f"{60 * self.speed:.1f} a minute"] if self.speed > 0 else [])])

    def __str__(self) -> str:
        speed = self.speed
        running = sum(jobs for jobs, _ in self.running.values())
        message = (
            f"{self.done.found + self.done.made} of {self.planned.jobs} done, {running} running, "
            f"{len(self.done.failed)} failed"
        )
        if speed <= 0:
            return message
        left = (self.planned.jobs - self.pictures) / speed
        return f"{message}, {60 * speed:.1f} a minute, {_time(left)} left"


class _Lines:
    """One line when something is finished, and no more often than every EVERY seconds in between."""

    def __init__(self, counted: _Count, out: TextIO):
        self.counted, self.out, self.last = counted, out, time.monotonic()

    def tell(self, event: str, chunk: Any, step: int) -> None:
        self.counted.tell(event, chunk, step)
        if event == "done" or time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            print(f"sweep: {self.counted}", file=self.out, flush=True)


def _time(seconds: float) -> str:
    minutes, left = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}"
