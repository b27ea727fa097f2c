"""Feature cards: what a feature looks like, where it fires, what judges say."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
