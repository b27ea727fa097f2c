"""Figures: recognition by layer and category, poolings side by side, cosines by layer; each as PNG and SVG."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import arguments
from ..arguments import rows_of, whole
from ..io.files import write_whole
from .tables import apart, rates

# told apart by people of any colour vision (Okabe and Ito 2008), and by marker
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


MARKERS = ("o", "s", "^", "D", "v", "P", "X")


Row = Mapping[str, Any]


FEW = 3  # concepts or pictures, of which a rate says nothing


def recognition(rows: Sequence[Row], stem: str | os.PathLike[str], *, columns: int = 4) -> list[Path]:
    """Rate of recognition by layer, one panel for each category and one for all (figures 3 and 8 of arXiv 2601.08017).

    rows   of `nd.results`, of one judge; pictures asked about freely ("strict") and after the category was told
    ("hint") are two lines with 95 % intervals, random directions (category told) are dotted. Several models or settings
    have lines of their own; categories of 3 concepts or fewer have no panel, and so few random directions no dots

    Returns the files: `stem` with .png and .svg. Raises ValueError for no rows, ImportError without matplotlib.
    """
    rows, columns = rows_of(rows), whole(columns, "columns", 1)
    if not rows:
        raise ValueError("no rows: examine a store first, then pass nd.results(store)")
    categories = sorted({r["category"] for r in rows if r["category"]})
    panels = [("all", rows), *((c, [r for r in rows if r["category"] == c]) for c in categories)]
    panels = [panel for i, panel in enumerate(panels) if i == 0 or len({r["concept"] for r in panel[1]}) > FEW]
    places = _places(rows)
    runs = apart(rows)
    run_of = {id(r): run for run, part in runs.items() for r in part}
    hints = (("hint", "told the category"), ("strict", "asked freely"))
    lines = [(run, protocol, f"{run}, {words}" if run else words) for run in runs for protocol, words in hints]
    figure, axes = draw_panels(len(panels), columns)
    dots: list[tuple[Any, list[int], list[float]]] = []
    for axis, (name, part) in zip(axes, panels, strict=False):
        concepts = len({r["concept"] for r in part})
        titled(axis, f"{name} ({concepts})")
        _ticks(axis, places)
        for i, (run, protocol, label) in enumerate(lines):
            group_rates = rates([r for r in part if run_of[id(r)] == run], protocol=protocol)
            table = [t for t in group_rates if t["rate"] is not None]
            chance = [t for t in group_rates if t["chance"] is not None and t["controls"] > FEW]
            if table:
                _line(axis, table, places, i, label, aside=0.06 * (2 * i - len(lines) + 1))
            if chance and protocol == "hint":
                xs, ys = [places[t["layer"]] for t in chance], [100 * t["chance"] for t in chance]
                dots.append((axis, xs, ys))
    for axis, xs, ys in dots:  # after the others, so that the legend has them last
        axis.errorbar(xs, ys, fmt=":", color="#666666", label="random direction, category told")
    return _finish(figure, axes, len(panels), "recognised, %", stem)


def pooling(rows: Sequence[Row], stem: str | os.PathLike[str], *, protocol: str = "hint") -> list[Path]:
    """Rate of recognition by layer, one line for each pooling, over the concepts and layers that all have (figure 9).

    rows   of `nd.results`, of one judge; a pooling of "" is the settings' own
    """
    rows = rows_of(rows)
    names = sorted({r["pooling"] for r in rows})
    parts = {
        ", ".join(filter(None, (run, n or "attention (the settings' own)"))): [r for r in part if r["pooling"] == n]
        for run, part in apart(rows).items()
        for n in names
    }
    parts = {name: part for name, part in parts.items() if part}
    return _compared(parts, stem, protocol, _picture, "no concept was made with every pooling")


def models(rows: Mapping[str, Sequence[Row]], stem: str | os.PathLike[str], *, protocol: str = "hint") -> list[Path]:
    """Rate of recognition by layer, one line for each model, over the concepts that all have (figure 7).

    rows   of `nd.results` by the model's name, all of the settings' own pooling or all of one
    """
    parts = {
        ", ".join(filter(None, (name, run))): part
        for name, some in rows.items()
        for run, part in (apart(some) or {"": []}).items()
    }
    return _compared(
        parts, stem, protocol, lambda r: (r["concept"], r["category"]), "no concept was made of every model"
    )


def _compared(
    parts: Mapping[str, Sequence[Row]], stem: Any, protocol: str, what: Callable[[Row], tuple[Any, ...]], none: str
) -> list[Path]:
    """One line for each part, over what all of them have."""
    per = [{what(r) for r in part if not r["control"]} for part in parts.values()]
    both = set.intersection(*per) if per else set()
    if not both:
        raise ValueError(f"{none}: there is nothing to compare")
    places = _places([r for part in parts.values() for r in part])
    figure, axes = draw_panels(1, 1)
    _ticks(axes[0], places)
    for i, (name, part) in enumerate(parts.items()):
        rows = rates([r for r in part if what(r) in both], protocol=protocol)
        if table := [t for t in rows if t["rate"] is not None]:
            _line(axes[0], table, places, i, name, aside=min(0.08, 0.6 / len(parts)) * (i - (len(parts) - 1) / 2))
    titled(axes[0], f"{len({concept for concept, *_ in both})} concepts, {protocol}")
    return _finish(figure, axes, 1, "recognised, %", stem)


def curves(rows: Sequence[Row], stem: str | os.PathLike[str], *, most: int = 2) -> list[Path]:
    """Cosines by layer from `alignment.curves`: own pictures, others' and noise, with the middle half of the pictures.

    One panel for each word, or one for all of more than `most` words (means over words).

    Raises ValueError for no rows.
    """
    rows, most = rows_of(rows), whole(most, "most", 0)
    if not rows:
        raise ValueError("no rows: pass alignment.curves(similarities)")
    words = list(dict.fromkeys(r["word"] for r in rows))
    single = len(words) > most
    figure, axes = draw_panels(1 if single else len(words), most)
    for axis, word in zip(axes, [None] if single else words, strict=False):
        titled(axis, f"{len(words)} words" if word is None else word)
        for i, kind in enumerate(("matching", "mismatching", "noise")):
            part = [r for r in rows if r["kind"] == kind and word in (None, r["word"])]
            layers = sorted({r["layer"] for r in part})
            at = [[r for r in part if r["layer"] == layer] for layer in layers]
            mean = [[sum(r[k] for r in some) / len(some) for some in at] for k in ("value", "low", "high")]
            if layers:
                axis.plot(layers, mean[0], MARKERS[i] + "-", color=COLOURS[i], label=kind, markersize=4)
                axis.fill_between(layers, mean[1], mean[2], color=COLOURS[i], alpha=0.15, linewidth=0)
        axis.axhline(0, color="#999999", linewidth=0.6)
        axis.xaxis.get_major_locator().set_params(integer=True)  # there is no layer 1.5
    return _finish(figure, axes, 1 if single else len(words), "cosine with the word", stem, top=None)


def _picture(row: Row) -> tuple[Any, ...]:
    return row["concept"], row["category"], row["seed"], row["layer"]


def _places(rows: Sequence[Row]) -> dict[Any, int]:
    """Where each layer stands on the axis, the same in all panels and lines, whichever of them lack it."""
    layers = sorted({r["layer"] for r in rows}, key=lambda layer: (isinstance(layer, str), layer))
    return {layer: i for i, layer in enumerate(layers)}


def _ticks(axis: Any, places: Mapping[Any, int]) -> None:
    step = math.ceil(len(places) / 12)  # more labels would run into each other
    axis.set_xticks(list(places.values())[::step], [str(layer) for layer in places][::step])
    axis.set_xlim(-0.4, len(places) - 0.6)


def titled(axis: Any, text: str) -> None:
    """Give an axis a small title, its text as it is."""
    axis.set_title(text, fontsize=9, parse_math=False)  # a name may hold dollars


def label_axis(axis: Any, title: str, xlabel: str = "layer", *, size: float = 7, place: str = "best") -> None:
    """Give an axis its title, the name of what goes to the right, small numbers, and a legend without a frame."""
    titled(axis, title)
    axis.set_xlabel(xlabel, fontsize=8)
    axis.legend(fontsize=size, frameon=False, loc=place)
    axis.tick_params(labelsize=7)


def _line(axis: Any, table: Sequence[Row], places: Mapping[Any, int], i: int, label: str, aside: float) -> None:
    """Line number `i`, moved a little to the `aside` so that intervals do not cover each other."""
    xs, ys = [places[t["layer"]] + aside for t in table], [100 * t["rate"] for t in table]
    low = [max(0.0, 100 * (t["rate"] - t["low"])) for t in table]
    high = [max(0.0, 100 * (t["high"] - t["rate"])) for t in table]
    style = dict(**_look(i), markersize=4, capsize=2, elinewidth=0.8, linewidth=1.3)
    axis.errorbar(xs, ys, [low, high], label=label, clip_on=False, **style)


def _look(i: int) -> dict[str, str]:
    """Colour, marker and dashes of line number `i`, of which there may be any number."""
    turn = i // len(COLOURS)  # once all colours are used, they come again with other markers and dashes
    marker = MARKERS[(i + turn) % len(MARKERS)]
    return dict(color=COLOURS[i % len(COLOURS)], marker=marker, linestyle=("-", "--", "-.", ":")[turn % 4])


def draw_panels(count: int, columns: int, *, sharey: bool = True) -> tuple[Any, list[Any]]:
    """A figure of `count` axes in rows of `columns`. Raises ImportError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'nnsight-dream[figures]'") from error
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    # a figure of its own, so that the user's pyplot is left alone
    figure = Figure(figsize=(max(4.2, 2.6 * columns), 2.1 * lines + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(lines, columns, squeeze=False, sharey=sharey).flatten())


def _finish(
    figure: Any, axes: Sequence[Any], used: int, ylabel: str, stem: str | os.PathLike[str], top: float | None = 102
) -> list[Path]:
    arguments.path(stem, "stem")
    for axis in axes[used:]:
        axis.remove()
    for axis in axes[:used]:
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
        if top is not None:
            axis.set_ylim(-2, top)
    figure.supxlabel("layer", fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    handles: dict[str, Any] = {}
    for axis in axes[:used]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = list(handles)
    figure.legend(
        [handles[n] for n in labels], labels, loc="outside upper center", ncols=min(4, len(labels)), fontsize=8
    )
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    return [saved(figure, stem.with_name(stem.name + ending)) for ending in (".png", ".svg")]


def saved(figure: Any, path: Path) -> Path:
    """Write a figure as files; returns their paths."""
    import matplotlib

    data = io.BytesIO()
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "nnsight-dream"}):  # the same bytes for the same rows
        figure.savefig(data, format=path.suffix[1:], dpi=160, metadata=metadata)
    write_whole(path, data.getvalue())
    return path
