"""Examiners on this machine: the bundled judge, zero-shot dual encoders, and a vision-language model's own words."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from . import demo, remote
from .asking import Asked, Keep, answer_row, grade_row
from .families import family_of
from .judges import DemoJudge, NamingJudge, as_pil, loaded, placed, still
from .plain import encodable
from .questions import PROTOCOLS, WORDS, bare, capped, heard, mentions, question
from .thinking import begun, marked, spoken

_AT_ONCE = 32  # pictures
_GIVE_UP = 20  # questions in a row that fail: the fault is not theirs
_WHY_CUT = "an answer was cut before it was whole; allow more tokens with most="


def demo_aliases() -> dict[str, tuple[str, ...]]:
    """For each name and alias of the bundled concepts, all names of the same thing.

    >>> demo_aliases()["chipmunk"]
    ('squirrel', 'chipmunk')
    """
    return {name: (c.name, *c.aliases) for c in demo.concepts() for name in (c.name, *c.aliases)}


class _ByName:
    """Examines with a judge that gives names probabilities: the best name is its answer, a name's match the grade."""

    protocols: tuple[str, ...] = ("strict", "hint")
    samples = 1
    grader = "names"
    name: str

    def _set_up(self, judge: NamingJudge, aliases: Mapping[str, Iterable[str]]) -> None:
        self._judge = judge
        self._accepted: dict[str, set[str]] = {}  # a word, and the candidates that are right for it
        for candidate in judge.names:
            for word in (candidate, *aliases.get(candidate, ())):
                self._accepted.setdefault(word.casefold(), set()).add(candidate)

    def accepted(self, concept: str) -> set[str]:
        """The candidates that name a concept: itself, or what it is an alias of; empty if it is unknown."""
        return self._accepted.get(concept.casefold()) or self._accepted.get(bare(concept).casefold()) or set()

    def able(self, concept: str, category: str, protocol: str) -> bool:
        """Whether a concept is among the candidates, and with a hint among those of the category."""
        right = self.accepted(concept)
        if protocol != "hint":
            return bool(right)
        of = dict(zip(self._judge.names, self._judge.categories, strict=True))
        return any(of[name] == category for name in right)

    def examine(self, asked: Sequence[Asked], keep: Keep) -> None:
        """See `asking.Examiner`."""
        new = [a for a in asked if a.answer is None]
        for one in asked:
            if one.answer is not None:
                keep(one, *self._grades(one, one.answer["text"]))
        by_picture = [list(group) for _, group in itertools.groupby(new, lambda a: a.key)]
        for start in range(0, len(by_picture), _AT_ONCE):
            batch = [(group, image) for group, image in _opened(by_picture[start : start + _AT_ONCE], keep)]
            if not batch:
                continue
            logits = self._judge.logits([image for _, image in batch])
            for (group, _), row in zip(batch, logits, strict=True):
                for one in group:
                    self._answer(one, row[None], keep)

    def _answer(self, one: Asked, logits: torch.Tensor, keep: Keep) -> None:
        verdict = self._judge.verdicts(logits, one.category if one.protocol == "hint" else None)[0]
        right = self.accepted(one.concept)
        ranks = [i for i, name in enumerate(verdict.names, 1) if name in right]
        best = dict(names=list(verdict.names[:5]), probabilities=list(verdict.probabilities[:5]), rank=ranks[0])
        row = answer_row(one, verdict.top, "answer", verdict.top, self.name, of=len(verdict.names), **best)
        keep(one, row, *self._grades(one, verdict.top))

    def _grades(self, one: Asked, top: str) -> list[dict[str, Any]]:
        return [grade_row(one, c, int(top in self.accepted(c)), top, self.grader) for c in one.grade_as]


def _opened(groups: Sequence[list[Asked]], keep: Keep) -> Iterator[tuple[list[Asked], Image.Image]]:
    """Questions by picture, with the picture; what cannot be opened fails."""
    for group in groups:
        try:
            image = group[0].image()
        except Exception as error:  # what a damaged file raises is of many kinds
            for one in group:
                keep(one, {"what": "failed", "error": f"the picture cannot be read: {error}"})
        else:
            yield group, image


class DemoExaminer(_ByName):
    """The bundled judge. Each answer comes with its five best `names`, their `probabilities`, and the concept's `rank`.

    It answers "strict" among everything that the bundled model was shown, "hint" within the bundled category; a concept
    that it knows under another name counts by that name. What it does not know it is not asked.
    """

    def __init__(self, judge: DemoJudge | None = None, name: str = "demo"):
        self.name = name
        self._set_up(judge or DemoJudge(), {c.name: c.aliases for c in demo.concepts()})

    def __repr__(self) -> str:
        return f"DemoExaminer({self.name!r}: {len(self._judge.names)} names)"


class ZeroShotJudge(NamingJudge, _ByName):
    """A CLIP or SigLIP model that compares pictures with "a picture of a ..." for each of the names.

    model       a hub id, a folder, or a loaded dual encoder with its `processor`
    names       candidates: words, pairs (word, category), or anything with a name or concept, a category and perhaps
                aliases, such as `demo.concepts()` or the jobs of a store
    template    what a name is put into, at {name}
    name        what its answers are kept under; the last part of the model's name by default
    options     go to `from_pretrained`

    Raises ValueError for no names and for a template without {name}; TypeError for a model that is no dual encoder.
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        names: Iterable[Any],
        template: str = "a picture of a {name}",
        name: str | None = None,
        **options: Any,
    ):
        if "{name}" not in template:
            raise ValueError(f"template={template!r} has no place for a name: write {{name}} where it goes")
        known = {word: (category, aliases) for word, category, aliases in map(_candidate, names)}
        if not known:
            raise ValueError("names= is empty: give the words to choose from, such as demo.concepts()")
        self._model, self._processor, found = loaded(model, processor, "AutoModel", options)
        for method in ("get_text_features", "get_image_features"):
            if not hasattr(self._model, method):
                raise TypeError(f"{type(self._model).__name__} has no {method}: give a CLIP or SigLIP model")
        self.name, self.template = name or found, template
        self.names, self.categories = tuple(known), tuple(category for category, _ in known.values())
        self._set_up(self, {word: aliases for word, (_, aliases) in known.items()})
        self._text = self._text_features()

    def __repr__(self) -> str:
        return f"ZeroShotJudge({self.name!r}: {len(self.names)} names, {self.template!r})"

    def logits(self, images: Any) -> torch.Tensor:
        """(pictures, names): scaled cosines, on the cpu. A bias, the same for all names, is left out."""
        found = []
        pictures = as_pil(images)
        for start in range(0, len(pictures), _AT_ONCE):
            seen = self._features("image", images=pictures[start : start + _AT_ONCE])
            found.append(seen @ self._text.T)
        scale = float(self._model.logit_scale.detach().float().exp())
        return torch.cat(found) * scale

    def _text_features(self) -> torch.Tensor:
        texts = [self.template.replace("{name}", name) for name in self.names]
        config = self._model.config
        length = dict(padding=True, truncation=True, max_length=config.text_config.max_position_embeddings)
        if "siglip" in config.model_type:  # trained on lower case, filled up to full length
            texts, length["padding"] = [text.lower() for text in texts], "max_length"
        parts = [self._features("text", text=texts[i : i + 256], **length) for i in range(0, len(texts), 256)]
        return torch.cat(parts)

    def _features(self, kind: str, **given: Any) -> torch.Tensor:
        """(n, width), each of length one."""
        inputs = placed(self._processor(**given, return_tensors="pt"), self._model)
        with still(self._model):
            out = getattr(self._model, f"get_{kind}_features")(**inputs)
        vectors = out if isinstance(out, torch.Tensor) else out.pooler_output
        return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu()


class Said(str):
    """What a model said, without its thinking.

    cut   it was stopped at the limit of tokens, or within its thinking
    raw   all that it wrote
    """

    cut: bool
    raw: str

    def __new__(cls, text: str, *, cut: bool = False, raw: str = "") -> Said:
        said = super().__new__(cls, text)
        said.cut, said.raw = cut, raw or text
        return said


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
    options      go to `from_pretrained`

    Raises ValueError for samples, temperature or tokens out of range.
    """

    protocols: tuple[str, ...] = PROTOCOLS

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
        if samples < 1 or most < 1 or not temperature > 0:
            raise ValueError(
                f"samples={samples}, most={most}, temperature={temperature}: at least 1, 1 and above 0 are needed; "
                "samples=1 is greedy, whatever the temperature"
            )
        self._vlm = None
        if hasattr(model, "hf") and hasattr(model, "processor"):
            remote.weightless(model, "writing answers")
            self._vlm = model
            model, processor = model.hf, processor or model.processor
        self._model, self._processor, found = loaded(model, processor, "AutoModelForImageTextToText", options)
        self.name, self.samples, self.temperature, self.most = name or found, samples, temperature, most
        self.grader = WORDS if grader is None else getattr(grader, "__name__", type(grader).__name__)
        self._grade = grader or self._same_words
        self._aliases = {word.casefold(): tuple(more) for word, more in (aliases or {}).items()}

    def __repr__(self) -> str:
        return f"VLMJudge({self.name!r}: {self.samples} samples, graded by {self.grader})"

    def say(self, image: Any, text: str, *, seed: int | None = None) -> Said:
        """What the model answers about a picture, without its thinking: greedily, or drawn with a seed."""
        inputs = placed(self._inputs(as_pil(image)[0], text), self._model)
        how: dict[str, Any] = dict(do_sample=False, temperature=None, top_p=None, top_k=None)
        if seed is not None:
            how = dict(do_sample=True, temperature=self.temperature, top_p=1.0, top_k=0)
        device = self._model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), still(self._model):
            torch.manual_seed(seed or 0)
            out = self._model.generate(**inputs, max_new_tokens=self.most, **how)
        prompt, new = inputs["input_ids"][0], out[0, inputs["input_ids"].shape[1] :]
        return self._aloud(prompt, new, len(new) >= self.most and int(new[-1]) not in self._ends())

    def _inputs(self, image: Image.Image, text: str) -> dict[str, Any]:
        """The model's inputs, by the chat template that `concept` uses too; the family's where there is none."""
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
        if self._vlm is not None:
            return self._vlm.chat_template
        own = getattr(self._processor, "chat_template", None)
        own = own or getattr(getattr(self._processor, "tokenizer", None), "chat_template", None)
        if own:
            return own
        family = family_of(self._model.config)
        if family is None or family.chat_template is None:
            raise ValueError(
                f"neither the processor of {self.name} nor its tokenizer has a chat template, so it is unknown how a "
                "question is put to it; set processor.chat_template"
            )
        return family.chat_template

    def _ends(self) -> set[int]:
        """The tokens with which an answer ends."""
        found: set[int] = set()
        for place in (self._model.generation_config, self._tokenizer):
            ends = getattr(place, "eos_token_id", None)
            found |= {*ends} if isinstance(ends, (list, tuple)) else set() if ends is None else {ends}
        return found

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
        for group, image in _opened([list(g) for _, g in itertools.groupby(asked, lambda a: a.key)], keep):
            for one in group:
                rows: list[Mapping[str, Any]] = []
                try:
                    for row in self._rows(one, image):
                        rows.append(row)
                    failures = 0
                except Exception as error:  # the others go on
                    failures += 1
                    if failures >= _GIVE_UP:
                        raise
                    rows.append({"what": "failed", "error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
                keep(one, *rows)

    def _rows(self, one: Asked, image: Image.Image) -> Iterator[Mapping[str, Any]]:
        """The answer, if it is not there yet, and its grades."""
        row = one.answer
        if row is None:
            said = self.say(image, question(one.protocol, one.category), seed=self._seed(one))
            text, kind = heard(said, cut=getattr(said, "cut", False))
            more = {"why": _WHY_CUT} if kind == "broken" else {}
            row = answer_row(one, text, kind, str(getattr(said, "raw", said)), self.name, **more)
            yield row
        if row["kind"] == "answer":
            for concept in one.grade_as:
                yield self._graded(one, capped(row["text"]), concept)

    def _seed(self, one: Asked) -> int | None:
        if self.samples == 1:
            return None
        told = f"{one.key} {one.protocol} {one.sample}".encode()
        return int.from_bytes(hashlib.sha256(told).digest()[:4], "big")

    def _graded(self, one: Asked, text: str, concept: str) -> dict[str, Any]:
        score = self._grade(one.question, text, concept)
        return grade_row(one, concept, score if score is None else self._whole(score), text, self.grader)

    def _whole(self, score: Any) -> int:
        if isinstance(score, str) or score not in (0, 1):
            raise ValueError(f"grader= gave {score!r}; allowed are True, False and None")
        return int(score)

    def _same_words(self, question: str, answer: str, concept: str) -> bool:
        more = self._aliases.get(concept.casefold()) or self._aliases.get(bare(concept).casefold()) or ()
        return mentions(answer, (concept, *more))


def _candidate(thing: Any) -> tuple[str, str, tuple[str, ...]]:
    """A candidate's word, category and aliases."""
    if isinstance(thing, str):
        return thing, "", ()
    if isinstance(thing, tuple) and len(thing) == 2:
        return thing[0], thing[1], ()
    word = getattr(thing, "concept", None) or getattr(thing, "name", None)
    if not isinstance(word, str):
        raise TypeError(f"names= holds {thing!r}: give words, pairs (word, category), or things with name and category")
    return word, getattr(thing, "category", ""), tuple(getattr(thing, "aliases", ()))
