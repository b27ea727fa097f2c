"""A golden record: hashes of what the package gives, to hold a change of its structure against.

    python tests/golden.py write FILE        before the change, on this machine
    python tests/golden.py compare FILE      after it; prints what differs, and fails if anything does

Bits differ between machines and versions of torch, so no record is kept in the repository. It holds 30 prototypes (words,
features, sums, terms, layers, batches, poolings, canvases), concept vectors and patches of five families, and the
pictures and numbers of one sweep. Only public names are used, so it runs before and after.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NNSIGHT_DREAM_CACHE", tempfile.mkdtemp())
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch

import nnsight_dream as nd

FAMILIES = ("qwen3_vl", "qwen2_5_vl", "llava", "internvl", "paligemma1")


def hashed(*values: Any) -> str:
    """A hash of tensors, arrays and plain data."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach().float().cpu().numpy()
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return digest.hexdigest()[:16]


def picture(prototype: nd.Prototype) -> str:
    """A hash of a prototype's pixels, scores, history, heat map and readings."""
    return hashed(np.asarray(prototype.image), prototype.history, prototype.scores, prototype.heat, prototype.readings)


def climbs(vlm: nd.VLM) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(name, what is climbed, options of synthesize): about 30 pictures."""
    words = {layer: nd.concept(vlm, ["octopus", "fox", "guitar"], layer) for layer in (1, 4, 8)}
    fox, octopus = words[4][1], words[4][0]
    for layer in (1, 4, 8):
        for direction in words[layer]:
            yield f"word {direction.label} layer {layer}", direction, {}
    yield "seeds", fox, {"seed": [3, 4]}
    for batch in (1, 4):
        yield f"batch {batch}", octopus, {"batch": batch}
    yield "difference", octopus - fox, {}
    yield "half", 0.5 * octopus, {}
    features = [nd.feature("demo", index) for index in (425, 7, 1200)]
    for feature in features:
        yield f"feature {feature.label}", feature, {}
    yield "sum of features", features[0] + 0.5 * features[1], {}
    yield "terms", fox, {"terms": [nd.TotalVariation(0.1), nd.Away(octopus, 0.5)]}
    for pooling in (nd.Mean(), nd.Max(), nd.Attention(tau=0.05, detach=True)):
        yield f"pooling {pooling!r}", fox, {"pooling": pooling}
    for canvas, rate in (
        (nd.Pixels(48), 0.05),
        (nd.MultiResolution(64), 0.05),
        (nd.Fourier(64), 0.05),
        (nd.MACO(64), 1),
    ):
        yield f"canvas {type(canvas).__name__}", fox, {"canvas": canvas, "rate": rate, "clip": 1.0}
    yield "native", fox, {"canvas": nd.Native(nd.Pixels)}
    for centre in (nd.Grey(), nd.NaturalNoise(8)):
        yield f"centre {centre!r}", fox, {"centre": centre}
    yield "adam constant", fox, {"optimiser": "adam", "schedule": "constant", "rate": 0.02, "clip": 1.0}
    views = (nd.Shift(pixels=3), nd.Rotate(5), nd.Scale(0.8, 1.2), nd.Noise(0.1))
    yield "augment", fox, {"augment": views}


def record() -> dict[str, str]:
    """Name to hash, of everything."""
    import tiny
    import tiny_families

    tiny.quiet()
    torch.set_num_threads(1)
    vlm = nd.load("demo")
    rows: dict[str, str] = {}
    for name, aim, options in climbs(vlm):
        result = nd.synthesize(vlm, aim, steps=3, progress=False, **options)
        for number, prototype in enumerate(result if isinstance(result, nd.Prototypes) else [result]):
            rows[f"prototype: {name} {number}"] = picture(prototype)
    pixels = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    for family in FAMILIES:
        small = tiny_families.build(family)
        model = nd.load(small.model, processor=small.processor, **small.load)
        for layer in (1, 3):
            site = model.site(layer)
            vectors = nd.concept(model, ["octopus", "red fox"], layer)
            rows[f"{family}: words at layer {layer}"] = hashed(*(d.vector for d in vectors))
            rows[f"{family}: patches at layer {layer}"] = hashed(nd.read_pictures(model, pixels, [site])[site])
    with tempfile.TemporaryDirectory() as folder:
        jobs = nd.jobs_of([("fox", "animal", ""), ("guitar", "object", "")], [1, 4])
        store = nd.sweep(vlm, jobs, folder, settings=nd.Settings.demo().but(steps=2), progress=False).store
        for entry in sorted(store.entries(), key=lambda entry: (entry.job.concept, entry.job.layer)):
            name = f"sweep: {entry.job.concept} layer {entry.job.layer}"
            rows[name] = hashed(entry.key, picture(entry.prototype()))
    return rows


def main() -> None:
    """Write or compare."""
    what, file = sys.argv[1], Path(sys.argv[2])
    now = record()
    if what == "write":
        file.write_text(json.dumps(now, indent=1))
        print(f"{len(now)} hashes in {file}")
        return
    before = json.loads(file.read_text())
    differs = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    print(f"{len(now)} hashes, {len(differs)} differ", *differs, sep="\n  ")
    sys.exit(bool(differs))


if __name__ == "__main__":
    main()
