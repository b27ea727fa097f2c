"""Films: an ascent from grey to picture, or a concept through all layers, as animated pictures and with a slider."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from .. import arguments
from ..io.files import check_file, make_folder, write_whole
from .blocks import enlarged, image_tag

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from .settings import Choice


FRAMES = 24  # that `film=True` keeps


SIDE = 256  # pixels a side of a film's small pictures


ENDINGS = (".webp", ".gif", ".html")


@dataclass(frozen=True, eq=False, repr=False)
class Film:
    """Pictures in a row with a caption for each; in a notebook they are shown with a slider.

    frames     PIL images of one size; `captions` one for each

    Raises ValueError for no frame, several sizes, or not one caption for each.
    """

    frames: tuple[Image.Image, ...]
    captions: tuple[str, ...]
    title: str = ""

    def __post_init__(self) -> None:
        sizes = {frame.size for frame in self.frames}
        if len(sizes) != 1 or len(self.captions) != len(self.frames):
            raise ValueError(
                f"{len(self.frames)} frames of sizes {sorted(sizes)} and {len(self.captions)} captions: at least one "
                "frame, all of one size, and a caption for each are needed"
            )

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        return f"Film({len(self)} frames, {self.captions[0]} to {self.captions[-1]}: {arguments.brief(self.title)})"

    def to_bytes(self, kind: str = "WEBP", seconds: float = 3.0, side: int = SIDE) -> bytes:
        """An animated "WEBP" or "GIF" that lasts so many seconds, its last frame held, and begins again.

        Raises ValueError for another kind.
        """
        kind = arguments.choice(kind, "kind", ("WEBP", "GIF"))
        frames = [enlarged(frame, side) for frame in self.frames]
        each = max(20, round(1000 * arguments.real(seconds, "seconds", above=0) / len(frames)))
        buffer = io.BytesIO()
        how: dict[str, Any] = {"quality": 80} if kind == "WEBP" else {}
        times = [each] * (len(frames) - 1) + [each + 1000]
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=times, loop=0, **how)
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str], *, seconds: float = 3.0) -> Path:
        """Write it as an animated .webp or .gif, or as a page with a slider, .html; returns the path.

        Raises ValueError for another ending, OSError where it cannot be written.
        """
        place = check_file(path)
        if place.suffix.lower() not in ENDINGS:
            raise ValueError(f"path={str(path)!r}: a name that ends in {', '.join(ENDINGS)} is needed")
        make_folder(place.parent)
        if place.suffix.lower() == ".html":
            write_whole(place, _page(self).encode())
        else:
            write_whole(place, self.to_bytes(place.suffix[1:].upper(), seconds))
        return place

    def strip(self) -> Image.Image:
        """All frames one below the other."""
        width, height = self.frames[0].size
        whole = Image.new("RGB", (width, height * len(self)))
        for n, frame in enumerate(self.frames):
            whole.paste(frame, (0, n * height))
        return whole

    @classmethod
    def of_strip(cls, strip: Image.Image, captions: Sequence[str], title: str) -> Film:
        """The film of a `strip`. Raises ValueError for one that cannot be cut into as many frames as captions."""
        height = strip.height // max(1, len(captions))
        if not captions or height * len(captions) != strip.height:
            raise ValueError(
                f"a strip of {strip.height} pixels and {len(captions)} captions: one frame for each is needed"
            )
        cut = (strip.crop((0, n * height, strip.width, (n + 1) * height)) for n in range(len(captions)))
        return cls(tuple(cut), tuple(captions), title)

    def _repr_html_(self) -> str:
        return slider(self)

    def _repr_png_(self) -> bytes:
        from .blocks import to_png

        return to_png(enlarged(self.frames[-1]))


def slider(film: Film) -> str:
    """A film as HTML: one strip of all frames, a slider and a button; nothing is loaded."""
    width, height = enlarged(film.frames[-1], SIDE).size
    last = len(film) - 1
    says = "|".join(c.replace("|", "/") for c in film.captions)
    show = (
        "const b=this.closest('figure'),n=+b.querySelector('input').value,c=b.dataset.says.split('|')[n];"
        "b.querySelector('img').style.top=-n*" + str(height) + "+'px';b.querySelector('output').textContent=c;"
        "b.querySelector('input').setAttribute('aria-valuetext',c)"
    )
    play = (
        "const b=this.closest('figure'),i=b.querySelector('input');if(b.timer){clearInterval(b.timer);b.timer=0;"
        "this.textContent='play'}else{if(+i.value>=+i.max)i.value=0;this.textContent='stop';b.timer=setInterval(()=>{"
        "if(+i.value>=+i.max){clearInterval(b.timer);b.timer=0;this.textContent='play';return}"
        "i.value=+i.value+1;i.dispatchEvent(new Event('input'))}," + str(max(60, 3000 // len(film))) + ")}"
    )
    picture = image_tag(film.strip(), f"{film.title}: {len(film)} pictures, {film.captions[0]} to {film.captions[-1]}")
    style = (
        f"position:absolute;left:0;top:-{last * height}px;width:{width}px;height:{height * len(film)}px;max-width:none"
    )
    return (
        f'<figure data-says="{html.escape(says)}" style="display:inline-block;margin:4px;font:13px sans-serif">'
        f'<div style="position:relative;overflow:hidden;width:{width}px;height:{height}px;border-radius:6px">'
        f'{picture[:-1]} style="{style}"></div><figcaption><b>{html.escape(arguments.brief(film.title))}</b><br>'
        f'<button type="button" onclick="{html.escape(play)}">play</button> '
        f'<input type="range" min="0" max="{last}" value="{last}" step="1" aria-label="frame" '
        f'aria-valuetext="{html.escape(film.captions[-1])}" style="width:{max(80, width - 130)}px" '
        f'oninput="{html.escape(show)}"> <output>{html.escape(film.captions[-1])}</output></figcaption></figure>'
    )


def _page(film: Film) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{html.escape(film.title)}</title>'
        "<style>:root{color-scheme:light dark}body{margin:16px}button{font:inherit;min-width:52px;min-height:32px}"
        f"</style></head><body><main>{slider(film)}</main></body></html>\n"
    )


class Camera:
    """Called at each step of an ascent: keeps a few of the pictures, and calls the watch that it stands before."""

    shows = True  # so that the climb gives the pictures, see engine.optimise.climb

    def __init__(self, watch: Any, frames: int, steps: int):
        self.watch, self.steps = watch, steps
        self.wanted = (
            {round(i * (steps - 1) / max(1, frames - 2)) for i in range(max(1, frames - 1))} if steps else set()
        )
        self.kept: dict[int, torch.Tensor] = {}

    def __call__(self, step: int, scores: torch.Tensor, pictures: torch.Tensor) -> None:
        if step == 0:
            self.kept.clear()  # a climb that began again
        if step in self.wanted:
            small = pictures.detach()
            if max(small.shape[-2:]) > SIDE:
                small = torch.nn.functional.interpolate(small, scale_factor=SIDE / max(small.shape[-2:]), mode="area")
            self.kept[step] = (small.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()
        if self.watch is not None:
            self.watch(step, scores, *((pictures,) if getattr(self.watch, "shows", False) else ()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.watch, name)  # such as a bar's `pause`

    def film(self, place: int, last: Image.Image, label: str) -> Film:
        """The film of one picture of the ascent, which ends at its finished picture."""
        frames = [Image.fromarray(np.asarray(pictures[place])) for pictures in self.kept.values()]
        captions = [f"step {step}" for step in self.kept]
        end = last.resize(frames[0].size, Image.Resampling.LANCZOS) if frames else last
        return Film((*frames, end), (*captions, "finished"), label)


def frames_of(film: bool | int, vlm: VLM) -> int:
    """How many frames are asked for; 0 for none.

    Raises ValueError for a number below 2, and of a model on a server, which tells no pictures on the way.
    """
    if film is False or film is None:
        return 0
    count = FRAMES if film is True else arguments.whole(film, "film", 2)
    if vlm.remote is not None:
        raise ValueError(
            f"film={film}: a model on a server tells no pictures on the way; leave film= out, or load it here"
        )
    return count


@arguments.strict
def film_of_layers(
    vlm: VLM, word: str, layers: Sequence[int] | None = None, *, seed: int = 0, settings: Choice = None, **changes: Any
) -> Film:
    """One concept through the layers: its picture at each, of the same seed, as a film.

    layers   from 1; all by default. settings, changes   as for `synthesize`, which says what is raised
    """
    from ..directions.text import concept
    from .synthesize import synthesize

    places = list(range(1, vlm.layers + 1)) if layers is None else list(layers)
    prototypes = synthesize(vlm, concept(vlm, word, places), seed=seed, settings=settings, **changes)
    if len(prototypes) < len(places):
        raise KeyboardInterrupt
    return Film(tuple(p.image for p in prototypes), tuple(f"layer {p.site.layer}" for p in prototypes), word)
