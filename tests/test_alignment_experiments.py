"""The experiments on planted encoders, of which it is known what they see: colours in pictures, numbers in captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nnsight_dream.alignment import figures as alignment_figures
from nnsight_dream.alignment import manipulations
from nnsight_dream.alignment.encoders import Encoder
from nnsight_dream.alignment.experiments import L_TO_V, V_TO_L, Setting, alignment_map, exemplar_averaging, manipulated
from nnsight_dream.alignment.pairs import Pair, pair
from nnsight_dream.alignment.preference import Choice, clip_scores, preference, rank_agreement

RANDOM = np.random.default_rng(0)
SEEN, SAID = RANDOM.normal(size=(3, 10)), RANDOM.normal(size=(3, 8))


def look(items, layers):
    """Layer 0: noise. Layer 1: the colour of the left half, and some of the picture's own noise."""
    rows = np.stack([np.asarray(i.convert("RGB"), dtype=float) for i in items]) / 255
    noise = np.stack([np.random.default_rng(int(r.sum() * 1000) % 2**32).normal(size=10) for r in rows])
    found = {0: noise, 1: rows[:, :, :8].mean((1, 2)) @ SEEN + 0.05 * noise}
    return {n: torch.tensor(found[n]) for n in layers}


def read(items, layers):
    """Layer 0: the numbers in any order. Layer 1: the numbers in their order."""
    numbers = [np.array([float(w[1:]) for w in i.split()[:3]]) for i in items]
    found = {0: np.stack([np.sort(v) for v in numbers]) @ SAID, 1: np.stack(numbers) @ SAID}
    return {n: torch.tensor(found[n]) for n in layers}


VISION = Encoder("eye", "pictures", 1, "mean", "eye", look)
LANGUAGE = Encoder("ear", "words", 1, "mean", "ear", read)
LAYERS = Setting((1, 1), draws=19)
FEW = Setting((1, 1), draws=3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNSIGHT_DREAM_CACHE", str(tmp_path / "cache"))


def made(count: int = 60, captions: int = 1, noise: float = 0.0, seed: int = 1) -> list[Pair]:
    random = np.random.default_rng(seed)
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    found = []
    for i in range(count):
        colour = random.integers(0, 255, 3)
        picture = Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        picture.paste(tuple(colour.tolist()), (0, 0, 8, 16))
        texts = []
        for _ in range(captions):
            told = colour / 255 + noise * random.normal(size=3)
            texts.append(" ".join(f"n{v:.4f}" for v in told))
        found.append(pair(f"picture {i}", picture, texts, mask=mask))
    return found


def test_map_finds_the_layers_that_align(tmp_path: Path) -> None:
    rows = alignment_map(VISION, LANGUAGE, made(), draws=30)
    assert len(rows) == 8
    value = {(r["vision_layer"], r["language_layer"], r["direction"]): r for r in rows}
    for direction in (L_TO_V, V_TO_L):
        assert value[1, 1, direction]["value"] > 0.9 > 0.8 > value[1, 0, direction]["value"]
        assert value[1, 1, direction]["p_map"] < 0.05
        assert value[0, 1, direction]["p_map"] > 0.05
    files = alignment_figures.layer_maps(rows, tmp_path / "map")
    assert [f.suffix for f in files] == [".png", ".svg"]
    assert len(alignment_map(VISION, LANGUAGE, made(), measure="cka", draws=0, vision_layers=[1])) == 2


def test_directions_are_named_by_what_is_predicted() -> None:
    pairs = made(40)
    (there, back) = sorted(
        alignment_map(VISION, LANGUAGE, pairs, vision_layers=[0], language_layers=[1], draws=0),
        key=lambda r: r["direction"],
    )
    assert (there["direction"], back["direction"]) == (V_TO_L, L_TO_V)
    from nnsight_dream.stats.ridge import linear_predictivity

    seen, said = look([p.image for p in pairs], [0])[0], read([p.captions[0] for p in pairs], [1])[1]
    assert there["value"] == pytest.approx(linear_predictivity(seen, said).value, abs=1e-5)
    assert back["value"] == pytest.approx(linear_predictivity(said, seen).value, abs=1e-5)


def test_what_destroys_meaning_lowers_alignment(tmp_path: Path) -> None:
    tools = [
        manipulations.rotated(0),
        manipulations.greyscale(),
        manipulations.things(),
        manipulations.stuff(),
        manipulations.scrambled(),
    ]
    rows = manipulated(VISION, LANGUAGE, made(), tools, LAYERS)
    assert len(rows) == 6 * 3
    told = {(r["manipulation"], r["measure"], r["direction"]): r for r in rows}
    for measure, direction in (("predictivity", L_TO_V), ("predictivity", V_TO_L), ("cka", "both")):
        row = {
            name: told[name, measure, direction]
            for name in ("none", "rotated 0°", "greyscale", "things only", "stuff only", "scrambled words")
        }
        assert row["none"]["change"] is None
        assert row["rotated 0°"]["change"] == 0
        assert row["rotated 0°"]["touched"] == 0
        assert abs(row["things only"]["change"]) < 0.03
        for name in ("greyscale", "stuff only", "scrambled words"):
            assert row[name]["change_high"] < -0.05, (name, row[name])
            assert row[name]["touched"] == 1
            assert row[name]["value"] == pytest.approx(row["none"]["value"] + row[name]["change"])
        assert row["stuff only"]["p"] > 0.02
    alignment_figures.manipulations(rows, tmp_path / "changes")


def test_averaging_captions_denoises(tmp_path: Path) -> None:
    rows = exemplar_averaging(VISION, LANGUAGE, made(60, 4, noise=0.3), FEW, most=4, repeats=3)
    for direction in (L_TO_V, V_TO_L):
        values = [r["value"] for r in rows if r["direction"] == direction]
        assert len(values) == 4
        assert values[3] > values[1] > values[0]
    assert {r["n"] for r in rows} == {60}
    assert all(r["value_least"] <= r["value"] <= r["value_most"] for r in rows)
    alignment_figures.exemplars(rows, tmp_path / "exemplars")


def test_averaging_pictures_of_a_group() -> None:
    pairs = made(40)
    random = np.random.default_rng(5)
    several = []
    for i, p in enumerate(pairs):
        for j in range(3):  # the same thing, in a colour a little off
            shifted = np.asarray(p.image).astype(int) + random.integers(-80, 80, 3)
            image = Image.fromarray(shifted.clip(0, 255).astype(np.uint8))
            several.append(pair(f"{i} {j}", image, p.captions, f"thing {i}"))
    rows = exemplar_averaging(VISION, LANGUAGE, several, FEW, over="pictures", most=3, repeats=2)
    values = [r["value"] for r in rows if r["measure"] == "cka"]
    assert values[2] > values[0]
    assert rows[0]["n"] == 40
    with pytest.raises(
        ValueError, match=r"40 of 40 groups, such as 'thing 0', have fewer than most=4 pictures; the least is 3"
    ):
        exemplar_averaging(VISION, LANGUAGE, several, LAYERS, over="pictures", most=4)
    with pytest.raises(ValueError, match="allowed are 'captions' and 'pictures'"):
        exemplar_averaging(VISION, LANGUAGE, several, LAYERS, over="both")


def test_choices_that_follow_alignment_are_told(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    one, other = made(60), made(60, seed=7)
    choices, against = [], []
    for a, b in zip(one, other, strict=True):
        chosen = int(random.integers(2))
        shown = (a.image, b.image) if chosen == 0 else (b.image, a.image)
        choices.append(Choice(a.captions[0], shown, chosen))
        against.append(Choice(a.captions[0], shown, int(random.integers(2))))
    for row in preference(VISION, LANGUAGE, choices, Setting((1, 1), draws=200)):
        assert row["rate"] > 0.7, row
        assert row["p"] < 0.02
        assert row["low"] < row["rate"] < row["high"]
    rows = preference(VISION, LANGUAGE, against, Setting((1, 1), draws=200))
    for row in rows:
        assert row["low"] < 0.5 < row["high"]
    assert [f.suffix for f in alignment_figures.preference(rows, tmp_path / "preference")] == [".png", ".svg"]
    with pytest.raises(ValueError, match="no choices"):
        preference(VISION, LANGUAGE, [], LAYERS)
    with pytest.raises(ValueError, match="chosen=0 or 1"):
        Choice("x", (None, None), 2)


def test_ranks_agree_with_what_was_planted(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    wrong = random.uniform(0, 0.5, 80)
    pairs = [
        pair(p.name, p.image, " ".join(f"n{float(w[1:]) + e * random.normal():.4f}" for w in p.captions[0].split()))
        for p, e in zip(made(80), wrong, strict=True)
    ]
    rows = rank_agreement(VISION, LANGUAGE, pairs, -wrong, LAYERS)
    assert all(r["value"] > 0.15 and r["p"] < 0.06 for r in rows), rows
    assert [f.suffix for f in alignment_figures.rank_agreement(rows, tmp_path / "ranks")] == [".png", ".svg"]
    with pytest.raises(ValueError, match=r"shape \(79,\) for 80 pairs"):
        rank_agreement(VISION, LANGUAGE, pairs, wrong[1:], LAYERS)
    with pytest.raises(ValueError, match="not finite"):
        rank_agreement(VISION, LANGUAGE, pairs, [np.nan, *wrong[1:]], LAYERS)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_scores_of_a_dual_encoder_are_its_own_cosines(kind: str) -> None:
    from test_examiners import dual_encoder

    model, processor = dual_encoder(kind)
    pairs = [pair(p.name, p.image, text) for p, text in zip(made(3), ("fox", "red fox", "a dog"), strict=True)]
    found = clip_scores(model, pairs, processor, batch=2)
    assert model.training  # as it was
    padding = "max_length" if kind == "siglip" else True
    for i, p in enumerate(pairs):
        given = processor(text=[p.captions[0]], images=[p.image], padding=padding, max_length=24, return_tensors="pt")
        with torch.no_grad():
            out = model.eval()(**given)
        assert found[i] == pytest.approx(float((out.image_embeds * out.text_embeds).sum()), abs=1e-5)
    with pytest.raises(TypeError, match=r"\(Linear\) is no dual encoder"):
        clip_scores(torch.nn.Linear(2, 2), pairs, processor)
    with pytest.raises(ValueError, match="no pairs"):
        clip_scores(model, [], processor)


def test_scrambling_keeps_words_and_does_not_depend_on_company() -> None:
    change = manipulations.scrambled(3).change
    text = "a small red fox in the snow"
    assert sorted(change(text).split()) == sorted(text.split())
    assert change(text) != text
    assert change(text) == manipulations.scrambled(3).change(text)
    assert change("fox") == "fox"
    assert change("fox fox") == "fox fox"
    assert change("red fox") == "fox red"


def test_nouns_and_verbs() -> None:
    def tagger(text):
        kinds = {"fox": "NN", "snow": "NOUN", "jumps": "VBZ"}
        return [(w, kinds.get(w, "DT")) for w in text.split()]

    assert manipulations.only("nouns", tagger).change("the fox jumps in snow") == "fox snow"
    assert manipulations.only("verbs", tagger).change("the fox jumps in snow") == "jumps"
    with pytest.raises(ValueError, match="'the fox' has no verbs"):
        manipulations.only("verbs", tagger).change("the fox")
    with pytest.raises(ValueError, match="allowed are 'nouns' and 'verbs'"):
        manipulations.only("adjectives")


def test_bad_input_is_said() -> None:
    pairs = made(30)
    with pytest.raises(ValueError, match="vision= takes words"):
        alignment_map(LANGUAGE, VISION, pairs)
    with pytest.raises(ValueError, match="no pairs"):
        alignment_map(VISION, LANGUAGE, [])
    with pytest.raises(ValueError, match=r"picture 0 has 1 captions, and number 1 \(from 0\).*30 of 30 pairs"):
        alignment_map(VISION, LANGUAGE, pairs, caption=1)
    twice = [*pairs, pair("again", pairs[4].image, "n1 n2 n3")]
    with pytest.raises(ValueError, match="picture 4 and again are the same picture in the groups"):
        alignment_map(VISION, LANGUAGE, twice)
    bare = [pair(p.name, p.image, p.captions) for p in pairs]
    with pytest.raises(ValueError, match="picture 0: no mask, so things and stuff"):
        manipulated(VISION, LANGUAGE, bare, [manipulations.things()], LAYERS)
    with pytest.raises(ValueError, match="allowed are predictivity, cka, knn, rsa"):
        manipulated(VISION, LANGUAGE, pairs, [], Setting((1, 1), measures=("cca",)))
    with pytest.raises(ValueError, match="no rows"):
        alignment_figures.layer_maps([], "x")
