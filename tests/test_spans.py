"""A word's own tokens inside a chat template, against positions counted without character offsets."""

import warnings

import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnsight_dream.models import spans

BEFORE, AFTER = "<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"

NASTY = [
    "octopus",
    "Jupiter",
    "San Francisco",
    "spring (season)",
    "user",
    "model",
    "user\nmodel",
    "bee bee bee",
    "octopus octopus",
    "start_of_turn",
    "<end_of_turn",
    "a",
    "e",
    "木星",
    "日本語 octopus",
    "الأخطبوط",
    "अष्टपाद",
    "🐙",
    "🐙🐙",
    "👨‍👩‍👧 at sea",
    "café",
    "cafe\u0301",
    "ﬁsh",
    "İstanbul",
    "don't",
    "\ue000",
    "T-Rex",
]

BYTES = {
    c: b
    for b, c in zip(
        [
            *range(33, 127),
            *range(161, 173),
            *range(174, 256),
            *(b for b in range(256) if b < 33 or 126 < b < 161 or b == 173),
        ],
        [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]],
        strict=True,
    )
}  # GPT-2's table of visible stand-ins for bytes, written out again


@pytest.fixture(scope="module")
def byte_level():
    return tiny.byte_level()


@pytest.fixture(scope="module")
def metaspace():
    return tiny.metaspace()


def length_in_bytes(tokenizer, token):
    if token in tokenizer.get_added_vocab():
        return len(token.encode())
    if all(c in BYTES for c in token) and tokenizer.backend_tokenizer.normalizer is None:
        return len(token)
    if len(token) == 6 and token.startswith("<0x"):
        return 1
    return len(token.replace("▁", " ").encode())


def counted(tokenizer, text):
    """The places of the tokens whose bytes fall inside the text's, by adding up the bytes of each token."""
    ids = tokenizer(BEFORE + text + AFTER, add_special_tokens=False)["input_ids"]
    start, end = len(BEFORE.encode()), len((BEFORE + text).encode())
    places, here = [], 0
    for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        there = here + length_in_bytes(tokenizer, token)
        if here < end and there > start:
            places.append(place)
        here = there
    assert here == len((BEFORE + text + AFTER).encode())
    return tuple(ids), tuple(places)


@pytest.mark.parametrize("style", ["byte_level", "metaspace"])
@pytest.mark.parametrize("text", NASTY)
def test_positions_are_those_counted_byte_by_byte(style, text, request):
    tokenizer = request.getfixturevalue(style)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (prompt,) = spans.wrap(tokenizer, [text])
    assert (prompt.ids, prompt.own) == counted(tokenizer, text)
    assert prompt.text == text


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=12))
@example("user<start_of_turn")
@example("\u200d")
def test_any_string_at_all(text):
    tokenizer = BYTE_LEVEL
    if not text.strip():
        with pytest.raises(ValueError, match="says nothing"):
            spans.wrap(tokenizer, [text])
        return
    (prompt,) = spans.wrap(tokenizer, [text])
    assert (prompt.ids, prompt.own) == counted(tokenizer, text.strip())


BYTE_LEVEL = tiny.byte_level()


def test_the_own_tokens_decode_to_the_text(byte_level):
    for prompt in spans.wrap(byte_level, NASTY):
        assert byte_level.decode([prompt.ids[i] for i in prompt.own]) == prompt.text


@pytest.mark.parametrize(
    "text", ["octopus", "San Francisco", "user", "MODEL user", "Élephant", "ele\u0301phant", "bee, dog"]
)
def test_word_piece_positions(text):
    tokenizer = tiny.word_piece()
    (prompt,) = spans.wrap(tokenizer, [text])
    before, own = (len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (BEFORE, text))
    assert own >= 1
    assert prompt.own == tuple(range(before, before + own))


def test_outer_white_space_does_not_count(byte_level):
    plain, *others = spans.wrap(byte_level, ["octopus", " octopus", "octopus \n", "\t octopus\u3000"])
    assert all(other == plain for other in others)


def test_a_list_gives_what_one_by_one_gives(byte_level):
    assert spans.wrap(byte_level, NASTY) == [spans.wrap(byte_level, [text])[0] for text in NASTY]
    assert spans.wrap(byte_level, []) == []


def test_the_templates_bos_stays_the_only_one(byte_level):
    assert byte_level("octopus")["input_ids"][0] == byte_level.bos_token_id  # it would write one of its own
    (prompt,) = spans.wrap(byte_level, ["octopus"])
    assert prompt.ids.count(byte_level.bos_token_id) == 1


def test_a_token_that_crosses_into_the_template_is_told():
    tokenizer = tiny.straddling()
    with pytest.warns(UserWarning, match=r"'Jupiter' cannot be told from the chat template's: .*'user\\nJupiter'"):
        (prompt,) = spans.wrap(tokenizer, ["Jupiter"])
    assert tokenizer.convert_ids_to_tokens([prompt.ids[i] for i in prompt.own]) == ["user\nJupiter"]


def test_a_leading_space_in_the_token_is_not_worth_a_warning(byte_level):
    byte_level = tiny.byte_level()
    byte_level.chat_template = "USER: {{ messages[0]['content'] }} ASSISTANT:"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (prompt,) = spans.wrap(byte_level, ["octopus"])
    assert byte_level.decode([prompt.ids[i] for i in prompt.own]) == " octopus"


def test_no_offsets_no_positions():
    with pytest.raises(TypeError, match=r"SlowTokenizer gives no character offsets.*fast tokenizer"):
        spans.wrap(tiny.SlowTokenizer(), ["octopus"])
    assert spans.wrap(tiny.SlowTokenizer().inner, ["octopus"])  # the advice


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u3000"])
def test_nothing_said(byte_level, text):
    with pytest.raises(ValueError, match="says nothing: give a word"):
        spans.wrap(byte_level, ["octopus", text])


def test_not_a_string(byte_level):
    with pytest.raises(TypeError, match="a word is a string; got int 7"):
        spans.wrap(byte_level, [7])


def test_a_special_token_is_no_text(byte_level):
    with pytest.raises(ValueError, match=r"contains <start_of_image>, which is a special token.*leave it out"):
        spans.wrap(byte_level, ["octopus <start_of_image>"])
    assert spans.wrap(byte_level, ["octopus"])


def test_what_a_tokenizer_cannot_write():
    tokenizer = tiny.word_piece()
    with pytest.raises(ValueError, match="cannot write '木星'"):
        spans.wrap(tokenizer, ["木星"])
    with pytest.raises(ValueError, match=r"no token of .* writes '\\u200b'"):
        spans.wrap(tokenizer, ["\u200b"])
    with pytest.warns(UserWarning, match="2 of the [34] tokens of 'bee 木星' are unknown"):
        spans.wrap(tokenizer, ["bee 木星"])


def with_template(template):
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [
        "A {% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %} B",
        "A {% if messages[0].content is string %}{{ raise_exception('parts only') }}{% endif %}"
        "{{ messages[0].content[0].text }} B",
    ],
    ids=["silent", "raising"],
)
def test_templates_that_want_content_as_a_list_of_parts(template):
    tokenizer = with_template(template)
    (prompt,) = spans.wrap(tokenizer, ["octopus"])
    assert tokenizer.decode(prompt.ids) == "A octopus B"
    assert tokenizer.decode([prompt.ids[i] for i in prompt.own]) == " octopus"


def test_a_template_that_rewrites_the_text():
    tokenizer = with_template("A{{ messages[0].content | lower }}B")
    with pytest.raises(ValueError, match="does not leave 'Octopus' as it is: it writes 'octopus'"):
        spans.wrap(tokenizer, ["Octopus"])
    assert spans.wrap(tokenizer, ["octopus"])


@pytest.mark.parametrize("template", ["{{ messages[0].content }} {{ messages[0].content }}", "hello"])
def test_a_template_that_does_not_write_the_text_once(template):
    with pytest.raises(ValueError, match=r"does not write a user's text exactly once.*vlm.tokenizer.chat_template"):
        spans.wrap(with_template(template), ["octopus"])


def test_no_template_and_the_advice():
    tokenizer = with_template(None)
    with pytest.raises(ValueError, match="has no chat template") as caught:
        spans.wrap(tokenizer, ["octopus"])
    advice = str(caught.value).partition("vlm.tokenizer.chat_template = ")[2].strip('"')
    tokenizer.chat_template = advice
    (prompt,) = spans.wrap(tokenizer, ["octopus"])
    assert tokenizer.decode(prompt.ids) == "<bos>octopus"
    assert spans.wrap(with_template(None), ["octopus"], chat_template=advice) == [prompt]


def test_batches_are_bounded_and_lose_nothing(byte_level):
    prompts = spans.wrap(byte_level, NASTY)
    for limit in (1, 40, 100, 10**6):
        cut = list(spans.batches(prompts, limit))
        assert [p for batch in cut for p in batch] == prompts
        for batch in cut:
            assert len(batch) == 1 or len(batch) * max(len(p.ids) for p in batch) <= limit
    assert len(list(spans.batches(prompts, 10**6))) == 1
    assert list(spans.batches([])) == []
