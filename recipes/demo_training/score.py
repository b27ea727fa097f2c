"""What the bundled language model can do: naming in free generation, and whether words and pictures are held alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import nnsight_dream as nd

from . import art, augment, language, tower


def pictures(data: Path) -> dict[str, tuple[Tensor, list[int]]]:
    """Untouched pictures (n, 3, side, side) and their concepts: every sixth of the art trained on, all held-out art."""
    z, styles = np.load(data), list(art.STYLES.values())
    side_of = np.array([s.side for s in styles])[z["style"]]
    found = {}
    for name, side, every in (("seen", "model", 6), ("held-out", "held-out", 1)):
        rows = np.flatnonzero(side_of == side)[::every]
        plain = augment.plain(augment.masters(z["pictures"][rows], 80), tower.SIDE)
        found[name] = plain, z["concept"][rows].tolist()
    return found


def alike(vlm: nd.VLM, x: Tensor, labels: list[int], layers: list[int], shuffles: int = 1000) -> list[dict]:
    """By layer: the rank of a picture's word among all by cosine of centred mean patches, and a permutation test.

    The test (arXiv 2601.08017, appendices A and D): mean cosine of matching pairs less that of the others, against the
    same with the pictures' labels shuffled.
    """
    names = [c.name for c in art.concepts()]
    words = nd.concept(vlm, names, layers)
    patches: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for part in x.split(64):
        with torch.no_grad():
            read = nd.read_pictures(vlm, part, layers)
        for layer in layers:
            patches[layer].append(read[vlm.site(layer)].mean(1))
    rows, wanted = torch.arange(len(x)), torch.tensor(labels)
    generator, found = torch.Generator().manual_seed(0), []
    for i, layer in enumerate(layers):
        seen = torch.cat(patches[layer])
        v = torch.stack([of[i].vector for of in words])
        unit = [torch.nn.functional.normalize(a - a.mean(0), dim=1) for a in (seen, v)]
        cosines = unit[0] @ unit[1].T
        rank = (cosines > cosines[rows, wanted][:, None]).sum(1)
        real = cosines[rows, wanted].mean()
        chance = torch.stack(
            [cosines[rows, wanted[torch.randperm(len(x), generator=generator)]].mean() for _ in range(shuffles)]
        )
        p = (1 + int((chance >= real).sum())) / (1 + shuffles)
        found.append(
            dict(layer=layer, first=round((rank == 0).float().mean().item(), 3), first_ten=round((rank < 10).float().mean().item(), 3),
                 median_rank=1 + int(rank.median()), cosine=round(real.item(), 3), cosine_others=round(chance.mean().item(), 3), p=round(p, 4))
        )  # fmt: skip
    return found


def everything(data: Path, folder: Path) -> None:
    """Print one JSON line for each score of the model in `folder`."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    names = [{c.name, *c.aliases} for c in art.concepts()]
    vlm = nd.load(folder, check=False)
    for kind, (x, labels) in pictures(data).items():
        theirs = [names[i] for i in labels]
        first, _ = language.named(model, processor.tokenizer, x, theirs)
        _, five = language.named(model, processor.tokenizer, x, theirs, beams=5)
        print(json.dumps({"art": kind, "pictures": len(x), "top-1": round(first, 3), "top-5 (beams)": round(five, 3)}))
        for line in alike(vlm, x, labels, list(range(1, vlm.layers + 1))):
            print(json.dumps({"art": kind, **line}), flush=True)
