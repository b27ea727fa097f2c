"""Dry runs: a model's own forward and backward pass, done without its numbers, to count what it would take.

Floating-point tensors are on torch's "meta" device, which knows shapes and no values; whole numbers and truth values
(token ids, places, masks) are real, since a model decides by them. Every operation that torch dispatches is seen: its
floating-point operations are counted by torch's own formulas, and memory is followed as tensors come and go, by the
life of their storages. What a kernel takes for itself while it runs is not seen.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


OTHER = "other"


# a number that is not known is no one number in particular, and what is asked of all of them (are they finite?) holds
ANSWERS = {aten.eq.Scalar: False, aten.ne.Scalar: True, aten.all.default: True}


class DryRun(TorchDispatchMode):
    """Counts what is done while it is on.

    parts      a name for each module whose share is wanted; modules may lie within one another, the innermost counts
    weights    storages that were there before and are not counted
    attention  "cpu" or "cuda": whose kernels of attention are counted

    flops, moved   by part: floating-point operations; bytes read and written by all operations that make no product
    live, peak     bytes of all storages now alive, and the most there were at once
    after_forward  those that were alive when the first backward pass began
    kept           by part: bytes that were alive after its forward pass and not before it
    """

    def __init__(self, parts: Mapping[str, torch.nn.Module], weights: Iterable[torch.Tensor], attention: str) -> None:
        super().__init__()
        self.parts, self.attention = parts, attention
        self.flops: dict[str, int] = defaultdict(int)
        self.moved: dict[str, int] = defaultdict(int)
        self.kept: dict[str, int] = defaultdict(int)
        self.live = self.peak = 0
        self.after_forward: int | None = None
        self._known = {w.untyped_storage()._cdata for w in weights}
        self._inside: list[str] = [OTHER]
        self._spans: list[tuple[int, int, str]] = []  # of numbers that autograd gives its nodes
        self._began: list[tuple[int, int]] = []

    # -- which part is at work -------------------------------------------------------------------------------

    @contextmanager
    def counting(self) -> Iterator[DryRun]:
        """Switched on for the block, with its parts watched."""
        with ExitStack() as stack:
            watched = [(name, m) for name, part in self.parts.items() for m in (part, *part.children())]
            for name, module in watched:  # some families call a part's children and never the part itself
                stack.callback(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)).remove)
                stack.callback(module.register_forward_hook(lambda *_: self._leave()).remove)
            stack.enter_context(_attention(self.attention))
            stack.enter_context(self)
            yield self

    def _enter(self, name: str) -> None:
        self._inside.append(name)
        self._began.append((torch.autograd._get_sequence_nr(), self.live))

    def _leave(self) -> None:
        name, (began, live) = self._inside.pop(), self._began.pop()
        self._spans.append((began, torch.autograd._get_sequence_nr(), name))  # inner ones stand before outer ones
        self.kept[name] += self.live - live
        if self._began:
            self.kept[self._inside[-1]] -= self.live - live

    def stopped(self) -> None:
        """The forward pass is over: leave the parts in which it was stopped."""
        while self._began:
            self._leave()

    def restart(self) -> None:
        """Forget what was counted so far, but for what is alive."""
        self.stopped()
        for counted in (self.flops, self.moved, self.kept, self._spans):
            counted.clear()
        self.peak, self.after_forward = self.live, None

    def ending(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, of which every call says that the forward pass is over."""

        def called(*args: Any) -> Any:
            self.stopped()
            return function(*args)

        return called

    def _part(self) -> str:
        node = torch._C._current_autograd_node()
        if node is not None and self.after_forward is None:
            self.after_forward = self.live
        if node is None or len(self._inside) > 1:  # a forward pass, or one done anew within the backward pass
            return self._inside[-1]
        number = node._sequence_nr()
        return next((name for began, end, name in self._spans if began <= number < end), OTHER)

    # -- operations ------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        inputs = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        if any(t.is_meta for t in inputs):
            if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
                args = (args[0], _places(args[1]), *args[2:])
            args, kwargs = tree_map_only(torch.Tensor, _shape_of, (args, kwargs))
            if kwargs.get("device") is not None:
                kwargs["device"] = torch.device("meta")
        elif kwargs.get("device") is not None:  # made anew, or moved: whole numbers stay real
            sample = func(*args, **{**kwargs, "device": torch.device("meta")})
            real = not (sample.is_floating_point() or sample.is_complex())
            kwargs["device"] = torch.device("cpu" if real else "meta")
        if func in ANSWERS and args[0].is_meta:
            out = torch.full(() if func is aten.all.default else args[0].shape, ANSWERS[func])
        else:
            out = func(*args, **kwargs)
        self._count(func, args, kwargs, inputs, out)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, inputs: list[torch.Tensor], out: Any) -> None:
        part, packet = self._part(), func._overloadpacket
        results = [x for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)]
        new = [self._follow(t) for t in results]
        if packet in flop_registry:
            self.flops[part] += flop_registry[packet](*args, **kwargs, out_val=out)
        elif packet in CPU_ATTENTION:
            self.flops[part] += CPU_ATTENTION[packet](*args)
        elif any(new) or func._schema.is_mutable:
            self.moved[part] += sum(t.numel() * t.element_size() for t in (*inputs, *results))

    def _follow(self, tensor: torch.Tensor) -> bool:
        """Count a tensor's storage for as long as it lives; whether it is new."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return False
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size).atexit = False
        return True

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _places(index: Any) -> list[torch.Tensor | None]:
    """Truth values as the places that they pick out, which gives the result its shape."""
    places: list[torch.Tensor | None] = []
    for part in index:
        if part is not None and part.dtype == torch.bool:
            real = torch.ones(part.shape, dtype=torch.bool) if part.is_meta else part  # unknown: all are taken
            places.extend(real.nonzero().unbind(1))
        else:
            places.append(part)
    return places


def _products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[int, int]:
    """Operations of query @ key and of weights @ value."""
    pairs = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    return 2 * pairs * query.shape[3], 2 * pairs * value.shape[3]


def _forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> int:
    return sum(_products(query, key, value))


def _backward(gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> int:
    scores, mixed = _products(query, key, value)
    return 3 * scores + 2 * mixed  # scores anew, gradients of query and key; of weights and value


# torch's table has the kernels of GPUs alone
CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


@contextmanager
def _attention(device: str) -> Iterator[None]:
    """On the meta device torch would form whole matrices of weights; here the kernel of a real device is taken.

    Exchanged by name: a mode that sees calls of functions is off where a backward pass computes layers anew.
    """
    functional = torch.nn.functional
    real = functional.scaled_dot_product_attention

    def attend(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return _kernel(device, query, *args, **kwargs) if query.is_meta else real(query, *args, **kwargs)

    functional.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = real


def _kernel(
    device: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # kernels add their mask
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device="meta")
    if device == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
    if attn_mask is None:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
    )[0]
