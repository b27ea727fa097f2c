"""Reading and climbing against plain Hugging Face forwards and a hand-written loop."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.models.memo import Shelf

FEW = nd.Settings(
    steps=4,
    batch=2,
    rate=0.05,
    canvas=nd.MultiResolution(32),
    augment=(nd.Shift(pixels=4), nd.Noise(0.1)),
    pooling=nd.Attention(tau=0.5),
)


@pytest.fixture(scope="module")
def vlm():
    hf, processor = tiny.gemma3()
    return nd.load(hf, processor=processor)


@pytest.fixture(scope="module")
def directions(vlm):
    generator = torch.Generator().manual_seed(1)
    return [
        nd.from_tensor(vlm, torch.randn(vlm.width, generator=generator), layer, label=f"random {layer}")
        for layer in (1, 3)
    ]


def plain_forward(vlm, picture: Image.Image):
    """Hidden states at the image tokens from the model's own processor and a full forward."""
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = vlm.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    inputs = vlm.processor(text=[text], images=[[picture]], add_special_tokens=False, return_tensors="pt")
    ids = inputs["input_ids"]
    with torch.no_grad():
        out = vlm.hf(
            input_ids=ids,
            pixel_values=inputs["pixel_values"],
            token_type_ids=(ids == vlm.config.image_token_id).long(),
            output_hidden_states=True,
        )
    places = (ids[0] == vlm.config.image_token_id).nonzero().flatten()
    return [h[:, places] for h in out.hidden_states]


def test_patches_equal_a_plain_forward(vlm):
    noise = np.random.default_rng(3).integers(0, 256, (*vlm.image_size, 3), dtype=np.uint8)
    states = plain_forward(vlm, Image.fromarray(noise))
    x = torch.from_numpy(noise).permute(2, 0, 1)[None].float() / 255
    sites = [vlm.site(layer) for layer in range(1, vlm.layers)]
    found = nd.read_pictures(vlm, x, [*sites, vlm.site(1, "resid_pre")])
    for site in sites:
        torch.testing.assert_close(found[site], states[site.layer], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found[vlm.site(1, "resid_pre")], states[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["attn_out", "mlp_out"])
def test_inner_sites_equal_hooks(vlm, kind):
    module = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}[kind]
    noise = np.random.default_rng(4).integers(0, 256, (*vlm.image_size, 3), dtype=np.uint8)
    caught = []
    block = vlm.hf.get_submodule("model.language_model.layers.1")
    handle = block.get_submodule(module).register_forward_hook(lambda m, a, out: caught.append(out))
    plain_forward(vlm, Image.fromarray(noise))
    handle.remove()
    x = torch.from_numpy(noise).permute(2, 0, 1)[None].float() / 255
    site = vlm.site(2, kind)
    places = vlm.image_prompt.positions
    torch.testing.assert_close(nd.read_pictures(vlm, x, [site])[site], caught[0][:, places], atol=2e-5, rtol=1e-4)


def test_later_blocks_and_head_never_run(vlm):
    ran = []
    handles = [
        vlm.hf.get_submodule(f"model.language_model.layers.{i}").register_forward_pre_hook(
            lambda *a, i=i: ran.append(i)
        )
        for i in range(vlm.layers)
    ]
    handles.append(vlm.hf.lm_head.register_forward_pre_hook(lambda *a: ran.append("head")))
    nd.read_pictures(vlm, torch.rand(1, 3, 112, 112), [2])
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def by_hand(vlm, direction, settings, seed):
    """The climb written out with a hook, a full forward and torch.optim; final parts and scores."""
    generator = torch.Generator().manual_seed(seed)
    canvas = settings.canvas
    parts = [p.requires_grad_(True) for p in canvas.start(1, [generator], "cpu")]
    optimiser = torch.optim.SGD(parts, lr=settings.rate, momentum=0.9)
    layer, places, ids = direction.site.layer, vlm.image_prompt.positions, vlm.image_prompt.ids
    types = (ids == vlm.config.image_token_id).long()

    def patches(x):
        caught = []
        block = vlm.hf.get_submodule(f"model.language_model.layers.{layer - 1}")
        handle = block.register_forward_hook(lambda m, a, out: caught.append(out))
        small = torch.nn.functional.interpolate(x, vlm.image_size, mode="bilinear", antialias=True)
        rows = len(x)
        vlm.hf(
            input_ids=ids.expand(rows, -1),
            pixel_values=(small - 0.5) / 0.5,
            token_type_ids=types.expand(rows, -1),
        )
        handle.remove()
        return caught[0][:, places]

    with torch.no_grad():
        centre = patches(torch.full((1, 3, *vlm.image_size), 0.5))[0].mean(0)
    scores = []
    for step in range(settings.steps):
        x = canvas.render(parts).repeat_interleave(settings.batch, 0)
        for change in settings.augment:
            x = change(x, [generator], settings.batch)
        h = patches(x) - centre
        s = torch.cosine_similarity(h, direction.vector.expand_as(h), dim=-1)
        sigma = (2 + 14 * step / (settings.steps - 1)) * vlm.grid[0] / 16
        at = torch.arange(vlm.grid[0]).float() - (vlm.grid[0] - 1) / 2
        g = torch.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * sigma**2)).flatten()
        w = g * torch.exp(s / settings.pooling.tau)
        w = w / w.sum(-1, keepdim=True)
        pooled = (w[..., None] * h).sum(1)
        score = torch.cosine_similarity(pooled, direction.vector[None], dim=-1).mean()
        optimiser.zero_grad()
        (-score).backward()
        if settings.optimiser == "normalised":
            held, slopes = [p.detach() for p in parts], [p.grad for p in parts]
            _, change = torch.func.jvp(lambda *p: canvas.render(list(p)), tuple(held), tuple(slopes))
            with torch.no_grad():
                for p in parts:
                    p -= settings.rate / settings.steps * p.grad / change.square().mean().sqrt()
        else:
            torch.nn.utils.clip_grad_norm_(parts, settings.clip)
            optimiser.step()
        scores.append(score.item())
    return canvas.render([p.detach() for p in parts]), scores


@pytest.mark.parametrize("settings", [FEW, FEW.but(optimiser="normalised", rate=0.02)], ids=["sgd", "normalised"])
def test_climb_equals_a_loop_by_hand(vlm, directions, settings):
    for direction in directions:
        picture, scores = by_hand(vlm, direction, settings, seed=5)
        made = nd.synthesize(vlm, direction, settings=settings, seed=5, progress=False)
        np.testing.assert_allclose(made.history, scores, atol=1e-5)
        expected = (picture[0] * 255).round().byte().permute(1, 2, 0).numpy().astype(int)
        assert np.abs(np.asarray(made.image).astype(int) - expected).max() <= 1


def test_together_equals_alone(vlm, directions):
    together = nd.synthesize(vlm, directions, settings=FEW, seed=[0, 7], progress=False)
    for i, (direction, seed) in enumerate((d, s) for d in directions for s in (0, 7)):
        alone = nd.synthesize(vlm, direction, settings=FEW, seed=seed, progress=False)
        np.testing.assert_allclose(together[i].history, alone.history, atol=1e-5)
        assert together[i].seed == seed
    split = nd.synthesize(vlm, directions, settings=FEW, seed=[0, 7], at_once=2, progress=False)
    np.testing.assert_allclose([p.history for p in split], [p.history for p in together], atol=1e-5)


def counted(vlm):
    """How many pictures there are in each pass of the model."""
    sizes = []
    tower = vlm.hf.get_submodule(vlm.family.tower)
    handle = tower.register_forward_pre_hook(
        lambda m, a, k: sizes.append(len(k.get("pixel_values", a[0] if a else ()))), with_kwargs=True
    )
    return sizes, handle


def unlike_a_mean(step):
    """A term that no sum over views gives: it sees how they differ, and views and pictures by themselves."""
    (patches,) = [p.mean((1, 2)).unflatten(0, (-1, step.batch)) for s, p in step.patches.items() if s.layer == 1]
    views = step.views.unflatten(0, (-1, step.batch)).var((1, 2, 3, 4))
    return patches.std(1) - 3 * views - 0.1 * step.pictures.square().mean((1, 2, 3))


@pytest.mark.parametrize("at_once", [1, 4, 5])
def test_views_of_a_step_in_several_passes(vlm, directions, at_once):
    six = FEW.but(batch=6, centre=nd.NaturalNoise(count=7))
    whole = nd.synthesize(vlm, directions[0], settings=six, terms=unlike_a_mean, progress=False)
    sizes, handle = counted(vlm)
    vlm.memo.centres = Shelf()
    try:
        split = nd.synthesize(vlm, directions[0], settings=six, at_once=at_once, terms=unlike_a_mean, progress=False)
    finally:
        handle.remove()
    assert max(sizes) <= at_once
    assert len(sizes) > 4 * 6 / at_once
    np.testing.assert_allclose(split.history, whole.history, atol=1e-5)
    np.testing.assert_allclose(list(split.scores.values()), list(whole.scores.values()), atol=1e-5)
    assert np.abs(np.asarray(split.image).astype(int) - np.asarray(whole.image)).max() <= 1


def test_several_jobs_in_several_passes(vlm, directions):
    """Below `synthesize`, which climbs jobs in turn, an ascent of several jobs is split by views all the same."""
    from climbing import ascend, group

    from nnsight_dream.engine import optimise
    from nnsight_dream.engine import pooling as pooling_

    site = vlm.site(2)
    rows = torch.randn(3, vlm.width, generator=torch.Generator().manual_seed(0))
    terms = group([(site, row, torch.zeros(vlm.width)) for row in rows], nd.Attention(), pooling_.cosine)
    found = []
    for at_once in (None, 6, 4):
        plan = optimise.Climb(3, 2, 0.5, 1.0, at_once=at_once)
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        found.append(ascend(vlm, FEW.canvas, FEW.augment, terms, [site], plan, generators))
    parts, histories = [f[0] for f in found], [f[1] for f in found]
    assert torch.equal(histories[0], histories[1])
    assert all(torch.equal(a, b) for a, b in zip(parts[0], parts[1], strict=True))
    torch.testing.assert_close(histories[2], histories[0], atol=1e-5, rtol=0)


def test_passes_and_places_are_the_same_bits_by_way_of_a_server(vlm):
    """Split passes, chosen tokens and settings by layer, as jobs that are sent and received."""
    far = nd.load(vlm.hf, processor=vlm.processor, remote="local", check=False)
    few = FEW.but(batch=3, at_once=2, schedule="cosine")
    made = []
    for where in (vlm, far):
        rows = [torch.linspace(-1, 1, vlm.width), torch.linspace(1, 0, vlm.width)]
        sites = [nd.Site(2, tokens=(5, 0, 3)), nd.Site(3), nd.Site(2, tokens=(1, 2))]
        aims = [nd.from_tensor(where, rows[i % 2], site, label=str(i)) for i, site in enumerate(sites)]
        chosen = lambda layer: few.but(rate=0.05 * layer)  # noqa: E731
        made.append(nd.synthesize(where, aims, settings=chosen, terms=nd.TotalVariation(0.1), progress=False))
    for here, there in zip(*made, strict=True):
        assert (here.label, here.history, here.settings) == (there.label, there.history, there.settings)
        assert here.image.tobytes() == there.image.tobytes()
        np.testing.assert_allclose(here.heat, there.heat, atol=1e-6)
    assert [p.label for p in made[1]] == ["0", "1", "2"]


def test_autocast_around_a_climb_changes_nothing(vlm, directions):
    feature = nd.feature_from_tensors(0, 3, W_enc=torch.randn(vlm.width, 2, generator=torch.Generator().manual_seed(0)))
    feature = feature.but(guard=None)
    plain = nd.synthesize(vlm, [directions[0], feature], settings=FEW, progress=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = nd.synthesize(vlm, [directions[0], feature], settings=FEW, progress=False)
    for a, b in zip(plain, around, strict=True):
        assert (a.history, a.scores, a.readings) == (b.history, b.scores, b.readings)


def test_a_server_under_autocast_measures_in_full_precision(vlm, directions):
    from types import SimpleNamespace as Plain

    from nnsight_dream.engine import jobs as shipped_jobs

    patches = torch.randn(1, 16, vlm.width, generator=torch.Generator().manual_seed(0))
    site = nd.Site(3)
    feature = nd.feature_from_tensors(0, 3, W_enc=torch.randn(vlm.width, 2, generator=torch.Generator().manual_seed(1)))
    towards = Plain(site=site, feature=None)
    climbed = Plain(site=site, feature=feature, alone=[], reference="r")
    given = Plain(canvas=nd.Pixels(8), aims=[towards, climbed], poolings={"attention": nd.Attention()}, grid=(4, 4))
    vectors, centres = [torch.linspace(-1, 1, vlm.width), None], {site: torch.zeros(vlm.width)}
    more = (
        given,
        torch.full((2, 8, 8, 3), 128, dtype=torch.uint8),
        vectors,
        centres,
        {(site, "r"): 1.0},
        torch.device("cpu"),
    )
    plain = shipped_jobs._measured(lambda pictures: {site: patches}, *more)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = shipped_jobs._measured(lambda pictures: {site: patches}, *more)
    for a, b in zip(plain, around, strict=True):
        assert (a[0], a[2]) == (b[0], b[2])
        assert torch.equal(a[1], b[1])


@pytest.mark.parametrize(("wrong", "words"), [(lambda step: torch.zeros(5), r"\(5,\)"), (lambda step: 0.5, "float")])
def test_a_term_of_another_shape(vlm, directions, wrong, words):
    with pytest.raises(ValueError, match=rf"{words}.*; each must give a tensor of \(1,\)"):
        nd.synthesize(vlm, directions[0], settings=FEW, terms=wrong, progress=False)


def test_a_token_that_stands_twice_is_seen_once_with_both_weights(vlm):
    twice = nd.from_tensor(vlm, torch.linspace(-1, 1, vlm.width), nd.Site(2, tokens=(0, 0, 1)))
    heat = nd.synthesize(vlm, twice, settings=FEW, steps=1, progress=False).heat
    assert abs(heat.sum() - 1) < 1e-5


def test_a_graph_that_is_cut_is_told_in_several_passes_too(vlm, directions):
    def cut(patches, direction, grid, progress):
        return patches.detach().mean(1), patches[..., 0]

    with pytest.raises(RuntimeError, match="gradient"):
        nd.synthesize(vlm, directions[0], settings=FEW, pooling=cut, at_once=1, progress=False)
    with pytest.raises(FloatingPointError, match="not finite"):
        nd.synthesize(vlm, directions[0], settings=FEW, score=lambda r, v: nd_nan(r), at_once=1, progress=False)


def test_every_step_of_a_schedule_moves(vlm, directions):
    """The rate at step t of n is rate * (1 + cos(pi t / n)) / 2: at none of them zero."""
    for optimiser in ("sgd", "adam", "normalised"):
        cosine = FEW.but(schedule="cosine", optimiser=optimiser, rate=0.5)
        pictures = [nd.synthesize(vlm, directions[0], settings=cosine, steps=n, progress=False) for n in (0, 1, 2, 3)]
        assert len({p.image.tobytes() for p in pictures}) == 4
    plain = nd.synthesize(vlm, directions[0], settings=FEW, steps=1, rate=0.5, progress=False)
    cosine = FEW.but(schedule="cosine", rate=0.5)
    assert (
        nd.synthesize(vlm, directions[0], settings=cosine, steps=1, progress=False).image.tobytes()
        == plain.image.tobytes()
    )


def large(pooled: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """A score 1,024 times the cosine, whose gradient has the same digits."""
    return 1024 * torch.cosine_similarity(pooled, direction, dim=-1)


def small(pooled: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The cosine itself."""
    return torch.cosine_similarity(pooled, direction, dim=-1)


CANVASES = [nd.Pixels(32), nd.Pixels(64), nd.MultiResolution(64), nd.MultiResolution(40, ground=0.8), nd.Fourier(48)]


@pytest.mark.parametrize("canvas", CANVASES, ids=[f"{type(c).__name__}-{c.size}" for c in CANVASES])
def test_a_normalised_way_is_as_long_as_the_rate_says(vlm, directions, canvas):
    """Pixels change by the rate, root mean square, on any canvas; by how much the score is scaled changes nothing."""
    steps = nd.Settings(
        steps=1, batch=1, rate=0.03, canvas=canvas, augment=(), optimiser="normalised", centre=nd.Grey()
    )

    def drawn(**changes):
        return nd.synthesize(vlm, directions[0], settings=steps.but(**changes), progress=False).image

    assert drawn(steps=3, score=small).tobytes() == drawn(steps=3, score=large).tobytes()
    start, one, many, falling = (
        np.asarray(drawn(**c), float) / 255
        for c in ({"steps": 0}, {}, {"steps": 5}, {"steps": 5, "schedule": "cosine"})
    )
    assert np.sqrt(np.square(one - start).mean()) == pytest.approx(0.03, rel=0.1)
    for way in (many, falling):
        assert 0.005 < np.sqrt(np.square(way - start).mean()) <= 0.033


def test_normalised_steps_are_not_clipped(vlm, directions):
    steps = FEW.but(optimiser="normalised", rate=0.02)
    pictures = [
        nd.synthesize(vlm, directions[0], settings=steps, clip=clip, progress=False).image.tobytes()
        for clip in (1e-9, 1.0)
    ]
    assert pictures[0] == pictures[1]


def test_qualities(vlm, directions):
    """By name, beside any other choice; what is given by itself wins."""
    draft, fine = (FEW.but(quality=name) for name in ("draft", "fine"))
    assert draft.steps * draft.batch < fine.steps * fine.batch
    assert draft.rate == FEW.rate
    assert FEW.but(quality="fine", batch=1) == FEW.but(steps=fine.steps, batch=1)
    made = nd.synthesize(vlm, directions[0], settings=FEW, quality="draft", steps=2, progress=False)
    assert len(made.history) == 2
    assert made.settings["batch"] == draft.batch
    with pytest.raises(ValueError, match="quality='good': allowed are 'draft' and 'fine'"):
        FEW.but(quality="good")
    with pytest.raises(TypeError, match="did you mean 'quality'"):
        FEW.but(qualty="fine")


def test_rates_of_the_cosine_schedule(vlm, directions, monkeypatch):
    rates = []

    class Told(torch.optim.SGD):
        def step(self, closure=None):
            rates.extend(group["lr"] for group in self.param_groups)
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Told)
    nd.synthesize(vlm, directions[0], settings=FEW.but(schedule="cosine", rate=2.0), progress=False)
    np.testing.assert_allclose(rates, [2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])


def test_a_prior_follows_its_tokens(vlm):
    """Patches in another order get the weights of their own places; of some patches each that of its own."""
    rows, cols = vlm.grid
    towards = torch.linspace(-1, 1, vlm.width)
    order = torch.randperm(rows * cols, generator=torch.Generator().manual_seed(0)).tolist()
    made = {
        tokens: nd.synthesize(
            vlm, nd.from_tensor(vlm, towards, nd.Site(2, tokens=tokens)), settings=FEW, progress=False
        )
        for tokens in ("image", tuple(order), tuple(order[:5]))
    }
    whole, mixed, some = made.values()
    np.testing.assert_allclose(mixed.history, whole.history, atol=1e-5)
    np.testing.assert_allclose(mixed.heat, whole.heat, atol=1e-5)
    np.testing.assert_allclose(list(mixed.scores.values()), list(whole.scores.values()), atol=1e-5)

    pooling = nd.Attention(tau=0.5, sigma=(2.0, 2.0))
    patches = torch.randn(1, rows * cols, 8, generator=torch.Generator().manual_seed(1))
    at = [((p // cols - (rows - 1) / 2) * 16 / rows, (p % cols - (cols - 1) / 2) * 16 / cols) for p in order[:5]]
    likeness = torch.cosine_similarity(patches[0, order[:5]], torch.ones(1, 8), dim=-1)
    by_hand = torch.tensor(
        [np.exp(-(y * y + x * x) / 8) * np.exp(s / 0.5) for (y, x), s in zip(at, likeness.tolist(), strict=True)]
    )
    _, weights = pooling.at_tokens(tuple(order[:5]))(patches[:, order[:5]], torch.ones(1, 8), vlm.grid, 0.3)
    torch.testing.assert_close(weights[0].double(), by_hand.double() / by_hand.sum(), atol=1e-6, rtol=1e-5)
    assert set(np.flatnonzero(some.heat).tolist()) <= set(order[:5])


def test_same_seed_same_bits(vlm, directions):
    one, two = (nd.synthesize(vlm, directions[0], settings=FEW, seed=3, progress=False) for _ in range(2))
    assert one.history == two.history
    assert one.image.tobytes() == two.image.tobytes()
    other = nd.synthesize(vlm, directions[0], settings=FEW, seed=4, progress=False)
    assert other.history != one.history


def test_interrupt_gives_the_picture_so_far(vlm, directions):
    def stop(step, scores):
        if step == 1:
            raise KeyboardInterrupt

    made = nd.synthesize(vlm, directions[0], settings=FEW, progress=stop)
    assert made.interrupted
    assert len(made.history) == 2


def test_errors_say_what_to_do(vlm, directions):
    with pytest.raises(TypeError, match="did you mean 'steps'"):
        nd.synthesize(vlm, directions[0], settings=FEW, step=3)
    with pytest.raises(ValueError, match="all zeros"):
        zero = dataclasses.replace(directions[0], vector=torch.zeros(vlm.width))
        nd.synthesize(vlm, zero, settings=FEW)
    with pytest.raises(ValueError, match="wide"):
        narrow = dataclasses.replace(directions[0], vector=torch.ones(3))
        nd.synthesize(vlm, narrow, settings=FEW)

    def cut(patches, direction, grid, progress):
        return patches.detach().mean(1), patches[..., 0]

    with pytest.raises(RuntimeError, match="gradient"):
        nd.synthesize(vlm, directions[0], settings=FEW, pooling=cut, progress=False)
    with pytest.raises(FloatingPointError, match="not finite"):
        nd.synthesize(vlm, directions[0], settings=FEW, score=lambda r, v: nd_nan(r), progress=False)


def nd_nan(r):
    return r.sum(-1) * float("nan")


def test_nothing_of_the_users_changes():
    hf, processor = tiny.gemma3(seed=2)
    hf.train()
    frozen = {n: p.requires_grad for n, p in hf.named_parameters()}
    before = {n: p.detach().clone() for n, p in hf.named_parameters()}
    vlm = nd.load(hf, processor=processor)
    nd.synthesize(vlm, nd.concept(vlm, "octopus", 2, cache=False), settings=FEW, progress=False)
    assert hf.training
    assert {n: p.requires_grad for n, p in hf.named_parameters()} == frozen
    assert all(torch.equal(p, before[n]) for n, p in hf.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in hf.modules())


def test_up_to_layer_equals_the_whole(tmp_path):
    tiny.gemma3(tmp_path, seed=1)
    whole, cut = nd.load(tmp_path), nd.load(str(tmp_path), up_to_layer=2)
    x = torch.rand(1, 3, 112, 112)
    site = whole.site(2)
    assert cut.layers == 2
    torch.testing.assert_close(nd.read_pictures(whole, x, [site])[site], nd.read_pictures(cut, x, [site])[site])
    with pytest.raises(ValueError, match="larger up_to_layer"):
        cut.site(3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", "model.text.layers"),
        ("tower", "model.eyes"),
        ("grid", lambda config, pixels: (2, 3)),
        ("wrapped", "{image}"),
    ],
)
def test_check_names_the_wrong_field(vlm, field, value):
    wrong = dataclasses.replace(vlm.family, **{field: value})
    with pytest.raises(ValueError, match=field):
        nd.load(vlm.hf, processor=vlm.processor, family=wrong)


def test_zero_projector_is_told():
    hf, processor = tiny.gemma3(seed=3)
    hf.model.multi_modal_projector.mm_input_projection_weight.data.zero_()
    with pytest.raises(ValueError, match="projector"):
        nd.load(hf, processor=processor)


def test_prototype_round_trip_and_manners(vlm, directions, tmp_path):
    shown = dataclasses.replace(directions[0], label="<script>../../x")
    made = nd.Prototypes([nd.synthesize(vlm, shown, settings=FEW, progress=False)])
    assert "<script>" not in made._repr_html_()
    made.save(tmp_path / "out")
    (folder,) = (tmp_path / "out").iterdir()
    back = nd.Prototype.load(folder)
    assert back.history == made[0].history
    assert back.image.tobytes() == made[0].image.tobytes()
    assert back.site == made[0].site
    np.testing.assert_allclose(back.heat, made[0].heat)
    assert abs(made[0].heat.sum() - 1) < 1e-5


@pytest.mark.parametrize(("layer", "rate"), [(1, 0.04), (5, 0.04), (10, 0.15), (25, 0.15), (30, 0.04)])
def test_paper_preset(layer, rate):
    s = nd.Settings.paper(layer)
    assert (s.steps, s.batch, s.rate, s.clip, s.optimiser, s.canvas.size) == (600, 8, rate, 1.0, "sgd", 448)
    assert {s.pooling.tau, nd.Settings.paper(layer, tau_middle=0.5).pooling.tau} == {0.5, 0.005}


def test_a_choice_with_some_settings_changed(vlm):
    """What is None stays; where all is None, so does the choice."""
    from nnsight_dream.synthesis.settings import changed

    assert changed(vlm, "demo", steps=None, quality=None) == "demo"
    of_layer = changed(vlm, steps=3, quality="draft", rate=None)
    assert of_layer(12) == nd.Settings.normalised(min(vlm.image_size)).but(quality="draft", steps=3)
    assert changed(vlm, nd.Settings.demo(), steps=3)(1) == nd.Settings.demo().but(steps=3)
