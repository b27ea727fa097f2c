"""An ascent: what its job is given, its pieces, and prototypes of what comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .. import arguments
from ..directions.deferred import Pending
from ..directions.direction import Direction
from ..engine import jobs, plain
from ..models.check import refuse_inference
from ..remote.run import run
from ..sae import reference
from ..sae.feature import Feature
from .notes import check_heat, check_piece
from .prototype import Prototype, heat_map
from .request import alike
from .settings import Settings

if TYPE_CHECKING:
    from ..directions.deferred import Request
    from ..models.vlm import VLM


def batches(settings: Sequence[Settings]) -> list[tuple[list[int], Settings]]:
    """Which jobs are climbed together, by their places: those of equal settings, as many as these allow at once."""
    groups: list[tuple[list[int], Settings]] = []
    for place, chosen in enumerate(settings):
        for places, same in groups:
            if alike(chosen, same):
                places.append(place)
                break
        else:
            groups.append(([place], chosen))
    return [
        (places[start : start + same.pictures_per_pass], same)
        for places, same in groups
        for start in range(0, len(places), same.pictures_per_pass)
    ]


_SHORT = (
    "{id}: the device's memory is too small for a step as it is; the climb begins again, and from now on activations "
    "of the vision tower are computed anew in the backward pass (nd.load(..., checkpoint_tower=True) does so at once). "
    "A smaller batch= or at_once= saves memory too"
)


@dataclass
class Ascent:
    """Jobs (direction or feature, seed) that are climbed together, and how far that is.

    note   what is needed to make prototypes of the result, plain but for its sites: it can wait on a server, see
           `remote_notes`
    state  None before the first piece, then the state that the last one returned
    """

    vlm: VLM
    aims: list[Direction | Feature]
    given: plain.Ascent
    note: dict[str, Any]
    requests: list[Request]
    steps: int
    centre: Any
    references: list[Any]
    state: Any = None
    history: list[torch.Tensor] = field(default_factory=list)

    @property
    def until(self) -> int:
        """The step before which the next piece stops."""
        first = 0 if self.state is None else self.state["step"]
        each = self.vlm.remote.steps_per_job if self.vlm.remote is not None else None
        return self.steps if each is None else min(self.steps, first + each)

    def piece(self, note: bytes | None = None, until: int | None = None) -> plain.Ascent:
        """The inputs of the next job; it stops before a step, `self.until` if not given."""
        later: dict[str, Any] = {}
        if self.state is not None:  # the results of the first piece are sent, not computed again
            later = {"asked": [], "centre_sites": [], "norms_wanted": [], "references": {}}
        until = self.until if until is None else until
        return dataclasses.replace(self.given, state=self.state, until=until, note=note, **later)

    def take(self, result: dict[str, Any]) -> bool:
        """Keep the result of a piece; whether it was the last. Raises ServerError for an answer of another form."""
        check_piece(result, len(self.aims))
        self.history.append(result["history"])
        first = self.state is None
        self.state = result["state"]
        if first:
            self._keep(result)
        return result["measured"] is not None

    def climb(self, watch: Any) -> list[Prototype]:
        """All pieces, one job each, and the prototypes; those so far where Ctrl-C came in place.

        Where a GPU's memory does not do, the climb begins again with the vision tower checkpointed, and says so.
        Raises KeyboardInterrupt where it came to a job that was sent, and what the job raises.
        """
        if self.vlm.remote is None:
            refuse_inference(self.vlm)
        while True:
            try:
                result = run(self.vlm, jobs.ascent, self.piece(), watch)
            except torch.OutOfMemoryError:
                if self.vlm.remote is not None or self.vlm.checkpoint_tower or not self.vlm.tower_layers:
                    raise
                arguments.warn(_SHORT.format(id=self.vlm.id))
                self.vlm.checkpoint_tower = True
                continue
            if result.get("interrupted") and self.vlm.remote is not None:
                raise KeyboardInterrupt
            if self.take(result):
                return prototypes(self.note, torch.cat(self.history), result)

    def _keep(self, result: dict[str, Any]) -> None:
        for request, rows, baselines in zip(self.requests, result["rows"], result["baselines"], strict=False):
            request.fill(rows, baselines)  # a later piece, collected by another process, brings vectors alone
        for row, aim, vector in zip(self.given.aims, self.aims, result["vectors"], strict=True):
            row.vector = vector
            if isinstance(aim, Pending) and not aim.there:
                aim.arrive(vector)
        for site, value in zip(self.given.every_centre, result["centres"], strict=True):
            self.given.centres[site] = value
            if (choice := hashable(self.centre)) is not None:
                self.vlm.memo.centres.at(self.vlm, site)[site, choice, self.vlm.device, self.vlm.dtype] = value
        for (site, i), norm in zip(self.given.every_norm, result["norms"], strict=True):
            self.given.norms[site, i] = norm
            self.vlm.memo.norms.at(self.vlm, site)[reference.key(self.vlm, site, self.references[i])] = norm


def prototypes(note: dict[str, Any], history: torch.Tensor, result: dict[str, Any]) -> list[Prototype]:
    """Prototypes of the result of an ascent's last piece."""
    pixels = result["pictures"].cpu().numpy()
    finished = []
    for j, row in enumerate(note["rows"]):
        scores, heat, readings = result["measured"][j]
        story = row["story"]
        if row["kind"] == "direction":
            norm = float(result["vectors"][j].float().norm())
            story = {"model": story.get("model", note["model"]), "norm": norm, **story}
        finished.append(
            Prototype(
                image=Image.fromarray(pixels[j]),
                label=row["label"],
                site=row["site"],
                hf_name=row["hf_name"],
                history=tuple(history[:, j].tolist()),
                scores=scores,
                heat=heat_map(check_heat(heat, row["site"], note["grid"]).numpy(), row["site"], note["grid"]),
                readings=readings,
                seed=row["seed"],
                model=note["model"],
                revision=note["revision"],
                direction=story,
                image_size=note["image_size"],
                interrupted=bool(result.get("interrupted")),
                straight_through=note["straight_through"],
                **note["story"],
            )
        )
    return finished


def hashable(choice: Any) -> Any:
    """A choice, if it can be a key; else None."""
    try:
        hash(choice)
    except TypeError:
        return None
    return choice
