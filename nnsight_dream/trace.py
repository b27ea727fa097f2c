"""Reading and climbing a model: the only file with nnsight `with` blocks.

Every pass stops after the deepest site that is asked for: no later block, no head, no cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from . import arguments, changes, compiled, gradients, remote, shipped, shipped_jobs, shipped_scores
from .calm import calmly
from .checkpoints import positions, refuse_too_long
from .pixels import PixelFormat
from .shipped import Step
from .sites import Site
from .vlm import VLM, _frozen, _picture_turn


def _run(vlm: VLM, sites: Sequence[Site], inputs: dict[str, Any]) -> dict[Site, torch.Tensor]:
    """Activations (B, T, d) of whole sequences at each site, with their graph if gradients are on."""
    ordered = _in_order(vlm, sites)
    reached = shipped.run(vlm.model, vlm.family.root, [vlm._module_path(site) for site in ordered], inputs)
    return {site: _states(vlm, site, value) for site, value in zip(ordered, reached, strict=True)}


def reading(vlm: VLM, sites: Sequence[Site]) -> shipped.Plain:
    """All that `shipped` needs to know of a model to read sites of it."""
    family, prompt = vlm.family, vlm.image_prompt
    _check_edits(vlm)
    encode = family.encode
    if family.resized is not None and vlm.image_size != (vlm.config.vision_config.image_size,) * 2:
        encode = family.resized
    one = torch.ones(1, 1, dtype=torch.long)
    return shipped.Plain(
        root=family.root,
        points=[(site, *vlm._module_path(site)) for site in _in_order(vlm, sites)],
        places={site: _places(vlm, site) for site in sites},
        said={site: vlm.describe(site) for site in sites},
        allowed=_allowed(vlm),
        first=(f"{family.layers}.0", "output"),
        one_token={"input_ids": one, "attention_mask": one, **family.text(one)},
        ids=prompt.ids,
        extra=dict(prompt.extra),
        pack=family.pack,
        pixels=vlm.pixels,
        encode=encode,
        soft=family.surrogate,
        temperature=vlm.straight_through,
        hard=_HARD.format(name=family.name),
        states=family.states,
        config=vlm.config,
        masks=_first_of_each_type(vlm) if family.masks else [],
        positions=family.layers.rpartition(".")[0] if family.positions else "",
        cut=_CUT,
        sandbox=False,
    )


def _check_edits(vlm: VLM) -> None:
    """Raise ValueError for edits that would not be replayed."""
    family, edits = vlm.family, vlm.edits
    outside = family.encode is not None or vlm.straight_through is not None
    outside = outside or (family.resized is not None and vlm.own_size is not None)
    if not edits or not outside:
        return
    for part in (family.tower, family.projector):
        if part and any(changes.touches(edit, part) for edit in edits):
            raise ValueError(
                f"an edit of {vlm.id} names {part}, and its image tokens are made before the trace here, without it: "
                "load the model without image_size= and straight_through= if they are given, or edit the decoder alone"
            )


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
    if key not in vlm._cache:
        inside = len(vlm.family.root) + 1
        points = [(path[inside:], side) for path, side in map(vlm._module_path, sites)]
        depth = max(site.layer for site in sites)
        vlm._cache[key] = compiled.cut(root, vlm.family.layers[inside:], points, depth, vlm.compiled)
    program = vlm._cache[key]
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


def _in_order(vlm: VLM, sites: Sequence[Site]) -> list[Site]:
    """Sites in the order in which a forward pass reaches them."""
    found = sorted(set(sites), key=lambda s: s.order)
    if all(s.kind in vlm.family.kinds for s in found) or len({s.layer for s in found}) == len(found):
        return found
    kinds = vlm.family.kinds

    def place(site: Site) -> tuple[int, int]:
        came = _order_within(vlm, site.layer)
        return site.layer, came.get(".".join(kinds.get(site.kind, (site.kind,))), len(came))

    return sorted(found, key=place)


def _order_within(vlm: VLM, layer: int) -> dict[str, int]:
    """Where each input and output below a block comes in its forward pass, which only a pass can tell: of one token.

    Of a model whose weights are elsewhere the pass is one of shapes alone.
    """
    with vlm.alone():
        return _order_found(vlm, layer)


def _order_found(vlm: VLM, layer: int) -> dict[str, int]:
    blocks = vlm.hf.get_submodule(vlm.family.layers)
    parts = [tuple(name for name, _ in block.named_modules()) for block in blocks[:layer]]  # type: ignore[index]
    key = "order", parts[-1]
    if key not in vlm._cache:
        came: list[str] = []
        alike = parts.index(parts[-1])  # the first block of its kind is the cheapest to reach
        handles = []
        for name, module in blocks[alike].named_modules():  # type: ignore[index]
            handles.append(module.register_forward_pre_hook(lambda *_, at=f"{name}.input": came.append(at)))
            handles.append(module.register_forward_hook(lambda *_, at=f"{name}.output": came.append(at)))
        try:
            one = torch.ones(1, 1, dtype=torch.long)
            if vlm.remote is not None and vlm.remote.away:
                inputs = {"input_ids": one, **vlm.family.text(one)}  # a mask's values would be looked at
                with torch.no_grad():
                    root = vlm.hf.get_submodule(vlm.family.root)
                    root(**{k: v.to("meta") for k, v in inputs.items()}, use_cache=False)
            else:
                _run(vlm, [Site(alike + 1)], _text_inputs(vlm, one, one))
        finally:
            for handle in handles:
                handle.remove()
        vlm._cache[key] = {at: i for i, at in enumerate(dict.fromkeys(came))}
    return vlm._cache[key]


def _states(vlm: VLM, site: Site, value: Any) -> torch.Tensor:
    """What a module gave, if it is (batch, tokens, width); of several results the first."""
    value = vlm.family.states(value, vlm.config)
    if not isinstance(value, torch.Tensor) or value.ndim != 3:
        raise ValueError(
            f"{vlm.describe(site)} holds {tuple(getattr(value, 'shape', ())) or type(value).__name__}, not (batch, "
            f"tokens, width); {_allowed(vlm)}"
        )
    return value


def _allowed(vlm: VLM) -> str:
    return f"kinds that do are {', '.join(vlm.family.kinds)}, self_attn.o_proj.input, mlp.output"


def read_text(
    vlm: VLM, ids: torch.Tensor, mask: torch.Tensor, sites: Sequence[Site | int | str]
) -> dict[Site, torch.Tensor]:
    """Activations (B, T, d) of text at each site, without gradients.

    ids, mask   (B, T) token ids and 1 where a token is real; pad on the right

    Raises ValueError for a text of more tokens than the model has positions.
    """
    where = _sites(vlm, sites)
    for name, value in (("ids", ids), ("mask", mask)):
        if not isinstance(value, torch.Tensor) or value.ndim != 2:
            raise TypeError(f"{name}={arguments.shown(value)}: a tensor (texts, tokens) is needed")
    inputs = _text_inputs(vlm, ids, mask)
    if vlm.remote is not None:
        how = reading(vlm, where)
        told = shipped.Plain(how=how, sites=how.points, inputs=inputs)
        return _by_site(how, remote.run(vlm, shipped_jobs.text_states, told))
    with torch.no_grad(), vlm.quiet():
        return {s: a.detach() for s, a in _run(vlm, where, inputs).items()}


def _sites(vlm: VLM, sites: Any) -> list[Site]:
    arguments.model(vlm)
    form = "a layer, a site's name or a Site, or a list of these, is"
    if isinstance(sites, (str, int, Site)):
        return [vlm.site(sites)]
    return [vlm.site(s) for s in arguments.listed(sites, "sites", form)]


def _text_inputs(vlm: VLM, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    if "positions" not in vlm._cache:
        vlm._cache["positions"] = positions(vlm.hf)
    refuse_too_long(ids.shape[-1], vlm._cache["positions"], vlm.id)
    ids = ids.to(vlm.device)
    return {"input_ids": ids, "attention_mask": mask.to(vlm.device), **vlm.family.text(ids)}


def _by_site(how: Any, values: list[torch.Tensor]) -> dict[Site, torch.Tensor]:
    return {point[0]: value for point, value in zip(how.points, values, strict=True)}


def _picture_inputs(vlm: VLM, count: int) -> dict[str, Any]:
    """All inputs but the pixels for `count` pictures; what does not change from step to step is made once."""
    attention = getattr(vlm.config.get_text_config(), "_attn_implementation", None)
    key = ("constants", vlm.device, vlm.dtype, attention)  # what the user may change meanwhile
    kept = vlm._cache.get(key)
    if kept is None or kept[0] is not vlm.image_prompt:
        module: Any = vlm.hf.get_submodule(vlm.family.root)
        before = getattr(module, "rope_deltas", None)  # the model keeps what it works out, for its next words
        with vlm.quiet():
            made = shipped.constants(vlm.model, reading(vlm, []), module, vlm.device, vlm.dtype)
        kept = vlm._cache[key] = (vlm.image_prompt, made)
        if vlm.family.positions:
            module.rope_deltas = before
    return {k: shipped.repeated(v, count) for k, v in kept[1].items()}


def _pixel_inputs(vlm: VLM, pictures: torch.Tensor) -> dict[str, Any]:
    """The inputs that come of pictures: packed pixels, or image tokens where the family makes them its own way."""
    chosen = (vlm.family, vlm.pixels, vlm.straight_through)
    kept = vlm._cache.get("packing")
    if kept is None or any(a is not b for a, b in zip(kept[0], chosen, strict=True)):
        kept = vlm._cache["packing"] = (chosen, reading(vlm, []))
    how = kept[1]
    root = vlm.hf.get_submodule(vlm.family.root)
    return shipped.pixel_inputs(how, root, pictures, vlm.device, vlm.dtype)


_HARD = (
    "{name} turns pictures into words of a code book, and no gradient passes through that choice. Load it with "
    "straight_through=1.0 (a temperature) to climb by the gradient of soft words instead: a biased guess, since the "
    "model never computes with soft words"
)


def _first_of_each_type(vlm: VLM) -> list[tuple[str, str]]:
    """(type of layer, path of the first block of that type)."""
    types = vlm.config.get_text_config().layer_types[: vlm.layers]
    firsts = sorted(types.index(t) for t in set(types))
    return [(types[i], f"{vlm.family.layers}.{i}") for i in firsts]


def read_pictures(vlm: VLM, pictures: torch.Tensor, sites: Sequence[Site | int | str]) -> dict[Site, torch.Tensor]:
    """Patch activations (B, n, d) of pictures (B, 3, H, W) in [0, 1] at each site, n image tokens row by row.

    Carries the graph back to `pictures` where they require gradients (RuntimeError for a remote model); weights are
    frozen meanwhile.
    """
    where = _sites(vlm, sites)
    if not isinstance(pictures, torch.Tensor):
        raise TypeError(
            f"pictures={arguments.shown(pictures)}: a tensor (pictures, 3, height, width) in [0, 1] is needed; "
            "nd.from_images takes PIL images"
        )
    low, high = (float(x) for x in pictures.detach().aminmax()) if pictures.numel() else (0.0, 1.0)
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise ValueError(f"pictures are in [0, 1]; got {low:.3g} to {high:.3g}. Divide 8-bit values by 255")
    needed = torch.is_grad_enabled() and pictures.requires_grad
    if vlm.remote is not None:
        if needed:
            raise RuntimeError(
                f"gradients do not leave {vlm.remote}: give pictures.detach(), or climb with nd.synthesize, whose "
                "steps are all done there"
            )
        how = reading(vlm, where)
        return _by_site(how, remote.run(vlm, shipped_jobs.patches, shipped.Plain(how=how, pictures=pictures)))
    with torch.set_grad_enabled(needed), vlm.quiet():
        inputs = {**_picture_inputs(vlm, len(pictures)), **_pixel_inputs(vlm, pictures)}
        found = _run(vlm, where, inputs)
        return {site: _at(vlm, site, found[site]) for site in where}


@calmly
def mean_patches(
    vlm: VLM, groups: Sequence[torch.Tensor], sites: Sequence[Site | int | str], at_once: int = 16
) -> dict[Site, torch.Tensor]:
    """The mean (d,) at each site over all patches of all pictures, float32; without gradients.

    groups   pictures (B, 3, H, W) in [0, 1], each group of one size; those of one size are run together, at most
             `at_once` in a pass
    """
    where = [vlm.site(s) for s in sites]
    if vlm.remote is not None:
        how = reading(vlm, where)
        return _by_site(
            how, remote.run(vlm, shipped_jobs.means, shipped.Plain(how=how, pictures=list(groups), at_once=at_once))
        )

    def read(part: torch.Tensor) -> dict[Site, torch.Tensor]:
        found = read_pictures(vlm, part.to(vlm.device), where)
        return {site: patches.to(vlm.device) for site, patches in found.items()}

    return shipped_scores.mean_patches(read, list(groups), where, at_once)


def _places(vlm: VLM, site: Site) -> torch.Tensor:
    """Where in the prompt the image tokens of a site are."""
    places = vlm.image_prompt.positions
    return places if site.tokens == "image" else places[list(site.tokens)]  # type: ignore[arg-type]


def _at(vlm: VLM, site: Site, activation: torch.Tensor) -> torch.Tensor:
    return activation[:, _places(vlm, site).to(activation.device)]


# -- the climb ---------------------------------------------------------------------------------------------------


class Canvas(Protocol):
    """How pictures are held: see `canvas.py`."""

    @property
    def size(self) -> int: ...

    def start(self, jobs: int, generators: list[torch.Generator], device: torch.device) -> list[torch.Tensor]: ...

    def render(self, parts: list[torch.Tensor]) -> torch.Tensor: ...


Augmentation = Callable[[torch.Tensor, list[torch.Generator], int], torch.Tensor]


Term = Callable[[Step], torch.Tensor]


@dataclass(frozen=True)
class Climb:
    """How an ascent goes: `steps` of an optimiser on the canvas's parts, gradients clipped job by job.

    at_once   the most views in one pass: more of a step go in turn. None: all in one
    """

    steps: int
    batch: int
    rate: float
    clip: float
    optimiser: str = "sgd"
    schedule: str = "constant"
    at_once: int | None = None


def ascend(
    vlm: VLM,
    canvas: Canvas,
    augment: Sequence[Augmentation],
    terms: Sequence[Term],
    sites: Sequence[Site],
    climb: Climb,
    generators: list[torch.Generator],
    watch: Callable[[int, torch.Tensor], None] | None = None,
    parts: list[torch.Tensor] | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor, bool]:
    """Climb the sum of `terms`, each (J,), for J jobs at once; jobs share nothing but the forward pass.

    One generator a job is the only source of chance, so that a job gives the same picture alone and in company.
    Returns the parts of the canvas, the history of scores (steps done, J) and whether it was interrupted (Ctrl-C).
    Where a GPU's memory does not do, the climb begins again with the vision tower checkpointed, and says so.
    Raises FloatingPointError where a score or gradient is not finite, RuntimeError where none reaches the canvas.
    """
    given = (vlm, canvas, augment, terms, sites, climb, generators, watch, parts)
    before = [g.get_state() for g in generators]
    try:
        return _ascend(*given)
    except torch.OutOfMemoryError:
        if vlm.checkpoint_tower or not vlm.tower_layers:
            raise
    warnings.warn(_SHORT.format(id=vlm.id), stacklevel=2)
    vlm.checkpoint_tower = True
    for generator, state in zip(generators, before, strict=True):
        generator.set_state(state)
    return _ascend(*given)


_SHORT = (
    "{id}: the device's memory is too small for a step as it is; the climb begins again, and from now on activations "
    "of the vision tower are computed anew in the backward pass (nd.load(..., checkpoint_tower=True) does so at once). "
    "A smaller batch= or at_once= saves memory too"
)


def _ascend(
    vlm: VLM,
    canvas: Canvas,
    augment: Sequence[Augmentation],
    terms: Sequence[Term],
    sites: Sequence[Site],
    climb: Climb,
    generators: list[torch.Generator],
    watch: Callable[[int, torch.Tensor], None] | None,
    parts: list[torch.Tensor] | None,
) -> tuple[list[torch.Tensor], torch.Tensor, bool]:
    jobs = len(generators)
    where = [vlm.site(s) for s in sites]
    _refuse_inference(vlm)
    with vlm.quiet():
        parts = canvas.start(jobs, generators, vlm.device) if parts is None else parts
        parts = [p.detach().clone().requires_grad_(True) for p in parts]
        constants = {jobs * climb.batch: _picture_inputs(vlm, jobs * climb.batch)}  # by number of views
        run = _runner(vlm, where)

        def read(views: torch.Tensor) -> dict[Site, torch.Tensor]:
            if len(views) not in constants:  # of a pass that holds a part of a step's
                constants[len(views)] = _picture_inputs(vlm, len(views))
            found = run({**constants[len(views)], **_pixel_inputs(vlm, views)})
            return {site: _at(vlm, site, found[site]).float().to(vlm.device) for site in where}

        optimiser, steps = shipped.optimiser_of(climb, parts), range(climb.steps)
        history, interrupted = shipped.climb(
            read, canvas, augment, terms, climb, generators, parts, optimiser, steps, vlm.grid, _CUT, watch
        )
    empty = torch.zeros(0, jobs, device=vlm.device)
    return [p.detach() for p in parts], torch.stack(history) if history else empty, interrupted


_CUT = (
    "step {step}: no gradient reaches the picture. Something between canvas and score cuts the graph: "
    "a pooling, score, term or augmentation that detaches, or a model run under torch.no_grad()."
)


# -- the check ---------------------------------------------------------------------------------------------------


@calmly
def check(vlm: VLM) -> None:
    """Prove the family's record against the model; raises ValueError that says what was looked for and what is there.

    Paths resolve; the model's own processor puts the image tokens where the record does, and they form its grid;
    pixels packed from [0, 1] equal the processor's; a finite, non-zero gradient reaches the pixels, and it is
    the slope that is measured of every block, and of all together (see `gradients`). What cannot be
    compared is told by `vlm.unproved`. For a record that was probed, activations must also be those of the processor's
    own inputs.
    """
    arguments.model(vlm)
    _check_paths(vlm)
    _check_prompt(vlm)
    _check_pixels(vlm)
    if vlm.family.probed:
        _check_states(vlm)
    _check_gradient(vlm)


def _check_paths(vlm: VLM) -> None:
    family = vlm.family
    parts = [field for field in ("root", "layers", "tower", "projector") if getattr(family, field)]
    for field in parts:
        path = getattr(family, field)
        try:
            vlm.hf.get_submodule(path)
        except AttributeError:
            there = [n for n, _ in vlm.hf.named_modules() if n and n.count(".") <= 2]
            raise ValueError(
                f"family {family.name}: field '{field}' says {path!r}, which is not in {type(vlm.hf).__name__}; there "
                f"is {', '.join(there[:20])}"
            ) from None
    for field in parts[1:]:
        path = getattr(family, field)
        if not path.startswith(f"{family.root}."):
            raise ValueError(
                f"family {family.name}: field 'root' says {family.root!r}, but field '{field}', {path!r}, is outside"
            )
    stack: torch.nn.Module = vlm.hf.get_decoder()  # type: ignore[operator]
    if vlm.hf.get_submodule(family.layers) not in list(stack.children()):
        lists = [name for name, m in vlm.hf.named_modules() if isinstance(m, torch.nn.ModuleList)]
        raise ValueError(
            f"family {family.name}: field 'layers' says {family.layers!r}, which is not part of the decoder "
            f"({type(stack).__name__}); lists of modules are {', '.join(lists)}"
        )
    for field in ("begin_id", "end_id"):
        if getattr(family, field) and not hasattr(vlm.config, getattr(family, field)):
            there = [name for name in vlm.config.to_dict() if name.endswith(("token_id", "token_index"))]
            raise ValueError(
                f"family {family.name}: field '{field}' says {getattr(family, field)!r}, which is not in the config; "
                f"there is {', '.join(there)}"
            )
    for kind, (module, side) in family.kinds.items():
        block = vlm.hf.get_submodule(f"{family.layers}.0")
        if side not in ("input", "output") or module not in dict(block.named_modules()):
            there = [name for name, _ in block.named_modules() if name]
            raise ValueError(
                f"family {family.name}: field 'kinds' says that {kind!r} is the {side!r} of {module!r} in a block; "
                f"sides are 'input' and 'output', modules {', '.join(there)}"
            )


def _check_prompt(vlm: VLM) -> None:
    rows, cols = vlm.grid
    prompt = vlm.image_prompt
    if len(prompt.positions) != rows * cols:
        raise ValueError(
            f"family {vlm.family.name}: field 'grid' says {rows} x {cols} = {rows * cols} image tokens; the prompt has "
            f"{len(prompt.positions)}"
        )
    height, width = vlm.image_size
    if rows * width != cols * height:  # patches are square
        raise ValueError(
            f"family {vlm.family.name}: field 'grid' says {rows} x {cols}, which is not the shape of a picture of "
            f"{height} x {width} pixels"
        )
    if "image tokens" in vlm.unproved:
        return
    from PIL import Image

    picture = Image.new("RGB", (vlm.image_size[1], vlm.image_size[0]), (128, 128, 128))
    # a family's own template stands for what its processor writes around the words by itself
    bare = vlm.chat_template == vlm.family.chat_template
    told: dict[str, Any] = {} if bare else {"add_special_tokens": False}
    text = vlm.placeholder if bare else _picture_turn(vlm)
    try:
        given = vlm.processor(text=[text], images=[[picture]], **told, **vlm.family.views(vlm.pixels))
    except ValueError as error:
        raise ValueError(
            f"family {vlm.family.name}: field 'placeholder' says that {vlm.placeholder!r} stands for a picture; "
            f"this checkpoint's processor, given {text!r}, says: {error}"
        ) from error
    own = torch.as_tensor(given["input_ids"][0])
    mine = prompt.ids
    placed = int((own == vlm.config.image_token_id).sum())
    if placed < rows * cols or (placed > rows * cols and not vlm.family.tiles_behind):
        raise ValueError(
            f"family {vlm.family.name}: field 'grid' says {rows} x {cols} = {rows * cols} image tokens; this "
            f"checkpoint's processor puts {placed}"
        )
    if not torch.equal(own[: len(mine)], mine):
        raise ValueError(
            f"family {vlm.family.name}: fields 'wrapped' and 'placeholder' give {prompt.text!r}, but this checkpoint's "
            f"processor gives {vlm.tokenizer.decode(own)!r}"
        )
    for name, value in given.items():  # what goes with the ids, token by token
        if name in ("input_ids", "attention_mask", "labels") or np.shape(value) != (1, len(own)):
            continue
        made = prompt.extra.get(name)
        if made is None or not torch.equal(made[0].cpu(), torch.as_tensor(value[0])[: len(mine)]):
            raise ValueError(
                f"family {vlm.family.name}: field 'extra' makes {', '.join(prompt.extra) or 'nothing'}; this "
                f"checkpoint's processor also gives {name}, or gives it other values"
            )


def _keeps_shape(vlm: VLM) -> bool:
    """Whether the image processor makes views of many shapes, each like its picture's."""
    size = getattr(vlm.processor.image_processor, "size", None) or {}
    return vlm.pixels.any_size and "height" not in size


def _check_pixels(vlm: VLM) -> None:
    from PIL import Image

    family, (height, width) = vlm.family, vlm.image_size
    if "pixels" in vlm.unproved:
        return
    other = (max(8, height * 3 // 4), max(8, width // 2))  # not square: tiling would show
    if _keeps_shape(vlm):  # this model run sees pictures of one shape only
        other = (height, width) if family.probed else (2 * height, 2 * width)
    for size in ((height, width), other):
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        images = vlm.processor.image_processor
        made = images(images=[Image.fromarray(noise)], return_tensors="pt", **family.views(vlm.pixels))
        theirs = family.seen(made)
        x = torch.from_numpy(noise).permute(2, 0, 1)[None].float() / 255
        mine = family.pack(x, vlm.pixels)
        for name, value in mine.items():
            if name not in theirs or theirs[name].shape != value.shape:
                raise ValueError(
                    f"family {family.name}: field 'pack' makes {name} {tuple(value.shape)}, the processor "
                    f"{tuple(theirs[name].shape) if name in theirs else 'none'} (tiling or splitting must be off)"
                )
            if not value.is_floating_point() and not torch.equal(value, theirs[name]):
                raise ValueError(
                    f"family {family.name}: field 'pack' makes {name} {value.tolist()[:4]}, the processor "
                    f"{theirs[name].tolist()[:4]}"
                )
        # PIL resizes in whole 8-bit steps; at the model's own size nothing is rounded
        allowed = 1e-5 if size == (height, width) else 1.5 / 255 / min(vlm.pixels.std)
        worst = (theirs["pixel_values"] - mine["pixel_values"]).abs().max().item()
        if worst > allowed:
            raise ValueError(
                f"family {family.name}: field 'pack' differs from {type(images).__name__} "
                f"by {worst:.3g} (allowed {allowed:.3g}) on a {size[1]} x {size[0]} picture; numbers used: {vlm.pixels}"
            )


def _check_states(vlm: VLM) -> None:
    """A record that nobody wrote: activations must be those of all that the processor makes, run by the whole root."""
    from PIL import Image

    height, width = vlm.image_size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    text, options = _picture_turn(vlm), {"add_special_tokens": False, "return_tensors": "pt"}
    options |= vlm.family.views(vlm.pixels)
    made = vlm.processor(text=[text], images=[[Image.fromarray(noise)]], **options)
    given = {k: vlm._to(v) for k, v in made.items() if isinstance(v, torch.Tensor)}
    site = Site(min(2, vlm.layers))
    with torch.no_grad(), vlm.quiet():
        theirs = _run(vlm, [site], given)[site][:, given["input_ids"][0] == vlm.config.image_token_id]
    mine = read_pictures(vlm, torch.from_numpy(noise).permute(2, 0, 1)[None].float() / 255, [site])[site]
    worst = (mine - theirs).norm() / theirs.norm()
    if not worst < (1e-3 if vlm.dtype == torch.float32 else 0.1):
        raise ValueError(
            f"family {vlm.family.name}: the record that was probed gives other activations at {site} than the "
            f"processor's own inputs (they differ by {worst:.2g} of their norm): image tokens may see the text behind "
            "them, or the model take inputs that go unseen. Write a nnsight_dream.families.Family for it and pass it "
            "as nd.load(..., family=record)"
        )


def _refuse_inference(vlm: VLM) -> None:
    if any(p.is_inference() for p in vlm.hf.parameters()):
        raise ValueError(
            f"the weights of {vlm.id} were made under torch.inference_mode(), and no gradient passes through such "
            "tensors: make or load the model outside it. For reading alone, load with check=False"
        )


def _check_gradient(vlm: VLM) -> None:
    if "gradient" in vlm.unproved:
        return
    _refuse_inference(vlm)
    height, width = vlm.image_size
    grain = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    x = (0.4 + 0.2 * grain).to(vlm.device).requires_grad_(True)
    site = Site(1)
    with torch.enable_grad():
        patches = read_pictures(vlm, x, [site])[site]
        if not patches.requires_grad:
            raise ValueError(
                f"{vlm.id}: no gradient reaches layer 1: something before it detaches, a hook, an edit or a layer "
                "without a backward pass. For reading alone, load with check=False"
            )
        probe = torch.linspace(-1, 1, patches.shape[-1], device=patches.device)
        (gradient,) = torch.autograd.grad((patches.float() @ probe).sum(), x)
    reached = (gradient != 0).any(1).float().mean().item()
    if not torch.isfinite(gradient).all() or reached < 0.5:
        raise ValueError(
            f"family {vlm.family.name}: the gradient of layer 1's patches reaches {reached:.0%} of the pixels"
            f"{'' if torch.isfinite(gradient).all() else ' and is not finite'}. A model made from a config alone has a "
            "projector of zeros: load trained weights, or randomise it (nnsight_dream never changes your weights)."
        )
    picture, deepest = x.detach(), Site(vlm.layers)
    del gradient, x, patches
    if vlm.is_demo:  # proved by tests, once for all
        return
    with vlm.alone(), _frozen(vlm.hf):  # without checkpointing, which runs layers twice
        constants = _picture_inputs(vlm, 1)

        def read(view: torch.Tensor) -> torch.Tensor:
            return _run(vlm, [deepest], {**constants, **_pixel_inputs(vlm, view)})[deepest]

        gradients.prove(vlm, read, vlm.family.root if vlm.straight_through is None else vlm.family.layers, picture)


__all__ = ["Climb", "PixelFormat", "Step", "ascend", "check", "mean_patches", "read_pictures", "read_text"]
