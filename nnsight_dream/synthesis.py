"""Synthesis: from directions and features to prototypes."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from . import arguments, feature_climb, shipped, shipped_scores
from .arguments import strict
from .canvas import Native
from .digests import digest as digest
from .directions import Direction, versions
from .features import Feature
from .objectives import Away, Grey, NaturalNoise, Pictures, group, reported
from .pictures import as_tensors
from .prototype import Prototype, Prototypes, heat_map
from .sae_models import resolve
from .settings import Choice, Settings, as_plain, choose
from .sites import Site
from .trace import Canvas, Climb, Term, ascend, read_pictures
from .vectors import climbable
from .vlm import VLM

if TYPE_CHECKING:
    from . import remote_ascents

Watch = Callable[[int, torch.Tensor], None]
Aim = Direction | Feature
_OTHERS = ("settings", "seed", "terms", "progress")


@strict
def synthesize(
    vlm: VLM,
    directions: Aim | Sequence[Aim],
    *,
    settings: Choice = None,
    seed: int | Sequence[int] = 0,
    terms: Term | Away | Sequence[Term | Away] = (),
    progress: bool | Watch | None = None,
    **changes: Any,
) -> Prototype | Prototypes:
    """Climb from grey to the picture of a direction or feature; of several and several seeds together.

    directions   a Direction, a Feature, or several of either kind. A feature has its own objective (see `features`):
               pooling, score and centre of the settings are for directions
    settings   for all, or a function from a layer to settings, or a preset's name, "demo" or "paper"; if not given,
               `Settings.demo()` for the bundled model, and for others `Settings.paper` of each direction's own layer.
               `**changes` alter single choices, as in `synthesize(vlm, d, steps=50)`
    seed       one, or several: each gives a picture of its own, the same alone and in company
    terms      added to the score, one or several: `TotalVariation`, `Away`, or a callable from `Step` to (J,)
    progress   True a bar, False nothing, None a bar where there is a terminal or notebook, or a callable that is
               given the step and the scores (J,)

    Returns a Prototype for one direction and one seed, else Prototypes, direction by direction. Ctrl-C ends the climb
    and gives the pictures so far; of a model on a server it asks whether to leave the work there (see `submit`), and
    raises. Method: arXiv 2601.08017.

    Raises ValueError for a direction or feature of another model, width or layer; TypeError for what is no direction,
    settings or term; FloatingPointError for a score that is not finite; RuntimeError where no gradient reaches the
    picture.

    >>> import nnsight_dream as nd
    >>> vlm = nd.load("demo")
    >>> nd.synthesize(vlm, nd.concept(vlm, "octopus", layer=4), steps=2, batch=1).image.size
    (32, 32)
    """
    order = settled(vlm, directions, settings, seed, terms, changes)
    total = sum(chosen.steps for _, chosen in batches(order.settings))
    with vlm.alone(), _watching(progress, total) as watch:
        made = _all(vlm, order.jobs, order.settings, order.terms, watch)
    return made[0] if order.single else Prototypes(made)


class Order(NamedTuple):
    """What `synthesize` is asked for: (direction or feature, seed) jobs, the settings of each, the added terms.

    single   whether it is one picture, given by itself and not in a list
    """

    jobs: list[tuple[Aim, int]]
    settings: list[Settings]
    terms: list[Any]
    single: bool


def settled(vlm: VLM, directions: Any, settings: Choice, seed: Any, terms: Any, changes: dict[str, Any]) -> Order:
    """What is asked for by the arguments of `synthesize`; raises as it does."""
    alone = isinstance(directions, (Direction, Feature))
    if isinstance(directions, str):
        raise TypeError(
            f"a Direction or Feature is needed, not {directions!r}: see nd.concept, nd.from_tensor, nd.feature; if "
            f"that is a word: nd.concept(vlm, {directions!r}, layer=...)"
        )
    form = "a Direction, a Feature, or a list of them, is"
    wanted = [directions] if alone else arguments.listed(directions, "directions", form)
    seeds, one_seed = arguments.seeds(seed)
    added = _terms(terms)
    sites = _check(vlm, wanted)
    _check(vlm, [t.direction for t in added if isinstance(t, Away)], least=0)
    names = {f.name for f in dataclasses.fields(Settings)}
    for name in changes:  # one of these, misspelt, is no setting misspelt
        if name not in names and (near := difflib.get_close_matches(name, _OTHERS, 1, 0.75)):
            raise TypeError(f"no setting {name!r}; did you mean {near[0]!r}? Beside settings there are {_OTHERS}")
    of_layer = {layer: choose(vlm, layer, settings).but(**changes) for layer in dict.fromkeys(s.layer for s in sites)}
    jobs = [(d, s) for d in wanted for s in seeds]
    return Order(jobs, [of_layer[site.layer] for site in sites for _ in seeds], added, alone and one_seed)


def _terms(terms: Any) -> list[Any]:
    """Added terms, in a list; one may stand by itself."""
    form = "a term (TotalVariation, Away, or a function from a Step to (J,)), or a list of them, is"
    if isinstance(terms, Away) or (callable(terms) and not isinstance(terms, type)):
        return [terms]
    if isinstance(terms, type):
        raise TypeError(
            f"terms={arguments.shown(terms)}: {form} needed; this is the class, so make one: {terms.__name__}(...)"
        )
    items = arguments.listed(terms, "terms", form)
    for i, term in enumerate(items):
        if isinstance(term, type) or not (isinstance(term, Away) or callable(term)):
            raise TypeError(f"terms[{i}]={arguments.shown(term)}: {form} needed")
    return items


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


def _alike(one: Settings, other: Settings) -> bool:
    """Whether settings are equal; tensors and what else cannot be compared are only equal to themselves."""
    try:
        return one is other or bool(one == other)
    except Exception:
        return False


def climb_pairs(
    vlm: VLM, pairs: Sequence[tuple[Aim, int]], settings: Settings, watch: Watch | None = None
) -> list[Prototype]:
    """A prototype for each (direction, seed); otherwise as `synthesize`."""
    _check(vlm, [d for d, _ in pairs])
    jobs = [(d, arguments.whole(s, "seed", 0, arguments.SEED_MOST)) for d, s in pairs]
    return _all(vlm, jobs, [settings] * len(jobs), (), watch)


def _all(
    vlm: VLM, jobs: list[tuple[Aim, int]], settings: Sequence[Settings], terms: Sequence[Any], watch: Watch | None
) -> list[Prototype]:
    """The prototypes in the order of the jobs; where it is interrupted, those that there are."""
    together = batches(settings)
    made: list[Prototype] = []
    with vlm.alone():
        if vlm.remote is not None:
            from . import remote_ascents

            made = remote_ascents.climb_all(prepare(vlm, jobs, settings, terms), watch)
        else:
            for places, chosen in together:
                made += _climb(vlm, [jobs[place] for place in places], chosen, terms, watch)
                if made[-1].interrupted:
                    break
    climbed = [place for places, _ in together for place in places]
    return [prototype for _, prototype in sorted(zip(climbed, made, strict=False), key=lambda pair: pair[0])]


def _check(vlm: VLM, wanted: Sequence[Aim], least: int = 1) -> list[Site]:
    """The sites of what is wanted; raises for what cannot be climbed."""
    if len(wanted) < least:
        raise ValueError("nothing to do: give at least one direction and one seed")
    found = []
    for d in wanted:
        if isinstance(d, Feature):
            found.append(d.site(vlm))
            if not d.alive:
                raise ValueError(f"{d.label} is all zeros: nothing makes it fire")
            continue
        if not isinstance(d, Direction):
            raise TypeError(
                f"a Direction or Feature is needed, not {type(d).__name__}: see nd.concept, nd.from_tensor, nd.feature"
            )
        site = vlm.site(d.site)
        found.append(site)
        if not getattr(d, "there", True) and d.model == vlm.id:
            continue  # its vector is made where it is climbed, and is as wide as its site
        if d.vector.numel() != vlm.width_at(site):
            raise ValueError(
                f"direction {d.label!r} is {d.vector.numel()} wide, but {vlm.describe(site)} of {vlm.id} is "
                f"{vlm.width_at(site)} wide: make the direction from this model"
            )
        if d.model != vlm.id:
            raise ValueError(
                f"direction {d.label!r} was made from {d.model!r}, not from {vlm.id!r}. If that is meant, say so: "
                "nd.from_tensor(vlm, direction.vector, layer)"
            )
        if not d.vector.any():
            raise ValueError(f"direction {d.label!r} is all zeros: it points nowhere")
    return found


def centre(vlm: VLM, site: Site, choice: Any, at_once: int = 16) -> torch.Tensor:
    """The centre (d,) at a site that a choice means; computed once for each model, site and choice.

    at_once   the most pictures in a pass; one of your own that has `of(vlm, site)` reads them its own way
    """
    if isinstance(choice, torch.Tensor):
        if choice.shape != (vlm.width_at(site),):
            raise ValueError(f"centre is {tuple(choice.shape)}; {vlm.describe(site)} needs ({vlm.width_at(site)},)")
        return choice.to(vlm.device, torch.float32)
    more = (at_once,) if isinstance(choice, (Grey, NaturalNoise, Pictures)) else ()
    try:
        hash(choice)
    except TypeError:  # one of the user's own that cannot be remembered
        return choice.of(vlm, site)
    kept = vlm.kept("centres", site)
    key = (site, choice, vlm.device, vlm.dtype)
    if key not in kept:
        kept[key] = choice.of(vlm, site, *more)
    return kept[key]


def canvas_for(vlm: VLM, chosen: Canvas | Native) -> Canvas:
    """The canvas that a choice means for a model. Raises ValueError for `Native` where its pictures are not square."""
    if not isinstance(chosen, Native):
        return chosen
    height, width = vlm.image_size
    if height != width:
        raise ValueError(
            f"canvas={chosen!r}: {vlm.id} sees pictures of {height} x {width} pixels, and canvases are square; give "
            f"one with a size, such as MultiResolution({max(height, width)}), or load with a square image_size="
        )
    return chosen.at(height)


def _site(vlm: VLM, aim: Aim) -> Site:
    return vlm.site(aim.site) if isinstance(aim, Direction) else resolve(vlm, aim.where)


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
    images = [Image.fromarray(p) for p in shipped.eight_bit(canvas, parts).cpu().numpy()]
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
) -> Iterator[remote_ascents.Ascent]:
    """The ascents of a remote model that all jobs come to, each made when the one before has brought what it knows.

    settings   of all jobs, or of each. An ascent's note says the `places` of its jobs among all
    """
    from .remote_ascents import prepared

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
            scores, found = shipped_scores.measured_direction(site, patches, vector, middle, poolings, vlm.grid)
            weights = found.numpy()
    return scores, heat_map(weights, site, vlm.grid), readings


@contextmanager
def _watching(progress: bool | Watch | None, total: int) -> Iterator[Watch | None]:
    """What is told of each step: the caller's function, a bar, or nothing."""
    if callable(progress) and not isinstance(progress, type):
        yield progress
        return
    if progress is not None and not isinstance(progress, (bool, np.bool_)):
        form = "True, False, None, or a function of the step and the scores, is"
        raise TypeError(f"progress={arguments.shown(progress)}: {form} needed")
    if progress is None:
        progress = sys.stderr.isatty() or "ipykernel" in sys.modules
    if not progress:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("climbing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("score {task.fields[score]}"),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, speed="", score="", state="")

        def watch(step: int, scores: torch.Tensor) -> None:
            speed = bar.tasks[0].speed
            per, score = f"{speed:.1f}/s" if speed else "", f"{scores.mean().item():.3f}"
            bar.update(task, advance=1, speed=per, score=score, state="")

        def said(state: str, line: str) -> None:
            """Where a job on a server is, and what it prints."""
            if state:
                bar.update(task, state=state)
            if line:
                bar.console.print(line, highlight=False, markup=False)

        told: Any = watch
        told.said, told.pause = said, bar.stop
        yield watch
