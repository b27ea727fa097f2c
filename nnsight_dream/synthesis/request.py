"""The arguments of `synthesize`, checked once."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import arguments
from ..directions.direction import Direction
from ..engine.pooling import Mean
from ..sae.feature import Feature
from ..sae.hooks import resolve
from .settings import Settings, choose

if TYPE_CHECKING:
    from ..directions.pattern import Pattern
    from ..engine.optimise import Term
    from ..models.sites import Site
    from ..models.vlm import VLM
    from .settings import Choice


@dataclass(frozen=True, eq=False)
class Away:
    """Minus `weight` times the likeness to another direction: "this, but not that".

    Its centre is the run's own kind of centre, at the direction's site.
    """

    direction: Direction
    weight: float = 0.5
    pooling: Any = Mean()

    def __post_init__(self) -> None:
        if not isinstance(self.direction, Direction):
            mend = "see nd.concept, nd.from_tensor"
            if hasattr(self.direction, "parts"):
                mend = "of two features at one site make the difference: a - 0.5 * b"
            raise TypeError(f"Away takes a Direction, not {arguments.shown(self.direction)}; {mend}")
        if isinstance(self.pooling, type) or not callable(self.pooling):
            raise ValueError(f"pooling={arguments.shown(self.pooling)}: a value such as Mean() is needed")
        object.__setattr__(self, "weight", arguments.real(self.weight, "weight"))

    @property
    def site(self) -> Site:
        """Where it must be read."""
        return self.direction.site


Aim = Direction | Feature


if TYPE_CHECKING:
    Terms = Term | Away | Sequence[Term | Away]


_OTHERS = ("settings", "seed", "terms", "progress", "film")


class Order(NamedTuple):
    """A request to `synthesize`: (direction or feature, seed) jobs, the settings of each, the added terms.

    single   whether it is one picture, given by itself and not in a list
    rows     of directions in lists of lists, how many pictures each of these makes; else nothing
    """

    jobs: list[tuple[Aim, int]]
    settings: list[Settings]
    terms: list[Any]
    single: bool
    rows: tuple[int, ...] = ()


def settled(vlm: VLM, directions: Any, settings: Choice, seed: Any, terms: Any, changes: dict[str, Any]) -> Order:
    """The order that the arguments of `synthesize` make; raises as it does."""
    alone = isinstance(directions, (Direction, Feature))
    aims, lengths = ([directions], ()) if alone else _wanted(directions)
    seeds, one_seed = arguments.seeds(seed)
    added = _terms(terms)
    sites = check_aims(vlm, aims)
    check_aims(vlm, [t.direction for t in added if isinstance(t, Away)], least=0)
    names = {f.name for f in dataclasses.fields(Settings)}
    if "layer" in changes:
        raise TypeError(
            "no setting 'layer': a direction is made at its layer, as in nd.concept(vlm, 'fox', layer=1); of several "
            "make several: layer=[1, 4]"
        )
    for name in ("objective", "guard", "reference"):
        if name in changes:
            raise TypeError(f"no setting {name!r}: it is a feature's: nd.feature(sae, 3, {name}=...)")
    for name in changes:  # one of these, misspelt, is no setting misspelt
        if name not in names and (near := difflib.get_close_matches(name, _OTHERS, 1, 0.75)):
            raise TypeError(f"no setting {name!r}; did you mean {near[0]!r}? Beside settings there are {_OTHERS}")
    of_layer = {layer: choose(vlm, layer, settings).but(**changes) for layer in dict.fromkeys(s.layer for s in sites)}
    jobs = [(d, s) for d in aims for s in seeds]
    each = [of_layer[site.layer] for site in sites for _ in seeds]
    return Order(jobs, each, added, alone and one_seed, tuple(n * len(seeds) for n in lengths))


def _wanted(directions: Any) -> tuple[list[Any], tuple[int, ...]]:
    """Directions and features of a list, or of lists in it, in order; of the latter also how many are in each."""
    if isinstance(directions, str):
        raise TypeError(
            f"a Direction or Feature is needed, not {arguments.shown(directions)}: see nd.concept, nd.from_tensor, "
            f"nd.feature; if that is a word: nd.concept(vlm, {arguments.shown(directions)}, layer=...)"
        )
    if isinstance(getattr(directions, "shape", None), tuple):
        raise TypeError(
            f"a Direction or Feature is needed, not {arguments.shown(directions)}: of a vector (d,) make one with "
            "nd.from_tensor(vlm, vector, layer)"
        )
    if isinstance(directions, Mapping):
        raise TypeError("directions= is a dict: give list(directions.values()), whose order the pictures keep")
    items = arguments.listed(directions, "directions", "a Direction, a Feature, or a list of them, is")
    if not any(isinstance(item, (list, tuple)) for item in items):
        return items, ()
    rows = [_wanted(item)[0] if isinstance(item, (list, tuple)) else [item] for item in items]
    return [item for row in rows for item in row], tuple(map(len, rows))


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


def alike(first: Settings, other: Settings) -> bool:
    """Whether settings are equal; tensors and what else cannot be compared are only equal to themselves."""
    try:
        return first is other or bool(first == other)
    except Exception:
        return False


def check_aims(vlm: VLM, wanted: Sequence[Aim], least: int = 1) -> list[Site]:
    """The sites of directions and features; raises for one that cannot be climbed."""
    if len(wanted) < least:
        raise ValueError("nothing to do: give at least one direction and one seed")
    sites = []
    for d in wanted:
        if isinstance(d, Feature):
            sites.append(d.site(vlm))
            if not d.alive:
                raise ValueError(f"{d.label} is all zeros: nothing makes it fire")
            continue
        if not isinstance(d, Direction):
            kind = arguments.shown(d) if isinstance(d, str) else type(d).__name__
            raise TypeError(f"a Direction or Feature is needed, not {kind}: see nd.concept, nd.from_tensor, nd.feature")
        site = vlm.site(d.site)
        sites.append(site)
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
    return sites


def patterned(vlm: VLM, aim: Aim, pattern: Pattern | None) -> Aim:
    """What is climbed in place of a direction: its pattern, unless it is one already or `pattern` is None."""
    if pattern is None or isinstance(aim, Feature) or "pattern" in aim.provenance:
        return aim
    return pattern.of(vlm, aim)


def site_of(vlm: VLM, aim: Aim) -> Site:
    """The site at which something is climbed."""
    return vlm.site(aim.site) if isinstance(aim, Direction) else resolve(vlm, aim.where)
