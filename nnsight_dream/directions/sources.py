"""Directions: what a picture is climbed towards, made from words, prompts, pictures, probes or plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch

from ..arguments import is_whole, shown, strict, text
from ..io.pictures import as_tensors
from ..models.reading import mean_patches
from .direction import build_direction, numbers, sites_of

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from .direction import Direction, Many, Where


@overload
def from_images(vlm: VLM, images: Any, layer: Where, *, minus: Any = ..., label: str = ...) -> Direction: ...


@overload
def from_images(vlm: VLM, images: Any, layer: Many, *, minus: Any = ..., label: str = ...) -> list[Direction]: ...


@strict
def from_images(
    vlm: VLM,
    images: Any,
    layer: Where | Many,
    *,
    minus: Any = None,
    label: str = "images",
) -> Any:
    """The mean patch activation over pictures, less that over other pictures or over uniform grey.

    images  a PIL image, a tensor (3, H, W) or (B, 3, H, W) of RGB in [0, 1], or a list of these, of any sizes;
            transparent parts of a PIL image show white
    layer   as in `concept`; a list gives a list of directions
    minus   pictures as in `images`; None is grey (0.5), the centre of arXiv 2601.08017, section 2.2

    Raises ValueError for no picture, or for a tensor of another shape or range.

    >>> import nnsight_dream as nd, torch
    >>> vlm = nd.load("demo")
    >>> red = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 32, 32)
    >>> nd.from_images(vlm, red, layer=1, label="red").width == vlm.width
    True
    """
    sites, single = sites_of(vlm, layer)
    pictures = as_tensors(images, "images")
    others = [torch.full((1, 3, *vlm.image_size), 0.5)] if minus is None else as_tensors(minus, "minus")
    these, those = mean_patches(vlm, pictures, sites), mean_patches(vlm, others, sites)
    count = {"images": sum(map(len, pictures)), "minus": "grey" if minus is None else sum(map(len, others))}
    directions = [
        build_direction(vlm, site, these[site] - those[site], label, method="from_images", **count) for site in sites
    ]
    return directions[0] if single else directions


@strict
def from_tensor(vlm: VLM, tensor: Any, layer: Where, *, label: str = "tensor") -> Direction:
    """A direction from your own numbers (d,), as wide as the site. Raises ValueError for another shape.

    >>> import nnsight_dream as nd, torch
    >>> vlm = nd.load("demo")
    >>> str(nd.from_tensor(vlm, torch.ones(vlm.width), layer=1, label="ones").site)
    'layer 1 (blocks.0.hook_resid_post)'
    """
    site = vlm.site(layer)
    vector = numbers(tensor, "tensor")
    if vector.shape != (vlm.width_at(site),):
        raise ValueError(
            f"tensor is {tuple(vector.shape)}, but {vlm.describe(site)} of {vlm.id} is ({vlm.width_at(site)},) wide. "
            "Give one vector from this model and site; layer= names another site"
        )
    return build_direction(vlm, site, vector, label, method="from_tensor")


@strict
def probe(vlm: VLM, weight: Any, layer: Where, *, index: Any = None, label: str | None = None) -> Direction:
    """The direction in which a linear probe's answer grows: its weight vector; its bias plays no part.

    weight  (d,), or (classes, d), or a fitted classifier with `coef_` such as scikit-learn's, or a `torch.nn.Linear`
    index   the class: its name where the classifier has `classes_`, else its row from 0; a single row needs none, and
            a two-class classifier points to its second class by default

    Raises ValueError for several rows without an index, for an index that is not there, and for another width.

    >>> import nnsight_dream as nd, torch
    >>> vlm = nd.load("demo")
    >>> nd.probe(vlm, torch.eye(vlm.width)[:3], layer=1, index=2).label
    'probe 2'
    """
    label = None if label is None else text(label, "label", "red", blank=False)
    rows = numbers(getattr(weight, "coef_", getattr(weight, "weight", weight)), "weight")
    names = [str(name) for name in getattr(weight, "classes_", [])]
    if rows.ndim == 1:
        rows = rows[None]
    if rows.ndim != 2 or rows.shape[1] != vlm.width_at(layer):
        raise ValueError(
            f"a probe's weight is (d,) or (classes, d) with d = {vlm.width_at(layer)} at {vlm.describe(layer)}; got "
            f"{tuple(rows.shape)}"
        )
    if len(rows) == 1 and len(names) == 2:  # one row says both: it points to the second class
        rows, index = torch.cat([-rows, rows]), names[1] if index is None else index
    row = _row(len(rows), names, index)
    title = label or (names[row] if row < len(names) else f"probe {row}")
    return build_direction(vlm, vlm.site(layer), rows[row], title, method="probe", index=row, of=type(weight).__name__)


def _row(rows: int, names: Sequence[str], index: Any) -> int:
    if index is None:
        if rows == 1:
            return 0
        raise ValueError(f"this probe has {rows} rows; say which with index= (0 to {rows - 1}{_or_one_of(names)})")
    if len(names) == rows and str(index) in names:
        return names.index(str(index))
    if not is_whole(index) or not 0 <= int(index) < rows:
        raise ValueError(f"index={shown(index)}: allowed are 0 to {rows - 1}{_or_one_of(names)}")
    return int(index)


def _or_one_of(names: Sequence[str]) -> str:
    return f", or one of {', '.join(names)}" if names else ""
