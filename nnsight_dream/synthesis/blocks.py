"""Prototypes shown: as HTML in notebooks, and as blocks of colour in terminals."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text


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
    text = html.escape(address)
    return f'<a href="{text}" rel="noreferrer noopener">{text}</a>' if address.startswith("https://") else text


def image_tag(image: Image.Image, alt: str = "", width: int | None = None) -> str:
    """A picture as HTML, with all its bytes; `alt` says it in words, `width` is that shown, in pixels."""
    size = "" if width is None else f' width="{int(width)}"'
    code = base64.b64encode(to_png(image)).decode()
    return f'<img src="data:image/png;base64,{code}" alt="{html.escape(alt)}"{size}>'


def enlarged(image: Image.Image, side: int = 160) -> Image.Image:
    """A small picture a whole number of times as large, at most `side` pixels wide; a larger one as it is."""
    factor = max(1, side // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


class Blocks:
    """A picture in half blocks, on a terminal with colours whose encoding has them; nothing elsewhere."""

    def __init__(self, image: Image.Image, columns: int = 32):
        self.image, self.columns = image, columns

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if shows_blocks(console):
            yield _blocks(self.image, self.columns)


def shows_blocks(console: Console) -> bool:
    """Whether pictures can be shown on a console: with colours, and characters beyond ascii and cp1252."""
    return not console.options.ascii_only and console.color_system is not None


class Tiles:
    """Pictures side by side, each row on a line of its own as far as the console is wide.

    rows   of each picture: the picture, and lines of text that go above it
    """

    def __init__(self, rows: Sequence[Sequence[tuple[Image.Image, Sequence[Text]]]], least: int = 24):
        self.rows, self.least = rows, least

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.console import Group
        from rich.table import Table

        fit = max(1, (options.max_width + 2) // (self.least + 2))
        many = min(fit, max((len(row) for row in self.rows), default=1))
        together = max(1, fit // many)  # short rows share a line
        starts = range(0, len(self.rows), together)
        lines = [[tile for row in self.rows[i : i + together] for tile in row] for i in starts]
        many *= min(together, max(1, len(self.rows)))
        columns = max(8, min(32, (options.max_width + 2) // many - 2) // 2 * 2)
        for row in lines:
            for start in range(0, len(row), many):
                table = Table.grid(padding=(0, 2, 1, 0))
                for _ in range(many):
                    table.add_column(width=columns, no_wrap=True, overflow="ellipsis")
                table.add_row(*(Group(*text, Blocks(image, columns)) for image, text in row[start : start + many]))
                yield table


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
    text.rstrip()
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
    values = {name: readings.get(name) for name in names}
    return [
        (
            names[name],
            "depends on all (top-k)" if value is None else f"{value:.0%}" if name == "firing" else f"{value:.3f}",
        )
        for name, value in values.items()
        if value is not None or (name == "threshold" and readings.get("top_k"))
    ]
