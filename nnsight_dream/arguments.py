"""Checks of what users give: each message says what was given, what is allowed and how to mend it."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from .engine.checks import SEED_MOST, is_real, is_whole, keep_plain, plain, real, shown, whole, whole_in  # noqa: F401

P = ParamSpec("P")


R = TypeVar("R")


T = TypeVar("T")


_NO_LIST = (str, bytes, bytearray, Mapping, set, frozenset)  # they can be walked through, but have no order or items


_HOME = str(Path(__file__).parent) + os.sep


def warn(message: str) -> None:
    """A UserWarning at the line that called into this package, however deep in it the reason is."""
    frame, level, outermost = sys._getframe(1), 2, 2
    while frame is not None:
        if frame.f_code.co_filename.startswith(_HOME):
            outermost = level + 1
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    warnings.warn(message, stacklevel=outermost)


def strict(function: Callable[P, R]) -> Callable[P, R]:
    """Let a wrong or missing argument raise a TypeError that names the allowed ones and the nearest.

    Of a function whose `vlm` is a VLM and nothing else, that argument is checked too, and it has the model alone.
    """
    signature = inspect.signature(function)
    named = list(signature.parameters)
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
    takes = str(inspect.Signature(bare))
    needs_model = "vlm" in named and signature.parameters["vlm"].annotation in ("VLM", "vlm.VLM")

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            unknown = [k for k in kwargs if k not in named]
            message = str(error)
            if unknown and named:
                near = difflib.get_close_matches(unknown[0], named, 1, 0.6)
                message = f"got an unexpected keyword {unknown[0]!r}" + (f"; did you mean {near[0]}=" if near else "")
            elif "too many positional" in message:
                places = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
                extra = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
                message += f"; after {' and '.join(places[:3])} each is given by its name, such as {extra[0]}=..."
            raise TypeError(f"{function.__name__}: {message}; it takes {takes}") from None
        if needs_model:
            model(bound.arguments["vlm"], f"{function.__name__} takes {takes}", bound.arguments.values())
            with bound.arguments["vlm"].alone():
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    return checked


def model(value: Any, takes: str = "", others: Iterable[Any] = ()) -> None:
    """Raise TypeError, with what the function `takes`, unless a value is a VLM; `others` are its other arguments."""
    VLM: Any = getattr(sys.modules.get(f"{__package__}.models.vlm"), "VLM", ())  # not imported: then no value is of it
    if not isinstance(value, VLM):
        if isinstance(value, type):
            form = f"the class {value.__name__}; make a model of it with nd.load(...)"
        elif any(isinstance(other, VLM) for other in others):
            form = f"{shown(value)}; the model is given too, in another place: it goes first"
        elif isinstance(value, (str, os.PathLike)):
            form = f"{shown(value)}; if that is a model, load it first: vlm = nd.load({shown(value)})"
        else:
            kind = _kind(value) if hasattr(value, "named_parameters") or hasattr(value, "_module") else shown(value)
            form = f"{kind}; a model in hand becomes one with nd.load(model)"
        raise TypeError(f"vlm= is a model that nd.load gave; got {form}{f'. {takes}' if takes else ''}")


def choice(value: Any, name: str, allowed: Sequence[str], *, quoted: bool = True) -> str:
    """One of some names. Raises ValueError with all of them, in quotes or bare, and the nearest where one is near.

    >>> choice("atention", "pooling", ("attention", "mean", "max"))
    Traceback (most recent call last):
    ValueError: pooling='atention': allowed are 'attention', 'mean' and 'max'; did you mean 'attention'?
    """
    if isinstance(value, str) and value in allowed:
        return str(value)
    near = difflib.get_close_matches(value.strip(), allowed, 1) if isinstance(value, str) else []
    names = " and ".join(filter(None, (", ".join(map(repr, allowed[:-1])), repr(allowed[-1]))))
    if not quoted:
        names = ", ".join(allowed)
    raise ValueError(f"{name}={shown(value)}: allowed are {names}" + (f"; did you mean {near[0]!r}?" if near else ""))


def path(value: Any, name: str = "path") -> Path:
    """A path, from a text or a path object. Raises TypeError for another kind, ValueError for an empty text.

    >>> path("", "folder")
    Traceback (most recent call last):
    ValueError: folder='': a path is needed; for the folder you are in, give '.'
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise TypeError(f"{name}= is a path, as a text or a Path; got {shown(value)}")
    if not value.strip():
        raise ValueError(f"{name}={value!r}: a path is needed; for the folder you are in, give '.'")
    if "\0" in value:
        raise ValueError(f"{name}={shown(value)}: a path holds no NUL character")
    if any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in Path(value).parts):  # no system takes it
        raise OSError(f"{name}={shown(value)}: File name too long; give another of at most 255 bytes")
    return Path(value)


def folder(value: Any, name: str = "folder", *, must_exist: bool = False) -> Path:
    """The path of a folder, which need not be there yet; nothing is made.

    Raises as `path` does; NotADirectoryError where it, or what would hold it, is a file; FileNotFoundError for one that
    must exist and does not; OSError for a name that the system does not take.
    """
    place = path(value, name)
    try:
        for part in (place, *place.parents):
            if part.is_dir():
                break
            if part.exists() or part.is_symlink():
                what = "is a file" if part.exists() else "is a link to what is not there"
                inside = "" if part == place else f", so {place} cannot be in it"
                raise NotADirectoryError(f"{name}={str(place)!r}: {part} {what}{inside}; a folder is needed")
        missing = must_exist and not place.is_dir()
    except (NotADirectoryError, FileNotFoundError):
        raise
    except OSError as error:  # too long, or not to be looked into
        raise type(error)(f"{name}={shown(str(place))}: {error.strerror or error}; give another folder") from None
    if missing:
        raise FileNotFoundError(f"{name}={str(place)!r}: there is no such folder")
    return place


def file(value: Any, name: str = "path") -> Path:
    """The path of a file that is there.

    Raises as `path` does; IsADirectoryError for a folder, FileNotFoundError where there is nothing.
    """
    place = path(value, name)
    try:
        if place.is_dir():
            raise IsADirectoryError(f"{name}={str(place)!r} is a folder; a file is needed")
        there = place.exists()
    except IsADirectoryError:
        raise
    except OSError as error:
        raise type(error)(f"{name}={shown(str(place))}: {error.strerror or error}; give another file") from None
    if not there:
        raise FileNotFoundError(f"{name}={str(place)!r}: there is no such file")
    return place


def rows_of(value: Any, name: str = "rows") -> list[Mapping[str, Any]]:
    """The rows of a table: mappings in a list; they may be none.

    Raises TypeError for a store, a path, a single row and rows that are no mappings.
    """
    if isinstance(value, Mapping):
        raise TypeError(f"{name}= is a list of rows; got one row alone: give [row]")
    if isinstance(value, (str, os.PathLike)) or type(value).__name__ == "Store":
        raise TypeError(f"{name}= is a list of rows; got {shown(value)}; the rows of a store are nd.results(store)")
    return several(value, Mapping, name, "rows of a table, such as nd.results(store) gives, are")[0]


def is_empty(value: Any) -> bool:
    """Whether a value is a list, array or mapping without an item."""
    try:
        return not isinstance(value, str) and len(value) == 0
    except TypeError:
        return False


def listed(value: Any, name: str, form: str) -> list[Any]:
    """The items of a list, a tuple, a range, an array or tensor (its rows), or a generator.

    form   what is needed, for the message: "seeds, such as [0, 1]"

    Raises TypeError for a text, a mapping, a set (it has no order) and what cannot be walked through.
    """
    if isinstance(value, _NO_LIST) or getattr(value, "shape", None) == () or not isinstance(value, Iterable):
        raise TypeError(f"{name}={shown(value)}: {form} needed, not {_kind(value)}")
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "dtype") else list(value)


def _kind(value: Any) -> str:
    name = type(value).__name__
    return {"str": "a text", "NoneType": "None"}.get(name, f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}")


def several(value: Any, kinds: type[T] | tuple[type[T], ...], name: str, form: str) -> tuple[list[T], bool]:
    """One item of a kind, or several in a list: as a list, and whether it was one; it may be empty.

    form   what is needed, for the message, with its verb: "a Job, or a list of them, is"

    Raises TypeError for anything else, also inside the list, and says at which place.

    >>> several(b"x", bytes, "parts", "bytes, or a list of them, are")
    ([b'x'], True)
    >>> several([b"x", 1], bytes, "parts", "bytes, or a list of them, are")
    Traceback (most recent call last):
    TypeError: parts[1]=1: bytes, or a list of them, are needed, not an int
    """
    if isinstance(value, kinds):
        return [value], True
    items = listed(value, name, form)
    for i, item in enumerate(items):
        if not isinstance(item, kinds):
            raise TypeError(f"{name}[{i}]={shown(item)}: {form} needed, not {_kind(item)}")
    return items, False


def text(value: Any, name: str, such_as: str = "", *, blank: bool = True) -> str:
    """A text that can be written to a file; a blank one only if `blank`.

    Raises ValueError for what is no text, a blank one, and half a character (what Python makes of bytes that are no
    UTF-8, and of an emoji that was cut in two).

    >>> text(None, "category", "animal")
    Traceback (most recent call last):
    ValueError: category=None: a text is needed, such as 'animal', or '' for none
    """
    if not isinstance(value, str) or not (blank or value.strip()):
        example = (f", such as {such_as!r}" if such_as else "") + (", or '' for none" if blank else "")
        raise ValueError(f"{name}={shown(value)}: a text is needed{example}")
    _whole_characters(value, name)
    return str(value)


def _whole_characters(value: str, name: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}={shown(value)}: character {error.start} is half a character ({value[error.start]!r}), which no "
            "file can keep: give the text as UTF-8"
        ) from None


def brief(text: str, most: int = 60) -> str:
    """A text in one line of at most `most` characters, its middle left out.

    >>> brief("a" * 100, 9)
    'aaa...aaa'
    """
    text = " ".join(text.split())
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def texts(value: Any, name: str, such_as: str = "octopus", *, otherwise: str = "") -> tuple[list[str], bool]:
    """A text, or several in a list: as a list, and whether it was one. None of them is blank.

    otherwise   what else can be given instead of an empty list, for the message

    Raises TypeError for what is no text, ValueError for an empty list and a blank text.

    >>> texts("sea star", "words"), texts(["bee", "ant"], "words")
    ((['sea star'], True), (['bee', 'ant'], False))
    """
    if isinstance(value, str):
        items, single = [value], True
    else:
        try:
            items, single = listed(value, name, ""), False
        except TypeError:
            wrong = f"{type(value).__name__} {shown(value)}"
            raise TypeError(f"{name}= is a text or a list of texts; got {wrong}") from None
    if not items:
        raise ValueError(f"{name}= is empty; give at least one text, such as {such_as!r}{otherwise}")
    for i, item in enumerate(items):
        place = name if single else f"{name}[{i}]"
        if not isinstance(item, str):
            raise TypeError(f"{place}: a word is a string; got {type(item).__name__} {shown(item)}")
        if not item.strip():
            raise ValueError(f"{place}: {shown(item)} says nothing: give a word or a short phrase, such as {such_as!r}")
        _whole_characters(item, place)
    return [str(item) for item in items], single


def seeds(value: Any, name: str = "seed") -> tuple[list[int], bool]:
    """A seed, or several in a list, range, array or tensor: as a list, and whether it was one.

    Raises ValueError unless each is a whole number from 0 to 2**63 - 1, and for an empty list.

    >>> seeds(3), seeds(range(2))
    (([3], True), ([0, 1], False))
    """
    if not isinstance(value, Iterable) or isinstance(value, _NO_LIST) or getattr(value, "shape", None) == ():
        return [whole(value, name, 0, SEED_MOST)], True
    items = listed(value, name, "seeds are")
    if not items:
        raise ValueError(f"{name}={shown(value)} asks for nothing; give a whole number, or a list of them")
    return [whole(item, f"{name}[{i}]", 0, SEED_MOST) for i, item in enumerate(items)], False
