"""The network of the bundled judge: EfficientNet-Lite0 (Tan and Le 2019; the Lite variant of Liu 2020).

Inverted bottlenecks (Sandler et al. 2018) without squeeze-and-excitation, ReLU6 throughout, and the asymmetric
"same" padding of TensorFlow, where the ImageNet weights come from. Written from the published block table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

# repeats, kernel, stride of the first, expansion, channels out
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


STEM, HEAD = 32, 1280


EPSILON, MOMENTUM = 1e-3, 0.01  # of the batch normalisation, as the weights were trained


class SameConv(nn.Conv2d):
    """A convolution padded so that the side becomes ceil(side / stride); the odd pixel goes right and below."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stride, kernel = self.stride[0], self.kernel_size[0]
        down, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
        if down % 2 or right % 2:
            x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
            return F.conv2d(x, self.weight, None, self.stride, 0, 1, self.groups)
        return F.conv2d(x, self.weight, None, self.stride, (down // 2, right // 2), 1, self.groups)


def _unit(narrow: int, wide: int, kernel: int, stride: int, groups: int, active: bool) -> nn.Sequential:
    """Convolution, batch normalisation and, if active, ReLU6."""
    parts = [
        SameConv(narrow, wide, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(wide, eps=EPSILON, momentum=MOMENTUM),
    ]
    return nn.Sequential(*parts, *([nn.ReLU6(inplace=True)] if active else []))


class Bottleneck(nn.Module):
    """Expand by a 1 x 1 convolution, filter each channel, project back; added to the input where shapes allow."""

    def __init__(self, narrow: int, out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = narrow * expansion
        self.expand = _unit(narrow, wide, 1, 1, 1, True) if expansion != 1 else None
        self.filter = _unit(wide, wide, kernel, stride, wide, True)
        self.project = _unit(wide, out, 1, 1, 1, False)
        self.residual = stride == 1 and narrow == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.filter(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Logits (n, classes) of normalised pictures (n, 3, H, W); `drop` is the dropout rate before the last layer."""

    def __init__(self, classes: int, drop: float = 0.0):
        super().__init__()
        self.stem = _unit(3, STEM, 3, 2, 1, True)
        blocks, narrow = [], STEM
        for repeats, kernel, stride, expansion, out in STAGES:
            for i in range(repeats):
                blocks.append(Bottleneck(narrow, out, kernel, stride if i == 0 else 1, expansion))
                narrow = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _unit(narrow, HEAD, 1, 1, 1, True)
        self.drop = nn.Dropout(drop)
        self.classifier = nn.Linear(HEAD, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 1280) pooled features of normalised pictures."""
        return self.head(self.blocks(self.stem(x))).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.drop(self.features(x)))
