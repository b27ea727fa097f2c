"""A TransformerBridge of TransformerLens 3 in hand: its hook points are sites, the user's hooks on them in force.

A bridge wraps the modules of a Hugging Face model in place, each with hook points before and behind it. Its model is
read and climbed as it stands, so that whatever the bridge computes (hooks, autoencoders spliced in, processed weights)
is what is read. TransformerLens is never imported here.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from ..state import changes
from .family import Family
from .sites import Site

if TYPE_CHECKING:
    from .vlm import VLM

INNER = "_original_component"  # what TransformerLens calls the module that it wrapped


def find(x: Any) -> Any:
    """The TransformerBridge that an object is, or that was booted on a model; None where there is none.

    Raises ValueError for a model whose bridge is gone, which left its own modules in it, and TypeError for a
    HookedTransformer, which sees no pictures.
    """
    names = {c.__name__ for c in type(x).__mro__ if c.__module__.startswith(("transformer_lens.", "sae_lens."))}
    if "TransformerBridge" in names:
        return x
    if "HookedTransformer" in names:
        raise TypeError(
            f"a {type(x).__name__} reads text alone: boot the vision-language model it was made from with "
            "transformer_lens.model_bridge.TransformerBridge.boot_transformers, and pass that bridge"
        )
    parts = [m for m in x.modules() if is_wrapper(m)] if isinstance(x, torch.nn.Module) else []
    for part in parts:
        reference = getattr(getattr(part, "config", None), "_bridge_ref", None)
        if reference is not None and (bridge := reference()) is not None:
            return bridge
    if parts:
        raise ValueError(
            "a TransformerBridge was booted on this model and left its modules in it: pass the bridge, nd.load(bridge)"
        )
    return None


def is_wrapper(module: torch.nn.Module) -> bool:
    """Whether a module is one of a bridge's own around one of Hugging Face's."""
    return type(module).__module__.startswith("transformer_lens.model_bridge.") and INNER in module._modules


@dataclass(frozen=True)
class Bridged(Family):
    """A family's record with its paths as a bridge left them; `hooks` holds every name that a block's places have.

    Names are those of the bridge's hook points and, as "self_attn.o_proj.input", those of Hugging Face's modules.
    `record` is the family's own; `made_for` what the bridge's switches and autoencoders were when this was made;
    `linear` the modules of linear attention, see `running`.
    """

    record: Family | None = None
    linear: tuple[Any, ...] = ()
    made_for: tuple[Any, ...] = ()

    def kind_at(self, place: tuple[str, str]) -> str:
        """The name of a place below a block: a kind, else the bridge's own."""
        kind = super().kind_at(place)
        names = (name for name, path in self.hooks.items() if path == place)
        return kind if kind in self.kinds else next(names, kind)


def bridged(record: Family, bridge: Any) -> Bridged:
    """A family's record for the model in a bridge, as its modules are now."""
    hf = bridge.original_model
    paths = {id(module): path for path, module in hf.named_modules()}
    moved = {part: getattr(record, part) for part in ("root", "layers", "tower", "projector")}
    moved = {part: path and paths[id(hf.get_submodule(path))] for part, path in moved.items()}
    hooks: dict[str, tuple[str, str]] = {}
    for block, hook, point in _in_blocks(record, points(bridge)):
        path = paths.get(id(point), "")
        if path.startswith(f"{moved['layers']}.{block}."):
            hooks.setdefault(hook, (path.removeprefix(f"{moved['layers']}.{block}."), "output"))
    for module in hf.get_submodule(moved["layers"]).children():
        _modules_of(module, hooks)
    kinds = {kind: hooks[".".join(filter(None, place))] for kind, place in record.kinds.items()}
    for kind in ("resid_pre", "resid_post"):
        kinds[kind] = hooks[f"hook_{kind}"]
        hooks[".".join(filter(None, record.kinds[kind]))] = kinds[kind]
    facts = {f.name: getattr(record, f.name) for f in fields(Family)}
    facts |= {**moved, "kinds": kinds, "hooks": hooks}
    linear = [m for m in hf.modules() if type(m).__name__.endswith("GatedDeltaNet") and not is_wrapper(m)]
    return Bridged(**facts, record=record, linear=tuple(linear), made_for=_marks(bridge))


def _in_blocks(record: Family, named: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(block, hook, hook point) of the hooks in blocks; of several names of one the first is that which is shown.

    Names that the family's record knows come first, then the bridge's own, then aliases.
    """
    hooks = []
    for name, point in named.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            rank = 0 if match[2] in record.hooks else 1 if getattr(point, "name", None) == name else 2
            hooks.append((rank, match[1], match[2], point))
    return [hook[1:] for hook in sorted(hooks, key=lambda hook: hook[0])]


def _modules_of(block: torch.nn.Module, hooks: dict[str, tuple[str, str]]) -> None:
    """Add the names of Hugging Face's modules in a block, with the places where a bridge's hooks have been at work."""
    for path, module in block.named_modules():
        plain = ".".join(part for part in path.split(".") if part != INNER)
        if path.endswith(INNER) or not isinstance(module, torch.nn.Module) or _is_point(module):
            continue
        for side, point in (("input", "hook_in"), ("output", "hook_out")):
            place = (f"{path}.{point}".lstrip("."), "output") if point in module._modules else (path, side)
            hooks.setdefault(f"{plain}.{side}".lstrip("."), place)


def _is_point(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "HookPoint" or hasattr(module, "hook_sae_output")


def model_of(bridge: Any, model: Any) -> Any:
    """The nnsight model of a bridge's model that was handed in; None where it is to be made.

    Raises ValueError for one that was made before the bridge was booted, and for one of the bridge that has edits.
    """
    mend = "wrap it now, with nnsight.NNsight(bridge.original_model), and pass that or the bridge"
    if model is None or (model._module is bridge and not model._edits):
        return None
    if model._module is bridge:
        raise ValueError(f"this nnsight model is of the bridge, and edits stored on it would be left out: {mend}")
    if any(
        envoy._module._modules.get(n) is not c._module for envoy in model.modules() for n, c in envoy._child_map.items()
    ):
        raise ValueError(f"this nnsight model was made before a TransformerBridge was booted on its model: {mend}")
    return model


@contextlib.contextmanager
def unwrapped(hf: torch.nn.Module) -> Iterator[None]:
    """Hugging Face's own modules where a bridge's stand around them, for the block only."""
    exchanged = [(m, n, c) for m in hf.modules() for n, c in m._modules.items() if c is not None and is_wrapper(c)]
    for parent, name, wrapper in exchanged:
        parent._modules[name] = wrapper._modules[INNER]
    try:
        yield
    finally:
        for parent, name, wrapper in exchanged:
            parent._modules[name] = wrapper


def attach(vlm: VLM, bridge: Any) -> None:
    """Make the VLM of a bridge's model the bridge's own, so that hook points are sites."""
    vlm.bridge, vlm.family = bridge, bridged(vlm.family, bridge)


def follow(vlm: VLM) -> None:
    """Take in that autoencoders were spliced into the bridge or taken out, or switches set, since the last look.

    Raises ValueError where a bridge was booted on a model that had been loaded without it.
    """
    if vlm.bridge is None and is_wrapper(vlm.hf.get_submodule(f"{vlm.family.layers}.0")):
        raise ValueError(
            f"a TransformerBridge was booted on {vlm.id} after it was loaded: pass the bridge, nd.load(bridge)"
        )
    if vlm.bridge is not None and vlm.family.made_for != _marks(vlm.bridge):  # type: ignore[attr-defined]
        vlm.model._update(vlm.hf)  # nnsight's hold of modules that were exchanged
        vlm.family = bridged(vlm.family.record, vlm.bridge)  # type: ignore[attr-defined]
        vlm.memo.order.clear()


def points(bridge: Any) -> dict[str, Any]:
    """The hook points of a bridge by every name, aliases too, and the autoencoders in the places of some."""
    hooks = dict(bridge._hook_registry)
    bridge._add_aliases_to_hooks(hooks)
    return hooks


def saes(bridge: Any) -> dict[str, Any]:
    """The autoencoders that are spliced into a bridge of sae-lens, by hook, in their wrapping."""
    return bridge.__dict__.get("_acts_to_saes", {})


def _marks(bridge: Any) -> tuple[Any, ...]:
    """The bridge's switches, and which autoencoder is where."""
    named = [(n, getattr(bridge.cfg, n)) for n in sorted(dir(bridge.cfg)) if n.startswith("use_")]
    switches = [(n, value) for n, value in named if isinstance(value, bool)]
    return (*switches, *((name, id(wrapper)) for name, wrapper in saes(bridge).items()))


def sae_input(vlm: VLM, site: Site) -> Site:
    """Where an autoencoder that is spliced in at a site reads: what passes on behind it is its own output."""
    module = vlm.family.place(site.kind)[0]
    place, block = f"{module}.hook_sae_input", vlm.hf.get_submodule(f"{vlm.family.layers}.{site.layer - 1}")
    if not any(path == place for path, _ in block.named_modules()):
        return site
    return Site(site.layer, vlm.family.kind_at((place, "output")), site.tokens)


def state(bridge: Any) -> bytes:
    """A hash of what changes activations and is neither weight nor hook: a bridge's switches, what is spliced in."""
    norms = [m for m in bridge.original_model.modules() if "use_native_layernorm_autograd" in vars(m)]
    switches = [mark for mark in _marks(bridge) if isinstance(mark[1], bool)]
    facts = [switches, bool(bridge._weights_processed), [m.use_native_layernorm_autograd for m in norms]]
    digest = hashlib.sha256(repr(facts).encode())
    for name, wrapper in saes(bridge).items():
        digest.update(f"{name} {wrapper.use_error_term} {wrapper.sae.cfg}".encode())
        for key, value in sorted(wrapper.sae.state_dict().items()):
            digest.update(key.encode() + changes.of_tensor(value))
    return digest.digest()


@contextlib.contextmanager
def running(family: Family) -> Iterator[None]:
    """For the block only, what a bridge looks for in Hugging Face's linear attention and later versions have elsewhere.

    TransformerLens 3.9 takes causal_conv1d_fn and chunk_gated_delta_rule from the module; transformers 5.23 has them
    beside its class.
    """
    names = ("causal_conv1d_fn", "chunk_gated_delta_rule")
    short = [m for m in getattr(family, "linear", ()) if not hasattr(m, names[0])]
    for module in short:
        rule = getattr(sys.modules[type(module).__module__], f"torch_{names[1]}", None)
        vars(module).update(dict(zip(names, (None, rule), strict=True)))
    try:
        yield
    finally:
        for module in short:
            for name in names:
                vars(module).pop(name, None)


def refuse_outside(vlm: VLM, name: str) -> None:
    """Raise ValueError for a hook of the bridge that lies outside the decoder's blocks."""
    if not name.startswith("blocks.") and name in points(vlm.bridge):
        raise ValueError(
            f"site {name!r}: this hook of the bridge lies outside the decoder's blocks, and sites lie in them. What "
            "enters the first block is 'blocks.0.hook_resid_pre', what leaves the last "
            f"'blocks.{vlm.layers - 1}.hook_resid_post'"
        )


def refuse_unfit(vlm: VLM, site: Site) -> None:
    """Raise ValueError for a hook point that no pass comes by, with the switch that mends it, or that is by heads."""
    from .reading import order_within

    module, side = vlm.family.place(site.kind)
    if site.kind in vlm.family.kinds:
        return
    if f"{module}.{side}" not in order_within(vlm, site.layer):
        gate = getattr(vlm.bridge, "_gated_hook_reason", lambda name: None)(site.tl_name)
        mend = f"call bridge.set_{gate}(True) first" if gate else "no pass of this model comes by it"
        raise ValueError(f"site {site.tl_name!r}: the bridge has this hook but it does not fire: {mend}")
    if _BY_HEADS.intersection(module.split(".")):
        raise ValueError(
            f"site {site.tl_name!r} holds numbers by heads, not (batch, tokens, width): a "
            "direction lives at 'attn.hook_z', what the heads give, or 'attn.hook_q', 'attn.hook_k', 'attn.hook_v'"
        )


_BY_HEADS = {
    "hook_attn_scores",
    "hook_pattern",
    "hook_rot_q",
    "hook_rot_k",
    "hook_result",
    "q_norm",
    "k_norm",
    "v_norm",
}
