"""Gradients: that what autograd gives is the slope of what the model computes, measured block by block.

A quantised layer or an inference kernel may have no backward pass, or a wrong one; a climb would then follow a wrong
gradient without an error. Pictures are read a little to either side along one direction, and every block's own
derivative is held against the difference that is measured there.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from .slopes import Part, Slope, Unit, slope_of, slope_of_unit

if TYPE_CHECKING:
    from .vlm import VLM


Read = Callable[[torch.Tensor], torch.Tensor]


_PROVED: weakref.WeakKeyDictionary[torch.nn.Module, set[Any]] = weakref.WeakKeyDictionary()


_ADVICE = (
    "A climb would follow a wrong gradient without a sign of it. Load weights that are not quantised, or by a "
    "quantisation that has a backward pass (bitsandbytes has), without kernels for inference, and look for a hook or "
    "an edit that detaches. For reading alone, load with check=False"
)


def prove(vlm: VLM, read: Read, inside: str, picture: torch.Tensor) -> None:
    """Raise ValueError where the gradient is not the slope of what is read; once for a model as it is.

    read     from a picture (1, 3, H, W) to activations at the deepest site, with their graph if gradients are on
    inside   the path below which modules are looked at
    """
    modules = [(n, m) for n, m in vlm.hf.named_modules() if n == inside or n.startswith(f"{inside}.")]
    proved = _PROVED.setdefault(vlm.hf, set())
    forwards = tuple((id(m), id(type(m)), id(m.__dict__.get("forward")), id(m._forward_hooks)) for _, m in modules)
    key = hash((forwards, vlm.dtype, vlm.device, str(vlm.chosen), vlm.state_of_changes()))
    if key not in proved:
        _prove(vlm, read, dict(modules), picture)
        proved.add(key)


def _prove(vlm: VLM, read: Read, modules: dict[str, torch.nn.Module], picture: torch.Tensor) -> None:
    exact = vlm.dtype in (torch.float32, torch.float64)
    watch = _Watch(modules, _blocks(vlm, modules))
    x = picture.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        last = watch.run(read, x)
    here, cut = watch.units, watch.cut
    if not last.requires_grad:
        raise ValueError(f"{vlm.id}: no gradient comes from {watch.called(cut[-1][0]) if cut else 'it'}. {_ADVICE}")
    together = ""
    if vlm.straight_through is None:
        together = _whole(watch, read, picture, x, last, exact)
        _refuse(vlm, together if "passes on" in together else "")
    else:  # words are chosen before the decoder, by steps: there is no slope
        moved: dict[tuple[str, int], torch.Tensor] = {}
        with torch.no_grad():
            for other in (picture, 1 - picture):
                watch.run(read, other, looked=cut, moved=moved)
        _refuse(vlm, watch.silent(moved))
    unsure = list(range(len(here)))
    while unsure:  # again without the others, of which a block may see something another way (keys of earlier layers)
        left, wrong = _local(watch, read, picture, here, unsure, exact)
        if len(left) == len(unsure) > 1:
            left, wrong = _local(watch, read, picture, here, unsure[:1], exact)
            left += unsure[1:] if not left else []
        if len(left) == len(unsure) or left == unsure[:1]:
            _refuse(vlm, wrong)
        unsure = left
    _refuse(vlm, together)


def _refuse(vlm: VLM, wrong: str) -> None:
    if wrong:
        raise ValueError(f"{vlm.id}: {wrong}. {_ADVICE}")


def _whole(watch: _Watch, read: Read, picture: torch.Tensor, x: torch.Tensor, last: torch.Tensor, exact: bool) -> str:
    """What is wrong with the gradient of all layers together, or passes none on; "" where no fault shows."""
    direction = torch.randn(picture.shape, generator=torch.Generator().manual_seed(1)).to(picture)
    size, best = 0.01 if exact else 0.05, Slope()
    for aim in (1e-2, 1e-3, 1e-4) if exact else (0.1, 0.03):
        moved: dict[tuple[str, int], torch.Tensor] = {}
        with torch.no_grad():
            above = watch.run(read, picture + size * direction, looked=watch.cut, moved=moved)
            below = watch.run(read, picture - size * direction, looked=watch.cut, moved=moved)
        if silent := watch.silent(moved):
            return silent
        part = Part(last, above, below)
        best = min(best, slope_of([part], x, size * direction), key=lambda slope: slope.bend)
        if best.bend < 0.1:
            break
        moves = float(part.change.norm() / last.detach().float().norm())
        size = min(0.3, max(1e-6, size * aim / max(moves, 1e-12)))
    return "" if best.right(exact) else best.words("the whole model")


def _local(
    watch: _Watch, read: Read, picture: torch.Tensor, here: list[Unit], indices: list[int], exact: bool
) -> tuple[list[int], str]:
    """Those of the blocks whose gradient is not the slope of what they give, by their places, and what is wrong.

    In two passes each block gets its own input a little changed to either side, and not what the one before it gives:
    so a wild model is as near to straight as a tame one.
    """
    best = {i: Slope() for i in indices}
    for size in (1e-2, 1e-3, 0.1) if exact else (0.05, 0.15, 0.02):  # far enough for eight bits to tell
        sides: list[list[Unit]] = []
        steps = []
        for i, unit in enumerate(here):
            noise = torch.zeros(()) if unit.enters is None else torch.empty(unit.enters.shape)
            noise.normal_(generator=torch.Generator().manual_seed(i))
            steps.append(size * noise if i in best else 0 * noise)
        with torch.no_grad():
            for sign in (1, -1):
                inputs = [
                    None if u.enters is None else u.enters.detach() * (1 + sign * step.to(u.enters))
                    for u, step in zip(here, steps, strict=True)
                ]
                watch.run(read, picture, inputs=inputs)
                sides.append(watch.units)
        for i in best:
            best[i] = min(best[i], slope_of_unit(here[i], sides[0][i], sides[1][i]), key=lambda slope: slope.bend)
        if all(slope.bend < 0.1 for slope in best.values()):
            break
    wrong = [i for i, slope in best.items() if not slope.right(exact)]
    return wrong, best[wrong[0]].words(watch.called(here[wrong[0]].path)) if wrong else ""


def _blocks(vlm: VLM, modules: dict[str, torch.nn.Module]) -> dict[str, str]:
    """Blocks of decoder and tower, and their larger parts: path to the path of the block."""
    tower = {id(m) for m in vlm.tower_layers} if vlm.straight_through is None else set()
    stack = vlm.family.layers
    units = [
        path
        for path, module in modules.items()
        if id(module) in tower
        or path == vlm.family.projector != ""
        or (path.rpartition(".")[0] == stack and path.rpartition(".")[2].isdigit())
    ]
    blocks = {}
    for path in units:
        blocks[path] = path
        for name, child in modules[path].named_children() if path != vlm.family.projector else ():
            if any(True for _ in child.children()):
                blocks[f"{path}.{name}"] = path
    return blocks


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Tensors of real numbers in what a module takes or gives."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


class _Watch:
    """Hooks on a model's modules, for one pass at a time: what blocks take and give, and what passes on no gradient.

    blocks   the path of a block, or of a part of it, to the path of the block
    units    the blocks of the last pass, in the order in which they ran; cut   (path, calls before) of the last pass
             with gradients
    """

    def __init__(self, modules: dict[str, torch.nn.Module], blocks: dict[str, str]):
        self.modules, self.blocks = modules, blocks
        self.units: list[Unit] = []
        self.cut: list[tuple[str, int]] = []

    def called(self, path: str) -> str:
        """A module's path and class."""
        return f"{path} ({type(self.modules[path]).__name__})"

    def silent(self, moved: dict[tuple[str, int], torch.Tensor]) -> str:
        """What passes on no gradient, although what it gives changes from picture to picture; "" for nothing."""
        for path, call in self.cut:
            if (path, call) in moved and bool(moved[path, call].any()):
                return f"{self.called(path)} passes on no gradient, and what it gives changes with the picture"
        return ""

    def run(
        self,
        read: Read,
        x: torch.Tensor,
        inputs: list[torch.Tensor | None] | None = None,
        looked: list[tuple[str, int]] | tuple[()] = (),
        moved: dict[tuple[str, int], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """What is read of a picture, with blocks given `inputs` of their own, in the order in which they run.

        Of the calls `looked` at, `moved` takes what they give, then the difference to that.
        """
        self.units = []
        calls: dict[str, int] = {}
        within: dict[str, Unit] = {}
        graph = x.requires_grad
        if graph:
            self.cut = []

        def enter(module: Any, args: Any, named: Any, path: str) -> Any:
            unit = Unit(path)
            self.units.append(unit)
            within[path] = unit
            own = None if inputs is None else inputs[len(self.units) - 1]
            if own is not None:
                args, named = _with_first(args, named, own)
            unit.enters = next(_tensors((args, named)), None)
            return args, named

        def leave(module: Any, args: Any, named: Any, output: Any, path: str) -> None:
            place = (path, calls.get(path, 0))
            calls[path] = place[1] + 1
            outputs = list(_tensors(output))
            silent = graph and outputs and not any(t.requires_grad for t in outputs)
            if silent and any(t.requires_grad for t in _tensors((args, named))):
                self.cut.append(place)
            if moved is not None and place in looked:
                flat = torch.cat([t.detach().float().flatten() for t in outputs])
                moved[place] = flat - moved[place] if place in moved else flat
            unit = within.get(self.blocks.get(path, ""))
            if unit is None or not outputs:
                return
            kept = outputs[0] if graph else outputs[0].detach().clone()
            if path == unit.path:
                unit.gives = kept
                del within[path]
            else:
                unit.parts[path] = kept

        handles = []
        for path, module in self.modules.items():
            if self.blocks.get(path) == path:
                handles.append(module.register_forward_pre_hook(functools.partial(enter, path=path), with_kwargs=True))
            handles.append(module.register_forward_hook(functools.partial(leave, path=path), with_kwargs=True))
        try:
            return read(x)
        finally:
            for handle in handles:
                handle.remove()


def _with_first(args: Any, named: Any, value: torch.Tensor) -> Any:
    """Arguments with the first tensor of real numbers replaced."""
    for i, argument in enumerate(args):
        if isinstance(argument, torch.Tensor) and argument.is_floating_point():
            return (*args[:i], value, *args[i + 1 :]), named
    for name, argument in named.items():
        if isinstance(argument, torch.Tensor) and argument.is_floating_point():
            return args, {**named, name: value}
    return args, named
