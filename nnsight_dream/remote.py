"""Where a model is: here, here by way of a server's path ("local"), or on a server; and running a job there.

    result = run(vlm, work, given)      work(model, given), here or there; its result is plain

What travels is source and plain data (see `shipping`), in one nnsight session a job.
"""

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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import changes, shipping
from .arguments import is_whole, shown
from .nnsight_import import import_nnsight

if TYPE_CHECKING:
    from .vlm import VLM

Watch = Callable[[int, Any], None]
STEP = "@nnsight-dream "


@dataclass(frozen=True)
class Remote:
    """Where a VLM's jobs run.

    where   "local": in this process, but sent and received as a server would; else a server's address
    steps_per_job   an ascent of more steps is cut into jobs of so many, each going on where the last one stopped
    """

    where: str
    steps_per_job: int | None = None

    @property
    def away(self) -> bool:
        """Whether weights are elsewhere."""
        return self.where != "local"

    def __str__(self) -> str:
        return self.where


def chosen(remote: bool | str, steps_per_job: int | None) -> Remote:
    """What `nd.load(remote=, steps_per_job=)` means. Raises ValueError."""
    if steps_per_job is not None and not (is_whole(steps_per_job) and steps_per_job >= 1):
        raise ValueError(f"steps_per_job={shown(steps_per_job)}: a whole number of at least 1, or None for no cut")
    if remote is True:
        import_nnsight()
        from nnsight.schema.config import CONFIG

        remote = str(CONFIG.API.HOST)
    if remote == "local" or (isinstance(remote, str) and remote.startswith(("http://", "https://"))):
        return Remote(remote.rstrip("/"), steps_per_job)
    raise ValueError(
        f"remote={remote!r}: allowed are True (the server that nnsight is set to, $NDIF_HOST), a server's address such "
        "as 'http://127.0.0.1:8001', 'local', and False"
    )


def run(vlm: VLM, work: Callable[[Any, Any], Any], given: Any, watch: Watch | None = None) -> Any:
    """The result of work(model, given) where the model is. Raises what the job raised, or RuntimeError for a server's
    trouble; see `remote_errors`.
    """
    remote = vlm.remote
    assert remote is not None
    if remote.away and (own := changes.hooks(vlm.hf)):
        raise ValueError(
            f"a hook is registered on {own[0][0] or 'all modules'}, and hooks do not travel to {remote}: remove it "
            "(handle.remove()), and store an edit instead: with vlm.model.edit(inplace=True): ..."
        )
    blob = payload(vlm, work, given)
    if remote.away:
        from .remote_jobs import watched

        return watched(vlm, blob, watch)
    return _here(vlm, blob, watch)


# -- the payload -------------------------------------------------------------------------------------------------


def payload(vlm: VLM, work: Callable[[Any, Any], Any], given: Any) -> bytes:
    """What is sent: one session whose body is a call of `work`. Raises TypeError for what cannot travel."""
    import_nnsight()
    import nnsight
    from nnsight.ndif import pull_env
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.backend import Backend

    kept: list[bytes] = []

    class Keep(Backend):
        def __call__(self, tracer: Any) -> None:
            pull_env()  # the user's own modules go by source too
            with shipping.by_source():
                kept.append(RequestModel.serialize(tracer, False))

    model, given = vlm.model, shipping.plain(given)
    with model.session(backend=Keep()):
        out = nnsight.save(work(model, given))  # noqa: F841
    shipping.refuse_strange(shipping.named_modules(kept[0]), "what is sent")
    return kept[0]


# -- here, as a server would -------------------------------------------------------------------------------------


_READING = threading.Lock()


@contextlib.contextmanager
def _package_absent() -> Iterator[None]:
    """Within the block this thread can import nothing of this package, as on a server; other threads can."""
    me = threading.get_ident()
    with _READING:
        real = builtins.__import__

        def absent(name: str, *args: Any, **named: Any) -> Any:
            if threading.get_ident() == me and name.split(".")[0] == shipping.PACKAGE:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *args, **named)

        builtins.__import__ = absent
        try:
            yield
        finally:
            builtins.__import__ = real


def _here(vlm: VLM, blob: bytes, watch: Watch | None) -> Any:
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
                    found = {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in _saves()}
                finally:
                    dec()
        finally:
            lines.close()
            linecache.cache.clear()
            linecache.cache.update(sources)
    return found["out"]


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
                told(line, self.watch)
        return len(text)


def told(line: str, watch: Watch | None) -> None:
    """Pass on one line that a job printed."""
    if line.startswith(STEP):
        step, scores = json.loads(line[len(STEP) :])
        if watch is not None:
            import torch

            watch(step, torch.tensor(scores))
    elif line.strip():
        said = getattr(watch, "said", None)
        if said is not None:
            said("", line)
        elif "Warning" in line:
            warnings.warn(f"said by the job: {line.strip()}", stacklevel=2)


def weightless(vlm: VLM, what: str) -> None:
    """Raise RuntimeError where a model's weights are on a server and `what` needs them here."""
    if vlm.remote is not None and vlm.remote.away:
        raise RuntimeError(
            f"{what} needs the weights of {vlm.id} here, and they are on {vlm.remote}; load the model without remote="
        )
