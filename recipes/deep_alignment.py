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
#     python recipes/deep_alignment.py ... --data owner/name --split test --columns image caption    streamed from the hub
#     python recipes/deep_alignment.py ... --choices choices.jsonl       rows of prompt, two pictures (files), chosen (0, 1)
#     python recipes/deep_alignment.py --store build/early-alignment     beside recognition of the prototypes in a store
#     python recipes/deep_alignment.py --rates rates.csv                 or beside rates alone: columns layer, rate, low, high
#
# Without a store, a few prototypes of the bundled model are made and judged on the way, enough to show how it is done.
#
# Of the bundled set: one picture of each concept by one artist, so that the several pictures of a thing differ only in
# their ground; captions are written from recipes/demo_training/facts.txt, which the bundled language model has read.

# %%
from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np

import nnsight_dream as nd
from nnsight_dream.alignment import dreams as alignment_dreams
from nnsight_dream.alignment import encoders, experiments, manipulations, pairs
from nnsight_dream.alignment import figures as alignment_figures
from nnsight_dream.alignment.preference import Choice, clip_scores, preference, rank_agreement
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.io.pictures import as_image
from nnsight_dream.io.rows import file_beside, rows_of
from nnsight_dream.report import tables
from nnsight_dream.stats.layer_map import peak

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


def captions(name: str, fields: list[list[str]]) -> list[str]:
    """Five captions: a whole sentence first, then its parts."""
    kinds, colours, _, parts, _, places, more = fields
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
    result = []
    for ground in GROUNDS:
        for picture in bundle.pictures(background=ground):
            texts = (
                captions(picture.name, written[picture.name])
                if picture.name in written
                else [p.format(name=picture.name, category=picture.category) for p in pairs.PHRASES]
            )
            result.append(pairs.pair(f"{picture.name} on {ground}", picture.image, texts, picture.name, picture.mask))
    return result


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
    if not args.data.exists() and args.split is not None:
        image, caption = args.columns
        return pairs.from_hub(args.data.as_posix(), args.split, most=args.most, image=image, captions=caption)
    return pairs.from_folder(args.data) if args.data.is_dir() else pairs.from_table(args.data)


def halves(some: list[pairs.Pair], seed: int) -> tuple[list[pairs.Pair], list[pairs.Pair]]:
    """Two halves that share no group."""
    groups = list(dict.fromkeys(p.group for p in some))
    first = {groups[i] for i in np.random.default_rng(seed).permutation(len(groups))[: len(groups) // 2]}
    return [p for p in some if p.group in first], [p for p in some if p.group not in first]


def one_each(some: list[pairs.Pair]) -> list[pairs.Pair]:
    """The first picture of each group."""
    return list({p.group: p for p in reversed(some)}.values())[::-1]


def best_layers(rows: list[dict]) -> tuple[int, int]:
    """The (vision, language) layers of a map whose two directions together are greatest."""
    best: dict[tuple[int, int], float] = {}
    for r in rows:
        cell = r["vision_layer"], r["language_layer"]
        best[cell] = best.get(cell, 0.0) + r["value"] / 2
    return max(best, key=lambda cell: best[cell])


# %% [markdown]
# ## Experiments


# %%
def show(name: str, rows: list, args: argparse.Namespace, columns: list[str]) -> None:
    """Write a table and show the columns asked for."""
    tables.write_csv(rows, args.folder / f"{name}.csv")
    n = f", n = {rows[0]['n']}" if "n" in rows[0] else ""
    print(f"\n{name}{n}\n{tables.to_markdown(rows, columns)}", flush=True)


def where(vision: encoders.Encoder, language: encoders.Encoder, first: list[pairs.Pair], args) -> tuple[int, int]:
    """Every layer against every layer, on the first half; the layers that all else is measured at."""
    some = dict(vision_layers=[0, vision.layers], language_layers=[0, language.layers]) if args.quick else {}
    layers = (0, 0)
    for measure in ("predictivity", "cka"):
        rows = experiments.alignment_map(
            vision, language, one_each(first), measure=measure, draws=min(39, args.draws), intervals=False, **some
        )
        tables.write_csv(rows, args.folder / f"map-{measure}.csv")
        alignment_figures.layer_maps(rows, args.folder / f"map-{measure}")
        tops = [peak(rows, d) for d in dict.fromkeys(r["direction"] for r in rows)]
        columns = ["vision_layer", "language_layer", "direction", "value", "null", "null_high", "p", "p_map"]
        show(f"best cells of the map, {measure}", tops, args, columns)
        if measure == "predictivity":
            layers = best_layers(rows)
    return layers


def by_what(vision, language, other: list[pairs.Pair], setting: experiments.Setting, args) -> None:
    """The second half, its looks or its meaning changed."""
    tools = [manipulations.greyscale(), manipulations.rotated(90), manipulations.rotated(180)]
    if all(p.mask is not None for p in other):
        tools += [manipulations.things(), manipulations.stuff()]
    tools.append(manipulations.scrambled(args.seed))
    if args.data is None:
        tools += [manipulations.only("nouns", tagger), manipulations.only("verbs", tagger)]
    tools = tools[::3] if args.quick else tools
    rows = experiments.manipulated(vision, language, other, tools, setting)
    show("manipulations", rows, args, ["manipulation", *SHOWN, "change", "change_low", "change_high", "touched"])
    alignment_figures.manipulations(rows, args.folder / "manipulations")


def averaged(vision, language, second: list[pairs.Pair], setting: experiments.Setting, args) -> None:
    """Captions of a picture, pictures of a thing."""
    other = one_each(second)
    least = min(len(p.captions) for p in other), min(sum(p.group == q.group for q in second) for p in other)
    for over, count, of in (("captions", least[0], other), ("pictures", least[1], second)):
        most = min(2 if args.quick else 5, count)
        if most < 2:
            print(f"\nno averaging over {over}: some have only one")
            continue
        repeats = 1 if args.quick else 3
        rows = experiments.exemplar_averaging(vision, language, of, setting, over=over, most=most, repeats=repeats)
        show(f"averaging {over}", rows, args, ["k", "measure", "direction", "value", "value_low", "value_high", "p"])
        alignment_figures.exemplars(rows, args.folder / f"averaging-{over}")


def dreamt(args: argparse.Namespace, vlm: nd.VLM, some: list[pairs.Pair]) -> nd.Store | None:
    """The store that was given; or, of the bundled model, a small one, made and judged here."""
    if args.store is not None or args.model != "demo" or args.data is not None:
        return None if args.store is None else nd.Store(args.store, must_exist=True)
    category = {c.name: c.category for c in bundle.concepts()}
    names = [p.group for p in some][:: max(1, len(some) // args.dreams)][: args.dreams]
    layers = [1, vlm.layers] if args.quick else [1, vlm.layers // 2, vlm.layers]
    jobs = nd.jobs_of([(n, category[n], "") for n in names], layers)
    settings = nd.Settings.demo().but(steps=2) if args.quick else nd.Settings.demo()
    swept = nd.sweep(vlm, jobs, args.folder / "store", settings=settings)
    nd.examine(swept.store, nd.DemoExaminer())
    return swept.store


def beside_dreams(vlm: nd.VLM, vision, language, everything: list[pairs.Pair], setting, args) -> None:
    """A model's two sides layer by layer, and whether what aligns is what a judge recognises when it is dreamt."""
    some = one_each(everything)
    layers = [1, vlm.layers] if args.quick else None
    # the bare name is what prototypes are made of; in a data set of sentences, the sentence
    caption = 1 if args.data is None else 0
    sides = alignment_dreams.own_sides(vlm, some, setting, layers=layers, caption=caption)
    show("its own two sides", sides, args, ["layer", *SHOWN])
    store = dreamt(args, vlm, some)
    results = nd.results(store) if store is not None else []
    rates = nd.rates(results, judge=args.judge) if results else []
    if args.rates is not None:
        with open(args.rates, encoding="utf-8", newline="") as file:
            numbers = ("rate", "low", "high")
            rates = [
                {"layer": row["layer"]} | {k: float(row[k]) for k in numbers if row.get(k)}
                for row in csv.DictReader(file)
            ]
    if not rates:
        return
    joined = alignment_dreams.beside_recognition(sides, rates)
    show("alignment beside recognition", joined, args, ["layer", "measure", "direction", "value", "rate"])
    alignment_figures.recognition(joined, args.folder / "recognition")
    show("over layers", alignment_dreams.over_layers(joined), args, ["measure", "direction", "value", "p", "n"])
    if store is None:
        return
    results = [r for r in results if args.judge in (None, r["judge"])]
    rows = alignment_dreams.over_concepts(vlm, some, results, setting, caption=caption)
    show("over concepts", rows, args, ["layer", *SHOWN[1:], "recognised", "n"])
    try:
        rows = alignment_dreams.prototypes(vision, language, store, some, setting, caption=caption)
    except ValueError as error:  # too few of them
        print(f"\nno alignment of prototypes: {error}")
        return
    show("prototypes as pictures", rows, args, ["layer", "kind", *SHOWN, "n"])
    alignment_figures.prototypes(rows, args.folder / "prototypes")


def choices(vision, language, other: list[pairs.Pair], setting: experiments.Setting, args) -> None:
    """Which of two pictures people chose for a prompt. Without choices of people: whether the picture that a caption is
    of aligns better than one of another thing of its category, which is no preference but can be right or wrong."""
    examples = []
    if args.choices is not None:
        for _, row in rows_of(args.choices):
            files = [as_image(file_beside(args.choices, name), name) for name in row["pictures"]]
            examples.append(Choice(row["prompt"], (files[0], files[1]), row["chosen"]))
    else:
        category = {c.name: c.category for c in bundle.concepts()}
        random = np.random.default_rng(args.seed)
        for p in other:
            alike = [q for q in other if q.group != p.group and category.get(q.group) == category.get(p.group)]
            if alike:
                chosen, wrong = int(random.integers(2)), alike[int(random.integers(len(alike)))]
                images = (wrong.image, p.image) if chosen else (p.image, wrong.image)
                examples.append(Choice(p.captions[0], images, chosen))
    rows = preference(vision, language, examples, setting)
    name = "preference" if args.choices else "right or wrong picture"
    show(name, rows, args, ["direction", "rate", "low", "high", "p"])
    alignment_figures.preference(rows, args.folder / name.replace(" ", "-"))


def beside_scores(vision, language, other: list[pairs.Pair], setting: experiments.Setting, args) -> None:
    """Whether pairs that align well are those that CLIP, or the bundled judge, finds to match."""
    if args.clip is not None:
        scores, whose = clip_scores(args.clip, other, device=args.device), Path(args.clip).name
    elif args.data is None:
        seen = nd.DemoJudge().judge([p.image for p in other])
        scores, whose = (
            [np.log(v.probabilities[v.rank(p.group) - 1]) for v, p in zip(seen, other, strict=True)],
            "judge",
        )
    else:
        return
    rows = rank_agreement(vision, language, other, scores, setting)
    show(f"rank agreement with {whose}", rows, args, ["direction", *SHOWN[2:]])
    alignment_figures.rank_agreement(rows, args.folder / "rank-agreement")


def asked(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Alignment of pictures and words, layer by layer.")
    parser.add_argument("--model", default="demo", help="a vision-language model, whose tower and words are compared")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is; demo: cpu)")
    parser.add_argument("--vision", help="a vision model instead of the tower: a hub id or folder")
    parser.add_argument("--language", help="a language model instead of the model's own: a hub id or folder")
    parser.add_argument("--data", type=Path, help="a folder, a table, COCO's captions or, with --split, a hub data set")
    parser.add_argument("--split", help="of a data set on the hub, which is streamed")
    parser.add_argument("--columns", nargs=2, default=["image", "caption"], help="of it: pictures and captions")
    parser.add_argument("--pictures", type=Path, help="of COCO's captions: the folder of pictures")
    parser.add_argument("--instances", type=Path, help="of COCO's captions: instances, for masks")
    parser.add_argument("--most", type=int, default=1000, help="pairs of COCO or of the hub")
    parser.add_argument("--choices", type=Path, help="JSON lines of prompt, pictures (two files) and chosen")
    parser.add_argument("--clip", help="a dual encoder whose scores alignment is compared with: a hub id or folder")
    parser.add_argument("--store", type=Path, help="of prototypes that a judge examined")
    parser.add_argument("--judge", help="whose answers count, where several examined the store")
    parser.add_argument("--rates", type=Path, help="recognition by layer, CSV: layer, rate, low, high")
    parser.add_argument("--dreams", type=int, default=15, help="prototypes a layer, where no store is given")
    parser.add_argument("--draws", type=int, default=100, help="of nulls and intervals; at most 39 in maps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=option_path, default=Path("deep-alignment"), help="where results go")
    parser.add_argument("--quick", action="store_true", help="few pairs, layers and draws")
    args = parser.parse_args(arguments)
    check_folder(args.folder, "--folder")  # before any work
    args.draws = 19 if args.quick else args.draws
    args.dreams = 6 if args.quick else args.dreams
    return args


def main(arguments: list[str] | None = None) -> int:
    args = asked(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    both = args.vision and args.language
    vlm = nd.load(args.model, check=False, device=args.device) if not both else None
    vision = encoders.vision_model(args.vision, device=args.device) if args.vision else encoders.tower(vlm)
    language = encoders.language_model(args.language, device=args.device) if args.language else encoders.text_side(vlm)
    everything = chosen_pairs(args)
    if args.quick:
        kept = set(list(dict.fromkeys(p.group for p in everything))[::6])
        everything = [p for p in everything if p.group in kept]
    first, second = halves(everything, args.seed)
    print(f"{vision.name} and {language.name}; {len(everything)} pairs, layers chosen on {len(one_each(first))} things")
    layers = where(vision, language, first, args)
    print(f"\nlayers chosen: {layers[0]} of pictures, {layers[1]} of words; {time.time() - began:.0f} s", flush=True)
    setting = experiments.Setting(layers, draws=args.draws, seed=args.seed)
    by_what(vision, language, one_each(second), setting, args)
    averaged(vision, language, second, setting, args)
    print(f"{time.time() - began:.0f} s", flush=True)
    if vlm is not None:
        beside_dreams(vlm, vision, language, everything, setting, args)
    choices(vision, language, one_each(second), setting, args)
    beside_scores(vision, language, one_each(second), setting, args)
    print(f"\nresults are in {args.folder}; {time.time() - began:.0f} s")
    return 0


# %%
if __name__ == "__main__":
    sys.exit(main())
