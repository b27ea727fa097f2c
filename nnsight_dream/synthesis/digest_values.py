"""The part of a digest that reads values: numbers, texts, tensors, arrays, files, containers."""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import random
import types
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..arguments import shown
from ..io.pictures import content
from . import definitions

# Metadata of a dataclass's field: it changes no result; it is newer than stores, whose keys lack it where it is None.
NO_PART_OF_KEY = {"part_of_key": False}
LATER = {"no_part_of_key_if": None}


_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, type(Ellipsis), type(NotImplemented))


_BY_NAME = (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype)


CHANCE = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)


CACHED = type(functools.lru_cache(max))


_METHODS = (types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType)


MEMBERS = (*_METHODS, types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType)


class ValueReader:
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

    def pairs(self, kind: str, mapping: dict[Any, Any], what: str = "key") -> None:
        """The items of a mapping, whatever their order."""
        ordered = sorted(mapping.items(), key=lambda pair: self.apart(pair[0]))
        self.put(kind, str(len(ordered)))
        for key, value in ordered:
            self.add(key)
            self.add(value, f"{what} {shown(key, 40)}")

    def apart(self, value: Any) -> str:
        """The digest of a value by itself."""
        reader = type(self)(tuple(self.trail))
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
        raise NotImplementedError  # of functions and classes, see `digests`

    def _object(self, value: Any) -> None:
        raise NotImplementedError

    def _class(self, value: Any) -> None:
        raise NotImplementedError
