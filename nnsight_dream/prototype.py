"""Prototypes: a picture of a direction, with everything that made it and everything measured on it."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from . import arguments, records
from .cache import write_whole
from .sites import Site

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


def heat_map(weights: np.ndarray, site: Site, grid: tuple[int, int]) -> np.ndarray:
    """Weights (n,) of a site's tokens as a map (rows, cols), zero at others."""
    if site.tokens != "image":
        full = np.zeros(grid[0] * grid[1], dtype=weights.dtype)
        np.add.at(full, np.asarray(site.tokens, dtype=int), weights)  # a token may stand twice
        weights = full
    return weights.reshape(grid)


@dataclass(frozen=True, eq=False, repr=False)
class Prototype:
    """The picture that an ascent towards a direction ended at.

    image     PIL image, RGB
    label     the direction's label; `direction` is its story (how it was made)
    history   score at each step, on augmented views
    scores    score of the finished 8-bit picture by pooling ("attention", "mean", "max"), no augmentation; of a feature
              the mean over image tokens by objective ("encoder", "decoder"), without guard
    heat      (rows, cols) patch weights on the finished picture, sum 1
    readings  of a feature: how it reads the finished picture, see `feature_climb.measure`; None for a direction
    settings  plain data: every choice of the run
    interrupted   True if the run was stopped before its last step
    image_size    (height, width) in pixels at which the model saw the picture; None in records that do not tell
    straight_through   the temperature of a surrogate gradient, None where the gradient was the model's own
    """

    image: Image.Image
    label: str
    site: Site
    hf_name: str
    history: tuple[float, ...]
    scores: Mapping[str, float]
    heat: np.ndarray
    settings: Mapping[str, Any]
    seed: int
    model: str
    revision: str | None = None
    direction: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    interrupted: bool = False
    readings: Mapping[str, Any] | None = None
    image_size: tuple[int, int] | None = None
    straight_through: float | None = None

    @property
    def images(self) -> list[Image.Image]:
        """The picture in a list, as a `Prototypes` has several."""
        return [self.image]

    def __repr__(self) -> str:
        scores = ", ".join(f"{k} {v:.3f}" for k, v in self.scores.items())
        stopped = f", stopped after {len(self.history)} steps" if self.interrupted else ""
        return f"Prototype({self.label!r} at {self.site} = {self.hf_name}; {scores}; seed {self.seed}{stopped})"

    # -- showing -------------------------------------------------------------------------------------------------

    def heat_map(self, side: int = 256) -> Image.Image:
        """The picture under its patch weights: bright where the score looks, at `side` pixels."""
        weight = self.heat / max(float(self.heat.max()), 1e-12)
        mask = Image.fromarray((255 * weight).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        light = self.image.resize((side, side), Image.Resampling.BICUBIC)
        dark = Image.blend(light, Image.new("RGB", light.size), 0.8)
        return Image.composite(light, dark, mask)

    def _repr_png_(self) -> bytes:
        return _png(_enlarged(self.image))

    def _repr_html_(self) -> str:
        rows = "".join(_row(k, f"{float(v):.3f}") for k, v in self.scores.items())
        rows += "".join(_row(*reading) for reading in _told(self.readings))
        if link := self.direction.get("link"):
            rows += f'<tr><td colspan="2">{_link(str(link))}</td></tr>'
        return (
            f'<figure style="display:inline-block;margin:4px;font:12px sans-serif">{_img(_enlarged(self.image))}'
            f"{_img(self.heat_map(160))}<figcaption><b>{html.escape(self.label)}</b> layer {int(self.site.layer)}, "
            f"seed {int(self.seed)}<br>{html.escape(self.site.tl_name)}<br>{html.escape(self.hf_name)}"
            f"<table>{rows}</table></figcaption></figure>"
        )

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        title = Text(f"{self.label}", style="bold")
        title.append(f"  layer {self.site.layer}  seed {self.seed}  ", style="default")
        title.append("  ".join(f"{k} {v:.3f}" for k, v in self.scores.items()), style="dim")
        told = [Text("  ".join(f"{k} {v}" for k, v in _told(self.readings)), style="dim")] if self.readings else []
        return Group(title, *told, _Blocks(self.image))

    # -- keeping -------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write prototype.png, heat.png and prototype.json into a folder (made if missing); returns the folder.

        The record is written last, and each file under a temporary name first, so that a folder with a record is whole.
        """
        folder = arguments.folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        record = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in ("image", "site", "heat")}
        record = {k: dict(v) if isinstance(v, Mapping) else v for k, v in record.items()}
        record["site"] = {"layer": self.site.layer, "kind": self.site.kind, "tokens": self.site.tokens}
        record["heat"] = self.heat.tolist()
        text = json.dumps(record, indent=1, ensure_ascii=False)
        for name, data in (
            ("prototype.png", _png(self.image)),
            ("heat.png", _png(self.heat_map())),
            ("prototype.json", text.encode()),
        ):
            write_whole(folder / name, data)
        return folder

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Prototype:
        """Read back what `save` wrote; raises FileNotFoundError or ValueError that names the missing or broken file."""
        folder = arguments.folder(folder)
        for name in ("prototype.json", "prototype.png"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no {name}: give a folder that Prototype.save wrote")
        try:
            record = json.loads((folder / "prototype.json").read_text(encoding="utf-8"))
            records.check(record, records.PROTOTYPE)
            site = record.pop("site")
            tokens = site["tokens"] if isinstance(site["tokens"], str) else tuple(site["tokens"])
            with Image.open(folder / "prototype.png", formats=["PNG"]) as file:
                image = file.convert("RGB")
            record["history"] = tuple(record["history"])
            record["heat"] = np.array(record["heat"], dtype=np.float32)
            if record.get("image_size") is not None:
                record["image_size"] = tuple(record["image_size"])
            return cls(image=image, site=Site(site["layer"], site["kind"], tokens), **record)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder / 'prototype.json'} is not a prototype's record: {error!r}") from error


class Prototypes(list[Prototype]):
    """Several prototypes: a list that shows itself as a grid."""

    @property
    def images(self) -> list[Image.Image]:
        """The pictures, in order."""
        return [p.image for p in self]

    def grid(self, columns: int | None = None, side: int = 128, labels: bool = True) -> Image.Image:
        """One contact sheet, `side` pixels a picture, row by row."""
        if not self:
            raise ValueError("there is no prototype to show")
        columns = columns or min(len(self), 8)
        strip = 16 if labels else 0
        rows = -(-len(self) // columns)
        sheet = Image.new("RGB", (columns * side, rows * (side + strip)), "white")
        draw = ImageDraw.Draw(sheet)
        for i, one in enumerate(self):
            x, y = i % columns * side, i // columns * (side + strip)
            sheet.paste(one.image.resize((side, side), Image.Resampling.BICUBIC), (x, y + strip))
            if labels:
                draw.text((x + 3, y + 2), f"{one.label} L{one.site.layer}"[: side // 6], fill="black")
        return sheet

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Save each into a folder of its own below `folder`; returns `folder`."""
        folder = arguments.folder(folder)
        written: set[Path] = set()
        for one in self:
            slug = re.sub(r"[^\w-]+", "-", one.label).strip("-")[:60] or "direction"
            name = f"{slug}-layer{one.site.layer}-seed{one.seed}"
            target, copy = folder / name, 2
            while target in written or _another(target, one):
                target, copy = folder / f"{name}-{copy}", copy + 1
            written.add(one.save(target))
        return folder

    def _repr_html_(self) -> str:
        return "".join(p._repr_html_() for p in self)

    def __rich__(self) -> RenderableType:
        from rich.columns import Columns

        return Columns(list(self), padding=(1, 2))


def _another(folder: Path, one: Prototype) -> bool:
    """Whether a folder holds the prototype of another label or site, of which nothing may be lost."""
    if not (folder / "prototype.json").exists():
        return False
    there = Prototype.load(folder)
    return (there.label, there.site) != (one.label, one.site)


def _told(readings: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """A feature's readings as (what, number) for people; those of single latents of a sum are left out."""
    if readings is None:
        return []
    names = {
        "pre_max": "pre-activation, highest",
        "pre_mean": "pre-activation, mean",
        "threshold": "fires above",
        "act_max": "activation, highest",
        "firing": "tokens firing",
        "cosine": "decoder cosine",
        "norm": "norm against real pictures",
    }
    shown = {name: readings.get(name) for name in names}
    return [
        (
            names[name],
            "depends on all (top-k)" if value is None else f"{value:.0%}" if name == "firing" else f"{value:.3f}",
        )
        for name, value in shown.items()
        if value is not None or (name == "threshold" and readings.get("top_k"))
    ]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _row(name: str, value: str) -> str:
    return f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(value)}</td></tr>"


def _link(address: str) -> str:
    """An address of the web as a link; any other as its text."""
    shown = html.escape(address)
    return f'<a href="{shown}" rel="noreferrer noopener">{shown}</a>' if address.startswith("https://") else shown


def _img(image: Image.Image) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(_png(image)).decode()}">'


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, 160 // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


class _Blocks:
    """The picture in half blocks, where the output's encoding has them; nothing elsewhere (cp1252, ascii)."""

    def __init__(self, image: Image.Image):
        self.image = image

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if not options.ascii_only:
            yield _blocks(self.image)


def _blocks(image: Image.Image, columns: int = 32) -> RenderableType:
    """The picture in a terminal's half blocks: two pixels a character, one above the other."""
    from rich.style import Style
    from rich.text import Text

    small = np.asarray(image.resize((columns, columns), Image.Resampling.BOX))
    text = Text(no_wrap=True)
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        for a, b in zip(upper, lower, strict=True):
            text.append("▀", Style(color=f"rgb({a[0]},{a[1]},{a[2]})", bgcolor=f"rgb({b[0]},{b[1]},{b[2]})"))
        text.append("\n")
    return text
