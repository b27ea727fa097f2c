"""Modes: pictures of any mode, depth and form of numbers as RGB of 8 bits, with what of them is clear."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

KINDS = "PIL images, tensors (3, H, W) in [0, 1], arrays (H, W, 3) or paths of picture files"


def colours_of(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, or as RGBA where parts of it may be clear."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode[0] in "IF":
        image = of_numbers(image)
    elif image.mode == "LAB":
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        assert converted is not None
        return converted
    elif image.mode == "La":  # premultiplied
        image = image.convert("LA")
    return image.convert("RGBA" if _may_be_clear(image) else "RGB")


def _may_be_clear(image: Image.Image) -> bool:
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    return image.mode[-1] in "Aa" or palette.endswith("A") or "transparency" in image.info


def of_numbers(image: Image.Image) -> Image.Image:
    """Modes I, I;16 and F as L, or as LA where one number is marked as clear."""
    values = np.asarray(image if image.mode in ("I", "F", "I;16", "I;16B") else image.convert("I"))
    grey = Image.fromarray(_eight_bit(values, f"mode {image.mode}"))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))
    return grey


def _eight_bit(values: np.ndarray, what: str) -> np.ndarray:
    """Numbers as 8 bits: up to 255 they are 8-bit already, up to 65535 16-bit; floats up to 1 are shares of white.

    Raises ValueError for what is negative, higher, or not finite.
    """
    if values.dtype == np.uint8 or not values.size:
        return values.astype(np.uint8)
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):
        raise ValueError(
            f"{what}: its numbers go from {low:.6g} to {high:.6g}, and which of them is white cannot be known; scale "
            "them to 0 to 255"
        )
    share = values.dtype.kind == "f" and high <= 1
    white = 1 if share else 255 if high <= 255 else 65535
    return np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8)


def of_array(array: np.ndarray, name: str) -> Image.Image:
    """An array of whole numbers as a PIL image of mode L, LA, RGB or RGBA.

    Raises TypeError for another type of numbers, ValueError for several pictures.
    """
    if array.dtype.kind not in "uib":
        raise TypeError(f"{name}= holds an array of {array.dtype}; give {KINDS}")
    channels = _channels_last(array, name)
    if channels.ndim != 3:
        raise ValueError(f"{name}=: {array.shape} is more than one picture; one is needed")
    eights = _eight_bit(channels, f"{name}=")
    return Image.fromarray(np.ascontiguousarray(eights[..., 0] if eights.shape[-1] == 1 else eights))


def of_floats(array: np.ndarray, name: str) -> torch.Tensor:
    """An array of floats in [0, 1] as a tensor (B, 3, H, W)."""
    numbers = torch.from_numpy(np.ascontiguousarray(_channels_last(array, name), dtype=np.float32))
    numbers = numbers.movedim(-1, -3)
    colour, cover = numbers.split([numbers.shape[-3] - 1, 1], -3) if numbers.shape[-3] in (2, 4) else (numbers, None)
    colour = colour.expand(*colour.shape[:-3], 3, -1, -1)
    return colour if cover is None else colour * cover + (1 - cover)


def _channels_last(array: np.ndarray, name: str) -> np.ndarray:
    """(H, W, channels) or (B, H, W, channels); channels may come first where they cannot be anything else."""
    if array.ndim == 2:
        return array[..., None]
    if array.ndim in (3, 4) and array.size:
        if array.shape[-1] in (1, 2, 3, 4):
            return array
        if array.shape[-3] in (1, 3):
            return np.moveaxis(array, -3, -1)
    raise ValueError(
        f"{name}=: an array is (H, W), (H, W, 3) or (H, W, 4), or has its channels first; got {array.shape}"
    )
