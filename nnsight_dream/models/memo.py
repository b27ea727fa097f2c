"""What is kept of a model between calls: in one place, which says what lies there and when it goes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..state import changes

if TYPE_CHECKING:
    import torch

    from .prompt import ImagePrompt
    from .sites import Site
    from .vlm import VLM


Value = TypeVar("Value")


class Shelf(Generic[Value]):
    """Values of sites, which hold as long as weights, edits, hooks and chat template are what they were."""

    def __init__(self) -> None:
        self._values: dict[Site, dict[Hashable, Value]] = {}
        self._states: dict[Site, tuple[Any, ImagePrompt]] = {}

    def at(self, vlm: VLM, site: Site) -> dict[Hashable, Value]:
        """The values of a site, by the caller's keys; emptied first where the model has changed since the last look.

        It changes with weights, edits, hooks (see `VLM.weights_tag`), buffers that are in no checkpoint, and the chat
        template.
        """
        others = changes.digests(vlm.hf, changes.derived(vlm.hf)) if vlm.remote is None else {}
        weights, prompt = (vlm.weights_tag(site), b"".join(others.values())), vlm.image_prompt
        values = self._values.setdefault(site, {})
        if site in self._states:
            weights_then, prompt_then = self._states[site]
            if weights_then != weights or prompt_then is not prompt:
                values.clear()
        self._states[site] = weights, prompt
        return values


@dataclass
class Look:
    """What was seen of a model in one block of `VLM.alone`, in which nobody else changes it.

    hashes   of weights, edits and hooks, by layer and the path below which weights count
    names    of the weights that were read
    """

    hashes: dict[tuple[int, str], bytes] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


NOT_YET = -1  # in place of a number that was not looked up so far


@dataclass
class Memo:
    """What a VLM keeps of itself.

    As it was loaded:
    checkpoint_layers   how many decoder blocks the checkpoint has; None where it is not known
    files               the folder made for a part of the checkpoint, which lasts as long as this does
    templates           the chat templates that tokenizer and processor came with
    template            in a tuple the one that was chosen then; None where there was none to choose

    Found out once:
    widths      of activations, by the kind of site
    order       of inputs and outputs in a block's forward pass, by the names of its modules
    positions   how many tokens a text may have; None for any number
    reference_noticed   whether the notice about the default reference pictures was given

    Each with what it was made for, to be made anew for another:
    prompt      of a picture, with (chat template, pixel format)
    assumed_prompt   one that stands in where there is no tokenizer
    constants   inputs that no picture changes, with the prompt, by (device, type, attention)

    Of a site, emptied when the model changes (see `Shelf`):
    centres, reference_means   (d,), float32
    norms       mean norms of a patch of reference pictures
    ranges      (features,), float32, of autoencoders' features: the highest activations, the most activating words
    real_tokens   (pictures, n, d), float32, image tokens of all the bundled pictures on a ground: 20 MB each
    baselines   (d,), float32, means of baseline texts
    spreads     variances (k,) of pictures along their principal axes (k, d), float64

    look        what is known within a block of `alone`; None outside
    """

    checkpoint_layers: int | None = None
    files: Any = None
    templates: tuple[Any, Any] | None = None
    template: tuple[str | None] | None = None
    widths: dict[str, int] = field(default_factory=dict)
    order: dict[tuple[str, ...], dict[str, int]] = field(default_factory=dict)
    positions: int | None = NOT_YET
    reference_noticed: bool = False
    prompt: tuple[tuple[Any, Any], ImagePrompt] | None = None
    assumed_prompt: ImagePrompt | None = None
    constants: dict[Hashable, tuple[ImagePrompt, dict[str, Any]]] = field(default_factory=dict)
    centres: Shelf[torch.Tensor] = field(default_factory=Shelf)
    reference_means: Shelf[torch.Tensor] = field(default_factory=Shelf)
    norms: Shelf[float] = field(default_factory=Shelf)
    ranges: Shelf[torch.Tensor] = field(default_factory=Shelf)
    real_tokens: Shelf[torch.Tensor] = field(default_factory=Shelf)
    baselines: Shelf[torch.Tensor] = field(default_factory=Shelf)
    spreads: Shelf[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=Shelf)
    look: Look | None = None
