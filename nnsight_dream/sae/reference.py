"""Reference: real pictures by which a feature's norms and a picture's strangeness are measured; bundled or one's own.

The default is 48 of the bundled pictures, emoji on white: what the bundled model was made from, but no photographs. For
any other model that is said, once for each, with what to give instead.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import arguments
from ..arguments import path, shown
from ..directions.centres import Grey, NaturalNoise, Pictures
from ..engine import measure
from ..io.pictures import ENDINGS, as_image, as_tensors, files
from ..models.reading import mean_patches, read_pictures

if TYPE_CHECKING:
    from PIL import Image

    from ..models.sites import Site
    from ..models.vlm import VLM


REFERENCES = 48


Reference = Pictures | Grey | NaturalNoise


FORMS = (
    "reference= takes real pictures: PIL images, tensors (3, H, W) in [0, 1] or paths in a list, the path of a folder "
    "of pictures, or nd.Pictures(...)"
)


@functools.cache
def reference_pictures() -> tuple[Image.Image, ...]:
    """48 of the bundled pictures, evenly chosen over all concepts."""
    from ..demo import bundle

    every = bundle.pictures()
    count = min(REFERENCES, len(every))
    return tuple(every[round(i * (len(every) - 1) / max(1, count - 1))].image for i in range(count))


def chosen(reference: Any) -> Reference | None:
    """A reference in a form that is equal for equal pictures; None for the default.

    Raises TypeError for another kind, FileNotFoundError for a path that is not there, ValueError for no picture.
    """
    if reference is None or isinstance(reference, (Pictures, Grey, NaturalNoise)):
        return reference
    if isinstance(reference, (str, os.PathLike)):
        place = path(reference, "reference")
        if place.is_dir():
            if not (there := files(place)):
                raise FileNotFoundError(
                    f"reference={str(place)!r} holds no picture: files ending in {', '.join(ENDINGS)} are looked for"
                )
            return Pictures([as_image(p, "reference") for p in there])
        reference = [reference]
    several = list(reference) if isinstance(reference, (list, tuple)) else [reference]
    images: list[Any] = []
    for item in several:
        item = getattr(item, "image", item)  # a prototype, or a labelled picture
        if isinstance(item, (str, os.PathLike, bytes, np.ndarray)):
            images.append(as_image(item, "reference"))
        elif isinstance(item, torch.Tensor) or hasattr(item, "convert"):
            images += as_tensors(item, "reference") if isinstance(item, torch.Tensor) else [item]
        else:
            raise TypeError(f"reference={shown(item)}: {FORMS}")
    if not images:
        raise ValueError(f"reference={shown(reference)} holds no picture: {FORMS}")
    return Pictures(images)


def notice(vlm: VLM) -> str | None:
    """The notice about the default, once for each model; None for the bundled one, whose own pictures it is."""
    if vlm.is_demo or vlm.memo.reference_noticed:
        return None
    vlm.memo.reference_noticed = True
    return (
        f"norms and FVU (variance unexplained) of features of {vlm.id} are measured on {REFERENCES} bundled "
        "emoji, which are no photographs: give pictures of your own, such as reference='a folder of photographs'"
    )


def pictures_of(vlm: VLM, reference: Reference | None) -> list[torch.Tensor]:
    """The pictures (B, 3, H, W) of a reference; warns, once for each model, where the default says little of it."""
    if reference is None:
        if (sentence := notice(vlm)) is not None:
            arguments.warn(sentence)
        return as_tensors(list(reference_pictures()), "reference")
    if isinstance(reference, Pictures):
        return as_tensors(list(reference.images), "reference")
    return reference.pictures(*vlm.image_size)


def key(vlm: VLM, site: Site, reference: Reference | None) -> Hashable:
    """By what a norm or mean is remembered."""
    return site, vlm.device, vlm.dtype, reference


def reference_norm(vlm: VLM, site: Site, reference: Reference | None = None, at_once: int = 16) -> float:
    """R: the mean norm of a patch of the reference pictures at a site; remembered by model, site and choice."""
    kept = vlm.memo.norms.at(vlm, site)
    place = key(vlm, site, reference)
    if place not in kept:

        def read(part: torch.Tensor) -> dict[Site, torch.Tensor]:
            return {site: read_pictures(vlm, part.to(vlm.device), [site])[site].float()}

        kept[place] = measure.mean_norm(read, pictures_of(vlm, reference), site, at_once)
    return kept[place]


def reference_mean(vlm: VLM, site: Site, reference: Reference | None = None) -> torch.Tensor:
    """The mean image token (d,) of the reference pictures at a site, float32; remembered likewise."""
    kept = vlm.memo.reference_means.at(vlm, site)
    place = key(vlm, site, reference)
    if place not in kept:
        kept[place] = mean_patches(vlm, pictures_of(vlm, reference), [site])[site]
    return kept[place]


def described(reference: Reference | None) -> str:
    """A reference for a record: how many pictures, and a hash of what they show."""
    if reference is None:
        return f"{REFERENCES} bundled pictures"
    if not isinstance(reference, Pictures):
        return repr(reference)
    return f"{len(reference.images)} pictures, {reference.digest}"
