"""Canvases against slow references, and the laws they keep: range, independence of jobs, gradients, errors."""

from __future__ import annotations

import ast
import builtins
import math
import re
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import nnsight_dream.engine.canvas
import nnsight_dream.engine.spectrum
from nnsight_dream.engine.canvas import MultiResolution, Pixels, upscale
from nnsight_dream.engine.spectrum import MACO, Fourier

SMALL = [
    MultiResolution(16),
    MultiResolution(13, resolutions=(3, 7, 13), exponent=0.5),
    Pixels(9),
    Fourier(8),
    Fourier(9, decay=1.5),
    MACO(8),
    MACO(9),
]
FEW = settings(max_examples=15, deadline=None)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def moved(canvas, *seeds: int, strength: float = 1.0, dtype=torch.float32) -> list[torch.Tensor]:
    """Parts some way into an ascent: a start with noise added, row j from seeds[j] alone."""
    parts = canvas.start(len(seeds), generators(*seeds), "cpu")
    noise = generators(*(1000 + seed for seed in seeds))
    return [
        (part + strength * torch.stack([torch.randn(part.shape[1:], generator=g) for g in noise])).to(dtype)
        for part in parts
    ]


def mended(error: pytest.ExceptionInfo, **names: object) -> list[object]:
    """What an error advises after "mend:", done."""
    codes = re.findall(r"`([^`]+)`", str(error.value).partition("mend:")[2])
    assert codes, f"no advice in: {error.value}"
    return [
        eval(
            code, {"torch": torch, **vars(nnsight_dream.engine.canvas), **vars(nnsight_dream.engine.spectrum), **names}
        )
        for code in codes
    ]


# -- against references -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resolution", "size"), [(1, 8), (3, 16), (7, 13), (63, 96), (64, 96), (65, 96), (96, 96)])
def test_upscale_is_interpolate_with_its_gradient(resolution, size):
    part = torch.randn(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    slope = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    mine, theirs = part.clone().requires_grad_(), part.clone().requires_grad_()
    got = upscale(mine, size)
    want = functional.interpolate(theirs, size=(size, size), mode="bilinear", align_corners=False)
    assert torch.allclose(got, want, rtol=1e-6, atol=1e-6)
    (got * slope).sum().backward()
    (want * slope).sum().backward()
    spread = theirs.grad.abs().max()
    assert torch.allclose(mine.grad / spread, theirs.grad / spread, atol=1e-6)


@pytest.mark.parametrize(("resolution", "size"), [(4, 9), (5, 16)])
def test_upscale_is_the_slow_bilinear(resolution, size):
    part = torch.randn(3, resolution, resolution, dtype=torch.float64)
    assert np.allclose(upscale(part, size), reference.bilinear(part.numpy(), size, size), atol=1e-12)


@pytest.mark.parametrize("canvas", SMALL[:2])
def test_multi_resolution_is_the_slow_sum(canvas):
    parts = moved(canvas, 1, 2)
    for job, picture in enumerate(canvas.render(parts)):
        want = reference.multi_resolution([part[job].numpy() for part in parts], canvas.size, canvas.exponent)
        assert np.allclose(picture, want, atol=2e-6)


@pytest.mark.parametrize("canvas", [Fourier(8), Fourier(9, decay=1.5), Fourier(11, decay=0.0)])
def test_fourier_is_the_slow_sum_of_waves(canvas):
    part = moved(canvas, 3, strength=0.3, dtype=torch.float64)[0]
    want = reference.fourier(part[0].numpy(), canvas.size, canvas.decay)
    assert np.allclose(canvas.render([part])[0], want, atol=1e-6)


@pytest.mark.parametrize("size", [8, 9])
def test_maco_is_the_slow_sum_of_waves(size):
    magnitude = torch.rand(3, size, size // 2 + 1, dtype=torch.float64)
    canvas = MACO(size, magnitude=magnitude)
    phase = moved(canvas, 3, dtype=torch.float64)[0]
    want = reference.maco(phase[0].numpy(), magnitude.numpy(), size)
    assert np.allclose(canvas.render([phase])[0], want, atol=1e-6)


# -- laws of every canvas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", SMALL, ids=repr)
def test_parts_and_pictures_have_the_promised_form(canvas):
    parts = canvas.start(2, generators(0, 1), "cpu")
    assert all(part.dtype == torch.float32 and part.shape[0] == 2 and not part.requires_grad for part in parts)
    pictures = canvas.render(parts)
    assert pictures.shape == (2, 3, canvas.size, canvas.size)
    assert pictures.dtype == torch.float32


@pytest.mark.parametrize("canvas", SMALL, ids=repr)
@given(seed=st.integers(0, 99), strength=st.sampled_from([0.0, 1.0, 1e3, 1e30]))
@settings(max_examples=8, deadline=None)
def test_pictures_stay_in_range(canvas, seed, strength):
    pictures = canvas.render(moved(canvas, seed, strength=strength))
    assert pictures.min() >= 0
    assert pictures.max() <= 1


@pytest.mark.parametrize("canvas", SMALL, ids=repr)
@given(seeds=st.lists(st.integers(0, 99), min_size=2, max_size=4))
@settings(max_examples=8, deadline=None)
def test_jobs_are_the_same_alone_and_in_company(canvas, seeds):
    together = canvas.start(len(seeds), generators(*seeds), "cpu")
    pictures = canvas.render(moved(canvas, *seeds))
    for job, seed in enumerate(seeds):
        alone = canvas.start(1, generators(seed), "cpu")
        assert all(torch.equal(a[0], t[job]) for a, t in zip(alone, together, strict=True))
        assert torch.allclose(canvas.render(moved(canvas, seed))[0], pictures[job], atol=1e-6)


@pytest.mark.parametrize("canvas", SMALL, ids=repr)
def test_a_job_gets_no_gradient_from_another(canvas):
    parts = [part.requires_grad_() for part in moved(canvas, 0, 1)]
    canvas.render(parts)[0].square().sum().backward()
    assert all(part.grad[0].abs().sum() > 0 and part.grad[1].abs().sum() == 0 for part in parts)


@pytest.mark.parametrize("canvas", SMALL[:3], ids=repr)
def test_the_gradient_reaches_every_number_from_the_start(canvas):
    parts = [part.requires_grad_() for part in canvas.start(1, generators(0), "cpu")]
    slope = torch.rand(1, 3, canvas.size, canvas.size) + 0.1
    (canvas.render(parts) * slope).sum().backward()
    assert all((part.grad != 0).all() for part in parts)


@pytest.mark.parametrize("canvas", SMALL[3:], ids=repr)
def test_the_gradient_reaches_every_frequency_from_the_start(canvas):
    part = canvas.start(1, generators(0), "cpu")[0].requires_grad_()
    slope = torch.randn(1, 3, canvas.size, canvas.size, generator=torch.Generator().manual_seed(0))
    (canvas.render([part]) * slope).sum().backward()
    reached = part.grad[0].abs().sum(-1) if isinstance(canvas, Fourier) else part.grad[0]
    rows = canvas.size // 2  # of the zeroth column the lower rows repeat the upper ones
    assert (reached[:, :, 1:-1] != 0).all()
    assert (reached[:, :rows, 0] != 0).all()


@pytest.mark.parametrize("canvas", SMALL, ids=repr)
def test_gradients_are_those_of_the_formula(canvas):
    parts = [part.requires_grad_() for part in moved(canvas, 0, strength=0.1, dtype=torch.float64)]
    slope = torch.randn(1, 3, canvas.size, canvas.size, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *given: (canvas.render(list(given)) * slope).sum(), parts, fast_mode=True)


@pytest.mark.parametrize("canvas", SMALL, ids=repr)
def test_autocast_outside_changes_nothing(canvas):
    parts = moved(canvas, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = canvas.render(parts)
    assert torch.equal(inside, canvas.render(parts))


@pytest.mark.parametrize("canvas", SMALL, ids=repr)
def test_canvases_are_values(canvas):
    assert canvas == replace(canvas)
    assert hash(canvas) == hash(replace(canvas))
    assert canvas != replace(type(canvas)(), size=24)
    with pytest.raises(FrozenInstanceError):
        canvas.size = 3


# -- multi-resolution and pixels --------------------------------------------------------------------------------


def test_the_ladder_is_the_papers_at_448():
    assert MultiResolution(448).ladder == tuple(range(8, 449, 20))


@given(size=st.integers(8, 1000))
@settings(max_examples=50, deadline=None)
def test_every_ladder_climbs_evenly_to_the_size(size):
    ladder = MultiResolution(size).ladder
    gaps = [b - a for a, b in pairwise(ladder)]
    assert ladder[-1] == size
    assert 4 <= ladder[0] <= max(4, size / 56 + 0.5)
    assert len(ladder) <= 23
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 8 or len(ladder) == 2


@pytest.mark.parametrize("canvas", [MultiResolution(48), Pixels(16)])
def test_the_start_is_exactly_grey(canvas):
    assert (canvas.render(canvas.start(2, generators(0, 1), "cpu")) == 0.5).all()


@pytest.mark.parametrize("kind", [MultiResolution, Pixels])
@pytest.mark.parametrize("ground", [0.02, 0.3, 0.5, 0.9, np.float32(0.98)])
def test_pictures_start_from_their_ground(kind, ground):
    canvas = kind(16, ground=ground)
    parts = canvas.start(2, generators(0, 1), "cpu")
    assert torch.allclose(canvas.render(parts), torch.full((2, 3, 16, 16), float(ground)), rtol=0, atol=1e-6)
    moved = [part + 0.25 for part in parts]
    start = math.atanh(2 * float(ground) - 1)
    wanted = 0.5 + 0.5 * math.tanh(start + 0.25 * len(parts))
    assert canvas.render(moved).mean().item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("kind", [MultiResolution, Pixels])
@pytest.mark.parametrize("ground", [0, 1, -0.2, 1.5, math.nan, True, "white"])
def test_a_wrong_ground(kind, ground):
    with pytest.raises(ValueError, match=r"allowed is a share of white between 0 and 1, both left out") as error:
        kind(16, ground=ground)
    assert mended(error)[0].render(mended(error)[0].start(1, generators(0), "cpu")).isfinite().all()


def test_the_exponent_weighs_components():
    canvas = MultiResolution(16, resolutions=(16, 4, 8), exponent=2.0)
    assert canvas.ladder == (4, 8, 16)
    for resolution, weight, part in zip((4, 8, 16), (1, 1 / 4, 1 / 16), range(3), strict=True):
        parts = [torch.zeros(1, 3, r, r) for r in (4, 8, 16)]
        parts[part][:] = 0.3
        assert canvas.render(parts).mean().item() == pytest.approx(0.5 + 0.5 * math.tanh(0.3 * weight)), resolution


@given(
    canvas=st.sampled_from([MultiResolution(16, exponent=1.0), Pixels(16), Pixels(16, ground=0.9)]),
    jobs=st.integers(1, 3),
)
@FEW
def test_start_from_renders_the_picture(canvas, jobs):
    pictures = torch.rand(jobs, 3, 16, 16, generator=torch.Generator().manual_seed(jobs))
    pictures[0, :, :2], pictures[0, :, 2:4] = 0, 1
    parts = canvas.start_from(pictures)
    assert [part.shape for part in parts] == [part.shape for part in canvas.start(jobs, generators(*range(jobs)))]
    assert all(part.dtype == torch.float32 and part.isfinite().all() for part in parts)
    assert torch.allclose(canvas.render(parts), pictures, rtol=0, atol=1e-3)
    assert torch.equal(canvas.render(canvas.start_from(pictures[0]))[0], canvas.render(parts)[0])
    assert not any(part.requires_grad for part in canvas.start_from(pictures.requires_grad_()))


@pytest.mark.parametrize("canvas", [MultiResolution(16), Pixels(16)])
def test_a_black_or_white_start_can_still_move(canvas):
    for value in (0.0, 1.0):
        parts = [part.requires_grad_() for part in canvas.start_from(torch.full((3, 16, 16), value))]
        canvas.render(parts).sum().backward()
        assert all((part.grad > 1e-4).all() for part in parts)


# -- spectra ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", [Fourier(16), MACO(16), Fourier(17), MACO(17)], ids=repr)
def test_spectra_start_from_their_own_generator(canvas):
    first = canvas.start(2, generators(4, 5), "cpu")[0]
    assert torch.equal(first, canvas.start(2, generators(4, 5), "cpu")[0])
    assert not torch.equal(first[0], first[1])


def test_fourier_starts_near_grey():
    picture = Fourier(33).render(Fourier(33).start(1, generators(0), "cpu"))
    assert 0 < (picture - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("size", [16, 17])
def test_maco_starts_like_a_photograph_of_mean_grey(size):
    canvas = MACO(size)
    total = torch.atanh(2 * canvas.render(canvas.start(1, generators(0), "cpu")).double() - 1)
    assert total.mean(dim=(-1, -2)).abs().max() < 1e-5
    assert total.square().mean().sqrt().item() == pytest.approx(0.5, rel=1e-3)


@given(size=st.sampled_from([8, 9, 16, 17]), seed=st.integers(0, 99), strength=st.sampled_from([0.0, 3.0]))
@FEW
def test_maco_holds_the_magnitude_whatever_the_phase(size, seed, strength):
    magnitude = 0.1 + MACO.from_pictures(torch.rand(2, 3, size, size), size).magnitude.double()
    canvas = MACO(size, magnitude=magnitude)
    total = torch.atanh(2 * canvas.render(moved(canvas, seed, strength=strength, dtype=torch.float64))[0] - 1)
    colours = torch.linalg.solve(torch.from_numpy(reference.COLOUR), total.flatten(1)).view_as(total)
    found = torch.fft.rfft2(colours, norm="ortho").abs()
    real = torch.zeros(size, size // 2 + 1, dtype=torch.bool)
    for k in range(size):
        for m in range(size // 2 + 1):
            real[k, m] = 2 * k % size == 0 and 2 * m % size == 0
    assert torch.allclose(found[:, ~real], magnitude[:, ~real], rtol=1e-3, atol=1e-4)
    assert (found[:, real] <= magnitude[:, real] * 1.001 + 1e-4).all()


@pytest.mark.parametrize("size", [16, 17])
def test_a_picture_with_its_own_phase_is_itself(size):
    picture = 0.05 + 0.9 * torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    canvas = MACO.from_pictures(picture, size)
    colours = torch.linalg.solve(
        torch.from_numpy(reference.COLOUR).float(), torch.atanh(2 * picture[0] - 1).flatten(1)
    ).view(3, size, size)
    assert torch.allclose(canvas.render([torch.fft.rfft2(colours).angle()[None]]), picture, atol=1e-4)


def test_from_pictures_is_the_mean_over_pictures_of_any_size():
    pictures = torch.rand(3, 3, 24, 30, generator=torch.Generator().manual_seed(0))
    each = torch.stack([MACO.from_pictures(p[None], 16).magnitude for p in pictures])
    assert torch.allclose(MACO.from_pictures(pictures, 16).magnitude, each.mean(0), atol=1e-5)
    assert torch.equal(MACO.from_pictures(pictures[0], 16).magnitude, each[0])
    flat = MACO.from_pictures(pictures.requires_grad_(), 16).magnitude
    assert flat.shape == (3, 16, 9)
    assert flat.dtype == torch.float32
    assert not flat.requires_grad


def test_macos_differ_by_their_magnitude():
    a, b = torch.rand(3, 8, 5), torch.rand(3, 8, 5)
    assert MACO(8, magnitude=a) == MACO(8, magnitude=a.clone()) != MACO(8, magnitude=b)
    assert MACO(8) == MACO(8) != MACO(8, magnitude=a)
    assert MACO(8) != Fourier(8)


# -- errors and their advice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MultiResolution, Pixels, Fourier, MACO])
@pytest.mark.parametrize("size", [7, -8, 64.0, True, "64"])
def test_a_wrong_size(kind, size):
    with pytest.raises(
        ValueError, match=re.escape(f"size={size!r} given; allowed are whole numbers from 8 up")
    ) as error:
        kind(size)
    assert mended(error) == [kind(64)]


@pytest.mark.parametrize("resolutions", [(), (0, 16), (4, 32), (4, 4, 16), (4.0, 16), [8, 8]])
def test_wrong_resolutions(resolutions):
    with pytest.raises(ValueError, match="different whole numbers from 1 to size") as error:
        MultiResolution(16, resolutions=resolutions)
    assert mended(error)[0].size == 16


@pytest.mark.parametrize(("kind", "name"), [(MultiResolution, "exponent"), (Fourier, "decay")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite(kind, name, value):
    with pytest.raises(ValueError, match=f"{name}={value} given; allowed are finite numbers") as error:
        kind(16, **{name: value})
    assert mended(error) == [kind(**{name: 1.0})]


@pytest.mark.parametrize("canvas", SMALL, ids=repr)
@pytest.mark.parametrize(("jobs", "count"), [(2, 1), (1, 0), (0, 0), (1, 3)])
def test_wrong_generators(canvas, jobs, count):
    with pytest.raises(ValueError, match=f"{count} generators given for {jobs} jobs; allowed is one each") as error:
        canvas.start(jobs, generators(*range(count)), "cpu")
    assert canvas.start(max(1, jobs), mended(error)[0], "cpu")


@pytest.mark.parametrize("canvas", SMALL, ids=repr)
def test_wrong_parts(canvas):
    good = canvas.start(1, generators(0), "cpu")
    for wrong in (
        [],
        [*good, good[0]],
        [part[0] for part in good],
        [part[:0] for part in good],
        [part[:, :2] for part in good],
    ):
        with pytest.raises(ValueError, match=r"parts of shapes \[.*allowed are \(jobs, 3, ") as error:
            canvas.render(wrong)
        assert canvas.render(mended(error, canvas=canvas)[0]).shape == (1, 3, canvas.size, canvas.size)


@pytest.mark.parametrize("canvas", [MultiResolution(16), Pixels(16)])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(3, 16, 16, dtype=torch.uint8), "a picture of torch.uint8 given"),
        (np.zeros((3, 16, 16), dtype=np.uint8), "a picture of ndarray given"),
        (torch.rand(16, 16, 3), r"shape \(16, 16, 3\) given; allowed are \(3, H, W\) and \(n, 3, H, W\)"),
        (torch.rand(3, 12, 16), "a picture of 12 x 16 given; allowed is the canvas's size, 16 x 16"),
        (torch.rand(2, 3, 12, 16), "a picture of 12 x 16 given; allowed is the canvas's size, 16 x 16"),
        (torch.full((3, 16, 16), math.nan), "768 values that are not finite given"),
        (torch.full((3, 16, 16), math.inf), "768 values that are not finite given"),
        (torch.full((3, 16, 16), 255.0), r"values from 255 to 255 given; allowed is \[0, 1\]"),
        (torch.full((3, 16, 16), -0.2), r"values from -0.2 to -0.2 given; allowed is \[0, 1\]"),
    ],
    ids=["uint8", "numpy", "channels last", "size", "sizes", "nan", "infinite", "255", "negative"],
)
def test_a_wrong_picture(canvas, wrong, message):
    with pytest.raises(ValueError, match=f"{type(canvas).__name__}: {message}") as error:
        canvas.start_from(wrong)
    picture = mended(error, picture=wrong)[0]
    assert canvas.render(canvas.start_from(picture)).shape[-2:] == (16, 16)


def test_a_picture_without_colours():
    with pytest.raises(ValueError, match=r"shape \(16, 16\) given") as error:
        Pixels(16).start_from(torch.rand(16, 16))
    plane = torch.rand(16, 16)
    assert Pixels(16).start_from(mended(error, red=plane, green=plane, blue=plane)[0])


def test_a_ladder_that_cannot_hold_a_picture():
    picture = torch.rand(3, 16, 16)
    with pytest.raises(
        ValueError, match=r"resolutions=\(4, 8\) asked for; allowed are ladders that reach size"
    ) as error:
        MultiResolution(16, resolutions=(4, 8), exponent=0.5).start_from(picture)
    canvas = mended(error)[0]
    assert canvas == MultiResolution(16, resolutions=(4, 8, 16), exponent=0.5)
    assert torch.allclose(canvas.render(canvas.start_from(picture))[0], picture, atol=1e-3)


@pytest.mark.parametrize(
    ("magnitude", "message"),
    [
        (torch.rand(3, 8, 8), r"magnitude of shape \(3, 8, 8\) given; allowed is \(3, 8, 5\)"),
        (torch.rand(3, 8, 5) - 2, "magnitude from -"),
        (torch.zeros(3, 8, 5), "magnitude from 0.0 to 0.0 given; allowed are finite values from 0 up, not all zero"),
        (torch.full((3, 8, 5), math.nan), "magnitude from nan"),
        (torch.full((3, 8, 5), math.inf), "magnitude from inf"),
    ],
    ids=["shape", "negative", "zero", "nan", "infinite"],
)
def test_a_wrong_magnitude(magnitude, message):
    with pytest.raises(ValueError, match=message) as error:
        MACO(8, magnitude=magnitude)
    assert mended(error, pictures=torch.rand(2, 3, 8, 8))[0].size == 8


def test_pictures_without_contrast_have_no_magnitude():
    with pytest.raises(ValueError, match="not all zero"):
        MACO.from_pictures(torch.full((1, 3, 8, 8), 0.5), 8)


# -- what a server runs -----------------------------------------------------------------------------------------

SHIPPED = [
    Path(nnsight_dream.engine.canvas.__file__).with_name(name) for name in ("canvas.py", "spectrum.py", "augment.py")
]
MAKERS = {
    "zeros",
    "ones",
    "full",
    "empty",
    "eye",
    "arange",
    "linspace",
    "tensor",
    "rand",
    "randn",
    "fftfreq",
    "rfftfreq",
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_source_runs_where_the_package_is_not(path, monkeypatch):
    honest = builtins.__import__

    def wary(name, importer=None, *rest):
        if (importer or {}).get("__name__") == "elsewhere":
            if name in ("checks", "picture_checks", "canvas"):  # others of this folder
                return honest(f"nnsight_dream.engine.{name}", None, None, rest[1])
            assert name.partition(".")[0] in {"torch", "math", "dataclasses", "typing"}, name
        return honest(name, importer, *rest)

    monkeypatch.setattr(builtins, "__import__", wary)
    there = {"__name__": "elsewhere"}  # not a key of sys.modules
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True), there)
    if path.name == "canvas.py":
        for canvas in (there["MultiResolution"](16), there["Pixels"](16)):
            assert canvas.render(canvas.start(1, generators(0), "cpu")).shape == (1, 3, 16, 16)
    elif path.name == "spectrum.py":
        for canvas in (there["Fourier"](16), there["MACO"](16)):
            assert canvas.render(canvas.start(1, generators(0), "cpu")).shape == (1, 3, 16, 16)
    else:
        for change in (there["Shift"](), there["Noise"](), there["Scale"](0.9, 1.1), there["Rotate"](5)):
            assert change(torch.rand(1, 3, 16, 16), generators(0), 1).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_source_keeps_its_rules(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    made = 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        assert not (isinstance(node.func, ast.Name) and node.func.id == "super"), f"line {node.lineno}: super()"
        if (
            isinstance(node.func, ast.Attribute)
            and node.func.attr in MAKERS
            and ast.unparse(node.func).startswith("torch.")
        ):
            made += 1
            named = {keyword.arg for keyword in node.keywords}
            assert {"dtype", "device"} <= named, f"line {node.lineno}: {ast.unparse(node)}"
    assert made
    for node in tree.body:
        if isinstance(node, ast.Assign):
            assert isinstance(ast.literal_eval(node.value), (tuple, int, float, str)), f"line {node.lineno}: can change"
