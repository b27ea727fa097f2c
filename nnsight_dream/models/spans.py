"""Spans: which tokens of a chat prompt are the user's own words, found by character offsets and never by searching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .. import arguments
from . import templates


@dataclass(frozen=True)
class Prompt:
    """A text wrapped as a user's turn in a chat template.

    ids    the token ids of the whole prompt, generation prompt included
    own    the places among them, from 0, of the tokens that write the text itself
    """

    text: str
    ids: tuple[int, ...]
    own: tuple[int, ...]


def wrap(tokenizer: Any, texts: Sequence[str], *, chat_template: str | None = None) -> list[Prompt]:
    """Wrap each text as a user's turn and find its own tokens in it.

    The template is rendered once with a private-use character for the text: what stands before and after it is the
    template's, so words of the template ("user", "model") and repeats inside the text are never mistaken. A token is
    the text's own if it writes at least one of its characters; an emoji's byte tokens, which share its span, all are.
    Templates trim what a user says, so outer white space is dropped first.

    Raises TypeError for a tokenizer without character offsets. Raises ValueError for an empty text, one that the
    template rewrites, one with a special token in it, or one that the tokenizer cannot write. Warns where a token also
    writes some of the template, or where part of a text is unknown to the tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(
            f"{type(tokenizer).__name__} gives no character offsets, so the tokens of a word cannot be found in the "
            "chat template; load the checkpoint's fast tokenizer (AutoProcessor gives it)"
        )
    texts = [_stripped(text) for text in texts]
    template = templates.chosen(chat_template or getattr(tokenizer, "chat_template", None))
    if template is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template, which says how a user's words are wrapped; set one, "
            "such as vlm.tokenizer.chat_template = \"{{ bos_token }}{{ messages[0]['content'] }}\""
        )
    used = set("".join(texts))
    mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in used)
    form = templates.text_form(tokenizer, template, mark)
    before, _, after = templates.written(tokenizer, template, mark, form).partition(mark)
    prompts = [templates.written(tokenizer, template, text, form) for text in texts]
    for text, prompt in zip(texts, prompts, strict=True):
        if prompt != before + text + after:
            rendered = prompt[len(before) : len(prompt) - len(after)]
            raise ValueError(
                f"the chat template does not leave {text!r} as it is: it writes {rendered!r}. Give the text as the "
                "template writes it"
            )
    if not texts:
        return []
    # the template wrote <bos> already
    coded = tokenizer(prompts, add_special_tokens=False, return_offsets_mapping=True)
    wrapped, crossing = [], {}
    for text, whole, ids, offsets in zip(texts, prompts, coded["input_ids"], coded["offset_mapping"], strict=True):
        start, end = len(before), len(before) + len(text)
        own = tuple(i for i, (p, q) in enumerate(offsets) if q > p and p < end and q > start)
        _check_own(tokenizer, text, [ids[i] for i in own])
        wrapped.append(Prompt(text, tuple(ids), own))
        # a space before the word is part of many words' tokens and no harm
        reach = [offsets[i] for i in own]
        if outside := [whole[p:q] for p, q in reach if (whole[p:start] + whole[end:q]).strip()]:
            crossing[text] = outside[0]
    if crossing:
        text, piece = next(iter(crossing.items()))
        more = f" (and so for {len(crossing) - 1} more)" if len(crossing) > 1 else ""
        arguments.warn(
            f"the tokens of {text!r} cannot be told from the chat template's{more}: {type(tokenizer).__name__} writes "
            f"{piece!r} as one token, and all of it is counted to the word",
        )
    return wrapped


def _stripped(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"a word is a string; got {type(text).__name__} {text!r}")
    if not text.strip():
        raise ValueError(f"{text!r} says nothing: give a word or a short phrase, such as 'octopus'")
    return text.strip()


def _check_own(tokenizer: Any, text: str, own: Sequence[int]) -> None:
    if not own:
        raise ValueError(
            f"no token of {type(tokenizer).__name__} writes {text!r}: its normaliser drops the text, or its character "
            "offsets are broken. Try another spelling, or a newer tokenizers package"
        )
    unknown = tokenizer.unk_token_id
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {i for i, token in added.items() if token.special} - {unknown}
    if specials := [added[i].content for i in own if i in special]:
        raise ValueError(
            f"{text!r} contains {', '.join(dict.fromkeys(specials))}, which is a special token of this model and not "
            "text; leave it out"
        )
    missing = sum(i == unknown for i in own)
    if missing == len(own):
        raise ValueError(
            f"{type(tokenizer).__name__} cannot write {text!r}: every piece is unknown to it. Use a word in a script "
            "that this model reads"
        )
    if missing:
        arguments.warn(f"{missing} of the {len(own)} tokens of {text!r} are unknown to {type(tokenizer).__name__}")


def batches(prompts: Sequence[Prompt], tokens: int = 4096) -> Iterator[list[Prompt]]:
    """Cut into runs that, padded to their longest, hold at most `tokens` tokens (or a single prompt)."""
    batch: list[Prompt] = []
    for prompt in prompts:
        longest = max(len(p.ids) for p in [*batch, prompt])
        if batch and longest * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch
