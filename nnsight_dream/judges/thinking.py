"""Thinking: what a model writes to itself before it answers is neither its answer nor its grade.

Servers and processors leave it in the text in many forms: `<think>` ... `</think>`, `</think>` alone where the prompt
opened it, `◁think▷`, `[THINK]`, channels, with and without their special tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = r"(?:seed:|antml:)?(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad)"


_LEFT, _RIGHT = r"(?:<\|?|&lt;)", r"(?:\|?>|&gt;)"


_MARK = re.compile(
    rf"(?P<open>{_LEFT}{_NAME}(?:\s[^<>]{{0,100}})?/?{_RIGHT}|◁{_NAME}▷|\[{_NAME}\]|<\|begin_of_(?:thought|thinking)\|>"
    r"|<\|START_THINKING\|>|<\|inner_prefix\|>|<\|channel>\s*(?:thought|thinking|analysis)\b)"
    rf"|(?P<close>{_LEFT}/\s?{_NAME}\s?{_RIGHT}|◁/{_NAME}▷|\[/{_NAME}\]|<\|end_of_(?:thought|thinking)\|>"
    r"|<\|END_THINKING\|>|<\|inner_suffix\|>|<channel\|>)",
    re.IGNORECASE,
)


_BEGINNINGS = (
    *("<think>", "<thinking>", "<thought>", "<reasoning>", "<seed:think>", "◁think▷", "[think]"),
    "<|channel|>analysis",
    "<|channel>thought",
    "<|start_thinking|>",
    "<|begin_of_thought|>",
)


_CHANNEL = re.compile(
    r"<\|channel\|>\s*(?P<name>\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>(?P<text>.*?)"
    r"(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)


# the same with the special tokens left out, as processors decode it
_BARE_CHANNEL = re.compile(r"\s*(?:analysis|commentary)(?=[A-Z\"'*]).*assistantfinal|\s*assistantfinal", re.DOTALL)


_BARE_UNFINISHED = re.compile(r"\s*(?:analysis|commentary)(?=[A-Z\"'*<])")


_IN_WORDS = re.compile(
    r"\s*here(?:'s| is) my thought process:.*?(?:here(?:'s| is) my response:|(?P<none>\Z))", re.I | re.S
)


_FRAME = re.compile(
    r"</?answer>|<\|(?:begin|end)_of_(?:box|solution)\|>|<\|(?:START|END)_RESPONSE\|>"
    r"|(?:<\|(?:im_end|endoftext|eot_id|end|return|eos)\|>|</s>|<end_of_turn>|<turn\|>|<eos>)\s*\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Spoken:
    """What a model said aloud: its `text` without thinking; `unfinished` where it was cut while it still thought."""

    text: str
    unfinished: bool = False


def spoken(text: str) -> Spoken:
    """A model's text without its thinking, however that is marked.

    >>> spoken("<think>An octopus? No.</think> Bee").text, spoken("It may be a frog.</think>Bee").text
    ('Bee', 'Bee')
    >>> spoken("<think>An octopus, or a fr")
    Spoken(text='', unfinished=True)
    """
    if "<|channel|>" in text:
        parts = [m["text"] for m in _CHANNEL.finditer(text) if m["name"].casefold() == "final"]
        return _aloud("".join(parts)) if parts else Spoken("", True)
    if bare := _BARE_CHANNEL.match(text):
        text = text[bare.end() :]
    elif _BARE_UNFINISHED.match(text):
        return Spoken("", True)
    if words := _IN_WORDS.match(text):
        if words["none"] is not None:
            return Spoken("", True)
        text = text[words.end() :]
    return _aloud(text)


def marked(text: str) -> bool:
    """Whether a text holds a mark of thinking, or of a channel."""
    return bool(_MARK.search(text)) or "<|channel|>" in text


def begun(prompt: str) -> str:
    """The mark of thinking that the end of a prompt leaves open, so that the answer begins within it; "" for none."""
    if channel := re.search(r"<\|channel\|>\s*\w+\s*<\|message\|>\s*\Z", prompt):
        return channel[0]
    last = None
    for mark in _MARK.finditer(prompt):
        last = mark
    return last["open"] if last and last["open"] and not prompt[last.end() :].strip() else ""


def _aloud(text: str) -> Spoken:
    """A text without what stands between marks, or before a mark that ends what the prompt began."""
    whole = text.strip().casefold()
    if len(whole) > 1 and any(beginning.startswith(whole) for beginning in _BEGINNINGS):
        return Spoken("", True)  # cut within its first mark
    kept: list[str] = []
    thinks, begin = False, 0
    for mark in _MARK.finditer(text):
        if mark["close"]:
            kept, thinks = kept if thinks else [], False
        elif thinks:
            continue
        else:
            kept.append(text[begin : mark.start()])
            thinks = not re.search(r"/\W*\Z", mark[0])  # <think/> holds nothing
        begin = mark.end()
    aloud = "".join(kept) if thinks else "".join([*kept, text[begin:]])
    for _ in range(4):  # some servers leave several marks of an end
        aloud = _FRAME.sub("", aloud)
    return Spoken(aloud.strip(), thinks)
