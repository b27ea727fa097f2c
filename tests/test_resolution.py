"""Sizes of canvas and of the model's input: the gradient through a resize, native canvases, interpolated positions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.engine.pixels import PixelFormat, plain_pixels

SHORT = nd.Settings(steps=2, batch=2, rate=0.5, augment=(nd.Noise(0.1),), pooling=nd.Attention(tau=0.1))


def weights_of_pil(before: int, after: int, resample: int) -> torch.Tensor:
    """(after, before): how PIL itself mixes pixels when it resizes a row, read off single bright pixels."""
    bright = Image.fromarray(np.eye(before, dtype=np.float32))
    resized = bright.resize((after, before), Image.Resampling(resample))
    return torch.from_numpy(np.array(resized)).T.double()


@pytest.mark.parametrize("resample", [1, 2, 3])
@pytest.mark.parametrize("size", [56, 64, 504])
def test_the_gradient_through_a_resize_is_pils_own_mixing(resample: int, size: int) -> None:
    """Of the paper's canvas: away from black and white, where 8-bit pictures clip, resizing is linear."""
    pixels = PixelFormat((size, size), (0.5, 0.4, 0.3), (0.5, 0.25, 0.2), resample)
    generator = torch.Generator().manual_seed(0)
    x = (0.5 + 0.01 * torch.randn(1, 3, 448, 448, generator=generator)).requires_grad_(True)
    asked = torch.randn(1, 3, size, size, generator=generator)
    packed = plain_pixels(x, pixels)["pixel_values"]
    (found,) = torch.autograd.grad((packed * asked).sum(), x)
    mix = weights_of_pil(448, size, resample)
    std = torch.tensor(pixels.std).double().view(1, 3, 1, 1)
    expected = mix.T @ (asked.double() / std) @ mix
    assert (found - expected).norm() < 2e-4 * expected.norm()


@pytest.mark.parametrize("resample", [1, 3])
@pytest.mark.parametrize("size", [40, 150])
def test_what_overshoots_is_held_as_a_processor_holds_it_and_keeps_its_gradient(resample: int, size: int) -> None:
    """Black and white blocks, which overshoot at every edge; and the same led out of [0, 1], which is not held."""
    pixels = PixelFormat((size, size), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resample)
    blocks = np.kron(np.random.default_rng(0).integers(0, 2, (9, 9)), np.ones((10, 10), int)).astype(np.uint8) * 255
    x = (torch.from_numpy(blocks).float() / 255).expand(2, 3, -1, -1).clone()
    x[1] = 1.5 * x[1] - 0.25
    x.requires_grad_(True)
    packed = plain_pixels(x, pixels)["pixel_values"]
    theirs = Image.fromarray(blocks).resize((size, size), Image.Resampling(resample))
    assert (packed[0].detach() * 255 - torch.from_numpy(np.array(theirs)).float()).abs().max() <= 1.3
    mix = weights_of_pil(90, size, resample)
    free = mix @ x[1].detach().double() @ mix.T
    assert free.amax() > 1.26
    assert free.amin() < -0.26
    assert (packed[1].detach() - free).abs().max() < 5e-5
    asked = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad((packed * asked).sum(), x)
    assert (found - mix.T @ asked.double() @ mix).norm() < 2e-5 * found.norm()
    alone = plain_pixels(x[:1].detach(), pixels)["pixel_values"]  # a picture does not depend on its company
    assert torch.equal(alone, packed[:1].detach())


def test_a_native_canvas_is_the_models_own_size(tiny_vlm: nd.VLM) -> None:
    direction = nd.concept(tiny_vlm, "fish", layer=2)
    native = nd.synthesize(tiny_vlm, direction, settings=SHORT.but(canvas=nd.Native(nd.Pixels)))
    told = nd.synthesize(tiny_vlm, direction, settings=SHORT.but(canvas=nd.Pixels(112)))
    assert native.image.size == (112, 112)
    assert native.image.tobytes() == told.image.tobytes()
    assert native.settings["canvas"] == {"is": "Native", "kind": "Pixels"}
    assert nd.synthesize(tiny_vlm, direction, settings=SHORT.but(canvas=nd.Native(), steps=1)).image.size == (112, 112)
    with pytest.raises(TypeError, match=r"mend: `Native\(Pixels\)`"):
        nd.Native(nd.Pixels(64))
    wide = dataclasses.replace(tiny_vlm, pixels=dataclasses.replace(tiny_vlm.pixels, size=(112, 224)))
    with pytest.raises(ValueError, match=r"112 x 224 pixels.*MultiResolution\(224\)"):
        nd.synthesize(wide, direction, settings=SHORT.but(canvas=nd.Native()))


def test_the_story_tells_the_models_size(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    made = nd.synthesize(tiny_vlm, nd.concept(tiny_vlm, "fish", layer=1), settings=SHORT.but(canvas=nd.Native()))
    assert (made.image_size, made.straight_through) == ((112, 112), None)
    again = nd.Prototype.load(made.save(tmp_path))
    assert (again.image_size, again.straight_through) == ((112, 112), None)


@torch.no_grad()
def smaller(hf: torch.nn.Module, side: int, tokens: int) -> torch.nn.Module:
    """A Gemma 3 made for pictures of `side` pixels, with another's weights: its positions interpolated by hand."""
    made, _ = tiny.gemma3(image=side, grid=tokens)
    state = dict(hf.state_dict())
    name = "model.vision_tower.embeddings.position_embedding.weight"
    old = state[name].T.reshape(1, -1, 8, 8)
    new = torch.nn.functional.interpolate(old, (side // 14,) * 2, mode="bicubic", align_corners=False)
    state[name] = new.flatten(2)[0].T
    made.load_state_dict(state)
    return made


@pytest.mark.parametrize("side", [56, 168])
def test_gemma_at_other_sizes_is_a_gemma_of_that_size(tiny_parts: tuple, side: int) -> None:
    """As many image tokens, each the mean of one patch (56 pixels) or of three by three (168); made for 112."""
    hf, processor = tiny_parts
    vlm = nd.load(hf, processor=processor, image_size=side)
    assert (vlm.image_size, vlm.grid, vlm.own_size) == ((side, side), (4, 4), (112, 112))
    other = nd.load(smaller(hf, side, 4), processor=tiny.processor(side))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, side, side, generator=generator).requires_grad_(True)
    asked = torch.randn(2, 16, 32, generator=generator)
    gradients = []
    for one in (vlm, other):
        found = nd.read_pictures(one, x, [1, 3])
        gradients.append(torch.autograd.grad((found[nd.Site(3)] * asked).sum(), x)[0])
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()
    mine, theirs = (nd.read_pictures(one, x.detach(), [3])[nd.Site(3)] for one in (vlm, other))
    torch.testing.assert_close(mine, theirs, atol=3e-5, rtol=1e-4)


def test_patches_shared_by_several_tokens(tiny_parts: tuple) -> None:
    """28 pixels are two by two patches for four by four tokens: neighbours get the same token, and the climb works."""
    hf, processor = tiny_parts
    vlm = nd.load(hf, processor=processor, image_size=28)
    seen = nd.read_pictures(vlm, torch.rand(1, 3, 28, 28), [vlm.site(1, "resid_pre")])[vlm.site(1, "resid_pre")]
    grid = seen.reshape(4, 4, -1)
    assert torch.equal(grid[0::2], grid[1::2])
    assert torch.equal(grid[:, 0::2], grid[:, 1::2])
    assert not torch.allclose(grid[0, 0], grid[2, 0])
    made = nd.synthesize(vlm, nd.concept(vlm, "fish", layer=1), settings=SHORT.but(canvas=nd.Native(nd.Pixels)))
    assert made.image.size == (28, 28) == made.image_size


def test_sizes_that_gemma_cannot_be_given(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    with pytest.raises(ValueError, match=r"14, 28 or a multiple of 56\. Did you mean 56\?"):
        nd.load(hf, processor=processor, image_size=70)
    with pytest.raises(ValueError, match=r"did you mean 112\?"):
        nd.load(hf, processor=processor, image_size=100)
    with pytest.raises(ValueError, match="square pictures only; did you mean 112"):
        nd.load(hf, processor=processor, image_size=(56, 112))
    assert nd.load(hf, processor=processor, image_size=112).own_size is None


def test_a_size_of_ones_own_is_another_job(tiny_parts: tuple) -> None:
    """Pictures that a model sees at another size are not taken for the same in a store."""
    hf, processor = tiny_parts
    from nnsight_dream.sweeps.sweep import plan

    jobs = nd.jobs_of([("fish", "animal", "fish")], [1])
    keys = [
        plan(nd.load(hf, processor=processor, image_size=n), jobs, settings=SHORT).chunks[0].keys for n in (112, 56)
    ]
    plain = plan(nd.load(hf, processor=processor), jobs, settings=SHORT).chunks[0].keys
    assert keys[0] == plain != keys[1]
