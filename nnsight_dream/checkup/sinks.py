"""The section on sinks: image tokens that hold no place of the picture."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from ..engine.pooling import sinks
from ..models.reading import read_pictures
from ..synthesis.centres import centre
from .material import WORDS
from .section import PASS, UNSURE, Section

if TYPE_CHECKING:
    from .material import Material

#: A value so many times the median size of its token's is a massive activation (Sun et al. 2024, arXiv 2402.17762).
MASSIVE = 1000.0


def sink_tokens(given: Material) -> Section:
    """Patches far longer than their picture's median, where they are, and massive activations among their values."""
    rows = _rows(given)
    have = [row for row in rows if row["sinks"] > 0.001]
    massive = [row["layer"] for row in rows if row["massive"]]
    note = f"massive activations at layer {', '.join(map(str, massive))}" if massive else "no massive activations"
    if not have:
        text = f"No image token is much longer than the others of its picture, at any layer; {note}"
        return Section("sinks", "Sink tokens", PASS, text, "", rows)
    most = max(have, key=lambda row: row["sinks"])
    text = (
        f"{len(have)} of {len(rows)} layers have image tokens far longer than the others, most at layer {most['layer']}"
        f" ({most['sinks']:.1%} of them, up to {most['longest']:.0f} times the median); {note}"
    )
    advice = "Leave them out of a climb at these layers: settings.but(pooling=nd.WithoutSinks(nd.Attention(tau=...)))"
    return Section("sinks", "Sink tokens", UNSURE, text, advice, rows)


def _rows(material: Material) -> list[dict[str, Any]]:
    """By layer: share of sinks, the longest patch against the median, the place where most are, massive values."""
    vlm = material.vlm
    some = material.images(WORDS[: material.how_many(4, len(WORDS))])
    sites = [vlm.site(layer) for layer in range(1, vlm.layers + 1)]
    from ..io.pictures import as_tensors

    pictures = torch.cat(as_tensors([image for images in some.values() for image in images], "pictures"))
    with torch.no_grad():
        read = read_pictures(vlm, pictures.to(vlm.device), sites)
    rows = []
    for site in sites:
        patches = read[site].float()
        centred = patches - centre(vlm, site, material.centre)
        sink_mask, norms = sinks(centred), centred.norm(dim=-1)
        places = Counter(int(n) for n in sink_mask.nonzero()[:, 1])
        place, times = places.most_common(1)[0] if places else (None, 0)
        sizes = patches.abs()
        rows.append(
            {
                "layer": site.layer,
                "norm": float(patches.norm(dim=-1).median()),
                "sinks": float(sink_mask.float().mean()),
                "longest": float((norms / norms.median(-1, keepdim=True).values).max()),
                "place": "" if place is None else f"{place // vlm.grid[1]}, {place % vlm.grid[1]}",
                "pictures": times,
                "massive": int((sizes > MASSIVE * sizes.median(-1, keepdim=True).values).any(-1).sum()),
            }
        )
    return rows
