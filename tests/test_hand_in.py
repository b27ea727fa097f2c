"""docs/hand-in.md: every line of code in its tables runs, in order, and gives what the table says."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import nnsight
import numpy
import pytest
import saes
import torch
from bridges import boot, native
from test_in_hand import adapted, dispatched, pipeline

import nnsight_dream as nd
from nnsight_dream.demo import bundle

PAGE = Path(__file__).parents[1] / "docs" / "hand-in.md"


def lines() -> list[str]:
    """Lines of code in the second column of the page's tables."""
    rows = [row.split(" | ", 1)[1] for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    return [line for row in rows for line in re.findall(r"`([^`]+)`", row)]


def test_every_line_of_the_page_runs(demo_vlm: nd.VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import circuitsvis
    import plotly.express
    from sklearn.linear_model import LogisticRegression

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", lambda model, compiler=torch.compile: compiler(model, backend="eager"))
    hf, processor, width = demo_vlm.hf, demo_vlm.processor, demo_vlm.width
    random = numpy.random.default_rng(0)
    space: dict[str, Any] = {
        "nd": nd, "torch": torch, "numpy": numpy, "plotly": plotly, "circuitsvis": circuitsvis,
        "hf": hf, "processor": processor, "folder": bundle.folder() / "vlm",
        "model": nnsight.TransformersModel(hf, processor=processor, task="image-text-to-text"),
        "bridge": native(boot(hf, processor, "sae")), "tuned": adapted(copy.deepcopy(hf)), "pipe": pipeline(hf, processor),
        "spread": dispatched(copy.deepcopy(hf)), "picture": bundle.pictures(["fox"])[0].image,
        "vector": torch.ones(width), "tokens": torch.arange(10, 17)[None],
        "layer": hf.get_submodule("model.language_model.layers.3"),
        "classifier": LogisticRegression().fit(random.normal(size=(9, width)), ["cat", "dog", "bus"] * 3),
        "sae": saes.build("standard", hook="blocks.3.hook_resid_post", hf_hook=None, model=None, d_in=width),
        "W_enc": torch.ones(width, 1),
    }  # fmt: skip
    for name in ("hf", "tuned", "spread"):
        monkeypatch.setattr(space[name], "name_or_path", "demo")
    found = lines()
    loads = [line for line in found if line.startswith("vlm = ")]
    assert len(loads) == 8
    assert len(found) == 30
    seen: list[torch.Tensor] = []
    for line in found:
        if line.startswith("vector = "):  # between the tables
            space["vlm"] = demo_vlm
            space["octopus"] = nd.concept(demo_vlm, "octopus", layer=4)
            climb = {"settings": nd.Settings.demo(), "steps": 2, "centre": nd.Grey(), "progress": False}
            space["prototype"] = nd.synthesize(demo_vlm, space["octopus"], **climb)
            space["patches"] = None
        exec(line.replace("nd.load(", "nd.load(check=False, x="), space)
        if line in loads:
            ids = torch.arange(10, 17)[None]
            seen.append(nd.read_text(space["vlm"], ids, torch.ones_like(ids), [4])[nd.Site(4)])
            torch.testing.assert_close(seen[-1], seen[0], atol=1e-4, rtol=1e-4)
            if line != loads[-1]:
                continue
            space["vlm"] = demo_vlm
    space["handle"].remove()
    assert space["mine"].site == space["cat"].site == space["octopus"].site == space["feature"].site(demo_vlm)
    assert space["cache"]["blocks.3.hook_out"].shape[-1] == width
    assert space["acts"].shape == (64, space["sae"].cfg.d_sae)
    assert space["pixels"].shape == (32, 32, 3)
    assert nd.Direction.load(tmp_path / "octopus.safetensors").vector.equal(space["octopus"].vector)
    assert (tmp_path / "octopus.gguf").stat().st_size > 4 * width
    assert len(space["steered"]._edits) == 1
