"""Sites: which activation, at which tokens; one thing under its three names.

`layer` counts from 1 as in arXiv 2601.08017: layer L is the residual stream after L blocks. Hook names count from 0:
layer 10 is TransformerLens' `blocks.9.hook_resid_post` and Hugging Face's `model.language_model.layers.9.output`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from ..arguments import is_whole, plain, shown

KINDS = ("resid_pre", "attn_out", "mlp_out", "resid_post")


_TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.hook_(\w+)")


_HUGGING_FACE = re.compile(r"((?:[\w.]+\.)?layers)\.(\d+)(?:\.(.+?))??(?:\.(output|input))?")


@dataclass(frozen=True)
class Site:
    """One activation: after, or inside, one block of the decoder, at image tokens.

    layer   blocks counted from 1
    kind    "resid_post" (after the block), "resid_pre" (before it), "attn_out", "mlp_out", or a module below the
            block with its side, such as "self_attn.o_proj.input"
    tokens  "image" for all image tokens, or a tuple of their indices, row by row from 0; it bears on pictures only
    """

    _ships = ("__eq__", "__hash__")

    layer: int
    kind: str = "resid_post"
    tokens: str | tuple[int, ...] = "image"

    def __post_init__(self) -> None:
        if not is_whole(self.layer) or not isinstance(self.kind, str) or not self.kind:
            raise TypeError(
                f"Site(layer={shown(self.layer)}, kind={shown(self.kind)}): a layer is a whole number, a kind the name "
                f"of a place such as 'resid_post'; vlm.site understands other names of sites"
            )
        object.__setattr__(self, "layer", int(plain(self.layer)))
        tokens = self.tokens.tolist() if hasattr(self.tokens, "tolist") else self.tokens
        if tokens is not self.tokens or isinstance(tokens, tuple):  # an array, or a tuple of NumPy's integers
            many = isinstance(tokens, (list, tuple))
            object.__setattr__(self, "tokens", tuple(map(plain, tokens)) if many else tokens)

    def __eq__(self, other: object) -> bool:
        if type(other).__name__ != "Site":
            return NotImplemented
        return vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.layer, self.kind, self.tokens))

    @property
    def tl_name(self) -> str:
        """TransformerLens' name; a module it has no hook for keeps its own."""
        if self.kind in KINDS:
            return f"blocks.{self.layer - 1}.hook_{self.kind}"
        return f"blocks.{self.layer - 1}.{self.kind}"

    @property
    def order(self) -> tuple[int, int]:
        """Sites sort by it into the order in which a forward pass reaches them (for the kinds by name)."""
        return self.layer, KINDS.index(self.kind) if self.kind in KINDS else 1

    def __str__(self) -> str:
        return f"layer {self.layer} ({self.tl_name})"


def parse(name: str, kinds: dict[str, tuple[str, str]], stack: str) -> Site:
    """The site that a TransformerLens or Hugging Face name means; `kinds` and `stack`, its layers, are a family's own.

    Raises ValueError, with the nearest valid name, for a name that is neither.
    """
    if match := _TRANSFORMER_LENS.fullmatch(name):
        layer, kind = int(match[1]) + 1, match[2]
        if kind not in kinds:
            near = difflib.get_close_matches(kind, kinds, 1, 0.0)[0]
            raise ValueError(
                f"site {name!r}: no hook {kind!r} here; allowed: {', '.join(f'hook_{k}' for k in kinds)}; "
                f"did you mean 'blocks.{match[1]}.hook_{near}'?"
            )
        return Site(layer, kind)
    if match := _HUGGING_FACE.fullmatch(name):
        layer, module, side = int(match[2]) + 1, match[3] or "", match[4] or "output"
        if not f".{stack}".endswith(f".{match[1]}"):
            raise ValueError(
                f"site {name!r}: {match[1]} are not the decoder layers; did you mean '{stack}{name[len(match[1]) :]}'?"
            )
        for kind, path in kinds.items():
            if path == (module, side):
                return Site(layer, kind)
        if module:
            return Site(layer, f"{module}.{side}")
    raise ValueError(
        f"site {shown(name)} is not understood; give a layer number from 1, a TransformerLens name such as "
        "'blocks.9.hook_resid_post', or a Hugging Face name such as 'model.language_model.layers.9.output'"
    )
