"""Sections on layers: where words lie by their pictures, and tokens that hold no picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..alignment.cosines import NOISE, diagnosis, similarities, white_noise
from ..demo import bundle
from ..directions.centres import Grey
from .material import WORDS
from .section import PASS, UNSURE, Section

if TYPE_CHECKING:
    from .material import Material


def alignment(given: Material) -> Section:
    """Apples and oranges: at which layers words lie closer to their own pictures, with both centres."""
    rows = _diagnosed(given)
    works = [row["layer"] for row in rows if row["works"] or row["works_grey"]]
    every = {row["layer"]: max(row["auc"], row["auc_grey"]) for row in rows}
    best = max(every, key=lambda layer: every[layer])
    count = len(_pictures(given))
    text = (
        f"{len(works)} of {given.vlm.layers} layers tell {count} words apart by pictures (p < 0.01 over all of them, "
        f"and pictures before noise): {_ranges(works)}; best is layer {best}, where a right pair wins {every[best]:.0%}"
    )
    advice = f"Draw at layer {', '.join(map(str, works[:1]))} first; others are likely to give pictures of nothing"
    curves = {name: [row[name] for row in rows] for name in ("auc", "auc_grey")}
    if len(works) == given.vlm.layers:
        return Section("layers", "Words and pictures by layer", PASS, text, "", rows, curves)
    if works:
        return Section("layers", "Words and pictures by layer", PASS, text, advice, rows, curves)
    text = (
        f"No layer tells {count} words apart by the bundled pictures (p < 0.01): best layer {best}, {every[best]:.0%}"
    )
    advice = (
        "The bundled pictures are drawings of 64 pixels: look with photographs, "
        "`python recipes/apples_and_oranges.py --model ... --pictures FOLDER`, before taking this model for one that "
        "cannot be drawn. A model of random weights gives this too"
    )
    return Section("layers", "Words and pictures by layer", UNSURE, text, advice, rows, curves)


def _ranges(numbers: list[int]) -> str:
    """`1 to 4, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"


def _pictures(material: Material) -> dict[str, list[Any]]:
    """Bundled pictures of as many things as can be read in time, those that are drawn among them."""
    names = [c.name for c in bundle.concepts()]
    count = material.how_many(24, 240 if not material.quick else 48)
    few = names[:: -(-len(names) // count)]
    return material.images(dict.fromkeys([*WORDS, *few]))


def _diagnosed(material: Material) -> list[dict[str, Any]]:
    """Rows of `alignment.cosines.diagnosis`, centred by the pictures' mean, with what differs by the grey centre."""
    pictures: dict[str, Any] = dict(_pictures(material))
    words = list(pictures)
    pictures[NOISE] = white_noise(8 if material.quick else 32, material.vlm.image_size[0])
    draws, rows = max(1000, 250 * material.vlm.layers), []
    middles = (material.centre, Grey())
    of_mean, of_grey = (
        diagnosis(similarities(material.vlm, pictures, words=words, middle=middle), draws=draws) for middle in middles
    )
    kept = (
        "layer",
        "matching",
        "mismatching",
        "auc",
        "noise_auc",
        "p",
        "common",
        "outliers",
        "largest",
        "sinks",
        "works",
    )
    for row, other in zip(of_mean, of_grey, strict=True):
        grey = {f"{name}_grey": other[name] for name in ("auc", "p", "common", "works")}
        values = {name: row[name] for name in kept} | grey
        # of so many layers and two centres one would pass by chance (Bonferroni)
        sure = [result["works"] and result["p"] * 2 * material.vlm.layers < 0.01 for result in (row, other)]
        rows.append(values | {"works": sure[0], "works_grey": sure[1]})
    return rows
