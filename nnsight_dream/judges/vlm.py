"""VLMJudge: a vision-language model on this machine names pictures in its own words."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .. import arguments
from ..io.json_values import encodable
from ..models.families import family_of
from ..models.place import weightless
from ..models.templates import chosen
from ..state.calm import calmly
from ..state.changes import still
from .desk import answer_row, grade_row
from .local import opened_groups
from .named import as_pil, loaded, placed
from .questions import PROTOCOLS, WORDS, bare, capped, heard, mentions, question
from .thinking import begun, marked, spoken

if TYPE_CHECKING:
    from .desk import Asked, Keep


_GIVE_UP = 20  # questions in a row that fail: the fault is not theirs


_WHY_CUT = "an answer was cut before it was whole; allow more tokens with most="


class Said(str):
    """What a model said, without its thinking.

    cut   it was stopped at the limit of tokens, or within its thinking
    raw   all that it wrote
    """

    cut: bool
    raw: str

    def __new__(cls, text: str, *, cut: bool = False, raw: str = "") -> Said:
        answer = super().__new__(cls, text)
        answer.cut, answer.raw = cut, raw or text
        return answer


class VLMJudge:
    """A vision-language model of your own that answers in its own words.

    model        a hub id, a folder, a loaded image-text-to-text model with its `processor`, or an `nd.VLM`
    samples      how often it is asked; 1 answers greedily, more draw at `temperature`
    most         new tokens of an answer at most; a model that thinks first needs some hundreds. An answer that is cut
                 is "broken", not a no
    aliases      for a concept, further words that count as naming it, such as `demo_aliases()`
    grader       (question, answer, concept) -> True if the answer names the concept, False, or None if that is
                 unclear; words are compared by default
    name         what its answers are kept under; the last part of the model's name by default
    options      go to `from_pretrained`; `device=`, the best there is if not given

    Raises ValueError for samples, temperature or tokens out of range.
    """

    protocols: tuple[str, ...] = PROTOCOLS

    @calmly
    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        samples: int = 1,
        temperature: float = 1.0,
        most: int = 64,
        aliases: Mapping[str, Iterable[str]] | None = None,
        grader: Callable[[str, str, str], bool] | None = None,
        name: str | None = None,
        **options: Any,
    ):
        numbers = dict(samples=samples, most=most, temperature=temperature)
        whole = arguments.is_whole(samples) and arguments.is_whole(most) and arguments.is_real(temperature)
        if not whole or samples < 1 or most < 1 or not temperature > 0:
            values = ", ".join(f"{k}={arguments.shown(v)}" for k, v in numbers.items())
            raise ValueError(
                f"{values}: at least 1, 1 and above 0 are needed; samples=1 is greedy, whatever the temperature"
            )
        if grader is not None and not callable(grader):
            raise TypeError(f"grader={arguments.shown(grader)}: a function of question, answer and concept is needed")
        if aliases is not None and not isinstance(aliases, Mapping):
            raise TypeError(f"aliases={arguments.shown(aliases)}: other names by word are needed, in a dict")
        name = None if name is None else arguments.text(name, "name", blank=False)
        self._vlm = None
        if hasattr(model, "hf") and hasattr(model, "processor"):
            weightless(model, "writing answers")
            model.refuse_edits("writing answers")
            self._vlm = model
            model, processor = model.hf, processor or model.processor
        self._model, self._processor, model_name = loaded(model, processor, "AutoModelForImageTextToText", options)
        self.name, self.samples, self.temperature, self.most = name or model_name, samples, temperature, most
        self.grader = WORDS if grader is None else getattr(grader, "__name__", type(grader).__name__)
        self._grade = grader or self._same_words
        self._aliases = {word.casefold(): tuple(more) for word, more in (aliases or {}).items()}

    def __repr__(self) -> str:
        return f"VLMJudge({self.name!r}: {self.samples} samples, graded by {self.grader})"

    @calmly
    def say(self, image: Any, text: str, *, seed: int | None = None) -> Said:
        """What the model answers about a picture, without its thinking: greedily, or drawn with a seed."""
        inputs = placed(self._inputs(as_pil(image)[0], text), self._model)
        how: dict[str, Any] = dict(do_sample=False, temperature=None, top_p=None, top_k=None)
        if seed is not None:
            how = dict(do_sample=True, temperature=self.temperature, top_p=1.0, top_k=0)
        device = self._model.device
        with still(self._model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed or 0)
            out = self._model.generate(**inputs, max_new_tokens=self.most, **how)
        prompt, new = inputs["input_ids"][0], out[0, inputs["input_ids"].shape[1] :]
        return self._aloud(prompt, new, len(new) >= self.most and int(new[-1]) not in self._ends())

    def _inputs(self, image: Image.Image, text: str) -> dict[str, Any]:
        """The model's inputs, by the chat template that `concept` uses too; the family's where there is none."""
        if self._vlm is not None:
            return dict(self._vlm.question(image, encodable(text)))
        content = [{"type": "image", "image": image}, {"type": "text", "text": encodable(text)}]
        return dict(
            self._processor.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=self._template(),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        )

    def _template(self) -> Any:
        own = getattr(self._processor, "chat_template", None)
        own = own or getattr(getattr(self._processor, "tokenizer", None), "chat_template", None)
        if own:
            return chosen(own)
        family = family_of(self._model.config)
        if family is None or family.chat_template is None:
            raise ValueError(
                f"neither the processor of {self.name} nor its tokenizer has a chat template, so it is unknown how a "
                "question is put to it; set processor.chat_template"
            )
        return family.chat_template

    def _ends(self) -> set[int]:
        """The tokens with which an answer ends."""
        tokens: set[int] = set()
        for place in (self._model.generation_config, self._tokenizer):
            ends = getattr(place, "eos_token_id", None)
            tokens |= {*ends} if isinstance(ends, (list, tuple)) else set() if ends is None else {ends}
        return tokens

    @property
    def _tokenizer(self) -> Any:
        return getattr(self._processor, "tokenizer", self._processor)

    def _aloud(self, prompt: torch.Tensor, new: torch.Tensor, cut: bool) -> Said:
        """New tokens as text. The marks of thinking may be special tokens, and the prompt may have begun it."""
        text = str(self._tokenizer.decode(new, skip_special_tokens=True)).strip()
        raw = str(self._tokenizer.decode(new, skip_special_tokens=False))
        opened = begun(str(self._tokenizer.decode(prompt[-16:], skip_special_tokens=False)))
        if not opened and not marked(raw):
            return Said(text, cut=cut)
        aloud = spoken(opened + raw)
        text = aloud.text
        for token in self._tokenizer.all_special_tokens:
            text = text.replace(token, "")
        return Said(text.strip(), cut=cut or aloud.unfinished, raw=opened + raw)

    def examine(self, asked: Sequence[Asked], keep: Keep) -> None:
        """See `asking.Examiner`. Raises what the model or the grader raises for twenty questions in a row."""
        failures = 0
        for group, image in opened_groups([list(g) for _, g in itertools.groupby(asked, lambda a: a.key)], keep):
            for request in group:
                rows: list[Mapping[str, Any]] = []
                try:
                    for row in self._rows(request, image):
                        rows.append(row)
                    failures = 0
                except Exception as error:  # the others go on
                    failures += 1
                    if failures >= _GIVE_UP:
                        raise
                    rows.append({"what": "failed", "error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
                keep(request, *rows)

    def _rows(self, request: Asked, image: Image.Image) -> Iterator[Mapping[str, Any]]:
        """The answer, if it is not there yet, and its grades."""
        row = request.answer
        if row is None:
            answer = self.say(image, question(request.protocol, request.category), seed=self._seed(request))
            text, kind = heard(answer, cut=getattr(answer, "cut", False))
            more = {"why": _WHY_CUT} if kind == "broken" else {}
            row = answer_row(request, text, kind, str(getattr(answer, "raw", answer)), self.name, **more)
            yield row
        if row["kind"] == "answer":
            for concept in request.grade_as:
                yield self._graded(request, capped(row["text"]), concept)

    def _seed(self, request: Asked) -> int | None:
        if self.samples == 1:
            return None
        identity = f"{request.key} {request.protocol} {request.sample}".encode()
        return int.from_bytes(hashlib.sha256(identity).digest()[:4], "big")

    def _graded(self, request: Asked, text: str, concept: str) -> dict[str, Any]:
        score = self._grade(request.question, text, concept)
        return grade_row(request, concept, score if score is None else self._whole(score), text, self.grader)

    def _whole(self, score: Any) -> int:
        if isinstance(score, str) or score not in (0, 1):
            raise ValueError(f"grader= gave {score!r}; allowed are True, False and None")
        return int(score)

    def _same_words(self, question: str, answer: str, concept: str) -> bool:
        more = self._aliases.get(concept.casefold()) or self._aliases.get(bare(concept).casefold()) or ()
        return mentions(answer, (concept, *more))
