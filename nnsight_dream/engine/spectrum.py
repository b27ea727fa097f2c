"""Canvases whose parts are a picture's spectrum: `Fourier` and `MACO`. See `engine.canvas` for the form of a canvas."""

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .canvas import colour_matrix, full_precision, mix_channels, squash, unsquash
from .checks import check_number, check_size, keep_plain, shown
from .picture_checks import check_generators, check_parts, check_pictures


@dataclass(frozen=True)
class Fourier:
    """A spectrum scaled by 1 / f ** decay, in colours that are uncorrelated over natural pictures.

        x = sigmoid( M irfft2( P / max(f, 1 / size) ** decay ) / 4 )

    f is in cycles per pixel, irfft2 is orthonormal, M is IMAGENET_COLOUR over its longest column; the 1 / 4 and the
    start, normal with deviation 0.01, are lucid's (Olah, Mordvintsev, Schubert 2017), so its step sizes carry over.
    Parts: one (jobs, 3, size, size // 2 + 1, 2), the last axis real and imaginary part. Even and odd sizes alike.
    Raises ValueError for a size below 8 and a decay that is not finite.
    """

    _ships = ("start", "render")

    size: int = 448
    _: KW_ONLY
    decay: float = 1.0

    def __post_init__(self) -> None:
        check_size("Fourier", self.size)
        check_number("Fourier", "decay", self.decay)
        keep_plain(self, "size", "decay")

    def start(self, jobs: int, generators: list[torch.Generator], device: torch.device | str = "cpu") -> list[Tensor]:
        """One part of small normal numbers, row j drawn from generators[j] on the CPU.

        Raises ValueError where the number of generators is not `jobs` or one does not live on the CPU.
        """
        check_generators("Fourier", jobs, generators)
        shape = (3, self.size, self.size // 2 + 1, 2)
        rows = [torch.randn(shape, generator=g, dtype=torch.float32, device="cpu") for g in generators]
        return [(0.01 * torch.stack(rows)).to(device)]

    def render(self, parts: list[Tensor]) -> Tensor:
        """Pictures (jobs, 3, size, size) in [0, 1]; raises ValueError for parts of other shapes."""
        check_parts("Fourier", parts, [(3, self.size, self.size // 2 + 1, 2)])
        part = parts[0]
        with full_precision(part):
            scale = _frequencies(self.size, part).pow(-self.decay)
            spectrum = torch.view_as_complex(part.contiguous()) * scale
            plane = torch.fft.irfft2(spectrum, s=(self.size, self.size), norm="ortho")
            return torch.sigmoid(mix_channels(plane, colour_matrix(part)) / 4)


@dataclass(frozen=True, eq=False)
class MACO:
    """Magnitude-constrained: the magnitude of every frequency stays as in natural pictures, only its phase moves.

        x = 0.5 + 0.5 tanh( M irfft2( magnitude exp(i phase) ) )

    (Fel et al. 2023, arXiv 2306.06805.) M is as in `Fourier`, irfft2 orthonormal. Where they squash a standardised
    picture, the magnitude here is that of pictures before the squash: a picture's own magnitude and phase render it.
    `magnitude` is (3, size, size // 2 + 1), not negative; measure it with `MACO.from_pictures`. None means 1 / f,
    scaled so that a colour deviates from its mean by 0.5 before the squash, by about 0.21 in the picture.
    The mean colours are magnitude times cos(phase), so they move too, between bounds.
    Parts: one (jobs, 3, size, size // 2 + 1), the phase in radians. Even and odd sizes alike.
    Raises ValueError for a size below 8 and a magnitude of another shape, negative, not finite or all zero.
    """

    _ships = ("start", "render")

    size: int = 448
    _: KW_ONLY
    magnitude: Tensor | None = None

    def __post_init__(self) -> None:
        check_size("MACO", self.size)
        keep_plain(self, "size")
        if self.magnitude is None:
            return
        shape = (3, self.size, self.size // 2 + 1)
        mend = f"; mend: measure it, `MACO.from_pictures(pictures, size={self.size})`"
        if not isinstance(self.magnitude, Tensor) or self.magnitude.is_complex():
            raise ValueError(f"MACO: magnitude={shown(self.magnitude)} given; allowed is a tensor {shape}{mend}")
        if tuple(self.magnitude.shape) != shape:
            raise ValueError(f"MACO: magnitude of shape {tuple(self.magnitude.shape)} given; allowed is {shape}{mend}")
        low, high = float(self.magnitude.min()), float(self.magnitude.max())
        if not (low >= 0 and 0 < high < math.inf):
            raise ValueError(
                f"MACO: magnitude from {low} to {high} given; allowed are finite values from 0 up, not all zero{mend}"
            )

    @classmethod
    def from_pictures(cls, pictures: Tensor, size: int) -> "MACO":
        """The canvas whose magnitude is the mean over pictures (n, 3, H, W) in [0, 1], resized to `size` where needed.

        The pictures are kept 0.01 away from black and white, where the inverse of the squash ends.
        Raises ValueError for another rank or range, values that are not finite, pictures without any contrast.
        """
        check_size("MACO", size)
        size = int(size)
        with torch.no_grad():
            pictures = check_pictures("MACO", pictures, None)
            if tuple(pictures.shape[-2:]) != (size, size):
                pictures = functional.interpolate(
                    pictures, size=(size, size), mode="bilinear", align_corners=False, antialias=True
                )
            with full_precision(pictures):
                plane = mix_channels(unsquash(pictures, 0.01), torch.linalg.inv(colour_matrix(pictures)))
                return cls(size, magnitude=torch.fft.rfft2(plane, norm="ortho").abs().mean(dim=0))

    def start(self, jobs: int, generators: list[torch.Generator], device: torch.device | str = "cpu") -> list[Tensor]:
        """One part of uniform phases, row j drawn from generators[j] on the CPU; the mean colours alone start as grey.

        Raises ValueError where the number of generators is not `jobs` or one does not live on the CPU.
        """
        check_generators("MACO", jobs, generators)
        shape = (3, self.size, self.size // 2 + 1)
        rows = [torch.rand(shape, generator=g, dtype=torch.float32, device="cpu") for g in generators]
        phase = (2 * torch.stack(rows) - 1) * math.pi
        phase[:, :, 0, 0] = math.pi / 2  # cos = 0: the middle of its range, where it moves most easily
        return [phase.to(device)]

    def render(self, parts: list[Tensor]) -> Tensor:
        """Pictures (jobs, 3, size, size) in [0, 1]; raises ValueError for parts of other shapes."""
        check_parts("MACO", parts, [(3, self.size, self.size // 2 + 1)])
        phase = _odd_phase(parts[0])
        with full_precision(phase):
            colour = colour_matrix(phase)
            if self.magnitude is None:
                magnitude = _natural_magnitude(self.size, colour)
            else:
                magnitude = self.magnitude.to(dtype=phase.dtype, device=phase.device)
            spectrum = torch.polar(magnitude.expand_as(phase).contiguous(), phase)
            return squash(mix_channels(torch.fft.irfft2(spectrum, s=(self.size, self.size), norm="ortho"), colour))

    def __eq__(self, other: object) -> bool:
        """Same size and same magnitude; a dataclass's own comparison cannot compare tensors."""
        if not isinstance(other, type(self)) or self.size != other.size:
            return False
        if self.magnitude is None or other.magnitude is None:
            return self.magnitude is other.magnitude
        return torch.equal(self.magnitude, other.magnitude)

    def __hash__(self) -> int:
        return hash((type(self), self.size))


def _frequencies(size: int, like: Tensor) -> Tensor:
    """Cycles per pixel of an rfft2, (size, size // 2 + 1); the zero frequency counts as the lowest, 1 / size."""
    rows = torch.fft.fftfreq(size, dtype=like.dtype, device=like.device)
    columns = torch.fft.rfftfreq(size, dtype=like.dtype, device=like.device)
    return torch.hypot(rows[:, None], columns[None, :]).clamp(min=1 / size)


def _natural_magnitude(size: int, colour: Tensor) -> Tensor:
    """1 / f for each of the three uncorrelated colours, (3, size, size // 2 + 1), scaled as `MACO` says."""
    magnitude = 1 / _frequencies(size, colour)
    twice = torch.full_like(magnitude, 2.0)  # an rfft keeps one of each conjugate pair, except in its outer columns
    twice[:, 0] = 1
    if size % 2 == 0:
        twice[:, -1] = 1
    twice[0, 0] = 0
    variance = (twice * magnitude.square()).sum() / size**2 * colour.square().sum() / 3  # Parseval
    return (magnitude * 0.5 / variance.sqrt()).expand(3, -1, -1)


def _odd_phase(phase: Tensor) -> Tensor:
    """The phases with those columns made odd whose frequencies all have their conjugate in the same column.

    Without this the inverse transform averages the two, and the magnitude there is not the one prescribed.
    """
    size = phase.shape[-2]
    half = (size - 1) // 2

    def odd(column: Tensor) -> Tensor:
        return torch.cat([column[..., : size - half], -column[..., 1 : half + 1].flip(-1)], dim=-1)[..., None]

    if size % 2:
        return torch.cat([odd(phase[..., 0]), phase[..., 1:]], dim=-1)
    return torch.cat([odd(phase[..., 0]), phase[..., 1:-1], odd(phase[..., -1])], dim=-1)
