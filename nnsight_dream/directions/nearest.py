"""The words nearest to a direction, and a direction as an HTML table of its facts."""

from __future__ import annotations

import html
import warnings
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from .baseline_words import BASELINE_WORDS
from .direction import MODELS, Direction

if TYPE_CHECKING:
    from ..models.vlm import VLM


#: Of larger models in bytes of weights no words are read only to show something.
MOST = 1_000_000_000


_READ: WeakKeyDictionary[VLM, dict[tuple[str, str], tuple[list[str], torch.Tensor]]] = WeakKeyDictionary()


def nearest_words(direction: Direction, count: int = 5) -> list[tuple[str, float]]:
    """The words whose concept vectors have the highest cosine with a direction, with the cosines, the highest first.

    Of the bundled model's vocabulary, or of 100 common words. None where the model is gone, on a server or large.
    """
    vlm = MODELS.get(direction.model)
    if vlm is None or vlm.remote is not None:
        return []
    if sum(p.numel() * p.element_size() for p in vlm.hf.parameters()) > MOST:
        return []
    words, vectors = _vectors(vlm, direction)
    cosines = torch.nn.functional.cosine_similarity(vectors, direction.vector[None])
    ranked = [(words[i], float(cosines[i])) for i in cosines.argsort(descending=True).tolist()]
    return [(word, value) for word, value in ranked if word != direction.label][:count]


def _vectors(vlm: VLM, direction: Direction) -> tuple[list[str], torch.Tensor]:
    from ..demo import bundle
    from .text import concept

    place = (str(direction.site), vlm.fingerprint(direction.site))
    cache = _READ.setdefault(vlm, {})
    if place not in cache:
        words = [c.name for c in bundle.concepts()] if vlm.is_demo else list(dict.fromkeys(BASELINE_WORDS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            directions = concept(vlm, words, direction.site)
        cache[place] = words, torch.stack([d.vector for d in directions])
    return cache[place]


def table(direction: Direction) -> str:
    """HTML: where a direction is, how it was made, and the words that it is near."""
    facts = [
        ("layer", f"{direction.site.layer}: {direction.site.tl_name}"),
        ("model", direction.model),
        ("made by", str(direction.provenance.get("method", "hand"))),
        ("norm", f"{direction.norm:.4g}, width {direction.width}"),
    ]
    if near := nearest_words(direction):
        facts.append(("nearest words", ", ".join(f"{word} {value:.2f}" for word, value in near)))
    rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in facts)
    return f"<b>{html.escape(direction.label[:200])}</b><table>{rows}</table>"
