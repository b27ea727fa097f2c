"""Features: what is climbed of latents of sparse autoencoders (see `make` for how they are made).

A latent reads with its encoder column e and writes with its decoder row d; n is the autoencoder's own normalisation,
and b_dec is taken off before encoding where it was in training:

    pre(h) = (n(h) - b_dec) . e + b_enc      what it detects        climbed with objective="encoder", the default
    cos(n(h) - b_dec, d)                     what it stands for     climbed with objective="decoder"
    act(h) = pre(h) where pre is above the threshold, else 0        reported, never climbed: flat until it fires

pre is linear in h, alive everywhere, and can be bought with norm; so it is taken of h' = h min(1, guard R / |h|), where
R is the mean norm of a patch of real pictures at the site: beyond guard times that, only the direction of h counts. The
cosine knows no norm and compares with concept vectors. Both are averaged over image tokens.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import choice, plain, real, shown
from ..engine.latent import NO_COSINE, Latent
from . import hooks
from .reference import chosen as reference_of
from .reference import described

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM


OBJECTIVES = ("encoder", "decoder")


GUARD = 1.5


ALIKE = ("where", "objective", "width", "guard", "reference")  # what features that add up share


@dataclass(frozen=True, eq=False, repr=False)
class Feature:
    """What is climbed of one latent, or of several that read the same site: the sum of weight x objective.

    Sums, differences and multiples of features of one site and objective are features. Two are equal only if they are
    the same object.

    where       the site, as the autoencoder's metadata name it
    parts       (weight, `Latent`) for each latent
    objective   "encoder" or "decoder": see this module
    model       the model that the autoencoder was trained on, as far as known; `neuronpedia` its id there
    guard       how many times the norm of real patches is rewarded ("encoder" only); None switches the guard off
    reference   the real pictures by which norms are measured, see `reference`: images, tensors, paths, a folder or
                `Pictures`; 48 bundled emoji if not given, of which any model but the bundled one is warned

    Raises ValueError for an unknown objective, a guard that is not positive, or a cosine with a transcoder's decoder.
    """

    _ships = ("value", "readings", "_sum", "has_cosine")
    __array_ufunc__ = None  # NumPy's arrays are no factors, and do not spread over it

    label: str
    where: str | int | Site
    parts: tuple[tuple[float, Latent], ...]
    objective: str = "encoder"
    model: str | None = None
    neuronpedia: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    guard: float | None = GUARD
    reference: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reference", reference_of(self.reference))
        choice(self.objective, "objective", OBJECTIVES)
        if self.guard is not None:
            try:
                object.__setattr__(self, "guard", real(self.guard, "guard", above=0))
            except ValueError:
                raise ValueError(
                    f"guard={shown(self.guard)}: a positive number, or None for no guard, is needed"
                ) from None
        pairs = [p for p in self.parts if isinstance(p, tuple) and len(p) == 2 and isinstance(p[1], Latent)]
        if len(pairs) < len(self.parts):
            raise TypeError(f"{self.label}: parts= holds (weight, Latent) for each latent; got {shown(self.parts)}")
        if not all(math.isfinite(weight) for weight, _ in self.parts):
            raise ValueError(f"{self.label}: its weights are {[w for w, _ in self.parts]}; finite numbers are needed")
        if not self.parts or len({part.encoder.numel() for _, part in self.parts}) > 1:
            raise ValueError(f"{self.label}: a feature has at least one latent, and all are of one width")
        if self.objective == "decoder" and not self.has_cosine:
            raise ValueError(NO_COSINE.format(label=self.label))

    @property
    def width(self) -> int:
        """d_in: the width of the activations that it reads."""
        return self.parts[0][1].encoder.numel()

    @property
    def has_cosine(self) -> bool:
        """Whether its latents write to where they read, so that their decoder rows can be compared with activations."""
        return all(part.decoder is not None for _, part in self.parts)

    @property
    def alive(self) -> bool:
        """Whether anything can move it: False for a latent, or a sum of latents, that is all zeros."""
        if self.objective == "decoder":
            return any(weight and bool(part.decoder.any()) for weight, part in self.parts if part.decoder is not None)
        if self.parts[0][1].normalise != "none":
            return any(weight and bool(part.encoder.any()) for weight, part in self.parts)
        return bool(sum(weight * part.scale * part.encoder for weight, part in self.parts).any())  # type: ignore[union-attr]

    @property
    def link(self) -> str | None:
        """Its page on Neuronpedia, if it is a single latent of an autoencoder that has an id there."""
        if self.neuronpedia is None or len(self.parts) > 1:
            return None
        return f"https://neuronpedia.org/{self.neuronpedia}/{self.parts[0][1].index}"

    def but(self, **changes: Any) -> Feature:
        """A copy with some fields changed: `feature.but(guard=None)`. Raises TypeError for an unknown field."""
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device) -> Feature:
        """The same with its tensors on a device."""
        return self.but(parts=tuple((weight, part.to(device)) for weight, part in self.parts))

    def site(self, vlm: VLM) -> Site:
        """Where it reads in a model.

        Warns where the autoencoder was trained on other weights of the same kind (a pretrained model's on the
        instruction-tuned one, a text-only model's on a vision-language model made from it). Raises ValueError for a
        site that is not there, another width, or a model of another family.
        """
        site = hooks.resolve(vlm, self.where)
        if vlm.width_at(site) != self.width:
            raise ValueError(
                f"{self.label} reads {self.width} numbers, but {vlm.describe(site)} of {vlm.id} is "
                f"{vlm.width_at(site)} wide: it belongs to another model or site"
                + (f" (it was trained on {self.model})" if self.model else "")
            )
        hooks.check(vlm, site, self.model, self.provenance.get("weights_tag"), self.label)
        return site

    # -- reading -------------------------------------------------------------------------------------------------

    def value(self, hidden: torch.Tensor, most: float | None = None) -> torch.Tensor:
        """The objective (...) of activations (..., d_in); with "encoder", longer ones are first cut to norm `most`."""
        hidden = hidden.float()
        if self.objective == "decoder":
            return self._sum([part.cosine(hidden) for _, part in self.parts])
        if most is not None:
            hidden = hidden * (most / hidden.norm(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)
        return self._sum([part.pre(hidden) for _, part in self.parts])

    def readings(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """`pre`, `act` and `cosine` (...) of activations (..., d_in), without guard; weighted sums of several latents.

        A transcoder has no `cosine`.
        """
        by_name = {name: [getattr(part, name)(hidden) for _, part in self.parts] for name in ("pre", "act")}
        if self.has_cosine:
            by_name["cosine"] = [part.cosine(hidden) for _, part in self.parts]
        return {name: self._sum(values) for name, values in by_name.items()}

    def _sum(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([weight * value for (weight, _), value in zip(self.parts, values, strict=True)]).sum(0)

    # -- arithmetic ----------------------------------------------------------------------------------------------

    def __add__(self, other: Feature | int) -> Feature:
        if not isinstance(other, Feature):
            return self if isinstance(other, int) and other == 0 else NotImplemented  # so that sum() works
        return self._with(other, "add")

    __radd__ = __add__

    def __sub__(self, other: Feature) -> Feature:
        return self._with(-other, "subtract") if isinstance(other, Feature) else NotImplemented

    def __mul__(self, factor: float) -> Feature:
        if not isinstance(plain(factor), Real):
            return NotImplemented
        number = real(factor, "a feature's factor")
        terms = [{**term, "weight": term["weight"] * number} for term in self._terms()]
        return self._combined(tuple((number * weight, part) for weight, part in self.parts), terms)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Feature:
        if not isinstance(plain(divisor), Real):
            return NotImplemented
        if (number := real(divisor, "a feature's divisor")) == 0:
            raise ZeroDivisionError(f"{self.label} cannot be divided by 0")
        return self * (1 / number)

    def __neg__(self) -> Feature:
        return self * -1.0

    def _with(self, other: Feature, verb: str) -> Feature:
        alike = {name: (getattr(self, name), getattr(other, name)) for name in ALIKE}
        if wrong := [f"{name} {a!r} and {b!r}" for name, (a, b) in alike.items() if a != b]:
            raise ValueError(
                f"cannot {verb} {self.label} and {other.label}: {'; '.join(wrong)}. Only features of one site, "
                "objective and guard, and of one reference, add up; .but(...) changes one"
            )
        return self._combined((*self.parts, *other.parts), [*self._terms(), *other._terms()])

    def _terms(self) -> list[dict[str, Any]]:
        if self.provenance.get("method") == "combination":
            return list(self.provenance["terms"])
        return [{"weight": 1.0, "label": self.label, "provenance": dict(self.provenance)}]

    def _combined(self, parts: tuple[tuple[float, Latent], ...], terms: list[dict[str, Any]]) -> Feature:
        label = ""
        for term in terms:
            sign = "-" if term["weight"] < 0 else "+"
            size = "" if abs(term["weight"]) == 1 else f"{abs(term['weight']):.4g} "
            label += f"{f' {sign} ' if label else sign.strip('+')}{size}{term['label']}"
        story: dict[str, Any] = {"method": "combination", "terms": terms}
        if tag := self.provenance.get("weights_tag"):
            story["weights_tag"] = tag
        single = self.neuronpedia if len(parts) == 1 else None
        return self.but(label=label, parts=parts, provenance=story, neuronpedia=single)

    def story(self) -> dict[str, Any]:
        """How it was made, as plain data for a record."""
        record = {name: getattr(self, name) for name in ("model", "objective", "guard", "link")}
        if self.reference is not None:
            record["reference"] = described(self.reference)
        return {**record, "where": str(self.where), **self.provenance}

    def __str__(self) -> str:
        return f"{self.label} ({self.objective}) at {self.where}" + (f" of {self.model}" if self.model else "")

    def __repr__(self) -> str:
        return f"<Feature {self}>"

    def _repr_html_(self) -> str:
        numbers = ", ".join(str(part.index) for _, part in self.parts)
        card = f'nd.make_cards(vlm, sae, [{numbers}], "cards")'
        facts = {
            "reads": str(self.where),
            "model": self.model or "not told",
            "climbed": self.objective,
            "its card": card,
        }
        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
        page = f'<a href="{html.escape(self.link)}" rel="noreferrer noopener">on Neuronpedia</a>' if self.link else ""
        return f"<b>{html.escape(self.label[:200])}</b> {page}<table>{rows}</table>"
