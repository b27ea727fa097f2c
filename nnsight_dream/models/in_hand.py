"""A model in hand: of Hugging Face, of nnsight, of TransformerLens or in another's wrapping, made a VLM as it is."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

from ..state import changes
from ..state.nnsight_import import import_nnsight
from . import bridge
from .parts import processor_of, record_of, wrap

if TYPE_CHECKING:
    from .family import Family
    from .vlm import VLM


def from_model(x: Any, processor: Any, family: Family | None) -> VLM:
    """The VLM of a model in hand, which keeps its device, type and mode.

    x           a Hugging Face model, also in the wrapping of torch.compile, of data parallelism or of peft's adapters,
                a pipeline of one, an nnsight model of one, or a TransformerBridge
    processor   its processor; else what comes with it, else the one that is stored under the model's name

    Raises TypeError for what is no such model, ValueError for one without weights, for a part that torch.compile
    made a program of, and for peft's prompt learning.
    """
    import_nnsight()
    import nnsight

    x, processor = _bare(x, processor)
    model = x if isinstance(x, nnsight.Envoy) else None  # what NNsight and TransformersModel have in common
    held = bridge.find(x if model is None else x._module)
    if held is not None:
        processor, model, hf = processor or held.processor, bridge.model_of(held, model), held.original_model
    else:
        model, hf = _without_peft(model, x if model is None else x._module)
    _refuse(x, hf)
    with bridge.unwrapped(hf):
        name = str(getattr(hf, "name_or_path", "") or _unnamed(hf))
        processor = processor or getattr(model, "processor", None) or processor_of(name, family)
        family = family or record_of(hf, processor)
    vlm = wrap(model, hf, processor, family, name)
    if held is not None:
        bridge.attach(vlm, held)
    return vlm


def _bare(x: Any, processor: Any) -> tuple[Any, Any]:
    """A model without a wrapper around the whole of it, and the processor passed here or held by the wrapper."""
    if type(x).__module__.startswith("transformers.pipelines"):
        return _bare(x.model, processor or getattr(x, "processor", None))
    if isinstance(x, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
        return _bare(x.module, processor)
    return _bare(x._orig_mod, processor) if _is_program(x) else (x, processor)


def _is_program(x: Any) -> bool:
    return isinstance(x, torch.nn.Module) and "_orig_mod" in x._modules  # what torch.compile makes of a module


def _refuse(x: Any, hf: Any) -> None:
    if not isinstance(hf, torch.nn.Module) or not hasattr(hf, "config"):
        raise TypeError(
            f"cannot load a {type(x).__name__}: give 'demo', a hub id, a folder, a Hugging Face vision-language "
            "model or a pipeline of one, an nnsight model of one, or a TransformerBridge"
        )
    if all(p.is_meta for p in hf.parameters()):
        kept_off = any(hasattr(module, "_hf_hook") for module in hf.modules())
        raise ValueError(
            "accelerate keeps all weights of this model off until they are used, and a pass that stops at a layer "
            "would leave them where they are: use accelerate.dispatch_model and leave a part in place"
            if kept_off
            else "this model has no weights yet: make it with dispatch=True (nnsight), or load by name"
        )
    if programs := [path for path, module in hf.named_modules() if _is_program(module)]:
        path = programs[0]
        raise ValueError(
            f"torch.compile made a program of a part of this model, and what lies in it cannot be read: take it back, "
            f"with model.{path} = model.{path}._orig_mod"
        )


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


def _unnamed(hf: torch.nn.Module) -> str:
    """A name for a model that came without one: its class, and what tells it from others of its class."""
    digest = hashlib.sha256()
    for name, weight in hf.named_parameters():
        if name == "lm_head.bias":  # zeros that a bridge adds
            continue
        facts = f"{name} {tuple(weight.shape)} {weight.dtype}".encode()
        digest.update(facts + changes.spread(changes.values(hf, name, weight), 4).cpu().numpy().tobytes())
    return f"{type(hf).__name__}-{digest.hexdigest()[:8]}"
