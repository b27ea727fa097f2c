"""Devices: the best there is, those that are there, and whether a model's weights fit into one's memory."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # what accelerate takes instead of places


def best() -> torch.device:
    """The best device there is: cuda, then mps, else cpu, as transformers' pipelines have it."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def there() -> list[str]:
    """The names of the devices of this machine that torch can use.

    >>> from nnsight_dream.models import devices
    >>> devices.there()[-1]
    'cpu'
    """
    names = []
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        names += [f"cuda:{i}" for i in range(count)] if count > 1 else ["cuda"]
    if torch.backends.mps.is_available():
        names.append("mps")
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if current is not None and current.type not in ("cuda", "mps"):
        names.append(current.type)
    return [*names, "cpu"]


def known(device: Any, name: str = "device") -> torch.device:
    """A device as torch has it. Raises ValueError for one that this machine has not, with those that it has."""
    allowed = there()
    if isinstance(device, bool) or not isinstance(device, (str, int, torch.device)):
        raise TypeError(f"{name}={device!r}: a device's name is needed; here are {', '.join(allowed)}")
    if device in _SPREAD:
        raise ValueError(
            f"{name}={device!r}: here are {', '.join(allowed)}. To spread weights over several, nd.load takes "
            f"device_map={device!r} instead"
        )
    if isinstance(device, int) and best().type == "cpu":
        raise ValueError(
            f"{name}={device!r} is a GPU's number, and there is no GPU here; here are {', '.join(allowed)}"
        )
    try:
        parsed = torch.device(f"{best().type}:{device}" if isinstance(device, int) else device)
    except RuntimeError:
        near = difflib.get_close_matches("cuda" if str(device).lower() == "gpu" else str(device), allowed, 1, 0.6)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}={device!r} is no device; here are {', '.join(allowed)}{meant}") from None
    if parsed.type == "cpu":
        return torch.device("cpu")
    kinds = {place.split(":")[0] for place in allowed}
    if parsed.type not in kinds or (parsed.index or 0) >= max(1, _count(parsed.type)):
        raise ValueError(
            f"{name}={str(device)!r}: there is no {parsed} here; here are {', '.join(allowed)}{_why(parsed)}"
        )
    return parsed


def known_map(device_map: Any) -> None:
    """Raise ValueError where a device map of accelerate names a device that this machine has not."""
    places = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    for place in places:
        if place is not None and place not in (*_SPREAD, "disk"):
            known(place, "device_map")


def _count(kind: str) -> int:
    count = getattr(getattr(torch, kind, None), "device_count", None)
    return 1 if count is None else int(count())


def _why(device: torch.device) -> str:
    if device.type == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        return "" if built else f" (torch {torch.__version__} is built without CUDA)"
    return ""


def chosen(device: Any, name: str, *, demo: bool = False) -> torch.device:
    """The device that weights go to: the requested one, else the best there is, which is printed in one line.

    Raises ValueError for a device that this machine has not.

    The bundled model, on which the numbers of its documentation were measured, stays on the cpu by default.
    """
    if device is not None:
        return known(device)
    target = best()
    if demo:
        if target.type != "cpu":
            say(f"the bundled model stays on the cpu, where its results were measured; device={str(target)!r} moves it")
        return torch.device("cpu")
    if target.type == "cpu":
        built = torch.version.cuda or torch.version.hip or torch.backends.mps.is_built()
        unseen = ", though this machine has one" if has_unseen_gpu() else ""
        say(
            f"{name} goes to the cpu: torch sees no GPU{unseen}" + ("" if built else " (it is built for the cpu alone)")
        )
    else:
        say(f"{name} goes to {target}{_described(target)}, the best device there is; device= chooses another")
    return target


def has_unseen_gpu() -> bool:
    """Whether this machine has a GPU, by its driver's files, that torch cannot use."""
    return best().type == "cpu" and any(os.path.exists(f"/dev/{node}") for node in ("nvidiactl", "kfd"))


def say(line: str) -> None:
    """One line to the user, beside what a program prints as its result."""
    out = sys.stdout if "ipykernel" in sys.modules else sys.stderr  # which a notebook shows in red
    print(f"nnsight-dream: {line}", file=out, flush=True)


def _described(device: torch.device) -> str:
    words = []
    with contextlib.suppress(Exception):  # a name is no reason to fail
        words += [torch.cuda.get_device_name(device)] if device.type == "cuda" else []
    free = free_bytes(device)
    words += [] if free is None else [f"{gigabytes(free)} free"]
    return f" ({', '.join(words)})" if words else ""


def gigabytes(count: float) -> str:
    """A number of bytes in words.

    >>> from nnsight_dream.models import devices
    >>> devices.gigabytes(8_600_000_000), devices.gigabytes(1_400_000)
    ('8.6 GB', '0.0014 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{count / 1e9:.2g} GB"


def free_bytes(device: torch.device) -> int | None:
    """How many bytes of a device's memory are free, with what torch keeps there for nobody; None where unknown."""
    try:
        if device.type == "cuda":
            spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            return int(torch.cuda.mem_get_info(device)[0]) + max(0, spare)
        if device.type == "mps":
            return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
        if device.type == "cpu":
            return _free_here()
    except Exception:  # of a driver that does not tell, or none
        return None
    return None


def _free_here() -> int | None:
    """Bytes that a process may still take on this machine, by Linux's own estimate and its container's limit."""
    limits = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        limits.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most, used = ((group / f"memory.{n}").read_text(encoding="ascii").strip() for n in ("max", "current"))
        cache = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        limits.append(int(most) - int(used) + int(cache.get("inactive_file", 0)))
    return min(limits) if limits else None


def stored_bytes(folder: str | os.PathLike[str]) -> int | None:
    """Bytes of the weight files of a folder; None where there are none."""
    files = [p for ending in ("*.safetensors", "*.bin") for p in Path(folder).glob(ending)]
    return sum(p.stat().st_size for p in files) if files else None
