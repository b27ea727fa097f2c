"""Centres: what is subtracted from patches before they are compared with a direction."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import arguments
from ..io.pictures import as_image, as_tensors, content
from ..models.reading import mean_patches

if TYPE_CHECKING:
    from PIL import Image

    from ..models.sites import Site
    from ..models.vlm import VLM


@dataclass(frozen=True)
class Grey:
    """The mean patch of a uniform grey picture (pixels 0.5), as the paper does."""

    _ships = ("pictures",)

    def of(self, vlm: VLM, site: Site, at_once: int = 16) -> torch.Tensor:
        """(d,) the centre at a site, from at most `at_once` pictures a pass."""
        return mean_patches(vlm, self.pictures(*vlm.image_size), [site], at_once)[vlm.site(site)]

    def pictures(self, height: int, width: int) -> list[torch.Tensor]:
        """The picture; it needs no size but the model's own, since grey stays grey when resized."""
        return [torch.full((1, 3, height, width), 0.5, dtype=torch.float32, device="cpu")]


@dataclass(frozen=True)
class NaturalNoise:
    """The mean patch over noise whose amplitude falls as 1 / frequency, as that of natural pictures does."""

    _ships = ("pictures",)

    count: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", arguments.whole(self.count, "count", 1))
        object.__setattr__(self, "seed", arguments.whole(self.seed, "seed", 0, arguments.SEED_MOST))

    def of(self, vlm: VLM, site: Site, at_once: int = 16) -> torch.Tensor:
        """(d,) the centre at a site, from at most `at_once` pictures a pass."""
        return mean_patches(vlm, self.pictures(*vlm.image_size), [site], at_once)[vlm.site(site)]

    def pictures(self, height: int, width: int) -> list[torch.Tensor]:
        """The pictures (count, 3, height, width); made where they are needed, which may be a server."""
        place: Any = {"dtype": torch.float32, "device": "cpu"}
        generator = torch.Generator().manual_seed(self.seed)
        white = torch.randn(self.count, 3, height, width, generator=generator, **place)
        fy, fx = torch.fft.fftfreq(height, **place)[:, None], torch.fft.rfftfreq(width, **place)[None]
        fall = 1 / (fy**2 + fx**2).sqrt().clamp(min=1 / max(height, width))
        noise = torch.fft.irfft2(torch.fft.rfft2(white) * fall, s=(height, width))
        noise = noise / noise.flatten(1).std(1)[:, None, None, None]
        return [(0.5 + 0.2 * noise).clamp(0, 1)]


@functools.cache
def _bundled() -> Pictures:
    from ..demo import bundle

    return Pictures(tuple(p.image for p in bundle.pictures()))


@dataclass(frozen=True, eq=False)
class Pictures:
    """The mean patch over reference pictures (PIL images or paths, any size); `Pictures.bundled()` are the demo's own.

    Two of the same pictures in the same order are equal, so that a centre is computed once for them, also where they
    came by pickle (a worker gets its settings anew with every chunk). Raises ValueError for no picture.
    """

    images: Sequence[Image.Image]

    def __post_init__(self) -> None:
        from PIL import Image

        files = (str, os.PathLike, bytes, np.ndarray)
        form = "a PIL image, or a list of them, is"
        images, _ = arguments.several(self.images, (Image.Image, torch.Tensor, *files), "images", form)
        held = (as_image(image, "images") if isinstance(image, files) else image for image in images)
        object.__setattr__(self, "images", tuple(held))
        if not self.images:
            raise ValueError("Pictures() holds no picture: give a non-empty list of PIL images")

    @functools.cached_property
    def _content(self) -> bytes:
        return b"".join(content(image) for image in self.images)

    @property
    def digest(self) -> str:
        """A hash of what they show, for records."""
        return hashlib.sha256(self._content).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Pictures) and self._content == other._content)

    def __hash__(self) -> int:
        return hash(self._content)

    def of(self, vlm: VLM, site: Site, at_once: int = 16) -> torch.Tensor:
        """(d,) the centre at a site, from at most `at_once` pictures a pass."""
        return mean_patches(vlm, as_tensors(list(self.images), "images"), [site], at_once)[vlm.site(site)]

    @staticmethod
    def bundled() -> Pictures:
        """The labelled pictures that come with the package; the same object each time."""
        return _bundled()

    def __repr__(self) -> str:
        return f"Pictures({len(self.images)} images)"
