"""Plain records, the inputs of jobs: what a model's reading needs, and what is read, averaged or climbed.

Everything in this folder is sent as source to a server that has no `nnsight_dream` (see `remote.payload`): it imports
torch and math, nnsight for its traces, and nothing of ours outside this folder. No tensor is made without a type and a
device; both are those of tensors that the model hands back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .optimise import Climb


class Numbers:
    """What of a config is plain data: numbers and texts by name."""

    def __init__(self, **facts: Any) -> None:
        self.__dict__.update(facts)

    def get_text_config(self) -> Numbers:
        """Itself: it holds the numbers of the language model."""
        return self


@dataclass(frozen=True, eq=False)
class Reading:
    """All that is needed of a model to read sites of it.

    root        path of the module that takes ids and pixels; `model.get(root)` has it
    points      (site, path, "input" or "output") in the order in which a pass reaches them
    places      by site, where in the prompt the image tokens are: (n,) whole numbers
    first       (path, side) of the first block, by which device and type are seen where they are not known
    one_token   inputs of one token, for that
    ids         (T,) the token ids of the prompt before and at one picture; `extra` further inputs (1, T)
    pack        pictures (B, 3, H, W) in [0, 1] and `pixels`, a format, to the inputs that are made of them
    encode, soft, temperature   image tokens made outside the model, and soft ones for a code book
    states      what a module gave, and `config`, to its states (B, T, d)
    masks       (type of layer, path of its first block), where attention masks are made once for all
    positions   path of the decoder, where position ids are; "" where they are not caught
    cut, hard, allowed, names   what to say: no gradient came, none can, which kinds hold states, sites by name
    device, dtype   of the model's inputs, where they are known; None on a server, which looks itself
    constants   all inputs of one picture but its pixels, (1, T) each, where they were made before; None: to be made
    """

    root: str
    points: list[tuple[Any, str, str]]
    places: dict[Any, torch.Tensor]
    first: tuple[str, str]
    one_token: dict[str, torch.Tensor]
    ids: torch.Tensor
    extra: dict[str, torch.Tensor]
    pack: Callable[..., dict[str, torch.Tensor]]
    pixels: Any
    encode: Callable[..., Any] | None
    soft: Callable[..., Any] | None
    temperature: float | None
    states: Callable[[Any, Any], Any]
    config: Any
    masks: list[tuple[str, str]]
    positions: str
    cut: str
    hard: str
    allowed: str
    names: dict[Any, str]
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    constants: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Text:
    """Inputs of texts (B, T), whose states are read at the points of a reading."""

    how: Reading
    inputs: dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures (B, 3, H, W) in [0, 1], whose patches are read."""

    how: Reading
    pictures: torch.Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of pictures (B, 3, H, W), each of one size, whose mean patch is taken, `at_once` pictures a pass."""

    how: Reading
    pictures: list[torch.Tensor]
    at_once: int


@dataclass(frozen=True, eq=False)
class Words:
    """Texts whose mean activations are wanted, less those of a baseline.

    batches, baseline   (inputs, own tokens of each row); baseline None: nothing is taken off
    known   the baseline's mean (d,) at each point of the reading, or None where it is not known
    """

    how: Reading
    batches: list[tuple[dict[str, torch.Tensor], list[list[int]]]]
    baseline: list[tuple[dict[str, torch.Tensor], list[list[int]]]] | None
    known: list[torch.Tensor | None]


@dataclass(eq=False)
class Aim:
    """What one picture climbs towards, at a site: a vector, one that a request of the same job makes, or a feature.

    asked   (request, point, row) of the vector, where the job makes it
    alone   of a sum of latents each as a feature of its own
    guard   times the reference's norm, the most that activations count; reference   its number
    """

    site: Any
    vector: torch.Tensor | None = None
    asked: tuple[int, int, int] | None = None
    feature: Any = None
    alone: list[Any] = field(default_factory=list)
    guard: float | None = None
    reference: int = 0


@dataclass(frozen=True, eq=False)
class Added:
    """An added term: a callable from a `Step` to (J,), or (site, vector, weight, pooling) to keep away from."""

    call: Callable[..., torch.Tensor] | None = None
    away: tuple[Any, torch.Tensor, float, Any] | None = None


@dataclass(frozen=True, eq=False)
class Ascent:
    """A piece of an ascent of J pictures.

    how          the reading; asked   requests of concept vectors that the job makes first
    aims         J; seeds   J
    centres      (d,) by site, as far as known; the others are means over the pictures of `centre`, a list of groups or
                 an object with `pictures(height, width)`, at `centre_sites`; `every_centre` are all sites
    norms        by (site, reference), as far as known; `norms_wanted` are the others, over `references`' pictures;
                 `every_norm` are all
    pooling, score   of directions; poolings   by name, those by which finished pictures are scored
    plan         how it goes; until   the step to stop before; state   what the piece before gave, None at first
    note         comes back as it is
    tell         is given each step and its scores (J,), and where it has `shows` the pictures (J, 3, H, W) too; None: a
                 line is printed
    """

    how: Reading
    asked: list[Words]
    aims: list[Aim]
    seeds: list[int]
    centres: dict[Any, torch.Tensor]
    centre: Any
    centre_sites: list[Any]
    every_centre: list[Any]
    norms: dict[Any, float]
    norms_wanted: list[Any]
    every_norm: list[Any]
    references: dict[int, list[torch.Tensor]]
    pooling: Any
    score: Any
    poolings: dict[str, Any]
    terms: list[Added]
    canvas: Any
    augment: list[Any]
    plan: Climb
    grid: tuple[int, int]
    until: int = 0
    state: dict[str, Any] | None = None
    note: bytes | None = None
    tell: Callable[[int, torch.Tensor], None] | None = None


def on_cpu(result: Any) -> Any:
    """A job's result with its tensors on the CPU and without their graph, as it is sent home."""
    if isinstance(result, torch.Tensor):
        return result.detach().cpu()
    if isinstance(result, dict):
        return {key: on_cpu(value) for key, value in result.items()}
    if isinstance(result, (list, tuple)):
        return type(result)(on_cpu(value) for value in result)
    return result
