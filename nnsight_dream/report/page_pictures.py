"""Pictures of a page: within it while they are few, in a folder beside it beyond that."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from ..io.files import digest, make_folder, sweep_up, write_whole

MOST, MOST_BYTES = 200, 20_000_000  # pictures, and bytes of them as text, that a page holds itself


EMBEDDED, BESIDE = "img-src data:", "img-src data: file: 'self'"  # what a page may load: see its policy


class Shelf:
    """The pictures of a page, each once, by number.

    page       the file; `expected` how many pictures there will be about, so that many are written as they come

    With more than 200 pictures, or 20 MB, they lie in the folder `<name>_files` beside the page, named by their
    content, and the page loads them from there.
    """

    def __init__(self, page: Path, expected: int = 0):
        self.page, self.folder = page, page.with_name(f"{page.stem}_files")
        self.beside = expected > MOST
        self._numbers: dict[str, int] = {}  # by the file's name
        self._held: dict[str, bytes] = {}
        self._bytes = 0
        self._ready = False

    def add(self, image: Image.Image, most: int, form: str = "PNG") -> int:
        """Keep a picture, at most so many pixels a side, as PNG or JPEG; returns its number. Raises OSError."""
        if max(image.size) > most:
            image = image.copy()
            image.thumbnail((most, most), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, form, **({"quality": 80} if form == "JPEG" else {"optimize": True}))
        data = buffer.getvalue()
        name = f"{digest(data)[:20]}.{'jpg' if form == 'JPEG' else 'png'}"
        if name not in self._numbers:
            self._numbers[name] = len(self._numbers)
            self._held[name] = data
            self._bytes += len(data) * 4 // 3
            self.beside |= len(self._numbers) > MOST or self._bytes > MOST_BYTES
            if self.beside:
                self._put_beside()
        return self._numbers[name]

    def _put_beside(self) -> None:
        if not self._ready:
            make_folder(self.folder)
            sweep_up(self.folder)
            self._ready = True
        for name, data in self._held.items():
            path = self.folder / name
            if not (path.is_file() and path.stat().st_size == len(data)):
                write_whole(path, data)
        self._held.clear()

    def urls(self) -> list[str]:
        """The address of every picture, by number: the picture itself, or its file beside the page."""
        if self.beside:
            return [f"{quote(self.folder.name)}/{name}" for name in self._numbers]
        kind = {"jpg": "jpeg", "png": "png"}
        return [
            f"data:image/{kind[name[-3:]]};base64,{base64.b64encode(data).decode()}"
            for name, data in self._held.items()
        ]

    def allowed(self, template: str) -> str:
        """The page's template, whose policy lets it load what is beside it only where anything is."""
        return template.replace(EMBEDDED, BESIDE, 1) if self.beside else template
