"""The one progress bar, for climbs, judges and sweeps: rich's in a terminal, HTML in a notebook, nothing elsewhere."""

from __future__ import annotations

import html
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

import numpy as np
import torch
from PIL import Image

from .. import arguments
from .blocks import Tiles, enlarged, image_tag, shows_blocks

Watch = Callable[[int, torch.Tensor], None] | Callable[[int, torch.Tensor, Sequence[Image.Image]], None]


class Bar(Protocol):
    """A progress display."""

    def at(self, completed: float, note: str = "") -> None:
        """Show that so many are done, and a few words."""
        ...

    def line(self, text: str) -> None:
        """Show a line by itself."""
        ...

    def stop(self) -> None:
        """Leave the screen alone from here on."""
        ...


def in_notebook() -> bool:
    """Whether a notebook shows what this process prints."""
    return "ipykernel" in sys.modules


def is_live(progress: Any, out: TextIO | None = None) -> bool:
    """Whether a bar is wanted: True, False, or None for where there is a terminal or notebook.

    Raises TypeError for anything else.
    """
    if progress is not None and not isinstance(progress, (bool, np.bool_)):
        form = "True, False, None, or a function of the step and the scores, is"
        raise TypeError(f"progress={arguments.shown(progress)}: {form} needed")
    return (out or sys.stderr).isatty() or in_notebook() if progress is None else bool(progress)


@contextmanager
def bar(name: str, total: float, out: TextIO | None = None, keep: bool = False) -> Iterator[Bar]:
    """A bar from 0 to `total`, taken away at the end of the block unless it is to be kept."""
    out = out or sys.stderr
    if in_notebook() and not out.isatty():
        notebook_bar = _NotebookBar(name, total)
        try:
            yield notebook_bar
        finally:
            notebook_bar.stop()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Pictured(Progress):
        images: Sequence[Image.Image] = ()

        def get_renderables(self) -> Iterator[Any]:
            yield from super().get_renderables()
            if self.images:
                yield Tiles([[(image, ()) for image in self.images]])

    text = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False)
    columns = (text[0], BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(compact=True), text[1])
    with Pictured(*columns, console=Console(file=out), transient=not keep) as bars:
        yield _TerminalBar(bars, bars.add_task(name, total=total, note=""))


class _TerminalBar:
    def __init__(self, bars: Any, task: Any):
        self.bars, self.task = bars, task
        self.shows = shows_blocks(bars.console)

    def at(self, completed: float, note: str = "") -> None:
        self.bars.update(self.task, completed=completed, note=note)

    def line(self, text: str) -> None:
        self.bars.console.print(text, highlight=False, markup=False)

    def show(self, images: Sequence[Image.Image]) -> None:
        """Pictures to show below the bar."""
        self.bars.images = images[:3]

    def stop(self) -> None:
        self.bars.stop()


class _NotebookBar:
    """HTML that a notebook shows anew a few times a second; it needs no widgets."""

    EVERY = 0.3  # seconds
    shows = True

    def __init__(self, name: str, total: float):
        from IPython.display import HTML, display

        self.name, self.total, self.html = name, total, HTML
        self.began = self.last = time.monotonic()
        self.lines: list[str] = []
        self.images: Sequence[Image.Image] = ()
        self.handle = display(HTML(f"{html.escape(name)} ..."), display_id=True)

    def at(self, completed: float, note: str = "") -> None:
        now = time.monotonic()
        if now - self.last < self.EVERY and completed < self.total:
            return
        self.last = now
        left = (now - self.began) * (self.total - completed) / max(completed, 1e-9)
        some = "".join(image_tag(enlarged(image, 96)) for image in list(self.images)[:8])
        words = "".join(f"<div>{html.escape(line)}</div>" for line in self.lines)
        meter = f'<progress value="{completed}" max="{self.total}"></progress>'
        status = f"{self.name} {completed:.0f} of {self.total:.0f}, {in_words(left)} left"
        self.handle.update(self.html(f"{words}<div>{meter} {html.escape(status)} {html.escape(note)}</div>{some}"))

    def line(self, text: str) -> None:
        self.lines = [*self.lines[-4:], text]

    def show(self, images: Sequence[Image.Image]) -> None:
        """Pictures to show below the bar."""
        self.images = images

    def stop(self) -> None:
        self.handle.update(self.html("<br>".join(map(html.escape, self.lines))))


def in_words(seconds: float) -> str:
    """A time in words.

    >>> in_words(6.2), in_words(200), in_words(9000)
    ('6 seconds', '3.3 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} second{'s' if round(seconds) > 1 else ''}"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


@contextmanager
def watching(progress: bool | Watch | None, total: int, forecast: Callable[[], str] = str) -> Iterator[Any]:
    """What is called at each step: the caller's function, a bar, or nothing. Raises TypeError for another `progress`.

    forecast   called where there is a bar: a line to show before the first step
    """
    if callable(progress) and not isinstance(progress, type):
        yield _with_pictures(progress)
        return
    if not is_live(progress):
        yield None
        return
    with bar("climbing", total) as progress_bar:
        if line := forecast():
            progress_bar.line(line)
        yield _BarWatch(progress_bar)


class _BarWatch:
    """Shows each step on a bar."""

    def __init__(self, progress_bar: Bar):
        self.bar, self.done, self.state = progress_bar, 0, ""
        self.shows = getattr(progress_bar, "shows", False)  # whether the pictures are wanted, see engine.optimise.climb
        self.next = 0.0  # when pictures are shown again: each time they are brought from the device

    def __call__(self, step: int, scores: torch.Tensor, pictures: torch.Tensor | None = None) -> None:
        self.done, self.state = self.done + 1, ""
        if pictures is not None and time.monotonic() >= self.next:
            show: Any = self.bar
            show.show(_images(pictures[:8]))
            self.next = time.monotonic() + 0.3
        self.bar.at(self.done, f"score {scores.mean().item():.3f}")

    def status(self, state: str, line: str) -> None:
        """Where a job on a server is, and what it prints."""
        if state:
            self.bar.at(self.done, state)
        if line:
            self.bar.line(line)

    def pause(self) -> None:
        """Leave the screen to a question."""
        self.bar.stop()

    def line(self, text: str) -> None:
        """Say something beside the bar."""
        self.bar.line(text)


def _with_pictures(call: Any) -> Any:
    """A user's function; one of three arguments is given the pictures so far too, in a list."""
    try:
        kinds = [p.kind for p in inspect.signature(call).parameters.values() if p.default is p.empty]
    except (TypeError, ValueError):
        return call
    if len([k for k in kinds if k in (0, 1)]) != 3:  # positional ones
        return call

    def watch(step: int, scores: torch.Tensor, pictures: torch.Tensor | None = None) -> None:
        call(step, scores, [] if pictures is None else _images(pictures))

    callback: Any = watch
    callback.shows = True
    return callback


def _images(pictures: torch.Tensor) -> list[Image.Image]:
    eight_bit = (pictures.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in eight_bit]
