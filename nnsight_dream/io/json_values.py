"""Plain data: others' values, changed so that they can be written as JSON in UTF-8 and read again."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

DEEPEST = 40  # levels of lists and objects that are kept


_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def encodable(text: str) -> str:
    """A text that UTF-8 can hold: halves of characters that stand side by side are joined, a lone half is written out.

    >>> encodable("Bee \\ud83d")
    'Bee \\\\ud83d'
    """
    if text.isascii():
        return text
    joined = _PAIR.sub(lambda m: m[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return joined.encode("utf-8", "backslashreplace").decode("utf-8")


def plain(value: Any, levels: int = DEEPEST) -> Any:
    """A value as JSON can hold it: what is too deep, not finite or of a strange type is kept as a text that says so.

    >>> plain({"usage": float("inf"), "text": "\\ud83d"})
    {'usage': 'Infinity', 'text': '\\\\ud83d'}
    """
    if value is None or isinstance(value, (bool, str)):
        return encodable(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value) if abs(value) < 10**300 else f"[a number of about {value.bit_length() * 0.30103:.0f} digits]"
    if isinstance(value, float):
        return (
            float(value) if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
        )
    if isinstance(value, (Mapping, list, tuple)) and levels <= 0:
        return f"[left out: nested deeper than {DEEPEST} levels]"
    if isinstance(value, Mapping):
        return {encodable(str(k)): plain(v, levels - 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, levels - 1) for v in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a number of NumPy or torch
        return plain(value.item(), 1)
    return f"[{type(value).__name__}] {encodable(repr(value)[:1000])}"


def unencodable(value: Any, levels: int = DEEPEST) -> bool:
    """Whether a text in plain data holds a character that UTF-8 cannot."""
    if isinstance(value, str):
        return encodable(value) != value
    if isinstance(value, Mapping) and levels > 0:
        return any(unencodable(k) or unencodable(v, levels - 1) for k, v in value.items())
    return isinstance(value, (list, tuple)) and levels > 0 and any(unencodable(v, levels - 1) for v in value)
