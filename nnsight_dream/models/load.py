"""`load`: from an id, a folder or a model in hand to a VLM that is proved."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint

from .. import arguments
from ..state.calm import calmly
from ..state.nnsight_import import import_nnsight
from . import hub
from .checkpoint import refuse_half
from .parts import _from_checkpoint, _processor_of, _wrap
from .vlm import VLM, _unnamed

if TYPE_CHECKING:
    from ..engine.pixels import PixelFormat
    from .family import Family


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
        from .place import chosen

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
        from .check import check as prove

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
