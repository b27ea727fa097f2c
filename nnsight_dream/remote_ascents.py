"""Ascents of remote models: what a job is given, pieces of a long one, and prototypes of what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from . import feature_climb, reference, remote, shipped_jobs
from .asked import Pending
from .directions import Direction, versions
from .features import Feature
from .objectives import Away, Pictures, reported
from .pictures import as_tensors
from .prototype import Prototype, heat_map
from .remote_notes import check_heat, check_piece
from .shipped import Plain
from .sites import Site
from .trace import Climb, reading
from .vectors import climbable
from .vlm import VLM

if TYPE_CHECKING:
    from .synthesis import Settings

CUT = (
    "step {step}: no gradient reaches the picture. The server {where} runs this key's code in a sandbox, to which "
    "activations come without their graph, or something of your own (a pooling, score, term or augmentation) detaches. "
    "Gradients need a key with the 'trusted' tag, a server of your own (`pip install ndif`), or a model loaded here, "
    "without remote="
)


@dataclass
class Ascent:
    """Jobs (direction or feature, seed) that are climbed together, and how far that is.

    note   what is needed to make prototypes of the result, plain but for its sites: it can wait on a server, see
           `remote_notes`
    state  None before the first piece, then what the last one gave back
    """

    vlm: VLM
    aims: list[Direction | Feature]
    given: Plain
    note: dict[str, Any]
    requests: list[Any]
    steps: int
    centre: Any
    references: list[Any]
    state: Any = None
    history: list[torch.Tensor] = field(default_factory=list)

    @property
    def until(self) -> int:
        """The step before which the next piece stops."""
        first = 0 if self.state is None else self.state["step"]
        each = self.vlm.remote.steps_per_job if self.vlm.remote is not None else None
        return self.steps if each is None else min(self.steps, first + each)

    def piece(self, note: bytes | None = None) -> Plain:
        """What the next job is given."""
        told = dict(vars(self.given), state=self.state, until=self.until, note=note)
        if self.state is not None:  # what the first piece worked out is sent, not asked for again
            told |= {"asked": [], "centre_sites": [], "norms_wanted": [], "references": {}}
        return Plain(**told)

    def take(self, found: dict[str, Any]) -> bool:
        """Keep what a piece gave; whether it was the last. Raises ServerError for an answer of another form."""
        check_piece(found, len(self.aims))
        self.history.append(found["history"])
        first = self.state is None
        self.state = found["state"]
        if first:
            self._keep(found)
        return found["measured"] is not None

    def _keep(self, found: dict[str, Any]) -> None:
        for request, rows, baselines in zip(self.requests, found["rows"], found["baselines"], strict=False):
            request.fill(rows, baselines)  # a later piece, collected by another process, brings vectors alone
        for told, aim, vector in zip(self.given.aims, self.aims, found["vectors"], strict=True):
            told.vector = vector
            if isinstance(aim, Pending) and not aim.there:
                aim.arrive(vector)
        for site, centre in zip(self.given.every_centre, found["centres"], strict=True):
            self.given.centres[site] = centre
            if (choice := _hashable(self.centre)) is not None:
                self.vlm.kept("centres", site)[site, choice, self.vlm.device, self.vlm.dtype] = centre
        for (site, i), norm in zip(self.given.every_norm, found["norms"], strict=True):
            self.given.norms[site, i] = norm
            self.vlm.kept("norms", site)[reference.key(self.vlm, site, self.references[i])] = norm


def _hashable(choice: Any) -> Any:
    try:
        hash(choice)
    except TypeError:
        return None
    return choice


def prepared(
    vlm: VLM, jobs: Sequence[tuple[Direction | Feature, int]], sites: list[Site], settings: Settings, terms: Any,
    canvas: Any, record: dict[str, Any],
) -> Ascent:  # fmt: skip
    """An ascent that has not begun."""
    assert vlm.remote is not None
    aims = [aim for aim, _ in jobs]
    references = list(dict.fromkeys(a.reference for a in aims if isinstance(a, Feature)))
    requests, told = _aims(aims, sites, references)
    added = [_term(vlm, term) for term in terms]
    choice = settings.centre
    needed = list(dict.fromkeys([*sites, *(vlm.site(t.site) for t in terms if hasattr(t, "site"))]))
    centred = [s for s, a in zip(sites, aims, strict=True) if isinstance(a, Direction)]
    centred = list(dict.fromkeys([*centred, *(t.away[0] for t in added if t.away is not None)]))
    known, centre = _centres(vlm, centred, choice)
    featured = [(s, one.reference) for s, one in zip(sites, told, strict=True) if one.feature is not None]
    norms = {(s, i): vlm.kept("norms", s).get(reference.key(vlm, s, references[i])) for s, i in dict.fromkeys(featured)}
    wanted = [place for place, norm in norms.items() if norm is None]
    how = reading(vlm, needed)
    how.cut = CUT.replace("{where}", vlm.remote.where) if vlm.remote.away else how.cut
    given = Plain(
        how=how,
        asked=[request.given() for request in requests],
        aims=told,
        centres=known,
        centre=centre,
        centre_sites=[s for s in centred if s not in known],
        every_centre=centred,
        every_norm=list(norms),
        norms={place: norm for place, norm in norms.items() if norm is not None},
        norms_wanted=wanted,
        references={i: packed(reference.pictures_of(vlm, references[i])) for i in dict.fromkeys(i for _, i in wanted)},
        pooling=settings.pooling,
        score=settings.score,
        poolings=reported(settings.pooling),
        terms=added,
        canvas=canvas,
        augment=list(settings.augment),
        plan=Plain(**{name: getattr(settings, name) for name in Climb.__dataclass_fields__}),
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
    return Ascent(vlm, aims, given, note, requests, settings.steps, choice, references)


def _aims(aims: list[Direction | Feature], sites: list[Site], references: list[Any]) -> tuple[list[Any], list[Plain]]:
    """The requests of concept vectors that are not there yet, and each aim as a job is told of it."""
    requests: list[Any] = []
    told = []
    for aim, site in zip(aims, sites, strict=True):
        one = Plain(site=site, vector=None, asked=None, feature=None, alone=[], guard=None, reference=None)
        if isinstance(aim, Feature):
            one.reference = references.index(aim.reference)
            one.feature = aim.but(reference=None)  # its pictures go once for all, as pixels
            one.alone = feature_climb.alone(one.feature)
            one.guard = float(aim.guard) if aim.guard is not None and aim.objective == "encoder" else None
        elif isinstance(aim, Pending) and not aim.there:
            if aim.request not in requests:
                requests.append(aim.request)
            points = [point[0] for point in reading(aim.request.vlm, aim.request.sites).points]
            one.asked = (requests.index(aim.request), points.index(site), aim.row)
        else:
            one.vector = climbable(aim.vector)
        told.append(one)
    return requests, told


def _term(vlm: VLM, term: Any) -> Plain:
    if isinstance(term, Away):
        return Plain(call=None, away=(vlm.site(term.site), climbable(term.direction.vector), term.weight, term.pooling))
    return Plain(call=term, away=None)


def _centres(vlm: VLM, sites: list[Site], choice: Any) -> tuple[dict[Site, torch.Tensor], Any]:
    """Centres that are known, and where a job gets the others from: an object with `pictures`, or pictures."""
    if isinstance(choice, torch.Tensor) or not (isinstance(choice, Pictures) or hasattr(choice, "pictures")):
        from .synthesis import centre

        return {site: centre(vlm, site, choice).cpu() for site in sites}, []
    key = _hashable(choice)
    known = {
        s: kept[s, key, vlm.device, vlm.dtype]
        for s in sites
        if (s, key, vlm.device, vlm.dtype) in (kept := vlm.kept("centres", s))
    }
    if len(known) == len(sites):
        return known, []
    return known, packed(as_tensors(list(choice.images), "images")) if isinstance(choice, Pictures) else choice


def packed(pictures: list[torch.Tensor]) -> list[torch.Tensor]:
    """Pictures as 8-bit values where that loses nothing to speak of (1e-6): a quarter of the size."""
    found = []
    for one in pictures:
        eight = (one * 255).round().byte()
        found.append(eight if (eight.float() / 255 - one).abs().max() < 1e-6 else one)
    kinds = {one.dtype for one in found}
    return found if len(kinds) == 1 else list(pictures)


def _row(vlm: VLM, aim: Direction | Feature, site: Site, seed: int) -> dict[str, Any]:
    told = aim.story() if isinstance(aim, Feature) else {"model": aim.model, **aim.provenance}
    if isinstance(aim, Direction) and not (isinstance(aim, Pending) and not aim.there):
        told = {"model": aim.model, "norm": aim.norm, **aim.provenance}
    kind = "feature" if isinstance(aim, Feature) else "direction"
    return {"label": aim.label, "site": site, "hf_name": vlm.hf_name(site), "seed": seed, "story": told, "kind": kind}


# -- here, while it is watched -----------------------------------------------------------------------------------


class LeftRunning(KeyboardInterrupt):
    """Ctrl-C, after which a server goes on: `job` is what `nd.collect` takes, `made` the prototypes that are there."""

    def __init__(self, job: str, made: list[Prototype]):
        self.job, self.made = job, made
        super().__init__(f"left running as job {job}; nd.collect(vlm, {job!r}) fetches it, from any process")


def climb_all(ascents: Iterator[Ascent], watch: Any) -> list[Prototype]:
    """The prototypes of ascents, one after the other. Raises KeyboardInterrupt; LeftRunning, if the user chose so."""
    from .remote_jobs import leaves, send_ascent

    made: list[Prototype] = []
    for ascent in ascents:
        try:
            made += climb(ascent, watch)
        except KeyboardInterrupt:
            getattr(watch, "pause", lambda: None)()
            if ascent.vlm.remote is None or not ascent.vlm.remote.away or not leaves():
                raise
            sent = [send_ascent(one) for one in (ascent, *ascents)]
            raise LeftRunning(",".join(sent), made) from None
    return made


def climb(ascent: Ascent, watch: Callable[[int, Any], None] | None) -> list[Prototype]:
    """All pieces of an ascent, one job each, and its prototypes."""
    while True:
        found = remote.run(ascent.vlm, shipped_jobs.ascent, ascent.piece(), watch)
        if ascent.take(found):
            return prototypes(ascent.note, torch.cat(ascent.history), found)


def prototypes(note: dict[str, Any], history: torch.Tensor, found: dict[str, Any]) -> list[Prototype]:
    """Prototypes of what an ascent's last piece gave."""
    pixels = found["pictures"].numpy()
    made = []
    for j, row in enumerate(note["rows"]):
        scores, heat, readings = found["measured"][j]
        story = row["story"]
        if row["kind"] == "direction":
            norm = float(found["vectors"][j].float().norm())
            story = {"model": story.get("model", note["model"]), "norm": norm, **story}
        made.append(
            Prototype(
                image=Image.fromarray(pixels[j]),
                label=row["label"],
                site=row["site"],
                hf_name=row["hf_name"],
                history=tuple(history[:, j].tolist()),
                scores=scores,
                heat=heat_map(check_heat(heat, row["site"], note["grid"]).numpy(), row["site"], note["grid"]),
                readings=readings,
                seed=row["seed"],
                model=note["model"],
                revision=note["revision"],
                direction=story,
                image_size=note["image_size"],
                straight_through=note["straight_through"],
                **note["story"],
            )
        )
    return made
