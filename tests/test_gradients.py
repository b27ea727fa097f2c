"""Layers without a backward pass, or with a wrong one, are found before a climb follows them; right ones never are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import tiny_families
import torch

import nnsight_dream as nd
from nnsight_dream.models import check, gradients

DECODER, TOWER = "model.language_model.layers", "model.vision_tower.encoder.layers"


class Linear(torch.nn.Module):
    """A linear layer in other hands."""

    def __init__(self, inner: torch.nn.Linear):
        super().__init__()
        self.weight, self.bias = inner.weight, inner.bias


class Kernel(Linear):
    """Of inference alone: no backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.nn.functional.linear(x, self.weight, self.bias)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, by: float) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.by = by
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return ctx.by * (gradient @ ctx.saved_tensors[0]), None, None


class Zero(Linear):
    """A backward pass that gives zeros."""

    by = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = _Scaled.apply(x, self.weight, self.by)
        return y if self.bias is None else y + self.bias


class Half(Zero):
    """A backward pass that gives half."""

    by = 0.5


class Rounded(Linear):
    """Inputs of eight bits, and the gradient straight through the rounding: right, as far as rounding goes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = x.detach().abs().amax() / 127
        return torch.nn.functional.linear(x + ((x / step).round() * step - x).detach(), self.weight, self.bias)


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    return tiny.gemma3(layers=6)


def replaced(base: tuple[Any, Any], path: str, kind: Any, dtype: torch.dtype = torch.float32) -> Any:
    hf = copy.deepcopy(base[0]).to(dtype)
    above, _, name = path.rpartition(".")
    setattr(hf.get_submodule(above), name, kind(hf.get_submodule(path)))
    return hf


def measured(vlm: nd.VLM) -> tuple[float, float]:
    """What autograd says of a rise of the last layer, and what is measured."""
    generator = torch.Generator().manual_seed(0)
    x, d = (torch.rand(1, 3, 112, 112, generator=generator) for _ in range(2))
    x, d = 0.3 + 0.4 * x, 1e-3 * (d - 0.5)

    def rise(y: torch.Tensor) -> torch.Tensor:
        return (nd.read_pictures(vlm, y, [vlm.layers])[nd.Site(vlm.layers)] @ torch.linspace(-1, 1, 32)).sum()

    (gradient,) = torch.autograd.grad(rise(x.requires_grad_()), x)
    with torch.no_grad():
        return float((gradient * d).sum()), float(rise(x + d) - rise(x - d)) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "path",
    [
        f"{DECODER}.5.mlp.down_proj",
        f"{DECODER}.5.self_attn.q_proj",
        f"{TOWER}.1.mlp.fc2",
        f"{DECODER}.3.self_attn.o_proj",
    ],
)
def test_a_layer_without_a_backward_pass_is_named(base: tuple, path: str, dtype: torch.dtype) -> None:
    hf = replaced(base, path, Kernel, dtype)
    with pytest.raises(ValueError, match=rf"{path} \(Kernel\) passes on no gradient.*not quantised.*check=False"):
        nd.load(hf, processor=base[1])
    vlm = nd.load(hf, processor=base[1], check=False)  # for reading alone
    assert nd.concept(vlm, "octopus", 6).norm > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("part", "kind"), [("mlp.gate_proj", Zero), ("mlp.down_proj", Half), ("self_attn.o_proj", Zero)]
)
def test_a_wrong_backward_pass_in_the_last_block_is_found(
    base: tuple, part: str, kind: Any, dtype: torch.dtype
) -> None:
    hf = replaced(base, f"{DECODER}.5.{part}", kind, dtype)
    with pytest.raises(ValueError, match=rf"gradient of {DECODER}\.5 \(Gemma3DecoderLayer\) gives \d+% of the change"):
        nd.load(hf, processor=base[1])
    if dtype == torch.float32 and kind is Zero:  # the fault is real
        said, found = measured(nd.load(hf, processor=base[1], check=False))
        assert abs(said - found) > 0.02 * abs(found)


def test_a_wrong_gradient_of_the_tower_or_projector_is_found(base: tuple) -> None:
    with pytest.raises(ValueError, match=rf"gradient of {TOWER}\.1 \(SiglipEncoderLayer\)"):
        nd.load(replaced(base, f"{TOWER}.1.mlp.fc2", Half), processor=base[1])
    hf = copy.deepcopy(base[0])
    hf.model.multi_modal_projector.register_forward_hook(lambda m, args, out: out * 0.5 + out.detach() * 0.5)
    with pytest.raises(ValueError, match=r"gradient of (model\.multi_modal_projector|the whole model)"):
        nd.load(hf, processor=base[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamic_quantisation_is_refused(base: tuple) -> None:
    hf = torch.ao.quantization.quantize_dynamic(copy.deepcopy(base[0]), {torch.nn.Linear})
    with pytest.raises(ValueError, match=r"gradient of .* gives \d+% of the change|passes on no gradient"):
        nd.load(hf, processor=base[1])


def test_a_hook_or_edit_that_detaches_is_found(base: tuple) -> None:
    import nnsight

    hf = copy.deepcopy(base[0])
    handle = hf.model.language_model.layers[4].register_forward_hook(lambda m, args, out: out.detach())
    with pytest.raises(ValueError, match=rf"{DECODER}\.4 \(Gemma3DecoderLayer\).*look for a hook or an edit"):
        nd.load(hf, processor=base[1])
    handle.remove()
    model = nnsight.NNsight(hf)
    assert nd.load(model, processor=base[1]).unproved == {}
    with model.edit(inplace=True):
        out = model.model.language_model.layers[4].mlp.output
        model.model.language_model.layers[4].mlp.output = out.detach() + 0 * out
    with pytest.raises(ValueError, match=rf"gradient of {DECODER}\.4 \(Gemma3DecoderLayer\)"):
        nd.load(model, processor=base[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding_straight_through_is_no_fault(base: tuple, dtype: torch.dtype) -> None:
    assert nd.load(replaced(base, f"{DECODER}.5.mlp.down_proj", Rounded, dtype), processor=base[1]).unproved == {}


@pytest.mark.parametrize(
    "name", ["gemma4", "gemma4_moe", "qwen3_5", "qwen3_vl_moe", "chameleon", "gemma3n", "internvl"]
)
def test_no_false_alarm_in_bfloat16(name: str) -> None:
    """Wild random weights, experts, keys of earlier layers, words of a code book."""
    made = tiny_families.build(name)
    hf = copy.deepcopy(made.model).to(torch.bfloat16)
    nd.load(hf, processor=made.processor, **made.load, **made.climb)


def test_the_bundled_model_is_proved_here_and_not_at_every_load(demo_vlm: nd.VLM) -> None:
    fresh = nd.load("demo", check=False)
    fresh.is_demo = False
    before = set(gradients._PROVED.get(fresh.hf, ()))
    check.PROOFS["slopes"](fresh)
    assert len(gradients._PROVED[fresh.hf]) == len(before) + 1
    said, found = measured_small(fresh)
    assert said == pytest.approx(found, rel=2e-2)


def measured_small(vlm: nd.VLM) -> tuple[float, float]:
    """As `measured`, along the gradient itself."""
    x = torch.full((1, 3, 32, 32), 0.5).add_(0.1 * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    site = nd.Site(vlm.layers)
    (gradient,) = torch.autograd.grad(nd.read_pictures(vlm, x.requires_grad_(), [site])[site].sum(), x)
    d = 1e-4 * gradient / gradient.abs().max()
    with torch.no_grad():
        ends = [nd.read_pictures(vlm, x + s * d, [site])[site].double().sum() for s in (1, -1)]
    return float((gradient.double() * d).sum()), float(ends[0] - ends[1]) / 2
