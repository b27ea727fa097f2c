"""How is the bundled model made? Everything, from fetching the art to the weights in the package, by one command.

    python recipes/train_demo.py [--work build/train] [--only STAGE ...] [--threads 2] [--quick]

Stages: fetch (npm packages), render, tower, language, judge, bundle, score (of the bundled model). Each resumes from its last checkpoint and is
skipped when done. Needs `pip install "nnsight-dream[train]"`, npm and hours of two cores; see MODEL_CARD.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

STAGES = ("fetch", "render", "tower", "language", "judge", "bundle", "score")
DATA = Path(__file__).parents[1] / "nnsight_dream" / "data"
TRAINED = Path(__file__).parent / "demo_training" / "vlm"  # a model that is trained and not yet bundled
# of the full schedule, to see that everything runs (minutes)
QUICK_TOWER = dict(clean=((32, 20),), robust=((32, 10), (48, 5), (64, 3)))


def main() -> None:
    """Run the stages in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/train"), help="downloads and checkpoints")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps of each stage: nothing worth keeping")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop the tower's training after so many")
    parser.add_argument(
        "--tower", choices=("drawing", "robust"), default="drawing", help="with or without drawing loss"
    )
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    for stage in args.only:
        began = time.time()
        print(f"== {stage}", flush=True)
        run(stage, args.work, args.seed, args.quick, args.minutes, args.tower)
        print(f"== {stage}: {time.time() - began:.0f} s", flush=True)


def run(stage: str, work: Path, seed: int, quick: bool, minutes: float, kind: str) -> None:
    """One stage; the tower's may be done in pieces of some minutes."""
    from demo_training import art, bundle, judge, language, score, tower

    npm, pictures, more = work / "npm", work / "art.npz", work / "more.npz"
    if stage == "fetch":
        art.fetch(npm)
    elif stage == "render":
        if not pictures.exists():
            art.render(npm, pictures)
        if not more.exists():
            art.render_more(npm, more)
    elif stage == "tower":
        options = dict(QUICK_TOWER if quick else {}, start=DATA / "vlm", minutes=minutes)
        if kind == "robust":
            options["drawing_weight"] = 0.0
        folder = work / ("tower" if kind == "drawing" else "tower-robust")
        if not tower.train(pictures, npm, folder, more=more, seed=seed, **options):
            raise SystemExit("the tower is not ready: run this again to go on")
    elif stage == "language":
        quickly = {"stages": [replace(s, steps=4) for s in language.STAGES]} if quick else {}
        candidates = (work / "tower", TRAINED, DATA / "vlm")
        seeing = next(file for file in candidates if file.exists())
        language.train(pictures, npm, seeing, work / "language.pt", work / "vlm", seed=seed, **quickly)
    elif stage == "judge":
        judge.train(pictures, npm, work / "judge.pt", seed=seed, **({"steps": 20} if quick else {}))
    elif stage == "bundle":
        if not quick:
            fresh = shutil.copytree(
                work / "vlm", DATA / "vlm.partial", dirs_exist_ok=True
            )  # whole before what it replaces goes
            shutil.rmtree(DATA / "vlm")
            fresh.rename(DATA / "vlm")
        bundle.everything(work, (work / "bundle") if quick else DATA)
    elif stage == "score":
        score.everything(pictures, (work if quick else DATA) / "vlm")


if __name__ == "__main__":
    main()
