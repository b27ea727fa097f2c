"""Loading in part and in place: files that are not needed, heads, types, several devices, towers computed anew."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_families
import torch

import nnsight_dream as nd
from nnsight_dream.models.checkpoint import INDEX, default_dtype, wanted
from nnsight_dream.models.families import GEMMA3

SIDE = 112


def grain(seed: int = 0) -> torch.Tensor:
    return 0.4 + 0.2 * torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def gradient(vlm: nd.VLM, layer: int = 2) -> torch.Tensor:
    """Of a fixed functional of a layer's patches, with respect to a fixed picture."""
    x = grain().requires_grad_(True)
    patches = nd.read_pictures(vlm, x, [layer])[vlm.site(layer)]
    return torch.autograd.grad((patches.float() * torch.linspace(-1, 1, patches.shape[-1])).sum(), x)[0]


@pytest.fixture
def shards(tmp_path: Path, tiny_parts: tuple) -> Path:
    """The tiny model in many files."""
    hf, processor = tiny_parts
    hf.save_pretrained(tmp_path, max_shard_size="20KB")
    processor.save_pretrained(tmp_path)
    return tmp_path


def unneeded(folder: Path, up_to_layer: int | None, head: bool) -> list[Path]:
    """The files of which nothing is needed, by the names in the index, sorted out here by hand."""
    files: dict[str, bool] = {}
    for name, file in json.loads((folder / INDEX).read_text())["weight_map"].items():
        words = name.split(".")
        decoder = "language_model" in words
        block = int(words[words.index("layers") + 1]) if decoder and "layers" in words else None
        needed = up_to_layer is None or block is None or block < up_to_layer
        if not head and (words[0] == "lm_head" or (decoder and block is None and "norm" in words)):
            needed = False
        files[file] = files.get(file, False) or needed
    return [folder / file for file, needed in files.items() if not needed]


def test_files_of_higher_layers_may_be_gone_or_broken(shards: Path, tiny_vlm: nd.VLM) -> None:
    spare = unneeded(shards, 1, head=False)
    assert len(spare) >= 4
    for i, file in enumerate(spare):
        if i % 2:
            file.unlink()
        else:
            file.write_bytes(b"broken")
    with pytest.raises(Exception, match=r"."):
        nd.load(shards, check=False)
    vlm = nd.load(shards, up_to_layer=1, head=False)
    picture = grain()
    found, whole = (nd.read_pictures(v, picture, [1])[nd.Site(1)] for v in (vlm, tiny_vlm))
    assert torch.equal(found, whole)
    assert (vlm.hf.name_or_path, vlm.id) == (str(shards), str(shards))


def test_a_part_is_loaded_where_no_links_can_be_made(
    shards: Path, tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows without developer mode refuses symbolic links."""

    def refused(*args: Any, **options: Any) -> None:
        raise OSError(22, "[WinError 1314] A required privilege is not held by the client")

    for name in ("symlink", "link"):
        monkeypatch.setattr(os, name, refused)
    vlm = nd.load(shards, up_to_layer=1, head=False)
    picture = grain()
    found, whole = (nd.read_pictures(v, picture, [1])[nd.Site(1)] for v in (vlm, tiny_vlm))
    assert torch.equal(found, whole)
    assert vlm.hf.generation_config.to_dict() == tiny_vlm.hf.generation_config.to_dict()


def test_the_head_is_kept_unless_left_out(shards: Path, tiny_vlm: nd.VLM) -> None:
    vector = torch.ones(32)
    kept = nd.load(shards, up_to_layer=2, check=False)
    assert nd.top_logits(kept, vector, 2).top == nd.top_logits(tiny_vlm, vector, 2).top
    bare = nd.load(shards, up_to_layer=2, head=False, check=False)
    assert bare.fingerprint(2) == kept.fingerprint(2)
    assert "without a language-model head" in nd.top_logits(bare, vector, 2).note
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(RuntimeError, match="norm was left out at loading"):
        bare.hf(input_ids=ids)
    kept.hf(input_ids=ids)  # as the message says
    with pytest.raises(ValueError, match="head= cannot change a VLM"):
        nd.load(kept, head=False)
    with pytest.raises(ValueError, match="head= can only be given with a hub id or a folder"):
        nd.load(tiny_vlm.hf, processor=tiny_vlm.processor, head=False)


def test_an_untied_head_takes_no_memory(tmp_path: Path) -> None:
    small = tiny_families.build("internvl")
    hf = small.model
    hf.save_pretrained(tmp_path, max_shard_size="20KB")
    small.processor.tokenizer.save_pretrained(tmp_path)
    bare = nd.load(tmp_path, up_to_layer=2, head=False, processor=small.processor, check=False)
    assert not any("lm_head" in name or name.endswith("language_model.norm.weight") for name in bare.hf.state_dict())
    picture = torch.rand(1, 3, *small.size, generator=torch.Generator().manual_seed(0))
    whole = nd.load(hf, processor=small.processor, check=False)
    found, there = (nd.read_pictures(v, picture, [2])[nd.Site(2)] for v in (bare, whole))
    torch.testing.assert_close(found, there, atol=1e-5, rtol=1e-5)


def test_weights_that_are_missing_are_told(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    gone = next(name for name in index["weight_map"] if "layers.0.mlp.up_proj" in name and "vision" not in name)
    del index["weight_map"][gone]
    (shards / INDEX).write_text(json.dumps(index))
    file = next(f for f in shards.glob("*.safetensors") if gone in _names(f))
    _without(file, gone)
    with pytest.raises(ValueError, match=r"holds no weights for .*layers\.0\.mlp\.up_proj"):
        nd.load(shards, up_to_layer=1, check=False)


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as found:
        return list(found.keys())


def _without(file: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    save_file({k: v for k, v in load_file(file).items() if k != name}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", True),
        ("language_model.model.layers.1.mlp.up_proj.weight", False),
        ("model.language_model.layers.12.mlp.up_proj.weight", False),
        ("model.layers.3.self_attn.q_proj.weight", False),
        ("model.text_model.layers.3.self_attn.q_proj.weight", False),
        ("vision_tower.vision_model.encoder.layers.9.mlp.fc1.weight", True),
        ("model.vision_tower.transformer.layers.9.feed_forward.gate_proj.weight", True),
        ("model.vision_model.encoder.layers.9.mlp.fc1.weight", True),
        ("model.audio_tower.layers.9.norm.weight", True),
        ("visual.blocks.9.mlp.fc1.weight", True),
        ("language_model.model.norm.weight", False),
        ("language_model.lm_head.weight", False),
        ("lm_head.weight", False),
        ("model.language_model.embed_tokens.weight", True),
    ],
)
def test_names_of_old_and_new_checkpoints(name: str, needed: bool) -> None:
    assert wanted(name, 1, head=False) is needed
    assert wanted(name, None, head=True)


# -- types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "device_map", "found"),
    [
        (None, None, None),
        ("cpu", None, None),
        (torch.device("cpu"), None, None),
        ("cuda", None, torch.bfloat16),
        ("cuda:1", None, torch.bfloat16),
        (torch.device("mps"), None, torch.bfloat16),
        (None, "cuda", torch.bfloat16),
        (None, 0, torch.bfloat16),
        (None, {"": "cpu"}, None),
        (None, {"a": "cpu", "b": "disk"}, None),
        (None, {"a": 0, "b": "cpu"}, torch.bfloat16),
    ],
)
def test_bfloat16_on_accelerators(device: Any, device_map: Any, found: Any) -> None:
    assert default_dtype(None, device, device_map) is found
    assert default_dtype(torch.float32, device, device_map) is torch.float32


@pytest.mark.parametrize(("there", "found"), [(True, torch.bfloat16), (False, None)])
def test_auto_goes_where_there_is_an_accelerator(monkeypatch: pytest.MonkeyPatch, there: bool, found: Any) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    assert default_dtype(None, None, "auto") is found


def test_the_type_of_a_checkpoint_stays_on_the_cpu(tiny_folder: Path) -> None:
    assert nd.load(tiny_folder, check=False).dtype == torch.float32


def test_float16_is_refused_where_it_overflows(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"exceed float16's largest number.*dtype=torch\.bfloat16, or torch\.float32"):
        nd.load(tiny_folder, dtype=torch.float16)
    for dtype in (torch.bfloat16, torch.float32):  # as the message says
        assert nd.load(tiny_folder, dtype=dtype, check=False).dtype == dtype
    hf, processor = tiny.gemma3(layers=1)
    with pytest.raises(ValueError, match="come out infinite"):
        nd.load(hf.half(), processor=processor)
    own = dataclasses.replace(GEMMA3, overflows=False)
    assert nd.load(hf, processor=processor, family=own, check=False).dtype == torch.float16
    small = tiny_families.build("internvl")
    assert not nd.load(small.model, processor=small.processor, check=False).family.overflows


# -- devices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["cpu", "disk"])
def test_a_device_map(shards: Path, tiny_vlm: nd.VLM, below: str) -> None:
    pytest.importorskip("accelerate")
    places = {"model.vision_tower": "cpu", "model.multi_modal_projector": below, "model.language_model": below}
    vlm = nd.load(shards, up_to_layer=2, head=False, device_map=places, offload_folder=shards / "off", check=False)
    assert any(p.is_meta for p in vlm.hf.parameters()) == (below == "disk")
    assert torch.equal(gradient(vlm), gradient(tiny_vlm))
    assert vlm.device == torch.device("cpu")
    whole = nd.load(shards, check=False)
    assert vlm.weights_tag(1) == whole.weights_tag(1)
    assert vlm.fingerprint(1) == whole.fingerprint(1)
    few = {"steps": 2, "batch": 1, "canvas": nd.MultiResolution(SIDE)}
    made = [nd.synthesize(v, nd.from_tensor(v, torch.ones(32), 2), **few) for v in (vlm, whole)]
    assert made[0].history == made[1].history


def test_device_and_device_map(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="give one of them"):
        nd.load(tiny_folder, device="cpu", device_map="auto")
    assert nd.load(tiny_folder, device_map="auto", check=False).layers == 4


# -- towers computed anew ----------------------------------------------------------------------------------------


def kept(run: Callable[[], Any], weights: list[torch.Tensor]) -> int:
    """Bytes that autograd keeps of a forward pass, each storage once, weights apart."""
    own = {w.untyped_storage().data_ptr() for w in weights}
    sizes: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(storage)  # or another could come to lie at its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    assert result is not None
    return sum(sizes.values())


@pytest.mark.parametrize("name", ["gemma3", "internvl", "qwen2_5_vl"])
def test_a_tower_computed_anew(tiny_parts: tuple, name: str) -> None:
    small = tiny_families.build(name) if name != "gemma3" else None
    hf, processor = (small.model, small.processor) if small else tiny_parts
    options = small.load if small else {}
    plain = nd.load(hf, processor=processor, check=False, **options)
    anew = nd.load(hf, processor=processor, check=False, checkpoint_tower=True, **options)
    before = {path: dict(m.__dict__) for path, m in hf.named_modules()}
    x = torch.rand(1, 3, *plain.image_size, generator=torch.Generator().manual_seed(0)).requires_grad_(True)

    def run(vlm: nd.VLM) -> torch.Tensor:
        return nd.read_pictures(vlm, x, [1])[nd.Site(1)]

    gradients = [torch.autograd.grad(run(v).pow(2).sum(), x)[0] for v in (plain, anew)]
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0
    weights = [*hf.parameters(), *hf.buffers()]
    assert kept(lambda: run(anew), weights) < 0.8 * kept(lambda: run(plain), weights)
    now = {path: dict(m.__dict__) for path, m in hf.named_modules()}
    names = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
    assert all(
        (n in now[path], now[path].get(n)) == (n in was, was.get(n)) for path, was in before.items() for n in names
    )
    assert nd.load(anew) is anew


def test_a_tower_that_cannot_be_computed_anew() -> None:
    small = tiny_families.build("chameleon")
    with pytest.raises(ValueError, match=r"checkpoint_tower=True: .*leave it out"):
        nd.load(small.model, processor=small.processor, check=False, checkpoint_tower=True)


def test_where_memory_is_short_a_climb_begins_again(tiny_parts: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnsight_dream.engine import jobs

    hf, processor = tiny_parts
    vlm, other = (nd.load(hf, processor=processor, check=False) for _ in range(2))
    direction = nd.from_tensor(vlm, torch.ones(32), 1)
    few = {"steps": 2, "batch": 2, "canvas": nd.MultiResolution(SIDE)}
    real = jobs.ascent

    def short(*given: Any) -> Any:
        if not vlm.checkpoint_tower:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given)

    expected = nd.synthesize(other, direction, **few).history
    monkeypatch.setattr(jobs, "ascent", short)
    with pytest.warns(UserWarning, match="the device's memory is too small for a step"):
        found = nd.synthesize(vlm, direction, **few)
    assert found.history == expected
    assert vlm.checkpoint_tower
    monkeypatch.setattr(jobs, "ascent", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out")))
    with pytest.raises(torch.OutOfMemoryError):
        nd.synthesize(vlm, direction, **few)
