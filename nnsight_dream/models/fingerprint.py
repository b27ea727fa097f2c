"""Hashes of a model as it is now: of its weights up to a block, of edits and of hooks."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ..state import changes, interventions
from . import bridge
from .memo import Look

if TYPE_CHECKING:
    from .vlm import VLM


def of_text(vlm: VLM, layer: int) -> str:
    """A hash of what text activations up to a layer depend on: config, template, weights of the decoder alone.

    24 hexadecimal digits; of a model that is elsewhere its name and revision decide.
    """
    if vlm.remote is not None and vlm.remote.away:
        return hashlib.sha256(f"{vlm.remote} {vlm.id} {vlm.revision} {layer}".encode()).hexdigest()[:24]
    text = vlm.config.get_text_config().to_dict()
    facts = {k: v for k, v in text.items() if k not in ("num_hidden_layers", "layer_types", "_name_or_path")}
    digest = hashlib.sha256(repr(sorted(facts.items(), key=str)).encode())
    digest.update(str(vlm.chat_template).encode())
    stack = vlm.family.layers.rpartition(".")[0]
    digest.update(of_weights(vlm, layer, f"{stack}." if stack else ""))
    return digest.hexdigest()[:24]


def of_pictures(vlm: VLM, layer: int) -> str:
    """A hash of what a picture's activations up to a layer depend on: weights, edits, hooks, a template set later.

    24 hexadecimal digits; of a model that is elsewhere its name and revision decide.
    """
    if vlm.remote is not None and vlm.remote.away:  # a name is all that is known of weights that are elsewhere
        return hashlib.sha256(f"remote {vlm.id} {vlm.revision}".encode()).hexdigest()[:24]
    digest = hashlib.sha256(of_weights(vlm, layer))
    if "chat_template" in vlm.chosen:
        digest.update(vlm.chosen["chat_template"].encode())
    return digest.hexdigest()[:24]


def of_weights(vlm: VLM, layer: int, below: str = "") -> bytes:
    """A hash of weights up to a block, of edits and of hooks; looked at once in a block of `alone`.

    below   the beginning of the names of the weights that count
    """
    with vlm.alone():
        look = vlm.memo.look or Look()  # a model that is elsewhere is never alone
        if (layer, below) not in look.hashes:
            look.hashes[layer, below] = _seen(vlm, layer, below, look)
        return look.hashes[layer, below]


def _seen(vlm: VLM, layer: int, below: str, look: Look) -> bytes:
    stack = vlm.family.layers
    over = (f"{stack.rpartition('.')[0]}.norm.", "lm_head.")
    behind = {f"{stack}.{i}" for i in range(layer, vlm.layers)}
    names = changes.stored(vlm.hf)  # what a checkpoint holds: others differ from version to version of transformers
    names = [n for n in names if n.startswith(below) and not n.startswith(over)]
    names = [n for n in names if ".".join(n.split(".")[: stack.count(".") + 2]) not in behind]
    changes.digests(vlm.hf, [n for n in names if n not in look.names])
    look.names.update(names)
    digest = hashlib.sha256()
    for name, value in sorted(changes.digests(vlm.hf, names, look=False).items()):
        digest.update(name.encode() + value)
    for name, weight in changes.packed(vlm.hf):
        digest.update(name.encode() + changes.of_tensor(weight))
    digest.update(interventions.of_edits(vlm.edits) + interventions.of_hooks(vlm.hf))
    digest.update(interventions.of_adapters(vlm.hf))
    if vlm.bridge is not None:
        digest.update(bridge.state(vlm.bridge))
    return digest.digest()
