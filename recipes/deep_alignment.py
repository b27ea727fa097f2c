# %% [markdown]
# # Where, and by what, do words and pictures align?
#
# The experiments of arXiv 2509.20751 on any vision model and any language model, or on a model's own two sides: how well
# each layer's features of pictures predict each layer's features of their captions and the other way round, what happens
# to that when looks or meaning are taken away, and when several captions or pictures of a thing are averaged.
#
# Layers are chosen on one half of the pairs and all else is measured on the other, so that no choice flatters a result.
# Every value stands beside what chance pairings give.
#
#     python recipes/deep_alignment.py                                   the bundled model: tower against language model
#     python recipes/deep_alignment.py --quick                           few pairs, few layers
#     python recipes/deep_alignment.py --vision facebook/dinov2-large --language bigscience/bloom-560m --data FOLDER
#     python recipes/deep_alignment.py ... --data captions_val2017.json --pictures val2017 --instances instances_val2017.json
#     python recipes/deep_alignment.py ... --choices choices.jsonl       rows of prompt, two pictures (files), chosen (0, 1)
#
# Of the bundled set: one picture of each concept by one artist, so that the several pictures of a thing differ only in
# their ground; captions are written from recipes/demo_training/facts.txt, which the bundled language model has read.

# %%
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import nnsight_dream as nd
from nnsight_dream import alignment_experiments as experiments
from nnsight_dream import alignment_figures, demo, encoders, manipulations, pairs, tables
from nnsight_dream.feature_store import features
from nnsight_dream.layer_maps import peak
from nnsight_dream.preference import Choice, preference
from nnsight_dream.representation import retrieval, standardise

QUICK = ["--quick"]
FACTS = Path(__file__).parent / "demo_training" / "facts.txt"
GROUNDS = (1.0, 0.5, 0.0)
SHOWN = ["measure", "direction", "value", "value_low", "value_high", "null", "null_high", "p"]


# %% [markdown]
# ## Pairs


# %%
def facts() -> dict[str, list[list[str]]]:
    """What is written of each concept: kinds, colours, shapes, parts, counts, places, other facts."""
    text = FACTS.read_text(encoding="utf-8").split("[facts]\n", 1)[1].split("\n[", 1)[0]
    rows = [line.split("|") for line in text.splitlines() if line.count("|") >= 6]
    return {
        row[0].strip(): [[p.strip() for p in field.split(",") if p.strip()] for field in row[1:7]]
        + [[row[7].strip()] if len(row) > 7 else []]
        for row in rows
    }


def captions(name: str, told: list[list[str]]) -> list[str]:
    """Five captions: a whole sentence first, then its parts."""
    kinds, colours, _, parts, _, places, more = told
    does = [
        m.split(":", 1)[1].split(",")[0].strip()
        for m in (more[0].split(";") if more else [])
        if m.strip().startswith("does:")
    ]
    is_, has = " and ".join(colours[:2]) or "here", ", ".join(parts[:3]) or "a shape"
    where = f" {places[0]}" if places else ""
    whole = f"{name} is {is_}, has {has}{' and ' + does[0] if does else ''}{where}"
    return [
        whole,
        name,
        f"{name} is {kinds[0] if kinds else 'a thing'}, {is_}",
        f"{name} has {has}",
        f"{name}{where or ' is here'}",
    ]


def bundled() -> list[pairs.Pair]:
    """The bundled pictures on several grounds, with what is written of them."""
    written = facts() if FACTS.is_file() else {}
    found = []
    for ground in GROUNDS:
        for shown in demo.pictures(background=ground):
            told = (
                captions(shown.name, written[shown.name])
                if shown.name in written
                else [p.format(name=shown.name, category=shown.category) for p in pairs.PHRASES]
            )
            found.append(pairs.pair(f"{shown.name} on {ground}", shown.image, told, shown.name, shown.mask))
    return found


def tagger(text: str) -> list[tuple[str, str]]:
    """Nouns and verbs of the sentences that `captions` writes."""
    colours = {"and", "a", "in", "on", "the", "at", "of", "with", "is", "has", "here", "to", "under"}
    words = [w.strip(",.") for w in text.split()]
    tags, verb_next = [], False
    for i, word in enumerate(words):
        verb = word in ("is", "has") or verb_next
        verb_next = word == "and" and "has" in words[:i]
        tags.append((word, "VB" if verb else "DT" if word in colours else "NN"))
    return tags


def chosen_pairs(args: argparse.Namespace) -> list[pairs.Pair]:
    if args.data is None:
        return bundled()
    if args.pictures is not None:
        return pairs.from_coco(args.data, args.pictures, args.instances, most=args.most)
    return pairs.from_folder(args.data) if args.data.is_dir() else pairs.from_table(args.data)


def halves(some: list[pairs.Pair], seed: int) -> tuple[list[pairs.Pair], list[pairs.Pair]]:
    """Two halves that share no group."""
    groups = list(dict.fromkeys(p.group for p in some))
    first = {groups[i] for i in np.random.default_rng(seed).permutation(len(groups))[: len(groups) // 2]}
    return [p for p in some if p.group in first], [p for p in some if p.group not in first]


def one_each(some: list[pairs.Pair]) -> list[pairs.Pair]:
    """The first picture of each group."""
    return list({p.group: p for p in reversed(some)}.values())[::-1]


# %%
def told(name: str, rows: list, args: argparse.Namespace, columns: list[str]) -> None:
    """Write a table and show the columns asked for."""
    tables.write_csv(rows, args.folder / f"{name}.csv")
    print(f"\n{name}, n = {rows[0]['n']}\n{tables.to_markdown(rows, columns)}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Alignment of pictures and words, layer by layer.")
    parser.add_argument("--model", default="demo", help="a vision-language model, whose tower and words are compared")
    parser.add_argument("--vision", help="a vision model instead of the tower: a hub id or folder")
    parser.add_argument("--language", help="a language model instead of the model's own: a hub id or folder")
    parser.add_argument("--data", type=Path, help="a folder, a table or COCO's captions; the bundled set by default")
    parser.add_argument("--pictures", type=Path, help="of COCO's captions: the folder of pictures")
    parser.add_argument("--instances", type=Path, help="of COCO's captions: instances, for masks")
    parser.add_argument("--most", type=int, default=1000, help="pairs of COCO")
    parser.add_argument("--choices", type=Path, help="JSON lines of prompt, pictures (two files) and chosen")
    parser.add_argument("--draws", type=int, default=100, help="of nulls and intervals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("deep-alignment"), help="where results go")
    parser.add_argument("--quick", action="store_true", help="few pairs, layers and draws")
    args = parser.parse_args(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    draws = 19 if args.quick else args.draws
    vlm = nd.load(args.model, check=False) if not (args.vision and args.language) else None
    vision = encoders.vision_model(args.vision) if args.vision else encoders.tower(vlm)
    language = encoders.language_model(args.language) if args.language else encoders.text_side(vlm)
    everything = chosen_pairs(args)
    if args.quick:
        kept = set(list(dict.fromkeys(p.group for p in everything))[::6])
        everything = [p for p in everything if p.group in kept]
    first, second = halves(everything, args.seed)
    print(f"{vision.name} and {language.name}; {len(everything)} pairs, layers chosen on {len(one_each(first))} things")

    # where: every layer against every layer, on the first half
    some = dict(vision_layers=[0, vision.layers], language_layers=[0, language.layers]) if args.quick else {}
    best: dict[tuple[int, int], float] = {}
    for measure in ("predictivity", "cka"):
        rows = experiments.alignment_map(
            vision, language, one_each(first), measure=measure, draws=draws, intervals=False, **some
        )
        tables.write_csv(rows, args.folder / f"map-{measure}.csv")
        alignment_figures.layer_maps(rows, args.folder / f"map-{measure}")
        tops = [peak(rows, d) for d in dict.fromkeys(r["direction"] for r in rows)]
        told(
            f"best cells of the map, {measure}",
            tops,
            args,
            ["vision_layer", "language_layer", "direction", "value", "null", "null_high", "p", "p_map"],
        )
        if measure == "predictivity":
            for r in rows:
                cell = r["vision_layer"], r["language_layer"]
                best[cell] = best.get(cell, 0.0) + r["value"] / 2
    layers = max(best, key=lambda cell: best[cell])
    print(f"\nlayers chosen: {layers[0]} of pictures, {layers[1]} of words; {time.time() - began:.0f} s", flush=True)
    setting = experiments.Setting(layers, draws=draws, seed=args.seed)

    # by what: the second half, changed
    other = one_each(second)
    tools = [manipulations.greyscale(), manipulations.rotated(90), manipulations.rotated(180)]
    if all(p.mask is not None for p in other):
        tools += [manipulations.things(), manipulations.stuff()]
    tools.append(manipulations.scrambled(args.seed))
    if args.data is None:
        tools += [manipulations.only("nouns", tagger), manipulations.only("verbs", tagger)]
    tools = tools[::3] if args.quick else tools
    rows = experiments.manipulated(vision, language, other, tools, setting)
    told("manipulations", rows, args, ["manipulation", *SHOWN, "change", "change_low", "change_high", "touched"])
    alignment_figures.manipulations(rows, args.folder / "manipulations")

    # averaged: captions of a picture, pictures of a thing
    least = min(len(p.captions) for p in other), min(sum(p.group == q.group for q in second) for p in other)
    for over, count, of in (("captions", least[0], other), ("pictures", least[1], second)):
        most = min(2 if args.quick else 5, count)
        if most < 2:
            print(f"\nno averaging over {over}: some have only one")
            continue
        rows = experiments.exemplar_averaging(
            vision, language, of, setting, over=over, most=most, repeats=1 if args.quick else 3
        )
        told(f"averaging {over}", rows, args, ["k", "measure", "direction", "value", "value_low", "value_high", "p"])
        alignment_figures.exemplars(rows, args.folder / f"averaging-{over}")

    # a model's own two sides, layer by layer, in one space: is the picture's own name the nearest?
    if vlm is not None:
        rows = []
        which = [0, vlm.layers] if args.quick else None
        seen = features(encoders.image_side(vlm), (p.image for p in other), which)
        said = features(encoders.text_side(vlm), (p.captions[0] for p in other), which)
        for layer in seen:
            if not np.ptp(said[layer], axis=0).any():
                continue
            for direction, x, y in (("words to pictures", said, seen), ("pictures to words", seen, said)):
                score = retrieval(standardise(x[layer]), standardise(y[layer]), 5)
                rows.append(dict(layer=layer, direction=direction) | score.row(10 * draws, seed=args.seed))
        told("its own two sides", rows, args, ["layer", *SHOWN])

    if args.choices:
        found = []
        for line in args.choices.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            files = [Image.open(args.choices.parent / name).convert("RGB") for name in row["pictures"]]
            found.append(Choice(row["prompt"], (files[0], files[1]), row["chosen"]))
        told(
            "preference", preference(vision, language, found, setting), args, ["direction", "rate", "low", "high", "p"]
        )
    print(f"\nresults are in {args.folder}; {time.time() - began:.0f} s")
    return 0


# %%
if __name__ == "__main__":
    sys.exit(main())
