"""Arguments: a call that does not fit its function says what does fit."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def strict(function: Callable[P, R]) -> Callable[P, R]:
    """Let a wrong or missing argument raise a TypeError that names the allowed ones and the nearest."""
    signature = inspect.signature(function)
    named = list(signature.parameters)
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
    takes = str(inspect.Signature(bare))

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            unknown = [k for k in kwargs if k not in named]
            said = str(error)
            if unknown and named:
                near = difflib.get_close_matches(unknown[0], named, 1, 0.0)[0]
                said = f"got an unexpected keyword {unknown[0]!r}; did you mean {near}="
            raise TypeError(f"{function.__name__}: {said}; it takes {takes}") from None
        return function(*args, **kwargs)

    return checked
