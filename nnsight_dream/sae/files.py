"""Sparse autoencoders in files: sae-lens's format and Gemma Scope 2's, of which only the requested parts are read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import is_whole
from .tensor_file import Stored
from .weights import Facts, check_shapes, checked_sizes, flag

if TYPE_CHECKING:
    from .weights import Weights


SAE_LENS = ("cfg.json", "sae_weights.safetensors")


GEMMA = ("config.json", "params.safetensors")


_GEMMA_NAMES = {name: name.lower() for name in ("W_enc", "W_dec")}


_HOOKS = {  # what a part of Gemma Scope 2 reads, in the text-only model; the same in sae-lens 6.54
    "resid_post": "model.layers.{}.output",
    "attn_out": "model.layers.{}.self_attn.o_proj.input",
    "mlp_out": "model.layers.{}.post_feedforward_layernorm.output",
    "transcoder": "model.layers.{}.pre_feedforward_layernorm.output",
}


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
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): download or save it anew") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not a configuration")
    return config


def open_sae_lens(
    config: Path, weights: Path, source: str, more: Mapping[str, Any] | None = None, factor: float | None = None
) -> Opened:
    """Open the two files that `sae.save_model` writes, of sae-lens 6 or before.

    more     overrides the configuration; `factor` is that of "expected_average_only_in", where a registry knows it

    Raises ValueError for a file that cannot be understood, and for tensors that do not fit each other.
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
    metadata = (
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
        metadata={**metadata, **more},
        sizes=checked_sizes({name: cfg.get(name) for name in ("d_in", "d_sae", "d_out")}, str(path)),
    )


def open_gemma(
    config: Path | None, weights: Path, name: str, source: str, more: Mapping[str, Any] | None = None
) -> Opened:
    """Open a JumpReLU autoencoder or transcoder of Gemma Scope 2.

    config   its config.json, if it is there; weights   its params.safetensors
    name     its folder, such as `resid_post/layer_17_width_16k_l0_medium`, which tells what a missing config does not
    source   what it is called; more   overrides the metadata

    Raises ValueError for another architecture, for tensors that do not fit each other or the configuration, and where
    neither config nor name tell what it reads.
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
    metadata = {
        "model_name": f"google/{model}" if model and "/" not in model else model,
        "hf_hook_name": where,
        "hf_hook_name_out": cfg.get("hf_hook_point_out"),
        **(more or {}),
    }
    stored, facts = Stored.open(weights, _GEMMA_NAMES), Facts(kind, False, metadata=metadata)
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
    """A folder's autoencoder as a sae-lens object, on the cpu; of either format. Imports sae_lens (10 s).

    Raises as `open_folder` does.
    """
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
