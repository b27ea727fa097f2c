"""Alignment beside dreaming, on planted sides of which it is known what they see and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_alignment_experiments import LANGUAGE, VISION, made
from test_prototype import prototype

import nnsight_dream as nd
from nnsight_dream.alignment import dreams as alignment_dreams
from nnsight_dream.alignment import encoders
from nnsight_dream.alignment import figures as alignment_figures
from nnsight_dream.alignment.dreams import beside_recognition, over_concepts, over_layers, own_sides, prototypes
from nnsight_dream.alignment.experiments import L_TO_V, V_TO_L, Setting, groups_of
from nnsight_dream.alignment.features import features
from nnsight_dream.stats.similarity import cka, retrieval, standardise
from nnsight_dream.sweeps.jobs import Job
from nnsight_dream.sweeps.store import Store

SETTING = Setting((1, 1), draws=19)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNSIGHT_DREAM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment_dreams, "image_side", lambda vlm: VISION)
    monkeypatch.setattr(alignment_dreams, "text_side", lambda vlm: LANGUAGE)


def test_own_sides_are_the_measures_layer_by_layer(tiny_vlm: nd.VLM) -> None:
    pairs = made(20)
    rows = own_sides(tiny_vlm, pairs, Setting((0, 0), measures=("cka",), draws=0), layers=[1, 3], k=2)
    assert [(r["layer"], r["measure"]) for r in rows] == [
        (n, m) for n in (1, 3) for m in ("cka", "retrieval", "retrieval")
    ]
    seen = features(encoders.image_side(tiny_vlm), (p.image for p in pairs), [3])[3]
    said = features(encoders.text_side(tiny_vlm), [p.captions[0] for p in pairs], [3])[3]
    assert rows[3]["value"] == pytest.approx(cka(seen, said).value)
    assert rows[4]["direction"] == L_TO_V
    assert rows[4]["value"] == retrieval(standardise(said), standardise(seen), 2).value
    assert rows[5]["value"] == retrieval(standardise(seen), standardise(said), 2).value


def aligned(values: list[float], measure: str = "cka") -> list[dict]:
    return [dict(layer=i + 1, measure=measure, direction="both", value=v) for i, v in enumerate(values)]


def rates(values: list[float]) -> list[dict]:
    return [dict(layer=i + 1, rate=v, low=v - 0.1, high=v + 0.1) for i, v in enumerate(values)]


def test_layers_are_joined_and_correlated(tmp_path: Path) -> None:
    values, said = [0.1, 0.3, 0.2, 0.5, 0.4], [0.2, 0.3, 0.3, 0.6, 0.5]
    joined = beside_recognition(aligned([*values, 0.9]), rates(said))
    assert [r["rate"] for r in joined] == said  # layer 6 was not dreamt
    assert joined[0]["rate_low"] == pytest.approx(0.1)
    (row,) = over_layers(joined)
    stats = pytest.importorskip("scipy.stats")
    assert row["value"] == pytest.approx(stats.spearmanr(values, said).statistic)
    assert row["n"] == 5
    # by hand: of the 120 orders, how many are as far from 0
    import itertools

    a, b = stats.rankdata(values), stats.rankdata(said)
    all_orders = [abs(np.corrcoef(a, b[list(o)])[0, 1]) for o in itertools.permutations(range(5))]
    assert row["p"] == pytest.approx(np.mean(np.array(all_orders) >= row["value"] - 1e-9))
    many = over_layers(beside_recognition(aligned(list(range(12))), rates([i / 20 for i in range(12)])), draws=200)
    assert many[0]["value"] == pytest.approx(1)
    assert many[0]["p"] == pytest.approx(1 / 201)
    assert over_layers(beside_recognition(aligned(values), rates([0.3] * 5)))[0]["p"] is None
    assert [f.suffix for f in alignment_figures.recognition(joined, tmp_path / "joined")] == [".png", ".svg"]


def results(concepts: dict[str, float], **more: object) -> list[dict]:
    plain = dict(layer=1, protocol="hint", control="", seed=0)
    return [plain | dict(concept=c, score=s) | more for c, s in concepts.items()]


def test_concepts_that_align_and_are_recognised(planted: None) -> None:
    random = np.random.default_rng(0)
    right, wrong = made(60), made(60, seed=9)
    pairs, scores = [], {}
    for a, b in zip(right, wrong, strict=True):  # captions of a third are another picture's
        fits = random.random() > 1 / 3
        pairs.append(a if fits else nd_pair(a, b.captions))
        scores[a.group] = float(fits)
    for row in over_concepts(None, pairs, results(scores), SETTING):
        assert row["n"] == 60
        assert row["value"] > 0.3
        assert row["p"] == 0.05
    shuffled = dict(zip(scores, random.permutation(list(scores.values())), strict=True))
    found = over_concepts(None, pairs, results(shuffled) + results(scores, control="random"), SETTING)
    assert all(row["value_low"] < 0 < row["value_high"] for row in found)  # controls do not count
    never = over_concepts(None, pairs, results(dict.fromkeys(scores, 0.0)), SETTING)[0]
    assert np.isnan(never["value"])
    assert np.isnan(never["p"])
    few = dict(list(scores.items())[:5])
    assert over_concepts(None, pairs, results(few), SETTING)[0]["n"] == 5
    with pytest.raises(ValueError, match=r"fewer than 4 concepts .*results= has 3 concepts, pairs 60 groups"):
        over_concepts(None, pairs, results(dict(list(scores.items())[:3])), SETTING)


def nd_pair(a, captions):
    from nnsight_dream.alignment.pairs import pair

    return pair(a.name, a.image, captions)


def test_prototypes_take_the_pictures_place(tmp_path: Path) -> None:
    pairs, random = made(18), np.random.default_rng(3)
    store = Store(tmp_path / "store")
    for p in pairs:
        for layer, image in ((1, p.image), (2, Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)))):
            job = Job(p.group, "thing", layer)
            store.put(job.key(), job, prototype(p.group, image=image))
    for p in pairs[:16]:
        job = Job(p.group, "thing", 1, control="random")
        noise = Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        store.put(job.key(), job, prototype(p.group, image=noise))
    rows = prototypes(VISION, LANGUAGE, store, pairs, SETTING)
    value = {(r["layer"], r["kind"], r["direction"]): r for r in rows if r["measure"] == "predictivity"}
    for direction in (L_TO_V, V_TO_L):
        assert value[1, "prototypes", direction]["value"] == pytest.approx(value[1, "pictures", direction]["value"])
        assert value[2, "pictures", direction]["value"] > 0.8 > 0.5 > value[2, "prototypes", direction]["value"]
        assert value[1, "random directions", direction]["value"] < 0.5
    assert {(r["layer"], r["kind"]): r["n"] for r in rows} == {
        (1, "prototypes"): 18, (1, "pictures"): 18, (1, "random directions"): 16, (2, "prototypes"): 18,
        (2, "pictures"): 18,
    }  # fmt: skip
    alignment_figures.prototypes(rows, tmp_path / "prototypes")
    with pytest.raises(ValueError, match="at most 10 concepts of a layer are among the pairs' groups; 15 are needed"):
        prototypes(VISION, LANGUAGE, store, pairs[:10], SETTING)


def test_bad_input_is_said() -> None:
    with pytest.raises(ValueError, match="no layer is in both: alignment has 1, 2, recognised= has 3"):
        beside_recognition(aligned([0.1, 0.2]), [dict(layer=3, rate=0.5)])
    with pytest.raises(ValueError, match="a layer twice"):
        beside_recognition(aligned([0.1, 0.2]), rates([0.1]) + rates([0.2]))
    assert groups_of(made(4)) is None
