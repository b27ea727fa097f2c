"""VLM: a vision-language model wrapped by nnsight, with what its family's record says about it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..state import changes, interventions
from ..state.calm import calm
from . import bridge, fingerprint, shown, templates
from .frozen import checkpointing, frozen
from .memo import Look, Memo
from .prompt import ImagePrompt, marks, prompt_of, question_of
from .sites import Site, find, module_path

if TYPE_CHECKING:
    import nnsight

    from ..engine.pixels import PixelFormat
    from .family import Family
    from .place import Remote


@dataclass(eq=False)
class VLM:
    """A vision-language model, ready to be read and climbed. Made by `load`.

    model      the nnsight model; trace it as you would any other
    hf         the Hugging Face module inside it, untouched; typed Any, as its submodules are its family's own
    processor  its processor, or None; `tokenizer` its tokenizer
    family     the record of facts about its family
    pixels     the numbers of its image processor
    straight_through   the temperature of a surrogate gradient, or None (see `load`)
    own_size   (height, width) in pixels of the checkpoint's own, where another was chosen
    checkpoint_tower   whether the vision tower's activations are computed anew in the backward pass (see `load`)
    id, revision   its name and commit, as far as known
    remote     where its jobs run, if not simply here (see `load`)
    bridge     the TransformerBridge that was handed in, or None; its hooks are in force
    memo       what is kept of it between calls
    """

    model: nnsight.NNsight
    hf: Any
    tokenizer: Any
    processor: Any
    family: Family
    pixels: PixelFormat
    id: str
    revision: str | None = None
    is_demo: bool = False
    first_layer: int = 1
    straight_through: float | None = None
    checkpoint_tower: bool = False
    own_size: tuple[int, int] | None = None
    remote: Remote | None = None
    bridge: Any = None
    memo: Memo = field(default_factory=Memo, repr=False)

    @property
    def config(self) -> Any:
        """The Hugging Face config."""
        return self.hf.config

    @property
    def chat_template(self) -> str | None:
        """The chat template in use now: the tokenizer's, else the processor's, else the family's.

        One that was set on the processor after loading goes before a tokenizer's that was left alone. Of several by
        name the one called "default". Raises ValueError where several have other names.
        """
        own, other = (getattr(x, "chat_template", None) for x in (self.tokenizer, self.processor))
        own_then, other_then = self.memo.templates or (own, other)
        if other is not other_then and own is own_then:
            own = None
        return templates.chosen(own or other) or self.family.chat_template

    @property
    def placeholder(self) -> str:
        """What the chat template writes for a picture."""
        begin, image, end = marks(self)
        return self.family.placeholder.format(begin=begin, image=image, end=end)

    @property
    def layers(self) -> int:
        """How many decoder blocks are loaded."""
        return len(self.hf.get_submodule(self.family.layers))  # type: ignore[arg-type]

    @property
    def width(self) -> int:
        """d_model: the width of the residual stream."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens."""
        return self.family.grid(self.config, self.pixels)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the model sees."""
        return self.pixels.size

    @property
    def device(self) -> torch.device:
        """Where token ids and pixels go: the device of the first parameter that is on one, and not off on the disk."""
        return next((p.device for p in self.hf.parameters() if not p.is_meta), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the weights."""
        return next(p.dtype for p in self.hf.parameters() if p.is_floating_point())

    @property
    def chosen(self) -> dict[str, Any]:
        """What was chosen that changes pictures: plain data, empty where all is the checkpoint's own way."""
        choices: dict[str, Any] = {} if self.own_size is None else {"image_size": list(self.image_size)}
        if self.straight_through is not None:
            choices["straight_through"] = self.straight_through
        if self.memo.template is not None and self.memo.template[0] != self.chat_template:  # set after loading
            choices["chat_template"] = hashlib.sha256(str(self.chat_template).encode()).hexdigest()[:24]
        return choices

    @property
    def passes_gradient(self) -> bool:
        """Whether a gradient passes from patches to pixels: not through a choice of words without straight_through=."""
        return self.family.surrogate is None or self.straight_through is not None

    @property
    def unproved(self) -> dict[str, str]:
        """What `check` cannot compare here, each with the reason; empty where all is proved."""
        reasons = {}
        if not callable(self.processor):
            reasons["image tokens"] = (
                "the text around image tokens is the record's own: this checkpoint's processor cannot be made without "
                "torchvision"
            )
        if self.family.stand_in == type(self.processor.image_processor).__name__:
            reasons["pixels"] = f"pixels are packed by the record: {self.family.stand_in} stands in for the processor"
        if self.remote is not None and self.remote.away:
            reasons["gradient"] = f"an ascent's first step proves it, on {self.remote}"
        if not self.passes_gradient:
            reasons["gradient"] = "none passes through the choice of words; straight_through= gives a surrogate"
        return reasons

    def __repr__(self) -> str:
        rows, cols = self.grid
        away = self.remote is not None and self.remote.away
        where = f"on {self.remote}" if away else f"{str(self.dtype)[6:]} on {self.device}"
        return (
            f"VLM({self.id}, {self.family.name}: {self.layers} layers of width {self.width}, {rows} x {cols} image "
            f"tokens from {self.image_size[0]} x {self.image_size[1]} px, {where})"
        )

    def _repr_html_(self) -> str:
        return shown.table(self)

    # -- sites ---------------------------------------------------------------------------------------------------

    def site(self, where: int | str | Site, kind: str | None = None) -> Site:
        """The site meant by a layer number, a TransformerLens or Hugging Face name, or a Site.

        Raises ValueError for a layer that is not there, a name that means nothing, or a module that does not exist.

        >>> import nnsight_dream as nd
        >>> vlm = nd.load("demo")
        >>> vlm.site("blocks.3.hook_resid_post") == vlm.site("model.language_model.layers.3.output") == vlm.site(4)
        True
        """
        bridge.follow(self)
        return find(self, where, kind)

    def _module_path(self, site: Site) -> tuple[str, str]:
        """(path of the module from the root of the Hugging Face model, "output" or "input")."""
        return module_path(self.hf, self.family, site)

    def hf_name(self, site: int | str | Site) -> str:
        """The Hugging Face name of a site, such as `model.language_model.layers.9.output`."""
        return ".".join(self._module_path(self.site(site)))

    def describe(self, site: int | str | Site) -> str:
        """A site under all its names."""
        site = self.site(site)
        return f"layer {site.layer} ({site.tl_name}, {self.hf_name(site)})"

    def width_at(self, site: int | str | Site) -> int:
        """The width of the activation at a site: d_model, except inside a block."""
        site = self.site(site)
        if site.kind in self.family.kinds:
            return self.width
        path, side = self._module_path(site)
        module = self.hf.get_submodule(path)
        if isinstance(module, torch.nn.Linear):
            return module.in_features if side == "input" else module.out_features
        if site.kind not in self.memo.widths:  # other modules do not tell: run one token
            from .reading import read_text

            token = torch.ones(1, 1, dtype=torch.long)
            self.memo.widths[site.kind] = read_text(self, token, token, [site])[site].shape[-1]
        return self.memo.widths[site.kind]

    # -- pictures ------------------------------------------------------------------------------------------------

    def pack(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pixel inputs of the model for pictures (B, 3, H, W), RGB in [0, 1], of any size; differentiable.

        Noise may lead out of [0, 1]; nothing of such a picture is clipped (see `pixels.resize`). Raises ValueError for
        another shape.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(f"pictures must be (batch, 3, height, width); got {tuple(pictures.shape)}")
        with calm():
            return {k: self._to(v) for k, v in self.family.pack(pictures.to(self.device), self.pixels).items()}

    def _to(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)

    @property
    def image_prompt(self) -> ImagePrompt:
        """What stands before the picture, by the model's own chat template, up to the last image token."""
        if self.memo.assumed_prompt is not None:
            return self.memo.assumed_prompt
        now = (self.chat_template, self.pixels)  # what the user may change meanwhile
        if self.memo.prompt is None or self.memo.prompt[0] != now:
            with calm():
                self.memo.prompt = now, prompt_of(self)
        return self.memo.prompt[1]

    def question(self, image: Any, text: str) -> dict[str, torch.Tensor]:
        """The whole model's inputs for one PIL image and a user's words about it, up to where the answer begins.

        Written by the same template as `image_prompt`, on the model's device and in its type; for `vlm.hf(**inputs)`
        or `vlm.hf.generate(**inputs)`. Raises ValueError for a template that writes no picture.
        """
        with calm():
            return {k: self._to(v) for k, v in question_of(self, image, text).items()}

    # -- manners -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """This thread alone uses the model, and torch is as if nothing had been set (see `calm`); for the block only.

        Other threads wait, so that each gets what it would have got by itself. What weights, edits and hooks the model
        has is looked at once in a block. Raises ValueError for edits that no reading would replay.
        """
        if self.remote is not None and self.remote.away:
            with calm():
                yield
            return
        with changes.lock_of(self.hf), calm(), bridge.running(self.family):
            outermost = self.memo.look is None
            self.memo.look = self.memo.look or Look()
            try:
                if outermost:
                    self._take_edits()
                yield
            finally:
                if outermost:
                    self.memo.look = None

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """As `alone`, with weights without gradients and the model in evaluation mode; then all as it was."""
        with self.alone(), frozen(self.hf), checkpointing(self.tower_layers if self.checkpoint_tower else []):
            yield

    @property
    def tower_layers(self) -> list[torch.nn.Module]:
        """The vision tower's layers that can be computed anew in the backward pass."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        tower = self.hf.get_submodule(self.family.tower) if self.family.tower else torch.nn.Identity()
        return [m for m in tower.modules() if isinstance(m, GradientCheckpointingLayer)]

    def fingerprint(self, site: int | str | Site) -> str:
        """A hash of what determines text activations at a site: config, template, and what `weights_tag` looks at.

        Of the weights those of the decoder alone.
        """
        return fingerprint.of_text(self, self.site(site).layer)

    def weights_tag(self, site: int | str | Site) -> str:
        """A hash of what a picture's activations at a site depend on: every value of the weights up to its block.

        Edits stored on the nnsight model and hooks are part of it where there are any, and a chat template that was set
        after loading. It is worked out anew when a weight's version counter or place in memory moves. Writes under
        `.data` move neither: they are seen in models of up to 64 MiB, and in larger ones where they change one of 64
        values of a tensor. Write to the weight itself, under torch.no_grad(), to be sure.
        """
        return fingerprint.of_pictures(self, self.site(site).layer)

    def state_of_changes(self) -> tuple[int, ...]:
        """What edits and hooks there are, each by itself."""
        with self.alone():
            return tuple(map(id, [*self.edits, *(hook for _, _, hook in interventions.hooks(self.hf))]))

    def _take_edits(self) -> None:
        bridge.follow(self)
        if (whole := self.model.__dict__.get("_whole")) is not None:  # what peft wrapped shares those of the whole
            self.model.__dict__["_edits"] = whole._edits
        interventions.refuse_lost_edits(self.model, self.family.root)

    @property
    def edits(self) -> list[Any]:
        """The edits stored on the nnsight model, which every reading and ascent replays as its own traces do."""
        return interventions.edits(self.model, self.family.root)

    def refuse_edits(self, what: str) -> None:
        """Raise ValueError where there are edits, which `what` would leave out."""
        if self.edits:
            raise ValueError(
                f"{what} runs {self.id} without nnsight, which would leave out its {len(self.edits)} edit(s): change "
                "the weights or register a hook instead, or call vlm.model.clear_edits() for the model as it was"
            )
