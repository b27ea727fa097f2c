"""Autoencoders at odds with themselves: refused before a number of theirs is used, behind every door."""

from __future__ import annotations

import json
import shutil
import struct
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saes
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.io import pictures
from nnsight_dream.sae import encoding as sae_encoding
from nnsight_dream.sae import readouts
from nnsight_dream.sae import releases as sae_releases
from nnsight_dream.sae.responses import responses

FILE = "sae_weights.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled autoencoder of 2,048 features and 160 numbers, in float16."""
    return Path(shutil.copytree(bundle.sae_folder(4), tmp_path / "sae"))


def changed(folder: Path, **tensors: torch.Tensor | None) -> None:
    state = {**load_file(folder / FILE), **tensors}
    save_file({name: value.contiguous() for name, value in state.items() if value is not None}, folder / FILE)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def rewrite(path: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


# -- shapes ------------------------------------------------------------------------------------------------------

SHORT = {
    "b_enc": (torch.zeros(10), r"b_enc is \(10,\), but W_enc is \(160, 2048\), so that b_enc should be \(\d+,\)"),
    "b_dec": (torch.zeros(159), r"b_dec is \(159,\).* should be \(160,\)"),
    "W_dec": (torch.zeros(100, 160), r"W_dec is \(100, 160\), but W_enc is \(160, 2048\)"),
    "W_enc": (torch.zeros(60, 2048), r"is \(2048, 160\), but W_enc is \(60, 2048\)"),
    "threshold": (torch.zeros(3), r"threshold is \(3,\)"),
}


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("door", ["feature", "load_sae"])
def test_a_folder_with_a_short_tensor_is_refused_with_both_shapes(folder: Path, name: str, door: str) -> None:
    changed(folder, **{name: SHORT[name][0]})
    with pytest.raises(ValueError, match=SHORT[name][1]):
        nd.feature(folder, 5) if door == "feature" else sae_releases.load_sae(folder)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_a_tensor_that_is_missing_is_named(folder: Path, name: str) -> None:
    changed(folder, **{name: None})
    with pytest.raises(ValueError, match=f"lacks {name}"):
        nd.feature(folder, 5)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"d_sae": 2047}, r"says d_sae=2047, but W_enc is"),
        ({"d_in": 128}, r"says d_in=128, but W_enc is"),
        ({"d_in": "160"}, r"d_in='160': a whole number.* is needed"),
        ({"apply_b_dec_to_input": "false"}, r"apply_b_dec_to_input='false'.*true or false"),
        ({"normalize_activations": "somehow"}, r"normalize_activations='somehow' is not known; known are none"),
        ({"architecture": "gated"}, r"this gated autoencoder lacks b_gate, r_mag, b_mag"),
        ({"architecture": "crosscoder"}, r"architecture 'crosscoder' has no pre-activation"),
    ],
)
def test_a_configuration_that_lies(folder: Path, entry: dict[str, Any], words: str) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**cfg, **entry}))
    with pytest.raises(ValueError, match=words):
        nd.feature(folder, 5)


def test_gemma_scope_of_other_shapes(tmp_path: Path) -> None:
    place = tmp_path / "layer_2_width_16k_l0_medium"
    saes.gemma_scope_whole(place, width=32, features=40, hook="model.layers.2.output")
    state = load_file(place / "params.safetensors")
    assert nd.feature(place, 3).width == 32
    for name, wrong in (("threshold", (39,)), ("w_dec", (40, 16)), ("b_dec", (40,)), ("w_enc", (2, 32, 40))):
        save_file({**state, name: torch.zeros(wrong)}, place / "params.safetensors")
        with pytest.raises(ValueError, match=r"is \(.*W_enc is|W_enc is .*crosscoder"):
            nd.feature(place, 3)
    save_file(state, place / "params.safetensors")
    cfg = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**cfg, "width": 65536}))
    with pytest.raises(ValueError, match=r"width=65536, but params\.safetensors holds 40 features"):
        nd.feature(place, 3)


def test_a_skip_that_does_not_fit() -> None:
    sae = saes.build("skip_transcoder", hf_hook=None)
    assert nd.feature(sae, 3).width == 32
    sae.W_skip = torch.nn.Parameter(torch.zeros(32, 24))
    with pytest.raises(ValueError, match=r"W_skip is \(32, 24\), but W_enc is \(32, 40\).* should be \(24, 32\)"):
        nd.feature(sae, 3)


# -- the file's bytes --------------------------------------------------------------------------------------------


def _longer(header: dict[str, Any]) -> None:
    header["b_enc"]["shape"] = [2049]


def _beyond(header: dict[str, Any]) -> None:
    header["b_enc"]["data_offsets"] = [n + 10**6 for n in header["b_enc"]["data_offsets"]]


def _onto_another(header: dict[str, Any]) -> None:
    header["b_enc"]["data_offsets"] = header["W_enc"]["data_offsets"][:1] * 2
    header["b_enc"]["data_offsets"][1] += 4096


def _negative(header: dict[str, Any]) -> None:
    header["b_enc"]["shape"] = [-2048, -1]


def _swapped(header: dict[str, Any]) -> None:
    header["W_dec"]["shape"] = header["W_dec"]["shape"][::-1]


@pytest.mark.parametrize("lie", [_longer, _beyond, _onto_another, _negative, _swapped])
def test_a_header_that_lies(folder: Path, lie: Any) -> None:
    header, data = header_of(folder / FILE)
    lie(header)
    rewrite(folder / FILE, header, data)
    with pytest.raises(ValueError, match=r"no safetensors file|W_dec is \(160, 2048\)"):
        nd.feature(folder, 5)


def test_bytes_that_no_header_names_and_names_that_come_twice(folder: Path) -> None:
    header, data = header_of(folder / FILE)
    rewrite(folder / FILE, header, data + b"\0" * 4)
    with pytest.raises(ValueError, match="4 bytes that its header does not name"):
        nd.feature(folder, 5)
    twice = json.dumps(header)[:-1].encode() + b', "b_enc": ' + json.dumps(header["b_enc"]).encode() + b"}"
    rewrite(folder / FILE, twice, data)
    with pytest.raises(ValueError, match="names something twice"):
        nd.feature(folder, 5)
    for raw in (b"", b"\xff" * 8, struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 200_000) + b"[" * 200_000):
        (folder / FILE).write_bytes(raw)
        with pytest.raises(ValueError, match="is no safetensors file"):
            nd.feature(folder, 5)


def test_what_is_whole_reads_as_ever(folder: Path) -> None:
    state = load_file(folder / FILE)
    for index in (0, 425, 2047):
        part = nd.feature(folder, index).parts[0][1]
        assert torch.equal(part.encoder, state["W_enc"][:, index].float())
        assert torch.equal(part.decoder, state["W_dec"][index].float())
        assert part.bias == float(state["b_enc"][index])


# -- numbers that are none ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_used_is_finite_and_what_is_not_used_may_be_anything(folder: Path, value: float) -> None:
    state = load_file(folder / FILE)
    state["W_enc"][7, 5] = value
    changed(folder, W_enc=state["W_enc"])
    with pytest.raises(ValueError, match=rf"feature 5: its column of W_enc holds 1 of 160 .*\({value}\) at place 7"):
        nd.feature(folder, 5)
    assert nd.feature(folder, 6).label == "feature 6"
    state = load_file(bundle.sae_folder(4) / FILE)
    state["b_enc"][5] = value
    changed(folder, **state)
    with pytest.raises(ValueError, match=f"feature 5: its bias is {value}"):
        nd.feature(folder, 5)


@pytest.mark.parametrize(
    ("name", "place"), [("W_enc", (3, 9)), ("W_dec", (9, 3)), ("threshold", (9,)), ("b_dec", (3,))]
)
def test_a_whole_autoencoder_in_hand_is_finite(tiny_vlm: nd.VLM, name: str, place: tuple[int, ...]) -> None:
    sae = saes.build("jumprelu", model=None)
    image = Image.new("RGB", (28, 28), "red")
    before = nd.features_of(tiny_vlm, sae, image)
    with torch.no_grad():
        getattr(sae, name)[place] = float("nan")
    words = rf"1 of \d+ numbers of this autoencoder's {name} are not finite, the first"
    words += " of feature 9" if name != "b_dec" else ""
    for door in (
        lambda: nd.features_of(tiny_vlm, sae, image),
        lambda: nd.candidates(tiny_vlm, sae, images=image),
        lambda: nd.strangeness(tiny_vlm, sae, image, reference=image),
        lambda: responses(tiny_vlm, sae, 3, ["octopus"], [image], ["red"]),
        lambda: readouts.nearest_rows(sae, 3),
    ):
        with pytest.raises(ValueError, match=words):
            door()
    with torch.no_grad():
        getattr(sae, name)[place] = 0.25 if name == "threshold" else 0.0
    assert len(nd.features_of(tiny_vlm, sae, image)) >= len(before) - 1


def test_activations_that_overflow_are_said_with_the_feature(tiny_vlm: nd.VLM) -> None:
    sae = saes.build("standard", model=None)
    with torch.no_grad():
        sae.W_enc[:, 4] = 3e38
        sae.W_enc[1::2, 4] *= -1
        sae.b_enc[4] = 3e38
    with pytest.raises(ValueError, match=r"activations of 1 features .* first is feature 4"):
        nd.features_of(tiny_vlm, sae, [Image.new("RGB", (28, 28), c) for c in ("red", "white", "blue")])


def test_a_change_in_place_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at once is remembered, until it changes."""
    sae, looked = saes.build("jumprelu"), []
    look = sae_encoding._check_finite
    monkeypatch.setattr(sae_encoding, "_check_finite", lambda *a: looked.append(a[0]) or look(*a))
    sae_encoding.check_whole(sae)
    first = len(looked)
    sae_encoding.check_whole(sae)
    assert first > 0
    assert len(looked) == first
    with torch.no_grad():
        sae.b_enc[3] += 1
    sae_encoding.check_whole(sae)
    assert len(looked) == 2 * first


# -- tensors of one's own ----------------------------------------------------------------------------------------


def test_plain_tensors_and_arrays() -> None:
    rng = np.random.default_rng(0)
    params = {"W_enc": rng.normal(size=(32, 9)), "W_dec": rng.normal(size=(9, 32)), "b_enc": rng.normal(size=9)}
    feature = nd.feature_from_tensors(np.int64(2), 3, **params, threshold=np.float32(0.5))
    hidden = rng.normal(size=(4, 32))
    expected = hidden @ params["W_enc"][:, 2] + params["b_enc"][2]
    np.testing.assert_allclose(feature.readings(torch.tensor(hidden))["pre"], expected, rtol=1e-5)
    broken = params["W_dec"].copy()
    broken[2, 30] = np.nan
    with pytest.raises(ValueError, match=r"feature 2: its row of W_dec holds 1 of 32 .*at place 30"):
        nd.feature_from_tensors(2, 3, **{**params, "W_dec": broken})
    assert nd.feature_from_tensors(3, 3, **{**params, "W_dec": broken}).label == "feature 3"
    for name, wrong, error in (
        ("W_enc", torch.ones(32, 9, dtype=torch.int8), TypeError),
        ("W_enc", torch.ones(32, 9, device="meta"), TypeError),
        ("W_enc", params["W_enc"].tolist(), TypeError),
        ("W_enc", torch.ones(32, 0), ValueError),
        ("threshold", float("nan"), ValueError),
        ("b_enc", torch.full((9,), torch.inf), ValueError),
    ):
        with pytest.raises(error):
            nd.feature_from_tensors(2, 3, **{**params, name: wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"decoder": torch.ones(5)},
        {"b_dec": torch.ones(3)},
        {"encoder": torch.ones(2, 4)},
        {"gate": (torch.ones(3), 0.0)},
        {"bias": float("nan")},
        {"threshold": float("inf")},
        {"encoder": torch.tensor([1.0, torch.nan, 1.0, 1.0])},
    ],
)
def test_a_latent_made_by_hand(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="feature 0: its"):
        nd.Latent(**{"index": 0, "encoder": torch.ones(4), **wrong})
    part = nd.Latent(0, torch.ones(4))
    with pytest.raises(ValueError, match="its weights are"):
        nd.Feature("mine", 3, ((float("nan"), part),))
    with pytest.raises(ValueError, match="its weights are"):
        nd.Feature("mine", 3, ((float("inf"), part),))


def test_factors_of_features() -> None:
    feature, hidden = nd.feature_from_tensors(1, 3, W_enc=torch.eye(4)), torch.ones(2, 4)
    for two in (2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0)):
        assert torch.equal((two * feature).value(hidden), 2 * feature.value(hidden))
        assert torch.equal((feature / two).value(hidden), feature.value(hidden) / 2)
    for wrong, error in (
        (float("inf"), ValueError),
        (float("nan"), ValueError),
        (True, ValueError),
        (np.ones(2), TypeError),
        (torch.ones(1), TypeError),
        ("2", TypeError),
        (None, TypeError),
    ):
        with pytest.raises(error):
            feature * wrong
        with pytest.raises(error):
            wrong * feature
    with pytest.raises(ZeroDivisionError, match="feature 1 cannot be divided by 0"):
        feature / 0
    with pytest.raises(TypeError, match=r"\(weight, Latent\)"):
        nd.Feature("mine", 3, (nd.Latent(0, torch.ones(3)),))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="are tensors"):
        nd.Latent(0, [1.0, 2.0])  # type: ignore[arg-type]


def test_configurations_that_are_none(folder: Path) -> None:
    cfg = (folder / "cfg.json").read_bytes()
    (folder / "cfg.json").write_bytes(b"\xef\xbb\xbf" + cfg)
    assert nd.feature(folder, 3).label == "feature 3"
    for raw in (b"[" * 200_000, b'{"a": "\xe9"}', b""):
        (folder / "cfg.json").write_bytes(raw)
        with pytest.raises(ValueError, match=r"cfg\.json is not JSON"):
            nd.feature(folder, 3)
    with pytest.raises(ValueError, match="a path is needed"):
        nd.feature("", 3)


# -- objects in hand ---------------------------------------------------------------------------------------------


def test_objects_that_cannot_be_read_are_refused_by_a_sentence(tiny_vlm: nd.VLM) -> None:
    sae = saes.build("standard")
    with torch.no_grad():
        sae.b_enc = torch.nn.Parameter(torch.zeros(10))
    with pytest.raises(ValueError, match=r"b_enc is \(10,\), but W_enc is \(32, 40\)"):
        nd.feature(sae, 3)
    with pytest.raises(ValueError, match=r"b_enc is \(10,\), but W_enc is \(32, 40\)"):
        nd.features_of(tiny_vlm, sae, Image.new("RGB", (28, 28)))
    hooked = types.SimpleNamespace(
        W_enc=torch.ones(32, 40),
        W_dec=torch.ones(40, 32),
        cfg=types.SimpleNamespace(hook_name="blocks.2.hook_resid_post"),
    )
    with pytest.raises(
        TypeError, match=r"says neither its architecture nor apply_b_dec_to_input.*feature_from_tensors"
    ):
        nd.feature(hooked, 3)
    hooked.cfg = types.SimpleNamespace(architecture="standard", d_in=32, d_sae=41, hook_name="blocks.2.hook_resid_post")
    with pytest.raises(ValueError, match=r"lacks b_enc, b_dec"):
        nd.feature(hooked, 3)
    hooked.b_enc, hooked.b_dec = torch.zeros(40), torch.zeros(32)
    with pytest.raises(ValueError, match=r"says d_sae=41"):
        nd.feature(hooked, 3)
    hooked.cfg.d_sae = 40
    assert nd.feature(hooked, 3).width == 32
    with pytest.raises(TypeError, match=r"has no encode\(tokens\)"):
        nd.features_of(tiny_vlm, hooked, Image.new("RGB", (28, 28)))
    for name, value in (("W_enc", torch.ones(32, 40, dtype=torch.int8)), ("W_dec", torch.ones(40, 32, device="meta"))):
        broken = types.SimpleNamespace(**{**vars(hooked), name: value})
        with pytest.raises(ValueError, match=rf"{name} .*dense tensors of floating-point numbers"):
            nd.feature(broken, 3)


def test_every_architecture_of_sae_lens_is_read_whole_or_refused(tiny_vlm: nd.VLM) -> None:
    """features_of and candidates take what has an `encode` and one column a feature."""
    image = Image.new("RGB", (28, 28), "red")
    for kind in (*saes.ARCHITECTURES, *saes.TRANSCODERS, "matching_pursuit"):
        sae = saes.build(kind, model=None)
        rows = nd.features_of(tiny_vlm, sae, image, top=40)
        (_, tokens), *_ = sae_encoding.patches(tiny_vlm, pictures.as_tensors(image, "image"), nd.Site(3))
        with torch.no_grad():
            acts = sae.encode(tokens)
        acts = acts.to_dense() if acts.is_sparse else acts
        highest = acts.amax(0).clamp(min=0)
        assert len(rows) == int((highest > 0).sum())
        assert all(row.max == pytest.approx(float(highest[row.index]), rel=1e-4) for row in rows)
    from sae_lens.registry import get_sae_class

    cls, config = get_sae_class("temporal")
    temporal = object.__new__(cls)
    torch.nn.Module.__init__(temporal)
    temporal.cfg = object.__new__(config)
    for door in (lambda: nd.feature(temporal, 3), lambda: nd.features_of(tiny_vlm, temporal, image)):
        with pytest.raises((TypeError, ValueError), match=r"is no sae-lens SAE that can be read|'temporal'"):
            door()


# -- indices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [4, np.int64(4), np.uint8(4), torch.tensor(4), np.array(4)])
def test_an_index_is_any_whole_number(index: Any) -> None:
    sae = saes.build("standard")
    assert nd.feature(sae, index).label == "feature 4"
    assert nd.feature_from_tensors(index, 3, W_enc=torch.eye(9)).label == "feature 4"
    assert readouts.nearest_rows(sae, index, np.int64(2)) == readouts.nearest_rows(sae, 4, 2)


@pytest.mark.parametrize("several", [np.array([3, 1]), torch.tensor([3, 1]), (3, 1), (i for i in (3, 1))])
def test_several_indices_come_in_any_form(several: Any) -> None:
    assert [f.label for f in nd.feature(saes.build("standard"), several)] == ["feature 3", "feature 1"]


@pytest.mark.parametrize(
    "wrong", [True, np.True_, 1.0, torch.tensor(1.0), np.float32(1), "3", [True], torch.tensor([True]), {3, 1}, {3: 1}]
)
def test_what_is_no_index(wrong: Any, tiny_vlm: nd.VLM) -> None:
    sae = saes.build("standard", model=None)
    words = r"'3' is a text; a feature is a number" if wrong == "3" else r"whole number|a feature's number, or a list"
    with pytest.raises(TypeError, match=words):
        nd.feature(sae, wrong)
    several = wrong if isinstance(wrong, (list, dict, set)) else [wrong]
    with pytest.raises(TypeError, match=r"whole number|numbers of features"):
        responses(tiny_vlm, sae, 3, ["octopus"], [Image.new("RGB", (28, 28))], ["red"], features=several)


def test_negative_and_absent_indices_are_no_other_features(tiny_vlm: nd.VLM) -> None:
    sae, image = saes.build("standard", model=None), Image.new("RGB", (28, 28))
    for wrong in (-1, 40, np.int64(-1)):
        for door in (
            lambda wrong=wrong: nd.feature(sae, wrong),
            lambda wrong=wrong: responses(tiny_vlm, sae, 3, ["octopus"], [image], ["red"], features=[wrong]),
            lambda wrong=wrong: readouts.nearest_rows(sae, wrong),
        ):
            with pytest.raises(IndexError, match="features 0 to 39"):
                door()
    read = responses(tiny_vlm, sae, 3, ["octopus"], [image], ["red"], features=torch.tensor([3, 1]))
    assert read.features == (3, 1)
    assert read.column(np.int64(1)) == 1
    for wrong in (-1, True, 2.5):
        with pytest.raises(ValueError, match="is not among these"):
            read.column(wrong)
        with pytest.raises(ValueError, match="a whole number of at least 1"):
            read.top_words(3, wrong)
        with pytest.raises(ValueError, match="a whole number of at least 1"):
            nd.features_of(tiny_vlm, sae, image, top=wrong)


# -- pictures together -------------------------------------------------------------------------------------------


def test_pictures_of_one_size_go_through_the_model_together(tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sides = [28, 40, 28, 28, 40] * 4
    images = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in sides]
    sae = saes.build("jumprelu", model=None)
    alone = [responses(tiny_vlm, sae, 3, ["octopus"], [image], ["it"]).by_picture[0] for image in images]
    counts, read = [], sae_encoding.read_pictures
    monkeypatch.setattr(sae_encoding, "read_pictures", lambda v, p, s: counts.append(len(p)) or read(v, p, s))
    together = responses(tiny_vlm, sae, 3, ["octopus"], images, [str(side) for side in sides])
    assert counts == [12, 8]
    torch.testing.assert_close(together.by_picture, torch.stack(alone), atol=1e-4, rtol=1e-4)
    counts.clear()
    nd.features_of(tiny_vlm, sae, images)
    assert counts == [12, 8]
