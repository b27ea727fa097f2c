"""What the sections of a checkup share: the model, its layers, pictures and words, made once."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any

import torch

from ..demo import bundle
from ..directions.centres import Pictures
from ..directions.text import concept
from ..engine.read import reader
from ..io.pictures import as_tensors
from ..models import devices
from ..models.reading import read_pictures, reading

if TYPE_CHECKING:
    from PIL import Image

    from ..models.vlm import VLM

#: Things that are drawn and read, known to children and to the bundled model alike.
WORDS = (
    "octopus", "apple", "sunflower", "fox", "banana", "tomato", "strawberry", "frog", "tiger", "basketball",
)  # fmt: skip

#: Seconds of reading that pictures may take in a section, of a quick and of a whole checkup.
QUICK_READING, READING = 4.0, 240.0


def patches(vlm: VLM, pictures: torch.Tensor, layer: int) -> torch.Tensor:
    """Patches (B, n, d), float32, with their graph to the pictures: as an ascent reads them."""
    site = vlm.site(layer)
    with vlm.quiet():
        read, _ = reader(vlm.model, reading(vlm, [site], pictures=True))
        return read(pictures)[site]


@dataclasses.dataclass(eq=False)
class Material:
    """A model under check.

    vlm     the model, where its weights are here without its loopback
    quick   whether the checkup shall be done in a minute
    asked   the layers that are drawn and whose numerics are looked at; the first, the middle and the last by default
    """

    vlm: VLM
    quick: bool = False
    asked: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.vlm.remote is not None and not self.vlm.remote.away:  # gradients do not leave the loopback
            self.vlm = dataclasses.replace(self.vlm, remote=None)

    @property
    def away(self) -> bool:
        """Whether the model's weights are on a server."""
        return self.vlm.remote is not None

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers to look at closely, from 1."""
        last = self.vlm.layers
        return self.asked or tuple(dict.fromkeys((1, (last + 1) // 2, last)))

    @property
    def words(self) -> tuple[str, ...]:
        """What is drawn."""
        return WORDS[:3] if self.quick else WORDS

    @functools.cached_property
    def picture(self) -> torch.Tensor:
        """A bundled picture (1, 3, H, W), by an artist whom no model was trained on, on the model's device."""
        return as_tensors([self.images(["octopus"])["octopus"][0]], "picture")[0].to(self.vlm.device)

    @functools.cached_property
    def centre(self) -> Pictures:
        """The centre of patches: the mean over a few bundled pictures, so that what all of them share is taken off."""
        return Pictures(tuple(picture for some in self.images(WORDS).values() for picture in some))

    def images(self, names: Any, grounds: tuple[float, ...] = (1.0,)) -> dict[str, list[Image.Image]]:
        """Bundled pictures by name, one on each ground, of the size that the model sees where that is larger."""
        by_ground = [bundle.pictures(list(names), background=ground) for ground in grounds]
        return {name: [some[i].image for some in by_ground] for i, name in enumerate(names)}

    def vector(self, word: str, layer: int, vlm: VLM | None = None) -> torch.Tensor:
        """The concept vector (d,) of a word, float32, read anew."""
        model = self.vlm if vlm is None else vlm
        return concept(model, word, layer, cache=False).vector.to(model.device)

    @functools.cached_property
    def seconds_a_picture(self) -> float:
        """Seconds to read a picture at the last layer, of the quicker of two readings."""
        spent = []
        for _ in range(2):
            began = time.perf_counter()
            with torch.no_grad():
                read_pictures(self.vlm, self.picture.detach(), [self.vlm.layers])[self.vlm.site(self.vlm.layers)].cpu()
            spent.append(time.perf_counter() - began)
        return min(spent)

    def how_many(self, least: int, most: int) -> int:
        """How many pictures can be read in a section's time, between two bounds."""
        return int(min(most, max(least, (QUICK_READING if self.quick else READING) / self.seconds_a_picture)))

    def room(self, bytes_needed: float) -> torch.device | None:
        """A device with room for so many bytes: the model's own, else the CPU; None where neither has, or knows."""
        for place in dict.fromkeys((self.vlm.device, torch.device("cpu"))):
            free = devices.free_bytes(place)
            if free is not None and free > 1.2 * bytes_needed:
                return place
        return None
