"""Films: what is kept of an ascent on the way, concepts through layers, animated files and sliders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.synthesis import film as films

FEW = nd.Settings(steps=9, batch=1, canvas=nd.Pixels(24), augment=(nd.Noise(0.1),), at_once=2)


@pytest.fixture(scope="module")
def axes(tiny_vlm: nd.VLM) -> list[nd.Direction]:
    return [nd.from_tensor(tiny_vlm, torch.eye(32)[i], 2, label=f"axis {i}") for i in range(3)]


def test_frames_are_the_pictures_of_the_climb_from_grey_to_the_end(tiny_vlm: nd.VLM, axes: list) -> None:
    seen: dict[int, list[Image.Image]] = {}

    def watch(step: int, scores: Any, pictures: list) -> None:
        if len(pictures) == 2:  # the first of two ascents
            seen[step] = pictures

    made = nd.synthesize(tiny_vlm, axes, settings=FEW, film=5, progress=watch)
    plain = nd.synthesize(tiny_vlm, axes, settings=FEW, progress=False)
    for prototype, other in zip(made, plain, strict=True):  # three pictures in two ascents
        assert prototype.image.tobytes() == other.image.tobytes() == prototype.film.frames[-1].tobytes()
        assert other.film is None
        assert prototype.film.captions == ("step 0", "step 3", "step 5", "step 8", "finished")
        assert prototype.film.title == prototype.label
    for n, step in enumerate((0, 3, 5, 8)):
        assert made[1].film.frames[n].tobytes() == seen[step][1].tobytes()
    assert np.ptp(np.asarray(made[0].film.frames[0]).astype(int)) < np.ptp(np.asarray(made[0].image).astype(int))


def test_a_film_is_saved_and_loaded_with_its_prototype(tiny_vlm: nd.VLM, axes: list, tmp_path: Path) -> None:
    made = nd.synthesize(tiny_vlm, axes[0], settings=FEW, film=4, progress=False)
    there = nd.Prototype.load(made.save(tmp_path / "one"))
    assert there.film.captions == made.film.captions
    assert [f.tobytes() for f in there.film.frames] == [f.tobytes() for f in made.film.frames]
    assert nd.Prototype.load(dataclasses.replace(made, film=None).save(tmp_path / "none")).film is None
    (tmp_path / "one" / "film.png").write_bytes((tmp_path / "none" / "prototype.png").read_bytes())
    with pytest.raises(ValueError, match=r"film\.png is not the film of its record"):
        nd.Prototype.load(tmp_path / "one")


def test_large_frames_are_kept_small() -> None:
    camera = films.Camera(None, 3, 2)
    for step in range(2):
        camera(step, torch.zeros(1), torch.full((1, 3, 512, 512), 0.5))
    made = camera.film(0, Image.new("RGB", (512, 512)), "x")
    assert {f.size for f in made.frames} == {(256, 256)}
    assert made.captions == ("step 0", "step 1", "finished")
    assert made.frames[0].getpixel((9, 9)) == (128, 128, 128)


def test_what_cannot_be_filmed_is_refused(tiny_vlm: nd.VLM, axes: list, tiny_parts: tuple) -> None:
    for wrong in (1, -3, 2.5, "all"):
        with pytest.raises((ValueError, TypeError), match="film"):
            nd.synthesize(tiny_vlm, axes[0], settings=FEW, film=wrong)
    away = nd.load(tiny_parts[0], processor=tiny_parts[1], remote="local")
    with pytest.raises(ValueError, match="tells no pictures on the way"):
        nd.synthesize(away, nd.from_tensor(away, torch.eye(32)[0], 2), settings=FEW, film=True)
    for frames, captions in (
        ((), ()),
        ((Image.new("RGB", (8, 8)),), ()),
        ((Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))), ("a", "b")),
    ):
        with pytest.raises(ValueError, match="a caption for each"):
            nd.Film(frames, captions)


def test_a_concept_through_the_layers(tiny_vlm: nd.VLM) -> None:
    film = nd.film_of_layers(tiny_vlm, "fox", settings=FEW, steps=2, progress=False)
    assert film.captions == ("layer 1", "layer 2", "layer 3", "layer 4")
    alone = nd.synthesize(tiny_vlm, nd.concept(tiny_vlm, "fox", layer=3), settings=FEW, steps=2, progress=False)
    assert film.frames[2].tobytes() == alone.image.tobytes()


def frames(count: int = 6) -> nd.Film:
    shown = tuple(Image.new("RGB", (32, 32), (40 * n, 20, 200 - 30 * n)) for n in range(count))
    return nd.Film(shown, tuple(f"step {n}" for n in range(count)), 'a "quoted" <b>film</b>')


@pytest.mark.parametrize("ending", [".webp", ".gif"])
def test_animated_files(tmp_path: Path, ending: str) -> None:
    path = frames().save(tmp_path / f"film{ending}", seconds=1.2)
    with Image.open(path) as file:
        assert (file.n_frames, file.size) == (6, (256, 256))
        file.seek(3)
        assert np.abs(np.array(file.convert("RGB").getpixel((99, 99))) - (120, 20, 110)).max() < 12
    with pytest.raises(ValueError, match=r"ends in \.webp, \.gif, \.html"):
        frames().save(tmp_path / "film.mp4")


@chromium.needed
def test_the_slider(tmp_path: Path) -> None:
    path = frames().save(tmp_path / "film.html")
    with chromium.opened(path, tmp_path, 390) as tab:
        assert tab.run("return document.querySelector('output').textContent") == "step 5"
        tab.run("document.querySelector('input').focus()")
        tab.press("ArrowLeft")
        tab.press("ArrowLeft")
        assert tab.run("return document.querySelector('output').textContent") == "step 3"
        assert tab.run("return document.querySelector('img').style.top") == "-768px"
        tab.run(
            "document.querySelector('input').value = 0; document.querySelector('button').click(); await new Promise(r => setTimeout(r, 4500))"
        )
        assert tab.run(
            "return [document.querySelector('output').textContent, document.querySelector('button').textContent]"
        ) == ["step 5", "play"]
        assert tab.run("return document.querySelector('b').textContent") == 'a "quoted" <b>film</b>'
        assert tab.run("return document.documentElement.scrollWidth") <= 390
        assert tab.troubles == []


def test_a_terminal_shows_the_picture_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from nnsight_dream.synthesis import progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for colours, shown in (("truecolor", True), ("", False)):
        monkeypatch.setenv("COLORTERM", colours)
        monkeypatch.setenv("TERM", "xterm-256color" if colours else "dumb")
        out = Terminal()
        with progress.bar("climbing", 4, out) as bar:
            watch = progress._BarWatch(bar)
            assert watch.shows is shown
            for step in range(4):
                watch.next = 0.0
                watch(step, torch.zeros(1), torch.full((1, 3, 8, 8), step / 4) if shown else None)
            bar.bars.refresh()
        assert ("▀" in out.getvalue()) is shown
        assert ("191;191;191" in out.getvalue()) is shown  # the last picture's grey
