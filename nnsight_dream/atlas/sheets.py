"""Pictures in sheets: the map itself, cut into squares, at several sizes, so that any view is a few large pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..io.files import make_folder, sweep_up, write_whole

SIDE = 2048  # most pixels a side of a sheet, which every browser and phone takes


SMALLEST = 8  # pixels a side of a picture in the coarsest sheets


def levels(tile: int) -> list[int]:
    """Sizes of a picture in the sheets, in pixels: its own, and halves of it down to eight.

    >>> levels(64)
    [64, 32, 16, 8]
    """
    sizes = [tile]
    while sizes[-1] // 2 >= SMALLEST:
        sizes.append(sizes[-1] // 2)
    return sizes


def thumbnail(image: Image.Image, tile: int) -> Image.Image:
    """A picture as a square of `tile` pixels, its middle where it is none."""
    image = image.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    kind = Image.Resampling.LANCZOS if side >= tile else Image.Resampling.BICUBIC
    return image.resize((tile, tile), kind)


def write_sheets(pictures: Sequence[Image.Image], cells: np.ndarray, tile: int, folder: Path) -> list[dict[str, Any]]:
    """Write the sheets of square pictures of `tile` pixels, which are given in their cells (n, 2), as WebP.

    Returns for each size, the largest first: `tile`, `across` (cells a side of a sheet), `files` (column, row, name)
    of each sheet. Raises OSError.
    """
    make_folder(folder)
    sweep_up(folder)
    whole = np.zeros((int(cells[:, 1].max() + 1) * tile, int(cells[:, 0].max() + 1) * tile, 3), np.uint8)
    whole += 128
    for picture, (x, y) in zip(pictures, cells, strict=True):
        whole[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] = np.asarray(picture)
    records, names = [], set()
    for size in levels(tile):
        if size < tile:
            whole = _halved(whole)
        across = SIDE // size
        step, files = across * size, []
        for row in range(0, -(-whole.shape[0] // step)):
            for column in range(0, -(-whole.shape[1] // step)):
                part = whole[row * step : (row + 1) * step, column * step : (column + 1) * step]
                name = f"{size}-{column}-{row}.webp"
                _write(Image.fromarray(part), folder / name)
                files.append([column, row, name])
                names.add(name)
        records.append(dict(tile=size, across=across, files=files))
    for old in folder.glob("*.webp"):  # of an atlas that was here before
        if old.name not in names:
            old.unlink()
    return records


def overview(folder: Path, width: int = 640) -> Image.Image | None:
    """The whole map in one picture, of the sheets in `folder`; None where there is none.

    The largest size of at most `width` pixels that lies on one sheet, else the smallest there is.
    """
    whole = []
    for file in folder.glob("*-0-0.webp"):
        size = file.name.split("-")[0]
        if not (folder / f"{size}-1-0.webp").exists() and not (folder / f"{size}-0-1.webp").exists():
            with Image.open(file) as image:
                whole.append(image.convert("RGB"))
    whole.sort(key=lambda image: image.width)
    return next((image for image in reversed(whole) if image.width <= width), whole[0] if whole else None)


def _halved(whole: np.ndarray) -> np.ndarray:
    """Half the size, each pixel the mean of four."""
    high, wide = whole.shape[0] // 2 * 2, whole.shape[1] // 2 * 2
    parts = whole[:high, :wide].astype(np.uint16)
    total = parts[::2, ::2] + parts[1::2, ::2] + parts[::2, 1::2] + parts[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def _write(image: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85, method=2)
    write_whole(path, buffer.getvalue())
