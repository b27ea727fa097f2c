"""The atlas: the pictures of many features or directions in one map that is looked through."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
