"""Examiners on this machine that choose among names: the bundled judge and zero-shot dual encoders."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .. import arguments
from ..demo import bundle
from ..state.calm import calmly
from ..state.changes import still
from .desk import answer_row, grade_row
from .named import DemoJudge, NamingJudge, as_pil, loaded, placed, worded
from .questions import bare

if TYPE_CHECKING:
    from .desk import Asked, Keep


_AT_ONCE = 32  # pictures


def demo_aliases() -> dict[str, tuple[str, ...]]:
    """For each name and alias of the bundled concepts, all names of the same thing.

    >>> demo_aliases()["chipmunk"]
    ('squirrel', 'chipmunk')
    """
    return {name: (c.name, *c.aliases) for c in bundle.concepts() for name in (c.name, *c.aliases)}


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
        for question in asked:
            if question.answer is not None:
                keep(question, *self._grades(question, question.answer["text"]))
        by_picture = [list(group) for _, group in itertools.groupby(new, lambda a: a.key)]
        for start in range(0, len(by_picture), _AT_ONCE):
            batch = [(group, image) for group, image in opened_groups(by_picture[start : start + _AT_ONCE], keep)]
            if not batch:
                continue
            logits = self._judge.logits([image for _, image in batch])
            for (group, _), row in zip(batch, logits, strict=True):
                for question in group:
                    self._answer(question, row[None], keep)

    def _answer(self, question: Asked, logits: torch.Tensor, keep: Keep) -> None:
        verdict = self._judge.verdicts(logits, question.category if question.protocol == "hint" else None)[0]
        right = self.accepted(question.concept)
        ranks = [i for i, name in enumerate(verdict.names, 1) if name in right]
        best = dict(names=list(verdict.names[:5]), probabilities=list(verdict.probabilities[:5]), rank=ranks[0])
        row = answer_row(question, verdict.top, "answer", verdict.top, self.name, of=len(verdict.names), **best)
        keep(question, row, *self._grades(question, verdict.top))

    def _grades(self, question: Asked, top: str) -> list[dict[str, Any]]:
        return [grade_row(question, c, int(top in self.accepted(c)), top, self.grader) for c in question.grade_as]


def opened_groups(groups: Sequence[list[Asked]], keep: Keep) -> Iterator[tuple[list[Asked], Image.Image]]:
    """Questions by picture, with the picture; what cannot be opened fails."""
    for group in groups:
        try:
            image = group[0].image()
        except Exception as error:  # what a damaged file raises is of many kinds
            for question in group:
                keep(question, {"what": "failed", "error": f"the picture cannot be read: {error}"})
        else:
            yield group, image


class DemoExaminer(_ByName):
    """The bundled judge. Each answer comes with its five best `names`, their `probabilities`, and the concept's `rank`.

    It answers "strict" among everything that the bundled model was shown, "hint" within the bundled category; a concept
    that it knows under another name counts by that name. What it does not know it is not asked.
    """

    def __init__(self, judge: DemoJudge | None = None, name: str = "demo"):
        self.name = arguments.text(name, "name", "demo", blank=False)
        if judge is not None and not isinstance(judge, NamingJudge):
            raise TypeError(
                f"judge={arguments.shown(judge)}: a judge that names pictures is needed, such as nd.DemoJudge()"
            )
        self._set_up(judge or DemoJudge(), {c.name: c.aliases for c in bundle.concepts()})

    def __repr__(self) -> str:
        return f"DemoExaminer({self.name!r}: {len(self._judge.names)} names)"


class ZeroShotJudge(NamingJudge, _ByName):
    """A CLIP or SigLIP model that compares pictures with "a picture of a ..." for each of the names.

    model       a hub id, a folder, or a loaded dual encoder with its `processor`
    names       candidates: words, pairs (word, category), or anything with a name or concept, a category and perhaps
                aliases, such as `demo.concepts()` or the jobs of a store
    template    what a name is put into, at {name}
    name        what its answers are kept under; the last part of the model's name by default
    options     go to `from_pretrained`; `device=`, the best there is if not given

    Raises ValueError for no names and for a template without {name}; TypeError for a model that is no dual encoder.
    """

    @calmly
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
        if not isinstance(template, str) or "{name}" not in template:
            raise ValueError(
                f"template={arguments.shown(template)} has no place for a name: write {{name}} where it goes"
            )
        candidates = {
            word: (category, aliases)
            for word, category, aliases in map(
                _candidate, arguments.listed(names, "names", "words to choose from, in a list, are")
            )
        }
        if not candidates:
            raise ValueError("names= is empty: give the words to choose from, such as demo.concepts()")
        self._model, self._processor, model_name = loaded(model, processor, "AutoModel", options)
        for method in ("get_text_features", "get_image_features"):
            if not hasattr(self._model, method):
                raise TypeError(f"{type(self._model).__name__} has no {method}: give a CLIP or SigLIP model")
        name = None if name is None else arguments.text(name, "name", blank=False)
        self.name, self.template = name or model_name, template
        self.names, self.categories = tuple(candidates), tuple(category for category, _ in candidates.values())
        self._set_up(self, {word: aliases for word, (_, aliases) in candidates.items()})
        self._text = self._text_features()

    def __repr__(self) -> str:
        return f"ZeroShotJudge({self.name!r}: {len(self.names)} names, {self.template!r})"

    @calmly
    def logits(self, images: Any) -> torch.Tensor:
        """(pictures, names): scaled cosines, on the cpu. A bias, the same for all names, is left out."""
        rows = []
        pictures = as_pil(images)
        for start in range(0, len(pictures), _AT_ONCE):
            seen = self._features("image", images=pictures[start : start + _AT_ONCE])
            rows.append(seen @ self._text.T)
        scale = float(self._model.logit_scale.detach().float().exp())
        return torch.cat(rows) * scale

    def _text_features(self) -> torch.Tensor:
        texts = [self.template.replace("{name}", name) for name in self.names]
        texts, length = worded(texts, self._model, self._processor, self.name)
        parts = [self._features("text", text=texts[i : i + 256], **length) for i in range(0, len(texts), 256)]
        return torch.cat(parts)

    def _features(self, kind: str, **content: Any) -> torch.Tensor:
        """(n, width), each of length one."""
        inputs = placed(self._processor(**content, return_tensors="pt"), self._model)
        with still(self._model):
            out = getattr(self._model, f"get_{kind}_features")(**inputs)
        vectors = out if isinstance(out, torch.Tensor) else out.pooler_output
        return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu()


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
