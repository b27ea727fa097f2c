"""Chat templates as users have them: several, none, set later, with system turns, of strings or parts alone."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import tiny_families
import torch
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.models import templates

ONE = tiny.CHAT_TEMPLATE
OTHER = ONE.replace("<start_of_turn>", "The sea. <start_of_turn>", 1)
PLAIN = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


def loaded(template: Any, **options: Any) -> nd.VLM:
    hf, processor = tiny.gemma3(layers=1)
    processor.tokenizer.chat_template = processor.chat_template = template
    return nd.load(hf, processor=processor, **options)


def ids_of(vlm: nd.VLM, template: str, content: Any) -> list[int]:
    text = vlm.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=template, tokenize=False
    )
    return vlm.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "several",
    [
        {"default": ONE, "tool_use": OTHER},
        {"chat": ONE},
        [{"name": "default", "template": ONE}, {"name": "rag", "template": OTHER}],
    ],
    ids=["dict", "a single one", "list"],
)
def test_of_several_templates_the_default_is_taken(several: Any) -> None:
    plain, many = loaded(ONE), loaded(several)
    assert many.chat_template == ONE
    assert torch.equal(many.image_prompt.ids, plain.image_prompt.ids)
    assert torch.equal(nd.concept(many, "octopus", 1).vector, nd.concept(plain, "octopus", 1).vector)
    grey = Image.new("RGB", (64, 64))
    assert torch.equal(many.question(grey, "What?")["input_ids"], plain.question(grey, "What?")["input_ids"])


def test_several_without_a_default_and_the_advice() -> None:
    vlm = loaded(ONE)
    vlm.tokenizer.chat_template = {"rag": OTHER, "tool_use": ONE}
    for work in (lambda: vlm.image_prompt, lambda: nd.concept(vlm, "bee", 1)):
        with pytest.raises(ValueError, match=r"several chat templates \('rag', 'tool_use'\)"):
            work()
    vlm.tokenizer.chat_template = vlm.tokenizer.chat_template["rag"]
    assert torch.equal(nd.concept(vlm, "bee", 1).vector, nd.concept(loaded(OTHER), "bee", 1).vector)
    with pytest.raises(TypeError, match="a chat template is a text, or several by name; got int"):
        templates.chosen(3)


@pytest.mark.parametrize("where", ["tokenizer", "processor"])
def test_a_template_set_after_loading_is_used_by_all(where: str) -> None:
    vlm, new = loaded(ONE), loaded(OTHER)
    picture = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    old = nd.read_pictures(vlm, picture, [1])[nd.Site(1)]
    nd.synthesize(vlm, nd.concept(vlm, "bee", 1), steps=1, batch=1)  # fills what is kept
    getattr(vlm, where).chat_template = OTHER
    assert torch.equal(vlm.image_prompt.ids, new.image_prompt.ids)
    now = nd.read_pictures(vlm, picture, [1])[nd.Site(1)]
    assert torch.equal(now, nd.read_pictures(new, picture, [1])[nd.Site(1)])
    assert not torch.equal(now, old)
    assert torch.equal(nd.concept(vlm, "bee", 1).vector, nd.concept(new, "bee", 1).vector)
    made = [nd.synthesize(v, nd.concept(v, "bee", 1), steps=2, batch=1) for v in (vlm, new)]
    assert made[0].history == made[1].history


def test_a_template_of_strings_alone_takes_the_picture_in_its_text() -> None:
    vlm = loaded(PLAIN)
    expected = ids_of(vlm, PLAIN, "<start_of_image>")
    begin = vlm.image_prompt.ids.tolist().index(vlm.config.image_token_id)
    text = vlm.tokenizer.decode(vlm.image_prompt.ids[:begin])
    assert text.startswith("<bos>")
    assert vlm.image_prompt.ids.tolist()[0] == expected[0]
    assert vlm.image_prompt.text == f"<bos>\n\n<start_of_image>{'<image_soft_token>' * 16}<end_of_image>\n\n"
    asked = vlm.tokenizer.decode(vlm.question(Image.new("RGB", (9, 9)), "What is it?")["input_ids"][0])
    assert asked == vlm.image_prompt.text + "What is it?"


def test_a_template_with_another_placeholder() -> None:
    vlm, plain = loaded(ONE.replace("<start_of_image>", "<picture>")), loaded(ONE)
    assert torch.equal(vlm.image_prompt.ids, plain.image_prompt.ids)
    grey = Image.new("RGB", (64, 64))
    assert torch.equal(vlm.question(grey, "What?")["input_ids"], plain.question(grey, "What?")["input_ids"])


SYSTEM_FIRST = "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn is needed') }}{% endif %}" + ONE
NO_USER = "{{ raise_exception('only the roles human and gpt') }}"


def test_templates_that_raise() -> None:
    vlm = loaded(SYSTEM_FIRST)
    assert nd.concept(vlm, "octopus", 1).norm > 0
    grey = Image.new("RGB", (64, 64))
    assert "What?" in vlm.tokenizer.decode(vlm.question(grey, "What?")["input_ids"][0])
    vlm.tokenizer.chat_template = NO_USER
    for work in (lambda: nd.concept(vlm, "bee", 1), lambda: vlm.image_prompt, lambda: vlm.question(grey, "What?")):
        with pytest.raises(ValueError, match="only the roles human and gpt"):
            work()
    with pytest.raises(ValueError, match=r"only the roles human and gpt.*vlm\.tokenizer\.chat_template"):
        loaded(NO_USER)


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl", "llava", "paligemma1", "gemma3n", "chameleon"])
def test_a_question_is_what_the_model_can_answer(name: str) -> None:
    """Image tokens as many as the record says, the words behind or before them, and an answer."""
    made = tiny_families.build(name)
    vlm = nd.load(made.model, processor=made.processor, **made.load)
    inputs = vlm.question(Image.new("RGB", vlm.image_size[::-1], "red"), "What is in the image?")
    ids = inputs["input_ids"][0]
    rows, cols = vlm.grid
    assert int((ids == vlm.config.image_token_id).sum()) == rows * cols
    text = vlm.tokenizer.decode(ids)
    assert text.count("What is in the image?") == 1
    opening = vlm.image_prompt.ids[: int(vlm.image_prompt.positions[-1]) + 1]
    assert torch.equal(ids[: len(opening)].cpu(), opening)
    with torch.no_grad():
        out = vlm.hf.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert out.shape[1] > len(ids)
