"""The experiments of arXiv 2509.20751, each one function from two encoders and pairs to a table.

`vision` is an encoder of pictures, `language` one of words (see `encoders.py`): two models, or a model's two sides.
"There" is from words to pictures (L to V), "back" from pictures to words (V to L). Folds never tear groups apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import choice
from ..stats.folds import make_folds
from ..stats.layer_map import layer_map
from ..stats.ridge import LAMBDAS, linear_predictivity
from ..stats.scores import at_least, change, labels
from ..stats.similarity import cka, mutual_knn, rsa
from .encoders import PICTURES, WORDS
from .features import content, features

if TYPE_CHECKING:
    from ..stats.ridge import Predictivity
    from ..stats.scores import Score
    from .encoders import Encoder
    from .manipulations import Manipulation
    from .pairs import Pair


L_TO_V, V_TO_L = "words to pictures", "pictures to words"


_DIRECTIONS = {"x to y": V_TO_L, "y to x": L_TO_V, "both": "both"}


Folder = str | os.PathLike[str] | None


def check_sides(vision: Encoder, language: Encoder) -> None:
    """Raise ValueError unless one takes pictures and the other words."""
    for encoder, takes, name in ((vision, PICTURES, "vision"), (language, WORDS, "language")):
        if encoder.takes != takes:
            raise ValueError(f"{name}= takes {encoder.takes} ({encoder.name}); one that takes {takes} is needed")


def check_pairs(vision: Encoder, language: Encoder, pairs: Sequence[Pair]) -> None:
    """Raise ValueError for the wrong sides, no pairs, and the same picture in two groups."""
    check_sides(vision, language)
    if not pairs:
        raise ValueError("no pairs: at least 15 are needed, three for each of five folds")
    groups: dict[bytes, Pair] = {}
    for pair in pairs:
        other = groups.setdefault(content(pair.image, PICTURES), pair)
        if other.group != pair.group:
            raise ValueError(
                f"{other.name} and {pair.name} are the same picture in the groups {other.group!r} and {pair.group!r}: "
                "what is fitted would be tested; give both one group, or leave one out"
            )


def captions_of(pairs: Sequence[Pair], number: int) -> list[str]:
    """Caption number `number`, from 0, of each pair. Raises ValueError where there are fewer."""
    if short := [p for p in pairs if len(p.captions) <= number]:
        raise ValueError(
            f"{short[0].name} has {len(short[0].captions)} captions, and number {number} (from 0) is asked for; so for "
            f"{len(short)} of {len(pairs)} pairs: leave these out or ask for fewer"
        )
    return [p.captions[number] for p in pairs]


def groups_of(pairs: Sequence[Pair]) -> np.ndarray | None:
    """The pairs' groups (n,) as numbers, or None where each is one of its own."""
    groups = labels([p.group for p in pairs], len(pairs))
    return None if groups is None or len(set(groups.tolist())) == len(pairs) else groups


def alignment_map(
    vision: Encoder,
    language: Encoder,
    pairs: Sequence[Pair],
    *,
    vision_layers: Sequence[int] | None = None,
    language_layers: Sequence[int] | None = None,
    measure: str = "predictivity",
    caption: int = 0,
    draws: int = 200,
    folder: Folder = None,
    **more: Any,
) -> list[dict[str, Any]]:
    """Every layer of one model against every layer of the other, in both directions where a measure has two.

    Columns as in `layer_map`, with vision_layer and language_layer for its x and y; `more` goes there too. p_map is
    corrected for having looked at every cell.

    Raises ValueError for encoders of the wrong side, no pairs, missing captions, and the same picture in two groups.
    """
    check_pairs(vision, language, pairs)
    vision_features = features(vision, (p.image for p in pairs), vision_layers, folder=folder)
    language_features = features(language, captions_of(pairs, caption), language_layers, folder=folder)
    options = (
        dict(duplicates="allow", groups=groups_of(pairs)) | more
    )  # pictures were compared; captions may well be equal
    rows = layer_map(_varying(vision_features), _varying(language_features), measure, draws=draws, **options)  # type: ignore[arg-type]
    for row in rows:
        row["direction"] = _DIRECTIONS[row["direction"]]
    names = {"x_layer": "vision_layer", "y_layer": "language_layer"}
    return [{names.get(k, k): v for k, v in row.items()} for row in rows]


def _varying(side: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Layers in which items differ at all: the embedding of a last token that all texts share does not."""
    varying = {layer: values for layer, values in side.items() if np.ptp(values, axis=0).any()}
    if not varying:
        raise ValueError(f"all items are the same in every layer of {list(side)}: choose tokens='mean' or other items")
    return varying


@dataclass(frozen=True)
class Setting:
    """What the experiments on one pair of layers share.

    layers     (vision, language) layers
    measures   of "predictivity", "cka", "knn" and "rsa"
    draws      of nulls and intervals
    """

    layers: tuple[int, int]
    measures: tuple[str, ...] = ("predictivity", "cka")
    lambdas: tuple[float, ...] = LAMBDAS
    folds: int = 5
    draws: int = 500
    seed: int = 0

    def scores(
        self, pictures: np.ndarray, captions: np.ndarray, groups: np.ndarray | None
    ) -> dict[tuple[str, str], Score]:
        """By (measure, direction). Raises ValueError for a measure that there is not."""
        measured: dict[tuple[str, str], Score] = {}
        alone: dict[str, Callable[..., Score]] = {"cka": cka, "knn": mutual_knn, "rsa": rsa}
        for measure in self.measures:
            if measure == "predictivity":
                measured[measure, L_TO_V] = self.predict(captions, pictures, groups)
                measured[measure, V_TO_L] = self.predict(pictures, captions, groups)
            elif measure in alone:
                measured[measure, "both"] = alone[measure](pictures, captions, groups=groups)
            else:
                raise ValueError(f"measures={self.measures!r}: allowed are predictivity, {', '.join(alone)}")
        return measured

    def predict(self, x: np.ndarray, y: np.ndarray, groups: np.ndarray | None) -> Predictivity:
        """Linear predictivity in one direction."""
        split = make_folds(len(x), self.folds, groups=groups, seed=self.seed)
        return linear_predictivity(x, y, lambdas=self.lambdas, folds=split, groups=groups, duplicates="allow")


def manipulated(
    vision: Encoder,
    language: Encoder,
    pairs: Sequence[Pair],
    manipulations: Sequence[Manipulation],
    setting: Setting,
    *,
    caption: int = 0,
    folder: Folder = None,
) -> list[dict[str, Any]]:
    """How alignment changes when pictures or captions are changed; maps are fitted anew to what was changed.

    A row for each manipulation ("none" first), measure and direction: value with interval, null and p, and `change`
    against the untouched pairs with its paired 95 % interval change_low to change_high. `touched` is the share of the
    items that the manipulation changed at all.

    Raises ValueError as `alignment_map` and the manipulations do.
    """
    check_pairs(vision, language, pairs)
    groups, texts = groups_of(pairs), captions_of(pairs, caption)
    vision_features = one_layer(vision, (p.image for p in pairs), setting.layers[0], folder)
    language_features = one_layer(language, texts, setting.layers[1], folder)
    before = setting.scores(vision_features, language_features, groups)
    rows = [_row("none", key, score, None, setting) | dict(touched=0.0) for key, score in before.items()]
    for manipulation in manipulations:
        a, b = vision_features, language_features
        touched: list[bool] = []
        if manipulation.of == PICTURES:
            pictures = _changed_pictures(pairs, manipulation, touched)
            a = one_layer(vision, pictures, setting.layers[0], folder)
        else:
            words = [manipulation.change(text) for text in texts]
            touched = [w != t for w, t in zip(words, texts, strict=True)]
            b = one_layer(language, words, setting.layers[1], folder)
        for key, score in setting.scores(a, b, groups).items():
            rows.append(
                _row(manipulation.name, key, score, before[key], setting) | dict(touched=float(np.mean(touched)))
            )
    return rows


def _changed_pictures(pairs: Sequence[Pair], manipulation: Manipulation, touched: list[bool]) -> Iterator[Any]:
    """Pictures as they were changed, one at a time, and whether they were changed at all."""
    for pair in pairs:
        changed = manipulation.change(pair)
        touched.append(content(changed, PICTURES) != content(pair.image, PICTURES))
        yield changed


def one_layer(encoder: Encoder, items: Iterable[Any], layer: int, folder: Folder) -> np.ndarray:
    """Features (n, d) of items at one layer."""
    return features(encoder, items, [layer], folder=folder)[layer]


def _row(name: str, key: tuple[str, str], score: Score, before: Score | None, setting: Setting) -> dict[str, Any]:
    row = dict(manipulation=name, direction=key[1]) | score.row(setting.draws, seed=setting.seed) | dict(measure=key[0])
    if before is None:
        return row | dict(change=None, change_low=None, change_high=None)
    value, low, high = change(score, before, setting.draws, seed=setting.seed)
    return row | dict(change=value, change_low=low, change_high=high)


def exemplar_averaging(
    vision: Encoder,
    language: Encoder,
    pairs: Sequence[Pair],
    setting: Setting,
    *,
    over: str = "captions",
    most: int = 5,
    repeats: int = 5,
    folder: Folder = None,
) -> list[dict[str, Any]]:
    """Alignment against k, how many exemplars of a concept are averaged, k = 1 to `most`.

    over      "captions" of each picture, or "pictures" of each group, beside the mean of all its captions
    repeats   how often k exemplars are drawn without replacement; values are means over these, value_least and
              value_most their range

    n, the number of concepts, is the same at every k. Raises ValueError where a concept has fewer than `most`.
    """
    at_least(most=most, repeats=repeats)
    choice(over, "over", ("captions", "pictures"))
    check_pairs(vision, language, pairs)
    members: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        members.setdefault(pair.group, []).append(i)
    begins = np.cumsum([0, *(len(p.captions) for p in pairs)])
    own = [np.arange(a, b) for a, b in pairwise(begins)]  # rows of a picture's captions
    vision_features = one_layer(vision, (p.image for p in pairs), setting.layers[0], folder)
    language_features = one_layer(language, (c for p in pairs for c in p.captions), setting.layers[1], folder)
    pictures = [np.array(rows) for rows in members.values()]
    captions = [np.concatenate([own[i] for i in rows]) for rows in members.values()]
    exemplars = captions if over == "captions" else pictures
    if short := [name for name, some in zip(members, exemplars, strict=True) if len(some) < most]:
        raise ValueError(
            f"{len(short)} of {len(members)} groups, such as {short[0]!r}, have fewer than most={most} {over}; the "
            f"least is {min(map(len, exemplars))}"
        )
    random = np.random.default_rng(setting.seed)
    rows = []
    for k in range(1, most + 1):
        measured: dict[tuple[str, str], list[Score]] = {}
        for _ in range(repeats):
            samples = [random.choice(some, k, replace=False) for some in exemplars]
            a = _means(vision_features, samples if over == "pictures" else pictures)
            b = _means(language_features, samples if over == "captions" else captions)
            for key, score in setting.scores(a, b, None).items():
                measured.setdefault(key, []).append(score)
        for (measure, direction), scores in measured.items():
            values = [s.value for s in scores]
            low, high = np.mean([s.interval(setting.draws, seed=setting.seed) for s in scores], axis=0)
            p = float(np.median([s.null(setting.draws, seed=setting.seed).p for s in scores]))
            row = dict(value=float(np.mean(values)), value_low=float(low), value_high=float(high))
            row |= dict(value_least=min(values), value_most=max(values), p=p, n=len(members))
            rows.append(dict(over=over, k=k, measure=measure, direction=direction) | row)
    return rows


def _means(values: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([values[some].mean(0) for some in rows])
