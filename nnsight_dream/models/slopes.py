"""Slopes: a derivative held against the change that is measured in its direction, in blocks of a model.

The change is a central difference, (f(x + h) - f(x - h)) / 2, whose error is of third order in h; how far f is from
straight there, f(x + h) + f(x - h) - 2 f(x), tells how much of it can be trusted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Unit:
    """A block at one pass: what enters, and what its larger parts and it itself give."""

    path: str
    enters: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    gives: torch.Tensor | None = None


class Part:
    """What a part of a block gives: with its graph, and how it changed to either side of a picture."""

    def __init__(self, gives: torch.Tensor, above: torch.Tensor, below: torch.Tensor, carried: Any = None):
        here, ahead, behind = gives.detach().float(), above.float(), below.float()
        if carried is not None:  # a block's input, which is only carried on
            enters, enters_above, enters_below = carried
            gives = gives - enters
            here, ahead, behind = here - enters.detach().float(), ahead - enters_above, behind - enters_below
        self.gives, self.change = gives, (ahead - behind) / 2
        self.bend = float(((ahead + behind) / 2 - here).norm() / self.change.norm().clamp(min=1e-30))


@dataclass(frozen=True)
class Slope:
    """What share of a change its derivative gives, 1 where it is right, and how far the change is from straight.

    bend   |f(x + h) + f(x - h) - 2 f(x)| / |f(x + h) - f(x - h)|: curvature and rounding, which the share is off by the
           square of
    """

    share: float = 1.0
    bend: float = float("inf")

    def right(self, exact: bool) -> bool:
        """Whether the share is 1, as far as can be told."""
        return self.bend > 0.3 or abs(self.share - 1) < (0.02 if exact else 0.06) + 3 * self.bend**2

    def words(self, where: str) -> str:
        """What is wrong, in words."""
        return f"the gradient of {where} gives {self.share:.0%} of the change that is measured there"


def slope_of_unit(here: Unit, above: Unit, below: Unit) -> Slope:
    """The slope of a block in the direction in which its input was changed."""
    if here.enters is None or not here.enters.requires_grad or above.enters is None or below.enters is None:
        return Slope()
    parts = [
        Part(tensor, above.parts[name], below.parts[name])
        for name, tensor in here.parts.items()
        if tensor.requires_grad and name in above.parts and name in below.parts
    ]
    if here.gives is not None and here.gives.requires_grad and above.gives is not None and below.gives is not None:
        alike = here.gives.shape == here.enters.shape
        carried = (here.enters, above.enters.float(), below.enters.float()) if alike else None
        parts.append(Part(here.gives, above.gives, below.gives, carried))
    return slope_of(parts, here.enters, (above.enters.float() - below.enters.float()) / 2)


def slope_of(parts: list[Part], source: torch.Tensor, change: torch.Tensor) -> Slope:
    """The mean over nearly straight parts p of <dp/ds · change of s, change of p> / |change of p|^2."""
    parts = [part for part in parts if part.bend < 0.3 and float(part.change.square().sum()) > 1e-30]
    if not parts:
        return Slope()
    weights = [(p.change / p.change.square().sum()).to(p.gives.dtype) for p in parts]
    bend = math.sqrt(sum(p.bend**2 for p in parts) / len(parts))
    (slope,) = torch.autograd.grad([p.gives for p in parts], source, weights, retain_graph=True, allow_unused=True)
    return Slope(0.0 if slope is None else float((slope.float() * change).sum()) / len(parts), bend)
