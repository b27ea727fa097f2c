"""Numbers of any size and type: scores against float64 NumPy that was written out, at every scale, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nnsight_dream as nd
from nnsight_dream.alignment import cosines as alignment
from nnsight_dream.directions.direction import Direction, unit
from nnsight_dream.stats import folds, intervals, scales
from nnsight_dream.stats.similarity import matrix, standardise

SCALES = [1e-300, 1e-160, 1e-38, 1e-30, 1e30, 1e38, 1e160, 1e300]
SCORES: dict[str, Callable[..., Any]] = {
    "cka": nd.cka,
    "cka biased": lambda x, y: nd.cka(x, y, debiased=False),
    "knn": lambda x, y: nd.mutual_knn(x, y, 5),
    "knn correlation": lambda x, y: nd.mutual_knn(x, y, 5, metric="correlation"),
    "knn euclidean": lambda x, y: nd.mutual_knn(x, y, 5, metric="euclidean"),
    "retrieval": lambda x, y: nd.retrieval(x, y[:, : x.shape[1]], 3),
    "retrieval raw": lambda x, y: nd.retrieval(x, y[:, : x.shape[1]], 3, centred=False),
    "rsa": nd.rsa,
    "rsa cosine": lambda x, y: nd.rsa(x, y, metric="cosine"),
    "rsa euclidean": lambda x, y: nd.rsa(x, y, metric="euclidean"),
    "predictivity": lambda x, y: nd.linear_predictivity(x, y, folds=3),
}


def pair(n: int = 36, p: int = 5, q: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    return x, x @ rng.normal(size=(p, q)) + rng.normal(size=(n, q))


# -- scale -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SCORES)
def test_a_power_of_two_changes_no_digit_and_a_power_of_ten_no_more_than_rounding(name: str) -> None:
    x, y = pair()
    score = SCORES[name](x, y)
    null, interval = score.null(20).values, score.interval(20)
    for power in (-1000, -500, -120, 120, 500, 1000):
        other = SCORES[name](np.ldexp(x, power), np.ldexp(y, -power))
        assert other.value == score.value
        assert np.array_equal(other.null(20).values, null)
        assert other.interval(20) == interval
    for scale in SCALES:
        other = SCORES[name](x * scale, y / scale)
        assert other.value == pytest.approx(score.value, abs=1e-9)
        assert np.allclose(other.null(20).values, null, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SCALES), st.sampled_from(["cka", "rsa", "knn", "retrieval"]))
def test_scores_are_those_of_plain_numpy_at_every_scale(seed: int, scale: float, name: str) -> None:
    x, y = pair(seed=seed, n=20)

    def cka() -> float:
        h = np.eye(20) - 1 / 20
        k, other = h @ x @ x.T @ h, h @ y @ y.T @ h
        return float((k * other).sum() / np.sqrt((k * k).sum() * (other * other).sum()))

    def rsa() -> float:
        upper = np.triu_indices(20, 1)
        ranks = [np.argsort(np.argsort(-np.corrcoef(z)[upper])) for z in (x, y)]
        return float(np.corrcoef(*ranks)[0, 1])

    def knn() -> float:
        near = []
        for z in (x, y):
            u = z / np.sqrt((z * z).sum(1, keepdims=True))
            near.append(np.argsort(-(u @ u.T) + 9 * np.eye(20), axis=1)[:, :5])
        return float(np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*near, strict=True)]))

    def retrieval() -> float:
        u, v = (z - z.mean(0) for z in (x, y[:, :5]))
        cosine = (u @ v.T) / np.sqrt((u * u).sum(1))[:, None] / np.sqrt((v * v).sum(1))
        return float(np.mean([(row > row[i]).sum() < 3 for i, row in enumerate(cosine)]))

    plain = {"cka": cka, "rsa": rsa, "knn": knn, "retrieval": retrieval}[name]()
    found = SCORES["cka biased" if name == "cka" else name](x * scale, y / scale)
    assert found.value == pytest.approx(plain, abs=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["cka", "cka biased", "knn euclidean", "retrieval", "rsa euclidean", "predictivity"])
def test_a_constant_column_counts_for_nothing_however_large(name: str) -> None:
    """Of scores that take columns as they vary; a cosine within one item counts every unit."""
    x, y = pair()
    constant = np.full((len(x), 1), 0.1) * 1e12
    if "retrieval" in name:
        found = nd.retrieval(np.hstack([x, constant]), np.hstack([y[:, :5], constant]), 3)
    else:
        found = SCORES[name](np.hstack([x, constant]), np.hstack([constant, y]))
    assert found.value == pytest.approx(SCORES[name](x, y).value, abs=1e-3)


@pytest.mark.parametrize("name", SCORES)
def test_small_types_give_what_their_numbers_give(name: str) -> None:
    x, y = pair()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        small = [torch.tensor(z).to(dtype) for z in (x, y)]
        wide = [z.double().numpy() for z in small]
        assert SCORES[name](*small).value == SCORES[name](*wide).value
        assert SCORES[name](small[0].requires_grad_(), small[1]).value == SCORES[name](*wide).value


def test_a_small_type_of_another_package() -> None:
    small = pytest.importorskip("ml_dtypes").bfloat16
    x, y = (z.astype(small) for z in pair())
    assert nd.cka(x, y).value == nd.cka(x.astype(float), y.astype(float)).value


# -- ties --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "correlation", "euclidean"])
@pytest.mark.parametrize("factor", [3.0, 0.1, 7e-40])
def test_duplicates_are_equal_at_any_scale(metric: str, factor: float) -> None:
    """Equal items are equally near to all others; which is first does not hang on rounding."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(15, 33)), rng.normal(size=(15, 9))
    x, y = x[np.arange(45) % 15], y[np.arange(45) % 15]
    for score in (lambda a, b: nd.mutual_knn(a, b, 2, metric=metric), lambda a, b: nd.rsa(a, b, metric=metric)):
        assert score(x * factor, y * factor).value == score(x, y).value
    assert nd.mutual_knn(x, x * factor, 2, metric=metric).value == 1
    assert nd.rsa(x, x * factor, metric=metric).value == pytest.approx(1)
    assert nd.mutual_knn(x, y, 2, metric=metric).value == 1  # two others are the same item, in both


def test_a_partner_that_is_there_twice_counts_against(recwarn: pytest.WarningsRecorder) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 33))
    x[1] = x[0]
    for factor in (1, 3, 1e-30):
        assert nd.retrieval(x, x * factor, 1).value == pytest.approx(10 / 12)
        assert nd.retrieval(x, x * factor, 2).value == 1
    assert not recwarn.list


def test_an_item_without_a_cosine_is_named_by_its_own_place() -> None:
    x, y = pair(8)
    x[3] = x[1]
    for value, metric in ((0.0, "cosine"), (0.1, "correlation")):
        x[5] = value
        for score in (nd.mutual_knn, nd.rsa):
            with pytest.raises(ValueError, match=rf"x: all units of item 5 are .* no {metric}"):
                score(x, y, metric=metric, **({"k": 2} if score is nd.mutual_knn else {}))
    x[5] = x.mean(0) * 8 / 7 - x[5] / 7  # the mean of all, but for rounding
    with pytest.raises(ValueError, match="x: item 5 is the mean of all"):
        nd.retrieval(x, y[:, :5])


def test_items_equally_far_apart_have_no_order() -> None:
    for scale in (1.0, 0.1, 3e-30):
        corners = np.eye(6) * scale + 0.7 * scale
        for metric in ("euclidean", "correlation", "cosine"):
            with pytest.raises(ValueError, match="equally far apart"):
                nd.rsa(corners, pair(6)[1], metric=metric)
        with pytest.raises(ValueError, match=r"x: all pairs of the 6 items are equally alike.*debiased=False"):
            nd.cka(corners, pair(6)[1])
        assert 0 < nd.cka(corners, pair(6)[1], debiased=False).value <= 1


def test_a_shift_changes_no_distance() -> None:
    x, y = pair()
    moved = x + 1e6
    assert nd.mutual_knn(moved, x, 5, metric="euclidean").value == 1
    assert nd.rsa(moved, y, metric="euclidean").value == pytest.approx(nd.rsa(x, y, metric="euclidean").value, abs=1e-3)


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_error_that_says_where(name: str, value: float) -> None:
    for side in (0, 1):
        given = list(pair())
        given[side][7, 2] = value
        with pytest.raises(ValueError, match=f"{'xy'[side]}: 1 of .* not finite, the first in row 7, column 2"):
            SCORES[name](*given)
        low = [torch.tensor(z).half() for z in pair()]
        low[side][7, 2] = 1e9  # beyond float16
        with pytest.raises(ValueError, match=r"row 7, column 2.*read the features in float32"):
            SCORES[name](*low)


@pytest.mark.parametrize(
    "wrong",
    [
        np.ma.masked_array(np.ones((9, 2)), mask=np.eye(9, 2)),
        np.ones((9, 2), dtype=complex),
        np.ones((9, 2), dtype=bool),
        torch.ones(9, 2, dtype=torch.complex64),
        torch.ones(9, 2, dtype=torch.bool),
        [["a", "b"]] * 9,
        [[1.0, 2.0], [1.0]] * 5,
        None,
        np.ones(9),
        np.ones((9, 0)),
    ],
)
def test_what_is_no_matrix_of_numbers(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"x: (numbers of shape|a masked array)"):
        matrix(wrong, "x")


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", SCORES)
def test_a_few_items_are_too_few(name: str, n: int) -> None:
    with pytest.raises(ValueError, match="at least 4 items are needed"):
        SCORES[name](*pair(n))


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "3", None, float("nan")])
def test_counts_are_whole_numbers(wrong: Any) -> None:
    x, y = pair()
    score = nd.cka(x, y)
    for door in (
        lambda: nd.mutual_knn(x, y, wrong),
        lambda: nd.retrieval(x, y[:, :5], wrong),
        lambda: score.null(wrong),
        lambda: score.interval(wrong),
        lambda: score.row(wrong if wrong != 0 else -1),
        lambda: nd.layer_map({1: x}, {1: y}, "cka", draws=wrong if wrong != 0 else -1),
        lambda: nd.linear_predictivity(x, y, folds=wrong),
        lambda: intervals.bootstrap([0.5, 1.0], draws=wrong),
        lambda: score.null(2, seed=wrong if wrong != 0 else -3),
    ):
        with pytest.raises((TypeError, ValueError), match=r"is needed|are needed"):
            door()


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_counts_come_as_any_whole_number(number: Any) -> None:
    x, y = pair()
    assert nd.mutual_knn(x, y, number).value == nd.mutual_knn(x, y, 3).value
    assert nd.retrieval(x, y[:, :5], number).value == nd.retrieval(x, y[:, :5], 3).value
    by = nd.linear_predictivity(x, y, folds=number, seed=number)
    assert by.value == nd.linear_predictivity(x, y, folds=3, seed=3).value
    assert np.array_equal(by.null(number, seed=number).values, by.null(3, seed=3).values)
    assert nd.layer_map({1: x}, {1: y}, folds=number) == nd.layer_map({1: x}, {1: y}, folds=3)


def test_groups_and_folds_of_other_forms() -> None:
    x, y = pair()
    each = np.arange(36) // 2
    assert nd.cka(x, y, groups=torch.tensor(each)).null(5).p == nd.cka(x, y, groups=each.tolist()).null(5).p
    for wrong in ("a" * 36, {1: 2}, 7, [[0, 1]] * 36, [float("nan")] * 36):
        with pytest.raises((TypeError, ValueError), match="groups="):
            nd.cka(x, y, groups=wrong)
    for wrong_folds in ("abc" * 12, np.eye(36), [float("nan")] * 36, [None, 1, 2] * 12):
        with pytest.raises((TypeError, ValueError), match="folds="):
            nd.linear_predictivity(x, y, folds=wrong_folds)
    given_as_text = nd.linear_predictivity(x, y, folds=["abc"[i % 3] for i in range(36)])
    assert given_as_text.value == nd.linear_predictivity(x, y, folds=torch.arange(36) % 3).value
    assert len(set(folds.make_folds(36, np.int64(4)).tolist())) == 4


def test_intervals_of_what_is_no_number() -> None:
    assert intervals.bootstrap([True, False, True], draws=50) == intervals.bootstrap([1, 0, 1], draws=50)
    for wrong in ([0.5, float("nan")], [0.5, None]):
        with pytest.raises(ValueError, match=r"values\[1\]="):
            intervals.bootstrap(wrong)
    for hits, n in ((0.5, 2), (True, 2), (float("nan"), 2), (-1, 2), (3, 2)):
        with pytest.raises(ValueError, match="hits="):
            intervals.wilson(hits, n)


# -- vectors -----------------------------------------------------------------------------------------------------


def direction(values: Any) -> Direction:
    return Direction(torch.tensor(np.asarray(values), dtype=torch.float32), nd.Site(1), "it", "model")


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-12, 1.0, 1e12, 1e30, 1e37])
def test_cosines_and_norms_of_directions_of_any_length(scale: float) -> None:
    rng = np.random.default_rng(0)
    a, b = direction(rng.normal(size=64) * scale), direction(rng.normal(size=64) / max(scale, 1e-37))
    u, v = (d.vector.double().numpy() for d in (a, b))
    norms = np.sqrt((u * u).sum()), np.sqrt((v * v).sum())
    assert a.norm == pytest.approx(norms[0], rel=1e-6)
    assert nd.cosine(a, b) == pytest.approx(float(u @ v / norms[0] / norms[1]), abs=1e-6)
    assert nd.cosine(a, a) == pytest.approx(1, abs=1e-6)
    assert nd.cosine(a, -a) == pytest.approx(-1, abs=1e-6)
    assert a.unit().norm == pytest.approx(1, abs=1e-6)
    assert a.unit().label == f"{1 / norms[0]:.4g} it" or scale == 1e-44
    torch.testing.assert_close(unit(a.vector), torch.tensor(u / norms[0], dtype=torch.float32), atol=1e-6, rtol=1e-6)


def test_what_has_no_cosine() -> None:
    with pytest.raises(ValueError, match="is zero and points nowhere"):
        nd.cosine(direction(np.zeros(4)), direction(np.ones(4)))
    with pytest.raises(TypeError, match="compares two Directions"):
        nd.cosine(torch.ones(4), torch.ones(4))
    for wrong in (np.nan, np.inf, 1e39):
        with pytest.raises(ValueError, match="is not finite in 1 of 2"):
            direction([wrong, 1.0])


def test_powers_of_two_are_exact() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3))
    for power in (-1040, -30, 0, 30, 1000):
        moved = np.ldexp(x, power)
        assert np.allclose(scales.scaled(moved), scales.scaled(x), rtol=1e-4)
        if power > -1000:
            assert np.array_equal(scales.scaled(moved), scales.scaled(x))
            assert np.array_equal(standardise(moved), standardise(x))
    assert np.array_equal(scales.scaled(np.zeros((2, 2))), np.zeros((2, 2)))


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e18])
def test_similarities_and_the_state_of_patches_at_any_scale(
    tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """Cosines of words with pictures, by layer, in a model whose activations are large or small."""
    real = alignment.read_pictures
    pictures = {word: alignment.white_noise(2, 28, seed) for seed, word in enumerate(("octopus", "desk"))}
    plain = alignment.similarities(tiny_vlm, pictures, [2], middle=torch.zeros(32))
    monkeypatch.setattr(
        alignment, "read_pictures", lambda v, p, s: {k: h.float() * scale for k, h in real(v, p, s).items()}
    )
    found = alignment.similarities(tiny_vlm, pictures, [2], middle=torch.zeros(32))
    np.testing.assert_allclose(found.mean, plain.mean, atol=1e-5)
    np.testing.assert_allclose(found.maximum, plain.maximum, atol=1e-5)
    assert found.states[0] == pytest.approx(plain.states[0], rel=1e-4)


def test_similarities_read_pictures_of_one_size_together(tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures: dict[str, Any] = {
        "octopus": [*alignment.white_noise(2, 28, 0), *alignment.white_noise(1, 40, 1)],
        "desk": [*alignment.white_noise(1, 40, 2), *alignment.white_noise(2, 28, 3)],
        alignment.NOISE: alignment.white_noise(2, 28, 4),
    }
    each = [p for some in pictures.values() for p in some]
    alone = [
        alignment.similarities(tiny_vlm, {"octopus": [p]}, [1, 2], words=["octopus", "desk"]).mean[..., 0] for p in each
    ]
    real, counts = alignment.read_pictures, []
    monkeypatch.setattr(alignment, "read_pictures", lambda v, p, s: counts.append(len(p)) or real(v, p, s))
    found = alignment.similarities(tiny_vlm, pictures, [1, 2], batch=4)
    assert counts == [4, 2, 2]
    np.testing.assert_allclose(found.mean, np.stack(alone, -1), atol=1e-5)
    for wrong in (0, -1, True, 2.5):
        with pytest.raises(ValueError, match="batch="):
            alignment.similarities(tiny_vlm, pictures, [1], batch=wrong)
        with pytest.raises(ValueError, match="draws="):
            alignment.separation(found, draws=wrong)


def test_layers_and_clusters_of_other_forms() -> None:
    x, y = pair()
    for wrong in (None, [x], x, x.tolist()):
        with pytest.raises(TypeError, match=r"xs=.*by layer"):
            nd.layer_map(wrong, {1: y})
    with pytest.raises(ValueError, match="x, layer 2: 20 items where the first layer of y has 36"):
        nd.layer_map({1: x, 2: x[:20]}, {1: y})
    with pytest.raises(ValueError, match=r"x, layer 1: 1 of .*row 7, column 2"):
        nd.layer_map({1: np.where(np.arange(180).reshape(36, 5) == 37, np.nan, x)}, {1: y}, "cka")
    for wrong_clusters in (3, [[1], [2]]):
        with pytest.raises(TypeError, match="clusters="):
            intervals.bootstrap([1, 0], wrong_clusters)
    with pytest.raises(TypeError, match="values="):
        intervals.bootstrap(None)
    with pytest.raises(ValueError, match="'meta' holds no numbers"):
        nd.cka(torch.ones(9, 2, device="meta"), y[:9])


def test_p_of_the_whole_map_is_none_where_a_value_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnsight_dream.stats import layer_map as layer_maps
    from nnsight_dream.stats.scores import Score

    x, y = pair()
    nothing = Score(
        "none", float("nan"), 36, _permuted=lambda order: float("nan"), _weighted=lambda w: w[:, 0] * np.nan
    )
    compare = layer_maps.compare_kernels
    calls: list[int] = []

    def sometimes(*args: Any) -> Score:
        calls.append(1)
        return nothing if len(calls) == 1 else compare(*args)

    monkeypatch.setattr(layer_maps, "compare_kernels", sometimes)
    rows = nd.layer_map({1: x, 2: x}, {1: y}, "cka", draws=19)
    assert np.isnan(rows[0]["p_map"])
    assert rows[1]["p_map"] == rows[1]["p"] == 1 / 20


@pytest.mark.parametrize(("remote", "powers"), [(None, (-100, 100)), ("local", (100,))])
def test_a_direction_of_any_length_is_climbed_to_the_same_picture(
    demo_vlm: nd.VLM, remote: Any, powers: tuple[int, ...]
) -> None:
    """Squares of 1e30 or 1e-30 leave float32; a power of two changes no bit of a cosine."""
    vlm = demo_vlm if remote is None else nd.load("demo", remote=remote)
    vector = torch.randn(vlm.width, generator=torch.Generator().manual_seed(0))
    few: dict[str, Any] = dict(steps=2, batch=1, progress=False, canvas=nd.Pixels(32), centre=nd.Grey())
    away = nd.from_tensor(vlm, vector.flip(0), 2)
    plain = nd.synthesize(vlm, nd.from_tensor(vlm, vector, 3), terms=[nd.Away(away)], **few)
    for power in powers:
        scale = 2.0**power
        terms = [nd.Away(nd.from_tensor(vlm, vector.flip(0) / scale, 2))]
        made = nd.synthesize(vlm, nd.from_tensor(vlm, vector * scale, 3), terms=terms, **few)
        assert made.history == plain.history
        assert made.image.tobytes() == plain.image.tobytes()
        assert made.scores == plain.scores
        assert made.direction["norm"] == pytest.approx(plain.direction["norm"] * scale)
