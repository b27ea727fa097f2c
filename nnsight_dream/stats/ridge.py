"""Linear predictivity: how well units of one representation are predicted linearly from another, on held-out items.

Ridge regression in its dual form. What depends on one side alone, a spectrum for each training set, is computed once
for each side (`Side`); then no choice of lambda costs a refit, and none costs a pass over units: the errors by which
lambda is chosen are sums over units, which the other side's kernel holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import choice, shown
from .folds import check_duplicates, check_groups, folds_of
from .scales import scaled, standardised, unit_columns, varying
from .scores import Score, labels
from .similarity import matrix, same_items

if TYPE_CHECKING:
    from .scores import Labels


LAMBDAS = tuple(10.0**k for k in range(-1, 8))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One training set of one side, standardised by itself: its kernel's eigenvalues and eigenvectors.

    rows      (m,) the training items
    values    (r,) eigenvalues above 0;  vectors (m, r)
    reach     by fold that is held out: (items of it, r), their kernel with the training items times `vectors`
    kernel    (n, n) of all items, standardised by the training items; only where lambda is chosen
    """

    rows: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    reach: dict[int, np.ndarray]
    kernel: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Side:
    """A representation (n, p) prepared to predict and to be predicted; about 20 n^2 numbers with 5 folds."""

    x: np.ndarray
    folds: np.ndarray
    outer: dict[int, Spectrum] = field(repr=False)
    inner: dict[tuple[int, int], Spectrum] = field(repr=False)


def side(x: Any, folds: np.ndarray, name: str = "x") -> Side:
    """Compute what of a representation does not depend on the other: 15 spectra with 5 folds."""
    x = matrix(x, name)
    k = int(folds.max()) + 1
    outer = {j: _spectrum(x, folds, (j,), name) for j in range(k)}
    return Side(x, folds, outer, {pair: _spectrum(x, folds, pair, name) for pair in combinations(range(k), 2)})


def _spectrum(x: np.ndarray, folds: np.ndarray, held_out: tuple[int, ...], name: str) -> Spectrum:
    rows = np.flatnonzero(~np.isin(folds, held_out))
    z = standardised(x, rows)
    kernel = z @ z.T
    values, vectors = np.linalg.eigh(kernel[np.ix_(rows, rows)])
    keep = values > values[-1] * len(rows) * np.finfo(float).eps
    if not values[-1] > 0:
        raise ValueError(
            f"{name}: without fold{'s' if len(held_out) > 1 else ''} {', '.join(map(str, held_out))} every column is "
            "constant, so nothing can be fitted; give other features or another seed="
        )
    values, vectors = values[keep], vectors[:, keep]
    reach = {j: kernel[np.ix_(folds == j, rows)] @ vectors for j in held_out}
    return Spectrum(rows, values, vectors, reach, kernel if len(held_out) > 1 else None)


@dataclass(frozen=True, eq=False)
class Predictivity(Score):
    """How well y is predicted from x; a Score, whose value is the mean over folds and units of Pearson's r.

    r            (q,) by unit of y, the mean over folds; NaN for a unit that is constant in every fold
    lambdas      (folds,) the penalty that was chosen in each
    at_edge      whether a chosen one is the least or the greatest on offer: then offer a wider range
    constant     how many units of y are constant in some fold and do not count there
    predicted, target   (n, q) held-out predictions and what they should be, in standard deviations of each training set
    """

    r: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(0))
    lambdas: np.ndarray = field(default_factory=lambda: np.zeros(0))
    at_edge: bool = False
    constant: int = 0
    predicted: np.ndarray = field(repr=False, default_factory=lambda: np.zeros((0, 0)))
    target: np.ndarray = field(repr=False, default_factory=lambda: np.zeros((0, 0)))


def choose_lambdas(a: Side, b: Side, lambdas: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """For each fold the lambda (folds,) that predicts b from a best in the other folds, each held out in turn.

    Best: the least squared error summed over items and units of b, in the fitted items' standard deviations.
    order   which item of b each of a is paired with, of its own fold, so that what is fitted holds the same items of b
    """
    order = np.arange(len(a.folds)) if order is None else order
    errors = np.zeros((len(a.outer), len(lambdas)))
    for pair, spectrum in a.inner.items():
        target = b.inner[pair].kernel
        assert target is not None
        rows, vectors = order[spectrum.rows], spectrum.vectors
        shrink = 1 / (spectrum.values + lambdas[:, None])  # (lambdas, r)
        middle = vectors.T @ target[np.ix_(rows, rows)] @ vectors
        for held, chosen_for in (pair, pair[::-1]):
            reach, where = spectrum.reach[held], order[a.folds == held]
            cross = np.einsum("ir,ir->r", reach, target[np.ix_(where, rows)] @ vectors)
            square = np.einsum("lr,rs,ls->l", shrink, middle * (reach.T @ reach), shrink, optimize=True)
            errors[chosen_for] += target[where, where].sum() - 2 * shrink @ cross + square
    return lambdas[errors.argmin(axis=1)]


@dataclass(frozen=True)
class _Held:
    """What was held out: r (folds, q), NaN where a unit is constant, lambdas (folds,), predicted and target (n, q)."""

    r: np.ndarray
    lambdas: np.ndarray
    predicted: np.ndarray
    target: np.ndarray

    @property
    def value(self) -> float:
        return float(np.nanmean(self.r, axis=1).mean())


def _hold_out(a: Side, b: Side, lambdas: np.ndarray, order: np.ndarray | None = None) -> _Held:
    chosen = choose_lambdas(a, b, lambdas, order)
    n, q = b.x.shape
    predicted, target, r = np.zeros((n, q)), np.zeros((n, q)), np.full((len(a.outer), q), np.nan)
    for j, spectrum in a.outer.items():
        held, z = a.folds == j, standardised(b.x, spectrum.rows)
        z = z if order is None else z[order]
        smoother = (spectrum.reach[j] / (spectrum.values + chosen[j])) @ spectrum.vectors.T
        predicted[held], target[held] = smoother @ z[spectrum.rows], z[held]
        counts = varying(z[held])
        if not counts.any():
            raise ValueError(f"y: every unit is constant in fold {j}, so none has a correlation; give another seed=")
        r[j, counts] = (unit_columns(predicted[held]) * unit_columns(z[held])).sum(0)[counts]
    return _Held(r, chosen, predicted, target)


def predict(a: Side, b: Side, lambdas: np.ndarray, groups: np.ndarray | None = None) -> Predictivity:
    """Predict b from a on held-out items, lambda chosen in the other folds."""
    prediction = _hold_out(a, b, lambdas)
    held_rows = [np.flatnonzero(a.folds == j) for j in a.outer]

    def weighted(weights: np.ndarray) -> np.ndarray:
        return np.mean(
            [_weighted_r(prediction.predicted[f], prediction.target[f], weights[:, f]) for f in held_rows], axis=0
        )

    finite = np.isfinite(prediction.r)
    mean = np.where(finite, prediction.r, 0).sum(0) / np.maximum(finite.sum(0), 1)
    return Predictivity(
        "linear predictivity",
        prediction.value,
        len(a.folds),
        groups,
        a.folds,
        lambda order: _hold_out(a, b, lambdas, order).value,
        weighted,
        r=np.where(finite.any(0), mean, np.nan),
        lambdas=prediction.lambdas,
        at_edge=len(lambdas) > 1 and bool(np.isin(prediction.lambdas, (lambdas.min(), lambdas.max())).any()),
        constant=int((~finite).any(0).sum()),
        predicted=prediction.predicted,
        target=prediction.target,
    )


def _weighted_r(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean over units of Pearson's r under each row of weights (draws, n); constant units are left out."""
    x, y = scaled(x, axis=0), scaled(y, axis=0)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    out = []
    for w in np.array_split(weights, max(1, len(weights) * x.shape[1] // 2_000_000)):
        total = w.sum(1, keepdims=True)
        mx, my = w @ x / total, w @ y / total
        cov = w @ (x * y) / total - mx * my
        vx, vy = w @ (x * x) / total - mx * mx, w @ (y * y) / total - my * my
        varies = (vx > 1e-12 * (x * x).mean(axis=0)) & (vy > 1e-12 * (y * y).mean(axis=0))
        r = np.where(varies, cov / np.sqrt(np.where(varies, vx * vy, 1)), 0).sum(1)
        out.append(np.where(varies.any(1), r / np.maximum(varies.sum(1), 1), np.nan))
    return np.concatenate(out)


def check_lambdas(lambdas: Sequence[float] | float) -> np.ndarray:
    """Penalties as an array. Raises ValueError unless all are above 0."""
    try:
        values = np.atleast_1d(np.asarray(lambdas, dtype=np.float64))
    except (TypeError, ValueError):
        values = np.zeros(0)
    if (
        isinstance(lambdas, (bool, str))
        or values.ndim != 1
        or not len(values)
        or not (np.isfinite(values) & (values > 0)).all()
    ):
        raise ValueError(f"lambdas={shown(lambdas)}: one or more numbers above 0 are needed, such as {LAMBDAS}")
    return values


def linear_predictivity(
    x: Any,
    y: Any,
    *,
    lambdas: Sequence[float] | float = LAMBDAS,
    folds: int | np.ndarray = 5,
    groups: Labels | None = None,
    duplicates: str = "refuse",
    seed: int = 0,
) -> Predictivity:
    """How well ridge regression predicts y (n, q) from x (n, p) on held-out items (arXiv 2509.20751).

        W = argmin |Z_y - Z_x W|^2 + lambda |W|^2,    value = mean over folds and units of r(Z_x W, Z_y)

    Z are features less their mean in units of their standard deviation, both over the fitted items only. Each fold is
    held out in turn; its lambda is the one that does best on the other folds, each held out in turn of these: the
    fold that is tested has no part in it. Lambda is in scikit-learn's units (`alpha` of Ridge).

    folds        how many, or (n,) the fold of each item
    groups       (n,) what must not be torn apart by folds
    duplicates   "refuse" or "allow" equal rows of x, or of y, in different folds
    seed         of the folds

    A constant unit of x is left out of the fit, one of y of the mean; `constant` counts these. In the
    null, items of y swap within folds and all is fitted anew, choice of lambda included: a draw takes about as long as
    a fit. (Keeping the fits would not do: what one fold's fit has learned of another's pairs comes back in the other's
    fit of it, and chance would look too narrow.)
    The interval resamples held-out items and keeps the fits, so that it is somewhat narrow: of 100 items with 20 and 8
    units, 95 % intervals held the mean of new samples in 87 %. Both directions: swap x and y.
    Raises ValueError for unequal numbers, NaN, fewer than 3 folds or items of a fold, torn groups and duplicates.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 8))
    >>> found = linear_predictivity(x, x @ np.ones((8, 3)))
    >>> round(found.value, 2), found.r.shape
    (1.0, (3,))
    """
    choice(duplicates, "duplicates", ("refuse", "allow"))
    x, y, penalties = matrix(x, "x"), matrix(y, "y"), check_lambdas(lambdas)
    same_items(x, y)
    member = labels(groups, len(x))
    split = folds_of(folds, len(x), member, seed)
    if member is not None:
        check_groups(split, member)
    if duplicates == "refuse":
        check_duplicates(x, y, split)
    return predict(side(x, split), side(y, split, "y"), penalties, member)
