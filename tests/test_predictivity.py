"""Linear predictivity against ridge regression written out, scikit-learn where it is installed, and laws."""

from __future__ import annotations

import numpy as np
import pytest

from nnsight_dream.stats.folds import duplicate_groups, make_folds
from nnsight_dream.stats.ridge import linear_predictivity, predict, side
from nnsight_dream.stats.similarity import retrieval

SOME = (1.0, 10.0, 100.0, 1000.0)


def pair(n: int = 60, p: int = 20, q: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, p)) * np.geomspace(0.1, 10, p) + 3
    return x, (x / x.std(0)) @ random.normal(size=(p, q)) * np.geomspace(1, 50, q) / 4 + random.normal(size=(n, q))


def z(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return (values - values[rows].mean(0)) / values[rows].std(0)


def fit(x: np.ndarray, y: np.ndarray, rows: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """(predictions, targets) of all items, fitted on some: the normal equations."""
    u, v = z(x, rows), z(y, rows)
    w = np.linalg.solve(u[rows].T @ u[rows] + penalty * np.eye(x.shape[1]), u[rows].T @ v[rows])
    return u @ w, v


def slowly(x: np.ndarray, y: np.ndarray, folds: np.ndarray, lambdas: tuple) -> tuple[float, list[float], np.ndarray]:
    values, chosen, r = [], [], []
    for test in range(folds.max() + 1):
        errors = np.zeros(len(lambdas))
        for inner in set(folds) - {test}:
            rows = np.flatnonzero((folds != test) & (folds != inner))
            for i, penalty in enumerate(lambdas):
                p, t = fit(x, y, rows, penalty)
                errors[i] += ((p - t)[folds == inner] ** 2).sum()
        chosen.append(lambdas[int(errors.argmin())])
        p, t = fit(x, y, np.flatnonzero(folds != test), chosen[-1])
        held = folds == test
        r.append([np.corrcoef(p[held, u], t[held, u])[0, 1] for u in range(y.shape[1])])
        values.append(np.mean(r[-1]))
    return float(np.mean(values)), chosen, np.mean(r, axis=0)


@pytest.mark.parametrize("p", [20, 90])  # fewer and more units than items
def test_it_is_nested_cross_validation_written_out(p: int) -> None:
    x, y = pair(p=p)
    folds = make_folds(len(x), 5, seed=3)
    value, chosen, r = slowly(x, y, folds, SOME)
    found = linear_predictivity(x, y, folds=folds, lambdas=SOME)
    assert found.lambdas.tolist() == chosen
    assert found.value == pytest.approx(value, abs=1e-9)
    assert found.r == pytest.approx(r, abs=1e-9)
    assert found.value == linear_predictivity(x, y, seed=3, lambdas=SOME).value


def test_it_is_what_scikit_learn_says() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = pair(80, 30, 5)
    folds = make_folds(80, 5)
    found = linear_predictivity(x, y, folds=folds, lambdas=SOME)
    values = []
    for test in range(5):
        rows = folds != test

        class Scaled(TransformedTargetRegressor):  # errors in units of the fitted items' spread, as ours
            def score(self, x, y):
                t, p = (self.transformer_.transform(v) for v in (y, self.predict(x)))
                return -((p - t) ** 2).sum()

        model = Scaled(regressor=make_pipeline(StandardScaler(), linear.Ridge()), transformer=StandardScaler())
        grid = GridSearchCV(model, {"regressor__ridge__alpha": list(SOME)}, cv=PredefinedSplit(folds[rows]))
        grid.fit(x[rows], y[rows])
        # the search averages over folds, which have equal sizes here: the same choice as a sum
        assert grid.best_params_["regressor__ridge__alpha"] == found.lambdas[test]
        p = grid.predict(x[~rows])
        values.append(np.mean([np.corrcoef(p[:, u], y[~rows, u])[0, 1] for u in range(5)]))
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)


def test_affine_maps_of_units_change_nothing() -> None:
    x, y = pair()
    scale, shift = np.geomspace(0.01, 100, 20), np.linspace(-5, 5, 20)
    folds = make_folds(60, 5)
    value = linear_predictivity(x, y, folds=folds).value
    assert linear_predictivity(x * scale + shift, -3 * y + 1, folds=folds).value == pytest.approx(value, abs=1e-9)
    order = np.random.default_rng(0).permutation(60)
    assert linear_predictivity(x[order], y[order], folds=folds[order]).value == pytest.approx(value, abs=1e-9)


def test_nothing_leaks_from_the_fold_that_is_tested() -> None:
    x, y = pair()
    folds = make_folds(60, 5)
    before = linear_predictivity(x, y, folds=folds)
    x2, y2 = x.copy(), y.copy()
    y2[folds == 2] = y2[folds == 2] * 1000 + 7  # changes the other folds' fits, but not those of fold 2
    after = linear_predictivity(x2, y2, folds=folds)
    assert after.lambdas[2] == before.lambdas[2]
    assert np.array_equal(after.predicted[folds == 2], before.predicted[folds == 2])
    assert not np.allclose(after.predicted[folds == 1], before.predicted[folds == 1])


def test_both_directions_differ() -> None:
    x, y = pair(100, 30, 3)
    folds = make_folds(100)
    a, b = side(x, folds), side(y, folds, "y")
    lambdas = np.array(SOME)
    there, back = predict(a, b, lambdas), predict(b, a, lambdas)
    assert there.value > back.value + 0.2
    assert back.value == pytest.approx(linear_predictivity(y, x, folds=folds, lambdas=SOME).value)


def test_chance_is_zero_and_what_is_there_is_found() -> None:
    x, y = pair()
    assert linear_predictivity(x, y).null(200).p < 0.01
    random = np.random.default_rng(0)
    found = [linear_predictivity(x, random.normal(size=y.shape)) for _ in range(30)]
    assert abs(np.mean([f.value for f in found])) < 0.05


def test_chance_passes_as_often_as_it_says() -> None:
    """Keeping the fits while held-out items swap, p would be below 0.1 twice as often."""
    random = np.random.default_rng(1)
    ps = []
    for _ in range(100):
        x, y = random.normal(size=(30, 12)), random.normal(size=(30, 1))
        ps.append(linear_predictivity(x, y, lambdas=(10.0, 1000.0)).null(19).p)
    assert 0.02 < np.mean(np.array(ps) <= 0.1) < 0.18
    assert 0.35 < np.mean(np.array(ps) <= 0.5) < 0.65


@pytest.mark.parametrize("p", [20, 90])
def test_null_is_the_whole_fit_of_items_that_swapped_within_folds(p: int) -> None:
    x, y = pair(p=p)
    found = linear_predictivity(x, y)
    folds = found.strata
    for seed in range(3):
        order = found._order(np.random.default_rng(seed))
        assert (folds[order] == folds).all()
        assert not (order == np.arange(60)).all()
        assert found._permuted(order) == pytest.approx(linear_predictivity(x, y[order], folds=folds).value, abs=1e-9)
    assert found._permuted(np.arange(60)) == pytest.approx(found.value)


def test_interval_is_that_of_resampled_held_out_items() -> None:
    x, y = pair()
    found = linear_predictivity(x, y)
    weights = np.random.default_rng(0).integers(0, 3, (4, 60)).astype(float)
    for w, value in zip(weights, found._weighted(weights), strict=True):
        r = []
        for j in range(5):
            rows = np.repeat(np.arange(60), w.astype(int))
            rows = rows[found.strata[rows] == j]
            r.append(np.mean([np.corrcoef(found.predicted[rows, u], found.target[rows, u])[0, 1] for u in range(7)]))
        assert value == pytest.approx(np.mean(r))
    low, high = found.interval(300)
    assert low < found.value < high < low + 0.5


def test_predictions_can_be_retrieved() -> None:
    x, y = pair(100, 20, 15)
    found = linear_predictivity(x, y)
    assert retrieval(found.predicted, found.target, 5).value > 0.5


def test_constant_units() -> None:
    x, y = pair()
    folds = make_folds(60, 5)
    plain = linear_predictivity(x, y, folds=folds)
    wider = np.hstack([x, np.full((60, 2), 4.0)]), np.hstack([y, np.full((60, 1), 2.0)])
    found = linear_predictivity(*wider, folds=folds)
    assert found.value == pytest.approx(plain.value)
    assert found.constant == 1
    assert np.isnan(found.r[-1])
    rare = np.zeros((60, 1))
    rare[np.flatnonzero(folds == 0)[:2]] = 1  # varies in one fold alone
    found = linear_predictivity(x, np.hstack([y, rare]), folds=folds)
    assert found.constant == 1
    assert np.isfinite(found.value)
    with pytest.raises(ValueError, match="y: without fold 0 every column is constant"):
        linear_predictivity(x, rare, folds=folds, duplicates="allow")
    with pytest.raises(ValueError, match=r"x: without fold.* every column is constant"):
        linear_predictivity(rare, y, folds=folds, duplicates="allow")


def test_edge_of_the_range_is_told() -> None:
    x, y = pair()
    assert linear_predictivity(x, y, lambdas=(1e5, 1e7)).at_edge
    assert not linear_predictivity(x, y, lambdas=(1e-3, *SOME, 1e7)).at_edge
    assert not linear_predictivity(x, y, lambdas=5.0).at_edge  # no choice was asked for


def test_duplicates_across_folds() -> None:
    x, y = pair()
    x2, y2 = np.vstack([x, x[:5]]), np.vstack([y, y[:5] + 0.1])  # the same picture, other captions
    with pytest.raises(ValueError, match=r"x: items \d+ and \d+ are equal and in different folds.*duplicate_groups"):
        linear_predictivity(x2, y2)
    with pytest.raises(ValueError, match=r"y: items"):
        linear_predictivity(y2, x2)
    groups = duplicate_groups(x2, y2)  # as advised
    assert groups.tolist() == [*range(60), *range(5)]
    found = linear_predictivity(x2, y2, groups=groups)
    assert (found.strata[:5] == found.strata[60:]).all()
    linear_predictivity(x2, y2, duplicates="allow")
    with pytest.raises(ValueError, match="'refuse' and 'allow'"):
        linear_predictivity(x2, y2, duplicates="ignore")


def test_duplicates_through_others() -> None:
    x, y = np.arange(5.0)[:, None], np.array([[0.0], [1], [2], [3], [4]])
    x[1], y[2], x[3] = x[0], y[1], x[2]
    assert duplicate_groups(x, y).tolist() == [0, 0, 0, 0, 4]


def test_folds_keep_groups_and_are_even() -> None:
    groups = np.random.default_rng(0).integers(0, 40, 200)
    folds = make_folds(200, 5, groups=groups, seed=1)
    assert all(len(set(folds[groups == g])) == 1 for g in set(groups))
    assert np.ptp(np.bincount(folds)) <= 3
    assert np.array_equal(folds, make_folds(200, 5, groups=groups.astype(str), seed=1))
    assert np.ptp(np.bincount(make_folds(13, 4))) <= 1


def test_bad_folds_are_said() -> None:
    x, y = pair()
    with pytest.raises(ValueError, match="x has 60 items and y 59"):
        linear_predictivity(x, y[:-1])
    with pytest.raises(ValueError, match=r"12 items make 5 folds of 3, 3, 2, 2, 2: at least 3.*folds=4"):
        linear_predictivity(x[:12], y[:12])
    linear_predictivity(x[:12], y[:12], folds=4)  # as advised
    with pytest.raises(ValueError, match="folds=2: at least 3 are needed"):
        linear_predictivity(x, y, folds=2)
    with pytest.raises(ValueError, match="60 items in 2 groups make 5 folds"):
        linear_predictivity(x, y, groups=np.arange(60) % 2)
    with pytest.raises(ValueError, match=r"folds= tears the group of item"):
        linear_predictivity(x, y, folds=np.arange(60) % 5, groups=np.arange(60) // 2)
    with pytest.raises(ValueError, match=r"folds= has folds of \[58, 2\]"):
        linear_predictivity(x, y, folds=np.arange(60) > 57)
    with pytest.raises(ValueError, match="lambdas=0"):
        linear_predictivity(x, y, lambdas=0)
    y[3, 3] = np.inf
    with pytest.raises(ValueError, match=r"y: 1 of 420 numbers are not finite, the first in row 3, column 3"):
        linear_predictivity(x, y)


def test_within_kinds_folds_are_kept() -> None:
    x, y = pair()
    kinds = np.arange(60) % 3
    found = linear_predictivity(x, y)
    inside = found.within(kinds)
    order = inside._order(np.random.default_rng(0))
    assert (found.strata[order] == found.strata).all()
    assert (kinds[order] == kinds).all()
    assert inside.null(5).values == pytest.approx(
        [linear_predictivity(x, y[o], folds=found.strata).value for o in _orders(inside, 5)]
    )


def _orders(score, draws: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [score._order(random) for _ in range(draws)]
