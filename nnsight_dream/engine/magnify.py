"""Gradients made large on their way through a float16 model, as loss scaling does. See `engine.plain` for the rules.

The score's gradient at a patch is about 1 / (patches * norm of a patch): at norms of thousands it is below float16's
smallest numbers, 6e-8, and parts of it would come out as zero (Micikevicius et al. 2018, arXiv 1710.03740). bfloat16
has the exponents of float32 and needs none of this.
"""

from __future__ import annotations

import torch

#: The largest number of a gradient as it enters the model: a millionfold from float16's largest, 65504, and as far from
#: its smallest, so that it may grow and shrink on its way.
ENTERS = 2.0**-6


class Magnifier:
    """A power of two by which gradients are multiplied as they enter a model from its patches, and divided at its end.

    One for each pass. It is chosen at each backward pass, by the first gradient that comes, on the tensor's own device.
    """

    def __init__(self) -> None:
        self.factor: torch.Tensor | None = None

    def pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """The same pictures, float32, whose gradient is divided."""
        same = pictures.view_as(pictures)
        same.register_hook(self._shrink)
        return same

    def patches(self, patches: torch.Tensor) -> torch.Tensor:
        """The same patches, float32, whose gradient is multiplied."""
        if patches.requires_grad:
            patches.register_hook(self._grow)
        return patches

    def _grow(self, gradient: torch.Tensor) -> torch.Tensor:
        if self.factor is None:
            largest = gradient.abs().max().clamp(min=1e-30)
            self.factor = torch.exp2(torch.floor(torch.log2(ENTERS / largest))).clamp(min=1.0)
        return gradient * self.factor.to(gradient.device)

    def _shrink(self, gradient: torch.Tensor) -> torch.Tensor:
        factor, self.factor = self.factor, None
        return gradient if factor is None else gradient / factor.to(gradient.device)
