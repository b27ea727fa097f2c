"""Random sparse autoencoders of every architecture, as sae-lens objects and as Gemma Scope 2's files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch

ARCHITECTURES = ("standard", "jumprelu", "topk", "abstopk", "gated")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def build(
    kind: str,
    *,
    d_in: int = 32,
    d_sae: int = 40,
    model: str | None = "tiny",
    hook: str = "blocks.2.hook_resid_post",
    hf_hook: str | None = "model.layers.2.output",
    seed: int = 0,
    k: int = 7,
    **cfg: Any,
) -> Any:
    """A sae-lens object whose every parameter matters."""
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    cls, config = get_sae_class(kind)
    names = {"hook_name": hook, "hf_hook_name": hf_hook, "model_name": model}
    cfg.setdefault("apply_b_dec_to_input", False)
    if "topk" in kind:
        cfg["k"] = k
    if kind in TRANSCODERS:
        cfg.setdefault("d_out", 24)
    metadata = SAEMetadata(**{name: value for name, value in names.items() if value is not None})
    sae = cls(config(d_in=d_in, d_sae=d_sae, metadata=metadata, **cfg))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(sae.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise.abs() * 0.5 if name == "threshold" else noise * (0.3 if parameter.ndim == 1 else 1.0))
    return sae


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]], filled: dict[str, dict[tuple, torch.Tensor]]) -> None:
    """A float32 safetensors file of zeros, holes on disk, with some columns (None, j) and rows (j,) filled."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + at)
        for name, parts in filled.items():
            shape, base = shapes[name], start + header[name]["data_offsets"][0]
            for place, values in parts.items():
                if place[0] is None:
                    for i, value in enumerate(values.tolist()):
                        file.seek(base + 4 * (i * shape[1] + place[1]))
                        file.write(struct.pack("<f", value))
                else:
                    file.seek(base + 4 * place[0] * (shape[1] if len(shape) == 2 else 1))
                    file.write(values.numpy().tobytes())


def gemma_scope(
    folder: Path,
    *,
    width: int,
    features: int,
    index: int,
    hook: str | None,
    model: str = "gemma-v3-4b-it",
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Gemma Scope 2's two files, one latent filled in; returns its column, row, biases and threshold.

    hook   what config.json says is read; None writes no config.json
    """
    generator = torch.Generator().manual_seed(seed)
    made = {
        "w_enc": torch.randn(width, generator=generator),
        "w_dec": torch.randn(width, generator=generator),
        "b_enc": torch.randn(1, generator=generator),
        "b_dec": torch.randn(width, generator=generator),
        "threshold": torch.rand(1, generator=generator),
    }
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"w_enc": (width, features), "w_dec": (features, width), "b_enc": (features,), "b_dec": (width,)}
    places: dict[str, tuple] = {"w_enc": (None, index), "w_dec": (index,), "b_enc": (index,), "b_dec": (0,)}
    shapes["threshold"], places["threshold"] = (features,), (index,)
    filled = {name: {places[name]: made[name]} for name in made}
    write_sparse(folder / "params.safetensors", shapes, filled)
    if hook is not None:
        told = {"architecture": "jump_relu", "model_name": model, "hf_hook_point_in": hook}
        (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
    return made


def cached(hub: Path, repo: str, path: str) -> Path:
    """The folder of a file of a repository in a Hugging Face cache made here."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = hub / ("models--" + repo.replace("/", "--"))
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(commit, encoding="utf-8")
    found = home / "snapshots" / commit / path
    found.mkdir(parents=True, exist_ok=True)
    return found
