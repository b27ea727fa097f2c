# %% [markdown]
# # Does the drawing loss make the pictures?
#
# The bundled model's tower was trained against attacked pictures, and besides its input gradient was asked to point from
# an unfinished drawing towards art ("drawing loss", see MODEL_CARD.md). What does each bring? Two towers that differ in
# this alone are trained from the same start on the same batches. Then both climb, from grey and through the tower alone,
# to the mean patch of each animal's pictures: no language model is in the way. The bundled judge, which was trained on
# other artists' emoji, says what it sees.
#
#     python recipes/drawing_loss.py --art build/train --work build/drawing-loss    hours; goes on where it stopped
#     python recipes/drawing_loss.py --start recipes/demo_training/vlm --work build/drawing-loss-more    from a tower that draws
#     python recipes/drawing_loss.py --quick                                        a few steps, to see that everything runs
#
# The art comes from `python recipes/train_demo.py --only fetch render` (npm, `pip install "nnsight-dream[train]"`).

# %%
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.report import tables

TOWERS = {"attacks alone": 0.0, "attacks and drawing loss": None}  # weight of the drawing loss; None is the usual one
TRAINED = Path(__file__).parent / "demo_training" / "vlm"  # a tower with the drawing loss and thousands of steps
STEPS, VIEWS, WAY = 60, 2, 16.0  # of a climb; the length of its whole way, as a norm of all values of the canvas


# %% [markdown]
# ## Training
# As `recipes/train_demo.py` trains its tower, from random weights and mostly on small pictures, where a step costs least.


# %%
def train(args: argparse.Namespace, weight: float | None, folder: Path) -> bool:
    """Train one tower into `folder`, from where it stopped; whether it is finished."""
    from demo_training import tower

    def some(steps: int) -> int:
        return 2 if args.quick else max(1, round(args.share * steps))

    phases: dict[str, Any] = dict(clean=((32, some(300)),), robust=((32, some(1100)), (48, some(200)), (64, some(100))))
    if args.start is not None:
        phases = dict(start=args.start, clean=(), robust=((48, some(400)),))
    if args.quick:
        phases |= dict(batch=8, attacked_batch=4, drawn=2)
    given = {} if weight is None else {"drawing_weight": weight}
    npm, further = args.art / "npm", args.art / "more.npz"
    more = further if further.exists() else None
    return tower.train(
        args.art / "art.npz", npm, folder, more=more, seed=args.seed, minutes=args.minutes, **phases, **given
    )


# %% [markdown]
# ## What it sees and what it draws


# %%
def model_of(place: Path) -> Any:
    """The tower of a training's or a model's folder, without its heads."""
    from demo_training import tower

    model = tower.Matcher([[0]], 1)
    model.tower.load_state_dict(tower.fitted(tower.weights(place)))
    return model.eval().requires_grad_(False)


def climb(model: Any, centre: torch.Tensor, towards: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, 3, 32, 32) whose mean patch points along the directions (n, width) from `centre`, and the cosines (n,).

    Steps of equal length along the gradient of the cosine, averaged over shifted and noisy views, from grey.
    """
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.full((len(towards), 3, 32, 32), 0.5)
    aim = F.normalize(towards, dim=-1)

    def cosines(x: torch.Tensor) -> torch.Tensor:
        return F.cosine_similarity(model.hidden(x) - centre, aim, dim=-1)

    def shown(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, (64, 64), mode="bilinear", align_corners=False)

    for step in range(STEPS):
        x = canvas.clone().requires_grad_(True)
        total = torch.zeros(())
        for _ in range(VIEWS):
            shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
            view = torch.roll(shown(x), shift, (2, 3))
            total = total + cosines((view + 0.06 * torch.randn(view.shape, generator=generator)).clamp(0, 1)).sum()
        (gradient,) = torch.autograd.grad(total, x)
        length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
        share = (1 + np.cos(np.pi * step / STEPS)) / STEPS  # sums to 1 over the climb
        canvas = (canvas + WAY * share * gradient / length).clamp(0, 1)
    with torch.no_grad():
        return canvas, cosines(shown(canvas))


# %%
def examined(place: Path, data: Any, names: list[str], judge: nd.DemoJudge, seed: int) -> tuple[dict, list]:
    """A row of the table, and the pictures; `data` is what the towers were trained on, without further classes."""
    from demo_training import augment, tower
    from PIL import Image
    from robust_tower import judged

    model, known = model_of(place), [c.name for c in bundle.concepts()]

    def means(ground: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean patch of all of the model's own pictures on a ground, and of each concept's, less that of all."""
        seen = tower.mean_patches(
            model, (augment.plain(x, tower.SIDE, background=ground) for x in data.source.split(64))
        )
        return seen.mean(0), tower.by_class(seen, data.labels, len(known)) - seen.mean(0)

    held, wanted = data.far
    middle, classes = means(1.0)
    away = tower.mean_patches(model, held.split(64)) - middle
    right = (away @ F.normalize(classes, dim=-1).T).argmax(1) == wanted
    middle, classes = means(0.5)  # climbs begin on grey, so their centre and directions are there too
    rows = torch.tensor([known.index(name) for name in names])
    began = time.process_time()
    canvas, cosine = climb(model, middle, classes[rows], seed)
    spent = (time.process_time() - began) / len(names)
    pictures = [Image.fromarray((255 * x.permute(1, 2, 0)).round().byte().numpy()) for x in canvas]
    row = {
        "held-out art, first": f"{right.float().mean():.0%}",
        "cosine reached": f"{cosine.mean():.2f}",
        **judged(judge, pictures, names),
        "cpu s a picture": f"{spent:.1f}",
    }
    return row, pictures


def save_sheet(pictures: list[Any], path: Path, columns: int = 10, side: int = 96) -> None:
    """All pictures in rows, without labels."""
    from PIL import Image

    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(picture.resize((side, side)), (place % columns * side, place // columns * side))
    sheet.save(path)


# %%
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Two towers, one without the drawing loss.")
    parser.add_argument("--art", type=Path, default=Path("build/train"), help="what train_demo.py rendered")
    parser.add_argument("--work", type=option_path, default=Path("build/drawing-loss"), help="goes on where it stopped")
    parser.add_argument("--start", type=Path, help="a model's folder, whose tower both go on from (400 steps)")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps: 1,700 in all, from --start 400")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop each training after so many")
    parser.add_argument("--only", choices=list(TOWERS), help="train this one alone, beside another process")
    parser.add_argument("--animals", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps and four animals")
    args = parser.parse_args(arguments)
    check_folder(args.work, "--work")
    if not (args.art / "art.npz").exists():
        raise SystemExit(f"{args.art} holds no art.npz: run `python recipes/train_demo.py --only fetch render` first")
    torch.set_num_threads(args.threads)
    sys.path.insert(0, str(Path(__file__).parent))
    places = {}
    for name, weight in TOWERS.items():
        places[name] = args.work / name.replace(" ", "-")
        if args.only in (None, name) and not train(args, weight, places[name]):
            print(f"{name}: not ready; run this again to go on")
            return 1
    if args.only is not None:
        return 0
    if (TRAINED / "config.json").exists():
        places["the same loss, 4,000 steps in all"] = TRAINED
    animals = sorted(c.name for c in bundle.concepts() if c.category == "animal")
    count = 4 if args.quick else args.animals
    names = np.random.default_rng(0).permutation(animals)[:count].tolist()
    from demo_training import tower

    judge, data = nd.DemoJudge(), tower.read_data(args.art / "art.npz", None, args.art / "npm")
    rows = []
    for name, place in places.items():
        row, pictures = examined(place, data, names, judge, args.seed)
        rows.append({"tower": name} | row)
        sheet = args.work / f"{name.replace(' ', '-').replace(',', '')}.png"
        save_sheet(pictures, sheet)
        print(f"{name}: {sheet}", flush=True)
    print(tables.to_markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
