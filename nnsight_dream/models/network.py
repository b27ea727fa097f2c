"""Whether the hub answers, in seconds; the messages where it does not; and its client kept offline.

Imports no torch, so that a command line can ask before anything heavy is loaded.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

#: Seconds that the hub is given to answer at all; $HF_HUB_ETAG_TIMEOUT, the hub's own setting, where it is set.
PATIENCE = 2.0


_lock = threading.Lock()


def patience() -> float:
    """Seconds that the hub is given to answer at all."""
    with contextlib.suppress(ValueError):
        return float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PATIENCE)
    return PATIENCE


def out_of_reach() -> str | None:
    """Why the hub cannot be used now, within `PATIENCE` seconds; None where it answers.

    At once under HF_HUB_OFFLINE. An answer that is an error of the server's, or "too many requests", is none: the hub's
    own client would ask again for half a minute.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answered: list[int] = []
    wait = patience()

    def ask() -> None:
        with contextlib.suppress(Exception):
            answered.append(get_session().head(constants.ENDPOINT, timeout=wait).status_code)

    thread = threading.Thread(target=ask, daemon=True)  # looking up a host name heeds no timeout
    thread.start()
    thread.join(wait)
    if not answered:
        return f"{constants.ENDPOINT} cannot be reached"
    if answered[0] == 429 or answered[0] >= 500:
        return f"{constants.ENDPOINT} only answers with status {answered[0]}"
    return None


def unreachable(what: str, why: str) -> str:
    """The message for something that is neither cached nor available."""
    from huggingface_hub import constants

    return (
        f"{what} is not in the Hugging Face cache ({constants.HF_HUB_CACHE}) and {why}: go online once, copy the cache "
        "from a machine that has it, or give a local folder"
    )


def refused(error: BaseException) -> str:
    """The message for a failure of the hub's client, with the cause, which its own error leaves out."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT} did not give it ({' '.join(str(error.__cause__ or error).split())})"


def in_words(error: BaseException, repo: str, name: str | None = None) -> OSError:
    """An error of the hub's client, or of what asked it, as one sentence."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in causes:
        if isinstance(cause, LocalEntryNotFoundError):  # a kind of EntryNotFoundError that means a broken connection
            return ConnectionError(unreachable(f"{name or 'a file'} of {repo}", refused(cause)))
        if isinstance(cause, GatedRepoError):
            return PermissionError(f"{repo} is gated: accept its terms on huggingface.co and log in (hf auth login)")
        if isinstance(cause, RepositoryNotFoundError):
            return FileNotFoundError(
                f"there is no repository {repo} on the hub, or it is private and you are not logged in (hf auth "
                "login); there is no such folder here either"
            )
        if isinstance(cause, RevisionNotFoundError):
            return FileNotFoundError(
                f"{repo} has no such revision; leave revision= out, or give a branch, tag or commit"
            )
        if isinstance(cause, EntryNotFoundError):
            return FileNotFoundError(f"{repo} has no file {name or ' '.join(str(cause).split())[:120]}")
    return error if isinstance(error, OSError) else OSError(str(error))


@contextlib.contextmanager
def offline(really: bool = True) -> Iterator[None]:
    """The hub's client takes what is cached and asks nothing, for the block only, if `really`."""
    from huggingface_hub import constants

    with _holding(constants, "HF_HUB_OFFLINE", True) if really else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def never_asking() -> Iterator[None]:
    """transformers, asked for a model with code of its own, raises at once instead of asking on standard input."""
    from transformers import dynamic_module_utils

    with _holding(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0):
        yield


_held: dict[tuple[str, str], list[Any]] = {}  # settings that blocks hold, with what they were before the first


@contextlib.contextmanager
def _holding(module: Any, name: str, value: Any) -> Iterator[None]:
    """A module's setting at a value, until the last block of any thread that holds it there ends."""
    key = (module.__name__, name)
    with _lock:
        before = _held.setdefault(key, [])
        before.append(before[0] if before else getattr(module, name))
        setattr(module, name, value)
    try:
        yield
    finally:
        with _lock:
            was = before.pop()
            if not before:
                setattr(module, name, was)
