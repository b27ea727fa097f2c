"""Encoders: one side of any model, as that which turns pictures or texts into one vector a layer.

Layer 0 is what enters the first block, layer L what leaves block L: Hugging Face's `hidden_states[L]`, but for the last
of a language model, which is there after the final norm. All layers asked for come from one pass through nnsight, which
stops after the deepest.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import is_whole, listed, shown, strict
from ..engine.read import reach
from ..io.pictures import as_images, as_tensors, by_size
from ..models import hub, place
from ..models.checkpoint import at_best_device, placeless, positions, refuse_missing, refuse_too_long
from ..models.family import first
from ..models.reading import read_pictures, read_text
from ..models.sites import Site
from ..models.spans import wrap
from ..state import changes, interventions
from ..state.calm import calm, calmly
from ..state.changes import still
from ..state.nnsight_import import import_nnsight

if TYPE_CHECKING:
    from ..models.vlm import VLM


PICTURES, WORDS = "pictures", "words"


TOKENS = {PICTURES: ("class", "mean"), WORDS: ("mean", "last")}


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
    _key: str | Callable[[], str] = field(repr=False)
    _read: Callable[[Sequence[Any], Sequence[int]], dict[int, torch.Tensor]] = field(repr=False)

    @property
    def key(self) -> str:
        """See above."""
        return self._key if isinstance(self._key, str) else self._key()

    def read(self, items: Sequence[Any], layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """Features (B, d) of a batch by layer, float32 on the CPU, without gradients.

        Raises ValueError for layers that are not there.
        """
        with calm():
            return {k: v.detach().float().cpu() for k, v in self._read(items, self.check_layers(layers)).items()}

    def check_layers(self, layers: Sequence[int] | None) -> list[int]:
        """The layers asked for, sorted; all, from 0, if None. Raises ValueError for one that is not there."""
        found = list(range(self.layers + 1)) if layers is None else _numbers(layers)
        if wrong := [n for n in found if not is_whole(n) or not 0 <= n <= self.layers]:
            raise ValueError(
                f"layers={shown(wrong)} are not in {self.name}: it has 0 (the embeddings) to {self.layers}; leave "
                "layers= out for all"
            )
        if not found:
            raise ValueError(f"layers= is empty: {self.name} has 0 (the embeddings) to {self.layers}")
        return sorted({int(n) for n in found})


def _numbers(layers: Any) -> list[Any]:
    return [layers] if is_whole(layers) else listed(layers, "layers", "numbers of layers from 0, such as [0, 4], are")


def _checked(tokens: str, takes: str, name: str) -> str:
    if not isinstance(tokens, str) or tokens not in TOKENS[takes]:
        raise ValueError(
            f"tokens={shown(tokens)}: of {takes} ({name}) allowed are {', '.join(map(repr, TOKENS[takes]))}"
        )
    return tokens


def _weights(hf: torch.nn.Module) -> str:
    """A hash of all values of a model's weights and of its hooks."""
    each = sorted(changes.digests(hf).items())
    return hashlib.sha256(b"".join(n.encode() + v for n, v in each) + interventions.of_hooks(hf)).hexdigest()


def _key(*told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:24]


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
                found = read_pictures(vlm, part.to(vlm.device), list(sites.values()))
            return {layer: found[site].float().mean(1) for layer, site in sites.items()}

        return _by_size(items, mean)

    def key() -> str:
        told = (vlm.weights_tag(vlm.layers), str(vlm.pixels), vlm.image_prompt.text, tokens, str(vlm.dtype))
        return _key("image side, by size", *told)

    return Encoder(f"{vlm.id}, image side", PICTURES, vlm.layers, tokens, key, read)


@strict
def text_side(vlm: VLM, tokens: str = "mean") -> Encoder:
    """A VLM's language model reading texts, each wrapped as a user's turn in the chat template.

    tokens   "mean" over the text's own tokens, or the "last" of them
    """
    _checked(tokens, WORDS, vlm.id)

    def read(items: Sequence[Any], layers: Sequence[int]) -> dict[int, torch.Tensor]:
        prompts = wrap(vlm.tokenizer, _texts(items), chat_template=vlm.chat_template)
        ids, mask = _padded([p.ids for p in prompts], 0)
        sites = {layer: _site(layer) for layer in layers}
        found = read_text(vlm, ids, mask, list(sites.values()))
        own = [p.own for p in prompts]
        return {layer: _pooled_text(found[site], own, tokens) for layer, site in sites.items()}

    words = _tokenizer_key(vlm.tokenizer)

    def key() -> str:
        return _key("text side", vlm.weights_tag(vlm.layers), vlm.chat_template, words, tokens, str(vlm.dtype))

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


def _by_size(items: Sequence[Any], made: Callable[[torch.Tensor], dict[Any, torch.Tensor]]) -> dict[Any, torch.Tensor]:
    """What `made` gives of pictures (B, 3, H, W), those of one size together, so that none depends on its company."""
    items = listed(items, "items", "pictures, in a list, are")
    parts: dict[Any, list[torch.Tensor]] = {}
    order: list[int] = []
    for numbers, part in by_size(as_tensors(list(items), "pictures"), len(items) or 1):
        order += numbers
        for name, rows in made(part).items():
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
    blocks     the path of its list of blocks, where it cannot be told
    device     of a hub id or folder: "cuda", "cpu" ...; the best there is if not given

    Raises ValueError for a model without a class token where that is asked for, or whose blocks cannot be told, and for
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
    model = _plain(model)
    hf = getattr(model, "vision_model", None) or model
    called = name or getattr(model.config, "_name_or_path", "") or type(hf).__name__
    if processor is None:
        raise ValueError(f"{called}: a model in hand needs processor=, its image processor")

    def inputs(items: Sequence[Any]) -> dict[str, torch.Tensor]:
        shown = as_images(list(items), "pictures")
        return {"pixel_values": processor(images=shown, return_tensors="pt")["pixel_values"]}

    told = json.dumps(processor.to_dict(), default=str, sort_keys=True) if hasattr(processor, "to_dict") else ""
    return _vision(hf, inputs, called, told, tokens, blocks, lambda stack: _all_there(called, model, hf, stack, report))


def _all_there(name: str, model: Any, hf: Any, stack: str, report: Any) -> None:
    """Raise ValueError where a checkpoint lacks weights of the blocks, or of what is made before them."""
    if report is None:
        return
    prefix = next((f"{path}." for path, module in model.named_modules() if module is hf and path), "")
    names = [n for n, _ in (*hf.named_parameters(),)]
    last = max((i for i, n in enumerate(names) if n.startswith(f"{stack}.")), default=len(names))
    spare = {prefix + n for n in names[last + 1 :]}  # final norms, poolers and heads, which are never read
    refuse_missing(name, report, needed=lambda n: n.startswith(prefix) and n not in spare)
    if left := placeless(report, model):
        warnings.warn(
            f"{name} holds weights of blocks that its config says nothing of ({', '.join(left[:3])}; {len(left)} in "
            "all); they are left out",
            stacklevel=4,
        )


def _vision(
    hf: Any,
    inputs: Callable,
    name: str,
    told: str,
    tokens: str | None,
    blocks: str | None,
    prove: Callable[[str], None] = lambda stack: None,
) -> Encoder:
    has_class = any(n.rpartition(".")[2] in ("cls_token", "class_embedding") for n, _ in hf.named_parameters())
    tokens = _checked(tokens or ("class" if has_class else "mean"), PICTURES, name)
    if tokens == "class" and not has_class:
        raise ValueError(f"tokens='class': {name} ({type(hf).__name__}) has no class token; allowed is 'mean'")
    before = int(has_class) + int(getattr(hf.config, "num_register_tokens", 0) or 0)
    stack, run = _runner(hf, blocks, name)
    prove(stack)

    def read(items: Sequence[Any], layers: Sequence[int]) -> dict[int, torch.Tensor]:
        found = run(inputs(items), layers)
        return {n: h[:, 0].float() if tokens == "class" else h[:, before:].float().mean(1) for n, h in found.items()}

    def key() -> str:
        return _key("vision", _weights(hf), str(hf.config.to_dict()), told, stack, tokens)

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
    blocks     the path of its list of blocks, where it cannot be told
    device     of a hub id or folder: "cuda", "cpu" ...; the best there is if not given

    Raises ValueError for a checkpoint that lacks weights of its blocks or of what comes before them; its encoder raises
    it for texts of more tokens than the model has positions.
    """
    _checked(tokens, WORDS, name or type(model).__name__)
    report = None
    if isinstance(model, (str, Path)):
        from transformers import AutoModel, AutoTokenizer

        name = name or str(model)
        with hub.door(model) as there:
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(there)
            model, report = at_best_device(AutoModel, model, there, {"device": device})
    elif device is not None:
        raise ValueError(f"device={device!r}: a model in hand stays where it is; move it yourself, or give its name")
    model = _plain(model)
    called = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
    if tokenizer is None:
        raise ValueError(f"{called}: a model in hand needs tokenizer=")
    hf = getattr(model, "base_model", model)
    stack, run = _runner(hf, blocks, called)
    _all_there(called, model, hf, stack, report)
    most = positions(hf)

    def read(items: Sequence[Any], layers: Sequence[int]) -> dict[int, torch.Tensor]:
        texts = _texts(items)
        coded = [tokenizer(text, return_special_tokens_mask=True) for text in texts]
        own = [[i for i, special in enumerate(c["special_tokens_mask"]) if not special] for c in coded]
        for text, places in zip(texts, own, strict=True):
            if not places:
                raise ValueError(f"{called}: the tokenizer writes no token for {text!r}; leave the item out")
        ids, mask = _padded([c["input_ids"] for c in coded], 0)
        refuse_too_long(ids.shape[1], most, called)
        found = run({"input_ids": ids, "attention_mask": mask, "use_cache": False}, layers)
        return {n: _pooled_text(h, own, tokens) for n, h in found.items()}

    words = _tokenizer_key(tokenizer)

    def key() -> str:
        return _key("language", _weights(hf), str(hf.config.to_dict()), words, stack, tokens)

    return Encoder(called, WORDS, len(hf.get_submodule(stack)), tokens, key, read)


def _plain(model: Any) -> Any:
    """The Hugging Face model in one of nnsight's or peft's. Raises ValueError for edits, which would be left out."""
    if isinstance(model, import_nnsight().Envoy):
        if model._edits:
            raise ValueError(
                f"{len(model._edits)} edit(s) are stored on this nnsight model, and an encoder's traces would leave "
                "them out: change the weights or register a hook instead, or call model.clear_edits()"
            )
        model = model._module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _runner(
    hf: Any, blocks: str | None, name: str
) -> tuple[str, Callable[[dict[str, Any], Sequence[int]], dict[int, torch.Tensor]]]:
    """(path of the blocks, what runs inputs up to the deepest layer asked for)."""
    import_nnsight()
    import nnsight

    lists = {
        path: module
        for path, module in hf.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) and len({type(m) for m in module}) == 1
    }
    if blocks is not None and blocks not in lists:
        raise ValueError(f"blocks={blocks!r} is no list of like blocks in {name}; there are {', '.join(lists)}")
    if not lists:
        raise ValueError(f"{name} ({type(hf).__name__}) has no list of like blocks, so layers cannot be told")
    weights = {path: sum(p.numel() for p in module.parameters()) for path, module in lists.items()}
    path = blocks or max(weights, key=lambda p: (weights[p], -len(p)))
    model = nnsight.NNsight(hf)

    def run(inputs: dict[str, Any], layers: Sequence[int]) -> dict[int, torch.Tensor]:
        one = next(hf.parameters())
        given = {k: _moved(v, one) for k, v in inputs.items()}
        points = [(model.get(f"{path}.{max(0, n - 1)}"), "output" if n else "input") for n in sorted(layers)]
        with still(hf):
            reached = reach(model, model, points, given)
        found = dict(zip(sorted(layers), map(first, reached), strict=True))
        for layer, value in found.items():
            if not isinstance(value, torch.Tensor) or value.ndim != 3:
                raise ValueError(
                    f"{name}, layer {layer}: {path} holds {tuple(getattr(value, 'shape', ())) or type(value).__name__},"
                    f" not (batch, tokens, width); choose blocks= from {', '.join(lists)}"
                )
        return found

    return path, run


def _moved(value: Any, like: torch.Tensor) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(like.device, like.dtype) if value.is_floating_point() else value.to(like.device)


def _texts(items: Sequence[Any]) -> list[str]:
    texts = listed(items, "items", "texts, in a list, are")
    if not texts:
        raise ValueError("items= is empty: at least one text is needed")
    for item in texts:
        if not isinstance(item, str) or not item.strip():
            raise ValueError(f"a text is needed; got {type(item).__name__} {shown(item)}")
    return texts


def _padded(ids: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both (B, T): padded on the right, where nothing that is read can see it."""
    length = max(map(len, ids))
    made = torch.tensor([[*row, *[pad] * (length - len(row))] for row in ids])
    return made, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])


def _pooled_text(states: torch.Tensor, own: Sequence[Sequence[int]], tokens: str) -> torch.Tensor:
    if tokens == "last":
        return torch.stack([h[places[-1]].float() for h, places in zip(states, own, strict=True)])
    return torch.stack([h[list(places)].float().mean(0) for h, places in zip(states, own, strict=True)])


def _tokenizer_key(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(told.encode()).hexdigest()
