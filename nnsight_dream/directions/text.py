"""Concepts: directions made from text, read at the text's own tokens inside the chat template."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch

from ..arguments import choice, strict, texts
from ..arguments import text as checked
from ..models import spans
from ..models.reading import text_inputs
from .baseline_words import BASELINE_WORDS
from .deferred import Pending, Request
from .direction import build_direction, sites_of

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM
    from .direction import Direction, Many, Where


Texts = list[str] | tuple[str, ...]


@overload
def concept(vlm: VLM, words: str, layer: Where, *, baseline: Texts | None = ..., cache: bool = ...) -> Direction: ...


@overload
def concept(
    vlm: VLM, words: str, layer: Many, *, baseline: Texts | None = ..., cache: bool = ...
) -> list[Direction]: ...


@overload
def concept(
    vlm: VLM, words: Texts, layer: Where, *, baseline: Texts | None = ..., cache: bool = ...
) -> list[Direction]: ...


@overload
def concept(
    vlm: VLM, words: Texts, layer: Many, *, baseline: Texts | None = ..., cache: bool = ...
) -> list[list[Direction]]: ...


@strict
def concept(
    vlm: VLM,
    words: str | Texts,
    layer: Where | Many,
    *,
    baseline: Texts | None = BASELINE_WORDS,
    cache: bool = True,
) -> Any:
    """What a model holds for a word or phrase, less what it holds for any word (arXiv 2601.08017, section 2.1).

        v_L(w) = a_L(w) - mean over u in baseline of a_L(u)

    a_L is the activation at the site while the text stands in the chat template as a user's words, averaged over
    exactly the text's own tokens. Templates trim, so white space around a text does not count.

    words     a text, or a list; then a list is returned
    layer     a layer from 1, a hook name or a Site, or a list of them; then a list is returned, [word][layer] for both
    baseline  the words to subtract the mean of; None subtracts nothing
    cache     keep the baseline's mean in the user's cache folder ($NNSIGHT_DREAM_CACHE) for the next call

    All words and layers are read together, in padded batches. Raises ValueError for a layer that is not there or a text
    that the chat template or the tokenizer cannot keep, TypeError for a tokenizer without character offsets. On the
    demo it warns about a concept that was never shown to it, and names the nearest.

    >>> import nnsight_dream as nd
    >>> vlm = nd.load("demo")
    >>> octopus = nd.concept(vlm, "octopus", layer=1)
    >>> octopus.width == vlm.width
    True
    >>> [[v.site.layer for v in row] for row in nd.concept(vlm, ["frog", "bee"], layer=[1, 4])]
    [[1, 4], [1, 4]]
    """
    phrases = texts_in(words, "words")
    sites, one_site = sites_of(vlm, layer)
    if vlm.is_demo:
        _warn_unshown(phrases)
    prompts = prompts_of(vlm, phrases)
    words_of_baseline: Any = None
    if baseline is not None:
        words_of_baseline = "BASELINE_WORDS" if baseline is BASELINE_WORDS else texts_in(baseline, "baseline")
    story = {"method": "concept", "source": "arXiv 2601.08017, section 2.1", "baseline": words_of_baseline}
    request = _request(vlm, prompts, sites, baseline, cache)
    stories = [{**story, "tokens": [prompt.ids[t] for t in prompt.own]} for prompt in prompts]
    if vlm.remote is None:
        request.fetch()
    rows: list[list[Direction]] = [
        [
            build_direction(vlm, site, request.rows[site][i], prompt.text, **stories[i])
            if vlm.remote is None
            else Pending(request, i, site, prompt.text, **stories[i])
            for site in sites
        ]
        for i, prompt in enumerate(prompts)
    ]
    shaped: Any = [row[0] for row in rows] if one_site else rows
    return shaped[0] if isinstance(words, str) else shaped


def _request(
    vlm: VLM, prompts: Sequence[spans.Prompt], sites: Sequence[Site], baseline: Texts | None, cache: bool
) -> Request:
    """Vectors of prompts less a baseline's mean, computed by a job: at once, or of a remote model when needed."""
    words = () if baseline is None else tuple(texts_in(baseline, "baseline"))
    others = None if baseline is None else prompts_of(vlm, words)
    keys: dict[Site, str] | None = {} if cache else None
    named = vlm.remote is None or not vlm.remote.away or vlm.revision is not None  # else weights may change unseen
    if cache and others is not None and named:
        keys = {site: _key(vlm, site, others) for site in sites}
    return Request(vlm, sites, inputs_of(vlm, prompts), None if others is None else inputs_of(vlm, others), words, keys)


def inputs_of(
    vlm: VLM, prompts: Sequence[spans.Prompt], last: bool = False
) -> list[tuple[dict[str, torch.Tensor], list[list[int]]]]:
    """The model's inputs of each batch, padded on the right, and of each row its own tokens, or the prompt's `last`."""
    filler, batches = vlm.tokenizer.pad_token_id or 0, []
    for batch in spans.batches(prompts):
        longest = max(len(p.ids) for p in batch)
        ids = torch.tensor([[*p.ids, *[filler] * (longest - len(p.ids))] for p in batch])
        mask = torch.tensor([[1] * len(p.ids) + [0] * (longest - len(p.ids)) for p in batch])
        own = [[len(p.ids) - 1] if last else list(p.own) for p in batch]
        batches.append((text_inputs(vlm, ids, mask), own))
    return batches


def texts_in(words: str | Texts, name: str) -> list[str]:
    """One text or several, as a list; `name` is the argument's. Raises TypeError or ValueError for what holds none."""
    otherwise = ", or baseline=None to subtract nothing" if name == "baseline" else ""
    return texts(words, name, otherwise=otherwise)[0]


def prompts_of(vlm: VLM, texts: Sequence[str]) -> list[spans.Prompt]:
    """Texts as user's turns of the model's chat template, with the places of their own tokens."""
    return spans.wrap(vlm.tokenizer, texts, chat_template=vlm.chat_template)


def _key(vlm: VLM, site: Site, prompts: Sequence[spans.Prompt]) -> str:
    """What a baseline depends on: weights, site, and the token ids that template, tokenizer and words come to."""
    read = [vlm.fingerprint(site), site.layer, site.kind, str(vlm.dtype), [(p.ids, p.own) for p in prompts]]
    return hashlib.sha256(json.dumps(read).encode()).hexdigest()[:32]


def _warn_unshown(texts: Sequence[str]) -> None:
    from ..demo.bundle import unshown

    for text in texts:
        if unshown(text):
            warnings.warn(unshown(text), stacklevel=4)


@overload
def contrast(
    vlm: VLM, positive: str | Texts, negative: str | Texts, layer: Where, *, tokens: str = ..., label: str | None = ...
) -> Direction: ...


@overload
def contrast(
    vlm: VLM, positive: str | Texts, negative: str | Texts, layer: Many, *, tokens: str = ..., label: str | None = ...
) -> list[Direction]: ...


@strict
def contrast(
    vlm: VLM,
    positive: str | Texts,
    negative: str | Texts,
    layer: Where | Many,
    *,
    tokens: str = "last",
    label: str | None = None,
) -> Any:
    """The mean activation of some prompts less that of others: a contrastive direction (Panickssery et al. 2024).

    Each prompt stands in the chat template as a user's words.

    layer   as in `concept`; a list gives a list of directions
    tokens  "last": the last token of the template, where the model is about to answer; "all": the mean over the
            prompt's own tokens
    label   its name; made from the first prompt of either side if not given

    Raises ValueError for an empty side, another `tokens`, or a prompt that the chat template cannot keep.

    >>> import nnsight_dream as nd
    >>> vlm = nd.load("demo")
    >>> nd.contrast(vlm, ["a red apple", "a red car"], ["an apple", "a car"], layer=1, label="red").label
    'red'
    """
    choice(tokens, "tokens", ("last", "all"))
    label = None if label is None else checked(label, "label", "red", blank=False)
    sites, single = sites_of(vlm, layer)
    sides = [texts_in(positive, "positive"), texts_in(negative, "negative")]
    prompts = prompts_of(vlm, [*sides[0], *sides[1]])
    request = Request(vlm, sites, inputs_of(vlm, prompts, last=tokens == "last"), None, (), None)
    request.fetch()
    states = request.rows
    name = label or " against ".join(side[0].strip() + (" ..." if len(side) > 1 else "") for side in sides)
    story = {"method": "contrast", "positive": sides[0], "negative": sides[1], "tokens": tokens}
    cut = len(sides[0])
    directions = [
        build_direction(vlm, site, states[site][:cut].mean(0) - states[site][cut:].mean(0), name, **story)
        for site in sites
    ]
    return directions[0] if single else directions
