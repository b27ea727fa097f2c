"""The tensors of a safetensors file, of which a column or a row is read without the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


HEADER_MOST = 100_000_000  # as in safetensors itself


@dataclass(frozen=True)
class Stored:
    """The tensors of a safetensors file. A column is read number by number: no page of a matrix stays in memory.

    A memory map would not do: the system maps 64 KB around each number touched, which is the whole of a wide matrix.
    names    this library's name to the file's; factors   by which tensors are multiplied
    """

    path: Path
    header: Mapping[str, Mapping[str, Any]]
    start: int
    names: Mapping[str, str] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, names: Mapping[str, str] | None = None) -> Stored:
        """Read a file's header. Raises ValueError for a file that is not safetensors, cut short, or at odds with it."""
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            try:
                if not 2 <= length <= size - 8:
                    raise ValueError(f"its header is said to be {length} bytes long, the file is {size}")
                if length > HEADER_MOST:
                    raise ValueError(f"its header of {length} bytes is longer than the format allows")
                header = json.loads(file.read(length), object_pairs_hook=_unique)
                header.pop("__metadata__", None)
                end = 8 + length + _extent(header)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{path} is no safetensors file ({error}): download or save it anew") from None
        if end > size:
            raise ValueError(f"{path} is cut short: {size} bytes of {end}; download or save it anew")
        if end < size:
            raise ValueError(f"{path} has {size - end} bytes that its header does not name: download or save it anew")
        return cls(path, header, 8 + length, names or {})

    def _entry(self, name: str) -> tuple[torch.dtype, list[int], int]:
        entry = self.header[self.names.get(name, name)]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{self.path}: {name} is of type {entry['dtype']}; known are {', '.join(_DTYPES)}")
        return _DTYPES[entry["dtype"]], entry["shape"], self.start + entry["data_offsets"][0]

    def _numbers(self, name: str, data: bytearray, dtype: torch.dtype) -> torch.Tensor:
        return torch.frombuffer(data, dtype=dtype).float().mul(self.factors.get(name, 1.0))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See `weights.Weights`."""
        entry = self.header.get(self.names.get(name, name))
        return None if entry is None else tuple(entry["shape"])

    def column(self, name: str, index: int) -> torch.Tensor:
        """See `weights.Weights`."""
        dtype, (rows, columns), at = self._entry(name)
        data = bytearray()
        with self.path.open("rb", buffering=0) as file:
            for row in range(rows):
                file.seek(at + (row * columns + index) * dtype.itemsize)
                data += file.read(dtype.itemsize)
        return self._numbers(name, self._whole(data, rows * dtype.itemsize), dtype)

    def row(self, name: str, index: int) -> torch.Tensor:
        """See `weights.Weights`."""
        dtype, shape, at = self._entry(name)
        length = dtype.itemsize * (shape[1] if len(shape) == 2 else 1)
        numbers = self._numbers(name, self._read(at + index * length, length), dtype)
        return numbers if len(shape) == 2 else numbers[0]

    def whole(self, name: str) -> torch.Tensor:
        """See `weights.Weights`."""
        dtype, shape, at = self._entry(name)
        return self._numbers(name, self._read(at, dtype.itemsize * torch.Size(shape).numel()), dtype).reshape(shape)

    def _read(self, at: int, length: int) -> bytearray:
        data = bytearray(length)
        with self.path.open("rb") as file:
            file.seek(at)
            got = file.readinto(data)
        return self._whole(data[:got], length)

    def _whole(self, data: bytearray, length: int) -> bytearray:
        if len(data) != length:
            raise ValueError(f"{self.path} became shorter while it was read: download or save it anew")
        return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(named := dict(pairs)) != len(pairs):
        raise ValueError("its header names something twice")
    return named


def _extent(header: Mapping[str, Any]) -> int:
    """How many bytes of tensors a header describes, each as long as its shape says, one after the other."""
    places = []
    for name, entry in header.items():
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
        if not isinstance(shape, list) or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"{name} has shape {shape} and offsets {begin}, {end}")
        if dtype in _DTYPES and end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise ValueError(f"{name} of shape {shape} and type {dtype} has {end - begin} bytes")
        places.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(places):
        if begin != reached or end < begin:
            raise ValueError(f"{name} lies at {begin} to {end}, what stands before it ends at {reached}")
        reached = end
    if not places:
        raise ValueError("it holds no tensor")
    return reached
