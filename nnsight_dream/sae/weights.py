"""Weights of sparse autoencoders: where their tensors are, whether they fit together, and one latent of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from .. import arguments
from ..arguments import is_whole, plain, shown, whole
from ..engine.latent import Latent

# what has one encoder column and one pre-activation for each latent
PLAIN = ("standard", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk", "abstopk", "gated")


TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


NORMALISED = ("none", "layer_norm", "constant_norm_rescale")


LEFT_OUT = ("expected_average_only_in", "covariance_whitening")  # sae-lens leaves these out when encoding, too


# the tensors that are looked at; each is checked wherever it is
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "b_gate", "r_mag", "b_mag", "topk_threshold")


SKIPS = ("W_skip", "affine_skip_connection")  # of transcoders, as sae-lens and as Gemma Scope 2 has it


@dataclass(frozen=True)
class Facts:
    """What an autoencoder's configuration says that a latent depends on; `metadata` has its model and hook names.

    sizes   `d_in`, `d_sae` and `d_out` as the configuration has them, as far as it does
    """

    architecture: str = "standard"
    subtracted: bool = False
    normalise: str = "none"
    rescaled: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def name_of(self, name: str) -> str | None:
        """A name from the metadata, or None."""
        value = self.metadata.get(name)
        return str(value) if value else None


class Weights(Protocol):
    """Where an autoencoder's tensors are: in an object, or in a file of which only parts are read."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, None if there is none of this name; ValueError for what holds no real numbers."""

    def column(self, name: str, index: int) -> torch.Tensor:
        """tensor[:, index], float32 on the cpu, a copy."""

    def row(self, name: str, index: int) -> torch.Tensor:
        """tensor[index], likewise; a number of a vector."""

    def whole(self, name: str) -> torch.Tensor:
        """The tensor, likewise."""


def check_architecture(facts: Facts) -> None:
    """Raise ValueError for an architecture without single pre-activations."""
    if facts.architecture not in PLAIN + TRANSCODERS:
        raise ValueError(
            f"architecture {facts.architecture!r} has no pre-activation of a single latent that could be climbed; "
            "those that do are " + ", ".join(PLAIN + TRANSCODERS)
        )


def check_shapes(weights: Weights, facts: Facts, source: str = "this autoencoder") -> tuple[int, int]:
    """(d_in, d_sae) of an autoencoder whose tensors all fit each other and its configuration; nothing is read of them.

    Raises ValueError for one that lacks a tensor, or where two shapes are at odds, with both.
    """
    shapes = {name: shape for name in (*TENSORS, *SKIPS) if (shape := weights.shape(name)) is not None}
    kind = facts.architecture
    if missing := [name for name in _needed(kind) if name not in shapes]:
        raise ValueError(f"{source}: this {kind} autoencoder lacks {', '.join(missing)}")
    for name in ("W_enc", "W_dec"):
        if len(shapes[name]) != 2 or 0 in shapes[name]:
            raise ValueError(
                f"{source}: {name} is {shapes[name]}; W_enc is (d_in, features) and W_dec (features, d_out). Of a "
                "crosscoder or cross-layer transcoder give one layer's tensors to nd.feature_from_tensors"
            )
    (d_in, d_sae), d_out = shapes["W_enc"], shapes["W_dec"][1]
    each, out = f"one number for each of the {d_sae} features", f"{d_out} numbers, as W_dec writes"
    wanted: dict[str, tuple[tuple[int, ...], str]] = {
        "W_dec": ((d_sae, d_out if kind in TRANSCODERS else d_in), f"a row for each of the {d_sae} features"),
        **dict.fromkeys(("b_enc", "threshold", "b_gate", "r_mag", "b_mag"), ((d_sae,), each)),
        "b_dec": ((d_out,), out),
        "topk_threshold": ((), "one number"),
        "W_skip": ((d_out, d_in), "from what is read to what is written"),
        "affine_skip_connection": ((d_in, d_out), "from what is read to what is written"),
    }
    for name, (shape, meaning) in wanted.items():
        if name in shapes and shapes[name] != shape:
            raise ValueError(
                f"{source}: {name} is {shapes[name]}, but W_enc is {shapes['W_enc']}, so that {name} should be "
                f"{shape}, {meaning}: get the autoencoder anew, or transpose what is stored the other way"
            )
    for name, size in (("d_in", d_in), ("d_sae", d_sae), ("d_out", d_out)):
        if (stated := facts.sizes.get(name)) is not None and stated != size:
            raise ValueError(
                f"{source}: its configuration says {name}={stated!r}, but W_enc is {shapes['W_enc']} and W_dec "
                f"{shapes['W_dec']}: configuration and weights belong to different autoencoders"
            )
    return d_in, d_sae


def _needed(kind: str) -> tuple[str, ...]:
    if kind == "gated":
        return "W_enc", "W_dec", "b_dec", "b_gate", "r_mag", "b_mag"
    if kind not in PLAIN + TRANSCODERS:  # such as one that pursues matches, which has no biases
        return "W_enc", "W_dec"
    return "W_enc", "W_dec", "b_enc", "b_dec", *(("threshold",) if "jumprelu" in kind else ())


def check_normalisation(facts: Facts) -> None:
    """Warn of a normalisation of activations whose factor is not there. Raises ValueError for an unknown one."""
    if facts.normalise in LEFT_OUT:
        arguments.warn(
            f"this autoencoder was trained with normalize_activations={facts.normalise!r}, whose factor is not with "
            "it: activations are taken as they are, as sae-lens does, and thresholds may not fit",
        )
    elif facts.normalise not in NORMALISED:
        raise ValueError(
            f"normalize_activations={facts.normalise!r} is not known; known are {', '.join(NORMALISED + LEFT_OUT)}"
        )


def latent(weights: Weights, facts: Facts, index: int, source: str = "this autoencoder") -> Latent:
    """One latent: of the matrices only its column and its row are read.

    Raises ValueError for an architecture without single pre-activations, a tensor that is missing or does not fit the
    others, and numbers that are not finite; IndexError for an index out of range.
    """
    check_architecture(facts)
    _, count = check_shapes(weights, facts, source)
    check_normalisation(facts)
    kind = facts.architecture
    index = checked(index, count)
    across = kind in TRANSCODERS
    column, row = weights.column("W_enc", index), weights.row("W_dec", index)
    gate, bias = None, 0.0
    if kind == "gated":
        gate = (column, float(weights.row("b_gate", index)))
        column = column * weights.row("r_mag", index).exp()
        bias = float(weights.row("b_mag", index))
    else:
        bias = float(weights.row("b_enc", index))
    return Latent(
        index=index,
        encoder=column,
        bias=bias,
        decoder=None if across else row,
        b_dec=None if across else weights.whole("b_dec"),
        subtracted=facts.subtracted and not across,
        threshold=_threshold(weights, kind, index),
        gate=gate,
        normalise=facts.normalise if facts.normalise in NORMALISED else "none",
        scale=float(row.norm()) if facts.rescaled else 1.0,
        architecture=kind,
    )


def checked(index: Any, count: int) -> int:
    """A latent's number: Python's, NumPy's or a tensor's; raises TypeError, or IndexError for one that is not there."""
    number = plain(index)
    if not is_whole(number):
        raise TypeError(f"a feature's index is a whole number; got {type(number).__name__} {shown(number)}")
    if not 0 <= number < count:
        raise IndexError(f"feature {number}: this autoencoder has features 0 to {count - 1}")
    return int(number)


def _threshold(weights: Weights, kind: str, index: int) -> float | None:
    if "jumprelu" in kind:
        return float(weights.row("threshold", index))
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
        """See `Weights`."""
        value = self._get(name)
        if not isinstance(value, torch.Tensor):
            return None
        if not value.is_floating_point() or value.is_meta or value.layout != torch.strided:
            form = "has no values yet (device 'meta')" if value.is_meta else f"is of {value.dtype}, {value.layout}"
            raise ValueError(f"{name} {form}: dense tensors of floating-point numbers are needed; load it whole first")
        return tuple(value.shape)

    def column(self, name: str, index: int) -> torch.Tensor:
        """See `Weights`."""
        return _copy(self._get(name)[:, index])

    def row(self, name: str, index: int) -> torch.Tensor:
        """See `Weights`."""
        return _copy(self._get(name)[index])

    def whole(self, name: str) -> torch.Tensor:
        """See `Weights`."""
        return _copy(self._get(name))


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


def facts_of(sae: Any) -> Facts:
    """What a sae-lens object's configuration says. Raises TypeError for what is no autoencoder."""
    cfg = getattr(sae, "cfg", None)
    if not all(hasattr(sae, name) for name in ("W_enc", "W_dec")) or cfg is None:
        lacks = [name for name in ("W_enc", "W_dec", "cfg") if not hasattr(sae, name)]
        raise TypeError(
            f"{type(sae).__name__} is no sae-lens SAE that can be read (it lacks {' and '.join(lacks) or 'a cfg'}): "
            "give one, a release and an SAE id, or a folder; for other autoencoders see nd.feature_from_tensors"
        )
    if not hasattr(cfg, "architecture") and not hasattr(cfg, "apply_b_dec_to_input"):
        raise TypeError(
            f"the cfg of this {type(sae).__name__} says neither its architecture nor apply_b_dec_to_input, so that it "
            "cannot be known how it encodes: give its tensors to nd.feature_from_tensors"
        )
    metadata, kind = getattr(cfg, "metadata", None), getattr(cfg, "architecture", "standard")
    kind = str(kind() if callable(kind) else kind)
    if kind == "standard" and getattr(cfg, "activation_fn_str", None) == "topk":  # sae-lens 5 and before
        kind = "topk"
    names = ("model_name", "hook_name", "hf_hook_name", "neuronpedia_id", "weights_tag")
    stated = {name: getattr(metadata, name, None) or getattr(cfg, name, None) for name in names}
    sizes = {name: getattr(cfg, name, None) for name in ("d_in", "d_sae", "d_out")}
    return Facts(
        architecture=kind,
        subtracted=flag(getattr(cfg, "apply_b_dec_to_input", False), "apply_b_dec_to_input"),
        normalise=str(getattr(cfg, "normalize_activations", None) or "none"),
        rescaled=flag(getattr(cfg, "rescale_acts_by_decoder_norm", False), "rescale_acts_by_decoder_norm"),
        metadata=stated,
        sizes=checked_sizes(sizes, f"the cfg of this {type(sae).__name__}"),
    )


def checked_sizes(sizes: Mapping[str, Any], source: str) -> dict[str, int]:
    """The sizes that a configuration states; raises ValueError for one that is no whole number."""
    try:
        return {name: whole(size, name, 1) for name, size in sizes.items() if size is not None}
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def flag(value: Any, name: str) -> bool:
    """True or False of a configuration, None as False. Raises ValueError for anything else: "false" would be true."""
    if not isinstance(value, bool) and value is not None:
        raise ValueError(f"{name}={shown(value)} in the configuration: true or false is needed")
    return bool(value)
