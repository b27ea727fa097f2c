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
