"""Whole autoencoders: what makes a picture, what fires for a word, how strange a picture is; and the command line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saes
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.demo import bundle
from nnsight_dream.sae import encoding as sae_encoding
from nnsight_dream.sae import ranges
from nnsight_dream.sae import reference as reference_module


def noise(count: int, side: int = 28, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(autouse=True, scope="module")
def references() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        found = tuple(noise(20, seed=9))
        patch.setattr(reference_module, "reference_pictures", lambda: found)
        yield found


@pytest.fixture(scope="module")
def vlm(tiny_parts: tuple) -> nd.VLM:
    model, processor = tiny_parts
    return nd.load(model, processor=processor)


def read(vlm: nd.VLM, images: list[Image.Image]) -> torch.Tensor:
    """(pictures, n, d) at layer 3, one picture after the other."""
    found = []
    for image in images:
        x = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255
        found.append(nd.read_pictures(vlm, x, [3])[nd.Site(3)][0])
    return torch.stack(found)


@pytest.fixture(params=["jumprelu", "topk", "gated", "standard"])
def sae(request: pytest.FixtureRequest) -> Any:
    return saes.build(request.param, model=None)


def test_features_of_pictures(vlm: nd.VLM, sae: Any) -> None:
    images = noise(3)
    with torch.no_grad():
        acts = sae.encode(read(vlm, images)).flatten(0, 1)
    found = nd.features_of(vlm, sae, images, top=7)
    wanted = acts.amax(0).topk(7)
    assert [f.index for f in found] == wanted.indices.tolist()
    for f, value in zip(found, wanted.values.tolist(), strict=True):
        column = acts[:, f.index]
        assert f.max == pytest.approx(value, rel=1e-4)
        assert f.mean == pytest.approx(column.mean().item(), rel=1e-3, abs=1e-4)
        assert f.share == pytest.approx((column > 0).float().mean().item(), abs=0.05)
    every = nd.features_of(vlm, sae, images, top=1000)
    assert len(every) == int((acts.amax(0) > 0).sum())


def test_features_by_their_own_range(vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, images, others = saes.build("jumprelu", model=None), noise(1), noise(4)[1:]
    with torch.no_grad():
        acts = [sae.encode(read(vlm, some)).flatten(0, 1).amax(0) for some in (images, others)]
        for i in (acts[0] > acts[1]).nonzero().flatten().tolist()[:2]:  # to fire on the first picture alone
            sae.threshold[i] = (acts[0][i] + acts[1][i]) / 2
        here, there = (sae.encode(read(vlm, some)).flatten(0, 1).amax(0) for some in (images, others))
    fires = (here > 0).nonzero().flatten().tolist()
    by_hand = {i: float(here[i] / there[i]) for i in fires if there[i] > 0}
    silent = sorted((i for i in fires if not there[i] > 0), key=lambda i: -float(here[i]))
    assert by_hand
    assert silent
    found = nd.features_of(vlm, sae, images, top=1000, by="range", reference=others)
    assert [f.index for f in found] == [*sorted(by_hand, key=lambda i: -by_hand[i]), *silent]
    assert [f.of_range for f in found[: len(by_hand)]] == pytest.approx(
        sorted(by_hand.values(), reverse=True), rel=1e-3
    )
    assert {f.of_range for f in found[len(by_hand) :]} == {None}
    assert nd.features_of(vlm, sae, images, top=1000, reference=others) == found
    plain = nd.features_of(vlm, sae, images, top=1000)
    assert plain == nd.features_of(vlm, sae, images, top=1000, by="activation")
    assert [f.index for f in plain] != [f.index for f in found]
    assert {f.of_range for f in plain} == {None}
    assert {f.word for f in plain} == {""}
    with pytest.raises(ValueError, match="by="):
        nd.features_of(vlm, sae, images, by="range of")
    monkeypatch.setattr(ranges, "most", None)  # the range is known, here and in the user's cache folder
    assert nd.features_of(vlm, sae, images, top=1000, reference=others) == found
    monkeypatch.setattr(vlm.memo, "ranges", type(vlm.memo.ranges)())
    assert nd.features_of(vlm, sae, images, top=1000, reference=others) == found
    with torch.no_grad():
        sae.W_enc.mul_(2)
    with pytest.raises(TypeError):  # another autoencoder has another range
        nd.features_of(vlm, sae, images, reference=others)


def test_features_of_the_bundled_model_have_words(demo_vlm: nd.VLM) -> None:
    sae, (egg,) = nd.demo_sae(), bundle.pictures(["egg"])
    by_range, by_activation = (nd.features_of(demo_vlm, sae, egg, top=5, by=by) for by in ("range", "activation"))
    assert nd.features_of(demo_vlm, sae, egg, top=5) == by_range
    assert by_range[0].of_range == pytest.approx(1, abs=1e-4)  # it is one of those that the range is of
    assert "egg" in [f.word for f in by_range]
    assert "egg" not in [f.word for f in by_activation]
    assert max(f.max for f in by_range) < max(f.max for f in by_activation)


def test_pictures_of_any_form(vlm: nd.VLM) -> None:
    sae = saes.build("jumprelu", model=None)
    (image,) = noise(1, side=112)
    tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
    made = nd.Prototype(image, "x", nd.Site(3), "", (), {}, np.zeros((4, 4)), {}, 0, "m")
    first = nd.features_of(vlm, sae, image)
    for same in (tensor, tensor[None], [image], made, [made], nd.Prototypes([made])):
        found = nd.features_of(vlm, sae, same)
        assert [f.index for f in found] == [f.index for f in first]
        assert [f.max for f in found] == pytest.approx([f.max for f in first], rel=1e-4)
    with pytest.raises(ValueError, match="is empty"):
        nd.features_of(vlm, sae, [])
    for top in (0, True, 2.0):
        with pytest.raises(ValueError, match="a whole number of at least 1"):
            nd.features_of(vlm, sae, image, top=top)


@pytest.mark.parametrize("how", ["none", "layer_norm"])
def test_strangeness(vlm: nd.VLM, references: tuple, how: str) -> None:
    sae = saes.build("jumprelu", model=None, normalize_activations=how)
    here, there = read(vlm, noise(3)), read(vlm, list(references))
    mean = there.flatten(0, 1).mean(0)
    found = nd.strangeness(vlm, sae, noise(3))
    for tokens, fvu, l0 in ((here, found.fvu, found.l0), (there, found.reference_fvu, found.reference_l0)):
        tokens = tokens.flatten(0, 1)
        with torch.no_grad():
            back = sae(tokens)
            fires = (sae.encode(tokens) > 0).float().sum(1).mean().item()
        assert fvu == pytest.approx(((back - tokens).square().sum() / (tokens - mean).square().sum()).item(), rel=1e-3)
        assert l0 == pytest.approx(fires, rel=2e-2)


def test_a_perfect_reconstruction_is_not_strange(vlm: nd.VLM) -> None:
    sae = saes.build("standard", d_sae=64, model=None)
    with torch.no_grad():  # h = relu(h) - relu(-h)
        eye = torch.eye(32)
        sae.W_enc.copy_(torch.cat([eye, -eye], 1))
        sae.W_dec.copy_(torch.cat([eye, -eye]))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    found = nd.strangeness(vlm, sae, noise(2))
    assert found.fvu < 1e-6
    assert found.l0 == pytest.approx(32)


def test_attention_autoencoders_that_flatten_heads_themselves(vlm: nd.VLM) -> None:
    names = {"hook": "blocks.2.attn.hook_z", "hf_hook": None, "model": None}
    one = saes.build("standard", reshape_activations="hook_z", **names)
    other = saes.build("standard", **names)
    a, b = (nd.features_of(vlm, sae, noise(2)) for sae in (one, other))
    assert a == b
    assert nd.strangeness(vlm, one, noise(2)) == nd.strangeness(vlm, other, noise(2))


def test_candidates_of_words(vlm: nd.VLM, sae: Any) -> None:
    words = ["octopus", "a large elephant"]
    found = nd.candidates(vlm, sae, words=words, top=9)
    each = []
    for word in words:  # the word's own tokens, from the ids that nd.concept keeps
        tokens = nd.concept(vlm, word, 3, baseline=None).provenance["tokens"]
        text = vlm.tokenizer.apply_chat_template(
            [{"role": "user", "content": word}], tokenize=False, add_generation_prompt=True
        )
        ids = vlm.tokenizer(text, add_special_tokens=False)["input_ids"]
        start = next(i for i in range(len(ids)) if ids[i : i + len(tokens)] == tokens)
        state = nd.read_text(vlm, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long), [3])[nd.Site(3)][0]
        with torch.no_grad():
            each.append(sae.encode(state[start : start + len(tokens)]).amax(0))
    wanted = torch.stack(each).mean(0)
    assert [c.index for c in found] == wanted.topk(9).indices.tolist()
    for c in found:
        assert c.word == c.score == pytest.approx(wanted[c.index].item(), rel=1e-3, abs=1e-4)
        assert c.picture is None


def test_candidates_of_pictures_and_of_both(vlm: nd.VLM) -> None:
    sae, images = saes.build("jumprelu", model=None), noise(3)
    with torch.no_grad():
        seen = sae.encode(read(vlm, images)).amax(1).mean(0)
    found = nd.candidates(vlm, sae, images=images, top=40)
    assert [c.index for c in found][:9] == seen.topk(9).indices.tolist()
    said = {c.index: c.word for c in nd.candidates(vlm, sae, words="octopus", top=40)}
    word = torch.tensor([said.get(i, 0.0) for i in range(40)])
    both = nd.candidates(vlm, sae, words="octopus", images=images, top=40)
    score = torch.minimum(word / word.max(), seen / seen.max())
    assert [c.index for c in both][:9] == score.topk(9).indices.tolist()
    assert len(both) == int((score > 0).sum())
    for c in both:
        assert (c.word, c.picture, c.score) == pytest.approx(
            (word[c.index].item(), seen[c.index].item(), score[c.index].item()), rel=1e-3
        )


def test_what_is_refused(vlm: nd.VLM) -> None:
    sae = saes.build("jumprelu", model=None)
    with pytest.raises(ValueError, match="candidates of what"):
        nd.candidates(vlm, sae)
    with pytest.raises(TypeError, match="is no sae-lens SAE"):
        nd.features_of(vlm, 3, noise(1))
    with pytest.raises(ValueError, match=r"reads 16 numbers, but layer 3 .* 32 wide"):
        nd.features_of(vlm, saes.build("jumprelu", d_in=16), noise(1))
    with pytest.raises(ValueError, match=r"name no hook_name; set sae.cfg.metadata.hook_name"):
        nd.features_of(vlm, saes.build("jumprelu", hook=None, hf_hook=None), noise(1))
    with pytest.raises(ValueError, match="of another family"):
        nd.features_of(vlm, saes.build("jumprelu", model="gpt2"), noise(1))
    with pytest.raises(ValueError, match="a transcoder does not reconstruct what it reads"):
        nd.strangeness(vlm, saes.build("jumprelu_transcoder"), noise(1))
    with pytest.raises(TypeError, match="did you mean words="):
        nd.candidates(vlm, sae, word="octopus")


def test_a_wide_autoencoder_is_run_a_few_tokens_at_a_time(vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = saes.build("jumprelu", model=None)
    whole = nd.features_of(vlm, sae, noise(1)), nd.strangeness(vlm, sae, noise(1))
    sizes, encode = [], sae.encode

    def watched(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return encode(x)

    monkeypatch.setattr(sae, "encode", watched)
    monkeypatch.setattr(sae_encoding, "AT_ONCE", 3 * 40)
    parts = nd.features_of(vlm, sae, noise(1)), nd.strangeness(vlm, sae, noise(1))
    assert max(sizes) == 3
    assert [f.index for f in parts[0]] == [f.index for f in whole[0]]
    assert parts[1].fvu == pytest.approx(whole[1].fvu, rel=1e-4)


# -- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saes.build("jumprelu", model=None).save_model(tmp_path / "sae")
    return tmp_path / "sae"


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    few = nd.Settings(steps=3, batch=1, canvas=nd.Pixels(24), augment=(nd.Noise(0.1),))
    monkeypatch.setattr(nd.Settings, "normalised", classmethod(lambda cls, size=448: few))


def run(capsys: pytest.CaptureFixture, *arguments: Any) -> tuple[int, str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status = cli.main([str(a) for a in arguments])
    return status, *capsys.readouterr()


@pytest.mark.usefixtures("_few")
def test_feature_draws(
    folder: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    common = ("--model", tiny_folder, "--steps", 2, "--out", out)
    status, said, _ = run(capsys, "feature", folder, 3, 7, *common, "--seed", 0, 1, "--json", "--objective", "decoder")
    assert status == 0
    rows = json.loads(said)["prototypes"]
    assert [(r["concept"], r["seed"], r["steps"]) for r in rows] == [
        (f"feature {i}", s, 2) for i in (3, 7) for s in (0, 1)
    ]
    assert rows[0]["readings"]["pre_mean"] == pytest.approx(rows[0]["scores"]["encoder"])
    assert nd.Prototype.load(out / "feature-3-layer3-seed0").direction["objective"] == "decoder"
    status, said, _ = run(capsys, "feature", folder.parent, "sae", 3, *common)
    assert status == 0
    assert "encoder" in said
    assert "tokens firing" in said
    assert "saved 1 picture" in said


def test_features_lists(folder: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    status, said, _ = run(capsys, "features", folder, "--word", "octopus", "--model", tiny_folder, "--top", 4, "--json")
    assert status == 0
    rows = json.loads(said)
    vlm = nd.load(tiny_folder)
    wanted = nd.candidates(vlm, saes.build("jumprelu", model=None), words="octopus", top=4)
    assert [(r["index"], r["picture"]) for r in rows] == [(c.index, None) for c in wanted]
    noise(1)[0].save(tmp_path / "a.png")
    both = ("--word", "octopus", "--picture", tmp_path / "a.png")
    status, said, _ = run(capsys, "features", folder.parent, "sae", *both, "--model", tiny_folder, "--top", 3)
    assert status == 0
    assert len(said.strip().splitlines()) == 3
    assert "word " in said
    assert "picture " in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("feature", "{folder}", "x", "3"), "no folder"),
        (("feature", "{folder}", "3", "x"), "'x' is no feature's number"),
        (("feature", "{folder}", "sae"), "which features of"),
        (("feature", "{folder}", "99"), "features 0 to 39"),
        (("feature", "nowhere", "some-id", "3"), "no autoencoder 'nowhere'"),
        (("feature", "gemma-scope-2-4b-it-res", "some-id", "3"), "has no SAE id 'some-id'"),
        (("feature", "{folder}", "3", "--steps", "0"), "at least 1 is needed"),
        (("features", "{folder}"), "Give --word octopus, --picture FILE, or both"),
        (("features", "{folder}", "--picture", "nowhere.png"), "no picture nowhere.png"),
        (("features", "{folder}/nowhere", "--word", "x"), "no autoencoder"),
    ],
)
def test_errors_are_one_line(folder: Path, capsys: pytest.CaptureFixture, arguments: tuple, words: str) -> None:
    status, said, told = run(capsys, *(a.format(folder=folder) for a in arguments))
    assert (status, said) == (1, "")
    *notes, line = told.strip().splitlines()
    unknown = ["nnsight-dream: note: the demo model was never shown 'x'"] if arguments[-2:] == ("--word", "x") else []
    assert [note.split(";")[0] for note in notes] == unknown
    assert line.startswith("nnsight-dream: ")
    assert words in line
