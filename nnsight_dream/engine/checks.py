"""Checks of numbers that the engine's own classes make when they are built; `arguments` has them too.

Not sent: a server gets objects that were checked here. See `engine.plain` for the rules of this folder.
"""

import math
import re
from numbers import Integral, Real
from typing import Any

SEED_MOST = 2**63 - 1  # a torch.Generator takes no more


def shown(value: Any, most: int = 80) -> str:
    """A value for a message, in one line and short: its repr, or type and shape.

    >>> shown("x" * 1000, 12), shown([1, 2])
    ("'xxxxxxx ...", '[1, 2]')
    """
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"a {type(value).__name__} of shape {tuple(shape)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def plain(value: Any) -> Any:
    """A NumPy or tensor scalar as Python's own number; anything else as it is."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        try:
            return value.item()
        except Exception:  # a tensor without values, on torch's "meta" device
            return value
    return value


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number: Python's, NumPy's or a tensor's; True and 2.0 are none.

    >>> import torch
    >>> is_whole(3), is_whole(torch.tensor(3)), is_whole(True), is_whole(3.0), is_whole("3")
    (True, True, False, False, False)
    """
    value = plain(value)
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether a value is a finite number: Python's, NumPy's or a tensor's; True and "0.5" are none."""
    value = plain(value)
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int that is longer than any float
        return False


def keep_plain(record: Any, *names: str) -> None:
    """Turn numbers in a frozen dataclass's fields into Python's own, so that it is equal, hashed and written alike."""
    for name in names:
        object.__setattr__(record, name, plain(getattr(record, name)))


def whole(value: Any, name: str, least: int | None = None, most: int | None = None) -> int:
    """A whole number from `least` to `most`, as an int: Python's, NumPy's or a 0-d tensor of integers.

    Raises ValueError for a bool, a float, a text, or a number out of range.

    >>> import numpy
    >>> whole(numpy.int64(3), "steps", 1)
    3
    >>> whole(2.0, "steps", 1)
    Traceback (most recent call last):
    ValueError: steps=2.0: a whole number of at least 1 is needed; mend: steps=2
    """
    number = plain(value)
    if is_whole(number) and (least is None or number >= least) and (most is None or number <= most):
        return int(number)
    mend = whole_in(number)
    good = mend is not None and (least is None or mend >= least) and (most is None or mend <= most)
    raise ValueError(
        f"{name}={shown(value)}: a whole number{_range(least=least, most=most)} is needed"
        + (f"; mend: {name}={mend}" if good else "")
    )


def whole_in(value: Any) -> int | None:
    """The whole number that a float or a text most likely means."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,19}\s*", value, re.ASCII):
        return int(value)
    return None


def real(
    value: Any,
    name: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    such_as: float | None = None,
) -> float:
    """A finite number, as a float: Python's, NumPy's or a 0-d tensor; above, from `least`, below, or up to `most`.

    such_as   an example for the message

    Raises ValueError for a bool, a text, what is not finite, or a number out of range.

    >>> real(0, "level", above=0, below=1, such_as=0.95)
    Traceback (most recent call last):
    ValueError: level=0: a number above 0 and below 1 is needed, such as 0.95
    """
    number = plain(value)
    if isinstance(number, Real) and not isinstance(number, bool):
        try:
            number = float(number)
        except OverflowError:  # an int that is longer than any float
            number = math.inf
        low = (above is None or number > above) and (least is None or number >= least)
        high = (below is None or number < below) and (most is None or number <= most)
        if math.isfinite(number) and low and high:
            return number
    open_ended = above == 0 and least is below is most is None
    needed = "a positive number" if open_ended else f"a finite number{_range(above, least, below, most)}"
    if not open_ended and None not in (above if least is None else least, below if most is None else most):
        needed = needed.replace("a finite", "a", 1)
    raise ValueError(f"{name}={shown(value)}: {needed} is needed" + ("" if such_as is None else f", such as {such_as}"))


def _range(above: Any = None, least: Any = None, below: Any = None, most: Any = None) -> str:
    """The words for a range, after a noun; nothing where there is no bound."""
    if least is not None and most is not None:
        return f" from {least} to {'2**63 - 1' if most == SEED_MOST else most}"
    parts = {"above": above, "of at least": least, "below": below, "of at most": most}
    bounds = " and ".join(f"{words} {bound}" for words, bound in parts.items() if bound is not None)
    return f" {bounds}" if bounds else ""


def check_size(who: str, size: int) -> None:
    """Raise ValueError unless the size of a canvas, in pixels, is a whole number from 8."""
    if not is_whole(size) or size < 8:
        raise ValueError(
            f"{who}: size={shown(size)} given; allowed are whole numbers from 8 up; mend: `{who}(size=64)`"
        )


def check_number(who: str, name: str, value: float) -> None:
    """Raise ValueError unless a value is a finite number."""
    if not is_real(value):
        raise ValueError(f"{who}: {name}={shown(value)} given; allowed are finite numbers; mend: `{who}({name}=1.0)`")


def check_ground(who: str, value: float) -> None:
    """Raise ValueError unless a value is a share of white between 0 and 1, both left out."""
    if not (is_real(value) and 0 < value < 1):
        near = min(0.98, max(0.02, float(value))) if is_real(value) else 0.5
        raise ValueError(
            f"{who}: ground={shown(value)} given; allowed is a share of white between 0 and 1, both left out, where no "
            f"gradient is; mend: `{who}(ground={near})`"
        )
