"""Many prototypes in a folder that is whole at every moment."""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "jobs": ["Job", "jobs_of"],
        "entries": ["Entry", "Failure"],
        "store": ["Store"],
        "sweep": ["Plan", "Swept", "plan"],
        "ray": ["Cluster"],
    },
)
