# %% [markdown]
# # The same concepts in several models
#
# Is the early alignment of words and pictures one family's alone (arXiv 2601.08017, "next checks")? The same words and
# pictures at the same layers of several checkpoints, in one figure: how much closer words are to pictures of their thing
# than to others (appendix D), how often a matching pair beats a mismatching one, for all words and for apples and oranges
# alone, and, if asked, how often a judge recognises prototypes.
#
#     python recipes/compare_families.py google/gemma-3-4b-it OpenGVLab/InternVL3-2B-hf Qwen/Qwen2.5-VL-3B-Instruct
#     python recipes/compare_families.py demo FOLDER --recognise --layers 1 4 8
#     python recipes/compare_families.py demo tiny:internvl tiny:qwen2_5_vl      random miniatures: nothing to be found
#     python recipes/compare_families.py ... --pictures FOLDER                   one folder of pictures for each word

# %%
from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apples_and_oranges import bundled, from_folder

import nnsight_dream as nd
from nnsight_dream.alignment import cosines as alignment
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.report import figures, tables
from nnsight_dream.synthesis.settings import choose

QUICK = ["--quick"]


# %% [markdown]
# ## Models
# A hub id, a folder, `demo`, or `tiny:FAMILY`, a miniature with random weights from this repository's tests.


# %%
def load(name: str, **options: Any) -> nd.VLM:
    """One of the models that are compared."""
    if not name.startswith("tiny:"):
        return nd.load(name, **options)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import tiny_families

    family = name.removeprefix("tiny:")
    if family not in tiny_families.BUILDERS:
        raise SystemExit(f"{name}: there are {', '.join(f'tiny:{n}' for n in tiny_families.BUILDERS)}")
    parts = tiny_families.build(family)
    model = parts.model.to(options.pop("device", None) or "cpu")
    return nd.load(model, processor=parts.processor, **{**parts.load, **parts.climb, **options})


# %% [markdown]
# ## What is measured


# %%
def measured(
    vlm: nd.VLM, pictures: Mapping[str, Sequence[Any]], layers: Sequence[int], two: Sequence[str], noise: int = 32
) -> list[dict[str, Any]]:
    """By layer: `alignment.diagnosis` of all words, and the AUC and p of two words alone (`two_auc`, `two_p`)."""
    grain = {alignment.NOISE: alignment.white_noise(noise, vlm.image_size[0])}
    rows = alignment.diagnosis(alignment.similarities(vlm, {**pictures, **grain}, layers))
    fruit = alignment.separation(alignment.similarities(vlm, {w: pictures[w] for w in two}, layers))
    return [
        {**row, "gap": row["matching"] - row["mismatching"], "two_auc": pair["auc"], "two_p": pair["p"]}
        for row, pair in zip(rows, fruit, strict=True)
    ]


def recognised(vlm: nd.VLM, args: argparse.Namespace, layers: Sequence[int], folder: Path) -> dict[int, dict[str, Any]]:
    """By layer, how often the judge names a prototype, from a store that goes on where it stopped."""
    kinds = {c.name: c.category for c in bundle.concepts()}
    words = [(w, kinds.get(w, "thing"), w) for w in args.words]
    height, width = vlm.image_size
    canvas = nd.Native() if height == width else nd.MultiResolution(max(height, width))

    def settings(layer: int) -> nd.Settings:
        base = choose(vlm, layer)
        return base.but(steps=args.steps or base.steps, **({} if vlm.is_demo else {"canvas": canvas}))

    done = nd.sweep(vlm, nd.jobs_of(words, list(layers), controls=max(2, len(words) // 4)), folder, settings=settings)
    if done.interrupted:
        raise KeyboardInterrupt
    if done.failed:
        raise SystemExit(f"{vlm.id}: {len(done.failed)} prototypes failed: {next(iter(done.failed.values()))}")
    judge: Any = (
        nd.DemoExaminer()
        if args.judge == "demo"
        else nd.ZeroShotJudge(args.judge, names=args.words, device=args.device)
    )
    nd.examine(done.store, judge, protocols=["hint"])
    rows = [row for row in nd.results(done.store) if row["key"] in done.keys]  # of these settings alone
    rates = tables.rates(rows, by=("layer",), protocol="hint", judge=judge.name)
    return {t["layer"]: t for t in rates}


# %% [markdown]
# ## One figure


# %%
PANELS = {
    "gap": "cosine, own pictures less others",
    "auc": "AUC, all words",
    "two_auc": "AUC, {}",
    "rate": "named, told the category",
}


def figure(rows: Sequence[Mapping[str, Any]], stem: Path, two: Sequence[str], relative: bool = False) -> list[Path]:
    """A panel for each quantity, a line for each model; filled where words are told apart (p < 0.01)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [name for name in PANELS if any(row.get(name) is not None for row in rows)]
    drawn, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3.2), squeeze=False)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for axis, name in zip(axes[0], panels, strict=True):
        for i, model in enumerate(models):
            mine = [row for row in rows if row["model"] == model and row.get(name) is not None]
            xs = [row["layer"] / (row["of"] if relative else 1) for row in mine]
            ys, colour = [row[name] for row in mine], figures.COLOURS[i % len(figures.COLOURS)]
            marker = figures.MARKERS[i % len(figures.MARKERS)]
            axis.plot(xs, ys, color=colour, marker=marker, fillstyle="none", label=model)
            sure = [(x, row[name]) for x, row in zip(xs, mine, strict=True) if row["p"] < 0.01]
            axis.plot([x for x, _ in sure], [y for _, y in sure], color=colour, marker=marker, linestyle="")
        if name != "gap":
            axis.set_ylim(-0.03, 1.03)
        if not relative:
            axis.xaxis.get_major_locator().set_params(integer=True)
        axis.axhline(0.5 if "auc" in name else 0.0, color="#999999", linewidth=0.8, linestyle=":")
        axis.set_xlabel("layer / layers of the model" if relative else "layer")
        axis.set_ylabel(PANELS[name].format(" and ".join(two)))
    axes[0][0].legend(fontsize=7)
    drawn.tight_layout()
    files = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    for file in files:
        drawn.savefig(file, dpi=110)
    pyplot.close(drawn)
    return files


# %%
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The same concepts and layers over several checkpoints.")
    parser.add_argument("models", nargs="*", help="'demo', hub ids, folders, tiny:FAMILY")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is; demo and tiny: cpu)")
    parser.add_argument("--words", nargs="+", help="of the pictures at hand (default: every fourth of them)")
    parser.add_argument("--two", nargs=2, default=["apple", "orange"], help="the two words that are compared alone")
    parser.add_argument("--layers", type=int, nargs="+", help="from 1 (default: all); a model skips what it has not")
    parser.add_argument("--relative", action="store_true", help="plot against the share of the model's depth")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="one folder of pictures for each word")
    parser.add_argument("--recognise", action="store_true", help="make prototypes of the words and have them judged")
    parser.add_argument("--judge", default="demo", help="demo, or a CLIP / SigLIP checkpoint")
    parser.add_argument("--steps", type=int, help="of each climb (default: the preset's)")
    parser.add_argument("--folder", type=option_path, default=Path("compare-families"), help="where results go")
    parser.add_argument("--quick", action="store_true", help="the bundled model and two miniatures, few words")
    args = parser.parse_args(arguments)
    check_folder(args.folder, "--folder")  # before any work
    if args.quick:
        args.models = args.models or ["demo", "tiny:internvl", "tiny:qwen2_5_vl"]
        args.layers, args.words, args.steps = args.layers or [1, 4], args.words or ["fox", "bee"], args.steps or 3
    if not args.models:
        parser.error("give at least one model: 'demo', a hub id, a folder, or tiny:FAMILY")
    names = [c.name for c in bundle.concepts()]
    everything = from_folder(args.pictures) if args.pictures else {}
    args.words = args.words or (list(everything) if args.pictures else names[::4])
    args.words = list(dict.fromkeys([*args.words, *args.two]))
    if missing := [w for w in args.words if w not in (everything or names)]:
        raise SystemExit(f"no pictures of {', '.join(missing)}; there are {', '.join(everything or names)}")
    everything = {w: everything[w] for w in args.words} if args.pictures else bundled(args.words)
    args.folder.mkdir(parents=True, exist_ok=True)

    rows: list[dict[str, Any]] = []
    for name in args.models:
        vlm = load(name, device=args.device)
        layers = [n for n in args.layers or range(1, vlm.layers + 1) if 1 <= n <= vlm.layers]
        if gone := [n for n in args.layers or [] if n not in layers]:
            print(f"{name} has {vlm.layers} layers: {', '.join(map(str, gone))} left out", file=sys.stderr)
        if not layers:
            continue
        mine = measured(vlm, everything, layers, args.two)
        slug = re.sub(r"[^\w.-]+", "-", name).strip("-")
        seen = recognised(vlm, args, layers, args.folder / slug) if args.recognise else {}
        keep = ("layer", "gap", "auc", "p", "two_auc", "two_p", "noise_auc", "works")
        for row in mine:
            rate = {k: seen[row["layer"]][k] for k in ("rate", "low", "high")} if seen else {}
            rows.append({"model": name, "of": vlm.layers, **{k: row[k] for k in keep}, **rate})
        print(f"\n{vlm}\n{tables.to_markdown(rows[-len(mine) :])}", flush=True)
        del vlm
    if not rows:
        raise SystemExit("no model has any of the layers asked for")
    tables.write_csv(rows, args.folder / "alignment.csv")
    figure(rows, args.folder / "alignment", args.two, args.relative)
    print(f"\nresults are in {args.folder}")
    return 0


# %%
if __name__ == "__main__":
    sys.exit(main())
