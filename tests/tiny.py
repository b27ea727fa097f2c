"""Random-weight models and small real tokenizers, built in memory: everything the tests need, offline, in a second.

`gemma3` is the whole of a Gemma 3 in miniature: model, byte-level tokenizer, chat template and processor. Its weights
mean nothing; they are scaled so that activations stay near one and every parameter matters (a Gemma 3 fresh from its
configuration has a projector of zeros, through which no gradient flows).
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PreTrainedTokenizerFast,
)

SPECIAL = {
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
}
IMAGE = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
TURNS = ("<start_of_turn>", "<end_of_turn>")

CORPUS = (
    "user\nThe octopus has eight arms and lives in the sea. The fish swims near the octopus.",
    "model\nA dog is an animal that barks. A cat is an animal that sleeps. The bee is yellow and black.",
    "The planet Jupiter is large. San Francisco is a city by the sea. New York is a city too.",
    "Spring is a season. Summer, autumn and winter are seasons. What is in the image? One word.",
    "An elephant is large and grey. A giraffe is tall. The lion sleeps in the sun. The frog is green.",
    "The desk, the jacket, the gondola, the laughter, the knowledge, the marble and the butterfly.",
)

# Gemma 3's template as it behaves (fact sheet, section 9), in our own words: <bos>, the system text before the first
# user turn, content as a string or as a list of parts, everything trimmed, "model" for the assistant.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- macro text_of(content) -%}
{%- if content is string -%}{{- content | trim -}}
{%- else -%}
{%- for part in content -%}
{%- if part.type == "image" -%}<start_of_image>{%- elif part.type == "text" -%}{{- part.text | trim -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set head = namespace(text="") -%}
{%- if messages[0].role == "system" -%}
{%- set head.text = text_of(messages[0].content) ~ "\\n\\n" -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
{%- if (turn.role == "user") != (loop.index0 % 2 == 0) -%}
{{- raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") -}}
{%- endif -%}
{{- "<start_of_turn>" ~ ("model" if turn.role == "assistant" else turn.role) ~ "\\n" -}}
{%- if loop.first -%}{{- head.text -}}{%- endif -%}
{{- text_of(turn.content) -}}
{{- "<end_of_turn>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<start_of_turn>model\\n" -}}{%- endif -%}
"""


def name(value: Any) -> str:
    """A value's name in a test's id: its repr without addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _wrap(raw: Tokenizer, **more: Any) -> PreTrainedTokenizerFast:
    """Give a trained tokenizer Gemma's special tokens, its habit of writing <bos> itself, and the chat template."""
    bos = raw.token_to_id("<bos>")
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", bos)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        **SPECIAL,
        extra_special_tokens=IMAGE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **more,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _specials() -> list[str]:
    return [*SPECIAL.values(), *TURNS, *IMAGE.values()]


def byte_level(vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Gemma's special tokens, trained here on `CORPUS`; any string can be written in it."""
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=_specials(),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return _wrap(raw)


def word_piece(vocabulary: int = 200) -> PreTrainedTokenizerFast:
    """WordPiece as BERT has it: lower case, no accents, spaces and newlines dropped, <unk> for what it cannot write."""
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=_specials(), show_progress=False)
    )
    return _wrap(raw)


def metaspace(vocabulary: int = 500) -> PreTrainedTokenizerFast:
    """BPE over "▁" for a space, with bytes for unknown characters and no other splitting, as in Gemma and Llama."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    raw.train_from_iterator(
        [piece for line in CORPUS for piece in (line, *line.split())],
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[*_specials(), *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False,
        ),
    )
    # the trainer takes pieces that must be there as special tokens only; bytes are ordinary ones
    parts = json.loads(raw.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["content"].startswith("<0x")]
    return _wrap(Tokenizer.from_str(json.dumps(parts)))


def straddling() -> PreTrainedTokenizerFast:
    """A BPE in which "user\\nJupiter" is one token: it reaches out of any span that holds only "Jupiter"."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    raw.train_from_iterator(
        ["user\nJupiter"] * 50 + list(CORPUS),
        trainers.BpeTrainer(vocab_size=200, special_tokens=_specials(), show_progress=False),
    )
    return _wrap(raw)


class SlowTokenizer:
    """What a tokenizer without character offsets looks like from outside: a chat template and ids, nothing more."""

    is_fast = False
    chat_template = CHAT_TEMPLATE

    def __init__(self, inner: PreTrainedTokenizerFast | None = None) -> None:
        self.inner = inner or byte_level()

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.apply_chat_template(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("return_offsets_mapping"):
            raise NotImplementedError("return_offset_mapping is not available when using Python tokenizers.")
        return self.inner(*args, **kwargs)


def processor(image: int = 112, image_tokens: int = 16, tokenizer: Any = None) -> Gemma3Processor:
    """A Gemma 3 processor for `image` x `image` pictures of `image_tokens` tokens each, on the PIL backend."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = tokenizer or byte_level()
    pictures = Gemma3ImageProcessorPil(
        size={"height": image, "width": image}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_pan_and_scan=False
    )
    return Gemma3Processor(pictures, tokenizer, chat_template=CHAT_TEMPLATE, image_seq_length=image_tokens)


def gemma3(
    folder: str | Path | None = None,
    *,
    seed: int = 0,
    layers: int = 4,
    hidden: int = 32,
    heads: int = 4,
    head_dim: int | None = None,
    mlp: int | None = None,
    image: int = 112,
    patch: int = 14,
    grid: int = 4,
    vision_layers: int = 2,
    vision_hidden: int = 24,
    sliding_window: int = 64,
    vocabulary: int = 400,
    dtype: torch.dtype = torch.float32,
) -> tuple[Gemma3ForConditionalGeneration, Gemma3Processor]:
    """Build a Gemma 3 of random weights (`grid` x `grid` image tokens) and its processor; save both if given a folder.

    The folder then serves `AutoProcessor.from_pretrained` and `from_pretrained` of the model, offline.
    """
    handler = processor(image, grid * grid, byte_level(vocabulary))
    ids = {name: handler.tokenizer.convert_tokens_to_ids(token) for name, token in IMAGE.items()}
    config = Gemma3Config(
        text_config=dict(
            vocab_size=len(handler.tokenizer),
            hidden_size=hidden,
            intermediate_size=mlp or 2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            head_dim=head_dim or hidden // heads,
            query_pre_attn_scalar=head_dim or hidden // heads,
            max_position_embeddings=512,
            sliding_window=sliding_window,
            layer_types=["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)],
            pad_token_id=handler.tokenizer.pad_token_id,
            bos_token_id=handler.tokenizer.bos_token_id,
            eos_token_id=handler.tokenizer.eos_token_id,
        ),
        vision_config=dict(
            model_type="siglip_vision_model",
            hidden_size=vision_hidden,
            intermediate_size=2 * vision_hidden,
            num_hidden_layers=vision_layers,
            num_attention_heads=4,
            image_size=image,
            patch_size=patch,
            vision_use_head=False,
        ),
        mm_tokens_per_image=grid * grid,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        # the demo and real checkpoints carry these two at the top as well
        pad_token_id=handler.tokenizer.pad_token_id,
        eos_token_id=handler.tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        model = Gemma3ForConditionalGeneration(config)
    randomise(model, seed)
    model = model.to(dtype).eval()
    if folder is not None:
        model.save_pretrained(folder)
        handler.save_pretrained(folder)
    return model, handler


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Fill every parameter from one generator: matrices by fan-in, biases small, gains about one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            inputs = parameter.shape[0] if name.endswith("mm_input_projection_weight") else parameter[0].numel()
            value = noise * inputs**-0.5
        elif "vision" in name and "norm" in name and name.endswith("weight"):
            value = 1 + 0.1 * noise  # a LayerNorm multiplies by its weight; Gemma's own norm multiplies by 1 + weight
        else:
            value = 0.1 * noise
        parameter.copy_(value.to(parameter.dtype))


def quiet() -> None:
    """Silence the notes transformers writes about the PIL backend; they are no news here."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
