"""OpenAIJudge: any model behind OpenAI's protocol names pictures; a second one grades what it said."""

from __future__ import annotations

import asyncio
import base64
import collections
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..io.json_values import encodable
from ..io.pictures import as_image
from .desk import JudgeStopped, answer_row, grade_row
from .openai_calls import PRICES, Caller, Unreachable, Unreadable, in_a_thread
from .openai_messages import answer_of, field_score, text_score
from .questions import PROTOCOLS, capped, rubric

if TYPE_CHECKING:
    from PIL import Image

    from .desk import Asked, Keep


GIVE_UP = 20  # questions in a row that fail: the network is down, or the request is wrong


_OURS = ("model", "messages", "response_format", "stream", "n")


_SCHEMA = {
    "type": "object",
    "properties": {"analysis": {"type": "string"}, "result": {"type": "integer", "enum": [0, 1]}},
    "required": ["analysis", "result"],
    "additionalProperties": False,
}


# how servers say that an answer stopped at a limit, or at their own filter


_WHY_CUT = "an answer was cut before it was whole; allow more tokens, such as extra={'max_completion_tokens': 4000}"


_STRUCTURED = {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": _SCHEMA}}


class OpenAIJudge:
    """The judge of "Representations of Text and Images Align From Layer One" (arXiv 2601.08017, appendix E).

    model, grader    who looks, and who compares the answer with the concept, by the paper's rubric
    samples          answers to each question
    structured       the grade comes as structured output instead of at the end of a text; both can be kept side by side
    temperature      of the answers; None leaves it to the server (GPT-5 takes no other)
    extra, grader_extra   further fields of the requests, such as {"reasoning_effort": "low"}
    base_url, api_key     of another server; by default OpenAI's, and the key in OPENAI_API_KEY. It is kept nowhere
    side             pictures smaller than this many pixels are enlarged to it, bicubic
    concurrency      calls at once
    retries, backoff, timeout   of one call: how often again, seconds before the first retry (doubled each time, up to
                     a minute; never sooner than a server's Retry-After), seconds until it counts as lost
    max_calls, max_cost   a budget over this object's life, of attempts and of dollars
    prices           (dollars for a million tokens in, out) by model, on top of `openai_calls.PRICES`
    name             what its answers are kept under, the model's by default: give another for other settings

    What it used: `calls`, `cost` (dollars), `tokens`, and `faults` by kind.

    Raises ValueError for a number out of range, a field of `extra` that is set here, and a `max_cost` without prices.
    """

    protocols: tuple[str, ...] = PROTOCOLS

    def __init__(
        self,
        model: str = "gpt-5",
        *,
        grader: str = "gpt-5-mini",
        samples: int = 10,
        structured: bool = False,
        temperature: float | None = None,
        extra: Mapping[str, Any] | None = None,
        grader_extra: Mapping[str, Any] | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        side: int = 448,
        concurrency: int = 8,
        retries: int = 6,
        backoff: float = 1.0,
        timeout: float = 120.0,
        max_calls: int | None = None,
        max_cost: float | None = None,
        prices: Mapping[str, tuple[float, float]] | None = None,
        name: str | None = None,
    ):
        _check(samples=(samples, 1), side=(side, 1), concurrency=(concurrency, 1), retries=(retries, 0))
        _check(backoff=(backoff, 0), max_calls=(max_calls, 0), max_cost=(max_cost, 0), timeout=(timeout, 0.001))
        for label, model_name in (("model", model), ("grader", grader)):
            arguments.text(model_name, label, "gpt-5", blank=False)
        for label, mapping in (("prices", prices), ("extra", extra), ("grader_extra", grader_extra)):
            if mapping is not None and not isinstance(mapping, Mapping):
                raise TypeError(f"{label}={arguments.shown(mapping)}: a dict is needed, or None")
        all_prices = {**PRICES, **(prices or {})}
        if max_cost is not None and (without := [m for m in (model, grader) if m not in all_prices]):
            price = f"{{{without[0]!r}: (dollars for a million tokens in, out)}}"
            raise ValueError(f"max_cost= needs to know what {without[0]!r} costs: pass prices={price}")
        if taken := [k for k in (*(extra or {}), *(grader_extra or {})) if k in _OURS]:
            raise ValueError(f"extra= and grader_extra= may not hold {taken[0]!r}: {', '.join(_OURS)} are set here")
        self.model, self.samples, self.structured, self.side = model, samples, structured, side
        self.grader_model, self.concurrency, self.name = grader, concurrency, name or model
        self.grader = f"{grader} structured" if structured else grader
        self._extra = {**({} if temperature is None else {"temperature": temperature}), **(extra or {})}
        self._grader_extra = dict(grader_extra or {})
        self._pictures: collections.OrderedDict[str, str] = collections.OrderedDict()
        self.caller = Caller(
            base_url=base_url,
            api_key=api_key,
            retries=retries,
            backoff=backoff,
            timeout=timeout,
            max_calls=max_calls,
            max_cost=max_cost,
            prices=all_prices,
        )

    @property
    def calls(self) -> int:
        """Calls sent so far, each attempt counted."""
        return self.caller.calls

    @property
    def cost(self) -> float:
        """Dollars spent so far, by what the server says it used; models without a price cost nothing here."""
        return self.caller.cost

    @property
    def tokens(self) -> collections.Counter[str]:
        """Tokens "in" and "out" so far."""
        return self.caller.tokens

    @property
    def faults(self) -> collections.Counter[str]:
        """What went wrong so far, by kind: "429", "timeout", "html", "refusal" ...; each attempt counts."""
        return self.caller.faults

    def __repr__(self) -> str:
        used = f"{self.calls} calls, ${self.cost:.2f}, {sum(self.faults.values())} faults"
        return f"OpenAIJudge({self.name!r}, graded by {self.grader}; {used})"

    def estimate(self, asking: int, grading: int) -> float | None:
        """Dollars for that many calls, from what calls have cost so far or by rule of thumb; None without prices."""
        ask_cost, grade_cost = self.caller.expect("ask", self.model), self.caller.expect("grade", self.grader_model)
        return None if ask_cost is None or grade_cost is None else asking * ask_cost + grading * grade_cost

    def examine(self, asked: Sequence[Asked], keep: Keep) -> None:
        """See `asking.Examiner`. Works in a notebook too: it runs an event loop in a thread of its own."""
        in_a_thread(self._all(asked, keep))

    async def _all(self, asked: Sequence[Asked], keep: Keep) -> None:
        run = _Run(keep, collections.deque(asked))
        async with self.caller.client() as client:
            workers = [asyncio.create_task(self._work(client, run)) for _ in range(min(self.concurrency, len(asked)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if run.stop is not None:
            raise run.stop
        for question in run.left:
            keep(question, {"what": "failed", "error": f"not asked, after {GIVE_UP} questions in a row had failed"})

    async def _work(self, client: Any, run: _Run) -> None:
        """Question after question, until none is left or going on is of no use; what is under way is finished."""
        while run.left and run.stop is None and run.failures < GIVE_UP:
            question = run.left.popleft()
            try:
                await self._one(client, question, run.keep)
                run.failures = 0
            except Unseen as error:  # no fault of the server's
                run.keep(question, {"what": "failed", "error": str(error)})
            except Unreachable as error:
                run.failures += 1
                run.keep(question, {"what": "failed", "error": str(error)})
            except JudgeStopped as stop:
                run.stop = stop
            except OSError:  # nothing can be stored
                raise
            except Exception as error:  # whatever is the matter with this one, the others go on
                run.failures += 1
                message = self.caller.shown(f"{type(error).__name__}: {error}")
                run.keep(question, {"what": "failed", "error": f"it could not be asked or read: {message}"})

    async def _one(self, client: Any, question: Asked, keep: Keep) -> None:
        row = question.answer
        if row is None:
            row = await self._answer(client, question)
            keep(question, row)
        if row["kind"] == "answer":
            for concept in question.grade_as:
                keep(question, await self._grade(client, question, row["text"], concept))

    async def _answer(self, client: Any, question: Asked) -> dict[str, Any]:
        content = [
            {"type": "text", "text": encodable(question.question)},
            {"type": "image_url", "image_url": {"url": self._picture(question)}},
        ]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], **self._extra}
        try:
            (text, kind), raw = await self.caller.ask(client, "ask", body, answer_of)
        except Unreadable as error:
            kind = "refusal" if error.kind == "refusal" else "broken"
            return answer_row(question, "", kind, error.raw, self.model)
        if kind != "answer":
            self.faults["cut" if kind == "broken" else kind] += 1
        more: dict[str, Any] = {"why": _WHY_CUT} if kind == "broken" else {}
        if raw.pop("unencodable", False):
            more["unencodable"] = True
        return answer_row(question, text, kind, raw, self.model, **more)

    async def _grade(self, client: Any, question: Asked, text: str, concept: str) -> dict[str, Any]:
        prompt = encodable(rubric(question.question, capped(text), concept, structured=self.structured))
        body = {"model": self.grader_model, "messages": [{"role": "user", "content": prompt}], **self._grader_extra}
        if self.structured:
            body["response_format"] = _STRUCTURED
        read = field_score if self.structured else text_score
        try:
            score, raw = await self.caller.ask(client, "grade", body, read)
        except Unreadable as error:
            return grade_row(question, concept, None, error.raw, self.grader)
        return grade_row(question, concept, score, raw, self.grader)

    def _picture(self, question: Asked) -> str:
        """A data URL; the same picture is asked about many times in a row."""
        if question.key not in self._pictures:
            try:
                self._pictures[question.key] = data_url(question.image(), self.side)
            except Exception as error:  # what a damaged file raises is of many kinds
                raise Unseen(f"the picture cannot be read: {self.caller.shown(error)}") from None
            while len(self._pictures) > 2 * self.concurrency:
                self._pictures.popitem(last=False)
        return self._pictures[question.key]


class Unseen(Unreachable):
    """A picture that cannot be read."""


@dataclass
class _Run:
    """One examination: what is `left`, how many `failures` came in a row, and what stopped it."""

    keep: Keep
    left: collections.deque[Asked]
    failures: int = 0
    stop: JudgeStopped | None = field(default=None)


def data_url(image: Image.Image, side: int) -> str:
    """A picture as a PNG data URL, RGB, its longer side at least `side` pixels, enlarged if need be (bicubic)."""
    from PIL import Image

    image = as_image(image)
    if max(image.size) < side:
        factor = side / max(image.size)
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _check(**limits: tuple[float | None, float]) -> None:
    for name, (value, least) in limits.items():
        if value is not None and not (arguments.is_real(value) and value >= least):
            raise ValueError(f"{name}={arguments.shown(value)}: at least {least} is needed")
        if value is not None and name not in ("backoff", "max_cost", "timeout"):
            arguments.whole(value, name)
