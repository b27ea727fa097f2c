"""The proofs of a family's record against a model: paths, prompt, pixels, states, gradient."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import arguments
from ..engine.read import reader, run, states
from ..state.calm import calmly
from . import bridge_proof, gradients
from .frozen import frozen
from .prompt import picture_turn
from .reading import read_pictures, reading
from .sites import Site

if TYPE_CHECKING:
    from .vlm import VLM


@calmly
def check(vlm: VLM) -> None:
    """Prove the family's record against the model; raises ValueError that says what was expected and what is there.

    Paths resolve; the model's own processor puts the image tokens where the record does, and they form its grid;
    pixels packed from [0, 1] equal the processor's; a finite, non-zero gradient reaches the pixels, and it is
    the slope that is measured of every block, and of all together (see `gradients`). What cannot be
    compared is in `vlm.unproved`. For a record that was probed, activations must also be those of the processor's
    own inputs. `nd.load` calls it. The report of ten sections, as `nnsight-dream check` writes it, is
    `nnsight_dream.checkup.examine.examine`.

    >>> import nnsight_dream as nd
    >>> nd.check(nd.load("demo"))  # no error: it agrees with its record
    """
    arguments.model(vlm)
    left_out = set() if vlm.family.probed else {"activations"}
    left_out |= {"slopes"} if vlm.is_demo else set()  # proved by tests, once for all
    for name, prove in PROOFS.items():
        if name not in left_out:
            prove(vlm)


def _check_paths(vlm: VLM) -> None:
    family = vlm.family
    parts = [field for field in ("root", "layers", "tower", "projector") if getattr(family, field)]
    for field in parts:
        path = getattr(family, field)
        try:
            vlm.hf.get_submodule(path)
        except AttributeError:
            there = [n for n, _ in vlm.hf.named_modules() if n and n.count(".") <= 3]
            headless = getattr(vlm.hf, "get_output_embeddings", lambda: None)() is None
            if (
                field == "root"
                and headless
                and set(map(str, family.layers.split("."))) & {n.partition(".")[0] for n in there}
            ):
                raise ValueError(
                    f"{type(vlm.hf).__name__} is the inner part of a model of family {family.name}, without what "
                    "stands around it: give the whole, as AutoModelForImageTextToText.from_pretrained makes it"
                ) from None
            raise ValueError(
                f"family {family.name}: field '{field}' says {path!r}, which is not in {type(vlm.hf).__name__}; the "
                f"nearest are {', '.join(difflib.get_close_matches(path, there, 5, 0.0))}"
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
            f"({type(stack).__name__}); the nearest lists of modules are "
            f"{', '.join(difflib.get_close_matches(family.layers, lists, 5, 0.0))}"
        )
    for field in ("begin_id", "end_id"):
        if getattr(family, field) and not hasattr(vlm.config, getattr(family, field)):
            there = [name for name in vlm.config.to_dict() if name.endswith(("token_id", "token_index"))]
            raise ValueError(
                f"family {family.name}: field '{field}' says {getattr(family, field)!r}, which is not in the config; "
                f"the nearest are {', '.join(difflib.get_close_matches(getattr(family, field), there, 5, 0.0))}"
            )
    for kind, (module, side) in family.kinds.items():
        block = vlm.hf.get_submodule(f"{family.layers}.0")
        if side not in ("input", "output") or module not in dict(block.named_modules()):
            there = difflib.get_close_matches(module, [name for name, _ in block.named_modules() if name], 8, 0.0)
            raise ValueError(
                f"family {family.name}: field 'kinds' says that {kind!r} is the {side!r} of {module!r} in a block; "
                f"sides are 'input' and 'output', the nearest modules {', '.join(there)}"
            )


def _short(text: str) -> str:
    """A text in quotes for a message: a repeated token is written once, and the middle left out."""
    text = re.sub(
        r"(<[^<>]{1,40}>|\[\w{1,40}\])(?:\1){3,}", lambda run: f"{run[1]} ({len(run[0]) // len(run[1])} times)", text
    )
    return repr(text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}")


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
    options: dict[str, Any] = {} if bare else {"add_special_tokens": False}
    text = vlm.placeholder if bare else picture_turn(vlm)
    try:
        batch = vlm.processor(text=[text], images=[[picture]], **options, **vlm.family.views(vlm.pixels))
    except ValueError as error:
        raise ValueError(
            f"family {vlm.family.name}: field 'placeholder' says that {vlm.placeholder!r} stands for a picture; "
            f"this checkpoint's processor, given {_short(text)}, says: {_short(str(error))}"
        ) from error
    own = torch.as_tensor(batch["input_ids"][0])
    mine = prompt.ids
    placed = int((own == vlm.config.image_token_id).sum())
    if placed < rows * cols or (placed > rows * cols and not vlm.family.tiles_behind):
        raise ValueError(
            f"family {vlm.family.name}: field 'grid' says {rows} x {cols} = {rows * cols} image tokens; this "
            f"checkpoint's processor puts {placed}"
        )
    if not torch.equal(own[: len(mine)], mine):
        raise ValueError(
            f"family {vlm.family.name}: fields 'wrapped' and 'placeholder' give {_short(prompt.text)}, but this "
            f"checkpoint's processor gives {_short(vlm.tokenizer.decode(own))}"
        )
    for name, value in batch.items():  # what goes with the ids, token by token
        if name in ("input_ids", "attention_mask", "labels") or np.shape(value) != (1, len(own)):
            continue
        extra = prompt.extra.get(name)
        if extra is None or not torch.equal(extra[0].cpu(), torch.as_tensor(value[0])[: len(mine)]):
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
        batch = images(images=[Image.fromarray(noise)], return_tensors="pt", **family.views(vlm.pixels))
        theirs = family.seen(batch)
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
    """For a probed record: activations must be those of all the processor's own inputs, run by the whole root."""
    from PIL import Image

    height, width = vlm.image_size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    text, options = picture_turn(vlm), {"add_special_tokens": False, "return_tensors": "pt"}
    options |= vlm.family.views(vlm.pixels)
    batch = vlm.processor(text=[text], images=[[Image.fromarray(noise)]], **options)
    inputs = {k: vlm._to(v) for k, v in batch.items() if isinstance(v, torch.Tensor)}
    site = Site(min(2, vlm.layers))
    with torch.no_grad(), vlm.quiet():
        how = reading(vlm, [site])
        (reached,) = run(vlm.model, how.root, [point[1:] for point in how.points], inputs)
        theirs = states(how, site, reached)[:, inputs["input_ids"][0] == vlm.config.image_token_id]
    mine = read_pictures(vlm, torch.from_numpy(noise).permute(2, 0, 1)[None].float() / 255, [site])[site]
    worst = (mine - theirs).norm() / theirs.norm()
    if not worst < (1e-3 if vlm.dtype == torch.float32 else 0.1):
        raise ValueError(
            f"family {vlm.family.name}: the record that was probed gives other activations at {site} than the "
            f"processor's own inputs (they differ by {worst:.2g} of their norm): image tokens may see the text behind "
            "them, or the model take inputs that go unseen. Write a nnsight_dream.Family for it and pass it "
            "as nd.load(..., family=record)"
        )


def _check_bridge(vlm: VLM) -> None:
    if vlm.bridge is not None:
        bridge_proof.prove(vlm)


def refuse_inference(vlm: VLM) -> None:
    """Raise ValueError for weights through which no gradient passes."""
    if any(p.is_inference() for p in vlm.hf.parameters()):
        raise ValueError(
            f"the weights of {vlm.id} were made under torch.inference_mode(), and no gradient passes through such "
            "tensors: make or load the model outside it. For reading alone, load with check=False"
        )


def _check_gradient(vlm: VLM) -> None:
    if "gradient" in vlm.unproved:
        return
    refuse_inference(vlm)
    x, site = _grain(vlm).requires_grad_(True), Site(1)
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


def _check_slopes(vlm: VLM) -> None:
    if "gradient" in vlm.unproved:
        return
    picture, deepest = _grain(vlm), Site(vlm.layers)
    with vlm.alone(), frozen(vlm.hf):  # without checkpointing, which runs layers twice
        how = reading(vlm, [deepest], pictures=True)
        every = dataclasses.replace(how, places={deepest: torch.arange(len(how.ids))})
        read_all, _ = reader(vlm.model, every, full=False)

        def read(view: torch.Tensor) -> torch.Tensor:
            return read_all(view)[deepest]

        gradients.prove(vlm, read, vlm.family.root if vlm.straight_through is None else vlm.family.layers, picture)


def _grain(vlm: VLM) -> torch.Tensor:
    """A grainy grey picture (1, 3, H, W)."""
    height, width = vlm.image_size
    grain = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return (0.4 + 0.2 * grain).to(vlm.device)


#: What a record is proved by, each raising ValueError where it is wrong: what `check` runs, in this order.
PROOFS: dict[str, Callable[[VLM], None]] = {
    "paths": _check_paths,
    "image tokens": _check_prompt,
    "pixels": _check_pixels,
    "activations": _check_states,
    "bridge": _check_bridge,
    "gradient": _check_gradient,
    "slopes": _check_slopes,
}
