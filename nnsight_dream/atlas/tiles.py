"""What the map tells of a sparse autoencoder's features: which are live, their words, rates, modality and verdicts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..cards.card import RECORD, Material
from ..judges.desk import check_examiner
from ..judges.examine import examine
from ..judges.tally import results
from ..sae.responses import Responses
from ..sweeps.jobs import Job
from ..sweeps.store import Store
from .page import Tile

if TYPE_CHECKING:
    from ..judges.desk import Examiner
    from ..synthesis.prototype import Prototype


WORDS = 5  # that a tile tells


def live_features(responses: Responses) -> list[int]:
    """The features that fire for any of the words or pictures that were read, by number."""
    fires = (responses.by_word > 0).any(0) | (responses.by_picture > 0).any(0)
    return [responses.features[i] for i in fires.nonzero().flatten().tolist()]


def tiles_of(
    responses: Responses,
    features: Sequence[int],
    *,
    links: Mapping[int, str] | None = None,
    cards: Mapping[int, str] | None = None,
    verdicts: Mapping[int, tuple[str, str]] | None = None,
) -> list[Tile]:
    """The tile of each feature, by how it responds to words and pictures.

    links, cards   addresses by the feature's number; verdicts   (what a judge said, "yes" or "no") likewise

    The rate is the share of the pictures on any token of which it fires; the words are the five most activating. Raises
    ValueError for a feature that was not read.
    """
    tiles = []
    for number in features:
        column = responses.column(number)
        words = tuple(word for word, _ in responses.top_words(number, WORDS))
        fires = responses.by_picture[:, column] > 0
        answer, verdict = (verdicts or {}).get(number, ("", ""))
        kind = {(True, True): "both", (True, False): "text", (False, True): "picture", (False, False): "neither"}
        seen = [responses.pictures[i] for i, _ in responses.top_pictures(number, 3)]
        tiles.append(
            Tile(
                f"feature {number}",
                number,
                words,
                float(fires.float().mean()),
                kind[bool(words), bool(fires.any())],
                verdict,
                answer,
                (links or {}).get(number, ""),
                (cards or {}).get(number, ""),
                (f"most active on the pictures of {', '.join(dict.fromkeys(seen))}",) if seen else (),
            )
        )
    return tiles


def cards_in(folder: Path, atlas: Path) -> dict[int, str]:
    """Addresses of the cards in the page of a folder (see `nd.make_cards`), from the folder of an atlas, by feature.

    Raises FileNotFoundError for a folder without a page.
    """
    page = folder / "index.html"
    if not page.is_file():
        raise FileNotFoundError(f"cards={folder}: no {page.name} there; nnsight_dream.cards.page writes it")
    address = quote(Path(os.path.relpath(page.resolve(), atlas.resolve())).as_posix())
    numbers = {path.parent.name.split("-")[0] for path in (folder / "features").glob(f"*/{RECORD}")}
    return {int(n): f"{address}#feature-{n}" for n in numbers if n.isdecimal()}


def judged(
    prototypes: Mapping[int, Prototype],
    responses: Responses,
    folder: str | Path,
    judge: Examiner,
    material: Material,
) -> dict[int, tuple[str, str]]:
    """What a judge says of features' pictures, without a hint: (answer, whether it names the most activating word).

    folder   where pictures and answers are kept; called again, only what is missing is asked. Features that fire for no
             word are not asked. Raises as `nd.examine`.
    """
    check_examiner(judge)
    store, keys = Store(folder), {}
    for number, prototype in prototypes.items():
        if words := responses.top_words(number, 1):
            word = words[0][0]
            category = material.categories.get(word, "")
            job = Job(word, category, prototype.hf_name, prototype.seed, f"feature {number}")
            key = job.key(settings=dict(prototype.settings), weights=prototype.model, scores=dict(prototype.scores))
            store.put(key, job, prototype)
            keys[key] = number
    if keys:
        examine(store, judge, protocols=("strict",), shuffled=False, keys=list(keys), progress=False)
    rows = results(store, judge.name) if keys else []
    scored_rows = [r for r in rows if r["key"] in keys and r["score"] is not None]
    return {keys[r["key"]]: (r["top"], "yes" if r["score"] >= 0.5 else "no") for r in scored_rows}
