"""From checkpoints to what the package carries: the judge's weights, the held-out pictures, the list of concepts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from . import art, judge

SIDE, COLUMNS = 64, 22


def concepts(out: Path) -> None:
    """`concepts.json`: name, category and other names of everything the model was shown."""
    rows = [{"name": c.name, "category": c.category, "aliases": list(c.aliases)} for c in art.concepts()]
    out.mkdir(parents=True, exist_ok=True)
    (out / "concepts.json").write_text(json.dumps(rows, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def pictures(data: Path, out: Path) -> None:
    """One held-out picture of each concept, 64 x 64 with alpha, in one sheet of 22 columns; in the concepts' order."""
    with np.load(data) as z:
        art_of, style, concept = z["pictures"], z["style"], z["concept"]  # each access reads the whole array anew
    held = [i for i, s in enumerate(art.STYLES.values()) if s.side == "held-out"]
    rows = np.flatnonzero(np.isin(style, held))
    first = {int(c): int(i) for i, c in reversed(list(zip(rows, concept[rows], strict=True)))}
    count = len(art.concepts())
    sheet = Image.new("RGBA", (COLUMNS * SIDE, -(-count // COLUMNS) * SIDE))
    for c in range(count):
        small = Image.fromarray(art_of[first[c]]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(small, (c % COLUMNS * SIDE, c // COLUMNS * SIDE))
    out.mkdir(parents=True, exist_ok=True)
    sheet.save(out / "held_out.webp", quality=92, method=6)


def judge_weights(checkpoint: Path, out: Path) -> None:
    """The averaged weights in float16, and what is needed to use them."""
    saved = torch.load(checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    state = {
        k: v.half().contiguous() if v.is_floating_point() else v
        for k, v in saved["average"].items()
        if not k.endswith("num_batches_tracked")
    }
    save_file(state, out / "model.safetensors")
    config = {
        "names": [c.name for c in art.concepts()],
        "categories": [c.category for c in art.concepts()],
        "side": saved["side"],
        "mean": judge.MEAN,
        "std": judge.STD,
        "temperature": saved["line"]["temperature"],
        "scores": {k: v for k, v in saved["line"].items() if k.split("_")[0] in ("held", "unseen")},
        "steps": saved["step"],
    }
    (out / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def everything(work: Path, out: Path) -> None:
    """All of it; the language model's folder is copied by the recipe itself."""
    concepts(out)
    pictures(work / "art.npz", out / "pictures")
    judge_weights(work / "judge.pt", out / "judge")
