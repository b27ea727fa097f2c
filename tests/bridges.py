"""Every multimodal architecture that TransformerLens's bridge and this package both know, on random-weight miniatures.

    python tests/bridges.py              a table of all: the largest difference measured for each (a minute)
    python tests/bridges.py gemma3 ...   of these alone

Differences of activations are absolute, next to activations of about one; those of slopes relative to their norm.
"""

from __future__ import annotations

import copy
import re
import sys
import warnings
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import tiny
import tiny_families
import torch
from PIL import Image

import nnsight_dream as nd

KNOWN = ["gemma3", "gemma3n", "gemma4", "gemma4_vision", "gemma4_moe", "gemma4_unified", "llava", "llava_siglip"]
KNOWN += ["llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]
KNOWN += ["idefics3", "mistral3", "glm4v"]
CANNOT = {  # here, by name of the miniature: why; all known to this package
    "pixtral": "'PixtralVisionModel' object has no attribute 'embeddings'",
    "qwen2_vl": "Unsupported architecture: Qwen2VLForConditionalGeneration",
    "internvl": "Unsupported architecture: InternVLForConditionalGeneration",
    "paligemma2": "Unsupported architecture: PaliGemmaForConditionalGeneration",
    "smolvlm": "Unsupported architecture: SmolVLMForConditionalGeneration",
    "chameleon": "Unsupported architecture: ChameleonForConditionalGeneration",
}


def boot(hf: torch.nn.Module, processor: Any = None, kind: str = "", copied: bool = True) -> Any:
    """A bridge around a model, or a copy of it, as `boot_transformers` makes it of a model in hand, offline."""
    from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = copy.deepcopy(hf) if copied else hf
    with mock.patch.object(ArchitectureAdapter, "_check_required_libraries"):  # torchvision, timm
        bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    bridge.processor = processor
    bridge.cfg.is_multimodal = True  # TransformerLens 3.9 forgets to say so of Gemma 3n
    if kind == "sae":
        from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

        bridge.__class__ = SAETransformerBridge  # as its own boot_transformers does
        bridge._acts_to_saes, bridge._transcoder_output_hooks = {}, {}
    return bridge


def runnable(bridge: Any) -> Any:
    """The bridge with what TransformerLens 3.9 reads of Qwen 3.5's linear attention and transformers 5.24 has no more.

    `bridge.run_with_cache` ends in an AttributeError there; this package does not go that way.
    """
    for module in bridge.modules():
        if type(module).__name__ in ("Qwen3_5GatedDeltaNet", "Qwen3_5MoeGatedDeltaNet"):
            home = sys.modules[type(module).__module__]
            vars(module).setdefault("causal_conv1d_fn", None)  # None: it convolves by torch
            vars(module).setdefault("chunk_gated_delta_rule", home.torch_chunk_gated_delta_rule)
    return bridge


def native(bridge: Any) -> Any:
    """The bridge with the vision tower's norms computed as Hugging Face does."""
    for module in getattr(bridge, "vision_encoder", torch.nn.Identity()).modules():
        if "use_native_layernorm_autograd" in vars(module):
            module.use_native_layernorm_autograd = True
    return bridge


def miniature(name: str) -> tuple[Any, Any, dict[str, Any], tuple[int, int]]:
    """Model, processor, keywords of `nd.load` and size of pictures."""
    if name == "gemma3":
        return *tiny.gemma3(), {}, (112, 112)
    made = tiny_families.build(name)
    return made.model, made.processor, made.load, made.size


def question(name: str, processor: Any, size: tuple[int, int]) -> tuple[dict[str, Any], torch.Tensor]:
    """A question about a picture of noise as the processor makes it, and the picture (1, 3, H, W) in [0, 1]."""
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.tokenizer.apply_chat_template(turn, tokenize=False)
    options = {} if name == "gemma3" else tiny_families.build(name).options
    images = [[Image.fromarray(picture)]]
    given = processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False, **options)
    return dict(given), torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


@dataclass
class Cached:
    """How activations of a bridge compare with its own `run_with_cache`.

    hooks      of a block, without "blocks.2.", that are sites
    reasons    why each other one is none
    text, pictures   the largest absolute difference at any of the hooks
    """

    hooks: set[str]
    reasons: list[str]
    text: float = 0.0
    pictures: float = 0.0


def cached(name: str, check: bool = True) -> Cached:
    """Activations at every hook point of the third block, for two texts and a picture, against `run_with_cache`."""
    hf, processor, load, size = miniature(name)
    bridge = runnable(boot(hf, processor))
    vlm = nd.load(bridge, check=check, **load)
    ids, mask = torch.arange(10, 24).view(2, 7), torch.ones(2, 7, dtype=torch.long)
    _, text = bridge.run_with_cache(ids, attention_mask=mask, names_filter=lambda n: True, **vlm.family.text(ids))
    given, picture = question(name, processor, size)
    _, seen = bridge.run_with_cache(given.pop("input_ids"), names_filter=lambda n: True, **given)
    at = (vlm.image_prompt.ids == vlm.config.image_token_id).nonzero().flatten()[: vlm.grid[0] * vlm.grid[1]]
    sites, reasons = {}, []
    for hook in sorted(n for n in bridge.hook_dict if n.startswith("blocks.2.")):
        try:
            sites[hook] = vlm.site(hook)
            if text[hook].ndim != 3:
                vlm.width_at(sites[hook])
        except ValueError as error:
            sites.pop(hook, None)
            reasons.append(str(error))
    found = Cached({hook.removeprefix("blocks.2.") for hook in sites}, reasons)
    mine = nd.read_text(vlm, ids, mask, list(sites.values()))
    patches = nd.read_pictures(vlm, picture, list(sites.values()))
    for hook, site in sites.items():
        active = vlm.family.states if re.fullmatch(r"blocks.2.hook_(in|out)", hook) else lambda value, _: value
        found.text = max(found.text, _apart(mine[site], active(text[hook], vlm.config).reshape(mine[site].shape)))
        theirs = active(seen[hook], vlm.config).flatten(2)[:, at]
        found.pictures = max(found.pictures, _apart(patches[site], theirs))
    return found


def _apart(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference; shapes must be the same."""
    assert mine.shape == theirs.shape, (mine.shape, theirs.shape)
    return float((mine - theirs).abs().max())


def beside(name: str, processed: bool) -> tuple[float, float]:
    """How a bridge compares with the model as it was before: activations at the kinds of the third block and the slope
    of their squares at the pixels of a picture, each difference in parts of the norm.

    processed   with weights that the bridge processed (norms folded, writing weights centred)
    """
    hf, processor, load, size = miniature(name)
    bridge = boot(hf, processor)
    if processed:
        bridge.enable_compatibility_mode(disable_warnings=True)
    picture = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for x in (hf, native(bridge)):
        vlm = nd.load(x, processor=processor, check=False, **load)
        sites = [vlm.site(3, kind) for kind in vlm.family.kinds]
        read = nd.read_pictures(vlm, picture, sites)
        (slope,) = torch.autograd.grad(read[vlm.site(3)].square().sum(), picture)
        found.append([read[site].detach() for site in sites] + [slope])
    apart = [((mine - theirs).norm() / theirs.norm()).item() for theirs, mine in zip(*found, strict=True)]
    return max(apart[:-1]), apart[-1]


def most_apart(name: str) -> float:
    """How far pictures' activations may be from run_with_cache's: Gemma 4's tower rounds by another kernel on some machines."""
    return 1e-3 if name.startswith("gemma4") else 1e-5


def main(names: list[str]) -> int:
    """Print the table; 1 where an architecture does not do what is said of it."""
    warnings.simplefilter("ignore")
    columns = "text     pictures activ.  slope    processed"
    print("`text`, `pictures`: against run_with_cache; the rest against the model before it was booted, by the norm")
    print(f"{'architecture':40}{'miniature':17}hooks  {columns}")
    failed = 0
    for name in names or KNOWN:
        kind, found = type(miniature(name)[0]).__name__, cached(name, check=False)
        (plain, slope), (processed, _) = beside(name, False), beside(name, True)
        numbers = " ".join(f"{x:.1e}" for x in (found.text, found.pictures, plain, slope, processed))
        failed += max(found.text, plain, processed) > 1e-5 or found.pictures > most_apart(name) or slope > 1e-4
        print(f"{kind:40}{name:17}{len(found.hooks):5}  {numbers}", flush=True)
    for name, reason in {} if names else CANNOT.items():
        print(f"{type(miniature(name)[0]).__name__:40}{name:17}no: {reason}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
