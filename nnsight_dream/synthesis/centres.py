"""The centre that settings mean for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..directions.centres import Grey, NaturalNoise, Pictures

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM


def centre(vlm: VLM, site: Site, choice: Any, at_once: int = 16) -> torch.Tensor:
    """The centre (d,) at a site that a choice means; computed once for each model, site and choice.

    at_once   the most pictures in a pass; one of your own that has `of(vlm, site)` reads them its own way

    Raises ValueError for a tensor of another shape.
    """
    if isinstance(choice, torch.Tensor):
        if choice.shape != (vlm.width_at(site),):
            raise ValueError(f"centre is {tuple(choice.shape)}; {vlm.describe(site)} needs ({vlm.width_at(site)},)")
        return choice.to(vlm.device, torch.float32)
    more = (at_once,) if isinstance(choice, (Grey, NaturalNoise, Pictures)) else ()
    try:
        hash(choice)
    except TypeError:  # one of the user's own that cannot be remembered
        return choice.of(vlm, site)
    memo = vlm.memo.centres.at(vlm, site)
    key = (site, choice, vlm.device, vlm.dtype)
    if key not in memo:
        memo[key] = choice.of(vlm, site, *more)
    return memo[key]
