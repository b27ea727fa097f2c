"""Prototypes shown: as HTML in notebooks, and as blocks of colour in terminals."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


def to_png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def picture_row(name: str, value: str) -> str:
    """A row of a table of HTML."""
    return f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(value)}</td></tr>"


def link_tag(address: str) -> str:
    """An address of the web as a link; any other as its text."""
    shown = html.escape(address)
    return f'<a href="{shown}" rel="noreferrer noopener">{shown}</a>' if address.startswith("https://") else shown


def image_tag(image: Image.Image) -> str:
    """A picture as HTML, with all its bytes."""
    return f'<img src="data:image/png;base64,{base64.b64encode(to_png(image)).decode()}">'


def enlarged(image: Image.Image) -> Image.Image:
    """A small picture a whole number of times as large, about 160 pixels wide."""
    factor = max(1, 160 // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


class Blocks:
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


def reading_rows(readings: Mapping[str, Any] | None) -> list[tuple[str, str]]:
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
