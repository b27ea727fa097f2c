"""Reach: a prototype beside the best real picture, by what it was climbed for."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.engine.pooling import dot
from nnsight_dream.synthesis.centres import centre
from nnsight_dream.synthesis.reach import Reach

QUICK: Any = {"steps": 2, "batch": 1, "progress": False}


@pytest.fixture(scope="module")
def fox(demo_vlm: nd.VLM) -> nd.Direction:
    return nd.concept(demo_vlm, "fox", layer=1)


@pytest.fixture
def one(demo_vlm: nd.VLM, fox: nd.Direction) -> nd.Prototype:
    return nd.synthesize(demo_vlm, fox, **QUICK)


def on(name: str, grey: float) -> torch.Tensor:
    """A bundled picture on a grey ground, (1, 3, 64, 64)."""
    image = bundle.pictures([name], background=grey)[0].image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def attention(vlm: nd.VLM, picture: torch.Tensor, direction: nd.Direction) -> float:
    """The default objective at the end of a run, by hand."""
    site = direction.site
    hidden = nd.read_pictures(vlm, picture, [site])[site][0].double()
    hidden = hidden - centre(vlm, site, nd.Pictures.bundled()).double()
    v = direction.vector.double()
    likeness = (hidden @ v) / hidden.norm(dim=1) / v.norm()
    rows, cols = vlm.grid
    place = [
        (((i // cols) - (rows - 1) / 2) * 16 / rows, ((i % cols) - (cols - 1) / 2) * 16 / cols)
        for i in range(rows * cols)
    ]
    near = torch.tensor([-(y * y + x * x) / (2 * 16.0**2) for y, x in place], dtype=torch.float64)
    pooled = (likeness / 0.5 + near).softmax(0) @ hidden
    return float(pooled @ v / pooled.norm() / v.norm())


def test_a_concept_is_compared_by_its_own_objective(demo_vlm: nd.VLM, fox: nd.Direction, one: nd.Prototype) -> None:
    assert one.reach is None
    found = nd.reach(demo_vlm, one)
    assert one.reach is found
    assert (found.unit, found.pictures, found.ground, found.reason) == ("score", 1, (0.5, 0.5, 0.5), "")
    mine = torch.from_numpy(np.array(one.image)).permute(2, 0, 1)[None] / 255
    assert found.score == pytest.approx(attention(demo_vlm, mine, fox), abs=1e-5)
    assert found.score == pytest.approx(one.scores["attention"], abs=1e-6)
    assert found.best_own == pytest.approx(attention(demo_vlm, on("fox", 1.0), fox), abs=1e-5)
    assert found.best_cut == pytest.approx(attention(demo_vlm, on("fox", 0.5), fox), abs=2e-3)  # of 8 bits there
    assert found.best_own > 1.5 * found.best_cut > 0  # a score hangs on the ground
    assert found.own == found.score / found.best_own
    assert found.cut == found.score / found.best_cut
    assert not found.reached
    real = dataclasses.replace(one, image=bundle.pictures(["fox"])[0].image, scores={})
    assert nd.reach(demo_vlm, real).own == pytest.approx(1)


def test_other_objectives(demo_vlm: nd.VLM, fox: nd.Direction) -> None:
    site, v = fox.site, fox.vector
    made = nd.synthesize(demo_vlm, fox, pooling=nd.Mean(), score=dot, centre=nd.Grey(), **QUICK)
    found = nd.reach(demo_vlm, made)
    hidden = nd.read_pictures(demo_vlm, on("fox", 1.0), [site])[site][0]
    by_hand = (hidden.mean(0) - nd.Grey().of(demo_vlm, site)) @ v / v.norm()
    assert found.best_own == pytest.approx(float(by_hand), rel=1e-4)


def test_what_a_record_does_not_tell_is_a_reason(demo_vlm: nd.VLM, fox: nd.Direction) -> None:
    own = nd.synthesize(demo_vlm, fox, score=lambda pooled, v: 2 * (pooled * v).sum(-1), **QUICK)
    found = nd.reach(demo_vlm, own)
    assert found.reached is found.score is found.own is found.cut is None
    assert "the score of its run is recorded as" in found.reason
    assert "give settings=" in found.reason
    assert str(found) == f"not compared with real pictures: {found.reason}"
    chosen = nd.Settings.demo().but(score=lambda pooled, v: 2 * (pooled * v).sum(-1))
    assert nd.reach(demo_vlm, own, settings=chosen).best_own > 0


def test_without_real_pictures_or_a_direction(
    demo_vlm: nd.VLM, tiny_parts: tuple, fox: nd.Direction, one: nd.Prototype
) -> None:
    twice = nd.synthesize(demo_vlm, 2 * fox, **QUICK)
    assert nd.reach(demo_vlm, twice).reason == "no bundled picture shows '2 fox': give pictures="
    pictures = bundle.pictures(["fox"])
    assert "give it as towards=" in nd.reach(demo_vlm, twice, pictures).reason
    found = nd.reach(demo_vlm, twice, pictures, towards=2 * fox)
    assert found.best_own == pytest.approx(nd.reach(demo_vlm, one).best_own, abs=1e-5)
    with pytest.raises(ValueError, match="is recorded with"):
        nd.reach(demo_vlm, twice, pictures, towards=nd.concept(demo_vlm, "car", layer=1))
    with pytest.raises(ValueError, match="give one made for that site"):
        nd.reach(demo_vlm, twice, pictures, towards=nd.concept(demo_vlm, "fox", layer=2))
    with pytest.raises(TypeError, match="a Direction or a Feature is needed"):
        nd.reach(demo_vlm, one, towards="fox")
    with pytest.raises(TypeError, match="prototypes="):
        nd.reach(demo_vlm, one.image)
    tiny = nd.load(tiny_parts[0], processor=tiny_parts[1])
    with pytest.raises(ValueError, match="this picture was made for demo"):
        nd.reach(tiny, one)
    small = nd.Settings(canvas=nd.Pixels(24), augment=(), **{k: v for k, v in QUICK.items() if k != "progress"})
    other = nd.synthesize(tiny, nd.concept(tiny, "fox", 1), settings=small, progress=False)
    assert "no real picture is known for" in nd.reach(tiny, other).reason
    assert nd.reach(tiny, other, bundle.pictures(["fox", "owl"])).pictures == 2


def test_pictures_in_every_form(demo_vlm: nd.VLM, one: nd.Prototype, tmp_path: Path) -> None:
    bundled = bundle.pictures(["fox"])[0]
    clear = bundled.image.copy()
    clear.putalpha(bundled.mask)
    (tmp_path / "folder").mkdir()
    clear.save(tmp_path / "folder" / "fox.png")
    four = torch.from_numpy(np.array(clear)).permute(2, 0, 1)
    wanted = nd.reach(demo_vlm, one)
    for given in (clear, [clear], tmp_path / "folder", str(tmp_path / "folder" / "fox.png"), {"fox": clear}, bundled):
        found = nd.reach(demo_vlm, one, given)
        assert (found.best_own, found.best_cut) == pytest.approx((wanted.best_own, wanted.best_cut), abs=0.01)
    assert nd.reach(demo_vlm, one, four).best_cut == pytest.approx(wanted.best_cut, abs=0.01)
    assert nd.reach(demo_vlm, one, four / 255).best_cut == pytest.approx(wanted.best_cut, abs=0.01)
    for given in (bundled.image, four[:3] / 255, nd.Pictures([bundled.image])):
        found = nd.reach(demo_vlm, one, given)
        assert found.best_own == pytest.approx(wanted.best_own, abs=1e-5)
        assert found.best_cut is found.cut is None
        assert found.reason == "no real picture is transparent, so that none could be cut out"
    assert nd.reach(demo_vlm, one, bundle.pictures(["car", "fox"])).best_own == pytest.approx(wanted.best_own, abs=1e-5)
    assert nd.reach(demo_vlm, one, {"owl": clear}).reason == "pictures= holds none of 'fox'"
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        (tmp_path / "none").mkdir()
        nd.reach(demo_vlm, one, tmp_path / "none")
    with pytest.raises(ValueError, match="is empty"):
        nd.reach(demo_vlm, one, [])


class OnWhite(nd.Pixels):
    """Pixels that begin as white."""

    def render(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return (super().render(parts) + 0.5).clamp(max=1)


def test_the_ground_of_a_canvas_of_ones_own(demo_vlm: nd.VLM, fox: nd.Direction) -> None:
    made = nd.synthesize(demo_vlm, fox, canvas=OnWhite(32), rate=1e-6, **QUICK)
    found = nd.reach(demo_vlm, made)
    assert found.ground == pytest.approx((1, 1, 1), abs=0.02)
    assert found.best_cut == pytest.approx(found.best_own, abs=0.02)


@pytest.mark.parametrize("canvas", [nd.Pixels(32, ground=0.85), nd.MultiResolution(32, ground=0.85)])
def test_the_ground_of_a_canvas_that_names_it(demo_vlm: nd.VLM, fox: nd.Direction, canvas: nd.Pixels) -> None:
    found = nd.reach(demo_vlm, nd.synthesize(demo_vlm, fox, canvas=canvas, **QUICK))
    assert found.ground == (0.85, 0.85, 0.85)


def test_a_feature_is_compared_by_its_activation(demo_vlm: nd.VLM) -> None:
    sae = nd.demo_sae()
    aim = nd.feature("demo", 1466)
    site = aim.site(demo_vlm)
    beer, tree = bundle.pictures(["beer"]), bundle.pictures(["Christmas"])
    made = nd.synthesize(demo_vlm, aim, **QUICK)
    found = nd.reach(demo_vlm, made, [*tree, *beer])
    assert (found.unit, found.pictures) == ("activation", 2)
    assert found.score == pytest.approx(made.readings["act_max"], abs=1e-4)
    for grey, told in ((1.0, found.best_own), (0.5, found.best_cut)):
        with torch.no_grad():
            acts = [
                float(sae.encode(nd.read_pictures(demo_vlm, on(name, grey), [site])[site][0])[:, 1466].max())
                for name in ("Christmas", "beer")
            ]
        assert told == pytest.approx(max(acts), abs=0.1)
    assert found.best_own > found.best_cut > 1
    none = nd.reach(demo_vlm, made, bundle.pictures(["czech flag"]))
    assert none.reached is none.own is None
    assert "no real picture fires it on its own ground" in none.reason
    other = nd.synthesize(demo_vlm, nd.feature("demo", 1466) + nd.feature("demo", 643), **QUICK)
    assert "give it as towards=" in nd.reach(demo_vlm, other, beer).reason


def test_reach_is_kept_with_its_prototype_and_shown(demo_vlm: nd.VLM, one: nd.Prototype, tmp_path: Path) -> None:
    from rich.console import Console

    folder = one.save(tmp_path / "fox")
    assert "reach" not in json.loads((folder / "prototype.json").read_text())
    nd.reach(demo_vlm, one)
    assert one.save(tmp_path / "fox") == folder  # no other picture, but measured since
    again = nd.Prototype.load(folder)
    assert again.reach == one.reach
    told = json.loads((folder / "prototype.json").read_text())["reach"]
    assert told["own"] == one.reach.own
    assert told["reached"] is False
    assert "<td>reach</td><td>did not reach real pictures: " in again._repr_html_()
    text = io.StringIO()
    Console(file=text, width=200).print(again)
    assert "did not reach real pictures: " in text.getvalue()
    broken = json.loads((folder / "prototype.json").read_text())
    broken["reach"]["best_own"] = "much"
    (folder / "prototype.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="reach"):
        nd.Prototype.load(folder)


def test_shares_and_verdicts() -> None:
    both = Reach("score", 0.4, 0.5, 0.2, 1, (0.5, 0.5, 0.5))
    assert (both.own, both.cut, both.reached) == (0.8, 2.0, False)
    assert str(both) == (
        "did not reach real pictures: its score is 0.80 times the best real picture's as it is, "
        "2.00 times the best cut out on the same ground"
    )
    assert str(Reach("score", -0.1, 0.5, 0.2)) == (
        "did not reach real pictures: its score is -0.10, the best real picture's 0.50"
    )
    assert Reach("score", 0.6, 0.5, 0.2).verdict == "reaches real pictures"
    below = Reach("score", 0.6, -0.5, 0.0, reason="none")
    assert (below.own, below.cut, below.reached) == (None, None, None)
    assert Reach.of_record(json.loads(json.dumps(both.record()))) == both
    assert not any(isinstance(v, float) and math.isnan(v) for v in Reach("score").record().values())
