"""How fast machines are: this one measured, GPUs by their vendors' figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

#: Vendors' dense peaks: 10^12 operations a second in bfloat16 and in float32, 10^9 bytes a second of memory.
GPUS: dict[str, tuple[float, float, float]] = {
    "A100": (312, 19.5, 2039),
    "H100": (989, 67, 3350),
    "L40S": (362, 91.6, 864),
    "RTX 4090": (165, 82.6, 1008),
}


#: The part of these peaks that is assumed to be reached, in products and in moving bytes. Nothing was seen on a GPU.
GPU_USE = (0.4, 0.7)


@dataclass(frozen=True)
class Rate:
    """How fast a machine is: `flops` a second in products (2 for a multiply-add), `bytes` a second in all else."""

    name: str
    flops: float
    bytes: float


def gpu_rate(name: str, dtype: str) -> Rate:
    """The assumed rate of a GPU of the table. Raises ValueError for one that is not in it."""
    if name not in GPUS:
        raise ValueError(f"no GPU {name!r} in the table; there are {', '.join(GPUS)}")
    half, single, bandwidth = GPUS[name]
    peak = single if dtype == "float32" else half
    return Rate(name, peak * 1e12 * GPU_USE[0], bandwidth * 1e9 * GPU_USE[1])


def cpu_rate(dtype: torch.dtype = torch.float32) -> Rate:
    """This machine's rate, measured within a second with as many threads as torch has now: a product of the shape of a
    tower's, and a sum of two tensors."""
    a, b = torch.ones(512, 1152, dtype=dtype), torch.ones(1152, 1152, dtype=dtype)
    c = torch.ones(2**22, dtype=dtype)
    product, summed = _best(lambda: a @ b), _best(lambda: c + c)
    return Rate(
        f"this CPU, {torch.get_num_threads()} thread(s)",
        2 * a.numel() * b.shape[1] / product,
        3 * c.numel() * c.element_size() / summed,
    )


def _best(run: Callable[[], Any]) -> float:
    """Seconds of the quickest of a few runs by this process's own clock, as if no other program ran."""
    spent = []
    for _ in range(5):
        began = time.process_time()
        run()
        spent.append((time.process_time() - began) / torch.get_num_threads())
    return min(spent)
