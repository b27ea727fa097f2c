"""Judging: judges examine the pictures of a store; each is asked once, and what it said is kept raw (see `asking`)."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..arguments import is_whole, several, whole
from . import questions
from .desk import Asked, Desk, JudgeStopped, Summary, check_examiner, standing
from .questions import NO_ANSWER
from .tally import opened

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from ..sweeps.entries import Entry
    from ..sweeps.jobs import Job
    from ..sweeps.store import Store
    from .desk import Examiner


@dataclass(frozen=True)
class Calls:
    """How many questions and comparisons are left, and their cost in dollars; None if a price is unknown."""

    asking: int
    grading: int
    cost: float | None

    def __str__(self) -> str:
        money = "cost unknown" if self.cost is None else f"about ${self.cost:.2f}"
        return f"{self.asking} questions, {self.grading} comparisons, {money}"


def examine(
    store: Store | str | os.PathLike[str],
    judge: Examiner,
    *,
    protocols: Sequence[str] = ("strict", "hint"),
    shuffled: bool = True,
    keys: Iterable[str] | None = None,
    progress: bool | None = None,
) -> Summary:
    """Let a judge look at the finished pictures of a store; whatever it has said before is not asked again.

    An answer that came empty or broken says nothing of the picture: it is asked for again, once a call.

    protocols   of `PROTOCOLS`: "strict" (the judge is asked freely and told nothing), "hint" (it is told the category;
                jobs with one only), "written" (is the word written in it)
    shuffled    compare each answer with another picture's concept too: chance level, without a further question
    keys        only these pictures
    progress    True a bar, False nothing, None a bar in a terminal

    Raises ValueError for protocols and keys that are none; JudgeStopped, after storing what there is, where the budget
    is reached, the key is refused or no question at all was answered; RuntimeError where another process lets the same
    judge examine the same store; OSError where nothing can be written.
    """

    place = opened(store)
    allowed = _allowed(judge, protocols)
    with place.claim(f"judge {place.enroll(judge.name)}") as mine:
        if not mine:
            raise RuntimeError(f"another process lets {judge.name!r} examine {place.folder}; wait for it, or stop it")
        desk = Desk(place, judge)
        open_questions = desk.open(_missing(place, judge, allowed, shuffled, keys, desk.summary))
        if open_questions:
            try:
                with _bar(progress, judge.name, len(open_questions)) as desk.tell:
                    judge.examine(open_questions, desk.keep)
            except JudgeStopped as stop:
                stop.summary = desk.close()
                stop.args = (f"{stop}; stored: {stop.summary}",)
                raise
        summary = desk.close()
    if open_questions and not desk.kept:
        why = "; ".join(f"{n} x {error}" for error, n in summary.errors.most_common(3)) or "it said nothing"
        raise JudgeStopped(f"{judge.name} answered none of {len(open_questions)} questions: {why}", summary)
    return summary


def plan_calls(
    store: Store | str | os.PathLike[str] | int,
    judge: Examiner,
    protocols: Sequence[str] = ("strict", "hint"),
    *,
    shuffled: bool = True,
    keys: Iterable[str] | None = None,
) -> Calls:
    """What `examine` would ask of a store, or of that many jobs, without asking; retries come on top.

    Raises ValueError as `examine` does.
    """

    allowed = _allowed(judge, protocols)
    compared = [p for p in allowed if p != "written"]  # letters are compared here
    if is_whole(store):
        count = whole(store, "store", 0)
        asking = count * judge.samples * len(allowed)
        grading = count * judge.samples * len(compared) * (2 if shuffled else 1)
    else:
        place = opened(store)  # type: ignore[arg-type]
        open_questions = _missing(place, judge, allowed, shuffled, keys, Summary())
        asking = sum(a.answer is None for a in open_questions)
        grading = sum(len(a.grade_as) for a in open_questions if a.protocol in compared)
    estimate = getattr(judge, "estimate", None)
    return Calls(asking, grading, estimate(asking, grading) if estimate else 0.0)


def _allowed(judge: Examiner, protocols: Sequence[str]) -> list[str]:
    check_examiner(judge)
    chosen = list(dict.fromkeys(several(protocols, str, "protocols", "a protocol's name, or a list of them, is")[0]))
    wrong = [p for p in chosen if p not in judge.protocols]
    if wrong or not chosen:
        request = f"{wrong[0]!r}" if chosen else "nothing"
        raise ValueError(f"protocols= asks for {request}; {judge.name} answers {', '.join(judge.protocols)}")
    return chosen


def _missing(
    store: Store, judge: Examiner, protocols: list[str], shuffled: bool, keys: Iterable[str] | None, summary: Summary
) -> list[Asked]:
    """The questions that lack an answer or a grade, picture by picture."""
    entries = list(store.entries())
    able = getattr(judge, "able", None) or (lambda concept, category, protocol: True)
    partner = _partners([e.job for e in entries if able(e.job.concept, e.job.category, "strict")])
    missing = []
    for entry in _chosen(entries, keys):
        job, rows = entry.job, standing(store.answers(entry.key, judge.name, exact=True))
        graded = [r for r in rows if r["what"] == "grade"]
        before = [r["concept"] for r in graded if r["concept"] != job.concept]  # more jobs may have come since
        other = before[0] if before else partner.get(_group(job), {}).get(job.concept)
        wanted = [job.concept, other] if shuffled and other else [job.concept]
        answer_rows = [r for r in rows if r["what"] == "answer" and r["kind"] not in NO_ANSWER]
        answers = {(r["protocol"], r["sample"]): r for r in answer_rows}
        done = {(r["protocol"], r["sample"], r["grader"], r["concept"]) for r in graded if r["score"] is not None}
        for protocol in protocols:
            if (protocol == "hint" and not job.category.strip()) or not able(job.concept, job.category, protocol):
                summary.unable += judge.samples
                continue
            for sample in range(judge.samples):
                answer = answers.get((protocol, sample))
                mark = (protocol, sample, _grader(judge, protocol))
                left = tuple(c for c in wanted if (*mark, c) not in done)
                summary.there += answer is not None
                if answer is None or (left and answer["kind"] == "answer"):
                    opens = functools.partial(_open_whole, entry)
                    missing.append(Asked(entry.key, opens, job.concept, job.category, protocol, sample, answer, left))
    return missing


def _chosen(entries: list[Entry], keys: Iterable[str] | None) -> list[Entry]:
    if keys is None:
        return entries
    of = {e.key: e for e in entries}
    wanted = list(dict.fromkeys(several(keys, str, "keys", "a key of a job, or a list of them, is")[0]))
    if unknown := [k for k in wanted if k not in of]:
        raise ValueError(
            f"keys= holds {unknown[0]!r}, which is no finished job; store.keys() has the {len(of)} that are"
        )
    return [of[k] for k in wanted]


def _grader(judge: Examiner, protocol: str) -> str:
    return questions.WORDS if protocol == "written" else str(getattr(judge, "grader", judge.name))


def _open_whole(entry: Entry) -> Image.Image:
    entry.check()
    return _open(entry.folder)


def _open(folder: Path) -> Image.Image:
    from ..io.pictures import own_png

    return own_png(folder / "prototype.png")


def _group(job: Job) -> tuple[str, str, int]:
    return job.category, str(job.layer), job.seed


def _partners(jobs: Iterable[Job]) -> dict[tuple[str, str, int], dict[str, str]]:
    """For each category, layer and seed: another concept for each concept, each once, the same in every run."""
    groups: dict[tuple[str, str, int], set[str]] = collections.defaultdict(set)
    for job in jobs:
        groups[_group(job)].add(job.concept)
    partners = {}
    for group, concepts in groups.items():
        chance, order = random.Random(repr(group)), sorted(concepts)
        pairs: dict[str, str] = {}
        for _ in range(100):  # "fear" and "fearful person" are no control for each other, if it can be helped
            chance.shuffle(order)
            pairs = dict(zip(order, order[1:] + order[:1], strict=True)) if len(order) > 1 else {}
            if not any(a.casefold()[:3] == b.casefold()[:3] for a, b in pairs.items()):
                break
        partners[group] = pairs
    return partners


@contextlib.contextmanager
def _bar(progress: bool | None, name: str, total: int) -> Iterator[Callable[[], None]]:
    """Yields what is to be called for each question that is settled."""
    from ..synthesis.progress import bar, is_live  # torch

    if not is_live(progress):
        yield lambda: None
        return
    with bar(f"judge {name}", total, keep=True) as progress_bar:
        count = itertools.count(1)
        yield lambda: progress_bar.at(next(count))
