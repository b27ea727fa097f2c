"""The token ids that stand before and at one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint

from . import templates

if TYPE_CHECKING:
    from .vlm import VLM


@dataclass(frozen=True)
class ImagePrompt:
    """The token ids (T,) that stand before and at one picture: a user's turn up to the last image token.

    Later tokens never change earlier ones, so nothing after the picture is run. `positions` (n,) are the image
    tokens' places, row by row; `extra` are the other inputs that go with the ids.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    extra: dict[str, torch.Tensor]
    text: str


def marks(vlm: VLM) -> tuple[str, str, str]:
    """The tokens that begin, hold and end a picture, as texts; "" for those that a family has not."""
    fields = (vlm.family.begin_id, "image_token_id", vlm.family.end_id)
    begin, image, end = (vlm.tokenizer.convert_ids_to_tokens(getattr(vlm.config, f)) if f else "" for f in fields)
    return begin, image, end


def picture_turn(vlm: VLM, text: str = "", answer: bool = False) -> str:
    """A user's turn of one picture, as its placeholder, and a text, by the chat template.

    answer   with what stands before the model's own answer

    Raises ValueError for a template that writes no picture.
    """
    template = vlm.chat_template
    form = templates.picture_form(vlm.tokenizer, template, vlm.placeholder)
    return templates.written(vlm.tokenizer, template, text, form, vlm.placeholder, answer)


def question_of(vlm: VLM, image: Any, text: str) -> dict[str, torch.Tensor]:
    """Inputs (1, T) and pixels of a picture and words: the processor's own, or the record's if there is no whole one.

    Raises ValueError for a template that writes no picture, TypeError for what is no picture.
    """
    # a family's own template stands for what its processor writes around the words by itself
    bare = vlm.chat_template == vlm.family.chat_template
    from ..io.pictures import as_image, as_tensors

    if callable(vlm.processor):
        options: dict[str, Any] = {} if bare else {"add_special_tokens": False}
        whole = vlm.placeholder + text if bare else picture_turn(vlm, text, answer=True)
        views = vlm.family.views(vlm.pixels)
        batch = vlm.processor(text=[whole], images=[[as_image(image)]], return_tensors="pt", **options, **views)
        return {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
    ids = torch.tensor(
        vlm.tokenizer(_wrapped(vlm, picture_turn(vlm, text, answer=True)), add_special_tokens=False).input_ids
    )
    (picture,) = as_tensors(image, "image")
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], **vlm.pack(picture)}
    return inputs | vlm.family.extra(ids[None], vlm.config.image_token_id)


def _wrapped(vlm: VLM, text: str) -> str:
    """A text in which the placeholder of a picture is replaced by all of its tokens."""
    rows, cols = vlm.grid
    begin, image, end = marks(vlm)
    tokens = vlm.family.between.join([image * cols] * rows)
    return text.replace(vlm.placeholder, vlm.family.wrapped.format(begin=begin, image=tokens, end=end))


def prompt_of(vlm: VLM) -> ImagePrompt:
    """The prompt of a picture, by the chat template in use now. Raises ValueError where it holds no image token."""
    family, image_id = vlm.family, vlm.config.image_token_id
    text = _wrapped(vlm, picture_turn(vlm))
    ids = torch.tensor(vlm.tokenizer(text, add_special_tokens=False)["input_ids"])
    places = (ids == image_id).nonzero().flatten()
    if len(places) == 0:
        image = marks(vlm)[1]
        raise ValueError(f"no image token {image!r} (id {image_id}) in {text!r}: mend the record's 'wrapped' field")
    if not family.looks_ahead:
        ids = ids[: int(places[-1]) + 1]
    return ImagePrompt(ids, places, family.extra(ids[None], image_id), text)
