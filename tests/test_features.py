"""Features: readings against sae-lens's own encode, sites against plain hooks, the climb against a loop written out."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import saes
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.io.pictures import as_tensors
from nnsight_dream.sae import reference as reference_module
from nnsight_dream.sae.hooks import resolve

FEW = nd.Settings(steps=3, batch=2, rate=0.5, clip=0.1, canvas=nd.Pixels(24), augment=(nd.Noise(0.1),))


def noise(count: int, side: int = 28, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(autouse=True, scope="module")
def references() -> Any:
    """Reference pictures that need no bundled data."""
    with pytest.MonkeyPatch.context() as patch:
        found = tuple(noise(20, seed=9))
        patch.setattr(reference_module, "reference_pictures", lambda: found)
        yield found


@pytest.fixture(scope="module")
def vlm(tiny_parts: tuple) -> nd.VLM:
    model, processor = tiny_parts
    return nd.load(model, processor=processor)


def random_feature(index: int = 3, seed: int = 0, **more: Any) -> nd.Feature:
    generator = torch.Generator().manual_seed(seed)
    rows = {"W_enc": (32, 9), "W_dec": (9, 32), "b_enc": (9,), "b_dec": (32,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in rows.items()}
    return nd.feature_from_tensors(index, **{"site": 3, **tensors, **more})


# -- readings ----------------------------------------------------------------------------------------------------

VARIANTS = [
    *[(kind, {"apply_b_dec_to_input": applied}) for kind in saes.ARCHITECTURES for applied in (False, True)],
    *[(kind, {}) for kind in saes.TRANSCODERS],
    *[
        (kind, {"normalize_activations": how, "apply_b_dec_to_input": True})
        for kind in ("standard", "gated", "topk")
        for how in ("layer_norm", "constant_norm_rescale")
    ],
    ("jumprelu_transcoder", {"normalize_activations": "layer_norm"}),
    ("topk", {"rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": True}),
    ("abstopk", {"rescale_acts_by_decoder_norm": True}),
]


@pytest.mark.parametrize(("kind", "cfg"), VARIANTS)
def test_readings_equal_those_of_sae_lens(kind: str, cfg: dict[str, Any]) -> None:
    sae = saes.build(kind, **cfg)
    hidden = 3 * torch.randn(5, 11, 32, generator=torch.Generator().manual_seed(1))
    caught: list[torch.Tensor] = []
    handle = sae.hook_sae_acts_pre.register_forward_hook(lambda module, args, output: caught.append(output))
    with torch.no_grad():
        acts = sae.encode(hidden)
        sae_in = sae.process_sae_in(hidden)
    handle.remove()
    scale = sae.W_dec.norm(dim=-1) if cfg.get("rescale_acts_by_decoder_norm") else torch.ones(40)
    among = 0
    for index, feature in enumerate(nd.feature(sae, list(range(40)))):
        found = feature.readings(hidden)
        torch.testing.assert_close(found["pre"], (caught[0] * scale.detach())[..., index], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(feature.value(hidden), found["pre"])
        there = acts[..., index] != 0 if "topk" in kind else torch.ones(5, 11, dtype=torch.bool)
        among += int((there & (acts[..., index] != 0)).sum())
        torch.testing.assert_close(found["act"][there], acts[..., index][there], atol=1e-4, rtol=1e-4)
        assert feature.provenance["architecture"] == kind
        if "transcoder" in kind:
            assert set(found) == {"pre", "act"}
            continue
        centred = sae_in if sae.cfg.apply_b_dec_to_input else sae_in - sae.b_dec
        wanted = torch.cosine_similarity(centred, sae.W_dec[index].detach(), dim=-1)
        torch.testing.assert_close(found["cosine"], wanted.detach(), atol=1e-4, rtol=1e-4)
    assert among > 40  # something fired


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_a_batch_top_k_reads_as_what_it_is_saved_as(kind: str, tmp_path: Path) -> None:
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class

    cls, config = get_sae_training_class(kind)
    more = {"matryoshka_widths": [10, 40]} if kind.startswith("matryoshka") else {}
    sae = cls(config(d_in=32, d_sae=40, k=5, **more))
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 2, 40)[:, None])
        sae.topk_threshold.fill_(0.37)
    sae.save_inference_model(str(tmp_path))
    saved = SAE.load_from_disk(str(tmp_path))
    assert saved.cfg.architecture() == "jumprelu"
    hidden = 3 * torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    for index in (0, 7, 39):
        now = nd.feature(sae, index, site=3)
        for other in (nd.feature(saved, index, site=3), nd.feature(tmp_path, index, site=3)):
            torch.testing.assert_close(other.readings(hidden)["act"], saved.encode(hidden)[:, index].detach())
            torch.testing.assert_close(now.readings(hidden)["act"], other.readings(hidden)["act"], atol=1e-5, rtol=1e-4)


def test_every_architecture_of_sae_lens_is_read_or_refused() -> None:
    """An architecture that a new sae-lens brings is seen here."""
    from sae_lens import registry

    read = {*saes.ARCHITECTURES, *saes.TRANSCODERS}
    assert set(registry.SAE_CLASS_REGISTRY) - read <= {"temporal", "matching_pursuit"}  # refused: see below
    assert set(registry.SAE_TRAINING_CLASS_REGISTRY) - set(TRAINED) <= {"matching_pursuit"}


TRAINED = ("standard", "gated", "topk", "abstopk", "jumprelu", "batchtopk", "matryoshka_batchtopk")


@pytest.mark.parametrize("kind", TRAINED)
def test_an_autoencoder_in_training_reads_as_what_it_is_saved_as(kind: str, tmp_path: Path) -> None:
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class

    cls, config = get_sae_training_class(kind)
    more = {"k": 5} if "topk" in kind else {}
    if kind.startswith("matryoshka"):
        more["matryoshka_widths"] = [10, 40]
    sae = cls(config(d_in=32, d_sae=40, **more))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(sae.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 1 else 1.0))
        if "batchtopk" in kind:
            sae.topk_threshold.fill_(0.37)
    sae.save_inference_model(str(tmp_path))
    saved = SAE.load_from_disk(str(tmp_path))
    hidden = 3 * torch.randn(50, 32, generator=generator)
    with torch.no_grad():
        acts = saved.encode(hidden)
    some = 0
    for index in range(0, 40, 3):
        there = acts[:, index] != 0 if saved.cfg.architecture() in ("topk", "abstopk") else slice(None)
        some += int((acts[:, index] != 0).sum())
        for feature in (nd.feature(sae, index, site=3), nd.feature(tmp_path, index, site=3)):
            found = feature.readings(hidden)["act"]
            torch.testing.assert_close(found[there], acts[:, index][there], atol=1e-4, rtol=1e-4)
    assert some > 20


@pytest.mark.parametrize("kind", [*saes.ARCHITECTURES, "transcoder", "jumprelu_transcoder"])
def test_a_folded_autoencoder_reads_as_it_encodes(kind: str) -> None:
    """`fold_W_dec_norm` puts latents on one scale, in place."""
    sae = saes.build(kind, **({"rescale_acts_by_decoder_norm": True} if "topk" in kind else {}))
    sae.fold_W_dec_norm()
    hidden = 3 * torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        acts = sae.encode(hidden)
    for index, feature in enumerate(nd.feature(sae, list(range(40)))):
        there = acts[:, index] != 0 if "topk" in kind else slice(None)
        found = feature.readings(hidden)["act"]
        torch.testing.assert_close(found[there], acts[:, index][there], atol=1e-4, rtol=1e-4)


def test_an_autoencoder_of_heads_reads_them_side_by_side() -> None:
    """sae-lens flattens the heads of hook_z itself; a model has them flat at o_proj's input."""
    sae = saes.build("standard", hook="blocks.2.attn.hook_z", hf_hook=None, reshape_activations="hook_z")
    heads = torch.randn(5, 11, 4, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        acts = sae.encode(heads)
    for index, feature in enumerate(nd.feature(sae, [0, 7, 39])):
        torch.testing.assert_close(feature.readings(heads.flatten(-2))["act"], acts[..., [0, 7, 39][index]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_autoencoder_of_another_type_reads_to_its_precision(dtype: torch.dtype) -> None:
    sae = saes.build("jumprelu").to(dtype)
    sae.cfg.dtype, sae.dtype = str(dtype), dtype
    hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        acts = sae.encode(hidden.to(dtype)).float()
    feature = nd.feature(sae, 7)
    found, precise = feature.readings(hidden), 1e-5 if dtype == torch.float64 else 0.1
    sure = (found["pre"] - feature.parts[0][1].threshold).abs() > precise  # nearer ones fall to either side
    assert sure.sum() > 40
    torch.testing.assert_close(found["act"][sure], acts[sure, 7], atol=precise, rtol=precise)


def test_an_untold_factor_is_left_out_as_sae_lens_leaves_it_out() -> None:
    sae = saes.build("standard", normalize_activations="expected_average_only_in")
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match="expected_average_only_in"):
        found = nd.feature(sae, 3).readings(hidden)["act"]
    with torch.no_grad():
        torch.testing.assert_close(found, sae.encode(hidden)[:, 3], atol=1e-5, rtol=1e-5)


def test_tensors_of_anyone() -> None:
    generator = torch.Generator().manual_seed(0)
    w, v = torch.randn(32, 9, generator=generator), torch.randn(9, 32, generator=generator)
    b, c, t = torch.randn(9, generator=generator), torch.randn(32, generator=generator), torch.rand(9)
    hidden = torch.randn(4, 32, generator=generator)
    for applied in (True, False):
        found = nd.feature_from_tensors(
            2, 3, W_enc=w, W_dec=v, b_enc=b, b_dec=c, threshold=t, apply_b_dec_to_input=applied
        ).readings(hidden)
        pre = ((hidden - c * applied) @ w + b)[:, 2]
        torch.testing.assert_close(found["pre"], pre)
        torch.testing.assert_close(found["act"], torch.where(pre > t[2], pre, torch.zeros(())))
        torch.testing.assert_close(found["cosine"], torch.cosine_similarity(hidden - c, v[2], dim=-1))
    bare = nd.feature_from_tensors(2, 3, W_enc=w, threshold=0.5)
    assert set(bare.readings(hidden)) == {"pre", "act"}
    assert bare.parts[0][1].threshold == 0.5


def test_half_precision_is_read_as_float32() -> None:
    hidden = torch.randn(4, 32).bfloat16()
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(32, 9, generator=generator).bfloat16()
    pre = nd.feature_from_tensors(2, 3, W_enc=w).readings(hidden)["pre"]
    assert pre.dtype == torch.float32
    torch.testing.assert_close(pre, hidden.float() @ w[:, 2].float())


def test_nothing_in_hand_is_changed_and_nothing_is_shared() -> None:
    sae = saes.build("jumprelu")
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    feature = nd.feature(sae, 3)
    assert not feature.parts[0][1].encoder.requires_grad
    with torch.no_grad():
        feature.parts[0][1].encoder.zero_()
        feature.parts[0][1].b_dec.zero_()
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in sae.parameters())


def test_sae_lens_is_not_imported_for_what_is_in_hand() -> None:
    code = """
import sys, types, torch
import nnsight_dream as nd
cfg = types.SimpleNamespace(architecture=lambda: "standard", apply_b_dec_to_input=False, metadata=None, hook_name="blocks.2.hook_resid_post")
class Mine:
    W_enc, W_dec, b_enc, b_dec, cfg = torch.eye(4), torch.eye(4), torch.zeros(4), torch.zeros(4), None
sae = Mine(); sae.cfg = cfg
print(nd.feature(sae, 2).label, "sae_lens" in sys.modules)
nd.feature_from_tensors(1, 3, W_enc=torch.eye(4))
assert "sae_lens" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["feature", "2", "False"]


# -- sites -------------------------------------------------------------------------------------------------------

GEMMA_SCOPE = [
    ("model.layers.2.output", "resid_post"),
    ("model.layers.2", "resid_post"),  # Qwen Scope writes no side
    ("model.layers.2.post_feedforward_layernorm.output", "mlp_out"),
    ("model.layers.2.self_attn.o_proj.input", "self_attn.o_proj.input"),
    ("model.layers.2.pre_feedforward_layernorm.output", "transcoder"),
    ("model.language_model.layers.2.output", "resid_post"),
    ("language_model.model.layers.2.output", "resid_post"),
    ("blocks.2.hook_resid_post", "resid_post"),
    ("blocks.2.hook_mlp_out", "mlp_out"),
    ("blocks.2.attn.hook_z", "self_attn.o_proj.input"),
    ("blocks.2.mlp.hook_in", "transcoder"),
    ("blocks.2.hook_resid_mid", "resid_mid"),
]


@pytest.mark.parametrize(("name", "kind"), GEMMA_SCOPE)
def test_a_site_is_what_a_plain_hook_finds_there(
    vlm: nd.VLM, tiny_parts: tuple, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    monkeypatch.setitem(reference.PLACES, "transcoder", (".pre_feedforward_layernorm", "output"))
    monkeypatch.setitem(reference.PLACES, "resid_mid", (".pre_feedforward_layernorm", "input"))
    hf, processor = tiny_parts
    x = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = reference.patches(hf, processor, 2 * x - 1, 3, kind)
    feature = nd.feature(saes.build("standard", hf_hook=name), 0)
    found = nd.read_pictures(vlm, x, [quietly(feature, vlm)])
    torch.testing.assert_close(next(iter(found.values())), theirs, atol=2e-5, rtol=1e-4)


def quietly(feature: nd.Feature, vlm: nd.VLM) -> nd.Site:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return feature.site(vlm)


def test_the_hugging_face_name_goes_before_the_other(vlm: nd.VLM) -> None:
    sae = saes.build("jumprelu_transcoder", hook="blocks.1.hook_mlp_in", hf_hook="model.layers.1.mlp.input")
    assert quietly(nd.feature(sae, 0), vlm) == nd.Site(2, "mlp.input")
    sae = saes.build("standard", hook="blocks.1.hook_resid_pre", hf_hook=None)
    assert quietly(nd.feature(sae, 0), vlm) == nd.Site(2, "resid_pre")
    assert quietly(nd.feature(sae, 0, site=4), vlm) == nd.Site(4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blocks.2.hook_mlp_in", r"means two things.*site='blocks.2.mlp.hook_in'"),
        ("blocks.9.hook_resid_post", r"layer 10 is not in this model"),
        ("model.vision_tower.encoder.layers.3.output", "not the decoder layers"),
        ("model.layers.2.self_attn.k_proj.output", "reads 32 numbers, but .* is 16 wide"),
        ("model.layers.2.octopus.output", "names nothing below"),
        ("transformer.h.3", "is not understood"),
    ],
)
def test_sites_that_are_not_there(vlm: nd.VLM, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nd.feature(saes.build("standard", hf_hook=name), 0).site(vlm)


def test_metadata_without_a_site_ask_for_one() -> None:
    sae = saes.build("standard", hook=None, hf_hook=None)
    with pytest.raises(ValueError, match=r"name no hook_name; say where it reads: .*site="):
        nd.feature(sae, 0)
    assert nd.feature(sae, 0, site="blocks.1.hook_resid_post").where == "blocks.1.hook_resid_post"


# -- whose it is -------------------------------------------------------------------------------------------------


def named(vlm: nd.VLM, name: str) -> nd.VLM:
    return nd.VLM(
        vlm.model,
        vlm.hf,
        vlm.tokenizer,
        vlm.processor,
        vlm.family,
        vlm.pixels,
        name,
        memo=dataclasses.replace(vlm.memo),
    )


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        ("google/gemma-3-4b-it", "google/gemma-3-4b-it", None),
        ("models/gemma-3-4b-it/", "google/gemma-3-4b-it", None),
        ("google/gemma-3-4b-it", "google/gemma-3-4b-pt", "the same model before or after tuning"),
        ("google/gemma-3-4b-it", "my-own-decoder", "made from that one"),
        ("google/gemma-3-4b-it", None, None),
    ],
)
def test_the_model_is_compared(vlm: nd.VLM, mine: str, theirs: str | None, words: str | None) -> None:
    feature = nd.feature(saes.build("standard", model=theirs), 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert feature.site(named(vlm, mine)) == nd.Site(3)
    assert len(caught) == (words is not None)
    if words:
        assert words in str(caught[0].message)


@pytest.mark.parametrize("theirs", ["gpt2", "google/gemma-2-2b", "meta-llama/Llama-3.1-8B", "EleutherAI/pythia-70m"])
def test_a_model_of_another_family_is_refused_and_the_advice_helps(vlm: nd.VLM, theirs: str) -> None:
    feature = nd.feature(saes.build("standard", model=theirs), 0)
    with pytest.raises(ValueError, match=r"of another family .*feature.but\(model=None\)"):
        feature.site(vlm)
    assert feature.but(model=None).site(vlm) == nd.Site(3)


def test_kept_weights_tell_better_than_names(vlm: nd.VLM, recwarn: pytest.WarningsRecorder) -> None:
    sae = saes.build("standard", model="some/where/else")
    sae.cfg.metadata.weights_tag = vlm.weights_tag(3)
    assert nd.feature(sae, 0).site(vlm) == nd.Site(3)
    assert not recwarn.list


# -- what is refused ---------------------------------------------------------------------------------------------


def test_other_architectures_and_things_are_refused() -> None:
    sae = saes.build("standard")
    sae.cfg.__class__ = type("Other", (type(sae.cfg),), {"architecture": classmethod(lambda cls: "temporal")})
    with pytest.raises(ValueError, match=r"architecture 'temporal' has no pre-activation.*standard, jumprelu"):
        nd.feature(sae, 0)
    from sae_lens import MatchingPursuitSAE, MatchingPursuitSAEConfig

    pursuit = MatchingPursuitSAE(MatchingPursuitSAEConfig(d_in=32, d_sae=40, apply_b_dec_to_input=False))
    with pytest.raises(ValueError, match="architecture 'matching_pursuit' has no"):
        nd.feature(pursuit, 0, site=3)
    for thing in (torch.nn.Linear(3, 4), torch.ones(3, 4), 7):
        with pytest.raises(TypeError, match=r"is no sae-lens SAE .*nd.feature_from_tensors"):
            nd.feature(thing, 0)


def test_indices() -> None:
    sae = saes.build("standard")
    assert [f.label for f in nd.feature(sae, [3, 1])] == ["feature 3", "feature 1"]
    assert [f.label for f in nd.feature(sae, range(2))] == ["feature 0", "feature 1"]
    assert nd.feature(sae, np.int64(4)).label == "feature 4"
    assert nd.feature(sae, []) == []
    for wrong in (-1, 40):
        with pytest.raises(IndexError, match=f"feature {wrong}: this autoencoder has features 0 to 39"):
            nd.feature(sae, wrong)
    for wrong in (True, 1.0, None):
        with pytest.raises(TypeError, match="index is a whole number"):
            nd.feature(sae, wrong)
    with pytest.raises(TypeError, match=r"'3' is a text; a feature is a number: nd\.feature\(sae, 3\)"):
        nd.feature(sae, "3")
    with pytest.raises(TypeError, match=r"in hand needs no SAE id: nd.feature\(sae, 3\)"):
        nd.feature(sae, "some id", 3)
    with pytest.raises(TypeError, match="did you mean objective="):
        nd.feature(sae, 3, objektive="encoder")


def test_shapes_of_tensors() -> None:
    eye = torch.eye(4)[:, :3]
    for wrong in (
        {"W_dec": eye},
        {"b_enc": torch.ones(4)},
        {"b_dec": torch.ones(3)},
        {"threshold": torch.ones(4)},
        {"W_enc": torch.ones(4)},
    ):
        with pytest.raises(ValueError, match="transpose what is stored the other way"):
            nd.feature_from_tensors(0, 3, **{"W_enc": eye, **wrong})
    with pytest.raises(IndexError, match="0 to 2"):
        nd.feature_from_tensors(3, 3, W_enc=eye)


def test_choices_of_a_feature() -> None:
    with pytest.raises(ValueError, match="objective='cosine': allowed are 'encoder' and 'decoder'"):
        random_feature(objective="cosine")
    for guard in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a positive number, or None"):
            random_feature(guard=guard)
    across = saes.build("jumprelu_transcoder")
    with pytest.raises(ValueError, match="use objective='encoder'"):
        nd.feature(across, 0, objective="decoder")
    with pytest.raises(ValueError, match="use objective='encoder'"):
        nd.feature(across, 0).but(objective="decoder")
    with pytest.raises(TypeError, match="gard"):
        random_feature().but(gard=None)


# -- arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["encoder", "decoder"])
def test_sums_and_differences(objective: str) -> None:
    a, b = (random_feature(i, objective=objective) for i in (1, 2))
    hidden = torch.randn(5, 32)
    x, y = a.value(hidden), b.value(hidden)
    for made, wanted, label in (
        (a + b, x + y, "feature 1 + feature 2"),
        (a - b, x - y, "feature 1 - feature 2"),
        (2 * a - 0.5 * b, 2 * x - 0.5 * y, "2 feature 1 - 0.5 feature 2"),
        (-(a - b), y - x, "-feature 1 + feature 2"),
        (sum([a, b]), x + y, "feature 1 + feature 2"),
        (a - (a + b) * 0.5, 0.5 * (x - y), "feature 1 - 0.5 feature 1 - 0.5 feature 2"),
    ):
        torch.testing.assert_close(made.value(hidden), wanted, atol=1e-5, rtol=1e-5)
        assert made.label == label
        assert json.loads(json.dumps(made.story()))["method"] == "combination"
    assert (a - b).readings(hidden)["act"].allclose(a.readings(hidden)["act"] - b.readings(hidden)["act"])


def test_only_features_alike_add_up() -> None:
    a = random_feature()
    for other, word in (
        (random_feature(site=4), "where"),
        (random_feature(objective="decoder"), "objective"),
        (random_feature(guard=None), "guard"),
    ):
        with pytest.raises(ValueError, match=f"cannot add .*: {word} .*one site, objective and guard"):
            a + other
        with pytest.raises(ValueError, match="cannot subtract"):
            a - other
    for wrong in (lambda: a + 1, lambda: a * a, lambda: a - torch.ones(3), lambda: a * torch.ones(1)):
        with pytest.raises(TypeError):
            wrong()


def test_links() -> None:
    sae = saes.build("jumprelu")
    assert nd.feature(sae, 3).link is None
    sae.cfg.metadata.neuronpedia_id = "gemma-3-4b-it/17-gemmascope-2-res-16k"
    one, other = nd.feature(sae, [3, 4])
    assert one.link == "https://neuronpedia.org/gemma-3-4b-it/17-gemmascope-2-res-16k/3"
    assert (one - other).link is None
    assert one.story()["link"] == one.link


# -- the guard ---------------------------------------------------------------------------------------------------


def test_the_guard_cuts_norms() -> None:
    feature = random_feature()
    hidden = torch.randn(6, 32) * torch.tensor([0.1, 0.5, 1, 2, 10, 1000])[:, None]
    hidden[0] = 0
    for most in (3.0, 20.0):
        cut = torch.stack([h if h.norm() <= most else h * most / h.norm() for h in hidden])
        torch.testing.assert_close(feature.value(hidden, most), feature.value(cut), atol=1e-4, rtol=1e-4)
    h = (100 * torch.randn(32)).requires_grad_(True)
    (g,) = torch.autograd.grad(feature.value(h, 3.0), h)
    assert abs(torch.cosine_similarity(g, h.detach(), dim=0)) < 1e-4  # nothing is won by growing
    (g,) = torch.autograd.grad(
        feature.but(objective="decoder").value(h.detach().requires_grad_(True), 3.0).sum(), h, allow_unused=True
    )
    assert g is None


def test_the_reference_norm_is_that_of_the_reference_pictures(
    vlm: nd.VLM, tiny_parts: tuple, references: tuple
) -> None:
    hf, processor = tiny_parts
    with torch.no_grad():
        pixels = processor.image_processor(images=list(references), return_tensors="pt")["pixel_values"]
        norms = reference.patches(hf, processor, pixels, 3).norm(dim=-1)
    assert reference_module.reference_norm(vlm, nd.Site(3)) == pytest.approx(float(norms.mean()), rel=2e-3)
    assert len(vlm.memo.norms.at(vlm, nd.Site(3))) == 1


# -- the climb ---------------------------------------------------------------------------------------------------


def by_hand(vlm: nd.VLM, feature: nd.Feature, settings: nd.Settings, seed: int, most: float | None) -> Any:
    """The climb in plain torch: a hook, a whole forward pass, SGD; the picture and the scores."""
    generator = torch.Generator().manual_seed(seed)
    parts = [p.requires_grad_(True) for p in settings.canvas.start(1, [generator], torch.device("cpu"))]
    optimiser = torch.optim.SGD(parts, lr=settings.rate, momentum=0.9)
    (_, part), places, ids = feature.parts[0], vlm.image_prompt.positions, vlm.image_prompt.ids
    types, scores = (ids == vlm.config.image_token_id).long(), []
    for _ in range(settings.steps):
        x = settings.canvas.render(parts).repeat_interleave(settings.batch, 0)
        for change in settings.augment:
            x = change(x, [generator], settings.batch)
        small = torch.nn.functional.interpolate(x, vlm.image_size, mode="bilinear", antialias=True)
        with reference.hooked(vlm.hf, 3, "resid_post") as caught:
            vlm.hf(
                input_ids=ids.expand(len(x), -1),
                pixel_values=(small - 0.5) / 0.5,
                token_type_ids=types.expand(len(x), -1),
            )
        h = caught[0][:, places]
        if feature.objective == "decoder":
            score = torch.cosine_similarity(h - part.b_dec, part.decoder, dim=-1).mean()
        else:
            if most is not None:
                h = h * (most / h.norm(dim=-1, keepdim=True)).clamp(max=1)
            score = ((h - part.b_dec) @ part.encoder + part.bias).mean()
        optimiser.zero_grad()
        (-score).backward()
        torch.nn.utils.clip_grad_norm_(parts, settings.clip)
        optimiser.step()
        scores.append(score.item())
    return settings.canvas.render([p.detach() for p in parts])[0], scores


@pytest.mark.parametrize(
    ("objective", "guard"), [("encoder", None), ("encoder", 0.9), ("encoder", 1.5), ("decoder", 1.5)]
)
def test_the_climb_equals_a_loop_by_hand(vlm: nd.VLM, objective: str, guard: float | None) -> None:
    feature = random_feature(objective=objective, guard=guard)
    most = guard and guard * reference_module.reference_norm(vlm, nd.Site(3))
    picture, scores = by_hand(vlm, feature, FEW, 5, most)
    made = nd.synthesize(vlm, feature, settings=FEW, seed=5, progress=False)
    np.testing.assert_allclose(made.history, scores, atol=1e-4)
    expected = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy().astype(int)
    assert np.abs(np.asarray(made.image).astype(int) - expected).max() <= 1


def test_together_equals_alone(vlm: nd.VLM) -> None:
    sea = nd.from_tensor(vlm, torch.randn(32, generator=torch.Generator().manual_seed(1)), 2, label="sea")
    a, b = random_feature(1), random_feature(2)
    elsewhere = random_feature(4, site="blocks.1.mlp.hook_in", objective="decoder")
    wanted = [a, sea, a - 0.5 * b, elsewhere]
    terms = [nd.TotalVariation(0.1), nd.Away(sea, 0.3)]
    together = nd.synthesize(vlm, wanted, settings=FEW, seed=[0, 7], terms=terms, progress=False)
    assert isinstance(together, nd.Prototypes)
    for i, (aim, seed) in enumerate((d, s) for d in wanted for s in (0, 7)):
        alone = nd.synthesize(vlm, aim, settings=FEW, seed=seed, terms=terms, progress=False)
        np.testing.assert_allclose(together[i].history, alone.history, atol=1e-4, rtol=1e-5)
        assert (together[i].label, together[i].seed) == (aim.label, seed)
        assert together[i].scores.keys() == alone.scores.keys()
    split = nd.synthesize(vlm, wanted, settings=FEW, seed=[0, 7], terms=terms, at_once=2, progress=False)
    np.testing.assert_allclose([p.history for p in split], [p.history for p in together], atol=1e-4, rtol=1e-5)
    assert together[2].readings is together[3].readings is None
    assert set(together[2].scores) == {"attention", "mean", "max"}


def test_what_is_reported_is_read_off_the_finished_picture(vlm: nd.VLM, references: tuple) -> None:
    sae = saes.build("jumprelu")
    feature = nd.feature(sae, 5).but(model=None)
    made = nd.synthesize(vlm, feature, settings=FEW, progress=False)
    x = torch.from_numpy(np.asarray(made.image).copy()).permute(2, 0, 1)[None].float() / 255
    h = nd.read_pictures(vlm, x, [3])[nd.Site(3)][0]
    with torch.no_grad():
        acts, pre = sae.encode(h)[:, 5], h @ sae.W_enc[:, 5] + sae.b_enc[5]
    cosine = torch.cosine_similarity(h - sae.b_dec, sae.W_dec[5], dim=-1)
    assert made.scores == pytest.approx({"encoder": pre.mean().item(), "decoder": cosine.mean().item()}, abs=1e-4)
    norm = torch.cat([nd.read_pictures(vlm, t, [3])[nd.Site(3)] for t in as_tensors(list(references), "")])
    assert made.readings == pytest.approx(
        {
            "pre_max": pre.max().item(),
            "pre_mean": pre.mean().item(),
            "threshold": sae.threshold[5].item(),
            "act_max": acts.max().item(),
            "firing": (acts > 0).float().mean().item(),
            "cosine": cosine.mean().item(),
            "cosine_max": cosine.max().item(),
            "norm": (h.norm(dim=-1).mean() / norm.norm(dim=-1).mean()).item(),
        },
        abs=1e-4,
    )
    heat = (pre - pre.min()) / (pre - pre.min()).sum()
    np.testing.assert_allclose(made.heat, heat.reshape(vlm.grid), atol=1e-5)
    assert made.direction["index"] == 5
    assert made.direction["objective"] == "encoder"
    assert made.direction["guard"] == 1.5


def test_readings_of_sums_top_k_and_transcoders(vlm: nd.VLM) -> None:
    a, b = (f.but(model=None) for f in nd.feature(saes.build("topk"), [5, 6]))
    across = nd.feature(saes.build("jumprelu_skip_transcoder", hf_hook="model.layers.2.mlp.input"), 1).but(model=None)
    one, both, other = nd.synthesize(vlm, [a, a - b, across], settings=FEW, progress=False)
    assert (one.readings["threshold"], one.readings["firing"], one.readings["top_k"]) == (None, None, True)
    assert [(p["index"], p["weight"]) for p in both.readings["parts"]] == [(5, 1.0), (6, -1.0)]
    mean = sum(p["weight"] * p["pre_mean"] for p in both.readings["parts"])
    assert both.readings["pre_mean"] == pytest.approx(mean, abs=1e-4)
    assert set(other.scores) == {"encoder"}
    assert "cosine" not in other.readings
    assert other.readings["firing"] is not None


def test_a_feature_at_chosen_tokens(vlm: nd.VLM) -> None:
    feature = random_feature(site=nd.Site(3, tokens=(2, 5)))
    made = nd.synthesize(vlm, feature, settings=FEW, progress=False)
    assert {i for i, w in enumerate(made.heat.flatten()) if w > 0} <= {2, 5}
    assert made.heat.sum() == pytest.approx(1)


def test_readings_are_kept_and_shown(vlm: nd.VLM, tmp_path: Path) -> None:
    from rich.console import Console

    feature = random_feature(1).but(neuronpedia="gemma-3-4b-it/17-gemmascope-2-res-16k")
    made = nd.synthesize(vlm, [feature, feature - random_feature(2)], settings=FEW, progress=False)
    for one in made:
        again = nd.Prototype.load(one.save(tmp_path / one.label))
        assert again.readings == one.readings
        assert again.scores == one.scores
    page = made[0]._repr_html_()
    assert "tokens firing" in page
    assert "https://neuronpedia.org/gemma-3-4b-it/17-gemmascope-2-res-16k/1" in page
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(made[0])
    assert "fires above 0.000" in console.export_text()
    old = json.loads((tmp_path / made[0].label / "prototype.json").read_text(encoding="utf-8"))
    del old["readings"]  # a record from before features
    (tmp_path / made[0].label / "prototype.json").write_text(json.dumps(old), encoding="utf-8")
    assert nd.Prototype.load(tmp_path / made[0].label).readings is None


def test_what_cannot_be_climbed(vlm: nd.VLM) -> None:
    with pytest.raises(ValueError, match="is all zeros: nothing makes it fire"):
        nd.synthesize(vlm, nd.feature_from_tensors(0, 3, W_enc=torch.zeros(32, 2)), settings=FEW)
    with pytest.raises(ValueError, match="is all zeros"):
        nd.synthesize(vlm, random_feature(1) - random_feature(1), settings=FEW)
    with pytest.raises(ValueError, match=r"reads 31 numbers, but layer 3 .* 32 wide"):
        nd.synthesize(vlm, nd.feature_from_tensors(0, 3, W_enc=torch.ones(31, 2)), settings=FEW)
    with pytest.raises(TypeError, match="Direction or Feature is needed, not int"):
        nd.synthesize(vlm, [random_feature(1), 3], settings=FEW)
    with pytest.raises(TypeError, match=r"a - 0.5 \* b"):
        nd.synthesize(vlm, random_feature(1), terms=[nd.Away(random_feature(2))], settings=FEW)
    with pytest.raises(ValueError, match="nothing to do"):
        nd.synthesize(vlm, [], settings=FEW)


def test_resolve_takes_sites_and_numbers(vlm: nd.VLM) -> None:
    assert resolve(vlm, 3) == resolve(vlm, nd.Site(3)) == resolve(vlm, "3") == nd.Site(3)


def test_the_reference_pictures_are_spread_over_all_bundled_ones() -> None:
    from nnsight_dream.demo import bundle

    try:
        every = bundle.pictures()
    except FileNotFoundError:
        pytest.skip("no bundled data")
    code = "from nnsight_dream.sae.reference import reference_pictures as r; print(len(r()), len({p.tobytes() for p in r()}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(every) >= 48
    assert done.stdout.split() == ["48", "48"]
