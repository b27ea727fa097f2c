"""Does the map make sense: are pictures of neighbours more alike than those of any two?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .. import arguments

SIDE = 16  # pixels a side at which pictures are compared


PAIRS = 2000  # at most, evenly spread over the map


@dataclass(frozen=True)
class Likeness:
    """How alike pictures of neighbouring cells are, beside pictures dealt out to the same cells at random.

    neighbours   mean correlation of pixels over `pairs` of cells side by side or one above the other
    random       the same of pictures dealt out anew, on average; `low` to `high` hold 95 % of the `draws`
    p            the share of draws, this map among them, with neighbours as alike as here
    """

    neighbours: float
    random: float
    low: float
    high: float
    p: float
    pairs: int
    draws: int

    def __str__(self) -> str:
        return (
            f"neighbours' pictures correlate by {self.neighbours:.3f} on average, pictures dealt out at random by "
            f"{self.random:.3f} (95 % of {self.draws} draws within {self.low:.3f} to {self.high:.3f}); p = {self.p:.3g}"
        )


def likeness(pictures: Sequence[Image.Image], cells: Any, *, draws: int = 200, seed: int = 0) -> Likeness:
    """Compare pictures of neighbouring cells (n, 2) with the same pictures dealt out to these cells at random.

        r(a, b) = cosine of a - m and b - m,   a, b pixels at 16 x 16, m the mean picture

    Of more than 2,000 pairs so many, evenly spread, are compared.

    Raises ValueError for not one cell for each picture, and where no two cells are neighbours.
    """
    places, draws = np.asarray(cells, dtype=int), arguments.whole(draws, "draws", 1)
    if places.shape != (len(pictures), 2):
        raise ValueError(f"{len(pictures)} pictures and cells of shape {places.shape}: (n, 2), one for each, is needed")
    small = [np.asarray(p.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) for p in pictures]
    rows = np.stack([part.reshape(-1) for part in small]) if small else np.zeros((0, 1), np.float32)
    rows = rows - rows.mean(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    at = {(int(x), int(y)): i for i, (x, y) in enumerate(places)}
    beside = [
        (i, at[x + dx, y + dy]) for (x, y), i in at.items() for dx, dy in ((1, 0), (0, 1)) if (x + dx, y + dy) in at
    ]
    if not beside:
        raise ValueError(f"no two of these {len(pictures)} cells are neighbours: at least two side by side are needed")
    beside = [beside[i * len(beside) // PAIRS] for i in range(PAIRS)] if len(beside) > PAIRS else beside
    first, second = np.array(beside).T
    chance = np.random.default_rng(arguments.whole(seed, "seed", 0))

    def mean(order: np.ndarray) -> float:
        return float(np.einsum("ij,ij->i", rows[order[first]], rows[order[second]]).mean())

    own = mean(np.arange(len(rows)))
    null = np.array([mean(chance.permutation(len(rows))) for _ in range(draws)])
    low, high = np.quantile(null, [0.025, 0.975])
    p = (1 + int((null >= own).sum())) / (draws + 1)
    return Likeness(own, float(null.mean()), float(low), float(high), p, len(beside), draws)
