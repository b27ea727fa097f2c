"""A TransformerBridge of TransformerLens 3 in hand: what it computes is what is read and climbed, and it stays as it is."""

from __future__ import annotations

import copy
import gc
import re
import warnings
from pathlib import Path
from typing import Any

import nnsight
import pytest
import saes
import tiny
import torch
from bridges import boot, miniature, native

import nnsight_dream as nd

pytest.importorskip("transformer_lens.model_bridge")
pytestmark = pytest.mark.filterwarnings(
    "ignore:Hook alias", "ignore:.*did not resolve", "ignore:.*image tokens of this", "ignore:run_with_cache. skipped"
)

STEPS = {"steps": 3, "batch": 1, "augment": ()}


def climb(vlm: nd.VLM, direction: Any, **more: Any) -> nd.Prototype:
    return nd.synthesize(vlm, direction, settings=nd.Settings(), progress=False, **{**STEPS, **more})


@pytest.fixture(scope="module")
def gemma() -> tuple[Any, Any]:
    return tiny.gemma3()


@pytest.mark.parametrize("name", ["gemma3", "llava_next", "qwen3_5"])
def test_three_ways_are_one(name: str) -> None:
    """Hugging Face, nnsight and TransformerLens side by side: concept vectors and prototypes."""
    hf, processor, load, _ = miniature(name)
    bridge = native(boot(hf, processor))
    ways = [nd.load(x, processor=processor, check=False, **load) for x in (hf, nnsight.NNsight(hf), bridge)]
    words = [nd.concept(vlm, "octopus", layer=3) for vlm in ways]
    dreams = [climb(vlm, nd.from_tensor(vlm, words[0].vector, "blocks.2.hook_resid_post")) for vlm in ways]
    assert torch.equal(words[0].vector, words[1].vector)
    assert dreams[0].image.tobytes() == dreams[1].image.tobytes()
    torch.testing.assert_close(words[2].vector, words[0].vector, atol=1e-5, rtol=1e-4)
    assert dreams[2].history[0] == pytest.approx(dreams[0].history[0], abs=2e-5)
    assert dreams[2].history == pytest.approx(dreams[0].history, abs=2e-4)
    assert words[2].site == words[0].site == dreams[2].site == dreams[0].site
    again = climb(ways[2], nd.from_tensor(ways[2], words[0].vector, 3))
    assert again.image.tobytes() == dreams[2].image.tobytes()


def test_the_tower_of_transformer_lens_is_told_from_the_models(gemma: tuple[Any, Any]) -> None:
    """TransformerLens 3.9 adds 1 to the weights of Gemma 3's LayerNorms; its own switch mends it, as the warning says."""
    bridge = boot(*gemma)
    with pytest.warns(UserWarning, match=r"differ by \d+% of their norm.*for m in bridge") as caught:
        vlm = nd.load(bridge)
    tag = vlm.weights_tag(2)
    exec(str(caught[0].message).split("first say: ")[1], {"bridge": bridge})
    assert vlm.weights_tag(2) != tag
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vlm = nd.load(bridge)
    other = nd.load(gemma[0], processor=gemma[1])
    picture = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    (mine,), (theirs,) = (nd.read_pictures(v, picture, [3]).values() for v in (vlm, other))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def written_down(bridge: Any) -> dict[str, Any]:
    """Everything of a bridge's modules, and what comes out; but for nnsight's own and what any pass of it leaves."""
    passing = ("__nnsight__", "forward", "_fired_hook_out", "_suppress_next_hook_in")
    found: dict[str, Any] = {"hooks": sorted(bridge.hook_dict), "cfg": repr(sorted(vars(bridge.cfg).items(), key=str))}
    for root, tree in (("bridge", bridge), ("hf", bridge.original_model)):
        for path, module in tree.named_modules():
            kept = {k: v for k, v in vars(module).items() if k not in passing}
            hooks = {k: list(v.values()) for k, v in kept.items() if "_hooks" in k and isinstance(v, dict)}
            found[f"{root}.{path}"] = id(module), module.training, hooks, list(module._modules), sorted(kept)
            found[f"{root}.{path}, points"] = list(getattr(module, "fwd_hooks", [])), getattr(module, "name", None)
        for name, p in tree.named_parameters():
            found[f"{root}.{name}"] = id(p), p.data_ptr(), p._version, p.requires_grad, p.grad
    ids = torch.arange(10, 17)[None]
    found["logits"] = bridge(ids).detach().numpy().tobytes()
    return found


def test_nothing_of_the_bridge_is_changed(gemma: tuple[Any, Any]) -> None:
    bridge = boot(*gemma)
    bridge.train()
    bridge.original_model.model.language_model.layers[1].requires_grad_(False)
    bridge.add_hook("blocks.1.mlp.hook_out", lambda x, hook: 2 * x)
    bridge(torch.arange(10, 17)[None])  # its first pass sets hooks of its own
    before = written_down(bridge)
    vlm = nd.load(bridge)
    climb(vlm, nd.concept(vlm, "octopus", layer="blocks.2.attn.hook_z"))
    after = written_down(bridge)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value == after[key], key


# -- hooks of the user's ---------------------------------------------------------------------------------------------


def ablate(z: torch.Tensor, hook: Any) -> torch.Tensor:
    """Without head 3: (batch, tokens, heads, width of a head)."""
    z = z.clone()
    z[:, :, 3] = 0
    return z


def test_hooks_are_in_force_as_long_as_they_are_there(gemma: tuple[Any, Any]) -> None:
    bridge = native(boot(*gemma))
    vlm = nd.load(bridge)
    word = nd.concept(vlm, "octopus", layer=3)
    whole = climb(vlm, word)
    tag = vlm.weights_tag(3)
    with bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_z", ablate)]):
        assert vlm.weights_tag(3) != tag
        other = nd.concept(vlm, "octopus", layer=3)
        less = climb(vlm, word)
        _, cache = bridge.run_with_cache(torch.arange(10, 17)[None])
        (read,) = nd.read_text(vlm, torch.arange(10, 17)[None], torch.ones(1, 7, dtype=torch.long), [3]).values()
        torch.testing.assert_close(read, cache["blocks.2.hook_out"])
    assert not torch.allclose(other.vector, word.vector, atol=1e-3)
    assert less.history[0] != pytest.approx(whole.history[0], abs=1e-4)
    assert vlm.weights_tag(3) == tag
    assert climb(vlm, word).image.tobytes() == whole.image.tobytes()
    by_hand = copy.deepcopy(gemma[0])  # the same done to the weights
    width = by_hand.config.text_config.head_dim
    with torch.no_grad():
        by_hand.model.language_model.layers[1].self_attn.o_proj.weight[:, 3 * width : 4 * width] = 0
    plain = nd.load(by_hand, processor=gemma[1])
    same = climb(plain, nd.from_tensor(plain, word.vector, 3))
    assert less.history == pytest.approx(same.history, abs=2e-5)


def test_a_hook_changes_what_is_read_at_its_own_point(gemma: tuple[Any, Any]) -> None:
    bridge = boot(*gemma)
    vlm = nd.load(bridge)
    ids, mask = torch.arange(10, 17)[None], torch.ones(1, 7, dtype=torch.long)
    before = nd.read_text(vlm, ids, mask, [2])[nd.Site(2)]
    tags = []
    for factor in (2.0, 3.0):  # the same code, other values
        bridge.add_hook("blocks.1.hook_resid_post", lambda x, hook, by=factor: x * by)
        torch.testing.assert_close(nd.read_text(vlm, ids, mask, [2])[nd.Site(2)], factor * before)
        tags.append(vlm.weights_tag(2))
        bridge.reset_hooks()
    assert tags[0] != tags[1]
    assert torch.equal(nd.read_text(vlm, ids, mask, [2])[nd.Site(2)], before)


# -- sparse autoencoders in TransformerLens's world --------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"])
def test_an_autoencoder_is_on_or_off(gemma: tuple[Any, Any], hook: str) -> None:
    bridge = native(boot(*gemma, kind="sae"))
    sae = saes.build("standard", hook=hook, hf_hook=None, model=None)
    vlm = nd.load(bridge)
    word, feature = (
        nd.concept(vlm, "octopus", layer=3),
        nd.feature(sae, 5, reference=[torch.full((3, 112, 112), 0.5), torch.eye(112).expand(3, -1, -1)]),
    )
    ids, mask = torch.arange(10, 17)[None], torch.ones(1, 7, dtype=torch.long)
    off = climb(vlm, [word, feature])
    tag = vlm.weights_tag(3)
    bridge.add_sae(sae)
    on = climb(vlm, [word, feature])
    _, cache = bridge.run_with_cache(ids)
    read = nd.read_text(vlm, ids, mask, [3, feature.site(vlm)])
    torch.testing.assert_close(read[nd.Site(3)], cache["blocks.2.hook_out"])
    inside = bridge.get_sae_hook_name(sae, "hook_sae_input")
    torch.testing.assert_close(read[feature.site(vlm)], cache[inside])
    assert feature.site(vlm).tl_name == inside
    assert vlm.weights_tag(3) != tag
    assert on[0].history[0] != pytest.approx(off[0].history[0], abs=1e-4)  # the word is read behind the autoencoder
    assert on[1].history == pytest.approx(off[1].history, abs=1e-5)  # the feature before it
    assert all(p.grad is None for p in sae.parameters())
    bridge.reset_saes()
    assert vlm.weights_tag(3) == tag
    again = climb(vlm, [word, feature])
    assert [p.image.tobytes() for p in again] == [p.image.tobytes() for p in off]


# -- what is handed in --------------------------------------------------------------------------------------------------


def test_the_model_of_a_bridge_is_the_bridge(gemma: tuple[Any, Any]) -> None:
    bridge = boot(*gemma)
    early = nnsight.NNsight(hf := copy.deepcopy(gemma[0]))
    assert nd.load(bridge.original_model).bridge is bridge
    assert nd.load(nnsight.NNsight(bridge)).bridge is bridge
    late = nnsight.NNsight(bridge.original_model)
    assert nd.load(late).model is late
    edited = nnsight.NNsight(bridge)
    with edited.edit(inplace=True):
        edited.blocks[1].output[:] = 0
    with pytest.raises(ValueError, match=r"edits stored on it would be left out: wrap it now, with nnsight.NNsight.br"):
        nd.load(edited)
    from transformer_lens.model_bridge.bridge import TransformerBridge

    other = boot(hf)
    early._module = other.original_model  # as if it had been booted in place
    with pytest.raises(ValueError, match="made before a TransformerBridge was booted on its model: wrap it now"):
        nd.load(early, processor=gemma[1])
    orphan = other.original_model
    assert isinstance(other, TransformerBridge)
    del other
    gc.collect()
    with pytest.raises(ValueError, match=r"pass the bridge, nd.load.bridge."):
        nd.load(orphan, processor=gemma[1])


def test_a_hook_that_is_no_site_says_why(gemma: tuple[Any, Any]) -> None:
    bridge = boot(*gemma)
    vlm = nd.load(bridge)
    cases = {
        "hook_embed": "outside the decoder's blocks.*'blocks.0.hook_resid_pre'",
        "ln_final.hook_normalized": "outside the decoder's blocks",
        "blocks.1.attn.hook_pattern": "by heads.*'attn.hook_z'",
        "blocks.1.attn.hook_result": r"does not fire: call bridge.set_use_attn_result.True. first",
        "blocks.1.mlp.hook_prost": "did you mean 'blocks.1.mlp.hook_post'",
    }
    for name, words in cases.items():
        with pytest.raises(ValueError, match=words) as raised:
            vlm.site(name)
        assert len(str(raised.value)) < 400
    ln2 = vlm.site("blocks.1.ln2.hook_scale")  # one number a token
    assert vlm.width_at(ln2) == 1
    for name in ("blocks.1.hook_resid_mid", "self_attn.o_proj.input", "attn.hook_z"):  # as Hugging Face's model has it
        kind = name.removeprefix("blocks.1.")
        site = vlm.site(name) if name.startswith("blocks") else vlm.site(2, kind)
        assert nd.load(gemma[0], processor=gemma[1], check=False).width_at(nd.Site(2, site.kind)) == vlm.width_at(site)
    bridge.set_use_attn_result(True)
    with pytest.raises(ValueError, match="by heads"):
        vlm.site("blocks.1.attn.hook_result")


def test_a_bridge_that_cannot_run_says_so(gemma: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.model_bridge.generalized_components import block

    bridge = boot(*gemma)
    monkeypatch.setattr(block.BlockBridge, "_apply_output_hook", lambda self, *_, **__: self.nothing)
    with pytest.raises(ValueError, match=r"cannot run Gemma3.* Load the Hugging Face model itself, before a bridge"):
        nd.load(bridge)


def test_jobs_go_the_way_of_a_servers(gemma: tuple[Any, Any]) -> None:
    bridge = native(boot(*gemma))
    here, there = nd.load(bridge), nd.load(bridge, remote="local")
    word = nd.from_tensor(here, torch.linspace(-1, 1, 32), 3)
    assert climb(there, word).image.tobytes() == climb(here, word).image.tobytes()


def test_a_hooked_transformer_reads_no_pictures() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    facts = {"n_layers": 1, "d_model": 8, "n_ctx": 8, "d_head": 4, "act_fn": "relu", "d_vocab": 8}
    with pytest.raises(TypeError, match="a HookedTransformer reads text alone: boot the vision-language model"):
        nd.load(HookedTransformer(HookedTransformerConfig(**facts)))


def test_the_bundled_model(demo_vlm: nd.VLM) -> None:
    bridge = native(boot(demo_vlm.hf, demo_vlm.processor))
    vlm = nd.load(bridge)
    word = nd.concept(vlm, "octopus", layer="blocks.3.hook_resid_post")
    torch.testing.assert_close(word.vector, nd.concept(demo_vlm, "octopus", layer=4).vector, atol=1e-5, rtol=1e-4)
    mine, theirs = (climb(v, nd.from_tensor(v, word.vector, 4), steps=6) for v in (vlm, demo_vlm))
    assert mine.history == pytest.approx(theirs.history, abs=1e-4)
    assert mine.history[-1] > mine.history[0]


def test_what_else_reads_a_model_reads_a_bridge(demo_vlm: nd.VLM) -> None:
    """Logits of a vector, also with processed weights; features by pictures; edits; hooks on the vision tower."""
    bridge, processed = (native(boot(demo_vlm.hf, demo_vlm.processor, "sae")) for _ in range(2))
    processed.enable_compatibility_mode(disable_warnings=True)
    vlm, other = nd.load(bridge, check=False), nd.load(processed, check=False)
    axis = torch.linspace(-1, 1, vlm.width)
    words = [[word for word, _ in nd.top_logits(v, axis, 4).top] for v in (demo_vlm, vlm, other)]
    assert words[0] == words[1] == words[2]
    sae = saes.build("jumprelu", hook="blocks.3.hook_resid_post", hf_hook=None, model=None, d_in=vlm.width)
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    mine, theirs = (nd.features_of(v, sae, picture, by="activation") for v in (vlm, demo_vlm))
    assert [a.index for a in mine] == [a.index for a in theirs]
    ids, mask = torch.arange(10, 17)[None], torch.ones(1, 7, dtype=torch.long)
    edited = nd.load(nd.from_tensor(vlm, axis, 2).edit(vlm, 0.5), processor=vlm.processor, check=False)
    before, after = (nd.read_text(v, ids, mask, [2])[nd.Site(2)] for v in (vlm, edited))
    torch.testing.assert_close(after, before + 0.5 * axis)
    plain, tag = nd.read_pictures(vlm, picture[None], [2])[nd.Site(2)], vlm.weights_tag(2)
    with bridge.hooks(fwd_hooks=[("vision_encoder.hook_out", lambda x, hook: x.flip(-1))]):
        assert not torch.allclose(nd.read_pictures(vlm, picture[None], [2])[nd.Site(2)], plain, atol=1e-2)
        assert vlm.weights_tag(2) != tag


def test_a_bridge_that_is_booted_later_is_asked_for(gemma: tuple[Any, Any]) -> None:
    hf = copy.deepcopy(gemma[0])
    vlm = nd.load(hf, processor=gemma[1], check=False)
    bridge = boot(hf, gemma[1], copied=False)
    assert bridge.original_model is hf
    with pytest.raises(ValueError, match=r"after it was loaded: pass the bridge, nd.load.bridge."):
        nd.concept(vlm, "octopus", layer=3)
    assert nd.load(hf).bridge is bridge


def test_transformer_lens_is_never_imported_by_us() -> None:
    files = Path(nd.__file__).parent.rglob("*.py")
    assert not [
        f for f in files if re.search(r"^\s*(from|import) transformer_lens", f.read_text(encoding="utf-8"), re.M)
    ]
