"""Scores: one number of how alike two representations are, what it would be by chance, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from ..arguments import SEED_MOST, listed, real, shown, whole
from .intervals import wilson

Labels = Sequence[Hashable] | np.ndarray


_AnyScore = TypeVar("_AnyScore", bound="Score")


@dataclass(frozen=True)
class Null:
    """What a score would be were items paired by chance: its `values` (draws,), and `p`, one-sided, at least
    1 / (draws + 1)."""

    values: np.ndarray
    p: float

    @property
    def mean(self) -> float:
        """The chance level."""
        return float(self.values.mean())

    @property
    def high(self) -> float:
        """The level that 5 % of chance pairings pass."""
        return float(np.quantile(self.values, 0.95))


@dataclass(frozen=True, eq=False)
class Score:
    """A similarity of two representations; `float(score)` is its `value`.

    measure, n   what was measured, over how many items
    groups       (n,) labels of what belongs together, or None: groups change partners, and are resampled, as wholes
    strata       (n,) labels within which that happens, or None
    """

    measure: str
    value: float
    n: int
    groups: np.ndarray | None = field(repr=False, default=None)
    strata: np.ndarray | None = field(repr=False, default=None)
    _permuted: Callable[[np.ndarray], float] = field(repr=False, default=lambda order: float("nan"))
    _weighted: Callable[[np.ndarray], np.ndarray] = field(repr=False, default=lambda weights: weights[:, 0])
    _is_rate: bool = field(repr=False, default=False)

    def __float__(self) -> float:
        return self.value

    def null(self, draws: int = 1000, *, seed: int = 0) -> Null:
        """The permutation test: rows of y change partners, `draws` times (Fisher 1935). Groups swap with groups of
        their size, rows in order.

        A value that is not a number has no p. Raises ValueError for draws below 1, and where no two groups have the
        same size.
        """
        draws, random = at_least(draws=draws), generator(seed)
        values = np.array([self._permuted(self._order(random)) for _ in range(draws)])
        if not np.isfinite(self.value):  # such as a rank correlation with what does not vary
            return Null(values, float("nan"))
        # rounding must not tell apart what is equal
        beyond = int((values >= self.value - 1e-12 * max(1.0, abs(self.value))).sum())
        return Null(values, (1 + beyond) / (1 + draws))

    def interval(self, draws: int = 1000, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """The bootstrap interval (low, high): items, or whole groups, are drawn with replacement (Efron 1979).

        An item that is drawn twice is never compared with its copy, and fits, neighbours and galleries stay as they
        are. The quantiles are those of the draws, shifted so that their mean is the value. Where a rate is 0 or 1, of
        which a bootstrap would draw no doubt, the interval is Wilson's (1927), each group counting once.

        Raises ValueError for draws below 1 and a level outside 0 to 1.
        """
        if self._is_rate and self.value in (0.0, 1.0):
            apart = len(np.unique(self._labels()[0]))
            return wilson(round(self.value) * apart, apart)
        return _quantiles(self.resampled(draws, seed=seed), self.value, level)

    def resampled(self, draws: int = 1000, *, seed: int = 0) -> np.ndarray:
        """Values (draws,) of the bootstrap; the same items are drawn for all scores of one seed, groups and strata."""
        draws, random = at_least(draws=draws), generator(seed)
        groups, strata = self._labels()
        weights = np.zeros((draws, self.n))
        for stratum in range(strata.max() + 1):
            rows = np.flatnonzero(strata == stratum)
            names, member = np.unique(groups[rows], return_inverse=True)
            counts = random.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
            weights[:, rows] = counts[:, member]
        return self._weighted(weights)

    def within(self: _AnyScore, kinds: Labels) -> _AnyScore:
        """The same score, whose null only swaps partners of one kind (n,), such as a category: what it then passes
        chance by is more than which kind an item is of.

        Items that are alone in their kind keep their partner. Raises ValueError unless there is a kind for each item.
        """
        numbers = labels(kinds, self.n)
        assert numbers is not None
        strata = numbers if self.strata is None else numbers * (int(self.strata.max()) + 1) + self.strata
        return replace(self, strata=np.unique(strata, return_inverse=True)[1])

    def row(self, draws: int = 1000, *, seed: int = 0) -> dict[str, Any]:
        """A table's row: value, its interval low to high, mean and 95 % level of chance, p, n; draws=0 leaves out all
        but the value."""
        if whole(draws, "draws", 0) == 0:
            return dict(measure=self.measure, value=self.value, n=self.n)
        null, (low, high) = self.null(draws, seed=seed), self.interval(draws, seed=seed)
        columns = dict(value=self.value, value_low=low, value_high=high, null=null.mean, null_high=null.high, p=null.p)
        return dict(measure=self.measure, **columns, n=self.n)

    def _labels(self) -> tuple[np.ndarray, np.ndarray]:
        groups = np.arange(self.n) if self.groups is None else self.groups
        return groups, np.zeros(self.n, dtype=int) if self.strata is None else self.strata

    def _order(self, random: np.random.Generator) -> np.ndarray:
        """Which row of y each row of x is paired with."""
        order = np.arange(self.n)
        groups, strata = self._labels()
        exchanged = False
        for stratum in range(strata.max() + 1):
            inside = np.flatnonzero(strata == stratum)
            member = np.unique(groups[inside], return_inverse=True)[1]
            sizes = np.bincount(member)
            rows = inside[np.argsort(member, kind="stable")]  # group by group
            begins = np.cumsum(sizes) - sizes
            for size in np.unique(sizes):
                these = np.flatnonzero(sizes == size)
                exchanged |= len(these) > 1
                block = begins[these][:, None] + np.arange(size)
                order[rows[block]] = rows[block[random.permutation(len(these))]]
        if not exchanged:
            raise ValueError(
                "no two groups have the same size, so none can change partners; leave groups= out, or keep the same "
                "number of items of each group"
            )
        return order


def _quantiles(values: np.ndarray, middle: float, level: float) -> tuple[float, float]:
    level = real(level, "level", above=0, below=1, such_as=0.95)
    values = values[np.isfinite(values)]  # a draw of one item alone has no correlation
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values - values.mean() + middle, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def change(
    score: Score, before: Score, draws: int = 1000, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """(score - before, low, high): how a score of the same items changed, with its paired bootstrap interval.

    Both are resampled by the same draws of items, so that what is hard about an item cancels. Raises ValueError for
    scores of other items, groups or strata.
    """
    same = score.n == before.n and all(
        np.array_equal(a, b) for a, b in zip(score._labels(), before._labels(), strict=True)
    )
    if not same:
        raise ValueError(
            f"scores of {score.n} and {before.n} items, or of other groups or folds: give the same to both"
        )
    difference = score.value - before.value
    values = score.resampled(draws, seed=seed) - before.resampled(draws, seed=seed)
    return difference, *_quantiles(values, difference, level)


def labels(groups: Labels | None, n: int) -> np.ndarray | None:
    """Groups as numbers from 0 in order of first appearance. Raises ValueError unless there is one for each item."""
    if groups is None:
        return None
    if isinstance(groups, (str, bytes)) or not hasattr(groups, "__len__"):
        raise TypeError(f"groups={shown(groups)}: a list with a label for each item is needed")
    if len(groups) != n:
        raise ValueError(f"groups= has {len(groups)} labels for {n} items: one for each is needed")
    each = listed(groups, "groups", "a label for each item is")
    for i, label in enumerate(each):
        if isinstance(label, (list, dict, set)) or label != label:
            raise ValueError(f"groups= has {shown(label)} for item {i}: a label such as a number or a text is needed")
    number = {label: i for i, label in enumerate(dict.fromkeys(each))}
    return np.array([number[label] for label in each])


def at_least(**numbers: Any) -> int:
    """Whole numbers from 1, as ints, the last of them returned. Raises ValueError for another."""
    return [whole(value, name, 1) for name, value in numbers.items()][-1]


def generator(seed: Any) -> np.random.Generator:
    """Chance by a seed from 0. Raises ValueError for another."""
    return np.random.default_rng(whole(seed, "seed", 0, SEED_MOST))
