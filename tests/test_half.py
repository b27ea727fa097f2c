"""Models in bfloat16 and float16: all that is the package's own is float32, and gradients pass through float16 whole."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F

import nnsight_dream as nd
from nnsight_dream.checkup.material import patches
from nnsight_dream.engine.magnify import Magnifier
from nnsight_dream.engine.pooling import cosine
from nnsight_dream.engine.read import reader
from nnsight_dream.engine.terms import pooled_scores
from nnsight_dream.models.reading import reading
from nnsight_dream.synthesis.centres import centre

LARGE = 4096.0  # times the usual size of activations: norms of 20,000, as in a real Gemma 3's upper layers
FEW = nd.Settings(steps=3, batch=2, canvas=nd.Pixels(24), augment=())


def large(kind: torch.dtype) -> nd.VLM:
    """A Gemma 3 that computes what the miniature does, with a residual stream so many times as large."""
    hf, processor = tiny.gemma3()
    with torch.no_grad():
        for block in hf.model.language_model.layers:
            for norm in (block.post_attention_layernorm, block.post_feedforward_layernorm):
                norm.weight.copy_((1 + norm.weight) * LARGE - 1)
        hf.model.language_model.embed_tokens.weight.mul_(LARGE / 8)
        hf.model.multi_modal_projector.mm_input_projection_weight.mul_(LARGE)
    family = dataclasses.replace(nd.load(hf, processor=processor, check=False).family, overflows=False)
    return nd.load(copy.deepcopy(hf).to(kind), processor=processor, family=family, check=False)


@pytest.fixture(scope="module")
def models() -> dict[torch.dtype, nd.VLM]:
    return {kind: large(kind) for kind in (torch.float32, torch.float16, torch.bfloat16)}


def slope(vlm: nd.VLM, layers: list[int], careful: bool = True) -> torch.Tensor:
    """The gradient of the cosines at some layers."""
    x = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    total: Any = 0.0
    sites = [nd.Site(layer) for layer in layers]
    with vlm.quiet():
        read, _ = reader(vlm.model, reading(vlm, sites, pictures=True), full=careful)
        found = read(x)
    for site in sites:
        values = found[site].float()
        towards = torch.linspace(-1, 1, 32)[None]
        total = total + pooled_scores(values[None], towards, 0 * towards, nd.Mean(), cosine, vlm.grid, 1.0)[0].sum()
    (gradient,) = torch.autograd.grad(total, x)
    return gradient.flatten()


@pytest.mark.parametrize("layers", [[4], [1], [1, 4]])
def test_gradients_pass_through_float16_whole(layers: list[int], models: dict[torch.dtype, nd.VLM]) -> None:
    exact, careful = slope(models[torch.float32], layers), slope(models[torch.float16], layers)
    assert F.cosine_similarity(exact, careful, dim=0) > 0.9999
    assert float(careful.norm() / exact.norm()) == pytest.approx(1, abs=0.01)
    careless = slope(models[torch.float16], layers, careful=False)  # what the same would be without
    assert F.cosine_similarity(exact, careless, dim=0) < 0.999
    assert F.cosine_similarity(exact, slope(models[torch.bfloat16], layers), dim=0) > 0.99


def test_a_float16_climb_goes_as_in_float32(models: dict[torch.dtype, nd.VLM]) -> None:
    """In one pass, in several, and by the loopback; the gradient is clipped, so that a wrong one still would move."""
    vlm = models[torch.float16]
    aims = {kind: nd.from_tensor(model, torch.linspace(-1, 1, 32), 4) for kind, model in models.items()}
    exact = nd.synthesize(models[torch.float32], aims[torch.float32], settings=FEW).history
    for settings in (FEW, FEW.but(at_once=1)):
        found = nd.synthesize(vlm, aims[torch.float16], settings=settings).history
        assert found == pytest.approx(exact, abs=2e-3)
    loop = nd.load(vlm.hf, processor=vlm.processor, family=vlm.family, check=False, remote="local")
    assert nd.synthesize(loop, aims[torch.float16], settings=FEW).history == pytest.approx(exact, abs=2e-3)


def test_float32_and_bfloat16_are_left_as_they_are(
    models: dict[torch.dtype, nd.VLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Magnifier, "pictures", lambda *_: pytest.fail("a gradient is scaled"))
    for kind in (torch.float32, torch.bfloat16):
        nd.synthesize(models[kind], nd.from_tensor(models[kind], torch.ones(32), 1), settings=FEW, steps=1)


def test_a_factor_is_a_power_of_two_and_goes_out_as_it_came_in() -> None:
    x = torch.rand(5, dtype=torch.float32).requires_grad_(True)
    magnifier = Magnifier()
    seen: list[torch.Tensor] = []
    inner = magnifier.pictures(x) * 3
    inner.register_hook(lambda g: seen.append(g))
    out = magnifier.patches(inner * 1.0)
    for size in (1e-9, 1e3):  # chosen anew at each backward pass
        (gradient,) = torch.autograd.grad((out * size).sum(), x, retain_graph=True)
        assert torch.equal(gradient, torch.full((5,), 3.0) * torch.tensor(size))
    factors = [float(seen[0][0] / 1e-9), float(seen[1][0] / 1e3)]
    assert factors == [pytest.approx(2.0**23, rel=1e-6), 1.0]
    (zero,) = torch.autograd.grad((out * 0).sum(), x)
    assert torch.equal(zero, torch.zeros(5))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_what_is_the_packages_own_is_float32(kind: torch.dtype, models: dict[torch.dtype, nd.VLM]) -> None:
    vlm = models[kind]
    seen: list[torch.dtype] = []

    def watch(step: nd.Step) -> torch.Tensor:
        seen.extend(v.dtype for v in (step.pictures, step.views, *step.patches.values()))
        return 0 * step.pictures.flatten(1).sum(1)

    def pooling(values: torch.Tensor, direction: torch.Tensor, grid: Any, progress: float) -> Any:
        seen.extend((values.dtype, direction.dtype))
        return nd.Attention()(values, direction, grid, progress)

    aim = nd.concept(vlm, "bee", 2)
    nd.synthesize(vlm, aim, settings=FEW.but(pooling=pooling), terms=watch, steps=1)
    assert set(seen) == {torch.float32}
    assert (aim.vector.dtype, centre(vlm, nd.Site(2), nd.Grey()).dtype) == (torch.float32, torch.float32)
    assert vlm.dtype == kind


def test_a_common_component_drowns_nothing_that_matters(tiny_parts: tuple) -> None:
    """A hundred times the rest, the same in all patches, is rounded in bfloat16 with them and taken off after."""
    hf, processor = tiny_parts
    common = 100 * torch.linspace(-1, 1, 32)
    seen = {}
    for kind in (torch.float32, torch.bfloat16):
        copied = copy.deepcopy(hf).to(kind)
        copied.model.language_model.layers[1].register_forward_hook(lambda m, a, out: out + common.to(out.dtype))
        vlm = nd.load(copied, processor=processor, check=False)
        values = patches(vlm, torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)), 2)
        seen[kind] = (values - centre(vlm, nd.Site(2), nd.Grey()))[0]
        assert values.norm(dim=-1).median() > 20 * seen[kind].norm(dim=-1).median()
    assert F.cosine_similarity(*seen.values(), dim=-1).min() > 0.98
