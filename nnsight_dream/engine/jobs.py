"""Whole jobs, each a function of a model and a plain record; the same code runs here and on a server.

A job's result is plain: dicts, lists, numbers, tensors. See `engine.plain` for the rules of this folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .canvas import full_precision
from .measure import mean_norm, mean_patches, measured_direction, measured_feature
from .measure import picture_means as mean_of_each
from .optimise import climb, eight_bit, optimiser_of
from .pixels import shares
from .read import in_sandbox, own_tokens, reader, run, states, text_means
from .terms import away_term, direction_term, feature_term

if TYPE_CHECKING:
    from .plain import Aim, Ascent, Groups, Pictures, Text, Words
    from .read import Read


def text_states(model: Any, given: Text) -> list[torch.Tensor]:
    """Activations (B, T, d) of text at each point of the reading."""
    points = [point[1:] for point in given.how.points]
    with torch.no_grad():
        values = run(model, given.how.root, points, given.inputs, in_sandbox(model, given.how))
    return [states(given.how, point[0], value).detach() for point, value in zip(given.how.points, values, strict=True)]


def patches(model: Any, given: Pictures) -> list[torch.Tensor]:
    """Patches (B, n, d) of `given.pictures` at each point of the reading, in the model's type.

    Where gradients are on and the pictures require them, the patches carry the graph.
    """
    read, _ = reader(model, given.how, False)
    with torch.set_grad_enabled(torch.is_grad_enabled() and given.pictures.requires_grad):
        by_site = read(given.pictures)
    return [by_site[point[0]] for point in given.how.points]


def means(model: Any, given: Groups) -> list[torch.Tensor]:
    """The mean patch (d,) over `given.pictures` at each point of the reading."""
    read, device = reader(model, given.how)
    sites = [point[0] for point in given.how.points]
    by_site = mean_patches(lambda part: read(part.to(device)), given.pictures, sites, given.at_once)
    return [by_site[site] for site in sites]


def picture_means(model: Any, given: Groups) -> list[torch.Tensor]:
    """The mean patch of each of `given.pictures` (pictures, d) at each point of the reading."""
    read, device = reader(model, given.how)
    sites = [point[0] for point in given.how.points]
    return [mean_of_each(lambda part: read(part.to(device)), given.pictures, site, given.at_once) for site in sites]


def vectors(model: Any, given: Words) -> dict[str, Any]:
    """Concept vectors: `rows` (N, d) at each point of the reading, and the `baseline` (d,) taken off there, or None."""
    points = given.how.points
    rows = text_means(model, given.how, given.batches, points)
    baseline: list[Any] = [None] * len(points)
    if given.baseline is not None:
        missing = [point for point, value in zip(points, given.known, strict=True) if value is None]
        anew = text_means(model, given.how, given.baseline, missing) if missing else {}
        baseline = [anew[p[0]].mean(0) if v is None else v for p, v in zip(points, given.known, strict=True)]
    less = []
    for (site, _, _), middle in zip(points, baseline, strict=True):
        less.append(rows[site] if middle is None else rows[site] - middle)
    return {"rows": less, "baseline": baseline}


def tokens(model: Any, given: Words) -> list[list[torch.Tensor]]:
    """At each point of the reading, of each text the activations (tokens, d) of its own tokens."""
    rows = own_tokens(model, given.how, given.batches, given.how.points)
    return [rows[point[0]] for point in given.how.points]


def ascent(model: Any, given: Ascent) -> dict[str, Any]:
    """A piece of an ascent, or all of it: concept vectors, centres, the climb, and at its end the pictures' scores.

    A KeyboardInterrupt ends it early: `interrupted` is then true, and the pictures are those so far.
    """
    read, device = reader(model, given.how)
    concepts = [vectors(model, request) for request in given.asked]
    aims = [_vector(aim, concepts) for aim in given.aims]
    few = 16 if given.plan.at_once is None else min(16, given.plan.at_once)
    centres = _centres(read, given, few, device)
    norms = dict(given.norms)
    for place in given.norms_wanted:
        groups = [group.to(device) for group in given.references[place[1]]]
        norms[place] = mean_norm(read, groups, place[0], few)
    terms = _terms(given, aims, centres, norms, device)
    first, parts, generators, optimiser = _begun(given, device)
    history, interrupted = climb(
        read, given.canvas, given.augment, terms, given.plan, generators, parts, optimiser, range(first, given.until),
        given.grid, given.how.cut, _print_step if given.tell is None else given.tell,
    )  # fmt: skip
    step = first + len(history)
    done = interrupted or step >= given.plan.steps
    pictures = eight_bit(given.canvas, parts) if done else None
    empty = torch.zeros(0, len(given.seeds), dtype=torch.float32, device=device)
    return {
        "note": given.note,
        "interrupted": interrupted,
        "history": torch.stack(history) if history else empty,
        "state": {
            "step": step,
            "parts": [p.detach() for p in parts],
            "optimiser": None if done else optimiser.state_dict(),
            "generators": [g.get_state() for g in generators],
        },
        "vectors": aims,
        "baselines": [concept["baseline"] for concept in concepts],
        "rows": [concept["rows"] for concept in concepts],
        "centres": [centres[site] for site in given.every_centre],
        "norms": [norms[place] for place in given.every_norm],
        "pictures": pictures,
        "measured": None if pictures is None else _measured(read, given, pictures, aims, centres, norms, device),
    }


def _begun(
    given: Ascent, device: torch.device
) -> tuple[int, list[torch.Tensor], list[torch.Generator], torch.optim.Optimizer]:
    """First step, canvas's parts, generators and optimiser of a piece, as the piece before left them."""
    generators = [torch.Generator().manual_seed(seed) for seed in given.seeds]
    if given.state is None:
        first, parts = 0, given.canvas.start(len(given.seeds), generators, device)
    else:
        first, parts = given.state["step"], [p.to(device) for p in given.state["parts"]]
        for generator, state in zip(generators, given.state["generators"], strict=True):
            generator.set_state(state)
    parts = [p.detach().clone().requires_grad_(True) for p in parts]
    optimiser = optimiser_of(given.plan, parts)
    if given.state is not None and given.state["optimiser"] is not None:
        optimiser.load_state_dict(given.state["optimiser"])
    return first, parts, generators, optimiser


def _print_step(step: int, score: torch.Tensor) -> None:
    """One line for each step, which the server passes on as it is written."""
    print(f"@nnsight-dream [{step}, {score.tolist()}]")


def _vector(aim: Aim, concepts: list[dict[str, Any]]) -> Any:
    if aim.feature is not None:
        return None
    if aim.vector is not None or aim.asked is None:
        return aim.vector
    return concepts[aim.asked[0]]["rows"][aim.asked[1]][aim.asked[2]]


def _centres(read: Read, given: Ascent, at_once: int, device: torch.device) -> dict[Any, torch.Tensor]:
    centres = dict(given.centres)
    if given.centre_sites:
        groups = given.centre if isinstance(given.centre, list) else given.centre.pictures(*given.how.pixels.size)
        centres.update(mean_patches(lambda part: read(part.to(device)), groups, given.centre_sites, at_once))
    return centres


def _terms(
    given: Ascent, aims: list[Any], centres: dict[Any, Any], norms: dict[Any, float], device: torch.device
) -> list[Any]:
    """The terms: directions by site, features, added ones."""
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
    read: Read,
    given: Ascent,
    eights: torch.Tensor,
    aims: list[Any],
    centres: dict[Any, Any],
    norms: dict[Any, float],
    device: torch.device,
) -> list[Any]:
    """Of each finished picture, as a file would hold it: scores, heat (n,), and of a feature the readings."""
    measured: list[Any] = []
    pictures = shares(eights).permute(0, 3, 1, 2)
    with torch.no_grad():
        for j, aim in enumerate(given.aims):
            seen = read(pictures[j : j + 1].to(device))[aim.site]
            with full_precision(seen):  # whatever the server runs the model in
                if aim.feature is not None:
                    measured.append(measured_feature(aim.feature, aim.alone, seen[0], norms[aim.site, aim.reference]))
                else:
                    towards = (aims[j].to(device), centres[aim.site].to(device))
                    measured.append((*measured_direction(aim.site, seen, *towards, given.poolings, given.grid), None))
    return measured
