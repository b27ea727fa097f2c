"""Running one side of any model for its layers, in an nnsight block of its own, since it may be no VLM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .. import arguments
from ..arguments import is_whole, listed, shown
from ..engine.read import reach
from ..models.checkpoint import placeless, refuse_missing
from ..models.family import first
from ..state import changes, interventions
from ..state.changes import still
from ..state.nnsight_import import import_nnsight

if TYPE_CHECKING:
    pass

PICTURES, WORDS = "pictures", "words"


TOKENS = {PICTURES: ("class", "mean"), WORDS: ("mean", "last")}


def layer_numbers(layers: Any) -> list[Any]:
    """Numbers of layers in a list."""
    return [layers] if is_whole(layers) else listed(layers, "layers", "numbers of layers from 0, such as [0, 4], are")


def checked_tokens(tokens: str, takes: str, name: str) -> str:
    """How tokens are pooled, if that is a way of `takes`. Raises ValueError."""
    if not isinstance(tokens, str) or tokens not in TOKENS[takes]:
        raise ValueError(
            f"tokens={shown(tokens)}: of {takes} ({name}) allowed are {', '.join(map(repr, TOKENS[takes]))}"
        )
    return tokens


def weights_hash(hf: torch.nn.Module) -> str:
    """A hash of all values of a model's weights and of its hooks."""
    each = sorted(changes.digests(hf).items())
    return hashlib.sha256(
        b"".join(n.encode() + v for n, v in each) + interventions.of_hooks(hf) + interventions.of_adapters(hf)
    ).hexdigest()


def key_of(*parts: Any) -> str:
    """A hash of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def refuse_incomplete(name: str, model: Any, hf: Any, stack: str, report: Any) -> None:
    """Raise ValueError where a checkpoint lacks weights of the blocks, or of what comes before them."""
    if report is None:
        return
    prefix = next((f"{path}." for path, module in model.named_modules() if module is hf and path), "")
    names = [n for n, _ in (*hf.named_parameters(),)]
    last = max((i for i, n in enumerate(names) if n.startswith(f"{stack}.")), default=len(names))
    spare = {prefix + n for n in names[last + 1 :]}  # final norms, poolers and heads, which are never read
    refuse_missing(name, report, needed=lambda n: n.startswith(prefix) and n not in spare)
    if extra := placeless(report, model):
        arguments.warn(
            f"{name} holds weights of blocks that its config says nothing of ({', '.join(extra[:3])}; {len(extra)} in "
            "all); they are left out",
        )


def plain_tensors(model: Any) -> Any:
    """The Hugging Face model in one of nnsight's or peft's. Raises ValueError for edits, which would be left out."""
    if isinstance(model, import_nnsight().Envoy):
        if model._edits:
            raise ValueError(
                f"{len(model._edits)} edit(s) are stored on this nnsight model, and an encoder's traces would leave "
                "them out: change the weights or register a hook instead, or call model.clear_edits()"
            )
        model = model._module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def runner(
    hf: Any, blocks: str | None, name: str
) -> tuple[str, Callable[[dict[str, Any], Sequence[int]], dict[int, torch.Tensor]]]:
    """(path of the blocks, what runs inputs up to the deepest layer asked for). Raises ValueError for no such path."""
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
        weight = next(hf.parameters())
        tensors = {k: moved(v, weight) for k, v in inputs.items()}
        points = [(model.get(f"{path}.{max(0, n - 1)}"), "output" if n else "input") for n in sorted(layers)]
        with still(hf):
            reached = reach(model, model, points, tensors)
        states = dict(zip(sorted(layers), map(first, reached), strict=True))
        for layer, value in states.items():
            if not isinstance(value, torch.Tensor) or value.ndim != 3:
                raise ValueError(
                    f"{name}, layer {layer}: {path} holds {tuple(getattr(value, 'shape', ())) or type(value).__name__},"
                    f" not (batch, tokens, width); choose blocks= from {', '.join(lists)}"
                )
        return states

    return path, run


def moved(value: Any, like: torch.Tensor) -> Any:
    """A tensor on the device of another, and of its type where it holds numbers with a fraction."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(like.device, like.dtype) if value.is_floating_point() else value.to(like.device)


def texts_of(items: Sequence[Any]) -> list[str]:
    """Texts in a list. Raises ValueError for none, and for an empty one."""
    texts = listed(items, "items", "texts, in a list, are")
    if not texts:
        raise ValueError("items= is empty: at least one text is needed")
    for item in texts:
        if not isinstance(item, str) or not item.strip():
            raise ValueError(f"a text is needed; got {type(item).__name__} {shown(item)}")
    return texts


def padded(ids: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both (B, T): padded on the right, where nothing that is read can see it."""
    length = max(map(len, ids))
    padded_ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in ids])
    return padded_ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])


def pooled_text(states: torch.Tensor, own: Sequence[Sequence[int]], tokens: str) -> torch.Tensor:
    """(B, d) of states (B, T, d): the last of each row's own tokens, or their mean."""
    if tokens == "last":
        return torch.stack([h[places[-1]].float() for h, places in zip(states, own, strict=True)])
    return torch.stack([h[list(places)].float().mean(0) for h, places in zip(states, own, strict=True)])


def tokenizer_key(tokenizer: Any) -> str:
    """A hash of what a tokenizer makes of texts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()
