"""Sections on the family's record: its proofs, activations against a plain pass, pixels, and the gradient."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..engine.pooling import Attention, cosine
from ..engine.terms import pooled_scores
from ..io.pictures import as_tensors
from ..models.check import PROOFS
from ..models.reading import read_pictures
from ..synthesis.centres import centre
from .material import patches
from .section import FAIL, PASS, UNSURE, Section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models.vlm import VLM
    from .material import Material

_MEND = (
    "The family's record does not fit this checkpoint: write a nnsight_dream.Family for it and pass it as "
    "nd.load(..., family=record), or report the line above with the model's name"
)

_SURROGATE = (
    "Nothing can be compared: the model turns a picture into words of a code book by choices that have no slope. Judge "
    "by the drawings whether the surrogate of straight_through= leads anywhere"
)

#: Sizes of changes in [0, 1] by which a slope is measured.
_SIZES = (0.08, 0.04, 0.02, 0.01, 0.003, 0.001, 0.0003, 0.0001)


def family_record(given: Material) -> Section:
    """Paths, image tokens and, of a record that was probed, activations: the proofs that need no gradient."""
    rows, state = proved(given.vlm, ("paths", "image tokens", "activations", "bridge"))
    vlm = given.vlm
    origin = "probed from the model, since there is none in the package" if vlm.family.probed else "in the package"
    text = f"The record of {vlm.family.name}, {origin}, fits: {vlm.layers} layers, {vlm.grid[0]} x {vlm.grid[1]} tokens"
    if state != PASS:
        text = next(row["finding"] for row in rows if row["state"] == state)
    return Section("record", "Family record", state, text, "" if state == PASS else _MEND, rows)


def proved(vlm: VLM, names: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """A row for each proof by name, and the worst of their states."""
    rows: list[dict[str, Any]] = []
    of_field = {"image tokens": "image tokens", "pixels": "pixels", "gradient": "gradient", "slopes": "gradient"}
    for name in names:
        if (name == "bridge" and vlm.bridge is None) or (name == "activations" and not vlm.family.probed):
            continue
        if reason := vlm.unproved.get(of_field.get(name, "")):
            rows.append({"proof": name, "state": UNSURE, "finding": reason})
            continue
        try:
            PROOFS[name](vlm)
            rows.append({"proof": name, "state": PASS, "finding": "agrees"})
        except ValueError as error:
            rows.append({"proof": name, "state": FAIL, "finding": str(error)})
    states = {row["state"] for row in rows}
    return rows, FAIL if FAIL in states else UNSURE if UNSURE in states else PASS


def pixels(given: Material) -> Section:
    """Pixels that the record packs against those of the checkpoint's own image processor."""
    rows, state = proved(given.vlm, ("pixels",))
    text = rows[0]["finding"]
    if state == PASS:
        name = type(getattr(given.vlm.processor, "image_processor", given.vlm.processor)).__name__
        text = f"Pictures become the pixels that {name} makes, at the model's own size and at another"
    advice = {PASS: "", FAIL: _MEND}.get(state, "Install torchvision, which this checkpoint's processor needs")
    return Section("pixels", "Pixels", state, text, advice)


def activations(given: Material) -> Section:
    """Patches that nnsight reads against the hidden states of a plain Hugging Face pass of a whole question."""
    vlm, title = given.vlm, "Activations"
    if reason := _no_plain_pass(vlm):
        advice = "Load the model without remote=, image_size= and edits to compare it"
        return Section("activations", title, UNSURE, f"Not compared: {reason}", advice)
    image = given.images(["octopus"])["octopus"][0].resize(vlm.image_size[::-1], Image.Resampling.BICUBIC)
    theirs = _plain_pass(vlm, image)
    sites = [vlm.site(layer) for layer in range(1, vlm.layers + 1)]
    mine = read_pictures(vlm, as_tensors([image], "picture")[0].to(vlm.device), sites)
    rows = []
    for site, expected in zip(sites, theirs, strict=True):
        own, other = mine[site].float().cpu(), expected.float().cpu()
        if own.shape != other.shape:
            text = f"layer {site.layer}: {tuple(own.shape)} is read, a plain pass has {tuple(other.shape)}"
            return Section("activations", title, FAIL, text, _MEND)
        rows.append({"layer": site.layer, "difference": float((own - other).norm() / other.norm())})
    limit = 1e-3 if vlm.dtype in (torch.float32, torch.float64) else 0.1
    wrong = [row["layer"] for row in rows if not row["difference"] < limit]
    worst = max(row["difference"] for row in rows)
    text = f"Patches of all {vlm.layers} layers are a plain Hugging Face pass's, to within {worst:.1g} of their norm"
    if wrong:
        text = f"Patches differ from a plain Hugging Face pass from layer {wrong[0]} on, by {worst:.2g} of their norm"
    return Section("activations", title, FAIL if wrong else PASS, text, _MEND if wrong else "", rows)


def _no_plain_pass(vlm: VLM) -> str:
    """Why no plain pass can be compared; "" where one can."""
    if vlm.remote is not None:
        return f"the weights are on {vlm.remote}"
    if vlm.own_size is not None and vlm.family.resized is not None:
        return "image_size= gives the model image tokens that its own tower would refuse to make"
    if not callable(vlm.processor):
        return vlm.unproved["image tokens"]
    return "edits are stored on the model, which a plain pass leaves out" if vlm.edits else ""


def _plain_pass(vlm: VLM, image: Image.Image) -> list[torch.Tensor]:
    """Patches (1, n, d) of every layer, as Hugging Face's output_hidden_states gives them.

    Its last one is behind the final norm, so that of the last block comes from a hook.
    """
    inputs = vlm.question(image, "" if vlm.family.looks_ahead else "What is this?")  # where words change patches, none
    places = (inputs["input_ids"][0] == vlm.config.image_token_id).nonzero().flatten()[: vlm.grid[0] * vlm.grid[1]]
    last: list[Any] = []
    block = vlm.hf.get_submodule(f"{vlm.family.layers}.{vlm.layers - 1}")
    handle = block.register_forward_hook(lambda module, args, output: last.append(output))
    try:
        with torch.no_grad(), vlm.quiet():
            root = vlm.hf.get_submodule(vlm.family.root)
            hidden_states = root(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    finally:
        handle.remove()
    streams = [*hidden_states[1 : vlm.layers], last[0]]
    states = [vlm.family.states(value, vlm.config) for value in streams]
    return [value[:, places.to(value.device)] for value in states]


def gradient(given: Material) -> Section:
    """The gradient against central differences: of every block, and of an ascent's score at a few layers."""
    vlm = given.vlm
    rows, state = proved(vlm, ("gradient", "slopes"))
    advice = "A climb would follow a wrong gradient: see the line above; load weights that are not quantised"
    if state != PASS:
        text = next(row["finding"] for row in rows if row["state"] == state)
        return Section("gradient", "Gradient", state, text, advice if state == FAIL else "", rows)
    if not vlm.passes_gradient or vlm.straight_through is not None:
        text = (
            f"Every block's gradient is its slope; {'a surrogate' if vlm.straight_through else 'none'} passes on from"
        )
        return Section("gradient", "Gradient", UNSURE, f"{text} the words of the picture", _SURROGATE, rows)
    exact = vlm.dtype in (torch.float32, torch.float64)
    measured = [_slope(given, layer) for layer in given.layers]
    off = [row for row in measured if row["unsteady"] < 0.1 and abs(row["share"] - 1) > (0.05 if exact else 0.25)]
    blurred = [row for row in measured if row["unsteady"] >= 0.1]
    text = f"Every block's gradient is its slope, and the score's at layers {_listed(measured)}, by central differences"
    if off:
        state, text = (
            FAIL,
            f"At layer {_listed(off)} the score's gradient is not its slope: {off[0]['share']:.0%} of it",
        )
    elif blurred:
        state = UNSURE
        text = f"Every block's gradient is its slope; the score's own at layer {_listed(blurred)} is too uneven to tell"
        advice = f"Nothing to mend if numerics pass: {str(vlm.dtype)[6:]} rounds away so small a difference"
    return Section("gradient", "Gradient", state, text, "" if state == PASS else advice, measured)


def _listed(rows: Sequence[dict[str, Any]]) -> str:
    return ", ".join(str(row["layer"]) for row in rows)


def _slope(material: Material, layer: int) -> dict[str, Any]:
    """What share of the score's change along its gradient that gradient foretells, 1 where it is right.

    Of several sizes of change those two count that agree best; `unsteady` is by how much they do not.
    """
    vlm = material.vlm
    site, x = vlm.site(layer), material.picture.detach().clamp(0.1, 0.9).requires_grad_(True)
    towards, middle = material.vector("octopus", layer), centre(vlm, site, material.centre)

    def score(picture: torch.Tensor) -> torch.Tensor:
        read = patches(vlm, picture, layer)
        return pooled_scores(read[None], towards[None], middle[None], Attention(), cosine, vlm.grid, 1.0)[0].sum()

    with torch.enable_grad():
        (slope,) = torch.autograd.grad(score(x), x)
    along = slope / slope.abs().max().clamp(min=1e-30)
    foretold = float((slope * along).sum())
    exact = vlm.dtype in (torch.float32, torch.float64)
    shares = []
    for size in _SIZES if exact else _SIZES[:4]:
        with torch.no_grad():
            above, below = (float(score(x.detach() + sign * size * along)) for sign in (1, -1))
        change = (above - below) / 2 / size
        shares.append(foretold / change if change else float("inf"))
    pairs = [(abs(a / b - 1), b) for a, b in itertools.pairwise(shares) if b and math.isfinite(a) and math.isfinite(b)]
    unsteady, share = min(pairs, default=(float("inf"), float("nan")))
    return {"layer": layer, "share": share, "unsteady": unsteady}
