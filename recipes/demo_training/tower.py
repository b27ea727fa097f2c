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
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from . import art, augment
from .muon import Muon

SIDE, PATCH = 64, 8
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


Phase = tuple[int, int]  # (picture side in pixels, steps)
CLEAN: tuple[Phase, ...] = ((48, 700),)
ROBUST: tuple[Phase, ...] = ((48, 900), (64, 2300))
SHARP: tuple[Phase, ...] = ((64, 3000),)  # every concept drawn towards one picture: the first of its art
DRAWING_WEIGHT = 16.0  # the gradient of the drawing loss is 9 times smaller than that of the cross-entropy
FAST = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


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
    """The tower, and the words it is matched with: each concept is the mean of its words plus a vector of its own."""

    def __init__(self, words: list[list[int]], vocabulary: int, width: int = 192):
        super().__init__()
        # eager attention: the fused one cannot be differentiated twice
        self.tower = SiglipVisionModel._from_config(SiglipVisionConfig(**CONFIG), attn_implementation="eager")
        prepare(self.tower)
        self.image = nn.Linear(CONFIG["hidden_size"], width)
        self.thumbnail = nn.Linear(width, 3 * THUMB * THUMB)  # only while training: so that vectors keep the layout
        self.word = nn.EmbeddingBag(vocabulary, width, mode="mean")
        self.own = nn.Parameter(0.02 * torch.randn(len(words), width))
        nn.init.normal_(self.word.weight, std=0.02)
        self.scale = nn.Parameter(torch.tensor(math.log(12.0)))
        lengths = [len(w) for w in words]
        self.register_buffer("flat", torch.tensor([i for w in words for i in w]))
        self.register_buffer("starts", torch.tensor([0, *np.cumsum(lengths)[:-1]]))
        self.register_buffer("means", torch.zeros(len(words), CONFIG["hidden_size"]))  # of each concept's art, running

    def texts(self) -> torch.Tensor:
        """(concepts, width) unit vectors."""
        return F.normalize(self.word(self.flat, self.starts) + self.own, dim=-1)

    def hidden(self, pictures: torch.Tensor) -> torch.Tensor:
        """Mean of the patches (n, hidden) of pictures (n, 3, side, side) in [0, 1]; a side below SIDE takes interpolated
        positions.

        Matrix products run in bfloat16 where the processor has it, everything else in float32.
        """
        small = pictures.shape[-1] != SIDE
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST):
            return self.tower(2 * pictures - 1, interpolate_pos_encoding=small).last_hidden_state.float().mean(1)

    def unit(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unit vectors (n, width) of means of patches."""
        return F.normalize(self.image(hidden), dim=-1)

    def see(self, pictures: torch.Tensor) -> torch.Tensor:
        """Unit vectors (n, width) of pictures (n, 3, side, side) in [0, 1]."""
        return self.unit(self.hidden(pictures))

    @torch.no_grad()
    def remember(self, hidden: torch.Tensor, labels: torch.Tensor) -> None:
        """Move the running means of the concepts `labels` towards what was seen of them."""
        for h, c in zip(hidden.detach(), labels.tolist(), strict=True):
            self.means[c].lerp_(h, 0.1 if self.means[c].any() else 1.0)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits (n, concepts)."""
        return self.logits(self.see(pictures))

    def logits(self, seen: torch.Tensor) -> torch.Tensor:
        """(n, concepts) of unit vectors (n, width)."""
        return self.scale.exp() * seen @ self.texts().T


class Drawings:
    """Pictures being drawn from grey by the tower's own gradient, each towards art of its concept.

    A tenth of them starts anew at every step. Until its third step a drawing's target is random art of the concept,
    then whatever art of the concept is nearest. With `first_only` it is the first art of the concept throughout: where
    several pictures are right, a gradient points at their mean, which is a blot.
    """

    LAST = 9

    def __init__(
        self,
        art: torch.Tensor,
        labels: torch.Tensor,
        often: torch.Tensor,
        count: int,
        generator: torch.Generator,
        first_only: bool,
    ):
        self.art, self.often, self.generator = art, often, generator
        self.thumbs = F.interpolate(art, (THUMB, THUMB), mode="area").flatten(1)
        members = [torch.where(labels == c)[0] for c in range(int(labels.max()) + 1)]
        most = 1 if first_only else max(len(m) for m in members)
        self.members = torch.stack([m[torch.arange(most) % len(m)] for m in members])
        self.canvas = torch.empty(count, *art.shape[1:])
        self.concept, self.target = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
        self.age = torch.full((count,), self.LAST)
        self.begin()
        self.age = torch.randint(self.LAST, (count,), generator=generator)  # so that not all are renewed together

    def begin(self) -> None:
        """Replace what is finished by nearly grey canvases."""
        rows = torch.where(self.age >= self.LAST)[0]
        if not len(rows):
            return
        n, side = len(rows), self.canvas.shape[-1]
        coarse = torch.randn(n, 3, side // 8, side // 8, generator=self.generator)
        strength = 0.08 * torch.rand(n, 1, 1, 1, generator=self.generator)
        noise = F.interpolate(coarse, (side, side), mode="bilinear") * strength
        self.canvas[rows] = (0.5 + noise).clamp(0, 1)
        self.concept[rows] = torch.multinomial(self.often, n, replacement=True, generator=self.generator)
        self.age[rows] = 0
        self._choose(rows)

    def _choose(self, rows: torch.Tensor) -> None:
        near = self.members[self.concept[rows]]
        place = torch.randint(near.shape[1], (len(rows),), generator=self.generator)
        old = self.age[rows] >= 2
        if old.any():
            thumbs = F.interpolate(self.canvas[rows], (THUMB, THUMB), mode="area").flatten(1)
            distance = (self.thumbs[near] - thumbs[:, None]).norm(dim=-1)
            place = torch.where(old, distance.argmin(1), place)
        self.target[rows] = near.gather(1, place[:, None])[:, 0]

    def _impure(self, vectors: torch.Tensor, most: float) -> torch.Tensor:
        """Unit directions (count, width) of the drawings' concepts, with up to `most` of others and of noise added.

        No word's vector in a language model is pure, and a projector turns what it reads.
        """
        n, g = len(self.concept), self.generator
        others = F.normalize(torch.randn(n, len(vectors), generator=g) @ vectors.detach(), dim=-1)
        noise = F.normalize(torch.randn(n, vectors.shape[1], generator=g), dim=-1)
        other = F.normalize(others + noise * (torch.rand(n, 1, generator=g) < 0.5), dim=-1)
        return F.normalize(vectors[self.concept.clone()] + most * torch.rand(n, 1, generator=g) * other, dim=-1)

    def loss(self, model: Matcher) -> torch.Tensor:
        """Mean of 1 - cosine(gradient, way to the target); moves the drawings on.

        Both are seen through means of 4 x 4 pixels (from 16 x 16 values the judge names as many animals as from
        64 x 64, within a tenth), once whole, once without what is coarser than 16 pixels, and through means of 2 x 2
        without what is coarser than 8, weighted 2 : 2 : 1.
        """
        n, g = len(self.canvas), self.generator
        self._choose(torch.arange(n))
        way = self.art[self.target] - self.canvas
        shift = torch.randint(-3, 4, (2,), generator=g).tolist()
        noise = 0.2 * torch.rand(n, 1, 1, 1, generator=g) * torch.randn(way.shape, generator=g)
        x = (torch.roll(self.canvas, shift, (2, 3)) + noise).requires_grad_(True)
        hidden = model.hidden(x)
        head = torch.rand(n, generator=g) < 0.35  # the others climb in the space that a projector will read
        texts, known = model.texts(), model.means.any(1)
        spread = F.normalize((model.means - model.means[known].mean(0)) * known[:, None], dim=-1)
        wanted = torch.where(head[:, None], self._impure(texts, 0.4), self._impure(spread, 1.2))
        seen = torch.where(head[:, None], model.unit(hidden), F.normalize(hidden - model.means[known].mean(0), dim=-1))
        score = (seen * wanted).sum()
        (grad,) = torch.autograd.grad(score, x, create_graph=True)
        grad = torch.roll(grad, [-s for s in shift], (2, 3))
        loss = torch.ones(n)
        for share, size, coarser in ((0.4, 4, 1), (0.4, 4, 4), (0.2, 2, 4)):
            a, b = (F.avg_pool2d(t, size) for t in (grad, way))
            if coarser > 1:
                a, b = (t - F.interpolate(F.avg_pool2d(t, coarser), t.shape[-2:], mode="bilinear") for t in (a, b))
            loss = loss - share * F.cosine_similarity(a.flatten(1), b.flatten(1))
        with torch.no_grad():
            grad = F.interpolate(F.avg_pool2d(grad, 2), grad.shape[-2:], mode="bilinear")
            step = grad / grad.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
            step = step * way.flatten(1).norm(dim=1)[:, None, None, None]
            self.canvas += (0.15 + 0.35 * torch.rand(n, 1, 1, 1, generator=g)) * step
            self.canvas.clamp_(0, 1)
            self.age += 1
            self.begin()
        return loss.mean()


def words_of(concepts: list[art.Concept], npm: Path) -> tuple[list[list[int]], list[str]]:
    """Per concept the indices of its describing words (name, other names, category, CLDR keywords), and the words."""
    data = json.loads((npm / "emojibase-data@17.0.0" / "en" / "data.json").read_text(encoding="utf-8"))
    tags = {art.code(e["emoji"]): e.get("tags", []) for e in data}
    per = []
    for c in concepts:
        text = [c.name, *c.aliases, c.category, *(t for e in c.emoji for t in tags.get(art.code(e), []))]
        per.append(sorted({w for phrase in text for w in phrase.lower().split()}))
    vocabulary = sorted({w for ws in per for w in ws})
    index = {w: i for i, w in enumerate(vocabulary)}
    return [[index[w] for w in ws] for ws in per], vocabulary


def accuracy(model: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Top-1 and top-5 on untouched pictures."""
    model.eval()
    with torch.no_grad():
        top = torch.cat([model(p).topk(5).indices for p in pictures.split(128)])
    model.train()
    hit = top == labels[:, None]
    return hit[:, 0].float().mean().item(), hit.any(1).float().mean().item()


def _ball(delta: torch.Tensor, radius: float) -> torch.Tensor:
    norm = delta.flatten(1).norm(dim=1).clamp(min=1e-12)
    return delta * (radius / norm).clamp(max=1)[:, None, None, None]


def train(
    data: Path,
    npm: Path,
    out: Path,
    *,
    clean: tuple[Phase, ...] = CLEAN,
    robust: tuple[Phase, ...] = ROBUST,
    sharp: tuple[Phase, ...] = SHARP,
    batch: int = 72,
    drawn: int = 40,
    radius: float = 0.8,
    replays: int = 3,
    seed: int = 0,
    start: Path | None = None,
) -> None:
    """Train through the clean, the robust and the sharp phases; resumes from `out` if it holds a checkpoint.

    `start` is a file whose tower to begin with (see `weights`).

    Phases go from small pictures to full size: most is learned where a step costs least.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    z, styles = np.load(data), list(art.STYLES.values())
    side_of = np.array([s.side for s in styles])[z["style"]]
    labels = torch.from_numpy(z["concept"])
    mine, unseen = (np.flatnonzero(side_of == s) for s in ("model", "held-out"))
    source, y = augment.masters(z["pictures"][mine], 80), labels[mine]
    far, far_y = augment.plain(augment.masters(z["pictures"][unseen], 80), SIDE), labels[unseen]
    near, near_y = augment.plain(source[::6], SIDE), y[::6]
    thumbs = F.interpolate(augment.plain(source, SIDE, background=0.5), (THUMB, THUMB), mode="area").flatten(1)
    spread = thumbs.var(0).mean()
    weight = (1.0 / torch.bincount(y).clamp(min=1)[y]) ** 0.5

    concepts = art.concepts()
    often = torch.tensor([3.0 if c.category == "animal" else 1.0 for c in concepts])  # how often each is drawn
    words, vocabulary = words_of(concepts, npm)
    model = Matcher(words, len(vocabulary))
    if start is not None:
        model.tower.load_state_dict(weights(start))
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "encoder.layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "encoder.layers" in n)]
    optimisers = [
        Muon(matrices, weight_decay=0.05),
        torch.optim.AdamW(others, weight_decay=0.02, betas=(0.9, 0.98)),
    ]
    sides = [side for side, steps in clean + robust + sharp for _ in range(steps)]
    calm, total = sum(steps for _, steps in clean), len(sides)
    step, late = 0, total - sum(steps for _, steps in sharp)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    if out.exists():
        saved = torch.load(out)
        model.load_state_dict(saved["model"])
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        generator.set_state(saved["generator"])
        average, step = saved["average"], saved["step"]
    began, x, delta, here, drawings, aligned = time.time(), None, None, None, None, 1.0
    while step < total:
        side = sides[step]
        if step < late:
            rate = 2e-3 * min(1, (step + 1) / 150) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / late)))
        else:
            rate = 2e-3 * min(1, (step - late + 1) / 50) * (1 + math.cos(math.pi * (step - late) / (total - late))) / 2
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        eps = radius * side / SIDE * min(1, max(0, step - calm) / (0.2 * (late - calm) + 1))
        attacked = step >= calm
        if not attacked or x is None or x.shape[-1] != side or (step - calm) % replays == 0:
            here = torch.multinomial(weight, batch // 2 if attacked else batch, replacement=True, generator=generator)
            x = augment.view(source[here], side, generator, **augment.UPRIGHT)
            delta = torch.zeros_like(x)
            if attacked:
                delta = _ball(torch.randn(x.shape, generator=generator), eps * 0.5)
        if attacked:
            delta.requires_grad_(True)
        hidden = model.hidden((x + delta).clamp(0, 1))
        model.remember(hidden, y[here])
        seen = model.unit(hidden)
        logits = model.logits(seen)
        loss = F.cross_entropy(logits, y[here], label_smoothing=0.05)
        loss = loss + F.mse_loss(model.thumbnail(seen), thumbs[here]) / spread
        model.zero_grad(set_to_none=True)
        loss.backward()
        if attacked:
            if drawings is None or drawings.canvas.shape[-1] != side or step == late:
                canvases = augment.plain(source, side, background=0.5)
                drawings = Drawings(canvases, y, often, drawn, generator, step >= late)
            drawing_loss = drawings.loss(model)
            (DRAWING_WEIGHT * drawing_loss).backward()
            aligned = 0.98 * aligned + 0.02 * drawing_loss.item()
            g = delta.grad
            g = g / g.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
            delta = _ball(delta.detach() + 0.8 * eps * g, eps)
            delta[: len(delta) // 6] = 0  # a sixth stays clean
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        keep = min(0.998, (1 + step) / (10 + step))
        for k, v in model.state_dict().items():
            average[k].lerp_(v, 1 - keep) if v.is_floating_point() else average[k].copy_(v)
        if step % 100 == 0 or step == total:
            live = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(average)
            scores = dict(
                step=step,
                side=side,
                loss=round(loss.item(), 3),
                eps=round(eps, 2),
                drawing=round(aligned, 3),
                batch=round((logits.argmax(1) == y[here]).float().mean().item(), 3),
                seen=accuracy(model, near, near_y),
                unseen=accuracy(model, far, far_y),
                seconds=round(time.time() - began),
            )
            model.load_state_dict(live)
            print(json.dumps(scores), flush=True)
            partial = out.with_suffix(".partial")
            torch.save(
                dict(
                    model=live,
                    optimisers=[o.state_dict() for o in optimisers],
                    generator=generator.get_state(),
                    average=average,
                    step=step,
                ),
                partial,
            )
            partial.rename(out)


def weights(file: Path) -> dict[str, torch.Tensor]:
    """The tower's averaged weights, float32, from a checkpoint of `train` or from a model's safetensors file."""
    if file.suffix == ".safetensors":
        found, prefix = load_file(file), "vision_tower."
    else:
        found, prefix = torch.load(file)["average"], "tower."
    return {k.removeprefix(prefix): v.float() for k, v in found.items() if k.startswith(prefix)}
