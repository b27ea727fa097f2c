"""Vision-language models: loading, family records, sites, prompts, reading, the check."""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "vlm": ["VLM"],
        "reading": ["mean_patches", "read_pictures", "read_text"],
        "sites": ["Site"],
        "family": ["Family"],
        "families": ["known_families"],
        "hosted": ["Hosted", "remote_models"],
        "estimate": ["Estimate"],
    },
)
