# %% [markdown]
# # Does a tower that resists attacks draw better?
#
# A climb follows the gradient of a vision tower, and an ordinary tower's gradient is noise to the eye. Training it against
# attacked pictures helps (Santurkar et al. 2019), but then the language model behind it would have to be trained anew.
# Here the tower alone is trained to give attacked pictures the image tokens that it gave the untouched ones before
# ("FARE", Schlarmann et al. 2024, arXiv 2402.12336): no label is used, and words, features and probes of the model keep
# their meaning. Then the same words are climbed through both towers.
#
#     python recipes/robust_tower.py                                      the bundled model and pictures, some minutes
#     python recipes/robust_tower.py --pictures build/train/art.npz       on the art of `python recipes/train_demo.py`
#     python recipes/robust_tower.py --model google/gemma-3-4b-it --pictures photographs --words fox zebra --radius 2
#     python recipes/robust_tower.py --quick                              a few steps, to see that everything runs

# %%
from __future__ import annotations

import argparse
import contextlib
import copy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.io.pictures import as_image, files
from nnsight_dream.report import tables

QUICK = ["--quick"]
REPLAYS = 3  # steps on the same pictures, each of which also moves the attack (Shafahi et al. 2019)


# %% [markdown]
# ## Pictures


# %%
def read_pictures(place: Path | None, size: tuple[int, int]) -> torch.Tensor:
    """(n, 3, height, width) of 8 bits, on white: the bundled ones, a folder's, or those of an .npz of `train_demo.py`."""
    from PIL import Image

    if place is None:
        given: list[Any] = [p.image for p in bundle.pictures()]
    elif place.suffix == ".npz":
        with np.load(place) as data:
            given = [Image.fromarray(x) for x in data["pictures"]]
    else:
        given = list(files(place))
    images = [as_image(x, "--pictures").resize(size[::-1], Image.Resampling.LANCZOS) for x in given]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


# %% [markdown]
# ## Training
# The attack is a perturbation of a given length (L2, over all pixels) that moves the image tokens most.


# %%
def image_tokens(vlm: nd.VLM, pictures: torch.Tensor) -> torch.Tensor:
    """What the projector gives of pictures (n, 3, height, width) in [0, 1], float32; the gradient passes."""
    given = vlm.hf.get_image_features(**vlm.pack(pictures))
    given = getattr(given, "pooler_output", given)
    return (torch.stack(list(given)) if isinstance(given, (list, tuple)) else given).float()


def within(delta: torch.Tensor, radius: float) -> torch.Tensor:
    """Perturbations no longer than the radius."""
    length = delta.flatten(1).norm(dim=1).clamp(min=1e-12)
    return delta * (radius / length).clamp(max=1)[:, None, None, None]


@contextlib.contextmanager
def with_tower(vlm: nd.VLM, tower: torch.nn.Module) -> Iterator[None]:
    """Another vision tower stands in the model's place for it."""
    path, _, name = vlm.family.tower.rpartition(".")
    parent = vlm.hf.get_submodule(path)
    own = getattr(parent, name)
    setattr(parent, name, tower)
    try:
        yield
    finally:
        setattr(parent, name, own)


def train(vlm: nd.VLM, pictures: torch.Tensor, args: argparse.Namespace) -> float:
    """Train the tower in place; the mean error under attack in the last tenth, as a share of the tokens' variance."""
    generator = torch.Generator().manual_seed(args.seed)
    tower = vlm.hf.get_submodule(vlm.family.tower)
    original = copy.deepcopy(tower).requires_grad_(False)
    weights = [p.requires_grad_(True) for p in tower.parameters()]
    with torch.no_grad():
        tokens = image_tokens(vlm, some(pictures, 64, generator, vlm))
    variance = (tokens - tokens.mean((0, 1))).square().sum(-1).mean()
    optimiser = torch.optim.AdamW(weights, lr=args.rate, weight_decay=0.0)
    errors: list[float] = []
    x = wanted = delta = torch.zeros(())
    for step in range(args.steps):
        for group in optimiser.param_groups:
            group["lr"] = args.rate * min(1, (step + 1) / 50, (args.steps - step) / (0.3 * args.steps))
        if step % REPLAYS == 0:
            x = some(pictures, args.batch, generator, vlm)
            with torch.no_grad(), with_tower(vlm, original):
                wanted = image_tokens(vlm, x)
            delta = within(torch.randn(x.shape, generator=generator).to(x), 0.5 * args.radius)
        delta.requires_grad_(True)
        loss = (image_tokens(vlm, (x + delta).clamp(0, 1)) - wanted).square().sum(-1).mean() / variance
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        assert delta.grad is not None
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        slope = F.normalize(delta.grad.flatten(1), dim=1).view_as(delta)
        delta = within(delta.detach() + 0.8 * args.radius * slope, args.radius)
        delta[: len(delta) // 6] = 0  # a sixth stays untouched
        errors.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: error {np.mean(errors[-50:]):.3f}", flush=True)
    for p in weights:
        p.requires_grad_(False)
    return float(np.mean(errors[-max(1, args.steps // 10) :]))


def some(pictures: torch.Tensor, count: int, generator: torch.Generator, vlm: nd.VLM) -> torch.Tensor:
    """Shifted and mirrored pictures, half of them blended with grey, as a climb that begins there meets them."""
    x = pictures[torch.randint(len(pictures), (count,), generator=generator)].float() / 255
    most = x.shape[-1] // 8
    shift = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    x = torch.roll(x, shift, (2, 3))
    flips = torch.rand(count, generator=generator) < 0.5
    x[flips] = x[flips].flip(-1)
    share = torch.rand(count, 1, 1, 1, generator=generator)
    share[count // 2 :] = 1
    return (share * x + (1 - share) * 0.5).to(vlm.device, vlm.dtype)


# %% [markdown]
# ## Words through both towers


# %%
def row_of(vlm: nd.VLM, words: list[str], args: argparse.Namespace, judge: nd.DemoJudge, name: str) -> dict[str, Any]:
    """A row of the table; the pictures are saved as one sheet without labels."""
    directions = nd.concept(vlm, words, layer=args.layer)
    quickly: dict[str, Any] = {"steps": 4} if args.quick else {}
    prototypes = nd.synthesize(vlm, directions, seed=args.seed, **quickly)
    args.folder.mkdir(parents=True, exist_ok=True)
    prototypes.grid(10, 96, labels=False).save(args.folder / f"{name.replace(' ', '-')}.png")
    row: dict[str, Any] = {"tower": name, "score": f"{np.mean([p.history[-1] for p in prototypes]):.2f}"}
    if vlm.is_demo:
        reached = [nd.reach(vlm, p).reached for p in prototypes]
        row["reach 1 or more"] = f"{np.mean([bool(r) for r in reached]):.0%}"
    return row | judged(judge, [p.image for p in prototypes], words)


def judged(judge: nd.DemoJudge, images: list[Any], words: list[str]) -> dict[str, str]:
    """How often the bundled judge names the words; nothing for words that it does not know."""
    categories = {c.name: c.category for c in bundle.concepts()}
    if not all(word in categories for word in words):
        return {}
    freely = [verdict.names[0] for verdict in judge.judge(images)]
    by_category = [
        judge.judge([image], category=categories[word])[0].names[0] for image, word in zip(images, words, strict=True)
    ]
    shuffled = by_category[1:] + by_category[:1]
    rates = {}
    columns = {"asked freely": freely, "told the category": by_category, "shuffled labels, told": shuffled}
    for column, answers in columns.items():
        hits = sum(answer == word for answer, word in zip(answers, words, strict=True))
        low, high = nd.wilson(hits, len(words))
        rates[column] = f"{hits / len(words):.0%} [{100 * low:.0f}, {100 * high:.0f}]"
    return rates


# %%
def main(arguments: list[str] | None = None) -> int:
    """Climb, train, climb again."""
    parser = argparse.ArgumentParser(description="Train a vision tower to keep its image tokens on attacked pictures.")
    parser.add_argument("--model", default="demo", help="a hub id or a folder")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    parser.add_argument("--pictures", type=Path, help="a folder of pictures, or an .npz (default: the bundled ones)")
    parser.add_argument("--words", nargs="+", help="what is climbed (default: 48 animals that the bundled judge knows)")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=28)
    parser.add_argument("--radius", type=float, default=1.5, help="length of an attack (L2, over all pixels in [0, 1])")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--folder", type=option_path, default=Path("build/robust-tower"))
    parser.add_argument("--quick", action="store_true", help="a few steps and words")
    args = parser.parse_args(arguments)
    check_folder(args.folder)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.steps, args.batch = 6, 6
    animals = sorted(c.name for c in bundle.concepts() if c.category == "animal")
    chosen = np.random.default_rng(0).permutation(animals)[: 3 if args.quick else 48].tolist()
    words = args.words or chosen
    vlm, judge = nd.load(args.model, device=args.device), nd.DemoJudge()
    rows = [row_of(vlm, words, args, judge, "as it is")]
    began = time.time()
    error = train(vlm, read_pictures(args.pictures, vlm.image_size), args)
    print(f"{args.steps} steps in {time.time() - began:.0f} s; error under attack {error:.2f} of the variance")
    rows.append(row_of(vlm, words, args, judge, "trained under attack"))
    save_file(
        {n: p.contiguous() for n, p in vlm.hf.get_submodule(vlm.family.tower).state_dict().items()},
        args.folder / "tower.safetensors",
    )
    print(tables.to_markdown(rows))
    print(f"see {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
