"""Gemma Scope 2 in its real format and sizes: tensor names, config.json, the hub's cache, Gemma 3 4B's widths.

The model has random weights and two layers, but the widths of Gemma 3 4B: a residual stream of 2560, 8 heads of 256.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reference
import saes
import tiny
import torch
from climbing import ascend
from PIL import Image
from safetensors import safe_open

import nnsight_dream as nd
from nnsight_dream.engine import optimise
from nnsight_dream.engine.terms import feature_term
from nnsight_dream.sae import files as sae_files
from nnsight_dream.sae import reference as reference_module
from nnsight_dream.sae import releases as sae_releases
from nnsight_dream.sae.reference import reference_norm

REPO = "google/gemma-scope-2-4b-it"
FEATURES, INDEX = 16384, 12345
# part of the release, folder, what config.json says is read and written, width read, kind of the site
PARTS = {
    "res": ("resid_post_all", "output", None, 2560, "resid_post"),
    "mlp": ("mlp_out_all", "post_feedforward_layernorm.output", None, 2560, "mlp_out"),
    "att": ("attn_out_all", "self_attn.o_proj.input", None, 2048, "self_attn.o_proj.input"),
    "transcoders": (
        "transcoder_all",
        "pre_feedforward_layernorm.output",
        "post_feedforward_layernorm.output",
        2560,
        "pre_feedforward_layernorm.output",
    ),
}
ID = "layer_1_width_16k_l0_small"


@pytest.fixture(scope="module")
def parts() -> tuple:
    """(model, processor) of Gemma 3 4B's widths."""
    return tiny.gemma3(hidden=2560, heads=8, head_dim=256, mlp=64, layers=2, image=56, grid=2)


@pytest.fixture(scope="module")
def vlm(parts: tuple) -> nd.VLM:
    model, processor = parts
    found = nd.load(model, processor=processor)
    found.id = "google/gemma-3-4b-it"  # its name, so that the autoencoders belong to it
    return found


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty Hugging Face cache and no network, which nothing may ask; HF_HUB_OFFLINE is not set."""
    from huggingface_hub import constants

    asked: list[Any] = []

    def never(*args: Any, **kwargs: Any) -> None:
        asked.append(args)
        raise OSError("there is no network")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setattr(reference_module, "reference_pictures", lambda: (Image.new("RGB", (28, 28), "red"),))
    yield tmp_path / "hub"
    assert asked == []


def in_cache(hub: Path, part: str, sae_id: str = ID) -> tuple[dict[str, torch.Tensor], Path]:
    """One latent of an autoencoder of a part, in the cache as the hub's client lays it out; and its file."""
    where, hook, out, width, _ = PARTS[part]
    folder = saes.cached(hub, REPO, f"{where}/{sae_id}")
    block = "model.layers.1."
    made = saes.gemma_scope(
        folder, width=width, features=FEATURES, index=INDEX, hook=block + hook, hook_out=out and block + out
    )
    saes.linked(hub, REPO)
    path = folder / "params.safetensors"
    assert path.is_symlink()
    with safe_open(path, "pt") as file:
        assert set(file.keys()) - {"affine_skip_connection"} == {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
        assert file.get_slice("w_enc").get_shape() == [width, FEATURES]
        assert torch.equal(file.get_slice("w_enc")[:, INDEX], made["w_enc"])
    return made, path


@pytest.mark.parametrize(
    ("part", "objective"),
    [(p, o) for p in PARTS for o in ("encoder", "decoder") if (p, o) != ("transcoders", "decoder")],
)
def test_one_step_at_the_real_width(
    hub: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple, vlm: nd.VLM, part: str, objective: str
) -> None:
    """From a release's name to a step of the climb, against autograd through Hugging Face's whole forward pass."""
    hf, processor = parts
    *_, width, kind = PARTS[part]
    made, _ = in_cache(hub, part)
    feature = nd.feature(f"gemma-scope-2-4b-it-{part}-all", ID, INDEX, objective=objective, guard=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the same model: nothing to warn of
        site = feature.site(vlm)
    assert (site, feature.width, vlm.width_at(site)) == (nd.Site(2, kind), width, width)
    assert feature.model == "google/gemma-3-4b-it"
    assert feature.parts[0][1].architecture == ("jumprelu_transcoder" if part == "transcoders" else "jumprelu")

    monkeypatch.setitem(reference.PLACES, "pre_feedforward_layernorm.output", (".pre_feedforward_layernorm", "output"))
    canvas, generator = nd.Pixels(24), torch.Generator().manual_seed(0)
    start = torch.randn(1, 3, 24, 24, generator=generator).mul(0.3).requires_grad_(True)
    x = torch.nn.functional.interpolate(0.5 + 0.5 * torch.tanh(start), (56, 56), mode="bilinear", antialias=True)
    h = reference.patches(hf, processor, 2 * x - 1, 2, kind)
    if objective == "encoder":
        by_hand = (h @ made["w_enc"] + made["b_enc"]).mean()
    else:
        by_hand = torch.cosine_similarity(h - made["b_dec"], made["w_dec"], dim=-1).mean()
    (gradient,) = torch.autograd.grad(by_hand, start)
    rate = 0.5 / float(gradient.abs().max())

    climb = optimise.Climb(steps=1, batch=1, rate=rate, clip=1e9)
    most = feature.guard * reference_norm(vlm, site) if feature.guard and objective == "encoder" else None
    goal = [feature_term(site, feature, most, 0)]
    (after,), history, _ = ascend(vlm, canvas, (), goal, [site], climb, [generator], parts=[start.detach()])
    torch.testing.assert_close(history[0, 0], by_hand.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after - start.detach(), rate * gradient, atol=1e-4, rtol=1e-3)
    assert hf.training is False
    assert all(p.grad is None for p in hf.parameters())


def test_a_picture_of_a_feature_at_the_real_width(hub: Path, vlm: nd.VLM) -> None:
    in_cache(hub, "res")
    few = nd.Settings(steps=2, batch=1, rate=0.5, clip=0.01, canvas=nd.Pixels(24), augment=())
    made = nd.synthesize(vlm, nd.feature("gemma-scope-2-4b-it-res-all", ID, INDEX), settings=few, progress=False)
    assert made.history[1] > made.history[0]
    assert made.site == nd.Site(2)
    assert made.readings["norm"] > 0


@pytest.mark.parametrize("config", [True, False])
def test_a_cache_of_links_needs_no_network(hub: Path, config: bool) -> None:
    """Nothing is asked of the network, for a feature as for the whole, although HF_HUB_OFFLINE is not set."""
    release = "gemma-scope-2-4b-it-transcoders-all"
    made, path = in_cache(hub, "transcoders", f"{ID}_affine")
    if not config:  # the hub's client notes that the repository has none
        path.with_name("config.json").unlink()
        snapshot = path.parents[2]
        note = snapshot.parents[1] / ".no_exist" / snapshot.name / path.relative_to(snapshot).with_name("config.json")
        note.parent.mkdir(parents=True)
        note.touch()
    feature = nd.feature(release, f"{ID}_affine", INDEX)
    (_, latent) = feature.parts[0]
    assert torch.equal(latent.encoder, made["w_enc"])
    assert (latent.bias, latent.threshold) == (float(made["b_enc"]), float(made["threshold"]))
    assert latent.architecture == "jumprelu_skip_transcoder"
    assert feature.where == "model.layers.1.pre_feedforward_layernorm.output"
    assert feature.link == f"https://neuronpedia.org/gemma-3-4b-it/1-gemmascope-2-transcoder-16k/{INDEX}"
    whole = sae_releases.load_sae(release, f"{ID}_affine")  # sae-lens's own loader asks the network for the shapes
    hidden = torch.randn(3, 2560)
    with torch.no_grad():
        torch.testing.assert_close(
            feature.readings(hidden)["act"], whole.encode(hidden)[:, INDEX], atol=1e-3, rtol=1e-4
        )


def test_a_million_latents_equal_the_whole(tmp_path: Path) -> None:
    """Every number of the file matters: sae-lens's own encode of a million latents, at the asked-for columns."""
    where = tmp_path / "resid_post" / "layer_1_width_1m_l0_medium"
    made = saes.gemma_scope_whole(where, width=16, features=1_000_000, hook="model.layers.1.output")
    hidden = 2 * torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    whole = sae_files.load_whole(where)
    with torch.no_grad():
        acts = whole.encode(hidden)
    assert acts.shape == (5, 1_000_000)
    indices = [0, 1, 123_456, 999_999]
    for index, feature in zip(indices, nd.feature(where, indices), strict=True):
        found = feature.readings(hidden)
        torch.testing.assert_close(found["act"], acts[:, index], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found["pre"], hidden @ made["w_enc"][:, index] + made["b_enc"][index])
        row = made["w_dec"][index]
        torch.testing.assert_close(
            found["cosine"], torch.cosine_similarity(hidden - made["b_dec"], row, dim=-1), atol=1e-5, rtol=1e-5
        )
    assert (acts[:, indices] > 0).any()


# -- as large as the real ones: `make check-sae-format` -----------------------------------------------------------

PEAK = """
import json, resource, sys, time
import nnsight_dream as nd, torch
nd.feature_from_tensors(0, 1, W_enc=torch.eye(3))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, began = peak(), time.perf_counter()
(_, latent), = nd.feature(sys.argv[1], int(sys.argv[2])).parts
print(json.dumps([peak() - before, time.perf_counter() - began, latent.encoder.tolist(), latent.decoder.tolist()]))
"""


@pytest.mark.full_size
def test_a_million_latents_at_the_real_width(tmp_path: Path) -> None:
    """20 GB by their headers, mostly holes on the disk; no more than a few MB come into memory."""
    where = tmp_path / "resid_post" / "layer_17_width_1m_l0_medium"
    made = saes.gemma_scope(where, width=2560, features=2**20, index=2**20 - 5, hook="model.layers.17.output")
    assert (where / "params.safetensors").stat().st_size > 20e9
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(where), str(2**20 - 5)], capture_output=True, text=True, check=True
    )
    grown, took, column, row = json.loads(done.stdout)
    print(f"peak grew by {grown / 1e6:.1f} MB of 21 GB in {took:.1f} s")
    assert grown < 20e6
    assert took < 10
    assert torch.equal(torch.tensor(column), made["w_enc"])
    assert torch.equal(torch.tensor(row), made["w_dec"])


@pytest.mark.full_size
@pytest.mark.parametrize(
    ("name", "hook", "out"),
    [
        ("resid_post_all/layer_1_width_16k_l0_small", "output", None),
        (
            "transcoder_all/layer_1_width_16k_l0_small_affine",
            "pre_feedforward_layernorm.output",
            "post_feedforward_layernorm.output",
        ),
    ],
)
def test_latents_at_the_real_size(hub: Path, name: str, hook: str, out: str | None) -> None:
    """One in 16 latents of a file without holes, against sae-lens's encode of the whole."""
    folder, block = saes.cached(hub, REPO, name), "model.layers.1."
    saes.gemma_scope_whole(
        folder, width=2560, features=FEATURES, hook=block + hook, hook_out=out and block + out, seed=3
    )
    saes.linked(hub, REPO)
    sae_id = name.split("/")[1]
    release = f"gemma-scope-2-4b-it-{'res' if out is None else 'transcoders'}-all"
    hidden = torch.randn(4, 2560, generator=torch.Generator().manual_seed(1)) / 16
    with torch.no_grad():
        acts = sae_releases.load_sae(release, sae_id).encode(hidden)
    several = list(range(0, FEATURES, 16))
    found = torch.stack([f.readings(hidden)["act"] for f in nd.feature(release, sae_id, several)], -1)
    torch.testing.assert_close(found, acts[:, several], atol=1e-4, rtol=1e-4)
    assert 0.1 < (found > 0).float().mean() < 0.9
