"""Random-weight models of every family's real classes, with their real processors, built in memory and offline.

Where a processor cannot be made without torchvision for the sake of its videos alone, its class is used as it is and
the check of its arguments left out: text and pictures go through the family's own code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import tiny
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = dict(
    vocab_size=500,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=2,
    eos_token_id=1,
)
TOWER = dict(
    hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
)


@dataclass(frozen=True)
class Miniature:
    """A family's model and processor, and how pictures are shown to them."""

    model: Any
    processor: Any
    size: tuple[int, int]  # of pictures, (height, width)
    options: dict[str, Any]  # for the processor: one view of just this size
    load: dict[str, Any]  # for nd.load
    inputs: tuple[str, ...] = ()  # of what the processor gives, those that the model takes; () for all

    def prompt(self, turns: list[dict[str, Any]], answer: bool = False) -> str:
        """Turns by the chat template."""
        return self.processor.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)


def tokenizer(*specials: str, template: str | None, bos: str = "<bos>", eos: str = "<eos>", **named: str) -> Any:
    """Byte-level BPE with a family's special tokens, some of them by name, and a chat template like its own."""
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    raw.decoder = decoders.ByteLevel()
    first = ["<pad>", eos, bos, "<unk>", *dict.fromkeys([*specials, *named.values()])]
    raw.train_from_iterator(
        tiny.CORPUS,
        trainers.BpeTrainer(
            vocab_size=480,
            special_tokens=first,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    raw.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 2)])
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token=bos,
        eos_token=eos,
        unk_token="<unk>",
        extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template
    return made


def real(path: str, *parts: Any, **options: Any) -> Any:
    """An object of a real processor class `module.Class`, though it has no processor of videos."""
    module, _, name = path.rpartition(".")
    cls = getattr(__import__(f"transformers.models.{module}", fromlist=[name]), name)
    with mock.patch.object(cls, "check_argument_for_proper_class", return_value=None):
        return cls(*parts, **options)


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fill every parameter from one generator: matrices by fan-in, biases and what is added small, gains about one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            value = noise * parameter[0].numel() ** -0.5
        else:
            value = 0.1 * noise
        if parameter.ndim < 2 and name.endswith("weight") and parameter.float().mean() > 0.5:  # a norm that multiplies
            value = value + 1
        parameter.copy_(value.to(parameter.dtype))
    return model.eval()


def ids(tokens: Any, **fields: str) -> dict[str, int]:
    """Config fields that hold token ids."""
    return {field: tokens.convert_tokens_to_ids(token) for field, token in fields.items()}


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen(version: str) -> Miniature:
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5: pictures of any multiple of 28 or 32 pixels."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    names = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"]
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    tokens = tokenizer(*names, template=template)
    rope = dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])
    tower = dict(depth=3, hidden_size=32, num_heads=4)
    text = dict(TEXT, rope_parameters=rope)
    patch = 14
    if version == "qwen2_vl":
        tower |= dict(embed_dim=32, mlp_ratio=2)
    elif version == "qwen2_5_vl":
        tower |= dict(intermediate_size=48, out_hidden_size=32, window_size=56, fullatt_block_indexes=[1])
    else:
        patch = 16
        tower |= dict(intermediate_size=48, out_hidden_size=32, patch_size=16, num_position_embeddings=64)
        text |= dict(head_dim=8)
        if version == "qwen3_vl":
            tower |= dict(deepstack_visual_indexes=[0, 1])
        else:
            text |= dict(
                linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
                layer_types=["linear_attention", "linear_attention", "full_attention", "linear_attention"],
                rope_parameters=dict(rope, partial_rotary_factor=1.0, mrope_interleaved=True),
            )  # fmt: skip
    known = ids(
        tokens,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )
    title = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "qwen3_5": "Qwen3_5"}[version]
    config = getattr(hf, f"{title}Config")(text_config=text, vision_config=tower, **known)
    model = randomise(getattr(hf, f"{title}ForConditionalGeneration")(config))
    images = Qwen2VLImageProcessorPil(patch_size=patch)
    kind = "qwen3_vl.processing_qwen3_vl.Qwen3VLProcessor" if patch == 16 else None
    kind = kind or f"{version}.processing_{version}.{title.replace('2VL', '2VL')}Processor"
    size = (4 * 2 * patch, 6 * 2 * patch)
    return Miniature(model, real(kind, images, tokens), size, {}, {"image_size": size})


BUILDERS: dict[str, Callable[[], Miniature]] = {
    name: functools.partial(qwen, name) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
}


@functools.cache
def build(name: str) -> Miniature:
    """The miniature of a family, made once a session."""
    return BUILDERS[name]()
