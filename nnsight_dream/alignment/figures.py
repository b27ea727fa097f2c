"""Figures of the alignment experiments: maps over layers, changes under manipulation, exemplars averaged."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..report.figures import COLOURS, MARKERS, draw_panels, saved, titled

Row = Mapping[str, Any]


def layer_maps(rows: Sequence[Row], stem: str | os.PathLike[str]) -> list[Path]:
    """Rows of `alignment_map` as one heat map a direction, the best cell ringed; black dots where p_map >= 0.05.

    Returns the files: `stem` with .png and .svg. Raises ValueError for no rows, ImportError without matplotlib.
    """
    _some(rows)
    directions = list(dict.fromkeys(r["direction"] for r in rows))
    ys, xs = (sorted({r[k] for r in rows}) for k in ("vision_layer", "language_layer"))
    figure, axes = draw_panels(len(directions), 2)
    top, bottom = max(r["value"] for r in rows), min(0.0, *(r["value"] for r in rows))
    for axis, direction in zip(axes, directions, strict=True):
        table = np.full((len(ys), len(xs)), np.nan)
        for r in (r for r in rows if r["direction"] == direction):
            i, j = ys.index(r["vision_layer"]), xs.index(r["language_layer"])
            table[i, j] = r["value"]
            if r.get("p_map", 0) >= 0.05:
                axis.plot(j, i, ".", color="black", markersize=3)
        image = axis.imshow(table, origin="lower", aspect="auto", cmap="viridis", vmin=bottom, vmax=top)
        best = np.unravel_index(np.nanargmax(table), table.shape)
        axis.plot(best[1], best[0], "o", color="none", markeredgecolor="#D55E00", markeredgewidth=1.5, markersize=9)
        titled(axis, f"{rows[0]['measure']}, {direction}")
        axis.set_xticks(range(len(xs))[:: _every(xs)], [str(x) for x in xs][:: _every(xs)])
        axis.set_yticks(range(len(ys))[:: _every(ys)], [str(y) for y in ys][:: _every(ys)])
        axis.tick_params(labelsize=7)
    figure.colorbar(image, ax=axes)
    figure.supxlabel("layer of words", fontsize=9)
    figure.supylabel("layer of pictures", fontsize=9)
    return _files(figure, stem)


def manipulations(rows: Sequence[Row], stem: str | os.PathLike[str]) -> list[Path]:
    """Rows of `manipulated` as points with 95 % intervals, one panel a measure; the dashed line is the untouched
    pairs', the grey bars are what 5 % of chance pairings pass."""
    _some(rows)
    measures = list(dict.fromkeys(r["measure"] for r in rows))
    names = list(dict.fromkeys(r["manipulation"] for r in rows))
    figure, axes = draw_panels(len(measures), 2)
    every = list(dict.fromkeys(r["direction"] for r in rows))
    for axis, measure in zip(axes, measures, strict=True):
        part = [r for r in rows if r["measure"] == measure]
        here = list(dict.fromkeys(r["direction"] for r in part))
        for j, direction in enumerate(here):
            i = every.index(direction)
            mine = [r for r in part if r["direction"] == direction]
            at = [names.index(r["manipulation"]) + 0.24 * (j - (len(here) - 1) / 2) for r in mine]
            _bars(axis, at, mine, i, direction)
            axis.axhline(mine[0]["value"], color=COLOURS[i], linestyle="--", linewidth=0.7)
            _chance(axis, at, mine)
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
        _dressed(axis, measure)
    return _files(figure, stem, axes)


def exemplars(rows: Sequence[Row], stem: str | os.PathLike[str]) -> list[Path]:
    """Rows of `exemplar_averaging` against k, one panel a measure, with 95 % intervals."""
    _some(rows)
    measures = list(dict.fromkeys(r["measure"] for r in rows))
    figure, axes = draw_panels(len(measures), 2)
    every = list(dict.fromkeys((r["direction"], r["over"]) for r in rows))
    for axis, measure in zip(axes, measures, strict=True):
        part = [r for r in rows if r["measure"] == measure]
        here = list(dict.fromkeys((r["direction"], r["over"]) for r in part))
        for j, key in enumerate(here):
            mine = [r for r in part if (r["direction"], r["over"]) == key]
            at = [r["k"] + 0.06 * (j - (len(here) - 1) / 2) for r in mine]
            _bars(axis, at, mine, every.index(key), f"{key[0]}, {key[1]} averaged", "-")
        axis.set_xticks(sorted({r["k"] for r in part}))
        _dressed(axis, measure)
    figure.supxlabel("exemplars averaged", fontsize=9)
    return _files(figure, stem, axes)


def recognition(rows: Sequence[Row], stem: str | os.PathLike[str]) -> list[Path]:
    """Rows of `beside_recognition` by layer: the rate of recognition first, then one panel a measure, with 95 %
    intervals; the grey bars are what 5 % of chance pairings pass."""
    _some(rows)
    measures = list(dict.fromkeys(r["measure"] for r in rows))
    every = list(dict.fromkeys(r["direction"] for r in rows))
    figure, axes = draw_panels(1 + len(measures), 4, sharey=False)
    rates = list({r["layer"]: dict(r, value=r["rate"]) for r in rows}.values())
    _bars(axes[0], [r["layer"] for r in rates], rates, len(every), "recognition", "-", "rate")
    _dressed(axes[0], "share that a judge recognises")
    for axis, measure in zip(axes[1:], measures, strict=False):
        here = [d for d in every if any((r["measure"], r["direction"]) == (measure, d) for r in rows)]
        for j, direction in enumerate(here):
            mine = [r for r in rows if (r["measure"], r["direction"]) == (measure, direction)]
            at = [r["layer"] + 0.16 * (j - (len(here) - 1) / 2) for r in mine]
            _bars(axis, at, mine, every.index(direction), direction, "-")
            _chance(axis, at, mine)
        _dressed(axis, measure)
    layers = [r["layer"] for r in rates]
    for axis in axes:
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
        axis.set_xticks(layers[:: _every(layers)])
        axis.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    for axis in axes[1 + len(measures) :]:
        axis.remove()
    figure.supxlabel("layer", fontsize=9)
    return _files(figure, stem, axes[: 1 + len(measures)])


def preference(rows: Sequence[Row], stem: str | os.PathLike[str]) -> list[Path]:
    """Rows of `preference` as points with 95 % intervals; the dashed line is chance."""
    _some(rows)
    figure, axes = draw_panels(1, 1)
    percentages = [dict(r, value=100 * r["rate"], value_low=100 * r["low"], value_high=100 * r["high"]) for r in rows]
    _by_direction(axes[0], percentages, "agreement with people's choice", f"choices that agree, % of {rows[0]['n']}")
    axes[0].axhline(100 * rows[0]["chance"], color="#666666", linestyle="--", linewidth=0.8)
    return _files(figure, stem)


def rank_agreement(rows: Sequence[Row], stem: str | os.PathLike[str]) -> list[Path]:
    """Rows of `rank_agreement` as points with 95 % intervals; the grey bars are what 5 % of chance pairings pass."""
    _some(rows)
    figure, axes = draw_panels(1, 1)
    _by_direction(axes[0], rows, "rank correlation", f"rank correlation over {rows[0]['n']} pairs")
    _chance(axes[0], range(len(rows)), rows)
    return _files(figure, stem)


def _by_direction(axis: Any, rows: Sequence[Row], label: str, title: str) -> None:
    """A point with its interval for each direction, side by side."""
    _bars(axis, range(len(rows)), rows, 0, label)
    axis.set_xticks(range(len(rows)), [r["direction"] for r in rows])
    axis.set_xlim(-0.5, len(rows) - 0.5)
    _dressed(axis, title)


def prototypes(rows: Sequence[Row], stem: str | os.PathLike[str]) -> list[Path]:
    """Rows of `prototypes` by the layer that they were climbed at, one panel a measure and direction."""
    _some(rows)
    panels = list(dict.fromkeys((r["measure"], r["direction"]) for r in rows))
    kinds = list(dict.fromkeys(r["kind"] for r in rows))
    layers = list(dict.fromkeys(r["layer"] for r in rows))
    figure, axes = draw_panels(len(panels), 3)
    for axis, (measure, direction) in zip(axes, panels, strict=False):
        for i, kind in enumerate(kinds):
            mine = [r for r in rows if (r["measure"], r["direction"], r["kind"]) == (measure, direction, kind)]
            at = [layers.index(r["layer"]) + 0.12 * (i - (len(kinds) - 1) / 2) for r in mine]
            _bars(axis, at, mine, i, kind)
            _chance(axis, at, mine)
        axis.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        _dressed(axis, measure if direction == "both" else f"{measure}, {direction}")
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.supxlabel("layer that prototypes were climbed at", fontsize=9)
    return _files(figure, stem, axes[: len(panels)])


def _chance(axis: Any, xs: Sequence[float], rows: Sequence[Row]) -> None:
    if all(r.get("null_high") is not None for r in rows):
        axis.plot(xs, [r["null_high"] for r in rows], "_", color="#777777", markersize=7, markeredgewidth=1.2)


def _some(rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError("no rows: pass what the experiment returned")


def _every(labels: Sequence[Any]) -> int:
    return -(-len(labels) // 13)


def _bars(
    axis: Any, xs: Sequence[float], rows: Sequence[Row], i: int, label: str, line: str = "", name: str = "value"
) -> None:
    """Points with their intervals, where these are known."""
    values = [r["value"] for r in rows]
    ends = (f"{name}_low", f"{name}_high")
    has_ends = all(r.get(k) is not None for r in rows for k in ends)
    reach = [[max(0.0, abs(r["value"] - r[k])) for r in rows] for k in ends] if has_ends else None
    style = dict(fmt=MARKERS[i] + line, color=COLOURS[i], markersize=4, capsize=2, elinewidth=0.8, linewidth=1.0)
    axis.errorbar(xs, values, reach, label=label, **style)


def _dressed(axis: Any, title: str) -> None:
    titled(axis, title)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)


def _files(figure: Any, stem: str | os.PathLike[str], axes: Sequence[Any] = ()) -> list[Path]:
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=2, fontsize=8)
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    return [saved(figure, stem.with_name(stem.name + ending)) for ending in (".png", ".svg")]
