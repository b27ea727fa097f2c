"""Blind naming: what people see in prototypes, looked at on shuffled sheets without labels.

    python benchmarks/blind.py make  --folder build/blind [--count 60] [--features 20] [--layers 1 4] [--settings demo "demo, fine"] [--model demo]
    (look at sheet-*.png, write what is seen into form.csv: a name, or "none")
    python benchmarks/blind.py hint  --folder build/blind     form-hint.csv, which also gives each picture's category
    python benchmarks/blind.py score --folder build/blind     rates by setting, layer and category, beside the judge's
    python benchmarks/blind.py keep  --folder build/blind     adds pictures, names and answers to benchmarks/blind/
    python benchmarks/blind.py again --folder build/again     a sheet of kept pictures for another rater; then as above
    python benchmarks/blind.py agree                          how far raters and judge agree on what was named again

`key.json` holds the labels: it is opened by `hint` for the categories, only once every name is written, and by `score`.
A tenth of the pictures are controls, prototypes of random directions; "none" is right for them.

asked freely = the name says the concept or one of its other names; near = or something of its line in kin.txt; told the
category = the name given in the second form, which says the category.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from sklearn.metrics import cohen_kappa_score

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.engine.pooling import dot
from nnsight_dream.judges.local import demo_aliases
from nnsight_dream.judges.questions import in_words, mentions
from nnsight_dream.sae.encoding import site_of
from nnsight_dream.sae.responses import responses, selective

KEPT = Path(__file__).with_name("blind")
AGAIN = KEPT / "again"  # answers of other raters to pictures that are kept
TILE, COLUMNS, ROWS = 128, 6, 5
NONE = "none"


def presets() -> dict[str, nd.Settings]:
    """The settings whose pictures can be put on a sheet, by name."""
    demo, pattern = nd.Settings.demo(), nd.Pattern()
    normalised = nd.Settings.normalised(64).but(steps=60, batch=2, augment=demo.augment, centre=demo.centre, rate=2.0)
    even = demo.but(optimiser="normalised", rate=1.2, augment=(nd.Shift(pixels=1), nd.Noise(0.02)))
    light_ground = even.but(canvas=nd.Pixels(64, ground=0.85))
    return {
        "demo": demo,
        "demo, fine": demo.but(quality="fine"),
        "demo, pattern": demo.but(pattern=pattern),
        "demo, pattern, fine": demo.but(pattern=pattern, quality="fine"),
        "demo, light": demo.but(steps=120, batch=4, augment=(nd.Shift(pixels=1), nd.Noise(0.02))),
        "demo, dot product": demo.but(score=dot),
        "demo, canvas 64": demo.but(steps=120, batch=4, canvas=nd.Pixels(64)),
        "normalised": normalised,
        "normalised, long way": normalised.but(rate=4.0),
        "even steps": even,
        "light ground": light_ground,
        "light ground, mean": light_ground.but(pooling=nd.Mean()),
        "light ground, pattern": light_ground.but(pattern=pattern),
        "light ground, pattern, mean": light_ground.but(pattern=pattern, pooling=nd.Mean()),
        "light ground, pattern, 32 pixels": light_ground.but(pattern=pattern, canvas=nd.Pixels(32, ground=0.85)),
        "light ground, pattern, parts": light_ground.but(pattern=pattern, canvas=nd.MultiResolution(64, ground=0.85)),
    }


def clear_features(vlm: nd.VLM, count: int) -> list[tuple[Any, str]]:
    """The clearest features of the bundled autoencoder that fire for a word and its pictures, with the word."""
    sae, pictures = nd.demo_sae(), bundle.pictures()
    words = [c.name for c in bundle.concepts()]
    activations = responses(vlm, sae, site_of(vlm, sae), words, [p.image for p in pictures], [p.name for p in pictures])
    return [(nd.feature(sae, row.feature), row.concept) for row in selective(activations)[:count]]


def features(args: argparse.Namespace, vlm: nd.VLM, chance: random.Random) -> list[tuple[dict[str, Any], Any]]:
    """Items of features, each with one of the settings."""
    categories = {c.name: c.category for c in bundle.concepts()}
    items = []
    for feature, word in clear_features(vlm, args.features):
        item = dict(concept=word, category=categories[word], feature=feature.parts[0][1].index)
        item |= dict(setting=chance.choice(args.settings), layer="feature", model=args.model, trained=args.trained)
        items.append((item, feature))
    return items


def make(args: argparse.Namespace) -> None:
    """Draw, shuffle, and write sheets, an empty form and the key."""
    args.folder.mkdir(parents=True)
    chance = random.Random(args.seed)
    vlm, by_name = nd.load(args.model), presets()
    concepts = bundle.concepts()
    animals = [c for c in concepts if c.category == "animal"]
    others = [c for c in concepts if c.category != "animal"]
    controls = args.count // 10
    wanted = chance.sample(animals, (args.count - controls) // 2)
    wanted += chance.sample(others, args.count - controls - len(wanted))
    items: list[dict[str, Any]] = []
    groups: dict[tuple[str, Any], list[tuple[dict[str, Any], Any]]] = defaultdict(list)
    for item, feature in features(args, vlm, chance) if args.features else ():
        items.append(item)
        groups[item["setting"], "feature"].append((item, feature))
    for number, concept in enumerate([*wanted, *[None] * controls]):
        setting, layer = chance.choice(args.settings), chance.choice(args.layers)
        if concept is None:
            generator = torch.Generator().manual_seed(1000 * args.seed + number)
            like = nd.concept(vlm, chance.choice(animals).name, layer)
            vector = torch.randn(like.vector.shape, generator=generator)
            direction = nd.from_tensor(vlm, vector / vector.norm() * like.norm, layer, label="random")
            item = dict(concept=None, category=chance.choice(concepts).category)
        else:
            direction = nd.concept(vlm, concept.name, layer)
            item = dict(concept=concept.name, category=concept.category)
        item |= dict(setting=setting, layer=layer, model=args.model, trained=args.trained)
        items.append(item)
        groups[setting, layer].append((item, direction))
    for (setting, _), members in groups.items():
        drawn = nd.synthesize(vlm, [d for _, d in members], settings=by_name[setting], seed=args.seed, progress=False)
        for (item, _), prototype in zip(members, drawn, strict=True):
            item["image"] = prototype.image
    lay_out(args.folder, items, chance)


def lay_out(folder: Path, items: list[dict[str, Any]], chance: random.Random) -> None:
    """Shuffle and number the items, and write their pictures ("image"), the sheets, an empty form and the key."""
    chance.shuffle(items)
    for number, item in enumerate(items, 1):
        item["number"] = number
        item.pop("image").save(folder / f"{number:03d}.png")
    (folder / "key.json").write_text(json.dumps(items, indent=0), encoding="utf-8")
    sheets(folder, len(items))
    write_form(folder / "form.csv", ({"number": i["number"], "name": ""} for i in items))
    print(f"{len(items)} pictures; look at {folder}/sheet-*.png and fill {folder}/form.csv")


def kept() -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Every named picture of benchmarks/blind/ with its first answers; 64 pixels a side. "sheet" says which file it is in."""
    items: list[dict[str, Any]] = []
    images: list[Image.Image] = []
    for file in sorted(KEPT.glob("*.json")):
        rows = json.loads(file.read_text(encoding="utf-8"))
        with Image.open(file.with_suffix(".webp")) as sheet:
            images += [sheet.convert("RGB").crop((64 * n, 0, 64 * n + 64, 64)) for n in range(len(rows))]
        items += [row | {"sheet": file.stem} for row in rows]
    return items, images


def named_again() -> list[dict[str, Any]]:
    """The answers of other raters: "sheet" and "of" say to which kept picture."""
    return [row for file in sorted(AGAIN.glob("*.json")) for row in json.loads(file.read_text(encoding="utf-8"))]


def again(args: argparse.Namespace) -> None:
    """A sheet of kept pictures, drawn by lot, for a rater who has not seen them."""
    args.folder.mkdir(parents=True)
    chance = random.Random(args.seed)
    done = {(row["sheet"], row["of"]) for row in named_again()}
    pairs = [p for p in zip(*kept(), strict=True) if (p[0]["sheet"], p[0]["number"]) not in done]
    chosen = chance.sample(pairs, min(args.count, len(pairs)))
    lay_out(args.folder, [item | {"image": image, "of": item["number"]} for item, image in chosen], chance)


def agree(args: argparse.Namespace) -> None:
    """Kappa of first rater, second rater and judge, on every picture that was named again."""
    by_place = {(item["sheet"], item["number"]): (item, image) for item, image in zip(*kept(), strict=True)}
    pairs = [(row, *by_place[row["sheet"], row["of"]]) for row in named_again()]
    pairs = [pair for pair in pairs if pair[1]["concept"] is not None]
    firsts = [item for _, item, _ in pairs]
    first = [rights(item) for item in firsts]
    second = [rights(item | {k: row[k] for k in ("name", "with_hint")}) for row, item, _ in pairs]
    judged = judge_rights(firsts, [image for *_, image in pairs], nd.DemoJudge(args.judge))
    print(
        "| question | pictures | first rater | second rater | judge | kappa of raters | first and judge | second and judge |"
    )
    print("|---" * 8 + "|")
    for way, rater, machine in (("strict", 0, 0), ("hint", 2, 1)):
        rows = [(a[rater], b[rater], c[machine]) for a, b, c in zip(first, second, judged, strict=True)]
        columns = list(zip(*(row for row in rows if None not in row), strict=True))
        rates = " | ".join(f"{sum(column) / len(column):.0%}" for column in columns)
        kappas = " | ".join(f"{cohen_kappa_score(columns[a], columns[b]):.2f}" for a, b in ((0, 1), (0, 2), (1, 2)))
        print(f"| {in_words(way)} | {len(columns[0])} | {rates} | {kappas} |")


def sheets(folder: Path, count: int) -> None:
    """Numbered tiles, 30 a sheet."""
    each = COLUMNS * ROWS
    for start in range(0, count, each):
        sheet = Image.new("RGB", (COLUMNS * (TILE + 8), ROWS * (TILE + 22)), "white")
        pen = ImageDraw.Draw(sheet)
        for place, number in enumerate(range(start + 1, min(count, start + each) + 1)):
            x, y = place % COLUMNS * (TILE + 8), place // COLUMNS * (TILE + 22)
            with Image.open(folder / f"{number:03d}.png") as image:
                sheet.paste(image.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC), (x, y + 16))
            pen.text((x + 2, y + 2), str(number), fill="black")
        sheet.save(folder / f"sheet-{start // each + 1}.png")


def write_form(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A CSV form."""
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_form(path: Path, count: int) -> dict[int, str]:
    """The names by number; exits where one is missing."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        names = {int(row["number"]): row["name"].strip() for row in csv.DictReader(file)}
    if missing := [n for n in range(1, count + 1) if not names.get(n)]:
        sys.exit(f"{path}: no name for picture {', '.join(map(str, missing))}; write 'none' where nothing is seen")
    return names


def hint(args: argparse.Namespace) -> None:
    """The second form, with categories."""
    key = read_key(args.folder)
    read_form(args.folder / "form.csv", len(key))
    rows = ({"number": i["number"], "category": i["category"], "name": ""} for i in key)
    write_form(args.folder / "form-hint.csv", rows)
    print(f"fill {args.folder}/form-hint.csv")


def read_key(folder: Path) -> list[dict[str, Any]]:
    """The labels, by number."""
    return sorted(json.loads((folder / "key.json").read_text(encoding="utf-8")), key=lambda item: item["number"])


def answered(folder: Path) -> list[dict[str, Any]]:
    """The labels with what was seen."""
    key = read_key(folder)
    names = read_form(folder / "form.csv", len(key))
    second = folder / "form-hint.csv"
    hinted = read_form(second, len(key)) if second.exists() else {}
    return [item | {"name": names[item["number"]], "with_hint": hinted.get(item["number"])} for item in key]


def kin() -> dict[str, tuple[str, ...]]:
    """For each name the names that hardly differ from it in a small picture."""
    lines = (KEPT / "kin.txt").read_text(encoding="utf-8").splitlines()
    groups = [tuple(n.strip() for n in line.split(",")) for line in lines if line.strip() and line[0] != "#"]
    return {name: group for group in groups for name in group}


def rights(item: dict[str, Any]) -> tuple[bool, bool, bool | None]:
    """Whether a picture was named asked freely, nearly, and told the category (None where no second form was filled)."""
    if item["concept"] is None:
        right = item["name"] == NONE
        return right, right, None if item["with_hint"] is None else item["with_hint"] == NONE
    own = demo_aliases()[item["concept"]]
    strict = mentions(item["name"], own)
    near = strict or mentions(item["name"], kin().get(item["concept"], own))
    return strict, near, None if item["with_hint"] is None else mentions(item["with_hint"], own)


def rate(hits: Iterable[bool]) -> str:
    """`62 % [48, 74] of 50`."""
    hits = list(hits)
    if not hits:
        return "-"
    low, high = nd.wilson(sum(hits), len(hits))
    return f"{sum(hits) / len(hits):.0%} [{100 * low:.0f}, {100 * high:.0f}] of {len(hits)}"


def judge_rights(
    items: list[dict[str, Any]], images: list[Image.Image], judge: nd.DemoJudge
) -> list[tuple[bool, bool]]:
    """Whether the judge names each picture, asked freely and told the category; of a random direction never."""
    names = [demo_aliases()[item["concept"]] if item["concept"] else () for item in items]
    free = judge.judge(images)
    hinted = [judge.judge([im], category=i["category"])[0] for im, i in zip(images, items, strict=True)]
    return [(a.names[0] in own, b.names[0] in own) for own, a, b in zip(names, free, hinted, strict=True)]


def table(items: list[dict[str, Any]], images: list[Image.Image], judge: nd.DemoJudge) -> None:
    """Rates of eyes and judge, by what the pictures are."""
    for item, judged in zip(items, judge_rights(items, images, judge), strict=True):
        item["judge"], item["judge hint"] = judged
        item["strict"], item["near"], item["hint"] = rights(item)
    ways: dict[str, Callable[[dict[str, Any]], Any]] = {
        "all": lambda i: "control" if i["concept"] is None else "features" if "feature" in i else "concepts",
        "setting": lambda i: i["setting"] + (", features" if "feature" in i else ""),
        "layer": lambda i: i["layer"],
        "kind": lambda i: "features" if "feature" in i else "animals" if i["category"] == "animal" else "other things",
    }
    print(
        "| | rater, asked freely | rater, near | rater, told the category | judge, asked freely | judge, told the category |\n|---|---|---|---|---|---|"
    )
    for way, of in ways.items():
        rows = items if way == "all" else [i for i in items if i["concept"] is not None]
        for value in sorted({str(of(i)) for i in rows}):
            mine = [i for i in rows if str(of(i)) == value]
            cells = [
                rate(i[c] for i in mine if i[c] is not None) for c in ("strict", "near", "hint", "judge", "judge hint")
            ]
            print(f"| {way}: {value} | {' | '.join(cells)} |")
    concepts = [i for i in items if i["concept"] is not None]
    for eyes, machine in (("strict", "judge"), ("hint", "judge hint")):
        both = [i for i in concepts if i[eyes] is not None]
        if both:
            print(
                f"kappa, {in_words(eyes)}: {cohen_kappa_score([i[eyes] for i in both], [i[machine] for i in both]):.2f} ({len(both)} pictures)"
            )


def score(args: argparse.Namespace) -> None:
    """Print the table of one folder, or of everything that is kept."""
    if args.kept:
        items, images = kept()
    else:
        items = answered(args.folder)
        images = [Image.open(args.folder / f"{i['number']:03d}.png").convert("RGB") for i in items]
    table(items, images, nd.DemoJudge(args.judge))
    if args.verbose:
        for i in items:
            marks = "".join("x" if i[c] else "." for c in ("strict", "near", "hint", "judge", "judge hint"))
            print(
                f"{i['number']:4d} {marks} {i['concept']} | {i['name']} | {i['with_hint']} | {i['setting']} {i['layer']}"
            )


def keep(args: argparse.Namespace) -> None:
    """Add a folder's pictures and answers to those that are kept."""
    items = answered(args.folder)
    day = datetime.date.today().isoformat()
    home = AGAIN if "of" in items[0] else KEPT
    name = next(f"{day}-{n}" for n in range(1, 100) if not (home / f"{day}-{n}.json").exists())
    if home == AGAIN:
        rows = [{k: i[k] for k in ("sheet", "of", "name", "with_hint")} | {"date": day} for i in items]
        AGAIN.mkdir(exist_ok=True)
        (AGAIN / f"{name}.json").write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")
        print(f"{len(rows)} answers kept in {AGAIN / name}.json")
        return
    sheet = Image.new("RGB", (64 * len(items), 64))
    for place, item in enumerate(items):
        with Image.open(args.folder / f"{item['number']:03d}.png") as image:
            sheet.paste(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC), (64 * place, 0))
    sheet.save(KEPT / f"{name}.webp", quality=95, method=6)
    (KEPT / f"{name}.json").write_text(
        json.dumps([i | {"date": day} for i in items], indent=0) + "\n", encoding="utf-8"
    )
    print(f"{len(items)} pictures kept in {KEPT / name}.webp and .json")


def main() -> None:
    """One of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "hint", "score", "keep", "again", "agree"))
    parser.add_argument("--folder", type=Path, default=Path("build/blind"))
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--layers", type=int, nargs="+", default=[1])
    parser.add_argument("--features", type=int, default=0, help="so many SAE features of words and pictures, too")
    parser.add_argument("--settings", nargs="+", choices=list(presets()), default=["demo", "demo, fine"])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--trained", default="bundled", help="which training the model is of, for the record")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", action="store_true", help="score everything in benchmarks/blind/")
    parser.add_argument("--judge", type=Path, help="the folder of another judge than the bundled one")
    parser.add_argument("--verbose", action="store_true", help="a line for each picture")
    args = parser.parse_args()
    {"make": make, "hint": hint, "score": score, "keep": keep, "again": again, "agree": agree}[args.what](args)


if __name__ == "__main__":
    main()
