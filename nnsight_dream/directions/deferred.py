"""Directions requested but not yet computed: concept vectors of a remote model, read in the job that needs them.

`nd.concept` of a model on a server sends nothing. An ascent makes the vectors it climbs within its own job; whatever
else needs one (`direction.vector`, arithmetic, saving) fetches all vectors of that call in one small job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..engine import jobs
from ..engine.plain import Words
from ..io import cache
from ..models.reading import reading
from ..remote.run import run
from .direction import Direction, versions

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM


class Request:
    """The vectors of some texts at some sites, less a baseline's mean; `rows` are filled when a job has computed them.

    batches, baseline   (inputs, own tokens of each row) as `directions.text` makes them; baseline None: none taken off
    words   the baseline's texts, by which its mean is kept for this VLM
    keys    under which the mean at each site is kept in the user's cache folder; None: it is kept nowhere
    """

    def __init__(
        self,
        vlm: VLM,
        sites: Sequence[Site],
        batches: list[Any],
        baseline: Any,
        words: tuple[str, ...],
        keys: dict[Site, str] | None = None,
    ):
        self.vlm, self.sites, self.batches, self.baseline, self.words = vlm, list(sites), batches, baseline, words
        self.keys = keys
        self.fresh: dict[Any, torch.Tensor] = {}
        self.rows: dict[Site, torch.Tensor] = {}
        self.waiting: list[tuple[Pending, int]] = []

    def given(self) -> Words:
        """The plain record of it for a job."""
        how = reading(self.vlm, self.sites)
        baselines = [None if self.baseline is None else self._known(site) for site, _, _ in how.points]
        return Words(how, self.batches, self.baseline, baselines)

    def _known(self, site: Site) -> torch.Tensor | None:
        """The baseline at a site, from this VLM or the user's cache folder."""
        if self.keys is None:
            return None
        kept, place = self._place(site)
        if place not in kept and site in self.keys:
            value = cache.read("baselines", self.keys[site], self.vlm.width_at(site))
            if value is not None:
                kept[place] = value
        return kept.get(place)

    def _place(self, site: Site) -> tuple[dict[Any, torch.Tensor], Any]:
        """Where the baseline is kept: by a remote VLM itself; one in place has the cache folder alone."""
        if self.vlm.remote is None:
            return self.fresh, site
        return self.vlm.memo.baselines.at(self.vlm, site), (site, self.words)

    def fill(self, rows: list[torch.Tensor], baselines: list[Any]) -> None:
        """Take the result of a job: rows (N, d) and the baseline (d,) at each site, in the order of `given`."""
        for point, row, middle in zip(reading(self.vlm, self.sites).points, rows, baselines, strict=True):
            self.rows[point[0]] = row
            if middle is not None and self.keys is not None:
                self._keep(point[0], middle)
        for pending, i in self.waiting:
            pending.arrive(self.rows[pending.site][i])
        self.waiting = []

    def _keep(self, site: Site, middle: torch.Tensor) -> None:
        kept, place = self._place(site)
        if place not in kept and self.keys is not None and site in self.keys:
            cache.write("baselines", self.keys[site], middle)
        kept[place] = middle

    def fetch(self) -> None:
        """Run a job of its own."""
        result = run(self.vlm, jobs.vectors, self.given())
        self.fill(result["rows"], result["baseline"])


class Pending(Direction):
    """A direction whose vector is fetched when it is looked at, unless an ascent brings it first."""

    def __init__(self, request: Request, row: int, site: Site, label: str, **story: Any):
        vlm = request.vlm
        kept = {"hf_name": vlm.hf_name(site), "revision": vlm.revision, "versions": versions()}
        set_ = object.__setattr__
        for name, value in (("site", site), ("label", label), ("model", vlm.id), ("request", request), ("row", row)):
            set_(self, name, value)
        set_(self, "provenance", {**story, **kept})
        request.waiting.append((self, row))

    request: Request
    row: int

    @property
    def there(self) -> bool:
        """Whether the vector has come."""
        return "vector" in self.__dict__

    def arrive(self, vector: torch.Tensor) -> None:
        """Take the vector (d,); raises ValueError where it is not finite."""
        object.__setattr__(self, "vector", vector)
        self.__post_init__()

    def __getattr__(self, name: str) -> Any:
        if name == "vector":
            self.request.fetch()
            return self.__dict__["vector"]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> Any:
        return Direction, (self.vector, self.site, self.label, self.model, dict(self.provenance))

    def __str__(self) -> str:
        return super().__str__() if self.there else f"{self.label} at {self.site} of {self.model}, not fetched yet"
