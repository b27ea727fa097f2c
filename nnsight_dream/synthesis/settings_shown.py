"""Settings as what differs from a preset, for notebooks."""

from __future__ import annotations

import dataclasses
import html
from typing import TYPE_CHECKING, Any

from .digests import digest

if TYPE_CHECKING:
    from .settings import Settings


def difference(settings: Settings, presets: dict[str, Settings]) -> tuple[str, dict[str, Any]]:
    """The preset that settings are nearest to, and the choices that differ from it."""
    differences = {name: _differing(settings, preset) for name, preset in presets.items()}
    return min(differences.items(), key=lambda item: len(item[1]))


def _differing(settings: Settings, preset: Settings) -> dict[str, Any]:
    pairs = {f.name: (getattr(settings, f.name), getattr(preset, f.name)) for f in dataclasses.fields(settings)}
    return {name: a for name, (a, b) in pairs.items() if a is not b and digest(a) != digest(b)}


def table(settings: Settings, presets: dict[str, Settings]) -> str:
    """HTML: the nearest preset, what differs, and all choices below it."""
    name, differing = difference(settings, presets)
    every = [(f.name, getattr(settings, f.name)) for f in dataclasses.fields(settings)]
    changed = "".join(_row(key, value) for key, value in differing.items())
    first = f"<b>Settings.{html.escape(name)}</b>" + ("" if differing else ", as it is")
    rest = "".join(_row(key, value) for key, value in every if key not in differing)
    return (
        f"{first}{' but' if differing else ''}<table>{changed}</table>"
        f"<details><summary>the rest</summary><table>{rest}</table></details>"
    )


def _row(name: str, value: Any) -> str:
    text = getattr(value, "__name__", None) or repr(value)
    return f"<tr><th>{html.escape(name)}</th><td>{html.escape(text[:200])}</td></tr>"
