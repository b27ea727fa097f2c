"""Encoding: image tokens of pictures, and what a whole autoencoder in hand makes of tokens, by its own `encode`.

Whatever is used is looked at first: shapes, parameters, activations; what is not finite is an error that says where.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..io.pictures import by_size
from ..models.reading import read_pictures
from . import hooks
from .weights import TENSORS, Held, check_shapes, facts_of

if TYPE_CHECKING:
    from ..models.sites import Site
    from ..models.vlm import VLM
    from .weights import Facts


AT_ONCE = 2**26  # most activations, tokens x features, that are held


TOGETHER = 16  # pictures in one pass of the model


_SOUND: weakref.WeakKeyDictionary[Any, tuple[Any, ...]] = weakref.WeakKeyDictionary()


def site_of(vlm: VLM, sae: Any) -> Site:
    """Where a sae-lens object reads in a model; raises and warns as `Feature.site` does."""
    facts = check_whole(sae)
    if not callable(getattr(sae, "encode", None)):
        raise TypeError(f"{type(sae).__name__} has no encode(tokens), which tells how strongly each feature fires")
    where = facts.name_of("hf_hook_name") or facts.name_of("hook_name")
    if where is None:
        raise ValueError(
            "this autoencoder's metadata name no hook_name; set sae.cfg.metadata.hook_name = 'blocks.9.hook_resid_post'"
        )
    site = hooks.resolve(vlm, where)
    check_width(vlm, sae, site)
    hooks.check(vlm, site, facts.name_of("model_name"), facts.name_of("weights_tag"), "this autoencoder")
    return site


def check_width(vlm: VLM, sae: Any, site: Site) -> None:
    """Raise ValueError for an autoencoder that does not fit a site."""
    if sae.W_enc.shape[0] != vlm.width_at(site):
        raise ValueError(
            f"this autoencoder reads {sae.W_enc.shape[0]} numbers, but {vlm.describe(site)} of {vlm.id} is "
            f"{vlm.width_at(site)} wide: it belongs to another model or site"
        )


def check_whole(sae: Any) -> Facts:
    """The facts of a sae-lens object of which every tensor fits the others and is finite; remembered until one changes.

    Raises TypeError for what is no autoencoder, ValueError with the tensor, the feature and how many
    numbers are wrong.
    """
    facts = facts_of(sae)
    check_shapes(Held(sae), facts)
    tensors = _tensors(sae)
    try:
        state = tuple((name, t.data_ptr(), t._version, tuple(t.shape)) for name, t in tensors.items())
        if _SOUND.get(sae) == state:
            return facts
    except (RuntimeError, TypeError):  # made in inference mode, or an object of which nothing can be remembered
        state = ()
    for name, tensor in tensors.items():
        _check_finite(name, tensor.detach(), int(sae.W_dec.shape[0]))
    if state:
        _SOUND[sae] = state
    return facts


def _tensors(sae: Any) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of floating type; of an object that is no module those that are known."""
    named: dict[str, Any]
    if isinstance(sae, torch.nn.Module):
        named = {**dict(sae.named_parameters()), **dict(sae.named_buffers())}
    else:
        named = {name: getattr(sae, name, None) for name in TENSORS}
    return {name: t for name, t in named.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}


def _check_finite(name: str, tensor: torch.Tensor, features: int) -> None:
    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim > 1 else tensor.reshape(1, -1)
    bad, first = 0, None
    for start in range(0, len(rows), step := max(1, AT_ONCE // max(1, rows.shape[1]))):
        finite = rows[start : start + step].isfinite()
        if not bool(finite.all()):
            wrong = (~finite).nonzero()
            bad += len(wrong)
            first = first or (int(wrong[0, 0]) + start, int(wrong[0, 1]))
    if first is None:
        return
    row, column = first
    feature = row if name == "W_dec" else column if tensor.shape[-1] == features else None
    raise ValueError(
        f"{bad} of {tensor.numel()} numbers of this autoencoder's {name} are not finite, the first"
        + (f" of feature {feature}" if feature is not None else "")
        + f" ({float(rows[row, column])}): get the autoencoder anew, or load it in float32"
    )


def fingerprint(sae: Any) -> str:
    """A hash of every number of a sae-lens object, its kind and what its configuration says of encoding.

    A few seconds for 10 GB.
    """
    facts = facts_of(sae)
    digest = hashlib.sha256(f"{facts.architecture} {facts.subtracted} {facts.normalise} {facts.rescaled}".encode())
    for name, tensor in sorted(_tensors(sae).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        for part in flat.split(AT_ONCE):
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:24]


def patches(vlm: VLM, pictures: Iterable[torch.Tensor], site: Site) -> Iterator[tuple[int, torch.Tensor]]:
    """(number, activations (n, d) of its image tokens, float32) of each picture; those of one size in one pass.

    They come size by size: the number says which of the pictures, counted through all groups (B, 3, H, W), it is.
    """
    for numbers, part in by_size(pictures, TOGETHER):
        with torch.no_grad():
            states = read_pictures(vlm, part.to(vlm.device), [site])[site].float()
        for number, tokens in zip(numbers, states, strict=True):
            yield number, check_tokens(tokens, f"picture {number}")


def check_tokens(tokens: torch.Tensor, what: str) -> torch.Tensor:
    """Activations as they are; raises ValueError where one is not finite."""
    if not bool((finite := tokens.isfinite()).all()):
        raise ValueError(
            f"{what}: {int((~finite).sum())} of {tokens.numel()} activations of the model are not finite; float16 "
            "overflows in some models: load with torch.bfloat16 or torch.float32"
        )
    return tokens


def chunks(sae: Any, tokens: torch.Tensor) -> Sequence[torch.Tensor]:
    """Tokens (n, d) a few at a time, so that their activations (n, d_sae) fit; as the object wants them."""
    tokens = tokens.to(sae.W_enc.device, sae.W_enc.dtype)
    if getattr(sae, "hook_z_reshaping_mode", False):  # it flattens heads itself
        tokens = tokens[:, None]
    return tokens.split(max(1, AT_ONCE // int(sae.W_enc.shape[-1])))


def encoded(sae: Any, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Activations (n, d_sae) of tokens (n, d), a few tokens at a time, float32 on the cpu.

    Raises ValueError where one is not finite, with the feature.
    """
    for part in chunks(sae, tokens):
        with torch.no_grad():
            yield dense(sae.encode(part))


def dense(acts: torch.Tensor) -> torch.Tensor:
    """Activations as a dense matrix, float32 on the cpu. Raises ValueError where one is not finite."""
    acts = (acts.to_dense() if acts.is_sparse else acts).float().cpu()
    if not bool((finite := acts.isfinite()).all()):
        wrong = (~finite).any(0).nonzero().flatten().tolist()
        raise ValueError(
            f"the activations of {len(wrong)} features of this autoencoder are not finite, the first is feature "
            f"{wrong[0]}: its numbers overflow; use it in float32"
        )
    return acts


def most(sae: Any, tokens: torch.Tensor, features: Sequence[int] | None = None) -> torch.Tensor:
    """The most activation (F,) over tokens (n, d) of all features, or of some; float32 on the cpu.

    Raises ValueError for no tokens, and for activations that are not finite.
    """
    highest: torch.Tensor | None = None
    for acts in encoded(sae, tokens):
        now = (acts if features is None else acts[:, list(features)]).amax(0)
        highest = now if highest is None else torch.maximum(highest, now)
    if highest is None:
        raise ValueError("no token to encode: a text or a picture with at least one is needed")
    return highest
