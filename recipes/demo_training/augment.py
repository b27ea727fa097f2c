"""Pictures as the models see them while training: placed, tinted and put on backgrounds at random."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

# Nearly as drawn. A model that must not care for side and place has symmetric input gradients and draws blots.
UPRIGHT = dict(scale=(0.88, 1.0), turn=0.12, mirrored=False)


def masters(pictures, side: int) -> torch.Tensor:
    """uint8 (n, S, S, 4) to float32 (n, 4, side, side) in [0, 1], colour premultiplied by alpha, antialiased."""
    parts = []
    for chunk in torch.from_numpy(pictures).split(256):
        x = chunk.permute(0, 3, 1, 2).float() / 255
        x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)
        parts.append(F.interpolate(x, (side, side), mode="bilinear", antialias=True))
    return torch.cat(parts)


def backgrounds(n: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """(n, 3, side, side): plain colours, white, gradients, soft blotches and nearly grey in equal parts."""
    colour = torch.rand(n, 3, 1, 1, generator=generator).expand(n, 3, side, side).clone()
    kind = torch.randint(5, (n,), generator=generator)
    colour[kind == 0] = 0.85 + 0.15 * torch.rand(int((kind == 0).sum()), 1, 1, 1, generator=generator)
    colour[kind == 4] = 0.45 + 0.1 * torch.rand(int((kind == 4).sum()), 1, 1, 1, generator=generator)
    for k, coarse in ((2, 2), (3, 5)):
        rows = kind == k
        soft = torch.rand(int(rows.sum()), 3, coarse, coarse, generator=generator)
        colour[rows] = F.interpolate(soft, (side, side), mode="bilinear", align_corners=True)
    return colour


def place(
    art: torch.Tensor,
    side: int,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.55, 1.1),
    turn: float = 0.35,
    mirrored: bool = True,
) -> torch.Tensor:
    """Scale, turn, shear, mirror and shift (n, 4, s, s) art into (n, 4, side, side); outside is transparent."""
    n = len(art)

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    size, angle = draw(*scale), draw(-turn, turn)
    stretch, shear = draw(0.85, 1.18), draw(-0.15, 0.15)
    mirror = 1 - 2 * torch.randint(2 if mirrored else 1, (n,), generator=generator)
    room = (1.05 - size).clamp(min=0.08)
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    matrix = torch.stack(
        [
            torch.stack([mirror * cos * stretch, mirror * (sin + shear), draw(-1, 1) * room / size], -1),
            torch.stack([-sin, cos / stretch, draw(-1, 1) * room / size], -1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [n, 4, side, side], align_corners=False)
    return F.grid_sample(art, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def tint(x: torch.Tensor, generator: torch.Generator, hue: float = 0.12) -> torch.Tensor:
    """Brightness, contrast, saturation and a small rotation of hue (radians about the grey axis)."""
    n = len(x)

    def draw(spread: float) -> torch.Tensor:
        return 1 + spread * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)

    angle = hue * torch.randn(n, generator=generator)
    c, s = torch.cos(angle), torch.sin(angle)
    a, b = (1 - c) / 3, s / math.sqrt(3)
    rotate = torch.stack([c + a, a - b, a + b, a + b, c + a, a - b, a - b, a + b, c + a], -1).view(n, 3, 3)
    x = torch.einsum("nij,njhw->nihw", rotate, x)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * draw(0.4)
    return ((x - 0.5) * draw(0.3) + 0.5 * draw(0.2)).clamp(0, 1)


def view(art: torch.Tensor, side: int, generator: torch.Generator, **placing) -> torch.Tensor:
    """One training view of each: (n, 4, s, s) premultiplied art to (n, 3, side, side) pictures in [0, 1]."""
    placed = place(art, side, generator, **placing)
    x = placed[:, :3] + (1 - placed[:, 3:]) * backgrounds(len(art), side, generator)
    x = tint(x, generator)
    noisy = (torch.rand(len(x), 1, 1, 1, generator=generator) < 0.3) * 0.08
    x = x + noisy * torch.rand(len(x), 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
    blurred = torch.rand(len(x), generator=generator) < 0.2
    if blurred.any():
        small = F.interpolate(x[blurred], scale_factor=0.5, mode="area")
        x[blurred] = F.interpolate(small, (side, side), mode="bilinear")
    return x.clamp(0, 1)


def plain(art: torch.Tensor, side: int, size: float = 0.9, background: float = 1.0) -> torch.Tensor:
    """The untouched picture: centred at `size` of the side on a plain background; for tests and scores."""
    inner = F.interpolate(art, (round(size * side),) * 2, mode="bilinear", antialias=True)
    pad = side - inner.shape[-1]
    x = F.pad(inner, (pad // 2, pad - pad // 2, pad // 2, pad - pad // 2))
    return (x[:, :3] + (1 - x[:, 3:]) * background).clamp(0, 1)
