"""Sites: which activation, at which tokens; one thing under its three names.

`layer` counts from 1 as in arXiv 2601.08017: layer L is the residual stream after L blocks. Hook names count from 0:
layer 10 is TransformerLens' `blocks.9.hook_resid_post` and Hugging Face's `model.language_model.layers.9.output`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..arguments import is_whole, plain, shown
from . import checked

if TYPE_CHECKING:
    import torch

    from .family import Family
    from .vlm import VLM

KINDS = ("resid_pre", "attn_out", "mlp_out", "resid_post")


_TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.((?:\w+\.)*hook_\w+)")


_BLOCKS = {"hook_in": ("", "input"), "hook_out": ("", "output")}  # as TransformerLens 3 calls them itself


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


def parse(name: str, family: Family) -> Site:
    """The site of a model of a family that a TransformerLens or Hugging Face name means.

    Raises ValueError, with the nearest valid name, for a name that is neither.
    """
    if match := _TRANSFORMER_LENS.fullmatch(name):
        layer, hook = int(match[1]) + 1, match[2]
        places = {**_BLOCKS, **{f"hook_{kind}": place for kind, place in family.kinds.items()}, **family.hooks}
        if hook not in places:
            hooks = [key for key in places if key.rpartition(".")[2].startswith("hook_")]
            near = difflib.get_close_matches(hook, hooks, 5, 0.0)
            raise ValueError(
                f"site {name!r}: no hook {hook.removeprefix('hook_')!r} here; the nearest are {', '.join(near)}; "
                f"did you mean 'blocks.{match[1]}.{near[0]}'?"
            )
        return Site(layer, family.kind_at(places[hook]))
    if match := _HUGGING_FACE.fullmatch(name):
        layer, module, side = int(match[2]) + 1, match[3] or "", match[4] or "output"
        if not f".{family.layers}".endswith(f".{match[1]}"):
            raise ValueError(
                f"site {name!r}: {match[1]} are not the decoder layers; did you mean "
                f"'{family.layers}{name[len(match[1]) :]}'?"
            )
        return Site(layer, family.kind_at(family.hooks.get(f"{module}.{side}".lstrip("."), (module, side))))
    raise ValueError(
        f"site {shown(name)} is not understood; give a layer number from 1, a TransformerLens name such as "
        "'blocks.9.hook_resid_post', or a Hugging Face name such as 'model.language_model.layers.9.output'"
    )


def find(vlm: VLM, where: int | str | Site, kind: str | None = None) -> Site:
    """The site of a model that a layer number, a name or a Site means; see `VLM.site`.

    Raises TypeError for several sites or a kind that is no name, ValueError for a layer, image token or module that is
    not there and for a name that means nothing.
    """
    family = vlm.family
    if kind is not None and not isinstance(kind, str):
        raise TypeError(f"kind={shown(kind)}: the name of a kind is needed: {', '.join(family.kinds)}")
    wanted, single = checked.layers(where)
    if not single:
        raise TypeError(f"a site is a layer number from 1, a name or a Site; got several: {shown(where)}")
    where = wanted[0]
    if isinstance(where, str) and where.isdecimal():
        where = int(where)
    if isinstance(where, int):
        site = Site(where + 1 - vlm.first_layer, kind or "resid_post")
    else:
        site = _named(vlm, where) if isinstance(where, str) else where
        if kind is not None and kind != site.kind:
            site = Site(site.layer, kind, site.tokens)
    if not 1 <= site.layer <= vlm.layers:
        raise ValueError(_not_there(vlm, site.layer))
    count = vlm.grid[0] * vlm.grid[1]
    if site.tokens != "image" and not _are_places(site.tokens, count):
        raise ValueError(
            f"tokens={site.tokens!r}: allowed are 'image' or a non-empty tuple of indices from 0 to {count - 1}"
        )
    module_path(vlm.hf, family, site)
    if vlm.bridge is not None:
        from .bridge import refuse_unfit

        refuse_unfit(vlm, site)
    return site


def _named(vlm: VLM, name: str) -> Site:
    """The site that a name means."""
    if vlm.bridge is not None:
        from .bridge import refuse_outside

        refuse_outside(vlm, name)
    return parse(name, vlm.family)


def _not_there(vlm: VLM, layer: int) -> str:
    """The message for a layer, counted from 1, that a model does not have."""
    back = vlm.first_layer - 1  # from our count to the user's
    first, last, whole = 1 + back, vlm.layers + back, vlm.memo.checkpoint_layers or vlm.layers
    cut = layer > vlm.layers != whole
    return (
        f"layer {layer + back} is not in this model: it has layers {first} to {last}"
        + (f" (embeddings are kind='resid_pre' of layer {first})" if layer == 0 else "")
        + f"; the nearest is layer={first if layer < 1 else last}"
        + (f". The checkpoint has {whole}; load with a larger up_to_layer=" if cut else "")
    )


def _are_places(tokens: object, count: int) -> bool:
    return isinstance(tokens, tuple) and bool(tokens) and all(isinstance(t, int) and 0 <= t < count for t in tokens)


def module_path(hf: torch.nn.Module, family: Family, site: Site) -> tuple[str, str]:
    """(path of a site's module from the root of the Hugging Face model, "output" or "input").

    Raises ValueError, with the nearest names, for a kind that is no module of the block.
    """
    module, side = family.place(site.kind)
    block = f"{family.layers}.{site.layer - 1}"
    names = [name for name, _ in hf.get_submodule(block).named_modules()]
    if side not in ("output", "input") or module not in names:
        allowed = [*family.kinds, *(f"{n}.output" for n in names if n), *(f"{n}.input" for n in names if n)]
        near = difflib.get_close_matches(site.kind, allowed, 3, 0.0)
        raise ValueError(
            f"kind={shown(site.kind)} names nothing below {block}; allowed are {', '.join(family.kinds)} or a "
            f"module of the block with '.output' or '.input'; the nearest are {', '.join(near)}"
        )
    return (f"{block}.{module}" if module else block), side
