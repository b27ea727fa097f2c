"""Random-weight models of every family's real classes, with their real processors, built in memory and offline.

Where a processor cannot be made without torchvision for the sake of its videos alone, its class is used as it is and
the check of its arguments left out: text and pictures go through the family's own code.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import tiny
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.modeling_outputs import BaseModelOutputWithPooling

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
    climb: dict[str, Any] = field(default_factory=dict)  # for nd.load, where gradients are wanted
    bare: str = ""  # what the processor gets for a picture where there is no chat template

    def prompt(self, turns: list[dict[str, Any]], answer: bool = False) -> str:
        """Turns by the chat template."""
        if self.bare:
            return self.bare
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
    # some modules import torchvision for a class beside the one that is wanted
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in names}):
        found = importlib.import_module(f"transformers.models.{module}")
    cls = getattr(found, name)
    with (
        mock.patch.object(cls, "check_argument_for_proper_class", return_value=None),
        mock.patch.object(found, "num2words", mock.MagicMock(), create=True),
    ):
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


def qwen(version: str, experts: bool = False) -> Miniature:
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
    if experts:
        title += "Moe"
        text |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)
    config = getattr(hf, f"{title}Config")(text_config=text, vision_config=tower, **known)
    model = randomise(getattr(hf, f"{title}ForConditionalGeneration")(config))
    images = Qwen2VLImageProcessorPil(patch_size=patch)
    kind = "qwen3_vl.processing_qwen3_vl.Qwen3VLProcessor" if patch == 16 else None
    kind = kind or f"{version}.processing_{version}.{title.replace('2VL', '2VL')}Processor"
    size = (4 * 2 * patch, 6 * 2 * patch)
    return Miniature(model, real(kind, images, tokens), size, {}, {"image_size": size})


def internvl(decoder: str = "qwen2") -> Miniature:
    """InternVL 3 and 3.5 (hf): tiles off; 56 px, 4 x 4 patches, 2 x 2 tokens, or any multiple of 28 pixels."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokens = tokenizer(
        "<|im_start|>", "<|im_end|>", template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    config = hf.InternVLConfig(
        text_config=dict(TEXT, model_type=decoder) | (dict(head_dim=8) if decoder == "qwen3" else {}),
        vision_config=dict(TOWER, patch_size=[14, 14], image_size=[56, 56]),
        image_token_id=tokens.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
        downsample_ratio=0.5,
    )
    images = GotOcr2ImageProcessorPil(
        size=dict(height=112, width=112), image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    processor = real("internvl.processing_internvl.InternVLProcessor", images, tokens, image_seq_length=16)
    model = randomise(hf.InternVLForConditionalGeneration(config))
    return Miniature(model, processor, (112, 112), {"crop_to_patches": False}, {})


VICUNA = (
    "{% for m in messages %}{{ m.role | upper }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def llava(version: str, tower: str = "clip_vision_model") -> Miniature:
    """LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision: 56 px, 4 x 4 tokens; the last two add tiles."""
    tokens = tokenizer("<image>", "<video>", template=VICUNA)
    clip = dict(TOWER, model_type=tower)
    clip |= dict(projection_dim=16) if tower[0] == "c" else dict(vision_use_head=False)
    known = dict(image_token_index=tokens.convert_tokens_to_ids("<image>"))
    pins = [[56, 112], [112, 56], [112, 112]]
    size = dict(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    strategy = dict(vision_feature_select_strategy="default" if tower[0] == "c" else "full")
    if version == "llava":
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        config = hf.LlavaConfig(text_config=dict(TEXT, model_type="llama"), vision_config=clip, image_seq_length=16,
                                vision_feature_layer=-2, **strategy, **known)  # fmt: skip
        model, images = hf.LlavaForConditionalGeneration(config), CLIPImageProcessorPil(**size)
        kind = "llava.processing_llava.LlavaProcessor"
        more = dict(patch_size=14, num_additional_image_tokens=1 if tower[0] == "c" else 0, **strategy)
    elif version == "llava_next":
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        config = hf.LlavaNextConfig(text_config=dict(TEXT, model_type="llama"), vision_config=clip,
                                    image_grid_pinpoints=pins, vision_feature_layer=-2, **strategy, **known)  # fmt: skip
        model = hf.LlavaNextForConditionalGeneration(config)
        images = LlavaNextImageProcessorPil(**size, image_grid_pinpoints=pins)
        kind = "llava_next.processing_llava_next.LlavaNextProcessor"
        more = dict(patch_size=14, num_additional_image_tokens=1 if tower[0] == "c" else 0, **strategy)
    else:
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil,
        )

        config = hf.LlavaOnevisionConfig(
            text_config=dict(TEXT, model_type="qwen2"), vision_config=clip, image_grid_pinpoints=pins,
            video_token_index=tokens.convert_tokens_to_ids("<video>"), vision_feature_layer=-1, **strategy, **known,
        )  # fmt: skip
        model = hf.LlavaOnevisionForConditionalGeneration(config)
        images = LlavaOnevisionImageProcessorPil(size=dict(height=56, width=56), image_grid_pinpoints=pins)
        kind = "llava_onevision.processing_llava_onevision.LlavaOnevisionProcessor"
        more = dict(num_image_tokens=16, **strategy)
    return Miniature(randomise(model), real(kind, images, tokens, **more), (56, 56), {}, {})


def pixtral(version: str) -> Miniature:
    """Pixtral (a LLaVA with Pixtral's tower) and Mistral 3: any multiple of a token's side, row ends among the tokens."""
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    template = (
        "{{ bos_token }}{% for m in messages %}[INST]{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{% if c.type == 'image' %}[IMG]{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
        "[/INST]{% endfor %}"
    )
    tokens = tokenizer(
        "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", template=template, bos="<s>", eos="</s>"
    )
    patch, merge = (16, 1) if version == "pixtral" else (14, 2)
    shared = dict(
        text_config=dict(TEXT, model_type="mistral", head_dim=8, sliding_window=None),
        vision_config=dict(TOWER, model_type="pixtral", hidden_size=32, image_size=8 * patch, patch_size=patch),
        image_token_index=tokens.convert_tokens_to_ids("[IMG]"),
    )
    if version == "pixtral":
        config: Any = hf.LlavaConfig(**shared, vision_feature_layer=-1, vision_feature_select_strategy="full")
        model = hf.LlavaForConditionalGeneration(config)
    else:
        model = hf.Mistral3ForConditionalGeneration(hf.Mistral3Config(**shared, spatial_merge_size=merge))
    images = PixtralImageProcessorPil(patch_size=dict(height=patch, width=patch))
    processor = real(
        "pixtral.processing_pixtral.PixtralProcessor", images, tokens, patch_size=patch, spatial_merge_size=merge
    )
    size = (3 * patch * merge, 4 * patch * merge)
    return Miniature(randomise(model), processor, size, {}, {"image_size": size})


def paligemma(version: int) -> Miniature:
    """PaliGemma 1 and 2: image tokens first, all of the prompt sees all of it, no chat template."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokens = tokenizer(template=None, image_token="<image>")
    config = hf.PaliGemmaConfig(
        text_config=dict(TEXT, model_type="gemma" if version == 1 else "gemma2", head_dim=8)
        | (dict(query_pre_attn_scalar=8, sliding_window=64) if version == 2 else {}),
        vision_config=dict(TOWER, model_type="siglip_vision_model", vision_use_head=False, projection_dim=32),
        projection_dim=32,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
    )
    images = SiglipImageProcessorPil(size=dict(height=56, width=56))
    images.image_seq_length = 16
    processor = real("paligemma.processing_paligemma.PaliGemmaProcessor", images, tokens)
    model = randomise(hf.PaliGemmaForConditionalGeneration(config))
    return Miniature(
        model, processor, (56, 56), {}, {}, ("input_ids", "pixel_values", "token_type_ids"), bare="<image>"
    )


def idefics(version: str) -> Miniature:
    """Idefics3 and SmolVLM: one view of 56 px, 4 x 4 patches, 2 x 2 tokens; 112 px for a grid that shows rows."""
    template = (
        "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}:"
        "{% if m.content is string %} {{ m.content }}{% else %}{% for c in m.content %}"
        "{% if c.type == 'image' %}<image>{% else %} {{ c.text }}{% endif %}{% endfor %}{% endif %}"
        "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    marks = dict(
        fake_image_token="<fake_token_around_image>", image_token="<image>", end_of_utterance_token="<end_of_utterance>"
    )
    tokens = tokenizer(
        "<|im_start|>", "<global-img>", *marks.values(), template=template,
        **({**marks, "global_image_token": "<global-img>"} if version == "smolvlm" else {}),
    )  # fmt: skip
    title, videos = ("Idefics3", ()) if version == "idefics3" else ("SmolVLM", (None,))
    pil = importlib.import_module(f"transformers.models.{version}.image_processing_pil_{version}")
    images = getattr(pil, f"{title}ImageProcessorPil")(
        size={"longest_edge": 448}, max_image_size={"longest_edge": 112}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    config = getattr(hf, f"{title}Config")(
        text_config=dict(TEXT, model_type="llama"),
        vision_config=dict(TOWER, image_size=112),
        scale_factor=2,
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
    )
    model = randomise(getattr(hf, f"{title}ForConditionalGeneration")(config))
    processor = real(f"{version}.processing_{version}.{title}Processor", images, tokens, *videos, image_seq_len=16)
    return Miniature(model, processor, (112, 112), {"do_image_splitting": False, "do_resize": False}, {})


def gemma4(attention: str | None, experts: bool = False) -> Miniature:
    """Gemma 4 with causal or bidirectional image attention: any multiple of 48 pixels."""
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    tokens = tokenizer(
        "<|turn>", "<turn|>", "<|video|>", template=GEMMA4_TURNS, boi_token="<|image>", eoi_token="<image|>",
        image_token="<|image|>", audio_token="<|audio|>", boa_token="<|audio>", eoa_token="<audio|>",
    )  # fmt: skip
    known = ids(tokens, image_token_id="<|image|>", boi_token_id="<|image>", eoi_token_id="<image|>")
    known |= ids(tokens, video_token_id="<|video|>", audio_token_id="<|audio|>", boa_token_id="<|audio>")
    config = hf.Gemma4Config(
        text_config=dict(
            TEXT, head_dim=8, global_head_dim=8, sliding_window=64, hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=500, num_kv_shared_layers=2, use_bidirectional_attention=attention,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ) | (dict(
            enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=16,
            hidden_size_per_layer_input=0, num_kv_shared_layers=0,
        ) if experts else {}),
        vision_config=dict(
            hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            head_dim=12, patch_size=16, pooling_kernel_size=3, position_embedding_size=64,
        ),
        audio_config=None, eoa_token_index=tokens.convert_tokens_to_ids("<audio|>"), **known,
    )  # fmt: skip
    images = Gemma4ImageProcessorPil(max_soft_tokens=70)
    processor = real("gemma4.processing_gemma4.Gemma4Processor", None, images, tokens, None)
    model = randomise(hf.Gemma4ForConditionalGeneration(config))
    return Miniature(model, processor, (384, 384), {}, {})


def gemma4_unified() -> Miniature:
    """Gemma 4 without a tower: patches of 48 pixels; the processor of pictures is made of parts, its own needs more."""
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in names}):
        own = importlib.import_module("transformers.models.gemma4_unified.image_processing_gemma4_unified")

    class Merged(Gemma4ImageProcessorPil):
        """Gemma 4's patches, brought together by the unified processor's own function."""

        def preprocess(self, images: Any, **options: Any) -> Any:
            made = super().preprocess(images, **{**options, "return_tensors": "pt"})
            real = made["image_position_ids"][0, :, 0] >= 0
            patches, at = made["pixel_values"][:, real], made["image_position_ids"][:, real]
            merged, places = own.patches_merge(patches, at, patches.shape[1] // self.pooling_kernel_size**2)
            return hf.BatchFeature({**made, "pixel_values": merged, "image_position_ids": places})

    small = gemma4(None)
    tokens, known = small.processor.tokenizer, small.model.config
    config = hf.Gemma4UnifiedConfig(
        text_config=dict(
            TEXT, head_dim=8, global_head_dim=8, sliding_window=64, use_bidirectional_attention="vision",
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        vision_config=dict(patch_size=16, pooling_kernel_size=3, mm_embed_dim=32, mm_posemb_size=16, output_proj_dims=32),
        audio_config=None, image_token_id=known.image_token_id, boi_token_id=known.boi_token_id,
        eoi_token_id=known.eoi_token_id, video_token_id=known.video_token_id, audio_token_id=known.audio_token_id,
        boa_token_id=known.boa_token_id, eoa_token_index=tokens.convert_tokens_to_ids("<audio|>"),
    )  # fmt: skip
    images = Merged(max_soft_tokens=70)
    processor = real("gemma4_unified.processing_gemma4_unified.Gemma4UnifiedProcessor", None, images, tokens, None)
    model = randomise(hf.Gemma4UnifiedForConditionalGeneration(config))
    return Miniature(model, processor, (384, 384), {}, {})


class Convolution(torch.nn.Module):
    """A stand-in for Gemma 3n's tower, which comes from timm: a map of features from patches of 14 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(3, width, 14, 14)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        return BaseModelOutputWithPooling(last_hidden_state=self.patch(pixel_values))


def gemma3n() -> Miniature:
    """Gemma 3n: its own decoder of four streams, embedders and processor; of the tower only its shape."""
    from transformers.models.gemma3n import modeling_gemma3n as own
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokens = tokenizer(
        "<start_of_turn>", "<end_of_turn>", template=tiny.CHAT_TEMPLATE, boi_token="<start_of_image>",
        eoi_token="<end_of_image>", image_token="<image_soft_token>", audio_token="<audio_soft_token>",
        boa_token="<start_of_audio>", eoa_token="<end_of_audio>",
    )  # fmt: skip
    tokens.chat_template = tiny.CHAT_TEMPLATE.replace("<start_of_image>", "<image_soft_token>")
    known = ids(tokens, image_token_id="<image_soft_token>", boi_token_id="<start_of_image>")
    known |= ids(tokens, eoi_token_id="<end_of_image>", audio_token_id="<audio_soft_token>")
    config = hf.Gemma3nConfig(
        text_config=dict(
            TEXT, vocab_size=600, head_dim=8, sliding_window=64, layer_types=["sliding_attention", "full_attention"] * 2,
            hidden_size_per_layer_input=8, vocab_size_per_layer_input=500, num_kv_shared_layers=2, laurel_rank=8,
            altup_num_inputs=3, activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0], intermediate_size=[64] * 4,
        ),
        vision_config=dict(hidden_size=24, vocab_size=8, vocab_offset=500),
        audio_config=dict(
            hidden_size=16, vocab_size=8, vocab_offset=520, conf_num_hidden_layers=1, conf_num_attention_heads=2,
            sscp_conv_channel_size=[8, 4],
        ),
        vision_soft_tokens_per_image=16, audio_soft_tokens_per_image=4, **known,
    )  # fmt: skip
    real_one = own.AutoModel.from_config

    def made(part: Any, **options: Any) -> torch.nn.Module:
        return Convolution(24) if part.model_type == "gemma3n_vision" else real_one(part, **options)

    with mock.patch.object(own.AutoModel, "from_config", made):
        model = randomise(hf.Gemma3nForConditionalGeneration(config))
    images = SiglipImageProcessorPil(size=dict(height=56, width=56), image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = real(
        "gemma3n.processing_gemma3n.Gemma3nProcessor", None, images, tokens, image_seq_length=16, audio_seq_length=4
    )
    return Miniature(model, processor, (56, 56), {}, {})


def chameleon() -> Miniature:
    """Chameleon: pictures of 64 px become 16 x 16 words of the vocabulary."""
    from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

    tokens = tokenizer("<racm3:break>", "<eoss>", "<sep>", template=None, image_token="<image>")
    tokens.sep_token = "<sep>"
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    words = {f"IMGIMG{str(i).translate(letters)}Z": 300 + i for i in range(64)}
    config = hf.ChameleonConfig(
        **dict(TEXT, swin_norm=False),
        vocabulary_map={"<image>": tokens.convert_tokens_to_ids("<image>"), **words},
        vq_config=dict(
            embed_dim=16, num_embeddings=64, latent_channels=16, resolution=64, base_channels=32,
            channel_multiplier=[1, 1, 2], num_res_blocks=1, attn_type="vanilla",
        ),
    )  # fmt: skip
    images = ChameleonImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor = real("chameleon.processing_chameleon.ChameleonProcessor", images, tokens, image_seq_length=256)
    model = randomise(hf.ChameleonForConditionalGeneration(config))
    return Miniature(model, processor, (64, 64), {}, {}, climb={"straight_through": 2.0}, bare="<image>")


GEMMA4_TURNS = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ m.role }}\n{% if m.content is string %}{{ m.content | trim }}"
    "{% else %}{% for c in m.content %}{% if c.type == 'image' %}<|image|>{% else %}{{ c.text | trim }}{% endif %}"
    "{% endfor %}{% endif %}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


def vipllava() -> Miniature:
    """ViP-LLaVA, which has no record: as LLaVA, from several layers of its tower."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokens = tokenizer("<image>", template=VICUNA)
    config = hf.VipLlavaConfig(
        text_config=dict(TEXT, model_type="llama"),
        vision_config=dict(TOWER, model_type="clip_vision_model", projection_dim=16),
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        vision_feature_layers=[-2, -1],
        image_seq_length=16,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    options = dict(patch_size=14, num_additional_image_tokens=1, vision_feature_select_strategy="default")
    processor = real("llava.processing_llava.LlavaProcessor", images, tokens, **options)
    return Miniature(randomise(hf.VipLlavaForConditionalGeneration(config)), processor, (56, 56), {}, {})


def glm4v() -> Miniature:
    """GLM-4V, which has no record: patches in Qwen's order, positions of three axes."""
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    wrapped = "<|begin_of_image|><|image|><|end_of_image|>"
    names = ["<|im_start|>", "<|im_end|>", "<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "<|video|>"]
    tokens = tokenizer(*names, template=CHATML.replace("IMAGE", wrapped))
    rope = dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])
    known = ids(tokens, image_token_id="<|image|>", image_start_token_id="<|begin_of_image|>")
    known |= ids(tokens, image_end_token_id="<|end_of_image|>", video_token_id="<|video|>")
    config = hf.Glm4vConfig(
        text_config=dict(TEXT, rope_parameters=rope, partial_rotary_factor=1.0),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            num_heads=4,
            out_hidden_size=32,
            intermediate_size=48,
            image_size=112,
            patch_size=14,
        ),
        **known,
    )
    processor = real("glm4v.processing_glm4v.Glm4vProcessor", Glm4vImageProcessorPil(), tokens)
    return Miniature(randomise(hf.Glm4vForConditionalGeneration(config)), processor, (448, 448), {}, {})


def mllama() -> Miniature:
    """Llama 3.2 Vision, whose pictures are no tokens of the sequence: blocks of their own attend to them."""
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    tokens = tokenizer("<|image|>", template=VICUNA.replace("<image>", "<|image|>"))
    config = hf.MllamaConfig(
        text_config=dict(TEXT, cross_attention_layers=[1], rope_parameters=dict(rope_type="default", rope_theta=1e4)),
        vision_config=dict(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_global_layers=1, attention_heads=4,
            image_size=56, patch_size=14, vision_output_dim=64, intermediate_layers_indices=[0],
        ),
        image_token_index=tokens.convert_tokens_to_ids("<|image|>"),
    )  # fmt: skip
    images = MllamaImageProcessorPil(size=dict(height=56, width=56))
    processor = real("mllama.processing_mllama.MllamaProcessor", images, tokens)
    return Miniature(randomise(hf.MllamaForConditionalGeneration(config)), processor, (56, 56), {}, {})


UNKNOWN = {"vipllava": vipllava, "glm4v": glm4v, "mllama": mllama}  # no record is written for these
BUILDERS: dict[str, Callable[[], Miniature]] = {
    **{name: functools.partial(qwen, name) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")},
    **{f"{name}_moe": functools.partial(qwen, name, True) for name in ("qwen3_vl", "qwen3_5")},
    "internvl": internvl,
    "internvl3_5": functools.partial(internvl, "qwen3"),
    "llava_siglip": functools.partial(llava, "llava", "siglip_vision_model"),
    **{name: functools.partial(llava, name) for name in ("llava", "llava_next")},
    "llava_onevision": functools.partial(llava, "llava_onevision", "siglip_vision_model"),
    **{name: functools.partial(pixtral, name) for name in ("pixtral", "mistral3")},
    **{f"paligemma{n}": functools.partial(paligemma, n) for n in (1, 2)},
    **{name: functools.partial(idefics, name) for name in ("idefics3", "smolvlm")},
    "gemma4": functools.partial(gemma4, None),
    "gemma4_unified": gemma4_unified,
    "chameleon": chameleon,
    "gemma3n": gemma3n,
    "gemma4_moe": functools.partial(gemma4, "vision", True),
    "gemma4_vision": functools.partial(gemma4, "vision"),
}


@functools.cache
def build(name: str) -> Miniature:
    """The miniature of a family, made once a session."""
    return {**BUILDERS, **UNKNOWN}[name]()
