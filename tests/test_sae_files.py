"""Autoencoders in files: only what is asked for is read, caches work offline, and what is missing is said at once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import saes
import tiny
import torch
from heads import heads
from safetensors.torch import load_file, save_file

import nnsight_dream as nd
from nnsight_dream.models import network
from nnsight_dream.sae import files as sae_files
from nnsight_dream.sae import reference as reference_module
from nnsight_dream.sae import releases as sae_releases

REPO = "google/gemma-scope-2-4b-it"
RELEASE = "gemma-scope-2-4b-it-res"
ID = "layer_17_width_16k_l0_medium"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def same(one: nd.Feature, other: nd.Feature) -> bool:
    """Whether two features of one latent have the same numbers, site and origin."""
    (_, a), (_, b) = one.parts[0], other.parts[0]
    for name in ("encoder", "decoder", "b_dec"):
        x, y = getattr(a, name), getattr(b, name)
        if (x is None) != (y is None) or (x is not None and not torch.equal(x, y)):
            return False
    plain = ("index", "bias", "subtracted", "threshold", "normalise", "scale", "architecture")
    gates = (a.gate is None) == (b.gate is None) and (a.gate is None or torch.equal(a.gate[0], b.gate[0]))
    return (
        gates
        and all(getattr(a, n) == getattr(b, n) for n in plain)
        and (one.where, one.model) == (other.where, other.model)
    )


# -- folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*saes.ARCHITECTURES, *saes.TRANSCODERS])
def test_a_folder_gives_what_the_object_gives(tmp_path: Path, kind: str) -> None:
    more = {"rescale_acts_by_decoder_norm": True} if "topk" in kind else {}
    sae = saes.build(kind, **more)
    sae.cfg.metadata.neuronpedia_id = "some/where"
    sae.save_model(tmp_path / "one")
    for index in (0, 17, 39):
        wanted = nd.feature(sae, index)
        for found in (
            nd.feature(str(tmp_path / "one"), index),
            nd.feature(tmp_path, "one", index),
            nd.feature(tmp_path / "one", [index])[0],
        ):
            assert same(found, wanted)
            assert found.link == wanted.link == f"https://neuronpedia.org/some/where/{index}"
            assert found.provenance["source"].endswith("one")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types_of_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    saes.build("jumprelu").save_model(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    rounded = {name: value.to(dtype).contiguous() for name, value in load_file(path).items()}
    save_file(rounded, path)
    (_, latent) = nd.feature(tmp_path, 5).parts[0]
    assert latent.encoder.dtype == torch.float32
    assert torch.equal(latent.encoder, rounded["W_enc"][:, 5].float())
    assert torch.equal(latent.decoder, rounded["W_dec"][5].float())
    assert latent.threshold == float(rounded["threshold"][5])


def test_configurations_from_before_sae_lens_6(tmp_path: Path) -> None:
    from sae_lens import SAE

    for name, told, kind, applied in (
        ("a", {"hook_point": "blocks.1.hook_resid_post"}, "standard", True),
        (
            "b",
            {"hook_name": "blocks.1.hook_mlp_out", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}},
            "topk",
            True,
        ),
        (
            "c",
            {"hook_name": "blocks.1.hook_resid_pre", "architecture": "jumprelu", "apply_b_dec_to_input": False},
            "jumprelu",
            False,
        ),
    ):
        saes.build(kind).save_model(tmp_path / name)
        cfg = {"d_in": 32, "d_sae": 40, "dtype": "float32", "model_name": "gpt2", "normalize_activations": None, **told}
        (tmp_path / name / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")
        found = nd.feature(tmp_path / name, 2)
        theirs = nd.feature(SAE.load_from_disk(str(tmp_path / name)), 2)
        assert same(found, theirs)
        assert found.where == told.get("hook_name", told.get("hook_point"))
        assert found.parts[0][1].subtracted is applied


@pytest.mark.parametrize(
    ("hook", "affine", "kind", "folder"),
    [
        ("model.layers.2.output", False, "jumprelu", "resid_post/layer_2_width_16k_l0_medium"),
        ("model.layers.2.post_feedforward_layernorm.output", False, "jumprelu", "mlp_out/layer_2_width_16k_l0_small"),
        ("model.layers.2.self_attn.o_proj.input", False, "jumprelu", "attn_out/layer_2_width_16k_l0_big"),
        (
            "model.layers.2.pre_feedforward_layernorm.output",
            False,
            "jumprelu_transcoder",
            "transcoder/layer_2_width_16k_l0_big",
        ),
        (
            "model.layers.2.pre_feedforward_layernorm.output",
            True,
            "jumprelu_skip_transcoder",
            "transcoder_all/layer_2_width_16k_l0_small_affine",
        ),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_gemma_scopes_own_files(tmp_path: Path, hook: str, affine: bool, kind: str, folder: str, told: bool) -> None:
    made = saes.gemma_scope(tmp_path / folder, width=32, features=40, index=9, hook=hook if told else None)
    if told and affine:
        path = tmp_path / folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "affine_connection": True}))
    if affine:
        path = tmp_path / folder / "params.safetensors"
        save_file({**load_file(path), "affine_skip_connection": torch.randn(32, 32)}, path)
    feature = nd.feature(tmp_path / folder, 9)
    (_, latent) = feature.parts[0]
    assert (feature.where, latent.architecture, latent.subtracted) == (hook, kind, False)
    assert torch.equal(latent.encoder, made["w_enc"])
    assert latent.bias == float(made["b_enc"])
    assert latent.threshold == float(made["threshold"])
    if "transcoder" in kind:
        assert latent.decoder is latent.b_dec is None
    else:
        assert torch.equal(latent.decoder, made["w_dec"])
        assert torch.equal(latent.b_dec, made["b_dec"])
    assert feature.model == ("google/gemma-3-4b-it" if told else None)
    whole = sae_files.load_whole(tmp_path / folder)
    hidden = torch.randn(6, 32)
    assert whole.cfg.architecture() == kind
    torch.testing.assert_close(feature.readings(hidden)["act"], whole.encode(hidden)[:, 9].detach())
    assert whole(hidden).shape == (6, 32)


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({}, FileNotFoundError, r"holds no sparse autoencoder: looked for cfg.json and sae_weights.safetensors"),
        ({"a.txt": b"x"}, FileNotFoundError, r"found a.txt"),
        ({"params.safetensors": b"short"}, ValueError, "config.json that tells what it reads"),
        ({"config.json": b'{"architecture": "jump_relu", "hf_hook_point_in": "model.layers.1.output"}', "params.safetensors": b"short"}, ValueError, "is no safetensors file"),
        ({"config.json": b"{}", "params.safetensors": b"short"}, ValueError, "architecture None; Gemma Scope 2's is 'jump_relu'"),
        ({"cfg.json": b"{", "sae_weights.safetensors": b"x"}, ValueError, "is not JSON"),
        ({"cfg.json": b"[]", "sae_weights.safetensors": b"x"}, ValueError, "holds a list, not a configuration"),
        ({"cfg.json": b"{}", "sae_weights.safetensors": b"x" * 100}, ValueError, "is no safetensors file"),
    ],
)  # fmt: skip
def test_folders_that_hold_none(tmp_path: Path, files: dict[str, bytes], error: type, words: str) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=words):
        nd.feature(tmp_path, 0)


def test_a_file_cut_short_and_a_folder_too_high(tmp_path: Path) -> None:
    saes.build("jumprelu").save_model(tmp_path / "one")
    with pytest.raises(FileNotFoundError, match="there is one in one: give that folder, or its name as the SAE id"):
        nd.feature(tmp_path, 0)
    assert nd.feature(tmp_path, "one", 0).label == "feature 0"
    with pytest.raises(FileNotFoundError, match=r"no folder .*two"):
        nd.feature(tmp_path, "two", 0)
    with pytest.raises(TypeError, match="which feature"):
        nd.feature(tmp_path, "one")
    with pytest.raises(IndexError, match="features 0 to 39"):
        nd.feature(tmp_path, "one", 40)
    path = tmp_path / "one" / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"is cut short: .* download or save it anew"):
        nd.feature(tmp_path, "one", 0)


# -- releases ----------------------------------------------------------------------------------------------------


def test_the_registry_is_that_of_sae_lens() -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    theirs = get_pretrained_saes_directory()
    assert set(sae_releases._registry()[1]) == set(theirs)
    for release in (
        RELEASE,
        "gemma-scope-2-27b-it-transcoders-all",
        "gpt2-small-res-jb",
        "qwen-scope-3.5-2b-base-w32k-l50",
    ):
        for sae_id, path in list(theirs[release].saes_map.items())[::40]:
            repo, folder, kind, known = sae_releases._listed(release, sae_id)
            assert (repo, folder) == (theirs[release].repo_id, path)
            assert kind == (theirs[release].conversion_func or "sae_lens")
            assert known.get("neuronpedia") == theirs[release].neuronpedia_id[sae_id]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (("gemma-scope-2-4b-it-rez", ID, 0), r"no autoencoder 'gemma-scope-2-4b-it-rez'.*did you mean 'gemma-scope-2-4b-it-res' "),
        ((RELEASE, "layer_17_width_16k", 0), r"has no SAE id 'layer_17_width_16k'; the nearest of its \d+ are layer_17_width_16k"),
        ((RELEASE, 3), "needs an SAE id; the nearest"),
        (("nowhere", 3), "no autoencoder 'nowhere'"),
    ],
)  # fmt: skip
def test_names_that_are_not_listed(hub: Path, named: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nd.feature(*named)


def test_what_is_not_cached_is_said_at_once(hub: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"not in the Hugging Face cache .*HF_HUB_OFFLINE is set: go online once"):
        nd.feature(RELEASE, ID, 0)
    with pytest.raises(ConnectionError, match=r"cfg.json of jbloom/GPT2-Small-SAEs-Reformatted is not in"):
        nd.feature("gpt2-small-res-jb", "blocks.0.hook_resid_pre", 0)
    with pytest.raises(ConnectionError, match=r"cfg.json of someone/something is not in"):
        nd.feature("someone/something", "layer_1", 0)
    with pytest.raises(ConnectionError, match=r"layer10 of qwen-scope-3.5-2b-base-w32k-l50 is not in"):
        nd.feature("qwen-scope-3.5-2b-base-w32k-l50", "layer10", 0)
    assert time.monotonic() - began < 20  # sae_lens may be imported here


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_hub_that_does_not_answer_costs_seconds(hub: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    import sae_lens  # noqa: F401 - its ten seconds are not the network's
    from huggingface_hub import constants

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if how == "silent":
            listening.listen(1)  # takes the connection and says nothing
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr(network, "PATIENCE", 1.0)
        for named in ((RELEASE, ID, 0), ("qwen-scope-3.5-2b-base-w32k-l50", "layer10", 0)):
            began = time.monotonic()
            with pytest.raises(ConnectionError, match=r"127.0.0.1:\d+ cannot be reached"):
                nd.feature(*named)
            assert time.monotonic() - began < 5
            assert constants.HF_HUB_OFFLINE is False


def test_a_name_server_that_does_not_answer_costs_seconds(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    let_go = threading.Event()

    def hang(*args: Any, **kwargs: Any) -> None:
        let_go.wait(60)
        raise socket.gaierror("no name server")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(network, "PATIENCE", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"https://hub.invalid cannot be reached: go online once"):
        nd.feature(RELEASE, ID, 0)
    assert time.monotonic() - began < 5
    let_go.set()


@pytest.mark.parametrize(
    ("root", "file", "words"),
    [(503, 503, "only answers with status 503"), (429, 429, "status 429"), (200, 403, r"did not give it \(403")],
)
def test_a_hub_that_answers_with_errors_costs_seconds(
    hub: Path, monkeypatch: pytest.MonkeyPatch, root: int, file: int, words: str
) -> None:
    """Servers and proxies: the hub's own client asks again for half a minute."""
    import sae_lens  # noqa: F401 - its ten seconds are not the network's
    from huggingface_hub import constants

    with heads(root, file) as here:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", here)
        template = here + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for named in ((RELEASE, ID, 0), ("qwen-scope-3.5-2b-base-w32k-l50", "layer10", 0)):
            began = time.monotonic()
            with pytest.raises(ConnectionError, match=f"is not in the Hugging Face cache .*{words}"):
                nd.feature(*named)
            assert time.monotonic() - began < 8
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("told", [True, False])
def test_gemma_scope_in_the_cache_needs_no_network(hub: Path, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    """The real names, layout and width; sae-lens's own loader asks the network for shapes even so."""
    import requests

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(requests, "get", never)
    monkeypatch.setattr(socket.socket, "connect", never)
    folder = saes.cached(hub, REPO, f"resid_post/{ID}")
    hook = "model.layers.17.output" if told else None
    made = saes.gemma_scope(folder, width=2560, features=16384, index=1234, hook=hook)
    feature = nd.feature(RELEASE, ID, 1234)
    (_, latent) = feature.parts[0]
    assert torch.equal(latent.encoder, made["w_enc"])
    assert torch.equal(latent.decoder, made["w_dec"])
    assert (feature.where, feature.model, feature.width) == ("model.layers.17.output", "google/gemma-3-4b-it", 2560)
    assert feature.link == "https://neuronpedia.org/gemma-3-4b-it/17-gemmascope-2-res-16k/1234"
    assert feature.provenance["source"] == f"{RELEASE}, {ID}"
    with pytest.raises(IndexError, match="0 to 16383"):
        nd.feature(RELEASE, ID, 16384)
    sae = sae_releases.load_sae(RELEASE, ID)
    hidden = torch.randn(3, 2560)
    torch.testing.assert_close(feature.readings(hidden)["act"], sae.encode(hidden)[:, 1234], atol=1e-3, rtol=1e-4)
    assert sae.cfg.metadata.hf_hook_name == "model.layers.17.output"


def test_a_release_in_sae_lens_format(hub: Path) -> None:
    sae = saes.build("standard", hook="blocks.0.hook_resid_pre", hf_hook=None, model="gpt2-small", d_in=24)
    sae.save_model(saes.cached(hub, "jbloom/GPT2-Small-SAEs-Reformatted", "blocks.0.hook_resid_pre"))
    found = nd.feature("gpt2-small-res-jb", "blocks.0.hook_resid_pre", 3)
    assert same(found, nd.feature(sae, 3))
    assert found.link == "https://neuronpedia.org/gpt2-small/0-res-jb/3"
    assert type(sae_releases.load_sae("gpt2-small-res-jb", "blocks.0.hook_resid_pre")).__name__ == "StandardSAE"
    sae.save_model(saes.cached(hub, "someone/something", "layer_1"))
    assert same(nd.feature("someone/something", "layer_1", 3), nd.feature(sae, 3))


def test_a_registered_factor_is_folded_as_sae_lens_folds_it(hub: Path) -> None:
    name, told = next(
        (name, told)
        for name in sae_releases._registry()[1]
        if not (told := sae_releases._release(name)).get("conversion_func")
        and any("norm_scaling_factor" in row for row in told["saes"])
    )
    row = next(row for row in told["saes"] if "norm_scaling_factor" in row)
    sae = saes.build("standard", normalize_activations="expected_average_only_in", apply_b_dec_to_input=True)
    sae.save_model(saes.cached(hub, told["repo_id"], row["path"]))
    theirs = nd.feature(sae_releases.load_sae(name, row["id"]), 3)
    found = nd.feature(name, row["id"], 3)
    for part in ("encoder", "decoder", "b_dec"):
        torch.testing.assert_close(getattr(found.parts[0][1], part), getattr(theirs.parts[0][1], part))
    assert found.parts[0][1].normalise == "none"


def test_a_format_that_cannot_be_sliced_is_loaded_by_sae_lens(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_lens.loading import pretrained_sae_loaders

    monkeypatch.setattr(pretrained_sae_loaders, "_parse_qwen_scope_repo_id", lambda repo: ("Qwen3.5-2B-Base", 60, 50))
    release, repo = (
        "qwen-scope-3.5-2b-base-w32k-l50",
        sae_releases._release("qwen-scope-3.5-2b-base-w32k-l50")["repo_id"],
    )
    w, v = torch.randn(60, 2048), torch.randn(2048, 60)
    tensors = {"W_enc": w, "W_dec": v, "b_enc": torch.randn(60), "b_dec": torch.randn(2048)}
    torch.save(tensors, saes.cached(hub, repo, "") / "layer10.sae.pt")
    feature = nd.feature(release, "layer10", 7)
    (_, latent) = feature.parts[0]
    assert (feature.where, latent.architecture, latent.threshold) == ("model.layers.10", "topk", None)
    assert torch.equal(latent.encoder, w[7])
    assert torch.equal(latent.decoder, v[:, 7])


# -- memory ------------------------------------------------------------------------------------------------------

MEASURE = """
import json, os, resource, sys, time
import torch
import nnsight_dream as nd
nd.feature, nd.feature_from_tensors(0, 1, W_enc=torch.eye(3))
import yaml, huggingface_hub
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from nnsight_dream.sae import releases as sae_releases
sae_releases._registry()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, read = peak(), int(open("/proc/self/io").read().split()[1])
began = time.perf_counter()
found = nd.feature(*json.loads(sys.argv[1]))
print(json.dumps([peak() - before, int(open("/proc/self/io").read().split()[1]) - read, time.perf_counter() - began, "sae_lens" in sys.modules, found.parts[0][1].encoder.tolist()]))
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="reads /proc")
@pytest.mark.parametrize(("width", "features"), [(2560, 16384), (64, 1_000_000)])
def test_only_a_column_and_a_row_are_read(tmp_path: Path, width: int, features: int) -> None:
    folder = saes.cached(tmp_path / "hub", REPO, f"resid_post/{ID}")
    made = saes.gemma_scope(folder, width=width, features=features, index=12345, hook="model.layers.17.output")
    size = (folder / "params.safetensors").stat().st_size
    assert size > 300e6
    told = json.dumps([RELEASE, ID, 12345])
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEASURE, told], capture_output=True, text=True, check=True, env=env)
    grown, read, took, imported, found = json.loads(done.stdout)
    assert torch.equal(torch.tensor(found), made["w_enc"])
    assert grown < 12e6
    assert read < 1e6
    assert took < 5
    assert not imported


# -- the way to a picture ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide() -> nd.VLM:
    """A Gemma 3 of random weights, 64 wide, called by a real one's name."""
    model, processor = tiny.gemma3(hidden=64, layers=3)
    vlm = nd.load(model, processor=processor)
    vlm.id = "google/gemma-3-4b-it"
    return vlm


@pytest.mark.parametrize(
    ("release", "path", "hook", "kind"),
    [
        ("res", "resid_post/layer_{}_width_1m_l0_medium", "model.layers.{}.output", "resid_post"),
        ("mlp", "mlp_out/layer_{}_width_1m_l0_medium", "model.layers.{}.post_feedforward_layernorm.output", "mlp_out"),
        ("att", "attn_out/layer_{}_width_1m_l0_medium", "model.layers.{}.self_attn.o_proj.input", "self_attn.o_proj.input"),
        ("transcoders", "transcoder/layer_{}_width_1m_l0_medium", "model.layers.{}.pre_feedforward_layernorm.output", "pre_feedforward_layernorm.output"),
    ],
)  # fmt: skip
def test_a_feature_of_a_million_is_climbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide: nd.VLM, release: str, path: str, hook: str, kind: str
) -> None:
    from PIL import Image

    monkeypatch.setattr(reference_module, "reference_pictures", lambda: (Image.new("RGB", (28, 28), "red"),))
    folder = tmp_path / path.format(2)
    saes.gemma_scope(folder, width=64, features=1_000_000, index=999_999, hook=hook.format(2))
    feature = nd.feature(folder, 999_999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the same model: nothing to warn of
        assert feature.site(wide) == nd.Site(3, kind)
    few = nd.Settings(steps=1, batch=1, rate=0.5, canvas=nd.Pixels(24), augment=())
    made = nd.synthesize(wide, feature, settings=few, progress=False)
    assert len(made.history) == 1
    assert made.scores["encoder"] > made.history[0] or feature.guard
    assert made.site == nd.Site(3, kind)
    other = nd.feature(saes.build("jumprelu", d_in=32, hf_hook=hook.format(2), model="google/gemma-3-4b-it"), 0)
    with pytest.raises(
        ValueError, match=r"reads 32 numbers, but layer 3 .* is 64 wide.*trained on google/gemma-3-4b-it"
    ):
        other.site(wide)
    with pytest.warns(
        UserWarning, match="trained on google/gemma-3-4b-pt, not on google/gemma-3-4b-it: the same model"
    ):
        feature.but(model="google/gemma-3-4b-pt").site(wide)


# -- the bundled one ---------------------------------------------------------------------------------------------


def test_without_a_bundled_autoencoder_it_is_said_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    from nnsight_dream.demo import bundle

    monkeypatch.setattr(bundle, "folder", lambda: tmp_path)
    for call in (nd.demo_sae, lambda: nd.feature("demo", 0)):
        with pytest.raises(FileNotFoundError, match=r"no bundled sparse autoencoder .*recipes/train_demo_sae.py"):
            call()
    for layer in (4, 6):
        saes.build("jumprelu", hf_hook=f"model.layers.{layer - 1}.output").save_model(
            tmp_path / "sae" / f"layer{layer}"
        )
    assert nd.demo_sae().cfg.metadata.hf_hook_name == "model.layers.3.output"
    assert nd.demo_sae(6).cfg.metadata.hf_hook_name == "model.layers.5.output"
    assert nd.feature("demo", 0).where == "model.layers.3.output"
    assert nd.feature("demo", "layer6", 0).where == "model.layers.5.output"
    with pytest.raises(ValueError, match="no bundled sparse autoencoder 5; there is layer4, layer6"):
        nd.demo_sae(5)


def test_the_bundled_autoencoder_belongs_to_the_bundled_model(demo_vlm: nd.VLM) -> None:
    from nnsight_dream.demo import bundle

    try:
        folder = bundle.sae_folder()
    except FileNotFoundError:
        pytest.skip("no bundled sparse autoencoder yet: run `python recipes/train_demo_sae.py`")
    sae = nd.demo_sae()
    feature = nd.feature(sae, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        site = feature.site(demo_vlm)
    assert same(feature, nd.feature(folder, 0))
    if sae.cfg.metadata.weights_tag:
        assert sae.cfg.metadata.weights_tag == demo_vlm.weights_tag(site)
