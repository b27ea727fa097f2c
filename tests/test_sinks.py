"""Patches far longer than the others of their picture, and poolings that leave them out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import nnsight_dream as nd
from nnsight_dream.alignment import cosines
from nnsight_dream.engine.pooling import is_attention, reported, sinks
from nnsight_dream.sweeps import sweep

GRID = (3, 4)


def patches(*far: int, pictures: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches (B, 12, 6), some of them a hundred times as long, towards the direction; and directions (B, 6)."""
    generator = torch.Generator().manual_seed(0)
    values, towards = (torch.randn(pictures, n, 6, generator=generator) for n in (12, 1))
    values[:, list(far)] = 100 * towards
    return values, towards[:, 0]


@pytest.mark.parametrize("pooling", [nd.Attention(), nd.Attention(tau=0.005), nd.Mean(), nd.Max()])
def test_without_sinks_is_the_pooling_of_the_rest(pooling: nd.Attention | nd.Mean | nd.Max) -> None:
    values, towards = patches(2, 7)
    kept = [i for i in range(12) if i not in (2, 7)]
    rest = pooling.at_tokens(tuple(kept)) if hasattr(pooling, "at_tokens") else pooling
    expected, expected_weights = rest(values[:, kept], towards, GRID, 0.3)
    found, weights = nd.WithoutSinks(pooling)(values, towards, GRID, 0.3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(weights[:, kept], expected_weights)
    assert not weights[:, [2, 7]].any()
    if not isinstance(pooling, nd.Mean):
        assert not torch.allclose(pooling(values, towards, GRID, 0.3)[0], expected)  # the sinks would have had it


def test_where_there_is_no_sink_nothing_changes() -> None:
    values, towards = patches()
    for pooling in (nd.Attention(), nd.Mean(), nd.Max()):
        for a, b in zip(
            nd.WithoutSinks(pooling)(values, towards, GRID, 1), pooling(values, towards, GRID, 1), strict=True
        ):
            torch.testing.assert_close(a, b)


def test_no_gradient_reaches_a_sink() -> None:
    values, towards = patches(5)
    values.requires_grad_(True)
    pooled, _ = nd.WithoutSinks()(values, towards, GRID, 0.5)
    pooled.square().sum().backward()
    assert not values.grad[:, 5].any()
    assert values.grad[:, 4].any()


def test_what_a_sink_is() -> None:
    values, _ = patches(3, pictures=1)
    assert sinks(values).nonzero().tolist() == [[0, 3]]
    norms = values[0].norm(dim=-1)
    ratio = float(norms[3] / norms.median())
    assert sinks(values, ratio * 0.99).any()
    assert not sinks(values, ratio * 1.01).any()
    assert not sinks(torch.zeros(1, 4, 2)).any()
    half = sinks(values.bfloat16())
    assert torch.equal(half, sinks(values))


def test_at_chosen_tokens() -> None:
    values, towards = patches(1)
    where = (0, 1, 2, 3, 4, 5)
    found, weights = nd.WithoutSinks().at_tokens(where)(values[:, :6], towards, GRID, 0.2)
    kept = [0, 2, 3, 4, 5]
    expected, _ = nd.Attention().at_tokens(tuple(kept))(values[:, kept], towards, GRID, 0.2)
    torch.testing.assert_close(found, expected)
    assert not weights[:, 1].any()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"times=1.*above 1"):
        nd.WithoutSinks(times=1)
    with pytest.raises(ValueError, match=r"a pooling is needed, such as Attention\(\)"):
        nd.WithoutSinks(nd.Mean)
    with pytest.raises(ValueError, match="a pooling is needed"):
        nd.WithoutSinks(0.5)


def test_a_climb_here_and_by_the_loopback(tiny_vlm: nd.VLM) -> None:
    settings = nd.Settings(
        steps=3, batch=1, canvas=nd.Pixels(24), augment=(), pooling=nd.WithoutSinks(nd.Attention(0.1), 1.5)
    )
    aim = nd.concept(tiny_vlm, "bee", 2)
    here = nd.synthesize(tiny_vlm, aim, settings=settings)
    away = dataclasses.replace(
        tiny_vlm, remote=nd.load(tiny_vlm.hf, processor=tiny_vlm.processor, remote="local").remote
    )
    there = nd.synthesize(away, aim, settings=settings)
    assert here.history == there.history
    plain = nd.synthesize(tiny_vlm, aim, settings=settings.but(pooling=nd.Attention(0.1)))
    assert here.history != plain.history
    assert here.settings["pooling"] == {"is": "WithoutSinks", "pooling": {**plain.settings["pooling"]}, "times": 1.5}


def test_finished_pictures_are_scored_without_them_too() -> None:
    own = nd.WithoutSinks(nd.Attention(0.1))
    assert (is_attention(own), is_attention(nd.WithoutSinks(nd.Mean())), is_attention(nd.Max())) == (True, False, False)
    assert reported(own)["attention"] is own
    assert reported(nd.WithoutSinks(nd.Mean()))["attention"] == nd.Attention()


def test_a_sweep_keeps_them_out(tiny_vlm: nd.VLM) -> None:
    own = nd.Settings(pooling=nd.WithoutSinks(nd.Attention(0.1), 7))
    (attention, mean) = (
        sweep._settings(tiny_vlm, nd.jobs_of([("bee", "animal", "bee")], 1, poolings=name)[0], 1, own).pooling
        for name in ("attention", "mean")
    )
    assert (attention, mean) == (own.pooling, nd.WithoutSinks(nd.Mean(), 7))


def test_the_diagnosis_counts_them() -> None:
    moments = cosines._Moments()
    values, _ = patches(2, pictures=3)
    moments.add(values)
    assert moments.summary()["sinks"] == pytest.approx(1 / 12)
