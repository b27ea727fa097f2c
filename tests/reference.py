"""Slow and obvious versions of what the package computes, in NumPy and float64, to compare with."""

from __future__ import annotations

import cmath
import math

import numpy as np

# -- reading pictures between their pixels ----------------------------------------------------------------------


def read(picture: np.ndarray, y: float, x: float) -> np.ndarray:
    """The value of a picture (..., H, W) at row y and column x, bilinear, flat beyond the outermost centres."""
    height, width = picture.shape[-2:]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = (1 - (x - left)) * picture[..., top, left] + (x - left) * picture[..., top, right]
    lower = (1 - (x - left)) * picture[..., bottom, left] + (x - left) * picture[..., bottom, right]
    return (1 - (y - top)) * upper + (y - top) * lower


def bilinear(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture (..., h, w) resized to height x width, half-pixel centres."""
    picture = np.asarray(picture, dtype=np.float64)
    found = np.zeros((*picture.shape[:-2], height, width))
    for i in range(height):
        for j in range(width):
            y = (i + 0.5) * picture.shape[-2] / height - 0.5
            x = (j + 0.5) * picture.shape[-1] / width - 0.5
            found[..., i, j] = read(picture, y, x)
    return found


# -- canvases ---------------------------------------------------------------------------------------------------

COLOUR = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])  # Olah et al. 2017
COLOUR = COLOUR / max(math.sqrt(sum(COLOUR[i, j] ** 2 for i in range(3))) for j in range(3))


def multi_resolution(parts: list[np.ndarray], size: int, exponent: float = 0.0) -> np.ndarray:
    """0.5 + 0.5 tanh of the sum of the enlarged components, the one of r pixels times (coarsest / r) ** exponent."""
    coarsest = min(part.shape[-1] for part in parts)
    total = np.zeros((3, size, size))
    for part in parts:
        total += (coarsest / part.shape[-1]) ** exponent * bilinear(part, size, size)
    return 0.5 + 0.5 * np.tanh(total)


def half_spectrum_to_plane(half: np.ndarray, size: int) -> np.ndarray:
    """The real plane of a half spectrum (C, size, size // 2 + 1), orthonormal, by the sum of its waves."""
    plane = np.zeros((half.shape[0], size, size))
    for k in range(size):
        for m in range(size // 2 + 1):
            alone = m == 0 or 2 * m == size  # such a column holds its own conjugates
            for y in range(size):
                for x in range(size):
                    wave = cmath.exp(2j * math.pi * (k * y + m * x) / size) / size
                    plane[:, y, x] += (1 if alone else 2) * (half[:, k, m] * wave).real
    return plane


def frequency(k: int, m: int, size: int) -> float:
    """Cycles per pixel of entry k, m of a half spectrum."""
    return math.hypot(min(k, size - k) / size, m / size)


def mix(plane: np.ndarray) -> np.ndarray:
    """Uncorrelated colours (3, H, W) to red, green and blue."""
    return np.stack([sum(COLOUR[i, j] * plane[j] for j in range(3)) for i in range(3)])


def fourier(part: np.ndarray, size: int, decay: float) -> np.ndarray:
    """The picture of a spectrum (3, size, size // 2 + 1, 2), scaled by f ** -decay."""
    half = part[..., 0] + 1j * part[..., 1]
    for k in range(size):
        for m in range(size // 2 + 1):
            half[:, k, m] /= max(frequency(k, m, size), 1 / size) ** decay
    return 1 / (1 + np.exp(-mix(half_spectrum_to_plane(half, size)) / 4))


def maco(phase: np.ndarray, magnitude: np.ndarray, size: int) -> np.ndarray:
    """The picture of phases and magnitudes (3, size, size // 2 + 1), conjugate entries given opposite phases."""
    phase = phase.copy()
    for m in range(size // 2 + 1):
        if m == 0 or 2 * m == size:
            for k in range(1, size):
                if k < size - k:
                    phase[:, size - k, m] = -phase[:, k, m]
    return 0.5 + 0.5 * np.tanh(mix(half_spectrum_to_plane(magnitude * np.exp(1j * phase), size)))


# -- augmentations ----------------------------------------------------------------------------------------------


def shift(picture: np.ndarray, margin: int, dx: float, dy: float) -> np.ndarray:
    """A picture (3, H, W) enlarged by margin a side, moved by dx, dy, cut at the centre; read point by point."""
    height, width = picture.shape[-2:]
    found = np.zeros_like(picture)
    for i in range(height):
        for j in range(width):
            y = (i + margin + dy + 0.5) * height / (height + 2 * margin) - 0.5
            x = (j + margin + dx + 0.5) * width / (width + 2 * margin) - 0.5
            found[:, i, j] = read(picture, y, x)
    return found


def mirrored(position: float, size: int) -> float:
    """A pixel position brought back inside by mirrors at the picture's edges, half a pixel beyond the outer centres."""
    while not -0.5 <= position <= size - 0.5:
        position = -1 - position if position < -0.5 else 2 * size - 1 - position
    return position


def scale(picture: np.ndarray, factor: float) -> np.ndarray:
    """A picture (3, H, W) zoomed about its centre."""
    height, width = picture.shape[-2:]
    found = np.zeros_like(picture)
    for i in range(height):
        for j in range(width):
            y = (i - (height - 1) / 2) / factor + (height - 1) / 2
            x = (j - (width - 1) / 2) / factor + (width - 1) / 2
            found[:, i, j] = read(picture, mirrored(y, height), mirrored(x, width))
    return found


def rotate(picture: np.ndarray, angle: float) -> np.ndarray:
    """A picture (3, H, W) turned anticlockwise about its centre by an angle in radians."""
    height, width = picture.shape[-2:]
    found = np.zeros_like(picture)
    for i in range(height):
        for j in range(width):
            point = complex(j - (width - 1) / 2, (height - 1) / 2 - i)  # y upwards, as angles are meant
            source = point * cmath.exp(-1j * angle)
            y, x = (height - 1) / 2 - source.imag, source.real + (width - 1) / 2
            found[:, i, j] = read(picture, mirrored(y, height), mirrored(x, width))
    return found
