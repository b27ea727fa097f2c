"""Jobs left to a server: submitted, collected later by their id, from this process or another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..arguments import strict
from ..engine import jobs
from ..remote import run
from ..remote.client import ask_after, send_detached, wait_for
from .notes import opened
from .prepared import prepare
from .prototypes import Prototypes
from .request import settled

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..models.vlm import VLM
    from .ascent import Ascent
    from .changes import Changes
    from .prototype import Prototype
    from .request import Aim, Terms
    from .settings import Choice
    from .synthesize import Several


def send_ascent(ascent: Ascent) -> str:
    """Send all that is left of an ascent as one detached job; its id."""
    from .notes import sealed

    piece = ascent.piece(sealed(ascent.note, ascent.history), ascent.steps)
    return send_detached(ascent.vlm, run.payload(ascent.vlm, jobs.ascent, piece))


def prototypes_of(note: dict[str, Any], result: dict[str, Any]) -> list[Prototype]:
    """The prototypes of a detached ascent's result, with the note that went with it."""
    import torch

    from .ascent import prototypes
    from .notes import check_piece

    check_piece(result, len(note["rows"]))
    return prototypes(note, torch.cat([*note["history"], result["history"]]), result)


@dataclass(frozen=True, eq=False)
class RemoteJob:
    """Work that a server does while nobody watches.

    id   what `nd.collect` takes: the server's ids of all its jobs, joined by commas
    """

    vlm: VLM
    id: str

    def state(self) -> str:
        """Where it is, in the server's words: of several jobs the first that is not done. Raises what a job raised."""
        for job_id in self.id.split(","):
            try:
                words, _ = ask_after(self.vlm, job_id)
            except LookupError:
                words = "not known yet"
            if words != "completed":
                return words
        return "completed"

    def collect(self) -> Prototype | Prototypes:
        """Wait for it, and return its prototypes; see `nd.collect`."""
        return collect(self.vlm, self.id)

    def __repr__(self) -> str:
        return f"RemoteJob({self.id!r} on {self.vlm.remote})"


@strict
def submit(
    vlm: VLM,
    directions: Aim | Several,
    *,
    settings: Choice = None,
    seed: int | Sequence[int] = 0,
    terms: Terms = (),
    **changes: Unpack[Changes],
) -> RemoteJob:
    """As `synthesize`, but leave the work to the server and return at once; `collect` fetches it.

    The whole of an ascent is one job, whatever steps_per_job= says. Raises as `synthesize` does, and ValueError for a
    model that is on no server.
    """
    if vlm.remote is None or not vlm.remote.away:
        raise ValueError(f"{vlm.id} is on no server, so nothing can be left there; use nd.synthesize")
    order = settled(vlm, directions, settings, seed, terms, {**changes})
    ids = []
    for ascent in prepare(vlm, order.jobs, order.settings, order.terms):
        ascent.note["single"] = order.single
        ids.append(send_ascent(ascent))
    return RemoteJob(vlm, ",".join(ids))


@strict
def collect(vlm: VLM, job: str | RemoteJob) -> Prototype | Prototypes:
    """The prototypes of a job that was left to a server; waits until it is done.

    vlm   the model, loaded with the remote= at which it was submitted
    job   a `RemoteJob`, or its id

    Raises LookupError for an id that the server does not know, what the job raised, ValueError for another model's.
    """
    if vlm.remote is None or not vlm.remote.away:
        raise ValueError(f"{vlm.id} is on no server; load it with the remote= at which the job was submitted")
    placed: list[tuple[int, Prototype]] = []  # by place among all that was asked for
    single = False
    if not isinstance(job, (str, RemoteJob)):
        raise TypeError(f"job={arguments.shown(job)}: a RemoteJob, or its id, is needed")
    for job_id in (job.id if isinstance(job, RemoteJob) else job).split(","):
        result = wait_for(vlm, job_id.strip())
        note = opened(result.get("note") if isinstance(result, dict) else None, job_id)
        if note["model"] != vlm.id:
            raise ValueError(f"job {job_id!r} is of {note['model']!r}, not of {vlm.id!r}: load that model")
        there = prototypes_of(note, result)
        placed += zip(note["places"], there, strict=True)
        single = note["single"] and len(placed) == 1
    ordered = [prototype for _, prototype in sorted(placed, key=lambda pair: pair[0])]
    return ordered[0] if single else Prototypes(ordered)
