"""Changes: what a user did to a model before, as it is now: weights by content, edits of nnsight's, hooks of torch's.

Whatever is kept of a model (centres, norms, baselines, finished jobs) is kept under a hash of these.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from .calm import calm

SMALL = 1 << 26  # bytes: a model up to this size is read whole at every look, in hundredths of a second


PIECE = 1 << 26  # bytes of a tensor that are brought to the CPU at once


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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
    known = _DIGESTS.setdefault(hf, {})
    small = sum(t.nbytes for t in every.values() if not t.is_meta) <= SMALL
    marks = {name: _mark(t, look and not small) for name, t in wanted.items()}
    new = [n for n, mark in marks.items() if n not in known or known[n][0] != mark or mark is None or (look and small)]

    def read(name: str) -> bytes:
        return of_tensor(values(hf, name, wanted[name]))

    if small or len(new) < 2:
        found = list(map(read, new))
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves Python's lock
            found = list(pool.map(read, new))
    known.update((name, (marks[name], value)) for name, value in zip(new, found, strict=True))
    return {name: known[name][1] for name in wanted}


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
    for one in getattr(hook, "hooks", (hook,)):  # accelerate's own list, where there are several
        stored = getattr(one, "weights_map", None)
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
    found = []
    for name, module in hf.named_modules():
        if callable(getattr(module, "weight", None)):
            weight = module.weight()
            if isinstance(weight, torch.Tensor):
                found.append((name, weight.dequantize() if weight.is_quantized else weight))
    return found


def edits(model: Any, root: str) -> list[Any]:
    """The edits that a trace of an nnsight model replays: the model's own, then those of the module that is traced."""
    whole = model.get(root) if root else model
    return [*model._edits, *(whole._edits if whole is not model else ())]


def lost_edits(model: Any, root: str) -> list[str]:
    """Paths of modules on which edits are stored that no trace of the model, or of its root, replays."""
    read = {id(model._edits), id(model.get(root)._edits if root else model._edits)}
    return [envoy.path for envoy in model.modules() if envoy._edits and id(envoy._edits) not in read]


def touches(edit: Any, path: str) -> bool:
    """Whether an edit names a module at or below a path of the model, as far as its text and its names tell."""
    leaf = path.rpartition(".")[2]
    named = [edit.lcls[name] for name in _names(edit.code) if name in edit.lcls]
    paths = [f".{getattr(value, 'path', '')}." for value in named if hasattr(value, "_edits")]
    return leaf in _names(edit.code) or any(f".{path}." in p for p in paths)


def hooks(hf: torch.nn.Module) -> list[tuple[str, str, Any]]:
    """The user's hooks on a model's modules: (path, kind, function), in the order in which they run."""
    found = []
    for path, module in hf.named_modules():
        for kind in HOOKS:
            found += [(path, kind, hook) for hook in getattr(module, kind).values() if _is_users(hook)]
    for kind in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks"):
        found += [("", kind, hook) for hook in getattr(torch.nn.modules.module, kind).values()]
    return found


def _is_users(hook: Any) -> bool:
    return not str(getattr(hook, "__module__", "")).startswith(("transformers.", "accelerate.", "nnsight."))


def of_edits(found: list[Any]) -> bytes:
    """A hash of edits, by code and by the values that they name; b"" where there are none."""
    each = [_content((e.code, {n: e.lcls[n] for n in sorted(_names(e.code)) if _has(e.lcls, n)})) for e in found]
    return hashlib.sha256(b"".join(each)).digest() if each else b""


def of_hooks(hf: torch.nn.Module) -> bytes:
    """A hash of the user's hooks, by code and by the values that they name; b"" where there are none."""
    found = [_content((path, kind, hook)) for path, kind, hook in hooks(hf)]
    return hashlib.sha256(b"".join(found)).digest() if found else b""


def _has(scope: Any, name: str) -> bool:
    try:
        scope[name]
    except KeyError:
        return False
    return True


def _names(code: types.CodeType) -> set[str]:
    """The names that code, and functions within it, may look up."""
    found = set(code.co_names) | set(code.co_freevars)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            found |= _names(const)
    return found


_ONCE: list[tuple[Any, bytes]] = []  # things without content to hash, each with a name that no other process gives


def _content(value: Any, above: tuple[Any, ...] = ()) -> bytes:
    """A hash of a value by content; of what has none, a name for the thing itself."""
    head = type(value).__qualname__.encode() + b":"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device, range)):
        return _sha(head, repr(value).encode())
    if isinstance(value, torch.Tensor):
        return _sha(head, of_tensor(value))
    if isinstance(value, (types.ModuleType, type, types.BuiltinFunctionType)) or _installed(value):
        name = getattr(value, "__qualname__", "") or value.__name__
        return _sha(head, f"{getattr(value, '__module__', '')}.{name}".encode())
    if hasattr(value, "hf") and hasattr(value, "family"):  # a VLM
        return _sha(head, str(value.id).encode())
    if any(value is one for one in above):  # it holds itself
        return _sha(head)
    parts = _parts(value) if len(above) < _DEEPEST else None
    if parts is None:
        return _sha(head, _itself(value))
    return _sha(head, *(_content(part, (*above, value)) for part in parts))


_DEEPEST = 12


def _installed(value: Any) -> bool:
    """Whether a function is a library's, whose name tells enough."""
    file = getattr(getattr(value, "__code__", None), "co_filename", "")
    return file.startswith(sys.prefix) or "site-packages" in file


def _parts(value: Any) -> list[Any] | None:
    """What a value is made of, as far as that decides what it does; None where that cannot be told."""
    if isinstance(value, Mapping):
        return [x for pair in sorted(value.items(), key=lambda p: str(p[0])) for x in pair]
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        return [len(value), *value]
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_names, value.co_varnames, *value.co_consts]
    if isinstance(value, types.FunctionType):
        used = {n: value.__globals__[n] for n in _names(value.__code__) if n in value.__globals__}
        cells = [c.cell_contents for c in value.__closure__ or () if _filled(c)]
        return [value.__code__, value.__defaults__, value.__kwdefaults__, cells, used]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if hasattr(value, "_edits") and hasattr(value, "path"):  # nnsight's envoy
        return [value.path]
    if isinstance(value, torch.nn.Module):
        return [type(value), {n: x for n, x in value.state_dict().items() if isinstance(x, torch.Tensor)}]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):  # NumPy's
        return [str(value.dtype), str(value.shape), value.tobytes()]
    if hasattr(value, "__dict__"):
        return [type(value), vars(value)]
    return None


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _itself(value: Any) -> bytes:
    for thing, name in _ONCE:
        if thing is value:
            return name
    _ONCE.append((value, uuid.uuid4().bytes))
    return _ONCE[-1][1]


def _sha(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
