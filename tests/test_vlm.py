"""Loading: from wherever, changing nothing, reading no more than needed; and a check that finds what is wrong."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.engine.pixels import PixelFormat, plain_pixels
from nnsight_dream.models.families import GEMMA3
from nnsight_dream.state.changes import spread

SIDE, GRID = 112, 4


def noise(*size: int, seed: int = 0) -> np.ndarray:
    """An 8-bit picture (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def tensor(picture: np.ndarray) -> torch.Tensor:
    """The same as (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def plain(hf: torch.nn.Module, processor: Any, picture: np.ndarray) -> list[torch.Tensor]:
    """Hidden states at the image tokens by the model's own processor and a full forward pass."""
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    given = processor(text=[text], images=[[Image.fromarray(picture)]], add_special_tokens=False, return_tensors="pt")
    given["pixel_values"] = given["pixel_values"].to(next(hf.parameters()).dtype)
    with torch.no_grad():
        states = hf(**given, output_hidden_states=True).hidden_states
    return [state[:, given["input_ids"][0] == hf.config.image_token_id] for state in states]


# -- where from --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["model", "str", "path", "NNsight", "TransformersModel"])
def test_every_way_in_gives_the_same_activations(way: str, tiny_parts: tuple, tiny_folder: Path) -> None:
    hf, processor = tiny_parts
    if way == "model":
        vlm = nd.load(hf, processor=processor)
    elif way == "str":
        vlm = nd.load(str(tiny_folder))
    elif way == "path":
        vlm = nd.load(tiny_folder)
    elif way == "NNsight":
        wrapped = nnsight.NNsight(hf)
        vlm = nd.load(wrapped, processor=processor)
        assert vlm.model is wrapped
    else:
        wrapped = nnsight.TransformersModel(hf, processor=processor, task="image-text-to-text")
        vlm = nd.load(wrapped)
        assert vlm.model is wrapped
        assert vlm.processor is processor
    if way in ("str", "path"):
        assert vlm.id == str(tiny_folder)
    else:
        assert vlm.hf is hf
    assert (vlm.layers, vlm.width, vlm.grid, vlm.image_size) == (4, 32, (GRID, GRID), (SIDE, SIDE))
    picture = noise(SIDE, SIDE)
    states = plain(hf, processor, picture)
    found = nd.read_pictures(vlm, tensor(picture), [1, 3])
    for layer in (1, 3):
        torch.testing.assert_close(found[nd.Site(layer)], states[layer], atol=2e-5, rtol=1e-4)
    ids = torch.tensor([[2, 40, 50, 60]])
    text = nd.read_text(vlm, ids, torch.ones_like(ids), [2])[nd.Site(2)]
    with torch.no_grad():
        torch.testing.assert_close(text, hf(ids, output_hidden_states=True).hidden_states[2], atol=2e-5, rtol=1e-4)


def test_a_vlm_is_loaded_already(tiny_vlm: nd.VLM) -> None:
    assert nd.load(tiny_vlm) is tiny_vlm
    with pytest.raises(ValueError, match="up_to_layer= cannot change a VLM"):
        nd.load(tiny_vlm, up_to_layer=2)


def test_device_and_dtype_go_to_from_pretrained(tiny_folder: Path) -> None:
    vlm = nd.load(tiny_folder, device="cpu", dtype=torch.bfloat16, check=False)
    assert (vlm.device, vlm.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert "bfloat16 on cpu" in repr(vlm)


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"dtype": torch.float16}, {"up_to_layer": 1}, {"token": "x"}])
def test_a_model_in_hand_is_kept_as_it_is(tiny_parts: tuple, options: dict[str, Any]) -> None:
    hf, processor = tiny_parts
    with pytest.raises(ValueError, match=f"{next(iter(options))}= can only be given with a hub id or a folder"):
        nd.load(hf, processor=processor, **options)


@pytest.mark.parametrize("wrong", ["procesor", "up_to_layers", "familly"])
def test_a_misspelt_keyword(tiny_parts: tuple, wrong: str) -> None:
    with pytest.raises(TypeError, match="did you mean") as error:
        nd.load(tiny_parts[0], **{wrong: None})
    assert str(error.value).split("did you mean ")[1] in ("processor=?", "up_to_layer=?", "family=?")


@pytest.mark.parametrize("x", [3, None, torch.nn.Linear(2, 2), nnsight.NNsight(torch.nn.Linear(2, 2))])
def test_what_is_no_model(x: object) -> None:
    with pytest.raises(TypeError, match="give 'demo', a hub id, a folder"):
        nd.load(x)


def test_a_missing_processor(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    with pytest.raises(ValueError, match="pass processor="):
        nd.load(hf)
    with pytest.raises(ValueError, match=r"a tokenizer and an image processor; .* does not"):
        nd.load(hf, processor=processor.tokenizer)
    assert nd.load(hf, processor=processor, check=False).processor is processor


def test_a_missing_folder(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give an existing folder"):
        nd.load(tmp_path / "none")
    assert nd.load(tiny_folder, check=False).layers == 4


def test_no_weights_yet(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    with torch.device("meta"):
        empty = type(hf)(hf.config)
    with pytest.raises(ValueError, match="no weights yet"):
        nd.load(empty, processor=processor)


def test_an_unknown_family_and_a_record_for_it(tiny_vlm: nd.VLM) -> None:
    hf, processor = tiny.gemma3()
    hf.config.model_type = "gemma9"
    with pytest.warns(UserWarning, match="no family record for model_type 'gemma9'"):
        vlm = nd.load(hf, processor=processor)
    picture = tensor(noise(SIDE, SIDE))
    for kind in ("resid_post", "attn_out"):
        site = vlm.site(3, kind)
        assert torch.equal(
            nd.read_pictures(vlm, picture, [site])[site], nd.read_pictures(tiny_vlm, picture, [site])[site]
        )
    record = dataclasses.replace(GEMMA3, name="gemma9", model_types=("gemma9",))
    assert nd.load(hf, processor=processor, family=record).family is record


def test_a_chat_template_that_only_the_processor_has(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    bare = tiny.processor()
    bare.tokenizer.chat_template = None
    vlm = nd.load(hf, processor=bare)
    assert torch.equal(vlm.image_prompt.ids, nd.load(hf, processor=processor, check=False).image_prompt.ids)


# -- nothing of the user's is changed ----------------------------------------------------------------------------

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def belongings(hf: Any, processor: Any) -> dict[str, Any]:
    """Everything about a user's model that must stay as it is."""
    modules = dict(hf.named_modules())
    return {
        "training": {name: m.training for name, m in modules.items()},
        "hooks": {name: [len(getattr(m, hooks)) for hooks in HOOKS] for name, m in modules.items()},
        "requires_grad": {name: p.requires_grad for name, p in hf.named_parameters()},
        "grad": {name: None if p.grad is None else p.grad.clone() for name, p in hf.named_parameters()},
        "weights": {name: t.clone() for name, t in hf.state_dict().items()},
        "identity": {name: id(p) for name, p in hf.named_parameters()},
        "dtype": {p.dtype for p in hf.parameters()},
        "attention": (hf.config._attn_implementation, hf.config.get_text_config()._attn_implementation),
        "config": hf.config.to_json_string(),
        "generation": hf.generation_config.to_json_string(),
        "tokenizer": (processor.tokenizer.padding_side, processor.tokenizer.chat_template, len(processor.tokenizer)),
        "images": processor.image_processor.to_json_string(),
        "chance": torch.random.get_rng_state(),
        "global": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()),
    }


def same(a: Any, b: Any) -> bool:
    """Equal, bit for bit where there are tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def used() -> tuple:
    """A model as a user may hold it: half frozen, partly in training mode, gradients gathered, a hook of their own."""
    hf, processor = tiny.gemma3(seed=4, layers=2)
    for i, parameter in enumerate(hf.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    hf.model.language_model.train()
    hf.model.language_model.layers[1].eval()
    hf.model.language_model.norm.weight.grad = torch.ones_like(hf.model.language_model.norm.weight)
    hf.model.language_model.layers[0].register_forward_hook(lambda module, args, output: None)
    processor.tokenizer.padding_side = "left"
    return hf, processor


def test_nothing_of_the_users_is_changed(used: tuple) -> None:
    hf, processor = used
    picture = noise(SIDE, SIDE)
    answer = plain(hf, processor, picture)  # first: Hugging Face leaves hooks of its own for hidden states
    before = belongings(hf, processor)

    def stop(step: int, scores: torch.Tensor) -> None:
        raise KeyboardInterrupt

    vlm = nd.load(hf, processor=processor)
    octopus = nd.concept(vlm, "octopus", [1, 2], cache=False)
    nd.contrast(vlm, "red", "green", 1)
    nd.from_images(vlm, Image.fromarray(picture), 1)
    nd.read_pictures(vlm, torch.rand(1, 3, 40, 40, requires_grad=True), [nd.Site(1, "mlp.act_fn.output"), 1, 2])
    few = {"steps": 2, "batch": 1, "canvas": nd.Pixels(24), "augment": ()}
    nd.synthesize(vlm, octopus, **few, terms=[nd.TotalVariation(0.1), nd.Away(octopus[0])])
    assert nd.synthesize(vlm, octopus[0], progress=stop, **few).interrupted
    with pytest.raises(FloatingPointError):
        nd.synthesize(vlm, octopus[0], score=lambda r, v: r.sum(-1) * float("nan"), **few)
    torch.random.set_rng_state(before["chance"])  # torch.rand above is ours
    after = belongings(hf, processor)
    assert [name for name in before if not same(before[name], after[name])] == []
    assert all(torch.equal(a, b) for a, b in zip(answer, plain(hf, processor, picture), strict=True))


def test_the_users_source_of_chance_is_not_drawn_from(used: tuple) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    vlm = nd.load(used[0], processor=used[1])
    nd.synthesize(vlm, nd.concept(vlm, "bee", 1, cache=False), steps=2, batch=2, canvas=nd.Fourier(24))
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_mode_bears_on_nothing(tiny_parts: tuple) -> None:
    hf, processor = tiny.gemma3(layers=2)
    for module in hf.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    hf.train()
    vlm = nd.load(hf, processor=processor)
    picture = noise(SIDE, SIDE)
    found = nd.read_pictures(vlm, tensor(picture), [1])[nd.Site(1)]
    assert hf.training
    torch.testing.assert_close(found, plain(hf.eval(), processor, picture)[1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_that_was_chosen_is_the_one_that_runs(attention: str) -> None:
    hf, processor = tiny.gemma3(layers=3)
    hf.set_attn_implementation("sdpa" if attention == "eager" else "eager")
    vlm = nd.load(hf, processor=processor)
    picture = noise(SIDE, SIDE, seed=3)
    nd.read_pictures(vlm, tensor(picture), [2])
    hf.set_attn_implementation(attention)  # the user's right, at any time
    # nothing is masked for image tokens themselves: what a wrong mask does to the words before shows one layer later
    found = nd.read_pictures(vlm, tensor(picture), [2])[nd.Site(2)]
    torch.testing.assert_close(found, plain(hf, processor, picture)[2], atol=2e-5, rtol=1e-4)
    assert hf.config._attn_implementation == attention


# -- only the layers that are needed -----------------------------------------------------------------------------


def test_up_to_a_layer_equals_the_whole(tiny_parts: tuple, tiny_folder: Path) -> None:
    hf, processor = tiny_parts
    picture = noise(SIDE, SIDE, seed=1)
    states = plain(hf, processor, picture)
    for layers in (1, 3):
        cut = nd.load(tiny_folder, up_to_layer=layers)
        assert cut.layers == layers
        found = nd.read_pictures(cut, tensor(picture), [layers])[nd.Site(layers)]
        torch.testing.assert_close(found, states[layers], atol=2e-5, rtol=1e-4)
        with pytest.raises(ValueError, match=f"layers 1 to {layers}; .* The checkpoint has 4; load with a larger"):
            cut.site(layers + 1)
        assert nd.load(tiny_folder, up_to_layer=layers + 1, check=False).site(layers + 1).layer == layers + 1


@pytest.mark.parametrize("layers", [0, 5, -1, True, 1.0, "2"])
def test_up_to_a_layer_that_is_not_there(tiny_folder: Path, layers: object) -> None:
    with pytest.raises(ValueError, match="has layers 1 to 4"):
        nd.load(tiny_folder, up_to_layer=layers)  # type: ignore[arg-type]


def decoder_layers(names: set[str]) -> set[int]:
    """Which decoder layers the tensors of a checkpoint belong to."""
    found = (re.search(r"language_model.*layers\.(\d+)\.", name) for name in names)
    return {int(match[1]) for match in found if match}


class Watched:
    """A safetensors file that notes which tensors are really read from it."""

    def __init__(self, file: Any, read: set[str]) -> None:
        self.file, self.read = file, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def get_slice(self, name: str) -> Any:
        inner, read = self.file.get_slice(name), self.read

        class Slice:
            def __getattr__(self, attribute: str) -> Any:
                return getattr(inner, attribute)

            def __getitem__(self, index: Any) -> torch.Tensor:
                read.add(name)
                return inner[index]

        return Slice()

    def get_tensor(self, name: str) -> torch.Tensor:
        self.read.add(name)
        return self.file.get_tensor(name)


def test_weights_above_are_never_read(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.modeling_utils as modeling

    read: set[str] = set()
    real = modeling.safe_open
    monkeypatch.setattr(modeling, "safe_open", lambda *args, **kwargs: Watched(real(*args, **kwargs), read))
    nd.load(tiny_folder, check=False)
    assert decoder_layers(read) == {0, 1, 2, 3}
    read.clear()
    nd.load(tiny_folder, up_to_layer=2, check=False)
    assert decoder_layers(read) == {0, 1}


def _peak() -> int:
    """The most memory this process has had since the last reset, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def _resident() -> int:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


@pytest.fixture(scope="module")
def tall_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose decoder layers weigh 8 MB each and all else little."""
    folder = tmp_path_factory.mktemp("tall")
    hf, processor = tiny.gemma3(layers=1, vision_layers=1)
    text = hf.config.text_config
    text.num_hidden_layers, text.intermediate_size, text.layer_types = 12, 2**16 // 3, ["sliding_attention"] * 12
    big = type(hf)(hf.config)
    big.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_peak_memory_shows_it(tall_folder: Path) -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not let a process reset its peak memory")

    def grown(**options: Any) -> int:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident()
        # in another type, since weights kept as they are stay in the file until they are used
        vlm = nd.load(tall_folder, check=False, dtype=torch.bfloat16, **options)
        assert vlm.layers == options.get("up_to_layer", 12)
        return _peak() - before

    layer = 2 * 3 * 32 * (2**16 // 3)
    grown(up_to_layer=1)  # what a first load leaves behind counts for nobody
    cut, whole = grown(up_to_layer=1), grown()
    assert whole > 11 * layer, (cut, whole, layer)
    assert cut < 4 * layer, (cut, whole, layer)


def test_up_to_a_layer_with_several_files(tmp_path: Path, tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    hf.save_pretrained(tmp_path, max_shard_size="60KB")
    processor.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 3
    picture = noise(SIDE, SIDE, seed=2)
    found = nd.read_pictures(nd.load(tmp_path, up_to_layer=2), tensor(picture), [2])[nd.Site(2)]
    torch.testing.assert_close(found, plain(hf, processor, picture)[2], atol=2e-5, rtol=1e-4)


# -- the check ---------------------------------------------------------------------------------------------------


def other_numbers(pictures: torch.Tensor, pixels: PixelFormat) -> dict[str, torch.Tensor]:
    return plain_pixels(pictures, dataclasses.replace(pixels, mean=(0.4, 0.5, 0.5)))


def other_shape(pictures: torch.Tensor, pixels: PixelFormat) -> dict[str, torch.Tensor]:
    return {name: value[:, None] for name, value in plain_pixels(pictures, pixels).items()}


BROKEN = [
    ("root", "modell"),
    ("layers", "model.language_model.blocks"),
    ("tower", "model.vision_model"),
    ("projector", "model.connector"),
    ("grid", lambda config, pixels: (2, 8)),
    ("grid", lambda config, pixels: (3, 3)),
    ("grid", lambda config, pixels: (5, 5)),
    ("wrapped", "{begin}{image}{end}"),
    ("wrapped", "\n\n{image}{end}\n\n"),
    ("wrapped", "\n\n{begin}{end}\n\n"),
    ("placeholder", "{image}"),
    ("placeholder", "<image>"),
    ("begin_id", "image_start_token_id"),
    ("end_id", "image_end_token_id"),
    ("pack", other_numbers),
    ("pack", other_shape),
    ("extra", lambda ids, image: {}),
    ("extra", lambda ids, image: {"token_type_ids": torch.zeros_like(ids)}),
    ("kinds", {**GEMMA3.kinds, "attn_out": ("self_attention", "output")}),
    ("kinds", {**GEMMA3.kinds, "attn_out": ("post_attention_layernorm", "result")}),
]


@pytest.mark.parametrize(("field", "value"), BROKEN)
def test_check_names_the_field_that_is_wrong(tiny_parts: tuple, field: str, value: Any) -> None:
    hf, processor = tiny_parts
    wrong = dataclasses.replace(GEMMA3, **{field: value})
    names = rf"family gemma3: fields? .*'{field}'|\(family gemma3, field '{field}'\)|record's '{field}' field"
    with pytest.raises(ValueError, match=names) as error:
        nd.load(hf, processor=processor, family=wrong)
    # following the advice, that is mending that field, helps
    mended = dataclasses.replace(wrong, **{field: getattr(GEMMA3, field)})
    assert nd.load(hf, processor=processor, family=mended).grid == (GRID, GRID)
    assert len(str(error.value)) < 2000


def test_a_path_that_is_there_but_leads_elsewhere(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    for field, path in (("root", "model.language_model"), ("layers", "model.vision_tower.encoder.layers")):
        with pytest.raises(ValueError, match=field):
            nd.load(hf, processor=processor, family=dataclasses.replace(GEMMA3, **{field: path}))


def test_check_can_be_skipped(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    wrong = dataclasses.replace(GEMMA3, projector="model.connector")
    vlm = nd.load(hf, processor=processor, family=wrong, check=False)
    with pytest.raises(ValueError, match="'projector'"):
        nd.check(vlm)
    vlm.family = GEMMA3
    nd.check(vlm)


def test_masks_are_only_a_saving(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    with_masks = nd.load(hf, processor=processor)
    without = nd.load(hf, processor=processor, family=dataclasses.replace(GEMMA3, masks=False))
    picture = tensor(noise(SIDE, SIDE)).repeat(2, 1, 1, 1)
    a, b = (nd.read_pictures(vlm, picture, [4])[nd.Site(4)] for vlm in (with_masks, without))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_other_numbers_than_the_processors(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    for name, value in (("mean", (0.5, 0.5, 0.4)), ("std", (0.5, 0.25, 0.5)), ("resample", 3)):
        vlm = nd.load(hf, processor=processor, check=False)
        right = vlm.pixels
        vlm.pixels = dataclasses.replace(right, **{name: value})
        with pytest.raises(ValueError, match=rf"'pack' differs .* numbers used: .*{name}="):
            nd.check(vlm)
        vlm.pixels = right
        nd.check(vlm)


def test_a_processor_that_cuts_pictures_up(tiny_parts: tuple) -> None:
    hf, _ = tiny_parts
    processor = tiny.processor()
    pictures = processor.image_processor
    pictures.do_pan_and_scan, pictures.pan_and_scan_min_crop_size = True, 8
    pictures.pan_and_scan_max_num_crops, pictures.pan_and_scan_min_ratio_to_activate = 4, 1.2
    with pytest.raises(ValueError, match=r"'pack' .*tiling or splitting must be off"):
        nd.load(hf, processor=processor)
    pictures.do_pan_and_scan = False
    nd.load(hf, processor=processor)


def test_a_projector_of_zeros(tiny_parts: tuple) -> None:
    hf, processor = tiny.gemma3(layers=1)
    with torch.no_grad():
        hf.model.multi_modal_projector.mm_input_projection_weight.zero_()
    with pytest.raises(ValueError, match=r"reaches 0% of the pixels.*projector of zeros.*randomise it"):
        nd.load(hf, processor=processor)
    tiny.randomise(hf)
    nd.load(hf, processor=processor)


def test_weights_that_are_not_finite(tiny_parts: tuple) -> None:
    hf, processor = tiny.gemma3(layers=1)
    with torch.no_grad():
        hf.model.multi_modal_projector.mm_input_projection_weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="is not finite"):
        nd.load(hf, processor=processor)


# -- numbers -----------------------------------------------------------------------------------------------------


def test_bfloat16_is_close_to_float32(tiny_parts: tuple, tiny_folder: Path) -> None:
    hf, processor = tiny_parts
    vlm = nd.load(tiny_folder, dtype=torch.bfloat16)
    picture = noise(SIDE, SIDE)
    states = plain(hf, processor, picture)
    x = tensor(picture).requires_grad_(True)
    found = nd.read_pictures(vlm, x, [1, 3])
    for layer in (1, 3):
        half = found[nd.Site(layer)]
        assert half.dtype == torch.bfloat16
        assert (half.float() - states[layer]).norm() / states[layer].norm() < 0.05
        assert not torch.equal(half.float(), states[layer])
    (gradient,) = torch.autograd.grad(found[nd.Site(1)].float().square().sum(), x)
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    assert (gradient != 0).float().mean() > 0.9
    d = nd.concept(vlm, "octopus", 2, cache=False)
    made = nd.synthesize(vlm, d, steps=3, batch=1, canvas=nd.Pixels(32), augment=())
    whole = nd.synthesize(nd.load(tiny_folder), d, steps=3, batch=1, canvas=nd.Pixels(32), augment=())
    np.testing.assert_allclose(made.history, whole.history, atol=0.05)
    assert made.history != whole.history


@pytest.mark.parametrize("resample", [1, 2, 3])
@pytest.mark.parametrize("size", [(112, 112), (64, 64), (300, 300), (90, 200), (111, 113)])
def test_pixels_equal_the_processors(tiny_parts: tuple, resample: int, size: tuple[int, int]) -> None:
    hf, _ = tiny_parts
    processor = tiny.processor()
    pictures = processor.image_processor
    pictures.resample, pictures.image_mean, pictures.image_std = resample, [0.48, 0.45, 0.41], [0.27, 0.26, 0.5]
    vlm = nd.load(hf, processor=processor, check=False)
    picture = noise(*size, seed=5)
    theirs = pictures(images=[Image.fromarray(picture)], return_tensors="pt")["pixel_values"]
    mine = vlm.pack(tensor(picture))["pixel_values"]
    assert mine.shape == theirs.shape == (1, 3, SIDE, SIDE)
    # elsewhere PIL rounds to 8 bits once or twice: at most about one step, and none on average
    step = (mine - theirs) * torch.tensor(pictures.image_std).view(3, 1, 1) * 255
    if size == (SIDE, SIDE):
        assert (mine - theirs).abs().max() <= 1e-6
    else:
        assert step.abs().max() <= (1.1 if resample > 1 else 1.3)  # what Lanczos overshoots is rounded too
        assert step.mean().abs() < 0.15


@pytest.mark.parametrize(("rescale", "normalise"), [(True, False), (False, True), (False, False)])
def test_processors_that_leave_a_step_out(tiny_parts: tuple, rescale: bool, normalise: bool) -> None:
    processor = tiny.processor()
    pictures = processor.image_processor
    pictures.do_rescale, pictures.do_normalize = rescale, normalise
    vlm = nd.load(tiny_parts[0], processor=processor, check=False)
    picture = noise(SIDE, SIDE)
    theirs = pictures(images=[Image.fromarray(picture)], return_tensors="pt")["pixel_values"].float()
    torch.testing.assert_close(vlm.pack(tensor(picture))["pixel_values"], theirs, atol=1e-4, rtol=1e-6)


def test_a_filter_without_a_differentiable_twin(tiny_parts: tuple) -> None:
    processor = tiny.processor()
    processor.image_processor.resample = 4  # box
    vlm = nd.load(tiny_parts[0], processor=processor, check=False)
    with pytest.raises(ValueError, match="canvas of the model's own size"):
        vlm.pack(torch.rand(1, 3, 64, 64))
    assert vlm.pack(torch.rand(1, 3, SIDE, SIDE))["pixel_values"].shape[-1] == SIDE


def test_packing_carries_the_gradient(tiny_vlm: nd.VLM) -> None:
    for size in (SIDE, 64, 200):
        x = torch.rand(2, 3, size, size, dtype=torch.float32, requires_grad=True)
        weight = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad((tiny_vlm.pack(x)["pixel_values"] * weight).sum(), x)
        step = torch.zeros_like(x)
        step[1, 2, 10, 20] = 1e-1
        with torch.no_grad():
            ends = [(tiny_vlm.pack(x + s)["pixel_values"] * weight).double().sum() for s in (step, -step)]
        assert (ends[0] - ends[1]).item() / 0.2 == pytest.approx(gradient[1, 2, 10, 20].item(), abs=5e-3)


@pytest.mark.parametrize("shape", [(3, 112, 112), (1, 1, 112, 112), (1, 112, 112, 3), (112, 112)])
def test_pictures_of_another_shape(tiny_vlm: nd.VLM, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(batch, 3, height, width\); got"):
        nd.read_pictures(tiny_vlm, torch.rand(shape), [1])


@pytest.mark.parametrize("value", [255.0, -0.1, float("nan"), float("inf")])
def test_pictures_of_another_range(tiny_vlm: nd.VLM, value: float) -> None:
    picture = torch.rand(1, 3, SIDE, SIDE)
    picture[0, 1, 5, 5] = value
    with pytest.raises(ValueError, match=r"in \[0, 1\]; got .* Divide 8-bit values by 255"):
        nd.read_pictures(tiny_vlm, picture, [1])


def test_image_tokens_go_row_by_row() -> None:
    """With the tower's attention silenced each image token sees its own cell of the picture and nothing else."""
    hf, processor = tiny.gemma3(layers=1)
    with torch.no_grad():
        for layer in hf.model.vision_tower.encoder.layers:
            layer.self_attn.out_proj.weight.zero_()
            layer.self_attn.out_proj.bias.zero_()
    vlm = nd.load(hf, processor=processor)
    site = vlm.site(1, "resid_pre")
    x = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    patches = nd.read_pictures(vlm, x, [site])[site]
    assert patches.shape == (1, GRID * GRID, 32)
    cell = SIDE // GRID
    for token in range(GRID * GRID):
        (gradient,) = torch.autograd.grad(patches[0, token].square().sum(), x, retain_graph=True)
        touched = gradient.abs().sum((0, 1)) > 0
        expected = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        row, column = divmod(token, GRID)
        expected[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = True
        assert not (touched & ~expected).any(), token
        assert touched[expected].float().mean() > 0.9, token
    # and chosen tokens are those
    some = dataclasses.replace(site, tokens=(6,))
    torch.testing.assert_close(nd.read_pictures(vlm, x, [some])[some], patches[:, 6:7])


def test_values_are_spread_over_tensors_longer_than_float32_can_count() -> None:
    weight = torch.zeros(2**25 + 4, dtype=torch.int8)  # its last index, as a float32, would be one too many
    weight[-1] = 7
    assert spread(weight, 64)[-1] == 7


def test_two_unnamed_models_of_one_class_have_two_names(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    first = nd.load(hf, processor=processor, check=False).id
    assert first == nd.load(hf, processor=processor, check=False).id
    weight = hf.get_submodule("model.multi_modal_projector").mm_input_projection_weight
    kept = weight.data.clone()
    try:
        weight.data.add_(1)
        assert nd.load(hf, processor=processor, check=False).id != first
    finally:
        weight.data.copy_(kept)


def test_numpy_layers_are_layers(tiny_vlm: nd.VLM) -> None:
    assert tiny_vlm.site(np.int64(2)) == tiny_vlm.site(2)
