"""Feature cards: what a feature looks like, where it fires, what judges say."""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "card": ["Card", "Material", "Shot", "cards_of"],
        "make": ["Made", "make_cards"],
        "judged": ["Judged", "judge_features"],
        "gallery": ["page"],
    },
)
