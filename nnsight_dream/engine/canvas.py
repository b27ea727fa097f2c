"""How the picture is held: a canvas writes a picture as a few free tensors, its "parts", which the ascent moves.

    parts = canvas.start(jobs, generators, device)      list of (jobs, ...) tensors, float32, no gradient yet
    pictures = canvas.render(parts)                     (jobs, 3, size, size), RGB, float32 in [0, 1]

Any object with these two methods and a `size` is a canvas. Jobs never mix: row j of the pictures depends on row j of
the parts alone, and whatever is random in job j comes from `generators[j]`.
What `_ships` names is sent to remote servers as source (see `shipping`), so this file imports nothing but torch and the
standard library, spells out every dtype and device, and does without
`from __future__ import annotations` (a dataclass with annotations kept as strings looks its module up in
`sys.modules`, where sent code is not).
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .checks import check_ground, check_number, check_size, is_whole, keep_plain, plain, shown
from .picture_checks import check_generators, check_parts, check_pictures

#: Square root of the covariance of red, green and blue over ImageNet, a row for each of them
#: (Olah, Mordvintsev, Schubert: Feature Visualization, 2017; the numbers are those of lucid, Apache-2.0).
IMAGENET_COLOUR = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


@dataclass(frozen=True)
class MultiResolution:
    """A sum of components from coarse to fine, all starting at zero, so that a picture starts as exactly its ground.

        x = 0.5 + 0.5 tanh( atanh(2 ground - 1) + sum over r of w_r upscale(P_r) ),   w_r = (smallest r / r) ** exponent

    with bilinear upscaling (half-pixel centres) from r x r to size x size (Direct Ascent Synthesis, 2025, arXiv
    2502.07753; exponent 0 is theirs, a larger one holds the fine components back).
    The default ladder is the paper's at 448: 23 resolutions 8, 28, 48, ..., 448. At any other size it is 23 resolutions
    evenly spaced from size / 56 to size, rounded to whole pixels, but none below 4 pixels and fewer of them where they
    would lie closer than 8 pixels: 4, 13, 21, 30, 38, 47, 55, 64 at 64.
    `resolutions` gives a ladder of your own: different whole numbers from 1 to size.
    `ground` is the share of white that pictures start from: 0.5, the default and the paper's, is grey.
    Parts: (jobs, 3, r, r) for each r of `ladder`, coarsest first.
    Raises ValueError for a size below 8, a resolution outside 1..size or given twice, an exponent that is not finite, a
    ground that is not between 0 and 1.

    >>> canvas = MultiResolution(64)
    >>> canvas.ladder
    (4, 13, 21, 30, 38, 47, 55, 64)
    >>> parts = canvas.start(1, [torch.Generator()])
    >>> canvas.render(parts).unique().tolist()
    [0.5]
    """

    _ships = ("ladder", "start", "render", "_weight")

    size: int = 448
    _: KW_ONLY
    resolutions: tuple[int, ...] | None = None
    exponent: float = 0.0
    ground: float = 0.5

    def __post_init__(self) -> None:
        check_size("MultiResolution", self.size)
        check_number("MultiResolution", "exponent", self.exponent)
        check_ground("MultiResolution", self.ground)
        keep_plain(self, "size", "exponent", "ground")
        if self.resolutions is None:
            return
        given = self.resolutions
        try:
            resolutions = tuple(plain(r) for r in given)
        except TypeError:
            resolutions = ()
        object.__setattr__(self, "resolutions", resolutions)
        good = [r for r in resolutions if is_whole(r) and 1 <= r <= self.size]
        if not good or len(set(good)) < len(resolutions):
            mended = tuple(sorted(set(good))) or None
            raise ValueError(
                f"MultiResolution: resolutions={resolutions or shown(given)} given; allowed are different whole "
                f"numbers from 1 to size ({self.size}); mend: `MultiResolution({self.size}, resolutions={mended})`"
            )

    @property
    def ladder(self) -> tuple[int, ...]:
        """The resolutions in pixels, coarsest first."""
        if self.resolutions is not None:
            return tuple(sorted(self.resolutions))
        low = max(4, math.floor(self.size / 56 + 0.5))
        steps = max(1, min(22, (self.size - low) // 8))
        return tuple(low + math.floor((self.size - low) * i / steps + 0.5) for i in range(steps + 1))

    def start(self, jobs: int, generators: list[torch.Generator], device: torch.device | str = "cpu") -> list[Tensor]:
        """Zero parts (jobs, 3, r, r), one for each resolution of `ladder`; the generators are not used.

        Raises ValueError where the number of generators is not `jobs`.
        """
        check_generators("MultiResolution", jobs, generators)
        return [torch.zeros(jobs, 3, r, r, dtype=torch.float32, device=device) for r in self.ladder]

    def start_from(self, picture: Tensor) -> list[Tensor]:
        """Parts that render as the given picture to within 0.001, on the picture's device.

        `picture` is (3, size, size), or (jobs, 3, size, size), in [0, 1]. It all goes into the finest component: only
        the sum is seen, and each component's gradient depends on that sum alone.
        Raises ValueError for another shape or range, values that are not finite, a ladder that does not reach `size`.
        """
        pictures = check_pictures("MultiResolution", picture, self.size)
        if self.ladder[-1] != self.size:
            mended = (*self.ladder, self.size)
            raise ValueError(
                f"MultiResolution: start_from with resolutions={self.ladder} asked for; allowed are ladders that reach "
                f"size ({self.size}), others cannot hold every picture; mend: "
                f"`MultiResolution({self.size}, resolutions={mended}, exponent={self.exponent})`"
            )
        jobs = pictures.shape[0]
        coarse = [torch.zeros(jobs, 3, r, r, dtype=torch.float32, device=pictures.device) for r in self.ladder[:-1]]
        return [*coarse, above_ground(pictures, self.ground) / self._weight(self.size)]

    def render(self, parts: list[Tensor]) -> Tensor:
        """Pictures (jobs, 3, size, size) in [0, 1]; raises ValueError for parts of other shapes."""
        check_parts("MultiResolution", parts, [(3, r, r) for r in self.ladder])
        with full_precision(parts[0]):
            total = torch.zeros(
                parts[0].shape[0], 3, self.size, self.size, dtype=parts[0].dtype, device=parts[0].device
            )
            for resolution, part in zip(self.ladder, parts, strict=True):
                total = total.add_(upscale(part, self.size), alpha=self._weight(resolution))
            return on_ground(total, self.ground)

    def _weight(self, resolution: int) -> float:
        return float((self.ladder[0] / resolution) ** self.exponent)


@dataclass(frozen=True)
class Pixels:
    """Every pixel for itself, starting as exactly its ground: the plainest canvas, to compare others with.

        x = 0.5 + 0.5 tanh( atanh(2 ground - 1) + P )

    `ground` is the share of white that pictures start from: 0.5, the default, is grey.
    Parts: one (jobs, 3, size, size). Raises ValueError for a size below 8 or a ground that is not between 0 and 1.
    """

    _ships = ("start", "render")

    size: int = 448
    _: KW_ONLY
    ground: float = 0.5

    def __post_init__(self) -> None:
        check_size("Pixels", self.size)
        check_ground("Pixels", self.ground)
        keep_plain(self, "size", "ground")

    def start(self, jobs: int, generators: list[torch.Generator], device: torch.device | str = "cpu") -> list[Tensor]:
        """One zero part (jobs, 3, size, size); the generators are not used. Raises ValueError as every canvas does."""
        check_generators("Pixels", jobs, generators)
        return [torch.zeros(jobs, 3, self.size, self.size, dtype=torch.float32, device=device)]

    def start_from(self, picture: Tensor) -> list[Tensor]:
        """Parts that render as the given picture, (3, size, size) or (jobs, 3, size, size) in [0, 1], to within 0.001.

        Raises ValueError for another shape or range and for values that are not finite.
        """
        return [above_ground(check_pictures("Pixels", picture, self.size), self.ground)]

    def render(self, parts: list[Tensor]) -> Tensor:
        """Pictures (jobs, 3, size, size) in [0, 1]; raises ValueError for parts of other shapes."""
        check_parts("Pixels", parts, [(3, self.size, self.size)])
        return on_ground(parts[0], self.ground)


@dataclass(frozen=True)
class Native:
    """A canvas of the size at which the model sees pictures, whichever that is: nothing is resized on the way.

    `kind` is a class of canvas, or a function from a side in pixels to a canvas:
    `Native(lambda side: MultiResolution(side, exponent=0.5))`. It becomes a canvas in `synthesize`, which knows the
    model. Raises TypeError for a canvas, which has a size already.

    >>> Native(Pixels).at(64)
    Pixels(size=64, ground=0.5)
    """

    kind: Any = MultiResolution

    def __post_init__(self) -> None:
        if not callable(self.kind):
            name = type(self.kind).__name__
            raise TypeError(
                f"Native: {self.kind!r} given; allowed are classes and functions of a side; mend: `Native({name})`"
            )

    def at(self, size: int) -> Any:
        """The canvas of `size` x `size` pixels."""
        return self.kind(size)


def upscale(part: Tensor, size: int) -> Tensor:
    """Square tensors (..., r, r) enlarged to (..., size, size), bilinear with half-pixel centres (align_corners=False).

    Up to 64 pixels, and on an accelerator always, it is two products with the r x size matrix of the weights. On one
    CPU core that makes a step through a canvas of 64 or 96 pixels 1.4 times as fast for four jobs, and no faster for
    one; above, `interpolate` is faster. On CUDA the gradient of the products adds up in a fixed order, that of
    `interpolate` does not.
    """
    resolution = part.shape[-1]
    if resolution == size:
        return part
    if resolution > 64 and part.device.type == "cpu":
        return functional.interpolate(part, size=(size, size), mode="bilinear", align_corners=False)
    identity = torch.eye(resolution, dtype=part.dtype, device=part.device)
    weights = functional.interpolate(identity[None], size=size, mode="linear", align_corners=False)[0]
    return weights.mT @ (part @ weights)


def squash(total: Tensor) -> Tensor:
    """Any numbers as shares of white, in (0, 1)."""
    return 0.5 + 0.5 * torch.tanh(total)


def unsquash(pictures: Tensor, margin: float) -> Tensor:
    """Numbers that `squash` makes these shares of, kept `margin` away from its ends."""
    return torch.atanh(2 * pictures.clamp(margin, 1 - margin) - 1)


def on_ground(total: Tensor, ground: float) -> Tensor:
    """Pictures of any numbers, zero being the ground."""
    return squash(total if ground == 0.5 else total + math.atanh(2 * ground - 1))


def above_ground(pictures: Tensor, ground: float) -> Tensor:
    """Numbers that `on_ground` makes these pictures of, kept 0.0005 away from black and white."""
    total = unsquash(pictures, 5e-4)
    return total if ground == 0.5 else total - math.atanh(2 * ground - 1)


def full_precision(like: Tensor) -> torch.autocast:
    """Within the block, no autocast on the tensor's device."""
    # A server may run all of this under autocast to bfloat16, which would leave the matrix products three digits.
    kind = like.device.type  # of which torch's "meta" knows no autocast
    return torch.autocast(device_type=kind if torch.amp.is_autocast_available(kind) else "cpu", enabled=False)


def mix_channels(plane: Tensor, matrix: Tensor) -> Tensor:
    """Three planes (B, 3, H, W) mixed into red, green and blue."""
    return torch.einsum("ij,njhw->nihw", matrix, plane)


def colour_matrix(like: Tensor) -> Tensor:
    """(3, 3) how three uncorrelated planes mix into colours as natural pictures have them."""
    matrix = torch.tensor(IMAGENET_COLOUR, dtype=like.dtype, device=like.device)
    longest: Tensor = torch.linalg.vector_norm(matrix, dim=0).max()
    return matrix / longest
