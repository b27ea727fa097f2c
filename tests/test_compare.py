"""Two pictures side by side, and series of pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
import saes
import torch
from PIL import Image
from test_prototype import prototype

import nnsight_dream as nd

FEW = nd.Settings(steps=2, batch=1, canvas=nd.Pixels(24), augment=(nd.Noise(0.1),))


@pytest.fixture(scope="module")
def axes(tiny_vlm: nd.VLM) -> list[nd.Direction]:
    return [nd.from_tensor(tiny_vlm, (i + 2.0) * torch.eye(32)[i], 2, label=f"axis {i}") for i in range(3)]


def painted(change: Any, size: int = 24) -> Any:
    pixels = np.random.default_rng(0).integers(0, 100, (24, 24, 3)).astype(np.uint8)
    image = Image.fromarray(change(pixels)).resize((size, size), 0)
    return prototype("<b>fox</b>", image=image)


def test_the_difference_is_that_of_the_pixels() -> None:
    def spot(pixels: np.ndarray) -> np.ndarray:
        pixels = pixels.copy()
        pixels[5:8, 10:12] += 150
        return pixels

    same, other = painted(lambda p: p), painted(spot)
    made = nd.compare(same, other)
    assert made.difference[5:8, 10:12] == pytest.approx(150 / 255)
    assert made.difference.sum() == pytest.approx(6 * 150 / 255)
    light = np.asarray(made.difference_map(240).convert("L"))
    assert light[50:80, 100:120].min() > 200
    assert light[:, :100].max() == 0
    larger = nd.compare(same, painted(spot, 48)).difference  # brought to the first's size
    assert larger.shape == (24, 24)
    assert larger[6, 10:12].min() > 0.3 > larger[:, :8].max()
    exact = nd.compare(same, same)
    assert exact.correlation == pytest.approx(1)
    assert exact.difference.max() == 0
    assert np.asarray(exact.difference_map()).max() == 0
    assert nd.compare(same, painted(lambda p: 200 - p)).correlation == pytest.approx(-1)


def test_directions_are_drawn_with_one_seed(tiny_vlm: nd.VLM, axes: list) -> None:
    made = nd.compare(axes[0], axes[1], vlm=tiny_vlm, seed=3, settings=FEW, progress=False)
    alone = nd.synthesize(tiny_vlm, axes[1], seed=3, settings=FEW, progress=False)
    assert made.second.image.tobytes() == alone.image.tobytes()
    assert (made.first.seed, made.first.label) == (3, "axis 0")
    assert made.image.size == (3 * 256 + 16, 276)
    assert "axis 0, layer 2, seed 3" in repr(made)


def test_two_models(tiny_vlm: nd.VLM, axes: list, tiny_folder: Path) -> None:
    another = nd.load(tiny_folder, device="cpu", dtype=torch.float32)
    theirs = nd.from_tensor(another, axes[0].vector, 2, label="axis 0")
    made = nd.compare(axes[0], theirs, vlm=tiny_vlm, other=another, settings=FEW, progress=False)
    assert made.difference.max() == 0  # the same weights
    assert made.second.model != made.first.model


def test_what_cannot_be_compared_is_refused(tiny_vlm: nd.VLM, axes: list) -> None:
    with pytest.raises(ValueError, match="give vlm="):
        nd.compare(axes[0], axes[1])
    with pytest.raises(TypeError, match="one is compared with one"):
        nd.compare(axes[0], axes[:2], vlm=tiny_vlm, settings=FEW, progress=False)
    with pytest.raises(ValueError, match="ending of path"):
        nd.compare(painted(lambda p: p), painted(lambda p: p)).save("x.gif")


@chromium.needed
def test_the_page_switches_heat_maps_on(tmp_path: Path) -> None:
    path = nd.compare(painted(lambda p: p), painted(lambda p: 200 - p)).save(tmp_path / "both.html")
    for width in (390, 1440):
        with chromium.opened(path, tmp_path, width) as tab:
            heat = "return [...document.querySelectorAll('[data-heat]')].map(i => i.style.opacity)"
            assert tab.run(heat) == ["0", "0"]
            tab.click("input")
            assert tab.run(heat) == ["1", "1"]
            assert all(tab.run("return [...document.images].map(i => i.alt)"))
            assert tab.run("return document.documentElement.scrollWidth") <= width
            assert "<b>fox</b>" in tab.run("return document.querySelector('figcaption').textContent")
            assert tab.troubles == []


def test_from_one_direction_to_another(tiny_vlm: nd.VLM, axes: list) -> None:
    made = nd.interpolate(tiny_vlm, axes[0], axes[1], 5, settings=FEW, progress=False)
    assert [p.label for p in made][:3] == ["axis 0", "0.75 axis 0 + 0.25 axis 1", "0.5 axis 0 + 0.5 axis 1"]
    ends = nd.synthesize(tiny_vlm, [axes[0].unit(), axes[1].unit()], settings=FEW, progress=False)
    assert [p.image.tobytes() for p in (made[0], made[-1])] == [p.image.tobytes() for p in ends]
    assert made[2].direction["norm"] == pytest.approx(0.5**0.5)
    with pytest.raises(ValueError, match="count"):
        nd.interpolate(tiny_vlm, axes[0], axes[1], 1)


def test_a_table_of_sums(tiny_vlm: nd.VLM, axes: list) -> None:
    made = nd.sums(tiny_vlm, axes, axes, settings=FEW, progress=False)
    assert [[p.label for p in row] for row in made.rows][1] == [f"axis 1 + axis {i}" for i in range(3)]
    assert made.grid(side=64).size == (192, 240)
    assert made[1].image.tobytes() == made[3].image.tobytes()  # a + b, b + a
    for rows in ([], [axes[0]]):
        with pytest.raises(ValueError, match="at least one of each"):
            nd.sums(tiny_vlm, rows, [] if rows else axes)


def test_weak_to_strong(tiny_vlm: nd.VLM, axes: list) -> None:
    made = nd.strengths(tiny_vlm, axes[0], axes[1], [0, 0.5, -2], settings=FEW, progress=False)
    assert [p.label for p in made] == ["axis 0", "axis 0 + 0.5 axis 1", "axis 0 - 2 axis 1"]
    assert [p.direction["norm"] for p in made] == pytest.approx([1, 1.25**0.5, 5**0.5])
    with pytest.raises(ValueError, match="asks for nothing"):
        nd.strengths(tiny_vlm, axes[0], axes[1], [])


def test_features_add_up_too(tiny_vlm: nd.VLM) -> None:
    sae = saes.build("jumprelu", model=None)
    images = [Image.new("RGB", (28, 28), (90, 60, n)) for n in range(3)]
    a, b = nd.feature(sae, [3, 5], reference=images)
    made = nd.interpolate(tiny_vlm, a, b, 3, settings=FEW, progress=False)
    assert [p.label for p in made] == ["feature 3", "0.5 feature 3 + 0.5 feature 5", "feature 5"]
    plain = nd.synthesize(tiny_vlm, dataclasses.replace(0.5 * a + 0.5 * b), settings=FEW, progress=False)
    assert made[1].image.tobytes() == plain.image.tobytes()
