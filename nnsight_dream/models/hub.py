"""Models' files by hub id or folder: what is missing is reported in seconds and in words, and no foreign code runs.

Imports no torch, so that a command line can ask before anything heavy is loaded.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ..state.quiet import import_tqdm
from .network import in_words, never_asking, offline, out_of_reach, refused, unreachable

P = ParamSpec("P")


R = TypeVar("R")


#: What says where files are, or what may be done with them, and goes to every part of a checkpoint.
ACCESS = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code")


_EXAMPLE = "a hub id such as 'google/gemma-3-4b-it'"


_TELLING = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


_doors = threading.local()


class ForeignCode(ValueError):
    """A checkpoint asks for Python code of its own to be run."""


def access(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a user's options, those that go to every part of a checkpoint; foreign code only where it is asked for."""
    return {k: options[k] for k in ACCESS if options.get(k) is not None}


def place(x: str | os.PathLike[str], file: str = "config.json", what: str = "model") -> str:
    """The folder that is meant, or the hub id. Asks no network.

    Raises FileNotFoundError for a folder that is not there or holds no `file`, ValueError for what can be no hub id.
    """
    name = os.fspath(x)
    if name == "demo":
        from ..demo import bundle

        return str(bundle.folder() / "vlm")
    if name == "gemma-270m":
        from ..demo.gemma import gemma_folder

        return str(gemma_folder())
    if not name.strip():
        raise ValueError(f"the {what}'s name is empty: give a folder, {_EXAMPLE}, or 'demo'")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / file).is_file():
            raise FileNotFoundError(_not_in(path, file, what))
        return str(path) if name.startswith("~") else name
    if path.exists():
        raise FileNotFoundError(f"{name} is a file; give the folder that it is in, with its {file}")
    if not isinstance(x, str) or _means_a_path(name):
        raise FileNotFoundError(f"no folder {name}; give an existing folder, {_EXAMPLE}, or 'demo'")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(
            f"{name!r} is no folder here and can be no hub id; give an existing folder, {_EXAMPLE}, or 'demo'"
        ) from None
    if "/" not in name:
        near = difflib.get_close_matches(name.lower(), ("demo", "gemma-270m"), 1, 0.8)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise FileNotFoundError(
            f"no folder {name}, and a hub id is owner/name{meant}; give an existing folder, {_EXAMPLE}, or 'demo'"
        )
    return name


def _means_a_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or bool(re.match(r"[A-Za-z]:", name))


def _not_in(folder: Path, file: str, what: str) -> str:
    if (folder / "adapter_config.json").is_file():
        return (
            f"{folder} holds an adapter alone: load its base model, put the adapter on it with peft and pass that "
            "model with its processor"
        )
    inside = sorted(p.name for p in folder.iterdir())
    below = [name for name in inside if (folder / name / file).is_file()]
    more = f"; there is one in {', '.join(below[:5])}" if below else ""
    more = more or (f"; it holds {', '.join(inside[:5])}" if inside else "; it is empty")
    return f"{folder} holds no {file}, so no {what}{more}. Give the folder that save_pretrained wrote"


def folder(there: str, options: Mapping[str, Any]) -> Path:
    """The folder of a model's files: its own, or where the cache keeps what it has of it; os.devnull for nothing."""
    if Path(there).is_dir():
        return Path(there, options.get("subfolder") or "")
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(there, "config.json", **_kept(options))
    return Path(config).parent if isinstance(config, str) else Path(os.devnull)


def commit(there: str, options: Mapping[str, Any]) -> str | None:
    """The commit of a hub id's files that the cache has; None for a folder of one's own."""
    kept = folder(there, options)
    return kept.name if kept.parent.name == "snapshots" else None


def _kept(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say where in the cache a file is."""
    return {k: v for k, v in options.items() if k in ("revision", "cache_dir") and v is not None}


def file(repo: str, name: str, options: Mapping[str, Any] | None = None) -> Path:
    """A file of a repository, from the cache if it is there (without the network then).

    Raises FileNotFoundError where the repository has no such file, PermissionError where it may not be had,
    ConnectionError where the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    kwargs = {k: v for k, v in (options or {}).items() if k in ("revision", "cache_dir", "token") and v is not None}
    cached = try_to_load_from_cache(repo, name, **_kept(kwargs))
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:
        raise FileNotFoundError(f"{repo} has no file {name}")
    why = "local_files_only=True asks no network" if (options or {}).get("local_files_only") else out_of_reach()
    if why:
        raise ConnectionError(unreachable(f"{name} of {repo}", why))
    try:
        return Path(hf_hub_download(repo, name, **kwargs))
    except OSError as error:
        raise in_words(error, repo, name) from error


def ready(x: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> tuple[str, str | None]:
    """(where a model's files are, why the hub is of no use or None), once its config.json is known to be there.

    Takes at most some `network.PATIENCE` seconds. Raises as `place` and `file` do.
    """
    options = options or {}
    there = place(x, os.path.join(options.get("subfolder") or "", "config.json"))
    if Path(there).is_dir():
        return there, None
    from huggingface_hub import try_to_load_from_cache

    if options.get("subfolder"):
        return there, out_of_reach()
    if not isinstance(try_to_load_from_cache(there, "config.json", **_kept(options)), str):
        try:
            file(there, "config.json", options)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}. Give an existing folder, {_EXAMPLE}, or 'demo'") from error
        except ConnectionError as error:
            raise ConnectionError(f"there is no folder {there} here, and {error}") from error
        return there, None
    if options.get("local_files_only"):
        return there, None
    return there, out_of_reach()


@contextlib.contextmanager
def door(x: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Iterator[str]:
    """For the block that loads a model's parts from a hub id or folder: the place that it names.

    Nothing in the block asks on standard input. Where the hub is out of reach the cache is used at once, which is said,
    instead of five tries. Raises ForeignCode for a part that wants code of its own to be run, and as `ready` does.
    """
    inner = getattr(_doors, "open", 0) > 0
    there, why = (place(x), None) if inner else ready(x, options)
    if why and "HF_HUB_OFFLINE" not in why:
        print(f"nnsight-dream: {why}; {there} is taken from the Hugging Face cache", file=sys.stderr)
    with _counted(), never_asking(), offline(why is not None):
        try:
            yield there
        except ForeignCode:
            raise
        except ValueError as error:
            if not foreign(error):
                raise
            raise ForeignCode(_foreign_words(str(x), there, options or {})) from None
        except OSError as error:
            if why:
                first = " ".join(str(error).split("\n")[0].split())[:160]
                raise ConnectionError(unreachable(f"a file of {there}", f"{why} ({first})")) from error
            if Path(there).is_dir():
                raise
            raise in_words(error, there) from error


def through_door(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function whose first argument may be a hub id or folder within its `door`, before anything is imported."""

    @functools.wraps(function)
    def entered(*args: P.args, **options: P.kwargs) -> R:
        import_tqdm()
        x = args[0] if args else options.get("x")
        if not isinstance(x, (str, os.PathLike)):
            return function(*args, **options)
        with door(x, options):
            return function(*args, **options)

    return entered


@contextlib.contextmanager
def _counted() -> Iterator[None]:
    _doors.open = getattr(_doors, "open", 0) + 1
    try:
        yield
    finally:
        _doors.open -= 1


@contextlib.contextmanager
def patient(what: str) -> Iterator[None]:
    """For loaders that retry for half a minute: without a network they run offline, and their errors become one.

    what   what is loaded, in words

    Raises ConnectionError for what is not cached where the hub is out of reach.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    why = out_of_reach()
    with offline(why is not None):
        try:
            yield
        except LocalEntryNotFoundError as error:
            raise ConnectionError(unreachable(what, why or refused(error))) from error
        except OSError as error:  # what is not cached, and what requests and huggingface_hub say without a network
            if why is None:
                raise
            raise ConnectionError(unreachable(what, why)) from error


def foreign(error: BaseException) -> bool:
    """Whether an error is transformers' refusal to run a checkpoint's own code."""
    return isinstance(error, ForeignCode) or (isinstance(error, ValueError) and "trust_remote_code" in str(error))


def _foreign_words(name: str, there: str, options: Mapping[str, Any]) -> str:
    asking = [file for file in _TELLING if _names_code(there, file, options)]
    where = f" ({', '.join(asking)})" if asking else ""
    return (
        f"{name} asks to run Python code that comes with it{where}, and code of strangers is never run unasked: use a "
        "checkpoint whose classes transformers has itself or, once you have read that code, give trust_remote_code=True"
    )


def _names_code(there: str, file: str, options: Mapping[str, Any]) -> bool:
    try:
        return "auto_map" in json.loads((folder(there, options) / file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
