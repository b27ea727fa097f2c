"""Calls to a server that speaks OpenAI's protocol: retried with patience, counted, paid from a budget.

Of a call that goes wrong there are three kinds: the server or the way to it failed (`Unreachable`, the question stays
open), it sent something that cannot be used (`Unreadable`, kept as broken), and no further call is of use
(`JudgeStopped`). Each fault, retried or not, is counted under its name in `faults`.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import json
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from ..io import secrets as keys
from ..io.json_values import encodable, plain, unencodable
from ..state.nnsight_import import keep_network
from .desk import BudgetReached, JudgeStopped
from .openai_faults import Fault, Redirected, Unreachable, Unreadable, price_of, seconds_of

T = TypeVar("T")


LONGEST = 600.0  # seconds that a server may ask to wait


MOST_TOKENS = 10_000_000  # of one call; more is no count of tokens


# dollars for a million tokens in and out, as OpenAI listed them in August 2025
PRICES = {"gpt-5": (1.25, 10.0), "gpt-5-mini": (0.25, 2.0), "gpt-5-nano": (0.05, 0.4)}


# tokens in and out that are reckoned for a call until real ones are known: a picture of 448 px and some reasoning
EXPECTED = {"ask": (700, 500), "grade": (350, 400)}


_CENSORED = ("content_filter", "content_policy_violation", "moderation_blocked")


class Caller:
    """Sends chat completions within a budget.

    calls, cost   sent so far (each attempt counts), and their dollars; `tokens` in and out
    faults        what went wrong, by kind
    """

    def __init__(
        self,
        *,
        base_url: str | None,
        api_key: str | None,
        retries: int,
        backoff: float,
        timeout: float,
        max_calls: int | None,
        max_cost: float | None,
        prices: Mapping[str, tuple[float, float]],
    ):
        self.base_url, self.retries, self.backoff, self.timeout = base_url, retries, backoff, timeout
        self.max_calls, self.max_cost, self.prices = max_calls, max_cost, prices
        self.calls, self.cost = 0, 0.0
        self.tokens: collections.Counter[str] = collections.Counter()
        self.faults: collections.Counter[str] = collections.Counter()
        self._secret = lambda: (api_key or os.environ.get("OPENAI_API_KEY") or ("none" if base_url else "")).strip()
        self._source = "api_key=" if api_key else "OPENAI_API_KEY"
        self._dearest: dict[str, float] = {}
        self._reserved = 0.0
        self._wait_until = 0.0
        self._stopped: JudgeStopped | None = None

    def client(self) -> Any:
        """What talks to the server, and to no other that this one names; retries are this module's business.

        Raises JudgeStopped where there is no key, or none that can be one.
        """
        keep_network()
        import openai

        if not self._secret():
            raise JudgeStopped("there is no key: set OPENAI_API_KEY or pass api_key= (base_url= for a server without)")
        if why := keys.refusal(self._secret(), self._source):
            raise JudgeStopped(why)
        self._stopped, self._wait_until = None, 0.0
        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [_stay]})
        return openai.AsyncOpenAI(
            api_key=self._secret(), base_url=self.base_url, max_retries=0, timeout=self.timeout, http_client=http
        )

    async def ask(self, client: Any, role: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> tuple[T, Any]:
        """What `read` makes of the server's answer, and the answer. `role` is "ask" or "grade".

        `read` raises Unreadable for what it cannot use. Raises Unreachable, Unreadable or JudgeStopped.
        """
        worst = Fault("", "")
        # by hand, with max_retries=0: openai's own retries count no attempt against a budget, name no fault, hold no
        # other call back while a server asks to wait, and take an answer of status 200 that cannot be used for good
        for attempt in range(self.retries + 1):
            await self._turn(attempt, worst)
            raw = await self._once(client, role, body)
            if not isinstance(raw, Fault):
                try:
                    return read(raw), raw
                except Unreadable as error:
                    message = f"the server's answer cannot be used ({error.kind})"
                    raw = Fault(error.kind, message, error.again, raw=raw)
            worst = raw
            self.faults["refusal" if worst.censored else worst.kind] += 1
            if worst.ends:
                self._stopped = self._stopped or JudgeStopped(worst.told)
                raise self._stopped
            if not worst.again:
                break
        if worst.censored or worst.raw is not None:
            raise Unreadable("refusal" if worst.censored else worst.kind, worst.raw)
        raise Unreachable(worst.told)

    def expect(self, role: str, model: str) -> float | None:
        """Dollars that a call may cost: the dearest so far, or by rule of thumb; None without a price."""
        if model not in self.prices:
            return None
        return self._dearest.get(role) or price_of(self.prices[model], *EXPECTED[role])

    def clean(self, value: Any) -> Any:
        """Plain data without the key, should a server have echoed it."""
        if isinstance(value, str):
            return keys.cleaned(value, self._secret())
        if isinstance(value, dict):
            return {self.clean(k): self.clean(v) for k, v in value.items()}
        return [self.clean(v) for v in value] if isinstance(value, list) else value

    def shown(self, value: Any, most: int = 300) -> str:
        """What a server or a library says, for an error: in one line, without the key, then cut."""
        text = " ".join(encodable(str(value)[:20_000]).split())
        text = keys.cleaned(text, self._secret(), shown=True)
        return text if len(text) <= most else f"{text[:most]}…"

    async def _turn(self, attempt: int, last: Fault) -> None:
        """Wait: about twice as long each time; what a server asks for holds for all calls."""
        if last.wait is not None:
            self._wait_until = max(self._wait_until, time.monotonic() + last.wait)
        if attempt and (last.wait or 0) < self.backoff:
            await asyncio.sleep(min(60.0, self.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1))
        while (left := self._wait_until - time.monotonic()) > 0:
            await asyncio.sleep(left + self.backoff * random.uniform(0, 0.5))  # not all at the same moment

    async def _once(self, client: Any, role: str, body: Mapping[str, Any]) -> Any:
        """The server's answer as plain data, or a Fault."""
        reserve = self._pay_for(role, body["model"])
        try:
            sent = await self._send(client, body)
        finally:
            self._reserved -= reserve
        if isinstance(sent, Fault):
            return sent
        try:
            document = json.loads(sent.lstrip("\ufeff"))
        except ValueError:
            kind = "html" if sent.lstrip().startswith("<") else "cut json"
            return Fault(kind, f"the server sent no JSON ({kind}): {self.shown(sent, 80)!r}; is base_url right?")
        except RecursionError:
            self._charge(role, body["model"], None, reserve)
            return Fault("deep json", "the server's answer is nested too deep to read", False, raw=self.shown(sent))
        raw = self.clean(plain(document))
        if not isinstance(raw, dict) or (raw.get("error") and not raw.get("choices")):
            return Fault("error in answer", f"the server answered {self.shown(raw, 200)}")
        if unencodable(document):
            raw["unencodable"] = True
        self._charge(role, body["model"], raw.get("usage"), reserve)
        return raw

    async def _send(self, client: Any, body: Mapping[str, Any]) -> str | Fault:
        import openai

        named = {"model": body["model"], "messages": body["messages"]}
        rest = {k: v for k, v in body.items() if k not in named}
        create = client.chat.completions.with_raw_response.create
        try:
            response = await asyncio.wait_for(create(**named, extra_body=rest), self.timeout)
            return str(response.text)
        except (openai.APITimeoutError, asyncio.TimeoutError):
            return Fault("timeout", f"no answer within {self.timeout:g} s (timeout=)")
        except openai.APIStatusError as error:
            return self._status(error)
        except openai.APIConnectionError as error:
            why = error.__cause__ or error
            if isinstance(why, Redirected):
                return Fault("redirect", self.shown(why), ends=True)
            return Fault("connection", self.shown(f"connection failed: {type(why).__name__}: {why}"))

    def _status(self, error: Any) -> Fault:
        code, status, body = getattr(error, "code", None), error.status_code, self.clean(plain(error.body))
        kind, message = str(status), f"the server says {status}: {self.shown(error)}"
        if status in (401, 403):
            return Fault(
                kind, f"the key or its rights were refused; mend OPENAI_API_KEY or api_key=. {message}", ends=True
            )
        if status == 404:
            return Fault(
                kind, f"there is no such model or place; mend model=, grader= or base_url=. {message}", ends=True
            )
        if code == "insufficient_quota":
            return Fault(kind, f"the account has no credit left. {message}", ends=True)
        if code in _CENSORED:
            return Fault(kind, message, again=False, censored=True, raw=body)
        again = status in (408, 409, 425, 429) or status >= 500
        wait = seconds_of(error.response.headers) if again else None
        if wait is not None and wait > LONGEST:
            return Fault(kind, f"the server asks to wait {wait:.0f} s; run again after that. {message}", ends=True)
        return Fault(kind, message, again, wait)

    def _pay_for(self, role: str, model: str) -> float:
        """Count a call and set its money aside. Raises BudgetReached, or what stopped the others."""
        if self._stopped is not None:
            raise self._stopped
        expected = self.expect(role, model) or 0.0
        if self.max_calls is not None and self.calls >= self.max_calls:
            raise BudgetReached(f"max_calls={self.max_calls} is reached; raise it and run again to go on")
        if self.max_cost is not None and self.cost + self._reserved + expected > self.max_cost:
            raise BudgetReached(
                f"max_cost={self.max_cost:g} is reached: ${self.cost:.4f} is spent and the next call may cost "
                f"${expected:.4f}; raise it and run again to go on"
            )
        self.calls += 1
        self._reserved += expected
        return expected

    def _charge(self, role: str, model: str, usage: Any, reserve: float) -> None:
        try:
            tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        except (KeyError, TypeError, ValueError, OverflowError):
            tokens = -1, -1
        if not all(0 <= n <= MOST_TOKENS for n in tokens):  # missing or nonsense: count what was set aside
            self.cost += reserve
            return
        self.tokens.update({"in": tokens[0], "out": tokens[1]})
        if model in self.prices:
            paid = price_of(self.prices[model], *tokens)
            self.cost += paid
            self._dearest[role] = max(paid, self._dearest.get(role, 0.0))


async def _stay(response: Any) -> None:
    """Refuse to be sent to another server: pictures, questions and the key are meant for this one."""
    if not response.has_redirect_location:
        return
    here = response.request.url
    try:
        there = here.join(response.headers["location"])
    except Exception:
        raise Redirected("the server sends callers to an address that is none; mend base_url=") from None
    safer = (here.scheme, there.scheme, here.port, there.port) == ("http", "https", None, None)
    if there.host != here.host or not (safer or (there.scheme, there.port) == (here.scheme, here.port)):
        place = f"{there.scheme}://{there.netloc.decode('ascii', 'replace').rpartition('@')[2]}"
        raise Redirected(
            f"the server {here.host} sends callers to another one, {place}, where the pictures would go; nothing was "
            "sent there. If you trust it, pass its address as base_url="
        )


def in_a_thread(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end in a loop of its own; an interrupt cancels it. Raises what it raises."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="judge", daemon=True)
    thread.start()
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        while not concurrent.futures.wait([future], 0.5).done:  # so that an interrupt gets through
            pass
        future.result()
    finally:
        future.cancel()
        asyncio.run_coroutine_threadsafe(_settled(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _settled() -> None:
    """Wait for whatever else is still ending in this loop."""
    loop = asyncio.get_running_loop()
    others = asyncio.all_tasks(loop) - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
