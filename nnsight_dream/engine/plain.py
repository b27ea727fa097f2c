"""Plain records that travel to a server: named facts and nothing else.

Everything in this folder is sent as source to a server that has no `nnsight_dream` (see `remote.payload`): it imports
torch and math, nnsight for its traces, and nothing of ours outside this folder. No tensor is made without a type and a
device; both are those of tensors that the model hands back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


class Plain:
    """Named facts and nothing else."""

    def __init__(self, **facts: Any) -> None:
        self.__dict__.update(facts)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...


class Numbers(Plain):
    """What of a config is plain data."""

    def get_text_config(self) -> Numbers:
        return self
