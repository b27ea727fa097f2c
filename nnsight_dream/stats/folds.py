"""Folds: which items are held out together, so that nothing is tested on what it was fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import is_whole, plain, shown, whole
from .scores import generator, labels
from .similarity import matrix, same_items

if TYPE_CHECKING:
    from .scores import Labels


LEAST = 3  # items of a fold, for a correlation to mean anything


def make_folds(n: int, k: int = 5, *, groups: Labels | None = None, seed: int = 0) -> np.ndarray:
    """Which of k folds each of n items is in, (n,) from 0, at random and of sizes as equal as groups allow.

    groups   (n,) what must not be torn apart, such as the picture that several captions describe

    Raises ValueError for fewer than 3 folds (one to test, one to choose lambda, one to fit), for folds of fewer than
    3 items, and for fewer groups than folds.
    """
    n = whole(n, "n", 0)
    # by hand: scikit-learn's GroupKFold either ignores the seed or, shuffled, the sizes of groups
    if not is_whole(k) or (k := int(plain(k))) < 3:
        raise ValueError(f"folds={shown(k)}: at least 3 are needed, one to test, one to choose lambda, one to fit")
    member = np.arange(n) if (numbers := labels(groups, n)) is None else numbers
    count = int(member.max()) + 1 if n else 0
    sizes = np.bincount(member, minlength=count)
    order = generator(seed).permutation(count)
    order = order[np.argsort(-sizes[order], kind="stable")]  # the large ones first: the small even out
    filled, fold = np.zeros(k, dtype=int), np.empty(count, dtype=int)
    for group in order:
        fold[group] = int(np.argmin(filled))
        filled[fold[group]] += sizes[group]
    if filled.min() < LEAST:
        of = f"{n} items" if groups is None else f"{n} items in {count} groups"
        raise ValueError(
            f"{of} make {k} folds of {', '.join(map(str, filled))}: at least {LEAST} in each are needed; give more "
            f"items or folds={max(3, min(k - 1, n // LEAST))}"
        )
    return fold[member]


def duplicate_groups(x: Any, y: Any) -> np.ndarray:
    """Groups (n,) of items that share their row of x or of y, directly or through others: what `groups=` takes."""
    x, y = matrix(x, "x", 1), matrix(y, "y", 1)
    same_items(x, y)
    group = np.arange(len(x))
    parts = [np.unique(side, axis=0, return_inverse=True)[1].ravel() for side in (x, y)]
    while True:
        before = group.copy()
        for part in parts:
            least = np.full(part.max() + 1, len(x))
            np.minimum.at(least, part, group)
            group = least[part]
        if (group == before).all():
            return group


def folds_of(folds: Any, n: int, groups: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Folds by how many there are to be, or as the caller chose them: numbers from 0, (n,)."""
    if getattr(folds, "shape", None) == () or not hasattr(folds, "__len__"):
        return make_folds(n, folds, groups=groups, seed=seed)
    return given_folds(folds, n)


def given_folds(folds: Any, n: int) -> np.ndarray:
    """Folds that the caller chose, as numbers from 0. Raises ValueError for fewer than 3, or 3 items in one."""
    if isinstance(folds, (str, bytes, dict, set)):
        raise TypeError(f"folds={shown(folds)}: how many folds, or the fold of each item, is needed")
    if len(folds) != n:
        raise ValueError(f"folds= has {len(folds)} labels for {n} items: one for each, or how many, is needed")
    chosen = np.asarray(folds.detach().cpu() if hasattr(folds, "detach") else folds)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iufbSU" or (chosen != chosen).any():
        raise ValueError(f"folds={shown(folds)}: one number or name of a fold for each item is needed")
    numbers = np.unique(chosen, return_inverse=True)[1]
    counts = np.bincount(numbers)
    if len(counts) < 3 or counts.min() < LEAST:
        raise ValueError(f"folds= has folds of {counts.tolist()} items: at least 3 folds of {LEAST} or more are needed")
    return numbers


def check_groups(folds: np.ndarray, groups: np.ndarray) -> None:
    """Raise ValueError where a group is in several folds."""
    first = {int(g): int(f) for g, f in zip(groups[::-1], folds[::-1], strict=True)}
    for i, (g, f) in enumerate(zip(groups, folds, strict=True)):
        if first[int(g)] != f:
            raise ValueError(f"folds= tears the group of item {i} apart: all items of a group must be in one fold")


def check_duplicates(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> None:
    """Raise ValueError where the same row of x, or of y, is in several folds: what was fitted would be tested."""
    for values, name in ((x, "x"), (y, "y")):
        _, first, which = np.unique(values, axis=0, return_index=True, return_inverse=True)
        torn = np.flatnonzero(folds != folds[first[which.ravel()]])
        if len(torn):
            i, j = int(first[which.ravel()[torn[0]]]), int(torn[0])
            raise ValueError(
                f"{name}: items {i} and {j} are equal and in different folds (so are {len(torn)} in all): a fit would "
                "be tested on what it has seen. Keep them together with groups=duplicate_groups(x, y), or say "
                "duplicates='allow' where equal rows are chance, as for the last word's embedding"
            )
