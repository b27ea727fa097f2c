"""Pictures into pixel inputs: the numbers of an image processor, and differentiable twins of what processors do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


def shares(eights: torch.Tensor) -> torch.Tensor:
    """8-bit values as shares of white; the sum rounds as it always did, to 6e-8, so that kept results stay the same."""
    return eights.float() / 255 + 1 - 1


@dataclass(frozen=True)
class PixelFormat:
    """How a checkpoint's image processor turns a picture into numbers.

    `size` is (height, width) in pixels; `mean` and `std` are per RGB channel, for values in [0, 1];
    `resample` is PIL's number of the interpolation (1 Lanczos, 2 bilinear, 3 bicubic); `crop` says that the shorter
    side is resized to it and the middle cut out, where otherwise the picture is squeezed.
    `cell` is the side in pixels of one image token, where a family's grid is counted by it; `any_size` says that the
    model takes pictures of any whole number of cells, `square` that they must be square. Where the processor cuts
    pictures into patches itself, `patch` is a patch's side, `merge` how many on a side become one token, `frames` how
    often a still is repeated. `tokens` is the number of image tokens on a side, where it is the same at every size.
    """

    _ships = ()

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int = 2
    crop: bool = False
    cell: int = 0
    any_size: bool = False
    square: bool = False
    patch: int = 0
    merge: int = 1
    frames: int = 1
    tokens: int = 0

    def fits(self, size: tuple[int, int]) -> bool:
        """Whether the model takes pictures of (height, width) pixels."""
        if not self.any_size or size == self.size:
            return size == self.size
        counts = [n // self.cell for n in size if n > 0 and n % self.cell == 0]
        even = all(not self.tokens or n % self.tokens == 0 or self.tokens % n == 0 for n in counts)
        return len(counts) == 2 and even and not (self.square and size[0] != size[1])

    @property
    def sizes(self) -> str:
        """The sizes that `fits` allows, in words."""
        if not self.any_size:
            return "this one only"
        if not self.tokens:
            return f"any {'square ' if self.square else ''}multiple of {self.cell}"
        parts = [n * self.cell for n in range(1, self.tokens) if self.tokens % n == 0]
        return f"square ones of {', '.join(map(str, parts))} or a multiple of {self.tokens * self.cell}"

    @classmethod
    def of(cls, processor: Any, size: tuple[int, int] | None = None, **more: Any) -> PixelFormat:
        """Read the numbers off a Hugging Face image processor; `size` where it states none, `more` as they are."""
        stated, crop = processor.size, False
        if size is not None:
            height, width = size
        elif "height" in stated:
            height, width = stated["height"], stated["width"]
        elif getattr(processor, "do_center_crop", False):
            height, width, crop = processor.crop_size["height"], processor.crop_size["width"], True
        else:
            height = width = stated["shortest_edge"]
        scale = processor.rescale_factor * 255 if processor.do_rescale else 255.0
        mean = tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0)
        std = tuple(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0)
        return cls(
            (int(height), int(width)),
            tuple(m / scale for m in mean),
            tuple(s / scale for s in std),
            int(processor.resample if processor.resample is not None else 2),
            **{"crop": crop, **more},
        )


def stated(processor: Any, config: Any) -> PixelFormat:
    """The common case: the image processor states the one size that the model takes."""
    return PixelFormat.of(processor)


def resize(pictures: torch.Tensor, size: tuple[int, int], resample: int) -> torch.Tensor:
    """Resize (B, 3, H, W) in [0, 1] as PIL does, differentiably: within one 8-bit step of it.

    PIL rounds to 8 bits and clips between its two one-dimensional passes; bilinear needs neither to stay in range,
    bicubic and Lanczos overshoot, so they are done in two passes here too, across and then down, and what a picture in
    [0, 1] overshoots is held at 0 and 1 after each. A picture that leads out of [0, 1], which no processor can be
    given, is not held anywhere. The gradient is that of the mixing alone: it is cut nowhere, not where a value is held.

    Pillow 13 may go down first where a picture loses more of its height than of its width; such pictures, if they are
    noisy, come out up to ten steps off. Square pictures to square ones never do.

    Raises ValueError for a filter without a differentiable twin here.
    """
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    if resample == 2:
        return F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)
    low, high = (part(pictures.detach(), (1, 2, 3), keepdim=True) for part in (torch.amin, torch.amax))
    stored = (low >= -1e-4) & (high <= 1 + 1e-4)  # pictures that a file can hold
    least, most = (torch.where(stored, a, b).to(pictures) for a, b in ((0.0, -torch.inf), (1.0, torch.inf)))

    def held(x: torch.Tensor) -> torch.Tensor:
        return x + torch.clamp(x.detach(), least, most).sub_(x.detach())

    if resample == 3:
        wide = F.interpolate(pictures, (pictures.shape[-2], size[1]), mode="bicubic", antialias=True)
        return held(F.interpolate(held(wide), size, mode="bicubic", antialias=True))
    if resample == 1:
        across, down = (_lanczos(pictures.shape[i], size[i]).to(pictures) for i in (-1, -2))
        return held(down @ held(pictures @ across.T))
    raise ValueError(
        f"this checkpoint's image processor resizes with PIL filter {resample}; 1 (Lanczos), 2 (bilinear) and 3 "
        "(bicubic) have differentiable twins here. Give a canvas of the model's own size so that nothing is resized."
    )


class _Kept(dict[tuple[int, int], torch.Tensor]):
    """What has been worked out; it travels empty."""

    def __reduce__(self) -> Any:
        return dict, ()


_FILTERS = _Kept()


def _lanczos(before: int, after: int) -> torch.Tensor:
    """The weights (after, before) of a one-dimensional Lanczos filter of three lobes, widened where it shrinks."""
    if (before, after) in _FILTERS:
        return _FILTERS[before, after]
    step = before / after
    centre = (torch.arange(after, dtype=torch.float64, device="cpu") + 0.5) * step
    far = (torch.arange(before, dtype=torch.float64, device="cpu") + 0.5 - centre[:, None]) / max(step, 1.0)
    weight = torch.where(far.abs() < 3, torch.sinc(far) * torch.sinc(far / 3), 0)
    weight = weight / weight.sum(1, keepdim=True)
    if not weight.is_meta:  # a dry run has shapes alone, which are nothing to remember
        _FILTERS[before, after] = weight
    return weight


def cropped(pictures: torch.Tensor, size: tuple[int, int], resample: int) -> torch.Tensor:
    """Resize so that the shorter side of (B, 3, H, W) fits, and cut the middle out, as CLIP's processor does."""
    height, width = pictures.shape[-2:]
    short = min(size)
    tall, wide = (int(short * height / width), short) if width <= height else (short, int(short * width / height))
    x = resize(pictures, (tall, wide), resample)
    top, left = (tall - size[0]) // 2, (wide - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]]


def normalised(pictures: torch.Tensor, pixels: PixelFormat) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [0, 1] as `pixel_values` (B, 3, height, width): resized, (x - mean) / std."""
    x = (cropped if pixels.crop else resize)(pictures, pixels.size, pixels.resample)
    mean = torch.tensor(pixels.mean, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(pixels.std, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (x - mean) / std


def plain_pixels(pictures: torch.Tensor, pixels: PixelFormat) -> dict[str, torch.Tensor]:
    """The common case: `pixel_values` and nothing else."""
    return {"pixel_values": normalised(pictures, pixels)}


def sized_pixels(pictures: torch.Tensor, pixels: PixelFormat) -> dict[str, torch.Tensor]:
    """Pixtral's: `pixel_values` and the size of each."""
    sizes = torch.tensor([pixels.size]).expand(len(pictures), -1)
    return {**plain_pixels(pictures, pixels), "image_sizes": sizes}


def one_of_several(pictures: torch.Tensor, pixels: PixelFormat) -> dict[str, torch.Tensor]:
    """Idefics3's: (B, 1, 3, height, width), one view.

    The model takes a view of zeros for padding and drops it, as neutral grey comes to; a zero is therefore given as
    1e-7, less than float32 can tell apart from it at one.
    """
    x = normalised(pictures, pixels)[:, None]
    return {"pixel_values": x + 1e-7 * (x.detach() == 0)}


def placed_patches(pictures: torch.Tensor, pixels: PixelFormat) -> dict[str, torch.Tensor]:
    """Gemma 4's: patches (B, rows * columns, patch * patch * 3), channels last, and the column and row of each."""
    x, p = normalised(pictures, pixels), pixels.patch
    patches = x.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 3, 5, 1)
    rows, cols = patches.shape[1:3]
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(cols)).flip(1)
    return {"pixel_values": patches.flatten(3).flatten(1, 2), "image_position_ids": places.expand(len(x), -1, -1)}


def merged_patches(pictures: torch.Tensor, pixels: PixelFormat) -> dict[str, torch.Tensor]:
    """Qwen's: patches (B * rows * columns, 3 * frames * patch * patch), blocks of merge x merge one after the other."""
    x = normalised(pictures, pixels)
    count, _, height, width = x.shape
    p, m, rows, cols = pixels.patch, pixels.merge, height // pixels.patch, width // pixels.patch
    blocks = x.reshape(count, 3, rows // m, m, p, cols // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
    stills = blocks.unsqueeze(6).expand(*[-1] * 6, pixels.frames, -1, -1)
    return {
        "pixel_values": stills.reshape(count * rows * cols, -1),
        "image_grid_thw": torch.tensor([[1, rows, cols]]).expand(count, -1),
    }
