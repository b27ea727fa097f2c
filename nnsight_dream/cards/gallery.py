"""Galleries: feature cards as one self-contained page that is searched and clicked through."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .. import arguments
from ..io.files import check_file
from ..io.html_pages import Page
from ..io.pictures import own_png
from ..judges.questions import in_words
from ..report.page_pictures import Shelf
from ..report.pages import filled, template, written
from ..report.tables import headings
from ..sae.activations import features_of
from ..sweeps.store import now
from ..synthesis.blocks import reading_rows
from .card import TOP, Card

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from ..sae.activations import Active
    from ..synthesis.prototype import Prototype
    from .card import Shot


PICTURE, SMALL = 256, 64  # most pixels a side: of what the page holds, and of what stays PNG


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture and the features that make it, the most active first."""

    name: str
    image: Image.Image
    features: tuple[Active, ...]


def seen_by(
    vlm: VLM, sae: Any, images: Sequence[Image.Image | Prototype], names: Sequence[str], top: int = 12
) -> list[Seen]:
    """Which features make these pictures, each alone; for the page. Raises as `features_of`, ValueError for names."""
    if len(images) != len(names):
        raise ValueError(f"{len(images)} pictures but {len(names)} names: one for each is needed")
    return [
        Seen(name, getattr(image, "image", image), tuple(features_of(vlm, sae, image, top)))  # type: ignore[arg-type]
        for name, image in zip(names, images, strict=True)
    ]


def nearest_pictures(cards: Sequence[Card], count: int = TOP) -> dict[str, list[tuple[int, float]]]:
    """For each card, by key, the features whose prototypes it is most like: (feature, cosine), the nearest first.

    The cosine is that of the prototypes' mean image tokens, each less the mean of real pictures. Raises ValueError for
    cards of different sites or models.
    """
    places = {(c.facts["model"], c.facts["hf_name"]) for c in cards}
    if len(places) > 1:
        raise ValueError(f"cards of one site and model can be compared; these are of {sorted(map(str, places))}")
    if not cards:
        return {}
    rows = np.array([c.middle for c in cards], dtype=np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-30)
    cosines = rows @ rows.T
    nearest = {}
    for i, card in enumerate(cards):
        order = [j for j in np.argsort(-cosines[i], kind="stable").tolist() if cards[j].index != card.index]
        nearest[card.key] = [(cards[j].index, float(cosines[i, j])) for j in order[:count]]
    return nearest


def page(
    cards: Sequence[Card],
    path: str | os.PathLike[str],
    *,
    pictures: Sequence[Seen] = (),
    verdicts: Mapping[str, Sequence[Sequence[str]]] | None = None,
    rates: Sequence[Mapping[str, Any]] = (),
    labels: Mapping[int, str] | None = None,
    title: str = "Features",
) -> Page:
    """Write one HTML file with cards to search and click through; it holds all it shows and loads nothing.

    Of more than 200 pictures, or 20 MB, the pictures lie in a folder beside it, `index_files` for `index.html`.

    pictures   pictures with the features that make them, see `seen_by`
    verdicts   by a card's key, rows of (question, what the judge said, "yes" or "no")
    rates      rows of `feature_judging.judge_features`
    labels     words for features that have no card, by number; for those of `pictures` what `seen_by` knows

    Names are only ever text in it. Raises ValueError for no card, OSError where the file cannot be written.
    """
    path = check_file(path)
    cards, _ = arguments.several(cards, Card, "cards", "a Card, or a list of them as make_cards gives, is")
    if not cards:
        raise ValueError("no finished card to show: make some with make_cards")
    shelf = Shelf(path)

    def kept(image: Image.Image) -> int:
        return shelf.add(image, PICTURE, "PNG" if max(image.size) <= SMALL else "JPEG")

    near = nearest_pictures(cards)
    facts = cards[0].facts
    summary = (
        f"{len(cards)} of {facts['width']} features of a {facts['architecture']} autoencoder at {facts['site']} of "
        f"{facts['model']}; {now()[:10]}"
    )
    data: dict[str, Any] = dict(
        title=title,
        told=summary,
        cards=[_shown(c, near[c.key], (verdicts or {}).get(c.key, ()), kept) for c in cards],
        pictures=[dict(name=p.name, image=kept(p.image), features=[_active(f) for f in p.features]) for p in pictures],
        rates=[headings(list(rates[0])), *([_cell(k, v) for k, v in r.items()] for r in rates)] if rates else [],
    )
    lists = [c["near"] + c["makes"] for c in data["cards"]] + [p["features"] for p in data["pictures"]]
    mentioned = {row[0] for rows in lists for row in rows}
    words = {f.index: f.word for p in pictures for f in p.features if f.word} | dict(labels or {})
    data |= dict(images=shelf.urls(), labels={i: word for i, word in words.items() if i in mentioned})
    return written(path, filled(shelf.allowed(template("cards")), data=data))


def _active(feature: Active) -> list[Any]:
    return [feature.index, _round(feature.max), _round(feature.mean), _round(feature.share)]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "question":
        return in_words(str(value))
    return f"{value:.0%}" if name in ("rate", "low", "high") else str(value)


def _round(value: float) -> float:
    return round(value, 3) if math.isfinite(value) else 0.0


def _pairs(rows: Sequence[tuple[Any, float]]) -> list[list[Any]]:
    return [[name, _round(value)] for name, value in rows]


def _shown(card: Card, near: Sequence[tuple[int, float]], verdicts: Sequence[Any], kept: Any) -> dict[str, Any]:
    prototypes = {shot: card.prototype(shot) for shot in card.shots}
    first = prototypes[card.shots[0]]
    readings, reach = dict(first.readings or {}), card.reach(first)
    fires = kept(own_png(card.folder / "fires.png"))
    real = []
    for n, (name, value) in enumerate(card.shown):
        real.append([kept(own_png(card.folder / f"real-{n}.png")), name, _round(value)])
    return dict(
        index=card.index,
        key=card.key,
        label=card.label,
        shots=[[kept(p.image), _caption(shot, p)] for shot, p in prototypes.items()],
        fires=fires,
        silent=not any(v > 0 for row in card.fires for v in row),
        words=_pairs(card.words),
        real=real,
        top=_pairs(card.top),
        bottom=_pairs(card.bottom),
        note=card.note,
        near=_pairs(card.near),
        like=_pairs(near),
        makes=[[row[0], *map(_round, row[1:])] for row in card.makes],
        strength=_round(reach.own or 0.0),
        reached=reach.reached,
        reach=str(reach),
        link=card.link or "",
        facts=_facts(card, first, readings),
        verdicts=[list(map(str, row)) for row in verdicts],
        settings=json.dumps({k: card.facts[k] for k in ("settings", "versions")}, indent=1, ensure_ascii=False),
    )


def _caption(shot: Shot, prototype: Prototype) -> str:
    readings = dict(prototype.readings or {})
    if shot.negative:  # of minus the feature, so that the sign is turned back
        return f"the opposite, seed {shot.seed}: pre-activation {-float(readings['pre_mean']):.2f} on average"
    climbed = "" if shot.strength == 1 else f", {shot.strength:g} of the steps"
    return f"seed {shot.seed}{climbed}: activation {float(readings['act_max']):.2f}"


def _facts(card: Card, prototype: Prototype, readings: Mapping[str, Any]) -> list[list[str]]:
    facts = card.facts
    rows = [["site", f"{facts['site']}, {facts['hf_name']}"], *(list(row) for row in reading_rows(readings))]
    if facts["trained_on"]:
        rows.append(["trained on", facts["trained_on"]])
    rows.append([f"highest on {facts['pictures']} real pictures", f"{card.most_real:.3f}"])
    if card.strange:
        s = card.strange
        rows.append(["reconstruction error (FVU)", f"{s['fvu']:.2f}; real pictures {s['reference_fvu']:.2f}"])
        rows.append(["features firing for a token", f"{s['l0']:.1f}; real pictures {s['reference_l0']:.1f}"])
    return [*rows, ["objective", facts["objective"]], ["model", prototype.model]]
