"""OpenMoji drawn again with other outlines, so that the judge does not lean on black contours no other emoji style has.

A fifth of the concepts exist on the judge's side in OpenMoji alone; without this it would know them by their line work.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from . import art

BLACK = re.compile(r'stroke="(?:#000(?:000)?|black)"')
WIDTH = re.compile(r'stroke-width="([\d.]+)"')
FILL = re.compile(r'fill="#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})"')
KEEP = 0.8  # a drawing without outlines counts if this much of its area is left


def _thinner(body: str, factor: float) -> str:
    return WIDTH.sub(lambda m: f'stroke-width="{float(m[1]) * factor:.2f}"', body)


def _dark(body: str, factor: float = 0.55) -> str:
    """The commonest fill that is not nearly white or black, darkened; black if there is none."""
    fills = ["".join(2 * c for c in f) if len(f) == 3 else f for f in FILL.findall(body)]
    colours = [tuple(int(f[i : i + 2], 16) for i in (0, 2, 4)) for f in fills]
    colours = [c for c in colours if max(c) > 60 and min(c) < 225]
    if not colours:
        return "#000"
    return "#" + "".join(f"{round(v * factor):02x}" for v in Counter(colours).most_common(1)[0][0])


def redrawings(body: str) -> list[str]:
    """SVG bodies of the same drawing: thin black lines, thin lines in a darker fill colour, no lines."""
    if not BLACK.search(body):
        return []
    return [
        _thinner(body, 0.45),
        BLACK.sub(f'stroke="{_dark(body)}"', _thinner(body, 0.8)),
        BLACK.sub('stroke="none"', body),
    ]


def render(npm: Path) -> tuple[np.ndarray, np.ndarray]:
    """Redrawn pictures uint8 (n, SIZE, SIZE, 4) and their concept ids."""
    record = art.STYLES["openmoji"]
    package = npm / f"{record.package.replace('/', '+')}@{record.version}"
    icons = json.loads((package / "icons.json").read_text(encoding="utf-8"))
    chars = json.loads((package / "chars.json").read_text(encoding="utf-8"))
    chars = {**{k.replace("-fe0f", ""): v for k, v in chars.items()}, **chars}
    pictures, labels = [], []
    for c, concept in enumerate(art.concepts()):
        for name in (chars[art.code(e)] for e in concept.emoji if art.code(e) in chars):
            if name not in icons["icons"]:
                continue
            whole = art._render("openmoji", package, "", [name], icons)[0]
            for body in redrawings(icons["icons"][name]["body"]):
                changed = {**icons, "icons": {name: {**icons["icons"][name], "body": body}}}
                try:
                    picture = art._render("openmoji", package, "", [name], changed)[0]
                except ValueError:  # nothing but outlines
                    continue
                if (picture[..., 3] > 8).sum() >= KEEP * (whole[..., 3] > 8).sum():
                    pictures.append(picture)
                    labels.append(c)
    return np.stack(pictures), np.array(labels)
