"""A section of a checkup, and the report that they make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

PASS, FAIL, UNSURE = "pass", "fail", "unsure"

#: The command's exit status by the worst state of its sections; 2 is for arguments that are not understood.
STATUS = {PASS: 0, FAIL: 1, UNSURE: 3}


@dataclass
class Section:
    """One question about a model and its answer.

    name, title   as `--skip` takes it, and in words
    state     "pass", "fail" or "unsure"
    finding   what was found, in a sentence or two; `advice` what to do, where it did not pass
    rows      a table: dicts with the same keys, of plain values
    curves    lines by layer for a figure: name to values, each as long as the rows, whose "layer" is the x axis
    notes     warnings that came up meanwhile
    seconds   how long it took
    pictures  drawn pictures, each with its record; they go on the page, and not into JSON
    """

    name: str
    title: str
    state: str
    finding: str
    advice: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    pictures: list[tuple[Image.Image, dict[str, Any]]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it but the pictures as plain values for JSON; of pictures their records."""
        return {
            "name": self.name,
            "title": self.title,
            "state": self.state,
            "finding": self.finding,
            "advice": self.advice,
            "rows": plain(self.rows),
            "curves": plain(self.curves),
            "notes": list(self.notes),
            "seconds": round(self.seconds, 2),
            "pictures": [plain(record) for _, record in self.pictures],
        }


@dataclass
class Report:
    """What was found out about a model: `facts` about it and the machine, and the sections in their order."""

    facts: Mapping[str, Any]
    sections: Sequence[Section]
    quick: bool = False
    interrupted: bool = False

    @property
    def state(self) -> str:
        """The worst of the sections': "fail" before "unsure" before "pass"; "unsure" where it was interrupted."""
        states = {section.state for section in self.sections}
        if FAIL in states:
            return FAIL
        return UNSURE if UNSURE in states or self.interrupted or not states else PASS

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return {
            "state": self.state,
            "quick": self.quick,
            "interrupted": self.interrupted,
            "facts": plain(dict(self.facts)),
            "sections": [section.to_dict() for section in self.sections],
        }


def plain(value: Any) -> Any:
    """Plain values as JSON takes them: numbers with five digits, None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
