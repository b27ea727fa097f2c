"""Every multimodal architecture of TransformerLens's bridge: activations, slopes, processed weights; see bridges.py."""

from __future__ import annotations

import re

import bridges
import pytest

import nnsight_dream as nd

pytest.importorskip("transformer_lens.model_bridge")
pytestmark = pytest.mark.filterwarnings("ignore")
PROVED = ("gemma3", "llava_next", "glm4v")  # by nd.load's own check too


@pytest.mark.parametrize("name", bridges.KNOWN)
def test_activations_are_those_of_run_with_cache(name: str) -> None:
    """Of every hook point in a block, for text and for pictures; or it is said why it is no site."""
    found = bridges.cached(name, check=name in PROVED)
    assert found.text < 1e-5
    assert found.pictures < bridges.most_apart(name)
    assert all(re.search("does not fire|not .batch, tokens, width.", reason) for reason in found.reasons), found.reasons
    assert {"hook_resid_pre", "hook_resid_post", "hook_mlp_out", "mlp.hook_in"} <= found.hooks
    assert {"attn.hook_z", "self_attn.hook_z", "attn.hook_out", "linear_attn.hook_out"} & found.hooks, found.hooks


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("name", bridges.KNOWN)
def test_activations_are_those_of_the_model(name: str, processed: bool) -> None:
    """As it was before the bridge, and with weights that the bridge processed; pictures and the slope at their pixels."""
    activations, slope = bridges.beside(name, processed)
    assert activations < 1e-5
    assert slope < 1e-4


@pytest.mark.parametrize("name", bridges.CANNOT)
def test_what_cannot_be_booted_is_no_architecture_of_theirs(name: str) -> None:
    """If this fails TransformerLens has learned one, and it goes to the others."""
    hf, processor, *_ = bridges.miniature(name)
    with pytest.raises((ValueError, AttributeError), match=re.escape(bridges.CANNOT[name])):
        bridges.boot(hf, processor)


def test_a_family_without_record_is_probed_beneath_the_bridge() -> None:
    hf, processor, load, _ = bridges.miniature("glm4v")
    with pytest.warns(UserWarning, match="no family record for model_type 'glm4v'"):
        vlm = nd.load(bridges.boot(hf, processor), **load)
    assert vlm.id == nd.load(hf, processor=processor, check=False, **load).id
    assert vlm.hf_name("blocks.2.hook_resid_post").startswith("model.language_model")
