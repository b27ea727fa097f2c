"""What OpenAI-compatible servers answer, read: texts, refusals, grades, whatever form they come in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .openai_calls import Unreadable
from .questions import heard, result
from .thinking import spoken

if TYPE_CHECKING:
    pass

_CUT = ("length", "max_tokens", "max_output_tokens", "max_length", "model_length", "model_context_window_exceeded")
_FILTERED = ("content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "spii")


@dataclass(frozen=True)
class Message:
    """What came: its `text`, whether it is a refusal, and whether it was `cut` before its end."""

    text: str
    refused: bool
    cut: bool


def message_of(raw: Any) -> Message:
    """The message of a completion, without what it holds apart of its thinking. Raises Unreadable."""
    choices = raw.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Unreadable("empty choices")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise Unreadable("no message")
    end = str(choice.get("finish_reason") or "").casefold()
    text, refusal = parts_of(message.get("content"))
    refusal = text_of(message.get("refusal")) or refusal
    if refusal or end in _FILTERED:
        return Message(refusal or text, True, False)
    thought = any(parts_of(message.get(name))[0].strip() for name in ("reasoning_content", "reasoning", "thinking"))
    return Message(text, False, end in _CUT or (thought and end in ("abort", "error") and not text.strip()))


def parts_of(content: Any) -> tuple[str, str]:
    """(text, refusal) of a content: a text, none, or parts without thinking and pictures. Raises Unreadable."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise Unreadable("no text")
    text, refusal = "", ""
    for part in content:
        if isinstance(part, str):
            text += part
        elif isinstance(part, dict) and part.get("type") in (None, "text", "output_text"):
            text += text_of(part.get("text"))
        elif isinstance(part, dict) and part.get("type") == "refusal":
            refusal += text_of(part.get("refusal") or part.get("text"))
    return text, refusal


def text_of(value: Any) -> str:
    """A text; of an object that holds one, as some servers send, that one; nothing of anything else."""
    value = value.get("value") if isinstance(value, dict) else value
    return value.strip() and value if isinstance(value, str) else ""


def answer_of(raw: Any) -> tuple[str, str]:
    """(text, kind) of an answer to a question, without thinking."""
    message = message_of(raw)
    if message.refused:
        return spoken(message.text).text, "refusal"
    return heard(message.text, cut=message.cut)


def text_score(raw: Any) -> int:
    """0 or 1 of a grade in words. Raises Unreadable."""
    message = message_of(raw)
    if message.refused:
        raise Unreadable("refusal")
    aloud = spoken(message.text).text.rstrip("*_ .!)\n")
    score = result(message.text)
    if message.cut and (score is None or not aloud.endswith(("0", "1"))):
        raise Unreadable("cut by length", again=False)
    if score is None:
        raise Unreadable("no result")
    return score


def field_score(raw: Any) -> int:
    """0 or 1 of a grade as JSON. Raises Unreadable."""
    message = message_of(raw)
    if message.refused:
        raise Unreadable("refusal")
    try:
        score = json.loads(unfenced(spoken(message.text).text))["result"]
    except (ValueError, KeyError, TypeError, RecursionError):
        if message.cut:
            raise Unreadable("cut by length", again=False) from None
        raise Unreadable("cut json") from None
    if isinstance(score, bool) or score not in (0, 1):
        raise Unreadable("no result")
    return int(score)


def unfenced(text: str) -> str:
    """JSON without the fence that models like to put around it."""
    return text.removeprefix("```json").removeprefix("```").removesuffix("```")
