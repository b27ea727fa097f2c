"""Definitions: what a function or class of the user's does and what it takes from outside, for `digests`.

What a function does is its source as a tree, without its name, comments, annotations or a docstring: the same in every
process and version of Python. The source is looked for where the function says it is, compiled, and taken only if that
gives the function at hand; else (no file, or one that has changed since) its byte code is taken, which holds for one
version of Python.
"""

from __future__ import annotations

import ast
import copyreg
import dataclasses
import dis
import enum
import functools
import importlib.util
import linecache
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]


ABSENT = object()  # what a name stands for that is nowhere


_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


_ENCLOSED = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF", "LOAD_CLOSURE")


_UNSAID = ("ctx", "kind", "type_comment", "returns", "annotation", "type_params", "type_ignores")


_WRITTEN_BY_PYTHON = ("__annotate__", "__annotate_func__", "_abc_impl", "__weakref__", "__dict__")


_OF_A_DATACLASS: tuple[str, ...] = (
    "__init__",
    "__repr__",
    "__eq__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__hash__",
)


_OF_A_DATACLASS += ("__setattr__", "__delattr__", "__replace__", "__getstate__", "__setstate__")


_OF_A_TUPLE = ("_make", "_replace", "_asdict", "_fields", "_field_defaults", "__new__", "__repr__", "__getnewargs__")


def installed(module: str | None) -> bool:
    """Whether a module is Python's own, this package's or an installed one's, and so goes by name."""
    top = (module or "").partition(".")[0]
    if top in ("", "__main__", "__mp_main__"):
        return False
    if top in sys.stdlib_module_names or top == PACKAGE:
        return True
    package = sys.modules.get(top)
    file = getattr(package, "__file__", None) or next(iter(getattr(package, "__path__", None) or ()), "")
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file or "").parts)


# The modules by which keys name our classes and functions: those in which they were first hashed, so that a key that a
# store holds stays what it is when a definition moves to another file.
_HASHED_AS = {
    "engine.canvas": "canvas",
    "engine.spectrum": "canvas",
    "engine.augment": "augment",
    "engine.pooling": "objectives",
    "engine.terms": "objectives",
    "engine.latent": "latents",
    "directions.centres": "objectives",
    "synthesis.request": "objectives",
    "synthesis.settings": "settings",
    "directions.direction": "vectors",
    "sae.feature": "features",
    "sae.make": "features",
}


def name_of(value: Any) -> str:
    """The name, with its module's, by which an importable class or function is hashed.

    >>> from nnsight_dream import Fourier
    >>> name_of(Fourier), name_of(len)
    ('nnsight_dream.canvas.Fourier', 'builtins.len')
    """
    package, _, module = value.__module__.partition(".")
    if package == PACKAGE and module in _HASHED_AS:
        return f"{PACKAGE}.{_HASHED_AS[module]}.{value.__qualname__}"
    return f"{value.__module__}.{value.__qualname__}"


def named(value: Any) -> bool:
    """Whether a function or class is an installed module's, to be found there by its name, or a class written in C."""
    if not installed(value.__module__):
        return False
    thing: Any = sys.modules.get(value.__module__)
    for part in value.__qualname__.split("."):
        thing = getattr(thing, part, None)
    if isinstance(value, type) and not any(isinstance(member, types.FunctionType) for member in vars(value).values()):
        return thing is value or "<locals>" not in value.__qualname__
    return thing is value


def contents(code: types.CodeType, space: dict[str, Any]) -> list[Any]:
    """What a function does, as plain values: its source as a tree, or its byte code."""
    tree = _tree(code, space)
    return ["source", tree] if tree is not None else ["code", sys.version_info[:2], _plain_code(code)]


def _tree(code: types.CodeType, space: dict[str, Any]) -> str | None:
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename, space))
    nodes, codes = _places(code.co_filename, text) if text else ({}, {})
    where = (code.co_firstlineno, code.co_name)
    if len(nodes.get(where, ())) != 1 or code not in codes.get(where, ()):
        return None
    node = nodes[where][0]
    if isinstance(node, ast.Lambda):
        return _dumped(node.args) + _dumped([node.body])
    kind = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    body = node.body
    if body and isinstance(body[0], ast.Expr) and isinstance(getattr(body[0].value, "value", None), str):
        body = body[1:]
    only = body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) and body[0].value and not kind else None
    return kind + _dumped(node.args) + _dumped(body if only is None else [only])


@functools.lru_cache(maxsize=32)
def _places(file: str, text: str) -> tuple[dict[Any, list[Any]], dict[Any, list[types.CodeType]]]:
    """The functions of a source by first line and name: as trees, and compiled."""
    nodes: dict[Any, list[Any]] = {}
    codes: dict[Any, list[types.CodeType]] = {}
    try:
        tree = ast.parse(text, file)
        whole = compile(text, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return nodes, codes
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            nodes.setdefault((node.lineno, "<lambda>"), []).append(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            nodes.setdefault((line, node.name), []).append(node)
    for code in _nested(whole):
        codes.setdefault((code.co_firstlineno, code.co_name), []).append(code)
    return nodes, codes


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _nested(part)


def _dumped(node: Any) -> str:
    """A tree as text, without places, annotations and what versions of Python write differently."""
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__} {node.value!r}"
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if name not in _UNSAID]
        inner = ", ".join(f"{name}={_dumped(value)}" for name, value in fields if value is not None and value != [])
        return f"{type(node).__name__}({inner})"
    if isinstance(node, list):
        return f"[{', '.join(map(_dumped, node))}]"
    return repr(node)


def _plain_code(code: types.CodeType) -> list[Any]:
    """Byte code with all that bears on what it does; neither file nor lines."""
    names = (
        "code",
        "names",
        "varnames",
        "freevars",
        "cellvars",
        "argcount",
        "posonlyargcount",
        "kwonlyargcount",
        "flags",
    )
    inner = [_plain_code(part) if isinstance(part, types.CodeType) else part for part in code.co_consts]
    return [inner, getattr(code, "co_exceptiontable", None), *(getattr(code, f"co_{name}") for name in names)]


def taken(function: types.FunctionType) -> dict[str, Any]:
    """What a function takes from its closure and by the globals that it names, by name; of builtins nothing.

    Of a module of the user's the parts that it names, as "module.part".
    """
    import builtins

    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    values: dict[str, Any] = {}
    for name, chains in _uses(function.__code__).items():
        if name in cells:
            try:
                value = cells[name].cell_contents
            except ValueError:  # not yet bound
                value = ABSENT
        elif name in function.__globals__:
            value = function.__globals__[name]
        elif hasattr(builtins, name):
            continue
        else:
            value = ABSENT
        for chain in chains:
            path, part = _followed(name, value, chain)
            values[path] = part
    return values


def _followed(name: str, value: Any, chain: tuple[str, ...]) -> tuple[str, Any]:
    """The part of a module of the user's that is named; anything else as it is."""
    for attribute in chain:
        if not isinstance(value, types.ModuleType) or installed(value.__name__):
            break
        name, value = f"{name}.{attribute}", getattr(value, attribute, ABSENT)
    return name, value


def _uses(code: types.CodeType) -> dict[str, set[tuple[str, ...]]]:
    """Names that code takes from outside, each with the chains of attributes that are read of it."""
    uses: dict[str, set[tuple[str, ...]]] = {name: set() for name in code.co_freevars}
    for part in _nested(code):
        steps = list(dis.get_instructions(part))
        for i, step in enumerate(steps):
            outer = step.opname in _ENCLOSED and step.argval in code.co_freevars
            if not outer and step.opname not in _GLOBAL:
                continue
            chain: list[str] = []
            for following in steps[i + 1 :]:
                if following.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                    break
                chain.append(following.argval)
            # a nested function is handed its variables whole; what it reads of them is met inside it
            if step.opname != "LOAD_CLOSURE":
                uses.setdefault(step.argval, set()).add(tuple(chain))
    return {name: chains or {()} for name, chains in uses.items()}


def imported(function: types.FunctionType) -> dict[str, str | None]:
    """The modules of the user's that a function imports when it is called, with their files."""
    modules: dict[str, str | None] = {}
    for part in _nested(function.__code__):
        for step in dis.get_instructions(part):
            name = str(step.argval)
            if step.opname != "IMPORT_NAME" or not name or installed(name):
                continue
            try:
                spec = importlib.util.find_spec(name)
            except (ImportError, ValueError, AttributeError):
                spec = None
            if spec is not None and spec.has_location and not installed(name):
                file = spec.origin or ""
                if {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts):
                    modules[name] = file
    return modules


def members(kind: type) -> dict[str, Any]:
    """What is written in a class of the user's: methods, properties and constants, without what Python adds."""
    kept = {}
    for name, value in vars(kind).items():
        special = name.startswith("__") and name.endswith("__")
        code = getattr(value, "__code__", None)
        function = code is not None or isinstance(
            value, (property, staticmethod, classmethod, functools.cached_property)
        )
        of_dataclass = dataclasses.is_dataclass(kind) and name in _OF_A_DATACLASS
        generated = of_dataclass and code is not None and code.co_filename == "<string>"
        if name in _WRITTEN_BY_PYTHON or generated or (special and not function):
            continue
        if issubclass(kind, tuple) and hasattr(kind, "_fields") and (name in _OF_A_TUPLE or name in kind._fields):
            continue
        if issubclass(kind, enum.Enum) and (name.startswith("_") or not function):
            continue
        if isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            continue
        kept[name] = value
    return kept


def attributes(value: Any) -> dict[str, Any]:
    """An object's attributes and slots, without what a `cached_property` keeps."""
    fields = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            name = f"_{base.__name__.lstrip('_')}{name}" if private else name
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                fields[name] = getattr(value, name)
        for name, member in vars(base).items():
            if isinstance(member, functools.cached_property):
                fields.pop(name, None)
    return fields


def reduced(value: Any) -> list[Any]:
    """An object reduced to its parts, as for a pickle; raises whatever that raises."""
    reducer = copyreg.dispatch_table.get(type(value))  # of types that Python itself knows how to pickle
    reduction = value.__reduce_ex__(4) if reducer is None else reducer(value)
    if isinstance(reduction, str):
        return [reduction]
    function, arguments, *more = reduction
    return [function, arguments, *more[:1], *(list(part) if part is not None else None for part in more[1:3])]
