"""Similarity of representations, predictivity, intervals, folds. Plain matrices in, numbers out."""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "similarity": ["cka", "mutual_knn", "retrieval", "rsa"],
        "scores": ["Null", "Score"],
        "ridge": ["Predictivity", "linear_predictivity"],
        "folds": ["duplicate_groups", "make_folds"],
        "intervals": ["bootstrap", "wilson"],
    },
)
