"""Intervals: how sure a rate is."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from ..arguments import is_whole, listed, real, shown, whole


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval (low, high) of a rate of `hits` among `n`; 95 % at z = 1.96 (Wilson 1927). (0, 1) for n = 0.

    Raises ValueError for hits outside 0 to n.

    >>> low, high = wilson(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    z = real(z, "z", above=0)
    if not is_whole(hits) or not is_whole(n) or not 0 <= hits <= n:
        raise ValueError(f"hits={shown(hits)} of n={shown(n)}: from 0 to n is needed")
    if n == 0:
        return 0.0, 1.0
    p = hits / n  # by hand: scipy and statsmodels take a level where this takes z
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)
    return max(0.0, low), min(1.0, high)  # rounding alone leads out


def bootstrap(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval (low, high) of a mean, from `draws` resamples of whole clusters (Efron 1979).

    clusters   what belongs together, such as the concept of each value: pictures of one concept are not independent

    Raises ValueError for no value, unequal lengths, a level outside 0 to 1, or draws below 1.

    >>> low, high = bootstrap([0, 0, 1, 1, 1, 1])
    >>> 0 <= low < 4 / 6 < high <= 1
    True
    """
    draws, level = whole(draws, "draws", 1), real(level, "level", above=0, below=1, such_as=0.95)
    values = listed(values, "values", "a list of numbers is")
    values = [real(float(v) if isinstance(v, (bool, np.bool_)) else v, f"values[{i}]") for i, v in enumerate(values)]
    if not values:
        raise ValueError("0 values: at least one is needed")
    labels = list(range(len(values))) if clusters is None else listed(clusters, "clusters", "a label for each value is")
    if wrong := [label for label in labels if isinstance(label, (list, dict, set))]:
        raise TypeError(f"clusters= holds {shown(wrong[0])}: labels such as numbers or texts are needed")
    if len(labels) != len(values):
        raise ValueError(f"{len(values)} values but {len(labels)} clusters: one for each value is needed")
    # by hand: scipy's bootstrap resamples values, not whole clusters of unequal sizes
    number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    sums, counts = np.zeros(len(number)), np.zeros(len(number))
    for value, label in zip(values, labels, strict=True):
        sums[number[label]] += value
        counts[number[label]] += 1
    rows = np.random.default_rng(whole(seed, "seed", 0)).integers(0, len(number), (draws, len(number)))
    means = sums[rows].sum(1) / counts[rows].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
