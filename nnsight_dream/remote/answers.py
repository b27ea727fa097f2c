"""A server's answer, read with nothing in it run."""

from __future__ import annotations

import io
import pickle
import types
import zipfile
from typing import Any

import torch

from .errors import ServerError

_PLAIN = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch", "device"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("builtins", "complex"),
    ("_codecs", "encode"),  # bytes, as older pickles write them
    ("nnsight.schema.response", "Status"),
}


class _Careful(pickle.Unpickler):
    """What rebuilds tensors and plain values, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def loaded(content: bytes, host: str) -> Any:
    """A server's answer: tensors and plain values. Raises ServerError for one that holds more; none of it runs."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            if any(name.endswith("constants.pkl") for name in parts.namelist()):
                raise pickle.UnpicklingError("it is a program")
        reader: Any = types.SimpleNamespace(Unpickler=_Careful, __name__="careful")
        return torch.load(io.BytesIO(content), map_location="cpu", pickle_module=reader, weights_only=False)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        EOFError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
    ) as error:
        raise ServerError(
            f"{host} answered with more, or other, than tensors, numbers and texts, and that is not opened ({error})"
        ) from None
