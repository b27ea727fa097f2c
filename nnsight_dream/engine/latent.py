"""One column and row of a sparse autoencoder: pre-activation, activation, cosine.

See `engine.plain` for the rules of this folder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F


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

    Raises ValueError for tensors of other shapes, and for numbers that are not finite.
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

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, torch.Tensor) or not isinstance(self.decoder, torch.Tensor | None):
            raise TypeError(f"feature {self.index}: its column and row are tensors; got {type(self.encoder).__name__}")
        shape = tuple(self.encoder.shape)
        if len(shape) != 1 or not shape[0]:
            raise ValueError(f"feature {self.index}: its column of W_enc is (d_in,); got {shape}")
        gate, gate_bias = self.gate or (None, 0.0)
        tensors = {"column of W_enc": self.encoder, "row of W_dec": self.decoder, "b_dec": self.b_dec, "gate": gate}
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"feature {self.index}: its {name} is {tuple(tensor.shape)}, its column of W_enc {shape}"
                )
            if not bool((finite := tensor.isfinite()).all()):
                place = int((~finite).int().argmax())
                raise ValueError(
                    f"feature {self.index}: its {name} holds {int((~finite).sum())} of {shape[0]} numbers that are not "
                    f"finite, the first ({float(tensor[place])}) at place {place}: {BROKEN}"
                )
        numbers = {"bias": self.bias, "threshold": self.threshold, "bias of its gate": gate_bias, "scale": self.scale}
        for name, number in numbers.items():
            if number is not None and not math.isfinite(number):
                raise ValueError(f"feature {self.index}: its {name} is {number}: {BROKEN}")

    def to(self, device: torch.device) -> Latent:
        """The same on a device."""
        moved = {
            name: value.clone().to(device) if value.is_inference() else value.to(device)
            for name in ("encoder", "decoder", "b_dec")
            if (value := getattr(self, name)) is not None
        }
        gate = None if self.gate is None else (self.gate[0].clone().to(device), self.gate[1])
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


BROKEN = "nothing can be read of it; get the autoencoder anew, or take another feature"


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
        scale: torch.Tensor = x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
        return x * scale
    return x
