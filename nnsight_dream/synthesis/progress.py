"""The one progress bar, for climbs, judges and sweeps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .. import arguments

Watch = Callable[[int, torch.Tensor], None]


@contextmanager
def watching(progress: bool | Watch | None, total: int) -> Iterator[Watch | None]:
    """What is given each step: the caller's function, a bar, or nothing. Raises TypeError for another `progress`."""
    if callable(progress) and not isinstance(progress, type):
        yield progress
        return
    if progress is not None and not isinstance(progress, (bool, np.bool_)):
        form = "True, False, None, or a function of the step and the scores, is"
        raise TypeError(f"progress={arguments.shown(progress)}: {form} needed")
    if progress is None:
        progress = sys.stderr.isatty() or "ipykernel" in sys.modules
    if not progress:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("climbing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("score {task.fields[score]}"),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, speed="", score="", state="")

        def watch(step: int, scores: torch.Tensor) -> None:
            speed = bar.tasks[0].speed
            per, score = f"{speed:.1f}/s" if speed else "", f"{scores.mean().item():.3f}"
            bar.update(task, advance=1, speed=per, score=score, state="")

        def said(state: str, line: str) -> None:
            """Where a job on a server is, and what it prints."""
            if state:
                bar.update(task, state=state)
            if line:
                bar.console.print(line, highlight=False, markup=False)

        callback: Any = watch
        callback.said, callback.pause = said, bar.stop
        yield watch
