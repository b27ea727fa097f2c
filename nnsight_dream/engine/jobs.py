"""Whole jobs, each a function of the model and of what it is given; here and on a server the same lines.

A job's result is plain: dicts, lists, numbers, tensors. See `engine.plain` for the rules of this folder.
"""

from __future__ import annotations

from typing import Any

import torch

from .canvas import _full_precision
from .measure import mean_norm, mean_patches, measured_direction, measured_feature
from .optimise import climb, eight_bit, optimiser_of
from .read import reader, run, sandboxed, states, text_means
from .terms import away_term, direction_term, feature_term


def text_states(model: Any, given: Any) -> list[torch.Tensor]:
    """Activations (B, T, d) of text at each of `given.sites`, which are in the order a pass reaches them."""
    with torch.no_grad():
        found = run(model, given.how.root, [point[1:] for point in given.sites], given.inputs, sandboxed(model))
    return [states(given.how, point[0], value).detach().cpu() for point, value in zip(given.sites, found, strict=True)]


def patches(model: Any, given: Any) -> list[torch.Tensor]:
    """Patches (B, n, d) of `given.pictures` at each point of the reading, in the model's type and the points' order."""
    given.how.sandbox = sandboxed(model)
    read, _ = reader(model, given.how, False)
    with torch.no_grad():
        found = read(given.pictures)
    return [found[point[0]].cpu() for point in given.how.points]


def means(model: Any, given: Any) -> list[torch.Tensor]:
    """The mean patch (d,) over `given.pictures` at each point of the reading."""
    given.how.sandbox = sandboxed(model)
    read, _ = reader(model, given.how)
    sites = [point[0] for point in given.how.points]
    found = mean_patches(read, given.pictures, sites, given.at_once)
    return [found[site].cpu() for site in sites]


def vectors(model: Any, given: Any) -> dict[str, Any]:
    """Concept vectors: `rows` (N, d) for each of `given.sites`, and the `baseline` (d,) that was taken off, or None."""
    given.how.sandbox = sandboxed(model)
    rows = text_means(model, given.how, given.batches, given.sites)
    baseline: list[Any] = [None] * len(given.sites)
    if given.baseline is not None:
        baseline = list(given.known)
        if any(value is None for value in baseline):
            made = text_means(model, given.how, given.baseline, given.sites)
            baseline = [made[point[0]].mean(0) for point in given.sites]
    found = []
    for (site, _, _), middle in zip(given.sites, baseline, strict=True):
        found.append(rows[site] if middle is None else rows[site] - middle)
    return {"rows": found, "baseline": baseline}


def ascent(model: Any, given: Any) -> dict[str, Any]:
    """A piece of an ascent, or all of it: concept vectors, centres, the climb, and at its end the pictures' scores.

    given.state is None at the beginning, else what the piece before gave; given.until is the step to stop before.
    """
    given.how.sandbox = sandboxed(model)
    read, device = reader(model, given.how)
    asked = [vectors(model, one) for one in given.asked]
    aims = [_vector(aim, asked) for aim in given.aims]
    few = min(16, given.plan.at_once)
    centres = _centres(read, given, few)
    norms = dict(given.norms)
    for place in given.norms_wanted:
        norms[place] = mean_norm(read, given.references[place[1]], place[0], few)
    terms = _terms(given, aims, centres, norms, device)
    generators = [torch.Generator().manual_seed(seed) for seed in given.seeds]
    first, parts = 0, None
    if given.state is not None:
        first, parts = given.state["step"], [p.to(device) for p in given.state["parts"]]
        for generator, state in zip(generators, given.state["generators"], strict=True):
            generator.set_state(state)
    if parts is None:
        parts = given.canvas.start(len(given.seeds), generators, device)
    parts = [p.detach().clone().requires_grad_(True) for p in parts]
    optimiser = optimiser_of(given.plan, parts)
    if given.state is not None and given.state["optimiser"] is not None:
        optimiser.load_state_dict(given.state["optimiser"])
    steps = range(first, given.until)
    history, interrupted = climb(
        read, given.canvas, given.augment, terms, given.plan, generators, parts, optimiser, steps, given.grid,
        given.how.cut, _told,
    )  # fmt: skip
    if interrupted:
        raise KeyboardInterrupt
    done = given.until >= given.plan.steps
    pictures = eight_bit(given.canvas, parts) if done else None
    return {
        "note": given.note,
        "history": torch.stack(history).cpu() if history else torch.zeros(0, len(given.seeds)),
        "state": {
            "step": given.until,
            "parts": [p.detach().cpu() for p in parts],
            "optimiser": None if done else optimiser.state_dict(),
            "generators": [g.get_state() for g in generators],
        },
        "vectors": [None if v is None else v.cpu() for v in aims],
        "baselines": [one["baseline"] for one in asked],
        "rows": [one["rows"] for one in asked],
        "centres": [centres[site].cpu() for site in given.every_centre],
        "norms": [norms[place] for place in given.every_norm],
        "pictures": None if pictures is None else pictures.cpu(),
        "measured": None if pictures is None else _measured(read, given, pictures, aims, centres, norms, device),
    }


def _told(step: int, score: torch.Tensor) -> None:
    """One line for each step, which the server passes on as it is written."""
    print(f"@nnsight-dream [{step}, {score.tolist()}]")


def _vector(aim: Any, asked: list[dict[str, Any]]) -> Any:
    if aim.feature is not None:
        return None
    return aim.vector if aim.vector is not None else asked[aim.asked[0]]["rows"][aim.asked[1]][aim.asked[2]]


def _centres(read: Any, given: Any, at_once: int) -> dict[Any, torch.Tensor]:
    found = dict(given.centres)
    if given.centre_sites:
        groups = given.centre if isinstance(given.centre, list) else given.centre.pictures(*given.how.pixels.size)
        found.update(mean_patches(read, groups, given.centre_sites, at_once))
    return found


def _terms(given: Any, aims: list[Any], centres: dict[Any, Any], norms: dict[Any, float], device: Any) -> list[Any]:
    """The terms in the order of a climb at home: directions by site, features, added ones."""
    terms: list[Any] = []
    towards = [j for j, aim in enumerate(given.aims) if aim.feature is None]
    for site in dict.fromkeys(given.aims[j].site for j in towards):
        rows = [j for j in towards if given.aims[j].site == site]
        stacked = torch.stack([aims[j].to(device) for j in rows])
        middle = torch.stack([centres[site].to(device)] * len(rows))
        terms.append(direction_term(site, stacked, middle, given.pooling, given.score, rows))
    for j, aim in enumerate(given.aims):
        if aim.feature is not None:
            most = None if aim.guard is None else aim.guard * norms[aim.site, aim.reference]
            terms.append(feature_term(aim.site, aim.feature, most, j))
    for term in given.terms:
        if term.away is None:
            terms.append(term.call)
        else:
            site, vector, weight, pooling = term.away
            terms.append(away_term(site, vector.to(device), centres[site].to(device), weight, pooling))
    return terms


def _measured(
    read: Any, given: Any, eights: Any, aims: list[Any], centres: dict[Any, Any], norms: dict[Any, float], device: Any
) -> list[Any]:
    """Of each finished picture, as a file would hold it: scores, heat (n,), and of a feature the readings."""
    found: list[Any] = []
    pictures = eights.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        for j, aim in enumerate(given.aims):
            seen = read(pictures[j : j + 1])[aim.site]
            with _full_precision(seen):  # whatever the server runs the model in
                if aim.feature is not None:
                    found.append(measured_feature(aim.feature, aim.alone, seen[0], norms[aim.site, aim.reference]))
                else:
                    towards = (aims[j].to(device), centres[aim.site].to(device))
                    found.append((*measured_direction(aim.site, seen, *towards, given.poolings, given.grid), None))
    return found
