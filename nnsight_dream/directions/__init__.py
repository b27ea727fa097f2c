"""Directions in activation space, and where they come from."""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "direction": ["Direction", "cosine"],
        "text": ["concept", "contrast"],
        "sources": ["from_images", "from_tensor", "probe"],
        "centres": ["Grey", "NaturalNoise", "Pictures"],
    },
)
