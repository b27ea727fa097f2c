"""From directions and features to prototype images."""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "settings": ["Settings"],
        "prototype": ["Prototype"],
        "prototypes": ["Prototypes"],
        "detached": ["RemoteJob", "collect", "submit"],
        "request": ["Away"],
    },
)
