"""How text and images align: the experiments of arXiv 2601.08017 and 2509.20751."""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "cosines": ["Similarities", "curves", "diagnosis", "separation", "similarities", "white_noise"],
        "pairs": ["Pair", "bundled", "from_coco", "from_folder", "from_hub", "from_table"],
        "encoders": ["Encoder", "language_model", "vision_model"],
    },
)
