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
import io
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..arguments import shown
from . import definitions
from .digest_values import CACHED, CHANCE, MEMBERS, ValueReader


def digest(value: Any) -> str:
    """A hash of a choice with all that it holds, 24 hexadecimal digits; see the module for what that is.

    Raises TypeError for what cannot be distinguished by its content, with the way to it.

    >>> digest([1, "a"]) == digest([1, "a"]), digest(1) == digest(1.0)
    (True, False)
    """
    reader = _Reader(())
    try:
        reader.add(value)
    except RecursionError:
        raise TypeError(f"{shown(value)} is nested too deeply for a key; give it flatter") from None
    return reader.hash.hexdigest()[:24]


class _Reader(ValueReader):
    """Also functions, classes and objects."""

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
        elif isinstance(value, MEMBERS):
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
        elif isinstance(value, CACHED):
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
        if isinstance(value, CHANCE):
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
                    if f.metadata.get("part_of_key", True)
                    and hasattr(value, name)
                    and getattr(value, name) is not f.metadata.get("no_part_of_key_if", f)
                },
                f"{kind.__name__}, its",
            )
            if definitions.installed(kind.__module__):
                return None
            extra = {k: v for k, v in definitions.attributes(value).items() if k not in fields}
            return self.pairs("attributes", extra, f"{kind.__name__}, its")
        return self._state(value, kind)

    def _state(self, value: Any, kind: type) -> None:
        """The state of an object: its own account of it, or its attributes and slots."""
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
        facts = dict(id=vlm.id, revision=vlm.revision, dtype=vlm.dtype, weights=vlm.weights_tag(vlm.site(vlm.layers)))
        self.pairs("facts", facts | dict(vlm.chosen))
