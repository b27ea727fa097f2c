"""Options that several commands share, and what click's own parsing lacks: options of several values, or of none."""

from __future__ import annotations

import argparse
import enum
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..io.files import option_path

UsageError: Any = typer.BadParameter.__base__  # click's, or that of the copy of click within newer versions of typer

NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")  # a number, and no option


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"invalid int value: {text!r}") from None


def _path(text: str | Path) -> Path:
    try:
        return option_path(str(text))
    except argparse.ArgumentTypeError as error:
        raise typer.BadParameter(str(error)) from None


def option_file(*names: str, help: str) -> Any:
    """An option that takes the path of a file."""
    return typer.Option(*names, help=help, metavar="FILE", parser=_path, show_default=False)


def number(*names: str, help: str, metavar: str = "N") -> Any:
    """An option that takes a whole number, or several where its annotation is a list."""
    return typer.Option(*names, help=help, metavar=metavar, parser=_number, show_default=False)


def word(*names: str, help: str, metavar: str = "TEXT") -> Any:
    """An option that takes a text, or several where its annotation is a list."""
    return typer.Option(*names, help=help, metavar=metavar, show_default=False)


def switch(*names: str, help: str) -> Any:
    """An option that is given or not."""
    return typer.Option(*names, help=help, show_default=False)


def Folder(name: str, help: str) -> Any:
    """An option that takes a folder's path."""
    return typer.Option(name, metavar="DIR", help=help, parser=_path, show_default=False)


class Objective(str, enum.Enum):
    """What of a feature is climbed."""

    encoder = "encoder"
    decoder = "decoder"


class Dtype(str, enum.Enum):
    """Of a model's weights."""

    bfloat16 = "bfloat16"
    float32 = "float32"


class Thoroughness(str, enum.Enum):
    """How thoroughly a picture is drawn: the names of `synthesis.settings.QUALITIES`, which a test compares."""

    draft = "draft"
    fine = "fine"


_BEST = "the best there is: cuda, then mps, else cpu; the bundled model stays on the cpu"
_REMOTE = "the model's weights stay on a server: $NDIF_HOST or NDIF's own, the one at URL, or 'local'"
_OUT = "where to save (default dreams); nothing that is there is overwritten"

Json = Annotated[bool, switch("--json", help="print one JSON document instead of text")]
Model = Annotated[str, word("--model", help="'demo' (default), a hub id or a folder")]
Device = Annotated[str | None, word("--device", help=f"cuda, cuda:1, mps or cpu (default: {_BEST})")]
Remote = Annotated[str | None, word("--remote", metavar="[URL]", help=_REMOTE)]
StepsPerJob = Annotated[int | None, number("--steps-per-job", help="cut ascents on a server into jobs of N steps")]
Steps = Annotated[int | None, number("--steps", help="steps of the climb (default: the preset's)")]
Quality = Annotated[
    Thoroughness | None,
    typer.Option("--quality", help="draft or fine: how many steps and views (default: the preset's)"),
]
Layers = Annotated[list[str] | None, word("--layer", metavar="N ...", help="layers from 1, or site names (default 1)")]
Seeds = Annotated[list[int] | None, number("--seed", help="one picture for each (default 0)", metavar="N ...")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help=_OUT, parser=_path, show_default=False)]
Tower = Annotated[bool, switch("--checkpoint-tower", help="less memory: compute the tower's activations anew")]
AtOnce = Annotated[int | None, number("--at-once", help="less memory: at most N views in one forward pass")]
Judged = Annotated[bool, switch("--judge", help="let the bundled judge name what it sees")]


def _plain(params: list[Any]) -> list[Any]:
    """Parameters beside which the help writes no type of Python's, where they are words or switches."""
    for param in params:
        if param.param_type_name == "argument" or getattr(param, "is_flag", False):
            param.display_type_rich = lambda ctx: None
    return params


class Commands(TyperGroup):
    """The command of commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As click's."""
        return _plain(super().get_params(ctx))


class Command(TyperCommand):
    """A command whose options may take several values (`--seed 0 7`) or, as `--remote`, one or none."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As click's."""
        return _plain(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click's, of arguments in the form that click knows."""
        return super().parse_args(ctx, args if ctx.resilient_parsing else self._in_clicks_form(ctx, args))

    def _in_clicks_form(self, ctx: Any, args: Sequence[str]) -> list[str]:
        """Options first, each with one value (`--seed 0 --seed 7`, `--remote ''`), then `--` and the arguments."""
        params = {name: p for p in self.get_params(ctx) for name in p.opts if p.param_type_name == "option"}
        options: list[str] = []
        words: list[str] = []
        rest = list(args)
        while rest:
            first = rest.pop(0)
            if first == "--":
                words += rest
                break
            if not _is_option(first):
                words.append(first)
                continue
            beginning = [name for name in params if name.startswith(first)]
            name = beginning[0] if len(beginning) == 1 and first not in params else first  # --lay for --layer
            if name not in params or getattr(params[name], "is_flag", False):
                options.append(name)
                continue
            values = self._take(rest, name, several=params[name].multiple)
            if not values and name != "--remote":
                ctx.fail(f"argument {name}: expected {'at least one' if params[name].multiple else 'one'} argument")
            for value in values or [""]:
                options += [name, value]
        return [*options, "--", *words]

    @staticmethod
    def _take(rest: list[str], name: str, several: bool) -> list[str]:
        """The values at the head of `rest`, taken off it: one at most, or all that can be this option's.

        The first is taken whatever it is. After it a word is no layer, seed or path: `--layer 1 octopus`.
        """
        fits = _FITS.get(name, lambda text: True)
        values: list[str] = []
        while rest and not _is_option(rest[0]) and rest[0] != "--" and (not values or (several and fits(rest[0]))):
            values.append(rest.pop(0))
        listed = [value.replace(",", " ").split() if name in _NUMBERED else [value] for value in values]
        numbers = [all(part.isdecimal() for part in parts) and parts for parts in listed]  # "1,4" is 1 and 4
        return [part for value, parts in zip(values, numbers, strict=True) for part in parts or [value]]


#: Options of several values that may be numbers with commas between.
_NUMBERED = ("--layer", "--seed")


#: What can be a further value of an option of several, where the command takes words of its own too.
_FITS: dict[str, Callable[[str], bool]] = {
    "--layer": lambda text: "." in text or any(c.isdigit() for c in text),
    "--seed": lambda text: not any(c.isalpha() for c in text),
    "--reference": lambda text: "." in text or "/" in text or Path(text).exists(),
}


def _is_option(text: str) -> bool:
    return len(text) > 1 and text[0] == "-" and text != "--" and " " not in text and not NEGATIVE.fullmatch(text)


def usage_message(error: Any) -> str:
    """What was not understood, in one line; `error` is a usage error of click's."""
    param = getattr(error, "param", None)
    place = "" if param is None else param.opts[-1] if param.param_type_name == "option" else param.metavar
    if type(error).__name__ == "MissingParameter":
        message = f"the following arguments are required: {place}"
    elif param is not None:
        message = f"argument {place}: {error.message.removeprefix('Value error, ')}"
    else:
        message = error.format_message()
        if commands := getattr(getattr(error.ctx, "command", None), "commands", None):
            message += f" There are {', '.join(commands)}"
    unknown = getattr(error, "option_name", "")
    if type(error).__name__ == "NoSuchOption" and not unknown.startswith("--"):
        message += "; a word that begins with '-' goes behind --, as in: nnsight-dream synthesize --steps 9 -- -x"
    return message
