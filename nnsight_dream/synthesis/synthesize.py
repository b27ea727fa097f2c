"""Synthesis: from directions and features to prototypes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from .. import arguments
from ..arguments import strict
from .ascent import batches
from .detached import send_ascent
from .film import Camera, frames_of
from .prepared import prepare
from .progress import watching
from .prototypes import Prototypes
from .request import Aim, check_aims, settled

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..models.vlm import VLM
    from .ascent import Ascent
    from .changes import Changes
    from .progress import Watch
    from .prototype import Prototype
    from .request import Order, Terms
    from .settings import Choice, Settings


Several = Sequence[Aim | Sequence[Aim]]


@overload
def synthesize(
    vlm: VLM,
    directions: Aim,
    *,
    settings: Choice = ...,
    seed: int = ...,
    terms: Terms = ...,
    progress: bool | Watch | None = ...,
    film: bool | int = ...,
    **changes: Unpack[Changes],
) -> Prototype: ...


@overload
def synthesize(
    vlm: VLM,
    directions: Aim,
    *,
    settings: Choice = ...,
    seed: Sequence[int],
    terms: Terms = ...,
    progress: bool | Watch | None = ...,
    film: bool | int = ...,
    **changes: Unpack[Changes],
) -> Prototypes: ...


@overload
def synthesize(
    vlm: VLM,
    directions: Several,
    *,
    settings: Choice = ...,
    seed: int | Sequence[int] = ...,
    terms: Terms = ...,
    progress: bool | Watch | None = ...,
    film: bool | int = ...,
    **changes: Unpack[Changes],
) -> Prototypes: ...


@strict
def synthesize(
    vlm: VLM,
    directions: Aim | Several,
    *,
    settings: Choice = None,
    seed: int | Sequence[int] = 0,
    terms: Terms = (),
    progress: bool | Watch | None = None,
    film: bool | int = False,
    **changes: Unpack[Changes],
) -> Any:
    """Climb from grey to the picture of a direction or feature; of several and several seeds together.

    directions   a Direction, a Feature, or several of either kind, also in lists of lists, as `nd.concept` gives of
               several words at several layers: `rows` of what comes back are these lists. A feature has its own
               objective (see `sae.feature`): pooling, score and centre of the settings are for directions
    settings   for all, or a function from a layer to settings, or a preset's name, "normalised", "demo" or "paper"; if
               not given, `Settings.demo()` for the bundled model and `Settings.normalised()` for others.
               `**changes` alter single choices, as in `synthesize(vlm, d, steps=50)`
    seed       one, or several: each gives a picture of its own, the same alone and in company
    terms      added to the score, one or several: `TotalVariation`, `Away`, or a callable from `Step` to (J,)
    progress   True a bar, False nothing, None a bar where there is a terminal or notebook, with a line before it about
               time, memory and device; or a callable that is given the step and the scores (J,), and if it takes three
               arguments the J pictures so far (PIL; none of a model on a server)
    film       True, or how many: pictures on the way are kept as `Prototype.film`, 24 of them

    Returns a Prototype for one direction and one seed, else Prototypes, direction by direction. Ctrl-C ends the climb
    and gives the pictures so far; of a model on a server it asks whether to leave the work there (see `submit`), and
    raises. Method: arXiv 2601.08017.

    Raises ValueError for a direction or feature of another model, width or layer; TypeError for what is no direction,
    settings or term; FloatingPointError for a score that is not finite; RuntimeError where no gradient reaches the
    picture.

    >>> import nnsight_dream as nd
    >>> vlm = nd.load("demo")
    >>> nd.synthesize(vlm, nd.concept(vlm, "octopus", layer=1), steps=2, batch=1).image.size
    (32, 32)
    """
    order = settled(vlm, directions, settings, seed, terms, {**changes})
    total, frames = sum(chosen.steps for _, chosen in batches(order.settings)), frames_of(film, vlm)
    with vlm.alone(), watching(progress, total, lambda: _forecast(vlm, order)) as watch:
        prototypes = _all(vlm, order.jobs, order.settings, order.terms, watch, frames)
        if prototypes and prototypes[-1].interrupted and hasattr(watch, "line"):
            done, steps = len(prototypes[-1].history), order.settings[-1].steps
            missing = len(order.jobs) - len(prototypes)
            more = f", and {missing} more were not begun" if missing else ""
            watch.line(f"stopped after {done} of {steps} steps: the picture is partial{more}")
    return prototypes[0] if order.single else Prototypes(prototypes, order.rows)


def _forecast(vlm: VLM, order: Order) -> str:
    from .forecast import forecast  # which times steps of `climb_pairs`

    return forecast(vlm, order)


def climb_pairs(
    vlm: VLM, pairs: Sequence[tuple[Aim, int]], settings: Settings, watch: Watch | None = None
) -> list[Prototype]:
    """A prototype for each (direction, seed); otherwise as `synthesize`."""
    check_aims(vlm, [d for d, _ in pairs])
    jobs = [(d, arguments.whole(s, "seed", 0, arguments.SEED_MOST)) for d, s in pairs]
    return _all(vlm, jobs, [settings] * len(jobs), (), watch)


def _all(
    vlm: VLM,
    jobs: list[tuple[Aim, int]],
    settings: Sequence[Settings],
    terms: Sequence[Any],
    watch: Watch | None,
    frames: int = 0,
) -> list[Prototype]:
    """The prototypes in the order of the jobs; where it is interrupted, those that there are."""
    places: list[int] = []
    prototypes: list[Prototype] = []
    with vlm.alone():
        ascents = prepare(vlm, jobs, settings, terms)
        for ascent in ascents:
            places += ascent.note["places"]
            try:
                prototypes += _climbed(ascent, watch, frames)
            except KeyboardInterrupt:
                getattr(watch, "pause", lambda: None)()
                if vlm.remote is None or not vlm.remote.away or not leaves():
                    raise
                ids = [send_ascent(pending) for pending in (ascent, *ascents)]
                raise LeftRunning(",".join(ids), prototypes) from None
            if prototypes[-1].interrupted:
                break
    return [prototype for _, prototype in sorted(zip(places, prototypes, strict=True), key=lambda pair: pair[0])]


def _climbed(ascent: Ascent, watch: Any, frames: int) -> list[Prototype]:
    """The prototypes of an ascent, with so many pictures on the way."""
    if not frames:
        return ascent.climb(watch)
    camera = Camera(watch, frames, ascent.steps)
    prototypes = ascent.climb(camera)
    return [dataclasses.replace(p, film=camera.film(i, p.image, p.label)) for i, p in enumerate(prototypes)]


class LeftRunning(KeyboardInterrupt):
    """Ctrl-C, after which a server goes on: `job` is what `nd.collect` takes, `made` the prototypes that are there."""

    def __init__(self, job: str, made: list[Prototype]):
        self.job, self.made = job, made
        super().__init__(f"left running as job {job}; nd.collect(vlm, {job!r}) fetches it, from any process")


def leaves() -> bool:
    """After Ctrl-C: ask whether the server shall go on. False where there is no terminal to ask at.

    A watched job's result goes to its watcher alone, so what goes on is the piece that was under way, sent anew as a
    detached job.
    """
    if not (sys.stdin is not None and sys.stdin.isatty()):
        return False
    print("\nLeave it to the server, as a job to be collected later? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower().startswith("y")
    except KeyboardInterrupt:
        return False
