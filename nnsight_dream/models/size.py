"""How large a checkpoint is, and whether it fits where it is to go."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import arguments
from . import devices
from .estimate import estimate

if TYPE_CHECKING:
    from .family import Family


#: Below so many free bytes beside the weights, a step of an ascent is counted too, which takes seconds.
TIGHT = 8_000_000_000


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights: what is always there, each decoder block, and final norm with head."""

    base: int
    blocks: tuple[int, ...]
    head: int

    @classmethod
    def of(cls, hf: torch.nn.Module, family: Family | None) -> Weights:
        """Those of a module, which may be one without numbers; tied ones count once."""
        stack = family.layers if family else ""
        base, head = 0, 0
        blocks = [0] * (len(hf.get_submodule(stack)) if stack else 0)  # type: ignore[arg-type]
        for name, tensor in (*hf.named_parameters(), *hf.named_buffers()):
            size = tensor.numel() * tensor.element_size()
            if stack and name.startswith(f"{stack}."):
                blocks[int(name[len(stack) + 1 :].split(".")[0])] += size
            elif stack and name.startswith((f"{stack.rpartition('.')[0]}.norm.", "lm_head.")):
                head += size
            else:
                base += size
        return cls(base, tuple(blocks), head)

    @property
    def whole(self) -> int:
        """All of them."""
        return self.base + sum(self.blocks) + self.head

    def fitting(self, free: int) -> int:
        """The most layers that fit without the head, 0 where none does."""
        return max((k for k in range(1, len(self.blocks) + 1) if self.base + sum(self.blocks[:k]) <= free), default=0)


def weights_of(config: Any, dtype: Any, family: Family | None, cls: Any = None) -> Weights | None:
    """The weights of a config's model, of which no number is made; None where its weights are packed (quantised).

    cls   what makes it: an Auto class, or a model's own; image-text-to-text if not given
    """
    from transformers import AutoModelForImageTextToText

    if getattr(config, "quantization_config", None):
        return None
    kind = dtype or getattr(config, "dtype", None) or config.get_text_config().dtype or torch.float32
    kind = getattr(torch, kind) if isinstance(kind, str) and hasattr(torch, kind) else kind
    cls = cls or AutoModelForImageTextToText
    make = cls.from_config if hasattr(cls, "from_config") else cls._from_config
    with torch.device("meta"):
        hf = make(copy.deepcopy(config), **({"dtype": kind} if isinstance(kind, torch.dtype) else {}))
    return Weights.of(hf, family)


def refuse_too_large(
    name: str,
    config: Any,
    target: torch.device,
    dtype: Any = None,
    *,
    family: Family | None = None,
    cls: Any = None,
    stored: int | None = None,
    cut: bool = False,
) -> None:
    """Raise or warn before any weight is loaded if a model does not fit into a device's free memory; say what would.

    stored   bytes of its files, if known;  cut   whether fewer layers could be loaded

    Raises ValueError where it does not fit into a GPU; warns of what does not fit into the machine's own memory, which
    can be swapped, and where the weights fit but a step of an ascent hardly does.
    """
    free = devices.free_bytes(target)
    if free is None or (target.type == "cpu" and stored is not None and 4 * stored < free):
        return
    weights = weights_of(config, dtype, family, cls)
    need = weights.whole if weights is not None else stored
    if need is None:
        return
    if need > free:
        fits = "; ".join(_fitting(weights, free, target, dtype, cut)) or "a smaller model"
        words = (
            f"{name} does not fit on {target}: its weights take {devices.gigabytes(need)}, and "
            f"{devices.gigabytes(free)} are free there. What would fit: {fits}"
        )
        if target.type != "cpu":
            raise ValueError(words)
        arguments.warn(words)
    elif target.type != "cpu" and family is not None and free - need < TIGHT:
        _warn_tight(name, config, free - need, target, dtype, family)


def _fitting(weights: Weights | None, free: int, target: torch.device, dtype: Any, cut: bool) -> list[str]:
    """What would fit instead, by argument."""
    ways = []
    if weights is not None:
        if cut and (most := weights.fitting(free)):
            ways.append(
                f"its first {most} of {len(weights.blocks)} layers without a head (up_to_layer={most}, head=False)"
            )
        if dtype in (torch.float32, "float32") and weights.whole / 2 <= free:
            ways.append(f"dtype=torch.bfloat16, in which it takes {devices.gigabytes(weights.whole / 2)}")
    need = weights.whole if weights is not None else 0
    others = [torch.device(place) for place in devices.there() if place.startswith("cuda:")]
    if len(others) > 1 and sum(devices.free_bytes(place) or 0 for place in others) > need:
        ways.append("device_map='auto', over all of this machine's GPUs")
    here = devices.free_bytes(torch.device("cpu"))
    if target.type != "cpu" and (here is None or here > need):
        ways.append(f"device='cpu' ({devices.gigabytes(here)} free)" if here else "device='cpu'")
    return [*ways, "remote=True, on a server"]


def _warn_tight(name: str, config: Any, spare: int, target: torch.device, dtype: Any, family: Family) -> None:
    layers = config.get_text_config().num_hidden_layers
    try:
        step = estimate(config, layers, dtype=dtype, device="cuda", family=family).step_bytes
    except (ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError):  # of which nothing is known
        return
    if step > spare:
        arguments.warn(
            f"the weights of {name} fit on {target}, but an ascent's step at layer {layers} takes "
            f"{devices.gigabytes(step)} with one view of a picture, and {devices.gigabytes(spare)} are left: "
            "checkpoint_tower=True, a smaller image_size= or up_to_layer= takes less",
        )
