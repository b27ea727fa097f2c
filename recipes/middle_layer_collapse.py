# %% [markdown]
# # Do middle layers collapse, and can it be foretold?
#
# In arXiv 2601.08017 some models draw at early and late layers and not between ("middle-layer collapse", appendix D). Here
# the diagnosis from labelled pictures (are words told apart, how much do all pictures share, how many sinks) stands beside
# what is drawn: prototypes of some words at each layer, by attention and by mean pooling, with the grey centre and with the
# mean of pictures, each named by a judge told the category, against random directions.
#
#     python recipes/middle_layer_collapse.py                                   the bundled model
#     python recipes/middle_layer_collapse.py --model gemma-270m --layers 1 4 9 14 18 --steps 100
#     python recipes/middle_layer_collapse.py --quick                           two words, two layers, attention alone
#
# It stops and goes on at any moment. Results: collapse.csv, collapse.png and a sheet of each pooling and centre.

# %%
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import nnsight_dream as nd
from nnsight_dream.alignment import cosines as alignment
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.report import tables
from nnsight_dream.report.figures import draw_panels, label_axis, saved
from nnsight_dream.synthesis.settings import choose

QUICK = ["--quick"]
POOLINGS = {"attention": nd.Attention(tau=0.5), "mean": nd.Mean()}
CENTRES = {"grey": nd.Grey(), "pictures": nd.Pictures.bundled()}


# %% [markdown]
# ## What is foretold, what is drawn


# %%
def foretold(vlm: nd.VLM, layers: list[int], count: int) -> dict[tuple[str, int], dict[str, Any]]:
    """By centre and layer, the diagnosis of so many words with a bundled picture of each."""
    every = [c.name for c in bundle.concepts()]
    pictures: dict[str, Any] = {p.name: [p.image] for p in bundle.pictures(every[:: max(1, len(every) // count)])}
    pictures[alignment.NOISE] = alignment.white_noise(32, vlm.image_size[0])
    return {
        (name, row["layer"]): row
        for name, centre in CENTRES.items()
        for row in alignment.diagnosis(alignment.similarities(vlm, pictures, layers, middle=centre))
    }


def drawn(vlm: nd.VLM, jobs: list[nd.Job], pooling: str, centre: str, args: argparse.Namespace) -> nd.Store | None:
    """The store of a pooling's and centre's prototypes, judged; None after Ctrl-C."""
    change: dict[str, Any] = dict(pooling=POOLINGS[pooling], centre=CENTRES[centre])
    change |= {k: v for k, v in (("steps", 12 if args.quick else args.steps), ("batch", args.views)) if v}
    done = nd.sweep(
        vlm, jobs, args.folder / f"{pooling}-{centre}", settings=lambda layer: choose(vlm, layer).but(**change)
    )
    if done.interrupted:
        return None
    nd.examine(done.store, nd.DemoExaminer(), protocols=["hint"])
    return done.store


def sheet(store: nd.Store, jobs: list[nd.Job]) -> Any:
    """A picture of the prototypes, a line for each layer."""
    order = [(job.layer, job.concept) for job in jobs if not job.control]
    entries = {(e.job.layer, e.job.concept): e for e in store.entries() if not e.job.control}
    prototypes = [entries[place].prototype() for place in order if place in entries]
    return nd.Prototypes(prototypes).grid(columns=len({concept for _, concept in order}), side=96)


# %% [markdown]
# ## Side by side


# %%
def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """How often prototypes are named, a panel for each centre; hollow where the diagnosis says that nothing is drawn."""
    fig, axes = draw_panels(len(CENTRES), 2)
    for axis, centre in zip(axes, CENTRES, strict=True):
        for place, pooling in enumerate(POOLINGS):
            mine = [r for r in rows if (r["pooling"], r["centre"]) == (pooling, centre)]
            xs, ys = [r["layer"] for r in mine], [100 * r["rate"] for r in mine]
            if not mine:
                continue
            axis.plot(xs, ys, color=f"C{place}", linewidth=1, label=pooling)
            axis.fill_between(xs, [100 * r["low"] for r in mine], [100 * r["high"] for r in mine], alpha=0.12, lw=0)
            for x, y, r in zip(xs, ys, mine, strict=True):
                axis.plot(x, y, marker="o", markersize=5, color=f"C{place}", mfc=f"C{place}" if r["works"] else "white")
        label_axis(axis, f"named, told the category, %: centre {centre}")
    saved(fig, path)


# %%
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The diagnosis of layers beside what is drawn at them.")
    parser.add_argument("--model", default="demo", help="'demo', 'gemma-270m', a hub id or a folder")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is; demo: cpu)")
    parser.add_argument("--layers", type=int, nargs="+", help="from 1; seven, evenly spread, by default")
    parser.add_argument("--concepts", type=int, default=12, help="how many animals are drawn at each layer")
    parser.add_argument("--labelled", type=int, default=120, help="how many words and pictures the diagnosis compares")
    parser.add_argument("--steps", type=int, help="of each climb (default: the preset's)")
    parser.add_argument("--views", type=int, help="of a picture in each step (default: the preset's)")
    parser.add_argument("--folder", type=option_path, default=Path("middle-layer-collapse"), help="where results go")
    parser.add_argument("--quick", action="store_true", help="two words, two layers, attention alone, twelve steps")
    args = parser.parse_args(arguments)
    check_folder(args.folder, "--folder")  # before any work
    args.folder.mkdir(parents=True, exist_ok=True)
    vlm = nd.load(args.model, device=args.device)
    count = 2 if args.quick else 7
    spread = {1 + round(i * (vlm.layers - 1) / (count - 1)) for i in range(count)}
    layers = sorted(args.layers or spread)
    predicted = foretold(vlm, layers, 24 if args.quick else args.labelled)
    animals = [c.name for c in bundle.concepts() if c.category == "animal"]
    number = 2 if args.quick else args.concepts
    some = [(name, "animal", name) for name in animals[:: max(1, len(animals) // number)][:number]]
    jobs = nd.jobs_of(some, layers, controls=max(1, number // 3))

    rows: list[dict[str, Any]] = []
    for pooling in list(POOLINGS)[: 1 if args.quick else None]:
        for centre in CENTRES:
            store = drawn(vlm, jobs, pooling, centre, args)
            if store is None:
                return 130
            sheet(store, jobs).save(args.folder / f"{pooling}-{centre}.png")
            for rate_row in tables.rates(nd.results(store), protocol="hint"):
                state = predicted[centre, rate_row["layer"]]
                row: dict[str, Any] = dict(pooling=pooling, centre=centre, layer=rate_row["layer"])
                row |= {k: state[k] for k in ("works", "auc", "p", "common", "sinks")}
                rows.append(row | {k: rate_row[k] for k in ("rate", "low", "high", "chance", "reach")})
            print(tables.to_markdown([r for r in rows if (r["pooling"], r["centre"]) == (pooling, centre)]), flush=True)
    tables.write_csv(rows, args.folder / "collapse.csv")
    figure(rows, args.folder / "collapse.png")
    print(f"\nresults are in {args.folder}")
    return 0


# %%
if __name__ == "__main__":
    sys.exit(main())
