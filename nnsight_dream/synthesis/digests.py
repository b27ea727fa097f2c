"""Digests: a hash of a choice by all that it holds, the same in every process; what has no such content is refused.

What counts as content:

    numbers, texts, None        type and value
    tensors, arrays, pictures   type, shape and values; the device does not count
    lists, tuples, dicts, sets  their items; of dicts and sets not the order
    paths                       the path, not what is in the file
    enums, dtypes, devices      by name; an enum's member also by its value
    functions of the user's     what they do (see `definitions`), defaults, attributes, and all that they take from
                                outside: closures, and the globals that they name, these by content as well
    classes of the user's       their bases, methods and constants
    objects                     class and state: fields of a dataclass, what `__getstate__` gives, else attributes
    of installed packages       functions, classes and modules by name
    a VLM                       id, revision, type and weights

Refused, with the way to it: sources of chance and iterators (they move while they are used), locks, files, and objects
of C that say nothing of themselves.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import io
import logging
import random
import types
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..arguments import shown
from ..io.pictures import content
from . import definitions

NO_PART_OF_KEY = {"part_of_key": False}  # the metadata of a dataclass's field that changes no result


_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, type(Ellipsis), type(NotImplemented))


_BY_NAME = (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype)


_CHANCE = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)


_CACHED = type(functools.lru_cache(max))


_METHODS = (types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType)


_MEMBERS = (*_METHODS, types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType)


def digest(value: Any) -> str:
    """A hash of a choice with all that it holds, 24 hexadecimal digits; see the module for what that is.

    Raises TypeError for what cannot be told from others by its content, with the way to it.

    >>> digest([1, "a"]) == digest([1, "a"]), digest(1) == digest(1.0)
    (True, False)
    """
    reader = _Reader(())
    try:
        reader.add(value)
    except RecursionError:
        raise TypeError(f"{shown(value)} is nested too deeply for a key; give it flatter") from None
    return reader.hash.hexdigest()[:24]


class _Reader:
    """Goes through a value and hashes what it meets, each piece with its kind and length."""

    def __init__(self, trail: tuple[str, ...]):
        self.hash = hashlib.sha256()
        self.trail = list(trail)  # the way to where it is, for errors
        self.open: list[int] = []  # ids of what it is inside of, for what holds itself
        self.known: dict[int, tuple[int, Any]] = {}  # functions and classes met, numbered; kept alive for their ids

    def put(self, kind: str, data: bytes | str = b"") -> None:
        data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        self.hash.update(f"{kind} {len(data)}:".encode() + data)

    def refuse(self, value: Any, why: str) -> TypeError:
        way = " > ".join(self.trail[:3] + ["..."] * (len(self.trail) > 6) + self.trail[3:][-3:])
        return TypeError(
            f"{f'{way}: ' if way else ''}{shown(value)} {why}, so that pictures made with it could not be told from "
            "others by a key. Hold numbers, texts, tensors, arrays, pictures, functions, or objects of these; make the "
            "rest inside the call, or give the class that holds it a __getstate__ that leaves it out"
        )

    def add(self, value: Any, where: str = "") -> None:
        """Hash a value; `where` says what it is of the one around it."""
        self.trail += [where] * bool(where)
        if id(value) in self.open:
            self.put("around", str(len(self.open) - self.open.index(id(value))))
        else:
            self.open.append(id(value))
            self._any(value)
            self.open.pop()
        if where:
            self.trail.pop()

    def items(self, kind: str, values: Any) -> None:
        values = list(values)
        self.put(kind, str(len(values)))
        for i, value in enumerate(values):
            self.add(value, f"item {i}")

    def pairs(self, kind: str, found: dict[Any, Any], what: str = "key") -> None:
        """What is found by key, whatever its order."""
        ordered = sorted(found.items(), key=lambda pair: self.apart(pair[0]))
        self.put(kind, str(len(ordered)))
        for key, value in ordered:
            self.add(key)
            self.add(value, f"{what} {shown(key, 40)}")

    def apart(self, value: Any) -> str:
        """The digest of a value by itself."""
        reader = _Reader(tuple(self.trail))
        reader.add(value)
        return reader.hash.hexdigest()

    # -- by kind -------------------------------------------------------------------------------------------------

    def _any(self, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN:
            self.put(kind.__name__, repr(value))
        elif isinstance(value, (type, types.GenericAlias)):
            self._class(value)
        elif isinstance(value, enum.Enum):
            self.add(kind)
            self.put("member", str(value.name))
            self.add(value.value)
        elif isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            self._array(value)
        elif isinstance(value, Image.Image):
            self.put("picture", content(value))
        elif isinstance(value, _BY_NAME) or kind.__module__ == "torch._ops":
            self.put(kind.__name__, str(value))
        elif isinstance(value, PurePath):
            self.put("path", value.as_posix())
        elif isinstance(value, types.ModuleType):
            self._module(value)
        elif isinstance(value, logging.Logger):
            self.put("logger", value.name)
        elif not self._callable(value) and not self._container(value):
            self._object(value)

    def _tensor(self, value: torch.Tensor) -> None:
        try:
            flat = value.detach().cpu()
            flat = flat.dequantize() if flat.is_quantized else flat.to_dense() if flat.layout != torch.strided else flat
            flat = flat.resolve_conj().resolve_neg().contiguous().flatten()
            raw = flat.view(torch.uint8).numpy().tobytes()
        except (RuntimeError, NotImplementedError, TypeError):
            raise self.refuse(value, "has no values here") from None
        self.put("tensor", f"{value.dtype} {tuple(value.shape)}")
        self.put("values", raw)

    def _array(self, value: Any) -> None:
        self.put("array", f"{value.dtype} {value.shape}")
        if value.dtype.hasobject:
            self.items("objects", np.asarray(value).ravel().tolist())
        else:
            self.put("values", np.ascontiguousarray(value).tobytes())
        if isinstance(value, np.ma.MaskedArray):
            self.add(np.ma.getmaskarray(value))

    def _module(self, value: types.ModuleType) -> None:
        self.put("module", value.__name__)
        if not definitions.installed(value.__name__):
            self._file(getattr(value, "__file__", None), value)

    def _file(self, path: str | None, value: Any) -> None:
        """The source of a module of the user's that is not used by its parts alone."""
        try:
            with open(path or "", "rb") as file:
                self.put("file", file.read())
        except OSError:
            raise self.refuse(value, "is a module whose source is not there") from None

    def _container(self, value: Any) -> bool:
        if isinstance(value, (tuple, list)):
            self._subclass(value, (tuple, list, torch.Size))
            self.items("list" if isinstance(value, list) else "tuple", value)
        elif isinstance(value, (set, frozenset)):
            self._subclass(value, (set, frozenset))
            self.put("set", " ".join(sorted(self.apart(item) for item in value)))
        elif isinstance(value, (dict, types.MappingProxyType)):
            self._subclass(value, (dict, types.MappingProxyType))
            self.pairs("dict", dict(value))
        elif isinstance(value, (range, slice)):
            self.put(type(value).__name__)
            self.items("ends", (value.start, value.stop, value.step))
        elif isinstance(value, (int, float, complex, str, bytes)):  # a class that is one of these and more
            base = next(b for b in (int, float, complex, str, bytes) if isinstance(value, b))
            self._subclass(value, ())
            self.put(base.__name__, base.__repr__(value))
        else:
            return False
        return True

    def _subclass(self, value: Any, plain: tuple[type, ...]) -> None:
        if type(value) not in plain:
            self.add(type(value))
            self.pairs("attributes", dict(getattr(value, "__dict__", {})), "attribute")

    # -- functions and classes -----------------------------------------------------------------------------------

    def again(self, value: Any) -> bool:
        """Whether a function or class was met before; if so, its number is put."""
        if id(value) in self.known:
            self.put("again", str(self.known[id(value)][0]))
            return True
        self.known[id(value)] = (len(self.known), value)
        return False

    def _callable(self, value: Any) -> bool:
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.put("method")
            self.add(value.__func__)
            self.add(value.__self__, f"object of {value.__func__.__qualname__}")
        elif isinstance(value, types.BuiltinFunctionType):
            self.put("builtin", f"{value.__module__} {value.__qualname__}")
            if not isinstance(value.__self__, (types.ModuleType, type(None))):
                self.add(value.__self__, f"object of {value.__name__}")
        elif isinstance(value, _MEMBERS):
            self.put("member", value.__qualname__)
            self.add(value.__self__ if isinstance(value, types.MethodWrapperType) else value.__objclass__)
        elif isinstance(value, np.ufunc):
            name = str(value.__name__)
            if getattr(np, name, None) is not value:
                raise self.refuse(value, "does not say what it does")
            self.put("ufunc", name)
        elif isinstance(value, functools.partial):
            self.put("partial")
            self.add(value.func, "function of partial")
            self.items("arguments", value.args)
            self.pairs("named", value.keywords, "argument")
            self._subclass(value, (functools.partial,))
        elif isinstance(value, (property, staticmethod, classmethod, functools.cached_property)):
            self.put(type(value).__name__)
            names = ("fget", "fset", "fdel", "func", "__func__")
            self.items("functions", [getattr(value, name) for name in names if hasattr(value, name)])
        elif isinstance(value, _CACHED):
            self.add(value.__wrapped__)
        else:
            return False
        return True

    def _function(self, value: types.FunctionType) -> None:
        if hasattr(value, "_torchdynamo_orig_callable"):  # what torch.compile made of it does the same
            return self.add(value._torchdynamo_orig_callable)
        if definitions.named(value):
            return self.put("function", definitions.name_of(value))
        if self.again(value):
            return None
        name = f"function {value.__name__}"
        self.put("function")
        self.items("does", definitions.contents(value.__code__, value.__globals__))
        self.add(value.__defaults__, f"{name}, its defaults")
        self.add(value.__kwdefaults__, f"{name}, its defaults")
        self.pairs("attributes", {k: v for k, v in vars(value).items() if k != "__wrapped__"}, f"{name}, its attribute")
        taken = definitions.taken(value)
        self.put("takes", str(len(taken)))
        for path, used in sorted(taken.items()):
            self.put("name", path)
            if used is definitions.ABSENT:
                self.put("absent")
            else:
                self.add(used, f"{name}, its {path}")
        for module, file in sorted(definitions.imported(value).items()):
            self.put("imports", module)
            self._file(file, value)
        return None

    def _class(self, value: Any) -> None:
        if isinstance(value, types.GenericAlias):
            return self.put("alias", repr(value))
        if definitions.named(value):
            return self.put("class", definitions.name_of(value))
        if self.again(value):
            return None
        self.put("class", value.__qualname__.rpartition(".")[2])
        self.items("bases", [kind for kind in (*value.__bases__, type(value)) if kind is not type])
        if issubclass(value, enum.Enum):
            self.pairs("members", {member.name: member.value for member in value}, "member")
        self.pairs("has", definitions.members(value), f"class {value.__name__}, its")
        return None

    # -- objects -------------------------------------------------------------------------------------------------

    def _object(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, _CHANCE):
            why = (
                "is a source of chance, which moves while it is used (use the generators that are handed in, or a seed)"
            )
            raise self.refuse(value, why)
        moving = isinstance(value, Iterator) and definitions.installed(kind.__module__)
        if moving or isinstance(value, (types.CoroutineType, types.AsyncGeneratorType, io.IOBase)):
            raise self.refuse(value, "moves while it is used")
        if hasattr(value, "weights_tag") and definitions.installed(kind.__module__):
            return self._model(value)
        if kind.__module__.startswith("torch._dynamo") and hasattr(value, "_orig_mod"):
            return self.add(value._orig_mod)
        self.put("object")
        self.add(kind)
        if dataclasses.is_dataclass(value):
            fields = {f.name: f for f in dataclasses.fields(value)}
            self.pairs(
                "fields",
                {
                    name: getattr(value, name)
                    for name, f in fields.items()
                    if f.metadata.get("part_of_key", True) and hasattr(value, name)
                },
                f"{kind.__name__}, its",
            )
            if definitions.installed(kind.__module__):
                return None
            extra = {k: v for k, v in definitions.attributes(value).items() if k not in fields}
            return self.pairs("attributes", extra, f"{kind.__name__}, its")
        return self._state(value, kind)

    def _state(self, value: Any, kind: type) -> None:
        """What an object holds: as it says itself, or its attributes and slots."""
        says = getattr(kind, "__getstate__", None)
        own = kind.__reduce__ is not object.__reduce__ or kind.__reduce_ex__ is not object.__reduce_ex__
        attributes = definitions.attributes(value)
        hidden = not attributes and definitions.installed(kind.__module__) and not hasattr(value, "__dict__")
        try:
            if says is not None and says is not getattr(object, "__getstate__", None):
                state = value.__getstate__()
            elif own or hidden:
                state = definitions.reduced(value)
            else:
                state = None
        except Exception:
            raise self.refuse(value, "does not say what it holds") from None
        if isinstance(value, torch.nn.Module) and (state is None or isinstance(state, dict)):
            attributes, state = attributes if state is None else state, None
            hooks = {name: held for name, held in attributes.items() if "_hooks" in name and isinstance(held, dict)}
            attributes = attributes | {name: list(held.values()) for name, held in hooks.items()}  # torch numbers them
        if state is None:
            return self.pairs("attributes", attributes, f"{kind.__name__}, its")
        self.put("state")
        return self.add(state, kind.__name__)

    def _model(self, vlm: Any) -> None:
        self.put("vlm")
        told = dict(id=vlm.id, revision=vlm.revision, dtype=vlm.dtype, weights=vlm.weights_tag(vlm.site(vlm.layers)))
        self.pairs("facts", told | dict(vlm.chosen))
