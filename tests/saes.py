"""Random sparse autoencoders of every architecture, as sae-lens objects and as Gemma Scope 2's files."""

from __future__ import annotations

import hashlib
import json
import os
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


def on_neuronpedia() -> Any:
    """A jumprelu SAE that names no model, with an id of Neuronpedia."""
    made = build("jumprelu", model=None)
    made.cfg.metadata.neuronpedia_id = "tiny/2-res"
    return made


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
    hook_out: str | None = None,
    out: int | None = None,
    model: str = "gemma-v3-4b-it",
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Gemma Scope 2's two files, one latent filled in; returns its column, row, biases and threshold.

    hook, hook_out   what config.json says is read and written; without `hook` there is no config.json
    out              the width that is written to, where it is another
    """
    out = out or width
    generator = torch.Generator().manual_seed(seed)
    made = {
        "w_enc": torch.randn(width, generator=generator),
        "w_dec": torch.randn(out, generator=generator),
        "b_enc": torch.randn(1, generator=generator),
        "b_dec": torch.randn(out, generator=generator),
        "threshold": torch.rand(1, generator=generator),
    }
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"w_enc": (width, features), "w_dec": (features, out), "b_enc": (features,), "b_dec": (out,)}
    places: dict[str, tuple] = {"w_enc": (None, index), "w_dec": (index,), "b_enc": (index,), "b_dec": (0,)}
    shapes["threshold"], places["threshold"] = (features,), (index,)
    if "affine" in folder.name:
        shapes["affine_skip_connection"] = (width, out)
    filled = {name: {places[name]: made[name]} for name in made}
    write_sparse(folder / "params.safetensors", shapes, filled)
    if hook is not None:
        _gemma_config(folder, features, hook, hook_out, model)
    return made


def _gemma_config(folder: Path, features: int, hook: str, hook_out: str | None, model: str) -> None:
    """config.json with the keys of the real ones."""
    told = {
        "hf_hook_point_in": hook,
        "hf_hook_point_out": hook_out or hook,
        "width": features,
        "model_name": model,
        "architecture": "jump_relu",
        "l0": 60,
        "affine_connection": "affine" in folder.name,
        "type": "sae" if hook_out in (None, hook) else "transcoder",
    }
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")


def gemma_scope_whole(
    folder: Path,
    *,
    width: int,
    features: int,
    hook: str,
    hook_out: str | None = None,
    model: str = "gemma-v3-4b-it",
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """The same with every latent filled in; returns the tensors under their names in the file."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    shapes = {"w_enc": (width, features), "w_dec": (features, width), "b_enc": (features,), "b_dec": (width,)}
    if "affine" in folder.name:
        shapes["affine_skip_connection"] = (width, width)
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made["threshold"] = torch.rand(features, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(made, folder / "params.safetensors")
    _gemma_config(folder, features, hook, hook_out, model)
    return made


def linked(hub: Path, repo: str) -> None:
    """Turn the files of a repository in a cache into links to blobs, as the hub's client lays them out."""
    home = hub / ("models--" + repo.replace("/", "--"))
    (home / "blobs").mkdir(exist_ok=True)
    for path in sorted(p for p in (home / "snapshots").rglob("*") if p.is_file() and not p.is_symlink()):
        blob = home / "blobs" / hashlib.sha256(str(path).encode()).hexdigest()  # the client's names are hashes, too
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))


def cached(hub: Path, repo: str, path: str) -> Path:
    """The folder of a file of a repository in a Hugging Face cache made here."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = hub / ("models--" + repo.replace("/", "--"))
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(commit, encoding="utf-8")
    found = home / "snapshots" / commit / path
    found.mkdir(parents=True, exist_ok=True)
    return found
