"""A model as a table of its layers and sites, for notebooks."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .vlm import VLM


def table(vlm: VLM) -> str:
    """HTML: what the model is, and the names of each kind of site; `layer=` is any of the numbers."""
    names = []
    for kind in vlm.family.kinds:
        site = vlm.site(1, kind)
        names.append(
            (site.tl_name.replace("blocks.0.", "blocks.{n-1}."), vlm.hf_name(site).replace(".0.", ".{n-1}.", 1))
        )
    rows, columns = vlm.grid
    height, width = vlm.image_size
    facts = [
        ("family", vlm.family.name),
        ("layers", f"1 to {vlm.layers} (layer={vlm.first_layer} is the first block), width {vlm.width}"),
        ("a picture", f"{rows} x {columns} image tokens from {height} x {width} px"),
        ("numbers", f"{str(vlm.dtype)[6:]} on {vlm.device}" + (f", remote on {vlm.remote}" if vlm.remote else "")),
        *((f"not checked: {what}", why) for what, why in vlm.unproved.items()),
    ]
    fact_rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in facts)
    sites = "".join(
        f"<tr><td>{html.escape(kind)}</td><td><code>{html.escape(a)}</code></td><td><code>{html.escape(b)}</code></td></tr>"
        for kind, (a, b) in zip(vlm.family.kinds, names, strict=True)
    )
    return (
        f"<b>{html.escape(vlm.id)}</b><table>{fact_rows}</table>"
        f"<table><tr><th>site</th><th>TransformerLens, at layer n</th><th>Hugging Face</th></tr>{sites}</table>"
    )
