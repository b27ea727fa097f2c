# %% [markdown]
# # Two small models that differ in one thing
#
# Gemma 3 lets the tokens of a picture see each other; most other families let them see only what is before. Does that
# matter for how early words and pictures align? The bundled model's language model is trained twice for minutes, from
# the same start on the same batches of the same data on the same frozen tower: once with bidirectional attention among
# image tokens, once causal. Then the alignment of words with held-out pictures, layer by layer, of both.
#
#     python recipes/demo_variants.py --work build/train                40 minutes of one core; goes on where it stopped
#     python recipes/demo_variants.py --share 0.3                       minutes; too few steps to learn much
#     python recipes/demo_variants.py --quick                           a few steps, to see that everything runs
#
# The art comes from `python recipes/train_demo.py --only fetch render` (npm, `pip install "nnsight-dream[train]"`).

# %%
from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from apples_and_oranges import bundled
from compare_families import figure, measured

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.models import families
from nnsight_dream.report import tables

VARIANTS = {"bidirectional": False, "causal": True}
# A Gemma 3 whose image tokens are told to be like all others: they see what is before them, as in training
CAUSAL = replace(
    families.GEMMA3, name="gemma3_causal", extra=lambda ids, image: {"token_type_ids": torch.zeros_like(ids)}
)


# %% [markdown]
# ## Training
# As `recipes/train_demo.py` does it, but its first two stages alone: pictures, then words in the pictures' place.


# %%
def train(args: argparse.Namespace, causal: bool, folder: Path) -> None:
    """Train one variant into `folder`, from where it stopped."""
    from demo_training import language

    def shortened(stage: Any) -> Any:
        return replace(stage, steps=2 if args.quick else max(2, round(args.share * stage.steps)))

    tower = args.work / "tower"
    if not tower.exists():  # then the bundled model's
        tower = bundle.folder() / "vlm"
    language.train(
        args.work / "art.npz",
        args.work / "npm",
        tower,
        folder.with_suffix(".pt"),
        folder,
        stages=[shortened(stage) for stage in language.STAGES[:2]],
        seed=args.seed,
        causal=causal,
    )


# %%
def load(folder: Path, causal: bool, device: str | None = None) -> nd.VLM:
    """A variant, seen as it was trained. The check is left out: its processor says what a plain Gemma 3 does."""
    return nd.load(folder, family=CAUSAL if causal else None, check=not causal, device=device)


# %%
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Causal against bidirectional attention among image tokens.")
    parser.add_argument("--work", type=Path, default=Path("build/train"), help="holds art.npz, npm and tower")
    parser.add_argument(
        "--folder", type=option_path, default=Path("build/variants"), help="where models and results go"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the bundled model's steps, above 0")
    parser.add_argument("--every", type=int, default=4, help="measure with every n-th concept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    parser.add_argument("--quick", action="store_true", help="two steps of each stage: nothing worth keeping")
    args = parser.parse_args(arguments)
    check_folder(args.folder, "--folder")  # before any work
    if not (args.work / "art.npz").is_file():
        raise SystemExit(f"{args.work} holds no art.npz: run `python recipes/train_demo.py --only fetch render` first")
    if not args.share > 0:
        parser.error(f"--share {args.share}: a number above 0 is needed")
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    words = [c.name for c in bundle.concepts()][:: 60 if args.quick else args.every]
    words = list(dict.fromkeys([*words, "apple", "orange"]))
    pictures, rows = bundled(words), []
    for name, causal in VARIANTS.items():
        steps = "quick" if args.quick else f"{args.share:g}"
        folder = args.folder / f"{name}-{steps}-seed{args.seed}"
        print(f"== {name}", flush=True)
        train(args, causal, folder)
        vlm = load(folder, causal, args.device)
        for row in measured(vlm, pictures, range(1, vlm.layers + 1), ["apple", "orange"]):
            keep = ("layer", "gap", "auc", "p", "two_auc", "noise_auc", "common", "works")
            rows.append({"model": name, "of": vlm.layers, **{k: row[k] for k in keep}})
    print(tables.to_markdown(rows))
    tables.write_csv(rows, args.folder / "variants.csv")
    figure(rows, args.folder / "variants", ["apple", "orange"])
    print(f"\nresults are in {args.folder}")
    return 0


# %%
if __name__ == "__main__":
    sys.exit(main())
