"""Poolings, scores, centres and terms against the formulas, in NumPy or by plain forward passes."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
from climbing import group
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.directions import centres
from nnsight_dream.engine import jobs, pooling
from nnsight_dream.engine.terms import away_term
from nnsight_dream.synthesis.centres import centre
from nnsight_dream.synthesis.digests import digest

FEW = nd.Settings(steps=2, batch=2, rate=0.5, canvas=nd.Pixels(24), augment=(nd.Noise(0.1),))


@pytest.fixture(scope="module")
def direction(tiny_vlm: nd.VLM) -> nd.Direction:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    return nd.from_tensor(tiny_vlm, vector, 2, label="random")


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- poolings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tau", [0.005, 0.5])
@pytest.mark.parametrize("grid", [(4, 4), (16, 16), (3, 5), (6, 6)])
@pytest.mark.parametrize("sigma", [(2.0, 16.0), (1.0, 3.0)])
def test_attention_is_the_formula(
    grid: tuple[int, int], tau: float, progress: float, sigma: tuple[float, float]
) -> None:
    patches, vectors = rand(2, grid[0] * grid[1], 7), rand(2, 7, seed=1)
    pooled, weights = nd.Attention(tau=tau, sigma=sigma)(patches, vectors, grid, progress)
    for row in range(2):
        expected = reference.attention(patches[row].numpy(), vectors[row].numpy(), *grid, tau, sigma, progress)
        np.testing.assert_allclose(pooled[row], expected[0], atol=2e-5)
        np.testing.assert_allclose(weights[row], expected[1], atol=2e-5)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


def test_sigma_is_2_and_then_16_patches_of_a_grid_of_16() -> None:
    """With patches all alike the weights are the spatial prior alone: read sigma off it."""
    for side in (16, 8):
        patches = torch.ones(1, side * side, 3)
        for progress, sigma in ((0.0, 2.0), (0.5, 9.0), (1.0, 16.0)):
            _, weights = nd.Attention()(patches, torch.ones(1, 3), (side, side), progress)
            line = weights.view(side, side)[side // 2].double().log()
            outer, inner = (side - 1) / 2, 0.5
            found = ((outer**2 - inner**2) / 2 / (line[side // 2] - line[-1])).sqrt().item()
            assert found == pytest.approx(sigma * side / 16, rel=1e-3)


def test_a_low_temperature_looks_at_one_patch_a_high_one_at_all() -> None:
    patches, vector = rand(1, 36, 8), rand(1, 8, seed=1)
    sharp, flat = (nd.Attention(tau=tau, sigma=(1e4, 1e4))(patches, vector, (6, 6), 0)[0] for tau in (1e-4, 1e6))
    torch.testing.assert_close(sharp, nd.Max()(patches, vector, (6, 6), 0)[0])
    torch.testing.assert_close(flat, nd.Mean()(patches, vector, (6, 6), 0)[0], atol=1e-4, rtol=1e-4)


def test_detach_changes_the_gradient_and_nothing_else() -> None:
    found = {}
    for detach in (False, True):
        patches = rand(1, 16, 8).requires_grad_(True)
        pooled, weights = nd.Attention(tau=0.1, detach=detach)(patches, rand(1, 8, seed=1), (4, 4), 0.5)
        (gradient,) = torch.autograd.grad(pooled[0, 0], patches)
        found[detach] = (pooled.detach(), weights.detach(), gradient)
    assert torch.equal(found[False][0], found[True][0])
    assert torch.equal(found[False][1], found[True][1])
    # fixed weights: d pooled_0 / d patch_i = w_i in place 0, and nothing elsewhere
    expected = torch.zeros(1, 16, 8)
    expected[..., 0] = found[True][1]
    torch.testing.assert_close(found[True][2], expected)
    # otherwise the gradient is that of the whole function, found here by differences in float64
    patches = rand(1, 16, 8).double()
    step = torch.zeros_like(patches)
    step[0, 5, 3] = 1e-5
    ends = [
        nd.Attention(tau=0.1)(patches + s, rand(1, 8, seed=1).double(), (4, 4), 0.5)[0][0, 0] for s in (step, -step)
    ]
    assert ((ends[0] - ends[1]) / 2e-5).item() == pytest.approx(found[False][2][0, 5, 3].item(), abs=1e-5)
    assert found[False][2][0, 5, 3].abs() > 1e-4


def test_chosen_tokens_have_no_middle() -> None:
    patches, vector = rand(1, 3, 8), rand(1, 8, seed=1)
    _, weights = nd.Attention(tau=0.5)(patches, vector, (4, 4), 0.0)
    raw = np.exp([reference.cosine(p, vector[0].numpy()) / 0.5 for p in patches[0].numpy()])
    np.testing.assert_allclose(weights[0], raw / raw.sum(), atol=1e-6)


@pytest.mark.parametrize("wrong", [{"tau": 0}, {"tau": -1.0}, {"sigma": (0, 16)}, {"sigma": (2.0, -1)}])
def test_attention_of_impossible_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a positive number is needed"):
        nd.Attention(**wrong)


def test_mean_and_max() -> None:
    patches, vectors = rand(2, 12, 5), rand(2, 5, seed=1)
    pooled, weights = nd.Mean()(patches, vectors, (3, 4), 0.0)
    np.testing.assert_allclose(pooled, patches.numpy().mean(1), atol=1e-6)
    np.testing.assert_allclose(weights, np.full((2, 12), 1 / 12), atol=1e-7)
    pooled, weights = nd.Max()(patches, vectors, (3, 4), 0.0)
    for row in range(2):
        likeness = [reference.cosine(p, vectors[row].numpy()) for p in patches[row].numpy()]
        best = int(np.argmax(likeness))
        assert torch.equal(pooled[row], patches[row, best])
        assert weights[row].nonzero().flatten().tolist() == [best]
        assert weights[row, best] == 1


def test_scores() -> None:
    pooled, vectors = rand(4, 6), 3 * rand(4, 6, seed=1)
    for row in range(4):
        a, b = pooled[row].double().numpy(), vectors[row].double().numpy()
        assert pooling.cosine(pooled, vectors)[row].item() == pytest.approx(reference.cosine(a, b), abs=1e-6)
        assert pooling.dot(pooled, vectors)[row].item() == pytest.approx(a @ b / np.sqrt(b @ b), rel=1e-5)


# -- centres -----------------------------------------------------------------------------------------------------


def mean_patch(parts: tuple, images: list[Image.Image], layer: int) -> torch.Tensor:
    """The mean patch of pictures, through the model's own processor and a whole forward pass."""
    hf, processor = parts
    pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return reference.patches(hf, processor, pixels, layer).mean((0, 1))


@pytest.mark.parametrize("layer", [1, 3])
def test_grey_is_the_mean_patch_of_a_grey_picture(tiny_vlm: nd.VLM, tiny_parts: tuple, layer: int) -> None:
    found = nd.Grey().of(tiny_vlm, nd.Site(layer))
    # 0.5 lies between two 8-bit greys, and the processor's mean and deviation make it 0
    greys = [mean_patch(tiny_parts, [Image.new("RGB", (112, 112), (g, g, g))], layer) for g in (127, 128)]
    assert (found - sum(greys) / 2).norm() < 0.2 * (greys[1] - greys[0]).norm()
    with torch.no_grad():
        exact = reference.patches(*tiny_parts, torch.zeros(1, 3, 112, 112), layer).mean((0, 1))
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4)


def test_pictures_are_their_mean_patch(tiny_vlm: nd.VLM, tiny_parts: tuple) -> None:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (112, 112, 3), dtype=np.uint8)) for _ in range(3)]
    expected = mean_patch(tiny_parts, images, 2)
    torch.testing.assert_close(nd.Pictures(images).of(tiny_vlm, nd.Site(2)), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(nd.Pictures(tuple(images)).of(tiny_vlm, nd.Site(2)), expected, atol=1e-5, rtol=1e-4)
    # of other sizes, and more than go through at once
    sizes = [Image.fromarray(random.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)) for i in range(20)]
    expected = torch.stack([nd.Pictures([one]).of(tiny_vlm, nd.Site(2)) for one in sizes]).mean(0)
    torch.testing.assert_close(nd.Pictures(sizes).of(tiny_vlm, nd.Site(2)), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="a non-empty list of PIL images"):
        nd.Pictures([])


def test_natural_noise(tiny_vlm: nd.VLM) -> None:
    site = nd.Site(2)
    one = nd.NaturalNoise(8).of(tiny_vlm, site)
    torch.manual_seed(5)
    assert torch.equal(one, nd.NaturalNoise(8).of(tiny_vlm, site))
    other = nd.NaturalNoise(8, seed=1).of(tiny_vlm, site)
    assert not torch.equal(one, other)
    # other draws, much the same centre, and not that of grey
    grey = nd.Grey().of(tiny_vlm, site)
    assert (one - other).norm() < 0.5 * (one - grey).norm()


def test_natural_noise_falls_as_one_over_frequency(tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        centres,
        "mean_patches",
        lambda vlm, groups, sites, n: seen.extend(groups) or {vlm.site(sites[0]): torch.zeros(32)},
    )
    nd.NaturalNoise(16).of(tiny_vlm, nd.Site(1))
    x = torch.cat(seen)
    assert x.shape == (16, 3, 112, 112)
    assert x.min() >= 0
    assert x.max() <= 1
    assert x.mean().item() == pytest.approx(0.5, abs=0.02)
    assert x.std().item() == pytest.approx(0.2, abs=0.02)
    amplitude = torch.fft.fft2(x - x.mean((2, 3), keepdim=True), norm="ortho").abs().square().mean((0, 1)).sqrt()
    along = (amplitude[0] + amplitude[:, 0])[2:24].log()
    frequency = torch.arange(2, 24).float().log()
    slope = ((along - along.mean()) * (frequency - frequency.mean())).sum() / (
        frequency - frequency.mean()
    ).square().sum()
    assert slope.item() == pytest.approx(-1, abs=0.2)


def test_every_centre_can_be_chosen(tiny_vlm: nd.VLM, direction: nd.Direction) -> None:
    class Own:
        """A centre of the user's; that it cannot be hashed must not matter."""

        __hash__ = None  # type: ignore[assignment]

        def of(self, vlm: nd.VLM, site: nd.Site) -> torch.Tensor:
            return torch.arange(32.0)

    images = [Image.new("RGB", (20, 20), (200, 30, 90))]
    found = set()
    for choice in (nd.Grey(), nd.NaturalNoise(4), nd.Pictures(images), torch.full((32,), 0.5), Own()):
        made = nd.synthesize(tiny_vlm, direction, settings=FEW, centre=choice)
        again = nd.synthesize(tiny_vlm, direction, settings=FEW, centre=choice)
        assert made.history == again.history
        found.add(made.history)
    assert len(found) == 5
    with pytest.raises(ValueError, match=r"centre is \(31,\); .* needs \(32,\)"):
        nd.synthesize(tiny_vlm, direction, settings=FEW, centre=torch.zeros(31))


def test_a_centre_is_computed_once(tiny_vlm: nd.VLM, direction: nd.Direction) -> None:
    asked = []

    @dataclasses.dataclass(frozen=True)
    class Counting:
        def of(self, vlm: nd.VLM, site: nd.Site) -> torch.Tensor:
            asked.append(site)
            return torch.zeros(32)

    for _ in range(2):
        nd.synthesize(tiny_vlm, direction, settings=FEW, seed=[0, 1], centre=Counting())
    assert asked == [direction.site]
    assert torch.equal(centre(tiny_vlm, nd.Site(1), Counting()), torch.zeros(32))
    assert asked == [direction.site, nd.Site(1)]


def test_the_centre_of_pictures_that_travelled_is_not_computed_again(
    tiny_vlm: nd.VLM, direction: nd.Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ray worker unpickles its settings with every chunk: what they mean is known there after the first."""
    asked = []
    mean_patches = jobs.mean_patches
    monkeypatch.setattr(jobs, "mean_patches", lambda *a: asked.append(a) or mean_patches(*a))
    images = [Image.new("RGB", (20, 20), (200, 30, 90 + i)) for i in range(2)]
    for _ in range(2):
        travelled = pickle.loads(pickle.dumps(FEW.but(centre=nd.Pictures(images))))
        nd.synthesize(tiny_vlm, direction, settings=travelled)
    assert len(asked) == 1


def test_pictures_are_equal_by_what_they_show() -> None:
    images = [Image.new("RGB", (4, 4), (9, 9, i)) for i in range(2)]
    one = nd.Pictures(images)
    same = nd.Pictures([i.convert("RGBA") for i in images])
    assert (one, hash(one)) == (same, hash(same))
    reds, blues = (Image.new("P", (4, 4)) for _ in range(2))
    reds.putpalette([200, 0, 0])
    blues.putpalette([0, 0, 200])
    for other in (images[:1], images[::-1], [reds], [Image.new("RGB", (2, 8), (9, 9, 0)), images[1]]):
        assert nd.Pictures(other) != one
    assert nd.Pictures([reds]) != nd.Pictures([blues])  # the same numbers, other colours
    assert digest(nd.Pictures([reds])) != digest(nd.Pictures([blues]))
    assert one != images


# -- objectives and terms ----------------------------------------------------------------------------------------


def step_of(patches: dict[nd.Site, torch.Tensor], pictures: torch.Tensor | None = None, batch: int = 2) -> nd.Step:
    jobs = len(next(iter(patches.values()))) // batch
    pictures = torch.rand(jobs, 3, 8, 8) if pictures is None else pictures
    return nd.Step(pictures, pictures.repeat_interleave(batch, 0), patches, batch, (2, 3), 0.25)


def test_objectives_are_grouped_by_site() -> None:
    """Jobs in mixed order, each scored at its own site, against its own direction and centre."""
    sites = [nd.Site(2), nd.Site(1), nd.Site(2), nd.Site(3)]
    jobs = [(site, rand(5, seed=i), rand(5, seed=10 + i)) for i, site in enumerate(sites)]
    patches = {site: rand(8, 6, 5, seed=20 + site.layer) for site in set(sites)}
    found = group(jobs, nd.Attention(tau=0.1), pooling.cosine)
    assert [o.site for o in found] == [nd.Site(2), nd.Site(1), nd.Site(3)]
    total = sum(o(step_of(patches)) for o in found)
    for j, (site, vector, middle) in enumerate(jobs):
        scores = []
        for view in patches[site][2 * j : 2 * j + 2]:
            pooled, _ = reference.attention((view - middle).numpy(), vector.numpy(), 2, 3, 0.1, (2.0, 16.0), 0.25)
            scores.append(reference.cosine(pooled, vector.numpy()))
        assert total[j].item() == pytest.approx(np.mean(scores), abs=1e-5)


def test_one_objective_by_hand() -> None:
    site = nd.Site(1)
    whole = nd.Objective(site, rand(2, 5), torch.zeros(2, 5), nd.Mean())
    found = whole(step_of({site: rand(4, 6, 5, seed=3)}))
    views = rand(4, 6, 5, seed=3).mean(1).numpy()
    expected = [np.mean([reference.cosine(views[2 * j + k], rand(2, 5)[j].numpy()) for k in (0, 1)]) for j in (0, 1)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_total_variation_is_the_formula() -> None:
    x = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    found = nd.TotalVariation(0.3)(step_of({nd.Site(1): torch.zeros(4, 6, 5)}, x))
    for j, picture in enumerate(x.double().numpy()):
        down = [abs(picture[c, i + 1, k] - picture[c, i, k]) for c in range(3) for i in range(4) for k in range(7)]
        right = [abs(picture[c, i, k + 1] - picture[c, i, k]) for c in range(3) for i in range(5) for k in range(6)]
        assert found[j].item() == pytest.approx(-0.3 * (np.mean(down) + np.mean(right)), rel=1e-5)


def roughness(image: Image.Image) -> float:
    x = np.asarray(image, dtype=float)
    return float(np.abs(np.diff(x, axis=0)).mean() + np.abs(np.diff(x, axis=1)).mean())


def test_total_variation_smooths(tiny_vlm: nd.VLM, direction: nd.Direction) -> None:
    plain, smooth = (
        nd.synthesize(tiny_vlm, direction, settings=FEW, steps=8, clip=0.1, terms=terms)
        for terms in ([], [nd.TotalVariation(30.0)])
    )
    assert roughness(smooth.image) < 0.7 * roughness(plain.image)


def test_away_is_the_formula(tiny_vlm: nd.VLM, direction: nd.Direction) -> None:
    away, middle = nd.Away(direction, weight=0.7), rand(32, seed=4)
    patches = rand(4, 6, 32, seed=5)
    found = away_term(away.site, away.direction.vector, middle, away.weight, away.pooling)(
        step_of({away.site: patches})
    )
    for j in (0, 1):
        views = (patches[2 * j : 2 * j + 2] - middle).mean(1).numpy()
        expected = -0.7 * np.mean([reference.cosine(v, direction.vector.numpy()) for v in views])
        assert found[j].item() == pytest.approx(expected, abs=1e-6)


def test_away_lowers_the_likeness(tiny_vlm: nd.VLM, direction: nd.Direction) -> None:
    """Two directions at 60 degrees: climbing one brings the other along, unless it is told to stay away."""
    part = rand(32, seed=6)
    part -= (part @ direction.vector) / direction.vector.square().sum() * direction.vector
    half = 0.5 * direction.vector / direction.norm + 0.75**0.5 * part / part.norm()
    other = nd.from_tensor(tiny_vlm, half, direction.site, label="other")
    settings = FEW.but(steps=20, optimiser="adam", rate=0.05, augment=(), pooling=nd.Mean())
    with_it, without = (
        nd.synthesize(tiny_vlm, direction, settings=settings, terms=terms) for terms in ([], [nd.Away(other, 1.0)])
    )

    def likeness(made: nd.Prototype, to: nd.Direction) -> float:
        x = torch.from_numpy(np.array(made.image)).permute(2, 0, 1)[None].float() / 255
        patches = nd.read_pictures(tiny_vlm, x, [to.site])[to.site] - nd.Grey().of(tiny_vlm, to.site)
        return reference.cosine(patches[0].mean(0).numpy(), to.vector.numpy())

    assert likeness(without, other) < likeness(with_it, other) - 0.1
    assert likeness(without, direction) > 0.1


def test_away_of_another_model_or_width_says_so(tiny_vlm: nd.VLM, direction: nd.Direction) -> None:
    for change, words in (({"model": "another"}, "was made from 'another'"), ({"vector": torch.ones(7)}, "is 7 wide")):
        with pytest.raises(ValueError, match=words):
            nd.synthesize(tiny_vlm, direction, settings=FEW, terms=[nd.Away(dataclasses.replace(direction, **change))])


# -- the user's own ----------------------------------------------------------------------------------------------


def test_a_users_own_choices_work(tiny_vlm: nd.VLM, direction: nd.Direction) -> None:
    seen: dict[str, Any] = {}

    def corner(patches: torch.Tensor, vector: torch.Tensor, grid: tuple[int, int], progress: float) -> Any:
        seen["pooling"] = (patches.shape, vector.shape, grid)
        seen.setdefault("progress", []).append(progress)
        weights = torch.zeros(patches.shape[:2])
        weights[:, 0] = 1
        return patches[:, 0], weights

    def length(pooled: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        return (pooled @ vector[0]) / 10

    def bright(step: nd.Step) -> torch.Tensor:
        seen["term"] = (step.pictures.shape, step.views.shape, {k: v.shape for k, v in step.patches.items()})
        seen["types"] = {v.dtype for v in step.patches.values()}
        return step.pictures.flatten(1).mean(1)

    @dataclasses.dataclass(frozen=True)
    class Flat:
        """One colour, and nothing else."""

        size: int = 20

        def start(self, jobs: int, generators: list[torch.Generator], device: Any) -> list[torch.Tensor]:
            return [torch.stack([torch.rand(3, generator=g) for g in generators]).to(device)]

        def render(self, parts: list[torch.Tensor]) -> torch.Tensor:
            return parts[0].clamp(0, 1)[:, :, None, None].expand(-1, -1, self.size, self.size)

    bright.site = 1  # type: ignore[attr-defined]  # a term may want another site read
    made = nd.synthesize(
        tiny_vlm,
        direction,
        settings=FEW,
        steps=5,
        seed=[0, 1],
        pooling=corner,
        score=length,
        canvas=Flat(),
        terms=[bright],
    )
    assert seen["pooling"] == ((4, 16, 32), (4, 32), (4, 4))
    assert seen["progress"] == [0, 0.25, 0.5, 0.75, 1]
    assert seen["term"] == ((2, 3, 20, 20), (4, 3, 20, 20), {nd.Site(2): (4, 16, 32), nd.Site(1): (4, 16, 32)})
    assert seen["types"] == {torch.float32}
    for one in made:
        assert one.image.size == (20, 20)
        assert len(set(one.image.getdata())) == 1
        assert one.settings["pooling"] == "corner"
        assert one.settings["score"] == "length"
        assert one.settings["canvas"] == {"is": "Flat", "size": 20}
        assert one.settings["terms"] == ["bright"]
    assert made[0].image.tobytes() != made[1].image.tobytes()


def test_a_users_pooling_is_what_is_climbed(tiny_vlm: nd.VLM, direction: nd.Direction) -> None:
    """Only the token that it takes reaches the score: at the tower's input its cell moves and others hardly."""

    def first(patches: torch.Tensor, vector: torch.Tensor, grid: tuple[int, int], progress: float) -> Any:
        return patches[:, 0], torch.zeros(patches.shape[:2])

    only = dataclasses.replace(direction, site=nd.Site(2, tokens=(0,)))
    by_pooling = nd.synthesize(tiny_vlm, direction, settings=FEW, pooling=first)
    by_site = nd.synthesize(tiny_vlm, only, settings=FEW, pooling=nd.Mean(), centre=nd.Grey().of(tiny_vlm, nd.Site(2)))
    np.testing.assert_allclose(by_pooling.history, by_site.history, atol=1e-6)
    assert by_site.heat[0, 0] == pytest.approx(1)
    assert np.count_nonzero(by_site.heat) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nd.Attention(tau="0.5"), "tau='0.5': a positive number is needed"),
        (lambda: nd.Attention(tau=float("nan")), "tau=nan: a positive number is needed"),
        (lambda: nd.Attention(sigma=(1, 2, 3)), r"sigma=\(1, 2, 3\): two numbers are needed"),
        (lambda: nd.NaturalNoise(count=0), "count=0: a whole number of at least 1 is needed"),
        (lambda: nd.NaturalNoise(seed=-1), "seed=-1: a whole number from 0"),
        (lambda: nd.TotalVariation(float("nan")), "weight=nan: a finite number is needed"),
        (lambda: nd.TotalVariation("much"), "weight='much': a finite number is needed"),
        (lambda: nd.Away("fish"), "Away takes a Direction, not 'fish'; see nd.concept"),
    ],
)
def test_numbers_that_do_not_fit(make: Callable[[], Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_numbers_in_any_guise() -> None:
    assert nd.Attention(tau=np.float32(0.5), sigma=[np.int64(2), torch.tensor(16)]) == nd.Attention()  # type: ignore[arg-type]
    assert nd.Attention(sigma=3.0).sigma == (3.0, 3.0)  # type: ignore[arg-type]
    assert nd.NaturalNoise(count=np.int64(4), seed=torch.tensor(1)) == nd.NaturalNoise(4, 1)  # type: ignore[arg-type]
