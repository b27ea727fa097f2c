"""What goes back into others' notebooks: hook functions, edits, control vectors; activations and scores by token."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import pytest
import saes
import torch
from bridges import boot, native

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.synthesis.centres import centre

QUICK = {"settings": nd.Settings.demo(), "steps": 3, "progress": False, "centre": nd.Grey()}
IDS = torch.arange(10, 22)[None]
MASK = torch.ones_like(IDS)


@pytest.fixture(scope="module")
def axis(demo_vlm: nd.VLM) -> nd.Direction:
    return nd.from_tensor(demo_vlm, torch.linspace(-1, 2, demo_vlm.width), layer=2, label="a slope")


@pytest.fixture(scope="module")
def bridge(demo_vlm: nd.VLM) -> Any:
    return native(boot(demo_vlm.hf, demo_vlm.processor))


def by_hand(x: torch.Tensor, vector: torch.Tensor, add: float | None) -> torch.Tensor:
    """In float64, by NumPy: x + add v, or x - (x . v / v . v) v."""
    x64, v64 = x.detach().double().numpy(), vector.double().numpy()
    made = x64 + add * v64 if add is not None else x64 - (x64 @ v64 / (v64 @ v64))[..., None] * v64
    return torch.from_numpy(made)


@pytest.mark.parametrize("how", [{"add": 0.7}, {"ablate": True}])
def test_a_direction_steers_everywhere_alike(demo_vlm: nd.VLM, bridge: Any, axis: nd.Direction, how: Any) -> None:
    """By a hook of TransformerLens, by one of torch, and by an edit of nnsight: what is read, text and climbs."""
    (before,) = nd.read_text(demo_vlm, IDS, MASK, [2]).values()
    wanted = by_hand(before, axis.vector, how.get("add")).float()
    steer, name = axis.hook(**how), axis.site.tl_name
    _, cache = bridge.run_with_cache(IDS)
    with bridge.hooks(fwd_hooks=[(name, steer)]):
        _, steered = bridge.run_with_cache(IDS)
    theirs = by_hand(cache["blocks.1.hook_out"], axis.vector, how.get("add")).float()
    torch.testing.assert_close(steered["blocks.1.hook_out"], theirs, atol=1e-5, rtol=1e-5)
    word = nd.from_tensor(demo_vlm, axis.vector.flip(0), layer=4)
    handle = demo_vlm.hf.get_submodule("model.language_model.layers.1").register_forward_hook(steer)
    try:
        (hooked,) = nd.read_text(demo_vlm, IDS, MASK, [2]).values()
        climbed = nd.synthesize(demo_vlm, word, **QUICK)
    finally:
        handle.remove()
    torch.testing.assert_close(hooked, wanted, atol=1e-5, rtol=1e-5)
    edited = axis.edit(demo_vlm, **how)
    assert not demo_vlm.edits
    other = nd.load(edited, processor=demo_vlm.processor, check=False)
    (read,) = nd.read_text(other, IDS, MASK, [2]).values()
    assert torch.equal(read, hooked)
    again = nd.synthesize(other, nd.from_tensor(other, word.vector, layer=4), **QUICK)
    assert again.image.tobytes() == climbed.image.tobytes()
    assert climbed.history != nd.synthesize(demo_vlm, word, **QUICK).history


def test_an_edit_is_in_force_at_every_token_that_is_written(demo_vlm: nd.VLM, axis: nd.Direction) -> None:
    written: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    whole = nnsight.TransformersModel(demo_vlm.hf, processor=demo_vlm.processor, task="image-text-to-text")
    vlm = nd.load(whole, check=False)
    steer = nd.from_tensor(vlm, axis.vector, layer=2)
    plain = demo_vlm.hf.generate(input_ids=IDS, **written)
    handle = demo_vlm.hf.get_submodule("model.language_model.layers.1").register_forward_hook(steer.hook(5.0))
    hooked = demo_vlm.hf.generate(input_ids=IDS, **written)
    handle.remove()
    edited = steer.edit(vlm, 5.0)
    with edited.generate(input_ids=IDS, **written) as tracer:
        answer = tracer.result.save()
    assert torch.equal(answer, hooked)
    assert not torch.equal(hooked, plain)
    assert hooked.shape[1] == IDS.shape[1] + 6


def test_hooks_at_other_sites(demo_vlm: nd.VLM, bridge: Any) -> None:
    """Of what the heads give, which TransformerLens holds by heads, and of an input."""
    width = demo_vlm.width_at("model.language_model.layers.1.self_attn.o_proj.input")
    heads = nd.from_tensor(
        demo_vlm, torch.linspace(-1, 1, width), "model.language_model.layers.1.self_attn.o_proj.input"
    )
    _, cache = bridge.run_with_cache(IDS)
    with bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_z", heads.hook(ablate=True))]):
        _, less = bridge.run_with_cache(IDS)
    wanted = by_hand(cache["blocks.1.attn.hook_z"].flatten(2), heads.vector, None).float()
    torch.testing.assert_close(less["blocks.1.attn.hook_z"].flatten(2), wanted, atol=1e-5, rtol=1e-5)
    o_proj = demo_vlm.hf.get_submodule("model.language_model.layers.1.self_attn.o_proj")
    handle = o_proj.register_forward_pre_hook(heads.hook(ablate=True))
    (hooked,) = nd.read_text(demo_vlm, IDS, MASK, [2]).values()
    handle.remove()
    edited = nd.load(heads.edit(demo_vlm, ablate=True), processor=demo_vlm.processor, check=False)
    (read,) = nd.read_text(edited, IDS, MASK, [2]).values()
    torch.testing.assert_close(read, hooked, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(hooked, nd.read_text(demo_vlm, IDS, MASK, [2])[nd.Site(2)], atol=1e-3)


def test_a_hook_keeps_types_and_the_rest_of_a_tuple(axis: nd.Direction) -> None:
    steer = axis.hook(1.0)
    half = torch.zeros(1, 3, axis.width, dtype=torch.bfloat16)
    changed, rest = steer((half, "rest"), hook=None)
    assert rest == "rest"
    assert changed.dtype == torch.bfloat16
    assert torch.equal(changed[0, 0], axis.vector.bfloat16())
    for add, ablate in ((None, False), (1.0, True)):
        with pytest.raises(TypeError, match="one of the two is needed: add=, a multiple of the vector, or ablate=True"):
            axis.hook(add, ablate=ablate)
    with pytest.raises(
        ValueError, match=r"width 160, made for layer 2.* cannot steer an activation of shape .1, 3, 7."
    ):
        steer(torch.zeros(1, 3, 7))
    with pytest.raises(ValueError, match="cannot steer an activation of shape"):  # several streams, as Gemma 3n has
        steer(torch.zeros(4, 1, 3, axis.width))


def test_a_hook_is_known_by_what_it_does(demo_vlm: nd.VLM, axis: nd.Direction) -> None:
    """For stores and caches: the same hook made anew is the same, another strength or direction is another."""
    block, tags = demo_vlm.hf.get_submodule("model.language_model.layers.1"), []
    for steer in (axis.hook(1.0), axis.hook(1.0), axis.hook(2.0), axis.hook(ablate=True), (-axis).hook(1.0)):
        handle = block.register_forward_hook(steer)
        tags.append(demo_vlm.weights_tag(2))
        handle.remove()
    assert tags[0] == tags[1]
    assert len(set(tags)) == 4
    assert demo_vlm.weights_tag(2) not in tags


def test_a_plain_tensor(axis: nd.Direction) -> None:
    assert type(axis.vector) is torch.Tensor
    assert axis.vector.numpy().ctypes.data == axis.vector.data_ptr()


def test_control_vectors(demo_vlm: nd.VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    words = nd.concept(demo_vlm, "octopus", layer=[2, 4])
    path = nd.save_control_vectors(words, tmp_path / "octopus.gguf")
    read = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor.data for tensor in read.tensors}
    assert list(tensors) == ["direction.1", "direction.3"]  # blocks counted from 0, as llama.cpp does
    for word, data in zip(words, tensors.values(), strict=True):
        assert data.dtype == np.float32
        assert np.array_equal(data, word.vector.numpy())
    assert read.get_field("general.architecture").contents() == "controlvector"
    assert read.get_field("controlvector.model_hint").contents() == "demo"
    assert read.get_field("controlvector.layer_count").contents() == 2
    inside = nd.from_tensor(demo_vlm, torch.ones(demo_vlm.width), "blocks.2.hook_mlp_out")
    for wrong in (nd.concept(demo_vlm, "octopus", layer=1), inside):
        with pytest.raises(ValueError, match="added behind blocks, from the second on: give layer=2 or more"):
            nd.save_control_vectors(wrong, path)
    with pytest.raises(ValueError, match="one direction a layer, all of one model, are needed"):
        nd.save_control_vectors([words[0], words[0]], path)
    original = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install gguf"):
        nd.save_control_vectors(words, path)


# -- prototypes ---------------------------------------------------------------------------------------------------------


def test_activations_and_scores_by_token(demo_vlm: nd.VLM, bridge: Any) -> None:
    word = nd.concept(demo_vlm, "octopus", layer=4)
    made = nd.synthesize(demo_vlm, word, **QUICK)
    tokens = made.patches(demo_vlm, word)
    middle = centre(demo_vlm, word.site, nd.Grey())
    pooled = torch.cosine_similarity((tokens.activations - middle).mean(0), word.vector, dim=0)
    assert float(pooled) == pytest.approx(made.scores["mean"], abs=1e-5)
    assert tokens.scores["cosine"].max() == pytest.approx(made.scores["max"], abs=1e-5)
    each = torch.cosine_similarity(tokens.activations - middle, word.vector, dim=-1)
    np.testing.assert_allclose(tokens.scores["cosine"], each, atol=1e-5)
    axis = word.unit().vector
    np.testing.assert_allclose(tokens.scores["projection"], (tokens.activations - middle) @ axis, atol=1e-4)
    np.testing.assert_array_equal(tokens.map("heat"), made.heat)
    assert len(tokens.names) == 64
    assert tokens.names[9] == "row 1, column 1"
    assert tokens.map("cosine")[1, 1] == tokens.scores["cosine"][9]
    inputs = demo_vlm.question(made.image, "What is it?")  # the picture goes into run_with_cache
    pixels = torch.from_numpy(np.array(made)).permute(2, 0, 1)[None] / 255
    inputs |= demo_vlm.pack(pixels)  # 32 px made 64 without rounding to 8 bits on the way
    at = inputs["input_ids"][0] == demo_vlm.config.image_token_id
    _, cache = bridge.run_with_cache(inputs.pop("input_ids"), **inputs)
    torch.testing.assert_close(tokens.activations, cache["blocks.3.hook_out"][0, at], atol=1e-5, rtol=1e-4)
    assert tokens.activations.numpy().ctypes.data == tokens.activations.data_ptr()
    assert np.array_equal(np.asarray(made), np.asarray(made.image))
    some = nd.from_tensor(demo_vlm, word.vector, nd.Site(4, tokens=(9, 20)))
    few = nd.synthesize(demo_vlm, some, **QUICK).patches(demo_vlm, some)
    assert few.names == ("row 1, column 1", "row 2, column 4")
    assert np.isnan(few.map("cosine")).sum() == 62


def test_features_by_token_are_those_of_their_encoder(demo_vlm: nd.VLM) -> None:
    sae = saes.build("jumprelu", hook="blocks.3.hook_resid_post", hf_hook=None, model=None, d_in=demo_vlm.width)
    feature = nd.feature(sae, 5, reference=[p.image for p in bundle.pictures(["octopus", "fox"])])
    made = nd.synthesize(demo_vlm, feature, **QUICK)
    tokens = made.patches(demo_vlm, feature)
    np.testing.assert_allclose(tokens.scores["act"], sae.encode(tokens.activations)[:, 5].detach(), atol=1e-4)
    assert tokens.scores["pre"].mean() == pytest.approx(made.scores["encoder"], abs=1e-4)


def test_others_show_it(demo_vlm: nd.VLM) -> None:
    express, circuits = pytest.importorskip("plotly.express"), pytest.importorskip("circuitsvis")
    word = nd.concept(demo_vlm, "octopus", layer=4)
    made = nd.synthesize(demo_vlm, word, **QUICK)
    tokens = made.patches(demo_vlm, word)
    assert express.imshow(made).data[0].type == "image"
    assert np.array_equal(express.imshow(tokens.map("cosine")).data[0].z, tokens.map("cosine"))
    assert list(express.bar(x=tokens.names, y=tokens.scores["norm"]).data[0].x) == list(tokens.names)
    shown = str(circuits.tokens.colored_tokens(list(tokens.names), tokens.scores["cosine"]))
    assert "row 7, column 7" in shown


def test_what_cannot_be_read_by_token_says_why(demo_vlm: nd.VLM, tmp_path: Path) -> None:
    word = nd.concept(demo_vlm, "octopus", layer=4)
    made = nd.synthesize(demo_vlm, word, **QUICK)
    loaded = nd.Prototype.load(made.save(tmp_path / "made"))
    assert torch.equal(loaded.patches(demo_vlm, word).activations, made.patches(demo_vlm, word).activations)
    with pytest.raises(ValueError, match=r"at layer 2.*this picture's activations at layer 4"):
        made.patches(demo_vlm, nd.concept(demo_vlm, "octopus", layer=2))
    with pytest.raises(TypeError, match="a Direction or a Feature is needed"):
        made.patches(demo_vlm, "octopus")
    own = nd.Pictures([p.image for p in bundle.pictures(["fox"])])
    other = nd.synthesize(demo_vlm, word, **{**QUICK, "centre": own})
    with pytest.raises(ValueError, match=r"the centre of this picture's run is recorded as .*: give it as centre="):
        other.patches(demo_vlm, word)
    scores = other.patches(demo_vlm, word, centre=own).scores
    assert scores["cosine"].max() == pytest.approx(other.scores["max"], abs=1e-5)
    renamed = nd.load(demo_vlm.hf, processor=demo_vlm.processor, check=False)
    with pytest.raises(ValueError, match=r"made for demo at .64, 64. px.*nd.from_images.vlm, prototype.image, layer."):
        made.patches(renamed, word)
