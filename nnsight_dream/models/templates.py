"""Templates: how a chat template writes a user's turn; every door that wraps words or a picture goes through here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def chosen(template: Any) -> str | None:
    """The template meant by what a tokenizer or processor holds: a text, several by name, or nothing.

    Of several the one named "default", as transformers takes it; of a single named one that one. Raises ValueError
    where several have other names, TypeError for what is no template.
    """
    if not template:
        return None
    if isinstance(template, str):
        return template
    several: dict[str, Any] = {}
    if isinstance(template, Mapping):
        several = dict(template)
    elif isinstance(template, Sequence) and all(
        isinstance(t, Mapping) and {"name", "template"} <= {*t} for t in template
    ):
        several = {t["name"]: t["template"] for t in template}
    else:
        raise TypeError(
            f"a chat template is a text, or several by name; got {type(template).__name__}. Set "
            "vlm.tokenizer.chat_template to a text"
        )
    if "default" in several or len(several) == 1:
        return several.get("default") or next(iter(several.values()))
    raise ValueError(
        f"there are several chat templates ({', '.join(map(repr, several))}) and none is called 'default': choose one "
        f"with vlm.tokenizer.chat_template = vlm.tokenizer.chat_template[{next(iter(several))!r}]"
    )


@dataclass(frozen=True)
class Form:
    """The form in which a template takes a user's turn.

    parts    content as a list of parts, not as a text
    system   after an empty system turn
    picture  what the template itself writes for a picture; "" where the picture is written into the text
    """

    parts: bool
    system: bool = False
    picture: str = ""


def written(
    tokenizer: Any, template: str | None, text: str, form: Form, placeholder: str = "", answer: bool = True
) -> str:
    """A user's turn of a text, after a picture if a placeholder for it is given, as the template writes it.

    answer   with what stands before the model's own answer
    """
    if form.parts:
        picture = [{"type": "image"}] if placeholder else []
        content: Any = [*picture, {"type": "text", "text": text}]
    else:
        content = placeholder + text
    whole = _rendered(tokenizer, template, content, form.system, answer)
    if placeholder and form.picture and form.picture != placeholder:
        whole = whole.replace(form.picture, placeholder, 1)
    return whole


def _rendered(tokenizer: Any, template: str | None, content: Any, system: bool, answer: bool) -> str:
    turns = [{"role": "user", "content": content}]
    if system:
        turns.insert(0, {"role": "system", "content": [] if isinstance(content, list) else ""})
    return str(
        tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=answer)
    )


_FORMS = tuple(Form(parts, system) for system in (False, True) for parts in (False, True))


def text_form(tokenizer: Any, template: str | None, mark: str) -> Form:
    """The first form in which a template writes a text, `mark`, exactly once; ValueError where there is none."""
    failure: Exception | None = None
    for form in _FORMS:
        try:
            frame = written(tokenizer, template, mark, form)
        except Exception as error:  # jinja's own, for a template that takes content in the other form only
            failure = failure or error
            continue
        if frame.count(mark) == 1:
            return form
    raise ValueError(
        "the chat template does not write a user's text exactly once, so its tokens cannot be told apart; set another "
        "in vlm.tokenizer.chat_template" + (f" (it failed with: {failure})" if failure else "")
    )


def picture_form(tokenizer: Any, template: str | None, placeholder: str) -> Form:
    """The first form in which a template writes a picture exactly once; ValueError where there is none.

    placeholder   what the model's processor takes for a picture. Where a template writes something else for one, that
                  is what the turn has and the same turn without picture has not
    """
    failure, last = None, ""
    for form in sorted(_FORMS, key=lambda f: not f.parts):  # a template that knows pictures takes parts
        try:
            last = written(tokenizer, template, "", form, placeholder)
            if last.count(placeholder) == 1:
                return form
            if form.parts and (own := _own_picture(tokenizer, template, form)):
                return Form(form.parts, form.system, own)
        except Exception as error:  # jinja's own, for content or roles that the template does not take
            failure = failure or error
    raise ValueError(
        f"the chat template should write {placeholder!r} once for a picture"
        + (f"; it wrote {last!r}" if last else "")
        + (f"; it failed with: {failure}" if failure else "")
        + ". Set another in vlm.tokenizer.chat_template"
    )


def _own_picture(tokenizer: Any, template: str | None, form: Form) -> str:
    """What a template writes for a picture between two marks; "" where that is nothing, or not there once."""
    before, after = "\ue000", "\ue001"
    marks = [{"type": "text", "text": before}, {"type": "image"}, {"type": "text", "text": after}]
    whole = _rendered(tokenizer, template, marks, form.system, True)
    if whole.count(before) != 1 or whole.count(after) != 1:
        return ""
    own = whole.partition(before)[2].partition(after)[0].strip()
    alone = _rendered(tokenizer, template, [{"type": "image"}, {"type": "text", "text": ""}], form.system, True)
    return own if own and "'type'" not in own and alone.count(own) == 1 else ""  # nor a list written as Python does
