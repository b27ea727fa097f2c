"""Making features: of sae-lens objects, releases, files and plain tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from ..arguments import listed, real, shown, strict
from ..engine.latent import Latent
from .feature import GUARD, Feature
from .files import Opened
from .reference import chosen as reference_of
from .weights import Facts, Held, checked, facts_of, latent

if TYPE_CHECKING:
    from ..models.sites import Site


@overload
def feature(
    sae: Any,
    sae_id_or_index: int,
    *,
    objective: str = ...,
    guard: float | None = ...,
    site: str | int | Site | None = ...,
    reference: Any = ...,
) -> Feature: ...


@overload
def feature(
    sae: Any,
    sae_id_or_index: Sequence[int],
    *,
    objective: str = ...,
    guard: float | None = ...,
    site: str | int | Site | None = ...,
    reference: Any = ...,
) -> list[Feature]: ...


@overload
def feature(
    sae: Any,
    sae_id_or_index: str,
    index: int,
    *,
    objective: str = ...,
    guard: float | None = ...,
    site: str | int | Site | None = ...,
    reference: Any = ...,
) -> Feature: ...


@overload
def feature(
    sae: Any,
    sae_id_or_index: str,
    index: Sequence[int],
    *,
    objective: str = ...,
    guard: float | None = ...,
    site: str | int | Site | None = ...,
    reference: Any = ...,
) -> list[Feature]: ...


@strict
def feature(
    sae: Any,
    sae_id_or_index: Any,
    index: Any = None,
    *,
    objective: str = "encoder",
    guard: float | None = GUARD,
    site: str | int | Site | None = None,
    reference: Any = None,
) -> Any:
    """A feature of a sparse autoencoder, to be climbed by `synthesize`.

        nd.feature(sae, 1234)                                                        a sae-lens object
        nd.feature("gemma-scope-2-4b-it-res", "layer_17_width_16k_l0_medium", 1234)  a release, an SAE id
        nd.feature("folder", 1234)                                                   files of sae-lens or Gemma Scope 2
        nd.feature("demo", 1234)                                                     the bundled one

    index       a number from 0, or several: then a list of features is returned
    objective   "encoder": the mean pre-activation under the norm guard; "decoder": the mean cosine with the decoder row
    guard       of the norm, and `reference`, by whose pictures it is measured: see `Feature`
    site        where it reads, in place of what the autoencoder's metadata say (`hf_hook_name` before `hook_name`)

    Standard, JumpReLU (as which batch-top-k and matryoshka autoencoders are saved), top-k, batch-top-k, abs-top-k and
    gated autoencoders, and transcoders on their input side. Of files in sae-lens's and Gemma Scope 2's format only the
    feature's column and row are read; other releases are loaded whole by sae-lens. Nothing given is changed or moved.

    Raises TypeError for what is no autoencoder, ValueError for another architecture, an unknown name or metadata
    without a site, IndexError for a feature that is not there, FileNotFoundError and ConnectionError for files out of
    reach.

    >>> import nnsight_dream as nd
    >>> vlm = nd.load("demo")
    >>> vlm.describe(nd.feature("demo", 615).site(vlm))
    'layer 4 (blocks.3.hook_resid_post, model.language_model.layers.3.output)'
    """
    _refuse_swapped(sae, sae_id_or_index, index)
    opened, wanted = _opened(sae, sae_id_or_index, index)
    facts, source = opened.facts, opened.source
    where = site if site is not None else facts.name_of("hf_hook_name") or facts.name_of("hook_name")
    if where is None:
        raise ValueError(
            f"the metadata of {source} name no hook_name; say where it reads: nd.feature(..., "
            "site='blocks.9.hook_resid_post')"
        )
    single = isinstance(wanted, (str, bytes)) or not isinstance(wanted, Iterable)
    single = single or getattr(wanted, "shape", None) == ()
    numbers = [wanted] if single else listed(wanted, "index", "a feature's number, or a list of them, is")
    pictures = reference_of(reference)  # read once for all
    latents = [latent(opened.weights, facts, number, source) for number in numbers]
    features = [_of_latent(part, facts, source, where, objective, guard, pictures) for part in latents]
    return features[0] if single else features


def _refuse_swapped(sae: Any, sae_id_or_index: Any, index: Any) -> None:
    """Raise TypeError for a model or a number in the autoencoder's place, and for a feature's number as a text."""
    if hasattr(sae, "fingerprint") and hasattr(sae, "image_prompt"):
        parts = [repr(x) for x in (sae_id_or_index, index) if isinstance(x, (str, int))]
        parts = ["sae", *parts] if parts and not isinstance(sae_id_or_index, str) else parts or ["sae", "3"]
        raise TypeError(
            f"a feature is made without a model: nd.feature({', '.join(parts)}); sae is a sae-lens SAE, a folder, or a "
            "release such as 'gemma-scope-2-4b-it-res'; 'demo' is the bundled one"
        )
    if isinstance(sae, int) and isinstance(sae_id_or_index, (str, Path)):
        raise TypeError(f"the autoencoder goes first: nd.feature({str(sae_id_or_index)!r}, {sae})")
    for number in (sae_id_or_index if index is None else index,):
        if isinstance(number, str) and number.strip().isdecimal():
            before = repr(str(sae)) if isinstance(sae, (str, Path)) else "sae"
            before += "" if index is None else f", {sae_id_or_index!r}"
            raise TypeError(f"{number!r} is a text; a feature is a number: nd.feature({before}, {int(number)})")


def _opened(sae: Any, sae_id_or_index: Any, index: Any) -> tuple[Opened, Any]:
    """An autoencoder of a release, folder or in hand, and the index or indices that are meant."""
    if not isinstance(sae, (str, Path)):
        opened = Opened(Held(sae), facts_of(sae), type(sae).__name__)
        if index is not None:
            raise TypeError(f"an autoencoder in hand needs no SAE id: nd.feature(sae, {index!r})")
        return opened, sae_id_or_index
    from .releases import opened as opened_release

    sae_id, wanted = (None, sae_id_or_index) if index is None else (str(sae_id_or_index), index)
    if isinstance(wanted, str):
        sae_id, wanted = wanted, None
    opened = opened_release(sae, sae_id)
    if wanted is None:
        raise TypeError(f"which feature? Give an index: nd.feature({str(sae)!r}, {sae_id!r}, 0)")
    return opened, wanted


def _of_latent(
    part: Latent, facts: Facts, source: str, where: Any, objective: str, guard: float | None, reference: Any
) -> Feature:
    """The feature of one latent, with the story of where it comes from."""
    story: dict[str, Any] = {"method": "feature", "source": source, "architecture": facts.architecture}
    if tag := facts.name_of("weights_tag"):
        story["weights_tag"] = tag
    return Feature(
        label=f"feature {part.index}",
        where=where,
        parts=((1.0, part),),
        objective=objective,
        model=facts.name_of("model_name"),
        neuronpedia=facts.name_of("neuronpedia_id"),
        provenance={**story, "index": part.index},
        guard=guard,
        reference=reference,
    )


@strict
def feature_from_tensors(
    index: int,
    site: str | int | Site,
    *,
    W_enc: torch.Tensor,
    W_dec: torch.Tensor | None = None,
    b_enc: torch.Tensor | None = None,
    b_dec: torch.Tensor | None = None,
    threshold: torch.Tensor | float = 0.0,
    objective: str = "encoder",
    model: str | None = None,
    apply_b_dec_to_input: bool = True,
    guard: float | None = GUARD,
    reference: Any = None,
) -> Feature:
    """A feature of anyone's autoencoder, from its tensors.

        pre(h) = (h - b_dec) . W_enc[:, index] + b_enc[index]

    W_enc, W_dec   (d_in, features) and (features, d_in); without W_dec there is no cosine
    b_enc, b_dec   (features,) and (d_in,); zeros if not given
    threshold      (features,) or one number: it fires above it
    apply_b_dec_to_input   whether b_dec is subtracted before encoding

    Raises ValueError for shapes that do not fit together, IndexError for an index out of range.

    >>> import nnsight_dream as nd, torch
    >>> nd.feature_from_tensors(1, site="blocks.3.hook_resid_post", W_enc=torch.eye(64)).label
    'feature 1'
    """
    each = threshold if getattr(threshold, "ndim", 0) else None
    named = dict(W_enc=W_enc, W_dec=W_dec, b_enc=b_enc, b_dec=b_dec, threshold=each)
    if W_enc is None:
        raise TypeError("W_enc=None: a tensor (d, features) is needed; W_dec is its counterpart (features, d)")
    tensors = {name: _tensor(value, name) for name, value in named.items() if value is not None}
    _check_shapes(tensors)
    index = checked(index, tensors["W_enc"].shape[1])
    held = Held(tensors)
    part = Latent(
        index=index,
        encoder=held.column("W_enc", index),
        bias=float(held.row("b_enc", index)) if "b_enc" in tensors else 0.0,
        decoder=held.row("W_dec", index) if "W_dec" in tensors else None,
        b_dec=held.whole("b_dec") if "b_dec" in tensors else None,
        subtracted=apply_b_dec_to_input,
        threshold=float(held.row("threshold", index)) if "threshold" in tensors else real(threshold, "threshold"),
        architecture="tensors",
    )
    story = {"method": "feature_from_tensors", "index": index}
    return Feature(f"feature {index}", site, ((1.0, part),), objective, model, None, story, guard, reference)


def _check_shapes(tensors: dict[str, torch.Tensor]) -> None:
    d, count = tuple(tensors["W_enc"].shape) if tensors["W_enc"].ndim == 2 else (0, 0)
    shapes = dict(W_enc=(d, count), W_dec=(count, d), b_enc=(count,), b_dec=(d,), threshold=(count,))
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name] or not d or not count:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}, W_enc {tuple(tensors['W_enc'].shape)}; W_enc is (d_in, features), "
                "W_dec (features, d_in), b_enc and threshold (features,), b_dec (d_in,): transpose what is stored the "
                "other way"
            )


def _tensor(value: Any, name: str) -> torch.Tensor:
    """A tensor, or a NumPy array as one. Raises TypeError for another kind, and for numbers that are not real."""
    tensor = value if isinstance(value, torch.Tensor) else None
    if tensor is None and type(value).__module__ == "numpy" and getattr(value, "dtype", None) is not None:
        tensor = torch.from_numpy(value) if value.dtype.kind == "f" else None
    if tensor is None or not tensor.is_floating_point() or tensor.is_meta or tensor.layout != torch.strided:
        raise TypeError(f"{name}={shown(value)}: a dense tensor or array of floating-point numbers is needed")
    return tensor
