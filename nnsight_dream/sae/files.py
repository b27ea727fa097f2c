"""Sparse autoencoders in files: sae-lens's format and Gemma Scope 2's, of which only the parts asked for are read."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import is_whole
from .weights import Facts, check_shapes, checked_sizes, flag

if TYPE_CHECKING:
    from .weights import Weights


SAE_LENS = ("cfg.json", "sae_weights.safetensors")


GEMMA = ("config.json", "params.safetensors")


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


HEADER_MOST = 100_000_000  # as in safetensors itself


_GEMMA_NAMES = {name: name.lower() for name in ("W_enc", "W_dec")}


_HOOKS = {  # what a part of Gemma Scope 2 reads, in the text-only model; the same in sae-lens 6.54
    "resid_post": "model.layers.{}.output",
    "attn_out": "model.layers.{}.self_attn.o_proj.input",
    "mlp_out": "model.layers.{}.post_feedforward_layernorm.output",
    "transcoder": "model.layers.{}.pre_feedforward_layernorm.output",
}


@dataclass(frozen=True)
class Stored:
    """The tensors of a safetensors file. A column is read number by number: no page of a matrix stays in memory.

    A memory map would not do: the system maps 64 KB around each number touched, which is the whole of a wide matrix.
    names    this library's name to the file's; factors   by which tensors are multiplied
    """

    path: Path
    header: Mapping[str, Mapping[str, Any]]
    start: int
    names: Mapping[str, str] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, names: Mapping[str, str] | None = None) -> Stored:
        """Read a file's header. Raises ValueError for a file that is not safetensors, cut short, or at odds with it."""
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            try:
                if not 2 <= length <= size - 8:
                    raise ValueError(f"its header is said to be {length} bytes long, the file is {size}")
                if length > HEADER_MOST:
                    raise ValueError(f"its header of {length} bytes is longer than the format allows")
                header = json.loads(file.read(length), object_pairs_hook=_unique)
                header.pop("__metadata__", None)
                end = 8 + length + _extent(header)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{path} is no safetensors file ({error}): download or save it anew") from None
        if end > size:
            raise ValueError(f"{path} is cut short: {size} bytes of {end}; download or save it anew")
        if end < size:
            raise ValueError(f"{path} has {size - end} bytes that its header does not name: download or save it anew")
        return cls(path, header, 8 + length, names or {})

    def _entry(self, name: str) -> tuple[torch.dtype, list[int], int]:
        entry = self.header[self.names.get(name, name)]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{self.path}: {name} is of type {entry['dtype']}; known are {', '.join(_DTYPES)}")
        return _DTYPES[entry["dtype"]], entry["shape"], self.start + entry["data_offsets"][0]

    def _numbers(self, name: str, data: bytearray, dtype: torch.dtype) -> torch.Tensor:
        return torch.frombuffer(data, dtype=dtype).float().mul(self.factors.get(name, 1.0))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See `sae_weights.Weights`."""
        entry = self.header.get(self.names.get(name, name))
        return None if entry is None else tuple(entry["shape"])

    def column(self, name: str, index: int) -> torch.Tensor:
        """See `sae_weights.Weights`."""
        dtype, (rows, columns), at = self._entry(name)
        data = bytearray()
        with self.path.open("rb", buffering=0) as file:
            for row in range(rows):
                file.seek(at + (row * columns + index) * dtype.itemsize)
                data += file.read(dtype.itemsize)
        return self._numbers(name, self._whole(data, rows * dtype.itemsize), dtype)

    def row(self, name: str, index: int) -> torch.Tensor:
        """See `sae_weights.Weights`."""
        dtype, shape, at = self._entry(name)
        length = dtype.itemsize * (shape[1] if len(shape) == 2 else 1)
        found = self._numbers(name, self._read(at + index * length, length), dtype)
        return found if len(shape) == 2 else found[0]

    def whole(self, name: str) -> torch.Tensor:
        """See `sae_weights.Weights`."""
        dtype, shape, at = self._entry(name)
        return self._numbers(name, self._read(at, dtype.itemsize * torch.Size(shape).numel()), dtype).reshape(shape)

    def _read(self, at: int, length: int) -> bytearray:
        data = bytearray(length)
        with self.path.open("rb") as file:
            file.seek(at)
            got = file.readinto(data)
        return self._whole(data[:got], length)

    def _whole(self, data: bytearray, length: int) -> bytearray:
        if len(data) != length:
            raise ValueError(f"{self.path} became shorter while it was read: download or save it anew")
        return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("its header names something twice")
    return found


def _extent(header: Mapping[str, Any]) -> int:
    """How many bytes of tensors a header describes, each as long as its shape says, one after the other."""
    places = []
    for name, entry in header.items():
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
        if not isinstance(shape, list) or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"{name} has shape {shape} and offsets {begin}, {end}")
        if dtype in _DTYPES and end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise ValueError(f"{name} of shape {shape} and type {dtype} has {end - begin} bytes")
        places.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(places):
        if begin != reached or end < begin:
            raise ValueError(f"{name} lies at {begin} to {end}, what stands before it ends at {reached}")
        reached = end
    if not places:
        raise ValueError("it holds no tensor")
    return reached


@dataclass(frozen=True)
class Opened:
    """An autoencoder ready to be read: where its tensors are, what its configuration says, and what it is called."""

    weights: Weights
    facts: Facts
    source: str


def open_folder(folder: Path) -> Opened:
    """Open a folder with cfg.json and sae_weights.safetensors, or Gemma Scope 2's config.json and params.safetensors.

    Raises FileNotFoundError where there is neither, ValueError for a file that cannot be understood.
    """
    kind = which(folder)
    if kind is SAE_LENS:
        return open_sae_lens(folder / SAE_LENS[0], folder / SAE_LENS[1], str(folder))
    config = folder / GEMMA[0]
    # the names of its folders tell what a missing config.json does not
    return open_gemma(config if config.is_file() else None, folder / GEMMA[1], "/".join(folder.parts[-3:]), str(folder))


def which(folder: Path) -> tuple[str, str]:
    """The file names of a folder's format; raises FileNotFoundError where it has neither's."""
    if all((folder / name).is_file() for name in SAE_LENS):
        return SAE_LENS
    if (folder / GEMMA[1]).is_file():
        return GEMMA
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give a folder that holds a sparse autoencoder")
    inside = sorted(p.name for p in folder.iterdir())
    below = [name for name in inside if any((folder / name / kind[1]).is_file() for kind in (SAE_LENS, GEMMA))]
    raise FileNotFoundError(
        f"{folder} holds no sparse autoencoder: looked for {' and '.join(SAE_LENS)} (sae-lens), and for "
        f"{' and '.join(GEMMA)} (Gemma Scope 2)"
        + (f"; there is one in {', '.join(below[:5])}: give that folder, or its name as the SAE id" if below else "")
        + ("" if below or not inside else f"; found {', '.join(inside[:5])}")
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): download or save it anew") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a configuration")
    return found


def open_sae_lens(
    config: Path, weights: Path, source: str, more: Mapping[str, Any] | None = None, factor: float | None = None
) -> Opened:
    """Open the two files that `sae.save_model` writes, of sae-lens 6 or before.

    more     overrides the configuration; `factor` is that of "expected_average_only_in", where a registry knows it
    """
    more = {k: v for k, v in (more or {}).items() if v is not None}
    facts = _facts({**_json(config), **more}, more, config)
    stored = Stored.open(weights)
    check_shapes(stored, facts, source)
    if facts.normalise == "expected_average_only_in" and factor is not None:  # folded as sae-lens does
        facts = replace(facts, normalise="none")
        factors = {"W_enc": factor, "W_dec": 1 / factor, "b_dec": 1 / factor}
        stored = replace(stored, factors=factors)
    return Opened(stored, facts, source)


def _facts(cfg: dict[str, Any], more: Mapping[str, Any], path: Path) -> Facts:
    """What a configuration says; flat ones, from before sae-lens 6, with the defaults of their time."""
    nested = isinstance(cfg.get("metadata"), dict)
    told = (
        {**cfg, **cfg["metadata"]} if nested else {("hook_name" if k == "hook_point" else k): v for k, v in cfg.items()}
    )
    architecture = str(cfg.get("architecture", "standard"))
    if not nested and "topk" in (cfg.get("activation_fn_str"), cfg.get("activation_fn")):
        architecture = "topk"
    normalise = cfg.get("normalize_activations") or "none"
    return Facts(
        architecture=architecture,
        subtracted=flag(cfg.get("apply_b_dec_to_input", True), f"{path}: apply_b_dec_to_input"),
        normalise="expected_average_only_in" if normalise is True else str(normalise),
        rescaled=flag(cfg.get("rescale_acts_by_decoder_norm", False), f"{path}: rescale_acts_by_decoder_norm"),
        metadata={**told, **more},
        sizes=checked_sizes({name: cfg.get(name) for name in ("d_in", "d_sae", "d_out")}, str(path)),
    )


def open_gemma(
    config: Path | None, weights: Path, name: str, source: str, more: Mapping[str, Any] | None = None
) -> Opened:
    """Open a JumpReLU autoencoder or transcoder of Gemma Scope 2.

    name    its folder, such as `resid_post/layer_17_width_16k_l0_medium`, which tells what a missing config does not
    """
    cfg = _json(config) if config is not None else _guessed(name)
    if cfg.get("architecture") != "jump_relu":
        raise ValueError(f"{config}: architecture {cfg.get('architecture')!r}; Gemma Scope 2's is 'jump_relu'")
    where = cfg.get("hf_hook_point_in") or _guessed(name)["hf_hook_point_in"]
    across = "pre_feedforward" in str(where)
    kind = (
        ("jumprelu_skip_transcoder" if cfg.get("affine_connection") else "jumprelu_transcoder")
        if across
        else "jumprelu"
    )
    model = str(cfg.get("model_name") or "").replace("-v3", "-3")
    told = {
        "model_name": f"google/{model}" if model and "/" not in model else model,
        "hf_hook_name": where,
        "hf_hook_name_out": cfg.get("hf_hook_point_out"),
        **(more or {}),
    }
    stored, facts = Stored.open(weights, _GEMMA_NAMES), Facts(kind, False, metadata=told)
    _, d_sae = check_shapes(stored, facts, source)
    width = cfg.get("width")  # a round number would do: 16,000 for 16,384
    if width is not None and not (is_whole(width) and 0.9 < width / d_sae < 1.1):
        raise ValueError(
            f"{source}: {config} says width={width!r}, but {weights.name} holds {d_sae} features: they belong to "
            "different autoencoders"
        )
    return Opened(stored, facts, source)


def _guessed(name: str) -> dict[str, Any]:
    layer = re.search(r"layer_(\d+)", name)
    part = next((part for part in ("transcoder", *_HOOKS) if part in name), None)
    if layer is None or part is None or "clt" in name.split("/"):
        raise ValueError(
            f"{name} holds no {GEMMA[0]} that tells what it reads, and neither does its name (such as "
            "resid_post/layer_17_width_16k_l0_medium): save it as <site>/layer_<n>... with <site> one of "
            f"{', '.join(_HOOKS)}, or give site= to nd.feature"
        )
    return {
        "architecture": "jump_relu",
        "hf_hook_point_in": _HOOKS[part].format(layer[1]),
        "affine_connection": "affine" in name,
    }


def load_whole(folder: str | os.PathLike[str]) -> Any:
    """A folder's autoencoder as a sae-lens object, on the cpu; of either format. Imports sae_lens (10 s)."""
    folder = Path(folder)
    opened = open_folder(folder)  # looks whether all fits together
    from sae_lens import SAE

    if which(folder) is SAE_LENS:
        return SAE.load_from_disk(str(folder))
    return SAE.load_from_disk(
        str(folder), converter=lambda path, device, cfg_overrides=None: as_sae_lens(opened, device)
    )


def as_sae_lens(opened: Opened, device: str = "cpu") -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A configuration and tensors as sae-lens's loaders return them, of an autoencoder in Gemma Scope 2's format.

    sae-lens's own loader asks the network for the tensors' shapes even where the file is at hand.
    """
    weights, facts = opened.weights, opened.facts
    check_shapes(weights, facts, opened.source)
    state = {n: weights.whole(n).to(device) for n in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    if weights.shape("affine_skip_connection"):  # stored (d_in, d_out)
        state["W_skip"] = weights.whole("affine_skip_connection").T.contiguous().to(device)
    d_in, d_sae = state["W_enc"].shape
    cfg = {
        "architecture": facts.architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": device,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {k: v for k, v in facts.metadata.items() if v is not None},
        "sae_lens_version": "6.54.0",
    }
    if "transcoder" in facts.architecture:
        cfg["d_out"] = state["W_dec"].shape[1]
    return cfg, state
