"""One self-contained HTML page of a checkup, to look at and to send."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

from PIL import Image

from ..arguments import text
from ..io.files import check_file
from ..report.pages import filled, template, written
from .section import Report

PIXELS = 160  # most pixels a side of a drawn picture on the page


def page(report: Report, path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Write a report as one HTML file that loads nothing and holds all it shows, the blind sheet with it.

    Raises OSError where it cannot be written.
    """
    place = check_file(path)
    named = text(title, "title") if title else f"nnsight-dream check: {report.facts['model']}"
    data = report.to_dict()
    for section_data, section in zip(data["sections"], report.sections, strict=True):
        section_data["pictures"] = [record | {"src": _embedded(image)} for (image, _), record in
                            zip(section.pictures, section_data["pictures"], strict=True)]  # fmt: skip
    return written(place, filled(template("check"), data=data, title=named))


def _embedded(image: Image.Image) -> str:
    """A picture as the address that holds it."""
    small = image.convert("RGB")
    if max(small.size) > PIXELS:
        small.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def lines(report: Report) -> list[str]:
    """A report as text: a line for each section, and beneath it what to do and what was warned of."""
    rows = [f"{report.facts['model']} ({report.facts['family']}, {report.facts['dtype']}, {report.facts['where']})"]
    for section in report.sections:
        rows.append(f"{section.state:<7} {section.title}: {section.finding}")
        if section.advice:
            rows.append(f"        -> {section.advice}")
        rows += [f"        note: {note}" for note in section.notes[:2]]
    states = [section.state for section in report.sections]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("pass", "fail", "unsure") if s in states)
    ended = "; interrupted before its end" if report.interrupted else ""
    rows.append(f"{counts} in {report.facts['seconds']} s{ended}")
    return rows
