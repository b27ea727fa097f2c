"""Maps over layers: each cell is the measure itself; the correction for having looked at all cells."""

from __future__ import annotations

import numpy as np
import pytest

from nnsight_dream.stats.layer_map import MEASURES, layer_map, peak
from nnsight_dream.stats.ridge import linear_predictivity
from nnsight_dream.stats.similarity import cka, mutual_knn, rsa

ALONE = {
    "predictivity": linear_predictivity,
    "cka": cka,
    "cka biased": lambda x, y: cka(x, y, debiased=False),
    "knn": lambda x, y: mutual_knn(x, y, 5),
    "rsa": rsa,
}


def sides(n: int = 50) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    random = np.random.default_rng(0)
    shared = random.normal(size=(n, 8))
    xs = {i: random.normal(size=(n, 8)) + i * shared for i in (0, 1, 2)}
    return xs, {i: shared @ random.normal(size=(8, 12)) * i / 3 + random.normal(size=(n, 12)) for i in (0, 3)}


@pytest.mark.parametrize("measure", MEASURES)
def test_a_cell_is_the_measure(measure: str) -> None:
    xs, ys = sides()
    rows = layer_map(xs, ys, measure, draws=20, k=5)
    assert len(rows) == 6 * (2 if measure == "predictivity" else 1)
    for row in rows:
        x, y = xs[row["x_layer"]], ys[row["y_layer"]]
        score = ALONE[measure](*((y, x) if row["direction"] == "y to x" else (x, y)))
        assert row["value"] == pytest.approx(score.value, abs=1e-12)
        assert row["p"] == score.null(20).p
        assert (row["value_low"], row["value_high"]) == pytest.approx(score.interval(20))
    best = peak(rows)
    assert (best["x_layer"], best["y_layer"]) == (2, 3)


def test_the_best_of_many_cells_is_corrected() -> None:
    random = np.random.default_rng(1)
    xs, ys = ({i: random.normal(size=(30, 5)) for i in range(6)} for _ in range(2))
    rows = layer_map(xs, ys, "cka", draws=99, intervals=False)
    assert min(r["p"] for r in rows) < 0.1  # by chance, among 36
    assert peak(rows)["p_map"] > 0.1
    assert all(r["p_map"] >= r["p"] for r in rows)
    assert peak(layer_map(*sides(), "cka", draws=99))["p_map"] == 0.01


def test_bad_input_is_said() -> None:
    xs, ys = sides()
    with pytest.raises(ValueError, match=r"measure='CCA': allowed are predictivity, cka"):
        layer_map(xs, ys, "CCA")
    with pytest.raises(ValueError, match="0 layers of x and 2 of y"):
        layer_map({}, ys)
    with pytest.raises(ValueError, match="x, layer 1: 49 items where the first layer of y has 50"):
        layer_map({0: xs[0], 1: xs[1][1:]}, ys, "cka")
    with pytest.raises(ValueError, match="'both' is in no row; there are x to y, y to x"):
        peak(layer_map(xs, ys), "both")
    twice = {k: np.vstack([v, v]) for k, v in xs.items()}, {k: np.vstack([v, v]) for k, v in ys.items()}
    with pytest.raises(ValueError, match="equal and in different folds"):
        layer_map(*twice)
    layer_map(*twice, groups=[*range(50), *range(50)])
