"""What a real picture of the same thing scores, beside a prototype's scores, for the bundled model's concepts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..demo import bundle
from ..directions.direction import MODELS
from ..directions.text import concept
from ..engine.measure import measured_direction
from ..engine.pooling import reported
from ..io.pictures import as_tensors
from ..models.reading import read_pictures
from .centres import centre
from .settings import Settings, as_plain

if TYPE_CHECKING:
    from .prototype import Prototype


def real_scores(prototype: Prototype) -> dict[str, float]:
    """By pooling, as `Prototype.scores`, of the bundled picture of its concept, which no model was trained on.

    Empty for what is no concept that the bundled model was shown, and for other poolings and centres than the demo's.
    """
    vlm = MODELS.get(prototype.model)
    if vlm is None or not vlm.is_demo or vlm.remote is not None or prototype.direction.get("method") != "concept":
        return {}
    preset = Settings.demo()
    if any(prototype.settings.get(name) != as_plain(getattr(preset, name)) for name in ("pooling", "centre")):
        return {}
    if prototype.label not in {c.name for c in bundle.concepts()} or prototype.image_size != vlm.image_size:
        return {}
    site = vlm.site(prototype.site)
    vector = concept(vlm, prototype.label, site).vector.to(vlm.device)
    (image,) = as_tensors([bundle.pictures([prototype.label])[0].image], "image")
    with torch.no_grad():
        patches = read_pictures(vlm, image, [site])[site].float()
        scores, _ = measured_direction(
            site, patches, vector, centre(vlm, site, preset.centre).to(vlm.device), reported(preset.pooling), vlm.grid
        )
    return scores
