"""`nnsight-dream check`: what each section says of a model that is right, and of one that is wrong in just one way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import chromium
import pytest
import tiny
import torch

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.checkup import cost, examine, layers, numerics, page, record, sinks, tokens
from nnsight_dream.checkup.material import Material
from nnsight_dream.checkup.section import FAIL, PASS, UNSURE, Report, Section
from nnsight_dream.models import spans

READING = ["layers", "sinks", "cost", "drawings", "numerics"]  # what takes seconds


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default preset, small enough to run here, and few pictures."""
    few = nd.Settings(steps=8, batch=1, canvas=nd.MultiResolution(32), augment=(nd.Noise(0.02),))
    monkeypatch.setattr(nd.Settings, "normalised", classmethod(lambda cls, size=448: few))
    monkeypatch.setattr(Material, "how_many", lambda self, least, most: 6)


@pytest.fixture(scope="module")
def whole(tiny_vlm: nd.VLM) -> Report:
    """A quick checkup of a random Gemma 3."""
    with pytest.MonkeyPatch.context() as patch:
        few = nd.Settings(steps=8, batch=1, canvas=nd.MultiResolution(32), augment=(nd.Noise(0.02),))
        patch.setattr(nd.Settings, "normalised", classmethod(lambda cls, size=448: few))
        patch.setattr(Material, "how_many", lambda self, least, most: 6)
        return examine.examine(tiny_vlm, quick=True, layers=[1, 3])


def test_a_sound_model_of_random_weights(whole: Report) -> None:
    states = {section.name: section.state for section in whole.sections}
    assert list(states) == list(examine.SECTIONS)
    sure = ("record", "activations", "pixels", "gradient", "numerics", "words", "sinks")
    assert {name: states[name] for name in sure} == dict.fromkeys(sure, PASS)
    assert states["layers"] == UNSURE  # random weights tell no words apart
    assert whole.state in (UNSURE, FAIL)  # a climb of so few steps may fall
    by_name = {section.name: section for section in whole.sections}
    assert [row["layer"] for row in by_name["activations"].rows] == [1, 2, 3, 4]
    assert [row["layer"] for row in by_name["numerics"].rows] == [1, 3]
    assert len(by_name["drawings"].pictures) == 4  # three words and a random direction
    assert all(section.advice for section in whole.sections if section.state != PASS)


def test_json_is_plain_and_says_nothing_of_the_machines_paths(whole: Report, tiny_folder: Path) -> None:
    told = json.loads(json.dumps(whole.to_dict(), allow_nan=False))
    assert told["state"] == whole.state
    assert told["sections"][-1]["pictures"][0].keys() >= {"word", "layer", "cosine", "number"}
    given = examine.examine(nd.load(tiny_folder, check=False), skip=set(examine.SECTIONS) - {"pixels"})
    assert given.facts["model"] == tiny_folder.name
    assert str(tiny_folder.parent) not in json.dumps(given.to_dict())


@chromium.needed
def test_the_page_in_a_browser(whole: Report, tmp_path: Path) -> None:
    place = page.page(whole, tmp_path / "page.html", title="<b>a title</b>")
    with chromium.opened(place, tmp_path, width=390) as tab:
        assert tab.run("return document.title;") == "<b>a title</b>"
        assert tab.run("return document.documentElement.scrollWidth;") == 390
        assert tab.run("return document.querySelectorAll('main > section').length;") == len(whole.sections)
        assert tab.run("return document.querySelectorAll('#sheet img').length;") == 4
        pictures = {known["number"]: known["word"] for _, known in whole.sections[-1].pictures}
        shown = "return [...document.querySelectorAll('#sheet figcaption')].map(c => c.textContent).join(' ');"
        assert tab.run(shown) == "1 2 3 4"  # nothing tells what was drawn
        for number in (1, 2):
            tab.click("#sheet input", number - 1)
            tab.type(pictures[number] if number == 1 else "a zeppelin")
        tab.click("#names")
        assert tab.run("return document.querySelector('[role=status]').textContent;").startswith("1 of 2 named right")
        assert all(word in tab.run(shown) for word in pictures.values())
        assert (tab.troubles, [url for url in tab.loaded if not url.startswith("file:")]) == ([], [])


def test_a_record_that_does_not_fit(tiny_parts: tuple) -> None:
    """Each section finds its own fault, and the others go on."""
    hf, processor = tiny_parts
    right = nd.load(hf, processor=processor).family
    wrong = {
        "record": dataclasses.replace(right, wrapped="{begin}{image}{end}"),
        "pixels": dataclasses.replace(right, pack=lambda x, pixels: {"pixel_values": right.pack(x, pixels)["pixel_values"] + 0.1}),
        # without token types image tokens see only what is before them, and nothing raises
        "activations": dataclasses.replace(right, extra=lambda ids, image: {"token_type_ids": torch.zeros_like(ids)}),
    }  # fmt: skip
    for name, family in wrong.items():
        vlm = nd.load(hf, processor=processor, family=family, check=False)
        report = examine.examine(vlm, layers=[1], skip=READING)
        states = {section.name: section.state for section in report.sections}
        assert states[name] == FAIL, name
        assert report.state == FAIL
        assert states["words"] == PASS
        if name != "record":
            assert f"family {family.name}" in report.sections[2].finding or name == "activations"


def test_a_layer_without_a_gradient() -> None:
    hf, processor = tiny.gemma3()
    vlm = nd.load(hf, processor=processor, check=False)
    handle = hf.model.language_model.layers[1].mlp.register_forward_hook(lambda m, a, out: out.detach())
    found = record.gradient(Material(vlm, asked=(1,)))
    handle.remove()
    assert found.state == FAIL
    assert "passes on no gradient" in found.finding or "of the change that is measured" in found.finding


def test_tokens_are_found_two_ways(tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    right = tokens.words(Material(tiny_vlm))
    assert [row["state"] for row in right.rows] == [PASS] * len(tokens.AWKWARD)
    real = spans.wrap

    def late(tokenizer: Any, texts: Any, **more: Any) -> Any:
        return [dataclasses.replace(p, own=tuple(i + 1 for i in p.own)) for p in real(tokenizer, texts, **more)]

    monkeypatch.setattr(spans, "wrap", late)
    wrong = tokens.words(Material(tiny_vlm))
    assert (wrong.state, {row["state"] for row in wrong.rows}) == (FAIL, {FAIL})


def test_words_that_a_tokenizer_cannot_write() -> None:
    hf, processor = tiny.gemma3()
    vlm = nd.load(hf, processor=processor, check=False)
    vlm.tokenizer = tiny.word_piece()
    found = {row["word"]: row for row in tokens.words(Material(vlm)).rows}
    assert found["東京"]["state"] == UNSURE
    assert "unknown" in found["東京"]["finding"]


def test_numbers_of_a_type_against_float32(tiny_parts: tuple) -> None:
    hf, processor = tiny_parts
    vlm = nd.load(hf, processor=processor)
    given = Material(vlm, asked=(2,))
    same = numerics.compared(given, numerics.twin(vlm, torch.float32, vlm.device), vlm, 2)
    assert same["patches"] == pytest.approx(1, abs=1e-5)
    assert same["gradient"] == pytest.approx(1, abs=1e-4)
    assert (same["weights"], same["score"]) == (pytest.approx(0, abs=1e-4), pytest.approx(0, abs=1e-4))
    half = numerics.twin(vlm, torch.bfloat16, vlm.device)
    assert (half.dtype, vlm.dtype) == (torch.bfloat16, torch.float32)
    found = numerics.numerics(Material(half, asked=(2,)))
    assert "In bfloat16" in found.finding
    assert 0.9 < found.rows[0]["gradient"] < 1 - 1e-7
    rows = [{**same, "layer": 7, "gradient": value} for value in (0.99, 0.7, 0.2)]
    states = [numerics._section(half, "bfloat16", False, [row]) for row in rows]
    assert [section.state for section in states] == [PASS, UNSURE, FAIL]
    assert "At layer 7 draw with dtype=torch.float32" in states[2].advice


def test_no_memory_for_a_copy(tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnsight_dream.models.devices.free_bytes", lambda device: 1000)
    found = numerics.numerics(Material(tiny_vlm))
    assert (found.state, "which are not free" in found.finding) == (UNSURE, True)


def test_words_by_their_pictures_on_the_demo(demo_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_vlm.__class__, "layers", property(lambda self: 2))
    found = layers.alignment(Material(demo_vlm, quick=True))
    assert found.state == PASS
    assert [row["works"] for row in found.rows] == [True, True]
    assert found.curves["auc"] == [row["auc"] for row in found.rows]
    assert found.rows[0]["sinks"] == 0


def test_sinks_are_found_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    hf, processor = tiny.gemma3()
    vlm = nd.load(hf, processor=processor)
    place = int(vlm.image_prompt.positions[6])

    def swell(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        grown = output.clone()
        grown[:, place, 3] += 1e5 * torch.linspace(1, 2, len(output))
        return grown

    handle = hf.model.language_model.layers[2].register_forward_hook(swell)
    found = sinks.sink_tokens(Material(vlm))
    handle.remove()
    assert found.state == UNSURE
    shares = [row["sinks"] for row in found.rows]
    assert shares[:2] == [0, 0]
    assert shares[2] == pytest.approx(1 / 16)
    assert (found.rows[2]["place"], found.rows[2]["massive"]) == ("1, 2", 6)
    assert "WithoutSinks" in found.advice


def test_the_cost_of_a_step(tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cost.cost(Material(tiny_vlm, asked=(2,)))
    assert found.rows[0]["layer"] == 2
    assert found.state == PASS or "its time was not told" in found.finding
    monkeypatch.setattr(cost, "seconds_a_step", lambda *_: None)
    assert cost.cost(Material(tiny_vlm, asked=(2,))).state == UNSURE


def test_errors_and_interrupts_end_no_report(tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(given: Material) -> Section:
        raise IndexError("of the model's own")

    def full(given: Material) -> Section:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    def interrupted(given: Material) -> Section:
        raise KeyboardInterrupt

    finds = {"pixels": broken, "sinks": full, "cost": interrupted}
    monkeypatch.setattr(examine, "SECTIONS", {name: (name, find) for name, find in finds.items()})
    report = examine.examine(tiny_vlm)
    assert [(s.name, s.state) for s in report.sections] == [("pixels", FAIL), ("sinks", UNSURE)]
    assert report.sections[0].finding == "IndexError: of the model's own"
    assert report.sections[1].finding.startswith("Memory ran out")
    assert report.interrupted
    assert page.lines(report)[-1].endswith("interrupted before its end")


def test_the_worst_section_is_the_reports_state() -> None:
    def report(*states: str) -> Report:
        return Report({}, [Section(state, state, state, "") for state in states])

    assert report(PASS, PASS).state == PASS
    assert report(PASS, UNSURE).state == UNSURE
    assert report(PASS, FAIL, UNSURE).state == FAIL
    assert report().state == UNSURE


def test_the_command(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "page.html"
    left = ["--skip", *READING, "gradient"]
    assert cli.main(["check", str(tiny_folder), *left, "--out", str(out)]) == 0
    printed, errors = capsys.readouterr()
    assert printed.splitlines()[1].startswith("pass    Family record: ")
    assert "4 pass in " in printed
    assert "nnsight-dream: Pixels ..." in errors
    assert out.stat().st_size > 5000
    assert cli.main(["check", str(tiny_folder), *left, "--json"]) == 0
    assert [s["name"] for s in json.loads(capsys.readouterr().out)["sections"]] == [
        "record",
        "activations",
        "pixels",
        "words",
    ]
    assert cli.main(["check", str(tiny_folder), "--skip", "colour"]) == 1
    assert "--skip colour: there is no such section; there are record, " in capsys.readouterr().err


def test_exit_statuses(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for state, status in ((FAIL, 1), (UNSURE, 3), (PASS, 0)):
        monkeypatch.setattr(
            examine, "SECTIONS", {"one": ("One", lambda given, state=state: Section("one", "One", state, "so it is"))}
        )
        assert cli.main(["check", str(tiny_folder)]) == status
    capsys.readouterr()


def test_a_model_behind_the_loopback(tiny_folder: Path) -> None:
    vlm = nd.load(tiny_folder, check=False, remote="local")
    report = examine.examine(vlm, layers=[1], skip=READING)
    assert {s.name: s.state for s in report.sections} == dict.fromkeys(
        ("record", "activations", "pixels", "gradient", "words"), PASS
    )
    assert vlm.remote is not None
