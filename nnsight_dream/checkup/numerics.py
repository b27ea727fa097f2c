"""The section on numbers: what the model's own type makes of patches, words, gradient, weights and score.

The same weights compute once in that type and once in float32. All that is the package's own (centres, poolings,
scores, gradients of the picture) is in float32 in either case, so what differs is the model's rounding alone.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..directions.sources import from_tensor
from ..engine.canvas import MultiResolution
from ..engine.pooling import Attention, cosine
from ..engine.terms import pooled_scores
from ..io.pictures import as_tensors
from ..models import devices, load
from ..synthesis.centres import centre
from ..synthesis.settings import Settings
from ..synthesis.synthesize import synthesize
from .material import patches
from .section import FAIL, PASS, UNSURE, Section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models.vlm import VLM
    from .material import Material

#: The smaller temperature of the paper, at which a hundredth of a cosine moves a weight by a factor of seven.
TAU = 0.005

#: Least cosine of the gradient in the model's type with that in float32: to pass, and not to fail.
GRADIENT = (0.9, 0.5)


def numerics(given: Material) -> Section:
    """The model in its own type against float32; one that is in float32 already, bfloat16 against it."""
    vlm, title = given.vlm, "Numbers"
    if given.away:
        text = f"Not compared: the weights are on {vlm.remote}"
        return Section("numerics", title, UNSURE, text, "Load the model without remote= to compare it with float32")
    exact = vlm.dtype in (torch.float32, torch.float64)
    kind = torch.bfloat16 if exact else torch.float32
    count = sum(p.numel() for p in vlm.hf.parameters())
    place = given.room(count * torch.finfo(kind).bits / 8)
    if place is None:
        text = f"Not compared: a copy in {str(kind)[6:]} takes {devices.gigabytes(count * torch.finfo(kind).bits / 8)}"
        advice = "Free memory on the GPU or the machine, or look at lower layers: nd.load(..., up_to_layer=)"
        return Section("numerics", title, UNSURE, f"{text}, which are not free", advice)
    other = twin(vlm, kind, place)
    mine, reference = (other, vlm) if exact else (vlm, other)
    rows = [compared(given, mine, reference, layer) for layer in given.layers]
    return _section(vlm, str(mine.dtype)[6:], exact, rows)


def twin(vlm: VLM, kind: torch.dtype, place: torch.device) -> VLM:
    """The same model with a copy of its weights, in another type and place."""
    hf = copy.deepcopy(vlm.hf).to(place, kind)
    family = dataclasses.replace(vlm.family, overflows=False)  # whether it does is what is measured
    other = load.load(hf, processor=vlm.processor, family=family, check=False)
    other.pixels, other.own_size, other.straight_through = vlm.pixels, vlm.own_size, vlm.straight_through
    other.id = vlm.id
    return other


def compared(given: Material, mine: VLM, reference: VLM, layer: int, steps: int = 8) -> dict[str, Any]:
    """What a model's type changes at a layer, against a reference of the same weights.

    patches    least cosine of a centred patch with itself, over patches;  word   cosine of a concept vector
    gradient   cosine of the score's gradient at the picture (temperature 0.5);  gradient_small   at 0.005
    weights    half the sum of changes of attention weights at temperature 0.005: 0 none, 1 other patches
    score      by how much the score of a picture differs that was climbed for some steps in the model's type
    norm       median norm of a patch
    """
    site, at = reference.site(layer), reference.device
    exact = given.vector("octopus", layer, reference)
    middle = centre(reference, site, given.centre)
    row: dict[str, Any] = {"layer": layer}
    looked = [_looked(vlm, layer, given.picture, exact, middle, (0.5, TAU)) for vlm in (mine, reference)]
    (own, own_slopes, weights), (expected, slopes, weights_expected) = looked
    row["norm"] = float((expected + middle.cpu()).norm(dim=-1).median())
    row["patches"] = float(F.cosine_similarity(own, expected, dim=-1).min())
    row["word"] = float(F.cosine_similarity(given.vector("octopus", layer, mine).to(at), exact, dim=0))
    row["gradient"], row["gradient_small"] = map(_alike, own_slopes, slopes)
    row["weights"] = float((weights[1] - weights_expected[1]).abs().sum() / 2)
    aim = from_tensor(mine, exact.cpu(), layer, label="octopus")
    settings = Settings(
        steps=steps, batch=1, canvas=MultiResolution(max(reference.image_size)), augment=(), centre=middle.cpu()
    )
    drawn = synthesize(mine, aim, settings=settings, progress=False)
    end = as_tensors([drawn.image], "picture")[0]  # type: ignore[union-attr]
    scores = [_score(vlm, layer, end.to(vlm.device), exact, middle) for vlm in (mine, reference)]
    row["score"] = scores[0] - scores[1]
    return row


def _alike(one: torch.Tensor, other: torch.Tensor) -> float:
    """The cosine of two gradients; 0 for one that is zero or not finite."""
    value = float(F.cosine_similarity(one.flatten(), other.flatten(), dim=0))
    return value if value == value else 0.0


def _looked(
    vlm: VLM, layer: int, picture: torch.Tensor, towards: torch.Tensor, middle: torch.Tensor, taus: Sequence[float]
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Centred patches (n, d), and by temperature the score's gradient and the weights (n,), all on the CPU."""
    x = picture.detach().to(vlm.device).requires_grad_(vlm.passes_gradient)
    towards, middle = towards.to(vlm.device), middle.to(vlm.device)
    gradients, weights = [], []
    with torch.enable_grad():
        read = patches(vlm, x, layer)
        for tau in taus:
            pooled = pooled_scores(read[None], towards[None], middle[None], Attention(tau), cosine, vlm.grid, 1.0)
            weights.append(pooled[1][0, 0].detach().cpu())
            slope = torch.ones_like(x)
            if vlm.passes_gradient:
                (slope,) = torch.autograd.grad(pooled[0].sum(), x, retain_graph=True)
            gradients.append(slope.cpu())
    return (read[0] - middle).detach().cpu(), gradients, weights


def _score(vlm: VLM, layer: int, picture: torch.Tensor, towards: torch.Tensor, middle: torch.Tensor) -> float:
    with torch.no_grad():
        read = patches(vlm, picture, layer)[None]
    sides = (towards.to(vlm.device)[None], middle.to(vlm.device)[None])
    return float(pooled_scores(read, *sides, Attention(), cosine, vlm.grid, 1.0)[0])


def _section(vlm: VLM, kind: str, exact: bool, rows: list[dict[str, Any]]) -> Section:
    """The section of these rows."""
    least = {name: min(row[name] for row in rows) for name in ("patches", "word", "gradient", "gradient_small")}
    weights = max(row["weights"] for row in rows)
    measured = (
        f"cosine with float32 at least {least['patches']:.4f} for patches, {least['word']:.4f} for a word's vector, "
        f"{least['gradient']:.3f} for the gradient ({least['gradient_small']:.3f} at tau {TAU}); at tau {TAU} "
        f"{weights:.0%} of the attention lies elsewhere"
    )
    if exact:
        text = f"The model computes in {str(vlm.dtype)[6:]}. In {kind}: {measured}"
        return Section("numerics", "Numbers", PASS, text, rows=rows)
    wrong = [r["layer"] for r in rows if not r["gradient"] > GRADIENT[1] or not r["patches"] > 0.9]
    doubtful = [r["layer"] for r in rows if not r["gradient"] > GRADIENT[0] or not r["patches"] > 0.99]
    if wrong or doubtful:
        named = ", ".join(map(str, wrong or doubtful))
        advice = f"At layer {named} draw with dtype=torch.float32" + (
            ", or more views of a picture (batch=), which average the rounding out" if not wrong else ""
        )
        return Section("numerics", "Numbers", FAIL if wrong else UNSURE, f"In {kind}: {measured}", advice, rows)
    advice = (
        f"Small temperatures pick patches by rounding here: prefer tau 0.05 and above in {kind}"
        if weights > 0.25
        else ""
    )
    return Section("numerics", "Numbers", PASS, f"In {kind}: {measured}", advice, rows)
