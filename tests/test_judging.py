"""Judging a store: what is asked, kept, counted, compared by chance, resumed and added up."""

from __future__ import annotations

import collections
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import concept_of, filled, jobs

import nnsight_dream as nd
from nnsight_dream.judges import questions
from nnsight_dream.judges.desk import JudgeStopped, answer_row, grade_row
from nnsight_dream.judges.examine import Calls, examine, plan_calls
from nnsight_dream.judges.tally import Agreement, grader_agreement, results
from nnsight_dream.sweeps.jobs import Job
from nnsight_dream.sweeps.store import Store


class Fake:
    """Says what `says(asked)` gives: a text, or None to fail; grades by equality; notes all that it was asked."""

    protocols = ("strict", "hint", "written")

    def __init__(self, says: Callable[..., str | None] = lambda a: a.concept, samples: int = 1, name: str = "fake"):
        self.says, self.samples, self.name, self.grader = says, samples, name, "equality"
        self.asked: list[tuple[str, str, int]] = []
        self.graded: list[tuple[str, str, int, str]] = []

    def examine(self, asked, keep) -> None:
        for one in asked:
            row = one.answer
            if row is None:
                self.asked.append((one.key, one.protocol, one.sample))
                text = self.says(one)
                if text is None:
                    keep(one, {"what": "failed", "error": "no connection"})
                    continue
                row = answer_row(one, text, questions.kind_of(text), {"text": text}, "fake-1")
                keep(one, row)
            if row["kind"] == "answer":
                for concept in one.grade_as:
                    self.graded.append((one.key, one.protocol, one.sample, concept))
                    keep(one, grade_row(one, concept, int(row["text"] == concept), None, self.grader))


def rows(store: Store, what: str, judge: str = "fake") -> list[dict]:
    return [r for e in store.entries() for r in store.answers(e.key, judge) if r["what"] == what]


# -- what is asked -----------------------------------------------------------------------------------------------


def test_questions_are_the_papers() -> None:
    assert questions.question("strict") == "What is in the image if you had to guess? One word."
    assert questions.question("hint", "school subject") == (
        "What school subject is in the image if you had to guess? One word."
    )
    for wrong, error in ((("loose",), "allowed are strict, hint, written"), (("hint",), "a hint needs a category")):
        with pytest.raises(ValueError, match=error):
            questions.question(*wrong)


def test_rubric_is_the_papers() -> None:
    said = " ".join(questions.rubric("Q {concept}?", "A {request}", "octopus").split())
    assert said == (
        "Please carefully read the following user request (denoted as 'REQUEST') and response (denoted as 'RESPONSE'). "
        "<BEGIN REQUEST> Q {concept}? <END REQUEST> <BEGIN RESPONSE> A {request} <END RESPONSE> "
        "You are evaluating a model that answered a question (REQUEST) about an image. Analyze the RESPONSE, then score "
        "it according to the following rubric: 0: In the span of the answer, the model doesn't mention it sees 'octopus' "
        "in the image. E.g. it mentions other concepts, but not 'octopus'. 1: In the span of the answer, the model does "
        "mention it sees 'octopus' in the image. Either it does so explicitly, or it is clear from the context of the "
        "REQUEST and the content of the RESPONSE. It is okay if it mentions other things in addition to 'octopus'. "
        'End your answer with "Result: 0" or "Result: 1", depending on the score.'
    )


@pytest.mark.parametrize(
    ("text", "score"),
    [("Result: 1", 1), ("so **Result:** 0.", 0), ("Result: 0? No. Result: 1", 1), ("Result: 10", None), ("1", None)],
)
def test_results_in_a_text(text: str, score: int | None) -> None:
    assert questions.result(text) == score


@pytest.mark.parametrize(
    ("text", "names", "there"),
    [
        ("OCTOPUS!", ["octopus"], True),
        ("two octopuses", ["octopus"], True),
        ("San-Francisco", ["san francisco"], True),
        ("trex", ["T-rex"], True),
        ("a bee's wing", ["bee"], True),
        ("wolves", ["wolf"], True),
        ("Café", ["cafe"], True),
        ("Spring", ["spring (season)"], True),
        ("chipmunk", ["squirrel", "chipmunk"], True),
        ("日本", ["日本"], True),
        ("catfish", ["cat"], False),
        ("san diego", ["san francisco"], False),
        ("bus", ["bu"], False),
        ("", ["cat"], False),
        ("...", ["!"], False),
    ],
)
def test_words_that_name(text: str, names: list[str], there: bool) -> None:
    assert questions.mentions(text, names) is there


@pytest.mark.parametrize(
    ("text", "there"),
    [("FROG", True), ("F R O G", True), ("frogfrog", True), ("none", False), ("frogger", False), ("a FROG pond", True)],
)
def test_letters_that_spell(text: str, there: bool) -> None:
    assert questions.spells(text, "frog") is there


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Octopus", "answer"),
        ("I can't tell.", "answer"),
        ("afraid", "answer"),
        ("none", "answer"),
        ("I’m sorry, but I can’t help with that.", "refusal"),
        ("Sorry, no.", "refusal"),
        ("I cannot identify people.", "refusal"),
        ("As an AI, I do not see.", "refusal"),
        (" \n", "empty"),
    ],
)
def test_kinds_of_answers(text: str, kind: str) -> None:
    assert questions.kind_of(text) == kind


# -- examining ---------------------------------------------------------------------------------------------------


def test_what_is_kept(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    seen = []

    def look(asked) -> str:
        seen.append((asked.concept, concept_of(asked.image())))
        return asked.concept

    summary = examine(store, Fake(look, samples=2), progress=False)
    assert all(a == b for a, b in seen)  # each was shown its own picture
    assert (summary.asked, summary.graded, summary.there, summary.failed) == (12, 24, 0, 0)
    assert summary.ok
    key = next(store.keys())
    (first, *_), name = store.answers(key, "fake"), next(store.entries()).job.concept
    assert (
        first.items()
        >= {
            "what": "answer",
            "protocol": "strict",
            "sample": 0,
            "question": "What is in the image if you had to guess? One word.",
            "text": name,
            "kind": "answer",
            "raw": {"text": name},
            "model": "fake-1",
        }.items()
    )
    grade = store.answers(key, "fake")[1]
    assert grade.items() >= {"what": "grade", "protocol": "strict", "sample": 0, "concept": name, "score": 1}.items()
    assert grade["grader"] == "equality"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", first["when"])
    assert [len(store.answers(e.key, "fake")) for e in store.entries()] == [12] * 3  # 4 answers and 8 grades each


def test_a_hint_needs_a_category(tmp_path: Path) -> None:
    store = filled(tmp_path, [*jobs(("octopus",)), *jobs(("frog",), category="")])
    fake = Fake()
    summary = examine(store, fake, progress=False)
    assert summary.unable == 1
    assert "1 cannot answer" in str(summary)
    assert sorted(p for _, p, _ in fake.asked) == ["hint", "strict", "strict"]


def test_what_a_judge_does_not_know_it_is_not_asked(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs(("octopus", "frog", "bee")))
    fake = Fake()
    fake.able = lambda concept, category, protocol: concept != "bee"
    assert examine(store, fake, progress=False).unable == 2
    assert len(fake.asked) == 4
    assert {c for *_, c in fake.graded} == {"octopus", "frog"}  # nor is its word the control of another


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    said = []

    def until(asked) -> str:
        if len(said) == 4:
            raise KeyboardInterrupt
        said.append(asked)
        return asked.concept

    with pytest.raises(KeyboardInterrupt):
        examine(store, Fake(until), progress=False)
    assert len(rows(store, "answer")) == 4
    second = Fake()
    summary = examine(store, second, progress=False)
    assert (summary.asked, summary.there) == (2, 4)
    third = Fake()
    summary = examine(store, third, progress=False)
    assert (third.asked, third.graded, summary.there, summary.asked) == ([], [], 6, 0)
    assert set(collections.Counter((r["protocol"], r["text"]) for r in rows(store, "answer")).values()) == {1}


def test_an_answer_without_its_grade_is_graded_alone(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    examine(store, Fake(), shuffled=False, progress=False)
    more = Fake()
    summary = examine(store, more, progress=False)
    assert more.asked == []
    assert len(more.graded) == summary.graded == 6  # the other picture's word


def test_failures_are_reported_and_left_open(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    summary = examine(store, Fake(lambda a: None if a.concept == "bee" else a.concept), progress=False)
    assert (summary.asked, summary.failed, summary.errors) == (4, 2, {"no connection": 2})
    assert "2 failed (2 x no connection)" in str(summary)
    assert not summary.ok
    assert examine(store, Fake(), progress=False).asked == 2


def test_a_judge_that_answers_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    with pytest.raises(JudgeStopped, match="fake answered none of 6 questions: 6 x no connection") as stop:
        examine(store, Fake(lambda a: None), progress=False)
    assert stop.value.summary.failed == 6


def test_a_judge_that_stops(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())

    def until(asked) -> str:
        if rows(store, "answer"):
            raise JudgeStopped("no money")
        return asked.concept

    with pytest.raises(JudgeStopped, match="no money; stored: 1 asked, 2 graded") as stop:
        examine(store, Fake(until), progress=False)
    assert stop.value.summary.failed == 5


def test_refusals_are_never_a_no(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    said = {"octopus": "I'm sorry, I can't say.", "frog": "", "bee": "bee"}
    fake = Fake(lambda a: said[a.concept])
    summary = examine(store, fake, protocols="strict", progress=False)
    assert (summary.asked, summary.refusals, summary.empty, summary.failed) == (3, 1, 1, 0)
    told = {r["concept"]: r for r in results(store)}
    assert (told["octopus"]["score"], told["octopus"]["refusals"], told["octopus"]["answers"]) == (None, 1, 0)
    assert (told["frog"]["score"], told["frog"]["empty"], told["frog"]["top"]) == (None, 1, "")
    assert (told["bee"]["score"], told["bee"]["top"]) == (1.0, "bee")
    assert {key for key, *_ in fake.graded} == {r["key"] for r in results(store) if r["concept"] == "bee"}


def test_rows_that_nobody_asked_for(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs(("octopus",)))

    class Twice(Fake):
        def examine(self, asked, keep) -> None:
            row = answer_row(asked[0], "x", "answer", "x", "m")
            keep(asked[0], row)
            keep(asked[0], row)

    with pytest.raises(ValueError, match="was not asked for, or is there already"):
        examine(store, Twice(), protocols=["strict"], progress=False)
    assert len(rows(store, "answer")) == 1
    with pytest.raises(ValueError, match="allowed are answer, refusal, empty, broken"):
        answer_row(None, "x", "good", "x", "m")


def test_arguments(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    fake = Fake()
    fake.protocols = ("strict", "hint")
    with pytest.raises(ValueError, match="asks for 'written'; fake answers strict, hint"):
        examine(store, fake, protocols=["strict", "written"])
    with pytest.raises(ValueError, match="asks for nothing"):
        examine(store, fake, protocols=[])
    with pytest.raises(ValueError, match="holds 'nothing', which is no finished job"):
        examine(store, fake, keys=["nothing"])
    with pytest.raises(FileNotFoundError, match="is no store"):
        examine(tmp_path / "elsewhere", fake)
    key = next(store.keys())
    assert examine(str(tmp_path), fake, keys=[key], progress=False).asked == 2
    assert {k for k, *_ in fake.asked} == {key}
    with store.claim("judge fake"), pytest.raises(RuntimeError, match="another process lets 'fake' examine"):
        examine(store, fake)


def test_a_bar_counts_questions(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    examine(filled(tmp_path, jobs()), Fake(), progress=True)
    assert "6/6" in capsys.readouterr().err


# -- chance level ------------------------------------------------------------------------------------------------


def shuffles(store: Store) -> dict[str, str]:
    of = {e.key: e.job.concept for e in store.entries()}
    pairs = {}
    for key, own in of.items():
        others = {r["concept"] for r in store.answers(key, "fake") if r["what"] == "grade"} - {own}
        assert len(others) <= 1
        for other in others:
            pairs[own] = other
    return pairs


def test_shuffled_pairs_are_a_derangement_within_a_category(tmp_path: Path) -> None:
    animals = jobs(("octopus", "frog", "bee", "dog", "squirrel"))
    store = filled(tmp_path / "a", [*animals, *jobs(("winter", "spring (season)"), "season")])
    fake = Fake()
    examine(store, fake, progress=False)
    pairs = shuffles(store)
    assert {pairs[a.concept] for a in animals} == {a.concept for a in animals}
    assert all(a != b for a, b in pairs.items())
    assert (pairs["winter"], pairs["spring (season)"]) == ("spring (season)", "winter")
    again = filled(tmp_path / "b", reversed([*animals, *jobs(("winter", "spring (season)"), "season")]))
    examine(again, Fake(), progress=False)
    assert shuffles(again) == pairs
    for row in results(store):
        assert (row["score"], row["shuffled"]) == (1.0, 0.0)


def test_pairs_stay_when_jobs_are_added(tmp_path: Path) -> None:
    examine(filled(tmp_path, jobs()), Fake(), progress=False)
    store = filled(tmp_path, jobs(("octopus", "frog", "bee", "dog", "squirrel")))
    before = {k: v for k, v in shuffles(store).items() if k in ("octopus", "frog", "bee")}
    fake = Fake()
    examine(store, fake, progress=False)
    assert len(fake.asked) == 4
    assert shuffles(store).items() >= before.items()  # no third word for pictures that have two


def test_one_alone_has_no_other(tmp_path: Path) -> None:
    store = filled(tmp_path, [*jobs(("octopus",)), *jobs(("frog",), layer=2)])
    examine(store, Fake(), progress=False)
    assert shuffles(store) == {}
    assert {r["shuffled"] for r in results(store)} == {None}


def test_controls_are_judged_like_all_others(tmp_path: Path) -> None:
    store = filled(tmp_path, [*jobs(), Job("octopus", "animal", 1, control="random")])
    examine(store, Fake(lambda a: "frog"), progress=False)
    told = [r for r in results(store) if r["control"]]
    assert [(r["concept"], r["score"], r["top"]) for r in told] == [("octopus", 0.0, "frog")] * 2


# -- written -----------------------------------------------------------------------------------------------------


def test_written_and_drawn(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    written = {"octopus": "OCTOPUS", "frog": "none", "bee": "dog"}
    fake = Fake(lambda a: written[a.concept] if a.protocol == "written" else a.concept)
    examine(store, fake, protocols=["strict"], progress=False)
    assert all(r["written"] is None and r["drawn"] is None for r in results(store))
    graded = len(fake.graded)
    examine(store, fake, protocols=["strict", "written"], shuffled=False, progress=False)
    assert len(fake.graded) == graded  # letters are compared without the judge
    told = {(r["concept"], r["protocol"]): r for r in results(store)}
    assert [told[c, "strict"]["written"] for c in written] == [1.0, 0.0, 0.0]
    assert [told[c, "strict"]["drawn"] for c in written] == [0.0, 1.0, 1.0]
    assert [told[c, "written"]["score"] for c in written] == [1.0, 0.0, 0.0]
    assert {told[c, "written"]["drawn"] for c in written} == {None}
    asked = len(fake.asked)
    summary = examine(store, fake, protocols=["written"], progress=False)  # now with the shuffled words
    assert (len(fake.asked), summary.asked, summary.graded, summary.failed) == (asked, 0, 3, 0)
    assert {r["grader"] for r in rows(store, "grade") if r["protocol"] == "written"} == {"words"}
    assert [told[c, "written"]["shuffled"] for c in written] == [None] * 3
    assert sum(r["shuffled"] for r in results(store) if r["protocol"] == "written") <= 1


# -- adding up ---------------------------------------------------------------------------------------------------


def test_results_by_hand(tmp_path: Path) -> None:
    store = filled(tmp_path, [Job("octopus", "animal", 3, seed=2, pooling="mean")])
    said = iter(["octopus", "Frog", "frog.", "octopus", "", "Sorry, no", "frog"])
    examine(store, Fake(lambda a: next(said), samples=7), protocols=["hint"], progress=False)
    (row,) = results(store)
    key = next(store.keys())
    assert row == dict(
        key=key, concept="octopus", category="animal", layer=3, seed=2, control="", pooling="mean", judge="fake",
        protocol="hint", grader="equality", answers=5, score=2 / 5, shuffled=None, refusals=1, empty=1, broken=0,
        broken_grades=0, top="Frog", written=None, drawn=None, model="tiny @ abc", settings=row["settings"],
        reach=None, reach_cut=None, reached=None,
    )  # fmt: skip
    assert row["settings"].startswith("3 steps, ")


def test_two_graders(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    examine(store, Fake(), progress=False)
    other = Fake()
    other.grader = "contrary"
    grade = lambda a, keep: [keep(a, grade_row(a, c, int(c == "bee"), None, "contrary")) for c in a.grade_as]  # noqa: E731
    other.examine = lambda asked, keep: [grade(a, keep) for a in asked]
    summary = examine(store, other, progress=False)
    assert (summary.asked, summary.graded, summary.there) == (0, 12, 6)
    assert {r["score"] for r in results(store)} == {1.0}  # the first to grade
    assert {r["concept"]: r["score"] for r in results(store, grader="contrary")} == {"octopus": 0, "frog": 0, "bee": 1}
    told = grader_agreement(store, "fake", "equality", "contrary")
    # of 6 pairs of picture and word at each protocol: 3 right ones (1, 1, 1 against 0, 0, 1), 3 shuffled (0, 0, 0
    # against 1 once): 3 of 6 agree
    assert (told.n, told.share) == (12, 0.5)
    chance = 1 / 2 * 1 / 3 + 1 / 2 * 2 / 3
    assert told.kappa == pytest.approx((0.5 - chance) / (1 - chance))
    assert grader_agreement(store, "fake", "equality", "nobody").n == 0


def test_agreement_of_judges_by_hand(tmp_path: Path) -> None:
    names = ("octopus", "frog", "bee", "dog", "squirrel")
    store = filled(tmp_path, jobs(names))
    yes = {"a": ("octopus", "frog", "bee"), "b": ("octopus", "frog", "dog"), "all": names}
    for judge, known in yes.items():
        said = lambda a, known=known: a.concept if a.concept in known else "" if a.concept == "squirrel" else "?"  # noqa: E731
        examine(store, Fake(said, name=judge), protocols=["strict"], progress=False)
    told = nd.agreement(store, "a", "b", "strict")
    # of squirrel neither said anything; both yes twice, a alone once, b alone once, both no never
    assert (told.n, told.share) == (4, 0.5)
    assert told.kappa == pytest.approx((0.5 - 0.625) / (1 - 0.625))
    assert nd.agreement(store, "all", "all", "strict") == Agreement(5, 1.0, None)
    assert nd.agreement(store, "a", "b", "hint").n == 0
    with pytest.raises(ValueError, match="'c' has answered nothing in this store; judges that have: a, all, b"):
        nd.agreement(store, "a", "c", "strict")
    with pytest.raises(ValueError, match="allowed are strict"):
        nd.agreement(store, "a", "b", "loose")


def test_a_plan_tells_what_will_be_asked(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    fake = Fake(samples=2)
    protocols = ["strict", "hint", "written"]
    plan = plan_calls(store, fake, protocols)
    assert (plan, str(plan)) == (Calls(18, 24, 0.0), "18 questions, 24 comparisons, about $0.00")
    assert plan_calls(3, fake, protocols) == plan
    assert plan_calls(3, fake, protocols, shuffled=False).grading == 12
    examine(store, fake, protocols=protocols, progress=False)
    assert (len(fake.asked), len(fake.graded)) == (18, 24)
    assert plan_calls(tmp_path, fake, protocols) == Calls(0, 0, 0.0)
    fake.estimate = lambda asking, grading: None
    assert "cost unknown" in str(plan_calls(1, fake))


def test_import_is_light() -> None:
    heavy = "('torch', 'transformers', 'openai', 'numpy', 'PIL')"
    code = f"import sys, nnsight_dream.judges.examine; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
