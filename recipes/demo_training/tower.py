"""The vision tower: a SigLIP transformer trained to match pictures with the words that describe them.

First on clean pictures, then on adversarially perturbed ones ("free" adversarial training, Shafahi et al. 2019:
the gradient that updates the weights also moves the perturbation, so robustness costs no extra pass).
A robust tower's input gradients draw; an ordinary one's are noise (Tsipras et al. 2019; Santurkar et al. 2019).
With few pictures and little time robustness alone draws blots, so what it brings about is also asked for outright:
the input gradient of a concept's cosine has to point from an unfinished picture to art of that concept
("perceptually aligned gradients", Ganz et al. 2023), on pictures that the gradient itself has drawn so far.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from . import art, augment
from .muon import Muon

SIDE, PATCH = 64, 4  # 16 x 16 patches
GRID = 8  # image tokens on a side: the projector means 2 x 2 patches into one, as Gemma 3's does
THUMB = 16
CONFIG = dict(
    hidden_size=192,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=4,
    image_size=SIDE,
    patch_size=PATCH,
    vision_use_head=False,
    hidden_act="gelu",  # the exact form: 3x faster than the tanh form on a CPU, and equal to it within 1e-3
)


Phase = tuple[int, int]  # (picture side in pixels, steps); a 32-pixel picture costs a sixth of a 64-pixel one
CLEAN: tuple[Phase, ...] = ((32, 300),)
ROBUST: tuple[Phase, ...] = ((32, 1100), (48, 600), (64, 1100))
SETTLE = 0.2  # the last part of all steps, in which the rate falls to zero
RATE = 1.5e-3
DRAWING_WEIGHT = 16.0  # the gradient of the drawing loss is 9 times smaller than that of the cross-entropy
MORE_SHARE = 0.35  # of the pictures of a step, how many are of classes beside the concepts
PIECE = 5  # pictures of full size at a time on a CPU: their attention maps stay in its cache
FAST = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def best_device() -> torch.device:
    """cuda, then mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@torch.no_grad()
def prepare(model: SiglipVisionModel) -> None:
    """Start as transformers trained on much data end up (Trockman and Kolter 2023, "Mimetic initialization").

    Positions are sines and cosines of row and column; queries and keys start alike, so that a patch attends to its
    like; value and output matrices together start near a negative identity.
    """
    width = CONFIG["hidden_size"]
    side = SIDE // PATCH
    rows, cols = (t.flatten().float() for t in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    rates = 1 / 100 ** (torch.arange(width // 4) / (width // 4))
    waves = [f(t[:, None] * rates) for t in (rows, cols) for f in (torch.sin, torch.cos)]
    model.embeddings.position_embedding.weight.copy_(0.5 * torch.cat(waves, -1))
    heads = CONFIG["num_attention_heads"]
    size = width // heads
    for layer in model.encoder.layers:
        attention = layer.self_attn
        for h in range(heads):
            u, s, v = torch.linalg.svd(0.5 * torch.randn(width, width) / width**0.5 + 0.5 * torch.eye(width))
            root = s[:size].sqrt()
            attention.q_proj.weight[h * size : (h + 1) * size] = (u[:, :size] * root).T
            attention.k_proj.weight[h * size : (h + 1) * size] = root[:, None] * v[:size]
        u, s, v = torch.linalg.svd(0.4 * torch.randn(width, width) / width**0.5 - 0.4 * torch.eye(width))
        attention.v_proj.weight.copy_((u * s.sqrt()).T)
        attention.out_proj.weight.copy_(s.sqrt()[None, :] * v.T)


class Matcher(nn.Module):
    """The tower, and the words it is matched with: each class is the mean of its words plus a vector of its own."""

    def __init__(self, words: list[list[int]], vocabulary: int, width: int = 192):
        super().__init__()
        # eager attention: the fused kind cannot be differentiated twice
        self.tower = SiglipVisionModel._from_config(SiglipVisionConfig(**CONFIG), attn_implementation="eager")
        prepare(self.tower)
        hidden = CONFIG["hidden_size"]
        self.image = nn.Linear(hidden, width)
        self.thumbnail = nn.Linear(width, 3 * THUMB * THUMB)  # only while training: so that vectors keep the layout
        self.word = nn.EmbeddingBag(vocabulary, width, mode="mean")
        self.own = nn.Parameter(0.02 * torch.randn(len(words), width))
        self.patch_class = nn.Parameter(torch.randn(len(words), hidden) / hidden**0.5)  # in the space of mean patches
        nn.init.normal_(self.word.weight, std=0.02)
        self.scale = nn.Parameter(torch.tensor(math.log(12.0)))
        lengths = [len(w) for w in words]
        self.register_buffer("flat", torch.tensor([i for w in words for i in w]))
        self.register_buffer("starts", torch.tensor([0, *np.cumsum(lengths)[:-1]]))
        self.register_buffer("means", torch.zeros(len(words), hidden))  # of each class's pictures, running
        self.register_buffer("mean", torch.zeros(hidden))  # of all pictures, running

    def texts(self) -> torch.Tensor:
        """(classes, width) unit vectors."""
        return F.normalize(self.word(self.flat, self.starts) + self.own, dim=-1)

    def hidden(self, pictures: torch.Tensor) -> torch.Tensor:
        """Mean of the patches (n, hidden) of pictures (n, 3, side, side) in [0, 1]; a side below SIDE takes interpolated
        positions.

        Matrix products run in bfloat16 where the processor has it, everything else in float32.
        """
        small = pictures.shape[-1] != SIDE
        fast = FAST if pictures.device.type == "cpu" else True
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=fast):
            return self.tower(2 * pictures - 1, interpolate_pos_encoding=small).last_hidden_state.float().mean(1)

    def unit(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unit vectors (n, width) of means of patches."""
        return F.normalize(self.image(hidden), dim=-1)

    def see(self, pictures: torch.Tensor) -> torch.Tensor:
        """Unit vectors (n, width) of pictures (n, 3, side, side) in [0, 1]."""
        return self.unit(self.hidden(pictures))

    @torch.no_grad()
    def remember(self, hidden: torch.Tensor, labels: torch.Tensor) -> None:
        """Move the running means of the classes `labels` towards what was seen of them."""
        hidden = hidden.detach()
        self.mean.lerp_(hidden.mean(0), 0.02 if self.mean.any() else 1.0)
        rate = torch.where(self.means[labels].any(1), 0.1, 1.0)[:, None]
        self.means[labels] = self.means[labels].lerp(hidden, rate)  # of two pictures of a class the later counts

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes)."""
        return self.logits(self.see(pictures))

    def logits(self, seen: torch.Tensor) -> torch.Tensor:
        """(n, classes) of unit vectors (n, width)."""
        return self.scale.exp() * seen @ self.texts().T

    def patch_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, classes) of means of patches (n, hidden), by their own direction from the mean of all.

        A climb scores this direction, so it is what must know the thing and not care for its ground.
        """
        away = F.normalize(hidden - self.mean, dim=-1)
        return self.scale.exp() * away @ F.normalize(self.patch_class, dim=-1).T


class Drawings:
    """Pictures being drawn by the tower's own gradient, each from a plain ground towards art of its class on that ground.

    Half of the grounds are grey, the others white or of any colour. The target is the first picture of the class: where
    several are right, a gradient points at their mean, which is a blot. A twelfth begins anew at every step.
    """

    LAST = 12

    def __init__(
        self,
        source: torch.Tensor,
        labels: torch.Tensor,
        often: torch.Tensor,
        count: int,
        side: int,
        generator: torch.Generator,
        device: torch.device,
    ):
        first = {int(c): i for i, c in reversed(list(enumerate(labels.tolist())))}
        first_rows = torch.tensor([first[c] for c in sorted(first)])
        inner = F.interpolate(source[first_rows], (round(0.9 * side),) * 2, mode="bilinear", antialias=True)
        pad = side - inner.shape[-1]
        self.art = F.pad(inner, (pad // 2, pad - pad // 2, pad // 2, pad - pad // 2)).to(device)  # (classes, 4, s, s)
        self.often, self.generator, self.device, self.side = often, generator, device, side
        self.canvas = torch.empty(count, 3, side, side, device=device)
        self.ground = torch.empty(count, 3, 1, 1, device=device)
        self.label = torch.zeros(count, dtype=torch.long)
        self.age = torch.full((count,), self.LAST)
        self.begin()
        self.age = torch.randint(self.LAST, (count,), generator=generator)  # so that not all are renewed together

    def begin(self) -> None:
        """Replace what is finished by nearly empty canvases."""
        rows = torch.where(self.age >= self.LAST)[0]
        if not len(rows):
            return
        n, g = len(rows), self.generator
        colour, kind = torch.rand(n, 3, 1, 1, generator=g), torch.rand(n, 1, 1, 1, generator=g)
        colour = torch.where(kind < 0.5, torch.full_like(colour, 0.5), colour)
        colour = torch.where(kind > 0.8, 1 - 0.1 * colour, colour)
        coarse = torch.randn(n, 3, self.side // 8, self.side // 8, generator=g)
        strength = 0.08 * torch.rand(n, 1, 1, 1, generator=g)
        noise = F.interpolate(coarse, (self.side, self.side), mode="bilinear") * strength
        self.ground[rows] = colour.to(self.device)
        self.canvas[rows] = (colour + noise).clamp(0, 1).to(self.device)
        self.label[rows] = torch.multinomial(self.often, n, replacement=True, generator=g)
        self.age[rows] = 0

    def _impure(self, vectors: torch.Tensor, label: torch.Tensor, most: float) -> torch.Tensor:
        """Unit directions (n, width) of the classes `label` (n,), with up to `most` of others and of noise added.

        No word's vector in a language model is pure, and a projector turns what it reads.
        """
        n, g = len(label), self.generator
        mix = torch.randn(n, len(vectors), generator=g).to(self.device)
        others = F.normalize(mix @ vectors.detach(), dim=-1)
        noise = F.normalize(torch.randn(n, vectors.shape[1], generator=g), dim=-1).to(self.device)
        which, share = (torch.rand(n, 1, generator=g).to(self.device) for _ in range(2))
        other = F.normalize(others + noise * (which < 0.5), dim=-1)
        return F.normalize(vectors[label] + most * share * other, dim=-1)

    def loss(self, model: Matcher, weight: float, piece: int) -> float:
        """Mean of 1 - cosine(gradient, way to the target), whose gradient times `weight` is added to the parameters', at
        `piece` drawings at a time; moves the drawings on.

        Both are seen at three scales, as means of 4 x 4, of 4 x 4 without what is coarser than 16 pixels, and of 2 x 2
        without what is coarser than 8 (at 64 pixels; half of it at 32), about evenly weighted.
        """
        n, g, device = len(self.canvas), self.generator, self.device
        reach = max(1, self.side // (16 if torch.rand((), generator=g) < 0.7 else 6))
        shift = torch.randint(-reach, reach + 1, (2,), generator=g).tolist()
        grads, total = [], 0.0
        for rows in torch.arange(n).split(piece):
            loss, grad = self._losses(model, rows.to(device), shift)
            (weight / n * loss).backward()
            grads.append(grad)
            total += loss.item() / n
        self._move(torch.cat(grads))
        return total

    def _way(self, rows: torch.Tensor) -> torch.Tensor:
        """From the canvases `rows` to their targets (n, 3, side, side)."""
        target = self.art[self.label.to(self.device)[rows]]
        return target[:, :3] + (1 - target[:, 3:]) * self.ground[rows] - self.canvas[rows]

    def _losses(self, model: Matcher, rows: torch.Tensor, shift: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the losses of `rows`, and their gradients at the pixels."""
        n, g, device = len(rows), self.generator, self.device
        way = self._way(rows)
        strength = 0.2 * torch.rand(n, 1, 1, 1, generator=g)
        noise = (strength * torch.randn(way.shape, generator=g)).to(device)
        x = (torch.roll(self.canvas[rows], shift, (2, 3)) + noise).requires_grad_(True)
        hidden = model.hidden(x)
        head = (torch.rand(n, generator=g) < 0.25).to(
            device
        )  # the others climb in the space that a projector will read
        texts, known = model.texts(), model.means.any(1)
        spread = F.normalize((model.means - model.means[known].mean(0)) * known[:, None], dim=-1)
        label = self.label.to(device)[rows]
        wanted = torch.where(head[:, None], self._impure(texts, label, 0.4), self._impure(spread, label, 1.2))
        seen = torch.where(head[:, None], model.unit(hidden), F.normalize(hidden - model.means[known].mean(0), dim=-1))
        (grad,) = torch.autograd.grad((seen * wanted).sum(), x, create_graph=True)
        grad = torch.roll(grad, [-s for s in shift], (2, 3))
        loss = torch.ones(n, device=device)
        fine = max(1, self.side // 32)
        for share, size, coarser in ((0.35, 2 * fine, 1), (0.3, 2 * fine, 4), (0.35, fine, 4)):
            a, b = (F.avg_pool2d(t, size) for t in (grad, way))
            if coarser > 1:
                a, b = (t - F.interpolate(F.avg_pool2d(t, coarser), t.shape[-2:], mode="bilinear") for t in (a, b))
            loss = loss - share * F.cosine_similarity(a.flatten(1), b.flatten(1))
        return loss.sum(), grad.detach()

    @torch.no_grad()
    def _move(self, grad: torch.Tensor) -> None:
        """A step of each canvas along its gradient, as long as a part of its way to the target."""
        fine = max(1, self.side // 32)
        grad = F.interpolate(F.avg_pool2d(grad, fine), grad.shape[-2:], mode="bilinear")
        step = grad / grad.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
        way = self._way(torch.arange(len(self.canvas), device=self.device))
        step = step * way.flatten(1).norm(dim=1)[:, None, None, None]
        share = 0.15 + 0.35 * torch.rand(len(step), 1, 1, 1, generator=self.generator)
        self.canvas.add_(share.to(self.device) * step).clamp_(0, 1)
        self.age += 1
        self.begin()


def words_of(concepts: list[art.Concept], npm: Path, more: list[str]) -> tuple[list[list[int]], list[str]]:
    """Per class the indices of its describing words, and the words.

    Of a concept these are name, other names, category and CLDR keywords; of a further class the words in `more`.
    """
    data = json.loads((npm / "emojibase-data@17.0.0" / "en" / "data.json").read_text(encoding="utf-8"))
    tags = {art.code(e["emoji"]): e.get("tags", []) for e in data}
    per = []
    for c in concepts:
        text = [c.name, *c.aliases, c.category, *(t for e in c.emoji for t in tags.get(art.code(e), []))]
        per.append(sorted({w for phrase in text for w in phrase.lower().split()}))
    per += [sorted(set(words.lower().split())) for words in more]
    vocabulary = sorted({w for ws in per for w in ws})
    index = {w: i for i, w in enumerate(vocabulary)}
    return [[index[w] for w in ws] for ws in per], vocabulary


def accuracy(model: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Top-1 and top-5 on untouched pictures."""
    model.eval()
    with torch.no_grad():
        top = torch.cat([model(p).topk(5).indices for p in pictures.split(128)])
    model.train()
    hit = top == labels[:, None].to(top.device)
    return hit[:, 0].float().mean().item(), hit.any(1).float().mean().item()


def _ball(delta: torch.Tensor, radius: float) -> torch.Tensor:
    norm = delta.flatten(1).norm(dim=1).clamp(min=1e-12)
    return delta * (radius / norm).clamp(max=1)[:, None, None, None]


def fitted(tower: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tower's weights for patches of PATCH and pictures of SIDE pixels.

    One of patches twice as large then sees a picture of half the side as it saw the whole: its patch kernel becomes the
    sum over blocks of 2 x 2 pixels (a picture enlarged by repeating pixels gives the same patches), its positions are
    interpolated.
    """
    kernel, places = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"
    tower = dict(tower)
    times, old, new = tower[kernel].shape[-1] // PATCH, math.isqrt(len(tower[places])), SIDE // PATCH
    if times > 1:
        tower[kernel] = times**2 * F.avg_pool2d(tower[kernel], times)
    if old != new:
        grid = tower[places].T.reshape(1, -1, old, old)
        tower[places] = F.interpolate(grid, (new, new), mode="bicubic").flatten(2)[0].T.contiguous()
    return tower


@torch.no_grad()
def mean_patches(model: Matcher, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """(n, hidden) means of the patches of pictures that come in batches (some, 3, side, side)."""
    return torch.cat([model.hidden(x.to(model.mean.device)) for x in batches])


def by_class(values: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """(count, width) means of the rows (n, width) of each label; zero of those that have none."""
    sums = torch.zeros(count, values.shape[1], device=values.device).index_add_(0, labels, values)
    return sums / torch.bincount(labels, minlength=count).clamp(min=1)[:, None]


@torch.no_grad()
def start_classes(model: Matcher, file: Path, source: torch.Tensor, labels: torch.Tensor) -> None:
    """Set the head to that in `file`, and each class's vectors to the means of its pictures (n, 4, s, s)."""
    if "image.weight" in (tensors := tensors_of(file)):
        model.image.weight.copy_(tensors["image.weight"].float())
        model.image.bias.zero_()
    seen = mean_patches(model, (augment.plain(x, SIDE) for x in source.split(64)))
    model.mean.copy_(seen.mean(0))
    model.means.copy_(by_class(seen, labels.to(seen.device), len(model.means)))
    model.own.copy_(F.normalize(model.image(model.means), dim=-1))
    model.patch_class.copy_(F.normalize(model.means - model.mean, dim=-1))


class Checkpoint:
    """A folder of a training's state, each file well below 16 MB; written whole or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, **parts: object) -> None:
        """Write `name.pt` for each part."""
        partial = self.folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, part in parts.items():
            torch.save(part, partial / f"{name}.pt")
        old = self.folder.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        partial.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def load(self) -> dict[str, object]:
        """The parts by name; empty where there is none. What an interrupted `save` left in its place is taken."""
        folder = next((f for f in (self.folder, self.folder.with_suffix(".old")) if f.exists()), None)
        if folder is None:
            return {}
        return {file.stem: torch.load(file, map_location="cpu") for file in folder.glob("*.pt")}


@dataclass
class Data:
    """What the tower is trained on: premultiplied art (n, 4, 80, 80), labels (n,), how often each is drawn."""

    source: torch.Tensor
    labels: torch.Tensor
    weight: torch.Tensor
    often: torch.Tensor
    words: list[list[int]]
    vocabulary: list[str]
    near: tuple[torch.Tensor, torch.Tensor]
    far: tuple[torch.Tensor, torch.Tensor]


def read_data(data: Path, more: Path | None, npm: Path) -> Data:
    """The concepts' art of the model's side, further classes from `more`, and the held-out pictures on white."""
    z, styles = np.load(data), list(art.STYLES.values())
    side_of = np.array([s.side for s in styles])[z["style"]]
    labels, pictures = torch.from_numpy(z["concept"]), z["pictures"]
    mine, unseen = (np.flatnonzero(side_of == s) for s in ("model", "held-out"))
    source, y = augment.masters(pictures[mine], 80), labels[mine]
    far = augment.plain(augment.masters(pictures[unseen], 80), SIDE), labels[unseen]
    near = augment.plain(source[::6], SIDE), y[::6]
    concepts = art.concepts()
    often = torch.tensor([3.0 if c.category == "animal" else 2.0 for c in concepts])  # how often each is drawn
    weight = (1.0 / torch.bincount(y, minlength=len(concepts)).clamp(min=1)[y]) ** 0.5
    further: list[str] = []
    if more is not None:
        m = np.load(more)
        further = [str(w) for w in m["words"]]
        label = torch.from_numpy(m["label"])
        rare = (1.0 / torch.bincount(label)[label]) ** 0.5
        rare = rare * (weight.sum() / rare.sum()) * MORE_SHARE / (1 - MORE_SHARE)
        source = torch.cat([source, augment.masters(m["pictures"], 80)])
        y, weight = torch.cat([y, label + len(concepts)]), torch.cat([weight, rare])
        often = torch.cat([often, torch.full((len(further),), 0.25)])
    words, vocabulary = words_of(concepts, npm, further)
    return Data(source, y, weight, often, words, vocabulary, near, far)


def train(
    data: Path,
    npm: Path,
    out: Path,
    *,
    more: Path | None = None,
    clean: tuple[Phase, ...] = CLEAN,
    robust: tuple[Phase, ...] = ROBUST,
    batch: int = 64,
    attacked_batch: int = 28,
    drawn: int = 24,
    drawing_weight: float = DRAWING_WEIGHT,
    radius: float = 1.5,
    replays: int = 3,
    seed: int = 0,
    start: Path | None = None,
    settle: float = SETTLE,
    device: torch.device | str | None = None,
    minutes: float = math.inf,
) -> bool:
    """Train through the clean and the robust phases; resumes from the folder `out` if it holds a checkpoint.

    `start` is where the tower to begin with is (see `weights`), `more` the further classes of `art.render_more`,
    `settle` the share of all steps in which the rate falls to zero. Without clean steps a tower that `keep` has written
    goes on where it stood: the classes' vectors are set to the means of their pictures.
    With `drawing_weight=0` there is no drawing loss. Stops after `minutes`, and returns whether all steps are done.

    Phases go from small pictures to full size: most is learned where a step costs least.
    """
    device = best_device() if device is None else torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    d = read_data(data, more, npm)
    source, y = d.source, d.labels
    thumbs = F.interpolate(augment.plain(source, SIDE, background=0.5), (THUMB, THUMB), mode="area").flatten(1)
    spread = thumbs.var(0).mean()
    model = Matcher(d.words, len(d.vocabulary))
    if start is not None:
        model.tower.load_state_dict(fitted(weights(start)))
    model.to(device)
    checkpoint = Checkpoint(out)
    saved = checkpoint.load()
    if start is not None and not clean and not saved:
        start_classes(model, start, source, y)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "encoder.layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "encoder.layers" in n)]
    optimisers = [
        Muon(matrices, weight_decay=0.05),
        torch.optim.AdamW(others, weight_decay=0.02, betas=(0.9, 0.98)),
    ]
    sides = [side for side, steps in clean + robust for _ in range(steps)]
    calm, total, step = sum(steps for _, steps in clean), len(sides), 0
    average = {k: v.clone() for k, v in model.state_dict().items()}
    if saved:
        model.load_state_dict(saved["model"])
        for optimiser, name in zip(optimisers, ("muon", "adam"), strict=True):
            optimiser.load_state_dict(saved[name])
        generator.set_state(saved["progress"]["generator"])
        average, step = {k: v.to(device) for k, v in saved["average"].items()}, saved["progress"]["step"]
    began, x, delta, here, drawings, aligned = time.time(), None, None, None, None, 1.0
    ran = 0
    while step < total and time.time() - began < 60 * minutes:
        side = sides[step]
        rate = RATE * min(1, (ran + 1) / 100, (total - step) / (settle * total))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        full = 1.0 if calm == 0 else min(1, max(0, step - calm) / (0.15 * (total - calm)))
        eps = radius * side / SIDE * full
        attacked = step >= calm
        if not attacked or x is None or x.shape[-1] != side or (step - calm) % replays == 0:
            count = attacked_batch if attacked else batch
            here = torch.multinomial(d.weight, count, replacement=True, generator=generator)
            x = augment.view(source[here], side, generator, **augment.UPRIGHT).to(device)
            delta = torch.zeros_like(x)
            if attacked:
                delta = _ball(torch.randn(x.shape, generator=generator).to(device), eps * 0.5)
        if attacked:
            delta.requires_grad_(True)
        label = y[here].to(device)
        piece = PIECE * SIDE**2 // side**2 if device.type == "cpu" else len(x)
        model.zero_grad(set_to_none=True)
        mean, right = 0.0, 0
        for rows in torch.arange(len(x)).split(piece):
            hidden = model.hidden((x[rows] + delta[rows]).clamp(0, 1))
            model.remember(hidden, label[rows])
            seen = model.unit(hidden)
            logits = model.logits(seen)
            loss = F.cross_entropy(logits, label[rows], label_smoothing=0.05)
            loss = loss + 0.5 * F.cross_entropy(model.patch_logits(hidden), label[rows], label_smoothing=0.05)
            loss = loss + F.mse_loss(model.thumbnail(seen), thumbs[here[rows]].to(device)) / spread
            loss = len(rows) / len(x) * loss
            loss.backward()
            mean, right = mean + loss.item(), right + int((logits.argmax(1) == label[rows]).sum())
        if attacked:
            if drawing_weight:
                if drawings is None or drawings.side != side:
                    drawings = Drawings(source, y, d.often, drawn, side, generator, device)
                aligned = 0.98 * aligned + 0.02 * drawings.loss(model, drawing_weight, piece)
            g = delta.grad
            g = g / g.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
            delta = _ball(delta.detach() + 0.8 * eps * g, eps)
            delta[: len(delta) // 6] = 0  # a sixth stays clean
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        step, ran = step + 1, ran + 1
        keep = min(0.998, (1 + step) / (10 + step))
        for k, v in model.state_dict().items():
            average[k].lerp_(v, 1 - keep) if v.is_floating_point() else average[k].copy_(v)
        if step % 100 == 0 or step == total:
            live = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(average)
            line = dict(
                step=step,
                side=side,
                loss=round(mean, 3),
                eps=round(eps, 2),
                drawing=round(aligned, 3),
                batch=round(right / len(x), 3),
                seconds=round(time.time() - began),
            )
            if step % 500 == 0 or step == total:
                line["seen"], line["unseen"] = (
                    accuracy(model, pictures.to(device), labels) for pictures, labels in (d.near, d.far)
                )
            model.load_state_dict(live)
            print(json.dumps(line), flush=True)
            checkpoint.save(
                model=live,
                average=average,
                muon=optimisers[0].state_dict(),
                adam=optimisers[1].state_dict(),
                progress=dict(generator=generator.get_state(), step=step),
            )
    return step >= total


def tensors_of(place: Path) -> dict[str, torch.Tensor]:
    """All of a checkpoint folder of `train` (averaged), of a model's folder, or of a safetensors file."""
    if (average := place / "average.pt").exists():
        return torch.load(average, map_location="cpu")
    files = sorted(place.glob("model*.safetensors")) if place.is_dir() else [place]
    return {k: v for file in files for k, v in load_file(file).items()}


def weights(place: Path) -> dict[str, torch.Tensor]:
    """The tower's weights, float32, from what `tensors_of` reads."""
    tensors = tensors_of(place)
    prefix = next(p for p in ("vision_tower.", "tower.") if any(k.startswith(p) for k in tensors))
    return {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}


def keep(checkpoint: Path, file: Path) -> None:
    """Write the averaged tower of a checkpoint folder and its contrastive head to a safetensors file, in bfloat16."""
    head = torch.load(checkpoint / "average.pt", map_location="cpu")["image.weight"]
    tensors = {f"vision_tower.{name}": weight for name, weight in weights(checkpoint).items()} | {"image.weight": head}
    save_file({name: weight.bfloat16().contiguous() for name, weight in tensors.items()}, file)
