"""An ascent: what its job is given, its pieces, and prototypes of what comes back."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..directions.centres import Pictures
from ..directions.deferred import Pending
from ..directions.direction import Direction, climbable, versions
from ..engine import jobs, plain
from ..engine.optimise import Climb
from ..engine.pixels import shares
from ..engine.pooling import reported
from ..io.pictures import as_tensors
from ..models.check import refuse_inference
from ..models.reading import reading
from ..remote.run import run
from ..sae import reference
from ..sae.feature import Feature
from .canvases import canvas_for
from .centres import centre
from .notes import check_heat, check_piece
from .prototype import Prototype, heat_map
from .request import Away, _alike, _site
from .settings import Settings, as_plain

if TYPE_CHECKING:
    from ..directions.deferred import Request
    from ..models.sites import Site
    from ..models.vlm import VLM
    from .progress import Watch
    from .request import Aim


def batches(settings: Sequence[Settings]) -> list[tuple[list[int], Settings]]:
    """Which jobs are climbed together, by their places: those of equal settings, as many as these allow at once."""
    groups: list[tuple[list[int], Settings]] = []
    for place, chosen in enumerate(settings):
        for places, same in groups:
            if _alike(chosen, same):
                places.append(place)
                break
        else:
            groups.append(([place], chosen))
    return [
        (places[start : start + same.pictures_per_pass], same)
        for places, same in groups
        for start in range(0, len(places), same.pictures_per_pass)
    ]


def prepare(
    vlm: VLM, jobs: list[tuple[Aim, int]], settings: Settings | Sequence[Settings], terms: Sequence[Any] = ()
) -> Iterator[Ascent]:
    """The ascents that all jobs come to, each made when the one before has brought what it knows.

    settings   of all jobs, or of each. An ascent's note says the `places` of its jobs among all
    """
    each = [settings] * len(jobs) if isinstance(settings, Settings) else settings
    for places, chosen in batches(each):
        part = [jobs[place] for place in places]
        record = chosen.record() | {"terms": [as_plain(t) for t in terms]}
        canvas = canvas_for(vlm, chosen.canvas)
        ascent = prepared(vlm, part, [_site(vlm, d) for d, _ in part], chosen, terms, canvas, record)
        ascent.note["places"] = places
        yield ascent


_SHORT = (
    "{id}: the device's memory is too small for a step as it is; the climb begins again, and from now on activations "
    "of the vision tower are computed anew in the backward pass (nd.load(..., checkpoint_tower=True) does so at once). "
    "A smaller batch= or at_once= saves memory too"
)

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
    given: plain.Ascent
    note: dict[str, Any]
    requests: list[Request]
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

    def piece(self, note: bytes | None = None, until: int | None = None) -> plain.Ascent:
        """What the next job is given; it stops before a step, `self.until` if not given."""
        later: dict[str, Any] = {}
        if self.state is not None:  # what the first piece worked out is sent, not asked for again
            later = {"asked": [], "centre_sites": [], "norms_wanted": [], "references": {}}
        until = self.until if until is None else until
        return dataclasses.replace(self.given, state=self.state, until=until, note=note, **later)

    def take(self, result: dict[str, Any]) -> bool:
        """Keep what a piece gave; whether it was the last. Raises ServerError for an answer of another form."""
        check_piece(result, len(self.aims))
        self.history.append(result["history"])
        first = self.state is None
        self.state = result["state"]
        if first:
            self._keep(result)
        return result["measured"] is not None

    def climb(self, watch: Watch | None) -> list[Prototype]:
        """All pieces, one job each, and the prototypes; those so far where Ctrl-C came in place.

        Where a GPU's memory does not do, the climb begins again with the vision tower checkpointed, and says so.
        Raises KeyboardInterrupt where it came to a job that was sent, and what the job raises.
        """
        if self.vlm.remote is None:
            refuse_inference(self.vlm)
        while True:
            try:
                result = run(self.vlm, jobs.ascent, self.piece(), watch)
            except torch.OutOfMemoryError:
                if self.vlm.remote is not None or self.vlm.checkpoint_tower or not self.vlm.tower_layers:
                    raise
                warnings.warn(_SHORT.format(id=self.vlm.id), stacklevel=2)
                self.vlm.checkpoint_tower = True
                continue
            if result.get("interrupted") and self.vlm.remote is not None:
                raise KeyboardInterrupt
            if self.take(result):
                return prototypes(self.note, torch.cat(self.history), result)

    def _keep(self, result: dict[str, Any]) -> None:
        for request, rows, baselines in zip(self.requests, result["rows"], result["baselines"], strict=False):
            request.fill(rows, baselines)  # a later piece, collected by another process, brings vectors alone
        for row, aim, vector in zip(self.given.aims, self.aims, result["vectors"], strict=True):
            row.vector = vector
            if isinstance(aim, Pending) and not aim.there:
                aim.arrive(vector)
        for site, value in zip(self.given.every_centre, result["centres"], strict=True):
            self.given.centres[site] = value
            if (choice := _hashable(self.centre)) is not None:
                self.vlm.memo.centres.at(self.vlm, site)[site, choice, self.vlm.device, self.vlm.dtype] = value
        for (site, i), norm in zip(self.given.every_norm, result["norms"], strict=True):
            self.given.norms[site, i] = norm
            self.vlm.memo.norms.at(self.vlm, site)[reference.key(self.vlm, site, self.references[i])] = norm


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
    aims = [aim for aim, _ in jobs]
    references = list(dict.fromkeys(a.reference for a in aims if isinstance(a, Feature)))
    requests, given_aims = _aims(vlm, aims, sites, references)
    added = [_term(vlm, term) for term in terms]
    choice = settings.centre
    needed = list(dict.fromkeys([*sites, *(vlm.site(t.site) for t in terms if hasattr(t, "site"))]))
    centred = [s for s, a in zip(sites, aims, strict=True) if isinstance(a, Direction)]
    centred = list(dict.fromkeys([*centred, *(t.away[0] for t in added if t.away is not None)]))
    known, centre = _centres(vlm, centred, choice, min(16, settings.at_once))
    featured = [(s, one.reference) for s, one in zip(sites, given_aims, strict=True) if one.feature is not None]
    norms = {
        (s, i): vlm.memo.norms.at(vlm, s).get(reference.key(vlm, s, references[i])) for s, i in dict.fromkeys(featured)
    }
    wanted = [place for place, norm in norms.items() if norm is None]
    how = reading(vlm, needed, pictures=True)
    if vlm.remote is not None and vlm.remote.away:
        how = dataclasses.replace(how, cut=CUT.replace("{where}", vlm.remote.where))
    given = plain.Ascent(
        how=how,
        asked=[request.given() for request in requests],
        aims=given_aims,
        centres=known,
        centre=centre,
        centre_sites=[s for s in centred if s not in known],
        every_centre=centred,
        every_norm=list(norms),
        norms={place: norm for place, norm in norms.items() if norm is not None},
        norms_wanted=wanted,
        references={
            i: packed(vlm, reference.pictures_of(vlm, references[i])) for i in dict.fromkeys(i for _, i in wanted)
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
    return Ascent(vlm, aims, given, note, requests, settings.steps, choice, references)


def _aims(
    vlm: VLM, aims: list[Direction | Feature], sites: list[Site], references: list[Any]
) -> tuple[list[Request], list[plain.Aim]]:
    """The requests of concept vectors that are not there yet, and each aim as a job is given it."""
    requests: list[Request] = []
    given = []
    for aim, site in zip(aims, sites, strict=True):
        one = plain.Aim(site)
        if isinstance(aim, Feature):
            one.reference = references.index(aim.reference)
            one.feature = aim.but(reference=None)  # its pictures go once for all, as pixels
            if vlm.remote is None:
                one.feature = one.feature.to(vlm.device)
            if len(aim.parts) > 1:
                single = [
                    one.feature.but(parts=((1.0, latent),), objective="encoder") for _, latent in one.feature.parts
                ]
                one.alone = single
            one.guard = float(aim.guard) if aim.guard is not None and aim.objective == "encoder" else None
        elif isinstance(aim, Pending) and not aim.there:
            if aim.request not in requests:
                requests.append(aim.request)
            points = [point[0] for point in reading(aim.request.vlm, aim.request.sites).points]
            one.asked = (requests.index(aim.request), points.index(site), aim.row)
        else:
            one.vector = climbable(aim.vector)
        given.append(one)
    return requests, given


def _term(vlm: VLM, term: Any) -> plain.Added:
    if isinstance(term, Away):
        towards = climbable(term.direction.vector)
        return plain.Added(away=(vlm.site(term.site), towards, term.weight, term.pooling))
    return plain.Added(call=term)


def _centres(vlm: VLM, sites: list[Site], choice: Any, at_once: int) -> tuple[dict[Site, torch.Tensor], Any]:
    """Centres that are known, and where a job gets the others from: an object with `pictures`, or pictures."""
    if isinstance(choice, torch.Tensor) or not (isinstance(choice, Pictures) or hasattr(choice, "pictures")):
        return {site: centre(vlm, site, choice, at_once) for site in sites}, []
    key = _hashable(choice)
    known = {
        s: kept[s, key, vlm.device, vlm.dtype]
        for s in sites
        if (s, key, vlm.device, vlm.dtype) in (kept := vlm.memo.centres.at(vlm, s))
    }
    if len(known) == len(sites):
        return known, []
    return known, packed(vlm, as_tensors(list(choice.images), "images")) if isinstance(choice, Pictures) else choice


def packed(vlm: VLM, pictures: list[torch.Tensor]) -> list[torch.Tensor]:
    """Pictures to be sent as 8-bit values where that loses nothing to speak of (1e-6): a quarter of the size."""
    if vlm.remote is None:
        return pictures
    found = []
    for one in pictures:
        eight = (one * 255).round().byte()
        found.append(eight if (shares(eight) - one).abs().max() < 1e-6 else one)
    kinds = {one.dtype for one in found}
    return found if len(kinds) == 1 else list(pictures)


def _row(vlm: VLM, aim: Direction | Feature, site: Site, seed: int) -> dict[str, Any]:
    told = aim.story() if isinstance(aim, Feature) else {"model": aim.model, **aim.provenance}
    if isinstance(aim, Direction) and not (isinstance(aim, Pending) and not aim.there):
        told = {"model": aim.model, "norm": aim.norm, **aim.provenance}
    kind = "feature" if isinstance(aim, Feature) else "direction"
    return {"label": aim.label, "site": site, "hf_name": vlm.hf_name(site), "seed": seed, "story": told, "kind": kind}


def prototypes(note: dict[str, Any], history: torch.Tensor, found: dict[str, Any]) -> list[Prototype]:
    """Prototypes of what an ascent's last piece gave."""
    pixels = found["pictures"].cpu().numpy()
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
                interrupted=bool(found.get("interrupted")),
                straight_through=note["straight_through"],
                **note["story"],
            )
        )
    return made
