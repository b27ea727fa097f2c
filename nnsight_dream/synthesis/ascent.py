"""An ascent: what its job is given, its pieces, and prototypes of what comes back."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..directions.centres import Pictures
from ..directions.deferred import Pending
from ..directions.direction import Direction, climbable, versions
from ..engine import jobs as shipped_jobs
from ..engine import measure, optimise
from ..engine.objective import group
from ..engine.optimise import Climb
from ..engine.plain import Plain
from ..engine.pooling import reported
from ..io.pictures import as_tensors
from ..models.check import _refuse_inference
from ..models.compiled import _runner
from ..models.reading import _CUT, _at, _picture_inputs, _pixel_inputs, read_pictures, reading
from ..remote import run
from ..sae import reference
from ..sae.feature import Feature
from . import feature_climb
from .canvases import canvas_for
from .centres import centre
from .notes import check_heat, check_piece
from .prototype import Prototype, heat_map
from .request import Away, _alike, _site
from .settings import Settings, as_plain

if TYPE_CHECKING:
    from ..engine.optimise import Augmentation, Canvas, Term
    from ..models.sites import Site
    from ..models.vlm import VLM
    from .progress import Watch
    from .request import Aim


def ascend(
    vlm: VLM,
    canvas: Canvas,
    augment: Sequence[Augmentation],
    terms: Sequence[Term],
    sites: Sequence[Site],
    climb: Climb,
    generators: list[torch.Generator],
    watch: Callable[[int, torch.Tensor], None] | None = None,
    parts: list[torch.Tensor] | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor, bool]:
    """Climb the sum of `terms`, each (J,), for J jobs at once; jobs share nothing but the forward pass.

    One generator a job is the only source of chance, so that a job gives the same picture alone and in company.
    Returns the parts of the canvas, the history of scores (steps done, J) and whether it was interrupted (Ctrl-C).
    Where a GPU's memory does not do, the climb begins again with the vision tower checkpointed, and says so.
    Raises FloatingPointError where a score or gradient is not finite, RuntimeError where none reaches the canvas.
    """
    given = (vlm, canvas, augment, terms, sites, climb, generators, watch, parts)
    before = [g.get_state() for g in generators]
    try:
        return _ascend(*given)
    except torch.OutOfMemoryError:
        if vlm.checkpoint_tower or not vlm.tower_layers:
            raise
    warnings.warn(_SHORT.format(id=vlm.id), stacklevel=2)
    vlm.checkpoint_tower = True
    for generator, state in zip(generators, before, strict=True):
        generator.set_state(state)
    return _ascend(*given)


_SHORT = (
    "{id}: the device's memory is too small for a step as it is; the climb begins again, and from now on activations "
    "of the vision tower are computed anew in the backward pass (nd.load(..., checkpoint_tower=True) does so at once). "
    "A smaller batch= or at_once= saves memory too"
)


def _ascend(
    vlm: VLM,
    canvas: Canvas,
    augment: Sequence[Augmentation],
    terms: Sequence[Term],
    sites: Sequence[Site],
    climb: Climb,
    generators: list[torch.Generator],
    watch: Callable[[int, torch.Tensor], None] | None,
    parts: list[torch.Tensor] | None,
) -> tuple[list[torch.Tensor], torch.Tensor, bool]:
    jobs = len(generators)
    where = [vlm.site(s) for s in sites]
    _refuse_inference(vlm)
    with vlm.quiet():
        parts = canvas.start(jobs, generators, vlm.device) if parts is None else parts
        parts = [p.detach().clone().requires_grad_(True) for p in parts]
        constants = {jobs * climb.batch: _picture_inputs(vlm, jobs * climb.batch)}  # by number of views
        run = _runner(vlm, where)

        def read(views: torch.Tensor) -> dict[Site, torch.Tensor]:
            if len(views) not in constants:  # of a pass that holds a part of a step's
                constants[len(views)] = _picture_inputs(vlm, len(views))
            found = run({**constants[len(views)], **_pixel_inputs(vlm, views)})
            return {site: _at(vlm, site, found[site]).float().to(vlm.device) for site in where}

        optimiser, steps = optimise.optimiser_of(climb, parts), range(climb.steps)
        history, interrupted = optimise.climb(
            read, canvas, augment, terms, climb, generators, parts, optimiser, steps, vlm.grid, _CUT, watch
        )
    empty = torch.zeros(0, jobs, device=vlm.device)
    return [p.detach() for p in parts], torch.stack(history) if history else empty, interrupted


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
        (places[start : start + same.together], same)
        for places, same in groups
        for start in range(0, len(places), same.together)
    ]


def _climb(
    vlm: VLM, jobs: list[tuple[Aim, int]], settings: Settings, terms: Sequence[Any], watch: Watch | None
) -> list[Prototype]:
    canvas = canvas_for(vlm, settings.canvas)  # before any work: it may not fit
    aims, sites = [d for d, _ in jobs], [_site(vlm, d) for d, _ in jobs]
    few = min(16, settings.at_once)
    towards = [
        (site, climbable(d.vector).to(vlm.device), centre(vlm, site, settings.centre, few))
        if isinstance(d, Direction)
        else None
        for d, site in zip(aims, sites, strict=True)
    ]
    objectives: list[Term] = list(group(towards, settings.pooling, settings.score))
    features = [(j, f) for j, f in enumerate(aims) if isinstance(f, Feature)]
    objectives += [feature_climb.objective(vlm, f, sites[j], j, few) for j, f in features]
    added = [t.bound(centre(vlm, vlm.site(t.site), settings.centre, few)) if isinstance(t, Away) else t for t in terms]
    needed = dict.fromkeys([*sites, *(vlm.site(t.site) for t in added if hasattr(t, "site"))])
    climb = Climb(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(Climb)})
    generators = [torch.Generator().manual_seed(s) for _, s in jobs]
    parts, history, interrupted = ascend(
        vlm, canvas, settings.augment, [*objectives, *added], list(needed), climb, generators, watch
    )
    images = [Image.fromarray(p) for p in optimise.eight_bit(canvas, parts).cpu().numpy()]
    measured = [_measure(vlm, *one, settings) for one in zip(images, sites, aims, towards, strict=True)]
    story = {"settings": settings.record() | {"terms": [as_plain(t) for t in terms]}, "versions": versions()}
    return [
        Prototype(
            image=images[j],
            label=d.label,
            site=sites[j],
            hf_name=vlm.hf_name(sites[j]),
            history=tuple(history[:, j].tolist()),
            scores=measured[j][0],
            heat=measured[j][1],
            readings=measured[j][2],
            seed=s,
            model=vlm.id,
            revision=vlm.revision,
            direction=d.story() if isinstance(d, Feature) else {"model": d.model, "norm": d.norm, **d.provenance},
            interrupted=interrupted,
            image_size=vlm.image_size,
            straight_through=vlm.straight_through,
            **story,
        )
        for j, (d, s) in enumerate(jobs)
    ]


def prepare(
    vlm: VLM, jobs: list[tuple[Aim, int]], settings: Settings | Sequence[Settings], terms: Sequence[Any] = ()
) -> Iterator[Ascent]:
    """The ascents of a remote model that all jobs come to, each made when the one before has brought what it knows.

    settings   of all jobs, or of each. An ascent's note says the `places` of its jobs among all
    """
    pass

    each = [settings] * len(jobs) if isinstance(settings, Settings) else settings
    for places, chosen in batches(each):
        part = [jobs[place] for place in places]
        record = chosen.record() | {"terms": [as_plain(t) for t in terms]}
        canvas = canvas_for(vlm, chosen.canvas)
        ascent = prepared(vlm, part, [_site(vlm, d) for d, _ in part], chosen, terms, canvas, record)
        ascent.note["places"] = places
        yield ascent


def _measure(
    vlm: VLM,
    image: Image.Image,
    site: Site,
    aim: Aim,
    towards: tuple[Site, torch.Tensor, torch.Tensor] | None,
    settings: Settings,
) -> tuple[dict[str, float], np.ndarray, dict[str, Any] | None]:
    """Of a picture its scores, the heat map (rows, cols), and of a feature the readings.

    The scores of a direction are cosines with it under each pooling, and the heat map is the attention's weights.
    """
    readings = None
    with torch.no_grad():
        (picture,) = as_tensors(image, "image")
        patches = read_pictures(vlm, picture.to(vlm.device), [site])[site].float()
        if isinstance(aim, Feature):
            scores, weights, readings = feature_climb.measure(vlm, aim, site, patches[0], min(16, settings.at_once))
        else:
            assert towards is not None
            _, vector, middle = towards
            poolings = reported(settings.pooling)
            scores, found = measure.measured_direction(site, patches, vector, middle, poolings, vlm.grid)
            weights = found.numpy()
    return scores, heat_map(weights, site, vlm.grid), readings


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
        for site, value in zip(self.given.every_centre, found["centres"], strict=True):
            self.given.centres[site] = value
            if (choice := _hashable(self.centre)) is not None:
                self.vlm.memo.centres.at(self.vlm, site)[site, choice, self.vlm.device, self.vlm.dtype] = value
        for (site, i), norm in zip(self.given.every_norm, found["norms"], strict=True):
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
    norms = {
        (s, i): vlm.memo.norms.at(vlm, s).get(reference.key(vlm, s, references[i])) for s, i in dict.fromkeys(featured)
    }
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
        from .centres import centre

        return {site: centre(vlm, site, choice).cpu() for site in sites}, []
    key = _hashable(choice)
    known = {
        s: kept[s, key, vlm.device, vlm.dtype]
        for s in sites
        if (s, key, vlm.device, vlm.dtype) in (kept := vlm.memo.centres.at(vlm, s))
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


def climb(ascent: Ascent, watch: Callable[[int, Any], None] | None) -> list[Prototype]:
    """All pieces of an ascent, one job each, and its prototypes."""
    while True:
        found = run.run(ascent.vlm, shipped_jobs.ascent, ascent.piece(), watch)
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
