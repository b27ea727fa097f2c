"""The inputs of an ascent's job, and the note with which its result becomes prototypes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..directions.centres import Pictures
from ..directions.deferred import Pending
from ..directions.direction import Direction, climbable, versions
from ..engine import plain
from ..engine.optimise import Climb
from ..engine.pixels import shares
from ..engine.pooling import reported
from ..io.pictures import as_tensors
from ..models.reading import reading
from ..sae import reference
from ..sae.feature import Feature
from .ascent import Ascent, batches, hashable
from .canvases import canvas_for
from .centres import centre
from .request import Away, patterned, site_of
from .settings import Settings, as_plain

if TYPE_CHECKING:
    from ..directions.deferred import Request
    from ..models.sites import Site
    from ..models.vlm import VLM
    from .request import Aim


CUT = (
    "step {step}: no gradient reaches the picture. The server {where} runs this key's code in a sandbox, to which "
    "activations come without their graph, or something of your own (a pooling, score, term or augmentation) detaches. "
    "Gradients need a key with the 'trusted' tag, a server of your own (`pip install ndif`), or a model loaded here, "
    "without remote="
)


def prepared(
    vlm: VLM, jobs: Sequence[tuple[Direction | Feature, int]], sites: list[Site], settings: Settings, terms: Any,
    canvas: Any, record: dict[str, Any],
) -> Ascent:  # fmt: skip
    """An ascent that has not begun."""
    aims = [aim for aim, _ in jobs]
    references = list(dict.fromkeys(a.reference for a in aims if isinstance(a, Feature)))
    requests, given_aims = _aims(vlm, aims, sites, references)
    added = [_term(vlm, term) for term in terms]
    choice = settings.centre
    needed = list(dict.fromkeys([*sites, *(vlm.site(t.site) for t in terms if hasattr(t, "site"))]))
    centred = [s for s, a in zip(sites, aims, strict=True) if isinstance(a, Direction)]
    centred = list(dict.fromkeys([*centred, *(t.away[0] for t in added if t.away is not None)]))
    centres, source = _centres(vlm, centred, choice, min(16, settings.at_once))
    featured = [(s, goal.reference) for s, goal in zip(sites, given_aims, strict=True) if goal.feature is not None]
    norms = {
        (s, i): vlm.memo.norms.at(vlm, s).get(reference.key(vlm, s, references[i])) for s, i in dict.fromkeys(featured)
    }
    missing = [place for place, norm in norms.items() if norm is None]
    how = reading(vlm, needed, pictures=True)
    if vlm.remote is not None and vlm.remote.away:
        how = dataclasses.replace(how, cut=CUT.replace("{where}", vlm.remote.where))
    inputs = plain.Ascent(
        how=how,
        asked=[request.given() for request in requests],
        aims=given_aims,
        centres=centres,
        centre=source,
        centre_sites=[s for s in centred if s not in centres],
        every_centre=centred,
        every_norm=list(norms),
        norms={place: norm for place, norm in norms.items() if norm is not None},
        norms_wanted=missing,
        references={
            i: packed(vlm, reference.pictures_of(vlm, references[i])) for i in dict.fromkeys(i for _, i in missing)
        },
        pooling=settings.pooling,
        score=settings.score,
        poolings=reported(settings.pooling),
        terms=added,
        canvas=canvas,
        augment=list(settings.augment),
        plan=Climb(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(Climb)}),
        seeds=[seed for _, seed in jobs],
        grid=vlm.grid,
    )  # fmt: skip
    note = {
        "rows": [_row(vlm, aim, site, seed) for (aim, seed), site in zip(jobs, sites, strict=True)],
        "grid": vlm.grid,
        "story": {"settings": record, "versions": versions()},
        "model": vlm.id,
        "revision": vlm.revision,
        "image_size": vlm.image_size,
        "straight_through": vlm.straight_through,
        "single": False,
        "places": list(range(len(jobs))),
    }
    return Ascent(vlm, aims, inputs, note, requests, settings.steps, choice, references)


def _aims(
    vlm: VLM, aims: list[Direction | Feature], sites: list[Site], references: list[Any]
) -> tuple[list[Request], list[plain.Aim]]:
    """The requests of concept vectors that are not there yet, and each aim as a job is given it."""
    requests: list[Request] = []
    goals = []
    for aim, site in zip(aims, sites, strict=True):
        goal = plain.Aim(site)
        if isinstance(aim, Feature):
            goal.reference = references.index(aim.reference)
            goal.feature = aim.but(reference=None)  # its pictures go once for all, as pixels
            if vlm.remote is None:
                goal.feature = goal.feature.to(vlm.device)
            if len(aim.parts) > 1:
                single = [
                    goal.feature.but(parts=((1.0, latent),), objective="encoder") for _, latent in goal.feature.parts
                ]
                goal.alone = single
            goal.guard = float(aim.guard) if aim.guard is not None and aim.objective == "encoder" else None
        elif isinstance(aim, Pending) and not aim.there:
            if aim.request not in requests:
                requests.append(aim.request)
            points = [point[0] for point in reading(aim.request.vlm, aim.request.sites).points]
            goal.asked = (requests.index(aim.request), points.index(site), aim.row)
        else:
            goal.vector = climbable(aim.vector)
        goals.append(goal)
    return requests, goals


def _term(vlm: VLM, term: Any) -> plain.Added:
    if isinstance(term, Away):
        towards = climbable(term.direction.vector)
        return plain.Added(away=(vlm.site(term.site), towards, term.weight, term.pooling))
    return plain.Added(call=term)


def _centres(vlm: VLM, sites: list[Site], choice: Any, at_once: int) -> tuple[dict[Site, torch.Tensor], Any]:
    """Centres that are known, and the source of the others in a job: an object with `pictures`, or pictures."""
    if isinstance(choice, torch.Tensor) or not (isinstance(choice, Pictures) or hasattr(choice, "pictures")):
        return {site: centre(vlm, site, choice, at_once) for site in sites}, []
    key = hashable(choice)
    centres = {
        s: memo[s, key, vlm.device, vlm.dtype]
        for s in sites
        if (s, key, vlm.device, vlm.dtype) in (memo := vlm.memo.centres.at(vlm, s))
    }
    if len(centres) == len(sites):
        return centres, []
    return centres, packed(vlm, as_tensors(list(choice.images), "images")) if isinstance(choice, Pictures) else choice


def packed(vlm: VLM, pictures: list[torch.Tensor]) -> list[torch.Tensor]:
    """Pictures to be sent as 8-bit values where that loses nothing to speak of (1e-6): a quarter of the size."""
    if vlm.remote is None:
        return pictures
    smaller = []
    for picture in pictures:
        eight = (picture * 255).round().byte()
        smaller.append(eight if (shares(eight) - picture).abs().max() < 1e-6 else picture)
    kinds = {picture.dtype for picture in smaller}
    return smaller if len(kinds) == 1 else list(pictures)


def _row(vlm: VLM, aim: Direction | Feature, site: Site, seed: int) -> dict[str, Any]:
    story = aim.story() if isinstance(aim, Feature) else {"model": aim.model, **aim.provenance}
    if isinstance(aim, Direction) and not (isinstance(aim, Pending) and not aim.there):
        story = {"model": aim.model, "norm": aim.norm, **aim.provenance}
    kind = "feature" if isinstance(aim, Feature) else "direction"
    return {"label": aim.label, "site": site, "hf_name": vlm.hf_name(site), "seed": seed, "story": story, "kind": kind}


def prepare(
    vlm: VLM, jobs: list[tuple[Aim, int]], settings: Settings | Sequence[Settings], terms: Sequence[Any] = ()
) -> Iterator[Ascent]:
    """The ascents that all jobs come to, each prepared when the one before has brought its results.

    settings   of all jobs, or of each. An ascent's note says the `places` of its jobs among all
    """
    each = [settings] * len(jobs) if isinstance(settings, Settings) else settings
    for places, chosen in batches(each):
        part = [(patterned(vlm, jobs[place][0], chosen.pattern), jobs[place][1]) for place in places]
        record = chosen.record() | {"terms": [as_plain(t) for t in terms]}
        canvas = canvas_for(vlm, chosen.canvas)
        ascent = prepared(vlm, part, [site_of(vlm, d) for d, _ in part], chosen, terms, canvas, record)
        ascent.note["places"] = places
        yield ascent
