"""Real pictures by which features are measured: an argument, remembered by its pictures, and said where it is a guess."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saes
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.demo import bundle
from nnsight_dream.io.pictures import as_tensors
from nnsight_dream.sae import reference


def noise(sides: list[int], seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in sides]


@pytest.fixture
def vlm(tiny_parts: tuple) -> nd.VLM:
    model, processor = tiny_parts
    return nd.load(model, processor=processor)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, image in enumerate(noise([28, 40, 28])):
        image.save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._0.png").write_bytes(b"what a Mac leaves behind")
    return tmp_path


def mean_norm(vlm: nd.VLM, images: list[Any]) -> float:
    """One picture at a time."""
    norms = [nd.read_pictures(vlm, part, [3])[nd.Site(3)].double().norm(dim=-1) for part in as_tensors(images, "")]
    return float(torch.cat([n.flatten() for n in norms]).mean())


def test_the_norm_is_that_of_the_pictures_given_in_any_form(vlm: nd.VLM, folder: Path) -> None:
    images = noise([28, 40, 28])
    forms: list[Any] = [
        images,
        tuple(images),
        nd.Pictures(images),
        folder,
        str(folder),
        [folder / f"{i}.png" for i in range(3)],
        [torch.cat(as_tensors(images[:1], "")), *images[1:]],
    ]
    expected = mean_norm(vlm, images)
    sae = saes.build("standard", model=None)
    for form in forms:
        feature = nd.feature(sae, 3, reference=form)
        assert reference.reference_norm(vlm, nd.Site(3), feature.reference) == pytest.approx(expected, rel=1e-5)
    first = nd.feature(sae, [3, 4], reference=folder)
    assert first[0].reference is first[1].reference  # read once
    assert nd.feature_from_tensors(1, 3, W_enc=torch.eye(32), reference=images).reference == first[0].reference
    one = noise([28])
    assert reference.reference_norm(vlm, nd.Site(3), reference.chosen(one[0])) == pytest.approx(mean_norm(vlm, one))


def test_norms_are_kept_by_their_pictures(vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    read, counts = reference.read_pictures, []
    monkeypatch.setattr(reference, "read_pictures", lambda v, p, s: counts.append(len(p)) or read(v, p, s))
    first = reference.reference_norm(vlm, nd.Site(3), reference.chosen(noise([28, 28])))
    assert reference.reference_norm(vlm, nd.Site(3), reference.chosen(noise([28, 28]))) == first
    assert counts == [2]
    second = reference.reference_norm(vlm, nd.Site(3), reference.chosen(noise([28, 28], seed=1)))
    assert second != first
    assert counts == [2, 2]


def test_the_default_is_said_once_for_a_model_that_is_not_the_bundled_one(vlm: nd.VLM, demo_vlm: nd.VLM) -> None:
    feature = nd.feature(saes.build("standard", model=None), 3)
    few: dict[str, Any] = dict(steps=1, batch=1, canvas=nd.Pixels(24), progress=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nd.synthesize(vlm, feature, **few)
        nd.synthesize(vlm, feature, seed=1, **few)
        nd.strangeness(vlm, saes.build("standard", model=None), noise([28]))
    (warning,) = caught
    message = str(warning.message)
    assert "48 bundled emoji" in message
    assert "reference=" in message
    assert "\n" not in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nd.synthesize(demo_vlm, nd.feature("demo", 3), steps=1, batch=1, progress=False)


def test_with_pictures_of_ones_own_nothing_is_said_and_emoji_are_not_read(
    vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "pictures", lambda: pytest.fail("the bundled pictures were read"))
    monkeypatch.setattr(reference, "reference_pictures", lambda: pytest.fail("the bundled pictures were read"))
    sae, images = saes.build("standard", model=None), noise([28, 40])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = nd.synthesize(
            vlm, nd.feature(sae, 3, reference=images), steps=2, batch=1, canvas=nd.Pixels(24), progress=False
        )
        strange = nd.strangeness(vlm, sae, noise([28], seed=5), reference=images)
    patches = nd.read_pictures(vlm, as_tensors(made.image, "")[0], [3])[nd.Site(3)][0]
    norm = float(patches.norm(dim=-1).mean()) / mean_norm(vlm, images)
    assert made.readings["norm"] == pytest.approx(norm, rel=1e-4)
    assert made.direction["reference"] == reference.described(nd.Pictures(images))
    real = torch.cat([nd.read_pictures(vlm, p, [3])[nd.Site(3)].flatten(0, 1) for p in as_tensors(images, "")])
    with torch.no_grad():
        error = (sae.decode(sae.encode(real)) - real).square().sum() / (real - real.mean(0)).square().sum()
    assert strange.reference_fvu == pytest.approx(float(error), rel=1e-4)


def test_two_references_in_one_climb_are_two_guards_here_and_in_a_session(demo_vlm: nd.VLM) -> None:
    near, far = (noise([32, 32], seed) for seed in (0, 1))
    far = [image.point(lambda v: v // 16) for image in far]
    there = nd.load("demo", remote="local")
    aims = [nd.feature("demo", 3, guard=0.2, reference=r) for r in (near, far)]
    few: dict[str, Any] = dict(steps=2, batch=1, progress=False, canvas=nd.Pixels(32), centre=nd.Grey())
    here, away = nd.synthesize(demo_vlm, aims, **few), nd.synthesize(there, aims, **few)
    assert here[0].history[0] != here[1].history[0]
    for a, b in zip(here, away, strict=True):
        assert a.history == pytest.approx(b.history, rel=1e-5)
        assert a.readings["norm"] == pytest.approx(b.readings["norm"], rel=1e-5)
        assert a.direction["reference"] == b.direction["reference"]
    assert nd.synthesize(there, aims, **few)[1].history == away[1].history  # from what is remembered


def test_what_is_no_reference(tmp_path: Path) -> None:
    feature = nd.feature_from_tensors(1, 3, W_enc=torch.eye(32))
    for wrong, error in (
        (7, TypeError),
        ([7], TypeError),
        ([], ValueError),
        (tmp_path, FileNotFoundError),
        (tmp_path / "none.png", FileNotFoundError),
        ([tmp_path / "none.png"], FileNotFoundError),
        ([torch.ones(3, 4)], ValueError),
        ("", ValueError),
    ):
        with pytest.raises(error, match="reference"):
            feature.but(reference=wrong)
    other = feature.but(reference=noise([28]))
    with pytest.raises(ValueError, match=r"cannot add .*of one reference"):
        feature + other
    assert dataclasses.replace(other).reference is other.reference
    assert (other + feature.but(reference=noise([28]))).reference == other.reference


def test_the_command_line_takes_pictures_and_says_what_it_does_without(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tiny_parts: tuple
) -> None:
    model, processor = tiny_parts
    monkeypatch.setattr(cli.drawing, "load_model", lambda *args, **more: nd.load(model, processor=processor))
    few = nd.Settings(steps=2, batch=1, canvas=nd.Pixels(24), augment=())
    monkeypatch.setattr(nd.Settings, "normalised", classmethod(lambda cls, size=448: few))
    saes.build("standard", model=None).save_model(str(tmp_path / "sae"))
    draw = ["feature", str(tmp_path / "sae"), "3", "--model", "demo", "--out"]
    assert cli.main([*draw, str(tmp_path / "with"), "--reference", str(folder)]) == 0
    assert "emoji" not in capsys.readouterr().err
    assert cli.main([*draw, str(tmp_path / "without")]) == 0
    message = capsys.readouterr().err
    assert message.count("bundled emoji") == 1
    assert "--reference FOLDER" in message
    made = [nd.Prototype.load(next((tmp_path / kind).glob("*/prototype.json")).parent) for kind in ("with", "without")]
    assert made[0].direction["reference"].startswith("3 pictures, ")
    assert "reference" not in made[1].direction
    assert cli.main([*draw, str(tmp_path / "none"), "--reference", str(tmp_path / "nowhere")]) != 0
    assert "reference" in capsys.readouterr().err
