"""Every family's record against its real classes: their own processors, plain forward passes, plain autograd."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
import torch
import transformers
from climbing import ascend
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

import nnsight_dream as nd
from nnsight_dream.cli import main
from nnsight_dream.engine.optimise import Climb
from nnsight_dream.models import families
from nnsight_dream.models.check import _keeps_shape
from nnsight_dream.models.parts import Parts
from nnsight_dream.models.reading import constants as constants_of

NAMES = list(tiny_families.BUILDERS)
CLOSE = {"atol": 3e-5, "rtol": 1e-4}


@pytest.fixture(params=NAMES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def parts(name: str) -> tiny_families.Miniature:
    return tiny_families.build(name)


@pytest.fixture(scope="module")
def vlm(parts: tiny_families.Miniature) -> nd.VLM:
    """Loaded, and so checked: the real processor's token ids, types and pixels are the record's."""
    return nd.load(parts.model, processor=parts.processor, **parts.load)


@pytest.fixture(scope="module")
def climbing(vlm: nd.VLM, parts: tiny_families.Miniature) -> nd.VLM:
    """The same, with a surrogate gradient where there is no other."""
    return nd.load(parts.model, processor=parts.processor, **parts.load, **parts.climb) if parts.climb else vlm


def noise(*size: int, seed: int = 0) -> np.ndarray:
    """An 8-bit picture (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def tensor(*pictures: np.ndarray) -> torch.Tensor:
    """The same as (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def asked(parts: tiny_families.Miniature, picture: np.ndarray, question: str = "What is it?") -> dict[str, Any]:
    """A whole question about a picture, as the model's own processor makes it."""
    text = parts.prompt([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}])
    told: dict[str, Any] = {} if parts.bare else {"add_special_tokens": False}
    images = [[Image.fromarray(picture)]]
    given = parts.processor(text=[text], images=images, return_tensors="pt", **told, **parts.options)
    return {k: v for k, v in given.items() if k in (parts.inputs or given)}


def stream(states: torch.Tensor) -> torch.Tensor:
    """(B, T, d); of Gemma 3n's several streams the active one."""
    return states[0] if states.ndim == 4 else states


@contextmanager
def hooked(vlm: nd.VLM, layer: int) -> Iterator[list[torch.Tensor]]:
    """What a block gives in a plain forward pass."""
    caught: list[torch.Tensor] = []

    def catch(module: Any, args: Any, output: Any) -> None:
        caught.append(stream(output[0] if isinstance(output, tuple) else output))

    handle = vlm.hf.get_submodule(f"{vlm.family.layers}.{layer - 1}").register_forward_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()


def places(vlm: nd.VLM, ids: torch.Tensor) -> torch.Tensor:
    """Where a question's patches are."""
    return (ids[0] == vlm.config.image_token_id).nonzero().flatten()[: vlm.grid[0] * vlm.grid[1]]


def test_patches_equal_a_plain_forward(vlm: nd.VLM, parts: tiny_families.Miniature) -> None:
    picture = noise(*parts.size)
    given = asked(parts, picture)
    with torch.no_grad(), hooked(vlm, vlm.layers) as last:
        states = parts.model(**given, output_hidden_states=True).hidden_states
    at = places(vlm, given["input_ids"])
    assert len(at) == vlm.grid[0] * vlm.grid[1] > 4
    found = nd.read_pictures(vlm, tensor(picture), range(1, vlm.layers + 1))
    for layer in range(1, vlm.layers + 1):
        # Hugging Face's last hidden state is behind the final norm
        theirs = stream(states[layer]) if layer < vlm.layers else last[0]
        torch.testing.assert_close(found[nd.Site(layer)], theirs[:, at], **CLOSE)
    before = nd.read_pictures(vlm, tensor(picture), [vlm.site(1, "resid_pre")])
    torch.testing.assert_close(before[nd.Site(1, "resid_pre")], stream(states[0])[:, at], **CLOSE)


def test_every_kind_of_site_is_what_its_module_gives(vlm: nd.VLM, parts: tiny_families.Miniature) -> None:
    """Several sites of one block, asked for in no order, of a block of every kind that the family has."""
    picture = noise(*parts.size)
    given = asked(parts, picture)
    at = places(vlm, given["input_ids"])
    for layer in (2, 3):
        block = vlm.hf.get_submodule(f"{vlm.family.layers}.{layer - 1}")
        modules = dict(block.named_modules())
        paths = {**vlm.family.kinds, **{k: v for k, v in vlm.family.hooks.items() if v[0] in modules}}
        for module in ("self_attn.o_proj", "linear_attn.out_proj"):
            if module in modules:
                paths |= {module: (module, "input")}
        caught: dict[str, torch.Tensor] = {}
        handles = []
        for kind, (module, side) in paths.items():

            def note(
                _: Any, given: Any, kwargs: Any, output: Any = None, kind: str = kind, into: dict = caught
            ) -> None:
                value = (given or (kwargs.get("hidden_states"),)) if output is None else output
                into[kind] = stream(value[0] if isinstance(value, tuple) else value)

            if side == "input":
                handles.append(modules[module].register_forward_pre_hook(note, with_kwargs=True))
            else:
                handles.append(modules[module].register_forward_hook(note, with_kwargs=True))
        try:
            with torch.no_grad():
                parts.model(**given)
        finally:
            for handle in handles:
                handle.remove()
        sites = {k: nd.Site(layer, k if k in vlm.family.kinds else ".".join(p)) for k, p in paths.items()}
        wide = {k: s for k, s in sites.items() if caught[k].ndim == 3}
        assert set(vlm.family.kinds) <= set(wide)
        found = nd.read_pictures(vlm, tensor(picture), list(wide.values())[::-1])
        for kind, site in wide.items():
            torch.testing.assert_close(found[site], caught[kind][:, at], **CLOSE)
            assert vlm.width_at(site) == caught[kind].shape[-1]


def test_pixels_and_what_goes_with_them_equal_the_processors(vlm: nd.VLM, parts: tiny_families.Miniature) -> None:
    pictures = [noise(*parts.size, seed=s) for s in (1, 2)]
    images = parts.processor.image_processor
    made = images(images=[[Image.fromarray(p)] for p in pictures], return_tensors="pt", **parts.options)
    theirs = vlm.family.seen(made)
    mine = vlm.pack(tensor(*pictures))
    for key, value in mine.items():
        torch.testing.assert_close(value, theirs[key], atol=1e-6, rtol=0)
    other = [(parts.size[0] * 2, parts.size[1] * 2), (parts.size[0] * 3 // 2, parts.size[1] * 3 // 2)]
    if not _keeps_shape(vlm):
        other += [(parts.size[0] // 2, parts.size[1] // 2), (90, 130), (100, 201)]
    for size in other:
        picture = noise(*size, seed=3)
        made = images(images=[Image.fromarray(picture)], return_tensors="pt", **vlm.family.views(vlm.pixels))
        theirs = vlm.family.seen(made)["pixel_values"]
        step = (vlm.pack(tensor(picture))["pixel_values"] - theirs) * 255 * max(vlm.pixels.std)
        assert step.abs().max() <= 1.3  # PIL rounds to 8 bits, once or twice
        assert step.mean().abs() < 0.2


def test_a_batch_equals_single_pictures(vlm: nd.VLM, parts: tiny_families.Miniature) -> None:
    x = tensor(*(noise(*parts.size, seed=s) for s in range(3)))
    together = nd.read_pictures(vlm, x, [3])[nd.Site(3)]
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], nd.read_pictures(vlm, x[row : row + 1], [3])[nd.Site(3)])


def silenced(model: torch.nn.Module, tower: str) -> torch.nn.Module:
    """A copy in whose tower no patch sees another: what attention adds is nothing."""
    model = copy.deepcopy(model)
    ends = ("out_proj", "o_proj", "proj", "projection_layer", "proj_out")
    for name, module in model.get_submodule(tower).named_modules():
        if name.rpartition(".")[2] in ends and ("attn" in name or "attention" in name):
            for parameter in module.parameters():
                parameter.data.zero_()
    return model


def test_image_tokens_go_row_by_row(vlm: nd.VLM, parts: tiny_families.Miniature) -> None:
    quiet = silenced(parts.model, vlm.family.tower)
    lone = nd.load(quiet, processor=parts.processor, check=False, **parts.load, **parts.climb)
    site = lone.site(1, "resid_pre")
    (height, width), (rows, cols) = lone.image_size, lone.grid
    x = (0.3 + 0.4 * torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))).requires_grad_(True)
    patches = nd.read_pictures(lone, x, [site])[site]
    for token in range(0, rows * cols, rows * cols // 24 | 1):  # of many tokens some, in all columns
        (gradient,) = torch.autograd.grad(patches[0, token].square().sum(), x, retain_graph=True)
        row, col = divmod(token, cols)
        cell = gradient.abs().sum((0, 1)).unflatten(1, (cols, -1)).unflatten(0, (rows, -1)).sum((1, 3))
        assert cell[row, col] > 0
        if parts.climb:  # convolutions and their norms reach beyond a cell
            at = (
                torch.stack([cell.sum(1) @ torch.arange(rows).float(), cell.sum(0) @ torch.arange(cols).float()])
                / cell.sum()
            )
            assert (at - torch.tensor([row, col])).abs().max() < 5, (token, at)
        else:
            assert cell[row, col] > 0.999 * cell.sum(), (token, cell)


def soft(hf: Any, pixels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Chameleon's words for pixels, chosen hard and with the gradient of a soft choice, cell by cell."""
    vq, words = hf.model.vqmodel, hf.model.vocabulary_mapping
    cells = vq.quant_conv(vq.encoder(pixels))[0].flatten(1).T
    rows = []
    for cell in cells:
        far = ((vq.quantize.embedding.weight - cell) ** 2).sum(1)
        share = torch.exp(far.min().detach() / temperature - far / temperature)
        share = share / share.sum()
        chosen = torch.zeros_like(share)
        chosen[far.argmin()] = 1
        rows.append((chosen + share - share.detach()) @ hf.model.embed_tokens.weight[words.img2bpe_mapping_tensor])
    return torch.stack(rows)[None]


def test_a_step_of_the_climb_follows_a_plain_gradient(climbing: nd.VLM, parts: tiny_families.Miniature) -> None:
    vlm, layer, canvas = climbing, 2, nd.Pixels(parts.size[0])
    weight = torch.randn(vlm.width, generator=torch.Generator().manual_seed(4))

    def term(step: nd.Step) -> torch.Tensor:
        return (step.patches[nd.Site(layer)] @ weight).mean().expand(1)

    start = [part.detach() for part in canvas.start(1, [torch.Generator().manual_seed(0)], vlm.device)]
    (after,), history, _ = ascend(
        vlm,
        canvas,
        (),
        [term],
        [nd.Site(layer)],
        Climb(1, 1, 0.5, 1e9),
        [torch.Generator().manual_seed(0)],
        parts=start,
    )
    (part,) = [p.clone().requires_grad_(True) for p in start]
    given = asked(parts, noise(*parts.size))
    packed: dict[str, Any] = vlm.pack(canvas.render([part]))
    if vlm.family.tiles_behind:  # the model gets its tiles all the same, after the view that is climbed
        packed = {"pixel_values": torch.cat([packed["pixel_values"][:, None], given["pixel_values"][:, 1:]], 1)}
    if parts.climb:
        tokens = soft(parts.model, packed["pixel_values"], parts.climb["straight_through"])
        packed = {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=tokens)}}
        del given["pixel_values"]
    given |= packed
    with hooked(vlm, layer) as caught:
        parts.model(**given)
    score = (caught[0][0, places(vlm, given["input_ids"])] @ weight).mean()
    (gradient,) = torch.autograd.grad(score, part)
    assert gradient.norm() > 1e-4
    assert history[0, 0].item() == pytest.approx(score.item(), abs=1e-4)
    near = (2e-5 if parts.climb else 1e-6) * max(1.0, gradient.abs().max().item())  # some are as large as 70
    torch.testing.assert_close(after - start[0], 0.5 * gradient, atol=near, rtol=1e-3)
    assert (after - start[0] - 0.5 * gradient).norm() < 1e-5 * gradient.norm()


def test_bfloat16_is_close_to_float32(vlm: nd.VLM, parts: tiny_families.Miniature) -> None:
    if parts.climb:
        pytest.skip("words of a code book: the least rounding changes some of them")
    half = nd.load(copy.deepcopy(parts.model).bfloat16(), processor=parts.processor, **parts.load)
    picture = noise(*parts.size)
    x = tensor(picture).requires_grad_(True)
    given = asked(parts, picture)
    given = {k: v.bfloat16() if v.is_floating_point() else v for k, v in given.items()}
    for layer in (1, 3):
        with torch.no_grad(), hooked(half, layer) as caught:
            half.hf(**given)
        whole = nd.read_pictures(vlm, x, [layer])[nd.Site(layer)]
        rough = nd.read_pictures(half, x, [layer])[nd.Site(layer)]
        assert rough.dtype == torch.bfloat16
        ours, plain = ((r.float() - whole).norm() for r in (rough, caught[0][:, places(vlm, given["input_ids"])]))
        assert 0 < ours < 0.2 * whole.norm()
        assert ours < 1.5 * plain
    (gradient,) = torch.autograd.grad(rough.float().square().sum(), x)
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()


def test_concepts_are_read_at_the_words_own_tokens(vlm: nd.VLM, parts: tiny_families.Miniature) -> None:
    found = nd.concept(vlm, "octopus", 2, baseline=None, cache=False)
    text = parts.prompt([{"role": "user", "content": [{"type": "text", "text": "octopus"}]}], True)
    text = "<bos>octopus\n" if parts.bare else text
    given = vlm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = text.index("octopus")
    own = [i for i, (p, q) in enumerate(given["offset_mapping"]) if q > start and p < start + len("octopus")]
    ids = torch.tensor([given["input_ids"]])
    with torch.no_grad(), hooked(vlm, 2) as caught:
        parts.model(input_ids=ids, **vlm.family.text(ids))
    torch.testing.assert_close(found.vector, caught[0][0, own].mean(0), **CLOSE)
    several = nd.concept(vlm, ["octopus", "a big grey elephant"], [1, 3])  # padded, less the baseline words
    alone = nd.concept(vlm, "octopus", 3)
    torch.testing.assert_close(several[0][1].vector, alone.vector, **CLOSE)
    assert alone.vector.norm() > 0.1


def test_a_model_is_left_as_it_was(vlm: nd.VLM, parts: tiny_families.Miniature) -> None:
    given = asked(parts, noise(*parts.size))
    root = parts.model.get_submodule(vlm.family.root)
    with torch.no_grad():
        before, kept = parts.model(**given).logits, getattr(root, "rope_deltas", None)
        again = nd.load(parts.model, processor=parts.processor, **parts.load)
        nd.read_pictures(again, tensor(noise(*parts.size)), [1])
        assert getattr(root, "rope_deltas", None) is kept
        assert torch.equal(before, parts.model(**given).logits)
    assert all(p.requires_grad for p in parts.model.parameters())


def test_a_wrong_grid_is_found(vlm: nd.VLM, parts: tiny_families.Miniature) -> None:
    rows, cols = vlm.grid
    wrong = dataclasses.replace(vlm.family, grid=lambda config, pixels: (rows, cols + 1))
    with pytest.raises(ValueError, match="field 'grid'"):
        nd.load(parts.model, processor=parts.processor, family=wrong, **parts.load)


def test_what_goes_with_the_ids_matters(vlm: nd.VLM, parts: tiny_families.Miniature) -> None:
    """So that the comparisons above can fail."""
    constants = constants_of(vlm)
    if vlm.family.positions:
        at = vlm.image_prompt.positions
        rows, cols = vlm.grid
        axes = constants["position_ids"][-3:, 0, at] - constants["position_ids"][-3:, 0, at[:1]]
        token = torch.arange(rows * cols)
        assert torch.equal(axes, torch.stack([token * 0, token // cols, token % cols]))
    if not vlm.image_prompt.extra:
        return
    bare = dataclasses.replace(vlm.family, extra=lambda ids, image: {}, positions=False, masks=False)
    with pytest.raises(ValueError, match="field 'extra'"):
        nd.load(parts.model, processor=parts.processor, family=bare, **parts.load)


def saved(parts: tiny_families.Miniature, folder: Path) -> None:
    """A checkpoint as it stands on the hub: names of classes as they are there, of torchvision's kind."""
    processor = parts.processor
    parts.model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    told = folder / "preprocessor_config.json"
    told.write_text(told.read_text().replace("ImageProcessorPil", "ImageProcessor"))
    if "video_processor" in processor.get_attributes():  # a whole one cannot be saved here, nor made again
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": type(processor).__name__}))
    else:
        processor.save_pretrained(folder)


def test_a_checkpoint_is_loaded_without_torchvision_and_as_far_as_needed(
    name: str, vlm: nd.VLM, parts: tiny_families.Miniature, tmp_path: Path
) -> None:
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is there: whole processors can be made")
    if name == "gemma3n":
        pytest.skip("its tower is timm's, which is not there")
    saved(parts, tmp_path)
    x = tensor(noise(*parts.size))
    if name in ("gemma4", "gemma4_vision"):
        with pytest.raises(ValueError, match="cannot be loaded in part; leave up_to_layer= out"):
            nd.load(tmp_path, up_to_layer=2, **parts.load)
        cut = nd.load(tmp_path, **parts.load)
    else:
        cut = nd.load(tmp_path, up_to_layer=2, **parts.load)
        assert cut.layers == 2
    mine, whole = (nd.read_pictures(model, x, [2])[nd.Site(2)] for model in (cut, vlm))
    torch.testing.assert_close(mine, whole, atol=1e-4, rtol=1e-4)  # weights from a file lie otherwise in memory
    ours, whole = (nd.concept(v, "octopus", 2, baseline=None, cache=False).vector for v in (cut, vlm))
    torch.testing.assert_close(ours, whole)
    told = {"gemma4_unified": ["image tokens", "pixels"], "chameleon": ["gradient"]}
    videos = "video_processor" in parts.processor.get_attributes() or name in ("pixtral", "mistral3")
    assert list(cut.unproved) == told.get(name, ["image tokens"] if videos else [])


def test_code_of_strangers_is_never_run_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tiny_families.build("llava"), tmp_path)
    told: list[Any] = []
    for auto in (transformers.AutoConfig, transformers.AutoModelForImageTextToText, transformers.AutoProcessor):
        real = auto.from_pretrained

        def noted(*args: Any, real: Any = real, **options: Any) -> Any:
            told.append(options.pop("trust_remote_code", None))
            return real(*args, **options)

        monkeypatch.setattr(auto, "from_pretrained", noted)
    nd.load(tmp_path, check=False)
    assert len(told) >= 3
    assert set(told) == {None}
    told.clear()
    nd.load(tmp_path, check=False, trust_remote_code=True)
    assert True in told


# -- what only some families have --------------------------------------------------------------------------------


def test_the_surrogate_is_off_unless_asked_for() -> None:
    parts = tiny_families.build("chameleon")
    hard = nd.load(parts.model, processor=parts.processor)
    x = tensor(noise(*parts.size)).requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"no gradient passes .* straight_through=1.0 .*biased") as error:
        nd.read_pictures(hard, x, [1])
    with pytest.raises(RuntimeError, match="straight_through"):
        nd.synthesize(hard, nd.concept(hard, "bee", 1, cache=False), steps=1)
    assert "straight_through=1.0" in str(error.value)
    asked_for = nd.load(parts.model, processor=parts.processor, straight_through=1.0)  # as the error says
    states = nd.read_pictures(asked_for, x, [2])[nd.Site(2)]
    torch.testing.assert_close(states, nd.read_pictures(hard, x.detach(), [2])[nd.Site(2)], **CLOSE)
    made = nd.synthesize(asked_for, nd.concept(asked_for, "bee", 1, cache=False), steps=3, canvas=nd.Pixels(64))
    assert len(set(made.history)) > 1
    with pytest.raises(ValueError, match="above 0"):
        nd.load(parts.model, processor=parts.processor, straight_through=0)
    other = tiny_families.build("llava")
    with pytest.raises(ValueError, match="gradients pass through llava; leave it out"):
        nd.load(other.model, processor=other.processor, straight_through=1.0)


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_neutral_grey_is_no_padding(name: str) -> None:
    """A view of zeros, which these models drop: grey comes to nothing but zeros, and is where every climb starts."""
    parts = tiny_families.build(name)
    vlm = nd.load(parts.model, processor=parts.processor)
    grey = torch.full((2, 3, *parts.size), 0.5).requires_grad_(True)
    with pytest.raises(Exception):  # noqa: B017 what Hugging Face comes to differs
        parts.model.model(input_ids=vlm.image_prompt.ids.expand(2, -1), pixel_values=2 * grey[:, None].detach() - 1)
    found = nd.read_pictures(vlm, grey, [2])[nd.Site(2)]
    states = parts.model.model.vision_model(torch.zeros(2, 3, *parts.size)).last_hidden_state
    tokens = parts.model.model.connector(states)
    with torch.no_grad(), hooked(vlm, 2) as caught:
        features = {"image": BaseModelOutputWithPooling(pooler_output=tokens)}
        parts.model.model(input_ids=vlm.image_prompt.ids.expand(2, -1), mm_encoder_outputs=features)
    torch.testing.assert_close(found, caught[0][:, vlm.image_prompt.positions], **CLOSE)
    (gradient,) = torch.autograd.grad(found.square().sum(), grey)
    assert (gradient != 0).float().mean() > 0.9


@pytest.mark.parametrize("name", ["paligemma1", "paligemma2"])
def test_image_tokens_that_see_the_text_behind_them(name: str) -> None:
    parts = tiny_families.build(name)
    vlm = nd.load(parts.model, processor=parts.processor)
    assert len(vlm.image_prompt.ids) > int(vlm.image_prompt.positions[-1]) + 1
    shut = dataclasses.replace(vlm.family, looks_ahead=False)
    short = nd.load(parts.model, processor=parts.processor, family=shut, check=False)
    x = tensor(noise(*parts.size))
    assert (nd.read_pictures(vlm, x, [2])[nd.Site(2)] - nd.read_pictures(short, x, [2])[nd.Site(2)]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma4_vision", "gemma4_unified"])
def test_types_of_tokens_matter(name: str) -> None:
    """So that the comparisons with them can fail: without them positions, or attention, are those of text."""
    parts = tiny_families.build(name)
    vlm = nd.load(parts.model, processor=parts.processor, **parts.load)
    picture = noise(*parts.size)
    given = asked(parts, picture)
    given["mm_token_type_ids"] = torch.zeros_like(given["mm_token_type_ids"])
    try:
        with torch.no_grad(), hooked(vlm, 3) as caught:
            parts.model(**given)
    except (ValueError, IndexError, RuntimeError, StopIteration):
        return  # some say so themselves
    found = nd.read_pictures(vlm, tensor(picture), [3])[nd.Site(3)]
    assert (found - caught[0][:, places(vlm, given["input_ids"])]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["internvl", "gemma4_vision", "mistral3", "qwen3_vl"])
def test_other_sizes(name: str) -> None:
    """The model sees pictures of the size asked for; the processor, given such a picture, agrees."""
    parts = tiny_families.build(name)
    cell = nd.load(parts.model, processor=parts.processor, check=False).pixels.cell
    # Gemma 4's processor has a few budgets of its own; InternVL's writes as many tokens as it is told
    agrees, wide = name in ("mistral3", "qwen3_vl"), 3 if name == "internvl" else 5
    for size in ((3 * cell, wide * cell), (6 * cell, 6 * cell)):
        vlm = nd.load(parts.model, processor=parts.processor, image_size=size, check=agrees)
        assert vlm.grid == (size[0] // cell, size[1] // cell)
        found = nd.read_pictures(vlm, tensor(noise(*size)), [2])[nd.Site(2)]
        assert found.shape == (1, vlm.grid[0] * vlm.grid[1], 32)
    assert (
        nd.load(parts.model, processor=parts.processor, image_size=4 * cell, check=False).image_size == (4 * cell,) * 2
    )


def test_sizes_that_cannot_be() -> None:
    parts = tiny_families.build("qwen2_5_vl")
    with pytest.raises(ValueError, match=r"in multiples of 28 pixels.* did you mean 112\?"):
        nd.load(parts.model, processor=parts.processor, image_size=100)
    assert nd.load(parts.model, processor=parts.processor, image_size=112).grid == (4, 4)
    square = tiny_families.build("internvl")
    with pytest.raises(ValueError, match=r"square pictures only; did you mean 84\?"):
        nd.load(square.model, processor=square.processor, image_size=(56, 84))
    fixed = tiny_families.build("llava")
    with pytest.raises(ValueError, match="sees pictures of 56 x 56 pixels only; leave image_size= out"):
        nd.load(fixed.model, processor=fixed.processor, image_size=112)
    assert nd.load(fixed.model, processor=fixed.processor, image_size=56).grid == (4, 4)


def test_the_size_is_what_the_processor_makes_of_the_papers_canvas() -> None:
    for name, size in {"qwen2_5_vl": 448, "qwen3_vl": 448, "pixtral": 448, "mistral3": 448, "gemma4": 384}.items():
        parts = tiny_families.build(name)
        vlm = nd.load(parts.model, processor=parts.processor, check=name.startswith("qwen2"))
        assert vlm.image_size == (size, size), name


def test_constants_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.gemma4 import modeling_gemma4 as gemma4
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

    built: list[str] = []
    for module, name in ((gemma4, "create_masks_for_vision_model"), (qwen.Qwen2_5_VLModel, "get_rope_index")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name, **k: built.append(name) or real(*a, **k))
    for family in ("gemma4_vision", "qwen2_5_vl"):
        parts = tiny_families.build(family)
        vlm = nd.load(parts.model, processor=parts.processor, check=False, **parts.load)
        built.clear()
        direction = nd.from_tensor(vlm, torch.ones(32), 1)
        nd.synthesize(vlm, direction, steps=4, batch=1, canvas=nd.Pixels(32), augment=())
        nd.read_pictures(vlm, tensor(noise(*parts.size), noise(*parts.size, seed=1)), [2])
        assert len(built) == 1, built


@pytest.mark.parametrize("name", ["qwen3_5", "gemma4_unified", "chameleon", "llava", "internvl"])
def test_inspect(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = tiny_families.build(name)
    saved(parts, tmp_path)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    record = families.family_of(parts.model.config)
    assert (facts["family"], facts["layers"], facts["width"]) == (name, 4, 32)
    assert set(facts["sites"]) == set(record.kinds)
    sizes = {"llava": "this one only", "chameleon": "this one only", "internvl": "any square multiple of 28"}
    assert facts["image sizes"].startswith(sizes.get(name, "any multiple of "))
    if importlib.util.find_spec("torchvision") is None:
        assert ("not checked" in facts) == (name != "llava")
    assert main(["inspect", str(tmp_path)]) == 0
    assert "before the picture" in capsys.readouterr().out


def test_every_family_is_in_the_table() -> None:
    table = (Path(__file__).parents[1] / "docs" / "families.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip(" `") for line in table.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(record.name for record in families.FAMILIES)


# -- families without a record -----------------------------------------------------------------------------------


def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No record is known."""
    monkeypatch.setattr(families, "FAMILIES", ())


@pytest.mark.parametrize("name", ["vipllava", "glm4v"])
def test_an_unknown_family_is_probed(name: str) -> None:
    parts = tiny_families.build(name)
    with pytest.warns(UserWarning, match=f"no family record for model_type '{name}': one was probed"):
        vlm = nd.load(parts.model, processor=parts.processor)
    assert (vlm.image_size, vlm.family.probed) == (parts.size, True)
    picture = noise(*parts.size)
    given = asked(parts, picture)
    with torch.no_grad():
        states = parts.model(**given, output_hidden_states=True).hidden_states
    found = nd.read_pictures(vlm, tensor(picture), [1, 3])
    for layer in (1, 3):
        torch.testing.assert_close(found[nd.Site(layer)], states[layer][:, places(vlm, given["input_ids"])], **CLOSE)
    nd.synthesize(vlm, nd.concept(vlm, "bee", 1, cache=False), steps=2, batch=1)


@pytest.mark.parametrize("name", ["llava", "internvl", "idefics3", "smolvlm", "qwen2_5_vl", "qwen3_vl"])
def test_a_probed_record_is_as_good_as_a_written_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tiny_families.build(name)
    written = nd.load(parts.model, processor=parts.processor)
    forgotten(monkeypatch)
    with pytest.warns(UserWarning, match="no family record"):
        probed = nd.load(parts.model, processor=parts.processor)
    assert torch.equal(probed.image_prompt.ids, written.image_prompt.ids)
    x = tensor(noise(*written.image_size))
    assert torch.equal(*(nd.read_pictures(v, x, [2])[nd.Site(2)] for v in (probed, written)))


REFUSED = {
    "mllama": "the packing of pixels could not be found",
    "llava_next": "the grid could not be found .* 88 image tokens",
    "pixtral": "the prompt could not be found .* other tokens stand between",
    "gemma4": "the packing of pixels could not be found",
    "paligemma1": "the prompt could not be found .* chat template",
    "gemma3n": r"holds \(3, 1, 28, 32\), not \(batch, tokens, width\)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_probed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it lacks is told; and with the record that the error asks for, it works."""
    parts = tiny_families.build(name)
    record = nd.load(parts.model, processor=parts.processor, check=False).family if name != "mllama" else None
    forgotten(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=REFUSED[name]):
            nd.load(parts.model, processor=parts.processor)
    if record is not None:
        assert nd.load(parts.model, processor=parts.processor, family=record, **parts.load).family is record


def test_a_probed_record_that_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PaliGemma whose tokenizer has a chat template: all looks well, but image tokens see the text behind them."""
    parts = tiny_families.build("paligemma1")
    forgotten(monkeypatch)
    tokens = copy.deepcopy(parts.processor.tokenizer)
    tokens.chat_template = "{% for c in messages[0].content if c.type == 'image' %}<image>{% endfor %}a b c"
    monkeypatch.setattr(parts.processor, "tokenizer", tokens)
    with (
        pytest.warns(UserWarning, match="probed"),
        pytest.raises(ValueError, match=r"gives other activations .* text behind them"),
    ):
        nd.load(parts.model, processor=parts.processor)


def test_a_probe_needs_the_whole_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tiny_families.build("llava")
    forgotten(monkeypatch)
    half = Parts(parts.processor.tokenizer, parts.processor.image_processor)
    with pytest.raises(ValueError, match="needs the whole processor"):
        nd.load(parts.model, processor=half)
    with pytest.raises(AttributeError, match="pass processor= a whole one"):
        half.apply_chat_template([])
