"""What a step takes, estimated from shapes, against real models: counted weights, torch's counter, kept bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_families
import torch
from torch.utils.flop_counter import FlopCounterMode

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.engine import optimise
from nnsight_dream.engine.pixels import resize
from nnsight_dream.models.dry_run import DryRun
from nnsight_dream.models.estimate import estimate
from nnsight_dream.models.rates import GPUS, Rate, cpu_rate, gpu_rate

PARTS = ("tower", "projector", "decoder")


def pixels(vlm: nd.VLM, batch: int) -> torch.Tensor:
    return torch.rand(batch, 3, *vlm.image_size, generator=torch.Generator().manual_seed(0)).requires_grad_(True)


def counted(vlm: nd.VLM, layer: int, batch: int) -> int:
    """Operations of a real forward and backward pass to the pixels, by torch's own counter."""
    x = pixels(vlm, batch)
    nd.read_pictures(vlm, x, [layer])  # masks are made once
    with FlopCounterMode(display=False) as counter:
        patches = nd.read_pictures(vlm, x, [layer])[vlm.site(layer)]
        torch.autograd.grad(patches.sum(), x)
    return counter.get_total_flops()


def kept(vlm: nd.VLM, layer: int, batch: int) -> int:
    """Bytes that autograd keeps of a real forward pass, each storage once, weights and the picture apart."""
    x = pixels(vlm, batch)
    nd.read_pictures(vlm, x, [layer])
    weights = (x, *vlm.hf.parameters(), *vlm.hf.buffers())
    seen = {w.untyped_storage().data_ptr(): 0 for w in weights}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen.setdefault(storage.data_ptr(), storage.nbytes())
        held.append(storage)  # or another could come to lie at its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        nd.read_pictures(vlm, x, [layer])
    return sum(seen.values())


def by_parts(found: Any) -> int:
    return sum(found[name] for name in PARTS)


def model(attention: str, **sizes: Any) -> tuple[nd.VLM, Any, Any]:
    hf, processor = tiny.gemma3(**sizes)
    hf.set_attn_implementation(attention)
    return nd.load(hf, processor=processor, check=False), hf.config, processor


def test_parameters_are_those_of_the_model(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    found = estimate(hf.config, 3, processor=processor)
    names = dict(hf.named_parameters())
    assert sum(found.parameters.values()) == sum(p.numel() for p in names.values())
    for part, path in (("tower", "model.vision_tower."), ("projector", "model.multi_modal_projector.")):
        assert found.parameters[part] == sum(p.numel() for n, p in names.items() if n.startswith(path))
    text = "model.language_model."
    blocks = [p.numel() for n, p in names.items() if n.startswith(tuple(f"{text}layers.{i}." for i in range(3)))]
    assert found.parameters["blocks"] == sum(blocks)
    assert found.parameters["embedding"] == names[f"{text}embed_tokens.weight"].numel()
    assert found.weights == {name: 4 * n for name, n in found.parameters.items() if name != "unused"}
    halved = estimate(hf.config, 3, processor=processor, dtype=torch.bfloat16)
    assert sum(halved.weights.values()) * 2 == sum(found.weights.values())


@pytest.mark.parametrize(("layer", "batch"), [(1, 1), (3, 2)])
def test_operations_are_those_that_torch_counts(layer: int, batch: int) -> None:
    vlm, config, processor = model("eager")
    found = estimate(config, layer, processor=processor, attention="eager", batch=batch, canvas=112)
    assert by_parts(found.flops) == counted(vlm, layer, batch)
    # and by hand: every weight of a block's matrices is used twice (forward, and backward to its input) by each token
    text, tokens = config.text_config, found.prompt_tokens
    shallower = estimate(config, layer + 1, processor=processor, attention="eager", batch=batch, canvas=112)
    matrices = (2 * text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim * text.hidden_size
    matrices += 3 * text.hidden_size * text.intermediate_size
    pairs = text.num_attention_heads * tokens**2 * text.head_dim
    by_hand = batch * (2 * 2 * tokens * matrices + 2 * pairs * (2 + 4))  # backward: two products for each of the two
    assert shallower.flops["decoder"] - found.flops["decoder"] == by_hand


def test_kernels_that_keep_no_attention_weights() -> None:
    _, config, processor = model("sdpa")
    whole = estimate(config, 1, processor=processor, attention="eager", canvas=112)
    fused = estimate(config, 1, processor=processor, canvas=112)
    vision, text = config.vision_config, config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2
    scores = 2 * vision.num_hidden_layers * patches**2 * vision.hidden_size
    assert fused.flops["tower"] - whole.flops["tower"] == scores  # computed anew in the backward pass
    scores = 2 * text.num_attention_heads * text.head_dim * fused.prompt_tokens**2
    assert fused.flops["decoder"] - whole.flops["decoder"] == scores
    assert fused.kept["tower"] < whole.kept["tower"]
    on_gpu = estimate(config, 1, processor=processor, canvas=112, device="cuda", dtype=torch.float32)
    assert on_gpu.flops["tower"] == fused.flops["tower"]


MID = {"layers": 2, "hidden": 64, "image": 224, "vision_hidden": 48, "vision_layers": 3}


@pytest.mark.parametrize(("attention", "batch"), [("sdpa", 1), ("sdpa", 3), ("eager", 1)])
def test_what_is_kept_for_the_backward_pass(attention: str, batch: int) -> None:
    vlm, config, processor = model(attention, **MID)
    found = estimate(config, 2, processor=processor, attention=attention, batch=batch, canvas=224)
    given = 4 * batch * 3 * 224**2  # the pixels, made before the tower
    assert by_parts(found.kept) + given == pytest.approx(kept(vlm, 2, batch), rel=0.06)


def test_a_checkpointed_tower() -> None:
    vlm, config, processor = model("sdpa", **MID)
    plain, spare = (estimate(config, 2, processor=processor, canvas=224, checkpoint_tower=c) for c in (False, True))
    vlm.checkpoint_tower = True
    assert by_parts(spare.kept) + 4 * 3 * 224**2 == pytest.approx(kept(vlm, 2, 1), rel=0.06)
    assert spare.kept["tower"] < plain.kept["tower"] / 3
    assert sum(spare.kept.values()) < sum(plain.kept.values())
    assert 1.2 < spare.flops["tower"] / plain.flops["tower"] < 1.5  # a forward pass more
    assert spare.flops["decoder"] == plain.flops["decoder"]


@pytest.mark.parametrize("name", ["internvl", "qwen3_vl", "idefics3", "gemma4_vision", "pixtral"])
def test_other_families(name: str) -> None:
    small = tiny_families.build(name)
    options = {k: v for k, v in small.load.items() if k == "image_size"}
    small.model.set_attn_implementation("eager")
    vlm = nd.load(small.model, processor=small.processor, check=False, **options)
    found = estimate(vlm.config, 2, processor=small.processor, attention="eager", canvas=56, **options)
    assert (found.grid, found.prompt_tokens) == (vlm.grid, len(vlm.image_prompt.ids))
    assert by_parts(found.flops) == pytest.approx(counted(vlm, 2, 1), rel=0.02)
    assert sum(found.parameters.values()) == sum(p.numel() for p in small.model.parameters())


def test_a_config_alone(tmp_path: Path, tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    hf.config.save_pretrained(tmp_path)
    found, whole = estimate(tmp_path, 2), estimate(hf.config, 2, processor=processor)
    assert (found.grid, found.image_size) == (whole.grid, whole.image_size)
    assert any("112 x 112 pixels, by the config" in told for told in found.assumed)
    assert abs(found.prompt_tokens - whole.prompt_tokens) < 20
    assert whole.assumed == ()
    assert found.flops["tower"] == whole.flops["tower"]
    assert found.weights == whole.weights
    with pytest.raises(ValueError, match=r"does not tell how .* pass processor="):
        estimate(tiny_families.build("gemma4_vision").model.config, 2)


def test_memory_and_time_add_up(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    found = estimate(hf.config, "blocks.1.hook_resid_post", processor=processor, canvas=64)
    assert found.layer == 2
    assert found.memory == sum(found.weights.values()) + found.step_bytes + found.own_bytes
    side = 3 * 4 * sum(r**2 for r in nd.MultiResolution(64).ladder)
    assert found.canvas_bytes == 3 * side
    assert found.seconds(Rate("x", sum(found.flops.values()), found.moved)) == pytest.approx(2.0)
    assert dataclasses.is_dataclass(found)
    assert json.loads(json.dumps(found.to_dict()))["memory_bytes"] == found.memory
    measured = cpu_rate()
    assert measured.flops > 1e8
    assert measured.bytes > 1e7
    assert gpu_rate("H100", "bfloat16").flops < 1e12 * GPUS["H100"][0]
    with pytest.raises(ValueError, match="there are A100"):
        gpu_rate("Z80", "float32")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"batch": 0}, "batch=0: a whole number of at least 1"),
        ({"canvas": True}, "canvas=True"),
        ({"device": "tpu"}, "'cpu' or 'cuda'"),
        ({"attention": "flex"}, "'sdpa' or 'eager'"),
        ({"layer": 9}, "the nearest is layer=4"),
        ({"image_size": 50}, "image_size=50"),
    ],
)
def test_wrong_arguments(tiny_parts: tuple, wrong: dict[str, Any], told: str) -> None:
    hf, processor = tiny_parts
    with pytest.raises(ValueError, match=told):
        estimate(hf.config, processor=processor, **wrong)


def test_what_cannot_be_estimated(tiny_parts: tuple) -> None:
    from transformers import BertConfig

    with pytest.raises(TypeError, match="give 'demo', a hub id, a folder or a Hugging Face config"):
        estimate(tiny_parts[0], 1)
    with pytest.raises(ValueError, match="no family record for model_type 'bert'"):
        estimate(BertConfig(), 1)
    with pytest.raises(FileNotFoundError):
        estimate(Path("nowhere"), 1)


def test_inspect_reads_no_weights(tmp_path: Path, tiny_parts: tuple, capsys: pytest.CaptureFixture) -> None:
    hf, processor = tiny_parts
    hf.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    told = ["inspect", str(tmp_path), "--layer", "2", "--batch", "2", "--config-only"]
    assert cli.main([*told, "--json"]) == 0
    step = json.loads(capsys.readouterr().out)["step"]
    assert (step["cpu"]["layer"], step["cpu"]["batch"], step["cuda"]["dtype"]) == (2, 2, "bfloat16")
    assert cli.main([*told, "--dtype", "float32", "--checkpoint-tower"]) == 0
    text = capsys.readouterr().out
    assert "GPU memory, float32" in text
    assert "4 x 4 image tokens" in text
    assert "none was seen" in text


def test_the_step_is_the_engines_own(tiny_parts: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    hf, processor = tiny_parts
    before = estimate(hf.config, 2, processor=processor, canvas=64)
    slopes, steps = optimise.slopes, []

    def reading_twice(read: Any, terms: Any, plan: Any, pictures: Any, views: Any, *rest: Any) -> Any:
        steps.append(plan.steps)
        with torch.no_grad():
            read(views)
        return slopes(read, terms, plan, pictures, views, *rest)

    monkeypatch.setattr(optimise, "slopes", reading_twice)
    after = estimate(hf.config, 2, processor=processor, canvas=64)
    assert steps == [1]
    assert after.flops["tower"] > 1.3 * before.flops["tower"]  # a forward pass more


def test_nothing_of_a_dry_run_stays() -> None:
    """Lanczos weights are remembered between steps; those of a dry run have no values."""
    pictures = torch.rand(1, 3, 41, 41)
    with DryRun({}, [], "eager").counting():
        resize(torch.empty(1, 3, 41, 41, device="meta"), (17, 17), 1)
    assert torch.isfinite(resize(pictures, (17, 17), 1)).all()
