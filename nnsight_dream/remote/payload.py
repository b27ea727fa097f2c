"""Making values fit to travel: a server gets source and plain data, and has no `nnsight_dream`.

Functions go as their source, as nnsight sends them. An object goes as an instance of a twin of its class: a plain class
with those methods that are written out (`_ships` of a class of ours names them), without what `dataclass` wrote, which
would go as bytecode of one version of Python; its fields go as they are, made fit likewise.
"""

from __future__ import annotations

import functools
import io
import pickletools
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..engine.plain import Numbers

PACKAGE = __name__.split(".")[0]


# what a server has: nnsight's own requirements, and how nnsight pickles
SERVER = {"torch", "numpy", "transformers", "nnsight", "cloudpickle", "builtins"}


_AS_THEY_ARE = (str, bytes, int, float, complex, bool, type(None), torch.device, torch.dtype, torch.Size, range, slice)


_GENERATED = {"__init__", "__post_init__", "__repr__", "__new__", "__reduce__", "__getstate__", "__setstate__"}


_TWINS: dict[type, type] = {}


_ONE_AT_A_TIME = threading.RLock()


def plain(value: Any) -> Any:
    """A value as it can travel. Raises TypeError for what cannot: pictures, files, classes with `super()`."""
    return _plain(value, {})


def _plain(value: Any, twins: dict[Any, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, (*_AS_THEY_ARE, torch.Generator, types.BuiltinFunctionType, types.ModuleType)):
        return value
    if id(value) in twins:
        return twins[id(value)][1]
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_plain(v, twins) for v in value)
    if type(value) is dict:
        return {_plain(k, twins): _plain(v, twins) for k, v in value.items()}
    if isinstance(value, types.FunctionType):
        _check_function(value)
        return value
    if isinstance(value, functools.partial):
        keywords = {k: _plain(v, twins) for k, v in value.keywords.items()}
        return functools.partial(_plain(value.func, twins), *(_plain(v, twins) for v in value.args), **keywords)
    if isinstance(value, types.MethodType):
        return getattr(_plain(value.__self__, twins), value.__name__)
    if isinstance(value, type):
        return value
    new = _twin_of(value, twins)
    twins[id(value)] = (value, new)  # the value is kept, so that nothing else gets its id meanwhile
    return new


def _twin_of(value: Any, twins: dict[Any, Any]) -> Any:
    kind = type(value)
    home = kind.__module__.split(".")[0]
    if home == "PIL":
        raise TypeError(f"{value!r} cannot travel to a server; give it as a tensor (3, H, W) in [0, 1]")
    if hasattr(value, "get_text_config"):  # a model's config: what of it is plain
        numbers = value.get_text_config().to_dict()
        return Numbers(**{k: v for k, v in numbers.items() if isinstance(v, (int, float, str, type(None)))})
    foreign = [c for c in kind.__mro__[:-1] if c.__module__.split(".")[0] in (*SERVER, *sys.stdlib_module_names)]
    foreign = [c for c in foreign if c.__module__ != "__main__"]
    if foreign or not hasattr(value, "__dict__"):
        for member in vars(kind).values():
            if isinstance(member, types.FunctionType):
                _check_function(member)
        return value
    new: Any = object.__new__(_twin(kind))
    twins[id(value)] = (value, new)
    new.__dict__.update({k: _plain(v, twins) for k, v in vars(value).items()})
    return new


def _twin(kind: type) -> type:
    """A plain class with the methods of another that are written out, its bases' among them."""
    if kind not in _TWINS:
        names = getattr(kind, "_ships", None)
        members: dict[str, Any] = {}
        for base in reversed(kind.__mro__[:-1]):
            for name, member in vars(base).items():
                if name in names if names is not None else _written(name, member):
                    members[name] = member
        for member in members.values():
            for part in (member, getattr(member, "fget", None), getattr(member, "__func__", None)):
                if isinstance(part, types.FunctionType):
                    _check_function(part)
        # a module that is nowhere: the class then goes by its source
        _TWINS[kind] = type(kind.__name__, (), {**members, "__module__": "travelling"})
    return _TWINS[kind]


def _written(name: str, member: Any) -> bool:
    """Whether a class's member is a method in the source, or a constant."""
    if isinstance(member, types.FunctionType):
        return name not in _GENERATED and not member.__code__.co_filename.startswith("<string>")
    if isinstance(member, (property, classmethod, staticmethod, functools.cached_property)):
        return True
    return not name.startswith("__") and isinstance(member, (*_AS_THEY_ARE, tuple))


def _check_function(function: types.FunctionType, seen: set[int] | None = None) -> None:
    """Raise TypeError for a function that a server could not rebuild or run, or that calls one."""
    seen = set() if seen is None else seen
    if id(function) in seen or function.__module__.split(".")[0] == PACKAGE:
        return
    seen.add(id(function))
    if "__class__" in function.__code__.co_freevars:
        raise TypeError(
            f"{function.__qualname__} uses super() without arguments, which a server cannot rebuild; name the base "
            "class instead: Base.method(self, ...)"
        )
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    for used in (*cells, *(function.__globals__.get(name) for name in _names(function.__code__))):
        if isinstance(used, types.FunctionType):
            _check_function(used, seen)
        elif isinstance(used, types.ModuleType):
            refuse_strange({used.__name__}, function.__qualname__)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _names(part)


def refuse_strange(modules: set[str], who: str) -> None:
    """Raise TypeError for modules that a server need not have."""
    own = sorted(m for m in modules if m.split(".")[0] == PACKAGE)
    if own:
        raise TypeError(
            f"{who} names {', '.join(own)}, which a server does not have. A term, pooling or canvas of your own that "
            "travels cannot use the package as a module (`nd.something`): import the function itself, or use torch"
        )
    strange = sorted(m for m in modules if m.split(".")[0] not in {*SERVER, *sys.stdlib_module_names})
    if strange:
        raise TypeError(
            f"{who} names {', '.join(strange)}, which a server need not have; a term, pooling, augmentation or canvas "
            "of your own for a remote model uses torch and math only"
        )


@contextmanager
def by_source() -> Iterator[None]:
    """Within the block nnsight sends this package's functions as source, however the package is installed."""
    from cloudpickle.cloudpickle import _PICKLE_BY_VALUE_MODULES as registered

    with _ONE_AT_A_TIME:
        before = PACKAGE in registered
        registered.add(PACKAGE)
        try:
            yield
        finally:
            if not before:
                registered.discard(PACKAGE)


def named_modules(payload: bytes) -> set[str]:
    """Every module that a pickle names, from which its reader will import: by `from x import y` or as `x` itself."""
    names: set[str] = set()
    memo: dict[int, str] = {}
    recent = ["", ""]  # the last two strings: a name's module and the name
    last, importing = "", False  # the last string or name, for the memo; whether the next string is a module's
    for code, argument, _ in pickletools.genops(io.BytesIO(payload)):
        if code.name == "MEMOIZE":
            memo[len(memo)] = last
            continue
        text = str(argument) if "UNICODE" in code.name else None
        if code.name in ("BINGET", "LONG_BINGET"):
            text = memo.get(int(str(argument)), "")
        last = ""
        if code.name == "STACK_GLOBAL":
            names.add(recent[-2])
            last = _IMPORT if tuple(recent) == ("cloudpickle.cloudpickle", "subimport") else ""
            importing = importing or bool(last)
        elif text == _IMPORT:
            last, importing = _IMPORT, True
        elif text is not None:
            if importing:
                names.add(text)
            last, importing, recent = text, False, [recent[-1], text]
    return names


_IMPORT = "\0import"
