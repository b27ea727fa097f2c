"""Ways to draw, all in one run: how often each is named by the bundled judge, what it reaches, what it costs.

    python benchmarks/candidates.py --things 24                       every candidate at layer 1, half animals
    python benchmarks/candidates.py --only "normalised preset, way 4" --out build/candidates
    python benchmarks/candidates.py --features 12                     SAE features of words and pictures instead of words

Each row is one change of the bundled model's default, or a preset of another kind. Rates have 95 % Wilson intervals; the
pictures are of the same things in every row, so `gained / lost` counts things that a row is named of and the default is
not, and the other way round (McNemar's exact p beside it). Controls: the same rows' pictures under shuffled labels.
Sheets of `--out` are for eyes; `benchmarks/blind.py make` mixes the same presets without labels.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blind
import horama_reference
import torch
from recognition import rate
from scipy.stats import binomtest

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.engine.pooling import dot

HEAD = (
    "| candidate | asked freely | told the category | told, top 5 | gained / lost | p | shuffled labels | reached | "
    "median reach | score | cpu seconds |\n" + "|---" * 11 + "|"
)


#: What changes centre, pooling or score: a feature has its own of these.
OF_WORDS = ("pattern", "centre", "pooling", "dot product", "mean")


def candidates() -> dict[str, nd.Settings]:
    """By name, in the order of the table; the default first."""
    base, known = nd.Settings.demo(), blind.presets()
    light = (nd.Shift(pixels=1), nd.Noise(0.02))
    normalised = nd.Settings.normalised(64).but(steps=base.steps, batch=base.batch, centre=base.centre)
    paper = nd.Settings.paper(1).but(canvas=nd.MultiResolution(64), steps=base.steps, batch=base.batch)
    adam = base.but(optimiser="adam", clip=1.0)
    return {
        "default": base,
        "pattern": known["demo, pattern"],
        "fine": known["demo, fine"],
        "pattern, fine": known["demo, pattern, fine"],
        "centre grey": base.but(centre=nd.Grey()),
        "centre natural noise": base.but(centre=nd.NaturalNoise()),
        "mean pooling": base.but(pooling=nd.Mean()),
        "max pooling": base.but(pooling=nd.Max()),
        "dot product": base.but(score=dot),
        "less shift and noise": base.but(augment=light),
        "no shift, no noise": base.but(augment=()),
        "four times the views": base.but(batch=4 * base.batch),
        "four times the steps": base.but(steps=4 * base.steps),
        "normalised, 32 pixels, way 2": base.but(optimiser="normalised", rate=2.0),
        "normalised, 32 pixels, way 4": base.but(optimiser="normalised", rate=4.0),
        "normalised preset, way 2": normalised.but(rate=2.0),
        "normalised preset, way 4": normalised,
        "normalised preset, little noise": normalised.but(augment=light),
        "light ground": known["light ground"],
        "light ground, pattern, mean": known["light ground, pattern, mean"],
        "Fourier, Adam": adam.but(canvas=nd.Fourier(64), rate=0.03),
        "phases alone (MACO), Adam": adam.but(canvas=nd.MACO.from_pictures(horama_reference.bundled(), 64), rate=0.1),
        "paper's numbers": paper,
    }


def main_score(made: nd.Prototype) -> float:
    """The finished picture's score by attention pooling; of a feature its highest pre-activation."""
    return float(made.scores["attention"] if made.readings is None else made.readings["pre_max"])


def drawn(vlm: nd.VLM, directions: list[Any], settings: nd.Settings, seeds: int) -> list[nd.Prototype]:
    """One prototype of each direction; of several seeds the one whose own score at the end is highest."""
    runs = [nd.synthesize(vlm, directions, settings=settings, seed=s, progress=False) for s in range(seeds)]
    return [max(same, key=main_score) for same in zip(*runs, strict=True)]


def named(judge: nd.DemoJudge, made: Sequence[nd.Prototype], things: list[Any]) -> dict[str, list[bool]]:
    """For each picture, whether it is named: asked freely, told the category, and among five when told."""
    images = [p.image for p in made]
    found: dict[str, list[bool]] = {"strict": [], "hint": [], "five": [], "shuffled": []}
    free = judge.judge(images)
    others = things[1:] + things[:1]
    for image, verdict, thing, other in zip(images, free, things, others, strict=True):
        told = judge.judge([image], category=thing.category)[0].names
        found["strict"].append(verdict.names[0] == thing.name)
        found["hint"].append(told[0] == thing.name)
        found["five"].append(thing.name in told[:5])
        found["shuffled"].append(judge.judge([image], category=other.category)[0].names[0] == other.name)
    return found


def line(
    name: str,
    made: list[nd.Prototype],
    reaches: list[Any],
    found: dict[str, list[bool]],
    base: list[bool],
    spent: float,
) -> str:
    """A row of the table."""
    n = len(made)
    gained = sum(a and not b for a, b in zip(found["hint"], base, strict=True))
    lost = sum(b and not a for a, b in zip(found["hint"], base, strict=True))
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    known = [r.reached for r in reaches if r.reached is not None]
    own = torch.tensor([r.own for r in reaches if r.own is not None])
    cells = [rate(sum(found[k]), n) for k in ("strict", "hint", "five")]
    cells += [f"{gained} / {lost}", f"{p:.2f}", rate(sum(found["shuffled"]), n)]
    cells += [f"{sum(known)} of {len(known)}", f"{float(own.median()):.2f}" if len(own) else "–"]
    cells += [f"{sum(map(main_score, made)) / n:.2f}", f"{spent / n:.1f}"]
    return f"| {name} | " + " | ".join(cells) + " |"


def chosen(vlm: nd.VLM, args: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Directions, half of animals, or features of words and pictures; and the concept that each should be named."""
    concepts = {c.name: c for c in bundle.concepts()}
    if args.features:
        found = blind.clear_features(vlm, args.features)
        return [feature for feature, _ in found], [concepts[word] for _, word in found]
    chance = random.Random(args.seed)
    animals = sorted(name for name, c in concepts.items() if c.category == "animal")
    others = sorted(name for name, c in concepts.items() if c.category != "animal")
    names = chance.sample(animals, args.things // 2) + chance.sample(others, args.things - args.things // 2)
    return nd.concept(vlm, names, args.layer), [concepts[name] for name in names]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--things", type=int, default=24)
    parser.add_argument("--features", type=int, default=0, help="so many SAE features in the things' place")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="these candidates; the default is always there")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of things")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="sheets for eyes, one a candidate")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    known = {name: (settings, 1) for name, settings in candidates().items()}
    known["best of four seeds, by its own score"] = known["default"][0], 4
    if unknown := [name for name in args.only or () if name not in known]:
        parser.error(f"--only {', '.join(unknown)}: there are {', '.join(known)}")
    vlm, judge = nd.load("demo", check=False), nd.DemoJudge()
    directions, things = chosen(vlm, args)
    print(f"{len(things)} {'features' if args.features else 'things'}, {args.threads} thread(s)\n\n{HEAD}")
    base: list[bool] = []
    for name, (settings, seeds) in known.items():
        if base and args.only and name not in args.only:
            continue
        if args.features and any(word in name for word in OF_WORDS):
            continue
        began = time.process_time()
        made = drawn(vlm, directions, settings, seeds)
        spent = time.process_time() - began
        found = named(judge, made, things)
        reaches = nd.reach(vlm, made, towards=directions)
        base = base or found["hint"]
        print(line(name, made, reaches, found, base, spent), flush=True)
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            nd.Prototypes(made).grid(columns=6, side=128).save(
                args.out / f"{name.replace(' ', '-').replace(',', '')}.png"
            )


if __name__ == "__main__":
    main()
