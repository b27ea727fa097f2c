"""Latents: one column and one row of a sparse autoencoder, and how they turn activations into readings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Protocol

import torch
import torch.nn.functional as F

# what has one encoder column and one pre-activation for each latent
PLAIN = ("standard", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk", "abstopk", "gated")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
NORMALISED = ("none", "layer_norm", "constant_norm_rescale")


@dataclass(frozen=True, eq=False)
class Latent:
    """One latent of a sparse autoencoder, float32.

    encoder     (d_in,) what is multiplied with activations; `bias` is added
    decoder     (d_in,) what it adds to the reconstruction; None for a transcoder, which writes elsewhere
    b_dec       (d_in,) the reconstruction's bias, or None; `subtracted` says whether it is taken off before encoding
    threshold   above which it fires (0 for ReLU); None where that depends on all other latents (top-k)
    gate        (column, bias) of a gated autoencoder: it fires where this is above 0
    normalise   "none", "layer_norm" or "constant_norm_rescale", as sae-lens has them
    scale       by which the pre-activation is multiplied afterwards (top-k rescaled by decoder norms)
    """

    _ships = ("pre", "act", "cosine", "_input")

    index: int
    encoder: torch.Tensor
    bias: float = 0.0
    decoder: torch.Tensor | None = None
    b_dec: torch.Tensor | None = None
    subtracted: bool = False
    threshold: float | None = 0.0
    gate: tuple[torch.Tensor, float] | None = None
    normalise: str = "none"
    scale: float = 1.0
    architecture: str = "standard"

    def to(self, device: torch.device) -> Latent:
        """The same on a device."""
        moved = {
            name: value.to(device)
            for name in ("encoder", "decoder", "b_dec")
            if (value := getattr(self, name)) is not None
        }
        gate = None if self.gate is None else (self.gate[0].to(device), self.gate[1])
        return replace(self, gate=gate, **moved)

    def pre(self, hidden: torch.Tensor) -> torch.Tensor:
        """Pre-activations (...) of activations (..., d_in), float32; of a gated autoencoder those of its magnitudes."""
        return (self._input(hidden) @ self.encoder.to(hidden.device) + self.bias) * self.scale

    def act(self, hidden: torch.Tensor) -> torch.Tensor:
        """Activations (...) of activations (..., d_in), as `encode` gives them.

        Of top-k the rectified pre-activation (abs-top-k: with its sign), as though the latent were among the k.
        """
        pre = self.pre(hidden)
        if self.architecture == "abstopk":
            return pre
        if self.gate is not None:
            return pre.relu() * (self._input(hidden) @ self.gate[0].to(hidden.device) + self.gate[1] > 0)
        return pre.relu() * (pre > (self.threshold or 0.0))

    def cosine(self, hidden: torch.Tensor) -> torch.Tensor:
        """cos(n(h) - b_dec, decoder row) (...) of activations (..., d_in); ValueError for a transcoder."""
        if self.decoder is None:
            raise ValueError(NO_COSINE.format(label=f"feature {self.index}"))
        x = normalised(hidden.float(), self.normalise)
        x = x if self.b_dec is None else x - self.b_dec.to(hidden.device)
        return F.cosine_similarity(x, self.decoder.to(hidden.device), dim=-1)

    def _input(self, hidden: torch.Tensor) -> torch.Tensor:
        x = normalised(hidden.float(), self.normalise)
        return x - self.b_dec.to(hidden.device) if self.subtracted and self.b_dec is not None else x


NO_COSINE = (
    "{label}: a transcoder writes to another place than it reads, and one without W_dec writes nowhere, so that a "
    "cosine with its decoder means nothing here; use objective='encoder'"
)


def normalised(x: torch.Tensor, how: str) -> torch.Tensor:
    """Activations (..., d) as sae-lens normalises them before encoding (6.x, `SAE.run_time_activation_norm_fn_in`)."""
    if how == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
        return x / (x.std(-1, keepdim=True) + 1e-5)
    if how == "constant_norm_rescale":
        return x * (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True))
    return x


# -- reading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What an autoencoder's configuration says that a latent depends on; `metadata` has its model and hook names."""

    architecture: str = "standard"
    subtracted: bool = False
    normalise: str = "none"
    rescaled: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def told(self, name: str) -> str | None:
        """A name from the metadata, or None."""
        value = self.metadata.get(name)
        return str(value) if value else None


class Weights(Protocol):
    """Where an autoencoder's tensors are: in an object, or in a file of which only parts are read."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, None if there is none of this name."""

    def column(self, name: str, index: int) -> torch.Tensor:
        """tensor[:, index], float32 on the cpu, a copy."""

    def row(self, name: str, index: int) -> torch.Tensor:
        """tensor[index], likewise; a number of a vector."""

    def whole(self, name: str) -> torch.Tensor:
        """The tensor, likewise."""


def latent(weights: Weights, facts: Facts, index: int) -> Latent:
    """One latent: of the matrices only its column and its row are read.

    Raises ValueError for an architecture without single pre-activations or a tensor that is missing, IndexError for an
    index out of range.
    """
    kind = facts.architecture
    if kind not in PLAIN + TRANSCODERS:
        raise ValueError(
            f"architecture {kind!r} has no pre-activation of a single latent that could be climbed; those that do are "
            + ", ".join(PLAIN + TRANSCODERS)
        )
    needed = {"W_enc", "W_dec", *(("b_gate", "r_mag", "b_mag") if kind == "gated" else ())}
    if missing := sorted(name for name in needed if weights.shape(name) is None):
        raise ValueError(f"this {kind} autoencoder lacks {', '.join(missing)}")
    index = checked(index, weights.shape("W_enc")[1])  # type: ignore[index]
    across = kind in TRANSCODERS
    column, row = weights.column("W_enc", index), weights.row("W_dec", index)
    threshold, gate = _threshold(weights, kind, index), None
    bias = float(weights.row("b_enc", index)) if weights.shape("b_enc") else 0.0
    if kind == "gated":
        gate = (column, float(weights.row("b_gate", index)))
        column = column * weights.row("r_mag", index).exp()
        bias = float(weights.row("b_mag", index))
    if facts.normalise not in NORMALISED:
        warnings.warn(
            f"this autoencoder was trained with normalize_activations={facts.normalise!r}, whose factor is not with "
            "it: activations are taken as they are, as sae-lens does, and thresholds may not fit",
            stacklevel=3,
        )
    return Latent(
        index=index,
        encoder=column,
        bias=bias,
        decoder=None if across else row,
        b_dec=weights.whole("b_dec") if weights.shape("b_dec") and not across else None,
        subtracted=facts.subtracted and not across,
        threshold=threshold,
        gate=gate,
        normalise=facts.normalise if facts.normalise in NORMALISED else "none",
        scale=float(row.norm()) if facts.rescaled else 1.0,
        architecture=kind,
    )


def checked(index: Any, count: int) -> int:
    """A latent's number; raises TypeError or IndexError."""
    if isinstance(index, bool) or not isinstance(index, Integral):
        raise TypeError(f"a feature's index is a whole number; got {type(index).__name__} {index!r}")
    if not 0 <= int(index) < count:
        raise IndexError(f"feature {index}: this autoencoder has features 0 to {count - 1}")
    return int(index)


def _threshold(weights: Weights, kind: str, index: int) -> float | None:
    if weights.shape("threshold"):
        return float(weights.row("threshold", index))
    if "jumprelu" in kind:
        raise ValueError(f"this {kind} autoencoder lacks threshold")
    if weights.shape("topk_threshold") is not None:  # a batch-top-k in training: what it is saved with
        return float(weights.whole("topk_threshold"))
    return None if "topk" in kind else 0.0


@dataclass(frozen=True)
class Held:
    """The tensors of an autoencoder in hand: attributes of a sae-lens object, or items of a dict."""

    tensors: Any

    def _get(self, name: str) -> Any:
        return self.tensors.get(name) if isinstance(self.tensors, Mapping) else getattr(self.tensors, name, None)

    def shape(self, name: str) -> tuple[int, ...] | None:
        value = self._get(name)
        return tuple(value.shape) if isinstance(value, torch.Tensor) else None

    def column(self, name: str, index: int) -> torch.Tensor:
        return _copy(self._get(name)[:, index])

    def row(self, name: str, index: int) -> torch.Tensor:
        return _copy(self._get(name)[index])

    def whole(self, name: str) -> torch.Tensor:
        return _copy(self._get(name))


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


def facts_of(sae: Any) -> Facts:
    """What a sae-lens object's configuration says. Raises TypeError for what is no autoencoder."""
    if not all(hasattr(sae, name) for name in ("W_enc", "W_dec", "cfg")):
        raise TypeError(
            f"{type(sae).__name__} is no sae-lens SAE (it lacks W_enc, W_dec or cfg): give one, a release and an SAE "
            "id, or a folder; for other autoencoders see nd.feature_from_tensors"
        )
    cfg, metadata = sae.cfg, getattr(sae.cfg, "metadata", None)
    kind = getattr(cfg, "architecture", "standard")
    names = ("model_name", "hook_name", "hf_hook_name", "neuronpedia_id", "weights_tag")
    told = {name: getattr(metadata, name, None) or getattr(cfg, name, None) for name in names}
    return Facts(
        architecture=str(kind() if callable(kind) else kind),
        subtracted=bool(getattr(cfg, "apply_b_dec_to_input", False)),
        normalise=str(getattr(cfg, "normalize_activations", None) or "none"),
        rescaled=bool(getattr(cfg, "rescale_acts_by_decoder_norm", False)),
        metadata=told,
    )
