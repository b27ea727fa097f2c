"""What is done to the picture afresh at every step, so that no single pixel, place or angle can carry the score.

    pictures = augmentation(pictures, generators, batch)    (jobs * batch, 3, H, W) in, the same shape out

The elements of job j are the rows j * batch to (j + 1) * batch; each element gets a draw of its own, and job j draws
from `generators[j]` alone, on the CPU in float32: a job's draws are the same alone, among others, and on any device.
Any callable of that form is an augmentation; several are a tuple, applied in order. A picture may leave [0, 1]
(`Noise`) and is not clipped; what is not finite is passed on, for the ascent to find.
This file is sent to remote servers: see `canvas` for what that forbids.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .checks import is_real, is_whole, keep_plain, shown
from .picture_checks import check_views


@dataclass(frozen=True)
class Shift:
    """Each picture enlarged by s pixels a side, moved by a uniform draw from [-s, s] in x and in y, cut back to size.

    s is `pixels`, or the whole number nearest `fraction` of the height; 0.25 where neither is given: 56 at 224 (Direct
    Ascent Synthesis, 2025, arXiv 2502.07753). Draws are real numbers. Enlarging and moving are one bilinear reading of
    the picture, equal to `interpolate` (half-pixel centres) followed by a crop where the draw is whole.
    Raises ValueError where both are given, one is negative or not finite, or s reaches half the shorter side.

    >>> Shift()(torch.rand(2, 3, 64, 64), [torch.Generator().manual_seed(0)], batch=2).shape
    torch.Size([2, 3, 64, 64])
    """

    _ships = ("__call__",)

    pixels: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if self.pixels is None and self.fraction is None:
            object.__setattr__(self, "fraction", 0.25)
        if self.pixels is not None and self.fraction is not None:
            raise ValueError(
                f"Shift: pixels={self.pixels!r} and fraction={self.fraction!r} given; allowed is one of the two; mend: "
                f"`Shift(pixels={self.pixels!r})` or `Shift(fraction={self.fraction!r})`"
            )
        keep_plain(self, "pixels", "fraction")
        if self.fraction is not None and not (is_real(self.fraction) and 0 <= self.fraction < 0.5):
            raise ValueError(
                f"Shift: fraction={shown(self.fraction)} given; allowed is 0 to below 0.5 of the height; mend: "
                f"`Shift(fraction=0.25)`"
            )
        if self.pixels is not None and not (is_whole(self.pixels) and self.pixels >= 0):
            raise ValueError(
                f"Shift: pixels={shown(self.pixels)} given; allowed are whole numbers from 0 up; mend: "
                f"`Shift(pixels=16)`, or a part of the height, `Shift(fraction=0.25)`"
            )

    def __call__(self, pictures: Tensor, generators: list[torch.Generator], batch: int) -> Tensor:
        """Pictures (jobs * batch, 3, H, W), each shifted by its own draw; raises ValueError for other shapes."""
        check_views("Shift", pictures, generators, batch)
        height, width = pictures.shape[-2:]
        side = min(height, width)
        margin = math.floor((self.fraction or 0.0) * height + 0.5) if self.pixels is None else self.pixels
        if 2 * margin >= side:
            raise ValueError(
                f"Shift: {margin} pixels asked for on pictures of {height} x {width}; allowed is less than half the "
                f"shorter side; mend: `Shift(pixels={side // 4})`"
            )
        return shifted(pictures, margin, (2 * _uniform(generators, batch, 2) - 1) * margin)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of deviation `std` added to every value, in units of the [0, 1] range (0.2: as `Shift`'s source).

    Raises ValueError where std is negative or not finite.
    """

    _ships = ("__call__",)

    std: float = 0.2

    def __post_init__(self) -> None:
        keep_plain(self, "std")
        if not (is_real(self.std) and self.std >= 0):
            raise ValueError(
                f"Noise: std={shown(self.std)} given; allowed are finite numbers from 0 up; mend: `Noise(std=0.2)`"
            )

    def __call__(self, pictures: Tensor, generators: list[torch.Generator], batch: int) -> Tensor:
        """Pictures (jobs * batch, 3, H, W) with noise, not clipped; raises ValueError for other shapes."""
        check_views("Noise", pictures, generators, batch)
        noise = torch.empty(pictures.shape, dtype=torch.float32, device="cpu")
        for rows, generator in zip(torch.split(noise, batch), generators, strict=True):
            rows.normal_(generator=generator)
        return torch.add(pictures, noise.to(dtype=pictures.dtype, device=pictures.device), alpha=self.std)


@dataclass(frozen=True)
class Scale:
    """Each picture zoomed about its centre by a uniform draw from [low, high]: grown above 1, below 1 mirrored in.

    Raises ValueError unless 0 < low <= high, both finite.
    """

    _ships = ("__call__",)

    low: float
    high: float

    def __post_init__(self) -> None:
        keep_plain(self, "low", "high")
        if not (is_real(self.low) and is_real(self.high) and 0 < self.low <= self.high):
            raise ValueError(
                f"Scale: low={shown(self.low)}, high={shown(self.high)} given; allowed are finite factors with "
                f"0 < low <= high; mend: `Scale(low=0.9, high=1.1)`"
            )

    def __call__(self, pictures: Tensor, generators: list[torch.Generator], batch: int) -> Tensor:
        """Pictures (jobs * batch, 3, H, W), each zoomed by its own draw; raises ValueError for other shapes."""
        check_views("Scale", pictures, generators, batch)
        draw = _uniform(generators, batch, 1)[:, 0]
        return scaled(pictures, self.low + (self.high - self.low) * draw)


@dataclass(frozen=True)
class Rotate:
    """Each picture turned about its centre by a uniform draw from [-degrees, degrees]; corners are mirrored in.

    On CUDA the gradient adds up in no fixed order (`grid_sample`): the last bits differ from run to run, here only.
    Raises ValueError unless degrees is from 0 to 180.
    """

    _ships = ("__call__",)

    degrees: float

    def __post_init__(self) -> None:
        keep_plain(self, "degrees")
        if not (is_real(self.degrees) and 0 <= self.degrees <= 180):
            mended = _turn(self.degrees) if isinstance(self.degrees, (int, float)) else 15
            raise ValueError(
                f"Rotate: degrees={shown(self.degrees)} given; allowed is 0 to 180; mend: `Rotate(degrees={mended})`"
            )

    def __call__(self, pictures: Tensor, generators: list[torch.Generator], batch: int) -> Tensor:
        """Pictures (jobs * batch, 3, H, W), each turned by its own draw; raises ValueError for other shapes."""
        check_views("Rotate", pictures, generators, batch)
        draw = 2 * _uniform(generators, batch, 1)[:, 0] - 1
        return rotated(pictures, draw * math.radians(self.degrees))


def shifted(pictures: Tensor, margin: int, offsets: Tensor) -> Tensor:
    """Pictures (n, 3, H, W) enlarged by `margin` pixels a side; of each, the H x W window `offsets` off the centre.

    Offsets (n, 2) are x, y in pixels of the enlarged picture, within [-margin, margin]. Pixel j of the window is pixel
    j + margin + offset of the enlarged picture; its centre is at (j + margin + offset + 0.5) H / (H + 2 margin) - 0.5
    of the picture.
    """
    offsets = offsets.to(dtype=pictures.dtype, device=pictures.device)
    height, width = pictures.shape[-2:]
    rows = (_centres(height, pictures) + margin + offsets[:, 1:]) * (height / (height + 2 * margin)) - 0.5
    columns = (_centres(width, pictures) + margin + offsets[:, :1]) * (width / (width + 2 * margin)) - 0.5
    return _read(pictures, rows.clamp(0, height - 1), columns.clamp(0, width - 1))


def scaled(pictures: Tensor, factors: Tensor) -> Tensor:
    """Pictures (n, 3, H, W) zoomed about the centre by `factors` (n,), mirrored at the edges where they shrink."""
    factors = factors.to(dtype=pictures.dtype, device=pictures.device)[:, None]
    height, width = pictures.shape[-2:]
    rows = (_centres(height, pictures) - height / 2) / factors + height / 2
    columns = (_centres(width, pictures) - width / 2) / factors + width / 2
    return _read(pictures, _mirrored(rows, height), _mirrored(columns, width))


def rotated(pictures: Tensor, angles: Tensor) -> Tensor:
    """Pictures (n, 3, H, W) turned anticlockwise by `angles` (n,) in radians, mirrored in at the corners."""
    angles = angles.to(dtype=pictures.dtype, device=pictures.device)[:, None, None]
    height, width = pictures.shape[-2:]
    y = (_centres(height, pictures) - height / 2)[:, None]
    x = (_centres(width, pictures) - width / 2)[None, :]
    columns = x * angles.cos() - y * angles.sin()
    rows = x * angles.sin() + y * angles.cos()
    grid = torch.stack([columns * (2 / width), rows * (2 / height)], dim=-1)
    return functional.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _read(pictures: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Each picture read bilinearly at rows (n, h) and columns (n, w), in pixels within the picture: (n, 3, h, w)."""
    if pictures.device.type == "cpu":
        return _read_points(pictures, rows, columns)
    return _read_lines(pictures, rows, columns)


def _read_points(pictures: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # Point by point: on a CPU 2 to 5 times faster than the products below from 128 pixels on, not slower before.
    height, width = pictures.shape[-2:]
    x = ((2 * columns + 1) / width - 1)[:, None, :].expand(-1, rows.shape[1], -1)
    y = ((2 * rows + 1) / height - 1)[:, :, None].expand(-1, -1, columns.shape[1])
    grid = torch.stack([x, y], dim=-1)
    return functional.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _read_lines(pictures: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # As two matrix products: cheap on an accelerator, and the gradient adds up in a fixed order: same seed, same bits.
    kind = pictures.device.type  # of which torch's "meta" knows no autocast
    with torch.autocast(device_type=kind if torch.amp.is_autocast_available(kind) else "cpu", enabled=False):
        return _taps(rows, pictures.shape[-2]) @ (pictures @ _taps(columns, pictures.shape[-1]).mT)


def _taps(positions: Tensor, size: int) -> Tensor:
    """The weights of linear interpolation, (n, 1, places, size): 1 - distance for the two nearest pixels, else 0."""
    pixels = torch.arange(size, dtype=positions.dtype, device=positions.device)
    return (1 - (positions[:, None, :, None] - pixels).abs()).clamp(min=0)


def _centres(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, dtype=like.dtype, device=like.device) + 0.5


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Places from 0 to `size` (edges, not centres), mirrored at both ends as often as needed, as pixel positions."""
    places = places.remainder(2 * size)
    return (torch.minimum(places, 2 * size - places) - 0.5).clamp(0, size - 1)


def _uniform(generators: list[torch.Generator], batch: int, count: int) -> Tensor:
    draws = [torch.rand(batch, count, generator=g, dtype=torch.float32, device="cpu") for g in generators]
    return torch.cat(draws)


def _turn(degrees: float) -> float:
    return min(180, abs(degrees)) if math.isfinite(degrees) else 180
