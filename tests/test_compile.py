"""Ascents through a compiled forward pass: the same gradients, and nothing of the model changed."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_families
import torch
from nnsight_dream.models.compiled import _runner

import nnsight_dream as nd
from nnsight_dream.models import compiled
from nnsight_dream.models.reading import _picture_inputs, _pixel_inputs

SHORT = nd.Settings(steps=3, batch=2, rate=0.5, canvas=nd.Pixels(24), augment=(nd.Noise(0.1),), pooling=nd.Attention())


def gradient(vlm: nd.VLM, sites: list[nd.Site], pictures: torch.Tensor) -> torch.Tensor:
    """Of one number of what an ascent reads at the sites, at the pictures."""
    x = pictures.clone().requires_grad_(True)
    with vlm.quiet():
        found = _runner(vlm, sites)({**_picture_inputs(vlm, len(x)), **_pixel_inputs(vlm, x)})
        total = torch.stack([a.float().sin().sum() for a in found.values()]).sum()
        return torch.autograd.grad(total, x)[0]


def state(hf: torch.nn.Module) -> dict[str, Any]:
    """What a compiled program could leave behind in a model."""
    return {
        "modules": [(name, id(m), m.training, sorted(m.__dict__), list(m._modules)) for name, m in hf.named_modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in hf.modules()],
        "weights": [
            (name, id(p), p.requires_grad, p.grad is None, p.sum().item()) for name, p in hf.named_parameters()
        ],
        "chance": torch.random.get_rng_state().tolist(),
    }


@pytest.fixture(scope="module")
def pair(tiny_parts: tuple) -> tuple[nd.VLM, nd.VLM]:
    """The tiny model plain and compiled, by a backend that needs no compiler."""
    hf, processor = tiny_parts
    return nd.load(hf, processor=processor), nd.load(hf, processor=processor, compile="aot_eager", check=False)


def test_gradients_are_those_of_the_model(pair: tuple[nd.VLM, nd.VLM]) -> None:
    plain, fast = pair
    before = state(plain.hf)
    pictures = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    sites = [nd.Site(1, "mlp_out"), nd.Site(3, "resid_pre"), nd.Site(1, "self_attn.o_proj.input"), nd.Site(2)]
    mine, theirs = (gradient(vlm, sites, pictures) for vlm in (fast, plain))
    assert (mine - theirs).norm() < 1e-5 * theirs.norm()
    assert state(plain.hf) == before


def test_a_climb_ends_at_the_same_picture(pair: tuple[nd.VLM, nd.VLM]) -> None:
    made = [nd.synthesize(vlm, nd.concept(vlm, "fish", layer=2), settings=SHORT) for vlm in pair]
    pixels = [torch.frombuffer(bytearray(p.image.tobytes()), dtype=torch.uint8).int() for p in made]
    assert (pixels[0] - pixels[1]).abs().max() <= 1
    assert made[0].history == pytest.approx(made[1].history, abs=1e-5)


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_next", "chameleon"])
def test_other_families(name: str) -> None:
    """Ready positions and patches in an order of their own; tokens made by the record's own way; a surrogate."""
    parts = tiny_families.build(name)
    options = {**parts.load, **parts.climb, "check": False}
    plain = nd.load(parts.model, processor=parts.processor, **options)
    fast = nd.load(parts.model, processor=parts.processor, **options, compile="eager")
    pictures = torch.rand(1, 3, *plain.image_size, generator=torch.Generator().manual_seed(0))
    mine, theirs = (gradient(vlm, [nd.Site(1)], pictures) for vlm in (fast, plain))
    assert (mine - theirs).norm() < 1e-5 * theirs.norm()


def test_a_program_that_computes_something_else_is_an_error(
    pair: tuple[nd.VLM, nd.VLM], monkeypatch: pytest.MonkeyPatch, tiny_parts: tuple
) -> None:
    hf, processor = tiny_parts
    fast = nd.load(hf, processor=processor, compile="eager", check=False)
    honest = compiled.cut
    monkeypatch.setattr(compiled, "cut", lambda *a: lambda inputs: [1.01 * v for v in honest(*a)(inputs)])
    direction = nd.concept(fast, "fish", layer=1)
    with pytest.raises(RuntimeError, match=r"other activations at layer 1 .*Load the model without compile="):
        nd.synthesize(fast, direction, settings=SHORT)
    nd.synthesize(pair[0], direction, settings=SHORT)


def test_what_cannot_be_compiled(tiny_parts: tuple, pair: tuple[nd.VLM, nd.VLM]) -> None:
    hf, processor = tiny_parts
    with pytest.raises(ValueError, match=r"a backend of torch.compile .*did you mean 'inductor'\?"):
        nd.load(hf, processor=processor, compile="inducktor")
    with pytest.raises(ValueError, match="exclude each other"):
        nd.load(hf, processor=processor, compile=True, checkpoint_tower=True)
    with pytest.raises(ValueError, match="compile= cannot change a VLM"):
        nd.load(pair[0], compile=True)
    hf.lm_head._hf_hook = None  # accelerate's mark
    try:
        with pytest.raises(ValueError, match="accelerate moves the weights"):
            nd.load(hf, processor=processor, compile=True, check=False)
    finally:
        del hf.lm_head._hf_hook
    assert nd.load(hf, processor=processor, compile=True, check=False).compiled == "inductor"


@pytest.mark.slow
def test_the_default_backend(tiny_parts: tuple, pair: tuple[nd.VLM, nd.VLM]) -> None:
    """Minutes: a C++ compiler is at work."""
    hf, processor = tiny_parts
    fast = nd.load(hf, processor=processor, compile=True, check=False)
    pictures = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    mine, theirs = (gradient(vlm, [nd.Site(2)], pictures) for vlm in (fast, pair[0]))
    assert (mine - theirs).norm() < 1e-5 * theirs.norm()
