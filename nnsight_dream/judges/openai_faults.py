"""What goes wrong in a call of an OpenAI-compatible server, and what a call costs."""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Unreachable(Exception):
    """A question that could not be asked, or whose answer did not arrive."""


class Unreadable(Exception):
    """What arrived, in `raw`, cannot be used; `kind` names the fault, `again` says whether to ask once more."""

    def __init__(self, kind: str, raw: Any = None, *, again: bool = True):
        super().__init__(kind)
        self.kind, self.raw, self.again = kind, raw, again


class Redirected(Exception):
    """The server sends callers to another one."""


@dataclass(frozen=True)
class Fault:
    """One call that went wrong.

    again   whether to try once more, after `wait` seconds if the server named them
    ends    whether no call can succeed
    censored   the server's own filter refused to answer; `raw` is what it said
    """

    kind: str
    told: str
    again: bool = True
    wait: float | None = None
    ends: bool = False
    censored: bool = False
    raw: Any = None


def price_of(prices: tuple[float, float], tokens_in: int, tokens_out: int) -> float:
    """Dollars for tokens, at prices a million."""
    return (prices[0] * tokens_in + prices[1] * tokens_out) / 1e6


def seconds_of(headers: Mapping[str, str]) -> float | None:
    """What Retry-After asks for: seconds, or a date (RFC 9110, 10.2.3), or OpenAI's own header in milliseconds."""
    try:
        if header := headers.get("retry-after-ms"):
            return max(0.0, float(header) / 1000)
        header = headers.get("retry-after") or ""
        return max(0.0, float(header)) if header else None
    except ValueError:
        date = email.utils.parsedate_tz(header or "")
        with contextlib.suppress(ValueError, OverflowError, TypeError):
            return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
        return None
