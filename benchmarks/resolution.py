"""What the size of the canvas and of the model's input cost and give, on the bundled model. One table, Wilson intervals.

    python benchmarks/resolution.py [--animals 20] [--layer 1] [--canvas 16 32 48 64] [--seen 64 32 16]

Canvas sizes with the model at its own 64 pixels, then smaller inputs, with positions interpolated, from a native
canvas. The shift is the same part of the picture at every size. The judge looks at every picture at its own 64 pixels.
asked freely = named first among all concepts; told the category = first among animals; seconds are CPU seconds a picture.
"""

from __future__ import annotations

import argparse
import time

import torch
from recognition import animals, rate, recognised

import nnsight_dream as nd


def row(judge: nd.DemoJudge, vlm: nd.VLM, names: list[str], layer: int, settings: nd.Settings, canvas: int) -> None:
    """Make a prototype of every name and print what the judge says and what it took."""
    directions = nd.concept(vlm, names, layer)
    began = time.process_time()
    prototypes = nd.synthesize(vlm, directions, settings=settings, progress=False)
    spent = (time.process_time() - began) / len(names)
    strict, hint, five = recognised(judge, [p.image for p in prototypes], names)
    score = sum(p.scores["attention"] for p in prototypes) / len(prototypes)
    n = len(names)
    print(
        f"| {canvas} | {vlm.image_size[0]} | {layer} | {rate(strict, n)} | {rate(hint, n)} | {rate(five, n)} | "
        f"{score:.2f} | {spent:.2f} |",
        flush=True,
    )


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--animals", type=int, default=20)
    parser.add_argument("--layer", type=int, nargs="+", default=[1])
    parser.add_argument("--canvas", type=int, nargs="+", default=[16, 32, 48, 64], help="sides in pixels")
    parser.add_argument("--seen", type=int, nargs="+", default=[64, 32, 16], help="sides of the model's input")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    judge, names = nd.DemoJudge(), animals(args.animals)
    whole = nd.load("demo", check=False)
    demo = nd.Settings.demo().but(steps=args.steps)
    shift = demo.canvas.size / next(a.pixels for a in demo.augment if isinstance(a, nd.Shift))

    def settings(canvas: nd.Pixels | nd.Native, side: int) -> nd.Settings:
        others = tuple(a for a in demo.augment if not isinstance(a, nd.Shift))
        return demo.but(canvas=canvas, augment=(nd.Shift(pixels=max(1, round(side / shift))), *others))

    print(f"{len(names)} animals, {demo.steps} steps of {demo.batch} views, {args.threads} thread(s)\n")
    print(
        "| canvas px | model sees px | layer | asked freely | told the category | told, top 5 | cosine | cpu seconds a picture |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for layer in args.layer:
        for side in args.canvas:
            row(judge, whole, names, layer, settings(nd.Pixels(side), side), side)
        for side in args.seen:
            if side != whole.image_size[0]:
                small = nd.load("demo", check=False, image_size=side)
                row(judge, small, names, layer, settings(nd.Native(nd.Pixels), side), side)


if __name__ == "__main__":
    main()
