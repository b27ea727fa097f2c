"""Judging features: does a judge name in a feature's picture what its most activating word says, more than by chance?

Three sets of pictures go through the same questions, each kept in a store of its own:

    features   the cards' first prototypes, with each feature's most activating word
    shuffled   the same pictures, the words dealt out anew among them: what a judge names by luck or habit
    random     pictures of latents whose column and row are random directions of the same norms, climbed with the same
               settings, with their most activating word: what any direction whatever would give
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import arguments
from ..arguments import strict
from ..judges.desk import check_examiner
from ..judges.examine import examine
from ..judges.questions import in_words
from ..judges.tally import results
from ..sae.encoding import site_of
from ..sae.make import feature
from ..sae.reference import chosen as chosen_reference
from ..sae.reference import described
from ..sae.responses import word_tokens
from ..stats.intervals import wilson
from ..sweeps.jobs import Job
from ..sweeps.store import Store
from ..synthesis.digests import digest
from ..synthesis.settings import choose
from ..synthesis.synthesize import climb_pairs
from .card import Card, Material

if TYPE_CHECKING:
    from ..engine.latent import Latent
    from ..judges.desk import Examiner
    from ..models.vlm import VLM
    from ..sae.feature import Feature
    from ..sae.reference import Reference
    from ..synthesis.settings import Choice, Settings


KINDS = ("features", "shuffled", "random")


FIVE = 5


@dataclass(frozen=True, eq=False)
class Judged:
    """What a judge said of features.

    rows       for each kind of picture and question: `named` of `pictures`, `rate` with its 95 % Wilson interval `low`
               to `high`; `unasked` have no word, or one that the judge does not know, or no category to hint at;
               `unanswered` were asked, but no answer could be graded. Rate and interval are None for no picture
    verdicts   by a card's key: (question, what the judge said, "yes" or "no")
    """

    rows: list[dict[str, Any]]
    verdicts: dict[str, list[tuple[str, str, str]]]


@strict
def judge_features(
    vlm: VLM,
    sae: Any,
    cards: Sequence[Card],
    folder: str | Path,
    judge: Examiner,
    *,
    material: Material | None = None,
    settings: Choice = None,
    reference: Any = None,
    seed: int = 0,
    protocols: Sequence[str] = ("hint", "strict"),
    progress: bool = False,
) -> Judged:
    """Let a judge look at cards' first prototypes, beside shuffled words and random directions; see this module.

    sae        the sae-lens object that the cards were made of; material, settings, reference   what they were made with
    folder     where pictures and answers are kept; called again, only what is missing is climbed and asked
    judge      such as `nd.DemoExaminer()`; with one that gives ranks, its first five names are counted too
    seed       of the shuffling and the random directions
    protocols  "hint" (the judge is told the word's category) and "strict" (it is told nothing)

    Of each card one picture counts, that of its first seed. Raises ValueError for no card and for settings that are not
    the cards' own; otherwise as `examine`.
    """
    check_examiner(judge)
    seed = arguments.whole(seed, "seed", 0, arguments.SEED_MOST)
    cards, _ = arguments.several(cards, Card, "cards", "a Card, or a list of them as make_cards gives, is")
    if not cards:
        raise ValueError("no card to judge: make some with make_cards")
    if material is not None and not isinstance(material, Material):
        raise TypeError(f"material={arguments.shown(material)}: Material is needed, or None")
    site, material = site_of(vlm, sae), material or Material.bundled()
    chosen = choose(vlm, site.layer, settings)
    pictures = chosen_reference(reference)
    _check_alike(cards, chosen, pictures)
    words = {card.key: card.label for card in cards}
    place = arguments.folder(folder)
    stores = {kind: Store(place / kind) for kind in KINDS}
    dealt = _dealt(words, seed)
    keys: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}  # of a card's pictures in the stores
    for kind, labels in (("features", words), ("shuffled", dealt)):
        for card in cards:
            if labels.get(card.key):
                job = _job(card, labels[card.key], material)
                keys[kind][card.key] = job.key(card=card.key)
                if not stores[kind].has(keys[kind][card.key]):
                    stores[kind].put(keys[kind][card.key], job, card.prototype())
    keys["random"] = _random(vlm, sae, cards, stores["random"], material, chosen, pictures, seed, progress)
    rows = []
    for kind in KINDS:
        if keys[kind]:
            examine(stores[kind], judge, protocols=protocols, shuffled=False, keys=keys[kind].values(), progress=False)
        for protocol in protocols:
            rows += _rates(stores[kind], kind, judge, protocol, list(keys[kind].values()), len(cards))
    return Judged(rows, _verdicts(stores["features"], judge, protocols, keys["features"]))


def _check_alike(cards: Sequence[Card], chosen: Settings, pictures: Any) -> None:
    """Raise ValueError for cards that were made with other settings or another reference."""
    memory = {"at_once": chosen.at_once}  # no result depends on it
    if chosen.record() | {"terms": []} != dict(cards[0].prototype().settings) | memory:
        raise ValueError(
            "the cards were made with other settings: give judge_features the same settings= as make_cards"
        )
    for card in cards:
        if card.facts.get("reference", described(None)) != described(pictures):
            raise ValueError(
                f"feature {card.index}'s card was made with reference {card.facts.get('reference')}, not "
                f"{described(pictures)}: give judge_features the same reference= as make_cards"
            )


def twin(aim: Feature, seed: int) -> Feature:
    """A feature whose latents have random columns and rows of the same norms; all else is kept.

    The same feature and seed give the same twin, whatever else is made.
    """
    parts = tuple((weight, _twin(latent, seed)) for weight, latent in aim.parts)
    return aim.but(label=f"random direction for {aim.label}", parts=parts, neuronpedia=None)


def _twin(latent: Latent, seed: int) -> Latent:
    drawn_by = hashlib.sha256(f"{seed} {latent.index}".encode()).digest()[:4]  # torch heeds 32 bits of a seed
    generator = torch.Generator().manual_seed(int.from_bytes(drawn_by, "big"))

    def like(vector: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(vector.shape, generator=generator)
        return drawn / drawn.norm() * vector.norm()

    encoder = like(latent.encoder)
    gate = None if latent.gate is None else (encoder / encoder.norm() * latent.gate[0].norm(), latent.gate[1])
    decoder = None if latent.decoder is None else like(latent.decoder)
    return dataclasses.replace(latent, encoder=encoder, decoder=decoder, gate=gate)


def _dealt(words: Mapping[str, str], seed: int) -> dict[str, str]:
    """Words dealt out anew: every picture another word than its own, as far as there are enough that differ."""
    keys = [k for k, word in words.items() if word]
    chance, best, fewest = random.Random(seed), dict[str, str](), len(keys) + 1
    for _ in range(200):
        order = list(keys)
        chance.shuffle(order)
        dealt = {a: words[b] for a, b in zip(keys, order, strict=True)}
        own = sum(dealt[k] == words[k] for k in keys)
        if own < fewest:
            best, fewest = dealt, own
        if not own:
            break
    return {k: word for k, word in best.items() if word != words[k]}


def _job(card: Card, word: str, material: Material, control: str = "") -> Job:
    category = material.categories.get(word, "")
    return Job(word, category, card.facts["hf_name"], card.shots[0].seed, f"feature {card.index}", control)


def _random(
    vlm: VLM,
    sae: Any,
    cards: Sequence[Card],
    store: Store,
    material: Material,
    settings: Settings,
    reference: Reference | None,
    seed: int,
    progress: bool,
) -> dict[str, str]:
    """Climb the twins of all cards into a store; returns their keys there by the cards' own."""
    objective = cards[0].facts["objective"]
    own = feature(sae, [c.index for c in cards], objective=objective, reference=reference)
    aims = [twin(a, seed) for a in own]
    words = _words(vlm, aims, material)
    keys = {}
    for card, aim, word in zip(cards, aims, words, strict=True):
        job = _job(card, word, material, "random")
        key = job.key(card=card.key, twin=digest(aim.parts))
        keys[card.key] = key
        if store.has(key):
            continue
        (prototype,) = climb_pairs(vlm, [(aim, job.seed)], settings)
        if prototype.interrupted:
            raise KeyboardInterrupt
        store.put(key, job, prototype)
        if progress:
            print(f"random direction for feature {card.index}: {word}", file=sys.stderr, flush=True)
    return keys


def _words(vlm: VLM, aims: Sequence[Feature], material: Material) -> list[str]:
    """The word of the highest pre-activation for each feature; a random direction need not reach its threshold."""
    rows = []
    for tokens in word_tokens(vlm, material.words, vlm.site(aims[0].site(vlm))):
        rows.append(torch.stack([sum(w * latent.pre(tokens) for w, latent in a.parts).max() for a in aims]).cpu())  # type: ignore[union-attr]
    return [material.words[i] for i in torch.stack(rows).argmax(0).tolist()]


def _rates(
    store: Store, kind: str, judge: Examiner, protocol: str, keys: Sequence[str], cards: int
) -> list[dict[str, Any]]:
    wanted, judged = set(keys), [r for r in results(store, judge.name) if r["protocol"] == protocol] if keys else []
    judged = [r for r in judged if r["key"] in wanted]
    scores = [r["score"] >= 0.5 for r in judged if r["score"] is not None]
    left = dict(unasked=cards - len(judged), unanswered=len(judged) - len(scores))
    rows = [_rate(kind, protocol, sum(scores), len(scores)) | left]
    ranks = [
        answer["rank"] <= FIVE
        for row in judged
        for answer in store.answers(row["key"], judge.name)
        if answer["what"] == "answer" and answer["protocol"] == protocol and "rank" in answer
    ]
    return rows + ([_rate(kind, f"{protocol}, first five", sum(ranks), len(ranks)) | left] if ranks else [])


def _rate(kind: str, question: str, named: int, pictures: int) -> dict[str, Any]:
    low, high = wilson(named, pictures) if pictures else (None, None)
    rate = named / pictures if pictures else None
    return dict(kind=kind, question=question, named=named, pictures=pictures, rate=rate, low=low, high=high)


def _verdicts(
    store: Store, judge: Examiner, protocols: Sequence[str], keys: Mapping[str, str]
) -> dict[str, list[tuple[str, str, str]]]:
    rows = {(r["key"], r["protocol"]): r for r in results(store, judge.name)} if keys else {}
    verdicts: dict[str, list[tuple[str, str, str]]] = {}
    for card, key in keys.items():
        for protocol in protocols:
            row = rows.get((key, protocol))
            if row is not None and row["score"] is not None:
                verdict = (f"{judge.name}, {in_words(protocol)}", row["top"], "yes" if row["score"] >= 0.5 else "no")
                verdicts.setdefault(card, []).append(verdict)
    return verdicts
