"""Pictures: what a user hands over as images, turned into tensors (B, 3, H, W), RGB in [0, 1]."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image


def as_tensors(images: Any, name: str) -> list[torch.Tensor]:
    """Pictures as tensors (B, 3, H, W), RGB in [0, 1], of whatever sizes."""
    if not isinstance(images, (list, tuple)):
        images = [images]
    if not images:
        raise ValueError(f"{name}= is empty; give at least one picture")
    found = []
    for image in images:
        if not isinstance(image, torch.Tensor):
            if not hasattr(image, "convert"):
                raise TypeError(
                    f"{name}= holds a {type(image).__name__}; give PIL images or tensors (B, 3, H, W) in [0, 1]"
                )
            clear = image.convert("RGBA")
            numbers = torch.from_numpy(np.array(clear)).float() / 255
            image = (numbers[..., :3] * numbers[..., 3:] + 1 - numbers[..., 3:]).permute(2, 0, 1)
        picture = image.detach().float()
        picture = picture[None] if picture.ndim == 3 else picture
        if picture.ndim != 4 or picture.shape[1] != 3 or not picture.numel():
            raise ValueError(f"{name}=: a picture is (3, H, W) or (B, 3, H, W); got {tuple(image.shape)}")
        low, high = float(picture.min()), float(picture.max())
        if not (low >= -1e-4 and high <= 1 + 1e-4):
            raise ValueError(
                f"{name}=: pictures are in [0, 1]; got {low:.3g} to {high:.3g}. Divide 8-bit values by 255"
            )
        found.append(picture)
    return found


def by_size(groups: Iterable[torch.Tensor], count: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Pictures of one size together, at most `count` at a time: (their numbers, (B, 3, H, W)).

    groups   pictures (B, 3, H, W) of any sizes; numbers count them through all groups, from 0
    """
    sizes: dict[tuple[int, ...], tuple[list[int], list[torch.Tensor]]] = {}
    number = 0
    for group in groups:
        numbers, held = sizes.setdefault(tuple(group.shape[1:]), ([], []))
        for picture in group:
            numbers.append(number)
            held.append(picture)
            number += 1
    for numbers, held in sizes.values():
        for start in range(0, len(held), count):
            yield numbers[start : start + count], torch.stack(held[start : start + count])


def content(picture: Image.Image | torch.Tensor) -> bytes:
    """A hash of what a picture shows: the pixels of a PIL image, whatever its mode, or the values of a tensor."""
    if isinstance(picture, torch.Tensor):
        whole = picture.detach().float().cpu().contiguous()
        return hashlib.sha256(f"{tuple(whole.shape)}".encode() + whole.numpy().tobytes()).digest()
    rgb = picture.convert("RGBA")
    return hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).digest()
