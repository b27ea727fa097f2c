"""Judges: who says what a picture shows, without having seen how it was made."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image

from .. import arguments
from ..demo import bundle
from ..io.pictures import as_images, as_tensors, by_size
from ..models import devices, hub
from ..models.checkpoint import at_best_device, refuse_missing
from ..state.calm import calmly


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a judge sees in one picture: `names`, best first, with their `probabilities`; asked within `category`."""

    names: tuple[str, ...]
    probabilities: tuple[float, ...]
    category: str | None = None

    @property
    def top(self) -> str:
        """The best name."""
        return self.names[0]

    def rank(self, name: str) -> int:
        """The place of a name, from 1; raises ValueError, with the nearest, for one that was no candidate."""
        if name not in self.names:
            name = arguments.text(name, "name", self.names[0], blank=False)
            near = difflib.get_close_matches(name, self.names, 1, 0.0)[0]
            raise ValueError(f"{name!r} is not among the {len(self.names)} candidates; did you mean {near!r}?")
        return self.names.index(name) + 1

    def __repr__(self) -> str:
        more = f"; {len(self.names)} names" + (f" of {self.category}" if self.category else "")
        return f"Verdict({self}{more})"

    def __str__(self) -> str:
        return ", ".join(f"{n} {p:.0%}" for n, p in zip(self.names[:3], self.probabilities[:3], strict=False))


class Judge(Protocol):
    """Anything that names pictures."""

    def judge(self, images: Any, *, category: str | None = None) -> list[Verdict]:
        """A verdict for each picture; with a category, among its members only."""
        ...


class NamingJudge:
    """A judge that gives each of its names a probability.

    names, categories   what it knows, and the category of each ("" for none), in the order of its logits
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]

    def logits(self, images: Any) -> torch.Tensor:
        """(pictures, names), before the softmax, on the cpu."""
        raise NotImplementedError

    def judge(self, images: Any, *, category: str | None = None) -> list[Verdict]:
        """Name pictures: a PIL image, a path, a tensor (3, H, W) or (B, 3, H, W) in [0, 1], or a list of these.

        Without a category: probabilities over all names. With one: the same, renormalised over its members.
        Raises ValueError for an unknown category (with the nearest) and for pictures that are none.
        """
        return self.verdicts(self.logits(images), category)

    def verdicts(self, logits: torch.Tensor, category: str | None = None) -> list[Verdict]:
        """What logits (pictures, names) say; see `judge`. Raises ValueError for an unknown category."""
        rows = list(range(len(self.names)))
        if category is not None:
            category = arguments.text(category, "category", "animal")
            rows = [i for i, c in enumerate(self.categories) if c == category]
            if not rows:
                categories = list(dict.fromkeys(self.categories))
                near = difflib.get_close_matches(category, categories, 1, 0.0)[0]
                raise ValueError(f"no category {category!r}; did you mean {near!r}? There are {', '.join(categories)}")
        sure = logits[:, rows].softmax(-1)
        order = sure.argsort(-1, descending=True)
        return [
            Verdict(tuple(self.names[rows[i]] for i in o.tolist()), tuple(p[o].tolist()), category)
            for p, o in zip(sure, order, strict=True)
        ]


class DemoJudge(NamingJudge):
    """The bundled judge: EfficientNet-Lite0 from ImageNet, trained on emoji by other artists than the bundled model.

    names, categories   what it knows, in the order of its answers; scores   its accuracy when it was trained

    >>> import nnsight_dream as nd
    >>> from nnsight_dream import demo
    >>> nd.DemoJudge().judge(demo.pictures(["sunflower"])[0].image)[0].top
    'sunflower'
    """

    @calmly
    def __init__(self, folder: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu"):
        from safetensors.torch import load_file

        from .efficientnet import EfficientNetLite0

        place = arguments.folder(folder) if folder is not None else bundle.folder() / "judge"
        if not (place / "config.json").is_file():
            raise FileNotFoundError(f"no judge in {place}: config.json and model.safetensors are looked for")
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        self.names = tuple(config["names"])
        self.categories = tuple(config["categories"])
        self.scores: dict[str, float] = config["scores"]
        self._side, self._temperature = int(config["side"]), float(config["temperature"])
        self._device = devices.known(device)
        self._mean, self._std = (torch.tensor(config[k]).view(3, 1, 1).to(self._device) for k in ("mean", "std"))
        self._net = EfficientNetLite0(len(self.names))
        state = {k: v.float() for k, v in load_file(place / "model.safetensors").items()}
        left = self._net.load_state_dict(state, strict=False)
        missing = [k for k in left.missing_keys if not k.endswith("num_batches_tracked")]
        if missing or left.unexpected_keys:
            raise ValueError(f"{place} does not hold this judge's weights: {[*missing, *left.unexpected_keys][:5]}")
        self._net.to(self._device).eval().requires_grad_(False)

    def verdicts(self, logits: torch.Tensor, category: str | None = None) -> list[Verdict]:
        """What logits (pictures, names) say, at the temperature that makes the bundled judge's shares honest."""
        return super().verdicts(logits / self._temperature, category)

    @calmly
    def logits(self, images: Any) -> torch.Tensor:
        """(pictures, names) before the softmax, at temperature 1: means over each picture and its mirror image."""
        with torch.no_grad():
            order: list[int] = []
            rows = []
            for numbers, part in by_size(as_tensors(images, "images"), 64):
                x = self._input(part)
                rows.append((self._net(x) + self._net(x.flip(-1))) / 2)
                order += numbers
        return torch.cat(rows).float().cpu()[torch.tensor(order).argsort()]  # they went size by size

    def _input(self, pictures: torch.Tensor) -> torch.Tensor:
        x = pictures.to(self._device)
        if tuple(x.shape[-2:]) != (self._side, self._side):
            x = F.interpolate(x, (self._side, self._side), mode="bilinear", antialias=True)
        return (x - self._mean) / self._std


@calmly
def loaded(model: Any, processor: Any, kind: str, options: Mapping[str, Any]) -> tuple[Any, Any, str]:
    """A model, its processor and a short name; one that is loaded goes to `device=` or the best device there is.

    Raises ValueError for a missing processor, missing weights or a device that is not there, OSError if none is found.
    """
    import transformers

    if isinstance(model, (str, os.PathLike)):
        with hub.door(model, options) as there:
            weights, report = at_best_device(getattr(transformers, kind), model, there, options)
            refuse_missing(str(model), report)
            processor = processor or transformers.AutoProcessor.from_pretrained(there, **hub.access(options))
        return weights, processor, Path(model).name
    if options:
        near = difflib.get_close_matches(next(iter(options)), ["processor", "names", "name"], 1, 0.0)[0]
        raise TypeError(f"{', '.join(options)}= cannot be given with a loaded model; did you mean {near}=?")
    if processor is None:
        raise ValueError("a loaded model needs processor=, such as AutoProcessor.from_pretrained gives for it")
    return model, processor, Path(getattr(model, "name_or_path", "") or type(model).__name__).name


def worded(texts: Sequence[str], model: Any, processor: Any, name: str) -> tuple[list[str], dict[str, Any]]:
    """Texts as a dual encoder was trained on them, and its processor's options for their length.

    Raises ValueError for texts of more tokens than it has positions, of which it would see the beginning alone.
    """
    most = model.config.text_config.max_position_embeddings
    padding: bool | str = True
    if "siglip" in model.config.model_type:  # trained on lower case, filled up to full length
        texts, padding = [text.lower() for text in texts], "max_length"
    tokenizer = getattr(processor, "tokenizer", None)
    lengths = [] if tokenizer is None else [len(ids) for ids in tokenizer(list(texts), truncation=False)["input_ids"]]
    long = [i for i, length in enumerate(lengths) if length > most]
    if long:
        raise ValueError(
            f"{len(long)} of {len(texts)} texts have more tokens than {name} has positions, {most}; the first is "
            f"number {long[0]} with {lengths[long[0]]}, {texts[long[0]][:60]!r}: shorten them or leave them out"
        )
    return list(texts), dict(padding=padding, truncation=True, max_length=most)


def placed(inputs: Any, model: Any) -> dict[str, Any]:
    """Inputs on the model's device; pixels in its type."""
    kind = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return {k: v.to(model.device, kind) if v.is_floating_point() else v.to(model.device) for k, v in inputs.items()}


@calmly
def as_pil(images: Any) -> list[Image.Image]:
    """Pictures, of whatever kind `judge` takes, as PIL images."""
    return as_images(images)
