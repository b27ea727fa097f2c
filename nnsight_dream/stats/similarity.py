"""Similarity of two representations of the same items: matrices in, a `Score` out, with its null and its interval.

x and y are (n, p) and (n, q): row i of both stands for item i, such as a picture and its caption. Features of NumPy or
torch, any floating type; all is computed in float64. Memory goes with n x n. How well one is predicted linearly from
the other is in `predictivity.py`; a map over layers in `layer_maps.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import shown
from .scales import centred as from_mean
from .scales import rounding, scaled, standardised, unit_rows, varying
from .scores import Score, at_least, labels

if TYPE_CHECKING:
    from .scores import Labels


METRICS = ("correlation", "cosine", "euclidean")


SMALL = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # floating types that NumPy has from others


def matrix(x: Any, name: str, least: int = 4) -> np.ndarray:
    """Features as float64 (n, p). Raises ValueError for another shape, fewer than `least` rows, NaN or infinity."""
    if hasattr(x, "detach"):
        if x.is_meta:
            raise ValueError(f"{name}: a tensor on the device 'meta' holds no numbers; load the features first")
        if x.is_complex() or str(x.dtype) == "torch.bool":
            raise ValueError(f"{name}: numbers of shape (items, units) are needed; got {x.dtype} {tuple(x.shape)}")
        x = (x.to_dense() if x.is_sparse else x).detach().cpu().double().numpy()
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError(f"{name}: a masked array has items without numbers; leave them out of x and y alike")
    try:
        x = np.asarray(x)
    except ValueError:  # rows of different lengths
        raise ValueError(f"{name}: numbers of shape (items, units) are needed; got rows of different lengths") from None
    if x.ndim != 2 or 0 in x.shape or (x.dtype.kind not in "fiu" and x.dtype.name not in SMALL):
        raise ValueError(f"{name}: numbers of shape (items, units) are needed; got {x.dtype} {x.shape}")
    x = x.astype(np.float64)
    if len(x) < least:
        raise ValueError(f"{name}: at least {least} items are needed; there are {len(x)}")
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(
            f"{name}: {int((~np.isfinite(x)).sum())} of {x.size} numbers are not finite, the first in row {row}, "
            f"column {column}; leave such items out of x and y alike, or read the features in float32"
        )
    if not varying(x).any():
        raise ValueError(f"{name}: every column is constant, so nothing tells the {len(x)} items apart")
    return x


def same_items(x: Any, y: Any) -> None:
    """Raise ValueError unless two matrices have as many rows."""
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} items and y {len(y)}: row i of both must stand for the same item")


def standardise(x: Any) -> np.ndarray:
    """Columns (units) with mean 0 and standard deviation 1 over all items; constant ones become 0.

    Few units of language models have values hundreds of times those of the others ("massive activations"); without
    this, kernels, distances and cosines are theirs alone.
    """
    return standardised(matrix(x, "x", 2))


def similarity(x: np.ndarray, metric: str, name: str = "x") -> np.ndarray:
    """How alike items are, (n, n): Pearson correlation over units, cosine, or minus the Euclidean distance squared.

    Raises ValueError for another metric, and for items without a correlation or cosine.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={shown(metric)}: allowed are {', '.join(METRICS)}")
    if metric != "euclidean":
        none = np.asarray(~varying(x.T) if metric == "correlation" else ~x.any(axis=1))
        if none.any():
            raise ValueError(
                f"{name}: all units of item {int(np.argmax(none))} are {'equal' if metric == 'correlation' else '0'}, "
                f"so it has no {metric} with others; use metric='euclidean', or leave the item out of x and y"
            )
    seen: dict[bytes, int] = {}
    which = [seen.setdefault(row.tobytes(), len(seen)) for row in x + 0.0]  # -0 is 0
    if len(seen) < len(x):  # so that equal items are exactly alike, and not but for rounding
        places = np.unique(which, return_index=True)[1]
        return similarity(x[places], metric, name)[np.ix_(which, which)]
    if metric == "euclidean":  # shifts change no distance, and what is near 0 is rounded less
        x = from_mean(x)
        square = (x * x).sum(1)
        alike = np.minimum(2 * (x @ x.T) - (square[:, None] + square), 0.0)
        np.fill_diagonal(alike, 0.0)
        return alike
    if metric == "correlation":
        x = scaled(x, axis=1)
        x = x - x.mean(1, keepdims=True)
    unit = unit_rows(x)
    return unit @ unit.T


def centred_kernel(x: np.ndarray, debiased: bool = True, name: str = "x") -> np.ndarray:
    """The linear kernel x x^T, centred, scaled to norm 1, (n, n). Debiased: "U-centred", its diagonal 0
    (Szekely and Rizzo 2014), whose inner products are the unbiased HSIC of Song et al. (2012).

    Raises ValueError where nothing is left when the diagonal is taken away: all pairs of items are equally alike."""
    x = from_mean(x)
    kernel = x @ x.T
    n, whole = len(kernel), np.linalg.norm(kernel)
    if debiased:
        np.fill_diagonal(kernel, 0)
        rows = kernel.sum(axis=1) / (n - 2)
        kernel = kernel - rows[:, None] - rows + kernel.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(kernel, 0)
        if not np.linalg.norm(kernel) > 1e-12 * whole:
            raise ValueError(
                f"{name}: all pairs of the {n} items are equally alike, so that debiased CKA has nothing to compare; "
                "give debiased=False, or more items"
            )
    return kernel / np.linalg.norm(kernel)


def compare_kernels(a: np.ndarray, b: np.ndarray, name: str, groups: np.ndarray | None) -> Score:
    """The cosine of two centred kernels as a Score."""
    products = a * b, a * a, b * b

    def weighted(weights: np.ndarray) -> np.ndarray:
        # an item with itself counts once for each draw of it, pairs of items the product of both. To first order
        # nothing changes when kernels are centred by the drawn items, as rows of the other kernel sum to zero
        ab, aa, bb = (((weights @ m) * weights).sum(1) - (weights * (weights - 1)) @ np.diag(m) for m in products)
        return ab / np.sqrt(aa * bb)

    def permuted(order: np.ndarray) -> float:
        return float(np.vdot(a, b[np.ix_(order, order)]))

    return Score(name, float(np.vdot(a, b)), len(a), groups, None, permuted, weighted)


def cka(x: Any, y: Any, *, debiased: bool = True, groups: Labels | None = None) -> Score:
    """Linear centred kernel alignment of x (n, p) and y (n, q) (Kornblith et al. 2019).

        CKA = <K, L> / (|K| |L|),   K = H x x^T H,   L = H y y^T H,   H = 1 - 1/n

    debiased   zero diagonals and U-centred kernels instead, so that chance is 0 at any width (Murphy et al. 2024);
               the other is biased upwards by p / n
    groups     (n,) what belongs together: only nulls and intervals use it

    From 0 (debiased: somewhat below) to 1; unchanged by orthogonal maps, scaling and shifts of either side.
    Raises ValueError for fewer than 4 items, unequal numbers, NaN, or where all items are the same.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(float(cka(x, 3 * x[:, ::-1] + 1)), 6)
    1.0
    """
    x, y = matrix(x, "x"), matrix(y, "y")
    same_items(x, y)
    name = "CKA, debiased" if debiased else "CKA"
    kernels = centred_kernel(x, debiased), centred_kernel(y, debiased, "y")
    return compare_kernels(*kernels, name, labels(groups, len(x)))


def neighbours(x: np.ndarray, k: int, metric: str = "cosine", name: str = "x") -> np.ndarray:
    """The k nearest other items of each, (n, k); of equals the first. Raises ValueError for k outside 1 to n - 1."""
    k = at_least(k=k)
    if k >= len(x):
        raise ValueError(f"k={k}: each of {len(x)} items has {len(x) - 1} others")
    alike = similarity(x, metric, name)
    alike = np.round(alike / max(1e-300, float(np.abs(alike).max())), 13)  # rounding is no difference
    np.fill_diagonal(alike, -np.inf)
    return np.argsort(-alike, axis=1, kind="stable")[:, :k]


def compare_neighbours(a: np.ndarray, b: np.ndarray, groups: np.ndarray | None) -> Score:
    """The share of neighbours (n, k) that two representations have in common, as a Score."""
    n, k = a.shape
    member = np.zeros((n, n), dtype=bool)
    member[np.arange(n)[:, None], b] = True
    shared = member[np.arange(n)[:, None], a].mean(1)

    def permuted(order: np.ndarray) -> float:
        return float(member[order[:, None], order[a]].mean())

    return Score(f"mutual {k}-NN", float(shared.mean()), n, groups, None, permuted, lambda w: (w @ shared) / w.sum(1))


def mutual_knn(x: Any, y: Any, k: int = 10, *, metric: str = "cosine", groups: Labels | None = None) -> Score:
    """The mean share of the k nearest neighbours of an item in x that are among its k nearest in y (Huh et al. 2024).

    From 0 to 1; k / (n - 1) by chance. Raises ValueError for k outside 1 to n - 1, unequal numbers, NaN.
    """
    x, y = matrix(x, "x"), matrix(y, "y")
    same_items(x, y)
    return compare_neighbours(neighbours(x, k, metric), neighbours(y, k, metric, "y"), labels(groups, len(x)))


def retrieval(x: Any, y: Any, k: int = 1, *, centred: bool = True, groups: Labels | None = None) -> Score:
    """The share of items of x whose own partner is among the k items of y with the highest cosine.

    x, y      (n, d) in one space: a model's two sides at one layer, or `predicted` and `target` of a Predictivity
    centred   each side less its own mean first: pictures and words lie apart in most models
    groups    (n,) what belongs together: any item of the group is as good as the partner itself

    From 0 to 1; k / n by chance, without groups. Equal cosines count against. For the other direction swap x and y.
    Raises ValueError for unequal widths or numbers, k outside 1 to n, NaN, or a row of zeros.
    """
    x, y = matrix(x, "x"), matrix(y, "y")
    same_items(x, y)
    k = at_least(k=k)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x has {x.shape[1]} units and y {y.shape[1]}, so they are not in one space; predict one from the other "
            "first: p = linear_predictivity(x, y), then retrieval(p.predicted, p.target)"
        )
    if k > len(x):
        raise ValueError(f"k={k}: there are {len(x)} items to retrieve")
    units = [_towards_items(side, centred, name) for side, name in ((x, "x"), (y, "y"))]
    cosine = np.round(units[0] @ units[1].T, 12)  # rounding is no difference
    member = labels(groups, len(x))
    nearest = _among_nearest(cosine, k)
    own = np.eye(len(x), dtype=bool) if member is None else member[:, None] == member
    hits = (nearest & own).any(1)

    def permuted(order: np.ndarray) -> float:
        return float((nearest[:, order] & own).any(1).mean())  # column j now shows what item order[j] has

    return Score(
        f"retrieval at {k}", float(hits.mean()), len(x), member, None, permuted, lambda w: (w @ hits) / w.sum(1), True
    )


def _towards_items(x: np.ndarray, centred: bool, name: str) -> np.ndarray:
    """Items as vectors of norm 1, from the mean of all or from 0."""
    least = rounding(x) if centred else 0.0
    x = from_mean(x) if centred else x
    none = ~(np.linalg.norm(x, axis=1) > least) if centred else ~x.any(axis=1)
    if none.any():
        place = f"{name}: item {int(np.argmax(none))}"
        raise ValueError(f"{place} is {'the mean of all' if centred else 'all zeros'}: it has no cosine")
    return unit_rows(x)


def _among_nearest(cosine: np.ndarray, k: int) -> np.ndarray:
    """Whether fewer than k others of its row are as high as each entry, (n, n)."""
    ordered = np.sort(cosine, axis=1)
    nearest = np.empty(cosine.shape, dtype=bool)
    for row, line, some in zip(nearest, cosine, ordered, strict=True):
        row[:] = len(line) - np.searchsorted(some, line, "left") <= k  # how many are at least as high, with itself
    return nearest


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 of a vector, ties by their mean."""
    from scipy.stats import rankdata  # half a second to import

    return np.asarray(rankdata(values), dtype=np.float64) - 1


def ranked_distances(x: np.ndarray, metric: str = "correlation", name: str = "x") -> np.ndarray:
    """Ranks of the distances of all pairs of items, as a symmetric matrix (n, n) of mean 0 and norm 1.

    Raises ValueError where all distances are equal.
    """
    n = len(x)
    upper = np.triu_indices(n, 1)
    distance = -similarity(x, metric, name)[upper]
    if metric == "euclidean":
        distance = distance / max(1e-300, float(distance.max()))
    rank = ranks(np.round(distance, 14 if metric == "euclidean" else 12))  # rounding is no difference
    rank -= rank.mean()
    norm = np.linalg.norm(rank)
    if not norm > 0:
        raise ValueError(f"{name}: all pairs of items are equally far apart, so distances have no order")
    full = np.zeros((n, n))
    full[upper] = rank / norm
    return full + full.T


def compare_distances(a: np.ndarray, b: np.ndarray, groups: np.ndarray | None) -> Score:
    """The rank correlation of two matrices of `ranked_distances`, as a Score."""
    upper = np.triu_indices(len(a), 1)
    first, other = a[upper], b[upper]
    places = [np.unique(v, return_inverse=True)[1] for v in (first, other)]

    def again(place: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Ranks among the drawn pairs: the weight of what is lower, and half of what is equal."""
        each = np.bincount(place, weights)
        return (np.cumsum(each) - each / 2)[place]

    def weighted(weights: np.ndarray) -> np.ndarray:
        values = []
        for w in weights:
            pair = w[upper[0]] * w[upper[1]]
            u, v = (again(place, pair) for place in places)
            u, v = u - pair @ u / pair.sum(), v - pair @ v / pair.sum()
            values.append((pair * u) @ v / np.sqrt(((pair * u) @ u) * ((pair * v) @ v)))
        return np.array(values)

    def permuted(order: np.ndarray) -> float:
        return float(np.vdot(a, b[np.ix_(order, order)])) / 2

    return Score("RSA", float(first @ other), len(a), groups, None, permuted, weighted)


def rsa(x: Any, y: Any, *, metric: str = "correlation", groups: Labels | None = None) -> Score:
    """Spearman's rank correlation of the distances of all pairs of items in x and in y (Kriegeskorte et al. 2008).

    metric   distance of two items: 1 - their Pearson correlation over units; "cosine" and "euclidean" likewise

    From -1 to 1; 0 by chance. Raises ValueError for unequal numbers, NaN, or items without a correlation.
    """
    x, y = matrix(x, "x"), matrix(y, "y")
    same_items(x, y)
    distances = ranked_distances(x, metric), ranked_distances(y, metric, "y")
    return compare_distances(*distances, labels(groups, len(x)))
