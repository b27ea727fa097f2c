"""Making cards: features one after the other into a folder, so that a killed run goes on (see `cards`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .. import arguments
from ..arguments import listed, strict
from ..directions.direction import versions
from ..io.files import check_folder, make_folder, sealed, to_json, write_whole
from ..io.files import digest as file_digest
from ..io.pictures import as_image, as_tensors
from ..models.reading import read_pictures
from ..sae import reference as references
from ..sae.activations import features_of, strangeness
from ..sae.encoding import encoded, fingerprint, site_of
from ..sae.make import feature
from ..sae.readouts import nearest_rows, top_logits
from ..sae.releases import load_sae
from ..sae.responses import Responses, responses
from ..sae.weights import TRANSCODERS, checked, facts_of
from ..sweeps.store import Store, now
from ..synthesis.blocks import to_png
from ..synthesis.digests import digest
from ..synthesis.prototype import Prototype, write_over
from ..synthesis.settings import choose
from ..synthesis.synthesize import climb_pairs
from .card import RECORD, TOP, Card, Material, Shot, is_there

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM
    from ..sae.feature import Feature
    from ..synthesis.settings import Choice, Settings


@dataclass
class Made:
    """What `make_cards` did: the `cards` there are, in the order asked for; features that `failed`, with the error."""

    cards: list[Card] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    fresh: int = 0
    interrupted: bool = False

    def __str__(self) -> str:
        stopped = ", interrupted" if self.interrupted else ""
        there = len(self.cards) - self.fresh
        return f"{self.fresh} cards made, {there} there before, {len(self.failed)} features failed{stopped}"


@strict
def make_cards(
    vlm: VLM,
    sae: Any,
    features: Sequence[int],
    folder: str | Path,
    *,
    sae_id: str | None = None,
    material: Material | None = None,
    found: Responses | None = None,
    seeds: Sequence[int] = (0, 1),
    strengths: Sequence[float] = (0.25, 0.5),
    negative: bool = True,
    objective: str = "encoder",
    settings: Choice = None,
    reference: Any = None,
    progress: bool = False,
) -> Made:
    """Make the card of each feature, and keep it in a folder.

    sae         a sae-lens object, or what `load_sae` takes: "demo", a folder, a release with its `sae_id`
    material    words and pictures that it is read on; the bundled ones by default
    found       the responses of at least these features to the material, should they be known already
    seeds       a prototype for each
    strengths   more prototypes of the first seed, climbed for this share of the steps: how the picture comes about
    negative    whether to draw the opposite too: what lowers the pre-activation
    objective   what is climbed, see `features`
    reference   the real pictures by which norms and strangeness are measured, as in `nd.feature`
    settings    as for `synthesize`; progress   whether to print a line for each card to stderr

    Called again it goes on: what is finished is not made anew, the rest gets the same bits as if it had run through. A
    feature that raises is recorded and the others go on. Ctrl-C ends it and gives the cards so far.

    Raises ValueError for no feature, seed or a strength that is not above 0; IndexError for a feature that is not
    there; ValueError for `found` of other material; as `nd.feature` for what is no autoencoder of this model; OSError
    where the folder cannot be written.
    """
    store = Store(check_folder(folder))
    numbers = list(dict.fromkeys(listed(features, "features", "the numbers of features, such as [3, 14], are")))
    seeds = [] if arguments.is_empty(seeds) else arguments.seeds(seeds, "seeds")[0]
    strengths = arguments.listed(strengths, "strengths", "shares of the steps, such as [0.25, 0.5], are")
    if not numbers or not seeds or not all(arguments.is_real(s) and 0 < s < 100 for s in strengths):
        raise ValueError(
            f"features={numbers}, seeds={list(seeds)}, strengths={list(strengths)}: at least one feature and one seed "
            "are needed; a strength is a share of the steps above 0"
        )
    material = Material.bundled() if material is None else material
    for name, value, kind in (("material", material, Material), ("found", found, Responses)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name}={arguments.shown(value)}: {kind.__name__} is needed, or None")
    if found and (len(found.words), found.pictures) != (len(material.words), material.names):
        raise ValueError(
            f"found= has responses to {len(found.words)} words and {len(found.pictures)} pictures, not to the "
            "material: give responses(vlm, sae, site, material.words, material.pictures, material.names)"
        )
    sae = load_sae(sae, sae_id) if isinstance(sae, (str, Path)) else sae
    site = site_of(vlm, sae)
    pictures = references.chosen(reference)
    numbers = list(dict.fromkeys(checked(i, int(sae.W_dec.shape[0])) for i in numbers))
    aims = dict(zip(numbers, feature(sae, numbers, objective=objective, reference=pictures), strict=True))
    chosen = choose(vlm, site.layer, settings)
    shots = (
        *(Shot(s) for s in seeds),
        *(Shot(seeds[0], x) for x in strengths if x != 1),
        *([Shot(seeds[0], negative=True)] if negative else []),
    )
    rest = digest((fingerprint(sae), material.words, material.pictures, material.names, chosen, shots))
    told = dict(model=vlm.id, revision=vlm.revision, weights=vlm.weights_tag(site), dtype=str(vlm.dtype), rest=rest)
    told |= dict(site=vlm.hf_name(site), reference=references.described(pictures))
    keys = {i: f"{i}-{_hash({**told, 'feature': digest((a.parts, a.objective, a.guard))})}" for i, a in aims.items()}
    made = Made()
    store.tidy()
    bench = _Bench(vlm, sae, site, material, chosen, shots, found, pictures)
    try:
        for number in _mine(store, keys, made):
            place = store.inside(store.folder / "features" / keys[number])
            waiting = [i for i, key in keys.items() if not (store.folder / "features" / key / RECORD).is_file()]
            bench.missing = list(dict.fromkeys([number, *waiting]))
            began = time.perf_counter()
            try:
                bench.make(aims[number], place)
            except (MemoryError, torch.OutOfMemoryError, OSError):
                raise
            except Exception as error:
                made.failed[number] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                _record_failure(store, keys[number], number, error)
            else:
                made.fresh += 1
            if progress:
                seconds = time.perf_counter() - began
                print(f"feature {number}: {made.failed.get(number) or f'{seconds:.1f} s'}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        made.interrupted = True
    places = [store.folder / "features" / keys[i] for i in numbers]
    made.cards = [Card.load(place) for place in places if (place / RECORD).is_file()]
    return made


def _mine(store: Store, keys: Mapping[int, str], made: Made) -> Iterator[int]:
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


def _hash(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _record_failure(store: Store, key: str, index: int, error: Exception) -> None:
    path = store.folder / "failed" / f"{key}.json"
    make_folder(path.parent)
    told = dict(feature=index, error=str(error), trace="".join(traceback.format_exception(error)), when=now())
    write_whole(path, json.dumps(told, indent=1).encode())


@dataclass
class _Bench:
    """What all cards of a run share; responses and the centre are made when they are first needed."""

    vlm: VLM
    sae: Any
    site: Site
    material: Material
    settings: Settings
    shots: tuple[Shot, ...]
    found: Responses | None
    reference: references.Reference | None = None
    missing: Sequence[int] = ()
    _centre: torch.Tensor | None = None

    def make(self, aim: Feature, place: Path) -> None:
        index = aim.parts[0][1].index
        made = self._prototypes(aim, place)
        make_folder(place)
        patches = self._patches(made[0])
        fires = torch.cat([part[:, index] for part in encoded(self.sae, patches)]).reshape(self.vlm.grid)
        heat = dataclasses.replace(made[0], heat=fires.clamp(min=0).numpy()).heat_map(256)
        write_whole(place / "fires.png", to_png(heat))
        seen = self._responses()
        shown = seen.top_pictures(index, TOP)
        for n, (number, _) in enumerate(shown):
            write_whole(place / f"real-{n}.png", to_png(_small(self.material.pictures[number])))
        logits = top_logits(self.vlm, aim, self.site, TOP)
        crosses = facts_of(self.sae).architecture in TRANSCODERS
        strange = None
        if not crosses:
            strange = dataclasses.asdict(strangeness(self.vlm, self.sae, made[0], reference=self.reference))
        told = dict(
            index=index,
            shots=[dataclasses.asdict(s) for s in self.shots],
            words=seen.top_words(index, TOP),
            shown=[(self.material.names[number], value) for number, value in shown],
            top=logits.top,
            bottom=logits.bottom,
            note=logits.note,
            near=nearest_rows(self.sae, index, TOP),
            makes=[(f.index, f.max, f.mean, f.share) for f in features_of(self.vlm, self.sae, made[0], 2 * TOP)],
            fires=fires.tolist(),
            middle=(patches.mean(0).cpu() - self._middle()).tolist(),
            most_real=float(seen.by_picture[:, seen.column(index)].max()),
            strange=strange,
            link=aim.link,
            facts=self._facts(aim, made[0]),
        )
        kept = [p for p in sorted(place.rglob("*")) if p.suffix in (".png", ".json") and p != place / RECORD]
        told["files"] = {
            str(p.relative_to(place).as_posix()): file_digest(p.read_bytes()) for p in kept if p.name[0] != "."
        }
        write_whole(place / RECORD, to_json(sealed(told)))

    def _prototypes(self, aim: Feature, place: Path) -> list[Prototype]:
        """The pictures of a card; those of equal steps are climbed together, and kept as soon as they are done."""
        for strength in dict.fromkeys(s.strength for s in self.shots):
            group = [s for s in self.shots if s.strength == strength]
            if all(_is_whole(place / s.name) for s in group):
                continue
            settings = self.settings.but(steps=max(1, round(strength * self.settings.steps)))
            made = climb_pairs(self.vlm, [(-aim if s.negative else aim, s.seed) for s in group], settings)
            if any(p.interrupted for p in made):
                raise KeyboardInterrupt
            for shot, prototype in zip(group, made, strict=True):
                write_over(prototype, place / shot.name)
        return [Prototype.load(place / s.name) for s in self.shots]

    def _patches(self, made: Prototype) -> torch.Tensor:
        (picture,) = as_tensors(made.image, "image")
        with torch.no_grad():
            return read_pictures(self.vlm, picture.to(self.vlm.device), [self.site])[self.site][0].float()

    def _responses(self) -> Responses:
        if self.found is None or not set(self.missing) <= set(self.found.features):
            m = self.material
            self.found = responses(
                self.vlm, self.sae, self.site, m.words, m.pictures, m.names, features=list(self.missing)
            )
        return self.found

    def _middle(self) -> torch.Tensor:
        if self._centre is None:
            self._centre = references.reference_mean(self.vlm, self.site, self.reference).cpu()
        return self._centre

    def _facts(self, aim: Feature, made: Prototype) -> dict[str, Any]:
        facts = facts_of(self.sae)
        return dict(
            model=self.vlm.id,
            revision=self.vlm.revision,
            site=self.site.tl_name,
            hf_name=self.vlm.hf_name(self.site),
            architecture=facts.architecture,
            width=int(self.sae.W_dec.shape[0]),
            trained_on=facts.told("model_name"),
            objective=aim.objective,
            guard=aim.guard,
            reference=references.described(self.reference),
            threshold=aim.parts[0][1].threshold,
            pictures=len(self.material.pictures),
            words=len(self.material.words),
            settings=dict(made.settings),
            versions=versions(),
        )


def _is_whole(place: Path) -> bool:
    """Whether a prototype is there, as it was written."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            Prototype.load(place)
        except (OSError, UserWarning, ValueError):
            return False
    return True


def _small(image: Image.Image) -> Image.Image:
    small = as_image(image).copy()
    small.thumbnail((128, 128), Image.Resampling.LANCZOS)
    return small
