"""Muon: momentum whose matrices are made orthogonal before the step (Jordan et al. 2024), in float32.

torch.optim.Muon does the same in bfloat16, which processors without bfloat16 units emulate 8 times slower.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch


def orthogonal(stack: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Bring the singular values of matrices (k, m, n) near 1 by the quintic Newton-Schulz iteration."""
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / (x.flatten(1).norm(dim=1) + 1e-7)[:, None, None]
    for _ in range(rounds):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum on orthogonalised matrices; the rate is scaled to AdamW's usual step size."""

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    shapes[p.shape].append(p)
            for shape, ps in shapes.items():
                ahead = torch.stack([p.grad.lerp(self.state[p]["momentum"], group["momentum"]) for p in ps])
                change = orthogonal(ahead) * (0.2 * max(shape) ** 0.5)  # the root mean square of an AdamW step
                for p, c in zip(ps, change, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(c, alpha=-group["lr"])
