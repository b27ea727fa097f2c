"""Running a job where a model is: here, here by way of a server's path ("local"), or on a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..engine.plain import on_cpu
from ..state import interventions
from ..state.nnsight_import import import_nnsight
from .loopback import receive
from .payload import by_source, named_modules, plain, refuse_strange

if TYPE_CHECKING:
    from .loopback import Watch
    from .model import Model


def run(vlm: Model, work: Callable[[Any, Any], Any], given: Any, watch: Watch | None = None) -> Any:
    """The result of work(model, given) where the model is.

    In place nothing is pickled: what is given may hold closures and pictures, and tensors stay where they are. Raises
    what the job raised, or RuntimeError for a server's trouble; see `remote.errors`.

    work    a function of `engine.jobs`; given   the record that it takes, of `engine.plain`
    watch   is given each step of an ascent and its scores (J,)
    """
    remote = vlm.remote
    if remote is None:
        if hasattr(given, "tell"):
            given = dataclasses.replace(given, tell=watch or _silent)
        with vlm.quiet():
            return work(vlm.model, given)
    if remote.away and (own := interventions.hooks(vlm.hf)):
        raise ValueError(
            f"a hook is registered on {own[0][0] or 'all modules'}, and hooks do not travel to {remote}: remove it "
            "(handle.remove()), and store an edit instead: with vlm.model.edit(inplace=True): ..."
        )
    blob = payload(vlm, work, given)
    if remote.away:
        from .client import watched

        return watched(vlm, blob, watch)
    return receive(vlm, blob, watch)


def _silent(step: int, scores: Any) -> None:
    pass


def payload(vlm: Model, work: Callable[[Any, Any], Any], given: Any) -> bytes:
    """What is sent: one session whose body is a call of `work`. Raises TypeError for what cannot travel."""
    import_nnsight()
    import nnsight
    from nnsight.ndif import pull_env
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.backend import Backend

    blobs: list[bytes] = []

    class Keep(Backend):
        def __call__(self, tracer: Any) -> None:
            pull_env()  # the user's own modules go by source too
            with by_source():
                blobs.append(RequestModel.serialize(tracer, False))

    model, given = vlm.model, plain(given)
    with model.session(backend=Keep()):
        out = nnsight.save(on_cpu(work(model, given)))  # noqa: F841
    refuse_strange(named_modules(blobs[0]), "what is sent")
    return blobs[0]
