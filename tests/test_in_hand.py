"""What a researcher already holds: pipelines, compiled, dispatched, quantised and adapted models, each as it is."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch

import nnsight_dream as nd

PARTS = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
PARTS += [f"model.language_model.{part}" for part in ("embed_tokens", "rotary_emb", "norm")]


class Int8(torch.nn.Module):
    """What bitsandbytes makes of a linear layer: whole numbers and a scale a row, with a backward pass to its input."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("SCB", weight.abs().amax(1, keepdim=True) / 127)
        self.weight = torch.nn.Parameter((weight / self.SCB).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.SCB, self.bias)


class Linear4bit(torch.nn.Linear):
    """As bitsandbytes packs four bits: two numbers a byte in a column, a scale for 64 of them, still a linear layer."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        flat = linear.weight.detach().flatten().view(-1, 64)
        self.register_buffer("absmax", flat.abs().amax(1, keepdim=True))
        levels = ((flat / self.absmax + 1) * 7.5).round().to(torch.uint8).view(-1, 2)
        self.weight = torch.nn.Parameter((levels[:, :1] << 4) | levels[:, 1:], requires_grad=False)
        self.bias = linear.bias

    def unpacked(self) -> torch.Tensor:
        levels = torch.cat([self.weight >> 4, self.weight & 15], dim=1).view(-1, 64)
        return ((levels / 7.5 - 1) * self.absmax).view(self.out_features, self.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.unpacked().to(x.dtype), self.bias)


class Inference(Int8):
    """A kernel for inference, without a backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.detach())


def quantised(hf: Any, kind: Callable[[torch.nn.Linear], torch.nn.Module] = Int8) -> Any:
    for block in hf.model.language_model.layers:
        for part in (block.self_attn, block.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(part, name, kind(child))
    return hf


def whole_numbers_back(hf: Any) -> Any:
    """The plain model of a quantised one's weights."""
    for block in hf.model.language_model.layers:
        for part in (block.self_attn, block.mlp):
            for child in part.children():
                if isinstance(child, torch.nn.Linear):
                    scale = child.weight.detach().abs().amax(1, keepdim=True) / 127
                    with torch.no_grad():
                        child.weight.copy_((child.weight / scale).round() * scale)
    return hf


def pipeline(hf: Any, processor: Any) -> Any:
    import transformers

    return transformers.pipeline("image-text-to-text", model=hf, processor=processor)


def compiled_in_place(hf: Any) -> Any:
    hf.compile(backend="eager")
    for block in hf.model.language_model.layers:
        block.compile(backend="eager")
    return hf


def dispatched(hf: Any, **places: str) -> Any:
    from accelerate import dispatch_model

    hf.tie_weights()
    layers = [f"model.language_model.layers.{i}" for i in range(len(hf.model.language_model.layers))]
    places = {f"model.language_model.layers.{name[1:]}": place for name, place in places.items()}
    folder = tempfile.mkdtemp()
    return dispatch_model(
        hf,
        {**dict.fromkeys([*PARTS, *layers], "cpu"), **places},
        main_device="cpu",
        offload_dir=folder,
        force_hooks=True,
    )


def adapted(hf: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(hf, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=True))
    return tuned  # of no effect until it is trained


HELD: dict[str, Callable[[Any], Any]] = {
    "torch.compile": lambda hf: torch.compile(hf, backend="eager"),
    "module.compile": compiled_in_place,
    "DataParallel": torch.nn.DataParallel,
    "dispatched": dispatched,
    "in part on the disk": lambda hf: dispatched(hf, _1="disk"),
    "LoRA": adapted,
    "compiled LoRA": lambda hf: torch.compile(adapted(hf), backend="eager"),
}


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    return tiny.gemma3()


@pytest.fixture(scope="module")
def plain(parts: tuple[Any, Any]) -> nd.VLM:
    return nd.load(parts[0], processor=parts[1], check=False)


def climb(vlm: nd.VLM) -> nd.Prototype:
    axis = torch.linspace(-1, 1, vlm.width)
    direction = nd.from_tensor(vlm, axis, 3)
    return nd.synthesize(vlm, direction, settings=nd.Settings(), progress=False, steps=2, batch=1, augment=())


@pytest.mark.parametrize("held", HELD)
def test_it_is_climbed_as_the_model_in_it(parts: tuple[Any, Any], plain: nd.VLM, held: str) -> None:
    given = HELD[held](copy.deepcopy(parts[0]))
    programs = {m: vars(m).get("_compiled_call_impl") for m in given.modules()}
    vlm = nd.load(given, processor=parts[1])
    assert climb(vlm).image.tobytes() == climb(plain).image.tobytes()
    assert {m: vars(m).get("_compiled_call_impl") for m in given.modules()} == programs
    assert "_orig_mod" not in vlm.hf._modules


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pipeline_brings_its_processor(parts: tuple[Any, Any], plain: nd.VLM, wrapped: bool) -> None:
    hf = copy.deepcopy(parts[0])
    vlm = nd.load(pipeline(adapted(hf) if wrapped else hf, parts[1]))
    assert vlm.processor is parts[1]
    assert vlm.hf is hf
    assert climb(vlm).image.tobytes() == climb(plain).image.tobytes()


def test_eight_bits_with_a_backward_pass(parts: tuple[Any, Any]) -> None:
    made, same = (nd.load(f(copy.deepcopy(parts[0])), processor=parts[1]) for f in (quantised, whole_numbers_back))
    assert made.dtype == torch.float32
    assert climb(made).history == pytest.approx(climb(same).history, abs=1e-5)
    with pytest.raises(ValueError, match=r"passes on no gradient.*a backward pass \(bitsandbytes has\)"):
        nd.load(quantised(copy.deepcopy(parts[0]), Inference), processor=parts[1])


def test_four_bits_with_a_backward_pass(parts: tuple[Any, Any]) -> None:
    packed, same = quantised(copy.deepcopy(parts[0]), Linear4bit), copy.deepcopy(parts[0])
    for name, layer in packed.named_modules():
        if isinstance(layer, Linear4bit):
            same.get_submodule(name).weight.data = layer.unpacked()
    ways = [nd.load(hf, processor=parts[1]) for hf in (packed, same)]
    assert climb(ways[0]).history == pytest.approx(climb(ways[1]).history, abs=1e-5)
    assert ways[0].width_at("model.language_model.layers.1.mlp.down_proj.input") == 64
    tag = ways[0].weights_tag(2)
    packed.model.language_model.layers[1].mlp.down_proj.weight ^= 1
    assert ways[0].weights_tag(2) != tag


def test_adapters_are_in_force(parts: tuple[Any, Any]) -> None:
    """Of a LoRA that does something: as the weights with it merged in; and switched off as without it."""
    tuned = adapted(copy.deepcopy(parts[0]))
    generator = torch.Generator().manual_seed(0)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator))
    vlm = nd.load(tuned, processor=parts[1])
    merged = nd.load(copy.deepcopy(tuned).merge_and_unload(), processor=parts[1], check=False)
    plain = nd.load(parts[0], processor=parts[1], check=False)
    words = [nd.concept(v, "octopus", layer=3).vector for v in (vlm, merged, plain)]
    torch.testing.assert_close(words[0], words[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(words[0], words[2], atol=1e-2)
    assert climb(vlm).history == pytest.approx(climb(merged).history, abs=2e-5)
    with tuned.disable_adapter():
        assert torch.equal(nd.concept(vlm, "octopus", layer=3).vector, words[2])


def test_what_cannot_be_read_says_why(parts: tuple[Any, Any]) -> None:
    model = copy.deepcopy(parts[0])
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    with pytest.raises(ValueError, match="made a program of a part of this model") as raised:
        nd.load(model, processor=parts[1])
    exec(str(raised.value).rpartition("with ")[2])
    nd.load(model, processor=parts[1], check=False)

    from accelerate import cpu_offload

    with pytest.raises(ValueError, match=r"accelerate keeps all weights of this model off.*dispatch_model"):
        nd.load(cpu_offload(copy.deepcopy(parts[0]), "cpu"), processor=parts[1])
    with torch.device("meta"), pytest.raises(ValueError, match="has no weights yet"):
        nd.load(type(parts[0])(parts[0].config), processor=parts[1])
    with pytest.raises(TypeError, match=r"cannot load a Linear: .* a pipeline of one, .* or a TransformerBridge"):
        nd.load(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("tower", "model.vision_towr", "the nearest are model.vision_tower"),
        ("layers", "model.vision_tower.encoder.layers", "the nearest lists of modules are .*layers"),
        ("begin_id", "boi_token_idx", "the nearest are boi_token_index"),
        ("kinds", {"resid_post": ("mlp.down", "output")}, "the nearest modules mlp.down_proj"),
        ("wrapped", "!{begin}{image}{end}", r"<image_soft_token> \(16 times\)"),
        ("grid", lambda config, pixels: (5, 5), "field 'grid' says"),
    ],
)
def test_errors_of_the_check_are_short(plain: nd.VLM, field: str, value: Any, nearest: str) -> None:
    """Of a record with a wrong field: at most ten lines of a terminal, with the nearest few names."""
    record = dataclasses.replace(plain.family, **{field: value})
    with pytest.raises(ValueError, match=nearest) as raised:
        nd.load(plain.hf, processor=plain.processor, family=record)
    assert field in str(raised.value)
    assert len(str(raised.value)) < 10 * 100
