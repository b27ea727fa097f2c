"""What other models and servers say, at its worst: thinking, halves of characters, nonsense; keys and redirects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from misbehaving import Misbehaving
from PIL import Image
from stores import filled, jobs
from test_openai_judge import judge, rows, texts

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.io import secrets as keys
from nnsight_dream.io.json_values import plain
from nnsight_dream.judges import questions
from nnsight_dream.judges.desk import JudgeStopped, answer_row, grade_row
from nnsight_dream.judges.examine import plan_calls
from nnsight_dream.judges.openai_messages import answer_of, field_score, text_score
from nnsight_dream.judges.refusals import refuses
from nnsight_dream.judges.thinking import begun, spoken
from nnsight_dream.sweeps.store import Store


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


def completion(content: object, finish: str = "stop", **more: object) -> dict:
    return {"choices": [{"message": {"content": content, **more}, "finish_reason": finish}]}


# -- thinking ----------------------------------------------------------------------------------------------------

THINKING = [
    "<think>\nAn octopus, or a frog.\n</think>\n\nBee",
    "It may be a frog.</think>Bee",
    "<think>a <think>b</think> frog</think>Bee",
    "<THINKING>frog</THINKING> Bee",
    "<think >frog</think >Bee",
    "<think/>Bee",
    "&lt;think&gt;frog&lt;/think&gt;Bee",
    "<seed:think>frog</seed:think>Bee",
    "◁think▷frog◁/think▷Bee",
    "[THINK]frog[/THINK]Bee",
    "<|channel|>analysis<|message|>A frog<|end|><|start|>assistant<|channel|>final<|message|>Bee<|return|>",
    "analysisThe final answer may be frog.assistantfinalBee",
    "<|channel>thought\nfrog<channel|>Bee",
    "<|START_THINKING|>frog<|END_THINKING|><|START_RESPONSE|>Bee<|END_RESPONSE|>",
    "<think>frog</think><answer>Bee</answer>",
    "<think>frog</think><|begin_of_box|>Bee<|end_of_box|><|im_end|>",
    "Here is my thought process: frog Here is my response: Bee",
    "Bee",
]
UNFINISHED = [
    "<think>An octopus or a frog",
    "◁think▷ a frog",
    "[THINK]frog",
    "<|channel|>analysis<|message|>A frog",
    "analysisWe see a frog",
    "<|channel>thought\nfrog",
    "<thi",
    "<think>a</think><think>frog",
]


@pytest.mark.parametrize("text", THINKING)
def test_thinking_is_no_answer(text: str) -> None:
    assert spoken(text).text == "Bee"
    assert answer_of(completion(text)) == ("Bee", "answer")
    assert not questions.mentions(text, ["frog"])
    assert not questions.spells(text.replace("frog", "FROG"), "frog")
    assert questions.mentions(text, ["bee"])


@pytest.mark.parametrize("text", UNFINISHED)
def test_unfinished_thinking_is_broken(text: str) -> None:
    assert answer_of(completion(text, "length"))[1] == questions.kind_of(text) == "broken"
    assert not questions.mentions(text, ["frog"])


@pytest.mark.parametrize("text", ["Analysis", "thinking cap", "a <b> c", "Thought", "[1]", "<3", "finalist"])
def test_words_that_look_like_thinking(text: str) -> None:
    assert spoken(text) == (spoken(text).__class__(text))


def test_where_a_prompt_begins_thinking() -> None:
    assert begun("<|im_start|>assistant\n<think>\n") == "<think>"
    assert begun("<|im_start|>assistant\n<think>\n\n</think>\n\n") == begun("assistant\n") == ""


def test_thinking_is_no_grade() -> None:
    for text in (
        "<think>It would be Result: 1 if",
        "It fits: Result: 1 would be",
        "<think>Result: 1</think>",
        "Result: 1</think>",
    ):
        with pytest.raises(Exception, match=r"cut by length|no result"):
            text_score(completion(text, "length"))
    assert text_score(completion("<think>Result: 1, no.</think>It says bee. Result: 0")) == 0
    assert text_score(completion("It says bee. **Result: 0**", "length")) == 0
    assert field_score(completion('<think>{"result": 1}</think>```json\n{"result": 0}\n```')) == 0
    with pytest.raises(Exception, match="cut json"):
        field_score(completion("[" * 100_000))


def test_what_is_no_part_of_the_text() -> None:
    apart = [{"type": "thinking", "thinking": "frog"}, {"type": "text", "text": None}, {"type": "text", "text": "Bee"}]
    assert answer_of(completion(apart)) == ("Bee", "answer")
    assert answer_of(completion("Bee", reasoning_content="a frog")) == ("Bee", "answer")
    assert answer_of(completion(None, reasoning_content="a frog")) == ("", "empty")
    assert answer_of(completion(None, "length", reasoning_content="a frog")) == ("", "broken")
    assert answer_of(completion([{"type": "text", "text": None}])) == ("", "empty")
    assert answer_of(completion([{"type": "refusal", "refusal": "No."}])) == ("No.", "refusal")
    assert answer_of(completion("", "SAFETY"))[1] == "refusal"


@pytest.mark.parametrize("text", ["\u200b", "\u2060\ufeff", "\u3164", "\u2800 ", "\u00ad", " \u00a0\u3000", "\x00"])
def test_zero_width_is_empty(text: str) -> None:
    assert answer_of(completion(text)) == (text.strip(), "empty")


def test_an_answer_that_was_cut_is_no_no(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs(("octopus",)))
    with Misbehaving() as server:
        server.sends = lambda role, body: json.dumps(completion("The image shows a large pink", "length"))
        summary = nd.examine(store, judge(server), protocols=["strict"], progress=False)
    assert (summary.broken, summary.graded, len(server.requests)) == (1, 0, 1)
    assert "allow more tokens" in str(summary)
    assert (nd.results(store)[0]["score"], nd.results(store)[0]["broken"]) == (None, 1)


# -- refusals ----------------------------------------------------------------------------------------------------

REFUSALS = """I’m sorry, but I can’t help with that.|I'm afraid I can't do that.|I apologize, but I can't.
My apologies, I can't|Unfortunately, I cannot help.|I must respectfully decline.|I won't answer.|I refuse.
I'm not comfortable answering that.|Can't help with that.|This request violates our policy.|I'd rather not say.
I do not see an image.|No image was provided.|Please upload the image.|As a large language model, I|**I'm sorry**
The response was filtered due to the prompt|I see a person, but I can't help with identifying people
Lo siento, no puedo|Désolé, je ne peux pas|Tut mir leid, dabei kann ich nicht helfen.|Leider kann ich das nicht
Mi dispiace|Desculpe, não posso|Извините, я не могу|抱歉，我无法|对不起|我无法识别|申し訳ありませんが|すみません|죄송합니다
عذراً، لا أستطيع|מצטער|माफ़ कीजिए|Xin lỗi|Maaf, saya tidak bisa|Üzgünüm|Przepraszam|Het spijt me|Tyvärr|Beklager
Valitettavasti|ขออภัย|Λυπάμαι|Îmi pare rău|Sajnálom|Omlouvám se""".replace("\n", "|").split("|")
ANSWERS = """Octopus|I can't tell.|afraid|fear|Sadness|apology|none|No animal|No text|Not sure|Deja vu|Perdiz|Sorrel
jammer band|Help|Please|AI|Assistant|Non-fiction|I don't know|I see an octopus, although I cannot identify its species
The image is not clear|I would guess octopus|Blocked road|Prominent nose|Comet|不倒翁|无花果|遗憾|اسفنج|عذراء
I don't see anything in particular; maybe a frog.|I think I see an owl""".replace("\n", "|").split("|")


def test_refusals_in_many_words_and_languages() -> None:
    assert [text for text in REFUSALS if not refuses(text)] == []
    assert [text for text in ANSWERS if refuses(text)] == []
    assert [c.name for c in bundle.concepts() if any(map(refuses, (c.name, *c.aliases)))] == []


# -- what cannot be written --------------------------------------------------------------------------------------

HALF = '{"choices": [{"message": {"content": "OCTOPUS \\ud83d"}}]}'
DEEP = '{"choices": [{"message": {"content": "OCTOPUS"}}], "more": %s}'
BAD = {
    "half a character": HALF,
    "both halves apart": HALF.replace("\\ud83d", "\\udc19\\ud83d"),
    "deep": DEEP % ("[" * 500 + "]" * 500),
    "usage of 1e400": DEEP % '0, "usage": {"prompt_tokens": 1e400, "completion_tokens": 1e400}',
    "usage below zero": DEEP % '0, "usage": {"prompt_tokens": -1e9, "completion_tokens": 5}',
    "usage beyond all": DEEP % f'0, "usage": {{"prompt_tokens": 1{"0" * 400}, "completion_tokens": 5}}',
    "NaN": DEEP % "[NaN, -Infinity]",
    "byte-order mark": "\ufeff" + DEEP % "0",
}


def test_one_bad_answer_never_stops_the_rest(tmp_path: Path) -> None:
    names = ("octopus", "frog", "bee", "dog")
    for kind, body in [*BAD.items(), ("too deep to read", DEEP % ("[" * 100_000 + "]" * 100_000))]:
        store = filled(tmp_path / kind, jobs(names))
        with Misbehaving() as server:
            sent: list[str] = []

            def sends(role: str, asked: dict, body: str = body, sent: list[str] = sent) -> str | None:
                if role == "ask" and not sent:
                    sent.append(body)
                    return body
                return None

            server.sends = sends
            one = judge(server, prices={"looker": (1.0, 1.0), "grader": (1.0, 1.0)}, concurrency=1, retries=1)
            summary = nd.examine(store, one, protocols=["strict"], shuffled=False, progress=False)
        assert summary.asked == 4, kind
        assert (summary.graded, summary.broken, summary.failed) == ((3, 1, 0) if "too deep" in kind else (4, 0, 0)), (
            kind
        )
        assert 0 < one.cost < 0.01, kind
        assert all(v >= 0 for v in one.tokens.values()), kind
        said = rows(store, "answer")
        json.dumps(said, ensure_ascii=False, allow_nan=False).encode()
        if "half" in kind:
            (bad,) = [r for r in said if r.get("unencodable")]
            assert bad["text"] == "OCTOPUS \\ud83d"


def test_a_judge_of_ones_own_may_keep_anything(tmp_path: Path) -> None:
    class Wild:
        name, samples, protocols = "wild \ud83d", 1, ("strict",)

        def examine(self, asked, keep) -> None:
            for one in asked:
                raw = {"a": np.float32(2), ("k",): {1, 2}, "b": b"\xff", "n": float("nan"), "x": [[]] * 2}
                row = answer_row(one, "fro\ud83d\udc19g \udc00", "answer", raw, "m")
                keep(one, row, grade_row(one, one.concept, np.int64(1), None, "g"))

    store = filled(tmp_path, jobs())
    assert nd.examine(store, Wild(), protocols=["strict"], shuffled=False, progress=False).graded == 3
    (row, *_) = rows(store, "answer", Wild.name)
    assert (row["text"], row["raw"]["a"], row["raw"]["n"]) == ("fro\U0001f419g \\udc00", 2.0, "NaN")
    with pytest.raises(ValueError, match="score='no'"):
        grade_row(None, "x", "no", None, "g")


def test_plain_is_idempotent_and_bounded() -> None:
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    once = plain({"deep": deep, "text": "\ud83d", "n": 10**400})
    assert plain(once) == once == json.loads(json.dumps(once))
    assert "left out" in json.dumps(once)


def test_a_long_answer_is_cut_for_the_grader_alone(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs(("octopus",)))
    with Misbehaving() as server:
        server.says = lambda concept, question: "<think>" + "hm " * 5000 + "</think>OCTOPUS " + "very " * 100_000
        nd.examine(store, judge(server), protocols=["strict"], shuffled=False, progress=False)
    (grade,) = [r["body"]["messages"][0]["content"] for r in server.requests if r["role"] == "grade"]
    assert "OCTOPUS very" in grade
    assert "hm hm" not in grade
    assert len(grade) < 5000
    assert len(rows(store, "answer")[0]["text"]) > 400_000
    assert nd.results(store)[0]["score"] == 1


# -- judges whose names look alike -------------------------------------------------------------------------------


def test_names_that_slug_alike_are_two_judges(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs(("octopus",)))
    names = ("Judge A/b", "judge-a-b", "judge a b", "判断", "审判", "x" * 90 + "1", "x" * 90 + "2")
    with Misbehaving() as server:
        for n, name in enumerate(names):
            server.says = lambda concept, question, n=n: f"thing {n}"
            one = judge(server, name=name)
            assert plan_calls(store, one, ["strict"]).asking == 1
            assert nd.examine(store, one, protocols=["strict"], progress=False).asked == 1
            assert nd.examine(Store(tmp_path), one, protocols=["strict"], progress=False).there == 1
    fresh = Store(tmp_path)
    assert [nd.results(fresh, name)[0]["top"] for name in names] == [f"thing {n}" for n in range(7)]
    assert sorted(r["top"] for r in nd.results(fresh)) == [f"thing {n}" for n in range(7)]
    assert len(set(fresh.judges())) == 7
    assert "Judge A/b" in fresh.judges()  # for its short name is what another is called


def test_a_store_of_an_older_version_is_taken_up(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs(("octopus",)))
    with Misbehaving() as server:
        nd.examine(store, judge(server, name="A b"), protocols=["strict"], progress=False)
        for path in (tmp_path / "judges").glob("*.json"):
            path.unlink()
        assert nd.examine(Store(tmp_path), judge(server, name="A b"), protocols=["strict"], progress=False).there == 1


def test_a_job_without_category(tmp_path: Path) -> None:
    store = filled(tmp_path, [*jobs(("octopus",)), *jobs(("frog",), category="")])
    for place in tmp_path.glob("jobs/frog*/job.json"):
        older = json.loads(place.read_text()) | {"category": None}
        older.pop("digest")  # such records are of versions that kept none
        place.write_text(json.dumps(older))
    with Misbehaving() as server:
        summary = nd.examine(store, judge(server), progress=False)
    assert (summary.asked, summary.unable) == (3, 1)
    assert {r["category"] for r in nd.results(store)} == {"animal", ""}


# -- keys and redirects ------------------------------------------------------------------------------------------

KEY = "sk-test-0123456789-abcdefghij"


@pytest.mark.parametrize(
    "key", ["sk-abc\u200bdef", "“sk-abcdef”", "sk-abc\ndef", "sk-abc def", "sk-äbc", "sk-\x00", "\ud83d"]
)
def test_malformed_keys_are_refused(tmp_path: Path, key: str) -> None:
    store = filled(tmp_path, jobs())
    with Misbehaving() as server, pytest.raises(JudgeStopped, match="copy the key once more") as stop:
        nd.examine(store, judge(server, api_key=key), progress=False)
    assert not server.requests
    assert not [part for part in ("abc", "äbc", "def") if part in str(stop.value)]


@pytest.mark.parametrize("key", [KEY, "k3y", "p%q+\"'\\/r"])
@pytest.mark.parametrize("place", ["400", "401", "500", "html", "error", "json"])
def test_no_part_of_a_key_is_shown(tmp_path: Path, key: str, place: str) -> None:
    store = filled(tmp_path, jobs(("octopus",)))

    def sends(role: str, body: dict) -> str:
        filler = {"html": "<", "error": '{"error": "', "json": '{"choices": [], "a": "'}[place]
        tail = {"html": "", "error": '"}', "json": '"}'}[place]
        inner = json.dumps(key)[1:-1]
        return filler + "x" * (70 if place == "html" else 185) + " " + inner + tail

    with Misbehaving(lambda role, nth: place if place.isdigit() else "") as server:
        if not place.isdigit():
            server.sends = sends
        try:
            told = str(nd.examine(store, judge(server, api_key=key, retries=0), progress=False))
        except JudgeStopped as stop:
            told = f"{stop} {stop!r} {stop.summary} {stop.__cause__} {stop.__context__}"
    for form in {key, json.dumps(key)[1:-1], key[:9], repr(key)[1:-1]}:
        assert form not in told
        assert form not in texts(tmp_path / "jobs")
    assert {r["key"] for r in server.requests} == {f"Bearer {key}"}


def test_keys_are_cleaned_before_cutting() -> None:
    for cut in range(len(KEY)):
        assert KEY[:8] not in keys.cleaned("x" * 40 + KEY, KEY, shown=True)[: 40 + cut]
    assert keys.cleaned(f"provided: {KEY[:6]}****{KEY[-4:]}.", KEY, shown=True) == "provided: [key]."
    assert keys.cleaned("an sk-1 sk-12", "sk-1") == "an [key] sk-12"
    assert keys.cleaned("none is written", "none", shown=True) == "none is written"


def test_a_redirect_to_another_server_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    with Misbehaving() as here, Misbehaving() as elsewhere:
        here.redirect = elsewhere.url + "/chat/completions"
        with pytest.raises(JudgeStopped, match=r"sends callers to another one.*base_url="):
            nd.examine(store, judge(here, concurrency=1), progress=False)
        assert (len(here.requests), len(elsewhere.requests)) == (1, 0)
        here.redirect = ""
        here.order = lambda role, nth: ""
        assert nd.examine(store, judge(here), progress=False).asked == 6


def test_a_redirect_within_a_server_is_followed(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs(("octopus",)))
    with Misbehaving() as server:

        def once(role: str, body: dict) -> None:
            server.redirect = "" if server.redirect or role == "grade" else "/v1/chat/completions?again=1"

        server.sends = once
        assert nd.examine(store, judge(server), protocols=["strict"], shuffled=False, progress=False).graded == 1


def test_a_picture_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    store = filled(tmp_path, jobs())
    (place,) = tmp_path.glob("jobs/frog*/prototype.png")
    place.write_bytes(place.read_bytes()[:60])
    with Misbehaving() as server:
        summary = nd.examine(store, judge(server), protocols=["strict"], progress=False)
    assert (summary.asked, summary.failed) == (2, 1)


# -- a model's own words -----------------------------------------------------------------------------------------


def test_a_vlm_that_fails_for_one(tmp_path: Path, tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, jobs())
    one = nd.VLMJudge(tiny_vlm, name="words")

    def say(image: Image.Image, text: str, *, seed: int | None = None) -> str:
        red, green, _ = image.getpixel((12, 12))
        if green > red + 100:
            raise RuntimeError("no memory")
        return "<think>octopus</think>bee" if red > 205 else "<think>an octo"

    monkeypatch.setattr(one, "say", say)
    summary = nd.examine(store, one, protocols=["strict"], shuffled=False, progress=False)
    assert (summary.asked, summary.broken, summary.failed) == (2, 1, 1)
    assert summary.errors["RuntimeError: no memory"] == 1
    assert {r["concept"]: r["score"] for r in nd.results(store)} == {"octopus": None, "bee": 1}


def test_a_vlm_that_thinks_with_special_tokens(tiny_parts: tuple) -> None:
    one = nd.VLMJudge(*tiny_parts, most=3)
    tokenizer = tiny_parts[1].tokenizer
    ids = lambda text: np.array(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    raw = "<think> octopus </think> bee"
    assert one._aloud(ids("hello"), ids(raw), False) == spoken(str(tokenizer.decode(ids(raw)))).text
    said = one.say(Image.new("RGB", (24, 24), (200, 40, 40)), "What?")
    assert said.cut  # a random model does not end by itself


def test_a_grader_says_true_false_or_none(tmp_path: Path, tiny_vlm: nd.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, jobs())
    verdicts = {"octopus": None, "frog": "no", "bee": True}
    one = nd.VLMJudge(tiny_vlm, name="words", grader=lambda question, answer, concept: verdicts[concept])
    monkeypatch.setattr(one, "say", lambda image, text, seed=None: "bee")
    summary = nd.examine(store, one, protocols=["strict"], shuffled=False, progress=False)
    assert (summary.asked, summary.graded, summary.broken_grades, summary.failed) == (3, 1, 1, 1)
    assert "allowed are True, False and None" in str(summary)


@pytest.mark.parametrize("name", ["internvl", "paligemma1"])
def test_a_vlm_whose_template_lies_elsewhere(tmp_path: Path, name: str) -> None:
    import tiny_families

    made = tiny_families.build(name)
    vlm = nd.load(made.model, processor=made.processor, check=False, **made.load)
    picture = Image.new("RGB", (24, 24), (200, 40, 40))
    for one in (nd.VLMJudge(vlm, most=2), nd.VLMJudge(made.model, made.processor, most=2)):
        inputs = one._inputs(picture, "What is it?")
        text = vlm.tokenizer.decode(inputs["input_ids"][0])
        assert int((inputs["input_ids"] == vlm.config.image_token_id).sum()) == vlm.grid[0] * vlm.grid[1]
        assert text.count("What is it?") == 1
    assert nd.examine(filled(tmp_path, jobs()), one, protocols=["strict"], progress=False).asked == 3


def test_the_key_to_a_server_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnsight.schema.config import CONFIG

    from nnsight_dream.remote.errors import refused, translated, unreachable

    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    for error in (
        refused(401, f"no such key: {KEY}", "http://x", "m", True),
        translated(f"RuntimeError: {KEY[:12]}", "http://x", "m"),
        unreachable("http://x", ValueError(f"Illegal header value b'{KEY}'")),
    ):
        assert KEY[:8] not in str(error)
        assert "[key]" in str(error)
