"""Loading only what is needed of a checkpoint: which tensors and files, which parts of the model, in what type."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from . import devices, hub

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
    """Whether a tensor of this name in a checkpoint is needed, for `up_to_layer` blocks (None: all) and a head."""
    block = _DECODER.match(name)
    if block and block["block"] is not None:
        return up_to_layer is None or int(block["block"]) < up_to_layer
    return head or not (block or _HEAD.search(name))


def needed_files(
    place: str | Path, up_to_layer: int | None, head: bool, options: Mapping[str, Any]
) -> tempfile.TemporaryDirectory | None:
    """A folder that names, of a checkpoint in several files, only those that are needed; others are not even fetched.

    None where nothing can be left out: one file (of which only the needed tensors are read), or other formats. Its
    index names the files where they are, in full, so that no link is made, which Windows would refuse.
    """
    if (up_to_layer is None and head) or options.get("variant") or options.get("use_safetensors") is False:
        return None
    from transformers.utils import cached_file

    access = {k: v for k, v in options.items() if k in _ACCESS}
    gently = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    index = cached_file(place, INDEX, **access, **gently)
    if index is None:
        return None
    whole = json.loads(Path(index).read_text(encoding="utf-8"))
    kept = {name: file for name, file in whole["weight_map"].items() if wanted(name, up_to_layer, head)}
    if set(kept.values()) == set(whole["weight_map"].values()):
        return None
    # the name in a cache, not the nameless file that it is a link to: its ending says what it is
    where = {file: os.path.abspath(str(cached_file(place, file, **access))) for file in sorted(set(kept.values()))}
    folder = tempfile.TemporaryDirectory(prefix="nnsight-dream-")
    named = {**whole, "weight_map": {name: where[file] for name, file in kept.items()}}
    Path(folder.name, INDEX).write_text(json.dumps(named), encoding="utf-8")
    settings = cached_file(place, "generation_config.json", **access, **gently)
    if settings is not None:
        shutil.copyfile(settings, Path(folder.name, "generation_config.json"))
    return folder


def positions(hf: torch.nn.Module) -> int | None:
    """How many tokens a model of text takes at most; None where its config does not say, as of ALiBi's."""
    most = getattr(hf.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr, operator]
    if not isinstance(most, int) or most < 1:
        return None
    for name, module in hf.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None and hasattr(module, "num_embeddings"):
            return min(most, int(module.num_embeddings) - padding - 1)  # RoBERTa's count from behind the padding
    return most


def refuse_too_long(tokens: int, most: int | None, name: str) -> None:
    """Raise ValueError for more tokens than a model has positions."""
    if most is not None and tokens > most:
        raise ValueError(f"a text is {tokens} tokens long, and {name} has positions for {most}; shorten it")


# made anew when a model is made, and no weights
_COUNTERS = re.compile(r"(?:^|\.)(?:num_batches_tracked|position_ids|inv_freq)$")


def from_checkpoint(cls: Any, place: str | Path, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model of a checkpoint, and transformers' report of its tensors, which is not printed.

    cls       what makes it: an Auto class, or a model's own; place   a hub id or a folder
    options   of `from_pretrained`

    Tensors of another shape than the model's are left out, and named in the report: `refuse_missing` tells them.
    Raises TypeError for an option that nothing takes, and as `from_pretrained` does.
    """
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:  # reshaped tensors would be listed in a report that is not shown: they are listed below
        return cls.from_pretrained(place, **{**options, "output_loading_info": True, "ignore_mismatched_sizes": True})
    except TypeError as error:
        unknown = [name for name in options if f"unexpected keyword argument {name!r}" in str(error)]
        if not unknown:
            raise
        raise TypeError(
            f"unexpected keyword {unknown[0]!r}: neither nnsight-dream nor from_pretrained of transformers takes it"
        ) from None
    finally:
        logging.set_verbosity(level)


def at_best_device(cls: Any, x: Any, there: str, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model that is no VLM, such as an encoder or a judge's, on `device=` or the best there is, and its report.

    x, there   its name and where that is (see `hub.door`, within whose block this is called)

    Raises ValueError for a device that is not there, and for a model that does not fit.
    """
    from transformers import AutoConfig

    from .size import refuse_too_large

    options = {k: v for k, v in options.items() if v is not None} | hub.access(options)
    device, name = options.pop("device", None), str(x)
    if options.get("device_map") is not None:
        devices.known_map(options["device_map"])
        if device is not None:
            raise ValueError(f"device={device!r} and device_map= are two ways to say the same: give one of them")
        hf, report = from_checkpoint(cls, there, options)
        return hf.eval(), report
    target = devices.chosen(device, name, demo=name == "demo")
    config = AutoConfig.from_pretrained(there, **hub.access(options))
    stored = devices.stored_bytes(hub.folder(there, options))
    refuse_too_large(name, config, target, options.get("dtype"), cls=cls, stored=stored)
    hf, report = from_checkpoint(cls, there, options)  # by way of the cpu
    return hf.eval().to(target), report


def refuse_missing(
    name: str,
    report: Mapping[str, Any],
    layers: str | None = None,
    needed: Callable[[str], bool] | None = None,
) -> None:
    """Raise ValueError, with their names, where weights are not the checkpoint's: transformers draws them at random.

    report   what `from_checkpoint` gave
    layers   the path of the blocks, where a cut is possible
    needed   whether a tensor of a name is of use; all are by default
    """
    missing = {n for n in report["missing_keys"] if not _COUNTERS.search(n) and (needed is None or needed(n))}
    other = {n: (there, here) for n, there, here in report["mismatched_keys"] if needed is None or needed(n)}
    if not missing and not other:
        return
    words = []
    if missing:
        words.append(f"holds no weights for {_listed(missing)} ({len(missing)} missing in all)")
    if other:
        few = {n: f"{n} ({tuple(there)}, not {tuple(here)})" for n, (there, here) in other.items()}
        words.append(f"holds weights of another shape for {_listed(few, few)} ({len(other)} in all)")
    raise ValueError(
        f"{name} {' and '.join(words)}, which would be drawn at random. {_cut(missing | set(other), layers)}Is "
        "config.json that of these weights, and was all of them saved or downloaded?"
    )


def _listed(names: Iterable[str], labels: Mapping[str, str] | None = None) -> str:
    """The first few of names, layers in the order of their numbers."""
    ordered = sorted(names, key=lambda n: re.sub(r"\d+", lambda m: m[0].zfill(6), n))
    return ", ".join((labels or {}).get(n, n) for n in ordered[:5]) + (", ..." if len(ordered) > 5 else "")


def _cut(names: Iterable[str], layers: str | None) -> str:
    """The layers that are whole, if those that are not are the last ones."""
    if not layers:
        return ""
    numbers = [re.match(rf"{re.escape(layers)}\.(\d+)\.", n) for n in names]
    if not all(numbers):
        return ""
    first = min(int(m[1]) for m in numbers if m)
    return f"Layers 1 to {first} are whole: up_to_layer={first} loads these alone. " if first else ""


def placeless(report: Mapping[str, Any], hf: torch.nn.Module) -> list[str]:
    """Tensors of a checkpoint's blocks beyond those that the model has: its config says fewer."""
    forms = {re.sub(r"\.\d+\.", ".0.", n) for n in hf.state_dict()}
    return [n for n in report["unexpected_keys"] if re.search(r"\.\d+\.", n) and re.sub(r"\.\d+\.", ".0.", n) in forms]


def default_dtype(dtype: Any, device: Any, device_map: Any) -> Any:
    """The type to load in: the requested one, else bfloat16 on an accelerator; None, as stored, on the CPU.

    device       where weights go; device_map   accelerate's: a name such as "auto", a device, or a dict by module
    """
    if dtype is not None:
        return dtype
    places = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
    if any(p in ("auto", "balanced", "balanced_low_0", "sequential") for p in places if isinstance(p, str)):
        places = ["cuda"] if torch.accelerator.is_available() else []
    targets = [p for p in (*places, device) if p is not None and p != "disk"]
    numbered = [torch.device("cuda", p) if isinstance(p, int) else torch.device(p) for p in targets]
    return torch.bfloat16 if any(p.type not in ("cpu", "meta") for p in numbered) else None


def refuse_half(family: Any, dtype: Any, name: str) -> None:
    """Raise ValueError for float16 where a family's activations do not fit in it."""
    if family is not None and family.overflows and dtype in (torch.float16, "float16"):
        raise ValueError(
            f"dtype=torch.float16: activations of {name} ({family.name}) exceed float16's largest number, 65504, and "
            "come out infinite. Load it with dtype=torch.bfloat16, or torch.float32 where there is no bfloat16"
        )
