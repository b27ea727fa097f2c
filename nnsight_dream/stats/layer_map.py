"""Layer by layer: every layer of one representation against every layer of another, each prepared only once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import choice, rows_of, shown, whole
from .folds import check_duplicates, check_groups, folds_of
from .ridge import LAMBDAS, check_lambdas, predict, side
from .scores import labels
from .similarity import (
    centred_kernel,
    compare_distances,
    compare_kernels,
    compare_neighbours,
    matrix,
    neighbours,
    ranked_distances,
)

if TYPE_CHECKING:
    from .scores import Labels, Score


MEASURES = ("predictivity", "cka", "cka biased", "knn", "rsa")


THERE, BACK, BOTH = "x to y", "y to x", "both"


@dataclass(frozen=True)
class _Measure:
    """How one layer is prepared, and how two prepared ones are compared, by direction."""

    ready: Callable[[np.ndarray, str], Any]
    compare: dict[str, Callable[[Any, Any], Score]]


def _measure(
    name: str, folds: np.ndarray | None, groups: np.ndarray | None, lambdas: np.ndarray, k: int, metric: str | None
) -> _Measure:
    if name == "predictivity":
        assert folds is not None
        return _Measure(
            lambda x, called: side(x, folds, called),
            {
                THERE: lambda a, b: predict(a, b, lambdas, groups),
                BACK: lambda a, b: predict(b, a, lambdas, groups),
            },
        )
    if name in ("cka", "cka biased"):
        debiased = name == "cka"
        label = "CKA, debiased" if debiased else "CKA"
        return _Measure(
            lambda x, called: centred_kernel(x, debiased, called),
            {BOTH: lambda a, b: compare_kernels(a, b, label, groups)},
        )
    if name == "knn":
        return _Measure(
            lambda x, called: neighbours(x, k, metric or "cosine", called),
            {BOTH: lambda a, b: compare_neighbours(a, b, groups)},
        )
    return _Measure(
        lambda x, called: ranked_distances(x, metric or "correlation", called),
        {BOTH: lambda a, b: compare_distances(a, b, groups)},
    )


def layer_map(
    xs: Mapping[Hashable, Any],
    ys: Mapping[Hashable, Any],
    measure: str = "predictivity",
    *,
    draws: int = 0,
    intervals: bool = True,
    groups: Labels | None = None,
    folds: int | np.ndarray = 5,
    lambdas: Sequence[float] | float = LAMBDAS,
    duplicates: str = "refuse",
    k: int = 10,
    metric: str | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A row for each layer of x, layer of y and direction: what `measure` says of the two.

    xs, ys     by layer (n, p) and (n, q); all the same items in the same order
    measure    "predictivity" (both directions), "cka" (debiased), "cka biased", "knn" or "rsa"
    draws      of nulls and intervals; 0 for neither. intervals=False leaves these out
    others     as in `linear_predictivity`, `cka`, `mutual_knn` and `rsa`; all layers share folds and draws.
               Duplicates are looked for in the last layer of each side: embeddings of one word are equal by right

    Columns: x_layer, y_layer, direction ("x to y", "y to x" or "both"), measure, value; with draws also value_low and
    value_high, null and null_high, p, and p_map: p corrected for having looked at all cells of the map, the share of
    draws whose best cell reaches the value (maximum statistic, Westfall and Young 1993). n is how many items.

    Raises ValueError for an unknown measure, no layer, and what the measures raise it for.
    """
    draws = _check(measure, xs, ys, draws)
    n = len(matrix(next(iter(ys.values())), "y"))
    member, split = labels(groups, n), None
    if measure == "predictivity":
        split = _split(xs, ys, folds, member, duplicates, seed, n)
    how = _measure(measure, split, member, check_lambdas(lambdas), k, metric)
    ready = {layer: how.ready(_layer(ys, layer, "y", n), f"y, layer {layer}") for layer in ys}
    rows: list[dict[str, Any]] = []
    nulls: list[np.ndarray] = []
    for x_layer in xs:
        a = how.ready(_layer(xs, x_layer, "x", n), f"x, layer {x_layer}")
        for y_layer, b in ready.items():
            for direction, compare in how.compare.items():
                score = compare(a, b)
                row: dict[str, Any] = dict(
                    x_layer=x_layer, y_layer=y_layer, direction=direction, measure=measure, value=score.value
                )
                if draws:
                    null = score.null(draws, seed=seed)
                    nulls.append(null.values)
                    low, high = score.interval(draws, seed=seed) if intervals else (None, None)
                    row |= dict(value_low=low, value_high=high, null=null.mean, null_high=null.high, p=null.p)
                rows.append(row)
    if draws:
        _correct(rows, nulls, draws)
    return [row | dict(n=n) for row in rows]


def _check(measure: Any, xs: Any, ys: Any, draws: Any) -> int:
    """The number of draws, if that, the measure and the layers are such that can be."""
    if not isinstance(measure, str) or measure not in MEASURES:
        raise ValueError(f"measure={shown(measure)}: allowed are {', '.join(MEASURES)}")
    draws = whole(draws, "draws", 0)
    for layers, name in ((xs, "xs"), (ys, "ys")):
        if not isinstance(layers, Mapping):
            raise TypeError(f"{name}={shown(layers)}: features (items, units) by layer are needed, such as {{4: x}}")
    if not xs or not ys:
        raise ValueError(f"{len(xs)} layers of x and {len(ys)} of y: at least one of each is needed")
    return draws


def _split(
    xs: Mapping[Hashable, Any],
    ys: Mapping[Hashable, Any],
    folds: int | np.ndarray,
    member: np.ndarray | None,
    duplicates: str,
    seed: int,
    n: int,
) -> np.ndarray:
    """The folds (n,) of predictivity, with no group in two of them and, unless allowed, no duplicate."""
    split = folds_of(folds, n, member, seed)
    if member is not None:
        check_groups(split, member)
    choice(duplicates, "duplicates", ("refuse", "allow"))
    if duplicates == "refuse":
        x, y = (_layer(layers, list(layers)[-1], name, n) for layers, name in ((xs, "x"), (ys, "y")))
        check_duplicates(x, y, split)
    return split


def _correct(rows: list[dict[str, Any]], nulls: list[np.ndarray], draws: int) -> None:
    """Give each row `p_map`: the share of draws whose best cell reaches its value."""
    best = np.nanmax(nulls, axis=0)  # the same partners in every cell
    for row in rows:
        beyond = int((best >= row["value"] - 1e-12).sum())
        row["p_map"] = (1 + beyond) / (1 + draws) if np.isfinite(row["value"]) else float("nan")


def _layer(layers: Mapping[Hashable, Any], layer: Hashable, name: str, n: int) -> np.ndarray:
    """One layer's features, loaded now: of those that are on disk one layer at a time is in memory."""
    values = matrix(layers[layer], f"{name}, layer {layer}")
    if len(values) != n:
        raise ValueError(f"{name}, layer {layer}: {len(values)} items where the first layer of y has {n}")
    return values


def peak(rows: Sequence[Mapping[str, Any]], direction: str | None = None) -> dict[str, Any]:
    """The row with the greatest value, of one direction or of all. Raises ValueError where there is none."""
    rows = rows_of(rows)
    some = [row for row in rows if direction in (None, row["direction"])]
    if not some:
        there = ", ".join(sorted({row["direction"] for row in rows})) or "no rows"
        raise ValueError(f"direction={direction!r} is in no row; there are {there}")
    return dict(max(some, key=lambda row: row["value"]))
