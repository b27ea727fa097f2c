"""Alignment beside dreaming: whether words and pictures that align are also drawn so that a judge names them.

A model's two sides are compared at every layer; recognition of prototypes comes from a store that a sweep filled and a
judge examined (`nd.results`, `nd.rates`). And prototypes take the pictures' place in the measures of alignment.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..judges.tally import opened
from ..stats.similarity import ranks, retrieval, standardise
from .encoders import image_side, text_side
from .experiments import L_TO_V, V_TO_L, captions_of, check_pairs, groups_of, one_layer
from .features import features
from .preference import fit_of_items, rank_score

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from ..stats.scores import Score
    from ..sweeps.entries import Entry
    from ..sweeps.store import Store
    from .encoders import Encoder
    from .experiments import Folder, Setting
    from .pairs import Pair


Row = Mapping[str, Any]


def own_sides(
    vlm: VLM,
    pairs: Sequence[Pair],
    setting: Setting,
    *,
    layers: Sequence[int] | None = None,
    caption: int = 0,
    k: int = 5,
    folder: Folder = None,
) -> list[dict[str, Any]]:
    """How a model's image tokens align with its words at every layer, by the setting's measures and by retrieval at k.

    setting   its `layers` are not used
    layers    from 0; all if not given. A layer whose texts or pictures are all the same is left out

    Retrieval is among all pairs, each unit standardised on each side: does a word find its picture, in one space, with
    nothing fitted? A row for each layer, measure and direction, as `Score.row` has it.

    Raises ValueError as `alignment_map` does.
    """
    vision, language = image_side(vlm), text_side(vlm)
    check_pairs(vision, language, pairs)
    groups = groups_of(pairs)
    vision_features = features(vision, (p.image for p in pairs), layers, folder=folder)
    language_features = features(language, captions_of(pairs, caption), layers, folder=folder)
    rows = []
    for layer in vision_features:
        x, y = vision_features[layer], language_features[layer]
        if not np.ptp(x, axis=0).any() or not np.ptp(y, axis=0).any():
            continue
        measured: dict[tuple[str, str], Score] = dict(setting.scores(x, y, groups))
        u, v = standardise(x), standardise(y)
        measured["retrieval", L_TO_V] = retrieval(v, u, k, groups=groups)
        measured["retrieval", V_TO_L] = retrieval(u, v, k, groups=groups)
        for (measure, direction), score in measured.items():
            row = score.row(setting.draws, seed=setting.seed)
            rows.append(dict(layer=layer, direction=direction) | row | dict(measure=measure))
    return rows


def beside_recognition(alignment: Sequence[Row], recognised: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of `own_sides` with the rate of recognition at their layer: rate, rate_low, rate_high.

    recognised   rows with layer and rate, and low and high if known: of `nd.rates(nd.results(store))`

    Raises ValueError where no layer is in both, and for a layer that comes twice among the rates.
    """
    rates = {str(r["layer"]): r for r in recognised if r.get("rate") is not None}
    if len(rates) < sum(r.get("rate") is not None for r in recognised):
        raise ValueError(
            "recognised= has a layer twice: one rate for each is needed, as nd.rates(rows) gives them for one model "
            "and settings"
        )
    joined = [
        dict(row) | dict(rate=r["rate"], rate_low=r.get("low"), rate_high=r.get("high"))
        for row in alignment
        if (r := rates.get(str(row["layer"]))) is not None
    ]
    if not joined:
        raise ValueError(
            f"no layer is in both: alignment has {', '.join(sorted({str(r['layer']) for r in alignment})) or 'none'}, "
            f"recognised= has {', '.join(rates) or 'none'}"
        )
    return joined


def over_layers(joined: Sequence[Row], *, draws: int = 10_000, seed: int = 0) -> list[dict[str, Any]]:
    """Whether layers that align better are also dreamt better: Spearman's rank correlation over layers.

    joined   of `beside_recognition`

    A row for each measure and direction: value, p (two-sided, by permutation of layers; all orders where they are no
    more than `draws`) and n, the number of layers; None where all layers are alike or there are fewer than 3. Layers
    of one model are not independent, so that p is too small if anything.
    """
    rows = []
    for key in dict.fromkeys((r["measure"], r["direction"]) for r in joined):
        mine = [r for r in joined if (r["measure"], r["direction"]) == key]
        a, b = (ranks(np.array([float(r[name]) for r in mine])) for name in ("value", "rate"))
        correlation: dict[str, Any] = dict(value=None, p=None)
        if len(mine) > 2 and np.ptp(a) and np.ptp(b):
            correlation = _spearman(a, b, draws, seed)
        rows.append(dict(measure=key[0], direction=key[1]) | correlation | dict(n=len(mine)))
    return rows


def _spearman(a: np.ndarray, b: np.ndarray, draws: int, seed: int) -> dict[str, Any]:
    """Of two lists of ranks: value, and p over all orders, or over some."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    value = float(a @ b) / scale
    if len(a) < 10 and np.prod(np.arange(1, len(a) + 1)) <= draws * 10:
        orders = np.array(list(itertools.permutations(range(len(a)))))
        extra = 0  # the true order is among them
    else:
        random = np.random.default_rng(seed)
        orders, extra = np.array([random.permutation(len(a)) for _ in range(draws)]), 1
    beyond = int((np.abs(b[orders] @ a) / scale >= abs(value) - 1e-12).sum())
    return dict(value=value, p=(beyond + extra) / (len(orders) + extra))


def over_concepts(
    vlm: VLM,
    pairs: Sequence[Pair],
    results: Sequence[Row],
    setting: Setting,
    *,
    protocol: str = "hint",
    caption: int = 0,
    folder: Folder = None,
) -> list[dict[str, Any]]:
    """Whether concepts whose pictures and words align better are dreamt better: Spearman's correlation over concepts.

    pairs     of many concepts, also such as were not dreamt: maps are fitted to all, and each concept is scored where
              it is held out. A pair's `group` is its concept; of several the first counts
    results   of `nd.results`, of one judge; controls are left out, several seeds averaged
    setting   its `layers` are not used

    How well a concept aligns: the correlation over units of what is predicted of it and what is there, at the layer of
    its prototype. A row for each layer and direction as `Score.row` has it, with `recognised`, the mean score.

    Raises ValueError where fewer than 4 concepts are in both.
    """
    vision, language = image_side(vlm), text_side(vlm)
    check_pairs(vision, language, pairs)
    place = {p.group: i for i, p in reversed(list(enumerate(pairs)))}
    scores: dict[int, dict[str, list[float]]] = {}
    for r in results:
        plain = r["protocol"] == protocol and not r["control"] and r["score"] is not None
        if plain and isinstance(r["layer"], int) and r["concept"] in place:
            scores.setdefault(r["layer"], {}).setdefault(r["concept"], []).append(float(r["score"]))
    if not scores or max(map(len, scores.values())) < 4:
        raise ValueError(
            f"fewer than 4 concepts with a score ({protocol}) are among the pairs' groups; results= has "
            f"{len({r['concept'] for r in results})} concepts, pairs {len(place)} groups such as {pairs[0].group!r}"
        )
    layers, groups = sorted(layer for layer, of in scores.items() if len(of) >= 4), groups_of(pairs)
    vision_features = features(vision, (p.image for p in pairs), layers, folder=folder)
    language_features = features(language, captions_of(pairs, caption), layers, folder=folder)
    rows = []
    for layer in layers:
        some = scores[layer]
        dreamt = np.array([np.mean(of) for of in some.values()])
        for direction, x, y in (
            (L_TO_V, language_features[layer], vision_features[layer]),
            (V_TO_L, vision_features[layer], language_features[layer]),
        ):
            fits = fit_of_items(setting.predict(x, y, groups))[[place[c] for c in some]]
            row = rank_score(fits, dreamt, None).row(setting.draws, seed=setting.seed)
            rows.append(dict(layer=layer, direction=direction) | row | dict(recognised=float(dreamt.mean())))
    return rows


def prototypes(
    vision: Encoder,
    language: Encoder,
    store: Store,
    pairs: Sequence[Pair],
    setting: Setting,
    *,
    caption: int = 0,
    folder: Folder = None,
) -> list[dict[str, Any]]:
    """How prototypes align with captions, in the place of pictures, beside real pictures of the same concepts.

    store   of a sweep; of several seeds of a concept the first counts, other poolings are left out
    pairs   whose `group` is the concept; of several the first counts

    A row for each layer at which prototypes were climbed, measure, direction and kind: "prototypes", "pictures" (the
    pairs' own) and, where the store has enough, "random directions" (pictures of no concept, under the name of one,
    with captions of the same concepts). n is the number of concepts, the same for prototypes and pictures.

    A prototype was climbed towards its word in its own model: for what others see in it give encoders of others.
    Raises ValueError where no layer has as many concepts as folds need, and for several models or settings at a layer.
    """
    check_pairs(vision, language, pairs)
    store = opened(store)
    own = {p.group: p for p in reversed(pairs)}
    entries = _entries(store, own)
    least = 3 * setting.folds
    layers = [layer for (layer, control), of in entries.items() if not control and len(of) >= least]
    if not layers:
        most = max((len(of) for (_, control), of in entries.items() if not control), default=0)
        raise ValueError(
            f"{store.folder}: at most {most} concepts of a layer are among the pairs' groups; {least} are needed, "
            f"three for each of {setting.folds} folds: dream more, or give Setting(folds=3)"
        )
    rows = []
    for layer in sorted(layers, key=str):
        dreamt, random = entries[layer, ""], entries.get((layer, "random"), {})
        sides = {
            "prototypes": (dreamt, [e.prototype().image for e in dreamt.values()]),
            "pictures": (dreamt, [own[name].image for name in dreamt]),
            "random directions": (random, [e.prototype().image for e in random.values()]),
        }
        for kind, (names, images) in sides.items():
            if len(names) < least:
                continue
            vision_features = one_layer(vision, images, setting.layers[0], folder)
            language_features = one_layer(
                language, captions_of([own[n] for n in names], caption), setting.layers[1], folder
            )
            for (measure, direction), score in setting.scores(vision_features, language_features, None).items():
                row = score.row(setting.draws, seed=setting.seed)
                rows.append(dict(layer=layer, kind=kind, direction=direction) | row | dict(measure=measure))
    return rows


def _entries(store: Store, own: Mapping[str, Pair]) -> dict[tuple[Any, str], dict[str, Entry]]:
    """By (layer, control), of each concept the first seed's. Raises ValueError for several models at a layer."""
    kinds: dict[Any, set[str]] = {}
    entries: dict[tuple[Any, str], dict[str, Entry]] = {}
    for entry in sorted(store.entries(), key=lambda e: e.job.seed):
        if entry.job.concept in own and not entry.job.pooling:
            of = entries.setdefault((entry.job.layer, entry.job.control), {})
            of.setdefault(entry.job.concept, entry)
            kinds.setdefault(entry.job.layer, set()).add(f"{entry.model} ({entry.settings})")
    if several := next((sorted(names) for names in kinds.values() if len(names) > 1), None):
        raise ValueError(
            f"{store.folder} holds prototypes of {' and '.join(several)} at one layer: what is made otherwise is not "
            "mixed; sweep each into a folder of its own"
        )
    return entries
