"""Vectors: what a direction is, how directions add up, and their file; text.py, sources.py and pattern.py make them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch

from .. import arguments
from ..io import files
from ..models import checked
from ..models.sites import Site
from ..state.calm import calm, calmly
from . import steering

if TYPE_CHECKING:
    from rich.text import Text

    from ..models.vlm import VLM


Where = int | str | Site


Many = Sequence[int] | Sequence[Site] | list[str] | list[int | str] | list[Where] | tuple[Where, ...]


#: Models of which directions were made, while they are in use: to tell the words that a direction is near.
MODELS: WeakValueDictionary[str, VLM] = WeakValueDictionary()


@dataclass(frozen=True, eq=False, repr=False)
class Direction:
    """A vector (d,) at a site of a model, float32 on the cpu, with label and provenance; never changed in place.

    Sums, differences and multiples of directions of one model and site are directions. Two are equal only if they are
    the same object; compare by `cosine`. Raises ValueError for a vector that is not (d,) or not finite, and TypeError
    for provenance that JSON cannot hold.

    >>> import nnsight_dream as nd
    >>> vlm = nd.load("demo")
    >>> sea, land = nd.concept(vlm, ["octopus", "giraffe"], layer=1)
    >>> (sea - 0.5 * land).label
    'octopus - 0.5 giraffe'
    """

    vector: torch.Tensor
    site: Site
    label: str
    model: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @calmly
    def __post_init__(self) -> None:
        for name, kind in (("site", Site), ("label", str), ("model", str), ("provenance", Mapping)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"Direction: {name}={arguments.shown(getattr(self, name))}: a {kind.__name__} is needed; "
                    "nd.from_tensor(vlm, vector, layer) makes a direction of plain numbers"
                )
        vector = numbers(self.vector, "vector").detach().to("cpu", torch.float32).clone()
        if vector.ndim != 1 or not vector.numel():
            raise ValueError(f"direction {self.label!r}: a vector is (d,); got {tuple(vector.shape)}")
        if not vector.isfinite().all():
            raise ValueError(
                f"direction {self.label!r} at {self.site} is not finite in {int((~vector.isfinite()).sum())} of "
                f"{len(vector)} places; float16 overflows in some models: load with torch.bfloat16 or torch.float32"
            )
        object.__setattr__(self, "vector", vector)
        object.__setattr__(self, "provenance", json.loads(json.dumps(dict(self.provenance))))

    @property
    def width(self) -> int:
        """d, the length of the vector."""
        return len(self.vector)

    @property
    def norm(self) -> float:
        """The Euclidean norm, of vectors of any length: squares of 1e30 or 1e-30 would leave float32's range."""
        vector, power = scaled(self.vector)
        return float(vector.norm()) * 2.0 ** int(power)

    def unit(self) -> Direction:
        """The same direction with norm 1. Raises ValueError for a direction of zeros."""
        if self.norm == 0:
            raise ValueError(f"direction {self.label!r} at {self.site} is zero and points nowhere")
        vector, power = scaled(self.vector)
        factor = 1 / float(vector.norm())
        terms = [{**term, "weight": term["weight"] * factor * 2.0 ** -int(power)} for term in _terms(self)]
        return _combined(self, vector * factor, terms)

    def __add__(self, other: Direction | int) -> Direction:
        if not isinstance(other, Direction):
            return self if arguments.is_whole(other) and other == 0 else NotImplemented  # so that sum() works
        _check_alike(self, other, "add")
        return _combined(self, self.vector + other.vector, [*_terms(self), *_terms(other)])

    __radd__ = __add__

    def __sub__(self, other: Direction) -> Direction:
        if not isinstance(other, Direction):
            return NotImplemented
        _check_alike(self, other, "subtract")
        return _combined(self, self.vector - other.vector, [*_terms(self), *_terms(-other)])

    def __mul__(self, factor: float) -> Direction:
        if not _is_number(factor):
            return NotImplemented
        weight = arguments.real(factor, "a direction's factor")
        terms = [{**term, "weight": term["weight"] * weight} for term in _terms(self)]
        return _combined(self, self.vector * weight, terms)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Direction:
        if not _is_number(divisor):
            return NotImplemented
        number = arguments.real(divisor, "a direction's divisor")
        if number == 0:
            raise ZeroDivisionError(f"direction {self.label!r} cannot be divided by 0")
        return self * (1 / number)

    def __neg__(self) -> Direction:
        return self * -1.0

    def __str__(self) -> str:
        names = ", ".join(filter(None, (self.site.tl_name, self.provenance.get("hf_name"))))
        return (
            f"{arguments.brief(self.label)} at layer {self.site.layer} ({names}) of {self.model}, norm {self.norm:.4g}"
        )

    def __repr__(self) -> str:
        return f"<Direction {self}>"

    def _repr_html_(self) -> str:
        from .nearest import table

        return table(self)

    def __rich__(self) -> Text:
        from rich.text import Text

        label = arguments.brief(self.label)
        return Text.assemble((label, "bold"), str(self)[len(label) :])

    def hook(self, add: float | None = None, *, ablate: bool = False) -> Callable[..., Any]:
        """A hook function that adds a multiple of the vector to activations, or takes out what lies along it.

        For TransformerLens (`fwd_hooks=[(direction.site.tl_name, direction.hook(4.0))]`) and for torch
        (`module.register_forward_hook(direction.hook(4.0))`). It changes every token of activations (..., d), or by
        heads, and raises ValueError for others. Raises TypeError unless one of `add` and `ablate` is given.
        """
        return steering.hook(self, add, ablate)

    def edit(self, vlm: VLM, add: float | None = None, *, ablate: bool = False) -> Any:
        """A copy of the nnsight model with an edit that does what `hook` does, in every pass; `vlm` stays as it is.

        Trace it, generate with it, or hand it to `nd.load`. Raises ValueError for another model, TypeError as `hook`.
        """
        return steering.edit(self, vlm, add, ablate)

    def save(self, path: str | Path) -> Path:
        """Write vector and story to a safetensors file, whole or not at all; returns its path. Raises OSError."""
        path = arguments.path(path)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; give a file in it, such as {path / 'direction.safetensors'}")

        record = {name: getattr(self, name) for name in ("label", "model", "provenance")}
        record["site"] = {"layer": self.site.layer, "kind": self.site.kind, "tokens": self.site.tokens}
        text = json.dumps({"format": 1, **record}, ensure_ascii=False)
        files.write_whole(path, files.pack({"vector": self.vector}, {"direction": text}))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """Read what `save` wrote, bit for bit.

        Raises ValueError for another file and for one that has changed since, FileNotFoundError for none.
        """
        path = arguments.file(path)
        try:
            tensors, metadata = files.unpack(path.read_bytes())
            record, vector = json.loads(metadata["direction"]), tensors["vector"]
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a direction that Direction.save wrote ({error!r})") from error
        if record["format"] != 1:
            raise ValueError(f"{path} has format {record['format']}, this version reads 1: upgrade nnsight-dream")
        tokens = record["site"]["tokens"]
        site = Site(**{**record["site"], "tokens": tokens if isinstance(tokens, str) else tuple(tokens)})
        return cls(vector, site, record["label"], record["model"], record["provenance"])


def _is_number(value: Any) -> bool:
    return isinstance(arguments.plain(value), Real)


def numbers(value: Any, name: str) -> torch.Tensor:
    """A tensor, or what makes one, as a tensor of real numbers. Raises TypeError for anything else."""
    try:
        with calm():
            tensor = torch.as_tensor(value)
    except Exception as error:  # NumPy and torch raise what they like
        why = str(error).split("\n")[0][:200]
        raise TypeError(f"{name}= is a tensor, or numbers that make one; got {type(value).__name__} ({why})") from None
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}= is a tensor of real numbers; got one of {tensor.dtype}")
    return tensor


def _check_alike(a: Direction, b: Direction, verb: str) -> None:
    for operand in (a, b):
        if not isinstance(operand, Direction):
            raise TypeError(
                f"cannot {verb} {arguments.shown(operand)}: two Directions are needed, such as nd.concept makes; "
                "of two tensors see torch.cosine_similarity"
            )
    differing = {
        "model": (a.model, b.model),
        "site": (str(a.site), str(b.site)),
        "tokens": (a.site.tokens, b.site.tokens),
        "width": (a.width, b.width),
    }
    if wrong := [f"{name} {x} and {y}" for name, (x, y) in differing.items() if x != y]:
        raise ValueError(f"cannot {verb} {a} and {b}: {'; '.join(wrong)}. Make both from one vlm with the same layer=")


def _terms(direction: Direction) -> list[dict[str, Any]]:
    """A direction as a weighted sum of directions that are no sums themselves."""
    if direction.provenance.get("method") == "combination" and "pattern" not in direction.provenance:
        return list(direction.provenance["terms"])
    return [{"weight": 1.0, "label": direction.label, "provenance": direction.provenance}]


def _combined(like: Direction, vector: torch.Tensor, terms: list[dict[str, Any]]) -> Direction:
    label = ""
    for term in terms:
        sign = "-" if term["weight"] < 0 else "+"
        size = "" if abs(term["weight"]) == 1 else f"{abs(term['weight']):.4g} "
        lead = f" {sign} " if label else sign.strip("+")
        label += f"{lead}{size}{term['label']}"
    kept = {k: v for k, v in like.provenance.items() if k in ("hf_name", "revision")}
    return Direction(vector, like.site, label, like.model, {"method": "combination", **kept, "terms": terms})


def cosine(a: Direction, b: Direction) -> float:
    """The cosine of the angle between two directions of one model and site, in [-1, 1].

    Raises ValueError where model, site or width differ, or where one is zero.

    >>> import nnsight_dream as nd
    >>> fox, panda = nd.concept(nd.load("demo"), ["fox", "panda"], layer=1)
    >>> nd.cosine(fox, fox) > 0.999 > nd.cosine(fox, panda)
    True
    """
    for direction in (a, b):
        if not isinstance(direction, Direction):
            raise TypeError(f"cosine compares two Directions; got {arguments.shown(direction)}: see nd.from_tensor")
    _check_alike(a, b, "compare")
    return max(-1.0, min(1.0, float(a.unit().vector.double() @ b.unit().vector.double())))


def scaled(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (..., d) whose largest number is brought to between 1 and 2 by a power of two, and that power (..., 1).

    Exact, so that what follows has the same digits at any scale, and squares neither overflow nor vanish.
    """
    power = (torch.frexp(x.abs().amax(-1, keepdim=True)).exponent - 1).to(torch.float64)
    half = torch.floor(-power / 2)  # in two steps: 2**149 is beyond float32
    return x * torch.exp2(half).to(x.dtype) * torch.exp2(-power - half).to(x.dtype), power


def climbable(vector: torch.Tensor) -> torch.Tensor:
    """A vector (d,) as it is climbed: as it is, but for one so long or short that float32 could not hold its squares,
    which is brought near 1 by a power of two; what is climbed does not depend on it."""
    near, power = scaled(vector)
    return near if abs(int(power)) > 20 else vector


def unit(x: torch.Tensor) -> torch.Tensor:
    """Vectors (..., d) at norm 1, of any length; those of zeros stay zero."""
    x, _ = scaled(x)
    return torch.nn.functional.normalize(x, dim=-1)


def versions() -> dict[str, str]:
    """The versions of this library and of those that an activation depends on."""
    from ..version import __version__

    return {"nnsight-dream": __version__, **{name: _version(name) for name in ("nnsight", "transformers", "torch")}}


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def sites_of(vlm: VLM, layer: Where | Many) -> tuple[list[Site], bool]:
    """The requested sites, and whether a single one was requested rather than a list."""
    layers, single = checked.layers(layer, last=vlm.layers)
    return [vlm.site(where) for where in layers], single


def build_direction(vlm: VLM, site: Site, vector: torch.Tensor, label: str, **story: Any) -> Direction:
    """A direction of this model, with facts about the model added to its story."""
    kept = {"hf_name": vlm.hf_name(site), "revision": vlm.revision, "versions": versions()}
    MODELS[vlm.id] = vlm
    return Direction(vector, site, label, vlm.id, {**story, **kept})
