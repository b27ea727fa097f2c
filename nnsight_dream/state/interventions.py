"""Interventions of a user in a model: edits that nnsight stores, hooks of torch; listed, and hashed by content."""

from __future__ import annotations

import functools
import hashlib
import sys
import types
import uuid
from collections.abc import Mapping
from typing import Any

import torch

from . import changes

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def edits(model: Any, root: str) -> list[Any]:
    """The edits that a trace of an nnsight model replays: the model's own, then those of the module that is traced."""
    whole = model.get(root) if root else model
    return [*model._edits, *(whole._edits if whole is not model else ())]


def refuse_lost_edits(model: Any, root: str) -> None:
    """Raise ValueError for edits stored on a module that no trace of the model, or of its root, replays."""
    read = {id(model._edits), id(model.get(root)._edits if root else model._edits)}
    lost = next((envoy.path for envoy in model.modules() if envoy._edits and id(envoy._edits) not in read), None)
    if lost is not None:
        raise ValueError(
            f"an edit is stored on {lost}, and nnsight replays it in traces of that module alone, so that "
            "nothing read of this model would show it. Store it on the model itself, with model.edit(), "
            f"and call model.get({lost.partition('.')[2]!r}).clear_edits()"
        )


def touches(edit: Any, path: str) -> bool:
    """Whether an edit names a module at or below a path of the model, as far as its text and its names tell."""
    leaf = path.rpartition(".")[2]
    named = [edit.lcls[name] for name in _names(edit.code) if name in edit.lcls]
    paths = [f".{getattr(value, 'path', '')}." for value in named if hasattr(value, "_edits")]
    return leaf in _names(edit.code) or any(f".{path}." in p for p in paths)


def hooks(hf: torch.nn.Module) -> list[tuple[str, str, Any]]:
    """The user's hooks on a model's modules: (path, kind, function), in the order in which they run."""
    listed = []
    for path, module in hf.named_modules():
        for kind in HOOKS:
            listed += [(path, kind, hook) for hook in getattr(module, kind).values() if _is_users(hook)]
    for kind in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks"):
        listed += [("", kind, hook) for hook in getattr(torch.nn.modules.module, kind).values()]
    return listed


_THEIRS = ("transformers.", "accelerate.", "nnsight.", "transformer_lens.model_bridge.")  # hooks that only look


def _is_users(hook: Any) -> bool:
    return not str(getattr(hook, "__module__", "")).startswith(_THEIRS)


def of_edits(edited: list[Any]) -> bytes:
    """A hash of edits, by code and by the values that they name; b"" where there are none."""
    each = [_content((e.code, {n: e.lcls[n] for n in sorted(_names(e.code)) if _has(e.lcls, n)})) for e in edited]
    return hashlib.sha256(b"".join(each)).digest() if each else b""


def of_hooks(hf: torch.nn.Module) -> bytes:
    """A hash of the user's hooks, by code and by the values that they name; b"" where there are none."""
    hashes = [_content((path, kind, hook)) for path, kind, hook in hooks(hf)]
    return hashlib.sha256(b"".join(hashes)).digest() if hashes else b""


def of_adapters(hf: torch.nn.Module) -> bytes:
    """A hash of which of peft's adapters are at work, and how strongly, by module; b"" where there are none."""
    names = ("disable_adapters", "active_adapters", "merged_adapters", "scaling")
    layers = [(path, m) for path, m in hf.named_modules() if hasattr(m, "_disable_adapters")]
    states = [(path, [str(getattr(m, name, None)) for name in names]) for path, m in layers]
    return hashlib.sha256(repr(states).encode()).digest() if states else b""


def _has(scope: Any, name: str) -> bool:
    try:
        scope[name]
    except KeyError:
        return False
    return True


def _names(code: types.CodeType) -> set[str]:
    """The names that code, and functions within it, may look up."""
    names = set(code.co_names) | set(code.co_freevars)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _names(const)
    return names


def _content(value: Any, above: tuple[Any, ...] = ()) -> bytes:
    """A hash of a value by content; of what has none, a name for the thing itself."""
    head = type(value).__qualname__.encode() + b":"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device, range)):
        return _sha(head, repr(value).encode())
    if isinstance(value, torch.Tensor):
        return _sha(head, changes.of_tensor(value))
    if isinstance(value, (types.ModuleType, type, types.BuiltinFunctionType)) or _installed(value):
        name = getattr(value, "__qualname__", "") or value.__name__
        return _sha(head, f"{getattr(value, '__module__', '')}.{name}".encode())
    if hasattr(value, "hf") and hasattr(value, "family"):  # a VLM
        return _sha(head, str(value.id).encode())
    if any(value is outer for outer in above):  # it holds itself
        return _sha(head)
    parts = _parts(value) if len(above) < _DEEPEST else None
    if parts is None:
        return _sha(head, _itself(value))
    return _sha(head, *(_content(part, (*above, value)) for part in parts))


_DEEPEST = 12

_ONCE: list[tuple[Any, bytes]] = []  # things without content to hash, each with a name that no other process gives


def _installed(value: Any) -> bool:
    """Whether a function is a library's, whose name tells enough: not TransformerLens's wrapping of a user's hook."""
    if getattr(value, "__module__", "") == "transformer_lens.hook_points":
        return False
    file = getattr(getattr(value, "__code__", None), "co_filename", "")
    return file.startswith(sys.prefix) or "site-packages" in file


def _parts(value: Any) -> list[Any] | None:
    """What a value is made of, as far as that decides what it does; None where that is unknown."""
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
