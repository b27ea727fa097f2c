"""Records: what files and servers say of a prototype, held against the form in which it was written.

A record may come from a shared folder or a server, so nothing in it is used before its type is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..arguments import shown


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _many(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(map(check, value))


def _named(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and all(map(_text, value)) and all(map(check, value.values()))


def _matrix(value: Any) -> bool:
    return _many(_many(_number))(value) and len({len(row) for row in value}) <= 1


def _size(value: Any) -> bool:
    return _many(lambda n: _whole(n) and n > 0)(value) and len(value) == 2


def _direction(value: Any) -> bool:
    return _named(lambda part: True)(value) and _or_none(_text)(value.get("link"))


READINGS = ("pre_max", "pre_mean", "threshold", "act_max", "firing", "cosine", "norm")


def _readings(value: Any) -> bool:
    return _named(lambda part: True)(value) and all(_or_none(_number)(value.get(name)) for name in READINGS)


def _reach(value: Any) -> bool:
    numbers = ("score", "best_own", "best_cut")
    return (
        _named(lambda part: True)(value)
        and value.get("unit") in ("score", "activation")
        and all(_or_none(_number)(value.get(name)) for name in numbers)
        and _whole(value.get("pictures", 0))
        and _text(value.get("reason", ""))
        and _or_none(_many(_number))(value.get("ground"))
    )


def _site(value: Any) -> bool:
    if not isinstance(value, Mapping) or set(value) != {"layer", "kind", "tokens"}:
        return False
    tokens = value["tokens"]
    return _whole(value["layer"]) and _text(value["kind"]) and (tokens == "image" or _many(_whole)(tokens))


Form = Mapping[str, tuple[Callable[[Any], bool], str]]


SITE: Form = {"site": (_site, "layer, kind and tokens")}


ROW: Form = {
    **SITE,
    "label": (_text, "a text"),
    "hf_name": (_text, "a text"),
    "seed": (lambda v: _whole(v) and v >= 0, "a whole number from 0"),
}


MODEL: Form = {
    "model": (_text, "a text"),
    "revision": (_or_none(_text), "a text or null"),
    "image_size": (_or_none(_size), "height and width in pixels, or null"),
    "straight_through": (_or_none(_number), "a number or null"),
}


STORY: Form = {
    "settings": (_named(lambda part: True), "an object"),
    "versions": (_named(_text), "an object of texts"),
}


PROTOTYPE: Form = {
    **ROW,
    **MODEL,
    **STORY,
    "history": (_many(_number), "a list of numbers"),
    "scores": (_named(_number), "an object of numbers"),
    "heat": (_matrix, "rows of numbers"),
    "direction": (_direction, "an object, its link a text"),
    "interrupted": (lambda v: isinstance(v, bool), "true or false"),
    "readings": (_or_none(_readings), "an object of numbers, or null"),
    "film": (_or_none(_many(_text)), "a list of texts, or null"),
    "reach": (_or_none(_reach), "an object of numbers, or null"),
}


NOTE: Form = {
    **MODEL,
    "rows": (lambda v: _many(lambda row: isinstance(row, Mapping))(v) and bool(v), "a list of objects"),
    "grid": (_size, "rows and columns"),
    "history": (_many(_matrix), "a list of rows of numbers"),
    "story": (lambda v: isinstance(v, Mapping), "an object"),
    "single": (lambda v: isinstance(v, bool), "true or false"),
    "places": (_many(_whole), "a list of whole numbers"),
}


NOTE_ROW: Form = {
    **ROW,
    "story": (_direction, "an object, its link a text"),
    "kind": (lambda v: v in ("direction", "feature"), "'direction' or 'feature'"),
}


SHOT: Form = {
    "seed": (_whole, "a whole number"),
    "strength": (_number, "a number"),
    "negative": (lambda v: isinstance(v, bool), "true or false"),
}


_FELT = (_many(lambda row: _many(lambda v: _text(v) or _number(v))(row) and len(row) >= 2), "a list of (name, number)")


CARD: Form = {
    "index": (_whole, "a whole number"),
    "shots": (_many(lambda row: isinstance(row, Mapping)), "a list of objects"),
    **dict.fromkeys(("words", "shown", "top", "bottom", "near", "makes"), _FELT),
    "fires": (_matrix, "rows of numbers"),
    "middle": (_many(_number), "a list of numbers"),
    "most_real": (_number, "a number"),
    "note": (_text, "a text"),
    "link": (_or_none(_text), "a text or null"),
    "strange": (_or_none(_named(_number)), "an object of numbers, or null"),
    "facts": (_named(lambda part: True), "an object"),
}


def check(record: Any, form: Form, needed: bool = False) -> None:
    """Raise TypeError, with the field, for what is no object or holds a field of another type than its form's.

    needed   whether every field of the form must be there
    """
    if not isinstance(record, Mapping):
        raise TypeError(f"an object is needed, not {shown(record)}")
    for name, (fits, words) in form.items():
        if name not in record:
            if needed:
                raise TypeError(f"{name!r} is missing")
        elif not fits(record[name]):
            raise TypeError(f"{name!r} is {words}, not {shown(record[name])}")
