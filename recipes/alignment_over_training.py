# %% [markdown]
# # When do words and pictures come to lie together?
#
# Checkpoints of one training, from first to last: at each of them and at each layer, the share of held-out pictures that
# find their own word among all words, by the cosine of centred mean patches with concept vectors, against pictures whose
# words are shuffled (open question 3 of arXiv 2509.20751; mechanism 2 of arXiv 2601.08017).
#
#     python recipes/alignment_over_training.py --checkpoints build/gemma/checkpoints --folder build/over-training
#     python recipes/alignment_over_training.py --quick              the bundled model alone
#
# The checkpoints are folders named by their steps: whole models, or what recipes/train_gemma.py writes. A checkpoint that
# was measured is not measured again. Figure: over-training.png; numbers: over-training.csv.

# %%
from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nnsight_dream as nd
from nnsight_dream.demo import bundle, gemma
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.io.pictures import as_tensors
from nnsight_dream.report import tables
from nnsight_dream.report.figures import draw_panels, label_axis, saved

QUICK = ["--quick"]


# %% [markdown]
# ## A checkpoint


# %%
def whole_model(place: Path | str) -> Path | str:
    """The folder of a whole model: its own, or for trained files of Gemma 3 270M the one put together in the cache."""
    trained = isinstance(place, Path) and "text_config" not in json.loads((place / "config.json").read_text())
    return gemma.gemma_folder(place) if trained else place


def measured(vlm: nd.VLM, names: list[str], layers: list[int], batch: int, seed: int) -> list[dict[str, Any]]:
    """By layer: shares of pictures whose word is first, and among ten, with interval, chance and p; cosines."""
    pictures = torch.cat(as_tensors([p.image for p in bundle.pictures(names)], "pictures"))
    sites = [vlm.site(layer) for layer in layers]
    seen: dict[nd.Site, list[torch.Tensor]] = {site: [] for site in sites}
    for part in pictures.split(batch):
        with torch.no_grad():
            for site, patches in nd.read_pictures(vlm, part, sites).items():
                seen[site].append(patches.float().mean(1).cpu())
    words = nd.concept(vlm, names, layers)
    rows = []
    for i, site in enumerate(sites):
        images = torch.cat(seen[site]).double().numpy()
        texts = torch.stack([of[i].vector for of in words]).double().numpy()
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images - images.mean(0), texts - texts.mean(0))]
        cosines = unit[0] @ unit[1].T
        apart = ~np.eye(len(names), dtype=bool)
        row: dict[str, Any] = dict(layer=site.layer, cosine=cosines.diagonal().mean(), others=cosines[apart].mean())
        for k, label in ((1, "first"), (min(10, len(names)), "ten")):
            score = nd.retrieval(images, texts, k)
            null, (low, high) = score.null(seed=seed), score.interval(seed=seed)
            row |= {label: float(score), f"{label} low": low, f"{label} high": high, f"{label} chance": null.mean}
            row[f"{label} p"] = null.p
        rows.append(row)
    return rows


# %% [markdown]
# ## All of them


# %%
def figure(rows: list[dict[str, Any]], stem: Path) -> None:
    """Over steps, a line for some layers; and at the last step over layers."""
    drawn, axes = draw_panels(2, 2)
    layers, steps = (sorted({row[k] for row in rows}) for k in ("layer", "step"))
    selected = [layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, 6).astype(int))]
    for place, layer in enumerate(selected):
        mine = sorted((r for r in rows if r["layer"] == layer), key=lambda r: r["step"])
        colour = f"C{place}"
        xs, ys = [r["step"] for r in mine], [100 * r["ten"] for r in mine]
        axes[0].plot(xs, ys, marker="o", markersize=3, color=colour, label=f"layer {layer}")
        axes[0].fill_between(
            xs, [100 * r["ten low"] for r in mine], [100 * r["ten high"] for r in mine], color=colour, alpha=0.12, lw=0
        )
    axes[0].axhline(100 * rows[0]["ten chance"], color="grey", linestyle="--", linewidth=1, label="chance")
    label_axis(axes[0], "right word among ten, % of pictures", "training step", size=6, place="upper right")
    last = sorted((r for r in rows if r["step"] == steps[-1]), key=lambda r: r["layer"])
    for label, name in (("ten", "among ten"), ("first", "first")):
        axes[1].plot(layers, [100 * r[label] for r in last], marker="o", markersize=3, label=name)
    axes[1].axhline(100 * rows[0]["ten chance"], color="grey", linestyle="--", linewidth=1, label="chance of ten")
    axes[1].set_xticks(layers[:: max(1, len(layers) // 9)])
    label_axis(axes[1], f"by layer, at step {steps[-1]}, %", size=6, place="upper left")
    axes[0].set_ylim(top=1.4 * axes[0].get_ylim()[1])  # of both: room for the lines' names
    saved(drawn, stem.with_suffix(".png"))


# %%
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Alignment of words and pictures by layer, over a training.")
    parser.add_argument(
        "--checkpoints", type=Path, help="a folder of folders named by their steps; else the demo alone"
    )
    parser.add_argument("--every", type=int, default=1, help="measure every so many of them")
    parser.add_argument("--concepts", type=int, default=239, help="how many words and pictures are compared")
    parser.add_argument("--layers", type=int, nargs="+", help="from 1; all by default")
    parser.add_argument("--batch", type=int, default=16, help="pictures in a pass")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is; demo: cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of permutations and intervals")
    parser.add_argument("--folder", type=option_path, default=Path("over-training"), help="where results go")
    parser.add_argument("--quick", action="store_true", help="24 concepts, two layers")
    args = parser.parse_args(arguments)
    check_folder(args.folder, "--folder")  # before any work
    args.folder.mkdir(parents=True, exist_ok=True)
    every = [c.name for c in bundle.concepts()]
    count = 24 if args.quick else min(args.concepts, len(every))
    names = [every[i] for i in np.linspace(0, len(every) - 1, count).astype(int)]
    places: dict[int, Path | str] = {0: "demo"}
    if args.checkpoints is not None:
        places = {int(p.name): p for p in sorted(args.checkpoints.iterdir()) if p.name.isdigit()}
        places = {step: places[step] for step in sorted(places)[:: -args.every][::-1]}  # the last is always there
    if not places:
        raise SystemExit(f"{args.checkpoints} holds no folder named by a step, such as 00250")
    rows: list[dict[str, Any]] = []
    for step, place in places.items():
        kept = args.folder / f"step-{step:06d}.json"
        if not kept.exists():
            whole = whole_model(place)
            vlm = nd.load(str(whole), device=args.device, check=False)
            layers = args.layers or ([1, vlm.layers] if args.quick else list(range(1, vlm.layers + 1)))
            layer_rows = measured(vlm, names, layers, args.batch, args.seed)
            kept.write_text(json.dumps([{"step": step, "concepts": count, **row} for row in layer_rows], indent=0))
            del vlm
            if whole != place:  # 0.4 GB of the cache for each
                shutil.rmtree(whole)
        rows += json.loads(kept.read_text())
        mine = [r for r in rows if r["step"] == step]
        best = max(mine, key=lambda r: r["ten"])
        print(
            f"step {step}: layer 1 {mine[0]['ten']:.1%} among ten, best layer {best['layer']} {best['ten']:.1%}",
            flush=True,
        )
    tables.write_csv(rows, args.folder / "over-training.csv")
    figure(rows, args.folder / "over-training")
    last = [r for r in rows if r["step"] == max(places)]
    columns = ("layer", "first", "ten", "ten chance", "ten p", "cosine", "others")
    print(tables.to_markdown([{c: row[c] for c in columns} for row in last]))
    print(f"\nresults are in {args.folder}")
    return 0


# %%
if __name__ == "__main__":
    sys.exit(main())
