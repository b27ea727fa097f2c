"""The command on consoles of all kinds: narrow encodings, readers that go away, texts that are none. Fresh processes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.cli import output
from nnsight_dream.demo import bundle

ROOT = Path(nd.__file__).parents[1]
MAIN = "import sys; from nnsight_dream.cli import main; sys.exit(main(sys.argv[1:]))"


def run(*arguments: str | bytes, code: str = MAIN, **environment: str) -> subprocess.CompletedProcess[bytes]:
    given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, env={**os.environ, **given})


def test_a_picture_is_drawn_and_shown_in_any_encoding(tmp_path: Path) -> None:
    draw = ("synthesize", "\N{OCTOPUS}", "--steps", "1", "--layer", "1", "--out", str(tmp_path))
    done = run(*draw, TERM="dumb", NO_COLOR="1", COLUMNS="20", PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode("cp1252")
    assert r"\U0001f419" in text
    assert "saved 1" in text
    assert "2580" not in text  # no picture of escapes
    assert (tmp_path / "grid.png").is_file()


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the second is what LC_ALL=C gives
def test_texts_and_documents_are_written_in_ascii_too(errors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", errors=errors)
    monkeypatch.setattr(sys, "stdout", out)
    with output.printable(sys.stdout):
        output.print_json({"concept": "\N{OCTOPUS} \udcff"})
        print("\N{OCTOPUS} \udcff")
    assert out.errors == errors  # as it was
    out.flush()
    document, text = raw.getvalue().decode("ascii").rsplit("}", 1)
    assert json.loads(document + "}") == {"concept": "\N{OCTOPUS} \udcff"}
    assert text.strip() == r"\U0001f419 \udcff"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert cli.main(["concepts"]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_reader_that_goes_away_and_bytes_that_are_no_text() -> None:
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    for arguments in (["concepts"], ["concepts", "--json"]):
        process = subprocess.Popen([sys.executable, "-c", MAIN, *arguments], **quiet)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
    done = run("synthesize", b"a\xff")
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert "character 1 is half a character" in line


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        (["synthesize", "octopsu", "--strict"], 1, "never shown 'octopsu'; did you mean 'octopus'"),
        (["feature", "nosuch", "3"], 1, "no autoencoder 'nosuch'"),
        (["feature", "nosuch", "x", "3"], 1, "no autoencoder 'nosuch'"),
        (["synthesize", "--layer", "4"], 2, "required: WORD"),
        (["synthesize", "fox", "--layer", "\N{SUPERSCRIPT TWO}"], 1, "is not understood"),
        (["synthesize", "", "fox"], 1, "says nothing"),
        (["synthesize", "fox", "--steps", "-5"], 1, "--steps -5: at least 1"),
        (["synthesize", "fox", "--steps-per-job", "0"], 1, "--steps-per-job 0: at least 1"),
        (["synthesize", "fox", "--seed", "9" * 30], 1, "--seed=9+: a whole number from 0 to 2"),
        (["synthesize", "fox", "--model", " "], 1, "name is empty"),
        (["synthesize", "fox", "--steps", "2.5"], 2, "invalid int value: '2.5'"),
        (["synthesize", "-x"], 2, "goes behind --"),
        (["synthesize", "fox", "-x"], 2, "goes behind --"),
        (["feature", "demo", "\N{SUPERSCRIPT TWO}"], 1, "numbers?"),
        (["features", "--word", "fox", "--top", "0"], 1, "--top=0: a whole number of at least 1"),
        (["judge", "x.png", "--top", "-1"], 1, "--top=-1: a whole number of at least 1"),
        (["inspect", "demo", "--batch", "0"], 1, "--batch=0: a whole number of at least 1"),
        (["concepts", "--category", "x" * 14_000], 1, "no category 'x+ ... .*There are animal"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_slips_are_answered_in_few_words(
    given: list[str], status: int, words: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    try:
        found = cli.main(given)
    except SystemExit as stop:
        found = stop.code
    out, err = capsys.readouterr()
    assert (found, out) == (status, "")
    assert len(err.splitlines()) <= 2
    assert len(err) < 1200

    assert re.search(words, err), err


def test_what_is_given_twice_is_drawn_once(capsys: pytest.CaptureFixture) -> None:
    assert output.distinct(["fox", "owl", "fox"], "the concept") == ["fox", "owl"]
    assert capsys.readouterr().err == "nnsight-dream: note: the concept 'fox' is given twice and drawn once\n"
    assert output.distinct([4, 1], "layer") == [4, 1]
    assert capsys.readouterr().err == ""


def test_qualities_are_those_of_settings() -> None:
    """`--quality` offers what `Settings.but(quality=...)` takes."""
    from nnsight_dream.cli.options import Thoroughness
    from nnsight_dream.synthesis.settings import QUALITIES

    assert [way.value for way in Thoroughness] == list(QUALITIES)


def test_quality_is_drawn_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of a quality, unless steps are given too."""
    from nnsight_dream.synthesis.settings import QUALITIES

    monkeypatch.setitem(QUALITIES, "draft", {"steps": 2, "batch": 1})
    for name, more, steps in (("a", [], 2), ("b", ["--steps", "1"], 1)):
        assert cli.main(["synthesize", "fox", "--quality", "draft", *more, "--out", str(tmp_path / name)]) == 0
        (story,) = (tmp_path / name).rglob("*.json")
        assert len(json.loads(story.read_text())["history"]) == steps


class Terminal(io.StringIO):
    """What prints to it takes it for a terminal; `lines` is what a person sees, the states of bars one by one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue()))


WIDE = [
    ["--help"],
    *([command, "--help"] for command in ("synthesize", "features", "sweep", "check", "atlas")),
    ["concepts"],
    ["inspect", "demo"],
    ["inspect", "TINY", "--layer", "2", "--config-only"],
    ["features", "--word", "octopsu", "Christmas", "--top", "6"],
    ["synthesize", "San Francisco", "octopsu", "--layer", "1", "4", "--steps", "1", "--judge"],
    ["feature", "demo", "615", "--steps", "1"],
    ["judge", "shown"],
    ["sweep", "fox", "owl", "--layer", "1", "4", "--steps", "1", "--controls", "1", "--judge"],
    [
        "check",
        "demo",
        "--quick",
        "--skip",
        "activations",
        "gradient",
        "numerics",
        "layers",
        "sinks",
        "cost",
        "drawings",
    ],
    ["inspect", "someone/nothing-of-this-name"],
]


@pytest.mark.parametrize("arguments", WIDE, ids=lambda arguments: "-".join(arguments[:2]))
def test_no_line_on_a_terminal_is_wider_than_it(
    arguments: list[str], demo_vlm: nd.VLM, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    if arguments[0] == "judge":
        (tmp_path / "shown").mkdir()
        for name in ("a-picture-with-quite-a-long-name-that-leaves-little-room", "b"):
            bundle.pictures(["fox"])[0].image.save(tmp_path / "shown" / f"{name}.png")
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    try:
        status = cli.main([str(tiny_folder) if word == "TINY" else word for word in arguments])
    except SystemExit as done:
        status = done.code
    monkeypatch.undo()
    assert status == (arguments[-1] == "someone/nothing-of-this-name"), err.getvalue()
    assert [line for line in [*out.lines, *err.lines] if len(line) > 80] == []
    assert len("".join(out.lines + err.lines)) > 100
