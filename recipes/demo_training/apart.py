"""Two small models that never met: a tower that sees pictures and no word, a language model that reads and never sees.

The tower is a SigLIP transformer trained to tell that two views are of one picture (SimCLR, Chen et al. 2020): no name,
caption or label has a part in it. The language model is a Llama trained to tell the next token of plain sentences.
Both take minutes; their weights are no part of the package. Each folder that is written loads with transformers' Auto
classes, so that `deep_alignment.py --vision FOLDER --language FOLDER` takes them.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from . import art, augment, text
from .muon import Muon

SIDE, PATCH = 48, 12
SEEING = dict(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=SIDE,
    patch_size=PATCH,
    vision_use_head=False,
    hidden_act="gelu",
)
READING = dict(
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
    tie_word_embeddings=True,
)
VOCABULARY, LENGTH = 2048, 64
TEMPERATURE = 0.2


def pictures(file: Path | None) -> np.ndarray:
    """RGBA art (n, S, S, 4) of every artist but the bundled pictures' own; without a file, the bundled pictures."""
    if file is None:
        from nnsight_dream.demo import bundle

        shown = bundle.pictures()
        return np.stack([np.dstack([np.asarray(p.image), np.asarray(p.mask)]) for p in shown])
    z, styles = np.load(file), list(art.STYLES.values())
    seen = np.array([styles[s].side != "held-out" for s in z["style"]])
    return z["pictures"][seen]


def new_tower(seed: int) -> SiglipVisionModel:
    """The untrained tower."""
    torch.manual_seed(seed)
    return SiglipVisionModel(SiglipVisionConfig(**SEEING)).eval()


def new_reader(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """The untrained language model."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**READING, vocab_size=vocabulary, bos_token_id=0, eos_token_id=0)).eval()


def processor() -> SiglipImageProcessorPil:
    """To the tower's size and to [-1, 1]."""
    return SiglipImageProcessorPil(size=dict(height=SIDE, width=SIDE), image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _optimisers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inside = [p for n, p in named if p.ndim == 2 and ".layers." in n]
    others = [p for n, p in named if not (p.ndim == 2 and ".layers." in n)]
    return [Muon(inside, lr=rate, weight_decay=0.05), torch.optim.AdamW(others, lr=rate, weight_decay=0.02)]


def _climb_down(
    model: nn.Module, loss_of: Callable[[int], torch.Tensor], steps: int, rate: float, name: str, watched: list[float]
) -> None:
    """Plain training: warm-up, cosine decay, a line every tenth of the way."""
    model.train()
    optimisers, began, recent = _optimisers(model, rate), time.time(), []
    for step in range(steps):
        now = rate * min(1, (step + 1) / max(1, steps // 12)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = now
            optimiser.zero_grad()
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        recent.append(loss.item())
        if (step + 1) % max(1, steps // 10) == 0:
            watched.append(sum(recent) / len(recent))
            print(
                f"{name}: step {step + 1} of {steps}, loss {watched[-1]:.3f}, {time.time() - began:.0f} s", flush=True
            )
            recent = []
    model.eval()


# -- the tower ---------------------------------------------------------------------------------------------------


class Seer(nn.Module):
    """The tower with the head that is only there while it is trained."""

    def __init__(self, tower: SiglipVisionModel) -> None:
        super().__init__()
        self.tower = tower
        width = SEEING["hidden_size"]
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, 64))

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Unit vectors (n, 64) of views (n, 3, SIDE, SIDE) in [0, 1]."""
        return F.normalize(self.head(self.tower(2 * views - 1).last_hidden_state.mean(1)), dim=-1)


def _view(some: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Placed, cut, turned, mirrored, tinted, on any ground; a fifth without colour."""
    x = augment.view(some, SIDE, generator, scale=(0.7, 1.5), turn=0.5)
    grey = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.2
    return torch.where(grey, x.mean(1, keepdim=True).expand_as(x), x)


def see(file: Path | None, folder: Path, *, steps: int, batch: int = 96, seed: int = 0) -> None:
    """Train the tower on pictures alone and write it, its image processor and training.json to a folder."""
    generator = torch.Generator().manual_seed(seed)
    masters = augment.masters(pictures(file), SIDE + 16)
    model = Seer(new_tower(seed))

    def loss_of(step: int) -> torch.Tensor:
        some = masters[torch.randperm(len(masters), generator=generator)[:batch]]
        z = model(torch.cat([_view(some, generator), _view(some, generator)]))
        n = len(some)
        logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-1e4)
        return F.cross_entropy(logits, torch.arange(2 * n).roll(n))

    watched: list[float] = []
    _climb_down(model, loss_of, steps, 2e-3, "tower", watched)
    told = dict(pictures=len(masters), steps=steps, batch=batch, seed=seed, losses=watched)
    _written(folder, told, model.tower, processor())


# -- the language model ------------------------------------------------------------------------------------------


def sentences(seed: int) -> Iterator[str]:
    """Plain lines without end about the same things: what they are, have, do, resemble; and everyday English."""
    return text.plain_text(art.concepts(), text.facts(), {}, random.Random(seed))


def tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the language model's own sentences; token 0 parts them."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stream = sentences(seed)
    raw.train_from_iterator((next(stream) for _ in range(12000)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>", pad_token="<s>")


def _rows(words: PreTrainedTokenizerFast, seed: int, batch: int) -> Iterator[torch.Tensor]:
    """Token ids (batch, LENGTH), sentences one after another."""
    stream, ids = sentences(seed), []
    while True:
        while len(ids) < batch * LENGTH:
            ids += [0, *words(next(stream), add_special_tokens=False)["input_ids"]]
        yield torch.tensor(ids[: batch * LENGTH]).view(batch, LENGTH)
        ids = ids[batch * LENGTH :]


def read(folder: Path, *, steps: int, batch: int = 16, seed: int = 0) -> None:
    """Train the language model on texts alone and write it, its tokenizer and training.json to a folder."""
    words = tokenizer(seed)
    model = new_reader(len(words), seed)
    rows, untouched = _rows(words, seed + 1, batch), _rows(words, seed + 2, 64)

    def loss_of(step: int) -> torch.Tensor:
        ids = next(rows)
        return model(input_ids=ids, labels=ids).loss

    def tested() -> float:
        with torch.no_grad():
            return float(model(input_ids=test, labels=test).loss)

    test = next(untouched)
    before, watched = tested(), []
    _climb_down(model, loss_of, steps, 3e-3, "language model", watched)
    told = dict(tokens=steps * batch * LENGTH, steps=steps, seed=seed, losses=watched, before=before, after=tested())
    _written(folder, told, model, words)


def _written(folder: Path, told: dict[str, Any], *parts: Any) -> None:
    """All files of a model, there at once or not at all."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in parts:
        part.save_pretrained(partial)
    (partial / "training.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
