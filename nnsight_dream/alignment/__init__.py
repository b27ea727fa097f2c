"""How text and images align: the experiments of arXiv 2601.08017 and 2509.20751."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
