"""Keys to servers: refused where they are malformed, and taken out of whatever is shown or kept."""

from __future__ import annotations

import json
import re
import unicodedata
import urllib.parse

MARK = "[key]"


_WHOLE = 8  # characters; a shorter key is taken out only where it stands by itself, a longer one also in part


_NO_SECRETS = {
    "",
    "none",
    "empty",
    "dummy",
    "fake",
    "test",
    "token",
    "key",
    "api-key",
    "no-key",
    "not-needed",
    "x",
    "-",
}


_NO_SECRETS |= {"ollama", "vllm", "lm-studio", "local", "sk-no-key-required", "null", "no"}


_LONG = 20_000  # characters of a text up to which parts of a key are looked for


def refusal(key: str, source: str) -> str | None:
    """Why a key cannot be one, without showing it; None for a key that can.

    >>> refusal("sk-abc\u200bdef", "api_key=")
    'api_key= holds ZERO WIDTH SPACE (U+200B) at place 7 of 10, which no key has; copy the key once more, as plain text'
    """
    for place, character in enumerate(key, 1):
        if not "!" <= character <= "~":
            name = unicodedata.name(character, "") or "a control character"
            return (
                f"{source} holds {name} (U+{ord(character):04X}) at place {place} of {len(key)}, which no key has; "
                "copy the key once more, as plain text"
            )
    return None


def cleaned(text: str, key: str, *, shown: bool = False) -> str:
    """A text without a key: whole, as JSON, an address or Python write it, and in parts of eight characters or more.

    shown   the text is an error for people: then also a short key is taken out wherever it stands, and a key that was
            shortened with stars or dots

    Clean a text before it is cut: a cut key is found only where eight of its characters are left.
    """
    if key.casefold() in _NO_SECRETS:
        return text
    forms = {key, json.dumps(key)[1:-1], repr(key)[1:-1], urllib.parse.quote(key, safe="")}
    for form in sorted(forms, key=len, reverse=True):
        if len(key) >= _WHOLE or shown:
            text = text.replace(form, MARK)
        else:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])", MARK, text)
    if len(key) >= _WHOLE and len(text) <= _LONG:
        text = _without_parts(text, key)
    return _without_stars(text, key) if shown and len(text) <= _LONG else text


def _without_parts(text: str, key: str) -> str:
    """Runs of the text that are a part of the key, of at least eight characters, replaced."""
    pieces, begin, place = [], 0, 0
    while place + _WHOLE <= len(text):
        end = place + _WHOLE
        if text[place:end] not in key:
            place += 1
            continue
        while end < len(text) and text[place : end + 1] in key:
            end += 1
        pieces += [text[begin:place], MARK]
        begin = place = end
    return "".join([*pieces, text[begin:]])


def _without_stars(text: str, key: str) -> str:
    """What is left of a key as servers shorten it, such as "sk-ab***yz", replaced."""

    def mask(match: re.Match[str]) -> str:
        before, after = match["before"], match["after"]
        begins = max((n for n in range(3, len(before) + 1) if key.startswith(before[-n:])), default=0)
        ends = max((n for n in range(2, len(after) + 1) if key.endswith(after[:n])), default=0)
        return f"{before[: len(before) - begins]}{MARK}{after[ends:]}" if begins or ends > 2 else match[0]

    return re.sub(r"(?P<before>[!-)+-~]{0,200})(?:\*{2,}|\.{3,}|…+)(?P<after>[!-)+-~]{0,200})", mask, text)
