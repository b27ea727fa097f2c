"""The forward pass up to the deepest site as one compiled program: what `nd.load(..., compile=True)` climbs with.

nnsight reads activations by running Python between modules, which torch.compile cannot put into a program. What is
compiled is therefore a twin of the model's root: modules of its own that hold the model's very weights, with no block
behind the deepest site, no final norm, and no trace of nnsight. The model in hand is only looked at.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..state import changes
from . import compiled
from .reading import _run, _states

if TYPE_CHECKING:
    from .sites import Site
    from .vlm import VLM


def _runner(vlm: VLM, sites: Sequence[Site]) -> Callable[[dict[str, Any]], dict[Site, torch.Tensor]]:
    """What reads the sites in an ascent: `_run`, or the same compiled, if the model was loaded with compile=."""
    if vlm.compiled is None:
        return lambda inputs: _run(vlm, sites, inputs)
    vlm.refuse_edits("a program of torch.compile (compile=)")
    root = vlm.hf.get_submodule(vlm.family.root)
    attention = getattr(vlm.config.get_text_config(), "_attn_implementation", None)
    own_hooks = tuple(id(hook) for _, _, hook in changes.hooks(vlm.hf))
    parts = hash((tuple(map(id, vlm.hf.modules())), own_hooks))  # what the user may change meanwhile
    key = ("compiled", tuple(sites), vlm.compiled, attention, parts)
    if key not in vlm.memo.programs:
        inside = len(vlm.family.root) + 1
        points = [(path[inside:], side) for path, side in map(vlm._module_path, sites)]
        depth = max(site.layer for site in sites)
        vlm.memo.programs[key] = compiled.cut(root, vlm.family.layers[inside:], points, depth, vlm.compiled)
    program = vlm.memo.programs[key]
    proved: set[tuple[int, ...]] = set()

    def run(inputs: dict[str, Any]) -> dict[Site, torch.Tensor]:
        found = {s: _states(vlm, s, value) for s, value in zip(sites, program(inputs), strict=True)}
        shape = tuple(inputs["input_ids"].shape)
        if shape not in proved:
            _prove_compiled(vlm, found, inputs)
            proved.add(shape)
        return found

    return run


def _prove_compiled(vlm: VLM, found: dict[Site, torch.Tensor], inputs: dict[str, Any]) -> None:
    """Activations of the compiled program must be the model's own."""
    with torch.no_grad():
        plain = _run(vlm, list(found), inputs)
    for site, value in found.items():
        off = (value.detach().float() - plain[site].float()).norm() / plain[site].float().norm().clamp(min=1e-30)
        if not off < (1e-3 if vlm.dtype == torch.float32 else 0.1):
            raise RuntimeError(
                f"the program that torch.compile made ({vlm.compiled}) gives other activations at {vlm.describe(site)} "
                f"than {vlm.id} itself: they differ by {off:.2g} of their norm. Load the model without compile="
            )


# transformers checks that there are as many image tokens as places for them: without these the check cuts a Gemma 3's
# program in two. Other families have towers that need some tensors' values as numbers, and are cut there instead
_WHOLE = {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True}


def twin(module: torch.nn.Module, made: dict[int, torch.nn.Module] | None = None) -> torch.nn.Module:
    """A module of new modules with the same weights, buffers and settings; hooks can be added to it alone."""
    made = {} if made is None else made
    if id(module) in made:
        return made[id(module)]
    new: torch.nn.Module = object.__new__(type(module))
    made[id(module)] = new
    state = dict(module.__dict__)
    if type(state.get("forward")).__module__.startswith("nnsight."):  # it would run the model's own modules
        del state["forward"]
    state = {name: value for name, value in state.items() if not name.startswith("__nnsight")}
    for name in (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
    ):
        state[name] = OrderedDict(state[name])
    state["_modules"] = {name: part if part is None else twin(part, made) for name, part in module._modules.items()}
    new.__dict__.update(state)
    return new


def cut(
    root: torch.nn.Module, layers: str, points: Sequence[tuple[str, str]], depth: int, backend: str
) -> Callable[[dict[str, Any]], list[Any]]:
    """A compiled function from a root module's inputs to what is at each point, in the points' order.

    root     the module that takes token ids and pixels
    layers   the path of its list of blocks, of which `depth` are run
    points   (path of a module, "output" or "input"), all within those blocks
    backend  of torch.compile; a program is made anew for every shape of inputs
    """
    from torch._dynamo import config  # seconds

    own = twin(root)
    above, _, name = layers.rpartition(".")
    stack = own.get_submodule(above)
    stack._modules[name] = torch.nn.ModuleList(list(stack._modules[name])[:depth])  # type: ignore[call-overload]
    if "norm" in stack._modules:
        stack._modules["norm"] = torch.nn.Identity()
    caught: dict[int, Any] = {}
    for i, (path, side) in enumerate(points):
        _watch(own.get_submodule(path), side, i, caught)

    def run(inputs: dict[str, Any]) -> list[Any]:
        own(**inputs, use_cache=False)
        return [caught[i] for i in range(len(points))]

    # torch counts programs by a function's code, and gives up after eight: each cut has code of its own
    alone = types.FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)
    program = torch.compile(alone, backend=backend, dynamic=False)

    def run_whole(inputs: dict[str, Any]) -> list[Any]:
        plain = "image_position_ids" in inputs or not isinstance(inputs.get("attention_mask"), dict)
        with config.patch({} if plain else _WHOLE):
            return program(inputs)

    return run_whole


def _watch(module: torch.nn.Module, side: str, place: int, into: dict[int, Any]) -> None:
    """Have what a module gives, or gets first, put at a place."""

    def given(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        into[place] = args[0] if args else next(iter(named.values()))

    def gives(_: Any, args: tuple[Any, ...], output: Any) -> None:
        into[place] = output

    if side == "input":
        module.register_forward_pre_hook(given, with_kwargs=True)
    else:
        module.register_forward_hook(gives)
