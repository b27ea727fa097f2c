"""One reader of pictures: the same picture, stored in whatever way, gives the same numbers behind every door."""

from __future__ import annotations

import io
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.alignment import encoders, pairs
from nnsight_dream.alignment import features as feature_store
from nnsight_dream.demo import bundle
from nnsight_dream.io import pictures
from nnsight_dream.io.pictures import as_image, as_images, as_tensors, content, files, read
from nnsight_dream.judges.named import as_pil
from nnsight_dream.sae import reference

BLOCKS = np.kron(np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
RGB = Image.fromarray(BLOCKS)
GREY = RGB.convert("L")


def off(a: Any, b: Any) -> int:
    """The largest difference in 8-bit steps."""
    assert np.shape(a) == np.shape(b)
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


# -- modes and depths --------------------------------------------------------------------------------------------

WIDE = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
GREYS = {
    **{f"{mode} of 8 bits": GREY.convert(mode) for mode in ("L", "LA", "PA", "I", "F", "I;16", "I;16B", "I;16L")},
    "I;16": WIDE,
    "I of 16 bits": WIDE.convert("I"),
    "F of 16 bits": WIDE.convert("I").convert("F"),
    "F of shares": Image.fromarray((np.asarray(GREY) / 255).astype(np.float32)),
    "16-bit PNG": encoded(WIDE, "PNG"),
    "16-bit TIFF": encoded(WIDE, "TIFF"),
    "uint16 array": np.asarray(WIDE),
    "array of one channel": np.asarray(GREY)[..., None],
    "P": GREY.convert("P"),
}
COLOURS = {
    **{mode: RGB.convert(mode) for mode in ("RGBA", "RGBa", "RGBX", "CMYK")},
    "P": RGB.quantize(256),
    "uint8 array": BLOCKS,
    "uint16 array": BLOCKS.astype(np.uint16) * 257,
    "int64 array": BLOCKS.astype(int),
    "array of shares": BLOCKS / 255,
    "array, channels first": BLOCKS.transpose(2, 0, 1),
    "uint8 tensor": torch.from_numpy(BLOCKS).permute(2, 0, 1),
    "tensor": torch.from_numpy(BLOCKS).permute(2, 0, 1) / 255,
    "PNG": encoded(RGB, "PNG"),
    "lossless WebP": encoded(RGB, "WEBP", lossless=True),
    "an open file": io.BytesIO(encoded(RGB, "PNG")),
    "row of a data set": {"bytes": encoded(RGB, "PNG"), "path": None},
    "first of an animation": encoded(RGB, "PNG", save_all=True, append_images=[Image.new("RGB", RGB.size)]),
}


@pytest.mark.parametrize("form", GREYS)
def test_greys_of_any_depth(form: str) -> None:
    assert off(as_image(GREYS[form]), GREY.convert("RGB")) == 0


@pytest.mark.parametrize("form", COLOURS)
def test_colours_of_any_form(form: str) -> None:
    source = COLOURS[form]
    if form == "P":
        assert off(as_image(source), source.convert("RGB")) == 0
        return
    assert off(as_image(source), RGB) == 0
    if hasattr(source, "seek"):
        source.seek(0)
    (found,) = as_tensors(source, "")
    assert (found - torch.from_numpy(BLOCKS).permute(2, 0, 1)[None] / 255).abs().max() < 1e-7


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV"])
def test_colour_spaces(mode: str) -> None:
    plain = Image.fromarray(BLOCKS // 4 + 96)  # within what each of them can hold
    assert off(as_image(plain.convert(mode)), plain) <= 4


def test_black_and_white() -> None:
    bits = GREY.convert("1")
    assert off(as_image(bits), np.repeat(255 * np.asarray(bits)[..., None].astype(np.uint8), 3, 2)) == 0
    assert off(as_image(np.asarray(bits)), as_image(bits)) == 0


@pytest.mark.parametrize("values", [-1.0, 70000.0, float("nan"), float("inf")])
def test_numbers_without_a_known_white(values: float) -> None:
    with pytest.raises(ValueError, match="which of them is white cannot be known; scale them to 0 to 255"):
        read(Image.new("F", (4, 4), values))


def test_transparency_is_white() -> None:
    cover = np.asarray(GREY).copy()
    clear = Image.fromarray(np.dstack([BLOCKS, cover]))
    share = cover[..., None] / 255
    white = np.rint(BLOCKS * share + 255 * (1 - share))
    for form in (clear, encoded(clear, "PNG"), np.asarray(clear), np.asarray(clear) / 255, clear.convert("RGBa")):
        assert off(as_image(form), white) <= 1
    grey, palette = Image.merge("LA", (GREY, GREY)), GREY.convert("PA")
    palette.putalpha(GREY)
    for form in (grey, grey.convert("La"), palette, np.asarray(grey)):
        assert off(as_image(form), np.rint(np.asarray(GREY)[..., None] * share + 255 * (1 - share)).repeat(3, 2)) <= 1
    for stored in (RGB.quantize(8), GREY.convert("L"), WIDE):
        first = int(np.asarray(stored)[0, 0])
        found = read(encoded(stored, "PNG", transparency=first))
        there = np.asarray(stored) == first
        assert (np.asarray(found.image)[there] == 255).all()
        assert found.cover is not None
        assert np.array_equal(np.asarray(found.cover) == 0, there)


# -- turned ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_pictures_are_upright(form: str) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        raw = encoded(RGB, form, exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB")
        found = read(raw)
        assert found.size == found.image.size == upright.size
        for again in (raw, Image.open(io.BytesIO(raw)), Image.open(io.BytesIO(raw)).convert("RGBA"), found.image):
            assert off(as_image(again), upright) == 0


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_turns_nothing() -> None:
    for raw in (b"Exif\0\0nonsense", b"", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        image = RGB.copy()
        image.info["exif"] = raw
        assert off(as_image(image), RGB) == 0


# -- every door --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Image.Image]:
    """A picture that is stored turned and transparent, and what it shows."""
    shown = bundle.pictures(["octopus"])[0]
    clear = shown.image.convert("RGBA")
    clear.putalpha(shown.mask)
    values = np.array(clear)
    values[values[..., 3] == 0, :3] = 0
    path = tmp_path_factory.mktemp("stored") / "photo.png"
    exif = Image.Exif()
    exif[274] = 6
    turned = Image.fromarray(values).transpose(Image.Transpose.ROTATE_90)
    turned.save(path, exif=exif)
    white = Image.new("RGBA", clear.size, "white")
    white.alpha_composite(Image.fromarray(values))
    return path, white.convert("RGB")


DOORS: dict[str, Callable[[nd.VLM, Any], Any]] = {
    "judge": lambda vlm, x: nd.DemoJudge().logits(x),
    "as_pil": lambda vlm, x: np.asarray(as_pil(x)[0]).astype(float),
    "from_images": lambda vlm, x: nd.from_images(vlm, x, 3).vector,
    "centre": lambda vlm, x: nd.Pictures([x]).of(vlm, nd.Site(3)),
    "reference": lambda vlm, x: reference.reference_mean(vlm, nd.Site(3), reference.chosen(x)),
    "image side": lambda vlm, x: encoders.image_side(vlm).read([x], [2])[2],
    "tower": lambda vlm, x: encoders.tower(vlm).read([x], [2])[2],
    "pair": lambda vlm, x: np.asarray(pairs.pair("x", x, "x").image).astype(float),
    "digest": lambda vlm, x: np.frombuffer(content(x), np.uint8).astype(float),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_reads_alike(door: str, stored: tuple[Path, Image.Image], tiny_vlm: nd.VLM) -> None:
    path, shown = stored
    go = DOORS[door]
    right = torch.as_tensor(go(tiny_vlm, shown))
    for form in (path, str(path), path.read_bytes(), Image.open(path), np.asarray(shown)):
        assert torch.allclose(torch.as_tensor(go(tiny_vlm, form)), right, atol=1e-5, rtol=0)


def test_the_command_and_features_read_alike(
    stored: tuple[Path, Image.Image], tiny_vlm: nd.VLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, shown = stored
    shown.save(tmp_path / "shown.png")
    names = []
    for file in (path, tmp_path / "shown.png"):
        assert cli.main(["judge", str(file)]) == 0
        names.append(capsys.readouterr().out.removeprefix(str(file)))
    assert names[0] == names[1]
    encoder = encoders.image_side(tiny_vlm)
    first = feature_store.features(encoder, [shown], [2], folder=tmp_path)
    again = feature_store.features(encoder, [str(path)], [2], folder=tmp_path)  # found by what it shows
    assert (first.made, again.made) == (1, 0)


def test_no_picture_depends_on_its_company(tiny_vlm: nd.VLM) -> None:
    sizes = [(40, 60), (112, 112), (40, 60), (90, 90)]
    mixed = [p.image.resize(size) for p, size in zip(bundle.pictures()[:4], sizes, strict=True)]
    for encoder in (encoders.image_side(tiny_vlm), encoders.tower(tiny_vlm)):
        together = encoder.read(mixed, [1])[1]
        assert torch.allclose(together, torch.cat([encoder.read([one], [1])[1] for one in mixed]), atol=1e-5)
    judge = nd.DemoJudge()
    assert torch.allclose(judge.logits(mixed), torch.cat([judge.logits(one) for one in mixed]), atol=1e-4)


def test_pictures_of_one_size_are_judged_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, passes = nd.DemoJudge(), []
    inner = judge._input
    monkeypatch.setattr(judge, "_input", lambda part: passes.append(len(part)) or inner(part))
    judge.judge([p.image for p in bundle.pictures()[:5]])
    assert passes == [5]


# -- files -------------------------------------------------------------------------------------------------------


def test_a_huge_picture_is_made_smaller_while_it_is_read(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 12000).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp[:, None], (12000, 12000))).save(tmp_path / "huge.jpg", quality=95)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.warns(UserWarning, match=r"huge\.jpg.* has 12000 x 12000 pixels and is read at 1/4 of its sides"):
        (found,) = as_tensors(tmp_path / "huge.jpg", "image")
    assert found.shape == (1, 3, 3000, 3000)
    means = torch.from_numpy(ramp.reshape(3000, 4).mean(1) / 255).float()
    assert (found - means[:, None]).abs().max() < 2 / 255
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # KiB


@pytest.mark.parametrize("form", ["RGB", "L", "P", "RGBA", "I;16"])
def test_reduced_pictures_are_means(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).integers(0, 256, (160, 90, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    image = {"P": image.quantize(64), "I;16": Image.fromarray(values[..., 0].astype(np.uint16) * 257)}.get(form, image)
    image = image if image.mode == form else image.convert(form)
    whole = np.asarray(as_image(image)).astype(float)
    monkeypatch.setattr(pictures, "MOST", 160 * 90 // 4)
    found = read(image)
    assert found.size == (90, 160)
    assert off(found.image, np.rint(whole.reshape(80, 2, 45, 2, 3).mean((1, 3)))) <= 1
    assert off(read(encoded(image, "PNG")).image, found.image) == 0


def test_too_many_pixels_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"has more than 200 pixels.*raise PIL.Image.MAX_IMAGE_PIXELS"):
        read(encoded(RGB, "PNG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(encoded(RGB.resize((12, 12)), "PNG")).size == (12, 12)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_broken_files_are_one_kind_of_error(form: str, tmp_path: Path) -> None:
    raw = encoded(RGB, form)
    for part in (raw[: len(raw) // 3], raw[:12], b"", b"<svg/>"):
        (tmp_path / "broken.png").write_bytes(part)
        with pytest.raises(ValueError, match=r"image cannot be read as a picture.*broken\.png"):
            read(tmp_path / "broken.png")


def test_what_is_no_picture_says_so(tmp_path: Path) -> None:
    for given, error, words in (
        ("none.png", FileNotFoundError, "image='none.png': there is no such file; image= takes PIL images"),
        ("https://example.org/a.png", FileNotFoundError, "an address is not fetched; save the picture first"),
        (str(tmp_path), IsADirectoryError, "is a folder"),
        (None, TypeError, "image= holds a NoneType; give PIL images"),
        (np.array(["a"]), TypeError, "holds an array of <U1"),
        (np.zeros((2, 5, 5)), ValueError, r"an array is .*got \(2, 5, 5\)"),
        (np.full((4, 4, 3), 200.0), ValueError, "got 200 to 200. Divide 8-bit values by 255"),
        (torch.full((3, 4, 4), 7), ValueError, "got 7 to 7. Divide 8-bit values by 255"),
        (torch.zeros(2, 3, 4, 4), ValueError, "holds 2 pictures; one is needed"),
    ):
        with pytest.raises(error, match=words):
            as_image(given)


def test_batches_are_several() -> None:
    both = np.stack([BLOCKS, BLOCKS[::-1]])
    for given in (both, both / 255, torch.from_numpy(both.copy()).permute(0, 3, 1, 2)):
        assert [off(a, b) for a, b in zip(as_images(given), both, strict=True)] == [0, 0]
        assert as_tensors(given, "")[0].shape == (2, 3, 28, 20)


def test_a_folder_holds_the_users_own_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "._a.png", ".hidden/c.png", "in/d.webp", "__MACOSX/e.png", "@eaDir/f.png", "x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in files(tmp_path)] == ["a.JPG", "b.png"]
    assert [p.name for p in files(tmp_path, deep=True)] == ["a.JPG", "b.png", "d.webp"]


def test_a_vision_model_sees_white(stored: tuple[Path, Image.Image]) -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    sizes = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    torch.manual_seed(0)
    hf = SiglipVisionModel(SiglipVisionConfig(image_size=56, patch_size=14, **sizes)).eval()
    encoder = encoders.vision_model(hf, SiglipImageProcessorPil(size={"height": 56, "width": 56}))
    path, shown = stored
    assert torch.allclose(encoder.read([path], [1])[1], encoder.read([shown], [1])[1], atol=1e-5)


def test_no_other_program_is_started(tmp_path: Path) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n"
    (tmp_path / "a.png").write_bytes(eps)  # Pillow would hand it to Ghostscript
    with pytest.raises(ValueError, match=r"Pillow knows no such format.*a\.png"):
        read(tmp_path / "a.png")
