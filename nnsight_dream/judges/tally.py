"""Tally: what judges' answers in a store add up to, picture by picture, and how far judges agree."""

from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ..arguments import choice, several, shown
from ..synthesis.reach import Reach
from .desk import standing
from .questions import PROTOCOLS

if TYPE_CHECKING:
    from ..sweeps.entries import Entry
    from ..sweeps.jobs import Job
    from ..sweeps.store import Store


if TYPE_CHECKING:
    Place: TypeAlias = Store | str | os.PathLike[str]


Row = dict[str, Any]


@dataclass(frozen=True)
class Agreement:
    """Of `n` things that both judged, the `share` on which they agree, and Cohen's `kappa`, from -1 to 1.

    Both are None for n = 0; kappa too where both always say the same one thing, so that chance alone explains it.
    """

    n: int
    share: float | None
    kappa: float | None


def results(store: Place, judges: str | Sequence[str] | None = None, *, grader: str | None = None) -> list[Row]:
    """One flat row for each picture, judge and protocol that was asked.

    key, concept, category, layer, seed, control, pooling, judge, protocol, grader
    model      with its revision, and a hash of its weights where there are several of one name
    settings   steps and a hash of all choices, the type of the weights and the size of pictures among them
    answers    how many answers came; `refusals`, `empty`, `broken` and `broken_grades` are counted beside them
    score      share of the graded answers that name the concept, 0 to 1; None if none is graded
    shuffled   the same answers compared with another picture's concept: chance level; None if not compared
    top        the most frequent answer, "" if there is none
    written    share of the readings that find the word written in the picture; None if "written" was not asked
    drawn      the score if the word is not written (`written` under a half), else 0; None if either is unknown
    reach      the picture's own score over the best real picture's on its own ground; `reach_cut` cut out on the
               canvas's ground; None where it was not measured. `reached` says whether all that is known is at least 1

    judges    all that answered by default
    grader    whose grades count, where several graded; those of the first to grade an answer, by default
    """
    place = opened(store)
    names = place.judges() if judges is None else several(judges, str, "judges", "a judge's name, or a list, is")[0]
    tallies = []
    entries = list(place.entries())
    models = models_of(entries)
    for entry in entries:
        about = _job_columns(entry.job) | dict(model=models[entry.key], settings=entry.settings)
        reach = entry.reach or Reach("score")
        beside = dict(reach=reach.own, reach_cut=reach.cut, reached=reach.reached)
        for judge in names:
            rows = standing(place.answers(entry.key, judge))
            scored = [_tally(entry.job, rows, p, grader) for p in PROTOCOLS if any(r["protocol"] == p for r in rows)]
            written = next((t["score"] for t in scored if t["protocol"] == "written"), None)
            for tally in scored:
                tallies.append(dict(key=entry.key, **about, judge=judge, **tally, **_split(tally, written), **beside))
    return tallies


def models_of(entries: Sequence[Entry]) -> dict[str, str]:
    """The model of each entry, by key; with a hash of the weights where a name stands for several at one layer."""
    weights = {e.key: str(e.record.get("of", {}).get("weights", "")) for e in entries}
    seen: dict[tuple[str, Any], set[str]] = collections.defaultdict(set)
    for e in entries:
        seen[e.model, e.job.layer].add(weights[e.key])
    changed = {model for (model, _), tags in seen.items() if len(tags) > 1}
    return {e.key: f"{e.model} [{weights[e.key][:6]}]" if e.model in changed else e.model for e in entries}


def _split(tally: Row, written: float | None) -> Row:
    comparable = tally["protocol"] != "written" and tally["score"] is not None and written is not None
    return dict(written=written, drawn=tally["score"] * ((written or 0) < 0.5) if comparable else None)


def agreement(
    store: Place, a: str, b: str, protocol: str, *, graders: tuple[str | None, str | None] = (None, None)
) -> Agreement:
    """How far two judges agree on which pictures show their concept (a score of at least a half).

    Raises ValueError for an unknown protocol and for a judge that answered nothing.
    """
    choice(protocol, "protocol", PROTOCOLS, quoted=False)
    if not isinstance(graders, (tuple, list)) or len(graders) != 2:
        raise TypeError(f"graders={shown(graders)}: a pair is needed, of each judge whose grades count, or None")
    verdicts = []
    for judge, grader in zip((a, b), graders, strict=True):
        rows = results(store, judge, grader=grader)
        if not rows:
            there = ", ".join(opened(store).judges()) or "none"
            raise ValueError(f"{judge!r} has answered nothing in this store; judges that have: {there}")
        scores = {r["key"]: r["score"] for r in rows if r["protocol"] == protocol}
        verdicts.append({key: score >= 0.5 for key, score in scores.items() if score is not None})
    both = [k for k in verdicts[0] if k in verdicts[1]]
    return agreement_of([(verdicts[0][k], verdicts[1][k]) for k in both])


def grader_agreement(store: Place, judge: str, a: str, b: str) -> Agreement:
    """How far two graders agree on a judge's answers, comparison by comparison, shuffled ones included."""
    place, pairs = opened(store), []
    for key in [e.key for e in place.entries()]:
        scores: dict[str, dict[tuple[Any, ...], bool]] = {a: {}, b: {}}
        for row in standing(place.answers(key, judge)):
            if row["what"] == "grade" and row["score"] is not None and row["grader"] in scores:
                scores[row["grader"]][row["protocol"], row["sample"], row["concept"]] = bool(row["score"])
        pairs += [(scores[a][mark], scores[b][mark]) for mark in scores[a] if mark in scores[b]]
    return agreement_of(pairs)


def agreement_of(pairs: Sequence[tuple[bool, bool]]) -> Agreement:
    """Share and kappa = (share - chance) / (1 - chance), chance from each one's own rate of yes (Cohen, 1960).

    By hand, since scikit-learn is not on every install; tests compare it with scikit-learn's.
    """
    n = len(pairs)
    if not n:
        return Agreement(0, None, None)
    share = sum(x == y for x, y in pairs) / n
    yes = [sum(p[i] for p in pairs) / n for i in (0, 1)]
    chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    return Agreement(n, share, (share - chance) / (1 - chance) if chance < 1 else None)


def opened(store: Place) -> Store:
    """A store, or the one in a folder.

    Raises TypeError for another kind, FileNotFoundError for a folder that holds none.
    """
    from ..sweeps.store import Store

    if isinstance(store, Store):
        return store
    if not isinstance(store, (str, os.PathLike)):
        held = getattr(store, "store", None)
        mend = "; a sweep's is .store" if isinstance(held, Store) else ""
        raise TypeError(f"store= is a Store or its folder; got {shown(store)}{mend}")
    return Store(store, must_exist=True)


def _job_columns(job: Job) -> Row:
    names = ("concept", "category", "layer", "seed", "control", "pooling")
    return {name: getattr(job, name) for name in names}


def _tally(job: Job, rows: Iterable[Row], protocol: str, grader: str | None) -> Row:
    mine = [r for r in rows if r["protocol"] == protocol]
    answers = [r for r in mine if r["what"] == "answer"]
    kinds = collections.Counter(r["kind"] for r in answers)
    grades = _grades([r for r in mine if r["what"] == "grade"], grader)
    own = [g["score"] for g in grades if g["concept"] == job.concept and g["score"] is not None]
    others = [g["score"] for g in grades if g["concept"] != job.concept and g["score"] is not None]
    return dict(
        protocol=protocol,
        grader=grades[0]["grader"] if grades else "",
        answers=kinds["answer"],
        score=sum(own) / len(own) if own else None,
        shuffled=sum(others) / len(others) if others else None,
        refusals=kinds["refusal"],
        empty=kinds["empty"],
        broken=kinds["broken"],
        broken_grades=sum(g["score"] is None for g in grades),
        top=_most_frequent([r["text"] for r in answers if r["kind"] == "answer"]),
    )


def _grades(grades: Sequence[Row], grader: str | None) -> list[Row]:
    """One grade of each answer and concept: the first, or that of a grader."""
    first: dict[tuple[int, str], Row] = {}
    for row in grades:
        if grader is None or row["grader"] == grader:
            first.setdefault((row["sample"], row["concept"]), row)
    return list(first.values())


def _most_frequent(texts: Sequence[str]) -> str:
    """The most frequent text, upper and lower case and punctuation aside; the first of equals, as it was first said."""
    plain = [text.casefold().strip(" \t\n.,!?\"'*") for text in texts]
    counts = collections.Counter(plain)
    if not counts:
        return ""
    best = counts.most_common(1)[0][0]
    return next(text for text, p in itertools.zip_longest(texts, plain) if p == best).strip()
