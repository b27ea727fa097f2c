"""The bundled concepts and pictures: complete, labelled, and the same as the lists of the judge."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import nnsight_dream as nd
from nnsight_dream.demo import bundle


@pytest.fixture(scope="module")
def judge() -> nd.DemoJudge:
    return nd.DemoJudge()


def test_import_is_light() -> None:
    code = "import sys; from nnsight_dream import demo; demo.concepts(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_names_are_unique_and_agree_with_the_judge(judge: nd.DemoJudge) -> None:
    concepts = bundle.concepts()
    assert len(concepts) >= 400
    assert len({c.name for c in concepts}) == len(concepts)
    assert tuple(c.name for c in concepts) == judge.names
    assert tuple(c.category for c in concepts) == judge.categories


def test_every_concept_has_its_own_picture() -> None:
    found = bundle.pictures()
    assert [p.name for p in found] == [c.name for c in bundle.concepts()]
    assert {p.image.size for p in found} == {p.mask.size for p in found} == {(64, 64)}
    assert min((np.asarray(p.mask) > 128).mean() for p in found) > 0.02
    assert len({p.image.tobytes() for p in found}) == len(found)


def test_background_shows_only_where_the_mask_is_empty() -> None:
    white, black = (bundle.pictures(["frog"], background=b)[0] for b in (1.0, 0.0))
    mask = np.asarray(white.mask) / 255
    difference = (np.asarray(white.image).astype(float) - np.asarray(black.image)) / 255
    assert np.abs(difference - (1 - mask)[..., None]).max() < 0.02
    assert mask.min() == 0
    assert mask.max() > 0.95


def test_advice_of_errors_works() -> None:
    with pytest.raises(ValueError, match="octopus"):
        bundle.pictures(["octupus"])
    assert bundle.pictures(["octopus"])[0].name == "octopus"
    with pytest.raises(ValueError, match=r"0 \(black\) to 1 \(white\)"):
        bundle.pictures(["octopus"], background=255)


def test_judge_transfers_to_these_pictures(judge: nd.DemoJudge) -> None:
    found = bundle.pictures()
    ranks = torch.tensor([v.rank(p.name) for v, p in zip(judge.judge([p.image for p in found]), found, strict=True)])
    top1, top5 = (ranks == 1).float().mean().item(), (ranks <= 5).float().mean().item()
    assert top1 >= 0.65
    assert top5 >= 0.85
    # the recorded scores are over all held-out art; the bundled sheet has one picture of each concept
    assert top1 >= judge.scores["unseen_1"] - 0.03
    assert top5 >= judge.scores["unseen_5"] - 0.03
