"""Features: latents of sparse autoencoders, read off sae-lens objects, files or plain tensors, one row and column each.

A latent reads with its encoder column e and writes with its decoder row d:

    pre(h) = (n(h) - b_dec) . e + b_enc      what it detects      "encoder", the default: linear, alive everywhere
    cos(h - b_dec, d)                        what it stands for   "decoder": to compare with concept vectors
    act(h) = pre(h) where it is above threshold, else 0           reported, not climbed: it starts at zero

n and whether b_dec is taken off are the autoencoder's own. The pictures of pre and of the cosine differ: pre buys norm,
the cosine purity.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .sites import Site
from .vlm import VLM

OBJECTIVES = ("encoder", "decoder")
# what is known to have one encoder column and one pre-activation for each latent
PLAIN = ("standard", "jumprelu", "topk", "batchtopk", "matryoshka", "abstopk", "gated")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


@dataclass(frozen=True, eq=False)
class Latent:
    """One latent, float32 on the CPU.

    encoder     (d_in,) what is multiplied with activations; `bias` is added
    decoder     (d_out,) what it adds to the reconstruction; None for a transcoder, which writes elsewhere
    origin      (d_in,) what is subtracted before, or None
    threshold   above which it fires (0 for ReLU); None where that depends on all other latents (top-k)
    gate        (encoder, bias) of a gated autoencoder: it fires where this is above 0
    normalise   "none", "layer_norm" or "constant_norm_rescale", as sae-lens has them
    scale       by which the pre-activation is multiplied afterwards (top-k rescaled by decoder norms)
    """

    index: int
    encoder: torch.Tensor
    bias: float = 0.0
    decoder: torch.Tensor | None = None
    origin: torch.Tensor | None = None
    threshold: float | None = 0.0
    gate: tuple[torch.Tensor, float] | None = None
    normalise: str = "none"
    scale: float = 1.0
    architecture: str = "standard"

    def pre(self, hidden: torch.Tensor) -> torch.Tensor:
        """Pre-activations (...) of activations (..., d_in), float32."""
        x = self._input(hidden)
        return (x @ self.encoder.to(x) + self.bias) * self.scale

    def act(self, hidden: torch.Tensor) -> torch.Tensor:
        """Activations (...); for top-k the rectified pre-activation, as though it were among the k."""
        pre = self.pre(hidden)
        if self.gate is not None:
            x = self._input(hidden)
            open_ = x @ self.gate[0].to(x) + self.gate[1] > 0
            return pre.relu() * open_
        return pre.relu() * (pre > (self.threshold or 0.0))

    def _input(self, hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.float()
        if self.origin is not None and self.architecture == "gated":
            return _normalised(x, self.normalise) - self.origin.to(x)
        x = _normalised(x, self.normalise)
        return x if self.origin is None else x - self.origin.to(x)


def _normalised(x: torch.Tensor, how: str) -> torch.Tensor:
    """As sae-lens does it before encoding (6.x, `SAE.run_time_activation_norm_fn_in`)."""
    if how == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
        return x / (x.std(-1, keepdim=True) + 1e-5)
    if how == "constant_norm_rescale":
        return x * (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True))
    return x


@dataclass(frozen=True, eq=False)
class Feature:
    """What is climbed of one or several latents that read the same site: the sum of weight x objective.

    where       the site, as the autoencoder's own metadata names it
    parts       (weight, latent): `a + b`, `a - b` and `2 * a` make them
    objective   "encoder" or "decoder"
    model       the model that it was trained on; neuronpedia, `<model>/<layer-source>` or None
    """

    label: str
    where: str
    parts: tuple[tuple[float, Latent], ...]
    objective: str = "encoder"
    model: str | None = None
    neuronpedia: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r}: allowed are 'encoder' and 'decoder'")
        if self.objective == "decoder" and any(latent.decoder is None for _, latent in self.parts):
            raise ValueError(
                f"{self.label}: a transcoder writes to another place than it reads, so that a cosine with its decoder "
                "means nothing here; use objective='encoder'"
            )

    @property
    def width(self) -> int:
        """d_in: the width of the activations that it reads."""
        return self.parts[0][1].encoder.numel()

    @property
    def link(self) -> str | None:
        """Its page on Neuronpedia, if it is a single latent that has one."""
        if self.neuronpedia is None or len(self.parts) > 1:
            return None
        return f"https://neuronpedia.org/{self.neuronpedia}/{self.parts[0][1].index}"

    def value(self, hidden: torch.Tensor) -> torch.Tensor:
        """The objective (...) of activations (..., d_in)."""
        return sum((w * self._one(latent, hidden) for w, latent in self.parts), torch.zeros(()).to(hidden.device))

    def _one(self, latent: Latent, hidden: torch.Tensor) -> torch.Tensor:
        if self.objective == "encoder":
            return latent.pre(hidden)
        assert latent.decoder is not None
        x = latent._input(hidden)
        return torch.nn.functional.cosine_similarity(x, latent.decoder.to(x), dim=-1)

    def __add__(self, other: Feature) -> Feature:
        return self._with(other, 1.0, "+")

    def __sub__(self, other: Feature) -> Feature:
        return self._with(other, -1.0, "-")

    def __mul__(self, factor: float) -> Feature:
        if isinstance(factor, bool) or not isinstance(factor, (int, float)):
            return NotImplemented
        parts = tuple((factor * w, latent) for w, latent in self.parts)
        return dataclasses.replace(self, label=f"{factor:g} * ({self.label})", parts=parts)

    __rmul__ = __mul__

    def __neg__(self) -> Feature:
        return -1.0 * self

    def _with(self, other: Feature, sign: float, verb: str) -> Feature:
        if not isinstance(other, Feature):
            return NotImplemented
        if (other.where, other.objective, other.width) != (self.where, self.objective, self.width):
            raise ValueError(
                f"{self.label} ({self.objective} at {self.where}) {verb} {other.label} ({other.objective} at "
                f"{other.where}): only features of one site and one objective add up"
            )
        parts = (*self.parts, *((sign * w, latent) for w, latent in other.parts))
        return dataclasses.replace(self, label=f"{self.label} {verb} {other.label}", parts=parts, neuronpedia=None)

    def site(self, vlm: VLM) -> Site:
        """Where it reads in a model; see `resolve`."""
        site = resolve(vlm, self.where)
        if vlm.width_at(site) != self.width:
            raise ValueError(
                f"feature {self.label!r} reads {self.width} numbers, but {vlm.describe(site)} of {vlm.id} is "
                f"{vlm.width_at(site)} wide: is it an autoencoder of this model and site?"
            )
        return site


def resolve(vlm: VLM, where: str) -> Site:
    """The site of a model that a hook name of an autoencoder means.

    A Hugging Face name of the text-only class (`model.layers.9.output`) is rebased to the model's own decoder; a
    TransformerLens name is taken by its meaning. `hook_mlp_in` and `attn.hook_z` are read where Hugging Face's names
    for them are (Gemma Scope 2's `hook_name` is not exact there). Raises ValueError for a name that means nothing here.
    """
    name = re.sub(
        r"^(?:model\.)?(?:language_model\.)?(?:model\.)?(?:text_model\.)?layers\.", f"{vlm.family.layers}.", where
    )
    if match := re.fullmatch(r"blocks\.(\d+)\.(attn\.hook_z|hook_z)", where):
        return vlm.site(Site(int(match[1]) + 1, "self_attn.o_proj.input"))
    if match := re.fullmatch(r"blocks\.(\d+)\.(hook_mlp_in|mlp\.hook_in)", where):
        return vlm.site(Site(int(match[1]) + 1, "mlp.input"))
    return vlm.site(name)


# -- reading -----------------------------------------------------------------------------------------------------


def latent_of(sae: Any, index: int) -> Latent:
    """One latent of a sae-lens object: only its column and row are copied.

    Raises TypeError for what is no autoencoder, ValueError for an architecture without single pre-activations, and
    IndexError for an index out of range.
    """
    if not all(hasattr(sae, name) for name in ("W_enc", "W_dec", "cfg")):
        raise TypeError(f"{type(sae).__name__} is no sae-lens SAE: it lacks W_enc, W_dec or cfg; see nd.feature")
    kind = _architecture(sae)
    if kind not in PLAIN + TRANSCODERS:
        raise ValueError(
            f"architecture {kind!r} has no pre-activation of a single latent; known are "
            + ", ".join(PLAIN + TRANSCODERS)
        )
    count = int(sae.W_enc.shape[1])
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise IndexError(f"feature {index!r}: this autoencoder has features 0 to {count - 1}")
    column, row = _copy(sae.W_enc[:, index]), _copy(sae.W_dec[index])
    apply, scale = bool(getattr(sae.cfg, "apply_b_dec_to_input", False)), 1.0
    bias = float(sae.b_enc[index]) if getattr(sae, "b_enc", None) is not None else 0.0
    threshold: float | None = 0.0
    gate = None
    if kind == "gated":
        gate = (column, float(sae.b_gate[index]))
        column, bias = column * float(sae.r_mag[index].exp()), float(sae.b_mag[index])
    elif "jumprelu" in kind or hasattr(sae, "threshold"):
        threshold = float(sae.threshold[index])
    elif kind in ("topk", "batchtopk", "abstopk"):
        threshold = None
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        scale = float(row.norm())
    return Latent(
        index,
        column,
        bias,
        None if "transcoder" in kind else row,
        _copy(sae.b_dec) if apply and "transcoder" not in kind else None,
        threshold,
        gate,
        str(getattr(sae.cfg, "normalize_activations", "none") or "none"),
        scale,
        kind,
    )


def _architecture(sae: Any) -> str:
    kind = getattr(sae.cfg, "architecture", "standard")
    return str(kind() if callable(kind) else kind)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


def from_sae(sae: Any, index: int, objective: str = "encoder", source: str = "") -> Feature:
    """A feature of a sae-lens object. Raises ValueError where its metadata do not tell the site."""
    metadata = getattr(sae.cfg, "metadata", None) if hasattr(sae, "cfg") else None
    latent = latent_of(sae, index)
    read: Callable[[str], Any] = lambda name: getattr(metadata, name, None) or getattr(sae.cfg, name, None)  # noqa: E731
    where = read("hf_hook_name") or read("hook_name")  # the first is exact where the second is not (Gemma Scope 2)
    if not where:
        raise ValueError(
            "this autoencoder's metadata name no hook_name; give its tensors and the site: "
            "nd.feature_from_tensors(W_enc=sae.W_enc, W_dec=sae.W_dec, index=0, site='blocks.9.hook_resid_post')"
        )
    name = source or read("sae_id") or str(where)
    return Feature(
        f"feature {index}",
        str(where),
        ((1.0, latent),),
        objective,
        read("model_name"),
        read("neuronpedia_id"),
        dict(source=name, index=index, architecture=latent.architecture),
    )


def feature_from_tensors(
    index: int,
    site: str,
    *,
    W_enc: torch.Tensor,
    W_dec: torch.Tensor | None = None,
    b_enc: torch.Tensor | None = None,
    b_dec: torch.Tensor | None = None,
    threshold: torch.Tensor | float | None = 0.0,
    objective: str = "encoder",
    model: str | None = None,
) -> Feature:
    """A feature of anyone's autoencoder: W_enc (d_in, features), W_dec (features, d_in), biases and thresholds.

    b_dec   (d_in,) is subtracted before encoding; leave it out if the autoencoder does not
    Raises ValueError for shapes that do not fit together, IndexError for an index out of range.
    """
    d, count = W_enc.shape if W_enc.ndim == 2 else (0, 0)
    fits = {
        "W_enc": (W_enc, (d, count)),
        "W_dec": (W_dec, (count, d)),
        "b_enc": (b_enc, (count,)),
        "b_dec": (b_dec, (d,)),
    }
    for name, (tensor, shape) in fits.items():
        if tensor is not None and (tuple(tensor.shape) != shape or not d):
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}; W_enc is (d_in, features), W_dec (features, d_in), b_enc "
                "(features,), b_dec (d_in,): transpose what is stored the other way"
            )
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise IndexError(f"feature {index!r}: this autoencoder has features 0 to {count - 1}")
    latent = Latent(
        index,
        _copy(W_enc[:, index]),
        0.0 if b_enc is None else float(b_enc[index]),
        None if W_dec is None else _copy(W_dec[index]),
        None if b_dec is None else _copy(b_dec),
        float(threshold[index]) if isinstance(threshold, torch.Tensor) and threshold.ndim else _number(threshold),
        architecture="tensors",
    )
    return Feature(
        f"feature {index}", site, ((1.0, latent),), objective, model, None, dict(source="tensors", index=index)
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
