"""nnsight-dream: pictures of directions in vision-language models.

A direction (a concept from text, a probe, any vector) or a sparse autoencoder's feature at a site of a model is climbed
through traced patch activations to a prototype image: what it looks like. Public names in the order of the work;
nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import Any

import lazy_loader

from .version import __version__

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # see __init__.pyi


def __getattr__(name: str) -> Any:
    from .moved import MOVED

    if name not in MOVED:
        try:
            return _public(name)
        except AttributeError:
            if name in __all__:
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    import warnings

    new = f"{__name__}.{MOVED[name]}"
    warnings.warn(
        f"{__name__}.{name} is {new} now; the old name goes with the next release", FutureWarning, stacklevel=2
    )
    return importlib.import_module(new)
