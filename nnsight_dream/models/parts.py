"""Model and processor of a checkpoint, and nnsight's wrapper around them."""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint

from .. import arguments
from ..state.nnsight_import import import_nnsight
from . import devices, hub
from .checkpoint import default_dtype, from_checkpoint, headless, needed_files, placeless, refuse_half, refuse_missing
from .families import family_of
from .memo import Memo
from .vlm import VLM

if TYPE_CHECKING:
    from .family import Family


def vlm_of_checkpoint(
    x: str | Path,
    processor: Any,
    up_to_layer: int | None,
    family: Family | None,
    device: Any,
    options: dict[str, Any],
    head: bool = True,
) -> VLM:
    """The VLM of a hub id or folder `x`, on the requested device or the best there is; see `load` for the arguments.

    Raises ValueError for device= beside device_map=, for more layers than there are and for weights that the checkpoint
    lacks or that do not fit on the device.
    """
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
        processor = processor or processor_at(there, family, **source)
    vlm = wrap(None, hf, processor, family, name)
    vlm.is_demo = name == "demo"
    vlm.revision = hub.commit(there, options)
    vlm.memo.checkpoint_layers = whole
    vlm.memo.files = folder  # weights that are off on the disk are read again and again
    return vlm


def _cut(config: Any, up_to_layer: int | None, name: str) -> None:
    """Set a config to so many layers only. Raises ValueError where it has not so many, or cannot be cut."""
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
    explicit: bool,
) -> tuple[Any, Any]:
    """The model with the requested weights, and the folder of their files, if it is one made for that."""
    from transformers import AutoModelForImageTextToText as Auto

    from .size import refuse_too_large

    cls: Any = Auto
    if not head:
        base = getattr(Auto, "_model_mapping").get(type(config), None)  # noqa: B009
        if base is None or family is None:
            raise ValueError(f"head=False: {name} is of no known family; load it whole")
        cls = headless(base, family.layers)
    if target is not None and name != "demo":
        cut = family is not None and not getattr(config.get_text_config(), "hidden_size_per_layer_input", 0)
        stored = devices.stored_bytes(hub.folder(there, placed))
        kind = placed.get("dtype")
        refuse_too_large(name, config, target, kind, family=family, cls=cls, stored=stored, cut=cut)
    partly = up_to_layer is not None or not head
    folder = needed_files(there, up_to_layer, head, placed)
    straight = target is not None and (explicit or target.type != "cpu")
    if straight and importlib.util.find_spec("accelerate") is not None:
        placed, straight = {**placed, "device_map": str(target)}, False
    hf, report = from_checkpoint(cls, there if folder is None else folder.name, {**placed, "config": config})
    refuse_missing(name, report, None if family is None else family.layers)
    if not partly and (left := placeless(report, hf)):
        arguments.warn(
            f"{name} holds weights of blocks that its config says nothing of ({', '.join(left[:3])}; {len(left)} in "
            "all); they are left out",
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


def processor_at(x: str | Path, family: Family | None, **options: Any) -> Any:
    """A checkpoint's processor; of one that cannot be made without torchvision, for its videos, the `Parts`.

    options   of `from_pretrained`, of which those that say where files are count

    Raises what transformers raises where there is none.
    """
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
            settings = ProcessorMixin.get_processor_dict(x, **options)[0]
            return Parts(AutoTokenizer.from_pretrained(x, **options), images, settings.get("chat_template"))
        except (ImportError, ValueError, OSError) as other:
            raise (other if hub.foreign(other) else error) from None


def processor_of(name: str, family: Family | None) -> Any:
    """The processor that is stored here under a model's name; without the network. Raises ValueError for none."""
    try:
        with hub.never_asking():
            return processor_at(name, family, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"this model came without its processor and none is stored under its name {name!r}; pass "
            "processor=AutoProcessor.from_pretrained(...) along with the model"
        ) from error


def _parts_of(processor: Any) -> tuple[Any, Any]:
    """A processor's tokenizer and image processor. Raises ValueError where it lacks one."""
    tokenizer = getattr(processor, "tokenizer", None)
    images = getattr(processor, "image_processor", None)
    if tokenizer is None or images is None:
        raise ValueError(
            f"processor= must hold a tokenizer and an image processor; {type(processor).__name__} does not. Pass what "
            "AutoProcessor.from_pretrained gives for this checkpoint."
        )
    return tokenizer, images


def record_of(hf: Any, processor: Any) -> Family:
    """The record of a model's family; where none is known one that is probed from it, with a warning.

    Raises ValueError for a model that cannot be probed, and for a processor without tokenizer or image processor.
    """
    family = family_of(hf.config)
    if family is None:
        _parts_of(processor)
        from .probe import probe

        family = probe(hf, processor)
        arguments.warn(
            f"no family record for model_type {family.name!r}: one was probed from the model and its processor. The "
            "check proves what it can of it; before you trust it, compare a picture's activations and pixels with a "
            "plain forward pass, and see that its image tokens stand row by row",
        )
    return family


def wrap(model: Any, hf: Any, processor: Any, family: Family | None, name: str) -> VLM:
    """The VLM of a Hugging Face model `hf`, with its processor, known by a name.

    model    nnsight's hold of it; a new one if None
    family   its record; the known one, else one probed from the model, which is warned of

    Raises ValueError for a processor without tokenizer or image processor.
    """
    import_nnsight()
    import nnsight

    tokenizer, images = _parts_of(processor)
    family = family or record_of(hf, processor)
    templates = (getattr(tokenizer, "chat_template", None), getattr(processor, "chat_template", None))
    vlm = VLM(
        model=model if model is not None else nnsight.NNsight(hf),
        hf=hf,
        tokenizer=tokenizer,
        processor=processor,
        family=family,
        pixels=family.pixels(images, hf.config),
        id=name,
        memo=Memo(templates=templates),
    )
    with contextlib.suppress(ValueError, TypeError):  # whoever needs it says so
        vlm.memo.template = (vlm.chat_template,)
    return vlm
