"""The judge behind OpenAI's protocol, against a real server that misbehaves: nothing lost, nothing asked twice."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import random
import re
import time
from pathlib import Path

import pytest
from misbehaving import FAULTS, Misbehaving
from PIL import Image
from stores import filled, jobs

import nnsight_dream as nd
from nnsight_dream.judges.desk import BudgetReached, JudgeStopped
from nnsight_dream.judges.examine import plan_calls
from nnsight_dream.judges.openai import GIVE_UP, data_url
from nnsight_dream.judges.openai_faults import seconds_of
from nnsight_dream.judges.tally import grader_agreement

KEY = "sk-test-0123456789-abcdefghij"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


def judge(server: Misbehaving, **options) -> nd.OpenAIJudge:
    told = dict(base_url=server.url, api_key=KEY, samples=1, backoff=0.001, timeout=20.0, side=32)
    return nd.OpenAIJudge("looker", grader="grader", **{**told, **options})


def rows(store: nd.Store, what: str, name: str = "looker") -> list[dict]:
    return [r for e in store.entries() for r in store.answers(e.key, name) if r["what"] == what]


def texts(folder: Path) -> str:
    return "".join(p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file())


def test_the_papers_protocol(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    with Misbehaving() as server:
        one = judge(server, samples=2, temperature=0.5, extra={"seed": 7}, grader_extra={"reasoning_effort": "low"})
        summary = nd.examine(store, one, progress=False)
    asks = [r["body"] for r in server.requests if r["role"] == "ask"]
    grades = [r["body"] for r in server.requests if r["role"] == "grade"]
    assert (len(asks), len(grades)) == (3 * 2 * 2, 3 * 2 * 2 * 2)  # two protocols, two samples; own and another's
    assert (summary.asked, summary.graded, summary.failed) == (12, 24, 0)
    assert {a["messages"][0]["content"][0]["text"] for a in asks} == {
        "What is in the image if you had to guess? One word.",
        "What animal is in the image if you had to guess? One word.",
    }
    assert all((a["model"], a["temperature"], a["seed"]) == ("looker", 0.5, 7) for a in asks)
    assert all(g["reasoning_effort"] == "low" and "temperature" not in g and "seed" not in g for g in grades)
    told = next(t for g in grades if "What is in" in (t := g["messages"][0]["content"]))
    assert re.search(r"You are evaluating a model that answered a question \(REQUEST\) about an image\.", told)
    assert told.endswith('End your answer with "Result: 0" or "Result: 1", depending on the score.')
    assert "<BEGIN REQUEST> What is in the image if you had to guess? One word. <END REQUEST>" in told
    for row in nd.results(store):
        assert (row["score"], row["shuffled"], row["answers"]) == (1.0, 0.0, 2)
    answer = rows(store, "answer")[0]
    assert answer["raw"]["choices"][0]["message"]["content"] == answer["text"] != ""
    assert answer["raw"]["model"] == "looker-2025"
    assert (one.calls, one.tokens) == (36, {"in": 3600, "out": 360})
    assert not one.faults


def test_more_than_a_hundred_faults_each_accounted_for(tmp_path: Path) -> None:
    names = ("octopus", "frog", "bee", "dog", "winter")
    store = filled(tmp_path, [j for layer in (1, 2, 3) for j in jobs(names, layer=layer)])
    common = ["429", "429 wait", "500", "503", "503 wait"]
    common += ["connection", "html", "cut body", "empty choices", "error in answer"]
    chance, asks = random.Random(0), itertools.count()
    kinds = {"ask": itertools.cycle(common), "grade": itertools.cycle([*common, "no result", "refusal"])}

    def order(role: str, nth: int) -> str:
        if role == "ask" and next(asks) in (5, 6, 25, 26):
            return "timeout"
        return next(kinds[role]) if chance.random() < 0.6 else ""

    with Misbehaving(order, wait=0.02) as server:
        one = judge(server, retries=60, timeout=1.5)
        summary = nd.examine(store, one, progress=False)
    assert sum(server.faults.values()) >= 100
    assert {FAULTS[k] for k in [*common, "timeout", "no result", "refusal"]} <= set(server.faults)
    assert one.faults == server.faults
    assert one.calls == len(server.requests) == sum(server.faults.values()) + 90
    assert server.served == {"ask": 30, "grade": 60}
    assert (summary.asked, summary.graded, summary.failed, summary.broken, summary.refusals) == (30, 60, 0, 0, 0)
    for entry in store.entries():
        said = [(r["protocol"], r["sample"]) for r in store.answers(entry.key, "looker") if r["what"] == "answer"]
        assert sorted(said) == [("hint", 0), ("strict", 0)]
    assert all((r["score"], r["shuffled"]) == (1.0, 0.0) for r in nd.results(store))


def test_cut_json_of_a_structured_grader(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    with Misbehaving(lambda role, nth: "cut json" if role == "grade" and nth < 2 else "") as server:
        one = judge(server, structured=True)
        nd.examine(store, one, progress=False)
    assert one.faults == server.faults == {"cut json": 2 * 12}
    form = next(r["body"] for r in server.requests if r["role"] == "grade")["response_format"]
    assert form["json_schema"]["strict"] is True
    assert form["json_schema"]["schema"]["properties"]["result"]["enum"] == [0, 1]
    assert {r["grader"] for r in rows(store, "grade")} == {"grader structured"}
    assert all((r["score"], r["shuffled"]) == (1.0, 0.0) for r in nd.results(store))


def test_both_forms_of_grading_can_be_compared(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    with Misbehaving() as server:
        nd.examine(store, judge(server), progress=False)
        server.requests.clear()
        summary = nd.examine(store, judge(server, structured=True), progress=False)
    assert {r["role"] for r in server.requests} == {"grade"}
    assert (summary.asked, summary.graded, summary.there) == (0, 12, 6)
    told = grader_agreement(store, "looker", "grader", "grader structured")
    assert (told.n, told.share, told.kappa) == (12, 1.0, 1.0)


@pytest.mark.parametrize(
    ("fault", "kind", "left"),
    [("refusal", "refusal", 1), ("blank", "empty", 1), ("censored", "refusal", 1), ("empty choices", "broken", 4)],
)
def test_answers_that_are_none_are_kept_apart(tmp_path: Path, fault: str, kind: str, left: int) -> None:
    store = filled(tmp_path, jobs(("octopus",)))
    with Misbehaving(lambda role, nth: fault) as server:
        one = judge(server, retries=3)
        summary = nd.examine(store, one, protocols=["strict"], progress=False)
    (row,) = rows(store, "answer")
    assert row["kind"] == kind
    assert row["raw"]
    assert rows(store, "grade") == []
    assert {"refusal": summary.refusals, "empty": summary.empty, "broken": summary.broken}[kind] == 1
    assert len(server.requests) == left
    assert one.faults == server.faults
    told = nd.results(store)[0]
    assert (told["score"], told["answers"]) == (None, 0)
    with Misbehaving() as mended:  # a refusal is the judge's word; the others said nothing, and are asked for again
        again = nd.examine(store, judge(mended), protocols=["strict"], progress=False)
        nd.examine(store, judge(mended), protocols=["strict"], progress=False)
    assert (again.asked, again.there, again.failed) == ((0, 1, 0) if kind == "refusal" else (1, 0, 0))
    assert mended.served["ask"] == again.asked
    (told,) = nd.results(store)
    assert (told["score"], told[{"refusal": "refusals"}.get(kind, kind)]) == (
        (None, 1) if kind == "refusal" else (1, 0)
    )


def test_a_refusal_in_plain_words_is_no_no(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs(("octopus",)))
    with Misbehaving() as server:
        server.says = lambda concept, question: "I'm sorry, but I can't help with that."
        one = judge(server)
        nd.examine(store, one, protocols=["strict"], progress=False)
    assert (nd.results(store)[0]["refusals"], nd.results(store)[0]["score"]) == (1, None)
    assert one.faults == {"refusal": 1}


def test_a_grade_that_cannot_be_read_is_broken(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs(("octopus",)))
    with Misbehaving(lambda role, nth: "no result" if role == "grade" else "") as server:
        summary = nd.examine(store, judge(server, retries=2), protocols=["strict"], progress=False)
    (row,) = rows(store, "grade")
    assert row["score"] is None
    assert row["raw"]["choices"][0]["message"]["content"] == "I think that it fits."
    assert (summary.broken_grades, summary.graded) == (1, 0)
    assert len(server.requests) == 1 + 3
    assert (nd.results(store)[0]["score"], nd.results(store)[0]["broken_grades"]) == (None, 1)
    with Misbehaving() as mended:
        again = nd.examine(store, judge(mended), protocols=["strict"], progress=False)
        nd.examine(store, judge(mended), protocols=["strict"], progress=False)
    assert (again.asked, again.graded, mended.served) == (0, 1, {"grade": 1})
    assert (nd.results(store)[0]["score"], nd.results(store)[0]["broken_grades"]) == (1, 0)


def test_the_network_fails_for_some(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    with Misbehaving() as server:
        bad = itertools.count()
        server.order = lambda role, nth: "500" if role == "ask" and next(bad) < 6 else ""
        one = judge(server, retries=2, concurrency=1)  # the first two questions fail thrice
        summary = nd.examine(store, one, progress=False)
        assert (summary.asked, summary.failed, one.faults) == (4, 2, {"500": 6})
        assert not summary.ok
        assert "500" in str(summary)
        again = nd.examine(store, one, progress=False)
    assert (again.asked, again.there, again.failed) == (2, 4, 0)
    assert server.served["ask"] == 6


def test_nothing_at_all(tmp_path: Path) -> None:
    store = filled(tmp_path, [j for layer in range(1, 12) for j in jobs(layer=layer)])
    with Misbehaving(lambda role, nth: "503") as server:
        with pytest.raises(JudgeStopped, match="answered none of 66 questions") as stop:
            nd.examine(store, judge(server, retries=1, concurrency=2), progress=False)
        assert stop.value.summary.failed == 66
        assert len(server.requests) <= 2 * (GIVE_UP + 2)  # it does not go on for ever
    with pytest.raises(JudgeStopped, match="connection failed"):  # the server is gone
        nd.examine(store, judge(server, retries=1), progress=False)
    assert texts(tmp_path / "jobs").count('"answer"') == 0


@pytest.mark.parametrize(
    ("fault", "advice"),
    [("401", "OPENAI_API_KEY"), ("404", "model="), ("quota", "no credit left"), ("tomorrow", "wait 86400 s")],
)
def test_faults_that_end_it(tmp_path: Path, fault: str, advice: str) -> None:
    store = filled(tmp_path, jobs())
    asks = itertools.count()
    with Misbehaving(lambda role, nth: fault if role == "ask" and next(asks) >= 2 else "") as server:
        one = judge(server, concurrency=1)
        with pytest.raises(JudgeStopped, match=advice) as stop:
            nd.examine(store, one, progress=False)
        assert one.faults == server.faults == {FAULTS[fault]: 1}
        assert (stop.value.summary.asked, stop.value.summary.graded, stop.value.summary.failed) == (2, 4, 4)
        assert "2 asked" in str(stop.value)
        assert KEY not in str(stop.value)
        server.order = lambda role, nth: ""
        nd.examine(store, one, progress=False)
    assert server.served == {"ask": 6, "grade": 12}


def test_a_wrong_request_is_not_repeated(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs(("octopus",)))
    with Misbehaving(lambda role, nth: "400") as server, pytest.raises(JudgeStopped, match="says 400"):
        nd.examine(store, judge(server), protocols=["strict"], progress=False)
    assert len(server.requests) == 1


def test_budget_of_calls(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    with Misbehaving() as server:
        with pytest.raises(BudgetReached, match="max_calls=7"):
            nd.examine(store, judge(server, max_calls=7), progress=False)
        assert len(server.requests) == 7
        assert len(rows(store, "answer")) + len(rows(store, "grade")) == 7
        nd.examine(store, judge(server, max_calls=11), progress=False)  # just enough for the rest
    assert server.served == {"ask": 6, "grade": 12}


def test_budget_of_money(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    prices = {"looker": (100.0, 1000.0), "grader": (10.0, 100.0)}  # 0.57 and 0.057 dollars a call
    with Misbehaving() as server:
        server.usage = (700, 500)
        one = judge(server, max_cost=0.5, prices=prices)
        with pytest.raises(BudgetReached, match=r"may cost \$0\.57"):
            nd.examine(store, one, progress=False)
        assert not server.requests
        one = judge(server, max_cost=2.0, prices=prices, concurrency=1)
        with pytest.raises(BudgetReached, match=r"max_cost=2 is reached: \$1.9950 is spent .* 3 asked, 5 graded"):
            nd.examine(store, one, progress=False)
        assert one.cost == pytest.approx(3 * 0.57 + 5 * 0.057)
        assert (one.estimate(1, 0), one.estimate(0, 1)) == (pytest.approx(0.57), pytest.approx(0.057))
        nd.examine(store, judge(server), progress=False)
    assert server.served == {"ask": 6, "grade": 12}


def test_money_is_set_aside_for_calls_under_way(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    with Misbehaving() as server:
        server.usage = (700, 500)
        one = judge(server, max_cost=1.2, prices={"looker": (100.0, 1000.0), "grader": (0.0, 0.0)}, concurrency=8)
        with pytest.raises(BudgetReached):
            nd.examine(store, one, progress=False)
    assert server.served["ask"] == 2
    assert one.cost == pytest.approx(2 * 0.57)


def test_plan(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    one = nd.OpenAIJudge(samples=10)
    plan = plan_calls(105 * 7, one)
    assert (plan.asking, plan.grading) == (14_700, 29_400)
    assert 20 < plan.cost < 500
    assert plan_calls(10, nd.OpenAIJudge("some model")).cost is None
    told = plan_calls(store, one, ["strict", "written"])
    assert (told.asking, told.grading) == (60, 60)  # what is written is compared here


def test_retry_after_is_honoured_by_all(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    orders = itertools.count()
    with Misbehaving(lambda role, nth: "429 wait" if next(orders) == 0 else "", wait=0.5) as server:
        nd.examine(store, judge(server, concurrency=2), protocols=["strict"], progress=False)
    first, rest = server.requests[0]["at"], [r["at"] for r in server.requests[3:]]
    assert min(rest) - first >= 0.49
    assert server.served == {"ask": 3, "grade": 6}


def test_what_retry_after_may_hold() -> None:
    assert seconds_of({"retry-after": "7"}) == 7
    assert seconds_of({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert seconds_of({"retry-after": date}) == pytest.approx(30, abs=2)
    assert seconds_of({"retry-after": "-3"}) == 0
    assert seconds_of({}) is seconds_of({"retry-after": "soon"}) is None


def test_calls_at_once_are_limited(tmp_path: Path) -> None:
    store = filled(tmp_path, [j for layer in (1, 2, 3) for j in jobs(layer=layer)])
    with Misbehaving() as server:
        says = server.says

        def slowly(concept: str, question: str) -> str:
            time.sleep(0.05)
            return says(concept, question)

        server.says = slowly
        nd.examine(store, judge(server, concurrency=3), progress=False)
    assert server.most_busy == 3


def test_killed_in_between_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, jobs())
    add, calls = nd.Store.add_answers, itertools.count()

    def full(self, *told) -> None:
        if next(calls) >= 5:  # a full disk stays full
            raise OSError(28, "No space left on device")
        add(self, *told)

    monkeypatch.setattr(nd.Store, "add_answers", full)
    with Misbehaving() as server, pytest.raises(OSError, match="No space left"):
        nd.examine(store, judge(server), progress=False)
    kept = len(rows(store, "answer")), len(rows(store, "grade"))
    assert sum(kept) == 5
    monkeypatch.setattr(nd.Store, "add_answers", add)
    with Misbehaving() as server:  # a fresh one: the first may still be busy with what was broken off
        summary = nd.examine(store, judge(server), progress=False)
        assert server.served == {"ask": 6 - kept[0], "grade": 12 - kept[1]}
        assert summary.there == kept[0]
        nd.examine(store, judge(server), progress=False)
        assert len(server.requests) == 18 - sum(kept)
    assert all((r["score"], r["shuffled"]) == (1.0, 0.0) for r in nd.results(store))


def test_an_interrupt_leaves_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import concurrent.futures

    store = filled(tmp_path, jobs())
    wait = concurrent.futures.wait

    def interrupted(futures, timeout):
        done = wait(futures, 0.05)
        if len(rows(store, "answer")) >= 2:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(concurrent.futures, "wait", interrupted)
    with Misbehaving(lambda role, nth: "timeout" if len(server.requests) > 4 else "") as server:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            nd.examine(store, judge(server, concurrency=2), progress=False)
        assert time.monotonic() - began < 10
        assert len(rows(store, "answer")) >= 2


def test_from_a_running_event_loop(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())

    async def cell() -> int:
        return nd.examine(store, judge(server), progress=False).asked

    with Misbehaving() as server:
        assert asyncio.run(cell()) == 6


def test_the_key_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, capsys) -> None:
    store = filled(tmp_path, jobs())
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")  # as read from a file
    asks = itertools.count()
    with Misbehaving(lambda role, nth: "500" if next(asks) % 3 == 0 else "") as server, caplog.at_level(logging.DEBUG):
        server.says = lambda concept, question: f"{concept}, and your key is {KEY}"
        one = judge(server, api_key=None)
        nd.examine(store, one, progress=True)
        assert {r["key"] for r in server.requests} == {f"Bearer {KEY}"}
        server.order = lambda role, nth: "401"
        with pytest.raises(JudgeStopped) as stop:
            nd.examine(store, one, protocols=["written"], progress=False)
    out = capsys.readouterr()
    for said in (texts(tmp_path), str(stop.value), repr(stop.value), repr(one), str(vars(one)), str(vars(one.caller))):
        assert KEY not in said
    assert "your key is [key]" in texts(tmp_path)
    assert KEY not in caplog.text + out.out + out.err


def test_no_key(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    with pytest.raises(JudgeStopped, match="set OPENAI_API_KEY or pass api_key="):
        nd.examine(store, nd.OpenAIJudge(), progress=False)
    with Misbehaving() as server:
        nd.examine(store, judge(server, api_key=None), progress=False)  # a server of one's own needs none
    assert {r["key"] for r in server.requests} == {"Bearer none"}


def test_written_needs_no_grader(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    with Misbehaving() as server:
        server.says = lambda concept, question: "O C T O P U S" if concept == "octopus" else "none"
        nd.examine(store, judge(server), protocols=["written"], progress=False)
    assert {r["role"] for r in server.requests} == {"ask"}
    assert {r["concept"]: r["written"] for r in nd.results(store)} == {"octopus": 1.0, "frog": 0.0, "bee": 0.0}


@pytest.mark.parametrize(("size", "sent"), [((24, 24), (64, 64)), ((20, 10), (64, 32)), ((100, 80), (100, 80))])
def test_pictures_as_they_are_sent(size: tuple[int, int], sent: tuple[int, int]) -> None:
    import io

    image = Image.new("RGB", size, (10, 20, 30))
    image.putpixel((0, 0), (250, 250, 250))
    head, data = data_url(image, 64).split(",")
    assert head == "data:image/png;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (shown.size, shown.mode, shown.getpixel((sent[0] - 1, sent[1] - 1))) == (sent, "RGB", (10, 20, 30))
    expected = image if size == sent else image.resize(sent, Image.Resampling.BICUBIC)
    assert shown.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"samples": 0}, "samples=0"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"retries": -1}, "retries=-1"),
        ({"timeout": 0}, "timeout=0"),
        ({"backoff": -1.0}, "backoff"),
        ({"extra": {"model": "x"}}, "may not hold 'model'"),
        ({"grader_extra": {"stream": True}}, "may not hold 'stream'"),
        ({"model": "mine", "max_cost": 1.0}, "what 'mine' costs: pass prices="),
    ],
)
def test_arguments(options: dict, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        nd.OpenAIJudge(**options)


def test_rows_are_plain_json(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs(("octopus",)))
    with Misbehaving() as server:
        nd.examine(store, judge(server), progress=False)
    for row in rows(store, "answer") + rows(store, "grade"):
        assert json.loads(json.dumps(row)) == row
