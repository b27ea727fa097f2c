"""The proof of a TransformerBridge: that it runs, and that its image tokens are those of the model in it."""

from __future__ import annotations

import importlib.metadata
import sys
import traceback
from typing import TYPE_CHECKING, Any

import torch

from .. import arguments
from ..engine import read
from ..state import interventions
from .bridge import saes, unwrapped

if TYPE_CHECKING:
    from .vlm import VLM


def prove(vlm: VLM) -> None:
    """Raise ValueError where the bridge cannot run; warn where its vision tower is not the model's.

    Image tokens are compared with those of the same modules without the bridge's wrapping, unless hooks are on them.
    """
    from .reading import read_text

    ones = torch.ones(1, 1, dtype=torch.long)
    try:
        read_text(vlm, ones, ones, [vlm.layers + vlm.first_layer - 1])
    except Exception as error:
        if not any("transformer_lens" in frame.filename for frame in traceback.extract_tb(error.__traceback__)):
            raise
        raise ValueError(
            f"this TransformerBridge cannot run {vlm.id}: transformer_lens {_version('transformer-lens')} under "
            f"transformers {_version('transformers')} raises {type(error).__name__}: {error}. Load the Hugging Face "
            "model itself, before a bridge is booted on it"
        ) from error
    if interventions.hooks(vlm.hf) or saes(vlm.bridge) or vlm.edits:
        return
    theirs = _image_tokens(vlm)
    with unwrapped(vlm.hf):
        mine = _image_tokens(vlm)
    apart = ((theirs - mine).float().norm() / mine.float().norm()).item()
    if apart > (1e-3 if vlm.dtype == torch.float32 else 0.1):
        arguments.warn(
            f"image tokens of this TransformerBridge (transformer_lens {_version('transformer-lens')}) differ by "
            f"{apart:.0%} of their norm from those of the model in it: its vision tower computes something else. "
            "Pictures are climbed for the bridge as it is; for the model's own tower first say: for m in "
            "bridge.vision_encoder.modules(): m.use_native_layernorm_autograd = True",
        )


def _image_tokens(vlm: VLM) -> torch.Tensor:
    """What enters the first block at the image tokens of a picture of noise, (1, n, d)."""
    from .reading import reading

    class Reached(Exception):
        pass

    def stop(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        raise Reached(args[0] if args else options["hidden_states"])

    how, root = reading(vlm, []), vlm.hf.get_submodule(vlm.family.root)
    grain = torch.rand(1, 3, *vlm.image_size, generator=torch.Generator().manual_seed(0)).to(vlm.device)
    handle = vlm.hf.get_submodule(vlm.family.layers)[0].register_forward_pre_hook(stop, with_kwargs=True)  # type: ignore[index]
    try:
        with torch.no_grad(), vlm.quiet():
            inputs = {
                "input_ids": how.ids[None],
                **how.extra,
                **read.pixel_inputs(how, root, grain, vlm.device, vlm.dtype),
            }
            root(
                **{k: v.to(vlm.device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()},
                use_cache=False,
            )
    except Reached as reached:
        return vlm.family.states(reached.args[0], vlm.config)[:, vlm.image_prompt.positions.to(vlm.device)]
    finally:
        handle.remove()
    raise AssertionError("no pass came by the first block")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(name.replace("-", "_")), "__version__", "of an unknown version"))
