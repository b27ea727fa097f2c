"""The form of a family's record: what has to be known of a family of vision-language models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..engine.pixels import plain_pixels, stated

if TYPE_CHECKING:
    from ..engine.pixels import PixelFormat


def cells(config: Any, pixels: PixelFormat) -> tuple[int, int]:
    """(rows, columns) of the image tokens of a model that takes pictures of any whole number of cells."""
    return pixels.size[0] // pixels.cell, pixels.size[1] // pixels.cell


def first(value: Any) -> Any:
    """Of several results, such as (states, weights), the first; else the value itself."""
    return value[0] if isinstance(value, tuple) else value


CANVAS = 448  # the side in pixels of the pictures of arXiv 2601.08017, for models that take any size


RESIDUAL = {"resid_pre": ("", "input"), "resid_post": ("", "output")}


# blocks as Llama has them: two norms, each before its module
PLAIN_KINDS = {**RESIDUAL, "attn_out": ("self_attn", "output"), "mlp_out": ("mlp", "output")}


PLAIN_HOOKS = {
    "hook_resid_mid": ("post_attention_layernorm", "input"),
    "attn.hook_z": ("self_attn.o_proj", "input"),
    "mlp.hook_in": ("mlp", "input"),
    "mlp.hook_out": ("mlp", "output"),
}


def multimodal_types(ids: torch.Tensor, image: int) -> dict[str, torch.Tensor]:
    """Which of token ids (1, T) are a picture's, as Qwen and Gemma 4 want it."""
    return {"mm_token_type_ids": (ids == image).long()}


def stated_size(pixels: PixelFormat) -> dict[str, Any]:
    """Options of an image processor that takes a height and a width."""
    return {"size": dict(zip(("height", "width"), pixels.size, strict=True))}


@dataclass(frozen=True)
class Family:
    """One family of vision-language models, as facts.

    A config belongs to it by `model_types` and, where families share one, by the types of its `decoders` and `towers`.
    `root` is the module that takes token ids and pixels and has no head; `layers` the decoder's blocks.
    `kinds` maps a site kind to (module path below a block, "output" or "input"); `hooks` does so for other hooks of
    TransformerLens, by their names there. `states` takes (batch, tokens, width) out of what a block gives.

    `wrapped` is the text that the family's processor puts for one image: `{begin}`, `{image}` (repeated by the
    grid, rows joined by `between`) and `{end}` are the checkpoint's own tokens; `placeholder` is what its chat template
    writes there. `begin_id` and `end_id` name the config fields that hold the ids of the tokens around an image, if
    there are any. `tiles_behind` says that the processor puts a picture's tiles behind its whole view, which they
    cannot change and which alone is read here; `looks_ahead` that image tokens see the text behind them.
    `chat_template` serves checkpoints that have none. `probed` records were found by `probe.py`.

    `pixels` reads the numbers of the image processor (processor, config), `grid` the rows and columns of image tokens
    (config, numbers), `pack` makes the pixel inputs (pictures, numbers), `extra` the other inputs that depend on the
    token ids (ids, image id), `text` those of text alone (ids). `views` are the options with which the image
    processor makes one view of that size of a picture, and cuts nothing up; `seen` takes that view from what it makes.
    `encode` makes the image tokens of pixel inputs (root module, inputs) where the root's own way will not do;
    `resized` does so for pictures of another size than the tower's own, where the root refuses them;
    `surrogate` (root, inputs, temperature) does where no gradient passes the root's own way, if it is asked for.
    `stand_in` is a class of image processor with the same numbers that needs no torchvision, where the own does.
    `masks` says that the decoder takes ready attention masks as a dict by layer type, `positions` that it takes ready
    position ids; both are then made once. `overflows` says that activations exceed float16's largest number.
    """

    def __repr__(self) -> str:
        types = ", ".join(self.model_types)
        return f"<Family {self.name}: {types}; decoder blocks at {self.layers}, tower at {self.tower}>"

    name: str
    model_types: tuple[str, ...]
    root: str
    layers: str
    tower: str
    projector: str
    placeholder: str
    wrapped: str
    begin_id: str = ""
    end_id: str = ""
    grid: Callable[[Any, PixelFormat], tuple[int, int]] = cells
    pack: Callable[[torch.Tensor, PixelFormat], dict[str, torch.Tensor]] = plain_pixels
    extra: Callable[[torch.Tensor, int], dict[str, torch.Tensor]] = lambda ids, image: {}
    kinds: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    hooks: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    masks: bool = False
    positions: bool = False
    overflows: bool = False
    pixels: Callable[[Any, Any], PixelFormat] = stated
    views: Callable[[PixelFormat], dict[str, Any]] = lambda pixels: {}
    seen: Callable[[Any], Any] = lambda batch: batch
    encode: Callable[[Any, dict[str, torch.Tensor]], Any] | None = None
    resized: Callable[[Any, dict[str, torch.Tensor]], Any] | None = None
    surrogate: Callable[[Any, dict[str, torch.Tensor], float], Any] | None = None
    stand_in: str = ""
    text: Callable[[torch.Tensor], dict[str, torch.Tensor]] = lambda ids: {}
    states: Callable[[Any, Any], Any] = lambda value, config: first(value)
    decoders: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()
    between: str = ""
    tiles_behind: bool = False
    looks_ahead: bool = False
    chat_template: str | None = None
    probed: bool = False

    def place(self, kind: str) -> tuple[str, str]:
        """(module below a block, "output" or "input") that a site's kind names, whether or not it is there."""
        if kind in self.kinds:
            return self.kinds[kind]
        return self.hooks[kind] if kind in self.hooks else kind.rpartition(".")[::2]  # type: ignore[return-value]

    def kind_at(self, place: tuple[str, str]) -> str:
        """The kind of site at a place below a block."""
        named = (kind for kind, path in self.kinds.items() if path == place)
        return next(named, ".".join(filter(None, place)))
