"""Directions as vectors: the laws of arithmetic, what refuses to add, and the file."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nnsight_dream import Direction, Site, cosine

numbers = st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3)
factors = st.floats(-8, 8, width=32)


def direction(values=(1.0, 2.0, 3.0), label="a", *, layer=4, model="m", **story):
    return Direction(torch.tensor(values, dtype=torch.float32), Site(layer), label, model, story or {"method": "test"})


def near(a, b):
    return torch.allclose(a.vector, b.vector, rtol=1e-4, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(numbers, numbers, numbers, factors, factors)
def test_a_vector_space(x, y, z, s, t):
    a, b, c = direction(x, "a"), direction(y, "b"), direction(z, "c")
    assert near(a + b, b + a)
    assert near((a + b) + c, a + (b + c))
    assert near(a - b, a + -b)
    assert near(s * (a + b), s * a + s * b)
    assert near((s + t) * a, s * a + t * a)
    assert near((s * t) * a, s * (t * a))
    assert torch.equal((a - a).vector, torch.zeros(3))
    assert torch.equal((2 * a).vector, (a + a).vector)
    assert torch.equal((-1 * -a).vector, a.vector)
    assert torch.equal((a / 2).vector, (0.5 * a).vector)
    assert torch.equal(sum([a, b, c]).vector, (a + b + c).vector)


@settings(max_examples=60, deadline=None)
@given(numbers, numbers)
def test_cosine_against_numpy(x, y):
    a, b = direction(x, "a"), direction(y, "b")
    if a.norm < 1e-3 or b.norm < 1e-3:
        return
    u, v = np.array(x), np.array(y)
    assert cosine(a, b) == pytest.approx(u @ v / np.linalg.norm(u) / np.linalg.norm(v), abs=1e-5)
    assert -1 <= cosine(a, b) <= 1
    assert cosine(a, -2 * a) == pytest.approx(-1)
    assert cosine(3 * a, b) == pytest.approx(cosine(a, b), abs=1e-5)


def test_unit_and_norm():
    a = direction((3.0, 0.0, 4.0))
    assert a.norm == 5
    assert a.unit().norm == pytest.approx(1)
    assert cosine(a, a.unit()) == pytest.approx(1)
    assert a.width == 3
    with pytest.raises(ValueError, match=r"'a - a' at layer 4 .* is zero"):
        (a - a).unit()
    with pytest.raises(ValueError, match="is zero"):
        cosine(a, 0 * a)


def test_labels_and_provenance_of_combinations():
    a, b, c = (direction(label=label, word=label) for label in ("octopus", "polar bear", "c"))
    assert (a - b).label == "octopus - polar bear"
    assert (a - (b - c)).label == "octopus - polar bear + c"
    assert (-a).label == "-octopus"
    assert (-(a - b)).label == "-octopus + polar bear"
    assert (0.5 * (a + b) / 2).label == "0.25 octopus + 0.25 polar bear"
    assert (a + b * -3).label == "octopus - 3 polar bear"
    mix = (a - 2 * (b + c)).provenance
    assert mix["method"] == "combination"
    assert [(t["weight"], t["provenance"]["word"]) for t in mix["terms"]] == [
        (1, "octopus"),
        (-2, "polar bear"),
        (-2, "c"),
    ]


def test_numpy_and_torch_scalars_scale():
    a = direction()
    for two in (2, np.float32(2), np.int64(2)):
        assert torch.equal((a * two).vector, a.vector * 2)
        assert torch.equal((two * a).vector, a.vector * 2)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            direction(label="b", layer=5),
            "site layer 4 .blocks.3.hook_resid_post. and layer 5 .blocks.4.hook_resid_post.",
        ),
        (direction(label="b", model="n"), "model m and n"),
        (direction((1.0, 2.0), "b"), "width 3 and 2"),
        (dataclasses.replace(direction(label="b"), site=Site(4, tokens=(0, 1))), r"tokens image and \(0, 1\)"),
        (
            dataclasses.replace(direction(label="b"), site=Site(4, "mlp_out")),
            r"site .*hook_resid_post\) and .*hook_mlp_out\)",
        ),
    ],
)
def test_what_does_not_belong_together_refuses_and_names_both(other, said):
    a = direction()
    for verb, operation in (
        ("add", lambda: a + other),
        ("subtract", lambda: a - other),
        ("compare", lambda: cosine(a, other)),
    ):
        with pytest.raises(ValueError, match=f"cannot {verb} a at layer 4 .* and b at layer .*: {said}.*same layer="):
            operation()


@pytest.mark.parametrize("other", [1, "a", None, torch.ones(3), [1.0, 2.0, 3.0]])
def test_only_directions_add_and_only_numbers_multiply(other):
    a = direction()
    with pytest.raises(TypeError):
        a + other
    with pytest.raises(TypeError):
        a - other
    if not isinstance(other, int):
        with pytest.raises(TypeError):
            a * other
    with pytest.raises(TypeError):
        a * a


def test_equal_only_to_itself_and_frozen():
    a, b = direction(), direction()
    assert a == a
    assert a != b
    assert len({a, b}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.label = "other"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_keeps_its_own_plain_copy(dtype):
    source = torch.ones(3, dtype=dtype, requires_grad=True)
    story = {"words": ["x"]}
    a = Direction(source, Site(1), "a", "m", story)
    with torch.no_grad():
        source.add_(1)
    story["words"].append("y")
    assert torch.equal(a.vector, torch.ones(3))
    assert a.vector.dtype == torch.float32
    assert not a.vector.requires_grad
    assert a.provenance == {"words": ["x"]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.ones(2, 3), r"a vector is \(d,\); got \(2, 3\)"),
        (torch.tensor(1.0), r"a vector is \(d,\); got \(\)"),
        (torch.tensor([]), r"a vector is \(d,\)"),
        (torch.tensor([1.0, math.nan]), "not finite in 1 of 2 places.*bfloat16"),
        (torch.tensor([math.inf, math.inf]), "not finite in 2 of 2"),
    ],
)
def test_vectors_that_are_none(values, said):
    with pytest.raises(ValueError, match=said):
        Direction(values, Site(1), "a", "m")


def test_provenance_must_fit_json():
    with pytest.raises(TypeError):
        direction(secret=object())


def test_print_shows_label_both_names_and_norm(tiny_vlm):
    from rich.console import Console

    hf_name = tiny_vlm.hf_name(4)
    a = direction((3.0, 0.0, 4.0), "[bold]octopus", hf_name=hf_name)
    text = f"[bold]octopus at layer 4 (blocks.3.hook_resid_post, {hf_name}) of m, norm 5"
    assert str(a) == text
    assert repr(a) == f"<Direction {text}>"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(a)
    assert console.export_text().strip() == text
    assert hf_name in str(a - 2 * a)


def test_save_and_load_are_exact(tmp_path):
    story = {"method": "test", "text": "木星 🐙", "nested": {"list": [1, 2.5, None, True]}, "b": 1, "a": 2}
    a = Direction(torch.randn(50), Site(7, "mlp_out", (0, 3)), "octopus «x»", "some/model", story)
    for saved in (a, a - 0.1 * a):
        path = saved.save(tmp_path / "a.safetensors")
        b = Direction.load(str(path))
        assert torch.equal(b.vector, saved.vector)
        assert (b.site, b.label, b.model, b.provenance) == (saved.site, saved.label, saved.model, saved.provenance)
        assert list(b.provenance) == list(saved.provenance)
        assert b.site.tokens == (0, 3)
        assert hash(b.site) == hash(a.site)
        b.save(tmp_path / "b.safetensors")
        assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert torch.equal(load_file(path)["vector"], saved.vector)  # anyone's safetensors reads it


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError):
        Direction.load(path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"is not a direction that Direction.save wrote"):
        Direction.load(path)
    save_file({"vector": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="is not a direction"):
        Direction.load(path)
    save_file({"vector": torch.ones(3)}, path, {"direction": json.dumps({"format": 2})})
    with pytest.raises(ValueError, match="format 2, this version reads 1: upgrade"):
        Direction.load(path)
    with pytest.raises(FileNotFoundError):
        direction().save(tmp_path / "nowhere" / "x.safetensors")
