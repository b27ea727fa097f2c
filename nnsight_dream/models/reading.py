"""Reading text and pictures at a VLM's sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .. import arguments
from ..engine import jobs, plain, read
from ..remote.run import run
from ..state import interventions
from ..state.calm import calmly
from .checkpoint import positions, refuse_too_long
from .memo import NOT_YET
from .sites import Site

if TYPE_CHECKING:
    from .vlm import VLM


def reading(vlm: VLM, sites: Sequence[Site], pictures: bool = False) -> plain.Reading:
    """All that the engine needs to know of a model to read sites of it; of pictures also the constants, made once."""
    family, prompt = vlm.family, vlm.image_prompt
    _check_edits(vlm)
    encode = family.encode
    if family.resized is not None and vlm.image_size != (vlm.config.vision_config.image_size,) * 2:
        encode = family.resized
    ones = torch.ones(1, 1, dtype=torch.long)
    here = vlm.remote is None
    return plain.Reading(
        root=family.root,
        points=[(site, *vlm._module_path(site)) for site in _in_order(vlm, sites)],
        places={site: _places(vlm, site) for site in sites},
        names={site: vlm.describe(site) for site in sites},
        allowed=f"kinds that do are {', '.join(family.kinds)}, self_attn.o_proj.input, mlp.output",
        first=(f"{family.layers}.0", "output"),
        one_token={"input_ids": ones, "attention_mask": ones, **family.text(ones)},
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
        device=vlm.device if here else None,
        dtype=vlm.dtype if here else None,
        constants=constants(vlm) if here and pictures else None,
    )


def _check_edits(vlm: VLM) -> None:
    """Raise ValueError for edits that would not be replayed."""
    family, edits = vlm.family, vlm.edits
    outside = family.encode is not None or vlm.straight_through is not None
    outside = outside or (family.resized is not None and vlm.own_size is not None)
    if not edits or not outside:
        return
    for part in (family.tower, family.projector):
        if part and any(interventions.touches(edit, part) for edit in edits):
            raise ValueError(
                f"an edit of {vlm.id} names {part}, and its image tokens are made before the trace here, without it: "
                "load the model without image_size= and straight_through= if they are given, or edit the decoder alone"
            )


def _in_order(vlm: VLM, sites: Sequence[Site]) -> list[Site]:
    """Sites in the order in which a forward pass reaches them."""
    ordered = sorted(set(sites), key=lambda s: s.order)
    if all(s.kind in vlm.family.kinds for s in ordered) or len({s.layer for s in ordered}) == len(ordered):
        return ordered

    def place(site: Site) -> tuple[int, int]:
        order = order_within(vlm, site.layer)
        return site.layer, order.get(".".join(vlm.family.place(site.kind)), len(order))

    return sorted(ordered, key=place)


def order_within(vlm: VLM, layer: int) -> dict[str, int]:
    """Where each input and output below a block comes in its forward pass, which only a pass can tell: of one token.

    Of a model whose weights are elsewhere the pass is one of shapes alone.
    """
    block: torch.nn.Module = vlm.hf.get_submodule(vlm.family.layers)[layer - 1]  # type: ignore[index]
    if (order := vlm.memo.order.get(tuple(name for name, _ in block.named_modules()))) is not None:
        return order
    with vlm.alone():
        return _watched_order(vlm, layer)


def _watched_order(vlm: VLM, layer: int) -> dict[str, int]:
    blocks = vlm.hf.get_submodule(vlm.family.layers)
    parts = [tuple(name for name, _ in block.named_modules()) for block in blocks[:layer]]  # type: ignore[index]
    if parts[-1] not in vlm.memo.order:
        reached: list[str] = []
        alike = parts.index(parts[-1])  # the first block of its kind is the cheapest to reach
        handles = []
        for name, module in blocks[alike].named_modules():  # type: ignore[index]
            handles.append(module.register_forward_pre_hook(lambda *_, at=f"{name}.input": reached.append(at)))
            handles.append(module.register_forward_hook(lambda *_, at=f"{name}.output": reached.append(at)))
        try:
            ones = torch.ones(1, 1, dtype=torch.long)
            if vlm.remote is not None and vlm.remote.away:
                inputs = {"input_ids": ones, **vlm.family.text(ones)}  # a mask's values would be looked at
                with torch.no_grad():
                    root = vlm.hf.get_submodule(vlm.family.root)
                    root(**{k: v.to("meta") for k, v in inputs.items()}, use_cache=False)
            else:
                point = f"{vlm.family.layers}.{alike}", "output"
                read.run(vlm.model, vlm.family.root, [point], text_inputs(vlm, ones, ones))
        finally:
            for handle in handles:
                handle.remove()
        vlm.memo.order[parts[-1]] = {at: i for i, at in enumerate(dict.fromkeys(reached))}
    return vlm.memo.order[parts[-1]]


def read_text(
    vlm: VLM, ids: torch.Tensor, mask: torch.Tensor, sites: Sequence[Site | int | str]
) -> dict[Site, torch.Tensor]:
    """Activations (B, T, d) of text at each site, without gradients.

    ids, mask   (B, T) token ids and 1 where a token is real; pad on the right

    Raises ValueError for a text of more tokens than the model has positions.

    >>> import nnsight_dream as nd, torch
    >>> vlm = nd.load("demo")
    >>> ids = torch.tensor([vlm.tokenizer("a red fox")["input_ids"]])
    >>> found = nd.read_text(vlm, ids, torch.ones_like(ids), [4])
    >>> found[vlm.site(4)].shape == (1, ids.shape[1], vlm.width)
    True
    """
    where = _sites(vlm, sites)
    for name, value in (("ids", ids), ("mask", mask)):
        if not isinstance(value, torch.Tensor) or value.ndim != 2:
            raise TypeError(f"{name}={arguments.shown(value)}: a tensor (texts, tokens) is needed")
    how = reading(vlm, where)
    states = run(vlm, jobs.text_states, plain.Text(how, text_inputs(vlm, ids, mask)))
    return _by_site(how, states, where)


def _sites(vlm: VLM, sites: Any) -> list[Site]:
    arguments.model(vlm)
    form = "a layer, a site's name or a Site, or a list of these, is"
    if isinstance(sites, (str, int, Site)):
        return [vlm.site(sites)]
    return [vlm.site(s) for s in arguments.listed(sites, "sites", form)]


def text_inputs(vlm: VLM, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    """A model's inputs of texts (B, T). Raises ValueError for more tokens than it has positions."""
    if vlm.memo.positions == NOT_YET:
        vlm.memo.positions = positions(vlm.hf)
    refuse_too_long(ids.shape[-1], vlm.memo.positions, vlm.id)
    ids = ids.to(vlm.device)
    return {"input_ids": ids, "attention_mask": mask.to(vlm.device), **vlm.family.text(ids)}


def _by_site(how: plain.Reading, values: list[torch.Tensor], sites: list[Site]) -> dict[Site, torch.Tensor]:
    by_site = {point[0]: value for point, value in zip(how.points, values, strict=True)}
    return {site: by_site[site] for site in sites}


def constants(vlm: VLM) -> dict[str, Any]:
    """All inputs of one picture but its pixels, (1, T) each; what does not change from step to step is made once."""
    attention = getattr(vlm.config.get_text_config(), "_attn_implementation", None)
    key = (vlm.device, vlm.dtype, attention)  # what the user may change meanwhile
    kept = vlm.memo.constants.get(key)
    if kept is None or kept[0] is not vlm.image_prompt:
        module: Any = vlm.hf.get_submodule(vlm.family.root)
        before = getattr(module, "rope_deltas", None)  # the model keeps what it works out, for its next words
        with vlm.quiet():
            inputs = read.constants(vlm.model, reading(vlm, []), module, vlm.device, vlm.dtype)
        kept = vlm.memo.constants[key] = (vlm.image_prompt, inputs)
        if vlm.family.positions:
            module.rope_deltas = before
    return dict(kept[1])


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

    >>> import nnsight_dream as nd, torch
    >>> vlm = nd.load("demo")
    >>> found = nd.read_pictures(vlm, torch.full((2, 3, 64, 64), 0.5), [1, 4])
    >>> {site.layer: tuple(patches.shape) for site, patches in found.items()}
    {1: (2, 64, 160), 4: (2, 64, 160)}
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
    if vlm.remote is not None and torch.is_grad_enabled() and pictures.requires_grad:
        raise RuntimeError(
            f"gradients do not leave {vlm.remote}: give pictures.detach(), or climb with nd.synthesize, whose steps "
            "are all done there"
        )
    how = reading(vlm, where, pictures=True)
    return _by_site(how, run(vlm, jobs.patches, plain.Pictures(how, pictures)), where)


@calmly
def mean_patches(
    vlm: VLM, groups: Sequence[torch.Tensor], sites: Sequence[Site | int | str], at_once: int = 16
) -> dict[Site, torch.Tensor]:
    """The mean (d,) at each site over all patches of all pictures, float32; without gradients.

    groups   pictures (B, 3, H, W) in [0, 1], each group of one size; those of one size are run together, at most
             `at_once` in a pass
    """
    where = [vlm.site(s) for s in sites]
    how = reading(vlm, where, pictures=True)
    return _by_site(how, run(vlm, jobs.means, plain.Groups(how, list(groups), at_once)), where)


@calmly
def picture_means(vlm: VLM, groups: Sequence[torch.Tensor], site: Site | int | str, at_once: int = 16) -> torch.Tensor:
    """The mean patch of each picture (pictures, d) at a site, float32; groups as in `mean_patches`.

    Pictures of one size come together, in the order of the first of each size.
    """
    how = reading(vlm, [vlm.site(site)], pictures=True)
    (means,) = run(vlm, jobs.picture_means, plain.Groups(how, list(groups), at_once))
    return means


def _places(vlm: VLM, site: Site) -> torch.Tensor:
    """Where in the prompt the image tokens of a site are."""
    places = vlm.image_prompt.positions
    return places if site.tokens == "image" else places[list(site.tokens)]  # type: ignore[arg-type]


_CUT = (
    "step {step}: no gradient reaches the picture. Something between canvas and score cuts the graph: "
    "a pooling, score, term or augmentation that detaches, or a model run under torch.no_grad()."
)
