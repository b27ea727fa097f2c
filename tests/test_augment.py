"""Augmentations against slow references, and their laws: own draws, same bits in any company, gradients, errors."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import nnsight_dream.engine.augment
from nnsight_dream.engine.augment import (
    Noise,
    Rotate,
    Scale,
    Shift,
    _read_lines,
    _read_points,
    rotated,
    scaled,
    shifted,
)

ALL = [Shift(), Shift(pixels=2), Noise(), Scale(0.6, 1.4), Rotate(30)]
FEW = settings(max_examples=15, deadline=None)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def pictures(count: int, height: int = 12, width: int = 12, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mended(error: pytest.ExceptionInfo, **names: object) -> list[object]:
    """What an error advises after "mend:", done."""
    codes = re.findall(r"`([^`]+)`", str(error.value).partition("mend:")[2])
    assert codes, f"no advice in: {error.value}"
    return [eval(code, {"torch": torch, **vars(nnsight_dream.engine.augment), **names}) for code in codes]


# -- against references -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(12, 12), (13, 13), (12, 17)])
@pytest.mark.parametrize("margin", [0, 1, 3, 5])
def test_a_shift_of_zero_is_the_centre_of_the_enlarged_picture(size, margin):
    given_ = pictures(2, *size, dtype=torch.float64)
    got = shifted(given_, margin, torch.zeros(2, 2))
    for mine, picture in zip(got, given_, strict=True):
        large = reference.bilinear(picture.numpy(), size[0] + 2 * margin, size[1] + 2 * margin)
        assert np.allclose(mine, large[:, margin : margin + size[0], margin : margin + size[1]], atol=1e-10)


@given(dx=st.integers(-4, 4), dy=st.integers(-4, 4))
@FEW
def test_a_whole_shift_is_a_crop_of_the_enlarged_picture(dx, dy):
    picture = pictures(1, 16, 16)
    large = functional.interpolate(picture, size=(24, 24), mode="bilinear", align_corners=False)
    got = shifted(picture, 4, torch.tensor([[dx, dy]]))
    assert torch.allclose(got, large[:, :, 4 + dy : 20 + dy, 4 + dx : 20 + dx], atol=1e-5)


@given(dx=st.floats(-3, 3), dy=st.floats(-3, 3))
@FEW
def test_any_shift_is_the_slow_one(dx, dy):
    picture = pictures(1, dtype=torch.float64)
    want = reference.shift(picture[0].numpy(), 3, dx, dy)
    assert np.allclose(shifted(picture, 3, torch.tensor([[dx, dy]], dtype=torch.float64))[0], want, atol=1e-10)


@given(factor=st.floats(0.2, 4))
@FEW
def test_any_scale_is_the_slow_one(factor):
    picture = pictures(1, 12, 9, dtype=torch.float64)
    want = reference.scale(picture[0].numpy(), factor)
    assert np.allclose(scaled(picture, torch.tensor([factor], dtype=torch.float64))[0], want, atol=1e-10)


@given(degrees=st.floats(-180, 180))
@FEW
def test_any_rotation_is_the_slow_one(degrees):
    picture = pictures(1, 12, 9, dtype=torch.float64)
    angle = math.radians(degrees)
    want = reference.rotate(picture[0].numpy(), angle)
    assert np.allclose(rotated(picture, torch.tensor([angle], dtype=torch.float64))[0], want, atol=1e-9)


def test_a_quarter_turn_is_rot90():
    picture = pictures(1)
    assert torch.allclose(rotated(picture, torch.tensor([math.pi / 2])), picture.rot90(1, (2, 3)), atol=1e-4)


@pytest.mark.parametrize("change", [Shift(), Shift(pixels=2), Shift(fraction=0.1)], ids=repr)
def test_shift_draws_as_it_says(change):
    given_ = pictures(4, 20, 20)
    got = change(given_, generators(7, 8), batch=2)
    margin = {None: 5, 0.1: 2}[None if change == Shift() else 0.1]
    draws = torch.cat([torch.rand(2, 2, generator=g) for g in generators(7, 8)])
    for mine, picture, draw in zip(got, given_, draws.double().numpy(), strict=True):
        dx, dy = margin * (2 * draw - 1)
        assert np.allclose(mine, reference.shift(picture.double().numpy(), margin, dx, dy), atol=2e-5)


def test_scale_and_rotate_draw_as_they_say():
    given_ = pictures(2)
    draws = [torch.rand(1, 1, generator=g).item() for g in generators(7, 8)]
    for mine, picture, draw in zip(Scale(0.5, 2)(given_, generators(7, 8), 1), given_.double(), draws, strict=True):
        assert np.allclose(mine, reference.scale(picture.numpy(), 0.5 + 1.5 * draw), atol=2e-5)
    for mine, picture, draw in zip(Rotate(40)(given_, generators(7, 8), 1), given_.double(), draws, strict=True):
        assert np.allclose(mine, reference.rotate(picture.numpy(), math.radians(40 * (2 * draw - 1))), atol=2e-5)


def test_the_papers_shift_is_56_at_224():
    given_ = pictures(1, 224, 224)
    assert torch.equal(Shift()(given_, generators(0), 1), Shift(pixels=56)(given_, generators(0), 1))


def test_draws_fill_their_range_and_both_axes():
    """A picture of its own coordinates shows what was drawn: x in red, y in green."""
    line = torch.arange(64, dtype=torch.float32)
    ramp = torch.stack([line.expand(64, 64), line[:, None].expand(64, 64), torch.zeros(64, 64)])[None]
    seen = Shift()(ramp.expand(400, -1, -1, -1), generators(0), 400)[:, :2, 31:33, 31:33].mean((-1, -2)) - 31.5
    drawn = seen * 96 / 64  # pixels of the picture to pixels of the enlarged one
    assert drawn.abs().max() <= 16.001
    assert drawn.abs().max() > 15.5
    assert drawn.mean(0).abs().max() < 1.5
    assert abs(drawn.std().item() - 16 / math.sqrt(3)) < 0.5
    assert abs(torch.corrcoef(drawn.T)[0, 1].item()) < 0.15


def test_noise_has_its_deviation_and_is_not_clipped():
    noise = Noise(0.3)(torch.zeros(4, 3, 32, 32), generators(0, 1), 2)
    assert abs(noise.std().item() - 0.3) < 0.01
    assert abs(noise.mean().item()) < 0.01
    assert noise.min() < 0
    assert len(noise.flatten(1).mean(1).unique()) == 4


@given(size=st.sampled_from([(8, 8), (9, 12)]), margin=st.integers(0, 3), seed=st.integers(0, 99))
@FEW
def test_the_accelerators_reading_is_the_cpus(size, margin, seed):
    given_ = pictures(2, *size, seed=seed).requires_grad_()
    rows = torch.rand(2, size[0] - 1) * (size[0] - 1)
    columns = torch.rand(2, size[1] + margin) * (size[1] - 1)
    slope = torch.randn(2, 3, size[0] - 1, size[1] + margin)
    points, lines = _read_points(given_, rows, columns), _read_lines(given_, rows, columns)
    assert torch.allclose(points, lines, atol=1e-5)
    one, two = (torch.autograd.grad((read * slope).sum(), given_)[0] for read in (points, lines))
    assert torch.allclose(one, two, atol=1e-4)


def test_the_accelerators_reading_knows_no_autocast():
    given_, rows, columns = pictures(2), torch.rand(2, 12) * 11, torch.rand(2, 12) * 11
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = _read_lines(given_, rows, columns)
    assert torch.equal(inside, _read_lines(given_, rows, columns))


# -- laws of every augmentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ALL, ids=repr)
@given(seeds=st.lists(st.integers(0, 99), min_size=2, max_size=4), batch=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_jobs_get_the_same_bits_alone_and_in_company(change, seeds, batch):
    given_ = pictures(len(seeds) * batch)
    together = change(given_, generators(*seeds), batch)
    for job, seed in enumerate(seeds):
        rows = slice(job * batch, (job + 1) * batch)
        assert torch.equal(change(given_[rows], generators(seed), batch), together[rows])


@pytest.mark.parametrize("change", ALL, ids=repr)
def test_every_element_and_every_call_draws_anew(change):
    same = pictures(1).expand(3, -1, -1, -1)
    source = generators(0)
    first, second = change(same, source, 3), change(same, source, 3)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    assert torch.equal(first, change(same, generators(0), 3))


@pytest.mark.parametrize("change", ALL, ids=repr)
def test_form_and_source_are_kept(change):
    given_ = pictures(2, 12, 15)
    before = given_.clone()
    got = change(given_, generators(0), 2)
    assert got.shape == given_.shape
    assert got.dtype == given_.dtype
    assert torch.equal(given_, before)
    assert change(given_.double(), generators(0), 2).dtype == torch.float64


@pytest.mark.parametrize("change", [c for c in ALL if not isinstance(c, Noise)], ids=repr)
def test_a_reading_invents_no_values(change):
    got = change(pictures(4), generators(0, 1), 2)
    assert got.min() >= -1e-6
    assert got.max() <= 1 + 1e-6
    flat = change(torch.full((2, 3, 12, 12), 0.7), generators(0), 2)
    assert torch.allclose(flat, torch.full_like(flat, 0.7), atol=1e-6)


@pytest.mark.parametrize(
    "change", [Shift(pixels=0), Shift(fraction=0.0), Noise(0.0), Scale(1.0, 1.0), Rotate(0)], ids=repr
)
def test_nothing_asked_is_nothing_done(change):
    given_ = pictures(2, 12, 15)
    assert torch.allclose(change(given_, generators(0), 2), given_, atol=2e-6)


@pytest.mark.parametrize("change", ALL, ids=repr)
def test_gradients_are_those_of_the_formula(change):
    given_ = pictures(2, 8, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: change(p, generators(0), 2), [given_], fast_mode=True)


@pytest.mark.parametrize("change", ALL, ids=repr)
def test_elements_share_no_gradient(change):
    given_ = pictures(4).requires_grad_()
    change(given_, generators(0, 1), 2)[1].sum().backward()
    reached = given_.grad.abs().sum((1, 2, 3)) > 0
    assert reached.tolist() == [False, True, False, False]


def test_augmentations_are_values():
    assert Shift() == Shift(fraction=0.25) != Shift(pixels=16)
    assert hash(Shift()) == hash(Shift(fraction=0.25))
    assert replace(Shift(pixels=3)) == Shift(pixels=3)
    assert replace(Shift()) == Shift()
    assert repr(Shift(pixels=3)) == "Shift(pixels=3, fraction=None)"


# -- errors and their advice ------------------------------------------------------------------------------------


def test_a_shift_given_twice():
    with pytest.raises(ValueError, match=r"pixels=3 and fraction=0\.1 given; allowed is one of the two") as error:
        Shift(pixels=3, fraction=0.1)
    assert mended(error) == [Shift(pixels=3), Shift(fraction=0.1)]


@pytest.mark.parametrize("fraction", [-0.1, 0.5, 2, math.nan, math.inf])
def test_a_wrong_fraction(fraction):
    with pytest.raises(ValueError, match=f"fraction={fraction} given; allowed is 0 to below 0.5") as error:
        Shift(fraction=fraction)
    assert mended(error) == [Shift()]


@pytest.mark.parametrize("pixels", [-1, 2.5, math.nan, True])
def test_wrong_pixels(pixels):
    with pytest.raises(ValueError, match=f"pixels={pixels} given; allowed are whole numbers from 0 up") as error:
        Shift(pixels=pixels)
    assert mended(error) == [Shift(pixels=16), Shift(fraction=0.25)]


@pytest.mark.parametrize(("size", "change"), [((12, 12), Shift(pixels=6)), ((12, 5), Shift()), ((3, 2), Shift())])
def test_a_shift_of_half_the_picture(size, change):
    with pytest.raises(ValueError, match=f"on pictures of {size[0]} x {size[1]}; allowed is less than half") as error:
        change(pictures(1, *size), generators(0), 1)
    assert mended(error)[0](pictures(1, *size), generators(0), 1).shape[-2:] == size


@pytest.mark.parametrize("std", [-0.1, math.nan, math.inf])
def test_wrong_noise(std):
    with pytest.raises(ValueError, match=f"std={std} given; allowed are finite numbers from 0 up") as error:
        Noise(std)
    assert mended(error) == [Noise()]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (1.2, 0.8), (0.5, math.inf), (math.nan, 1)])
def test_wrong_scales(low, high):
    with pytest.raises(ValueError, match=f"low={low}, high={high} given; allowed are finite factors") as error:
        Scale(low, high)
    assert mended(error) == [Scale(0.9, 1.1)]


@pytest.mark.parametrize(("degrees", "instead"), [(-5, 5), (200, 180), (math.nan, 180)])
def test_wrong_degrees(degrees, instead):
    with pytest.raises(ValueError, match=f"degrees={degrees} given; allowed is 0 to 180") as error:
        Rotate(degrees)
    assert mended(error) == [Rotate(instead)]


@pytest.mark.parametrize("change", ALL, ids=repr)
def test_wrong_pictures(change):
    one = pictures(1)[0]
    with pytest.raises(ValueError, match=r"shape \(3, 12, 12\) given; allowed is \(jobs \* batch, 3, H, W\)") as error:
        change(one, generators(0), 1)
    assert change(mended(error, pictures=one)[0], generators(0), 1).shape == (1, 3, 12, 12)
    with pytest.raises(ValueError, match=r"shape \(12, 12\) given") as error:
        change(one[0], generators(0), 1)
    assert change(mended(error, list_of_pictures=[one, one])[0], generators(0), 2).shape == (2, 3, 12, 12)
    whole = torch.zeros(1, 3, 12, 12, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"pictures of torch\.uint8 given; allowed are floating-point") as error:
        change(whole, generators(0), 1)
    assert change(mended(error, pictures=whole)[0], generators(0), 1).shape == (1, 3, 12, 12)


@pytest.mark.parametrize("change", ALL, ids=repr)
@pytest.mark.parametrize(("count", "seeds", "batch"), [(6, 2, 2), (6, 1, 2), (6, 0, 2), (6, 1, 0)])
def test_a_batch_that_does_not_add_up(change, count, seeds, batch):
    with pytest.raises(ValueError, match=f"{count} pictures given with {seeds} generators and batch={batch}") as error:
        change(pictures(count), generators(*range(seeds)), batch)
    instead = mended(error)[0]
    size = int(re.search(r"with batch=(\d+)$", str(error.value)).group(1))
    assert change(pictures(count), instead, size).shape == (count, 3, 12, 12)
