"""Reading and climbing against plain Hugging Face forward passes with hooks, and against an ascent written out."""

from __future__ import annotations

import dataclasses
import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from climbing import ascend, group

import nnsight_dream as nd
from nnsight_dream.engine import pooling as score_functions
from nnsight_dream.engine.optimise import Climb
from nnsight_dream.models.families import GEMMA3

SIDE = 112


def pictures(count: int, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    """Random 8-bit pictures (count, 3, side, side) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator).float() / 255


@pytest.fixture(scope="module")
def directions(tiny_vlm: nd.VLM) -> list[nd.Direction]:
    generator = torch.Generator().manual_seed(1)
    return [
        nd.from_tensor(tiny_vlm, torch.randn(32, generator=generator), layer, label=f"random {layer}")
        for layer in (1, 3)
    ]


FEW = nd.Settings(
    steps=3,
    batch=2,
    rate=0.5,
    clip=0.1,
    canvas=nd.MultiResolution(24),
    augment=(nd.Shift(pixels=3), nd.Noise(0.1)),
)


# -- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(reference.PLACES))
def test_patches_equal_a_plain_forward_with_a_hook(tiny_vlm: nd.VLM, tiny_parts: tuple, kind: str) -> None:
    from PIL import Image

    hf, processor = tiny_parts
    x = pictures(2)
    images = [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in x]
    pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    for layer in (1, 2, 3, 4):
        site = tiny_vlm.site(layer, kind)
        with torch.no_grad():
            theirs = reference.patches(hf, processor, pixels, layer, kind)
        torch.testing.assert_close(nd.read_pictures(tiny_vlm, x, [site])[site], theirs, atol=2e-5, rtol=1e-4)


def test_patches_equal_hidden_states(tiny_vlm: nd.VLM, tiny_parts: tuple) -> None:
    hf, _ = tiny_parts
    prompt = reference.picture_prompt(tiny_parts[1])
    x = pictures(1)
    with torch.no_grad():
        states = hf(pixel_values=2 * x - 1, **prompt, output_hidden_states=True).hidden_states
    at = prompt["input_ids"][0] == hf.config.image_token_id
    found = nd.read_pictures(tiny_vlm, x, [1, 2, 3])
    for layer in (1, 2, 3):  # the last of them is after the final norm
        torch.testing.assert_close(found[nd.Site(layer)], states[layer][:, at], atol=2e-5, rtol=1e-4)


def test_the_types_of_tokens_matter(tiny_vlm: nd.VLM, tiny_parts: tuple) -> None:
    """So that the comparison above can fail: causal attention between image tokens is something else."""
    hf, processor = tiny_parts
    prompt = reference.picture_prompt(processor)
    with torch.no_grad(), reference.hooked(hf, 2, "resid_post") as caught:
        hf(pixel_values=2 * pictures(1) - 1, input_ids=prompt["input_ids"])
    causal = caught[0][:, prompt["input_ids"][0] == hf.config.image_token_id]
    assert (nd.read_pictures(tiny_vlm, pictures(1), [2])[nd.Site(2)] - causal).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post", "attn_out", "mlp_out", "mlp.down_proj.input"])
def test_text_equals_a_plain_forward_alone_and_padded(tiny_vlm: nd.VLM, tiny_parts: tuple, kind: str) -> None:
    hf, processor = tiny_parts
    texts = ["<bos>The octopus has eight arms", "<bos>bee", "<bos>日本 🐙 spring"]
    alone = [torch.tensor([processor.tokenizer(t, add_special_tokens=False)["input_ids"]]) for t in texts]
    longest = max(ids.shape[1] for ids in alone)
    ids = torch.zeros(3, longest, dtype=torch.long)
    mask = torch.zeros(3, longest, dtype=torch.long)
    for row, one in enumerate(alone):
        ids[row, : one.shape[1]], mask[row, : one.shape[1]] = one, 1
    assert len(set(mask.sum(1).tolist())) > 1
    sites = [tiny_vlm.site(layer, kind) for layer in (1, 2, 4)]
    found = nd.read_text(tiny_vlm, ids, mask, sites)
    for site, (row, one) in itertools.product(sites, enumerate(alone)):
        with torch.no_grad(), reference.hooked(hf, site.layer, kind) as caught:
            hf(one)
        torch.testing.assert_close(found[site][row, : one.shape[1]], caught[0][0], atol=2e-5, rtol=1e-4)
        assert not found[site].requires_grad


def test_several_sites_in_one_pass_equal_single_passes(tiny_vlm: nd.VLM) -> None:
    kinds = [*reference.PLACES][::-1]  # in no helpful order
    sites = [tiny_vlm.site(layer, kind) for layer in (3, 1) for kind in kinds]
    together = nd.read_pictures(tiny_vlm, pictures(1), sites)
    assert list(together) == sites
    ids = torch.tensor([[2, 40, 50, 60]])
    text = nd.read_text(tiny_vlm, ids, torch.ones_like(ids), sites)
    for site in sites:
        assert torch.equal(together[site], nd.read_pictures(tiny_vlm, pictures(1), [site])[site]), site
        assert torch.equal(text[site], nd.read_text(tiny_vlm, ids, torch.ones_like(ids), [site])[site]), site


def test_names_may_be_mixed_and_repeated(tiny_vlm: nd.VLM) -> None:
    names = [2, "blocks.1.hook_resid_post", "model.language_model.layers.1.output", nd.Site(2, tokens=(0,))]
    found = nd.read_pictures(tiny_vlm, pictures(1), names)
    assert list(found) == [nd.Site(2), nd.Site(2, tokens=(0,))]


def test_a_batch_of_pictures_equals_single_pictures(tiny_vlm: nd.VLM) -> None:
    x = pictures(3, side=50)
    together = nd.read_pictures(tiny_vlm, x, [4])[nd.Site(4)]
    for row in range(3):
        alone = nd.read_pictures(tiny_vlm, x[row : row + 1], [4])[nd.Site(4)]
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_the_gradient_is_the_one_of_a_plain_backward(tiny_vlm: nd.VLM, tiny_parts: tuple) -> None:
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))
    x = pictures(2).requires_grad_(True)
    found = nd.read_pictures(tiny_vlm, x, [3])[nd.Site(3)]
    (mine,) = torch.autograd.grad((found * weight).sum(), x)
    pixels = (2 * pictures(2) - 1).requires_grad_(True)
    (theirs,) = torch.autograd.grad((reference.patches(*tiny_parts, pixels, 3) * weight).sum(), pixels)
    torch.testing.assert_close(mine, 2 * theirs, atol=1e-5, rtol=1e-3)
    assert not nd.read_pictures(tiny_vlm, pictures(1), [3])[nd.Site(3)].requires_grad
    with torch.no_grad():
        assert not nd.read_pictures(tiny_vlm, x, [3])[nd.Site(3)].requires_grad


# -- the pass really stops ---------------------------------------------------------------------------------------


@contextmanager
def counted(hf: torch.nn.Module) -> Iterator[dict[str, list[int]]]:
    """The rows of each call of tower, blocks, final norm and head."""
    names = {f"block {i + 1}": reference.BLOCK.format(i) for i in range(4)}
    names |= {"tower": "model.vision_tower", "norm": "model.language_model.norm", "head": "lm_head"}
    calls: dict[str, list[int]] = {name: [] for name in names}
    handles = [
        hf.get_submodule(path).register_forward_pre_hook(
            lambda module, args, kwargs, name=name: calls[name].append(
                len(args[0] if args else kwargs["pixel_values"])
            ),
            with_kwargs=True,
        )
        for name, path in names.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("layer", [1, 2, 4])
def test_nothing_behind_the_site_runs(tiny_vlm: nd.VLM, layer: int) -> None:
    ids = torch.tensor([[2, 40, 50]])
    nd.read_pictures(tiny_vlm, pictures(1), [1])  # whatever is made once is made
    for read in (
        lambda: nd.read_pictures(tiny_vlm, pictures(1), [1, layer]),
        lambda: nd.read_text(tiny_vlm, ids, torch.ones_like(ids), [layer]),
    ):
        with counted(tiny_vlm.hf) as calls:
            read()
        ran = [len(calls[f"block {i + 1}"]) for i in range(4)]
        assert ran == [1] * layer + [0] * (4 - layer)
        assert calls["head"] == calls["norm"] == []
    with counted(tiny_vlm.hf) as calls:  # a site inside a block stops inside it
        reached = []
        handle = tiny_vlm.hf.get_submodule(reference.BLOCK.format(0) + ".mlp").register_forward_hook(
            lambda *_: reached.append(1)
        )
        nd.read_pictures(tiny_vlm, pictures(1), [nd.Site(1, "attn_out")])
        handle.remove()
    assert reached == calls["block 2"] == []
    assert calls["block 1"] == [1]


def test_a_climb_is_one_pass_a_step_as_deep_as_needed(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    few = FEW.but(centre=torch.zeros(32))  # one of the model's own is read anew when hooks are set, as here
    for vectors, terms, deepest in (
        (directions[:1], (), 1),
        (directions[::-1], (), 3),
        (directions[:1], [nd.Away(dataclasses.replace(directions[0], site=nd.Site(2)))], 2),
    ):
        nd.synthesize(tiny_vlm, vectors, settings=few, steps=0, terms=terms)  # centres and masks
        with counted(tiny_vlm.hf) as idle:
            nd.synthesize(tiny_vlm, vectors, settings=few, steps=0, terms=terms)
        with counted(tiny_vlm.hf) as calls:
            nd.synthesize(tiny_vlm, vectors, settings=few, steps=4, terms=terms)
        # beside the steps there is the measuring of each finished picture
        assert calls["tower"][:4] == [2 * len(vectors)] * 4
        assert calls["tower"][4:] == idle["tower"] == [1] * len(vectors)
        for i in (1, 2, 3, 4):
            assert len(calls[f"block {i}"]) - len(idle[f"block {i}"]) == (4 if i <= deepest else 0), (i, deepest)
        assert calls["head"] == calls["norm"] == []


def test_masks_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.gemma3 import modeling_gemma3 as modeling

    built = []
    for name in ("create_causal_mask", "create_sliding_window_causal_mask"):
        real = getattr(modeling, name)
        monkeypatch.setattr(modeling, name, lambda *a, real=real, name=name, **k: built.append(name) or real(*a, **k))
    hf, processor = tiny.gemma3(layers=2)
    with torch.no_grad():
        reference.patches(hf, processor, pictures(1), 1)
    each = len(built)
    assert each >= 2  # so many a pass that is left to itself
    vlm = nd.load(hf, processor=processor, check=False)
    direction = nd.from_tensor(vlm, torch.ones(32), 1)
    nd.synthesize(vlm, direction, settings=FEW, steps=5)
    assert len(built) == 2 * each
    nd.synthesize(vlm, direction, settings=FEW, steps=5)
    nd.read_pictures(vlm, pictures(2), [2])
    assert len(built) == 2 * each


# -- the climb ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"clip": 100.0},
        {"optimiser": "adam", "rate": 0.05},
        {"optimiser": "adam", "rate": 0.05, "schedule": "cosine", "clip": 1.0},
        {"schedule": "cosine", "detach": True, "tau": 0.05},
    ],
    ids=str,
)
def test_the_climb_equals_one_written_out(
    tiny_vlm: nd.VLM, tiny_parts: tuple, directions: list[nd.Direction], choice: dict[str, Any]
) -> None:
    numbers = {"steps": 4, "batch": 2, "rate": 0.5, "clip": 0.02, "optimiser": "sgd", "schedule": "constant", **choice}
    pooling = {"tau": numbers.pop("tau", 0.5), "detach": numbers.pop("detach", False)}
    canvas, augment = nd.MultiResolution(40), (nd.Shift(pixels=4), nd.Noise(0.1))
    for direction in directions:
        picture, scores, norms = reference.climb(
            *tiny_parts, direction.site.layer, direction.vector, canvas, augment, **numbers, **pooling, seed=5
        )
        centre = nd.Grey().of(tiny_vlm, direction.site)
        terms = group([(direction.site, direction.vector, centre)], nd.Attention(**pooling), score_functions.cosine)
        parts, history, interrupted = ascend(
            tiny_vlm, canvas, augment, terms, [direction.site], Climb(**numbers), [torch.Generator().manual_seed(5)]
        )
        assert not interrupted
        assert history.shape == (4, 1)
        np.testing.assert_allclose(history[:, 0].numpy(), scores, atol=1e-5)
        assert (canvas.render(parts)[0] - picture).abs().max() < 1e-4
        assert (canvas.render(parts)[0] - 0.5).abs().max() > 5e-3  # it went somewhere
        if numbers["clip"] in (0.02, 100.0):  # the choices above reach both sides of it
            assert all((n > numbers["clip"]) == (numbers["clip"] == 0.02) for n in norms)


def test_a_climb_climbs(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    made = nd.synthesize(
        tiny_vlm, directions, settings=FEW, steps=25, optimiser="adam", rate=0.05, clip=1.0, augment=()
    )
    for one in made:
        assert one.history[-1] > one.history[0] + 0.2
        down = nd.synthesize(
            tiny_vlm, -directions[0], settings=FEW, steps=12, optimiser="adam", rate=0.05, clip=1.0, augment=()
        )
    assert down.history[-1] > down.history[0]


CANVASES = [nd.MultiResolution(24), nd.Pixels(24), nd.Fourier(24), nd.MACO(24)]


@pytest.mark.parametrize("canvas", CANVASES, ids=lambda c: type(c).__name__)
def test_together_equals_apart(tiny_vlm: nd.VLM, directions: list[nd.Direction], canvas: Any) -> None:
    """Directions of two layers x seeds in one batch, in batches of two, and each alone."""
    settings = FEW.but(
        canvas=canvas, augment=(nd.Scale(0.9, 1.1), nd.Rotate(10), *FEW.augment), pooling=nd.Attention(tau=0.05)
    )
    terms = [nd.TotalVariation(0.1), nd.Away(directions[1], 0.3)]
    together = nd.synthesize(tiny_vlm, directions, settings=settings, seed=[0, 7], terms=terms)
    halves = nd.synthesize(tiny_vlm, directions, settings=settings, seed=[0, 7], terms=terms, at_once=4)
    jobs = [(d, s) for d in directions for s in (0, 7)]
    assert [(p.label, p.seed) for p in together] == [(d.label, s) for d, s in jobs]
    for one, half, (direction, seed) in zip(together, halves, jobs, strict=True):
        alone = nd.synthesize(tiny_vlm, direction, settings=settings, seed=seed, terms=terms)
        for other in (half, alone):
            np.testing.assert_allclose(one.history, other.history, atol=1e-5)
            assert np.abs(np.asarray(one.image, dtype=int) - np.asarray(other.image, dtype=int)).max() <= 1
    assert len({p.history for p in together}) == 4


def test_jobs_are_clipped_one_by_one(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    """A job with a gradient a thousand times as long leaves its neighbour alone."""
    jobs = [(d.site, d.vector, nd.Grey().of(tiny_vlm, d.site)) for d in directions]
    run = (tiny_vlm, FEW.canvas, FEW.augment)
    climb = Climb(3, 2, 0.5, 0.1)

    def loud(step: nd.Step) -> torch.Tensor:
        return 1000 * step.pictures.flatten(1).mean(1) * torch.tensor([0.0, 1.0])

    sites = [d.site for d in directions]
    generators = [[torch.Generator().manual_seed(s) for s in (0, 1)] for _ in range(2)]
    plain = ascend(*run, group(jobs, nd.Mean(), score_functions.dot), sites, climb, generators[0])
    mixed = ascend(*run, [*group(jobs, nd.Mean(), score_functions.dot), loud], sites, climb, generators[1])
    np.testing.assert_allclose(plain[1][:, 0], mixed[1][:, 0], atol=1e-5)
    assert (plain[1][:, 1] - mixed[1][:, 1]).abs().max() > 1


def test_same_seed_same_bits(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    runs = []
    for state in (0, 1):
        torch.manual_seed(state)  # no business of a climb
        runs.append(nd.synthesize(tiny_vlm, directions[0], settings=FEW, canvas=nd.Fourier(24), seed=3))
    assert runs[0].history == runs[1].history
    assert runs[0].image.tobytes() == runs[1].image.tobytes()
    assert (runs[0].heat == runs[1].heat).all()
    other = nd.synthesize(tiny_vlm, directions[0], settings=FEW, canvas=nd.Fourier(24), seed=4)
    assert other.history != runs[0].history
    assert other.image.tobytes() != runs[0].image.tobytes()


# -- interrupts --------------------------------------------------------------------------------------------------


def test_an_interrupt_gives_the_pictures_so_far(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    def stop(step: int, scores: torch.Tensor) -> None:
        if step == 1:
            raise KeyboardInterrupt

    settings = FEW.but(pooling=nd.Mean())  # which does not depend on the number of steps
    made = nd.synthesize(tiny_vlm, directions, settings=settings, steps=50, progress=stop)
    two = nd.synthesize(tiny_vlm, directions, settings=settings, steps=2)
    for cut, whole in zip(made, two, strict=True):
        assert cut.interrupted
        assert not whole.interrupted
        assert cut.history == whole.history
        assert cut.image.tobytes() == whole.image.tobytes()
        assert cut.scores == whole.scores
        assert "stopped after 2 steps" in repr(cut)
        assert "stopped" not in repr(whole)
    # those whose turn had not come are not there
    assert len(nd.synthesize(tiny_vlm, directions, settings=settings, steps=9, progress=stop, at_once=2)) == 1


def _in_augmentation(vlm: nd.VLM, act: Callable[[], None]) -> dict[str, Any]:
    def change(views: torch.Tensor, generators: list[torch.Generator], batch: int) -> torch.Tensor:
        act()
        return views

    return {"augment": (change,)}


def _in_term(vlm: nd.VLM, act: Callable[[], None]) -> dict[str, Any]:
    def term(step: nd.Step) -> torch.Tensor:
        act()
        return step.pictures.flatten(1).mean(1)

    return {"terms": [term], "augment": ()}


@pytest.mark.parametrize("where", [_in_augmentation, _in_term, "model"])
def test_ctrl_c_anywhere(tiny_vlm: nd.VLM, directions: list[nd.Direction], where: Any) -> None:
    """A real SIGINT while the picture is being changed, scored, or run through the model inside a trace."""
    calls = itertools.count(1)
    signal_at = 3

    def act(*_: Any) -> None:
        if next(calls) == signal_at:
            signal.raise_signal(signal.SIGINT)

    few = FEW.but(centre=torch.zeros(32))  # one of the model's own is read anew when a hook is set
    nd.synthesize(tiny_vlm, directions[0], settings=few, steps=0)  # masks
    handle = None
    choice: dict[str, Any] = {}
    if where == "model":
        handle = tiny_vlm.hf.get_submodule("model.vision_tower").register_forward_hook(act)
    else:
        choice = where(tiny_vlm, act)
    try:
        made = nd.synthesize(tiny_vlm, directions[0], settings=few, steps=9, **choice)
    finally:
        if handle is not None:
            handle.remove()
    assert made.interrupted
    assert len(made.history) == 2
    again = nd.synthesize(tiny_vlm, directions[0], settings=FEW)  # nothing is left in a broken state
    assert len(again.history) == 3
    assert not again.interrupted


def test_an_interrupt_before_the_first_step_gives_grey(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    def change(views: torch.Tensor, generators: list[torch.Generator], batch: int) -> torch.Tensor:
        raise KeyboardInterrupt

    made = nd.synthesize(tiny_vlm, directions[0], settings=FEW, augment=(change,))
    assert made.interrupted
    assert made.history == ()
    assert set(np.asarray(made.image).ravel().tolist()) <= {127, 128}


# -- what stops a climb ------------------------------------------------------------------------------------------


def test_a_score_that_is_not_finite(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    def bad(pooled: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        return pooled.sum(-1) * torch.where(torch.arange(len(pooled)) >= 2, float("nan"), 1.0)

    jobs = [(directions[0].site, d.vector, torch.zeros(32)) for d in directions]
    arguments = [torch.Generator().manual_seed(s) for s in (0, 1)]
    with pytest.raises(FloatingPointError, match=r"step 0: the score of job \[1\] is not finite"):
        ascend(
            tiny_vlm,
            FEW.canvas,
            (),
            group(jobs, nd.Mean(), bad),
            [directions[0].site],
            Climb(2, 2, 1.0, 1.0),
            arguments,
        )

    def term(step: nd.Step) -> torch.Tensor:  # good at first
        return step.pictures.flatten(1).mean(1) + (float("inf") if step.progress == 1 else 0)

    with pytest.raises(FloatingPointError, match=r"step 2: .* a score or term of your own"):
        nd.synthesize(tiny_vlm, directions[0], settings=FEW, terms=[term])


def test_a_gradient_that_is_not_finite(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    def steep(pooled: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        return (0 * pooled.sum(-1)).sqrt()

    with pytest.raises(FloatingPointError, match=r"the gradient is not finite; .*float32"):
        nd.synthesize(tiny_vlm, directions[0], settings=FEW, score=steep)


def test_float16_overflow_and_the_advice(tiny_parts: tuple, tmp_path: Any) -> None:
    hf, _processor = tiny.gemma3(tmp_path, layers=1)
    with torch.no_grad():
        hf.model.multi_modal_projector.mm_input_projection_weight.mul_(1e9)
    hf.save_pretrained(tmp_path)
    half = nd.load(tmp_path, dtype=torch.float16, check=False, family=dataclasses.replace(GEMMA3, overflows=False))
    direction = nd.from_tensor(half, torch.ones(32), 1)
    settings = FEW.but(pooling=nd.Mean(), centre=torch.zeros(32))
    with pytest.raises(FloatingPointError, match=r"dtype=torch.bfloat16 or torch.float32"):
        nd.synthesize(half, direction, settings=settings)
    for dtype in (torch.bfloat16, torch.float32):
        whole = nd.load(tmp_path, dtype=dtype, check=False)
        assert len(nd.synthesize(whole, direction, settings=settings, clip=1e3).history) == 3


def test_a_cut_graph(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    def pooling(patches: Any, direction: Any, grid: Any, progress: float, cut: bool = True) -> Any:
        mean = patches.mean(1)
        return (mean.detach() if cut else mean), torch.full(patches.shape[:2], 1 / patches.shape[1])

    with pytest.raises(RuntimeError, match=r"step 0: no gradient reaches the picture.*a pooling.*that detaches"):
        nd.synthesize(tiny_vlm, directions[0], settings=FEW, pooling=pooling)
    mended = nd.synthesize(tiny_vlm, directions[0], settings=FEW, pooling=lambda *a: pooling(*a, cut=False))
    assert len(mended.history) == 3

    def away_from_the_picture(views: torch.Tensor, generators: Any, batch: int) -> torch.Tensor:
        return views.detach()

    with pytest.raises(RuntimeError, match=r"no gradient reaches the picture.*augmentation that detaches"):
        nd.synthesize(tiny_vlm, directions[0], settings=FEW, augment=(away_from_the_picture,))

    @dataclasses.dataclass(frozen=True)
    class Half(nd.Pixels):  # type: ignore[misc]
        """One of its two parts has no say."""

        def start(self, jobs: int, generators: Any, device: Any = "cpu") -> list[torch.Tensor]:
            return [*super().start(jobs, generators, device), torch.zeros(jobs, 1)]

        def render(self, parts: list[torch.Tensor]) -> torch.Tensor:
            return super().render(parts[:1])

    with pytest.raises(RuntimeError, match="no gradient reaches"):
        nd.synthesize(tiny_vlm, directions[0], settings=FEW, canvas=Half(24))


def test_a_gradient_of_zero(tiny_vlm: nd.VLM, directions: list[nd.Direction]) -> None:
    hf, processor = tiny.gemma3(layers=1)
    with torch.no_grad():
        hf.model.multi_modal_projector.mm_input_projection_weight.zero_()
    vlm = nd.load(hf, processor=processor, check=False)
    direction = nd.from_tensor(vlm, torch.ones(32), 1)
    settings = FEW.but(centre=torch.zeros(32))
    with pytest.raises(RuntimeError, match=r"exactly zero for job \[0\].*projector of zeros \(load trained weights\)"):
        nd.synthesize(vlm, direction, settings=settings)
    tiny.randomise(hf)
    assert len(nd.synthesize(vlm, direction, settings=settings).history) == 3
    with pytest.raises(RuntimeError, match="does not depend on the picture"):
        nd.synthesize(tiny_vlm, directions[0], settings=FEW, score=lambda r, v: 0 * r.sum(-1))
