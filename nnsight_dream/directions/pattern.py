"""Patterns: the part of a direction that pictures can show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .. import arguments
from ..io.pictures import as_tensors
from ..models.reading import picture_means
from .centres import Pictures
from .direction import Direction

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM


@dataclass(frozen=True)
class Pattern:
    """The pattern of a direction among pictures: what pictures look like that differ along it.

        m_i = mean patch of picture i,  C = covariance of the m_i,  p = C (C + ridge tr(C) / d I)^-1 v

    What tells a thing from others best is not what the thing looks like: of a direction by which something is told
    apart (a word's, a probe's weight, a feature's encoder) most lies where pictures hardly differ, and no picture can
    show it. With a large ridge p is C v, the pattern of a linear filter (Haufe et al. 2014, "On the interpretation of
    weight vectors of linear models in multivariate neuroimaging"); with 0 it is the projection on the span of the
    pictures; between, it is Wiener's filter. The pictures' labels play no part.

    ridge      0 or more, in units of the mean variance tr(C) / d
    pictures   two or more; None: those that come with the package

    Of settings, `nd.synthesize(vlm, d, pattern=nd.Pattern())` climbs the pattern instead of the direction itself.
    Raises ValueError for a ridge below 0.

    >>> import nnsight_dream as nd
    >>> vlm = nd.load("demo")
    >>> fox = nd.concept(vlm, "fox", layer=1)
    >>> picture = nd.from_images(vlm, nd.demo.pictures(["fox"])[0].image, layer=1, minus=nd.Pictures.bundled().images)
    >>> nd.cosine(nd.Pattern().of(vlm, fox), picture) > nd.cosine(fox, picture)
    True
    """

    ridge: float = 2.0
    pictures: Pictures | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ridge", arguments.real(self.ridge, "ridge", least=0))
        if self.pictures is not None and not isinstance(self.pictures, Pictures):
            raise TypeError(f"pictures={arguments.shown(self.pictures)}: nd.Pictures(...) is needed, or None")

    def of(self, vlm: VLM, direction: Direction) -> Direction:
        """The pattern of a direction: at the same site, with the same label.

        Raises ValueError for fewer than two pictures, for pictures that all read alike, and for a direction along which
        they do not differ.
        """
        if not isinstance(direction, Direction):
            raise TypeError(f"a pattern is of a Direction, not {arguments.shown(direction)}: see nd.concept, nd.probe")
        if direction.model != vlm.id:
            raise ValueError(f"direction {direction.label!r} is of {direction.model!r}, not of {vlm.id!r}")
        pictures = Pictures.bundled() if self.pictures is None else self.pictures
        variances, axes = _spread(vlm, vlm.site(direction.site), pictures)
        kept = variances / (variances + self.ridge * variances.sum() / axes.shape[1])
        vector = ((axes @ direction.vector.double()) * kept) @ axes
        if not vector.norm() > 1e-6 * kept.max() * direction.norm:  # below the rounding of a direction in float32
            raise ValueError(
                f"the {len(pictures.images)} pictures do not differ along {direction.label!r}: give others, or "
                "pattern=None to climb the direction itself"
            )
        story = {"ridge": self.ridge, "pictures": len(pictures.images), "digest": pictures.digest}
        provenance = {**direction.provenance, "pattern": story}
        return Direction(vector.float(), direction.site, direction.label, direction.model, provenance)


def _spread(vlm: VLM, site: Site, pictures: Pictures) -> tuple[torch.Tensor, torch.Tensor]:
    """Variances (k,) of the pictures' mean patches along their principal axes (k, d), float64."""
    kept = vlm.memo.spreads.at(vlm, site)
    key = (pictures, vlm.device, vlm.dtype)
    if key not in kept:
        if len(pictures.images) < 2:
            raise ValueError("a pattern needs two pictures or more, which differ; a few hundred do well")
        means = picture_means(vlm, as_tensors(list(pictures.images), "pictures"), site).double().cpu()
        means = means - means.mean(0)
        _, singular, axes = torch.linalg.svd(means, full_matrices=False)
        present = singular > 1e-6 * singular[0]
        if not singular[0] > 0:
            raise ValueError(f"all {len(means)} pictures read alike at {site}: a pattern needs pictures that differ")
        kept[key] = singular[present] ** 2 / (len(means) - 1), axes[present]
    return kept[key]
