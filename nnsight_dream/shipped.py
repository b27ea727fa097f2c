"""What a server runs: reading activations, the climb, the measuring of its pictures; here and there the same lines.

These functions are sent as source to a server that has no `nnsight_dream` (see `shipping`): they import torch and math,
nnsight for its traces, and transformers only for families whose image tokens are made outside the model. What they need
to know of a model is told by a `Reading`. Devices and types are those of tensors that the model hands back; no tensor
is made without both. A job's result is plain: dicts, lists, numbers, tensors on the CPU.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from .canvas import _full_precision


class Plain:
    """Named facts and nothing else."""

    def __init__(self, **facts: Any) -> None:
        self.__dict__.update(facts)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...


class Numbers(Plain):
    """What of a config is plain data."""

    def get_text_config(self) -> Numbers:
        return self


class Step:
    """What an objective or an added term sees at one step.

    pictures   (J, 3, H, W) clean pictures, one a job
    views      (J * batch, 3, H, W) augmented, job by job
    patches    by site (J * batch, n, d), float32
    progress   0 at the first step, 1 at the last
    """

    def __init__(
        self,
        pictures: torch.Tensor,
        views: torch.Tensor,
        patches: dict[Any, torch.Tensor],
        batch: int,
        grid: tuple[int, int],
        progress: float,
    ) -> None:
        self.pictures: torch.Tensor = pictures
        self.views: torch.Tensor = views
        self.patches = patches
        self.batch: int = batch
        self.grid: tuple[int, int] = grid
        self.progress: float = progress


# -- reading -----------------------------------------------------------------------------------------------------


def run(
    model: Any, root: str, points: list[tuple[str, str]], inputs: dict[str, Any], sandbox: bool = False
) -> list[Any]:
    """What is at each point (path, "output" or "input"), given in the order a pass reaches them; there it stops."""
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


def sandboxed(model: Any) -> bool:
    """Whether this runs in NDIF's sandbox, where the model has no weights and activations come without their graph.

    The sandbox (ndif 0.1.2) runs the whole model whichever module is traced, and loses count where a trace is stopped
    and another follows; so there the whole model is traced, and run to its end.
    """
    parameters = getattr(getattr(model, "_module", None), "parameters", None)
    first = None if parameters is None else next(parameters(), None)
    return first is None or first.device.type == "meta"


def states(how: Any, site: Any, value: Any) -> torch.Tensor:
    """What a module gave, if it is (batch, tokens, width); of several results the first."""
    value = how.states(value, how.config)
    if not isinstance(value, torch.Tensor) or value.ndim != 3:
        given = tuple(getattr(value, "shape", ())) or type(value).__name__
        raise ValueError(f"{how.said[site]} holds {given}, not (batch, tokens, width); {how.allowed}")
    return value


def pixel_inputs(
    how: Any, root: Any, pictures: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """The inputs that come of pictures: packed pixels, or image tokens where the family makes them its own way.

    root   the module that takes token ids and pixels; only used by families of the second kind
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ValueError(f"pictures must be (batch, 3, height, width); got {tuple(pictures.shape)}")
    with _full_precision(pictures):
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
        tokens = how.soft(root, inputs, how.temperature)
    else:
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


def caught_masks(model: Any, how: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    """The decoder's own attention masks by layer type, (1, 1, T, T), caught on their way into the first blocks.

    Gemma 3 builds them anew in every forward pass (10 to 14 ms); they depend on the prompt alone.
    """
    import nnsight

    blocks = [model.get(path) for _, path in how.masks]
    with torch.no_grad(), unedited(model.get(how.root)).trace(**inputs, use_cache=False) as tracer:
        caught = nnsight.save([block.inputs[1]["attention_mask"] for block in blocks])
        tracer.stop()
    found = dict(zip((kind for kind, _ in how.masks), caught, strict=True))
    # the root asks for every type that its config knows; blocks of a type that was cut away never see theirs
    every = {"full_attention", "sliding_attention"}
    return {kind: found.get(kind, next(iter(found.values()))) for kind in every}


def caught_positions(model: Any, how: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The decoder's own position ids, (axes, 1, T), caught on their way into it; they depend on the prompt alone.

    Given to the model, it need not work them out anew in every pass, nor keep what it worked out.
    """
    import nnsight

    stack = model.get(how.positions)
    with torch.no_grad(), unedited(model.get(how.root)).trace(**inputs, use_cache=False) as tracer:
        caught = nnsight.save(stack.inputs[1]["position_ids"])
        tracer.stop()
    return caught


def constants(model: Any, how: Any, root: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """All inputs of one picture but its pixels, (1, T) each: ids, and what depends on them, made once for all steps."""
    extra = {k: v.to(device) for k, v in how.extra.items()}
    ids = how.ids.to(device)[None]
    grey = torch.full((1, 3, *how.pixels.size), 0.5, dtype=torch.float32, device=device)
    if how.sandbox:
        return {"input_ids": ids, **extra}  # assembled by nnsight, which takes nothing ready
    if how.masks or how.positions:
        with torch.no_grad():
            inputs = {"input_ids": ids, **pixel_inputs(how, root, grey, device, dtype), **extra}
    if how.masks:
        extra = {"attention_mask": caught_masks(model, how, inputs)}
    if how.positions:
        extra["position_ids"] = caught_positions(model, how, {**inputs, **extra})
    return {"input_ids": ids, **extra}


def reader(model: Any, how: Any, full: bool = True) -> tuple[Any, torch.device]:
    """A function from pictures (B, 3, H, W) to patches (B, n, d) by site; and the device of its tensors.

    full   patches are float32; else of the type in which the model computes
    """
    with torch.no_grad():
        (first,) = run(model, how.root, [how.first], how.one_token, how.sandbox)
        first = how.states(first, how.config)
    device, dtype = first.device, first.dtype
    root = getattr(model.get(how.root), "_module", None) if how.encode or how.soft else None
    fixed = constants(model, how, root, device, dtype)

    def read(pictures: torch.Tensor) -> dict[Any, torch.Tensor]:
        inputs = {k: repeated(v, len(pictures)) for k, v in fixed.items()}
        inputs.update(pixel_inputs(how, root, pictures, device, dtype))
        found = run(model, how.root, [point[1:] for point in how.points], inputs, how.sandbox)
        patches = {}
        for (site, _, _), value in zip(how.points, found, strict=True):
            activation = states(how, site, value)
            rows = activation[:, how.places[site].to(activation.device)]
            patches[site] = (rows.float() if full else rows).to(device)
        return patches

    return read, device


def unpacked(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures in [0, 1] of such that travelled as 8-bit values."""
    return pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures


def text_means(model: Any, how: Any, batches: list[Any], sites: list[Any]) -> dict[Any, torch.Tensor]:
    """Activations (N, d), float32 on the CPU, by site: of each text the mean over its own tokens.

    batches   (inputs, own tokens of each row) as `concepts` makes them
    sites     (site, path, side) in the order a pass reaches them
    """
    found: dict[Any, list[torch.Tensor]] = {site: [] for site, _, _ in sites}
    for inputs, own in batches:
        with torch.no_grad():
            values = run(model, how.root, [point[1:] for point in sites], inputs, how.sandbox)
        for (site, _, _), value in zip(sites, values, strict=True):
            for state, tokens in zip(states(how, site, value.detach()), own, strict=True):
                found[site].append(state[tokens].float().mean(0).cpu())
    return {site: torch.stack(rows) for site, rows in found.items()}


# -- the climb ---------------------------------------------------------------------------------------------------


def optimiser_of(plan: Any, parts: list[torch.Tensor]) -> torch.optim.Optimizer:
    """The optimiser that a plan names, on a canvas's parts."""
    if plan.optimiser == "sgd":
        return torch.optim.SGD(parts, lr=plan.rate, momentum=0.9)
    return torch.optim.Adam(parts, lr=plan.rate)


def clipped(gradients: Any, most: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Each job's gradient scaled to a norm of at most `most`, over all its parts; and the norms (J,) before."""
    squares = [g.detach().abs().square().flatten(1).sum(1) for g in gradients]
    norm = torch.stack(squares).sum(0).sqrt()
    factor = (most / norm.clamp(min=1e-30)).clamp(max=1.0)
    return [g * factor.view(-1, *[1] * (g.ndim - 1)) for g in gradients], norm


def climb(
    read: Any,
    canvas: Any,
    augment: Any,
    terms: Any,
    plan: Any,
    generators: list[torch.Generator],
    parts: list[torch.Tensor],
    optimiser: torch.optim.Optimizer,
    steps: range,
    grid: tuple[int, int],
    cut: str,
    tell: Any = None,
) -> tuple[list[torch.Tensor], bool]:
    """Climb the sum of `terms`, each (J,), by moving parts of the canvas, for some `steps` of a plan (a range).

    read   from views to patches by site, float32 on the parts' device; cut   what to say where no gradient comes back
    plan   steps, batch, rate, clip, schedule, and `at_once`: the most views in a pass, None for all
    Returns the scores (J,) of each step that was done, and whether a KeyboardInterrupt ended it.
    """
    history = []
    for step in steps:
        try:
            progress = step / max(1, plan.steps - 1)
            with torch.enable_grad():
                with _full_precision(parts[0]):
                    pictures = canvas.render(parts)
                    views = pictures.repeat_interleave(plan.batch, 0)
                    for change in augment:
                        views = change(views, generators, plan.batch)
                score, gradients = slopes(read, terms, plan, pictures, views, parts, grid, step, progress, cut)
            if any(g is None for g in gradients):
                raise RuntimeError(cut.format(step=step))
            shortened, norm = clipped(gradients, plan.clip)
            prove_norms(norm, step)
            for part, gradient in zip(parts, shortened, strict=True):
                part.grad = gradient
            if plan.schedule == "cosine":
                for group in optimiser.param_groups:
                    group["lr"] = plan.rate * 0.5 * (1 + math.cos(math.pi * step / plan.steps))  # never 0
            optimiser.step()
            history.append(score.detach())
            if tell is not None:
                tell(step, history[-1])
        except KeyboardInterrupt:
            return history, True
    return history, False


def slopes(
    read: Any,
    terms: Any,
    plan: Any,
    pictures: torch.Tensor,
    views: torch.Tensor,
    parts: list[torch.Tensor],
    grid: tuple[int, int],
    step: int,
    progress: float,
    cut: str,
) -> tuple[torch.Tensor, Any]:
    """The scores (J,) of a step, and the parts' gradient of minus their sum; at most `plan.at_once` views a pass."""
    passes = 1 if plan.at_once is None else -(-len(views) // plan.at_once)
    kept: Any = None
    if passes == 1:
        patches = read(views)
    else:
        patches, kept = read_in_turn(read, views, passes)
    with _full_precision(parts[0]):
        now = Step(pictures, views, patches, plan.batch, grid, progress)
        score = added([term(now) for term in terms], len(pictures))
    prove_score(score, step, cut)
    falling = -score.sum()  # the one minus sign
    if passes == 1:
        return score, torch.autograd.grad(falling, parts, allow_unused=True)
    pulls = torch.autograd.grad(falling, list(patches.values()), retain_graph=True, allow_unused=True)
    pulled = {site: pull for site, pull in zip(patches, pulls, strict=True) if pull is not None}
    through = carried_back(read, kept, pulled, cut.format(step=step))
    return score, torch.autograd.grad([falling, views], parts, [None, through], allow_unused=True)


def added(scores: list[Any], jobs: int) -> torch.Tensor:
    """The sum of terms, each (J,)."""
    try:
        return torch.stack(scores).sum(0)
    except (RuntimeError, TypeError):
        given = [tuple(s.shape) if isinstance(s, torch.Tensor) else type(s).__name__ for s in scores]
        if all(shape == (jobs,) for shape in given):
            raise
        raise ValueError(
            f"the objectives and terms of a step give {given}; each must give a tensor of {(jobs,)}, a number for each "
            "of the pictures that are climbed together"
        ) from None


def read_in_turn(read: Any, views: torch.Tensor, passes: int) -> tuple[dict[Any, torch.Tensor], Any]:
    """Patches by site, all of them leaves of a graph, of views that are read in several passes; and what comes back.

    Passes are as equal as can be. No pass but the last keeps its activations, so that memory is that of one: for the
    gradient the others are run once more, when the score of all views is known (Gao et al. 2021, arXiv 2101.06983).
    """
    pieces = [piece.requires_grad_(True) for piece in views.detach().tensor_split(passes)]
    with torch.no_grad():
        seen = [read(piece) for piece in pieces[:-1]]
    last = read(pieces[-1])
    seen.append({site: patches.detach() for site, patches in last.items()})
    leaves = {site: torch.cat([one[site] for one in seen]).requires_grad_(True) for site in last}
    return leaves, (pieces, last)


def carried_back(read: Any, kept: Any, pulled: dict[Any, torch.Tensor], cut: str) -> torch.Tensor:
    """The gradient at the views (J * batch, 3, H, W), pass by pass, from that at their patches by site."""
    pieces, patches = kept
    ends = torch.tensor([len(piece) for piece in pieces], dtype=torch.long, device="cpu").cumsum(0).tolist()
    found = []
    for piece, end in reversed(list(zip(pieces, ends, strict=True))):
        patches = read(piece) if patches is None else patches
        reached = [site for site in pulled if patches[site].requires_grad]
        if pulled and not reached:
            raise RuntimeError(cut)
        towards = [pulled[site][end - len(piece) : end] for site in reached]
        (slope,) = torch.autograd.grad([patches[site] for site in reached], piece, towards) if reached else (None,)
        found.append(torch.zeros_like(piece) if slope is None else slope)
        patches = None  # one pass's activations at a time
    return torch.cat(found[::-1])


def prove_score(score: torch.Tensor, step: int, cut: str) -> None:
    """Raise for a score that is not finite, or that no gradient can come from."""
    if not torch.isfinite(score).all():
        bad = (~torch.isfinite(score)).nonzero().flatten().tolist()
        raise FloatingPointError(
            f"step {step}: the score of job {bad} is not finite. A direction of zeros, a score or term of your own, "
            "or float16 activations can cause it; load the model with dtype=torch.bfloat16 or torch.float32."
        )
    if not score.requires_grad:
        raise RuntimeError(cut.format(step=step))


def prove_norms(norm: torch.Tensor, step: int) -> None:
    """Raise for gradients that are not finite, or at the first step zero."""
    if not torch.isfinite(norm).all():
        raise FloatingPointError(
            f"step {step}: the gradient is not finite; load the model with dtype=torch.bfloat16 or torch.float32"
        )
    if step == 0 and (norm == 0).any():
        raise RuntimeError(
            f"step 0: the gradient at the picture is exactly zero for job {(norm == 0).nonzero().flatten().tolist()}. "
            "A freshly made Gemma 3 has a projector of zeros (load trained weights), or the objective does not depend "
            "on the picture (a direction of zeros, weights that are all zero)."
        )


def eight_bit(canvas: Any, parts: list[torch.Tensor]) -> torch.Tensor:
    """The pictures (J, H, W, 3) of a canvas's parts, as the 8-bit values that a file holds."""
    with torch.no_grad():
        rendered = canvas.render(parts).clamp(0, 1)
    return (rendered * 255).round().byte().permute(0, 2, 3, 1)
