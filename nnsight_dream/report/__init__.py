"""Tables, figures and pages of a store."""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "pages": ["page"],
        "raters": ["raters_page", "read_ratings"],
        "tables": ["interval", "mixed", "rates", "seed_agreement", "to_markdown", "write_csv"],
    },
)
