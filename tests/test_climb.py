"""Reading and climbing against plain Hugging Face forwards and a hand-written loop."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import nnsight_dream as nd

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
        torch.nn.utils.clip_grad_norm_(parts, settings.clip)
        optimiser.step()
        scores.append(score.item())
    return canvas.render([p.detach() for p in parts]), scores


def test_climb_equals_a_loop_by_hand(vlm, directions):
    for direction in directions:
        picture, scores = by_hand(vlm, direction, FEW, seed=5)
        made = nd.synthesize(vlm, direction, settings=FEW, seed=5, progress=False)
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
    assert {s.pooling.tau, nd.Settings.paper(layer, tau_middle=0.005).pooling.tau} == {0.5, 0.005}
