# %% [markdown]
# # Text and pictures align from layer one
#
# The experiment of "Representations of Text and Images Align From Layer One" (arXiv 2601.08017, section 3, appendices
# E to G): a prototype of every concept at every layer, named by a judge asked freely and told the category, with the controls that the paper
# lacks. It stops and goes on at any moment.
#
#     python recipes/early_alignment.py                                    the bundled model and judge, minutes
#     python recipes/early_alignment.py --model google/gemma-3-4b-it --judge openai --layers 1 5 10 15 20 25 30
#     python recipes/early_alignment.py --shard 0/4 ...                    one machine of four, on one folder
#     python recipes/early_alignment.py --ray auto --workers 8 --gpus 1    a Ray cluster
#     python recipes/early_alignment.py --model ... --against FOLDER       beside another model's results
#     python recipes/early_alignment.py --dry-run                          what it would do, and for how long
#     python recipes/early_alignment.py --quick                            a small version, two minutes

# %%
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

import nnsight_dream as nd
from nnsight_dream import paper
from nnsight_dream.alignment import cosines as alignment
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.judges import examine as judging
from nnsight_dream.judges.desk import Asked
from nnsight_dream.judges.questions import IN_WORDS
from nnsight_dream.report import figures, pages, raters, tables
from nnsight_dream.sweeps.jobs import slug
from nnsight_dream.sweeps.ray import Cluster
from nnsight_dream.sweeps.sweep import sweep as sweeps

QUICK = ["--quick"]


# %% [markdown]
# ## What is made
# The bundled model is asked for the paper's concepts that it was shown, and for things of its own; another model for
# all of the paper's.


# %%
def concepts(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(name, category as the judge is told, prompt) of everything to be made."""
    if args.model != "demo":
        entries = [(c.name, paper.HINTS[c.category], c.prompt) for c in paper.concepts()]
    else:
        by_name = {n.lower(): c for c in bundle.concepts() for n in (c.name, *c.aliases)}
        known, unknown = paper.known_to_demo()
        entries = [(c.name, by_name[c.prompt.lower()].category, c.prompt) for c in known]
        print(f"of the paper's {len(known) + len(unknown)} concepts the bundled model was never shown "
              f"{len(unknown)}: {', '.join(c.name for c in unknown)}")  # fmt: skip
        there = {by_name[c.prompt.lower()].name for c in known}
        for category in dict.fromkeys(c.category for c in bundle.concepts() if args.more > 0):
            own = [c.name for c in bundle.concepts() if c.category == category and c.name not in there]
            entries += [(name, category, name) for name in own[:: max(1, len(own) // args.more)][: args.more]]
    if args.categories:
        kept = [c for c in entries if c[1] in args.categories]
        if not kept:
            known_to = sorted({c[1] for c in entries})
            raise SystemExit(f"--categories {' '.join(args.categories)}: there are {', '.join(known_to)}")
        entries = kept
    return entries[:: max(1, len(entries) // 6)][:6] if args.quick else entries


def jobs(vlm: nd.VLM, args: argparse.Namespace) -> list[nd.Job]:
    """Every concept at every layer; a second seed and mean pooling for every third concept."""
    entries = concepts(args)
    layers = args.layers or (list(range(1, vlm.layers + 1)) if args.model == "demo" else list(paper.LAYERS))
    if args.quick:
        layers = layers[:: max(1, len(layers) // 2)][:2]
    first, *seeds = args.seeds
    result = nd.jobs_of(entries, layers, seeds=[first], controls=max(2, len(entries) // 4))
    if seeds:
        result += nd.jobs_of(entries[::3], layers, seeds=seeds)
    others = [p for p in args.poolings if p]
    return result + (nd.jobs_of(entries[::3], layers, seeds=[first], poolings=others) if others else [])


# %% [markdown]
# ## Who judges


# %%
def judges(args: argparse.Namespace) -> list[Any]:
    """The examiners asked for."""
    examiners: list[Any] = []
    for name in args.judge:
        if name == "demo":
            examiners.append(nd.DemoExaminer())
        elif name == "openai":
            examiners.append(nd.OpenAIJudge(base_url=args.base_url, max_cost=args.max_cost))
        else:
            examiners.append(nd.ZeroShotJudge(name, names=[c[0] for c in concepts(args)], device=args.device))
    return examiners


def seconds_a_question(judge: Any) -> float:
    """How long the bundled judge takes for one, timed on a grey picture."""
    image = Image.new("RGB", (32, 32), "grey")
    questions = [Asked(str(i), lambda: image, "fox", "animal", "hint", 0) for i in range(9)]
    judge.examine(questions[:1], lambda *_: None)
    began = time.perf_counter()
    judge.examine(questions[1:], lambda *_: None)
    return (time.perf_counter() - began) / 8


# %% [markdown]
# ## What comes out
# Tables, figures like the paper's 3, 4, 7, 8 and 9, a prediction beside the result, and one page to look through.


# %%
def prediction(vlm: nd.VLM, rows: list[dict[str, Any]], judge: str) -> list[dict[str, Any]]:
    """By layer, what the alignment of words with labelled pictures says (appendix D), beside how often it was seen.

    The pictures are the bundled ones of those concepts that have one.
    """
    layers = sorted({r["layer"] for r in rows if isinstance(r["layer"], int)})
    names = {c.name for c in bundle.concepts()}
    words = [name for name in dict.fromkeys(r["concept"] for r in rows) if name in names]
    if len(words) < 2 or not layers:
        return []
    pictures = {p.name: [p.image] for p in bundle.pictures(words)}
    noise = {alignment.NOISE: alignment.white_noise(32, vlm.image_size[0])}
    diagnosis = alignment.diagnosis(alignment.similarities(vlm, pictures | noise, layers))
    seen = {t["layer"]: t for t in tables.rates(rows, by=("layer",), protocol="hint", judge=judge)}
    keep = ("layer", "auc", "noise_auc", "p", "common", "outliers", "works")
    return [{k: t[k] for k in keep} | {k: seen[t["layer"]][k] for k in ("rate", "low", "high")} for t in diagnosis]


def results(vlm: nd.VLM, store: nd.Store, keys: frozenset[str], args: argparse.Namespace) -> None:
    """Write tables, figures and the page into the folder; `keys` are of this sweep's own pictures."""
    rows = nd.results(store)
    if not rows:
        print("nothing is judged yet")
        return
    out = store.folder / "results"
    out.mkdir(exist_ok=True)
    for judge in store.judges():
        mine, stem = [r for r in rows if r["judge"] == judge], slug(judge, 80)
        plain = [r for r in mine if not r["pooling"]]
        for protocol in ("hint", "strict"):
            for by in (("layer",), ("category", "layer")):
                table = tables.rates(plain, by=by, protocol=protocol, judge=judge)
                tables.write_csv(table, out / f"{stem}-{protocol}-by-{'-'.join(by)}.csv")
                if by == ("layer",):
                    print(f"\n{judge}, {IN_WORDS[protocol]}\n{tables.to_markdown(table)}")
        figures.recognition(plain, out / f"{stem}-recognition")
        if any(r["pooling"] for r in mine):
            figures.pooling(mine, out / f"{stem}-pooling")
        seeds = [{"protocol": p, **tables.seed_agreement(plain, protocol=p)} for p in ("hint", "strict")]
        if any(row["n"] for row in seeds):
            tables.write_csv(seeds, out / f"{stem}-seeds.csv")
            print(
                f"\ntwo seeds of one concept and layer, named by {judge} both or neither\n{tables.to_markdown(seeds)}"
            )
        if args.against:
            theirs = [r for r in nd.results(nd.Store(args.against, must_exist=True), judge) if not r["pooling"]]
            figures.models({str(args.folder): plain, str(args.against): theirs}, out / f"{stem}-models")
        beside = prediction(vlm, [r for r in plain if r["key"] in keys], judge)
        tables.write_csv(beside, out / f"{stem}-prediction.csv")
        print(f"\nalignment of words with labelled pictures, and how often {judge} names prototypes, told the category\n"
              f"{tables.to_markdown(beside)}")  # fmt: skip
    pages.page(store, store.folder / "index.html", rows=rows, title=f"Early alignment: {args.model}")
    raters.raters_page(store, store.folder / "raters.html")
    print(f"\n{store.folder / 'index.html'}, {store.folder / 'raters.html'} and {out}")


# %%
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The experiment of arXiv 2601.08017, whole.")
    parser.add_argument("--model", default="demo", help="'demo', a hub id or a folder")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is; demo: cpu)")
    parser.add_argument(
        "--folder", type=option_path, default=Path("early-alignment"), help="the store; goes on where it stopped"
    )
    parser.add_argument("--layers", type=int, nargs="+", help="from 1 (demo: all; others: the paper's seven)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="the first for all, others for a third")
    parser.add_argument(
        "--poolings", nargs="*", default=["mean"], help="beside the settings' own, for a third: mean max"
    )
    parser.add_argument("--categories", nargs="+", help="only these")
    parser.add_argument("--more", type=int, default=4, help="own concepts of each category of the bundled model")
    parser.add_argument("--judge", nargs="+", default=["demo"], help="demo, openai, or a CLIP / SigLIP checkpoint")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another model's store, for a figure of both")
    parser.add_argument("--written", action="store_true", help="ask also whether the word is written in the picture")
    parser.add_argument("--base-url", help="of an OpenAI-compatible server")
    parser.add_argument("--max-cost", type=float, help="dollars after which the OpenAI judge stops")
    parser.add_argument("--steps", type=int, help="of each climb (default: the preset's)")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="only this part of the jobs, from 0")
    parser.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help="over a Ray cluster")
    parser.add_argument("--workers", type=int, default=2, help="of the cluster")
    parser.add_argument("--gpus", type=float, help="of each worker (default: 1 where the model is on one, else 0)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--quick", action="store_true", help="six concepts, two layers")
    args = parser.parse_args(arguments)
    check_folder(args.folder, "--folder")  # before any work
    try:
        shard = tuple(int(x) for x in args.shard.split("/"))
        assert len(shard) == 2
    except (ValueError, AssertionError):
        parser.error(f"--shard {args.shard}: I/N with I from 0 to N - 1 is needed, such as 0/4")

    vlm = nd.load(args.model, device=args.device)
    wanted = jobs(vlm, args)

    def settings(layer: int) -> nd.Settings:
        base = nd.Settings.demo() if vlm.is_demo else nd.Settings.paper(layer)
        return base.but(steps=args.steps or (12 if args.quick else base.steps))

    protocols = ("strict", "hint", "written") if args.written else ("strict", "hint")
    if args.dry_run:
        planned = sweeps.plan(vlm, wanted, settings=settings, shard=shard)
        left = sum(len(c.jobs) for c in planned.left(nd.Store(args.folder)))
        seconds = sweeps.estimate(vlm, planned, nd.Store(args.folder))
        print(f"{planned.jobs} pictures in {len(planned.chunks)} batches, {left} left")
        for judge in judges(args):
            calls = judging.plan_calls(planned.jobs, judge, [p for p in protocols if p in judge.protocols])
            print(f"judge {judge.name}: {calls}")
            if seconds is not None and isinstance(judge, nd.DemoExaminer):
                seconds += calls.asking * seconds_a_question(judge)
        print("how long cannot be told: steps take too long, or too unevenly, to be timed in a moment, or elsewhere"
              if seconds is None else f"about {seconds / 60:.1f} minutes in one process here, as busy as it is now")  # fmt: skip
        return 0

    ray = None
    if args.ray:
        gpus = float(vlm.device.type == "cuda") if args.gpus is None else args.gpus
        need = {"num_cpus": 1.0, **({"num_gpus": gpus} if gpus else {})}
        ray = Cluster(args.model, args.workers, None if args.ray == "local" else args.ray, need, device=args.device)
    done = nd.sweep(vlm, wanted, args.folder, settings=settings, shard=shard, ray=ray)
    if done.interrupted:
        return 130
    failed = not done.ok
    for judge in judges(args):
        try:
            summary = nd.examine(done.store, judge, protocols=[p for p in protocols if p in judge.protocols])
            print(f"judge {judge.name}: {summary}", file=sys.stderr)
            failed |= not summary.ok
        except judging.JudgeStopped as stop:
            print(f"judge {judge.name} stopped: {stop}", file=sys.stderr)
            failed = True
    results(vlm, done.store, done.keys, args)
    return 1 if failed else 0


# %%
if __name__ == "__main__":
    sys.exit(main())
