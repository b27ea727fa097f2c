"""Notes of jobs as JSON, and answers looked at before they are used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from ..arguments import shown
from ..io import records
from ..models.sites import Site
from ..remote.errors import ServerError


def sealed(note: dict[str, Any], history: Sequence[torch.Tensor]) -> bytes:
    """A note and the scores (steps, J) of the pieces so far as JSON; raises TypeError where a story is not plain."""
    rows = [{**row, "site": vars(row["site"])} for row in note["rows"]]
    whole = {**note, "rows": rows, "history": [part.tolist() for part in history]}
    try:
        return json.dumps(whole).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the story of {', '.join(row['label'] for row in rows)} cannot be kept for another process ({error}): a "
            "direction's provenance is texts, numbers, lists and objects"
        ) from None


def opened(note: Any, job: str) -> dict[str, Any]:
    """What `sealed` wrote, with sites and tensors again. Raises ValueError for anything else."""
    try:
        if not isinstance(note, bytes):
            raise TypeError(f"bytes are needed, not {shown(note)}")
        found = json.loads(note)
        records.check(found, records.NOTE, needed=True)
        for row in found["rows"]:
            records.check(row, records.NOTE_ROW, needed=True)
        records.check(found["story"], records.STORY, needed=True)
        if sorted(found["places"]) != sorted(set(found["places"])) or len(found["places"]) != len(found["rows"]):
            raise TypeError(f"'places' is a place for each row, not {shown(found['places'])}")
        if any(len(row) != len(found["rows"]) for part in found["history"] for row in part):
            raise TypeError("'history' is not a score for each row")
        found["rows"] = [{**row, "site": _site(row["site"], found["grid"])} for row in found["rows"]]
        found["story"] = {name: found["story"][name] for name in records.STORY}
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"job {job!r} is no ascent that nd.submit or nd.sweep of this version sent: its note is no JSON of their "
            f"form ({error})"
        ) from None
    found["history"] = [
        torch.tensor(part, dtype=torch.float32).reshape(-1, len(found["rows"])) for part in found["history"]
    ]
    size = found["image_size"]
    return {**found, "grid": tuple(found["grid"]), "image_size": None if size is None else tuple(size)}


def _site(told: dict[str, Any], grid: list[int]) -> Site:
    tokens, count = told["tokens"], grid[0] * grid[1]
    if count > 2**20 or (not isinstance(tokens, str) and any(not 0 <= token < count for token in tokens)):
        raise TypeError(f"tokens {shown(tokens)} of a grid of {grid[0]} x {grid[1]}")
    return Site(told["layer"], told["kind"], tokens if isinstance(tokens, str) else tuple(tokens))


def check_piece(found: Any, jobs: int) -> dict[str, Any]:
    """What a piece of an ascent of so many jobs gave, if it has that form. Raises ServerError for anything else."""
    if not isinstance(found, dict):
        raise _strange("an object is needed", found)
    history = found.get("history")
    if not isinstance(history, torch.Tensor) or history.ndim != 2 or history.shape[1] != jobs:
        raise _strange(f"history is (steps, {jobs})", history)
    for name in ("vectors", "measured"):
        part = found.get(name)
        if not (name == "measured" and part is None) and not (isinstance(part, list) and len(part) == jobs):
            raise _strange(f"{name} is a list of {jobs}", part)
    if found["measured"] is not None:
        _check_end(found, jobs)
    return found


def _check_end(found: dict[str, Any], jobs: int) -> None:
    pictures = found.get("pictures")
    eights = pictures.shape if isinstance(pictures, torch.Tensor) and pictures.dtype == torch.uint8 else ()
    if len(eights) != 4 or eights[0] != jobs or eights[3] != 3 or 0 in eights:
        raise _strange(f"pictures are ({jobs}, H, W, 3) of 8 bits", pictures)
    for one in found["measured"]:
        scores, heat, readings = one if isinstance(one, (tuple, list)) and len(one) == 3 else (None, None, None)
        try:
            records.check({"scores": scores, "readings": readings}, records.PROTOTYPE)
        except TypeError as error:
            raise _strange(str(error), one) from None
        if not isinstance(heat, torch.Tensor) or heat.ndim != 1:
            raise _strange("a heat map is (tokens,)", heat)
    for vector in found["vectors"]:
        if vector is not None and not (isinstance(vector, torch.Tensor) and vector.ndim == 1):
            raise _strange("a vector is (d,)", vector)


def check_heat(heat: torch.Tensor, site: Site, grid: tuple[int, int]) -> torch.Tensor:
    """A heat map's weights, if there is one for each token of a site. Raises ServerError otherwise."""
    count = grid[0] * grid[1] if site.tokens == "image" else len(site.tokens)
    if len(heat) != count:
        raise _strange(f"a heat map is ({count},)", heat)
    return heat


def _strange(needed: str, got: Any) -> ServerError:
    return ServerError(f"the server's answer is none to an ascent: {needed}; got {shown(got)}")
