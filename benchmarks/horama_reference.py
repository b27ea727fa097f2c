"""horama's `maco` and `fourier` (Fel et al. 2023) on our objective, as outside references for benchmarks/recognition.py.

horama imports torchvision for one function and for a download. Both are stood in for here, so that neither torchvision
nor a network is needed: `roi_align` by `grid_sample` (the same bilinear reading where a box is smaller than the output,
as all of horama's are here), the downloaded spectrum by that of the bundled pictures, in horama's own decorrelated colours.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.io.pictures import as_tensors
from nnsight_dream.synthesis.centres import centre


def bundled() -> torch.Tensor:
    """The bundled pictures (n, 3, 64, 64) in [0, 1]."""
    return torch.cat(as_tensors([p.image for p in bundle.pictures()], "images"))


def roi_align(pictures: torch.Tensor, boxes: torch.Tensor, output_size: tuple[int, int]) -> torch.Tensor:
    """Boxes (K, 5) of (row of `pictures`, x1, y1, x2, y2) read bilinearly at `output_size` points each."""
    height, width = pictures.shape[-2:]
    high, wide = output_size
    _, x1, y1, x2, y2 = boxes.T
    x = x1[:, None] + (x2 - x1)[:, None] * (torch.arange(wide) + 0.5) / wide
    y = y1[:, None] + (y2 - y1)[:, None] * (torch.arange(high) + 0.5) / high
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)
    grid = grid * (2 / torch.tensor([width - 1, height - 1])) - 1
    return F.grid_sample(pictures[boxes[:, 0].long()], grid, padding_mode="border", align_corners=True)


def _offline(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("horama's spectrum should have been found on disk")


def horama() -> Any:
    """The package, or None where it is not installed (`make bench-pictures` does)."""
    if importlib.util.find_spec("horama") is None:
        return None
    stand_ins = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.ops", "torchvision.datasets")}
    stand_ins["torchvision.datasets.utils"] = types.ModuleType("torchvision.datasets.utils")
    stand_ins["torchvision.ops"].roi_align = roi_align  # type: ignore[attr-defined]
    stand_ins["torchvision.datasets.utils"].download_url = _offline  # type: ignore[attr-defined]
    added = [name for name in stand_ins if name not in sys.modules]
    sys.modules.update({name: stand_ins[name] for name in added})
    try:
        import horama as package
    finally:
        for name in added:
            sys.modules.pop(name)
    return package


@contextlib.contextmanager
def _spectrum(side: int) -> Iterator[None]:
    """A working folder that holds the bundled pictures' mean magnitude where horama looks for ImageNet's."""
    from horama.common import get_color_correlation_svd_sqrt

    pictures = F.interpolate(bundled(), (side, side), mode="bilinear", antialias=True)
    plane = torch.logit(pictures.clamp(0.01, 0.99))
    colours = torch.linalg.inv(get_color_correlation_svd_sqrt("cpu"))
    plane = torch.einsum("nchw,cd->ndhw", plane, colours)
    magnitude = torch.fft.rfft2(plane).abs().mean(0)
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        np.save(os.path.join(folder, "spectrum_decorrelated.npy"), magnitude.numpy())
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)


def objective(vlm: nd.VLM, direction: nd.Direction, settings: nd.Settings) -> Callable[[torch.Tensor], torch.Tensor]:
    """The mean score of views (n, 3, H, W) as `settings` have it, at the end of their schedule."""
    site = vlm.site(direction.site)
    middle = centre(vlm, site, settings.centre)
    ours = nd.Objective(site, direction.vector[None], middle[None], settings.pooling, settings.score)

    def score(views: torch.Tensor) -> torch.Tensor:
        patches = nd.read_pictures(vlm, views.clamp(0, 1), [site])[site].float()
        return ours.parts(patches[None], vlm.grid, 1.0)[0].mean()

    return score


def draw(
    package: Any, kind: str, vlm: nd.VLM, directions: list[nd.Direction], settings: nd.Settings, steps: int, rate: float
) -> list[torch.Tensor]:
    """One picture (3, H, W) in [0, 1] for each direction, by horama's `kind` ("maco" or "fourier")."""
    side, pictures = vlm.image_size[0], []
    with _spectrum(side), contextlib.redirect_stderr(io.StringIO()):
        for i, direction in enumerate(directions):
            torch.manual_seed(i)
            picture, _ = getattr(package, kind)(
                objective(vlm, direction, settings), total_steps=steps, learning_rate=rate, image_size=side,
                model_input_size=side, values_range=(0, 1), crops_per_iteration=settings.batch, box_size=(0.8, 0.95),
                device="cpu",
            )  # fmt: skip
            pictures.append(picture.detach().clamp(0, 1))
    return pictures
