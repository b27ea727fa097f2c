"""What NDIF does with a key that it does not trust, by NDIF's own sandbox; skipped where ndif is not installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import sandbox
import torch

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.engine import jobs as shipped_jobs
from nnsight_dream.models.place import Remote
from nnsight_dream.remote import run
from nnsight_dream.synthesis.prepared import prepare

if importlib.util.find_spec("ndif.services") is None:  # a folder of these tests is called ndif too
    pytest.skip(
        "ndif is not installed: it asks for Python 3.12 (pip install --no-deps ndif==0.1.2 does for this test)",
        allow_module_level=True,
    )


@pytest.fixture(scope="module")
def held() -> tuple[Any, nd.VLM]:
    """The model as a server holds it, and a VLM whose jobs are made as for a server."""
    from nnsight.modeling.transformers import TransformersModel
    from transformers import AutoProcessor

    place = str(bundle.folder() / "vlm")
    processor = AutoProcessor.from_pretrained(place)
    model = TransformersModel(place, task="image-text-to-text", processor=processor, dispatch=True)
    model._module.requires_grad_(False)
    vlm = nd.load(model, check=False)
    vlm.remote = Remote("http://ndif.example")
    return model, vlm


def test_concept_vectors_need_no_gradient(held: tuple[Any, nd.VLM], demo_vlm: nd.VLM) -> None:
    model, vlm = held
    words = ["fox", "bee"]
    (mine,) = nd.concept(vlm, words, layer=[4], baseline=["cat", "dog"])[0]
    found = sandbox.run(model, run.payload(vlm, shipped_jobs.vectors, mine.request.given()))  # type: ignore[attr-defined]
    wanted = nd.concept(demo_vlm, words, layer=4, baseline=["cat", "dog"])
    for row, direction in zip(found["rows"][0], wanted, strict=True):
        assert (row - direction.vector).abs().max() < 1e-5


def test_a_climb_is_refused_in_words(held: tuple[Any, nd.VLM]) -> None:
    model, vlm = held
    few = nd.Settings.demo().but(steps=2, batch=1, centre=torch.zeros(vlm.width))
    aim = nd.from_tensor(vlm, torch.linspace(-1, 1, vlm.width), 2)
    (ascent,) = prepare(vlm, [(aim, 0)], few)
    with pytest.raises(Exception, match=r"step 0: no gradient reaches the picture.*http://ndif.example.*'trusted' tag"):
        sandbox.run(model, run.payload(vlm, shipped_jobs.ascent, ascent.piece()))
