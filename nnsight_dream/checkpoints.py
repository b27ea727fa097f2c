"""Loading only what is needed of a checkpoint: which tensors and files, which parts of the model, in what type."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

INDEX = "model.safetensors.index.json"
# what hub calls and from_pretrained both take
_ACCESS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder")
# a decoder's parts by their names in files, old and new; towers' names begin otherwise
_DECODER = re.compile(r"^(?:(?:model|language_model|text_model)\.)+(?:layers\.(?P<block>\d+)|(?P<norm>norm))\.")
_HEAD = re.compile(r"(?:^|\.)lm_head\.")


class Absent(torch.nn.Module):
    """Stands where a part of the model was left out at loading."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{self.name} was left out at loading (head=False); load the model without head=False")


def headless(cls: Any, layers: str) -> Any:
    """A class of models whose final norm and head are absent; `layers` is the path of the decoder's blocks."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, config, *args, **kwargs)
        self.lm_head = Absent("lm_head")
        stack = self.get_submodule(layers.rpartition(".")[0])
        if hasattr(stack, "norm"):
            stack.norm = Absent("norm")
        self.all_tied_weights_keys = {}

    members = {
        "__init__": __init__,
        "__module__": cls.__module__,
        "_tied_weights_keys": {},
        "get_output_embeddings": lambda self: None,
    }
    return type(cls.__name__, (cls,), members)


def wanted(name: str, up_to_layer: int | None, head: bool) -> bool:
    """Whether a tensor of this name in a checkpoint is needed."""
    found = _DECODER.match(name)
    if found and found["block"] is not None:
        return up_to_layer is None or int(found["block"]) < up_to_layer
    return head or not (found or _HEAD.search(name))


def needed_files(
    place: str | Path, up_to_layer: int | None, head: bool, options: Mapping[str, Any]
) -> tempfile.TemporaryDirectory | None:
    """A folder that holds, of a checkpoint in several files, only those that are needed; others are not even fetched.

    None where nothing can be left out: one file (of which only the needed tensors are read), or other formats. Files
    in it are links; it must live as long as the model, whose weights may be read later.
    """
    if (up_to_layer is None and head) or options.get("variant") or options.get("use_safetensors") is False:
        return None
    from transformers.utils import cached_file

    access = {k: v for k, v in options.items() if k in _ACCESS}
    gently = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    index = cached_file(place, INDEX, **access, **gently)
    if index is None:
        return None
    told = json.loads(Path(index).read_text())
    kept = {name: file for name, file in told["weight_map"].items() if wanted(name, up_to_layer, head)}
    if set(kept.values()) == set(told["weight_map"].values()):
        return None
    folder = tempfile.TemporaryDirectory(prefix="nnsight-dream-")
    for file in sorted(set(kept.values())):
        Path(folder.name, file).symlink_to(Path(str(cached_file(place, file, **access))).resolve())
    Path(folder.name, INDEX).write_text(json.dumps({**told, "weight_map": kept}))
    settings = cached_file(place, "generation_config.json", **access, **gently)
    if settings is not None:
        Path(folder.name, "generation_config.json").symlink_to(Path(settings).resolve())
    return folder


def default_dtype(dtype: Any, device: Any, device_map: Any) -> Any:
    """The type to load in: bfloat16 on an accelerator where none was asked for; None, as stored, on the CPU."""
    if dtype is not None:
        return dtype
    places = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
    if any(p in ("auto", "balanced", "balanced_low_0", "sequential") for p in places if isinstance(p, str)):
        places = ["cuda"] if torch.accelerator.is_available() else []
    asked = [p for p in (*places, device) if p is not None and p != "disk"]
    numbered = [torch.device("cuda", p) if isinstance(p, int) else torch.device(p) for p in asked]
    return torch.bfloat16 if any(p.type not in ("cpu", "meta") for p in numbered) else None


def refuse_half(family: Any, dtype: Any, name: str) -> None:
    """Raise ValueError for float16 where a family's activations do not fit in it."""
    if family is not None and family.overflows and dtype in (torch.float16, "float16"):
        raise ValueError(
            f"dtype=torch.float16: activations of {name} ({family.name}) exceed float16's largest number, 65504, and "
            "come out infinite. Load it with dtype=torch.bfloat16, or torch.float32 where there is no bfloat16"
        )
