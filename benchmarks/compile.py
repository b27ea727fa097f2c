"""What torch.compile of the cut forward pass costs and gains: seconds to compile, time of a step, break-even.

    python benchmarks/compile.py [--rounds N] [--quick] [--cpu]

A step is forward and backward from pixels to a layer's patches and back, as an ascent runs it (`nd.load(...,
compile=True)`), compiled and plain in turn. Break-even is the number of steps after which the time that compiling took
is won back, which includes the backward pass and is all that the first step takes longer than a plain one. Seconds are
of the clock, or of the processor with --cpu (better on a busy machine; it counts the compiler's processes too).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from nnsight_dream.models.compiled import _runner
from step import mid_size

import nnsight_dream as nd
from nnsight_dream.models.reading import _picture_inputs, _pixel_inputs


def processor_seconds() -> float:
    """CPU seconds of this process and of the compilers that it has run."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def stepper(
    vlm: nd.VLM, layer: int, clock: Callable[[], float]
) -> Callable[[torch.Tensor], tuple[float, torch.Tensor]]:
    """A function from pictures to the seconds of a step and the gradient at the pictures."""
    sites = [vlm.site(layer)]
    run = None

    def step(pictures: torch.Tensor) -> tuple[float, torch.Tensor]:
        nonlocal run
        x = pictures.clone().requires_grad_(True)
        with vlm.quiet():
            constants = _picture_inputs(vlm, len(x))
            began = clock()
            run = run or _runner(vlm, sites)
            patches = run({**constants, **_pixel_inputs(vlm, x)})[sites[0]]
            weight = torch.linspace(-1, 1, patches.shape[-1])
            (gradient,) = torch.autograd.grad((patches @ weight).mean(), x)
            return clock() - began, gradient

    return step


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="the bundled model at layer 1 only")
    parser.add_argument("--cpu", action="store_true", help="processor time instead of the clock's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", default="inductor")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = processor_seconds if args.cpu else time.perf_counter
    demo = nd.load("demo", check=False), nd.load("demo", check=False, compile=args.backend)
    rows = [("demo", *demo, layer, 4) for layer in ([1] if args.quick else [1, 4, 8])]
    if not args.quick:
        hf, processor = mid_size()
        mid = [nd.load(hf, processor=processor, check=False, **c) for c in ({}, {"compile": args.backend})]
        rows += [("mid 12 x 512, 224 px", *mid, layer, 1) for layer in (1, 6)]
    print(f"{args.threads} thread(s), float32, {args.backend}; medians of {args.rounds} rounds\n")
    print(
        "| model | layer | batch | compile s | plain ms | compiled ms | compiled / plain | break-even | gradient differs |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, plain, fast, layer, batch in rows:
        pictures = torch.rand(batch, 3, *plain.image_size, generator=torch.Generator().manual_seed(0))
        steps = [stepper(vlm, layer, clock) for vlm in (plain, fast)]
        steps[0](pictures)
        first = steps[1](pictures)[0]
        times: list[tuple[float, float]] = []
        for _ in range(args.rounds):
            (a, theirs), (b, mine) = (step(pictures) for step in steps)
            times.append((a, b))
        slow, quick = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(b / a for a, b in times)
        cost = first - quick
        even = f"{cost / (slow - quick):.0f} steps" if slow > quick else "never"
        off = (mine - theirs).norm() / theirs.norm()
        print(
            f"| {name} | {layer} of {plain.layers} | {batch} | {cost:.1f} | {1e3 * slow:.1f} | {1e3 * quick:.1f} | "
            f"{ratio:.2f} | {even} | {off:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
