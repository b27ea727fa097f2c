"""Similarities of representations against definitions of three lines, and laws that must hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnsight_dream.stats.scores import change
from nnsight_dream.stats.similarity import cka, mutual_knn, ranks, retrieval, rsa, standardise

MEASURES = {
    "cka": lambda x, y, **more: cka(x, y, debiased=False, **more),
    "debiased": cka,
    "knn": lambda x, y, **more: mutual_knn(x, y, 4, **more),
    "rsa": lambda x, y, **more: rsa(x, y, metric="euclidean", **more),
    "retrieval": lambda x, y, **more: retrieval(x, y, 3, **more),
}


def pair(n: int = 40, p: int = 6, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, p)) * np.linspace(0.5, 2, p) + 1
    return x, x + noise * random.normal(size=(n, p))


def rotation(p: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(p, p)))[0]


# -- definitions -------------------------------------------------------------------------------------------------


def test_cka_is_its_definition() -> None:
    x, y = pair()
    u, v = x - x.mean(0), y[:, :4] - y[:, :4].mean(0)
    expected = np.linalg.norm(u.T @ v) ** 2 / np.linalg.norm(u.T @ u) / np.linalg.norm(v.T @ v)
    assert cka(x, y[:, :4], debiased=False).value == pytest.approx(expected, rel=1e-12)


def test_debiased_cka_is_the_ratio_of_unbiased_hsics() -> None:
    x, y = pair(p=9)
    n = len(x)

    def hsic(k: np.ndarray, m: np.ndarray) -> float:  # Song et al. (2012), equation 5
        k, m, one = k - np.diag(np.diag(k)), m - np.diag(np.diag(m)), np.ones(n)
        trace, sums = np.trace(k @ m), one @ k @ one * (one @ m @ one) / (n - 1) / (n - 2)
        return (trace + sums - 2 / (n - 2) * (one @ k @ m @ one)) / n / (n - 3)

    k, m = x @ x.T, y @ y.T
    assert cka(x, y).value == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)), rel=1e-10)


def test_mutual_neighbours_one_by_one() -> None:
    x, y = pair(20)
    share = []
    for i in range(20):
        near = []
        for z in (x, y):
            cosine = z @ z[i] / np.linalg.norm(z, axis=1)
            cosine[i] = -9
            near.append(set(np.argsort(-cosine)[:3]))
        share.append(len(near[0] & near[1]) / 3)
    assert mutual_knn(x, y, 3).value == pytest.approx(np.mean(share))


def test_rsa_is_spearman_of_correlation_distances() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = pair(25, 7)
    upper = np.triu_indices(25, 1)
    expected = stats.spearmanr((1 - np.corrcoef(x))[upper], (1 - np.corrcoef(y))[upper]).statistic
    assert rsa(x, y).value == pytest.approx(expected, abs=1e-12)


def test_ranks_with_ties() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_retrieval_one_by_one() -> None:
    x, y = pair(30, noise=2.0)
    u, v = x - x.mean(0), y - y.mean(0)
    hits = [sum((v @ u[i]) / np.linalg.norm(v, axis=1) >= v[i] @ u[i] / np.linalg.norm(v[i])) <= 5 for i in range(30)]
    assert 0 < np.mean(hits) < 1
    assert retrieval(x, y, 5).value == pytest.approx(np.mean(hits))


def test_any_item_of_the_group_is_a_hit() -> None:
    x, y = pair(30, noise=2.0)
    groups = np.arange(30) // 3
    u, v = x - x.mean(0), y - y.mean(0)
    cosine = (u @ v.T) / np.linalg.norm(v, axis=1)
    expected = np.mean(groups[cosine.argmax(1)] == groups)
    assert retrieval(x, y, 1, groups=groups).value == pytest.approx(expected)


def test_equal_cosines_count_against() -> None:
    y = np.tile([[1.0, 0.0], [0.0, 1.0]], (5, 1))  # five of each
    assert retrieval(y, y, 4).value == 0
    assert retrieval(y, y, 5).value == 1


# -- laws --------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), p=st.integers(2, 30), q=st.integers(2, 30))
@pytest.mark.parametrize("name", ["cka", "debiased", "knn", "rsa"])
def test_orthogonal_maps_scales_and_orders_change_nothing(name: str, seed: int, scale: float, p: int, q: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(15, p)), random.normal(size=(15, q))
    measure, order = MEASURES[name], random.permutation(15)
    value = measure(x, y).value
    assert measure(scale * x @ rotation(p, seed), y).value == pytest.approx(value, abs=1e-9)
    assert measure(y, x).value == pytest.approx(value, abs=1e-12)
    assert measure(x[order], y[order]).value == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", MEASURES)
def test_a_representation_is_like_itself(name: str) -> None:
    x, _ = pair()
    assert MEASURES[name](x, 3 * x).value == pytest.approx(1)


def test_debiased_is_zero_by_chance_at_any_width() -> None:
    random = np.random.default_rng(0)
    found = [[float(cka(*random.normal(size=(2, 30, 200)), debiased=d)) for _ in range(40)] for d in (True, False)]
    assert abs(np.mean(found[0])) < 0.02
    assert np.mean(found[1]) > 0.8


# -- nulls and intervals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
def test_null_is_the_measure_of_permuted_items(name: str) -> None:
    x, y = pair()
    score = MEASURES[name](x, y)
    order = np.random.default_rng(1).permutation(len(x))
    assert score._permuted(order) == pytest.approx(MEASURES[name](x, y[order]).value, abs=1e-12)
    assert score._permuted(np.arange(len(x))) == pytest.approx(score.value)


@pytest.mark.parametrize("name", MEASURES)
def test_what_is_alike_is_found_and_what_is_not_is_not(name: str) -> None:
    x, y = pair()
    assert MEASURES[name](x, y).null(200).p < 0.01
    ps = [MEASURES[name](x, np.random.default_rng(i).normal(size=x.shape)).null(60).p for i in range(40)]
    assert np.mean(np.array(ps) <= 0.2) < 0.45  # a fifth, but for chance; discrete ones less


def test_chance_of_neighbours_and_retrieval() -> None:
    x, y = pair(60)
    assert mutual_knn(x, y, 10).null(300).mean == pytest.approx(10 / 59, rel=0.05)
    assert retrieval(x, y, 6).null(300).mean == pytest.approx(6 / 60, rel=0.1)


def test_groups_change_partners_as_wholes() -> None:
    x, y = pair(12)
    groups = ["a"] * 2 + ["b"] * 3 + ["c"] * 2 + ["d"] * 3 + ["e"] * 2
    seen = set()
    score = cka(x, y, groups=groups)
    for seed in range(60):
        order = score._order(np.random.default_rng(seed))
        seen.add(tuple(order))
        assert sorted(order) == list(range(12))
        for rows in ([0, 1], [2, 3, 4], [5, 6], [7, 8, 9], [10, 11]):
            partner = order[rows]
            assert (np.diff(partner) == 1).all()
            assert partner[0] in ((2, 7) if len(rows) == 3 else (0, 5, 10))
    assert len(seen) == 12  # 3! x 2!


def test_groups_that_cannot_change_partners() -> None:
    x, y = pair(6)
    with pytest.raises(ValueError, match=r"no two groups have the same size.*leave groups= out"):
        cka(x, y, groups=[0, 1, 1, 2, 2, 2]).null(10)


@pytest.mark.parametrize("name", MEASURES)
def test_intervals_cover(name: str) -> None:
    """Of many samples' 95 % intervals, most hold what a large sample says."""
    n, measure = 60, MEASURES[name]
    if name in ("knn", "retrieval", "cka"):  # what these estimate depends on the number of items
        truth = np.mean([measure(*pair(n, seed=1000 + i)).value for i in range(80)])
    else:
        truth = measure(*pair(800, seed=9)).value
    inside = 0
    for seed in range(60):
        low, high = measure(*pair(n, seed=seed)).interval(150)
        inside += low <= truth <= high
    assert inside >= 47  # 57 expected; neighbours and galleries that stay as they are make some a little narrow


def test_interval_draws_groups() -> None:
    x, y = pair(20)
    twice = [np.repeat(z, 2, axis=0) + 1e-6 * np.random.default_rng(3).normal(size=(40, 6)) for z in (x, y)]
    narrow, wide = (np.ptp(mutual_knn(*twice, 5, groups=g).interval(400)) for g in (None, np.arange(40) // 2))
    assert wide > 1.2 * narrow


def test_a_rate_of_one_keeps_some_doubt() -> None:
    x, _ = pair(20)
    assert retrieval(x, x).interval(50)[0] < 0.9


def test_a_row_for_tables() -> None:
    row = cka(*pair()).row(50)
    assert list(row) == ["measure", "value", "value_low", "value_high", "null", "null_high", "p", "n"]
    assert row["value_low"] <= row["value"] <= row["value_high"]
    assert list(cka(*pair()).row(0)) == ["measure", "value", "n"]


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
def test_bad_input_is_said(name: str) -> None:
    measure = MEASURES[name]
    x, y = pair()
    with pytest.raises(ValueError, match="x has 40 items and y 39"):
        measure(x, y[:-1])
    with pytest.raises(ValueError, match="at least 4 items"):
        measure(x[:3], y[:3])
    with pytest.raises(ValueError, match=r"y: every column is constant"):
        measure(x, np.ones_like(y))
    with pytest.raises(ValueError, match=r"shape \(items, units\)"):
        measure(x[0], y)
    broken = x.copy()
    broken[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"x: 1 of 240 numbers are not finite, the first in row 7, column 2"):
        measure(broken, y)
    with pytest.raises(ValueError, match="39 labels for 40 items"):
        measure(x, y, groups=range(39))
    with pytest.raises(ValueError, match="draws=0"):
        measure(x, y).null(0)
    with pytest.raises(ValueError, match="level=95"):
        measure(x, y).interval(level=95)


def test_ranges_of_k_and_metrics() -> None:
    x, y = pair()
    with pytest.raises(ValueError, match="k=40: each of 40 items has 39 others"):
        mutual_knn(x, y, 40)
    with pytest.raises(ValueError, match="k=0"):
        retrieval(x, y, 0)
    with pytest.raises(ValueError, match="there are 40 items"):
        retrieval(x, y, 41)
    with pytest.raises(ValueError, match=r"6 units and y 5.*linear_predictivity"):
        retrieval(x, y[:, :5])
    with pytest.raises(ValueError, match="allowed are correlation, cosine, euclidean"):
        rsa(x, y, metric="manhattan")
    x[3] = 0
    with pytest.raises(ValueError, match=r"x: all units of item 3 are 0.*euclidean"):
        mutual_knn(x, y)
    mutual_knn(x, y, metric="euclidean")  # as advised


def test_torch_and_small_types() -> None:
    x, y = pair()
    made = cka(torch.tensor(x, dtype=torch.bfloat16), torch.tensor(y, dtype=torch.float32, requires_grad=True))
    assert made.value == pytest.approx(cka(x, y).value, abs=0.01)


def test_standardise() -> None:
    x, _ = pair()
    x[:, 2] = 5
    z = standardise(x)
    assert np.allclose(z.mean(0), 0)
    assert np.allclose(z.std(0), [1, 1, 0, 1, 1, 1])


def test_a_change_is_told_with_its_paired_interval() -> None:
    x, y = pair(60)
    worse = y + 2 * np.random.default_rng(5).normal(size=y.shape)
    before, after = cka(x, y), cka(x, worse)
    value, low, high = change(after, before, 300)
    assert value == pytest.approx(after.value - before.value)
    assert low < value < high < 0
    slightly = cka(x, y + 0.1 * np.random.default_rng(6).normal(size=y.shape))
    assert np.ptp(change(slightly, before, 300)[1:]) < 0.5 * np.ptp(before.interval(300))
    assert change(before, before, 50) == (0, 0, 0)
    with pytest.raises(ValueError, match="scores of 59 and 60 items"):
        change(cka(x[1:], y[1:]), before)


def test_within_kinds_only_partners_of_a_kind_are_swapped() -> None:
    random = np.random.default_rng(0)
    kinds = np.repeat(np.arange(4), 15)
    centres = 5 * random.normal(size=(4, 6))[kinds]
    x, y = (centres + random.normal(size=(60, 6)) for _ in range(2))  # alike in kind alone
    score = cka(x, y)
    assert score.null(100).p < 0.02
    inside = score.within(kinds.astype(str))
    assert inside.value == score.value
    assert inside.null(100).p > 0.05
    order = inside._order(random)
    assert (kinds[order] == kinds).all()
    assert not (order == np.arange(60)).all()
    with pytest.raises(ValueError, match="59 labels for 60 items"):
        score.within(kinds[1:])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_scikit_learns(metric: str) -> None:
    found = pytest.importorskip("sklearn.neighbors").NearestNeighbors(n_neighbors=5, metric=metric)
    x, y = pair(30)
    near = [{*row} for row in found.fit(x).kneighbors(return_distance=False)]
    other = [{*row} for row in found.fit(y).kneighbors(return_distance=False)]
    share = np.mean([len(a & b) / 5 for a, b in zip(near, other, strict=True)])
    assert mutual_knn(x, y, 5, metric=metric).value == pytest.approx(share)
