"""Encoders: one side of any model, as that which turns pictures or texts into one vector a layer.

Layer 0 is what enters the first block, layer L what leaves block L: Hugging Face's `hidden_states[L]`, but for the last
of a language model, which is there after the final norm. All layers asked for come from one pass through nnsight, which
stops after the deepest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import is_whole, listed, shown, strict
from ..io.pictures import as_images, as_tensors, by_size
from ..models import hub, place
from ..models.checkpoint import at_best_device, positions, refuse_too_long
from ..models.reading import read_pictures, read_text
from ..models.sites import Site
from ..models.spans import wrap
from ..state.calm import calm, calmly
from .running import (
    PICTURES,
    WORDS,
    checked_tokens,
    key_of,
    layer_numbers,
    padded,
    plain_tensors,
    pooled_text,
    refuse_incomplete,
    runner,
    texts_of,
    tokenizer_key,
    weights_hash,
)

if TYPE_CHECKING:
    from ..models.vlm import VLM


@dataclass(frozen=True, eq=False)
class Encoder:
    """One side of a model. Made by `image_side`, `text_side`, `tower`, `vision_model` or `language_model`.

    name     for tables and figures
    takes    "pictures" (PIL images, paths or tensors (3, H, W) in [0, 1], see `pictures`) or "words" (texts)
    layers   how many blocks there are; layers go from 0, the embeddings
    tokens   "class" (its vector of the class token), "mean" (over all patches, or the text's own tokens) or "last"
    key      a hash of weights, hooks, preprocessing and choice of tokens, as they are now: the same for like features
    """

    name: str
    takes: str
    layers: int
    tokens: str
    key_of: str | Callable[[], str] = field(repr=False)
    _read: Callable[[Sequence[Any], Sequence[int]], dict[int, torch.Tensor]] = field(repr=False)

    @property
    def key(self) -> str:
        """See above."""
        return self.key_of if isinstance(self.key_of, str) else self.key_of()

    def read(self, items: Sequence[Any], layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """Features (B, d) of a batch by layer, float32 on the CPU, without gradients.

        Raises ValueError for layers that are not there.
        """
        with calm():
            return {k: v.detach().float().cpu() for k, v in self._read(items, self.check_layers(layers)).items()}

    def check_layers(self, layers: Sequence[int] | None) -> list[int]:
        """The layers asked for, sorted; all, from 0, if None. Raises ValueError for one that is not there."""
        numbers = list(range(self.layers + 1)) if layers is None else layer_numbers(layers)
        if wrong := [n for n in numbers if not is_whole(n) or not 0 <= n <= self.layers]:
            raise ValueError(
                f"layers={shown(wrong)} are not in {self.name}: it has 0 (the embeddings) to {self.layers}; leave "
                "layers= out for all"
            )
        if not numbers:
            raise ValueError(f"layers= is empty: {self.name} has 0 (the embeddings) to {self.layers}")
        return sorted({int(n) for n in numbers})


def _site(layer: int) -> Site:
    return Site(layer) if layer else Site(1, "resid_pre")


@strict
def image_side(vlm: VLM, tokens: str = "mean") -> Encoder:
    """A VLM's image tokens in its language model, layer by layer; `tokens` is "mean". Raises ValueError for others."""
    if tokens != "mean":
        raise ValueError(f"tokens={tokens!r}: image tokens have no class token; allowed is 'mean'")

    def read(items: Sequence[Any], layers: Sequence[int]) -> dict[int, torch.Tensor]:
        sites = {layer: _site(layer) for layer in layers}

        def mean(part: torch.Tensor) -> dict[int, torch.Tensor]:
            with torch.no_grad():
                states = read_pictures(vlm, part.to(vlm.device), list(sites.values()))
            return {layer: states[site].float().mean(1) for layer, site in sites.items()}

        return _by_size(items, mean)

    def key() -> str:
        identity = (vlm.weights_tag(vlm.layers), str(vlm.pixels), vlm.image_prompt.text, tokens, str(vlm.dtype))
        return key_of("image side, by size", *identity)

    return Encoder(f"{vlm.id}, image side", PICTURES, vlm.layers, tokens, key, read)


@strict
def text_side(vlm: VLM, tokens: str = "mean") -> Encoder:
    """A VLM's language model reading texts, each wrapped as a user's turn in the chat template.

    tokens   "mean" over the text's own tokens, or the "last" of them
    """
    checked_tokens(tokens, WORDS, vlm.id)

    def read(items: Sequence[Any], layers: Sequence[int]) -> dict[int, torch.Tensor]:
        prompts = wrap(vlm.tokenizer, texts_of(items), chat_template=vlm.chat_template)
        ids, mask = padded([p.ids for p in prompts], 0)
        sites = {layer: _site(layer) for layer in layers}
        states = read_text(vlm, ids, mask, list(sites.values()))
        own = [p.own for p in prompts]
        return {layer: pooled_text(states[site], own, tokens) for layer, site in sites.items()}

    words = tokenizer_key(vlm.tokenizer)

    def key() -> str:
        return key_of("text side", vlm.weights_tag(vlm.layers), vlm.chat_template, words, tokens, str(vlm.dtype))

    return Encoder(f"{vlm.id}, text side", WORDS, vlm.layers, tokens, key, read)


@strict
def tower(vlm: VLM, tokens: str = "mean") -> Encoder:
    """A VLM's vision tower by itself, before the language model; "mean" over its patches, or its "class" token.

    Raises ValueError for families whose tower takes more than pixels, and where there is no class token.
    """
    place.weightless(vlm, "the vision tower by itself")
    vlm.refuse_edits("the vision tower by itself")
    hf = vlm.hf.get_submodule(vlm.family.tower)
    grey = vlm.pack(torch.full((1, 3, *vlm.image_size), 0.5))
    if set(grey) != {"pixel_values"} or grey["pixel_values"].ndim != 4:
        raise ValueError(
            f"{vlm.id}: the tower of a {vlm.family.name} takes {', '.join(grey)}, not pixels alone, and cannot be run "
            "by itself; read image_side(vlm), whose layer 0 is what the tower gives"
        )

    def inputs(items: Sequence[Any]) -> dict[str, torch.Tensor]:
        return _by_size(items, lambda part: vlm.pack(part.to(vlm.device)))

    return _vision(hf, inputs, f"{vlm.id}, tower", f"{vlm.pixels}, by size", tokens, None)


def _by_size(items: Sequence[Any], pack: Callable[[torch.Tensor], dict[Any, torch.Tensor]]) -> dict[Any, torch.Tensor]:
    """What `pack` gives of pictures (B, 3, H, W), those of one size together, so that none depends on its company."""
    items = listed(items, "items", "pictures, in a list, are")
    parts: dict[Any, list[torch.Tensor]] = {}
    order: list[int] = []
    for numbers, part in by_size(as_tensors(list(items), "pictures"), len(items) or 1):
        order += numbers
        for name, rows in pack(part).items():
            parts.setdefault(name, []).append(rows)
    back = torch.tensor(order).argsort()
    return {name: torch.cat(rows)[back.to(rows[0].device)] for name, rows in parts.items()}


@calmly
def vision_model(
    model: Any,
    processor: Any = None,
    *,
    tokens: str | None = None,
    blocks: str | None = None,
    name: str | None = None,
    device: Any = None,
) -> Encoder:
    """A vision model, such as DINOv2, SigLIP, CLIP or ViT, by itself.

    model      a hub id, a local folder or a Hugging Face model; of a dual encoder its vision model is taken
    processor  its image processor; the checkpoint's own if not given
    tokens     "class" (as the paper has it) or "mean" over patches, without class and register tokens; the class
               token where there is one, if not given
    blocks     the path of its list of blocks, where it is not inferred
    device     of a hub id or folder: "cuda", "cpu" ...; the best there is if not given

    Raises ValueError for a model without a class token where that is asked for, or whose blocks are not known, and for
    a checkpoint that lacks weights of its blocks or of what comes before them.
    """
    report = None
    if isinstance(model, (str, Path)):
        from transformers import AutoImageProcessor, AutoModel

        name = name or str(model)
        with hub.door(model) as there:
            processor = processor or AutoImageProcessor.from_pretrained(there)
            model, report = at_best_device(AutoModel, model, there, {"device": device})
    elif device is not None:
        raise ValueError(f"device={device!r}: a model in hand stays where it is; move it yourself, or give its name")
    model = plain_tensors(model)
    hf = getattr(model, "vision_model", None) or model
    called = name or getattr(model.config, "_name_or_path", "") or type(hf).__name__
    if processor is None:
        raise ValueError(f"{called}: a model in hand needs processor=, its image processor")

    def inputs(items: Sequence[Any]) -> dict[str, torch.Tensor]:
        images = as_images(list(items), "pictures")
        return {"pixel_values": processor(images=images, return_tensors="pt")["pixel_values"]}

    processing = json.dumps(processor.to_dict(), default=str, sort_keys=True) if hasattr(processor, "to_dict") else ""
    return _vision(
        hf,
        inputs,
        called,
        processing,
        tokens,
        blocks,
        lambda stack: refuse_incomplete(called, model, hf, stack, report),
    )


def _vision(
    hf: Any,
    inputs: Callable,
    name: str,
    processing: str,
    tokens: str | None,
    blocks: str | None,
    prove: Callable[[str], None] = lambda stack: None,
) -> Encoder:
    has_class = any(n.rpartition(".")[2] in ("cls_token", "class_embedding") for n, _ in hf.named_parameters())
    tokens = checked_tokens(tokens or ("class" if has_class else "mean"), PICTURES, name)
    if tokens == "class" and not has_class:
        raise ValueError(f"tokens='class': {name} ({type(hf).__name__}) has no class token; allowed is 'mean'")
    before = int(has_class) + int(getattr(hf.config, "num_register_tokens", 0) or 0)
    stack, run = runner(hf, blocks, name)
    prove(stack)

    def read(items: Sequence[Any], layers: Sequence[int]) -> dict[int, torch.Tensor]:
        states = run(inputs(items), layers)
        return {n: h[:, 0].float() if tokens == "class" else h[:, before:].float().mean(1) for n, h in states.items()}

    def key() -> str:
        return key_of("vision", weights_hash(hf), str(hf.config.to_dict()), processing, stack, tokens)

    return Encoder(name, PICTURES, len(hf.get_submodule(stack)), tokens, key, read)


@calmly
def language_model(
    model: Any,
    tokenizer: Any = None,
    *,
    tokens: str = "mean",
    blocks: str | None = None,
    name: str | None = None,
    device: Any = None,
) -> Encoder:
    """A language model, such as BLOOM or OpenLLaMA, by itself, reading plain texts.

    model      a hub id, a local folder or a Hugging Face model; its head is never run
    tokenizer  its tokenizer; the checkpoint's own if not given
    tokens     "mean" over the text's own tokens, without special ones, or the "last" of them
    blocks     the path of its list of blocks, where it is not inferred
    device     of a hub id or folder: "cuda", "cpu" ...; the best there is if not given

    Raises ValueError for a checkpoint that lacks weights of its blocks or of what comes before them; its encoder raises
    it for texts of more tokens than the model has positions.
    """
    checked_tokens(tokens, WORDS, name or type(model).__name__)
    report = None
    if isinstance(model, (str, Path)):
        from transformers import AutoModel, AutoTokenizer

        name = name or str(model)
        with hub.door(model) as there:
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(there)
            model, report = at_best_device(AutoModel, model, there, {"device": device})
    elif device is not None:
        raise ValueError(f"device={device!r}: a model in hand stays where it is; move it yourself, or give its name")
    model = plain_tensors(model)
    called = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
    if tokenizer is None:
        raise ValueError(f"{called}: a model in hand needs tokenizer=")
    hf = getattr(model, "base_model", model)
    stack, run = runner(hf, blocks, called)
    refuse_incomplete(called, model, hf, stack, report)
    most = positions(hf)

    def read(items: Sequence[Any], layers: Sequence[int]) -> dict[int, torch.Tensor]:
        texts = texts_of(items)
        coded = [tokenizer(text, return_special_tokens_mask=True) for text in texts]
        own = [[i for i, special in enumerate(c["special_tokens_mask"]) if not special] for c in coded]
        for text, places in zip(texts, own, strict=True):
            if not places:
                raise ValueError(f"{called}: the tokenizer writes no token for {text!r}; leave the item out")
        ids, mask = padded([c["input_ids"] for c in coded], 0)
        refuse_too_long(ids.shape[1], most, called)
        states = run({"input_ids": ids, "attention_mask": mask, "use_cache": False}, layers)
        return {n: pooled_text(h, own, tokens) for n, h in states.items()}

    words = tokenizer_key(tokenizer)

    def key() -> str:
        return key_of("language", weights_hash(hf), str(hf.config.to_dict()), words, stack, tokens)

    return Encoder(called, WORDS, len(hf.get_submodule(stack)), tokens, key, read)
