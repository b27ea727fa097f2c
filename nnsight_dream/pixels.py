"""Pictures into pixel inputs: the numbers of an image processor, and differentiable twins of what processors do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class PixelFormat:
    """How a checkpoint's image processor turns a picture into numbers.

    `size` is (height, width) in pixels; `mean` and `std` are per RGB channel, for values in [0, 1];
    `resample` is PIL's number of the interpolation (2 bilinear, 3 bicubic); `crop` says that the shorter side is
    resized to it and the middle cut out, where otherwise the picture is squeezed.
    `cell` is the side in pixels of one image token where the model takes pictures of any whole number of them, 0 where
    it takes its own size alone. Where the processor cuts pictures into patches itself, `patch` is a patch's side,
    `merge` how many on a side become one token, `frames` how often a still is repeated.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int = 2
    crop: bool = False
    cell: int = 0
    patch: int = 0
    merge: int = 1
    frames: int = 1

    @classmethod
    def of(cls, processor: Any, size: tuple[int, int] | None = None, **more: Any) -> PixelFormat:
        """Read the numbers off a Hugging Face image processor; `size` where it states none."""
        height, width = size or _stated_size(processor)
        scale = processor.rescale_factor * 255 if processor.do_rescale else 255.0
        mean = tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0)
        std = tuple(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0)
        return cls(
            (int(height), int(width)),
            tuple(m / scale for m in mean),  # type: ignore[arg-type]
            tuple(s / scale for s in std),  # type: ignore[arg-type]
            int(processor.resample if processor.resample is not None else 2),
            **more,
        )


def _stated_size(processor: Any) -> tuple[int, int]:
    size = processor.size
    return (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],) * 2


def stated(processor: Any, config: Any) -> PixelFormat:
    """The common case: the image processor states the one size that the model takes."""
    return PixelFormat.of(processor)


def resize(pictures: torch.Tensor, size: tuple[int, int], resample: int) -> torch.Tensor:
    """Resize (B, 3, H, W) in [0, 1] as PIL does, differentiably: within one 8-bit step of it.

    PIL rounds to 8 bits and clips between its two one-dimensional passes; bilinear needs neither to stay in range,
    bicubic overshoots, so it is done in two clipped passes here too.
    """
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    if resample == 2:
        return F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)
    if resample == 3:
        wide = F.interpolate(pictures, (pictures.shape[-2], size[1]), mode="bicubic", antialias=True)
        return F.interpolate(wide.clamp(0, 1), size, mode="bicubic", antialias=True).clamp(0, 1)
    raise ValueError(
        f"this checkpoint's image processor resizes with PIL filter {resample}; 2 (bilinear) and 3 (bicubic) "
        "have differentiable twins here. Give a canvas of the model's own size so that nothing is resized."
    )


def normalised(pictures: torch.Tensor, pixels: PixelFormat) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [0, 1] as `pixel_values` (B, 3, height, width): resized, (x - mean) / std."""
    x = resize(pictures, pixels.size, pixels.resample)
    mean = torch.tensor(pixels.mean, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(pixels.std, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (x - mean) / std


def plain_pixels(pictures: torch.Tensor, pixels: PixelFormat) -> dict[str, torch.Tensor]:
    """The common case: `pixel_values` and nothing else."""
    return {"pixel_values": normalised(pictures, pixels)}


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
