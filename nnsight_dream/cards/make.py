"""Making cards: features one after the other into a folder, so that a killed run goes on (see `cards`)."""

from __future__ import annotations

import hashlib
import html
import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import arguments
from ..arguments import listed, strict
from ..io.files import check_folder, make_folder, write_whole
from ..io.html_pages import Page
from ..sae import reference as references
from ..sae.encoding import fingerprint, site_of
from ..sae.make import feature
from ..sae.releases import load_sae
from ..sae.responses import Responses
from ..sae.weights import checked
from ..sweeps.store import Store, now
from ..synthesis.digests import digest
from ..synthesis.settings import choose
from . import gallery
from .bench import Bench
from .card import RECORD, Card, Material, Shot, is_there

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from ..sae.feature import Feature
    from ..synthesis.settings import Choice


@dataclass
class Made:
    """What `make_cards` did: the `cards` there are, in the order asked for; features that `failed`, with the error.

    page   one HTML file with these cards, to search and click through; None where there is no card
    """

    cards: list[Card] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    fresh: int = 0
    interrupted: bool = False
    page: Page | None = None

    def __repr__(self) -> str:
        return f"<{self}>"

    def _repr_html_(self) -> str:
        """What was made, and a link to the page."""
        link = "" if self.page is None else f"<div>{self.page._repr_html_()}</div>"
        return f"<div>{html.escape(str(self))}</div>{link}"

    def __str__(self) -> str:
        stopped = ", interrupted" if self.interrupted else ""
        there = len(self.cards) - self.fresh
        fresh = "1 card" if self.fresh == 1 else f"{self.fresh} cards"
        failed = "1 feature" if len(self.failed) == 1 else f"{len(self.failed)} features"
        return f"{fresh} made, {there} there before, {failed} failed{stopped}" + (f"; {self.page}" if self.page else "")


@strict
def make_cards(
    vlm: VLM,
    sae: Any,
    features: Sequence[int],
    folder: str | Path,
    *,
    sae_id: str | None = None,
    material: Material | None = None,
    responses: Responses | None = None,
    seeds: Sequence[int] = (0, 1),
    strengths: Sequence[float] = (0.25, 0.5),
    negative: bool = True,
    objective: str = "encoder",
    settings: Choice = None,
    reference: Any = None,
    progress: bool = False,
) -> Made:
    """Make the card of each feature, and keep it in a folder, with a page of them: `folder/index.html`.

    sae         a sae-lens object, or what `load_sae` takes: "demo", a folder, a release with its `sae_id`
    material    words and pictures that it is read on; the bundled ones by default
    responses   the responses of at least these features to the material, should they be known already
    seeds       a prototype for each
    strengths   more prototypes of the first seed, climbed for this share of the steps: how the picture comes about
    negative    whether to draw the opposite too: what lowers the pre-activation
    objective   what is climbed, see `features`
    reference   the real pictures by which norms and strangeness are measured, as in `nd.feature`
    settings    as for `synthesize`; progress   whether to print a line for each card to stderr

    Called again it goes on: what is finished is not made anew, the rest gets the same bits as if it had run through. A
    feature that raises is recorded and the others go on. Ctrl-C ends it and gives the cards so far. Raises
    ValueError for no feature or seed, a strength that is not above 0, and `responses` of other material; IndexError
    for a feature that is not there; as `nd.feature` for what is no autoencoder of this model; OSError where the
    folder cannot be written.
    """
    store = Store(check_folder(folder))
    numbers = list(dict.fromkeys(listed(features, "features", "the numbers of features, such as [3, 14], are")))
    seeds, strengths = _check_plan(numbers, seeds, strengths)
    material = Material.bundled() if material is None else material
    _check_material(material, responses)
    sae = load_sae(sae, sae_id) if isinstance(sae, (str, Path)) else sae
    site = site_of(vlm, sae)
    pictures = references.chosen(reference)
    numbers = list(dict.fromkeys(checked(i, int(sae.W_dec.shape[0])) for i in numbers))
    aims = dict(zip(numbers, feature(sae, numbers, objective=objective, reference=pictures), strict=True))
    chosen = choose(vlm, site.layer, settings)
    shots = (*map(Shot, seeds), *(Shot(seeds[0], x) for x in strengths if x != 1))
    shots += (Shot(seeds[0], negative=True),) if negative else ()
    rest = digest((fingerprint(sae), material.words, material.pictures, material.names, chosen, shots))
    facts = dict(model=vlm.id, revision=vlm.revision, weights=vlm.weights_tag(site), dtype=str(vlm.dtype), rest=rest)
    facts |= dict(site=vlm.hf_name(site), reference=references.described(pictures))
    keys = {i: f"{i}-{_hash({**facts, 'feature': digest((a.parts, a.objective, a.guard))})}" for i, a in aims.items()}
    result = Made()
    store.tidy()
    _make_all(store, keys, aims, Bench(vlm, sae, site, material, chosen, shots, responses, pictures), result, progress)
    places = [store.folder / "features" / keys[i] for i in numbers]
    result.cards = [Card.load(place) for place in places if (place / RECORD).is_file()]
    result.page = gallery.page(result.cards, store.folder / "index.html") if result.cards else None
    return result


def _check_plan(numbers: Sequence[Any], seeds: Any, strengths: Any) -> tuple[Sequence[int], Sequence[float]]:
    seeds = [] if arguments.is_empty(seeds) else arguments.seeds(seeds, "seeds")[0]
    strengths = arguments.listed(strengths, "strengths", "shares of the steps, such as [0.25, 0.5], are")
    if not numbers or not seeds or not all(arguments.is_real(s) and 0 < s < 100 for s in strengths):
        raise ValueError(
            f"features={numbers}, seeds={list(seeds)}, strengths={list(strengths)}: at least one feature and one seed "
            "are needed; a strength is a share of the steps above 0"
        )
    return seeds, strengths


def _check_material(material: Material, responses: Responses | None) -> None:
    for name, value, kind in (("material", material, Material), ("responses", responses, Responses)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name}={arguments.shown(value)}: {kind.__name__} is needed, or None")
    if responses and (len(responses.words), responses.pictures) != (len(material.words), material.names):
        raise ValueError(
            f"responses= is of {len(responses.words)} words and {len(responses.pictures)} pictures, not of the "
            "material: give responses(vlm, sae, site, material.words, material.pictures, material.names)"
        )


def _make_all(
    store: Store, keys: Mapping[int, str], aims: Mapping[int, Feature], bench: Bench, result: Made, progress: bool
) -> None:
    """Make the cards that are missing, one after the other; Ctrl-C ends it."""
    try:
        for number in _mine(store, keys, result):
            place = store.inside(store.folder / "features" / keys[number])
            waiting = [i for i, key in keys.items() if not (store.folder / "features" / key / RECORD).is_file()]
            bench.missing = list(dict.fromkeys([number, *waiting]))
            began = time.perf_counter()
            try:
                bench.make(aims[number], place)
            except (MemoryError, torch.OutOfMemoryError, OSError):
                raise
            except Exception as error:
                result.failed[number] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                _record_failure(store, keys[number], number, error)
            else:
                result.fresh += 1
            if progress:
                seconds = time.perf_counter() - began
                print(
                    f"feature {number}: {result.failed.get(number) or f'{seconds:.1f} s'}", file=sys.stderr, flush=True
                )
    except KeyboardInterrupt:
        result.interrupted = True


def _mine(store: Store, keys: Mapping[int, str], result: Made) -> Iterator[int]:
    """The features that are left, one by one, claimed for this process; waits for those that another holds."""
    places = {i: store.inside(store.folder / "features" / key) for i, key in keys.items()}
    left = [i for i, place in places.items() if not is_there(place)]
    while left:
        held = []
        for i in left:
            with store.claim(keys[i]) as mine:
                if not mine:
                    held.append(i)
                elif not is_there(places[i]):  # nor has another finished it
                    yield i
        if len(held) == len(left):
            time.sleep(0.5)
        left = held


def _hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _record_failure(store: Store, key: str, index: int, error: Exception) -> None:
    path = store.folder / "failed" / f"{key}.json"
    make_folder(path.parent)
    failure = dict(feature=index, error=str(error), trace="".join(traceback.format_exception(error)), when=now())
    write_whole(path, json.dumps(failure, indent=1).encode())
