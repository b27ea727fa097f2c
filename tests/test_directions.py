"""Directions from pictures, probes and plain numbers, against the plain Hugging Face model."""

import types

import numpy as np
import pytest
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.io.pictures import as_tensors


def noise(seed, size=(112, 112), mode="RGB"):
    channels = len(mode)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8), mode)


@torch.no_grad()
def mean_patch(vlm, pixels, layer):
    """The mean activation at the image tokens, by the processor's own prompt and a plain forward with a hook."""
    caught = []
    hook = (
        vlm.hf.get_decoder().layers[layer - 1].register_forward_hook(lambda _m, _i, out: caught.append(out[0].clone()))
    )
    blank = Image.new("RGB", (112, 112))
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}]
    text = vlm.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    inputs = vlm.processor(images=[[blank]], text=[text], add_special_tokens=False, return_tensors="pt")
    inputs["pixel_values"] = pixels
    try:
        vlm.hf(**inputs)
    finally:
        hook.remove()
    return caught[0][inputs["token_type_ids"][0] == 1].mean(0)


def pixels_of(vlm, image):
    return vlm.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]


def test_from_images_against_hugging_face(tiny_vlm):
    these, those = [noise(1), noise(2), noise(3)], [noise(4), noise(5)]
    for layer in (1, 3, 4):
        a = torch.stack([mean_patch(tiny_vlm, pixels_of(tiny_vlm, i), layer) for i in these]).mean(0)
        b = torch.stack([mean_patch(tiny_vlm, pixels_of(tiny_vlm, i), layer) for i in those]).mean(0)
        grey = mean_patch(tiny_vlm, torch.zeros(1, 3, 112, 112), layer)  # 0.5 is zero after normalising
        assert torch.allclose(nd.from_images(tiny_vlm, these, layer).vector, a - grey, atol=1e-4)
        assert torch.allclose(nd.from_images(tiny_vlm, these, layer, minus=those).vector, a - b, atol=1e-4)


def test_from_images_takes_pictures_in_any_form_and_size(tiny_vlm):
    image = noise(1)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    forms = [image, [image], tensor, tensor[None], [tensor], [tensor[None], image], tensor.expand(9, -1, -1, -1)]
    wanted, *others = (nd.from_images(tiny_vlm, form, 2).vector for form in forms)
    assert all(torch.allclose(wanted, other, atol=1e-5) for other in others)
    small, large = noise(2, (40, 60)), noise(3, (200, 112))
    both = nd.from_images(tiny_vlm, [small, large], 2).vector
    alone = [nd.from_images(tiny_vlm, one, 2).vector for one in (small, large)]
    assert torch.allclose(both, torch.stack(alone).mean(0), atol=1e-5)


def test_from_images_at_several_layers_and_its_story(tiny_vlm):
    found = nd.from_images(tiny_vlm, [noise(1)], [1, "blocks.2.hook_resid_post"], label="noise")
    assert [d.site.layer for d in found] == [1, 3]
    assert {d.label for d in found} == {"noise"}
    assert torch.allclose(found[1].vector, nd.from_images(tiny_vlm, noise(1), 3).vector, atol=1e-5)
    assert found[0].provenance["images"] == 1
    assert found[0].provenance["minus"] == "grey"
    assert nd.from_images(tiny_vlm, noise(1), 1, minus=[noise(2), noise(3)]).provenance["minus"] == 2


def test_a_grey_picture_is_the_centre(tiny_vlm):
    assert nd.from_images(tiny_vlm, torch.full((3, 112, 112), 0.5), 2).norm < 1e-4


def test_transparent_parts_show_white():
    image = noise(1, (5, 4), "RGBA")
    on_white = Image.new("RGBA", image.size, "white")
    on_white.alpha_composite(image)
    (ours,) = as_tensors(image, "images")
    theirs = torch.from_numpy(np.array(on_white.convert("RGB"))).permute(2, 0, 1)[None] / 255
    assert ours.shape == (1, 3, 5, 4)
    assert (ours - theirs).abs().max() <= 1.01 / 255
    (grey,) = as_tensors(Image.new("L", (3, 2), 51), "images")
    assert torch.allclose(grey, torch.full((1, 3, 2, 3), 0.2))


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        ([], ValueError, "images= is empty; give at least one picture"),
        (
            "octopus.png",
            FileNotFoundError,
            "images='octopus.png': there is no such file; images= takes PIL images, tensors",
        ),
        ([3], TypeError, "images= holds a int; give PIL images, tensors"),
        ([np.zeros((4, 4, 5))], ValueError, r"images=: an array is .* got \(4, 4, 5\)"),
        (torch.zeros(4, 4), ValueError, r"a picture is \(3, H, W\) or \(B, 3, H, W\); got \(4, 4\)"),
        (torch.zeros(112, 112, 3), ValueError, r"got \(112, 112, 3\)"),
        (
            torch.full((3, 8, 8), 255.0),
            ValueError,
            "pictures are in .0, 1.; got 255 to 255. Divide 8-bit values by 255",
        ),
        (torch.full((3, 8, 8), torch.nan), ValueError, "pictures are in .0, 1.; got nan"),
    ],
)
def test_from_images_errors(tiny_vlm, images, error, said):
    with pytest.raises(error, match=said):
        nd.from_images(tiny_vlm, images, 1)
    with pytest.raises(error, match=said.replace("images=", "minus=")):
        nd.from_images(tiny_vlm, noise(1), 1, minus=images)


def test_from_tensor(tiny_vlm):
    numbers = torch.randn(32, dtype=torch.float64)
    for given in (numbers, numbers.numpy(), numbers.tolist()):
        found = nd.from_tensor(tiny_vlm, given, "blocks.1.hook_resid_post", label="mine")
        assert torch.equal(found.vector, numbers.float())
        assert found.site == nd.Site(2)
        assert found.label == "mine"
        assert found.provenance["method"] == "from_tensor"
        assert found.model == tiny_vlm.id
    assert nd.cosine(found, nd.concept(tiny_vlm, "bee", 2)) <= 1
    with pytest.raises(ValueError, match=r"tensor is \(31,\), but layer 2 .* is \(32,\) wide"):
        nd.from_tensor(tiny_vlm, numbers[:31], 2)
    with pytest.raises(ValueError, match=r"tensor is \(1, 32\)"):
        nd.from_tensor(tiny_vlm, numbers[None], 2)
    with pytest.raises(TypeError, match="tensor= is a tensor, or numbers that make one; got str"):
        nd.from_tensor(tiny_vlm, "octopus", 2)
    inside = tiny_vlm.site(2, "mlp.down_proj.input")
    assert nd.from_tensor(tiny_vlm, torch.ones(64), inside).width == 64


def fitted(rows, names=None):
    made = types.SimpleNamespace(coef_=rows, intercept_=np.ones(len(rows)))
    if names is not None:
        made.classes_ = np.array(names)
    return made


ROWS = np.random.default_rng(0).normal(size=(3, 32))


@pytest.mark.parametrize(
    ("weight", "index", "wanted", "label"),
    [
        (ROWS[0], None, ROWS[0], "probe 0"),
        (ROWS[:1], None, ROWS[0], "probe 0"),
        (torch.tensor(ROWS), 2, ROWS[2], "probe 2"),
        (ROWS, np.int64(1), ROWS[1], "probe 1"),
        (fitted(ROWS, ["bee", "dog", "fish"]), "dog", ROWS[1], "dog"),
        (fitted(ROWS, ["bee", "dog", "fish"]), 2, ROWS[2], "fish"),
        (fitted(ROWS, [2, 0, 7]), 7, ROWS[2], "7"),
        (fitted(ROWS[:1], ["no", "yes"]), None, ROWS[0], "yes"),
        (fitted(ROWS[:1], ["no", "yes"]), "yes", ROWS[0], "yes"),
        (fitted(ROWS[:1], ["no", "yes"]), "no", -ROWS[0], "no"),
        (fitted(ROWS[:1]), None, ROWS[0], "probe 0"),
    ],
)
def test_probe_takes_the_row_that_is_meant(tiny_vlm, weight, index, wanted, label):
    found = nd.probe(tiny_vlm, weight, 3, index=index)
    assert torch.allclose(found.vector, torch.tensor(wanted, dtype=torch.float32))
    assert found.label == label
    assert found.provenance["method"] == "probe"
    assert nd.probe(tiny_vlm, weight, 3, index=index, label="mine").label == "mine"


def test_probe_takes_a_linear_layer(tiny_vlm):
    layer = torch.nn.Linear(32, 4)
    assert torch.equal(nd.probe(tiny_vlm, layer, 1, index=3).vector, layer.weight[3].detach())


def test_probe_errors_and_their_advice(tiny_vlm):
    with pytest.raises(ValueError, match=r"this probe has 3 rows; say which with index= \(0 to 2\)"):
        nd.probe(tiny_vlm, ROWS, 3)
    named = fitted(ROWS, ["bee", "dog", "fish"])
    with pytest.raises(ValueError, match=r"index= \(0 to 2, or one of bee, dog, fish\)"):
        nd.probe(tiny_vlm, named, 3)
    for wrong in (3, -1, "cat", True, 1.0):
        with pytest.raises(ValueError, match=rf"index={wrong!r}: allowed are 0 to 2, or one of bee, dog, fish"):
            nd.probe(tiny_vlm, named, 3, index=wrong)
    with pytest.raises(ValueError, match=r"with d = 32 at layer 3 \(blocks.2.hook_resid_post, .*\); got \(3, 31\)"):
        nd.probe(tiny_vlm, ROWS[:, :31], 3, index=0)
    with pytest.raises(TypeError, match=r"probe: .*'clas'; did you mean label=|probe: .*'clas'"):
        nd.probe(tiny_vlm, ROWS, 3, clas=0)


def test_every_kind_survives_its_file(tiny_vlm, tmp_path):
    made = [
        nd.concept(tiny_vlm, "octopus", 2),
        nd.contrast(tiny_vlm, "hot", "cold", 2),
        nd.from_images(tiny_vlm, noise(1), 2),
        nd.from_tensor(tiny_vlm, torch.ones(32), 2),
        nd.probe(tiny_vlm, ROWS, 2, index=0),
    ]
    for direction in [*made, sum(made)]:
        again = nd.Direction.load(direction.save(tmp_path / "one.safetensors"))
        assert torch.equal(again.vector, direction.vector)
        assert str(again) == str(direction)
        assert again.provenance == direction.provenance
        assert again.site == direction.site
        assert tiny_vlm.hf_name(2) in str(again)
        assert "blocks.1.hook_resid_post" in str(again)


def test_on_the_demo(demo_vlm):
    octopus, frog = nd.concept(demo_vlm, ["octopus", "frog"], layer=1)
    assert octopus.width == demo_vlm.width
    assert nd.cosine(octopus, frog) < 0.99
