"""The bundled judge, pictures and list of concepts, and the command line on them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.demo import bundle


@pytest.fixture(scope="module")
def judge():
    return nd.DemoJudge()


def test_judge_knows_art_it_never_saw(judge):
    pictures = bundle.pictures()
    verdicts = judge.judge([p.image for p in pictures])
    first = sum(v.top == p.name for v, p in zip(verdicts, pictures, strict=True)) / len(pictures)
    five = sum(p.name in v.names[:5] for v, p in zip(verdicts, pictures, strict=True)) / len(pictures)
    assert first >= 0.65
    assert five >= 0.85


def test_hint_is_strict_renormalised(judge):
    (picture,) = bundle.pictures(["octopus"])
    strict = judge.judge(picture.image)[0]
    hint = judge.judge(picture.image, category="animal")[0]
    share = dict(zip(strict.names, strict.probabilities, strict=True))
    total = sum(share[n] for n in hint.names)
    assert len(hint.names) == sum(c.category == "animal" for c in bundle.concepts())
    for name, p in zip(hint.names[:10], hint.probabilities[:10], strict=True):
        assert p == pytest.approx(share[name] / total, abs=1e-4)
    assert sum(strict.probabilities) == pytest.approx(1, abs=1e-4)


def test_batch_equals_single(judge):
    images = [p.image for p in bundle.pictures(["frog", "rocket", "pizza"])]
    torch.testing.assert_close(judge.logits(images), torch.cat([judge.logits(i) for i in images]), atol=1e-4, rtol=1e-4)


def test_names_agree(judge):
    assert list(judge.names) == [c.name for c in bundle.concepts()]
    assert len(judge.names) >= 400


def test_errors_name_the_nearest(judge):
    with pytest.raises(ValueError, match="did you mean 'animal'"):
        judge.judge(bundle.pictures(["frog"])[0].image, category="animals")
    with pytest.raises(ValueError, match="octopus"):
        bundle.pictures(["octopuss"])


def test_import_is_light():
    code = "import sys, nnsight_dream; print([m for m in ('torch', 'transformers', 'nnsight') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    for name in nd.__all__:
        assert getattr(nd, name) is not None


def test_command_line(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["synthesize", "frog", "--layer", "2", "--steps", "2", "--out", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prototypes"][0]["steps"] == 2
    saved = next((tmp_path / "out").glob("frog*"))
    assert cli.main(["judge", str(saved), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["names"]) == 3
    assert cli.main(["concepts", "--category", "animal"]) == 0
    assert "octopus" in capsys.readouterr().out
    assert cli.main(["synthesize", "frog", "--layer", "99", "--out", out]) == 1
    told = capsys.readouterr().err
    assert "layers 1 to 8" in told
    assert len(told.strip().splitlines()) == 1
    with pytest.raises(SystemExit) as stop:
        cli.main(["nonsense"])
    assert stop.value.code == 2
