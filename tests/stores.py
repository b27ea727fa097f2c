"""Stores for tests of judges: one plainly coloured picture for each concept, no model needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from test_prototype import prototype

from nnsight_dream.sweeps.jobs import Job
from nnsight_dream.sweeps.store import Store

COLOURS = {
    "octopus": (200, 40, 40),
    "frog": (40, 200, 40),
    "bee": (220, 210, 30),
    "dog": (120, 80, 40),
    "squirrel": (40, 40, 200),
    "spring (season)": (200, 40, 200),
    "winter": (230, 240, 250),
}


def jobs(names: Iterable[str] = ("octopus", "frog", "bee"), category: str = "animal", layer: int = 1) -> list[Job]:
    return [Job(name, category, layer) for name in names]


def filled(folder: Path, wanted: Iterable[Job]) -> Store:
    """A store in which these jobs are finished; each picture's colour tells its concept."""
    store = Store(folder)
    for job in wanted:
        image = Image.new("RGB", (24, 24), COLOURS[job.concept])
        store.put(job.key(), job, prototype(job.concept, image=image))
    return store


def concept_of(image: Image.Image) -> str:
    """The concept that a picture's colour stands for."""
    seen = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], seen, strict=True)))
