"""What is shown while something is climbed, and before: bars, forecasts, callbacks; other libraries kept quiet."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.directions.nearest import nearest_words
from nnsight_dream.io.html_pages import Page
from nnsight_dream.models import devices
from nnsight_dream.synthesis import forecast, progress
from nnsight_dream.synthesis.real_pictures import real_scores
from nnsight_dream.synthesis.request import settled

FEW = ["sofa", "cloud"]
SMALL = nd.Settings(batch=2, canvas=nd.Pixels(16), augment=(), steps=3)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def fox(tiny_vlm: nd.VLM) -> nd.Direction:
    return nd.concept(tiny_vlm, "fox", 1, baseline=FEW)


def test_a_callback_of_three_is_given_the_pictures(tiny_vlm: nd.VLM, fox: nd.Direction) -> None:
    seen: list[tuple[int, int, list[Image.Image]]] = []
    plain: list[int] = []
    kept = nd.synthesize(
        tiny_vlm, fox, seed=[0, 1], settings=SMALL, progress=lambda step, scores, pictures: seen.append((step, len(scores), pictures))
    )  # fmt: skip
    assert [(step, count, len(pictures)) for step, count, pictures in seen] == [(i, 2, 2) for i in range(3)]
    assert all(picture.size == (16, 16) for _, _, pictures in seen for picture in pictures)
    start = nd.synthesize(tiny_vlm, fox, seed=[0, 1], settings=SMALL, steps=0)
    assert [p.tobytes() for p in seen[0][2]] == [p.tobytes() for p in start.images]  # before the first step
    same = nd.synthesize(tiny_vlm, fox, seed=[0, 1], settings=SMALL, progress=lambda step, scores: plain.append(step))
    assert plain == [0, 1, 2]
    assert [p.tobytes() for p in same.images] == [p.tobytes() for p in kept.images]  # looking changes nothing


def test_a_terminal_says_first_what_it_takes_and_last_that_it_was_stopped(
    tiny_vlm: nd.VLM, fox: nd.Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    quiet = nd.synthesize(tiny_vlm, [fox, fox], settings=SMALL, progress=False)
    said = nd.synthesize(tiny_vlm, [fox, fox], settings=SMALL)
    assert [p.image.tobytes() for p in said] == [p.image.tobytes() for p in quiet]  # timing changes nothing
    timed = nd.synthesize(tiny_vlm, [fox, fox], settings=SMALL)
    assert out.getvalue().count("2 pictures at layer 1: about 1 second on cpu") == 2
    assert timed[0].history == quiet[0].history
    first = next(line for line in out.getvalue().splitlines() if "picture" in line)
    assert "2 pictures at layer 1: about 1 second on cpu" in first
    out.truncate(0)

    def stop(self: Any, *_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress._BarWatch, "__call__", stop)
    (made,) = nd.synthesize(tiny_vlm, [fox], settings=SMALL)
    assert made.interrupted
    assert "stopped after 1 of 3 steps: the picture is partial" in out.getvalue()


def test_a_pipe_is_told_nothing_and_pays_nothing(
    tiny_vlm: nd.VLM, fox: nd.Direction, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "forecast", lambda *_: pytest.fail("it is worked out"))
    nd.synthesize(tiny_vlm, fox, settings=SMALL)
    nd.synthesize(tiny_vlm, fox, settings=SMALL, progress=False)
    assert capsys.readouterr() == ("", "")


def test_what_does_not_fit_is_told_with_what_would(
    tiny_vlm: nd.VLM, fox: nd.Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = settled(tiny_vlm, fox, SMALL.but(batch=8), 0, (), {})
    monkeypatch.setattr(forecast, "SMALL", 0)
    roomy = forecast.forecast(tiny_vlm, order)
    assert "of memory beside the weights (" in roomy
    assert "does not fit" not in roomy

    def need(views: int) -> int:
        counted = forecast._counted(tiny_vlm, tiny_vlm.site(1), SMALL, views)
        assert counted is not None
        return counted.step_bytes

    monkeypatch.setattr(devices, "free_bytes", lambda device: need(2) + 1)
    told = forecast.forecast(tiny_vlm, order)
    assert "that does not fit. What would: " in told
    assert "at_once=2 or --at-once 2" in told
    assert not tiny_vlm.checkpoint_tower  # nothing was changed
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1)
    assert forecast.forecast(tiny_vlm, order).endswith("a smaller image_size=")


def test_a_notebook_needs_no_widgets_and_sees_the_picture(
    tiny_vlm: nd.VLM, fox: nd.Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    handle = types.SimpleNamespace(update=shown.append)
    display = types.SimpleNamespace(HTML=str, display=lambda what, display_id: shown.append(what) or handle)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress._NotebookBar, "EVERY", 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nd.synthesize(tiny_vlm, fox, settings=SMALL)
    assert shown[0] == "climbing ..."
    assert 'max="3"' in shown[-2]
    assert "<img" in shown[-2]
    assert "1 picture at layer 1" in shown[-1]  # what stays
    assert "progress" not in shown[-1]


def test_loading_is_quiet_unless_it_is_asked_for(tiny_folder: Path) -> None:
    code = (
        "import sys, types\n"
        "sys.modules['ipykernel'] = types.ModuleType('ipykernel')\n"  # in a notebook without ipywidgets tqdm warns
        "import nnsight_dream as nd\n"
        "nd.load(sys.argv[1], check=False, device='cpu')\n"
        "from transformers.utils import logging\n"
        "print(logging.is_progress_bar_enabled(), logging.get_verbosity())\n"
        "print('ASKED FOR', file=sys.stderr, flush=True)\n"
        "logging.set_verbosity_info()\n"
        "nd.load(sys.argv[1], check=False, device='cpu')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_folder)], capture_output=True, text=True)
    quiet, loud = done.stderr.split("ASKED FOR")
    assert (done.returncode, quiet, done.stdout.split()) == (0, "", ["True", "30"])  # all is as it was
    assert "Loading weights" in loud


def test_pictures_stand_side_by_side_in_a_terminal(tiny_vlm: nd.VLM, fox: nd.Direction) -> None:
    from rich.console import Console

    pictures = nd.synthesize(tiny_vlm, [[fox, fox, fox], [fox]], settings=SMALL)
    for width, most in ((80, 3), (120, 4), (20, 1)):
        out = io.StringIO()
        Console(file=out, width=width, force_terminal=True, color_system="truecolor").print(pictures)
        lines = [line for line in out.getvalue().splitlines() if "fox" in line]
        assert max(line.count("fox") for line in lines) == min(3, most)
        assert sum(line.count("fox") for line in lines) == 4
    words = nd.Prototypes([[picture] for picture in pictures])  # a row of one each, as of words at one layer
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=True, color_system="truecolor").print(words)
    assert max(line.count("fox") for line in out.getvalue().splitlines()) == 3
    assert words.grid(side=20, labels=False).size == (80, 20)
    out = io.StringIO()
    Console(file=out, width=80).print(pictures)
    assert "▀" not in out.getvalue()  # no colours: no blocks


def test_times_in_words() -> None:
    assert [progress.in_words(s) for s in (0.2, 61, 89.7, 90, 5400)] == [
        "1 second", "61 seconds", "90 seconds", "1.5 minutes", "1.5 hours",
    ]  # fmt: skip


def test_objects_show_themselves(demo_vlm: nd.VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = demo_vlm._repr_html_()
    for told in (
        "gemma3",
        "1 to 8",
        "8 x 8 image tokens",
        "blocks.{n-1}.hook_resid_post",
        "language_model.layers.{n-1}.output",
    ):
        assert told in model
    fox = nd.concept(demo_vlm, "fox", layer=1)
    near = nearest_words(fox, 3)
    assert "fox" not in [word for word, _ in near]
    others = nd.concept(demo_vlm, [c.name for c in bundle.concepts() if c.name != "fox"], layer=1)
    assert near[0][0] == max(others, key=lambda one: nd.cosine(fox, one)).label
    assert f"{near[0][0]} {near[0][1]:.2f}" in fox._repr_html_()
    assert nearest_words(nd.Direction(fox.vector, fox.site, "x", "unknown", {})) == []
    assert "nd.make_cards(vlm, sae, [3], &quot;cards&quot;)" in nd.feature("demo", 3)._repr_html_()
    plain, changed = nd.Settings.demo(), nd.Settings.demo().but(steps=9, pooling=nd.Max())
    assert "Settings.demo()</b>, as it is" in plain._repr_html_()
    shown = changed._repr_html_().partition("<details>")[0]
    assert "Settings.demo()" in shown
    assert "<td>9</td>" in shown
    assert "Max()" in shown
    assert "rate" not in shown
    assert "Settings.paper(10)" in nd.Settings.paper(10)._repr_html_()
    verdict = nd.DemoJudge().judge(bundle.pictures(["sunflower"])[0].image)[0]
    assert repr(verdict).startswith("Verdict(sunflower ")
    assert len(repr(verdict)) < 120
    monkeypatch.chdir(tmp_path)
    assert 'href="a%20b/page.html"' in Page("a b/page.html")._repr_html_()
    assert Page("/x/y.html").parent == Path("/x")


def test_scores_stand_beside_a_real_pictures(demo_vlm: nd.VLM) -> None:
    fox = nd.concept(demo_vlm, "fox", layer=1)
    one = nd.synthesize(demo_vlm, fox, steps=1)
    real = dataclasses.replace(one, image=bundle.pictures(["fox"])[0].image)
    by_token = real.patches(demo_vlm, fox).scores["cosine"]  # read another way
    told = real_scores(one)
    assert list(told) == list(one.scores)
    assert told["max"] == pytest.approx(float(by_token.max()), abs=1e-4)
    assert told["attention"] > one.scores["attention"]  # after one step
    assert f"(a real picture {told['mean']:.3f})" in one._repr_html_()
    assert real_scores(nd.synthesize(demo_vlm, fox - nd.concept(demo_vlm, "owl", layer=1), steps=1)) == {}
    assert real_scores(nd.synthesize(demo_vlm, fox, steps=1, centre=nd.Grey())) == {}
