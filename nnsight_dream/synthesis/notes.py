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
        content = json.loads(note)
        records.check(content, records.NOTE, needed=True)
        for row in content["rows"]:
            records.check(row, records.NOTE_ROW, needed=True)
        records.check(content["story"], records.STORY, needed=True)
        if sorted(content["places"]) != sorted(set(content["places"])) or len(content["places"]) != len(
            content["rows"]
        ):
            raise TypeError(f"'places' is a place for each row, not {shown(content['places'])}")
        if any(len(row) != len(content["rows"]) for part in content["history"] for row in part):
            raise TypeError("'history' is not a score for each row")
        content["rows"] = [{**row, "site": _site(row["site"], content["grid"])} for row in content["rows"]]
        content["story"] = {name: content["story"][name] for name in records.STORY}
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"job {job!r} is no ascent that nd.submit or nd.sweep of this version sent: its note is no JSON of their "
            f"form ({error})"
        ) from None
    content["history"] = [
        torch.tensor(part, dtype=torch.float32).reshape(-1, len(content["rows"])) for part in content["history"]
    ]
    size = content["image_size"]
    return {**content, "grid": tuple(content["grid"]), "image_size": None if size is None else tuple(size)}


def _site(record: dict[str, Any], grid: list[int]) -> Site:
    tokens, count = record["tokens"], grid[0] * grid[1]
    if count > 2**20 or (not isinstance(tokens, str) and any(not 0 <= token < count for token in tokens)):
        raise TypeError(f"tokens {shown(tokens)} of a grid of {grid[0]} x {grid[1]}")
    return Site(record["layer"], record["kind"], tokens if isinstance(tokens, str) else tuple(tokens))


def check_piece(result: Any, jobs: int) -> dict[str, Any]:
    """The result of a piece of an ascent of so many jobs, if it has that form. Raises ServerError for anything else."""
    if not isinstance(result, dict):
        raise _strange("an object is needed", result)
    history = result.get("history")
    if not isinstance(history, torch.Tensor) or history.ndim != 2 or history.shape[1] != jobs:
        raise _strange(f"history is (steps, {jobs})", history)
    for name in ("vectors", "measured"):
        part = result.get(name)
        if not (name == "measured" and part is None) and not (isinstance(part, list) and len(part) == jobs):
            raise _strange(f"{name} is a list of {jobs}", part)
    if result["measured"] is not None:
        _check_end(result, jobs)
    return result


def _check_end(result: dict[str, Any], jobs: int) -> None:
    pictures = result.get("pictures")
    eights = pictures.shape if isinstance(pictures, torch.Tensor) and pictures.dtype == torch.uint8 else ()
    if len(eights) != 4 or eights[0] != jobs or eights[3] != 3 or 0 in eights:
        raise _strange(f"pictures are ({jobs}, H, W, 3) of 8 bits", pictures)
    for measured in result["measured"]:
        scores, heat, readings = (
            measured if isinstance(measured, (tuple, list)) and len(measured) == 3 else (None, None, None)
        )
        try:
            records.check({"scores": scores, "readings": readings}, records.PROTOTYPE)
        except TypeError as error:
            raise _strange(str(error), measured) from None
        if not isinstance(heat, torch.Tensor) or heat.ndim != 1:
            raise _strange("a heat map is (tokens,)", heat)
    for vector in result["vectors"]:
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
