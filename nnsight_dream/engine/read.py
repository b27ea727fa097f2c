"""Reading activations where the model is: the only file with nnsight traces.

What these functions need to know of a model is in a `Reading`. They import transformers only for families whose image
tokens are made outside the model. See `engine.plain` for the rules of this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .canvas import full_precision
from .magnify import Magnifier
from .pixels import shares

if TYPE_CHECKING:
    from .plain import Reading

Read = Callable[[torch.Tensor], dict[Any, torch.Tensor]]


def run(
    model: Any, root: str, points: list[tuple[str, str]], inputs: dict[str, Any], sandbox: bool = False
) -> list[Any]:
    """The value at each point (path, "output" or "input"), in the order a pass reaches them; it stops at the last."""
    import nnsight

    wanted = [(model.get(path), side) for path, side in points]
    whole = model if sandbox else model.get(root)
    if sandbox:
        with whole.trace(**inputs, use_cache=False):
            reached = nnsight.save([getattr(envoy, side) for envoy, side in wanted])
        return list(reached)
    return reach(model, whole, wanted, {**inputs, "use_cache": False})


def reach(model: Any, whole: Any, wanted: list[Any], inputs: dict[str, Any]) -> list[Any]:
    """What is at each (module, "output" or "input"), in nnsight's hands, in a call of `whole`, a part of `model`."""
    import nnsight

    late = [i for i, (envoy, side) in enumerate(wanted) if side == "output" and hooked(envoy)]
    if late or model._edits or whole._edits:
        return reach_changed(model, whole, wanted, late, inputs)
    with whole.trace(**inputs) as tracer:
        reached = nnsight.save([getattr(envoy, side) for envoy, side in wanted])
        tracer.stop()
    return list(reached)


def hooked(envoy: Any) -> bool:
    """Whether a user's hooks may change what a module gives; nnsight shows its output as it is before them."""
    everywhere = torch.nn.modules.module._global_forward_hooks
    own = getattr(getattr(envoy, "_module", None), "_forward_hooks", None) or {}
    if not own and not everywhere:
        return False
    ours = ("transformers.", "accelerate.")  # hooks that only look
    return bool(everywhere) or any(not str(getattr(h, "__module__", "")).startswith(ours) for h in own.values())


def reach_changed(model: Any, whole: Any, wanted: list[Any], late: list[int], inputs: dict[str, Any]) -> list[Any]:
    """As `reach`, of a model with edits or hooks of the user's.

    Edits stored on the model are replayed, as in a trace of it: the whole model is called. Outputs of modules with
    hooks are taken behind all of these (`late`).
    """
    call: Any = "__call__"
    if whole is not model and model._edits:
        call, whole = model._module, whole._shallow_copy()
        whole._edits = [*model._edits, *whole._edits]
    caught: dict[int, Any] = {}

    class Reached(Exception):  # nnsight's own stop calls edits of later places errors
        pass

    def keep(place: int, value: Any) -> None:
        caught[place] = value
        if place == len(wanted) - 1:
            raise Reached

    def catch(place: int) -> Any:
        return lambda module, args, output: keep(place, output)

    handles = [wanted[i][0]._module.register_forward_hook(catch(i)) for i in late]
    early = [(i, *point) for i, point in enumerate(wanted) if i not in late]
    try:
        with whole.trace(fn=call, **inputs):
            for place, envoy, side in early:
                keep(place, getattr(envoy, side))
    except Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [caught[i] for i in range(len(wanted))]


def in_sandbox(model: Any, how: Reading) -> bool:
    """Whether a job runs in NDIF's sandbox; where the reading knows the model's device, it runs at home."""
    return how.device is None and sandboxed(model)


def sandboxed(model: Any) -> bool:
    """Whether this runs in NDIF's sandbox, where the model has no weights and activations come without their graph.

    The sandbox (ndif 0.1.2) runs the whole model whichever module is traced, and loses count where a trace is stopped
    and another follows; so there the whole model is traced, and run to its end.
    """
    parameters = getattr(getattr(model, "_module", None), "parameters", None)
    first = None if parameters is None else next(parameters(), None)
    return first is None or first.device.type == "meta"


def states(how: Reading, site: Any, value: Any) -> torch.Tensor:
    """What a module gave, if it is (batch, tokens, width); of several results the first.

    Raises ValueError for anything else.
    """
    value = how.states(value, how.config)
    if not isinstance(value, torch.Tensor) or value.ndim != 3:
        shape = tuple(getattr(value, "shape", ())) or type(value).__name__
        raise ValueError(f"{how.names[site]} holds {shape}, not (batch, tokens, width); {how.allowed}")
    return value


def pixel_inputs(
    how: Reading, root: Any, pictures: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """The inputs that come of pictures: packed pixels, or image tokens where the family makes them its own way.

    root   the module that takes token ids and pixels; only used by families of the second kind

    Raises ValueError for pictures of another shape, RuntimeError where no gradient can pass.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ValueError(f"pictures must be (batch, 3, height, width); got {tuple(pictures.shape)}")
    with full_precision(pictures):
        packed = how.pack(pictures.to(device), how.pixels)
    inputs = {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in packed.items()}
    if how.encode is None and how.temperature is None:
        if how.soft is not None and torch.is_grad_enabled() and pictures.requires_grad:
            raise RuntimeError(how.hard)
        return inputs
    if root is None:
        raise RuntimeError(how.cut)
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    if how.temperature is not None:
        assert how.soft is not None  # a temperature is refused for other families
        tokens = how.soft(root, inputs, how.temperature)
    else:
        assert how.encode is not None
        tokens = how.encode(root, inputs)
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=tokens)}}


def repeated(value: Any, count: int) -> Any:
    """An input of one picture for `count`: (1, T) by rows; positions (axes, 1, T) in the middle; masks broadcast."""
    if isinstance(value, dict):
        return value
    return value.expand(count, -1) if value.ndim == 2 else value.expand(-1, count, -1)


def unedited(whole: Any) -> Any:
    """A module in nnsight's hands without its edits, which would be replayed twice in what is caught once for all."""
    if not whole._edits:
        return whole
    bare = whole._shallow_copy()
    bare._edits = []
    return bare


def caught_masks(model: Any, how: Reading, inputs: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    """The decoder's own attention masks by layer type, (1, 1, T, T), caught on their way into the first blocks.

    Gemma 3 builds them anew in every forward pass (10 to 14 ms); they depend on the prompt alone.
    """
    import nnsight

    blocks = [model.get(path) for _, path in how.masks]
    with torch.no_grad(), unedited(model.get(how.root)).trace(**inputs, use_cache=False) as tracer:
        caught = nnsight.save([block.inputs[1]["attention_mask"] for block in blocks])
        tracer.stop()
    masks = dict(zip((kind for kind, _ in how.masks), caught, strict=True))
    # the root asks for every type that its config knows; blocks of a type that was cut away never see theirs
    every = {"full_attention", "sliding_attention"}
    return {kind: masks.get(kind, next(iter(masks.values()))) for kind in every}


def caught_positions(model: Any, how: Reading, inputs: dict[str, Any]) -> torch.Tensor:
    """The decoder's own position ids, (axes, 1, T), caught on their way into it; they depend on the prompt alone.

    Given to the model, it need not work them out anew in every pass, nor keep what it worked out.
    """
    import nnsight

    stack = model.get(how.positions)
    with torch.no_grad(), unedited(model.get(how.root)).trace(**inputs, use_cache=False) as tracer:
        caught = nnsight.save(stack.inputs[1]["position_ids"])
        tracer.stop()
    position_ids: torch.Tensor = caught
    return position_ids


def constants(
    model: Any, how: Reading, root: Any, device: torch.device, dtype: torch.dtype, sandbox: bool = False
) -> dict[str, Any]:
    """All inputs of one picture but its pixels, (1, T) each: ids, and what depends on them, made once for all steps."""
    extra: dict[str, Any] = {k: v.to(device) for k, v in how.extra.items()}
    ids = how.ids.to(device)[None]
    grey = torch.full((1, 3, *how.pixels.size), 0.5, dtype=torch.float32, device=device)
    if sandbox:
        return {"input_ids": ids, **extra}  # assembled by nnsight, which takes nothing ready
    if how.masks or how.positions:
        with torch.no_grad():
            inputs = {"input_ids": ids, **pixel_inputs(how, root, grey, device, dtype), **extra}
    if how.masks:
        extra = {"attention_mask": caught_masks(model, how, inputs)}
    if how.positions:
        extra["position_ids"] = caught_positions(model, how, {**inputs, **extra})
    return {"input_ids": ids, **extra}


def reader(model: Any, how: Reading, full: bool = True) -> tuple[Read, torch.device]:
    """A function from pictures (B, 3, H, W) to patches (B, n, d) by site; and the device of its tensors.

    full   patches are float32; else of the type in which the model computes. Gradients of those in float32 pass through
           a float16 model without loss (see `magnify`)
    """
    sandbox = in_sandbox(model, how)
    device, dtype = how.device, how.dtype
    if device is None or dtype is None:
        with torch.no_grad():
            (first,) = run(model, how.root, [how.first], how.one_token, sandbox)
            first = how.states(first, how.config)
        device, dtype = first.device, first.dtype
    root = getattr(model.get(how.root), "_module", None) if how.encode or how.soft else None
    single = constants(model, how, root, device, dtype, sandbox) if how.constants is None else how.constants
    fixed: dict[int, dict[str, Any]] = {}  # by number of pictures
    points = [point[1:] for point in how.points]

    def read(pictures: torch.Tensor) -> dict[Any, torch.Tensor]:
        count = len(pictures)
        if count not in fixed:
            fixed[count] = {k: repeated(v, count) for k, v in single.items()}
        small = full and dtype == torch.float16 and torch.is_grad_enabled() and pictures.requires_grad
        magnifier = Magnifier() if small else None
        if magnifier is not None:
            pictures = magnifier.pictures(pictures)
        inputs = {**fixed[count], **pixel_inputs(how, root, pictures, device, dtype)}
        patches = {}
        for (site, _, _), value in zip(how.points, run(model, how.root, points, inputs, sandbox), strict=True):
            activation = states(how, site, value)
            rows = activation[:, how.places[site].to(activation.device)]
            rows = rows.float() if full else rows
            patches[site] = (rows if magnifier is None else magnifier.patches(rows)).to(device)
        return patches

    return read, device


def unpacked(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures in [0, 1] of such that travelled as 8-bit values."""
    return shares(pictures) if pictures.dtype == torch.uint8 else pictures


def own_tokens(model: Any, how: Reading, batches: list[Any], points: list[Any]) -> dict[Any, list[torch.Tensor]]:
    """By site, of each text the activations (tokens, d) of its own tokens, in float32, where the model's are.

    batches   (inputs, own tokens of each row) as `directions.text` makes them; points   those of the reading to look at
    """
    sandbox, paths = in_sandbox(model, how), [point[1:] for point in points]
    rows: dict[Any, list[torch.Tensor]] = {site: [] for site, _, _ in points}
    for inputs, own in batches:
        with torch.no_grad():
            values = run(model, how.root, paths, inputs, sandbox)
        for (site, _, _), value in zip(points, values, strict=True):
            for state, tokens in zip(states(how, site, value).detach(), own, strict=True):
                rows[site].append(state[tokens].float())
    return rows


def text_means(model: Any, how: Reading, batches: list[Any], points: list[Any]) -> dict[Any, torch.Tensor]:
    """Activations (N, d), float32 on the CPU, by site: of each text the mean over its own tokens (see `own_tokens`)."""
    rows = own_tokens(model, how, batches, points)
    return {site: torch.stack([row.mean(0).cpu() for row in of_site]) for site, of_site in rows.items()}
