"""A card being made: prototypes, what fires it, words, pictures, tokens, neighbours."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..directions.direction import versions
from ..io.files import digest as file_digest
from ..io.files import make_folder, sealed, to_json, write_whole
from ..io.pictures import as_image, as_tensors
from ..models.reading import read_pictures
from ..sae import reference as references
from ..sae.activations import features_of, strangeness
from ..sae.encoding import encoded, most, patches
from ..sae.readouts import nearest_rows, top_logits
from ..sae.responses import Responses, responses
from ..sae.weights import TRANSCODERS, facts_of
from ..synthesis.blocks import to_png
from ..synthesis.prototype import Prototype, write_over
from ..synthesis.reach import Reach
from ..synthesis.real_pictures import Ground, real_picture
from ..synthesis.recorded import ground_of
from ..synthesis.synthesize import climb_pairs
from .card import RECORD, TOP, Material, Shot

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM
    from ..sae.feature import Feature
    from ..synthesis.settings import Settings


@dataclass
class Bench:
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
    _cuts: dict[Ground, dict[int, float]] = dataclasses.field(default_factory=dict)

    def make(self, aim: Feature, place: Path) -> None:
        index = aim.parts[0][1].index
        prototypes = self._prototypes(aim, place)
        make_folder(place)
        tokens = self._patches(prototypes[0])
        fires = torch.cat([part[:, index] for part in encoded(self.sae, tokens)]).reshape(self.vlm.grid)
        heat = dataclasses.replace(prototypes[0], heat=fires.clamp(min=0).numpy()).heat_map(256)
        write_whole(place / "fires.png", to_png(heat))
        seen = self._responses()
        top_pictures = seen.top_pictures(index, TOP)
        for n, (number, _) in enumerate(top_pictures):
            write_whole(place / f"real-{n}.png", to_png(_small(self.material.pictures[number])))
        logits = top_logits(self.vlm, aim, self.site, TOP)
        crosses = facts_of(self.sae).architecture in TRANSCODERS
        strange = None
        if not crosses:
            strange = dataclasses.asdict(strangeness(self.vlm, self.sae, prototypes[0], reference=self.reference))
        record = dict(
            index=index,
            shots=[dataclasses.asdict(s) for s in self.shots],
            words=seen.top_words(index, TOP),
            shown=[(self.material.names[number], value) for number, value in top_pictures],
            top=logits.top,
            bottom=logits.bottom,
            note=logits.note,
            near=nearest_rows(self.sae, index, TOP),
            makes=self._makes(prototypes[0]),
            fires=fires.tolist(),
            middle=(tokens.mean(0).cpu() - self._middle()).tolist(),
            most_real=float(seen.by_picture[:, seen.column(index)].max()),
            strange=strange,
            link=aim.link,
            facts=self._facts(aim, prototypes[0]),
        )
        kept = [p for p in sorted(place.rglob("*")) if p.suffix in (".png", ".json") and p != place / RECORD]
        record["files"] = {
            str(p.relative_to(place).as_posix()): file_digest(p.read_bytes()) for p in kept if p.name[0] != "."
        }
        write_whole(place / RECORD, to_json(sealed(record)))

    def _prototypes(self, aim: Feature, place: Path) -> list[Prototype]:
        """The pictures of a card; those of equal steps are climbed together, and kept as soon as they are done."""
        for strength in dict.fromkeys(s.strength for s in self.shots):
            group = [s for s in self.shots if s.strength == strength]
            if all(_is_whole(place / s.name) for s in group):
                continue
            settings = self.settings.but(steps=max(1, round(strength * self.settings.steps)))
            prototypes = climb_pairs(self.vlm, [(-aim if s.negative else aim, s.seed) for s in group], settings)
            if any(p.interrupted for p in prototypes):
                raise KeyboardInterrupt
            for shot, prototype in zip(group, prototypes, strict=True):
                if not shot.negative:
                    self._compare(aim.parts[0][1].index, prototype)
                write_over(prototype, place / shot.name)
        return [Prototype.load(place / s.name) for s in self.shots]

    def _compare(self, index: int, prototype: Prototype) -> None:
        """Keep with a prototype how far it reaches beside the material's pictures."""
        seen, ground, score = self._responses(), ground_of(prototype), float((prototype.readings or {})["act_max"])
        own, cut = float(seen.by_picture[:, seen.column(index)].max()), self._cut(index, ground)
        reach = Reach.between("activation", score, own, cut, len(self.material.pictures), ground)
        object.__setattr__(prototype, "reach", reach)

    def _cut(self, index: int, ground: Ground) -> float | None:
        """The feature's highest activation on the material's pictures cut out and laid on a ground; None of no such."""
        material = self.material
        covered = [
            real_picture(p, c) for p, c in zip(material.pictures, material.covers, strict=False) if c is not None
        ]
        laid = [real.on(ground) for real in covered if real.cover is not None]
        if not laid:
            return None
        if index not in self._cuts.get(ground, {}):
            features = self._responses().features
            rows = torch.stack([most(self.sae, tokens, features) for _, tokens in patches(self.vlm, laid, self.site)])
            self._cuts[ground] = dict(zip(features, rows.amax(0).tolist(), strict=True))
        return self._cuts[ground][index]

    def _makes(self, prototype: Prototype) -> list[tuple[int, float, float, float]]:
        active = features_of(self.vlm, self.sae, prototype, 2 * TOP, reference=self.reference)
        return [(f.index, f.max, f.mean, f.share) for f in active]

    def _patches(self, prototype: Prototype) -> torch.Tensor:
        (picture,) = as_tensors(prototype.image, "image")
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

    def _facts(self, aim: Feature, prototype: Prototype) -> dict[str, Any]:
        facts = facts_of(self.sae)
        return dict(
            model=self.vlm.id,
            revision=self.vlm.revision,
            site=self.site.tl_name,
            hf_name=self.vlm.hf_name(self.site),
            architecture=facts.architecture,
            width=int(self.sae.W_dec.shape[0]),
            trained_on=facts.name_of("model_name"),
            objective=aim.objective,
            guard=aim.guard,
            reference=references.described(self.reference),
            threshold=aim.parts[0][1].threshold,
            pictures=len(self.material.pictures),
            words=len(self.material.words),
            settings=dict(prototype.settings),
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
