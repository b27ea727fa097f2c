"""What a new user writes first: it works, or the error says what to write. Each advice is followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nnsight_dream as nd

FEW = ["sofa", "cloud"]
QUICK: dict[str, Any] = dict(steps=1, settings=nd.Settings(batch=1, canvas=nd.Pixels(16), augment=(), steps=1))


@pytest.fixture(scope="module")
def fox(tiny_vlm: nd.VLM) -> nd.Direction:
    return nd.concept(tiny_vlm, "fox", 1, baseline=FEW)


def test_words_by_layers_go_into_one_call_and_come_back_in_rows(tiny_vlm: nd.VLM) -> None:
    directions = nd.concept(tiny_vlm, ["fox", "owl", "bee"], layer=[1, 2], baseline=FEW)
    pictures = nd.synthesize(tiny_vlm, directions, seed=[0, 5], **QUICK)
    told = [[(p.label, p.site.layer, p.seed) for p in row] for row in pictures.rows]
    assert told == [[(w, layer, s) for layer in (1, 2) for s in (0, 5)] for w in ("fox", "owl", "bee")]
    assert pictures.grid(side=20, labels=False).size == (4 * 20, 3 * 20)  # a word a row
    assert pictures[2:6].rows == [pictures[2:6]]  # a part has no rows of its own
    assert isinstance(pictures[2:6], nd.Prototypes)
    assert nd.Prototypes(pictures.rows).rows == pictures.rows
    with pytest.raises(ValueError, match="there are 12 prototypes"):
        nd.Prototypes(pictures, rows=[3])
    lone = nd.synthesize(tiny_vlm, [directions[0], directions[1][0]], **QUICK)
    assert [len(row) for row in lone.rows] == [2, 1]


def test_what_save_wrote_is_read_back_together(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    pictures = nd.synthesize(tiny_vlm, nd.concept(tiny_vlm, ["fox", "owl"], 1, baseline=FEW), **QUICK)
    pictures.save(tmp_path / "dreams")
    assert [p.label for p in nd.Prototypes.load(tmp_path / "dreams")] == ["fox", "owl"]
    with pytest.raises(FileNotFoundError, match=r"nd\.Prototypes\.load\(folder\)"):
        nd.Prototype.load(tmp_path / "dreams")
    with pytest.raises(FileNotFoundError, match="no saved prototype"):
        nd.Prototypes.load(tmp_path / "dreams" / "fox-layer1-seed0" / "..").load(Path(__file__).parent)


def test_a_model_in_hand_with_its_processor(tiny_parts: tuple[Any, Any], fox: nd.Direction) -> None:
    hf, processor = tiny_parts
    vlm = nd.load(hf, processor)
    assert vlm.hf is hf
    assert vlm.processor is processor
    for swapped in (lambda: nd.load(processor, hf), lambda: nd.load(processor, processor=hf)):
        with pytest.raises(TypeError, match=r"the model goes first.*nd\.load\(model, processor\)"):
            swapped()
    with pytest.raises(TypeError, match=r"not a pair: nd\.load\(model, processor\)"):
        nd.load((hf, processor))
    with pytest.raises(TypeError, match=r"is a class; give a model of it"):
        nd.load(type(hf))
    with pytest.raises(ValueError, match=r"the inner part of a model.*give the whole"):
        nd.load(hf.model, processor)
    for wrong in (hf, vlm.model):
        with pytest.raises(TypeError, match=r"got a \w+; a model in hand becomes one with nd\.load\(model\)") as told:
            nd.synthesize(wrong, fox)
        assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda vlm, d: nd.synthesize(d, vlm), "it goes first"),
        (lambda vlm, d: nd.concept("fox", vlm, 1), "it goes first"),
        (lambda vlm, d: nd.synthesize(vlm, {"fox": d}), r"list\(directions.values\(\)\)"),
        (lambda vlm, d: nd.synthesize(vlm, "fox"), r"nd\.concept\(vlm, 'fox', layer="),
        (lambda vlm, d: nd.synthesize(vlm, ["fox"]), "not 'fox': see nd.concept"),
        (lambda vlm, d: nd.synthesize(vlm, d.vector), r"nd\.from_tensor\(vlm, vector, layer\)"),
        (lambda vlm, d: nd.synthesize(vlm, d, layer=3), r"nd\.concept\(vlm, 'fox', layer=1\)"),
        (lambda vlm, d: nd.synthesize(vlm, d, stpes=3), "no setting 'stpes'; did you mean 'steps'"),
        (lambda vlm, d: nd.synthesize(vlm, d, nd.Settings()), r"given by its name, such as settings="),
        (lambda vlm, d: nd.feature(vlm, "demo", 3), r"nd\.feature\('demo', 3\)"),
        (lambda vlm, d: nd.feature(3, "demo"), r"nd\.feature\('demo', 3\)"),
        (lambda vlm, d: nd.feature("demo", "3"), r"nd\.feature\('demo', 3\)"),
        (lambda vlm, d: nd.jobs_of(["fox"]), "missing a required argument: 'layers'"),
    ],
)  # fmt: skip
def test_slips_are_told_with_what_to_write(call: Any, words: str, tiny_vlm: nd.VLM, fox: nd.Direction) -> None:
    with pytest.raises(TypeError, match=words):
        call(tiny_vlm, fox)


def test_augmentations_are_one_a_list_or_a_tuple() -> None:
    one = nd.Settings(augment=nd.Noise(0.1))
    assert one == nd.Settings(augment=[nd.Noise(0.1)]) == nd.Settings(augment=(nd.Noise(0.1),))
    assert isinstance(one.augment, tuple)


def test_no_label_floods_a_screen(tiny_vlm: nd.VLM) -> None:
    import io

    from rich.console import Console

    tale = nd.concept(tiny_vlm, "a very long tale " * 12, 1, baseline=FEW)
    picture = nd.synthesize(tiny_vlm, tale, **QUICK)
    for told in (repr(tale), repr(picture), repr(nd.Prototypes([picture]))):
        assert len(told) < 300
    out = io.StringIO()
    Console(file=out, width=80).print(picture, nd.Prototypes([picture] * 2))
    assert len(out.getvalue()) < 800


def test_names_without_an_owner_and_keywords_that_nothing_takes() -> None:
    with pytest.raises(FileNotFoundError, match=r"a hub id is owner/name; did you mean 'demo'\?"):
        nd.load("Demo")
    with pytest.raises(FileNotFoundError, match="no folder gemma-3-4b, and a hub id is owner/name"):
        nd.load("gemma-3-4b")
    with pytest.raises(
        TypeError,
        match=r"unexpected keyword 'layers': neither nnsight-dream nor from_pretrained of transformers takes it",
    ):
        nd.load("demo", layers=3)


def test_a_feature_is_asked_for_as_one(tiny_vlm: nd.VLM, fox: nd.Direction) -> None:
    with pytest.raises(TypeError, match=r"made without a model: nd\.feature\(sae, 615\).*'demo' is the bundled one"):
        nd.feature(tiny_vlm, 615)
    with pytest.raises(TypeError, match=r"it is a feature's: nd\.feature\(sae, 3, objective=\.\.\.\)"):
        nd.synthesize(tiny_vlm, fox, objective="decoder", **QUICK)
    with pytest.raises(TypeError, match=r"feature: got an unexpected keyword 'layer'; it takes \("):
        nd.feature("demo", 615, layer=4)


def test_reprs_hold_no_addresses(tiny_vlm: nd.VLM) -> None:
    assert "score=cosine" in repr(nd.Settings.demo())
    assert "0x" not in repr(nd.Settings.demo())
    assert len(repr(tiny_vlm.family)) < 200


def test_a_warning_points_at_the_line_of_the_user() -> None:
    vlm = nd.load("demo", check=False)
    with pytest.warns(UserWarning, match="never shown") as caught:
        nd.concept(vlm, "octopsu", layer=1)
    assert caught[0].filename == __file__


def test_cards_have_a_page_and_say_what_they_are(demo_vlm: nd.VLM, tmp_path: Path) -> None:
    settings = nd.Settings.demo().but(steps=1, batch=1)
    deck = nd.make_cards(demo_vlm, "demo", [615], tmp_path, seeds=[0], strengths=[], negative=False, settings=settings)
    assert deck.page == tmp_path / "index.html"
    assert "Features" in deck.page.read_text(encoding="utf-8")
    assert str(deck).endswith("index.html")
    assert "alien" in str(deck.cards[0])
    assert max(map(len, (str(deck.cards[0]), repr(deck.cards[0]), repr(deck)))) < 400
    assert "<img" in deck.cards[0]._repr_html_()
    assert "not measured yet" not in deck.cards[0]._repr_html_()  # a card's are compared with its material's
