"""Feature cards, the gallery of them, and the judge on features."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
import reference
import saes
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.cards import bench, gallery
from nnsight_dream.cards import card as cards
from nnsight_dream.cards import judged as feature_judging
from nnsight_dream.cards.card import Card, Material
from nnsight_dream.cards.make import Made, make_cards
from nnsight_dream.demo import bundle
from nnsight_dream.judges.desk import answer_row, grade_row
from nnsight_dream.report import tables
from nnsight_dream.sae import readouts
from nnsight_dream.sae import reference as reference_module
from nnsight_dream.sae.responses import responses

BAD = "<script>document.title='broken'</script>"
WORDS = ("octopus", BAD, "a red fish", "desk", '"quoted" & <b>bold</b>', "the lion sleeps")
FEW = nd.Settings(steps=4, batch=1, canvas=nd.Pixels(24), augment=(nd.Noise(0.1),))
NUMBERS = (3, 17, 8, 30)


def noise(count: int, side: int = 112, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(autouse=True, scope="module")
def references() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_module, "reference_pictures", lambda: tuple(noise(6, 28, seed=9)))
        yield


@pytest.fixture(scope="module")
def vlm(tiny_parts: tuple) -> nd.VLM:
    return nd.load(tiny_parts[0], processor=tiny_parts[1])


@pytest.fixture(scope="module")
def sae() -> Any:
    return saes.on_neuronpedia()


@pytest.fixture(scope="module")
def material() -> Material:
    names = tuple(f"{word} {n}" for n in range(2) for word in WORDS)
    return Material(WORDS, tuple(noise(len(names))), names, {w: "thing" for w in WORDS if w != "desk"})


@pytest.fixture(scope="module")
def deck(vlm: nd.VLM, sae: Any, material: Material, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("deck")
    return make_cards(vlm, sae, NUMBERS, folder, material=material, settings=FEW)


# -- readouts ----------------------------------------------------------------------------------------------------


def logits_by_hand(hf: Any, row: torch.Tensor) -> torch.Tensor:
    norm, head = hf.model.language_model.norm, hf.lm_head
    scaled = row / (row.square().mean() + norm.eps).sqrt() * (1 + norm.weight)
    return (head.weight @ scaled).detach()


def test_top_logits_against_the_head_by_hand(vlm: nd.VLM, tiny_parts: tuple) -> None:
    row = torch.randn(32, generator=torch.Generator().manual_seed(1))
    expected = logits_by_hand(tiny_parts[0], row)
    found = nd.top_logits(vlm, row, 3, count=5)
    for told, wanted in ((found.top, expected.topk(5)), (found.bottom, (-expected).topk(5))):
        assert [t for t, _ in told] == [vlm.tokenizer.decode([i]) for i in wanted.indices.tolist()]
        np.testing.assert_allclose([v for _, v in told], expected[wanted.indices], rtol=1e-4)
    assert found.note == readouts.DIRECT
    longer = nd.top_logits(vlm, 7 * row, "blocks.2.hook_resid_post", count=5)
    assert [t for t, _ in longer.top] == [t for t, _ in found.top]


def test_models_without_a_head_for_it(
    vlm: nd.VLM, sae: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = torch.randn(32, generator=torch.Generator().manual_seed(1))
    cut = nd.load(tiny_folder, up_to_layer=3)
    short = nd.top_logits(cut, row, 3)
    assert "layers 4 to 4 of the checkpoint are not even loaded" in short.note
    assert [t for t, _ in short.top] == [t for t, _ in nd.top_logits(vlm, row, 3).top]
    inside = nd.top_logits(
        vlm, torch.ones(vlm.width_at(vlm.site(3, "self_attn.o_proj.input"))), vlm.site(3, "self_attn.o_proj.input")
    )
    assert (inside.top, "not in the residual stream" in inside.note) == ((), True)
    across = nd.feature(saes.build("jumprelu_transcoder", model=None), 3)
    assert "writes to another place" in nd.top_logits(vlm, across, 3).note
    monkeypatch.setattr(type(vlm.hf), "get_output_embeddings", lambda self: None)
    assert "without a language-model head" in nd.top_logits(vlm, row, 3).note
    with pytest.raises(ValueError, match=r"the vector is \(16,\).* needs \(32,\)"):
        nd.top_logits(vlm, row[:16], 3)
    with pytest.raises(ValueError, match="count=0"):
        nd.top_logits(vlm, row, 3, count=0)
    with pytest.raises(ValueError, match="has 2 latents"):
        nd.top_logits(vlm, nd.feature(sae, 1) + nd.feature(sae, 2), 3)


def test_nearest_rows_against_numpy(sae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sae.W_dec.detach().numpy().astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = unit @ unit[5]
    expected[5] = -2
    monkeypatch.setattr(readouts, "AT_ONCE", 32 * 7)  # a few rows at a time
    found = readouts.nearest_rows(sae, 5, 6)
    assert [i for i, _ in found] == np.argsort(-expected)[:6].tolist()
    np.testing.assert_allclose([c for _, c in found], np.sort(expected)[::-1][:6], rtol=1e-5)
    assert len(readouts.nearest_rows(sae, 0, 1000)) == 39
    with pytest.raises(IndexError, match="feature 40"):
        readouts.nearest_rows(sae, 40)


# -- cards -------------------------------------------------------------------------------------------------------


def own_states(vlm: nd.VLM, hf: Any, word: str) -> torch.Tensor:
    """The states after block 3 of a word's own tokens in the chat template, by a whole forward pass."""
    turn = [{"role": "user", "content": word}]
    text = vlm.tokenizer.apply_chat_template(turn, tokenize=False)
    given = vlm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    begin = text.index(word)
    own = [i for i, (a, b) in enumerate(given["offset_mapping"]) if b > begin and a < begin + len(word) and b > a]
    ids = torch.tensor([given["input_ids"]])
    with torch.no_grad():
        states = hf(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states[3][0]
    return states[own]


def test_words_and_pictures_against_encode_over_hidden_states(
    vlm: nd.VLM, sae: Any, tiny_parts: tuple, deck: Made, material: Material
) -> None:
    hf, processor = tiny_parts
    pixels = torch.stack([torch.from_numpy(np.asarray(p).copy()).permute(2, 0, 1) / 255 for p in material.pictures])
    with torch.no_grad():
        said = torch.stack([sae.encode(own_states(vlm, hf, word)).amax(0) for word in WORDS])
        seen = sae.encode(reference.patches(hf, processor, 2 * pixels - 1, 3)).amax(1)
    assert [c.index for c in deck.cards] == list(NUMBERS)
    for card in deck.cards:
        for told, names, values in ((card.words, WORDS, said), (card.shown, material.names, seen)):
            column = values[:, card.index]
            wanted = column.topk(min(cards.TOP, len(names)))
            expected = [
                (names[i], v) for i, v in zip(wanted.indices.tolist(), wanted.values.tolist(), strict=True) if v > 0
            ]
            assert [n for n, _ in told] == [n for n, _ in expected]
            np.testing.assert_allclose([v for _, v in told], [v for _, v in expected], rtol=2e-3, atol=1e-4)
        assert card.most_real == pytest.approx(seen[:, card.index].max().item(), rel=2e-3, abs=1e-4)
    assert any(c.words for c in deck.cards)
    assert any(c.shown for c in deck.cards)


def test_what_a_card_says_of_its_prototype(vlm: nd.VLM, sae: Any, tiny_parts: tuple, deck: Made) -> None:
    hf, _ = tiny_parts
    row = sae.W_dec.detach()
    for card in deck.cards:
        made = card.prototype()
        x = torch.from_numpy(np.asarray(made.image).copy()).permute(2, 0, 1)[None] / 255
        patches = nd.read_pictures(vlm, x, [3])[nd.Site(3)][0]
        with torch.no_grad():
            acts = sae.encode(patches)
        np.testing.assert_allclose(np.array(card.fires).ravel(), acts[:, card.index], atol=1e-4)
        real = [torch.from_numpy(np.asarray(p).copy()).permute(2, 0, 1)[None] / 255 for p in noise(6, 28, seed=9)]
        centre = torch.cat([nd.read_pictures(vlm, r, [3])[nd.Site(3)][0] for r in real]).mean(0)
        np.testing.assert_allclose(card.middle, patches.mean(0) - centre, atol=1e-4)
        most = acts.amax(0).topk(3)
        assert [m[0] for m in card.makes][:3] == most.indices.tolist()
        expected = logits_by_hand(hf, row[card.index])
        assert card.top[0][1] == pytest.approx(expected.max().item(), rel=1e-3)
        assert [i for i, _ in card.near] == [i for i, _ in readouts.nearest_rows(sae, card.index)]
        assert card.strange is not None
        assert card.strange["fvu"] == pytest.approx(nd.strangeness(vlm, sae, made).fvu, rel=1e-4)
        assert card.link == f"https://neuronpedia.org/tiny/2-res/{card.index}"


def test_the_pictures_of_a_card(vlm: nd.VLM, sae: Any, deck: Made) -> None:
    card = deck.cards[0]
    names = [s.name for s in card.shots]
    assert names == ["seed0", "seed1", "seed0-strength0.25", "seed0-strength0.5", "minus-seed0"]
    assert [len(card.prototype(s).history) for s in card.shots] == [4, 4, 1, 2, 4]
    aim = nd.feature(sae, card.index)
    for shot, wanted in ((card.shots[1], nd.synthesize(vlm, aim, settings=FEW, seed=1)),
                         (card.shots[4], nd.synthesize(vlm, -aim, settings=FEW, seed=0))):  # fmt: skip
        assert np.array_equal(np.asarray(card.prototype(shot).image), np.asarray(wanted.image))
    pre = [card.prototype(s).scores["encoder"] for s in (card.shots[0], card.shots[4])]
    assert pre[0] > -pre[1]  # the second is of minus the feature


def killed(folder: Path, after: int, vlm: nd.VLM, sae: Any, material: Material) -> int:
    """Make cards in a process that is killed outright at its n-th file; returns how it ended."""

    def work() -> None:
        from nnsight_dream.synthesis import prototype

        left, write = [after], bench.write_whole

        def counting(path: Path, data: bytes) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            write(path, data)

        bench.write_whole = prototype.write_whole = counting
        make_cards(vlm, sae, NUMBERS[:2], folder, material=material, settings=FEW)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode if process.exitcode is not None else 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_run_goes_on(
    vlm: nd.VLM, sae: Any, material: Material, deck: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for after in (5, 14, 30):  # among prototypes, then after the last of them, then in the second card
        assert killed(tmp_path, after, vlm, sae, material) == -signal.SIGKILL
    there = cards.cards_of(tmp_path)
    assert len(there) < 2
    climbs: list[Any] = []
    climb = bench.climb_pairs
    monkeypatch.setattr(bench, "climb_pairs", lambda *given: climbs.append(given) or climb(*given))
    made = make_cards(vlm, sae, NUMBERS[:2], tmp_path, material=material, settings=FEW)
    assert (made.fresh, made.failed, len(made.cards)) == (2 - len(there), {}, 2)
    assert len(climbs) < 3 * made.fresh  # what was there of the second is not climbed again
    for one, whole in zip(made.cards, deck.cards[:2], strict=True):
        assert one.key == whole.key
        for file in sorted(p.relative_to(whole.folder) for p in whole.folder.rglob("*") if p.is_file()):
            assert (one.folder / file).read_bytes() == (whole.folder / file).read_bytes(), file
    before = len(climbs)
    again = make_cards(vlm, sae, NUMBERS[:2], tmp_path, material=material, settings=FEW)
    assert (again.fresh, len(again.cards), len(climbs)) == (0, 2, before)


def test_a_card_that_is_not_whole_is_made_anew(
    vlm: nd.VLM, sae: Any, material: Material, deck: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = deck.cards[0]
    place = tmp_path / "features" / whole.key
    shutil.copytree(whole.folder, place)
    climbs: list[Any] = []
    climb = bench.climb_pairs
    monkeypatch.setattr(bench, "climb_pairs", lambda *given: climbs.append(given) or climb(*given))
    shots = [shot.name for shot in whole.shots]
    for name in ("card.json", "fires.png", f"{shots[0]}/prototype.png", f"{shots[-1]}/prototype.json"):
        data = (place / name).read_bytes()
        (place / name).write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
        (place / f".fires.png.{'a' * 32}.tmp").write_bytes(b"half")
        with pytest.raises(ValueError, match="remove the folder to make it anew"):
            cards.Card.load(place)
        climbs.clear()
        with pytest.warns(UserWarning, match="a finished card is not whole and is made anew"):
            made = make_cards(vlm, sae, [whole.index], tmp_path, material=material, settings=FEW)
        assert (made.fresh, len(made.cards), len(climbs)) == (1, 1, int("prototype" in name))
        for file in sorted(p.relative_to(whole.folder) for p in whole.folder.rglob("*") if p.is_file()):
            assert (place / file).read_bytes() == (whole.folder / file).read_bytes(), file
        assert not list(place.rglob("*.tmp"))


def test_failures_interrupts_and_refusals(
    vlm: nd.VLM, sae: Any, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = saes.build("jumprelu", model=None)
    with torch.no_grad():
        dead.W_enc[:, 3] = 0
    told = dict(material=material, settings=FEW.but(steps=1), seeds=[0], strengths=[], negative=False)
    made = make_cards(vlm, dead, [3, 8], tmp_path, **told)
    assert [c.index for c in made.cards] == [8]
    assert "all zeros" in made.failed[3]
    (record,) = (tmp_path / "failed").glob("3-*.json")
    assert "nothing makes it fire" in json.loads(record.read_text())["error"]
    assert "1 card made, 0 there before, 1 feature failed" in str(made)
    with monkeypatch.context() as patch:

        def stop(*given: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(bench, "climb_pairs", stop)
        stopped = make_cards(vlm, dead, [8, 9], tmp_path, **told)
    assert (stopped.interrupted, [c.index for c in stopped.cards]) == (True, [8])
    with pytest.raises(ValueError, match="at least one feature and one seed"):
        make_cards(vlm, sae, [], tmp_path)
    with pytest.raises(ValueError, match="share of the steps above 0"):
        make_cards(vlm, sae, [1], tmp_path, material=material, strengths=[0.0])
    read = responses(vlm, sae, 3, ["a"], noise(1), ["b"])
    with pytest.raises(ValueError, match="of 1 words and 1 pictures, not of the material"):
        make_cards(vlm, sae, [1], tmp_path, material=material, responses=read)
    with pytest.raises(IndexError, match="feature 40: this autoencoder has features 0 to 39"):
        make_cards(vlm, sae, [40], tmp_path, material=material)
    with pytest.raises(ValueError, match="a name for each picture"):
        Material(("a",), tuple(noise(2, 8)), ("a",))
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        Material.of_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="the card was not finished"):
        Card.load(tmp_path)
    (made.cards[0].folder / "card.json").write_text("{}")
    with pytest.raises(ValueError, match="remove the folder to make it anew"):
        cards.cards_of(tmp_path)


def test_an_autoencoder_by_its_folder(vlm: nd.VLM, sae: Any, material: Material, deck: Made, tmp_path: Path) -> None:
    sae.save_model(tmp_path / "saes" / "layer3")
    told = dict(material=material, settings=FEW)
    made = make_cards(vlm, tmp_path / "saes", NUMBERS[:1], deck.cards[0].folder.parents[1], sae_id="layer3", **told)
    assert (made.fresh, [c.key for c in made.cards]) == (0, [deck.cards[0].key])  # the same card, which is there


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
    image.save(tmp_path / "clear.png")
    noise(1, 8)[0].save(tmp_path / "noise.JPG")
    (tmp_path / "notes.txt").write_text("no picture")
    found = Material.of_folder(tmp_path, ["fish"])
    assert (found.names, found.words) == (("clear", "noise"), ("fish",))
    assert found.pictures[0].getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["topk", "gated", "jumprelu_transcoder"])
def test_other_architectures(vlm: nd.VLM, material: Material, tmp_path: Path, kind: str) -> None:
    other = saes.build(kind, model=None)
    few = Material(WORDS[:2], material.pictures[:2], material.names[:2])
    told = dict(material=few, settings=FEW.but(steps=1), seeds=[0], strengths=[], negative=False)
    made = make_cards(vlm, other, [1, 2], tmp_path, **told)
    assert not made.failed
    assert all((c.strange is None) == ("transcoder" in kind) for c in made.cards)
    assert all(bool(c.top) != ("transcoder" in kind) for c in made.cards)
    gallery.page(made.cards, tmp_path / "p.html")


def test_autoencoders_sites_and_references_that_differ_share_no_card(
    vlm: nd.VLM, material: Material, tmp_path: Path
) -> None:
    """One number of one row that no card shows is another autoencoder, whose neighbours may be others."""
    few = Material(WORDS[:2], material.pictures[:2], material.names[:2])
    told: dict[str, Any] = dict(material=few, settings=FEW.but(steps=1), seeds=[0], strengths=[], negative=False)
    other = saes.build("jumprelu", model=None, d_sae=130)
    keys = [make_cards(vlm, other, [2], tmp_path, **told).cards[0].key]
    with torch.no_grad():
        other.W_dec[77, 5] += 1
    keys.append(make_cards(vlm, other, [2], tmp_path, **told).cards[0].key)
    other.cfg.metadata.hf_hook_name = "model.layers.2.post_feedforward_layernorm.output"
    keys.append(make_cards(vlm, other, [2], tmp_path, **told).cards[0].key)
    (card,) = make_cards(vlm, other, torch.tensor([2]), tmp_path, reference=noise(2, 28), **told).cards
    assert len({*keys, card.key}) == 4
    assert make_cards(vlm, other, [2], tmp_path, reference=noise(2, 28), **told).fresh == 0
    assert card.facts["reference"].startswith("2 pictures, ")
    with pytest.raises(ValueError, match="give judge_features the same reference="):
        feature_judging.judge_features(
            vlm, other, [card], tmp_path / "judged", nd.DemoExaminer(), material=few, settings=FEW.but(steps=1)
        )
    for wrong, error in (([-1], IndexError), ([True], TypeError), (2, TypeError), ([2.0], TypeError)):
        with pytest.raises(error):
            make_cards(vlm, other, wrong, tmp_path, **told)


def test_features_of_a_picture_on_the_command_line(
    tiny_folder: Path, sae: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae.save_model(tmp_path / "sae")
    monkeypatch.setattr(bundle, "sae_folder", lambda name: tmp_path / "sae")
    (image,) = noise(1)
    image.save(tmp_path / "a.png")
    given = ["features", "--picture", tmp_path / "a.png", "--model", tiny_folder, "--json", "--top", 5]
    assert cli.main([str(a) for a in given]) == 0
    found = json.loads(capsys.readouterr().out)
    wanted = nd.features_of(nd.load(tiny_folder), sae, image, top=5)
    assert [(r["index"], r["picture"]) for r in found] == [(f.index, pytest.approx(f.max, rel=1e-4)) for f in wanted]


# -- the judge ---------------------------------------------------------------------------------------------------


class Knowing:
    """Says what it was told of pictures, and "nothing" of others; knows all words but one."""

    name, samples, protocols, grader = "knowing", 1, ("strict", "hint"), "same"

    def __init__(self, known: dict[bytes, str]):
        self.known, self.questions = known, []

    def able(self, concept: str, category: str, protocol: str) -> bool:
        return protocol != "hint" or bool(category)

    def examine(self, asked: Any, keep: Any) -> None:
        for one in asked:
            self.questions.append((one.key, one.protocol))
            text = self.known.get(one.image().tobytes(), "nothing")
            grades = [grade_row(one, c, int(c == text), text, self.grader) for c in one.grade_as]
            keep(one, answer_row(one, text, "answer", text, self.name, rank=1 if text == one.concept else 9), *grades)


def test_the_judge_on_features(vlm: nd.VLM, sae: Any, material: Material, deck: Made, tmp_path: Path) -> None:
    words = [c.label for c in deck.cards]
    known = {c.prototype().image.tobytes(): c.label for c in deck.cards[:2]}
    judge = Knowing(known)
    judged = feature_judging.judge_features(vlm, sae, deck.cards, tmp_path, judge, material=material, settings=FEW)
    rows = {(r["kind"], r["question"]): r for r in judged.rows}
    right = rows["features", "strict"]
    assert (right["named"], right["pictures"], right["unasked"]) == (2, 4, 0)
    assert (right["low"], right["high"]) == nd.wilson(2, 4)
    assert rows["features", "strict, first five"]["named"] == 2
    hinted = sum(bool(material.categories.get(w)) for w in words)
    assert (rows["features", "hint"]["pictures"], rows["features", "hint"]["unasked"]) == (hinted, 4 - hinted)
    assert rows["random", "strict"]["pictures"] == 4
    assert rows["random", "strict"]["named"] == 0
    differ = len(set(words)) > 1
    assert rows["shuffled", "strict"]["named"] == 0  # nobody keeps the own word
    assert (rows["shuffled", "strict"]["pictures"] > 0) == differ
    assert [v[2] for v in judged.verdicts[deck.cards[0].key] if "asked freely" in v[0]] == ["yes"]
    asked = len(judge.questions)
    again = feature_judging.judge_features(vlm, sae, deck.cards, tmp_path, judge, material=material, settings=FEW)
    assert (again.rows, len(judge.questions)) == (judged.rows, asked)
    assert "| features | asked freely | 2 | 4 | 50 % |" in tables.to_markdown(judged.rows)
    with pytest.raises(ValueError, match="made with other settings"):
        feature_judging.judge_features(
            vlm, sae, deck.cards, tmp_path, judge, material=material, settings=FEW.but(steps=9)
        )
    with pytest.raises(ValueError, match="no card to judge"):
        feature_judging.judge_features(vlm, sae, [], tmp_path, judge)


def test_random_twins(vlm: nd.VLM, sae: Any, tiny_parts: tuple, material: Material) -> None:
    aim = nd.feature(sae, 3)
    one, other, third = (feature_judging.twin(a, s) for a, s in ((aim, 0), (aim, 1), (nd.feature(sae, 4), 0)))
    (latent,), (own,) = ([p for _, p in f.parts] for f in (one, aim))
    assert latent.encoder.norm() == pytest.approx(own.encoder.norm().item(), rel=1e-5)
    assert latent.decoder.norm() == pytest.approx(own.decoder.norm().item(), rel=1e-5)
    assert (latent.bias, latent.threshold) == (own.bias, own.threshold)
    assert torch.equal(latent.encoder, feature_judging.twin(aim, 0).parts[0][1].encoder)
    for different in (own, other.parts[0][1], third.parts[0][1]):
        assert abs(torch.cosine_similarity(latent.encoder, different.encoder, dim=0)) < 0.7
    gated = nd.feature(saes.build("gated", model=None), 3)
    gate, drawn = gated.parts[0][1].gate, feature_judging.twin(gated, 0).parts[0][1].gate
    assert (drawn[0].norm().item(), drawn[1]) == (pytest.approx(gate[0].norm().item(), rel=1e-5), gate[1])
    assert feature_judging.twin(nd.feature(saes.build("transcoder", model=None), 3), 0).parts[0][1].decoder is None
    states = [own_states(vlm, tiny_parts[0], word) for word in WORDS]
    best = [max(range(len(WORDS)), key=lambda i, f=f: float(f.parts[0][1].pre(states[i]).max())) for f in (one, other)]
    assert feature_judging._words(vlm, [one, other], material) == [WORDS[i] for i in best]


def test_words_are_dealt_out_anew() -> None:
    words = {str(i): w for i, w in enumerate(["a", "b", "c", "a", "", "d"])}
    dealt = feature_judging._dealt(words, 0)
    assert sorted(dealt.values()) == ["a", "a", "b", "c", "d"]
    assert all(dealt[k] != words[k] for k in dealt)
    assert dealt == feature_judging._dealt(words, 0)
    assert feature_judging._dealt({"0": "a", "1": "a"}, 0) == {}


# -- the gallery -------------------------------------------------------------------------------------------------


def test_nearest_pictures_against_numpy(deck: Made) -> None:
    found = gallery.nearest_pictures(deck.cards)
    rows = np.array([c.middle for c in deck.cards])
    for i, card in enumerate(deck.cards):
        cosines = {
            other.index: float(rows[i] @ rows[j] / np.sqrt((rows[i] ** 2).sum() * (rows[j] ** 2).sum()))
            for j, other in enumerate(deck.cards) if j != i
        }  # fmt: skip
        assert [k for k, _ in found[card.key]] == sorted(cosines, key=lambda k: -cosines[k])
        np.testing.assert_allclose([v for _, v in found[card.key]], sorted(cosines.values(), reverse=True), atol=1e-9)


@pytest.fixture(scope="module")
def page(vlm: nd.VLM, sae: Any, deck: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    seen = gallery.seen_by(vlm, sae, [deck.cards[0].prototype(), noise(1)[0]], [BAD, "noise"], top=40)
    first, second = deck.cards[:2]
    verdicts = {first.key: [("demo, hint", BAD, "yes")], second.key: [("demo, hint", "cat", "no")]}
    rates = [dict(kind="features", question="hint", named=1, pictures=2, rate=0.5, low=0.1, high=None)]
    path = tmp_path_factory.mktemp("page") / "index.html"
    return gallery.page(
        deck.cards,
        path,
        pictures=seen,
        verdicts=verdicts,
        rates=rates,
        labels=dict.fromkeys(range(40), BAD),
        title="A <b>test</b>",
    )


def test_the_page_holds_all_and_loads_nothing(page: Path, deck: Made, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)(?:https?:)?//""", text)
    assert text.count("<script") == 2  # the words hold one too
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert [c["index"] for c in data["cards"]] == list(NUMBERS)
    assert len(data["images"]) == len(set(data["images"]))
    assert any(BAD in [w[0] for w in c["words"]] for c in data["cards"])
    with pytest.raises(ValueError, match="no finished card"):
        gallery.page([], tmp_path / "x.html")
    with pytest.raises(ValueError, match="2 pictures but 1 names"):
        gallery.seen_by(None, None, noise(2), ["a"])  # type: ignore[arg-type]


TILES = "return [...document.querySelectorAll('.tile span')].map(t => t.textContent);"
TYPE = """const field = document.querySelector('[name="%s"]'); field.value = %s;
field.dispatchEvent(new Event(field.tagName === "INPUT" ? "input" : "change"));
"""


def test_what_was_made_links_to_its_page_in_a_notebook(deck: Made) -> None:
    shown = deck._repr_html_()
    assert str(len(deck.cards)) in shown
    assert ("<a href=" in shown) is (deck.page is not None)
    assert "<a href=" not in dataclasses.replace(deck, page=None)._repr_html_()


@chromium.needed
def test_the_page_is_searched_and_clicked_through(page: Path, deck: Made, tmp_path: Path) -> None:
    heading = "return document.querySelector('dialog h2').textContent;"
    is_open = "return document.querySelector('dialog').open;"
    every = [f"feature {i}" for i in NUMBERS]
    with chromium.opened(page, tmp_path) as tab:
        assert tab.run("return document.title;") == "A <b>test</b>"
        assert tab.run(TILES) == every
        assert tab.run("return document.querySelectorAll('b b, script').length;") == 2
        assert tab.run(TYPE % ("text", "'17'") + TILES) == ["feature 17"]
        having = [f"feature {c.index}" for c in deck.cards
                  if any("lion" in n for n, _ in [*c.words, *c.shown, *c.top, *c.bottom])]  # fmt: skip
        assert tab.run(TYPE % ("text", "'LION'") + TILES) == having
        assert having
        assert tab.run(TYPE % ("text", "'nothing at all'") + TILES) == []
        tab.run(TYPE % ("text", "''"))
        in_order = sorted(every, key=lambda told: int(told.removeprefix("feature ")))
        assert tab.run(TYPE % ("order", "'index'") + TILES) == in_order != every
        assert tab.run(TYPE % ("judged", "'yes'") + TILES) == every[:1]
        tab.run(TYPE % ("judged", "''"))
        tab.run(TYPE % ("order", "'given'"))
        tab.click(".tile", 1)
        assert tab.run(heading).startswith("feature 17")
        text = tab.run("return document.querySelector('dialog').innerText;")
        for words in (
            "seed 1: activation",
            "the opposite",
            "where it fires",
            "direct path alone",
            "cat",
            "fires above",
            "real pictures",
        ):
            assert words in text, words
        assert tab.run("return document.querySelector('dialog a').href;") == "https://neuronpedia.org/tiny/2-res/17"
        sizes = "return Promise.all([...document.querySelectorAll('dialog img')].map(i => { i.loading = 'eager'; return i.decode().then(() => i.naturalWidth); }));"
        assert all(width > 0 for width in tab.run(sizes))
        neighbour = tab.run("return document.querySelector('dialog button.chip').dataset.feature;")
        tab.click("dialog button.chip")
        assert tab.run(heading).startswith(f"feature {neighbour}")
        tab.press("Escape")
        assert not tab.run(is_open)
        name = tab.run(
            "return new Promise(done => setTimeout(() => done(document.activeElement.getAttribute('aria-label')), 300));"
        )
        assert name.startswith("feature 17")  # back where one came from
        tab.click(".tile", 0)
        tab.press("ArrowRight")
        assert tab.run(heading).startswith("feature 17")
        tab.click("[aria-label=close]")
        tab.click("#pictures button.chip")  # from a picture to the card of a feature that makes it
        assert tab.run(is_open)
        tab.press("Escape")
        assert tab.run("return document.querySelector('#pictures figcaption').textContent;") == BAD
        bare = tab.run(
            "return [...document.querySelectorAll('#pictures span.chip > span')].map(t => t.firstChild.textContent);"
        )
        assert bare
        assert all(told.endswith(BAD) for told in bare)  # features without a card
        assert "50%" in tab.run("return document.querySelector('#rates').innerText;")
        assert tab.troubles == []
        assert tab.loaded == [page.as_uri()]


@chromium.needed
def test_the_page_fits_a_phone(page: Path, tmp_path: Path) -> None:
    with chromium.opened(page, tmp_path, width=390) as tab:
        assert tab.run("return [document.documentElement.scrollWidth, innerWidth];") == [390, 390]
        tab.click(".tile", 0)
        wide, inner = tab.run("const d = document.querySelector('dialog'); return [d.scrollWidth, d.clientWidth];")
        assert wide <= inner <= 390


@pytest.mark.parametrize(
    "wrong", [{"link": 3}, {"shots": [{"seed": "../../elsewhere"}]}, {"words": [["fox", []]]}, {"index": "<b>"}]
)
def test_fields_of_a_card_are_typed(tmp_path: Path, wrong: dict) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"index": 3, "link": None, "shots": [], "words": [], **wrong}))
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"is no card \(TypeError.*'{'seed' if name == 'shots' else name}' is "):
        cards.Card.load(tmp_path)
