"""Where reach is said: on cards, in the gallery, in sweeps, tables and pages, and on the command line."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
import torch

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.cards import gallery
from nnsight_dream.cards.make import Made, make_cards
from nnsight_dream.demo import bundle
from nnsight_dream.report import pages, tables

SHORT = "did not reach real pictures"


def data_of(path: Path) -> dict[str, Any]:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)[1])


# -- cards -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deck(demo_vlm: nd.VLM, tmp_path_factory: pytest.TempPathFactory) -> Made:
    shown = bundle.pictures(["beer", "Christmas", "owl"])
    material = nd.Material(
        ("beer", "Christmas"),
        tuple(p.image for p in shown),
        tuple(p.name for p in shown),
        covers=(shown[0].mask, None, shown[2].mask),
    )
    few = nd.Settings.demo().but(steps=1)
    place = tmp_path_factory.mktemp("deck")
    return make_cards(demo_vlm, nd.demo_sae(), [1466], place, material=material, seeds=[0], strengths=[], settings=few)


def test_a_card_says_how_far_its_pictures_reach(demo_vlm: nd.VLM, deck: Made) -> None:
    sae, (card,) = nd.demo_sae(), deck.cards
    site = nd.feature(sae, 1466).site(demo_vlm)

    def highest(name: str, grey: float) -> float:
        pixels = np.array(bundle.pictures([name], background=grey)[0].image)
        picture = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            return float(sae.encode(nd.read_pictures(demo_vlm, picture, [site])[site][0])[:, 1466].max())

    reach = card.reach()
    assert reach.best_own == pytest.approx(max(highest(n, 1.0) for n in ("beer", "Christmas", "owl")), abs=1e-4)
    assert reach.best_cut == pytest.approx(max(highest(n, 0.5) for n in ("beer", "owl")), abs=0.1)
    assert reach.best_own > reach.best_cut > 1
    assert reach.score == card.prototype().readings["act_max"] == 0  # after one step
    assert (reach.own, reach.reached, reach.pictures) == (0, False, 3)
    opposite = card.shots[1]
    assert opposite.negative
    assert card.prototype(opposite).reach is None
    older = dataclasses.replace(card.prototype(), reach=None)  # as cards were before
    assert card.reach(older).own == 0
    with pytest.raises(ValueError, match="3 pictures but 1 covers"):
        nd.Material(("a",), tuple(bundle.pictures(["beer", "owl", "fox"])), ("a", "b", "c"), covers=(None,))  # type: ignore[arg-type]


@chromium.needed
def test_a_feature_that_does_not_fire_wears_no_tick(deck: Made, tmp_path: Path) -> None:
    (card,) = deck.cards
    fires = dataclasses.replace(card, key="fires", fires=((1.0,),))  # the judge names both
    verdicts = {card.key: [("strict", "beer", "yes")], "fires": [("strict", "beer", "yes")]}
    page = gallery.page([card, fires], tmp_path / "cards.html", verdicts=verdicts)
    with chromium.opened(page, tmp_path) as tab:
        ticked = "return [...document.querySelectorAll('.tile.yes')].map(t => t.dataset.key);"
        assert tab.run(ticked) == ["fires"]
        assert tab.run("return document.querySelector('.tile').innerText;").count(SHORT) == 1
        assert SHORT in tab.run("return document.querySelector('.tile').getAttribute('aria-label');")
        count = tab.run("return document.getElementById('count').textContent;")
        assert "names the word of 2 of 2" in count
        assert "0 of 2 reach what the best real picture does" in count
        tab.click(".tile", 0)
        assert f"{SHORT}: its activation is 0.00, the best real picture's " in tab.run(
            "return document.querySelector('dialog').innerText;"
        )
        assert tab.troubles == []


# -- sweeps, tables, pages ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(demo_vlm: nd.VLM, tmp_path_factory: pytest.TempPathFactory) -> nd.Store:
    jobs = nd.jobs_of([("fox", "animal", ""), ("guitar", "object", "")], 1, controls=1)
    few = nd.Settings.demo().but(steps=1)
    store = nd.sweep(demo_vlm, jobs, tmp_path_factory.mktemp("store"), settings=few, progress=False).store
    nd.examine(store, nd.DemoExaminer(), protocols=["strict"], shuffled=False, progress=False)
    return store


def test_a_sweep_keeps_reach_and_tables_count_it(demo_vlm: nd.VLM, store: nd.Store) -> None:
    entries = {(e.job.concept, e.job.control): e for e in store.entries()}
    for (_, control), entry in entries.items():
        made = entry.prototype()
        assert entry.reach == made.reach
        if control:
            assert made.reach is None
        else:
            again = nd.reach(demo_vlm, made)
            assert (again.own, again.cut) == pytest.approx((entry.reach.own, entry.reach.cut), rel=1e-5)
            assert (again.unit, again.pictures, again.ground) == ("score", entry.reach.pictures, entry.reach.ground)
    rows = nd.results(store)
    for row in rows:
        reach = entries[row["concept"], row["control"]].reach
        assert (row["reach"], row["reached"]) == ((None, None) if reach is None else (reach.own, reach.reached))
    (rate,) = nd.rates(rows, protocol="strict")
    both = [entries[name, ""].reach.own for name in ("fox", "guitar")]
    assert rate["reach"] == pytest.approx(sum(both) / 2)
    assert rate["reached"] == 0
    assert "| 0 % |" in tables.to_markdown([rate], ["reached"])
    old = [{k: v for k, v in row.items() if not k.startswith("reach")} for row in rows]
    assert nd.rates(old, protocol="strict")[0]["reached"] is None


@chromium.needed
def test_a_page_says_what_did_not_reach(store: nd.Store, tmp_path: Path) -> None:
    page = pages.page(store, tmp_path / "page.html")
    cells = {(c["concept"], c["control"]): c for c in data_of(page)["cells"]}
    assert cells["fox", ""]["reached"] is False
    assert cells["fox", "random"]["reached"] is None
    assert dict(map(tuple, cells["fox", ""]["facts"]))["reach"].startswith(f"{SHORT}: ")
    with chromium.opened(page, tmp_path) as tab:
        assert tab.run("return [...document.querySelectorAll('.cell')].map(c => c.innerText);") == ["did not reach"] * 2
        assert SHORT in tab.run("return document.querySelector('.cell').getAttribute('aria-label');")
        assert "0 of 2 reach what" in tab.run("return document.getElementById('count').textContent;")
        pick = 'const f = document.querySelector(\'[name="reach"]\'); f.value = "true"; f.dispatchEvent(new Event("change"));'
        assert tab.run(pick + "return document.querySelectorAll('.cell').length;") == 0
        assert tab.troubles == []


# -- the command line --------------------------------------------------------------------------------------------


def test_the_command_line_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ["synthesize", "fox", "--steps", "1", "--out", str(tmp_path / "a")]
    assert cli.main(drawn) == 0
    assert f"; {SHORT}: " in capsys.readouterr().out
    assert cli.main([*drawn, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["prototypes"]
    assert row["reach"]["reached"] is False
    assert row["reach"]["own"] == pytest.approx(row["reach"]["score"] / row["reach"]["best_own"])
    assert nd.Prototype.load(row["folder"]).reach.own == row["reach"]["own"]
    assert cli.main(["sweep", "owl", "--steps", "1", "--out", str(tmp_path / "b"), "--json"]) == 0
    (picture,) = json.loads(capsys.readouterr().out)["pictures"]
    assert picture["reach"]["reached"] is False
