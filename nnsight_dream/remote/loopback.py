"""`remote="local"`: a payload received as a server receives it, without this package, on the model in hand."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import linecache
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .payload import PACKAGE

if TYPE_CHECKING:
    from .model import Model


Watch = Callable[[int, Any], None]


STEP = "@nnsight-dream "


_READING = threading.Lock()


@contextlib.contextmanager
def _package_absent() -> Iterator[None]:
    """Within the block this thread can import nothing of this package, as on a server; other threads can."""
    me = threading.get_ident()
    with _READING:
        real = builtins.__import__

        def absent(name: str, *args: Any, **keywords: Any) -> Any:
            if threading.get_ident() == me and name.split(".")[0] == PACKAGE:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *args, **keywords)

        builtins.__import__ = absent
        try:
            yield
        finally:
            builtins.__import__ = real


def receive(vlm: Model, blob: bytes, watch: Watch | None) -> Any:
    """Receive a payload as a server does, which has not this package, and run it on the model in hand."""
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.tracer import _saves, dec, inc

    model = vlm.model
    objects = {"Interleaver": model.interleaver} | {f"Module:{e.path}": e._module for e in model.modules()}
    sources = dict(linecache.cache)  # those that are sent would take the place of files of the same name
    lines = Lines(watch)
    with vlm.quiet():
        try:
            with _package_absent():
                tracer = RequestModel.deserialize(blob, objects, False)
            with contextlib.redirect_stdout(lines):
                inc()
                try:
                    tracer.execute(tracer.info.code)
                    results = {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in _saves()}
                finally:
                    dec()
        finally:
            lines.close()
            linecache.cache.clear()
            linecache.cache.update(sources)
    return results["out"]


class Lines(io.TextIOBase):
    """What a job prints, line by line: steps go to `watch`, other lines to what shows them."""

    def __init__(self, watch: Watch | None):
        self.watch, self.rest, self.before, self.thread = watch, "", sys.stdout, threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self.thread:  # of another thread, which goes on beside the job
            return self.before.write(text)
        *lines, self.rest = (self.rest + text).split("\n")
        with contextlib.redirect_stdout(self.before):  # what `watch` prints is no line of the job
            for line in lines:
                forward_line(line, self.watch)
        return len(text)


def forward_line(line: str, watch: Watch | None) -> None:
    """Pass on one line that a job printed."""
    if line.startswith(STEP):
        step, scores = json.loads(line[len(STEP) :])
        if watch is not None:
            import torch

            watch(step, torch.tensor(scores))
    elif line.strip():
        show = getattr(watch, "status", None)
        if show is not None:
            show("", line)
        elif "Warning" in line:
            warnings.warn(f"said by the job: {line.strip()}", stacklevel=2)
