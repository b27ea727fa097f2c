"""Calm: torch as it is when nothing was set, for a while; whatever default type, device or mode a user chose."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")


R = TypeVar("R")


_GUARD = threading.Lock()


_HELD: list[torch.dtype] = []  # the user's default type, once for every block that is within calm


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """Default type float32, default device the CPU, no autocast, no inference mode: for the block only.

    Types and devices come from the model, so results are the same whatever another library in the process has set.
    `torch.no_grad` stays as it is; under `torch.inference_mode` gradients are off until they are switched on.
    """
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(False))
        for kind in _autocast():
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if _HELD or torch.get_default_dtype() != torch.float32:
            stack.enter_context(_float32())
        yield


def _autocast() -> list[str]:
    """The kinds of device for which autocast is on."""
    return [
        k for k in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(k) and torch.is_autocast_enabled(k)
    ]


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    """Default type float32; the type is the whole process's, so the last block to end puts it back."""
    with _GUARD:
        _HELD.append(_HELD[0] if _HELD else torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        with _GUARD:
            before = _HELD.pop()
            if not _HELD:
                torch.set_default_dtype(before)


def calmly(function: Callable[P, R]) -> Callable[P, R]:
    """A function that runs within `calm`."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with calm():
            return function(*args, **kwargs)

    return run
