"""The section that draws: words at a few layers, and random directions among them, for a person to name unseen."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch

from ..directions.sources import from_tensor
from ..directions.text import concept
from ..synthesis.settings import Settings, choose
from ..synthesis.synthesize import synthesize
from .section import FAIL, PASS, UNSURE, Section

if TYPE_CHECKING:
    from ..directions.direction import Direction
    from ..models.vlm import VLM
    from .material import Material

NOTHING = "none"

TITLE = "Drawings, and a sheet to name them unseen"


def drawings(given: Material) -> Section:
    """Words drawn at each of the layers, a random direction for every ten of them, shuffled for the blind sheet."""
    vlm = given.vlm
    if not vlm.passes_gradient:
        text = "Nothing is drawn: no gradient passes through the model's choice of words"
        return Section("drawings", TITLE, UNSURE, text, "Load it with straight_through=1.0")
    pictures: list[tuple[Any, dict[str, Any]]] = []
    layers = given.layers[:1] if given.quick else given.layers
    for layer in layers:
        settings = fine(vlm, layer, given.quick)
        aims: list[Direction] = concept(vlm, list(given.words), layer)
        aims += [_random(vlm, aims[0], seed) for seed in range(max(1, len(aims) // 10))]
        prototypes: Any = synthesize(vlm, aims, settings=settings, progress=False)
        for aim, drawn in zip(aims, prototypes, strict=True):
            score, history = drawn.scores["attention"], drawn.history
            word = NOTHING if aim.label == "random" else aim.label
            few = max(1, len(history) // 4)  # steps' views differ
            rose = sum(history[-few:]) / few - sum(history[:few]) / few
            record = {"word": word, "layer": layer, "cosine": score, "rose": rose, "steps": len(history)}
            pictures.append((drawn.image, record))
    random.Random(0).shuffle(pictures)
    for number, (_, record) in enumerate(pictures, 1):
        record["number"] = number
    return _section(pictures, layers)


def fine(vlm: VLM, layer: int, quick: bool) -> Settings:
    """Settings of fine pictures: the model's own for a layer, in the bundled model's case in `fine` quality."""
    settings = choose(vlm, layer)
    if quick:
        return settings if vlm.is_demo else settings.but(steps=40, batch=1)
    return settings.but(quality="fine") if vlm.is_demo else settings


def _random(vlm: VLM, like: Direction, seed: int) -> Direction:
    """A direction as long as another, in which nothing is meant."""
    values = torch.randn(like.vector.shape, generator=torch.Generator().manual_seed(1000 + seed))
    return from_tensor(vlm, values / values.norm() * like.norm, like.site, label="random")


def _section(pictures: list[tuple[Any, dict[str, Any]]], layers: tuple[int, ...]) -> Section:
    """The section of these pictures."""
    records = [r for _, r in pictures]
    fell = [r for r in records if not r["rose"] > 0]
    rows = []
    for layer in layers:
        own = [r for r in records if r["layer"] == layer]
        mean = {
            kind: [r["cosine"] for r in own if (r["word"] == NOTHING) == (kind == "random")]
            for kind in ("words", "random")
        }
        rows.append({"layer": layer} | {f"cosine, {kind}": sum(values) / len(values) for kind, values in mean.items()})
    text = (
        f"{len(records)} pictures climbed, {sum(r['word'] == NOTHING for r in records)} of them to random directions; "
        f"the cosine rose by {sum(r['rose'] for r in records) / len(records):.2f} on average"
    )
    advice = (
        "Whether they show anything only a person can say: name them on the page's sheet before you look at the key"
    )
    if fell:
        advice = "A climb that does not rise has a wrong gradient or rate: see Gradient and Numbers above"
        named = ", ".join(f"{r['word']} at layer {r['layer']}" for r in fell[:4])
        state = FAIL if len(fell) > len(records) / 4 else UNSURE
        return Section("drawings", TITLE, state, f"{text}; {len(fell)} did not rise: {named}", advice, rows,
                       pictures=pictures)  # fmt: skip
    return Section("drawings", TITLE, PASS, text, advice, rows, pictures=pictures)
