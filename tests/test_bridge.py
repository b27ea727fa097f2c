"""A TransformerBridge of TransformerLens 3 in hand: what it computes is what is read and climbed, and it stays as it is."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import pytest
import saes
import tiny
import tiny_families
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.models import bridge as bridges

pytest.importorskip("transformer_lens.model_bridge")
pytestmark = pytest.mark.filterwarnings("ignore:Hook alias", "ignore:.*did not resolve", "ignore:.*image tokens of this", "ignore:run_with_cache. skipped")

KNOWN = ["gemma3", "gemma3n", "gemma4", "gemma4_moe", "llava", "llava_siglip", "llava_next", "llava_onevision"]
KNOWN += ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "idefics3", "mistral3"]
STEPS = {"steps": 4, "batch": 2, "augment": ()}


def boot(hf: torch.nn.Module, processor: Any = None, kind: str = "") -> Any:
    """A bridge around a copy of a model, as `boot_transformers` makes it of a model in hand, offline."""
    from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = copy.deepcopy(hf)
    with pytest.MonkeyPatch.context() as patch:  # torchvision and timm are asked for on account of processors
        patch.setattr(ArchitectureAdapter, "_check_required_libraries", lambda self: None)
        bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    bridge.processor = processor
    bridge.cfg.is_multimodal = True  # TransformerLens 3.9 forgets to say so of Gemma 3n
    if kind == "sae":
        from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

        bridge.__class__ = SAETransformerBridge  # as its own boot_transformers does
        bridge._acts_to_saes, bridge._transcoder_output_hooks = {}, {}
    return bridge


def miniature(name: str) -> tuple[Any, Any, dict[str, Any], tuple[int, int]]:
    """Model, processor, keywords of `nd.load` and size of pictures."""
    if name == "gemma3":
        return *tiny.gemma3(), {}, (112, 112)
    made = tiny_families.build(name)
    return made.model, made.processor, made.load, made.size


def question(name: str, processor: Any, size: tuple[int, int]) -> tuple[dict[str, Any], torch.Tensor]:
    """A question about a picture of noise as the processor makes it, and the picture (1, 3, H, W) in [0, 1]."""
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.tokenizer.apply_chat_template(turn, tokenize=False)
    options = {} if name == "gemma3" else tiny_families.build(name).options
    images = [[Image.fromarray(picture)]]
    given = processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False, **options)
    return dict(given), torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def climb(vlm: nd.VLM, direction: Any, **more: Any) -> nd.Prototype:
    return nd.synthesize(vlm, direction, settings=nd.Settings(), progress=False, **{**STEPS, **more})


def native(bridge: Any) -> Any:
    """The bridge with the vision tower's norms computed as Hugging Face does."""
    for module in bridge.vision_encoder.modules():
        if "use_native_layernorm_autograd" in vars(module):
            module.use_native_layernorm_autograd = True
    return bridge


@pytest.fixture(scope="module")
def gemma() -> tuple[Any, Any]:
    return tiny.gemma3()


@pytest.mark.parametrize("name", KNOWN)
def test_activations_are_those_of_run_with_cache(name: str) -> None:
    """Of every hook point in a block, for text and for pictures; or it is said why it is no site."""
    hf, processor, load, size = miniature(name)
    bridge = boot(hf, processor)
    vlm = nd.load(bridge, **load)
    assert vlm.bridge is bridge
    assert vlm.hf is bridge.original_model
    assert vlm.id == nd.load(hf, processor=processor, check=False, **load).id
    ids, mask = torch.arange(10, 24).view(2, 7), torch.ones(2, 7, dtype=torch.long)
    _, text = bridge.run_with_cache(ids, attention_mask=mask, names_filter=lambda n: True, **vlm.family.text(ids))
    given, picture = question(name, processor, size)
    _, seen = bridge.run_with_cache(given.pop("input_ids"), names_filter=lambda n: True, **given)
    at = (vlm.image_prompt.ids == vlm.config.image_token_id).nonzero().flatten()
    sites = {}
    for hook in sorted(n for n in bridge.hook_dict if n.startswith("blocks.2.")):
        try:
            sites[hook] = vlm.site(hook)
            vlm.width_at(sites[hook])
        except ValueError as error:
            sites.pop(hook, None)
            assert re.search("does not fire|not .batch, tokens, width.", str(error)), str(error)
    mine = nd.read_text(vlm, ids, mask, list(sites.values()))
    patches = nd.read_pictures(vlm, picture, list(sites.values()))
    for hook, site in sites.items():
        theirs = vlm.family.states(text[hook], vlm.config).reshape(mine[site].shape)
        torch.testing.assert_close(mine[site], theirs, atol=1e-5, rtol=1e-5)
        theirs = vlm.family.states(seen[hook], vlm.config)
        theirs = theirs.reshape(1, theirs.shape[1], -1)[:, at[: vlm.grid[0] * vlm.grid[1]]]
        torch.testing.assert_close(patches[site], theirs, atol=1e-5, rtol=1e-5)
    equal = {hook.removeprefix("blocks.2.") for hook in sites}
    assert {"hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "mlp.hook_in"} <= equal
    assert {"attn.hook_z", "self_attn.hook_z"} & equal or name.startswith("gemma4"), equal


