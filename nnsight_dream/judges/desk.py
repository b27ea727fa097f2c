"""Asking: what a question is, what a judge that answers it is, and the desk where answers come in and are stored.

What is kept, one line each in a picture's answers-<judge>.jsonl:

    {"what": "answer", "protocol", "sample", "question", "text", "kind", "raw", "model", "when", ...}
    {"what": "grade", "protocol", "sample", "concept", "score", "raw", "grader", "when"}

`kind` is "answer", "refusal", "empty" or "broken"; only an answer is graded. An empty or broken one is asked for again
when the judge next examines the store, and a grade that could not be read likewise; the later line then stands for the
earlier. `concept` is what an answer was compared
with: the picture's own, or that of another picture, as a control. `score` is 1, 0, or None for a grade that could not
be read.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from ..arguments import shown
from ..io.json_values import encodable, plain, unencodable
from . import questions
from .questions import KINDS, NO_ANSWER

if TYPE_CHECKING:
    from PIL import Image

    from ..sweeps.store import Store


Mark = tuple[str, str, int]


@dataclass(frozen=True)
class Asked:
    """One question about one picture.

    key, image   the picture's key, and what opens it (a PIL image, RGB)
    sample       from 0: the same question is asked several times
    answer       the row that is there already, or None: then it is to be asked
    grade_as     the concepts that the answer is still to be compared with
    """

    key: str
    image: Callable[[], Image.Image]
    concept: str
    category: str
    protocol: str
    sample: int
    answer: Mapping[str, Any] | None = None
    grade_as: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """What is asked, word for word."""
        return questions.question(self.protocol, self.category)


class Keep(Protocol):
    """Stores rows at once; from any thread. A row {"what": "failed", "error"} is counted, not stored."""

    def __call__(self, asked: Asked, *rows: Mapping[str, Any]) -> None: ...


class Examiner(Protocol):
    """A judge that can examine a store.

    name        its answers are kept under it; judges that differ in anything need names of their own
    samples     how often it is asked each question; 1 for one that always says the same
    protocols   those it can answer

    It may also have: `grader`, the name of what compares its answers (its own name, if missing);
    `able(concept, category, protocol)`, whether it can answer at all (always, if missing);
    `estimate(asking, grading)`, what that many calls cost in dollars, None if unknown (nothing, if missing).
    """

    name: str
    samples: int
    protocols: tuple[str, ...]

    def examine(self, asked: Sequence[Asked], keep: Keep) -> None:
        """Keep one answer of each question, and a grade of it for each concept in `grade_as` if it is an answer.

        Questions that fail stay open for the next time. Raises JudgeStopped where going on is of no use.
        """
        ...


def check_examiner(judge: Any) -> None:
    """Raise TypeError, with how to make one, unless a judge can examine a store."""
    if isinstance(judge, type):
        raise TypeError(f"judge={judge.__name__} is a class; make a judge of it: {judge.__name__}(...)")
    lacking = [name for name in ("name", "samples", "protocols", "examine") if not hasattr(judge, name)]
    if lacking:
        form = "an examiner is needed, such as nd.DemoExaminer(), nd.ZeroShotJudge(...) or nd.OpenAIJudge(...)"
        if hasattr(judge, "judge"):
            form += "; a judge that names pictures becomes one with nd.DemoExaminer(judge)"
        raise TypeError(f"judge={shown(judge)} has no {', '.join(lacking)}: {form}")


def answer_row(asked: Asked, text: str, kind: str, raw: Any, model: str, **more: Any) -> dict[str, Any]:
    """What a judge said, as it is kept; `why` in `more` tells what broke it. Raises ValueError for an unknown kind."""
    from ..sweeps.store import now

    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: allowed are {', '.join(KINDS)}")
    row = dict(what="answer", protocol=asked.protocol, sample=asked.sample, question=asked.question)
    return {**row, "text": encodable(text), "kind": kind, "raw": raw, "model": model, "when": now(), **more}


def grade_row(asked: Asked, concept: str, score: int | None, raw: Any, grader: str) -> dict[str, Any]:
    """A comparison of an answer with a concept, as it is kept: 1 it names it, 0 it does not, None it cannot be told.

    Raises ValueError for a score that is none of these.
    """
    from ..sweeps.store import now

    if score is not None and score not in (0, 1):
        raise ValueError(f"score={score!r}: allowed are 1 (it names the concept), 0 (it does not) and None (unclear)")
    score = None if score is None else int(score)
    row = dict(what="grade", protocol=asked.protocol, sample=asked.sample, concept=concept, score=score, raw=raw)
    return {**row, "grader": grader, "when": now()}


def standing(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows that count: a later answer in place of an empty or broken one, a later grade in place of none."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        grade = (row["grader"], row["concept"]) if row["what"] == "grade" else ()
        mark = (row["what"], row["protocol"], row["sample"], *grade)
        before = kept.get(mark)
        if before is None or (before["score"] is None if grade else before["kind"] in NO_ANSWER):
            kept[mark] = dict(row)
    return list(kept.values())


@dataclass
class Summary:
    """What an examination did.

    asked, graded   answers and grades that came now; `there` answers that were there before
    refusals, empty, broken, broken_grades   of these, counted apart: they are never a "no"
    failed          questions that still lack an answer or a grade, for the next time; `errors` says why, with counts,
                    and what broke answers
    unable          questions it cannot answer: a concept or category unknown to it, a hint without category
    """

    asked: int = 0
    graded: int = 0
    there: int = 0
    refusals: int = 0
    empty: int = 0
    broken: int = 0
    broken_grades: int = 0
    failed: int = 0
    unable: int = 0
    errors: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def ok(self) -> bool:
        """Whether nothing is left to be asked or graded."""
        return not self.failed

    def __str__(self) -> str:
        apart = [
            f"{n} {what}" for what in ("refusals", "empty", "broken", "broken_grades") if (n := getattr(self, what))
        ]
        left = [f"{n} {what}" for what, n in (("cannot answer", self.unable), ("failed", self.failed)) if n]
        why = [f"({n} x {error})" for error, n in self.errors.most_common(2)]
        counts = [f"{self.asked} asked", f"{self.graded} graded", f"{self.there} there before", *apart, *left]
        return " ".join([", ".join(counts).replace("_", " "), *why])


class JudgeStopped(RuntimeError):
    """A judge cannot go on; what it said until then is stored. `summary` counts it, once `examine` raises this."""

    def __init__(self, message: str, summary: Summary | None = None):
        super().__init__(message)
        self.summary = summary


class BudgetReached(JudgeStopped):
    """The limit of calls or of money is reached."""


class Desk:
    """Where rows come in: they are stored and counted, and letters that were read are compared with the word."""

    def __init__(self, store: Store, judge: Examiner):
        self.store, self.judge, self.summary = store, judge, Summary()
        self.kept = 0
        self.tell: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._open: dict[Mark, set[str]] = {}
        self._read_as: dict[Mark, tuple[str, ...]] = {}

    def open(self, missing: Sequence[Asked]) -> list[Asked]:
        """Note what is to come in; returns what is left for the judge. Readings that are there are compared at once."""
        left = []
        for item in missing:
            if item.protocol == "written":
                self._read_as[_mark(item)] = item.grade_as
                if item.answer is not None:
                    self._store(item, [], self._readings(item, item.answer))
                    continue
                item = replace(item, grade_as=())
            self._open[_mark(item)] = {*(["answer"] if item.answer is None else []), *(f"={c}" for c in item.grade_as)}
            left.append(item)
        return left

    def keep(self, asked: Asked, *rows: Mapping[str, Any]) -> None:
        """See `Keep`. Raises ValueError for a row that was not asked for or is there already."""
        with self._lock:
            self.summary.errors.update(encodable(str(r["error"])) for r in rows if r["what"] == "failed")
            good = [r for r in rows if r["what"] != "failed"]
            if not good:
                return
            for row in good:
                self._tick(asked, row)
            self._store(asked, good, [g for r in good if r["what"] == "answer" for g in self._readings(asked, r)])
            self.kept += len(good)
            if not self._open[_mark(asked)]:
                self.tell()

    def close(self) -> Summary:
        """The counts, with what did not come in."""
        with self._lock:
            self.summary.failed = sum(bool(left) for left in self._open.values())
            return self.summary

    def _tick(self, asked: Asked, row: Mapping[str, Any]) -> None:
        left = self._open.get(_mark(asked), set())
        what = "answer" if row["what"] == "answer" else f"={row['concept']}"
        if what not in left:
            raise ValueError(f"{self.judge.name}: {what!r} of {_mark(asked)} was not asked for, or is there already")
        left.discard(what)
        if row.get("kind", "answer") != "answer":  # there is nothing to grade
            left.clear()

    def _readings(self, asked: Asked, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        if asked.protocol != "written" or answer["kind"] != "answer":
            return []
        text = questions.capped(answer["text"])
        scores = [(c, int(questions.spells(text, c))) for c in self._read_as[_mark(asked)]]
        return [grade_row(asked, concept, score, text, questions.WORDS) for concept, score in scores]

    def _store(self, asked: Asked, rows: Sequence[Mapping[str, Any]], readings: Sequence[Mapping[str, Any]]) -> None:
        kept = [plain(row) | ({"unencodable": True} if unencodable(row) else {}) for row in (*rows, *readings)]
        self.store.add_answers(asked.key, self.judge.name, kept)
        for row in kept:
            self._count(row)

    def _count(self, row: Mapping[str, Any]) -> None:
        counts = self.summary
        if row["what"] == "answer":
            counts.asked += 1
            counts.refusals += row["kind"] == "refusal"
            counts.empty += row["kind"] == "empty"
            counts.broken += row["kind"] == "broken"
            counts.errors.update([row["why"]] if row.get("why") else [])
        elif row["score"] is None:
            counts.broken_grades += 1
        else:
            counts.graded += 1


def _mark(asked: Asked) -> Mark:
    return asked.key, asked.protocol, asked.sample
