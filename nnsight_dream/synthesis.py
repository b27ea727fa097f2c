"""Synthesis: from directions and features to prototypes."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from . import feature_climb, shipped, shipped_scores
from .augment import Noise, Shift
from .canvas import MultiResolution, Native, Pixels
from .directions import Direction, versions
from .features import Feature
from .objectives import Attention, Away, Grey, Pictures, Pooling, Score, cosine, group, reported
from .pictures import as_tensors, content
from .prototype import Prototype, Prototypes, heat_map
from .sae_models import resolve
from .sites import Site
from .trace import Augmentation, Canvas, Climb, Term, ascend, read_pictures
from .vectors import climbable
from .vlm import VLM

if TYPE_CHECKING:
    from . import remote_ascents

Watch = Callable[[int, torch.Tensor], None]
Aim = Direction | Feature
_OTHERS = ("settings", "seed", "terms", "progress")


@dataclass(frozen=True)
class Settings:
    """Every choice of an ascent: five numbers, the rest are values with numbers of their own.

    steps      how many steps of the optimiser
    batch      augmented views of each picture at a step
    rate       learning rate, on the canvas's own parts
    clip       most norm of a picture's gradient, over all its parts
    at_once    most views in one forward pass; more are run in turn (memory, not results)
    optimiser  "sgd" (momentum 0.9) or "adam"; schedule "constant" or "cosine" (the rate falls to zero)
    canvas, augment, pooling, score, centre   see the modules of these names; `Native(...)` is a canvas of the size that
               the model sees, so that nothing is resized

    Raises ValueError for a number out of range or an unknown name.
    """

    steps: int = 600
    batch: int = 8
    rate: float = 0.04
    clip: float = 1.0
    at_once: int = 64
    optimiser: str = "sgd"
    schedule: str = "constant"
    canvas: Canvas | Native = MultiResolution(448)
    augment: tuple[Augmentation, ...] = (Shift(), Noise(0.2))
    pooling: Pooling = Attention()
    score: Score = cosine
    centre: Any = Grey()

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch", 1), ("at_once", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: a whole number of at least {least} is needed")
        for name in ("rate", "clip"):
            if not 0 < float(getattr(self, name)) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)!r}: a positive number is needed")
        for name, allowed in (("optimiser", ("sgd", "adam")), ("schedule", ("constant", "cosine"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: allowed are {', '.join(map(repr, allowed))}")
        for name, method in (("pooling", "__call__"), ("score", "__call__"), ("canvas", "render")):
            value = getattr(self, name)
            if isinstance(value, type) or not (hasattr(value, method) or isinstance(value, Native)):
                raise ValueError(f"{name}={value!r}: a value such as {getattr(type(self), name)!r} is needed")
        if not isinstance(self.augment, tuple):
            raise ValueError(f"augment={self.augment!r}: a tuple of augmentations is needed: (Shift(), Noise(0.2))")
        if not hasattr(self.centre, "of") and not isinstance(self.centre, torch.Tensor):
            raise ValueError(f"centre={self.centre!r}: give Grey(), NaturalNoise(), Pictures(...) or a tensor (d,)")

    @classmethod
    def paper(cls, layer: int, *, tau_middle: float = 0.5) -> Settings:
        """The choices of arXiv 2601.08017 (2.2, 2.3, appendix E) for a layer of Gemma 3 4B, counted from 1.

        The learning rate is 0.15 for layers 10 to 25 and 0.04 for the others. The temperature is 0.005 for one of
        these groups and 0.5 for the other, and the text at hand lost which: `tau_middle` is that of the middle layers
        (0.5 or 0.005), the other group has the other. The shift, 56 of 224 pixels, and the noise, 0.2, are those of
        Direct Ascent Synthesis (arXiv 2502.07753), which the paper says it follows.
        """
        if tau_middle not in (0.5, 0.005):
            raise ValueError(f"tau_middle={tau_middle!r}: the paper has 0.5 and 0.005")
        middle = 10 <= layer <= 25
        tau = tau_middle if middle else {0.5: 0.005, 0.005: 0.5}[tau_middle]
        return cls(rate=0.15 if middle else 0.04, pooling=Attention(tau=tau))

    @classmethod
    def demo(cls) -> Settings:
        """The choices for the bundled model, once for all concepts and layers, after a short search (README).

        The clip is so small that every step has the same length: momentum then moves most what all steps agree on, and
        what no gradient asks for stays grey.
        """
        return cls(
            steps=60,
            batch=2,
            rate=250.0,
            clip=0.001,
            schedule="cosine",
            canvas=Pixels(32),
            augment=(Shift(pixels=3), Noise(0.06)),
            pooling=Attention(tau=0.5),
            centre=Pictures.bundled(),
        )

    @property
    def together(self) -> int:
        """How many pictures are climbed in one batch."""
        return max(1, self.at_once // self.batch)

    def but(self, **changes: Any) -> Settings:
        """A copy with some choices changed; raises TypeError that names the nearest for an unknown one."""
        names = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1, 0.0)[0]
                raise TypeError(f"no setting {name!r}; did you mean {near!r}? There are {', '.join(names)}")
        return dataclasses.replace(self, **changes)

    def record(self) -> dict[str, Any]:
        """The choices as plain data, for a record on disk."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    """Plain data for a record; what is large is named, not told."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value] if len(value) <= 64 else f"{len(value)} of {type(value[0]).__name__}"
    if isinstance(value, torch.Tensor):
        return f"tensor {tuple(value.shape)}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"is": type(value).__name__, **fields}
    return getattr(value, "__name__", None) or repr(value)


def digest(value: Any) -> str:
    """A hash of a choice with all that it holds: tensors and pictures by their content, functions by their code."""
    told = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            raw = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            told.update(f"{part.dtype} {tuple(part.shape)}".encode() + raw)
        elif isinstance(part, Image.Image):
            told.update(content(part))
        elif isinstance(part, (tuple, list)):
            told.update(f"{len(part)}[".encode())
            for one in part:
                add(one)
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            told.update(type(part).__qualname__.encode())
            for f in dataclasses.fields(part):
                told.update(f.name.encode())
                add(getattr(part, f.name))
        elif code := getattr(part, "__code__", None):
            told.update(f"{part.__module__}.{part.__qualname__} {code.co_code!r} {code.co_consts!r}".encode())
        else:
            told.update(f"{type(part).__qualname__} {part!r};".encode())

    add(value)
    return told.hexdigest()[:24]


def synthesize(
    vlm: VLM,
    directions: Aim | Sequence[Aim],
    *,
    settings: Settings | None = None,
    seed: int | Sequence[int] = 0,
    terms: Sequence[Term | Away] = (),
    progress: bool | Watch | None = None,
    **changes: Any,
) -> Prototype | Prototypes:
    """Climb from grey to the picture of a direction or feature; of several and several seeds together.

    directions   a Direction, a Feature, or several of either kind. A feature has its own objective (see `features`):
               pooling, score and centre of the settings are for directions
    settings   `Settings.demo()` for the bundled model and `Settings.paper(layer)` for others, if not given;
               `**changes` alter single choices, as in `synthesize(vlm, d, steps=50)`
    seed       one, or several: each gives a picture of its own, the same alone and in company
    terms      added to the score: `TotalVariation`, `Away`, or a callable from `Step` to (J,)
    progress   True a bar, False nothing, None a bar where there is a terminal or notebook, or a callable that is
               given the step and the scores (J,)

    Returns a Prototype for one direction and one seed, else Prototypes, direction by direction. Ctrl-C ends the climb
    and gives the pictures so far; of a model on a server it asks whether to leave the work there (see `submit`), and
    raises. Method: arXiv 2601.08017.

    Raises ValueError for a direction or feature of another model, width or layer; FloatingPointError for a score that
    is not finite; RuntimeError where no gradient reaches the picture.

    >>> import nnsight_dream as nd
    >>> vlm = nd.load("demo")
    >>> nd.synthesize(vlm, nd.concept(vlm, "octopus", layer=4), steps=2, batch=1).image.size
    (32, 32)
    """
    jobs, settings = settled(vlm, directions, settings, seed, terms, changes)
    with _watching(progress, -(-len(jobs) // settings.together) * settings.steps) as watch:
        made = _all(vlm, jobs, settings, terms, watch)
    return made[0] if is_one(directions, seed) else Prototypes(made)


def is_one(directions: Any, seed: Any) -> bool:
    """Whether a single picture is asked for."""
    return isinstance(directions, (Direction, Feature)) and isinstance(seed, int)


def settled(
    vlm: VLM, directions: Any, settings: Settings | None, seed: Any, terms: Sequence[Any], changes: dict[str, Any]
) -> tuple[list[tuple[Aim, int]], Settings]:
    """The (direction or feature, seed) pairs and the settings that `synthesize` is given; raises as it does."""
    wanted = [directions] if isinstance(directions, (Direction, Feature)) else list(directions)
    seeds = [seed] if isinstance(seed, int) else list(seed)
    sites = _check(vlm, wanted, seeds)
    _check(vlm, [_towards(t) for t in terms if isinstance(t, Away)], seeds, least=0)
    if settings is None:
        settings = Settings.demo() if vlm.is_demo else Settings.paper(sites[0].layer)
    for name in changes:  # one of these, misspelt, is no setting misspelt
        if name not in settings.record() and (near := difflib.get_close_matches(name, _OTHERS, 1, 0.75)):
            raise TypeError(f"no setting {name!r}; did you mean {near[0]!r}? Beside settings there are {_OTHERS}")
    return [(d, s) for d in wanted for s in seeds], settings.but(**changes)


def climb_pairs(
    vlm: VLM, pairs: Sequence[tuple[Aim, int]], settings: Settings, watch: Watch | None = None
) -> list[Prototype]:
    """A prototype for each (direction, seed); otherwise as `synthesize`."""
    _check(vlm, [d for d, _ in pairs], [s for _, s in pairs])
    return _all(vlm, list(pairs), settings, (), watch)


def _all(
    vlm: VLM, jobs: list[tuple[Aim, int]], settings: Settings, terms: Sequence[Any], watch: Watch | None
) -> list[Prototype]:
    if vlm.remote is not None:
        from . import remote_ascents

        return remote_ascents.climb_all(prepare(vlm, jobs, settings, terms), watch)
    made: list[Prototype] = []
    for start in range(0, len(jobs), settings.together):
        made += _climb(vlm, jobs[start : start + settings.together], settings, terms, watch)
        if made[-1].interrupted:
            break
    return made


def _towards(term: Away) -> Direction:
    if isinstance(term.direction, Feature):
        raise TypeError("Away takes a Direction; of two features at one site make the difference: a - 0.5 * b")
    return term.direction


def _check(vlm: VLM, wanted: Sequence[Aim], seeds: list[int], least: int = 1) -> list[Site]:
    """The sites of what is wanted; raises for what cannot be climbed."""
    if len(wanted) < least or not seeds:
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
    if any(isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < 2**63 for s in seeds):
        raise ValueError(f"seed={seeds!r}: whole numbers from 0 to 2**63 - 1 are needed")
    return found


def centre(vlm: VLM, site: Site, choice: Any) -> torch.Tensor:
    """The centre (d,) at a site that a choice means; computed once for each model, site and choice."""
    if isinstance(choice, torch.Tensor):
        if choice.shape != (vlm.width_at(site),):
            raise ValueError(f"centre is {tuple(choice.shape)}; {vlm.describe(site)} needs ({vlm.width_at(site)},)")
        return choice.to(vlm.device, torch.float32)
    try:
        hash(choice)
    except TypeError:  # one of the user's own that cannot be remembered
        return choice.of(vlm, site)
    kept = vlm.kept("centres", site)
    key = (site, choice, vlm.device, vlm.dtype)
    if key not in kept:
        kept[key] = choice.of(vlm, site)
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
    aims, sites = [d for d, _ in jobs], [_site(vlm, d) for d, _ in jobs]
    towards = [
        (site, climbable(d.vector).to(vlm.device), centre(vlm, site, settings.centre))
        if isinstance(d, Direction)
        else None
        for d, site in zip(aims, sites, strict=True)
    ]
    objectives: list[Term] = list(group(towards, settings.pooling, settings.score))
    objectives += [feature_climb.objective(vlm, f, sites[j], j) for j, f in enumerate(aims) if isinstance(f, Feature)]
    added = [t.bound(centre(vlm, vlm.site(t.site), settings.centre)) if isinstance(t, Away) else t for t in terms]
    needed = dict.fromkeys([*sites, *(vlm.site(t.site) for t in added if hasattr(t, "site"))])
    climb = Climb(settings.steps, settings.batch, settings.rate, settings.clip, settings.optimiser, settings.schedule)
    generators = [torch.Generator().manual_seed(s) for _, s in jobs]
    canvas = canvas_for(vlm, settings.canvas)
    parts, history, interrupted = ascend(
        vlm, canvas, settings.augment, [*objectives, *added], list(needed), climb, generators, watch
    )
    images = [Image.fromarray(p) for p in shipped.eight_bit(canvas, parts).cpu().numpy()]
    measured = [_measure(vlm, *one, settings) for one in zip(images, sites, aims, towards, strict=True)]
    story = {"settings": settings.record() | {"terms": [_plain(t) for t in terms]}, "versions": versions()}
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
    vlm: VLM, jobs: list[tuple[Aim, int]], settings: Settings, terms: Sequence[Any] = ()
) -> Iterator[remote_ascents.Ascent]:
    """The ascents of a remote model that all jobs come to, each made when the one before has brought what it knows."""
    from .remote_ascents import prepared

    record = settings.record() | {"terms": [_plain(t) for t in terms]}
    canvas = canvas_for(vlm, settings.canvas)
    for start in range(0, len(jobs), settings.together):
        part = jobs[start : start + settings.together]
        yield prepared(vlm, part, [_site(vlm, d) for d, _ in part], settings, terms, canvas, record)


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
            scores, weights, readings = feature_climb.measure(vlm, aim, site, patches[0])
        else:
            assert towards is not None
            _, vector, middle = towards
            poolings = reported(settings.pooling)
            scores, found = shipped_scores.measured_direction(patches, vector, middle, poolings, vlm.grid)
            weights = found.numpy()
    return scores, heat_map(weights, site, vlm.grid), readings


@contextmanager
def _watching(progress: bool | Watch | None, total: int) -> Iterator[Watch | None]:
    """What is told of each step: the caller's function, a bar, or nothing."""
    if callable(progress):
        yield progress
        return
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
