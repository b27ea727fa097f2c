"""`load`: from an id, a folder or a model in hand to a VLM that is proved. Refuse, place, build, adjust, check."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import arguments
from ..state.calm import calmly
from ..state.nnsight_import import import_nnsight
from ..state.quiet import quiet_transformers
from . import hub
from .checkpoint import refuse_half
from .image_size import image_size_of
from .in_hand import from_model
from .parts import vlm_of_checkpoint
from .place import Remote, chosen
from .vlm import VLM

if TYPE_CHECKING:
    from .family import Family


@dataclass(frozen=True)
class Choices:
    """The keywords of `load`, each with its default; `options` are those that go to `from_pretrained`."""

    processor: Any = None
    up_to_layer: int | None = None
    check: bool = True
    device: str | torch.device | None = None
    dtype: torch.dtype | None = None
    family: Family | None = None
    image_size: int | tuple[int, int] | None = None
    straight_through: float | None = None
    checkpoint_tower: bool = False
    head: bool = True
    first_layer: int = 1
    remote: bool | str = False
    steps_per_job: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def given(self, *names: str) -> dict[str, Any]:
        """The values among these names that are not the default, then the options that are not None."""
        values = {name: getattr(self, name) for name in names if self._differs(name)}
        return {**values, **{name: value for name, value in self.options.items() if value is not None}}

    def _differs(self, name: str) -> bool:
        value, default = getattr(self, name), getattr(type(self), name)
        return bool(value) is not default if isinstance(default, bool) else value is not default


KEYWORDS = tuple(f.name for f in fields(Choices) if f.default is not MISSING)


@hub.through_door
@calmly
def load(
    x: Any,
    processor: Any = None,
    *,
    up_to_layer: int | None = None,
    check: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    family: Family | None = None,
    image_size: int | tuple[int, int] | None = None,
    straight_through: float | None = None,
    checkpoint_tower: bool = False,
    head: bool = True,
    first_layer: int = 1,
    remote: bool | str = False,
    steps_per_job: int | None = None,
    **options: Any,
) -> VLM:
    """Wrap a vision-language model.

    x            "demo" (the bundled model), "gemma-270m" (see `demo.gemma_folder`), a hub id, a local folder, a Hugging
                 Face model or an nnsight model of one (with its `processor`), or a TransformerBridge
    up_to_layer  load only this many decoder blocks: the weights above are never read, nor files fetched that hold
                 nothing else (ids and folders only)
    head         False: load neither final norm nor language-model head, which only `top_logits` and writing need (ids
                 and folders only)
    check        prove the family's record against the model, and its gradient against measured slopes (see `check`);
                 costs some six forwards and two backwards. What cannot be compared is in `unproved`
    device       "cuda", "cuda:1", "mps" or "cpu" (ids and folders only; a model in hand stays where it is). Not given:
                 the best there is, cuda, then mps, else cpu, which is printed in one line; the bundled model, whose
                 numbers were measured there, stays on the cpu. What does not fit there is reported before it is loaded,
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
    choices = Choices(
        processor=processor, up_to_layer=up_to_layer, check=check, device=device, dtype=dtype, family=family,
        image_size=image_size, straight_through=straight_through, checkpoint_tower=checkpoint_tower,
        head=head, first_layer=first_layer, remote=remote, steps_per_job=steps_per_job, options=options,
    )  # fmt: skip
    _refuse(x, choices)
    if isinstance(x, VLM):
        return x
    place = _place(choices)
    vlm = _build(x, choices, place)
    _adjust(vlm, choices)
    if check:
        from .check import check as prove

        prove(vlm)
    vlm.remote = place
    return vlm


def _refuse(x: Any, choices: Choices) -> None:
    """Raise TypeError for a misspelt keyword, ValueError for what would change a VLM and for another first layer."""
    _refuse_swapped(x, choices.processor)
    for name in choices.options:
        if near := difflib.get_close_matches(name, KEYWORDS, 1, 0.8):
            raise TypeError(f"load: unexpected keyword {name!r}; did you mean {near[0]}=?")
    first = choices.first_layer
    if isinstance(x, VLM):
        changes = list(choices.given(*(name for name in KEYWORDS if name not in ("check", "first_layer"))))
        if changes or first not in (1, x.first_layer):
            names = ", ".join(changes or ["first_layer"])
            raise ValueError(f"{names}= cannot change a VLM; load its model or name anew")
    elif not arguments.is_whole(first) or first not in (0, 1):
        raise ValueError(f"first_layer={arguments.shown(first)}: layers count from 1 (the default) or from 0")


def _refuse_swapped(x: Any, processor: Any) -> None:
    """Raise TypeError for a processor in the model's place, a pair, and a class in the place of a model."""
    kinds = ("image_processor", "apply_chat_template", "tokenizer", "image_token")
    if isinstance(processor, torch.nn.Module) or (
        not isinstance(x, (str, Path, torch.nn.Module)) and hasattr(x, "save_pretrained") and _is_processor(x, kinds)
    ):
        raise TypeError(
            f"the model goes first, and its processor second: nd.load(model, processor); got {type(x).__name__}, "
            f"{type(processor).__name__}"
        )
    if isinstance(x, (tuple, list)) and len(x) == 2 and isinstance(x[0], torch.nn.Module):
        raise TypeError("a model and its processor are two arguments, not a pair: nd.load(model, processor)")
    if isinstance(x, type):
        raise TypeError(f"{x.__name__} is a class; give a model of it: {x.__name__}.from_pretrained(...), or its name")


def _is_processor(x: Any, kinds: tuple[str, ...]) -> bool:
    return any(hasattr(x, name) for name in kinds) and not hasattr(x, "forward")


def _place(choices: Choices) -> Remote | None:
    """Where the model's jobs run; None: simply here."""
    if not choices.remote and choices.steps_per_job is None:
        return None
    return chosen(choices.remote, choices.steps_per_job)


def _build(x: Any, choices: Choices, place: Remote | None) -> VLM:
    """The VLM of a hub id, a folder or a model in hand, as it is by itself."""
    with quiet_transformers():
        return _built(x, choices, place)


def _built(x: Any, choices: Choices, place: Remote | None) -> VLM:
    import_nnsight()
    if place is not None and place.away:
        from .hosted import without_weights

        here = choices.given("up_to_layer", "device", "dtype", "checkpoint_tower", "head")
        vlm = without_weights(x, choices.processor, choices.family, place, {**choices.options, **here})
    elif isinstance(x, (str, Path)):
        options = {**choices.options, "dtype": choices.dtype}
        vlm = vlm_of_checkpoint(
            x, choices.processor, choices.up_to_layer, choices.family, choices.device, options, choices.head
        )
    elif names := list(choices.given("up_to_layer", "device", "dtype", "head")):
        raise ValueError(
            f"{', '.join(names)}= can only be given with a hub id or a folder; this model is already loaded and is "
            "kept as it is. Move or convert it yourself, or pass its name instead."
        )
    else:
        vlm = from_model(x, choices.processor, choices.family)
    refuse_half(vlm.family, vlm.dtype, vlm.id)
    return vlm


def _adjust(vlm: VLM, choices: Choices) -> None:
    """Set the chosen options on a VLM. Raises ValueError for what the model cannot do."""
    vlm.first_layer = choices.first_layer
    if choices.checkpoint_tower and not vlm.tower_layers:
        raise ValueError(
            f"checkpoint_tower=True: the vision tower of {vlm.id} ({vlm.family.name}) has no layers that Hugging Face "
            "can compute anew; leave it out, and lower batch= or at_once= where memory is short"
        )
    vlm.checkpoint_tower = choices.checkpoint_tower
    if choices.straight_through is not None:
        vlm.straight_through = _temperature(vlm, choices.straight_through)
    if choices.image_size is not None:
        size = image_size_of(vlm, choices.image_size)
        vlm.own_size = vlm.image_size if size != vlm.image_size else None
        vlm.pixels = replace(vlm.pixels, size=size)


def _temperature(vlm: VLM, straight_through: float) -> float:
    """The temperature of a surrogate gradient, if this family needs one."""
    if vlm.family.surrogate is None:
        raise ValueError(
            f"straight_through={straight_through!r}: gradients pass through {vlm.family.name}; leave it out"
        )
    if not arguments.is_real(straight_through) or not straight_through > 0:
        raise ValueError(
            f"straight_through={arguments.shown(straight_through)} is a temperature: give one above 0, such as 1.0"
        )
    return float(straight_through)
