"""Means over pictures, and measurements of finished pictures. See `engine.plain` for the rules of this folder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from .read import unpacked
from .terms import placed


def passes(groups: list[torch.Tensor], at_once: int) -> Iterator[torch.Tensor]:
    """Pictures (B, 3, H, W) of groups, those of one size together, at most `at_once` of them."""
    sizes: dict[Any, list[torch.Tensor]] = {}
    for group in groups:
        sizes.setdefault(tuple(group.shape[1:]), []).append(group)
    for same_size in sizes.values():
        yield from torch.cat(same_size).split(at_once)


def mean_patches(read: Any, groups: list[torch.Tensor], sites: list[Any], at_once: int = 16) -> dict[Any, torch.Tensor]:
    """The mean (d,) at each site over all patches of all pictures, float32; without gradients.

    groups   pictures (B, 3, H, W) in [0, 1], or 8-bit; those of one size are run together, at most `at_once` in a pass
    """
    total: dict[Any, Any] = dict.fromkeys(sites)
    count = dict.fromkeys(sites, 0)
    for part in passes(groups, at_once):
        with torch.no_grad():
            patches_by_site = read(unpacked(part))
        for site in sites:
            patches = patches_by_site[site]
            now = patches.double().sum((0, 1))
            total[site] = now if total[site] is None else total[site] + now
            count[site] += patches.shape[0] * patches.shape[1]
    return {site: (total[site] / count[site]).float() for site in sites}


def picture_means(read: Any, groups: list[torch.Tensor], site: Any, at_once: int = 16) -> torch.Tensor:
    """The mean patch of each picture (pictures, d), float32 on the cpu, without gradients; groups as in `mean_patches`.

    Pictures of one size come together, in the order of the first of each size.
    """
    means = []
    for part in passes(groups, at_once):
        with torch.no_grad():
            means.append(read(unpacked(part))[site].double().mean(1).float().cpu())
    return torch.cat(means)


def mean_norm(read: Any, groups: list[torch.Tensor], site: Any, at_once: int = 16) -> float:
    """The mean norm of a patch of some pictures (B, 3, H, W) at a site; those of one size are run together.

    At most `at_once` of them go in a pass. Raises ValueError where it is no positive number.
    """
    norms = []
    for part in passes(groups, at_once):
        with torch.no_grad():
            norms.append(read(unpacked(part))[site].norm(dim=-1).cpu())
    mean = float(torch.cat(norms).mean())
    if not 0 < mean < math.inf:
        raise ValueError(
            "the mean norm of the reference pictures' activations is " + str(mean) + ": a positive number is needed; "
            "load the model in another dtype, or give other pictures by reference="
        )
    return mean


def measured_direction(
    site: Any,
    patches: torch.Tensor,
    vector: torch.Tensor,
    centre: torch.Tensor,
    poolings: dict[str, Any],
    grid: tuple[int, int],
) -> tuple[dict[str, float], torch.Tensor]:
    """Of a picture's patches (1, n, d) the cosine with a direction under each pooling, and the first one's weights."""
    likeness = torch.nn.functional.cosine_similarity
    here = {name: placed(pooling, site) for name, pooling in poolings.items()}
    pooled = {name: pooling(patches - centre, vector[None], grid, 1.0) for name, pooling in here.items()}
    scores = {name: likeness(r, vector[None], dim=-1).item() for name, (r, _) in pooled.items()}
    return scores, next(iter(pooled.values()))[1][0].cpu()


def measured_feature(
    feature: Any, alone: list[Any], patches: torch.Tensor, norm: float
) -> tuple[dict[str, float], torch.Tensor, dict[str, Any]]:
    """Scores, heat (n,) and readings of a picture's patches (n, d), all without guard.

    alone   of a sum of several latents each as a feature of its own; norm   that of real pictures' patches

    Scores: the means over tokens of the pre-activation ("encoder") and of the cosine with the decoder row ("decoder",
    not for transcoders). Heat: what is climbed, less its least, as shares of 1: max(0, v - min v) / sum.

    Readings, of several latents those of their weighted sum:

        pre_max, pre_mean   the pre-activation over tokens
        threshold           above which it fires; None for top-k (then `top_k` is true) and for sums
        act_max             the highest activation; for top-k what it would be among the k
        firing              the share of tokens for which it fires; None for top-k, where that depends on all latents
        cosine, cosine_max  with the decoder row over tokens: mean and highest; not for transcoders
        norm                mean norm of the patches over that of the feature's reference pictures
        parts               for sums: index, weight and these of each latent alone
    """
    patches = patches.float()
    values = feature.readings(patches)
    scores = {"encoder": float(values["pre"].mean())}
    if "cosine" in values:
        scores["decoder"] = float(values["cosine"].mean())
    above = feature.value(patches)
    above = above - above.min()
    total = float(above.sum())
    heat = (above / total if total > 0 else torch.full_like(above, 1 / len(above))).cpu()
    readings = _numbers(feature, patches)
    readings["norm"] = float(patches.norm(dim=-1).mean()) / norm
    if alone:
        readings["parts"] = [
            {"index": latent.index, "weight": weight, **_numbers(single, patches)}
            for (weight, latent), single in zip(feature.parts, alone, strict=True)
        ]
    return scores, heat, readings


def _numbers(feature: Any, patches: torch.Tensor) -> dict[str, Any]:
    values = feature.readings(patches)
    _, first = feature.parts[0]
    single = len(feature.parts) == 1
    top_k = any(latent.threshold is None for _, latent in feature.parts)
    numbers: dict[str, Any] = {
        "pre_max": float(values["pre"].max()),
        "pre_mean": float(values["pre"].mean()),
        "threshold": first.threshold if single else None,
        "act_max": float(values["act"].max()),
        "firing": None if top_k or not single else float((first.act(patches) > 0).float().mean()),
    }
    if top_k:
        numbers["top_k"] = True
    if "cosine" in values:
        numbers |= {"cosine": float(values["cosine"].mean()), "cosine_max": float(values["cosine"].max())}
    return numbers
