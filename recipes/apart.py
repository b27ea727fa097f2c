# %% [markdown]
# # Do a model that only saw and one that only read agree?
#
# The "platonic" claim (arXiv 2405.07987, measured layer by layer in 2509.20751) is that models of pictures and models of
# words come to represent things alike though they never met. Here both are trained from nothing, each by itself, in
# minutes: a tower by telling views of one picture from views of others, without names or captions, and a language model by
# the next token of plain sentences. Then their layers are compared on pictures by an artist that the tower never saw.
#
# What would fool one is measured beside it: untrained models (colours in pictures and words in captions align by
# themselves), chance pairings, and chance pairings **within a category**, which a pair of models passes only if they agree
# on more than that flags are flags and animals animals. Layers are chosen on one half of the things, the rest is measured
# on the other.
#
#     python recipes/train_demo.py --only fetch render   the tower's art, once (minutes; needs npm)
#     python recipes/apart.py                            trains both (about ten minutes of one core), then compares
#     python recipes/apart.py --quick                    a few steps on the bundled pictures: nothing worth keeping
#     python recipes/deep_alignment.py --vision build/apart/vision --language build/apart/language    all experiments

# %%
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from deep_alignment import best_layers, bundled, halves, one_each
from demo_training import apart, art
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.alignment import encoders, experiments, pairs
from nnsight_dream.alignment import figures as alignment_figures
from nnsight_dream.alignment.features import features
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.report import tables
from nnsight_dream.stats.scores import Score, change

QUICK = ["--quick"]
KINDS = {"described": 0, "named": 1}  # a sentence with colours and parts; the bare name
SHOWN = ["captions", "tower", "language", "layers", "measure", "direction", "value", "value_low", "value_high",
         "null_high", "p", "within", "within_high", "within_p"]  # fmt: skip


SHORT = {
    ("trained", "trained"): "both trained",
    ("trained", "untrained"): "tower only",
    ("untrained", "trained"): "words only",
    ("untrained", "untrained"): "neither",
    ("bundled, taught names", "trained"): "tower taught names",
}

# %% [markdown]
# ## Two models


# %%
def trained(args: argparse.Namespace) -> None:
    """Train what is not there yet."""
    if args.art is None and not args.quick and not (args.work / "vision").is_dir():
        raise SystemExit(
            "no art to train on: run `python recipes/train_demo.py --only fetch render`, which writes build/train/art.npz"
        )
    for name, train in (
        ("language", lambda folder: apart.read(folder, steps=args.steps, seed=args.seed)),
        ("vision", lambda folder: apart.see(args.art, folder, steps=args.steps, seed=args.seed)),
    ):
        if (args.work / name).is_dir():
            print(f"{args.work / name} is there; remove it to train anew")
            continue
        train(args.work / name)


def language_of(model: torch.nn.Module | Path, tokenizer: Path, name: str, device: str | None) -> encoders.Encoder:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(tokenizer)
    if isinstance(model, Path):
        return encoders.language_model(model, words, name=name, device=device)
    return encoders.language_model(model.to(device or "cpu"), words, name=name)


def sides(
    work: Path, seed: int, device: str | None = None
) -> tuple[dict[str, encoders.Encoder], dict[str, encoders.Encoder]]:
    """Towers and language models by name; those without training have the same shapes."""
    words = work / "language"
    size = json.loads((words / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    towers = {
        "trained": encoders.vision_model(work / "vision", name="the tower that only saw", device=device),
        "untrained": encoders.vision_model(
            apart.new_tower(seed + 1).to(device or "cpu"), apart.processor(), name="an untrained tower"
        ),
        "bundled, taught names": encoders.tower(nd.load("demo", check=False, device=device)),
    }
    languages = {
        "trained": language_of(words, words, "the language model that only read", device),
        "untrained": language_of(apart.new_reader(size, seed + 1), words, "an untrained language model", device),
    }
    return towers, languages


def checked(towers: dict[str, encoders.Encoder], file: Path | None, work: Path) -> None:
    """What the two have learned, in their own terms."""
    log = json.loads((work / "language" / "training.json").read_text(encoding="utf-8"))
    print(f"language model: {log['before']:.2f} nats a token before, {log['after']:.2f} after {log['tokens']} tokens")
    if file is None:
        return
    z = np.load(file)
    mine = np.flatnonzero(z["style"] == list(art.STYLES).index("noto"))
    names = [c.name for c in art.concepts()]
    pictures = [Image.fromarray(p) for p in z["pictures"][mine]]
    seen = [Image.alpha_composite(Image.new("RGBA", p.size, "white"), p).convert("RGB") for p in pictures]
    test = bundle.pictures()
    for name, tower in towers.items():
        a, b = (features(tower, some, [tower.layers])[tower.layers] for some in ((p.image for p in test), seen))
        spread = b.std(0) + 1e-6
        a, b = ((v - b.mean(0)) / spread for v in (a, b))
        near = (a @ b.T / np.linalg.norm(b, axis=1)).argmax(1)
        hits = sum(names[z["concept"][mine[j]]] == p.name for j, p in zip(near, test, strict=True))
        print(f"tower, {name}: of {len(test)} pictures {hits} have another artist's picture of the same thing nearest "
              f"among {len(seen)}")  # fmt: skip


# %% [markdown]
# ## What they share


# %%
def measured(
    vision: encoders.Encoder, language: encoders.Encoder, first: list[pairs.Pair], second: list[pairs.Pair],
    caption: int, args: argparse.Namespace,
) -> tuple[list[dict], dict[tuple[str, str], Score], list[dict]]:  # fmt: skip
    """(rows with both nulls, scores, the map that layers were chosen by)."""
    chosen_by = experiments.alignment_map(vision, language, first, caption=caption, draws=0)
    layers = best_layers(chosen_by)
    setting = experiments.Setting(layers, ("predictivity", "cka", "knn"), draws=args.draws, seed=args.seed)
    image_features = experiments.one_layer(vision, (p.image for p in second), layers[0], None)
    text_features = experiments.one_layer(language, experiments.captions_of(second, caption), layers[1], None)
    scores = setting.scores(image_features, text_features, None)
    category = {c.name: c.category for c in bundle.concepts()}
    rows = []
    for (measure, direction), score in scores.items():
        inside = score.within([category[p.group] for p in second]).null(args.draws, seed=args.seed)
        record = score.row(args.draws, seed=args.seed) | dict(measure=measure, direction=direction)
        record |= dict(within=inside.mean, within_high=inside.high, within_p=inside.p)
        rows.append(dict(layers=f"{layers[0]}, {layers[1]}") | record)
    return rows, scores, chosen_by


def compared(args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """(every pair of a tower and a language model with each kind of caption, what training changed)."""
    towers, languages = sides(args.work, args.seed, args.device)
    checked(towers, args.art, args.work)
    everything = one_each(bundled())
    first, second = halves(everything[::6] if args.quick else everything, args.seed)
    rows, gains = [], []
    for kind, caption in KINDS.items():
        scores = {}
        for t, vision in towers.items():
            for w, language in languages.items():
                if t.startswith("bundled") and w != "trained":
                    continue
                some, scores[t, w], map_rows = measured(vision, language, first, second, caption, args)
                rows += [dict(captions=kind, tower=t, language=w) | row for row in some]
                if (t, w) == ("trained", "trained"):
                    alignment_figures.layer_maps(map_rows, args.folder / f"map-{kind}")
        for without in (("untrained", "trained"), ("trained", "untrained"), ("untrained", "untrained")):
            for key, score in scores["trained", "trained"].items():
                value, low, high = change(score, scores[without][key], args.draws, seed=args.seed)
                record = dict(captions=kind, without=f"tower {without[0]}, language {without[1]}", measure=key[0])
                gains.append(record | dict(direction=key[1], gain=value, gain_low=low, gain_high=high))
        print(f"{kind}: done", flush=True)
    return rows, gains


def drawn(rows: list[dict], stem: Path) -> None:
    """All conditions side by side; dotted is what 5 % of chance pairings within categories pass."""
    records = []
    for r in rows:
        if r["measure"] == "knn":
            continue
        records.append(
            r
            | dict(
                manipulation=SHORT[r["tower"], r["language"]],
                measure=f"{r['measure']}, {r['captions']}",
                null_high=r["within_high"],
            )
        )
    alignment_figures.manipulations(records, stem)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Two small models trained apart, and what they share.")
    parser.add_argument("--art", type=Path, default=Path("build/train/art.npz"), help="as train_demo.py renders it")
    parser.add_argument("--work", type=Path, default=Path("build/apart"), help="where the two models go, or are")
    parser.add_argument("--folder", type=option_path, default=Path("apart"), help="where results go")
    parser.add_argument("--steps", type=int, default=500, help="of training each")
    parser.add_argument("--draws", type=int, default=200, help="of nulls and intervals")
    parser.add_argument("--threads", type=int, default=0, help="of torch; its own choice by default")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is; demo: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps, few things and draws, in --folder alone")
    args = parser.parse_args(arguments)
    check_folder(args.folder, "--folder")  # before any work
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.work, args.steps, args.draws = args.folder / "models", 3, 19
    if args.quick or not args.art.is_file():
        args.art = None
    args.folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    trained(args)
    print(f"both models are there; {time.time() - began:.0f} s", flush=True)
    rows, gains = compared(args)
    tables.write_csv(rows, args.folder / "apart.csv")
    tables.write_csv(gains, args.folder / "gains.csv")
    print(
        f"\nn = {rows[0]['n']}\n{tables.to_markdown(rows, SHOWN)}\n\nwhat training both adds\n{tables.to_markdown(gains)}"
    )
    drawn(rows, args.folder / "apart")
    print(f"\nresults are in {args.folder}; {time.time() - began:.0f} s")
    return 0


# %%
if __name__ == "__main__":
    sys.exit(main())
