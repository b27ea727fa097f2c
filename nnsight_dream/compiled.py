"""The forward pass up to the deepest site as one compiled program: what `nd.load(..., compile=True)` climbs with.

nnsight reads activations by running Python between modules, which torch.compile cannot put into a program. What is
compiled is therefore a twin of the model's root: modules of its own that hold the model's very weights, with no block
behind the deepest site, no final norm, and no trace of nnsight. The model in hand is only looked at.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

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
