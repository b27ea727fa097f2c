"""What this package needs to know of a model whose jobs it sends: a VLM has it, and so may others."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol


class Model(Protocol):
    """A model in nnsight's hands, and where its jobs run (None: here)."""

    id: str
    model: Any
    remote: Any

    @property
    def hf(self) -> Any: ...

    def quiet(self) -> AbstractContextManager[Any]: ...
