"""Two prototypes side by side: of two directions, layers or models, or of one before and after an edit."""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from .. import arguments
from ..io.files import check_file, make_folder, write_whole
from .blocks import Tiles, image_tag, to_png
from .prototype import Prototype
from .prototypes import lines_of
from .synthesize import synthesize

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..models.vlm import VLM
    from .request import Aim
    from .settings import Choice


SIDE = 256  # pixels a side of what is shown


#: From no difference to the largest: black, purple, orange, white; its lightness only grows.
RAMP = ((0, 0, 0), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Two prototypes and how their pictures differ; in a notebook side by side, with heat maps to be switched on.

    first, second   the prototypes; pictures of another size than the first's are compared at the first's
    """

    first: Prototype
    second: Prototype

    @cached_property
    def _pixels(self) -> tuple[np.ndarray, np.ndarray]:
        size = self.first.image.size
        other = self.second.image
        if other.size != size:
            other = other.resize(size, Image.Resampling.LANCZOS)
        a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) / 255 for image in (self.first.image, other))
        return a, b

    @property
    def difference(self) -> np.ndarray:
        """(H, W) mean absolute difference over the colours, 0 to 1."""
        a, b = self._pixels
        return np.abs(a - b).mean(-1)

    @property
    def correlation(self) -> float:
        """Of all pixels' colours, -1 to 1; 0 where a picture is of one colour."""
        a, b = (x.reshape(-1) - x.mean() for x in self._pixels)
        return float(a @ b / max(1e-12, np.linalg.norm(a) * np.linalg.norm(b)))

    def difference_map(self, side: int = SIDE) -> Image.Image:
        """The difference as a picture: black where there is none, white where it is largest."""
        part = self.difference
        level = part / max(float(part.max()), 1e-12) * (len(RAMP) - 1)
        colours = np.array(RAMP, dtype=np.float64)
        low = np.minimum(level.astype(int), len(RAMP) - 2)
        mixed = colours[low] + (level - low)[..., None] * (colours[low + 1] - colours[low])
        return Image.fromarray(mixed.round().astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)

    @property
    def image(self) -> Image.Image:
        """Both pictures and their difference in one, with captions."""
        panels = [*((caption(p), p.image) for p in (self.first, self.second)), (self._summary(), self.difference_map())]
        whole = Image.new("RGB", (3 * SIDE + 16, SIDE + 20), "white")
        pen = ImageDraw.Draw(whole)
        for n, (title, picture) in enumerate(panels):
            pen.text((n * (SIDE + 8) + 2, 4), title[:44], fill="black")
            whole.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), (n * (SIDE + 8), 20))
        return whole

    def _summary(self) -> str:
        return f"difference: mean {self.difference.mean():.3f}, correlation {self.correlation:.3f}"

    def __repr__(self) -> str:
        return f"Comparison({caption(self.first)!r} with {caption(self.second)!r}; {self._summary()})"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as a picture, .png, or as a page, .html; returns the path.

        Raises ValueError for another ending, OSError where it cannot be written.
        """
        place = check_file(path)
        arguments.choice(place.suffix.lower(), "the ending of path", (".png", ".html"))
        make_folder(place.parent)
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>Comparison</title>'
            "<style>:root{color-scheme:light dark}body{margin:12px;font:14px sans-serif}</style></head>"
            f"<body><main>{self._repr_html_()}</main></body></html>\n"
        )
        write_whole(place, to_png(self.image) if place.suffix.lower() == ".png" else page.encode())
        return place

    def _repr_html_(self) -> str:
        switch = (
            "this.closest('section').querySelectorAll('[data-heat]').forEach(i=>i.style.opacity=this.checked?1:0);"
            "this.closest('section').querySelectorAll('[data-plain]').forEach(i=>i.ariaHidden=this.checked)"
        )
        figures = "".join(_figure(p) for p in (self.first, self.second))
        size = f"width:min({SIDE}px,42vw);height:auto;display:block"
        return (
            f'<section style="font:13px sans-serif"><div style="display:flex;flex-wrap:wrap;gap:8px">{figures}'
            f'<figure style="margin:0">{image_tag(self.difference_map(), "where they differ: white is most")[:-1]} '
            f'style="{size}"><figcaption>{html.escape(self._summary())}</figcaption></figure></div>'
            f'<label><input type="checkbox" onchange="{html.escape(switch)}"> where each score looks</label></section>'
        )

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        both = [(p.image, [Text(p.model, style="dim"), *lines_of(p)]) for p in (self.first, self.second)]
        words = [Text(line) for line in self._summary().replace("difference: ", "").split(", ")]
        return Tiles([[*both, (self.difference_map(64), [Text("difference", style="bold"), *words])]])


def caption(prototype: Prototype) -> str:
    """What tells a prototype from another: label, layer, seed and model."""
    label = arguments.brief(prototype.label, 24)
    return f"{label}, layer {prototype.site.layer}, seed {prototype.seed}, {prototype.model}"


def _figure(prototype: Prototype) -> str:
    size = f"width:min({SIDE}px,42vw);height:auto;display:block"
    plain = image_tag(prototype.enlarged(SIDE).resize((SIDE, SIDE)), f"picture of {prototype.label}")
    heat = image_tag(prototype.heat_map(SIDE), f"where the score looks, of {prototype.label}")
    return (
        f'<figure style="margin:0"><div style="position:relative">{plain[:-1]} data-plain="" style="{size}">'
        f'{heat[:-1]} data-heat="" style="{size};position:absolute;left:0;top:0;opacity:0"></div>'
        f"<figcaption>{html.escape(caption(prototype))}</figcaption></figure>"
    )


@arguments.strict
def compare(
    first: Aim | Prototype,
    second: Aim | Prototype,
    *,
    vlm: VLM | None = None,
    other: VLM | None = None,
    seed: int = 0,
    settings: Choice = None,
    **changes: Any,
) -> Comparison:
    """Two pictures of the same seed side by side, with a map of their difference.

        nd.compare(fox, bear, vlm=vlm)                            two directions, or one at two layers
        nd.compare(fox, fox_there, vlm=vlm, other=another)        two models; each has directions of its own
        nd.compare(before, after)                                 prototypes in hand: before and after an edit

    first, second   directions or features, which are drawn, or prototypes, which are taken as they are
    vlm        what directions are drawn with; other   what the second is drawn with, by default `vlm`
    settings, changes   as for `synthesize`, which says what is raised beside ValueError for a direction without a `vlm`
    """
    prototypes = []
    for name, aim, model in (("first", first, vlm), ("second", second, other or vlm)):
        if isinstance(aim, Prototype):
            prototypes.append(aim)
            continue
        if model is None:
            raise ValueError(f"{name}={arguments.shown(aim)} is to be drawn: give vlm=, or a Prototype of it")
        prototype: Any = synthesize(model, aim, seed=arguments.whole(seed, "seed", 0), settings=settings, **changes)
        if not isinstance(prototype, Prototype):
            raise TypeError(f"{name}= is several directions: one is compared with one")
        prototypes.append(prototype)
    return Comparison(*prototypes)
