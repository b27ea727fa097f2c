"""Slow and obvious versions of what the package computes, in NumPy and float64 or plain torch, to compare with."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

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


# -- reading a model with plain hooks ---------------------------------------------------------------------------

BLOCK = "model.language_model.layers.{}"
# the module below a block, and whether its input or its output is meant
PLACES = {
    "resid_pre": ("", "input"),
    "attn_out": (".post_attention_layernorm", "output"),
    "mlp_out": (".post_feedforward_layernorm", "output"),
    "resid_post": ("", "output"),
    "self_attn.o_proj.input": (".self_attn.o_proj", "input"),
    "self_attn.o_proj.output": (".self_attn.o_proj", "output"),
    "mlp.down_proj.input": (".mlp.down_proj", "input"),
    "mlp.gate_proj.output": (".mlp.gate_proj", "output"),
}


@contextmanager
def hooked(hf: torch.nn.Module, layer: int, kind: str) -> Iterator[list[torch.Tensor]]:
    """What a forward pass brings at one place, caught by a plain hook: a list that fills, one tensor a pass."""
    module, side = PLACES[kind]
    caught: list[torch.Tensor] = []

    def before(module: Any, args: tuple, kwargs: dict) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])

    place = hf.get_submodule(BLOCK.format(layer - 1) + module)
    if side == "input":
        handle = place.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = place.register_forward_hook(lambda module, args, output: caught.append(output))
    try:
        yield caught
    finally:
        handle.remove()


def picture_prompt(processor: Any, question: str = "What is it?") -> dict[str, torch.Tensor]:
    """Ids and types of a whole question about one picture, as the model's own processor makes them."""
    from PIL import Image

    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    size = processor.image_processor.size
    picture = Image.new("RGB", (size["width"], size["height"]))
    given = processor(text=[text], images=[[picture]], add_special_tokens=False, return_tensors="pt")
    return {name: given[name] for name in ("input_ids", "token_type_ids")}


def patches(hf: Any, processor: Any, pixels: torch.Tensor, layer: int, kind: str = "resid_post") -> torch.Tensor:
    """Image-token activations (B, n, d) for pixel_values (B, 3, H, W), by a whole forward pass with a hook."""
    prompt = {name: ids.expand(len(pixels), -1) for name, ids in picture_prompt(processor).items()}
    with hooked(hf, layer, kind) as caught:
        hf(pixel_values=pixels, **prompt)
    return caught[0][:, prompt["input_ids"][0] == hf.config.image_token_id]


# -- objectives -------------------------------------------------------------------------------------------------


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of the angle between two vectors."""
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def attention(
    patches: np.ndarray,
    direction: np.ndarray,
    rows: int,
    cols: int,
    tau: float,
    sigma: tuple[float, float],
    progress: float,
) -> tuple[np.ndarray, np.ndarray]:
    """arXiv 2601.08017, 2.2, patch by patch, in float64: centred patches (n, d) to pooled (d,) and weights (n,).

    sigma is in units of a 16 x 16 grid: on another one it is scaled by side / 16, side by side.
    """
    now = sigma[0] + (sigma[1] - sigma[0]) * progress
    weights = np.zeros(rows * cols)
    for row in range(rows):
        for col in range(cols):
            y, x = (row - (rows - 1) / 2) / (now * rows / 16), (col - (cols - 1) / 2) / (now * cols / 16)
            likeness = cosine(patches[row * cols + col].astype(np.float64), direction.astype(np.float64))
            weights[row * cols + col] = math.exp(-(y * y + x * x) / 2) * math.exp(likeness / tau)
    weights /= weights.sum()
    return (weights[:, None] * patches).sum(0), weights


# -- the climb --------------------------------------------------------------------------------------------------


def climb(
    hf: Any,
    processor: Any,
    layer: int,
    direction: torch.Tensor,
    canvas: Any,
    augment: Sequence[Callable[..., torch.Tensor]],
    *,
    steps: int,
    batch: int,
    rate: float,
    clip: float,
    optimiser: str = "sgd",
    schedule: str = "constant",
    tau: float = 0.5,
    detach: bool = False,
    seed: int = 0,
) -> tuple[torch.Tensor, list[float], list[float]]:
    """The whole ascent of one picture with a hook, a full forward pass and the optimiser written out.

    Canvas and augmentations are the package's own (they have tests of their own); nothing else is. Returns the
    picture (3, H, W), the score before each step and the norm of each gradient before it was clipped.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [part.requires_grad_(True) for part in canvas.start(1, [generator])]
    first = [torch.zeros_like(part) for part in parts]
    second = [torch.zeros_like(part) for part in parts]
    images = processor.image_processor
    side, mean, std = (
        images.size["height"],
        *(torch.tensor(x).view(3, 1, 1) for x in (images.image_mean, images.image_std)),
    )
    rows = math.isqrt(hf.config.mm_tokens_per_image)

    def read(pictures: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        return patches(hf, processor, (small - mean) / std, layer)

    with torch.no_grad():
        centre = read(torch.full((1, 3, side, side), 0.5)).mean((0, 1))
    scores, norms = [], []
    for step in range(steps):
        progress = step / (steps - 1)
        views = canvas.render(parts).repeat(batch, 1, 1, 1)
        for change in augment:
            views = change(views, [generator], batch)
        sigma = (2 + 14 * progress) * rows / 16
        at = torch.arange(rows) - (rows - 1) / 2
        prior = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * sigma**2)).flatten()
        score = torch.zeros(())
        for patch in read(views) - centre:
            likeness = patch @ direction / (patch.norm(dim=1) * direction.norm())
            weights = prior * torch.exp(likeness / tau)
            weights = weights / weights.sum()
            pooled = (weights.detach() if detach else weights) @ patch
            score = score + pooled @ direction / (pooled.norm() * direction.norm()) / batch
        gradients = torch.autograd.grad(score, parts)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        now = rate * (0.5 + 0.5 * math.cos(math.pi * step / steps)) if schedule == "cosine" else rate
        with torch.no_grad():
            for part, gradient, m, v in zip(parts, gradients, first, second, strict=True):
                gradient = gradient * min(1.0, clip / norm)
                if optimiser == "sgd":  # momentum 0.9, upwards
                    m.mul_(0.9).add_(gradient)
                    part.add_(now * m)
                else:  # Adam (Kingma and Ba 2015), upwards
                    m.mul_(0.9).add_(0.1 * gradient)
                    v.mul_(0.999).add_(0.001 * gradient**2)
                    part.add_(now * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8))
        scores.append(float(score.detach()))
        norms.append(norm)
    return canvas.render([part.detach() for part in parts])[0], scores, norms
