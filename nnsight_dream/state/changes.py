"""Changes: what a user did to a model before, as it is now: weights by content, edits of nnsight's, hooks of torch's.

Whatever is kept of a model (centres, norms, baselines, finished jobs) is kept under a hash of these.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from .calm import calm

SMALL = 1 << 26  # bytes: a model up to this size is read whole at every look, in hundredths of a second


PIECE = 1 << 26  # bytes of a tensor that are brought to the CPU at once


_DIGESTS: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, tuple[Any, bytes]]] = weakref.WeakKeyDictionary()


_LOCKS: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()


_GUARD = threading.Lock()


def lock_of(module: torch.nn.Module) -> Any:
    """The lock of a model, the same for all that hold it or a part of it; a thread may take it again."""
    with _GUARD:
        if module not in _LOCKS:
            parts = list(module.modules())
            lock = next((_LOCKS[part] for part in parts if part in _LOCKS), None) or threading.RLock()
            for part in parts:
                _LOCKS.setdefault(part, lock)
        return _LOCKS[module]


@contextlib.contextmanager
def still(model: torch.nn.Module) -> Iterator[None]:
    """No gradients, no dropout, and this thread alone; afterwards each module's own mode again."""
    with lock_of(model), calm():
        training = [module for module in model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True


def digests(hf: torch.nn.Module, names: Iterable[str] | None = None, look: bool = True) -> dict[str, bytes]:
    """A hash of each weight and buffer of a model, by name, over its type, shape and every value.

    look   see also what no version counter shows (writes under `.data`): of a model of up to 64 MiB everything, of a
           larger one 64 values of each tensor. False: trust version counters and places in memory
    """
    every = dict(hf.named_parameters(remove_duplicate=False)) | dict(hf.named_buffers(remove_duplicate=False))
    wanted = every if names is None else {name: every[name] for name in names}
    cache = _DIGESTS.setdefault(hf, {})
    small = sum(t.nbytes for t in every.values() if not t.is_meta) <= SMALL
    marks = {name: _mark(t, look and not small) for name, t in wanted.items()}
    new = [n for n, mark in marks.items() if n not in cache or cache[n][0] != mark or mark is None or (look and small)]

    def read(name: str) -> bytes:
        return of_tensor(values(hf, name, wanted[name]))

    if small or len(new) < 2:
        hashes = list(map(read, new))
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves Python's lock
            hashes = list(pool.map(read, new))
    cache.update((name, (marks[name], value)) for name, value in zip(new, hashes, strict=True))
    return {name: cache[name][1] for name in wanted}


def stored(hf: torch.nn.Module) -> list[str]:
    """The names of a model's weights and of those buffers that a checkpoint holds."""
    left_out = set(derived(hf))
    names = [n for n, _ in hf.named_parameters(remove_duplicate=False)]
    return names + [n for n, _ in hf.named_buffers(remove_duplicate=False) if n not in left_out]


def derived(hf: torch.nn.Module) -> list[str]:
    """The names of a model's other buffers, which are made from its configuration, such as rotary frequencies."""
    return [
        f"{path}.{name}" if path else name
        for path, module in hf.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
        if module._buffers.get(name) is not None
    ]


class _Mark:
    """What of a tensor stays the same as long as nothing is written to it, as far as torch tells."""

    def __init__(self, tensor: torch.Tensor, spread: bytes):
        self.tensor = weakref.ref(tensor)
        self.facts = (tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        self.spread = spread

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Mark) or self.tensor() is not other.tensor() or self.facts != other.facts:
            return False
        return not self.spread or not other.spread or self.spread == other.spread

    __hash__ = None  # type: ignore[assignment]


def _mark(tensor: torch.Tensor, look: bool) -> _Mark | None:
    """None for a tensor that is always read anew: one without a version counter or a place in memory."""
    try:
        return _Mark(tensor, b"" if tensor.is_meta or not look else spread(tensor, 64).cpu().numpy().tobytes())
    except (RuntimeError, NotImplementedError):  # an inference tensor, or a subclass of its own kind
        return None


def spread(weight: torch.Tensor, most: int) -> torch.Tensor:
    """Up to `most` values of a tensor, evenly spread, float64."""
    flat = weight.detach().flatten()
    places = torch.linspace(0, flat.numel() - 1, min(most, flat.numel()), dtype=torch.float64)  # float32 would overrun
    return flat[places.long().to(flat.device)].double()


def values(hf: torch.nn.Module, name: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight's values, from where accelerate keeps them if they are off on the disk until they are used."""
    path, _, leaf = name.rpartition(".")
    hook = getattr(hf.get_submodule(path), "_hf_hook", None) if weight.is_meta else None
    for part in getattr(hook, "hooks", (hook,)):  # accelerate's own list, where there are several
        stored = getattr(part, "weights_map", None)
        if stored is not None:
            return stored[leaf]
    return weight


def of_tensor(tensor: torch.Tensor) -> bytes:
    """A hash of a tensor's shape, type and every value."""
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) and hasattr(
        tensor, "__tensor_flatten__"
    ):
        for part in tensor.__tensor_flatten__()[0]:  # packed weights: their own tensors
            digest.update(of_tensor(getattr(tensor, part)))
    elif not tensor.is_meta:
        flat = tensor.detach().contiguous().flatten().view(torch.uint8)
        for start in range(0, len(flat), PIECE):
            digest.update(flat[start : start + PIECE].cpu().numpy().data)
    return digest.digest()


def packed(hf: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Weights that are neither parameters nor buffers: what quantised layers of torch.ao keep packed."""
    tensors = []
    for name, module in hf.named_modules():
        if callable(getattr(module, "weight", None)):
            weight = module.weight()
            if isinstance(weight, torch.Tensor):
                tensors.append((name, weight.dequantize() if weight.is_quantized else weight))
    return tensors
