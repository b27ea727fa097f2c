"""The names and types of settings, as single choices that are changed: `synthesize(vlm, d, steps=50)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..directions.pattern import Pattern
    from ..engine.canvas import Native
    from ..engine.optimise import Augmentation, Canvas
    from ..engine.pooling import Pooling, ScoreFunction


class Changes(TypedDict, total=False):
    """Any of the fields of `Settings`, and `quality`, so that a type checker and an editor know them."""

    quality: Literal["draft", "fine"]
    steps: int
    batch: int
    rate: float
    clip: float
    at_once: int
    optimiser: str
    schedule: str
    canvas: Canvas | Native
    augment: Augmentation | Sequence[Augmentation]
    pooling: Pooling
    score: ScoreFunction
    centre: Any
    pattern: Pattern | None
