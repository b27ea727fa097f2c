"""The user's cache folder: small tensors kept between runs, whole or made anew, never a reason to fail."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from pathlib import Path

import torch

from . import files

FOLDER = "NNSIGHT_DREAM_CACHE"


def folder() -> Path:
    """Where things are kept: $NNSIGHT_DREAM_CACHE, else nnsight-dream in $XDG_CACHE_HOME or the system's own place.

    Raises RuntimeError where the system knows no home folder.
    """
    if own := os.environ.get(FOLDER):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "nnsight-dream"
    # by hand: platformdirs raises on a Windows without LOCALAPPDATA
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nnsight-dream"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "nnsight-dream" / "Cache"
    return Path.home() / ".cache" / "nnsight-dream"


def read(shelf: str, key: str, width: int) -> torch.Tensor | None:
    """The vector (width,) kept under a key, or None; a damaged file counts as none, with a warning."""
    try:
        path = folder() / shelf / f"{key}.safetensors"
        if not path.is_file():
            return None
    except (OSError, RuntimeError):
        return None
    try:
        tensors, metadata = files.unpack(path.read_bytes())
        value: torch.Tensor = tensors["vector"]
        if metadata.get("key") != key:
            raise ValueError("it was written for another key")
        if value.shape != (width,) or value.dtype != torch.float32 or not value.isfinite().all():
            raise ValueError(f"it holds {tuple(value.shape)} of {value.dtype} where ({width},) finite floats belong")
    except Exception as error:  # whatever is wrong with the file, it can be made again
        warnings.warn(f"the cache file {path} cannot be used ({error}); it is made anew", stacklevel=2)
        return None
    return value


def write(shelf: str, key: str, value: torch.Tensor) -> None:
    """Keep a vector under a key; where that cannot be, warn once for each folder and go on."""
    place = ""
    try:
        place = str(folder())
        path = Path(place) / shelf / f"{key}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.sweep_up_once(path.parent)
        files.write_whole(path, files.pack({"vector": value.contiguous()}, {"key": key}), durable=False)
    except (OSError, RuntimeError) as error:
        _warn_once(place, str(error))


@functools.cache
def _warn_once(place: str, reason: str) -> None:
    warnings.warn(
        f"nothing can be kept in the cache folder {place or '(no home folder)'}: {reason}. Baselines "
        f"are computed again in each call; set {FOLDER} to a folder that can be written, or pass all words in one call",
        stacklevel=4,
    )
