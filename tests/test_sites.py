"""Sites: one activation under its three names, and what is said to a name that means none."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

import nnsight_dream as nd
from nnsight_dream.models.sites import KINDS

LAYERS = "model.language_model.layers"
# where each kind is, written down anew: (module below the block, side)
PLACES = {
    "resid_pre": ("", "input"),
    "resid_post": ("", "output"),
    "attn_out": (".post_attention_layernorm", "output"),
    "mlp_out": (".post_feedforward_layernorm", "output"),
}


@pytest.mark.parametrize("layer", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_three_names_of_one_site(tiny_vlm: nd.VLM, layer: int, kind: str) -> None:
    module, side = PLACES[kind]
    hugging_face = f"{LAYERS}.{layer - 1}{module}.{side}"
    transformer_lens = f"blocks.{layer - 1}.hook_{kind}"
    site = tiny_vlm.site(layer, kind)
    assert site == nd.Site(layer, kind) == tiny_vlm.site(site)
    assert site == tiny_vlm.site(transformer_lens) == tiny_vlm.site(hugging_face)
    assert site.tl_name == transformer_lens
    assert {tiny_vlm.hf_name(x) for x in (site, transformer_lens, hugging_face)} == {hugging_face}
    assert tiny_vlm.describe(hugging_face) == f"layer {layer} ({transformer_lens}, {hugging_face})"
    assert str(site) == f"layer {layer} ({transformer_lens})"


def test_short_names_and_numbers_as_text(tiny_vlm: nd.VLM) -> None:
    for name in (2, "2", f"{LAYERS}.1", f"{LAYERS}.1.output", "language_model.layers.1.output", "layers.1.output"):
        assert tiny_vlm.site(name) == nd.Site(2), name
    assert tiny_vlm.site("blocks.1.hook_resid_post", "mlp_out") == nd.Site(2, "mlp_out")


def last_quoted(message: str) -> str:
    """What an error proposes, between its last quotes."""
    return re.findall(r"'([^']+)'", message)[-1]


@pytest.mark.parametrize("given", [0, -1, 5, 99, "0", "blocks.4.hook_resid_post", f"{LAYERS}.17.output", nd.Site(5)])
def test_a_layer_that_is_not_there_names_the_nearest(tiny_vlm: nd.VLM, given: int | str | nd.Site) -> None:
    with pytest.raises(ValueError, match="layers 1 to 4") as error:
        tiny_vlm.site(given)
    nearest = int(re.search(r"nearest is layer=(-?\d+)", str(error.value))[1])
    assert tiny_vlm.site(nearest).layer == nearest == (1 if given in (0, -1, "0") else 4)


def test_layer_0_tells_where_the_embeddings_are(tiny_vlm: nd.VLM) -> None:
    with pytest.raises(ValueError, match="embeddings are kind='resid_pre' of layer 1"):
        tiny_vlm.site(0)
    ids = torch.tensor([[2, 50, 60]])
    site = tiny_vlm.site(1, kind="resid_pre")
    found = nd.read_text(tiny_vlm, ids, torch.ones_like(ids), [site])[site]
    torch.testing.assert_close(found, tiny_vlm.hf.get_input_embeddings()(ids))


@pytest.mark.parametrize("given", [True, 2.0, None, (1,), torch.tensor(2.0), torch.tensor([1, 2])])
def test_what_is_no_site_at_all(tiny_vlm: nd.VLM, given: object) -> None:
    with pytest.raises(TypeError, match="layer number from 1, a name or a Site"):
        tiny_vlm.site(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("blocks.1.hook_resid_pos", "blocks.1.hook_resid_post"),
        ("blocks.1.hook_attn_outt", "blocks.1.hook_attn_out"),
        ("blocks.3.hook_mlp", "blocks.3.hook_mlp_out"),
    ],
)
def test_a_wrong_hook_name_suggests_the_nearest(tiny_vlm: nd.VLM, wrong: str, right: str) -> None:
    with pytest.raises(ValueError, match="did you mean") as error:
        tiny_vlm.site(wrong)
    assert last_quoted(str(error.value)) == right
    assert tiny_vlm.site(right).tl_name == right


@pytest.mark.parametrize(
    "name", ["octopus", "block.1.hook_resid_post", "model.norm.output", "", "-1", "layers.x.output"]
)
def test_a_name_that_means_nothing_shows_how_names_look(tiny_vlm: nd.VLM, name: str) -> None:
    with pytest.raises(ValueError, match="is not understood") as error:
        tiny_vlm.site(name)
    lens, hugging = re.findall(r"'([^']*)'", str(error.value))[-2:]
    assert tiny_vlm.site(lens.replace("9", "1")) == tiny_vlm.site(hugging.replace("9", "1")) == nd.Site(2)


def test_layers_of_another_stack_are_not_the_decoders(tiny_vlm: nd.VLM) -> None:
    """The vision tower has layers too; one of its names must not silently stand for a decoder layer."""
    for name in ("model.vision_tower.encoder.layers.0.output", "foo.layers.0.output", "nolayers.0"):
        with pytest.raises(ValueError) as error:
            tiny_vlm.site(name)
        if "did you mean" in str(error.value):
            assert tiny_vlm.site(last_quoted(str(error.value))) == nd.Site(1)


def test_a_wrong_module_suggests_the_nearest(tiny_vlm: nd.VLM) -> None:
    with pytest.raises(ValueError, match="names nothing below") as error:
        tiny_vlm.site(f"{LAYERS}.2.self_attn.out_proj.input")
    proposed = str(error.value).split("the nearest are ")[1].split(", ")
    assert "self_attn.o_proj.input" in proposed
    assert all(tiny_vlm.site(3, kind).layer == 3 for kind in proposed)
    with pytest.raises(ValueError, match="names nothing below") as error:
        tiny_vlm.site(3, "resid_posts")
    assert str(error.value).split("the nearest are ")[1].split(", ")[0] == "resid_post"


def test_modules_below_a_block(tiny_vlm: nd.VLM) -> None:
    name = f"{LAYERS}.2.self_attn.o_proj.input"
    site = tiny_vlm.site(name)
    assert site == nd.Site(3, "self_attn.o_proj.input") == tiny_vlm.site(3, "self_attn.o_proj.input")
    assert site.tl_name == "blocks.2.self_attn.o_proj.input"
    assert tiny_vlm.hf_name(site) == name


@pytest.mark.parametrize(
    "kind",
    [
        *KINDS,
        "self_attn.o_proj.input",
        "self_attn.k_proj.output",
        "mlp.down_proj.input",
        "mlp.act_fn.output",
        "mlp.input",
    ],
)
def test_width_is_the_width_of_what_is_read(tiny_vlm: nd.VLM, kind: str) -> None:
    site = tiny_vlm.site(2, kind)
    found = nd.read_pictures(tiny_vlm, torch.rand(1, 3, 112, 112), [site])[site]
    width = {"self_attn.k_proj.output": 16, "mlp.down_proj.input": 64, "mlp.act_fn.output": 64}.get(kind, 32)
    assert found.shape == (1, 16, width)
    assert tiny_vlm.width_at(site) == width
    assert nd.from_tensor(tiny_vlm, torch.ones(width), site).width == width
    with pytest.raises(ValueError, match=f"\\({width},\\) wide"):
        nd.from_tensor(tiny_vlm, torch.ones(width + 1), site)


def test_a_module_that_gives_no_tokens_by_width_says_so(tiny_vlm: nd.VLM) -> None:
    with pytest.raises(ValueError, match="not \\(batch, tokens, width\\)") as error:
        nd.read_pictures(tiny_vlm, torch.rand(1, 3, 112, 112), [nd.Site(1, "self_attn.q_norm.output")])
    for kind in str(error.value).split("kinds that do are ")[1].split(", "):
        site = nd.Site(1, kind)
        assert nd.read_pictures(tiny_vlm, torch.rand(1, 3, 112, 112), [site])[site].ndim == 3


def test_some_tokens_only(tiny_vlm: nd.VLM) -> None:
    picture = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    whole, some = tiny_vlm.site(2), tiny_vlm.site(nd.Site(2, tokens=(3, 0, 15)))
    found = nd.read_pictures(tiny_vlm, picture, [whole, some])
    assert torch.equal(found[some], found[whole][:, [3, 0, 15]])
    assert some != whole
    assert tiny_vlm.site(some, "mlp_out").tokens == (3, 0, 15)


@pytest.mark.parametrize("tokens", [(), (16,), (-1,), [0, 1], "all", ("0",), (0.0,), 3])
def test_tokens_that_are_not_there(tiny_vlm: nd.VLM, tokens: object) -> None:
    with pytest.raises(ValueError, match="a non-empty tuple of indices from 0 to 15"):
        tiny_vlm.site(nd.Site(2, tokens=tokens))  # type: ignore[arg-type]
    assert tiny_vlm.site(nd.Site(2, tokens=(0, 15))).tokens == (0, 15)


def test_counting_from_0(tiny_parts: tuple) -> None:
    model, processor = tiny_parts
    vlm = nd.load(model, processor=processor, first_layer=0, check=False)
    assert vlm.site(0) == nd.Site(1)
    assert vlm.site("3") == nd.Site(4)
    assert vlm.site("blocks.3.hook_resid_post") == nd.Site(4)  # names mean what they always mean
    assert vlm.describe(0) == f"layer 1 (blocks.0.hook_resid_post, {LAYERS}.0.output)"
    for wrong, near in ((4, 3), (-1, 0)):
        with pytest.raises(ValueError, match=f"layer {wrong} is not .* layers 0 to 3") as error:
            vlm.site(wrong)
        advice = int(str(error.value).split("nearest is layer=")[1])
        assert advice == near
        assert vlm.site(advice).layer == near + 1
    with pytest.raises(ValueError, match="first_layer=2"):
        nd.load(model, processor=processor, first_layer=2)


def test_sites_are_values() -> None:
    assert len({nd.Site(1), nd.Site(1, "resid_post"), nd.Site(1, tokens="image")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        nd.Site(1).layer = 2  # type: ignore[misc]
