"""nnsight, imported so that the program around it keeps its network.

nnsight puts `.save` on every object. anyio, on which httpx and openai stand, refuses to define a class with a public
attribute that has no annotation, so whatever part of it is imported after nnsight fails: "Attribute 'save' is missing
its type annotation". Here that attribute is annotated, and what anyio defines is imported first.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType
from typing import Any

# every module of anyio with a class of this kind, and the backends that httpx starts
_STRICT = ("anyio.abc", "anyio.abc._sockets", "anyio.streams.tls", "anyio.streams.file", "anyio._backends._asyncio")


def import_nnsight() -> ModuleType:
    """nnsight, after `keep_network`. Called in the package before every import of nnsight, or of a part of it."""
    keep_network()
    return importlib.import_module("nnsight")


def keep_network() -> None:
    """Make anyio whole, whether nnsight is imported already or will be; cheap when it has been done."""
    try:
        import anyio
    except ImportError:  # then nobody here uses it
        return
    attributes = dict(vars(anyio.TypedAttributeSet).get("__annotations__") or {})
    if "save" not in attributes:  # also for classes that other packages define later
        anyio.TypedAttributeSet.__annotations__ = {**attributes, "save": Any}
    missing = [name for name in _STRICT if name not in sys.modules]
    try:
        _import(missing)
    except TypeError:  # an anyio that looks at each class alone, and nnsight was here first
        with _without_save():
            _import(missing)


def _import(names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(ImportError):  # other versions of anyio may lay things out differently
            importlib.import_module(name)


@contextlib.contextmanager
def _without_save() -> Any:
    """nnsight's `.save` off every object for a moment."""
    mounts = importlib.import_module("nnsight._c")
    save = vars(object)["save"]
    mounts.unmount("save")
    try:
        yield
    finally:
        mounts.mount(save, "save")
