"""Series of pictures: from one direction to another, sums of directions, one added weakly to strongly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..directions.direction import Direction
from ..sae.feature import Feature
from .prototypes import Prototypes
from .synthesize import synthesize

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from .request import Aim


STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0)


@arguments.strict
def interpolate(vlm: VLM, first: Aim, second: Aim, count: int = 7, **how: Any) -> Prototypes:
    """Pictures from one direction to another: (1 - t) first + t second, t in `count` even steps from 0 to 1.

    Directions are brought to norm 1 first; features are taken as they are. `how` goes to `synthesize`: one seed for all
    by default. Raises ValueError for a count below 2, and as adding the two does.
    """
    steps = arguments.whole(count, "count", 2) - 1
    pairs = [(1 - i / steps, i / steps) for i in range(steps + 1)]
    return _drawn(vlm, [[_sum((a, first), (b, second)) for a, b in pairs]], how)


@arguments.strict
def sums(vlm: VLM, rows: Sequence[Aim], columns: Sequence[Aim], **how: Any) -> Prototypes:
    """A table of pictures: in each cell the sum of the row's direction and the column's, each of norm 1.

    `how` goes to `synthesize`. Raises ValueError for no row or column, and as adding two does.
    """
    down, across = (list(arguments.listed(x, n, "directions are")) for x, n in ((rows, "rows"), (columns, "columns")))
    if not down or not across:
        raise ValueError(f"{len(down)} rows and {len(across)} columns: at least one of each is needed")
    return _drawn(vlm, [[_sum((1, a), (1, b)) for b in across] for a in down], how)


@arguments.strict
def strengths(vlm: VLM, base: Aim, added: Aim, weights: Sequence[float] = STRENGTHS, **how: Any) -> Prototypes:
    """Pictures of base + w added, for each weight w: a direction added weakly to strongly; each of norm 1 before.

    A direction's own length changes nothing, since the score is a cosine: only beside another is it strong or weak.
    `how` goes to `synthesize`. Raises ValueError for no weight, and as adding the two does.
    """
    values = list(arguments.listed(weights, "weights", "numbers, such as [0.25, 0.5, 1], are"))
    if not values:
        raise ValueError("weights=[] asks for nothing: give numbers, such as [0.25, 0.5, 1]")
    return _drawn(vlm, [[_sum((1, base), (arguments.real(w, "weights"), added)) for w in values]], how)


def _sum(*terms: tuple[float, Aim]) -> Aim:
    """A weighted sum of directions of norm 1, or of features, with the weights in its label."""
    parts: list[Any] = [aim.unit() if isinstance(aim, Direction) else aim for _, aim in terms]
    nonzero = [(weight, part) for (weight, _), part in zip(terms, parts, strict=True) if weight] or [(0.0, parts[0])]
    whole: Any = sum((weight * part for weight, part in nonzero[1:]), nonzero[0][0] * nonzero[0][1])
    labels = [(weight, aim.label) for weight, aim in terms if weight]
    label = " + ".join(name if weight == 1 else f"{weight:.2g} {name}" for weight, name in labels)
    label = label.replace("+ -", "- ") or whole.label
    return whole.but(label=label) if isinstance(whole, Feature) else dataclasses.replace(whole, label=label)


def _drawn(vlm: VLM, rows: list[list[Aim]], how: dict[str, Any]) -> Prototypes:
    prototypes: Any = synthesize(vlm, rows, **how)
    return prototypes if isinstance(prototypes, Prototypes) else Prototypes([prototypes])
