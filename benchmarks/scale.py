"""How the cost of a step grows with image tokens, layers, batch and directions. A table and a plot of each.

    python benchmarks/scale.py [--quick] [--rounds N] [--out build/scale] [--only tokens layers batch directions]

Steps of `nd.synthesize` on random Gemma 3 models (decoder 256 wide, tower 96 wide with 2 layers, native canvas), on one
thread, in CPU time, so that other work on the machine counts for little; medians of the steps after the first.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny

import nnsight_dream as nd

Row = tuple[int, float, int]  # (how many, seconds of a step, pictures in it)


def model(grid: int = 8, layers: int = 8) -> nd.VLM:
    """A random Gemma 3 with `grid` x `grid` image tokens of 14 pixels."""
    hf, processor = tiny.gemma3(
        layers=layers, hidden=256, heads=4, image=14 * grid, grid=grid, vision_hidden=96, sliding_window=4096
    )
    return nd.load(hf, processor=processor, check=False)


def step(vlm: nd.VLM, layer: int, rounds: int, batch: int = 1, directions: int = 1) -> float:
    """CPU seconds of a step with so many directions at once and views of each."""
    names = nd.BASELINE_WORDS[:directions]
    ends: list[float] = []
    nd.synthesize(
        vlm,
        nd.concept(vlm, names, layer),
        settings=nd.Settings(steps=rounds + 1, canvas=nd.Native(nd.Pixels), batch=batch, at_once=batch * directions),
        progress=lambda number, scores: ends.append(time.process_time()),
    )
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def tokens(rounds: int, quick: bool) -> list[Row]:
    """Image tokens, at layer 4."""
    return [(n * n, step(model(n), 4, rounds), 1) for n in ((4, 8) if quick else (4, 8, 12, 16, 24))]


def layers(rounds: int, quick: bool) -> list[Row]:
    """The layer that is climbed, of 8, with 64 image tokens."""
    vlm = model()
    return [(n, step(vlm, n, rounds), 1) for n in ((1, 4) if quick else (1, 2, 4, 6, 8))]


def batch(rounds: int, quick: bool) -> list[Row]:
    """Views of one picture, at layer 4."""
    vlm = model()
    return [(n, step(vlm, 4, rounds, batch=n), n) for n in ((1, 2) if quick else (1, 2, 4, 8, 16))]


def directions(rounds: int, quick: bool) -> list[Row]:
    """Directions climbed at once, of two views each, at layer 4."""
    vlm = model()
    return [(n, step(vlm, 4, rounds, 2, n), 2 * n) for n in ((1, 2) if quick else (1, 2, 4, 8))]


AXES: dict[str, tuple[Callable[[int, bool], list[Row]], str]] = {
    "tokens": (tokens, "image tokens"),
    "layers": (layers, "layer climbed"),
    "batch": (batch, "views of one picture"),
    "directions": (directions, "directions at once"),
}


def plot(rows: Sequence[Row], label: str, path: Path) -> None:
    """The time of a step against how many there are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4, 3))
    axes.plot([n for n, _, _ in rows], [1e3 * seconds for _, seconds, _ in rows], marker="o")
    axes.set_xlabel(label)
    axes.set_ylabel("CPU ms a step")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80, bbox_inches="tight")
    pyplot.close(figure)


def main() -> None:
    """Time, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two points each")
    parser.add_argument("--out", type=Path, default=Path("build/scale"), help="where plots go")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        measure, label = AXES[name]
        rows = measure(args.rounds, args.quick)
        print(
            f"\n{measure.__doc__}\n\n| {label} | ms a step | times the first | ms a step and view |\n|---|---|---|---|"
        )
        for count, seconds, views in rows:
            print(f"| {count} | {1e3 * seconds:.1f} | {seconds / rows[0][1]:.2f} | {1e3 * seconds / views:.1f} |")
        plot(rows, label, args.out / f"{name}.png")
        print(f"\n{args.out / f'{name}.png'}", flush=True)


if __name__ == "__main__":
    main()
