"""VLM: a vision-language model in nnsight's hands, with what its family's record says about it."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint

from . import arguments, changes, devices, hub, templates
from .calm import calm, calmly
from .checkpoints import (
    default_dtype,
    from_checkpoint,
    headless,
    needed_files,
    placeless,
    refuse_half,
    refuse_missing,
)
from .families import Family, family_of
from .nnsight_import import import_nnsight
from .pixels import PixelFormat
from .sites import Site, parse

if TYPE_CHECKING:
    import nnsight

    from .remote import Remote


@dataclass(frozen=True)
class ImagePrompt:
    """The token ids (T,) that stand before and at one picture: a user's turn up to the last image token.

    Later tokens never change earlier ones, so nothing after the picture is run. `positions` (n,) are the image
    tokens' places, row by row; `extra` are the other inputs that go with the ids.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    extra: dict[str, torch.Tensor]
    text: str


@dataclass(eq=False)
class VLM:
    """A vision-language model, ready to be read and climbed. Made by `load`.

    model      the nnsight model; trace it as you would any other
    hf         the Hugging Face module inside it, untouched
    processor  its processor, or None; `tokenizer` its tokenizer
    family     the record of facts about its family
    pixels     the numbers of its image processor
    straight_through   the temperature of a surrogate gradient, or None (see `load`)
    compiled   the backend of torch.compile that ascents run, or None (see `load`)
    own_size   (height, width) in pixels of the checkpoint's own, where another was chosen
    checkpoint_tower   whether the vision tower's activations are computed anew in the backward pass (see `load`)
    id, revision   its name and commit, as far as known
    remote     where its jobs run, if not simply here (see `load`)
    """

    model: nnsight.NNsight
    hf: torch.nn.Module
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
    compiled: str | None = None
    remote: Remote | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

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
        own_then, other_then = self._cache.get("templates", (own, other))
        if other is not other_then and own is own_then:
            own = None
        return templates.chosen(own or other) or self.family.chat_template

    @property
    def placeholder(self) -> str:
        """What the chat template writes for a picture."""
        begin, image, end = _marks(self)
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
        found: dict[str, Any] = {} if self.own_size is None else {"image_size": list(self.image_size)}
        if self.straight_through is not None:
            found["straight_through"] = self.straight_through
        if self._cache.get("template", self.chat_template) != self.chat_template:  # set after loading
            found["chat_template"] = hashlib.sha256(str(self.chat_template).encode()).hexdigest()[:24]
        return found

    @property
    def passes_gradient(self) -> bool:
        """Whether a gradient passes from patches to pixels: not through a choice of words without straight_through=."""
        return self.family.surrogate is None or self.straight_through is not None

    @property
    def unproved(self) -> dict[str, str]:
        """What `check` cannot compare here, each with the reason; empty where all is proved."""
        found = {}
        if not callable(self.processor):
            found["image tokens"] = (
                "the text around image tokens is the record's own: this checkpoint's processor cannot be made without "
                "torchvision"
            )
        if self.family.stand_in == type(self.processor.image_processor).__name__:
            found["pixels"] = f"pixels are packed by the record: {self.family.stand_in} stands in for the processor"
        if self.remote is not None and self.remote.away:
            found["gradient"] = f"an ascent's first step proves it, on {self.remote}"
        if not self.passes_gradient:
            found["gradient"] = "none passes through the choice of words; straight_through= gives a surrogate"
        return found

    def __repr__(self) -> str:
        rows, cols = self.grid
        away = self.remote is not None and self.remote.away
        where = f"on {self.remote}" if away else f"{str(self.dtype)[6:]} on {self.device}"
        return (
            f"VLM({self.id}, {self.family.name}: {self.layers} layers of width {self.width}, {rows} x {cols} image "
            f"tokens from {self.image_size[0]} x {self.image_size[1]} px, {where})"
        )

    # -- sites ---------------------------------------------------------------------------------------------------

    def site(self, where: int | str | Site, kind: str | None = None) -> Site:
        """The site meant by a layer number, a TransformerLens or Hugging Face name, or a Site.

        Raises ValueError for a layer that is not there, a name that means nothing, or a module that does not exist.

        >>> import nnsight_dream as nd
        >>> vlm = nd.load("demo")
        >>> vlm.site("blocks.3.hook_resid_post") == vlm.site("model.language_model.layers.3.output") == vlm.site(4)
        True
        """
        if kind is not None and not isinstance(kind, str):
            raise TypeError(
                f"kind={arguments.shown(kind)}: the name of a kind is needed: {', '.join(self.family.kinds)}"
            )
        wanted, single = arguments.layers(where)
        if not single:
            raise TypeError(f"a site is a layer number from 1, a name or a Site; got several: {arguments.shown(where)}")
        where = wanted[0]
        if isinstance(where, str) and where.isdecimal():
            where = int(where)
        kinds = dict(self.family.kinds)
        if isinstance(where, int):
            site = Site(where + 1 - self.first_layer, kind or "resid_post")
        else:
            site = parse(where, kinds, self.family.layers) if isinstance(where, str) else where
            if kind is not None and kind != site.kind:
                site = Site(site.layer, kind, site.tokens)
        if not 1 <= site.layer <= self.layers:
            back = self.first_layer - 1  # from our count to the user's
            first, last = 1 + back, self.layers + back
            raise ValueError(
                f"layer {site.layer + back} is not in this model: it has layers {first} to {last}"
                + (f" (embeddings are kind='resid_pre' of layer {first})" if site.layer == 0 else "")
                + f"; the nearest is layer={first if site.layer < 1 else last}"
                + (self._cut_note() if site.layer > self.layers else "")
            )
        if site.tokens != "image":
            self._check_tokens(site.tokens)
        self._module_path(site)
        return site

    def _cut_note(self) -> str:
        whole = self._cache.get("layers in the checkpoint", self.layers)
        return "" if whole == self.layers else f". The checkpoint has {whole}; load with a larger up_to_layer="

    def _check_tokens(self, tokens: Any) -> None:
        n = self.grid[0] * self.grid[1]
        ok = isinstance(tokens, tuple) and tokens and all(isinstance(t, int) and 0 <= t < n for t in tokens)
        if not ok:
            raise ValueError(
                f"tokens={tokens!r}: allowed are 'image' or a non-empty tuple of indices from 0 to {n - 1}"
            )

    def _module_path(self, site: Site) -> tuple[str, str]:
        """(path of the module from the root of the Hugging Face model, "output" or "input")."""
        kinds = self.family.kinds
        module, side = kinds[site.kind] if site.kind in kinds else site.kind.rpartition(".")[::2]
        block = f"{self.family.layers}.{site.layer - 1}"
        names = [name for name, _ in self.hf.get_submodule(block).named_modules()]
        if side not in ("output", "input") or module not in names:
            allowed = [*kinds, *(f"{n}.output" for n in names if n), *(f"{n}.input" for n in names if n)]
            near = difflib.get_close_matches(site.kind, allowed, 3, 0.0)
            raise ValueError(
                f"kind={arguments.shown(site.kind)} names nothing below {block}; allowed are {', '.join(kinds)} or a "
                f"module of the block with '.output' or '.input'; the nearest are {', '.join(near)}"
            )
        return (f"{block}.{module}" if module else block), side

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
        if ("width", site.kind) not in self._cache:  # other modules do not tell: run one token
            from .trace import read_text

            one = torch.ones(1, 1, dtype=torch.long)
            self._cache["width", site.kind] = read_text(self, one, one, [site])[site].shape[-1]
        return int(self._cache["width", site.kind])

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
        kept = self._cache.get("prompt")
        if isinstance(kept, ImagePrompt):  # one that was assumed, where there is no tokenizer
            return kept
        now = (self.chat_template, self.pixels)  # what the user may change meanwhile
        if kept is None or kept[0] != now:
            with calm():
                kept = self._cache["prompt"] = (now, _image_prompt(self))
        return kept[1]

    def question(self, image: Any, text: str) -> dict[str, torch.Tensor]:
        """The whole model's inputs for one PIL image and a user's words about it, up to where the answer begins.

        Written by the same template as `image_prompt`, on the model's device and in its type; for `vlm.hf(**inputs)`
        or `vlm.hf.generate(**inputs)`. Raises ValueError for a template that writes no picture.
        """
        with calm():
            return {k: self._to(v) for k, v in _question(self, image, text).items()}

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
        with changes.lock_of(self.hf), calm():
            outermost = "looked" not in self._cache
            self._cache.setdefault("looked", {})
            try:
                if outermost:
                    self._take_edits()
                yield
            finally:
                if outermost:
                    del self._cache["looked"]

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """As `alone`, with weights without gradients and the model in evaluation mode; then all as it was."""
        with self.alone(), _frozen(self.hf), self._checkpointing():
            yield

    @contextlib.contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """The tower's layers keep their inputs alone, if that was asked for; as they were after the block."""
        layers = self.tower_layers if self.checkpoint_tower else []
        names = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
        before = [(layer, {n: layer.__dict__[n] for n in names if n in layer.__dict__}) for layer in layers]
        for layer in layers:  # they look at their own mode alone, and modules within keep theirs
            layer.__dict__.update(training=True, gradient_checkpointing=True, _gradient_checkpointing_func=_anew)
        try:
            yield
        finally:
            for layer, own in before:
                for n in names:
                    layer.__dict__.pop(n, None)
                layer.__dict__.update(own)

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
        layer = self.site(site).layer
        if self.remote is not None and self.remote.away:
            return hashlib.sha256(f"{self.remote} {self.id} {self.revision} {layer}".encode()).hexdigest()[:24]
        text = self.config.get_text_config().to_dict()
        told = {k: v for k, v in text.items() if k not in ("num_hidden_layers", "layer_types", "_name_or_path")}
        digest = hashlib.sha256(repr(sorted(told.items(), key=str)).encode())
        digest.update(str(self.chat_template).encode())
        stack = self.family.layers.rpartition(".")[0]
        digest.update(self._weights(layer, f"{stack}." if stack else ""))
        return digest.hexdigest()[:24]

    def weights_tag(self, site: int | str | Site) -> str:
        """A hash of what a picture's activations at a site depend on: every value of the weights up to its block.

        Edits stored on the nnsight model and hooks are part of it where there are any, and a chat template that was set
        after loading. It is worked out anew when a weight's version counter or place in memory moves. Writes under
        `.data` move neither: they are seen in models of up to 64 MiB, and in larger ones where they change one of 64
        values of a tensor. Write to the weight itself, under torch.no_grad(), to be sure.
        """
        if self.remote is not None and self.remote.away:  # a name is all that is known of weights that are elsewhere
            return hashlib.sha256(f"remote {self.id} {self.revision}".encode()).hexdigest()[:24]
        digest = hashlib.sha256(self._weights(self.site(site).layer))
        if "chat_template" in self.chosen:
            digest.update(self.chosen["chat_template"].encode())
        return digest.hexdigest()[:24]

    def _weights(self, layer: int, below: str = "") -> bytes:
        """A hash of weights up to a block, of edits and of hooks; looked at once in a block of `alone`."""
        with self.alone():
            looked = self._cache["looked"]
            if (layer, below) not in looked:
                looked[layer, below] = self._look(layer, below)
            return looked[layer, below]

    def _look(self, layer: int, below: str) -> bytes:
        stack = self.family.layers
        over = (f"{stack.rpartition('.')[0]}.norm.", "lm_head.")
        behind = {f"{stack}.{i}" for i in range(layer, self.layers)}
        names = changes.stored(
            self.hf
        )  # what a checkpoint holds: others differ from version to version of transformers
        names = [n for n in names if n.startswith(below) and not n.startswith(over)]
        names = [n for n in names if ".".join(n.split(".")[: stack.count(".") + 2]) not in behind]
        seen = self._cache["looked"].setdefault("names", set())
        changes.digests(self.hf, [n for n in names if n not in seen])
        seen.update(names)
        digest = hashlib.sha256()
        for name, value in sorted(changes.digests(self.hf, names, look=False).items()):
            digest.update(name.encode() + value)
        for name, weight in changes.packed(self.hf):
            digest.update(name.encode() + changes.of_tensor(weight))
        digest.update(self._changed())
        return digest.digest()

    def _changed(self) -> bytes:
        """A hash of edits and hooks; b"" where there are none."""
        return changes.of_edits(self.edits) + changes.of_hooks(self.hf)

    def state_of_changes(self) -> tuple[int, ...]:
        """What edits and hooks there are, each by itself."""
        with self.alone():
            return tuple(map(id, [*self.edits, *(hook for _, _, hook in changes.hooks(self.hf))]))

    def _take_edits(self) -> None:
        if (whole := self.model.__dict__.get("_whole")) is not None:  # what peft wrapped shares those of the whole
            self.model.__dict__["_edits"] = whole._edits
        if lost := changes.lost_edits(self.model, self.family.root):
            raise ValueError(
                f"an edit is stored on {lost[0]}, and nnsight replays it in traces of that module alone, so that "
                "nothing read of this model would show it. Store it on the model itself, with model.edit(), "
                f"and call model.get({lost[0].partition('.')[2]!r}).clear_edits()"
            )

    @property
    def edits(self) -> list[Any]:
        """The edits stored on the nnsight model, which every reading and ascent replays as its own traces do."""
        return changes.edits(self.model, self.family.root)

    def refuse_edits(self, what: str) -> None:
        """Raise ValueError where there are edits, which `what` would leave out."""
        if self.edits:
            raise ValueError(
                f"{what} runs {self.id} without nnsight, which would leave out its {len(self.edits)} edit(s): change "
                "the weights or register a hook instead, or call vlm.model.clear_edits() for the model as it was"
            )

    def kept(self, shelf: str, site: Site) -> dict[Any, Any]:
        """What is kept of a site on a shelf, by keys that begin with the site; emptied when the model has changed.

        It changes with weights, edits, hooks (see `weights_tag`) and the chat template.
        """
        found: dict[Any, Any] = self._cache.setdefault(shelf, {})
        seen = self._cache.setdefault("states", {})
        others = changes.digests(self.hf, changes.derived(self.hf)) if self.remote is None else {}
        now = (self.weights_tag(site), b"".join(others.values())), self.image_prompt
        then = seen.get((shelf, site))
        if then is not None and (then[0] != now[0] or then[1] is not now[1]):
            for key in [key for key in found if key[0] == site]:
                found.pop(key, None)
        seen[shelf, site] = now
        return found


@contextlib.contextmanager
def _frozen(module: torch.nn.Module) -> Iterator[None]:
    wanted = [p for p in module.parameters() if p.requires_grad and not p.is_inference()]
    training = [m for m in module.modules() if m.training]
    for p in wanted:
        p.requires_grad_(False)
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
        for m in training:
            m.training = True


def _anew(layer: Any, *args: Any) -> Any:
    """A layer's forward, of which only the inputs are kept; frozen as the first time, whenever it is done again."""
    module = layer.args[0] if layer.args else layer.func.__self__  # transformers before 5.22 binds it
    return torch.utils.checkpoint.checkpoint(
        layer,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,  # no chance is at work in a model in evaluation mode
        context_fn=lambda: (contextlib.nullcontext(), _frozen(module)),
    )


def _unnamed(hf: torch.nn.Module) -> str:
    """A name for a model that came without one: its class, and what tells it from others of its class."""
    digest = hashlib.sha256()
    for name, weight in hf.named_parameters():
        told = f"{name} {tuple(weight.shape)} {weight.dtype}".encode()
        digest.update(told + changes.spread(changes.values(hf, name, weight), 4).cpu().numpy().tobytes())
    return f"{type(hf).__name__}-{digest.hexdigest()[:8]}"


def _marks(vlm: VLM) -> tuple[str, str, str]:
    """The tokens that begin, hold and end a picture; nothing for those that a family has not."""
    fields = (vlm.family.begin_id, "image_token_id", vlm.family.end_id)
    begin, image, end = (vlm.tokenizer.convert_ids_to_tokens(getattr(vlm.config, f)) if f else "" for f in fields)
    return begin, image, end


def _picture_turn(vlm: VLM, text: str = "", answer: bool = False) -> str:
    """A user's turn of one picture and a text, by the chat template."""
    template = vlm.chat_template
    form = templates.picture_form(vlm.tokenizer, template, vlm.placeholder)
    return templates.written(vlm.tokenizer, template, text, form, vlm.placeholder, answer)


def _question(vlm: VLM, image: Any, text: str) -> dict[str, torch.Tensor]:
    """Inputs of a picture and words: the processor's own, or the record's where there is no whole processor."""
    bare = (
        vlm.chat_template == vlm.family.chat_template
    )  # stands for what a processor writes around the words by itself
    from .pictures import as_image, as_tensors

    if callable(vlm.processor):
        told: dict[str, Any] = {} if bare else {"add_special_tokens": False}
        whole = vlm.placeholder + text if bare else _picture_turn(vlm, text, answer=True)
        views = vlm.family.views(vlm.pixels)
        made = vlm.processor(text=[whole], images=[[as_image(image)]], return_tensors="pt", **told, **views)
        return {k: v for k, v in made.items() if isinstance(v, torch.Tensor)}
    ids = torch.tensor(
        vlm.tokenizer(_wrapped(vlm, _picture_turn(vlm, text, answer=True)), add_special_tokens=False).input_ids
    )
    (picture,) = as_tensors(image, "image")
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], **vlm.pack(picture)}
    return inputs | vlm.family.extra(ids[None], vlm.config.image_token_id)


def _wrapped(vlm: VLM, text: str) -> str:
    """A text in which the placeholder of a picture is replaced by all of its tokens."""
    rows, cols = vlm.grid
    begin, image, end = _marks(vlm)
    tokens = vlm.family.between.join([image * cols] * rows)
    return text.replace(vlm.placeholder, vlm.family.wrapped.format(begin=begin, image=tokens, end=end))


def _image_prompt(vlm: VLM) -> ImagePrompt:
    family, image_id = vlm.family, vlm.config.image_token_id
    text = _wrapped(vlm, _picture_turn(vlm))
    ids = torch.tensor(vlm.tokenizer(text, add_special_tokens=False)["input_ids"])
    places = (ids == image_id).nonzero().flatten()
    if len(places) == 0:
        image = _marks(vlm)[1]
        raise ValueError(f"no image token {image!r} (id {image_id}) in {text!r}: mend the record's 'wrapped' field")
    if not family.looks_ahead:
        ids = ids[: int(places[-1]) + 1]
    return ImagePrompt(ids, places, family.extra(ids[None], image_id), text)


@hub.through_door
@calmly
def load(
    x: Any,
    *,
    processor: Any = None,
    up_to_layer: int | None = None,
    check: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    family: Family | None = None,
    image_size: int | tuple[int, int] | None = None,
    straight_through: float | None = None,
    checkpoint_tower: bool = False,
    compile: bool | str = False,
    head: bool = True,
    first_layer: int = 1,
    remote: bool | str = False,
    steps_per_job: int | None = None,
    **options: Any,
) -> VLM:
    """Wrap a vision-language model.

    x            "demo" (the bundled model), a hub id, a local folder, a Hugging Face model (with `processor`), or an
                 `nnsight` model of one
    up_to_layer  load only this many decoder blocks: the weights above are never read, nor files fetched that hold
                 nothing else (ids and folders only)
    head         False: load neither final norm nor language-model head, which only `top_logits` and writing need (ids
                 and folders only)
    check        prove the family's record against the model, and its gradient against measured slopes (see `check`);
                 costs some six forwards and two backwards. What cannot be compared is told by `unproved`
    device       "cuda", "cuda:1", "mps" or "cpu" (ids and folders only; a model in hand stays where it is). Not given:
                 the best there is, cuda, then mps, else cpu, which is said in one line; the bundled model, whose
                 numbers were measured there, stays on the cpu. What does not fit there is said before it is loaded,
                 with what would
    dtype, options   go to `from_pretrained` (ids and folders only). Without dtype, weights are as stored on the CPU and
                 bfloat16 elsewhere. `device_map="auto"` spreads them over several GPUs (accelerate). Code that comes
                 with a checkpoint is refused, unless trust_remote_code=True says that you have read it
    family       a record of your own; one for an unknown family is probed from the model, with a warning
    image_size   the side, or (height, width), in pixels at which the model sees pictures, for families that take any:
                 a multiple of an image token's side; what the processor makes of 448 x 448 pixels if not given.
                 Gemma 3, which refuses other sizes than its own, is given image tokens from its tower with interpolated
                 positions, as many as ever: a quarter of the side is about a sixteenth of the tower's work
    straight_through   for families that turn pictures into words of a code book (Chameleon), through which no gradient
                 passes: climb by the gradient of soft words instead, mixed at this temperature (1.0, say). It is a
                 biased guess of no true gradient, since the model computes with hard words; off if not given
    checkpoint_tower   in an ascent, keep only the inputs of the vision tower's layers and compute the rest anew in the
                 backward pass: the same gradient, far less memory, about a third more time
    compile      True: ascents run the forward pass up to the deepest site as a program that torch.compile makes of it,
                 or the name of another of its backends. The same activations (proved at a climb's first step) and
                 gradients within rounding, so not the same bits. It is made at the first step, anew for every layer and
                 number of views, in seconds to minutes, and needs a C++ compiler on the CPU: see
                 `benchmarks/compile.py` for when it pays
    first_layer  1: `layer=1` is the first block, as in the paper; 0: `layer=0` is, should its authors have meant that
    remote       True: the model's weights stay on an NDIF server (that which nnsight is set to, $NDIF_HOST, with the
                 key $NDIF_API_KEY) and are never loaded here; or the address of another such server. "local": it is
                 loaded here, but jobs go the way of a server's. Hub ids only, but for "local"
    steps_per_job   an ascent of more steps is cut into jobs of so many; the result is the same, bit for bit

    A model in hand keeps its device, types, training mode and `requires_grad`; no hook is registered on it. nnsight
    itself puts one inert attribute on each module that it wraps.

    Raises ValueError or TypeError that says what was given, what is allowed and how to mend it, also for weights that
    the checkpoint lacks; OSError where there is no such checkpoint, or the hub does not answer within seconds.

    >>> import nnsight_dream as nd
    >>> nd.load("demo").grid
    (8, 8)
    """
    import_nnsight()
    import nnsight

    named = ["processor", "up_to_layer", "check", "device", "dtype", "family"]
    named += ["image_size", "straight_through", "checkpoint_tower", "compile", "head", "first_layer", "remote"]
    named += ["steps_per_job"]
    for name in options:
        if near := difflib.get_close_matches(name, named, 1, 0.8):
            raise TypeError(f"load: unexpected keyword {name!r}; did you mean {near[0]}=?")
    if isinstance(x, VLM):
        asked = {"processor": processor, "up_to_layer": up_to_layer, "device": device, "dtype": dtype}
        asked |= {"family": family, "image_size": image_size, "straight_through": straight_through}
        told = [k for k, v in {**asked, **options}.items() if v is not None]
        told += ["checkpoint_tower"] * checkpoint_tower + ["compile"] * bool(compile) + ["head"] * (not head)
        told += ["remote"] * bool(remote) + ["steps_per_job"] * (steps_per_job is not None)
        if told or first_layer not in (1, x.first_layer):
            raise ValueError(f"{', '.join(told or ['first_layer'])}= cannot change a VLM; load its model or name anew")
        return x
    place = None
    if remote or steps_per_job is not None:
        from .remote import chosen

        place = chosen(remote, steps_per_job)
    if not arguments.is_whole(first_layer) or first_layer not in (0, 1):
        raise ValueError(f"first_layer={arguments.shown(first_layer)}: layers count from 1 (the default) or from 0")
    if place is not None and place.away:
        from .hosted import without_weights

        kept = {"up_to_layer": up_to_layer, "device": device, "dtype": dtype, "compile": compile or None}
        kept |= {"checkpoint_tower": checkpoint_tower or None, "head": None if head else False}
        vlm = without_weights(
            x, processor, family, place, {**options, **{k: v for k, v in kept.items() if v is not None}}
        )
    elif isinstance(x, (str, Path)):
        vlm = _from_checkpoint(x, processor, up_to_layer, family, device, {**options, "dtype": dtype}, head)
    else:
        given = {"up_to_layer": up_to_layer, "device": device, "dtype": dtype, **options}
        if told := [k for k, v in given.items() if v is not None] + ["head"] * (not head):
            raise ValueError(
                f"{', '.join(told)}= can only be given with a hub id or a folder; this model is already loaded and is "
                "kept as it is. Move or convert it yourself, or pass its name instead."
            )
        model = x if isinstance(x, nnsight.Envoy) else None  # what NNsight and TransformersModel have in common
        hf = x._module if model is not None else x
        model, hf = _without_peft(model, hf)
        if not isinstance(hf, torch.nn.Module) or not hasattr(hf, "config"):
            raise TypeError(
                f"cannot load a {type(x).__name__}: give 'demo', a hub id, a folder, a Hugging Face vision-language "
                "model, or an nnsight model of one"
            )
        if next(hf.parameters()).device.type == "meta":
            raise ValueError("this nnsight model has no weights yet: make it with dispatch=True, or load by name")
        name = str(getattr(hf, "name_or_path", "") or _unnamed(hf))
        processor = processor or getattr(model, "processor", None) or _processor_of(name, family)
        vlm = _wrap(model, hf, processor, family, name)
    vlm.first_layer = first_layer
    refuse_half(vlm.family, vlm.dtype, vlm.id)
    if checkpoint_tower and not vlm.tower_layers:
        raise ValueError(
            f"checkpoint_tower=True: the vision tower of {vlm.id} ({vlm.family.name}) has no layers that Hugging Face "
            "can compute anew; leave it out, and lower batch= or at_once= where memory is short"
        )
    vlm.checkpoint_tower = checkpoint_tower
    vlm.compiled = _backend(vlm, compile)
    if straight_through is not None:
        if vlm.family.surrogate is None:
            raise ValueError(
                f"straight_through={straight_through!r}: gradients pass through {vlm.family.name}; leave it out"
            )
        if not arguments.is_real(straight_through) or not straight_through > 0:
            raise ValueError(
                f"straight_through={arguments.shown(straight_through)} is a temperature: give one above 0, such as 1.0"
            )
        vlm.straight_through = float(straight_through)
    if image_size is not None:
        size = _size_for(vlm, image_size)
        vlm.own_size = vlm.image_size if size != vlm.image_size else None
        vlm.pixels = replace(vlm.pixels, size=size)
    if check:
        from .trace import check as prove

        prove(vlm)
    vlm.remote = place
    return vlm


def _without_peft(model: Any, hf: Any) -> tuple[Any, Any]:
    """The model that peft wrapped, with its adapters in it, and nnsight's hold of it; others as they are."""
    if not hasattr(hf, "get_base_model") or not hasattr(hf, "peft_config"):
        return model, hf
    kinds = {str(getattr(c.peft_type, "value", c.peft_type)) for c in hf.peft_config.values() if c.is_prompt_learning}
    if kinds or getattr(hf.active_peft_config, "is_adaption_prompt", False):
        kind = ", ".join(sorted(kinds)) or "adaption prompt"
        raise ValueError(
            f"{kind} of peft adds tokens in a forward of its own, which reading a VLM's layers goes round: give the "
            "model without it, model.get_base_model(), or with an adapter of layers, such as LoRA"
        )
    base = hf.get_base_model()
    if model is None:
        return None, base
    inner = next(envoy for envoy in model.modules() if envoy._module is base)._shallow_copy()
    inner.__dict__.update(_edits=model._edits, _whole=model)
    return inner, base


def _backend(vlm: VLM, asked: bool | str) -> str | None:
    """The backend of torch.compile that is asked for, if this model's forward pass can be compiled."""
    if asked is False:
        return None
    if vlm.checkpoint_tower:
        raise ValueError("compile= and checkpoint_tower=True exclude each other; leave one of them out")
    if any(hasattr(m, "_hf_hook") for m in vlm.hf.modules()):
        raise ValueError(
            f"compile={asked!r}: accelerate moves the weights of {vlm.id} about between devices, which cannot be "
            "compiled; load without device_map= or without compile="
        )
    if asked is True:
        return "inductor"
    known = torch.compiler.list_backends(exclude_tags=())
    if asked not in known:
        near = difflib.get_close_matches(str(asked), known, 1, 0.0)
        raise ValueError(
            f"compile={asked!r}: True, or a backend of torch.compile ({', '.join(known)}); did you mean {near[0]!r}?"
        )
    return asked


_SIDES = "a side in pixels, or (height, width), is"


def _size_for(vlm: VLM, asked: int | tuple[int, int]) -> tuple[int, int]:
    """The size asked for, if the model can see pictures of it."""
    sides = [asked, asked] if arguments.is_whole(asked) else arguments.listed(asked, "image_size", _SIDES)
    size = tuple(arguments.whole(n, "image_size", 1) for n in sides)
    cell = vlm.pixels.cell
    if not vlm.pixels.any_size and size != vlm.image_size:
        raise ValueError(
            f"image_size={asked!r}: {vlm.id} ({vlm.family.name}) sees pictures of {vlm.image_size[0]} x "
            f"{vlm.image_size[1]} pixels only; leave image_size= out"
        )
    if vlm.pixels.square and len(set(size)) > 1:
        raise ValueError(
            f"image_size={asked!r}: {vlm.family.name} takes square pictures only; did you mean {max(size)}?"
        )
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 and n % (cell or n) == 0 for n in size):
        near = max(cell, round(max(size) / cell) * cell)
        if vlm.pixels.tokens:
            near = _nearest(vlm.pixels, max(size))
        raise ValueError(
            f"image_size={asked!r}: give a side or (height, width) in multiples of {cell} pixels, the side of an image "
            f"token of {vlm.id}; did you mean {near}?"
        )
    if not vlm.pixels.fits(size):  # type: ignore[arg-type]
        raise ValueError(
            f"image_size={asked!r}: {vlm.id} ({vlm.family.name}) makes {vlm.pixels.tokens} x {vlm.pixels.tokens} image "
            f"tokens of every picture; sizes that these divide evenly are {vlm.pixels.sizes}. Did you mean "
            f"{_nearest(vlm.pixels, max(size))}?"
        )
    return size  # type: ignore[return-value]


def _nearest(pixels: PixelFormat, side: int) -> int:
    """The side nearest to another of which square pictures fit."""
    most = max(side, pixels.tokens * pixels.cell) + pixels.tokens * pixels.cell
    fit = [n for n in range(pixels.cell, most + 1, pixels.cell) if pixels.fits((n, n))]
    return min(fit, key=lambda n: abs(n - side))


def _from_checkpoint(
    x: str | Path,
    processor: Any,
    up_to_layer: int | None,
    family: Family | None,
    device: Any,
    options: dict[str, Any],
    head: bool = True,
) -> VLM:
    """The VLM of a hub id or folder, on the device asked for or the best there is."""
    from transformers import AutoConfig

    name = str(x)
    if device is not None and options.get("device_map") is not None:
        raise ValueError(f"device={device!r} and device_map= are two ways to say the same: give one of them")
    with hub.door(x, options) as there:
        target = None
        if options.get("device_map") is not None:
            devices.known_map(options["device_map"])
        else:
            target = devices.chosen(device, name, demo=name == "demo")
        placed = {**options, "dtype": default_dtype(options["dtype"], target, options.get("device_map"))}
        placed = {k: v for k, v in placed.items() if v is not None} | hub.access(options)
        source = hub.access(options)
        config = AutoConfig.from_pretrained(there, **source)
        family = family or family_of(config)
        refuse_half(family, placed.get("dtype"), name)
        whole = config.get_text_config().num_hidden_layers
        _cut(config, up_to_layer, name)
        hf, folder = _weights(name, there, config, up_to_layer, head, family, placed, target, device is not None)
        processor = processor or _processor_at(there, family, **source)
    vlm = _wrap(None, hf, processor, family, name)
    vlm.is_demo = name == "demo"
    vlm.revision = hub.commit(there, options)
    vlm._cache["layers in the checkpoint"] = whole
    vlm._cache["files"] = folder  # weights that are off on the disk are read again and again
    return vlm


def _cut(config: Any, up_to_layer: int | None, name: str) -> None:
    """Let a config say so many layers only. Raises ValueError where it has not so many, or cannot be cut."""
    if up_to_layer is None:
        return
    text = config.get_text_config()
    whole = text.num_hidden_layers
    if not arguments.is_whole(up_to_layer) or not 1 <= up_to_layer <= whole:
        raise ValueError(f"up_to_layer={arguments.shown(up_to_layer)}: {name} has layers 1 to {whole}")
    up_to_layer = int(arguments.plain(up_to_layer))
    if up_to_layer < whole and getattr(text, "hidden_size_per_layer_input", 0):
        raise ValueError(
            f"up_to_layer={up_to_layer}: {name} keeps embeddings of all its layers in one matrix and cannot be "
            "loaded in part; leave up_to_layer= out"
        )
    if shared := getattr(text, "num_kv_shared_layers", 0):  # the last ones read keys of those before
        text.num_kv_shared_layers = max(0, shared - (whole - up_to_layer))
    text.num_hidden_layers = up_to_layer
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:up_to_layer]


def _weights(
    name: str,
    there: str,
    config: Any,
    up_to_layer: int | None,
    head: bool,
    family: Family | None,
    placed: dict[str, Any],
    target: torch.device | None,
    asked: bool,
) -> tuple[Any, Any]:
    """The model with the weights that are asked for, and the folder of their files, if it is one made for that."""
    from transformers import AutoModelForImageTextToText as Auto

    from .estimate import refuse_too_large

    cls: Any = Auto
    if not head:
        known = getattr(Auto, "_model_mapping").get(type(config), None)  # noqa: B009
        if known is None or family is None:
            raise ValueError(f"head=False: {name} is of no known family; load it whole")
        cls = headless(known, family.layers)
    if target is not None and name != "demo":
        cut = family is not None and not getattr(config.get_text_config(), "hidden_size_per_layer_input", 0)
        stored = devices.stored_bytes(hub.folder(there, placed))
        kind = placed.get("dtype")
        refuse_too_large(name, config, target, kind, family=family, cls=cls, stored=stored, cut=cut)
    partly = up_to_layer is not None or not head
    folder = needed_files(there, up_to_layer, head, placed)
    straight = target is not None and (asked or target.type != "cpu")
    if straight and importlib.util.find_spec("accelerate") is not None:
        placed, straight = {**placed, "device_map": str(target)}, False
    hf, report = from_checkpoint(cls, there if folder is None else folder.name, {**placed, "config": config})
    refuse_missing(name, report, None if family is None else family.layers)
    if not partly and (left := placeless(report, hf)):
        warnings.warn(
            f"{name} holds weights of blocks that its config says nothing of ({', '.join(left[:3])}; {len(left)} in "
            "all); they are left out",
            stacklevel=5,
        )
    if straight:  # without accelerate weights go by way of the cpu
        hf.to(target)
    if folder is not None:
        hf.name_or_path = config._name_or_path = there
    return hf, folder


@dataclass(frozen=True)
class Parts:
    """A tokenizer and an image processor: what is needed of a processor, where a whole one cannot be made."""

    tokenizer: Any
    image_processor: Any
    chat_template: str | None = None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"no {name}: this checkpoint's processor cannot be made without torchvision, and its tokenizer and image "
            "processor stand in for it; pass processor= a whole one where more is needed"
        )


def _processor_at(x: str | Path, family: Family | None, **options: Any) -> Any:
    """A checkpoint's processor; of one that cannot be made without torchvision, for its videos, the parts."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin

    options = hub.access(options)
    try:
        return AutoProcessor.from_pretrained(x, **options)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        if importlib.util.find_spec("torchvision") is not None or hub.foreign(error):
            raise
        try:
            if family is not None and family.stand_in:
                import transformers

                images = getattr(transformers, family.stand_in).from_pretrained(x, **options)
            else:
                images = AutoImageProcessor.from_pretrained(x, **options)
            told = ProcessorMixin.get_processor_dict(x, **options)[0]
            return Parts(AutoTokenizer.from_pretrained(x, **options), images, told.get("chat_template"))
        except (ImportError, ValueError, OSError) as other:
            raise (other if hub.foreign(other) else error) from None


def _processor_of(name: str, family: Family | None) -> Any:
    try:
        with hub.never_asking():
            return _processor_at(name, family, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"this model came without its processor and none is stored under its name {name!r}; pass "
            "processor=AutoProcessor.from_pretrained(...) along with the model"
        ) from error


def _wrap(model: Any, hf: Any, processor: Any, family: Family | None, name: str) -> VLM:
    import_nnsight()
    import nnsight

    tokenizer = getattr(processor, "tokenizer", None)
    images = getattr(processor, "image_processor", None)
    if tokenizer is None or images is None:
        raise ValueError(
            f"processor= must hold a tokenizer and an image processor; {type(processor).__name__} does not. Pass what "
            "AutoProcessor.from_pretrained gives for this checkpoint."
        )
    family = family or family_of(hf.config)
    if family is None:
        from .probed import probe

        family = probe(hf, processor)
        warnings.warn(
            f"no family record for model_type {family.name!r}: one was probed from the model and its processor. The "
            "check proves what it can of it; before you trust it, compare a picture's activations and pixels with a "
            "plain forward pass, and see that its image tokens stand row by row",
            stacklevel=3,
        )
    kept: dict[Any, Any] = {
        "templates": (getattr(tokenizer, "chat_template", None), getattr(processor, "chat_template", None))
    }
    vlm = VLM(
        model=model if model is not None else nnsight.NNsight(hf),
        hf=hf,
        tokenizer=tokenizer,
        processor=processor,
        family=family,
        pixels=family.pixels(images, hf.config),
        id=name,
        _cache=kept,
    )
    with contextlib.suppress(ValueError, TypeError):  # whoever needs it says so
        kept["template"] = vlm.chat_template
    return vlm
