"""How often the bundled judge names what a prototype was made of. Tables with 95 % Wilson intervals.

    python benchmarks/recognition.py layers     [--animals 50]   every layer, with controls
    python benchmarks/recognition.py settings   [--animals 20]   centre, tau, detach, pooling, first layer
    python benchmarks/recognition.py canvases   [--animals 20]   at equal steps and at equal time; horama's too
    python benchmarks/recognition.py sources    [--animals 20]   directions from words and from pictures

Asked freely = named first among all concepts; told the category = first among animals. Controls: random directions of
the same norm (does the judge name a given animal by chance?), and the same pictures with their labels shuffled.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import horama_reference
import torch

import nnsight_dream as nd
from nnsight_dream.demo import bundle


def rate(hits: int, n: int) -> str:
    """`62 % [48, 74]`."""
    low, high = nd.wilson(hits, n)
    return f"{hits / max(1, n):.0%} [{100 * low:.0f}, {100 * high:.0f}]"


def animals(count: int) -> list[str]:
    """The same `count` animals every time, drawn once from all the model knows."""
    names = [c.name for c in bundle.concepts() if c.category == "animal"]
    return sorted(random.Random(0).sample(names, min(count, len(names))))


def recognised(judge: nd.DemoJudge, images: Sequence[Any], names: Sequence[str]) -> tuple[int, int, int]:
    """How many pictures are named (asked freely, told the category, told it among the first five)."""
    strict = sum(v.names[0] == n for v, n in zip(judge.judge(images), names, strict=True))
    hinted = judge.judge(images, category="animal")
    hint = sum(v.names[0] == n for v, n in zip(hinted, names, strict=True))
    five = sum(n in v.names[:5] for v, n in zip(hinted, names, strict=True))
    return strict, hint, five


def layers(vlm: nd.VLM, judge: nd.DemoJudge, names: list[str], settings: nd.Settings, out: Path | None) -> None:
    """Every layer, with controls."""
    print(
        "| layer | asked freely | told the category | told, top 5 | random direction, told | shuffled labels, told | cosine | cpu seconds a picture |"
    )
    print("|---|---|---|---|---|---|---|---|")
    by_word = nd.concept(vlm, names, list(range(1, vlm.layers + 1)))
    shuffled = names[1:] + names[:1]
    for layer in range(1, vlm.layers + 1):
        directions = [of[layer - 1] for of in by_word]
        began = time.process_time()
        prototypes = nd.synthesize(vlm, directions, settings=settings, progress=False)
        spent = (time.process_time() - began) / len(names)
        images = [p.image for p in prototypes]
        strict, hint, five = recognised(judge, images, names)
        wrong = recognised(judge, images, shuffled)[1]
        generator = torch.Generator().manual_seed(layer)
        noise = []
        for d in directions[: max(10, len(directions) // 2)]:
            vector = torch.randn(d.vector.shape, generator=generator)
            noise.append(nd.from_tensor(vlm, vector / vector.norm() * d.norm, layer, label=f"random {d.label}"))
        drawn = nd.synthesize(vlm, noise, settings=settings, progress=False)
        chance = recognised(judge, [p.image for p in drawn], names[: len(noise)])[1]
        mean = sum(p.scores["attention"] for p in prototypes) / len(prototypes)
        n = len(names)
        print(
            f"| {layer} | {rate(strict, n)} | {rate(hint, n)} | {rate(five, n)} | {rate(chance, len(noise))} | "
            f"{rate(wrong, n)} | {mean:.2f} | {spent:.1f} |",
            flush=True,
        )
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            nd.Prototypes(prototypes).grid(columns=10, side=96).save(out / f"layer-{layer}.png")


def row(
    vlm: nd.VLM, judge: nd.DemoJudge, names: list[str], layer: int, name: str, settings: nd.Settings,
    terms: tuple[Any, ...] = (), directions: list[nd.Direction] | None = None,
) -> float:  # fmt: skip
    """One line of a table; directions are the names' own if not given. Returns the seconds that a picture took."""
    directions = nd.concept(vlm, names, layer) if directions is None else directions
    began = time.process_time()
    prototypes = nd.synthesize(vlm, directions, settings=settings, terms=terms, progress=False)
    spent = (time.process_time() - began) / len(names)
    mean = sum(p.scores["attention"] for p in prototypes) / len(prototypes)
    say(judge, names, [p.image for p in prototypes], f"{name} | {layer}", f"{mean:.2f} | {spent:.1f}")
    return spent


def say(judge: nd.DemoJudge, names: list[str], images: Sequence[Any], before: str, after: str) -> None:
    """Print a line of a table: `before`, what the judge recognises in the pictures, `after`."""
    rates = " | ".join(rate(hits, len(names)) for hits in recognised(judge, images, names))
    print(f"| {before} | {rates} | {after} |", flush=True)


def sources(vlm: nd.VLM, judge: nd.DemoJudge, names: list[str], base: nd.Settings, at: list[int]) -> None:
    """Where the direction comes from: the word, or held-out pictures of the thing; and the judge on those pictures."""
    pictures = [p.image for p in bundle.pictures(names)]
    print(HEAD.format("direction from"))
    say(judge, names, pictures, "(the clean held-out pictures themselves) | ", " | ")
    everything = [p.image for p in bundle.pictures()]
    for layer in at:
        row(vlm, judge, names, layer, "word", base)
        own = [nd.from_images(vlm, p, layer, minus=everything, label=m) for m, p in zip(names, pictures, strict=True)]
        row(vlm, judge, names, layer, "a held-out picture", base, directions=own)


HEAD = "| {} | layer | asked freely | told the category | told, top 5 | cosine | cpu seconds a picture |\n|---|---|---|---|---|---|---|"


def shifted(base: nd.Settings, fraction: float) -> tuple[Any, ...]:
    """The augmentations of some settings with another shift, a fraction of the side."""
    return (nd.Shift(fraction=fraction), *(a for a in base.augment if not isinstance(a, nd.Shift)))


def settings(vlm: nd.VLM, judge: nd.DemoJudge, names: list[str], base: nd.Settings, at: list[int]) -> None:
    """One choice changed at a time."""
    changes: dict[str, dict[str, Any]] = {
        "default": {},
        "centre grey": {"centre": nd.Grey()},
        "centre natural noise": {"centre": nd.NaturalNoise()},
        "centre bundled pictures": {"centre": nd.Pictures.bundled()},
        "tau 0.5": {"pooling": nd.Attention(tau=0.5)},
        "tau 0.05": {"pooling": nd.Attention(tau=0.05)},
        "tau 0.005": {"pooling": nd.Attention(tau=0.005)},
        "tau 0.5, weights detached": {"pooling": nd.Attention(tau=0.5, detach=True)},
        "tau 0.005, weights detached": {"pooling": nd.Attention(tau=0.005, detach=True)},
        "mean pooling": {"pooling": nd.Mean()},
        "max pooling": {"pooling": nd.Max()},
        "unclipped SGD 0.15": {"clip": 1.0, "rate": 0.15, "schedule": "constant"},
        "unclipped SGD 0.04": {"clip": 1.0, "rate": 0.04, "schedule": "constant"},
        "no noise": {"augment": tuple(a for a in base.augment if not isinstance(a, nd.Noise))},
        "no shift": {"augment": tuple(a for a in base.augment if not isinstance(a, nd.Shift))},
        "shift 112 of 448": {"augment": shifted(base, 112 / 448)},
        "shift 56 of 448": {"augment": shifted(base, 56 / 448)},
        "total variation 0.5": {"terms": (nd.TotalVariation(0.5),)},
    }
    print(HEAD.format("setting"))
    for layer in at:
        for name, change in changes.items():
            change = dict(change)
            terms = change.pop("terms", ())
            row(vlm, judge, names, layer, name, base.but(**change), terms)


def canvases(vlm: nd.VLM, judge: nd.DemoJudge, names: list[str], base: nd.Settings, at: list[int]) -> None:
    """Every canvas at equal steps, each at several rates; then at the time that the default takes; then horama's own."""
    side = vlm.image_size[0]
    adam: dict[str, Any] = {"optimiser": "adam", "clip": 1.0}
    kinds: dict[
        str, tuple[dict[str, Any], tuple[float, ...]]
    ] = {  # the default first; each kind's first rate is its own
        "pixels": ({}, (base.rate, base.rate / 3, base.rate * 3)),
        "multi-resolution": (
            {"canvas": nd.MultiResolution(side, exponent=0.5)},
            (base.rate / 3, base.rate / 10, base.rate),
        ),
        "pixels, Adam": (adam, (0.02, 0.007, 0.06)),
        "multi-resolution, Adam": ({**adam, "canvas": nd.MultiResolution(side, exponent=0.5)}, (0.015, 0.005, 0.05)),
        "Fourier, Adam": ({**adam, "canvas": nd.Fourier(side)}, (0.03, 0.01, 0.1)),
        "MACO, Adam": ({**adam, "canvas": nd.MACO.from_pictures(horama_reference.bundled(), side)}, (0.1, 0.03, 0.3)),
    }
    print(HEAD.format("canvas, rate, steps"))
    for layer in at:
        limit = 0.0
        for name, (change, rates) in kinds.items():
            times = [
                row(vlm, judge, names, layer, f"{name}, {speed:.3g}, {base.steps}", base.but(rate=speed, **change))
                for speed in rates
            ]
            limit = limit or times[0]
            more = max(1, round(base.steps * limit / times[0]))  # as many steps as fit into the default's time
            if name != "pixels" and abs(more - base.steps) > base.steps / 20:
                row(vlm, judge, names, layer, f"{name}, {rates[0]:.3g}, {more} (equal time)",
                    base.but(rate=rates[0], steps=more, **change))  # fmt: skip
        references(vlm, judge, names, base, layer)


def references(vlm: nd.VLM, judge: nd.DemoJudge, names: list[str], base: nd.Settings, layer: int) -> None:
    """The same for horama's `maco` and `fourier`, at equal steps."""
    package = horama_reference.horama()
    if package is None:
        print("| horama is not installed: `make bench-pictures` installs it | | | | | | |")
        return
    directions = nd.concept(vlm, names, layer)
    for kind, rates in (("maco", (0.1, 1.0)), ("fourier", (0.1, 1.0))):
        for speed in rates:
            began = time.process_time()
            pictures = horama_reference.draw(package, kind, vlm, directions, base, base.steps, speed)
            spent = (time.process_time() - began) / len(names)
            say(judge, names, pictures, f"horama {kind}, {speed}, {base.steps} | {layer}", f" | {spent:.1f}")


def main() -> None:
    """Run one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=["layers", "settings", "canvases", "sources"])
    parser.add_argument("--animals", type=int, default=50)
    parser.add_argument("--layer", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--set", default="{}", help="JSON of Settings' plain fields, to try others")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="save contact sheets here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    vlm, judge = nd.load("demo", check=False), nd.DemoJudge()
    base = nd.Settings.demo().but(**json.loads(args.set))
    if args.steps:
        base = base.but(steps=args.steps)
    names = animals(args.animals)
    print(f"{len(names)} animals, {base.steps} steps of {base.batch} views, {args.threads} thread(s)\n")
    if args.table == "layers":
        layers(vlm, judge, names, base, args.out)
    elif args.table == "settings":
        settings(vlm, judge, names, base, args.layer)
    else:
        {"canvases": canvases, "sources": sources}[args.table](vlm, judge, names, base, args.layer)


if __name__ == "__main__":
    main()
