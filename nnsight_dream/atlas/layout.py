"""Where pictures lie in the map: vectors in two dimensions, and from there on a grid on which nothing overlaps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import arguments

BLOCK = 400  # most cells that are assigned in one piece


AT_ONCE = 2**25  # numbers of a table of cosines that are held


def flat(vectors: Any, *, seed: int = 0) -> np.ndarray:
    """Vectors (n, d) in two dimensions (n, 2), those of high cosine near each other: t-SNE of scikit-learn.

    Method: van der Maaten and Hinton 2008. Fewer than five are laid in a line. Raises ImportError without scikit-learn,
    ValueError for what is not (n, d) or not finite.
    """
    rows = _rows(vectors)
    count = len(rows)
    if count < 5:
        return np.stack([np.arange(count), np.zeros(count)], 1).astype(np.float64)
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError:
        raise ImportError(
            "an atlas is laid out with scikit-learn: pip install 'nnsight-dream[atlas]', or give points= of your own"
        ) from None
    perplexity = min(30.0, (count - 1) / 4)
    tsne = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed, max_iter=750)
    return np.asarray(tsne.fit_transform(rows), dtype=np.float64)


def nearest(vectors: Any, count: int = 6) -> np.ndarray:
    """For each of vectors (n, d) the `count` others of highest cosine (n, count), the nearest first; fewer if n is."""
    rows = _rows(vectors)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-30)
    count = min(arguments.whole(count, "count", 1), len(rows) - 1)
    neighbours = np.zeros((len(rows), count), dtype=int)
    for start in range(0, len(rows), step := max(1, AT_ONCE // len(rows))):
        cosines = rows[start : start + step] @ rows.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -np.inf
        best = np.argpartition(cosines, -count, axis=1)[:, -count:] if count else np.zeros((len(cosines), 0), int)
        order = np.argsort(-np.take_along_axis(cosines, best, 1), axis=1, kind="stable")
        neighbours[start : start + step] = np.take_along_axis(best, order, 1)
    return neighbours


def _rows(vectors: Any) -> np.ndarray:
    rows = np.asarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or not len(rows) or not np.isfinite(rows).all():
        raise ValueError(f"vectors= of shape {rows.shape}: finite numbers (n, d), a row for each picture, are needed")
    return rows


def snapped(points: Any, *, columns: int | None = None) -> np.ndarray:
    """Cells (n, 2), column and row, one for each of points (n, 2): near points in near cells, no two in one.

    columns   of the grid; by default a quarter more columns than rows

    Points are divided at the median, side by side and one above the other, until few enough are left to be assigned to
    their cells at the least sum of squared distances (scipy's linear_sum_assignment). The same points give the same
    cells. Raises ValueError for what is not (n, 2) or not finite, and for columns below 1.
    """
    places = np.asarray(points, dtype=np.float64)
    if places.ndim != 2 or places.shape[1] != 2 or not len(places) or not np.isfinite(places).all():
        raise ValueError(f"points= of shape {places.shape}: finite numbers (n, 2), x and y of each, are needed")
    count = len(places)
    wide = math.ceil(math.sqrt(1.25 * count)) if columns is None else arguments.whole(columns, "columns", 1)
    cells = np.zeros((count, 2), dtype=int)
    _share(places, np.arange(count), (0, 0, wide, math.ceil(count / wide)), cells)
    return cells


def _share(places: np.ndarray, members: np.ndarray, block: tuple[int, int, int, int], cells: np.ndarray) -> None:
    """Give members cells of a block (column, row, width, height), which has at least as many."""
    x, y, wide, high = block
    if not len(members):
        return
    if wide * high <= BLOCK:
        cells[members] = _assigned(places[members], wide, high) + np.array((x, y))
        return
    axis = 0 if wide >= high else 1
    half = (wide, high)[axis] // 2
    parts = ((x, y, half, high), (x + half, y, wide - half, high))
    if axis:
        parts = ((x, y, wide, half), (x, y + half, wide, high - half))
    room = [part[2] * part[3] for part in parts]
    first = min(room[0], max(len(members) - room[1], round(len(members) * room[0] / sum(room))))
    order = members[np.argsort(places[members, axis], kind="stable")]
    _share(places, order[:first], parts[0], cells)
    _share(places, order[first:], parts[1], cells)


def _assigned(points: np.ndarray, wide: int, high: int) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    low, most = points.min(0), points.max(0)
    scaled = (points - low) / np.where(most > low, most - low, 1) * (wide - 1, high - 1)
    grid = np.stack(np.meshgrid(np.arange(wide), np.arange(high)), -1).reshape(-1, 2)
    cost = ((scaled[:, None] - grid[None]) ** 2).sum(-1)
    which, where = linear_sum_assignment(cost)
    cells: np.ndarray = grid[where[np.argsort(which)]]
    return cells
