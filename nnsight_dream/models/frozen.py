"""A model left as it was found: weights without gradients, evaluation mode and checkpointing, for a block only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.checkpoint


@contextlib.contextmanager
def frozen(module: torch.nn.Module) -> Iterator[None]:
    """Weights without gradients, modules in evaluation mode and as they are written; after the block each as it was.

    What `module.compile()` made of one is left aside: torch.compile would trace nnsight's reading along with it.
    """
    programs = [(m, vars(m).pop("_compiled_call_impl")) for m in module.modules() if "_compiled_call_impl" in vars(m)]
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
        for m, program in programs:
            m._compiled_call_impl = program


@contextlib.contextmanager
def checkpointing(layers: list[torch.nn.Module]) -> Iterator[None]:
    """Layers of which only the inputs are kept, the rest computed anew in the backward pass; after it as they were."""
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


def _anew(layer: Any, *args: Any) -> Any:
    """A layer's forward, of which only the inputs are kept; frozen as the first time, whenever it is done again."""
    module = layer.args[0] if layer.args else layer.func.__self__  # transformers before 5.22 binds it
    return torch.utils.checkpoint.checkpoint(
        layer,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,  # no chance is at work in a model in evaluation mode
        context_fn=lambda: (contextlib.nullcontext(), frozen(module)),
    )
