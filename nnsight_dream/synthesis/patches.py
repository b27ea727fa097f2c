"""A prototype token by token: activations and scores of its image tokens, with names, for other tools to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import arguments
from ..directions.direction import Direction
from ..io.pictures import as_tensors
from ..models.reading import read_pictures
from ..sae.feature import Feature
from .centres import centre as centre_at
from .recorded import Untold, centre_of, check_own

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from .prototype import Prototype


@dataclass(frozen=True, eq=False)
class Patches:
    """What a model has at the n image tokens of a picture, row by row.

    activations  (n, d) float32 on the cpu: what `sae.encode` takes, and NumPy without a copy
    names        of the tokens, n: "row 0, column 3"
    scores       by name, each (n,) float32
    places       of the tokens in the grid, (n,), counted row by row
    grid         (rows, columns) of the whole picture
    """

    activations: torch.Tensor
    names: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    places: tuple[int, ...]
    grid: tuple[int, int]

    def map(self, name: str) -> np.ndarray:
        """A score as (rows, columns), NaN at tokens that were not read; for `plotly.express.imshow`, say.

        Raises ValueError for a name that is no score.
        """
        full = np.full(self.grid[0] * self.grid[1], np.nan, dtype=np.float32)
        full[list(self.places)] = self.scores[arguments.choice(name, "name", tuple(self.scores))]
        return full.reshape(self.grid)

    def __repr__(self) -> str:
        shape = tuple(self.activations.shape)
        return (
            f"Patches({shape} activations of {self.grid[0]} x {self.grid[1]} tokens; scores {', '.join(self.scores)})"
        )


def patches(prototype: Prototype, vlm: VLM, towards: Direction | Feature | None, centre: Any) -> Patches:
    """See `Prototype.patches`."""
    arguments.model(vlm)
    check_own(prototype, vlm)
    site = vlm.site(prototype.site)
    with torch.no_grad():
        (activations,) = read_pictures(vlm, as_tensors([prototype.image], "image")[0], [site]).values()
    hidden = activations[0].float()
    every = tuple(range(vlm.grid[0] * vlm.grid[1]))
    places = every if isinstance(site.tokens, str) else site.tokens
    scores = {"heat": torch.from_numpy(prototype.heat.reshape(-1).copy())[list(places)], "norm": hidden.norm(dim=-1)}
    if towards is not None:
        scores |= _scores(prototype, vlm, hidden, towards, centre)
    return Patches(
        hidden.cpu(),
        tuple(f"row {place // vlm.grid[1]}, column {place % vlm.grid[1]}" for place in places),
        {name: values.float().cpu().numpy() for name, values in scores.items()},
        places,
        vlm.grid,
    )


def _scores(
    prototype: Prototype, vlm: VLM, hidden: torch.Tensor, towards: Direction | Feature, choice: Any
) -> dict[str, torch.Tensor]:
    site = vlm.site(prototype.site)
    if not isinstance(towards, (Direction, Feature)):
        raise TypeError(f"towards={arguments.shown(towards)}: a Direction or a Feature is needed")
    own = towards.site(vlm) if isinstance(towards, Feature) else towards.site
    if (own.layer, own.kind, towards.width) != (site.layer, site.kind, hidden.shape[-1]):
        raise ValueError(f"{towards} is at {own}, this picture's activations at {site}: give one made for that site")
    if isinstance(towards, Feature):
        return towards.to(hidden.device).readings(hidden)
    centred = hidden - centre_at(vlm, site, _centre_of(prototype, vlm) if choice is None else choice).to(hidden.device)
    axis = towards.unit().vector.to(hidden.device)
    projection = centred @ axis
    return {"cosine": projection / centred.norm(dim=-1).clamp(min=1e-30), "projection": projection}


def _centre_of(prototype: Prototype, vlm: VLM) -> Any:
    """The centre of the run that made a prototype, as far as its record holds it."""
    try:
        return centre_of(prototype, vlm)
    except Untold as untold:
        raise ValueError(f"{untold}: give it as centre=") from None
