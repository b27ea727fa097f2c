"""The command `nnsight-dream`: thin; every command is a few calls of the library."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ..version import __version__
from . import checking, drawing, looking, many
from .atlas import atlas
from .options import Command, Commands, UsageError, usage_message
from .output import no_output, note, printable, short, short_warnings

NAME = "nnsight-dream"

#: What is raised for what a user gave: its message says all; of other errors the place may tell more.
_USERS = (ValueError, TypeError, OSError, IndexError, ImportError)

READER_GONE = 141  # 128 + SIGPIPE, as a shell reports of `yes | head`

_HELPS_ITSELF = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(name=NAME, cls=Commands, pretty_exceptions_enable=False, context_settings=_HELPS_ITSELF)
for _run_command in (
    drawing.synthesize,
    drawing.feature,
    looking.features,
    looking.inspect,
    looking.judge,
    many.sweep,
    many.report,
    looking.remote,
    looking.concepts,
    checking.check,
    atlas,
):
    app.command(cls=Command, context_settings=_HELPS_ITSELF)(_run_command)


def _version(asked: bool) -> None:
    if asked:
        print(f"{NAME} {__version__}")
        raise typer.Exit()


@app.callback()
def _command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="show it and exit")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Pictures of directions in vision-language models."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 130 interrupted.

    `check` also gives 1 where a section fails, and 3 where one is unsure.
    141 says that the reader of the output went away, as `head` does; what was to be drawn is drawn and saved.
    Raises SystemExit: 2 for arguments that are not understood, 0 for --help and --version.
    """
    with printable(sys.stdout, sys.stderr):
        try:
            try:
                return _run(sys.argv[1:] if arguments is None else list(arguments))
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()  # so that a reader who went away is seen here, not when Python ends
        except BrokenPipeError:
            no_output()
            return READER_GONE


def _run(arguments: list[str]) -> int:
    if "_NNSIGHT_DREAM_COMPLETE" in os.environ:  # the shell asks what a word can become
        app(arguments, prog_name=NAME)
    own = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:own]  # before or behind the command
    words = [word for word in arguments[:own] if word != "--debug"] + arguments[own:]
    command: Any = typer.main.get_command(app)
    try:
        # not command.main, which would turn interrupts and broken pipes into statuses of its own
        with short_warnings(), command.make_context(NAME, words) as context:
            return int(command.invoke(context) or 0)
    except UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else NAME
        print(f"usage: {path} ...  ({path} --help lists what it takes)", file=sys.stderr)
        print(f"{path}: {short(usage_message(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except typer.Exit as done:
        raise SystemExit(done.exit_code) from None
    except KeyboardInterrupt as interrupt:
        note(str(interrupt) or "interrupted")
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            raise
        from ..remote.errors import ServerError

        expected = isinstance(error, (*_USERS, ServerError))  # their messages say all
        note(short(_message(error)) + ("" if expected else " (--debug shows where)"))
        return 1


def _message(error: Exception) -> str:
    text = str(error)
    if isinstance(error, (AttributeError, AssertionError, KeyError)) or not text.strip():  # "'x'" alone says nothing
        return f"{type(error).__name__}: {text}" if text.strip() else type(error).__name__
    return text


if __name__ == "__main__":
    sys.exit(main())
