"""What goes wrong with a job, in words that say what to do; and what is worth another try."""

from __future__ import annotations

import builtins
import os
import re
import sys
from typing import Any

from ..io import secrets

_RAISED = re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Warning|Exit))(?:: (.*))?$", re.MULTILINE)


_RETRIED = (
    "Replica was evicted",
    "Error submitting request",
    "worker process died",
    "Request cancelled by a restart",
    "Service temporarily unavailable",
    "Internal server error",
)


class ServerError(RuntimeError):
    """A server could not run a job, for a reason of its own."""


class Lost(ServerError):
    """A job came to nothing by no fault of its own; another try may do."""


def _without_key(text: str) -> str:
    """The text of a server or a library, without the key of this user, should it stand in it."""
    config = sys.modules.get("nnsight.schema.config")
    secret = str(config.CONFIG.API.APIKEY or "") if config else os.environ.get("NDIF_API_KEY", "")
    return secrets.cleaned(text, secret.strip(), shown=True)


def translated(description: str, host: str, model: str) -> Exception:
    """The exception for a failed job: the job's own where it raised, else a ServerError."""
    description = _without_key(description)
    text = " ".join(description.split())
    if any(part in text for part in _RETRIED):
        return Lost(f"{host} lost the job: {text}")
    if ("architecture" in text and "doesn't match" in text) or "payload could not be read" in text:
        return ServerError(
            f"{host} cannot read this job: {text} What the two sides have installed: print(nnsight.compare())"
        )
    if "execution timeout" in text:
        return ServerError(
            f"{host} allows a job less time than this one takes: {text} Cut ascents into shorter jobs: "
            f"nd.load({model!r}, remote=..., steps_per_job=100)"
        )
    if "provisioning model" in text or "starting model" in text:
        return ServerError(
            f"{host} cannot bring up {model}: {text} It may be too large for it, or this key may not deploy models; "
            "nd.remote_models() lists those that are there"
        )
    raised = list(_RAISED.finditer(description))
    if raised:
        last = raised[-1]
        name, message = last[1].rpartition(".")[2], description[last.start() :].partition(": ")[2].strip()
        return _own(name, message, host)
    return ServerError(f"{host} ended the job: {text}")


def _own(name: str, message: str, host: str) -> Exception:
    """What the job itself raised, of the same kind where that is a builtin one."""
    if name == "OutOfMemoryError":
        return ServerError(
            f"the memory of {host} is too small for this step: {message} Lower batch= or at_once= (views in one pass)"
        )
    kind: Any = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and kind not in (OSError, UnicodeDecodeError):
        return kind(message)
    return ServerError(f"the job raised {name} on {host}: {message}")


def refused(status: int, detail: Any, host: str, model: str, key: bool) -> Exception:
    """The exception for a request that a server does not take: its HTTP status and what it says."""
    message = " ".join(_without_key(str(detail or "")).split())
    if status in (401, 403):
        given = "the key that was given" if key else "a request without a key"
        return PermissionError(
            f"{host} refuses {given} ({message}); set NDIF_API_KEY to a key of that server (nnsight.login() keeps one)"
        )
    if status == 404:
        return ServerError(f"{host} does not have {model} ({message}); nd.remote_models() lists what it has")
    if status == 400 and "ersion" in message:
        return ServerError(f"{host} does not take jobs of the versions installed here: {message}")
    if status in (500, 502, 503, 504):
        return Lost(f"{host} is not ready ({status}): {message or 'no reason given'}")
    return ServerError(f"{host} does not take the job ({status}): {message}")


def unreachable(host: str, error: BaseException) -> Exception:
    """The exception for a host that does not answer."""
    return Lost(
        f"{host} does not answer ({type(error).__name__}: {_without_key(str(error))}); see that the address is right "
        "and the server up ($NDIF_HOST, or nd.load(..., remote='http://...'))"
    )
