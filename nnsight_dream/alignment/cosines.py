"""Alignment: how close pictures of things lie to the vectors of their words, layer by layer.

"Apples and oranges" of arXiv 2601.08017, appendices A and D, and what its section 3 leaves open: why some layers fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..arguments import is_empty, several, shown, strict, whole
from ..directions.centres import Grey
from ..directions.direction import sites_of, unit
from ..directions.text import concept
from ..engine.pooling import sinks
from ..io.pictures import as_tensors, by_size
from ..models.checked import layers as layers_of
from ..models.reading import read_pictures
from ..synthesis.centres import centre

if TYPE_CHECKING:
    from ..models.vlm import VLM


NOISE = "white noise"


@dataclass(frozen=True, eq=False)
class Similarities:
    """Cosines of concept vectors with pictures, by layer.

    mean      (layers, concepts, pictures): cos(v, mean over patches of h - c)
    maximum   the same shape: the largest over patches of cos(v, h - c)
    layers, concepts, of   what the axes stand for; `of` names what each picture shows
    states    by layer, what `diagnosis` needs of the patches themselves
    """

    layers: tuple[int, ...]
    concepts: tuple[str, ...]
    of: tuple[str, ...]
    mean: np.ndarray
    maximum: np.ndarray
    states: tuple[dict[str, float], ...]

    def values(self, which: str) -> np.ndarray:
        """`mean` or `maximum`. Raises ValueError for another name."""
        if which not in ("mean", "maximum"):
            raise ValueError(f"{which!r}: allowed are 'mean' and 'maximum'")
        return self.mean if which == "mean" else self.maximum


def white_noise(count: int, side: int, seed: int = 0) -> list[Image.Image]:
    """`count` pictures of independent uniform pixels: the paper's control."""
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


@strict
def similarities(
    vlm: VLM,
    pictures: Mapping[str, Sequence[Any]],
    layers: Sequence[int] | None = None,
    *,
    words: Sequence[str] | None = None,
    middle: Any = None,
    batch: int = 16,
) -> Similarities:
    """Cosines of words with pictures at every layer asked for; all layers by default, in one pass over the pictures.

    pictures   by name of what they show (PIL images or tensors (3, H, W) in [0, 1]); names beside `words` are controls
    words      whose vectors are compared; the names of the pictures, but for `NOISE`, if not given
    middle     the centre that is taken from patches; `Grey()`, as in the paper, if not given

    Raises ValueError where there is no picture or no word.
    """
    if not isinstance(pictures, Mapping):
        raise TypeError(f"pictures={shown(pictures)}: pictures by name are needed, such as {{'octopus': [picture]}}")
    middle, batch = Grey() if middle is None else middle, whole(batch, "batch", 1)
    if layers is None:
        layers = range(1, vlm.layers + 1)
    chosen_layers = [] if is_empty(layers) else layers_of(layers, "layers")[0]
    if words is None:
        words = [name for name in pictures if name != NOISE]
    texts, _ = several(words, str, "words", "a word, or a list of them, is")
    of = [name for name, some in pictures.items() for _ in some]
    if not of or not texts or not chosen_layers:
        raise ValueError("nothing to compare: at least one picture, one word and one layer are needed")
    sites, _ = sites_of(vlm, chosen_layers)
    directions = concept(vlm, texts, chosen_layers)
    vectors = {s: torch.stack([d[i].vector for d in directions]).to(vlm.device) for i, s in enumerate(sites)}
    means: dict[Any, list[torch.Tensor]] = {s: [] for s in sites}
    tops: dict[Any, list[torch.Tensor]] = {s: [] for s in sites}
    moments = {s: _Moments() for s in sites}
    everything = as_tensors([p for some in pictures.values() for p in some], "pictures")
    if (count := sum(map(len, everything))) != len(of):
        raise ValueError(f"{count} pictures for {len(of)} names: give tensors (3, H, W), each its own")
    order: list[int] = []
    for which, part in by_size(everything, batch):
        with torch.no_grad():
            activations = read_pictures(vlm, part.to(vlm.device), sites)
        for site in sites:
            patches = activations[site].float() - centre(vlm, site, middle)
            if not bool(patches.isfinite().all()):
                raise ValueError(
                    f"activations of pictures {', '.join(map(str, which))} at {vlm.describe(site)} are not finite; "
                    "float16 overflows in some models: load with torch.bfloat16 or torch.float32"
                )
            towards = unit(vectors[site].float())
            means[site].append(unit(patches.mean(1)) @ towards.T)
            tops[site].append((unit(patches) @ towards.T).amax(1))
            moments[site].add(patches[[of[i] != NOISE for i in which]])
        order += which
    back = torch.tensor(order).argsort()  # they came size by size
    mean, top = (np.stack([torch.cat(parts[s]).cpu()[back].T.numpy() for s in sites]) for parts in (means, tops))
    numbers = tuple(s.layer for s in sites)
    return Similarities(numbers, tuple(texts), tuple(of), mean, top, tuple(moments[s].summary() for s in sites))


class _Moments:
    """Mean and mean square of patches, dimension by dimension, and of pictures' means."""

    def __init__(self) -> None:
        self.sum: Any = 0.0
        self.square: Any = 0.0
        self.pictures: list[torch.Tensor] = []
        self.count, self.sinks = 0, 0

    def add(self, patches: torch.Tensor) -> None:
        flat = patches.flatten(0, 1).double()
        self.sum, self.square = self.sum + flat.sum(0), self.square + flat.square().sum(0)
        self.count += len(flat)
        self.pictures.append(patches.mean(1).double())
        self.sinks += int(sinks(patches).sum())

    def summary(self) -> dict[str, float]:
        if not self.count:
            return dict.fromkeys(("common", "outliers", "largest", "sinks"), float("nan"))
        means = torch.cat(self.pictures)
        square = self.square / self.count
        least = torch.finfo(square.dtype).tiny
        typical = square.median().clamp(min=least)
        return dict(
            common=float(means.mean(0).square().sum() / means.square().sum(1).mean().clamp(min=least)),
            outliers=float((square > 100 * typical).sum()),
            largest=float(square.max() / square.sum().clamp(min=least)),
            sinks=self.sinks / self.count,
        )


def separation(
    similarities: Similarities, which: str = "mean", *, draws: int = 1000, seed: int = 0
) -> list[dict[str, float | int]]:
    """Per layer, whether words lie closer to pictures of their thing than to pictures of the other words' things.

    matching, mismatching, noise   mean cosines; noise is NaN where there are no such pictures
    auc      chance that a matching pair beats a mismatching pair of the same word: 0.5 means no alignment
    noise_auc   chance that a matching picture beats a noise picture
    p        permutation test of matching minus mismatching: pictures change their names, draws times; one-sided

    Raises ValueError for fewer than two words that have pictures, and for draws below 1.
    """
    draws = whole(draws, "draws", 1)
    values = similarities.values(which)
    words = [w for w in similarities.concepts if w in similarities.of]
    if len(words) < 2:
        raise ValueError(f"at least two words with pictures are needed; there are {words}")
    rows = [similarities.concepts.index(w) for w in words]
    columns = np.array([i for i, name in enumerate(similarities.of) if name in words])
    names = np.array([words.index(similarities.of[i]) for i in columns])
    noise = [i for i, name in enumerate(similarities.of) if name == NOISE]
    random = np.random.default_rng(whole(seed, "seed", 0))
    shuffles = [random.permutation(names) for _ in range(draws)]
    out: list[dict[str, float | int]] = []
    for layer, table in zip(similarities.layers, values[:, rows], strict=True):
        inside = table[:, columns]
        right = names == np.arange(len(words))[:, None]
        gap = _gap(inside, names)
        beyond = sum(_gap(inside, order) >= gap - 1e-12 for order in shuffles)
        out.append(
            dict(
                layer=layer,
                matching=float(inside[right].mean()),
                mismatching=float(inside[~right].mean()),
                noise=float(table[:, noise].mean()) if noise else float("nan"),
                auc=float(np.mean([_auc(row[r], row[~r]) for row, r in zip(inside, right, strict=True)])),
                noise_auc=float(
                    np.mean([_auc(a[r], b) for a, r, b in zip(inside, right, table[:, noise], strict=True)])
                )
                if noise
                else float("nan"),
                p=(1 + int(beyond)) / (1 + draws),
            )
        )
    return out


def _gap(table: np.ndarray, names: np.ndarray) -> float:
    """Mean over matching pairs minus mean over the others, each word counting alike."""
    right = names == np.arange(len(table))[:, None]
    matching = (table * right).sum(1) / right.sum(1)
    others = (table * ~right).sum(1) / (~right).sum(1)
    return float((matching - others).mean())


def _auc(a: np.ndarray, b: np.ndarray) -> float:
    """Chance that one of a is larger than one of b, ties by half (Mann and Whitney, 1947)."""
    return float((a[:, None] > b[None]).mean() + 0.5 * (a[:, None] == b[None]).mean())


def diagnosis(similarities: Similarities, *, draws: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Per layer, what says whether pictures can be climbed to there: `separation`, and the state of the patches.

    common     share of the pictures' mean patches that is the same in all, 0 to 1: what a climb spends itself on
    outliers   dimensions whose mean square is above 100 times the median: they decide cosines (Sun et al. 2024,
               "Massive Activations in Large Language Models")
    largest    share of the mean square that the largest dimension has
    sinks      share of the patches that are far longer than the others of their picture (`engine.pooling.sinks`);
               `WithoutSinks` leaves them out of a climb
    works      the prediction: words are told apart (p < 0.01), and noise does not beat pictures (noise_auc > 0.5)
    """
    rows = separation(similarities, draws=draws, seed=seed)
    return [
        {**row, **state, "works": bool(row["p"] < 0.01 and not row["noise_auc"] <= 0.5)}
        for row, state in zip(rows, similarities.states, strict=True)
    ]


def curves(similarities: Similarities, which: str = "mean") -> list[dict[str, Any]]:
    """For a figure: by layer and word, the mean cosine with its own pictures, others' and noise, and their spread.

    Each row has layer, word, kind ("matching", "mismatching", "noise"), value, low and high (the middle half of the
    pictures), and n, how many pictures there are.
    """
    kinds = {
        "matching": lambda word, of: of == word,
        "mismatching": lambda word, of: of not in (word, NOISE),
        "noise": lambda word, of: of == NOISE,
    }
    rows = []
    for layer, table in zip(similarities.layers, similarities.values(which), strict=True):
        for word, line in zip(similarities.concepts, table, strict=True):
            for kind, belongs in kinds.items():
                values = line[[belongs(word, of) for of in similarities.of]]
                if len(values):
                    low, high = np.quantile(values, [0.25, 0.75])
                    row = dict(value=float(values.mean()), low=float(low), high=float(high), n=len(values))
                    rows.append(dict(layer=layer, word=word, kind=kind, **row))
    return rows
