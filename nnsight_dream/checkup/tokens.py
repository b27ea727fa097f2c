"""The section on words: where their tokens stand in the chat template, found two ways."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from ..models import spans
from .section import FAIL, PASS, UNSURE, Section

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from .material import Material

#: Words that are easily mistaken: of two words, with marks, of other scripts, and such as stand in templates too.
AWKWARD = ("New York", "ice-cream", "don't", "naïve", "user", "model", "3D printer", "東京", "🐙", "octopus octopus")

_OTHERS = ("fox", "seven green trees")


def words(given: Material) -> Section:
    """Each word's own tokens by character offsets, against what changes in the prompt when the word does."""
    rows = [_row(given.vlm, word) for word in AWKWARD]
    wrong = [row for row in rows if row["state"] == FAIL]
    unknown = [row for row in rows if row["state"] == UNSURE]
    right = len(rows) - len(wrong) - len(unknown)
    text = f"The tokens of {right} of {len(rows)} awkward words are found where they stand in the chat template"
    advice = ""
    if wrong:
        text += f"; those of {', '.join(repr(row['word']) for row in wrong)} are not"
        advice = "Directions of such words would be read at other tokens: report this table with the tokenizer's name"
    elif unknown:
        text += f"; {', '.join(repr(row['word']) for row in unknown)} cannot be written or told apart by this tokenizer"
        if right:
            advice = "Nothing to mend: nd.concept says the same of such words. Use words that this tokenizer writes"
    state = FAIL if wrong else PASS if right > len(rows) / 2 else UNSURE
    return Section("words", "Tokens of words", state, text, advice, rows)


def _row(vlm: VLM, word: str) -> dict[str, Any]:
    """Where a word's tokens are, and whether both ways agree."""
    row: dict[str, Any] = {"word": word, "state": UNSURE, "tokens": "", "places": ""}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            prompt, *others = spans.wrap(vlm.tokenizer, [word, *_OTHERS], chat_template=vlm.chat_template)
    except (ValueError, TypeError) as error:
        return {**row, "finding": str(error)}
    pieces = vlm.tokenizer.convert_ids_to_tokens([prompt.ids[i] for i in prompt.own])
    row |= {"tokens": " ".join(pieces), "places": f"{prompt.own[0]} to {prompt.own[-1]} of {len(prompt.ids)}"}
    if text := next((str(w.message) for w in caught if repr(word) in str(w.message)), ""):
        return {**row, "finding": text}
    first, end = _changed(prompt.ids, [other.ids for other in others])
    blank = [not vlm.tokenizer.decode([token]).strip() for token in prompt.ids]
    while end - first > 1 and blank[first]:  # a space before the word, which is a part of other words' tokens
        first += 1
    changed = first, end
    alike = prompt.own == tuple(range(*changed))
    if alike:
        return {**row, "state": PASS, "finding": "both ways agree"}
    there = f"{changed[0]} to {changed[1] - 1}"
    return {**row, "state": FAIL, "finding": f"by offsets {row['places']}, by what changes with the word {there}"}


def _changed(ids: tuple[int, ...], others: list[tuple[int, ...]]) -> tuple[int, int]:
    """(first, end) of what is not the same in other prompts, whose words are other ones."""
    first, last = len(ids), len(ids)
    for other in others:
        alike = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))
        behind = next((i for i, (a, b) in enumerate(zip(ids[::-1], other[::-1], strict=False)) if a != b), 0)
        first, last = min(first, alike), min(last, behind)
    return first, len(ids) - last
