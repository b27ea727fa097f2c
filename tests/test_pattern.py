"""Patterns: the part of a direction that pictures can show."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.synthesis.digests import digest
from nnsight_dream.synthesis.real_pictures import real_scores

QUICK: Any = {"steps": 2, "batch": 1, "progress": False}


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    noise = [Image.fromarray(random.integers(0, 256, (112, 112, 3), dtype=np.uint8)) for _ in range(6)]
    return [*noise, *(p.image for p in bundle.pictures(["fox", "duck", "house", "octopus"]))]


def means(vlm: nd.VLM, images: list[Image.Image], layer: int) -> np.ndarray:
    """The mean patch of each picture less the mean of all, one by one."""
    rows = [nd.Pictures([image]).of(vlm, nd.Site(layer)).double().numpy() for image in images]
    return np.stack(rows) - np.mean(rows, 0)


@pytest.mark.parametrize("ridge", [0.01, 1.0, 30.0])
def test_by_hand(tiny_vlm: nd.VLM, images: list[Image.Image], ridge: float) -> None:
    centred = means(tiny_vlm, images, 2)
    covariance = centred.T @ centred / (len(images) - 1)
    width = len(covariance)
    vector = torch.randn(width, generator=torch.Generator().manual_seed(0))
    direction = nd.from_tensor(tiny_vlm, vector, layer=2, label="mine")
    wanted = covariance @ np.linalg.solve(
        covariance + ridge * np.trace(covariance) / width * np.eye(width), vector.double().numpy()
    )
    found = nd.Pattern(ridge, nd.Pictures(images)).of(tiny_vlm, direction)
    np.testing.assert_allclose(found.vector.numpy(), wanted, atol=1e-4 * np.abs(wanted).max())
    assert (found.label, found.site, found.model) == ("mine", direction.site, direction.model)
    assert found.provenance["pattern"]["ridge"] == ridge
    assert found.provenance["pattern"]["pictures"] == len(images)


def test_its_ends_are_a_projection_and_the_pattern_of_a_filter(tiny_vlm: nd.VLM, images: list[Image.Image]) -> None:
    centred = means(tiny_vlm, images, 1)
    direction = nd.from_tensor(tiny_vlm, torch.ones(tiny_vlm.width), layer=1)
    pictures = nd.Pictures(images)
    span = nd.Pattern(0, pictures).of(tiny_vlm, direction)
    np.testing.assert_allclose(span.vector.numpy(), np.linalg.pinv(centred) @ centred @ np.ones(32), atol=1e-4)
    assert nd.cosine(nd.Pattern(0, pictures).of(tiny_vlm, span), span) > 0.9999
    far = nd.Pattern(1e9, pictures).of(tiny_vlm, direction)
    haufe = nd.from_tensor(tiny_vlm, centred.T @ centred @ np.ones(32), layer=1)
    assert nd.cosine(far, haufe) > 0.9999


def test_on_the_demo_it_is_nearer_to_pictures_it_was_not_made_of(demo_vlm: nd.VLM) -> None:
    """A word's pattern among other things' pictures against the picture of the thing itself."""
    every = bundle.pictures()
    middle = nd.Pictures.bundled().of(demo_vlm, nd.Site(1))
    gained = []
    for name in ("fox", "duck", "house", "guitar", "sunglasses"):
        others = nd.Pictures([p.image for p in every if p.name != name][::2])
        word = nd.concept(demo_vlm, name, layer=1)
        (own,) = bundle.pictures([name])
        shown = nd.from_tensor(demo_vlm, nd.Pictures([own.image]).of(demo_vlm, nd.Site(1)) - middle, layer=1)
        gained.append(nd.cosine(nd.Pattern(pictures=others).of(demo_vlm, word), shown) - nd.cosine(word, shown))
    assert min(gained) > 0
    assert np.mean(gained) > 0.1


def test_a_setting_climbs_it(tiny_vlm: nd.VLM, images: list[Image.Image]) -> None:
    direction = nd.concept(tiny_vlm, "cat", layer=2)
    pattern = nd.Pattern(pictures=nd.Pictures(images))
    settings = nd.Settings(**QUICK_SETTINGS)
    by_setting = nd.synthesize(tiny_vlm, direction, settings=settings, pattern=pattern, progress=False)
    by_hand = nd.synthesize(tiny_vlm, pattern.of(tiny_vlm, direction), settings=settings, progress=False)
    plain = nd.synthesize(tiny_vlm, direction, settings=settings, progress=False)
    assert by_setting.image.tobytes() == by_hand.image.tobytes()
    assert by_setting.history == by_hand.history
    assert by_setting.history != plain.history
    assert by_setting.label == direction.label
    assert by_setting.direction["pattern"] == by_hand.direction["pattern"]
    assert "pattern" not in plain.direction
    # what is a pattern already is not made one again, and features are left alone
    again = nd.synthesize(tiny_vlm, pattern.of(tiny_vlm, direction), settings=settings, pattern=pattern, progress=False)
    assert again.history == by_hand.history


QUICK_SETTINGS: Any = {"steps": 2, "batch": 1, "canvas": nd.Pixels(32)}


def test_the_loopback_gives_the_same(tiny_folder: Any, tiny_vlm: nd.VLM, images: list[Image.Image]) -> None:
    away = nd.load(str(tiny_folder), remote="local")
    pattern = nd.Pattern(pictures=nd.Pictures(images))
    pictures = [
        nd.synthesize(vlm, nd.concept(vlm, "cat", layer=2), pattern=pattern, progress=False, **QUICK_SETTINGS)
        for vlm in (tiny_vlm, away)
    ]
    np.testing.assert_allclose(pictures[0].history, pictures[1].history, rtol=1e-5)


def test_features_are_not_changed(demo_vlm: nd.VLM) -> None:
    feature = nd.feature(nd.demo.sae_folder(4), 3)
    one, other = (nd.synthesize(demo_vlm, feature, pattern=p, **QUICK) for p in (None, nd.Pattern()))
    assert one.image.tobytes() == other.image.tobytes()


def test_keys_of_stores_stay_without_one() -> None:
    """Stores that are older than this setting find their pictures: the key of settings without it is what it was."""
    plain = nd.Settings.paper(1)
    assert digest(plain) == digest(plain.but(pattern=None)) != digest(plain.but(pattern=nd.Pattern()))
    assert digest(plain.but(pattern=nd.Pattern(1))) != digest(plain.but(pattern=nd.Pattern(2)))
    assert json.dumps(plain.but(pattern=nd.Pattern()).record())
    assert pickle.loads(pickle.dumps(plain.but(pattern=nd.Pattern()))) == plain.but(pattern=nd.Pattern())


def test_reach_compares_by_the_pattern(demo_vlm: nd.VLM) -> None:
    fox = nd.concept(demo_vlm, "fox", layer=1)
    settings = nd.Settings.demo().but(steps=2, batch=1, pattern=nd.Pattern(5.0))
    prototype = nd.synthesize(demo_vlm, fox, settings=settings, progress=False)
    mine = nd.reach(demo_vlm, prototype)
    assert mine.own is not None
    for other in (
        nd.reach(demo_vlm, prototype, towards=fox),
        nd.reach(demo_vlm, prototype, towards=nd.Pattern(5.0).of(demo_vlm, fox)),
        nd.reach(demo_vlm, prototype, settings=settings),
    ):
        assert other.own == pytest.approx(mine.own, abs=1e-5)
    own = dataclasses.replace(settings, pattern=nd.Pattern(5.0, nd.Pictures([p.image for p in bundle.pictures()[:9]])))
    mine = nd.synthesize(demo_vlm, fox, settings=own, progress=False)
    untold = nd.reach(demo_vlm, mine)
    assert untold.own is None
    assert "give settings=" in untold.reason
    assert real_scores(mine) == {}
    assert mine._repr_html_()
    told = nd.reach(demo_vlm, mine, settings=own)  # as the reason says
    assert told.own is not None
    assert nd.reach(demo_vlm, mine, towards=own.pattern.of(demo_vlm, fox)).own == pytest.approx(told.own, abs=1e-5)


def test_a_pattern_made_by_hand_is_compared_as_one(demo_vlm: nd.VLM) -> None:
    fox = nd.concept(demo_vlm, "fox", layer=1)
    few = nd.Settings.demo().but(steps=2, batch=1)
    by_hand = nd.synthesize(demo_vlm, nd.Pattern().of(demo_vlm, fox), settings=few, progress=False)
    by_setting = nd.synthesize(demo_vlm, fox, settings=few, pattern=nd.Pattern(), progress=False)
    assert nd.reach(demo_vlm, by_hand).own == pytest.approx(nd.reach(demo_vlm, by_setting).own, abs=1e-5)
    assert real_scores(by_hand) == pytest.approx(real_scores(by_setting), abs=1e-5)
    plain = nd.synthesize(demo_vlm, fox, settings=few, progress=False)
    assert real_scores(by_hand)["mean"] > real_scores(plain)["mean"]


def test_sums_of_patterns_keep_their_story(tiny_vlm: nd.VLM, images: list[Image.Image]) -> None:
    cat, dog = nd.concept(tiny_vlm, ["cat", "dog"], layer=2)
    pattern = nd.Pattern(pictures=nd.Pictures(images))
    of_sum = pattern.of(tiny_vlm, cat + dog)
    sum_of = pattern.of(tiny_vlm, cat) + pattern.of(tiny_vlm, dog)
    torch.testing.assert_close(of_sum.vector, sum_of.vector, atol=1e-4, rtol=1e-4)
    assert "pattern" in (2 * of_sum).provenance["terms"][0]["provenance"]
    assert all("pattern" in term["provenance"] for term in sum_of.provenance["terms"])


def test_what_is_wrong_is_said(tiny_vlm: nd.VLM, demo_vlm: nd.VLM, images: list[Image.Image]) -> None:
    cat = nd.concept(tiny_vlm, "cat", layer=2)
    with pytest.raises(ValueError, match=r"ridge=-1: .*at least 0"):
        nd.Pattern(-1)
    with pytest.raises(TypeError, match=r"nd\.Pictures"):
        nd.Pattern(pictures=images)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two pictures or more"):
        nd.Pattern(pictures=nd.Pictures(images[:1])).of(tiny_vlm, cat)
    with pytest.raises(ValueError, match="read alike"):
        nd.Pattern(pictures=nd.Pictures([images[0], images[0]])).of(tiny_vlm, cat)
    with pytest.raises(ValueError, match="of 'demo"):
        nd.Pattern().of(tiny_vlm, nd.concept(demo_vlm, "fox", layer=1))
    with pytest.raises(TypeError, match="a pattern is of a Direction"):
        nd.Pattern().of(tiny_vlm, "fox")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pattern=nd\.Pattern\(\)"):
        nd.Settings(pattern="pattern")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pattern=nd\.Pattern\(\)"):
        nd.Settings(pattern=nd.Pattern)  # type: ignore[arg-type]
    axes = np.linalg.svd(means(tiny_vlm, images[:3], 2))[2]
    across = nd.from_tensor(tiny_vlm, axes[-1], layer=2, label="across")
    with pytest.raises(ValueError, match="do not differ along 'across'"):
        nd.Pattern(pictures=nd.Pictures(images[:3])).of(tiny_vlm, across)
