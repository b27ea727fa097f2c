"""A record for a model of an unknown family, probed from the model and its processor.

Nearly all of Hugging Face's vision-language models share a seam: a module that takes token ids and pixels and holds a
decoder of blocks, and a processor that puts image tokens where a picture stands. What a model does otherwise is found
here or by the check of its record, and told; nothing is guessed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..engine.pixels import PixelFormat, merged_patches, one_of_several, plain_pixels
from . import templates
from .families import GEMMA3, LLAVA, known_families
from .family import RESIDUAL, Family, cells

SIDE = 448  # of the picture that is shown to the processor, in pixels


# with which processors are known to leave a picture whole
WHOLE: tuple[dict[str, Any], ...] = ({}, {"crop_to_patches": False}, {"do_image_splitting": False, "do_resize": False})


def probe(hf: Any, processor: Any) -> Family:
    """A record for a model (a Hugging Face module and its processor), named after its model type.

    Raises ValueError that says which part of it could not be found.
    """
    decoder, layers = _decoder(hf)
    root = _root(hf, decoder)
    image = getattr(hf.config, "image_token_id", None)
    if image is None:
        raise _lost(hf, "image tokens", "its config has no image_token_id: pictures are not tokens of the sequence")
    lost: list[ValueError] = []
    for options in WHOLE:
        try:
            batch = _shown(hf, processor, image, options)
            pack, pixels, rows, cols = _pixels(hf, processor, batch, int((batch["input_ids"][0] == image).sum()))
            break
        except ValueError as error:
            lost.append(error)
    else:
        raise lost[0]
    placeholder, wrapped = _wrapped(hf, processor, batch["input_ids"][0].tolist(), image)
    block = hf.get_submodule(f"{layers}.0")
    kinds: Mapping[str, tuple[str, str]] = RESIDUAL
    hooks: Mapping[str, tuple[str, str]] = {}
    for family in (GEMMA3, LLAVA):
        modules = {module for module, _ in family.kinds.values()} | {module for module, _ in family.hooks.values()}
        if modules <= {name for name, _ in block.named_modules()}:
            kinds, hooks = family.kinds, family.hooks
            break
    return Family(
        name=hf.config.model_type,
        model_types=(hf.config.model_type,),
        root=root,
        layers=layers,
        tower="",
        projector="",
        placeholder=placeholder,
        wrapped=wrapped,
        grid=lambda config, pixels: cells(config, pixels) if pixels.any_size else (rows, cols),
        pack=pack,
        pixels=lambda images, config: pixels,
        views=lambda pixels: options,
        extra=_extra(hf, batch, image),
        kinds=kinds,
        hooks=hooks,
        positions=hasattr(hf.get_submodule(root), "rope_deltas"),
        probed=True,
    )


def _lost(hf: Any, what: str, why: str) -> ValueError:
    return ValueError(
        f"no family record for model_type {hf.config.model_type!r}, and {what} could not be found in "
        f"{type(hf).__name__}: {why}. Known families: {known_families()}. Write a nnsight_dream.Family for it "
        "and pass it as nd.load(..., family=record)"
    )


def _decoder(hf: Any) -> tuple[torch.nn.Module, str]:
    decoder = hf.get_decoder() if hasattr(hf, "get_decoder") else None
    path = next((name for name, module in hf.named_modules() if module is decoder), "")
    if not path or not isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList):
        raise _lost(hf, "the decoder", "get_decoder() gives no module with a list of 'layers'")
    return decoder, f"{path}.layers"  # type: ignore[return-value]


def _root(hf: Any, decoder: torch.nn.Module) -> str:
    """The outermost module without a head that takes token ids and pixels, and holds the decoder."""
    for name, module in hf.named_modules():
        takes = inspect.signature(module.forward).parameters
        if name and {"input_ids", "pixel_values"} <= set(takes) and any(m is decoder for m in module.modules()):
            return name
    raise _lost(hf, "the root", "no module below the head takes input_ids and pixel_values and holds the decoder")


def _shown(hf: Any, processor: Any, image: int, options: dict[str, Any]) -> Any:
    """The processor's inputs for a plain picture and no word."""
    from PIL import Image

    if not callable(processor):
        raise _lost(hf, "the prompt", "it needs the whole processor of the checkpoint, which was not given")
    picture = Image.new("RGB", (SIDE, SIDE), (120, 130, 140))
    settings = {"add_special_tokens": False, "return_tensors": "pt", **options}
    try:
        batch = processor(text=[_turn(processor, True)], images=[[picture]], **settings)
    except Exception as error:  # whatever a stranger's code raises
        raise _lost(hf, "the prompt", f"its processor cannot be given a picture in a chat ({error})") from error
    if image not in batch["input_ids"][0]:
        raise _lost(hf, "image tokens", f"its processor puts no token {image} where the picture stands")
    return batch


def _turn(processor: Any, picture: bool) -> str:
    content = [{"type": "image"}] * picture + [{"type": "text", "text": ""}]
    own = getattr(processor.tokenizer, "chat_template", None) or getattr(processor, "chat_template", None)
    template = templates.chosen(own)
    turn = [{"role": "user", "content": content}]
    return str(processor.tokenizer.apply_chat_template(turn, tokenize=False, chat_template=template))


def _pixels(
    hf: Any, processor: Any, batch: Any, count: int
) -> tuple[Callable[[torch.Tensor, PixelFormat], dict[str, torch.Tensor]], PixelFormat, int, int]:
    """How pictures are packed, by the shape of the processor's own pixels; the grid of its tokens."""
    images, values = processor.image_processor, batch["pixel_values"]
    side = math.isqrt(count)
    if values.ndim == 2 and "image_grid_thw" in batch and hasattr(images, "merge_size"):
        patch, merge = images.patch_size, images.merge_size
        rows, cols = (int(n) // merge for n in batch["image_grid_thw"][0, 1:])
        size = (rows * merge * patch, cols * merge * patch)
        frames = getattr(images, "temporal_patch_size", 1)
        numbers = {"cell": patch * merge, "any_size": True, "patch": patch, "merge": merge, "frames": frames}
        return merged_patches, PixelFormat.of(images, size, **numbers), rows, cols
    if side * side != count:
        raise _lost(
            hf, "the grid", f"its processor puts {count} image tokens for a square picture, which is no square number"
        )
    for pack, ndim in ((plain_pixels, 4), (one_of_several, 5)):
        if values.ndim == ndim and values.shape[: ndim - 3] == (1,) * (ndim - 3) and values.shape[-3] == 3:
            pixels = PixelFormat.of(images, tuple(values.shape[-2:]))
            return pack, replace(pixels, crop=bool(getattr(images, "do_center_crop", False))), side, side
    raise _lost(
        hf,
        "the packing of pixels",
        f"its processor makes pixel_values {tuple(values.shape)} of one picture, neither one whole view nor patches in "
        "Qwen's order (if it cuts pictures up, switch that off in its image processor)",
    )


def _wrapped(hf: Any, processor: Any, ids: list[int], image: int) -> tuple[str, str]:
    """What the chat template writes for a picture, and what the processor makes of that."""
    tokenizer, text = processor.tokenizer, _turn(processor, True)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    with_it, without = coded["input_ids"], tokenizer(_turn(processor, False), add_special_tokens=False)["input_ids"]
    start = _alike(with_it, without)
    end = len(with_it) - _alike(with_it[start:][::-1], without[start:][::-1])
    if start >= end:
        raise _lost(hf, "the prompt", f"its chat template writes nothing for a picture: {text!r}")
    offsets = coded["offset_mapping"]
    placeholder = text[offsets[start][0] : offsets[end - 1][1]]
    middle = ids[start : len(ids) - (len(with_it) - end)]
    first, last = middle.index(image), len(middle) - middle[::-1].index(image)
    if set(middle[first:last]) != {image}:
        raise _lost(hf, "the prompt", "other tokens stand between its image tokens")
    around = (tokenizer.decode(part) for part in (middle[:first], middle[last:]))
    plain = [part.replace("{", "{{").replace("}", "}}") for part in (placeholder, *around)]
    return plain[0], f"{plain[1]}{{image}}{plain[2]}"


def _alike(a: list[int], b: list[int]) -> int:
    """How many tokens two sequences begin alike with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _extra(hf: Any, batch: Any, image: int) -> Callable[[torch.Tensor, int], dict[str, torch.Tensor]]:
    """The inputs that go with the token ids, each by the rule that it follows."""
    ids = batch["input_ids"]
    rules: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {}
    for name, value in batch.items():
        if name in ("input_ids", "attention_mask", "labels") or getattr(value, "shape", None) != ids.shape:
            continue
        if torch.equal(value, (ids == image).long()):
            rules[name] = lambda ids, image: (ids == image).long()
        elif not value.any():
            rules[name] = lambda ids, image: torch.zeros_like(ids)
        else:
            raise _lost(hf, f"the rule of {name}", f"its processor gives {value[0].tolist()[:12]} ...")
    return lambda ids, image: {name: rule(ids, image) for name, rule in rules.items()}
