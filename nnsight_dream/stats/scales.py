"""Scales: numbers of any size brought near 1 by powers of two, which is exact, before they are squared or divided.

Squares of 1e200 overflow and those of 1e-200 vanish; scores do not depend on scale, so nothing is lost by this.
"""

from __future__ import annotations

import numpy as np

EPS = float(np.finfo(float).eps)


def scaled(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Numbers times the power of two by which the largest comes between 0.5 and 1: of all, or along an axis."""
    largest = np.abs(x).max(axis=axis, keepdims=True)
    exponent = -np.frexp(largest)[1]
    half = exponent // 2  # in two steps, as 2**1074 is no number
    return np.ldexp(np.ldexp(x, half), exponent - half)


def varying(x: np.ndarray) -> np.ndarray:
    """Which columns are not constant."""
    return np.asarray((x != x[:1]).any(axis=0))


def centred(x: np.ndarray) -> np.ndarray:
    """Columns less their mean, all on one scale; what does not vary becomes exactly 0, whatever it is."""
    x = scaled(x)
    return np.where(varying(x), x - x.mean(axis=0), 0.0)


def rounding(x: np.ndarray) -> float:
    """The norm below which a row of `centred(x)` is nothing but rounding."""
    x = scaled(x)
    return 8 * EPS * float(np.linalg.norm(np.where(varying(x), np.abs(x).max(axis=0), 0.0)))


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows at norm 1; those of zeros stay zero."""
    x = scaled(x, axis=1)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1.0)


def unit_columns(x: np.ndarray) -> np.ndarray:
    """Columns less their mean, of norm 1; what does not vary becomes 0."""
    x = scaled(x, axis=0)
    x = np.where(varying(x), x - x.mean(axis=0), 0.0)
    norm = np.linalg.norm(x, axis=0)
    return x / np.where(norm > 0, norm, 1.0)


def standardised(x: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """All items in units of some items' standard deviation about their mean; constant units become 0."""
    x = scaled(x, axis=0)
    some = x[rows]
    return (x - some.mean(axis=0)) / np.where(varying(some), some.std(axis=0), np.inf)
