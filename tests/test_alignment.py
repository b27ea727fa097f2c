"""Alignment by layer against definitions written out in NumPy, and laws that must hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.alignment import cosines as alignment


def pictures(count: int, seed: int) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def found(tiny_vlm: nd.VLM) -> alignment.Similarities:
    shown = {"dog": pictures(3, 1), "cat": pictures(2, 2), alignment.NOISE: alignment.white_noise(4, 30)}
    return alignment.similarities(tiny_vlm, shown, [1, 3], batch=2)


def test_cosines_as_defined(tiny_vlm: nd.VLM, found: alignment.Similarities) -> None:
    assert found.mean.shape == found.maximum.shape == (2, 2, 9)
    assert found.of == ("dog",) * 3 + ("cat",) * 2 + (alignment.NOISE,) * 4
    picture = pictures(2, 2)[1]  # the second cat
    x = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1)[None].float() / 255
    for row, layer in enumerate((1, 3)):
        v = nd.concept(tiny_vlm, "dog", layer).vector.numpy().astype(float)
        grey = nd.read_pictures(tiny_vlm, torch.full((1, 3, 64, 64), 0.5), [layer])
        h = next(iter(nd.read_pictures(tiny_vlm, x, [layer]).values()))[0].detach().numpy().astype(float)
        h = h - next(iter(grey.values()))[0].detach().numpy().mean(0)
        cosines = h @ v / np.linalg.norm(h, axis=1) / np.linalg.norm(v)
        mean = h.mean(0)
        assert found.mean[row, 0, 4] == pytest.approx(mean @ v / np.linalg.norm(mean) / np.linalg.norm(v), abs=1e-4)
        assert found.maximum[row, 0, 4] == pytest.approx(cosines.max(), abs=1e-4)


def made(table: np.ndarray, of: list[str]) -> alignment.Similarities:
    words = tuple(dict.fromkeys(o for o in of if o != alignment.NOISE))
    state = dict(common=0.5, outliers=0.0, largest=0.1)
    return alignment.Similarities((1,), words, tuple(of), table[None], table[None], (state,))


def test_separation_by_hand() -> None:
    table = np.array([[0.9, 0.8, 0.1, 0.5, 0.0], [0.2, 0.3, 0.7, 0.1, 0.6]])
    (row,) = alignment.separation(made(table, ["a", "a", "b", "b", alignment.NOISE]), draws=2000)
    assert row["matching"] == pytest.approx((0.9 + 0.8 + 0.7 + 0.1) / 4)
    assert row["mismatching"] == pytest.approx((0.1 + 0.5 + 0.2 + 0.3) / 4)
    assert row["noise"] == pytest.approx(0.3)
    assert row["auc"] == pytest.approx((1.0 + 0.5) / 2)
    assert row["noise_auc"] == pytest.approx((1.0 + 0.5) / 2)
    # of the 6 ways to name two of four pictures "a", only the true one reaches the gap
    assert row["p"] == pytest.approx(1 / 6, abs=0.03)


def test_aligned_is_found_and_unaligned_is_not() -> None:
    random = np.random.default_rng(0)
    of = [w for w in "abcdef" for _ in range(5)]
    table = random.normal(size=(6, 30))
    (chance,) = alignment.separation(made(table, of))
    assert chance["p"] > 0.05
    for i, word in enumerate("abcdef"):
        table[i, [o == word for o in of]] += 2.0
    (aligned,) = alignment.separation(made(table, of))
    assert aligned["p"] == pytest.approx(1 / 1001)
    assert aligned["auc"] > 0.8
    assert np.isnan(aligned["noise_auc"])


def test_a_prediction_needs_words_apart_and_pictures_above_noise() -> None:
    of = [w for w in "abcd" for _ in range(4)] + [alignment.NOISE] * 4
    table = np.random.default_rng(0).normal(size=(4, 20)) * 0.1
    for i in range(4):
        table[i, 4 * i : 4 * i + 4] += 1.0
    assert alignment.diagnosis(made(table, of))[0]["works"]
    table[:, 16:] += 3.0  # as in the paper's middle layers
    (row,) = alignment.diagnosis(made(table, of))
    assert row["noise_auc"] == 0.0
    assert not row["works"]
    assert not alignment.diagnosis(made(np.random.default_rng(1).normal(size=(4, 20)), of))[0]["works"]


def test_the_state_of_patches_by_hand(found: alignment.Similarities) -> None:
    moments = alignment._Moments()
    patches = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
    patches[..., 2] += 40.0
    moments.add(patches[:4])
    moments.add(patches[4:])
    told = moments.summary()
    flat = patches.flatten(0, 1).numpy().astype(float)
    square = (flat**2).mean(0)
    means = patches.mean(1).numpy().astype(float)
    assert told["largest"] == pytest.approx(square.max() / square.sum())
    assert told["outliers"] == 1
    assert told["common"] == pytest.approx((means.mean(0) ** 2).sum() / (means**2).sum(1).mean())
    assert all(0 <= s["common"] <= 1 for s in found.states)


def test_curves_hold_every_picture_once(found: alignment.Similarities) -> None:
    rows = [r for r in alignment.curves(found) if r["layer"] == 1 and r["word"] == "dog"]
    assert {r["kind"]: r["n"] for r in rows} == {"matching": 3, "mismatching": 2, "noise": 4}
    assert rows[0]["value"] == pytest.approx(found.mean[0, 0, :3].mean())


def test_wrong_input(tiny_vlm: nd.VLM, found: alignment.Similarities) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        alignment.similarities(tiny_vlm, {})
    with pytest.raises(ValueError, match="allowed are 'mean' and 'maximum'"):
        found.values("median")
    with pytest.raises(ValueError, match="at least two words"):
        alignment.separation(made(np.zeros((1, 2)), ["a", alignment.NOISE]))
    with pytest.raises(ValueError, match="draws=0"):
        alignment.separation(found, draws=0)
