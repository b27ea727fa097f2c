"""What to write for a setting that is a value with numbers of its own: not "fourier" but `nd.Fourier(224)`."""

from __future__ import annotations

import difflib
from typing import Any

from ..arguments import is_whole, shown

#: By setting what can be given, as it is written; the first goes for a bare number.
WRITTEN = {
    "canvas": ("nd.MultiResolution({n})", "nd.Pixels({n})", "nd.Fourier({n})", "nd.MACO({n})", "nd.Native()"),
    "pooling": ("nd.Attention()", "nd.Mean()", "nd.Max()"),
    "score": ("nnsight_dream.engine.pooling.cosine", "nnsight_dream.engine.pooling.dot"),
    "augment": ("nd.Shift()", "nd.Noise(0.2)", "nd.Scale(0.9, 1.1)", "nd.Rotate(5)"),
    "centre": ("nd.Grey()", "nd.NaturalNoise()", "nd.Pictures(...)", "a tensor (d,)"),
    "pattern": ("nd.Pattern()", "None"),
}


def mend(name: str, value: Any) -> str:
    """What was given for a setting, and what to write instead.

    >>> mend("canvas", "fourier")
    "canvas='fourier': a value is needed, not its name: canvas=nd.Fourier(224)"
    """
    number = value if name == "canvas" and is_whole(value) and value >= 8 else 224
    ways = [way.format(n=number) for way in WRITTEN[name]]
    begun = f"{name}={shown(value)}: a value is needed"
    names = {way.partition("(")[0].rpartition(".")[2].casefold(): way for way in ways}
    if isinstance(value, str):
        letters = "".join(c for c in value.casefold() if c.isalpha())
        near = difflib.get_close_matches(letters, [*names, "multires"], 1)
        if near:
            return f"{begun}, not its name: {name}={names.get(near[0], ways[0])}"
    if isinstance(value, type) and value.__name__.casefold() in names:
        return f"{begun}, not the class: {name}={names[value.__name__.casefold()]}"
    if name == "canvas" and is_whole(value):
        return f"{begun}, not its size: {name}={ways[0]}"
    return f"{begun}: {', '.join(ways[:-1])} or {ways[-1]}"
