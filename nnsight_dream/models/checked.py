"""Checks of arguments that are models and layers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..arguments import is_whole, listed, plain, shown, whole_in

if TYPE_CHECKING:
    from .sites import Site


def layers(value: Any, name: str = "layer", last: int | None = None) -> tuple[list[int | str | Site], bool]:
    """A layer, or several in a list, range, array or tensor: as a list, and whether it was one.

    A layer is a whole number, the name of a site ("4" and "blocks.3.hook_resid_post") or a Site; the model says whether
    it has it. Raises TypeError for another kind, ValueError for an empty list and for a text that lists numbers.

    last   the model's last layer, for the message

    >>> layers(4), layers(range(1, 3)), layers("4")
    (([4], True), ([1, 2], False), (['4'], True))
    >>> layers("1,4")
    Traceback (most recent call last):
    ValueError: layer='1,4': one text is one layer; of several give a list: layer=[1, 4]
    """
    from .sites import Site

    alone = isinstance(value, (str, bytes, Site)) or getattr(value, "shape", None) == ()
    if alone or not isinstance(value, Iterable):
        return [_layer(value, name)], True
    items = listed(value, name, "a layer from 1, a site's name or a Site, or a list of these, is")
    if not items:
        there = "" if last is None else f" to {last}"
        raise ValueError(f"{name}={shown(value)} asks for nothing; give a layer from 1{there}, or a list of them")
    return [_layer(item, f"{name}[{i}]", name) for i, item in enumerate(items)], False


def _layer(value: Any, place: str, name: str = "") -> int | str | Site:
    from .sites import Site

    number = plain(value)
    if is_whole(number):
        return int(number)
    if isinstance(number, Site):
        return number
    if isinstance(number, str):
        numbers = re.findall(r"\d+", number)
        if len(numbers) > 1 and not re.search(r"[^\W\d]", number) and not re.fullmatch(r"\s*\d+\.\d+\s*", number):
            meant = f"{name or place}=[{', '.join(str(int(n)) for n in numbers)}]"
            raise ValueError(f"{place}={shown(value)}: one text is one layer; of several give a list: {meant}")
        return str(number)
    mend = whole_in(number)
    raise TypeError(
        f"{place}={shown(value)}: a site is a layer number from 1, a name or a Site; got {type(value).__name__}"
        + ("" if mend is None else f"; mend: {place}={mend}")
    )
