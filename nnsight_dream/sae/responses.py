"""Responses: how strongly each feature of a sparse autoencoder fires for words and for pictures, and for what alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import SEED_MOST, is_whole, listed, plain, real, whole
from ..directions.text import inputs_of, prompts_of, texts_in
from ..engine import jobs
from ..engine.plain import Words
from ..io.pictures import as_tensors
from ..models import spans
from ..models.reading import reading
from ..remote.run import run
from .encoding import check_tokens, check_whole, check_width, most, patches
from .weights import checked

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM


@dataclass(frozen=True, eq=False)
class Responses:
    """What makes features fire.

    words, by_word         texts, and (words, F): the most activation over each text's own tokens
    pictures, by_picture   names of pictures, and (pictures, F): the most activation over each picture's image tokens;
                           several pictures may have one name
    features               the F features' numbers in the SAE
    """

    words: tuple[str, ...]
    by_word: torch.Tensor
    pictures: tuple[str, ...]
    by_picture: torch.Tensor
    features: tuple[int, ...]

    def column(self, feature: int) -> int:
        """Where a feature is in the tables; raises ValueError for one that was not asked for."""
        feature = plain(feature)
        if not is_whole(feature) or feature not in self.features:
            some = ", ".join(map(str, self.features[:8]))
            raise ValueError(f"feature {feature!r} is not among these {len(self.features)} responses: {some} ...")
        return self.features.index(feature)

    def top_words(self, feature: int, count: int = 8) -> list[tuple[str, float]]:
        """The words for which a feature fires most, with its activation; those with none are left out."""
        return _top(self.words, self.by_word[:, self.column(feature)], count)

    def top_pictures(self, feature: int, count: int = 6) -> list[tuple[int, float]]:
        """The numbers of the pictures for which a feature fires most, with its activation."""
        return _top(range(len(self.pictures)), self.by_picture[:, self.column(feature)], count)

    def by_name(self) -> tuple[tuple[str, ...], torch.Tensor]:
        """The names of pictures, and (names, F): the mean over each name's pictures."""
        names = tuple(dict.fromkeys(self.pictures))
        row = {name: i for i, name in enumerate(names)}
        where = torch.tensor([row[name] for name in self.pictures])
        total = torch.zeros(len(names), self.by_picture.shape[1]).index_add_(0, where, self.by_picture)
        return names, total / torch.bincount(where, minlength=len(names))[:, None]


def _top(names: Sequence[Any], values: torch.Tensor, count: int) -> list[tuple[Any, float]]:
    best = values.topk(min(whole(count, "count", 1), len(values)))
    return [(names[i], v) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True) if v > 0]


def responses(
    vlm: VLM,
    sae: Any,
    site: Site | int | str,
    words: Sequence[str],
    pictures: Sequence[Any],
    names: Sequence[str],
    *,
    features: Sequence[int] | None = None,
) -> Responses:
    """How much features fire for words in the chat template, and for pictures.

    site      where the SAE reads, such as `nd.feature(sae, 0).site(vlm)`
    pictures  PIL images or tensors (3, H, W); `names`, one for each, say what they show
    features  numbers of features; all by default

    Raises ValueError for no word, no picture, or not one name for each picture.
    """
    if len(names) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures but {len(names)} names: one for each is needed")
    check_whole(sae)
    where, count = vlm.site(site), int(sae.W_dec.shape[0])
    check_width(vlm, sae, where)
    form = "the numbers of features, such as [3, 14], are"
    chosen = None if features is None else [checked(f, count) for f in listed(features, "features", form)]
    if chosen == []:
        raise ValueError("features=[] asks for nothing; give numbers of features, or leave it out for all")
    texts = texts_in(list(words), "words")
    rows = [most(sae, part, chosen) for part in word_tokens(vlm, texts, where)]
    seen: dict[int, torch.Tensor] = {}
    for number, tokens in patches(vlm, as_tensors(list(pictures), "pictures"), where):
        seen[number] = most(sae, tokens, chosen)
    if len(seen) != len(names):
        raise ValueError(
            f"pictures= holds {len(seen)} pictures for {len(names)} names: give tensors (3, H, W), each its own"
        )
    by_picture = torch.stack([seen[number] for number in range(len(seen))])
    every = tuple(range(count)) if chosen is None else tuple(chosen)
    return Responses(tuple(t.strip() for t in texts), torch.stack(rows), tuple(names), by_picture, every)


def word_tokens(vlm: VLM, words: Sequence[str], site: Site) -> Iterator[torch.Tensor]:
    """Activations (tokens, d) of each text's own tokens in the chat template, float32; batch by batch."""
    how = reading(vlm, [site])
    for batch in spans.batches(prompts_of(vlm, words)):
        (rows,) = run(vlm, jobs.tokens, Words(how, inputs_of(vlm, batch), None, []))
        for prompt, row in zip(batch, rows, strict=True):
            yield check_tokens(row, repr(prompt.text))


@dataclass(frozen=True)
class Selective:
    """A feature that fires most for one concept's word and for the same concept's pictures.

    margin   how much less the runner-up has, as a share of the most: the smaller of words' and pictures'; 0 to 1
    """

    feature: int
    concept: str
    margin: float


def selective(responses: Responses, *, margin: float = 0.0, among: int = 1) -> list[Selective]:
    """The features that are selective for one concept in both modalities, the clearest first.

    Words and pictures are compared over the names that both have. A feature counts if it fires for a word and for a
    picture; if the concept of its most activating word is among the `among` concepts whose pictures activate it most
    (their mean); and if, in both modalities, the runner-up has at most 1 - `margin` of the concept's activation (with
    `among` above 1, of pictures nothing is asked but the rank).

    strict   selective(responses, margin=0.2)
    looser   selective(responses), or with among=5

    Raises ValueError for fewer than two common names, a margin outside 0 to 1, or `among` below 1.
    """
    margin, among = real(margin, "margin", least=0, most=1), whole(among, "among", 1)
    names, seen = responses.by_name()
    both = [name for name in responses.words if name in names]
    if len(both) < 2:
        raise ValueError(
            f"{len(both)} names are among both {len(responses.words)} words and {len(names)} pictures; at least 2 are "
            "needed to compare: give pictures the names of words"
        )
    by_word = responses.by_word[[responses.words.index(n) for n in both]]
    by_picture = seen[[names.index(n) for n in both]]
    word, word_margin = _lead(by_word)
    _, picture_margin = _lead(by_picture)
    own = by_picture.gather(0, word[None])[0]
    rank = (by_picture > own).sum(0) + 1
    clear = torch.minimum(word_margin, torch.where(rank == 1, picture_margin, torch.zeros(())))
    fires = (by_word.amax(0) > 0) & (own > 0)
    good = fires & (rank <= among) & ((clear if among == 1 else word_margin) >= margin)
    kept = [
        Selective(responses.features[i], both[int(word[i])], float(clear[i])) for i in good.nonzero().flatten().tolist()
    ]
    return sorted(kept, key=lambda s: -s.margin)


def _lead(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By column: the row of the most, and the share of it by which it leads."""
    best = values.topk(2, 0)
    first, second = best.values
    return best.indices[0], torch.where(first > 0, (first - second) / first.clamp(min=1e-12), torch.zeros(()))


def chance(responses: Responses, *, draws: int = 20, seed: int = 0, **reading: Any) -> float:
    """How many features `selective` would count, on average, if pictures were named at random."""
    draws = whole(draws, "draws", 1)
    generator = torch.Generator().manual_seed(whole(seed, "seed", 0, SEED_MOST))
    names, seen = responses.by_name()
    total = 0
    for _ in range(draws):
        order = torch.randperm(len(names), generator=generator).tolist()
        mixed = Responses(responses.words, responses.by_word, tuple(names[i] for i in order), seen, responses.features)
        total += len(selective(mixed, **reading))
    return total / draws
