"""The command line: through `main`, on a random miniature in a folder, and on the bundled data where there are any."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.demo import bundle
from nnsight_dream.synthesis import synthesize


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset that a model other than the bundled one gets, small enough to run here."""
    few = nd.Settings(steps=3, batch=2, canvas=nd.Pixels(24), augment=(nd.Noise(0.1),))
    monkeypatch.setattr(nd.Settings, "normalised", classmethod(lambda cls, size=448: few))


@pytest.fixture
def bundled() -> Path:
    try:
        return bundle.folder()
    except FileNotFoundError:
        pytest.skip("no bundled data: run `make train-demo`")


def failed(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The one line of a command that fails."""
    assert cli.main(list(arguments)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("nnsight-dream: ")
    assert "--debug" not in line  # the message says all
    assert "Traceback" not in line
    return line


def test_synthesize_saves_what_the_library_draws(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, out = str(tiny_folder), tmp_path / "out"
    arguments = ["synthesize", "octopus", "San Francisco", "--model", model, "--layer", "2", "blocks.0.hook_mlp_out"]
    assert cli.main([*arguments, "--seed", "0", "7", "--steps", "2", "--out", str(out), "--json"]) == 0
    printed, errors = capsys.readouterr()
    told = json.loads(printed)
    assert "Traceback" not in errors
    assert told["folder"] == str(out)
    rows = told["prototypes"]
    assert [(r["concept"], r["layer"], r["seed"], r["steps"]) for r in rows] == [
        (word, layer, seed, 2) for word in ("octopus", "San Francisco") for layer in (2, 1) for seed in (0, 7)
    ]
    assert rows[0]["sites"] == ["blocks.1.hook_resid_post", "model.language_model.layers.1.output"]
    assert rows[2]["sites"][0] == "blocks.0.hook_mlp_out"
    saved = {p.name: nd.Prototype.load(p) for p in out.iterdir() if p.is_dir()}
    assert len(saved) == 8
    vlm = nd.load(tiny_folder)
    alone = nd.synthesize(vlm, nd.concept(vlm, "octopus", 2), seed=7, steps=2)
    assert rows[1]["scores"] == pytest.approx(dict(alone.scores), abs=1e-4)
    assert saved["octopus-layer2-seed7"].history == pytest.approx(alone.history, abs=1e-5)


def test_synthesize_shows_what_it_did(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "[bold]a[/bold] [b]"  # not to be taken for markup
    assert cli.main(["synthesize", "bee", "--model", str(tiny_folder), "--layer", "1", "--out", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "bee, layer 1, seed 0: attention" in shown
    assert "▀" not in shown  # a pipe: no blocks of colour, but where the picture is
    assert str(out / "bee-layer1-seed0" / "large.png").replace(" ", "") in shown.replace(" ", "")
    assert "saved 1 picture in" in shown
    assert "[bold]a[/bold] [b]" in shown
    assert nd.Prototype.load(out / "bee-layer1-seed0").settings["steps"] == 3
    assert Image.open(out / "grid.png").size == (128, 144)


def test_a_second_drawing_overwrites_nothing(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    draw = ["synthesize", "bee", "--model", str(tiny_folder), "--layer", "1", "--out", str(tmp_path)]
    (tmp_path / "grid.png").write_bytes(b"the user's own")
    for steps, name, sheet in ((3, "bee-layer1-seed0", "grid-2.png"), (1, "bee-layer1-seed0-2", "grid-3.png")):
        assert cli.main([*draw, "--steps", str(steps)]) == 0
        out, err = capsys.readouterr()
        assert len(nd.Prototype.load(tmp_path / name).history) == steps
        assert sheet in " ".join(out.split()).replace(" ", "")
        assert ("holds another picture, which stays; this one is in" in err) == (steps == 1)
    assert cli.main([*draw, "--steps", "3", "--json"]) == 0  # the same as the first: it has its place
    assert json.loads(capsys.readouterr().out)["prototypes"][0]["folder"] == str(tmp_path / "bee-layer1-seed0")
    assert len(list(tmp_path.iterdir())) == 5
    assert (tmp_path / "grid.png").read_bytes() == b"the user's own"


def test_an_impossible_out_is_said_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.drawing, "load_model", lambda *_, **__: pytest.fail("a model is loaded"))
    (tmp_path / "file").write_text("in the way")
    for command in (["synthesize", "bee"], ["feature", "demo", "3"]):
        assert "file is a file, so" in failed(capsys, *command, "--out", str(tmp_path / "file" / "x"))
        assert "File name too long" in failed(capsys, *command, "--out", str(tmp_path / ("x" * 300)))
        with pytest.raises(SystemExit):
            cli.main([*command, "--out", ""])
        assert "argument --out: a path is needed; for the folder you are in, give ." in capsys.readouterr().err
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000}))
    assert "0.0 MB are free, 2.0 MB are needed" in failed(capsys, "synthesize", "bee", "--out", str(tmp_path / "new"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_inspect_tells_what_the_model_is(tiny_folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["inspect", str(tiny_folder), "--layer", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = {"family": "gemma3", "layers": 4, "width": 32, "image": [112, 112], "grid": [4, 4], "image tokens": 16}
    assert {k: told[k] for k in expected} == expected
    assert (told["model"], told["dtype"], told["device"]) == (str(tiny_folder), "float32", "cpu")
    vlm = nd.load(tiny_folder, check=False)
    assert told["parameters"] == sum(p.numel() for p in vlm.hf.parameters())
    assert told["sites"]["mlp_out"] == vlm.describe("blocks.2.hook_mlp_out")
    assert set(told["sites"]) == set(vlm.family.kinds)
    assert 0 < told["step"]["seconds"] < 60  # a few real steps were timed
    assert cli.main(["inspect", str(tiny_folder)]) == 0
    shown = capsys.readouterr().out
    assert "Gemma3ForConditionalGeneration" in shown
    assert "blocks.0.hook_resid_post" in shown
    assert "4 x 4" in shown


def test_inspect_proves_the_record(tmp_path: Path, tiny_parts: tuple, capsys: pytest.CaptureFixture) -> None:
    hf, processor = tiny_parts
    broken = type(hf)(hf.config)  # as it comes from its configuration: a projector of zeros
    broken.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert "projector of zeros" in failed(capsys, "inspect", str(tmp_path))


def test_errors_are_one_line_and_status_1(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, out = str(tiny_folder), str(tmp_path / "out")
    assert "layers 1 to 4; the nearest is layer=4" in failed(capsys, "inspect", model, "--layer", "9")
    draw = ("synthesize", "bee", "--model", model, "--out", out)
    assert "layers 1 to 4" in failed(capsys, *draw, "--layer", "1", "99")
    assert "did you mean 'blocks.1.hook_mlp_out'" in failed(capsys, *draw, "--layer", "blocks.1.hook_mlp")
    assert "--steps 0: at least 1" in failed(capsys, *draw, "--layer", "1", "--steps", "0")
    assert "seed=" in failed(capsys, *draw, "--layer", "1", "--seed", "-1")
    assert not Path(out).exists()
    failed(capsys, "inspect", str(tmp_path / "none"))
    failed(capsys, "inspect", "someone/nothing-of-this-name")
    assert cli.main([*draw, "--layer", "4", "--steps", "1"]) == 0  # as the messages advise


def test_debug_shows_where(tiny_folder: Path) -> None:
    for arguments in (
        ["--debug", "inspect", str(tiny_folder), "--layer", "9"],
        ["inspect", str(tiny_folder), "--layer", "9", "--debug"],
    ):
        with pytest.raises(ValueError, match="layers 1 to 4"):
            cli.main(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["draw"],
        ["synthesize"],
        ["inspect"],
        ["judge"],
        ["synthesize", "x", "--seed", "one"],
        ["inspect", "x", "--width"],
    ],
)
def test_what_is_not_understood_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: nnsight-dream" in err


def test_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"nnsight-dream {nd.__version__}"


def test_interrupts_are_status_130(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["synthesize", "bee", "--model", str(tiny_folder), "--layer", "1", "--out", str(tmp_path)]
    real = synthesize.synthesize

    def stopped(*args: Any, **kwargs: Any) -> Any:
        def stop(step: int, scores: torch.Tensor) -> None:
            raise KeyboardInterrupt

        return real(*args, **kwargs, progress=stop)

    monkeypatch.setattr(synthesize, "synthesize", stopped)
    assert cli.main(arguments) == 130
    assert nd.Prototype.load(tmp_path / "bee-layer1-seed0").interrupted  # the picture so far is kept
    capsys.readouterr()

    def before(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthesize, "synthesize", before)
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err.strip() == "nnsight-dream: interrupted"


def test_as_a_module_the_status_reaches_the_shell(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "nnsight_dream"]
    failing = subprocess.run([*run, "judge", str(tmp_path / "no.png")], capture_output=True, text=True)
    assert failing.returncode == 1
    assert len(failing.stderr.strip().splitlines()) == 1
    assert "no picture" in failing.stderr
    debug = subprocess.run([*run, "judge", str(tmp_path / "no.png"), "--debug"], capture_output=True, text=True)
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr
    assert subprocess.run([*run, "paint"], capture_output=True).returncode == 2


def test_concepts(bundled: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["concepts", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(r["name"], r["category"], tuple(r["aliases"])) for r in rows} == {
        (c.name, c.category, c.aliases) for c in bundle.concepts()
    }
    assert cli.main(["concepts", "--category", "animal", "--json"]) == 0
    animals = json.loads(capsys.readouterr().out)
    assert animals == [r for r in rows if r["category"] == "animal"]
    assert animals
    assert cli.main(["concepts"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == list(dict.fromkeys(c.category for c in bundle.concepts()))
    assert "squirrel (chipmunk)" in " ".join(lines)
    assert "did you mean 'animal'" in failed(capsys, "concepts", "--category", "animals")


def test_judge(bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (picture,) = bundle.pictures(["sunflower"])
    picture.image.save(tmp_path / "one.png")
    file = str(tmp_path / "one.png")
    assert cli.main(["judge", file, file, "--top", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    (verdict,) = nd.DemoJudge().judge(picture.image)
    assert [r["path"] for r in rows] == [file, file]
    assert list(rows[0]["names"]) == list(verdict.names[:2])
    assert list(rows[0]["names"].values()) == pytest.approx(verdict.probabilities[:2], abs=1e-4)
    assert cli.main(["judge", file, "--category", "animal"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{file}: ")
    assert "sunflower" not in shown
    assert shown.count("%") == 3
    assert "did you mean 'animal'" in failed(capsys, "judge", file, "--category", "animals")
    assert cli.main(["judge", str(tmp_path), "--json"]) == 0
    assert [r["path"] for r in json.loads(capsys.readouterr().out)] == [file]
    (tmp_path / "empty").mkdir()
    assert "no picture in" in failed(capsys, "judge", str(tmp_path / "empty"))
    (tmp_path / "not.png").write_bytes(b"no picture at all")
    assert "not.png" in failed(capsys, "judge", str(tmp_path / "not.png"))


def test_the_demo_from_drawing_to_judging(demo_vlm: nd.VLM, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = str(tmp_path / "out")
    assert cli.main(["synthesize", "frog", "--steps", "1", "--out", out, "--judge", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["prototypes"]
    assert (row["layer"], row["steps"]) == (1, 1)
    assert len(row["judge"]) == 5
    assert row["folder"] == str(tmp_path / "out" / "frog-layer1-seed0")
    assert all(Path(row[name]).is_file() for name in ("picture", "large", "heat"))
    assert cli.main(["judge", str(tmp_path / "out" / "frog-layer1-seed0"), "--top", "5", "--json"]) == 0
    (again,) = json.loads(capsys.readouterr().out)
    assert again["names"] == pytest.approx(row["judge"], abs=1e-4)
    assert cli.main(["judge", out, "--top", "5", "--json"]) == 0  # the folder that --out wrote
    assert json.loads(capsys.readouterr().out) == [again]


@pytest.mark.parametrize(
    ("given", "words", "layers", "seeds"),
    [
        (["--layer", "2", "octopus"], ["octopus"], [2], [0]),
        (["octopus", "--layer", "2", "fox"], ["octopus", "fox"], [2], [0]),
        (["--seed", "3", "7", "octopus", "--layer", "1", "blocks.1.hook_mlp_out"], ["octopus"], [1, 2], [3, 7]),
        (["--layer", "1,2", "sea star", "--seed", "3,7"], ["sea star"], [1, 2], [3, 7]),
    ],
)
def test_options_stand_before_between_and_behind_the_words(
    given: list[str], words: list[str], layers: list[int], seeds: list[int], tiny_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    run = ["synthesize", *given, "--model", str(tiny_folder), "--steps", "1", "--json", "--out", str(tmp_path)]
    assert cli.main(run) == 0
    rows = json.loads(capsys.readouterr().out)["prototypes"]
    assert [(r["concept"], r["layer"], r["seed"]) for r in rows] == [
        (word, layer, seed) for word in words for layer in layers for seed in seeds
    ]


def test_a_slip_of_the_pen_is_said_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> Any:
        assert "never shown 'octopsu'; did you mean 'octopus'?" in capsys.readouterr().err
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.drawing, "load_model", loaded)
    assert cli.main(["synthesize", "octopsu"]) == 130


def test_a_sweep_and_its_report(demo_vlm: nd.VLM, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    store, page = str(tmp_path / "store"), tmp_path / "page.html"
    run = ["sweep", "fox", "owl", "--layer", "1", "4", "--steps", "1", "--out", store]
    assert cli.main([*run, "--judge", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["made"], told["found"], told["failed"]) == (4, 0, {})
    assert {(r["concept"], r["layer"]) for r in told["pictures"]} == {(w, k) for w in ("fox", "owl") for k in (1, 4)}
    assert all(Path(r["picture"]).is_file() for r in told["pictures"])
    assert [(r["layer"], r["pictures"]) for r in told["rates"]] == [(1, 2), (4, 2)]
    assert cli.main(run) == 0
    out = capsys.readouterr().out
    assert "0 made, 4 there before" in out
    assert f"nnsight-dream report {store}" in out
    assert cli.main(["report", store, "--out", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert "fox" in page.read_text(encoding="utf-8")
    assert cli.main(["report", store, "--raters", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert Path(made["page"]) == Path(store) / "raters.html"
    assert "is no store" in failed(capsys, "report", str(tmp_path))
    assert "did you mean 'animal'" in failed(capsys, "sweep", "--category", "animals")
    assert "draw what?" in failed(capsys, "sweep")
    assert "it has layers 1 to 8" in failed(capsys, "sweep", "fox", "--layer", "99", "--out", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    assert "the autoencoder goes first: nnsight-dream feature demo 615" in failed(capsys, "feature", "615", "demo")


def test_features_are_listed_with_words(demo_vlm: nd.VLM, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["features", "--word", "Christmas", "--top", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert "Christmas" in rows[0]["fires_for"]
    assert list(rows[0]["fires_for"].values()) == sorted(rows[0]["fires_for"].values(), reverse=True)
    assert rows[0]["fires_for"]["Christmas"] == pytest.approx(rows[0]["word"], rel=1e-3)
    assert cli.main(["features", "--word", "Christmas", "--top", "2"]) == 0
    assert "fires for" in capsys.readouterr().out.splitlines()[0]


def test_what_is_unforeseen_says_how_to_see_where(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("weight")

    monkeypatch.setattr(cli.drawing, "load_model", broken)
    assert cli.main(["synthesize", "fox"]) == 1
    assert capsys.readouterr().err == "nnsight-dream: KeyError: 'weight' (--debug shows where)\n"
