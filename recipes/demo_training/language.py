"""The language model: a miniature Gemma 3 on the frozen tower, trained on next-token prediction alone.

Nothing compares the vectors of words and pictures; they meet because both must serve the same answers. Four stages:
projector and language model on pictures; then, with the model frozen, the table of words alone, on the same questions
with a thing's name standing where its picture would, so that words have to find their place in what reads pictures;
then everything on everything, where the answers to such rows still move nothing but the table; then again the table
alone, for longer, in the model as it has settled. The other order, text first and then pictures through a frozen model, named next to nothing: a linear projector cannot reach vectors that
words have chosen, but words can reach where a projector leads.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from . import art, augment, text, tower
from .muon import Muon

VOCABULARY = 3072
GRID = tower.GRID
TEXT = dict(
    hidden_size=160,
    intermediate_size=480,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=40,
    query_pre_attn_scalar=40,
    max_position_embeddings=512,
    sliding_window=512,
    hidden_activation="gelu",
    tie_word_embeddings=False,  # what a word is read as, and where it is written, are two things here
)
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
IMAGE = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
# Gemma 3's template in what it does: <bos>, a system text before the first user turn, strings or lists of parts,
# texts trimmed, "model" for the assistant.
TEMPLATE = (
    "{{- bos_token -}}"
    "{%- macro body(content) -%}{%- if content is string -%}{{- content | trim -}}{%- else -%}"
    "{%- for part in content -%}{%- if part.type == 'image' -%}<start_of_image>"
    "{%- elif part.type == 'text' -%}{{- part.text | trim -}}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    "{%- set first = namespace(text='') -%}"
    "{%- if messages[0].role == 'system' -%}{%- set first.text = body(messages[0].content) ~ '\n\n' -%}"
    "{%- set turns = messages[1:] -%}{%- else -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for turn in turns -%}"
    "{{- '<start_of_turn>' ~ ('model' if turn.role == 'assistant' else turn.role) ~ '\n' -}}"
    "{%- if loop.first -%}{{- first.text -}}{%- endif -%}{{- body(turn.content) -}}{{- '<end_of_turn>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the corpus, with Gemma's special tokens and chat template."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL + IMAGE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(text.corpus(), trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", raw.token_to_id("<bos>"))]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens=dict(zip(("boi_token", "eoi_token", "image_token"), IMAGE, strict=True)),
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = TEMPLATE
    return made


def processor(words: PreTrainedTokenizerFast) -> Gemma3Processor:
    """The picture side (resized to the tower's, to [-1, 1]) and the tokenizer as one."""
    pictures = Gemma3ImageProcessorPil(
        size={"height": tower.SIDE, "width": tower.SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return Gemma3Processor(pictures, words, chat_template=TEMPLATE, image_seq_length=GRID * GRID)


def build(words: PreTrainedTokenizerFast, seed: int) -> Gemma3ForConditionalGeneration:
    """The untrained model; its projector is zero until `start_projector`."""
    ids = {name: words.convert_tokens_to_ids(token) for name, token in zip(("boi", "eoi", "image"), IMAGE, strict=True)}
    named = dict(pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id)
    ends = [words.eos_token_id, words.convert_tokens_to_ids("<end_of_turn>")]
    config = Gemma3Config(
        text_config=dict(TEXT, vocab_size=len(words), eos_token_id=ends[0], **named),
        vision_config=dict(tower.CONFIG, model_type="siglip_vision_model"),
        mm_tokens_per_image=GRID * GRID,
        image_token_index=ids["image"],
        boi_token_index=ids["boi"],
        eoi_token_index=ids["eoi"],
        eos_token_id=ends,
        dtype="float32",
        tie_word_embeddings=False,
        **named,
    )
    torch.manual_seed(seed)
    model = Gemma3ForConditionalGeneration(config)
    for name, weight in model.named_parameters():  # the norms' gains are 1 + weight: blocks add little to the stream
        if "post_attention_layernorm" in name or "post_feedforward_layernorm" in name:
            nn.init.constant_(weight, -0.75)
    model.generation_config.eos_token_id = ends
    return model


@torch.no_grad()
def start_projector(model: Gemma3ForConditionalGeneration, file: Path, pictures: torch.Tensor) -> None:
    """Begin where the tower's own contrastive head looks, on the axes in which `pictures` (n, 3, side, side) differ most.

    There a cosine tells things apart; among the tower's raw features a few directions (brightness, colour) outweigh all
    others. From a model its projector is taken.
    """
    projector = model.model.multi_modal_projector
    tensors = tower.tensors_of(file)
    if "image.weight" not in tensors:
        projector.mm_input_projection_weight.copy_(tensors["multi_modal_projector.mm_input_projection_weight"])
        return
    head = tensors["image.weight"].float().T
    seen = torch.cat([model.model.vision_tower(2 * x - 1).last_hidden_state.mean(1) for x in pictures.split(128)])
    seen = F.normalize(seen @ head, dim=-1)
    axes = torch.linalg.svd(seen - seen.mean(0), full_matrices=False).Vh[: TEXT["hidden_size"]]
    start = head @ axes.T
    projector.mm_input_projection_weight.copy_(2.0 * start / start.square().sum(0).mean().sqrt())


# -- batches -----------------------------------------------------------------------------------------------------


Row = tuple[list[int], list[bool]]


def _tokens(words: PreTrainedTokenizerFast, turns: list[text.Turn], image: bool, instead: Sequence[int] = ()) -> Row:
    """Ids of a conversation, and which of them are answers (to be predicted); `instead` stands for the image's tokens."""
    ids, wanted = [words.bos_token_id], [False]

    def add(piece: str, answer: bool) -> None:
        new = words(piece, add_special_tokens=False)["input_ids"]
        ids.extend(new)
        wanted.extend([answer] * len(new))

    for i, (user, answer) in enumerate(turns):
        shown = f"\n\n{IMAGE[0]}{IMAGE[2] * GRID**2}{IMAGE[1]}\n\n" if image and i == 0 else ""
        add(f"<start_of_turn>user\n{shown}{user}<end_of_turn>\n<start_of_turn>model\n", False)
        add(f"{answer}<end_of_turn>", True)
        add("\n", False)
    if instead:
        at = ids.index(words.convert_tokens_to_ids(IMAGE[2]))
        ids[at : at + GRID**2] = instead
    return ids, wanted


def _said(words: PreTrainedTokenizerFast, name: str, more: Sequence[str], rng: random.Random) -> list[int]:
    """Ids for the picture's place: the name over and over, and now and then another word about the thing."""
    ids: list[int] = []
    share = rng.uniform(0.4, 1.0)
    while len(ids) < GRID**2:
        word = name if rng.random() < share or not more else rng.choice(more)
        ids += words(word, add_special_tokens=False)["input_ids"]
    ids = ids[: GRID**2]
    rng.shuffle(ids)
    return ids


def _about(concept: art.Concept, facts: dict, rng: random.Random, keywords: list[str]) -> list[text.Turn]:
    """Turns about a thing that is shown, or named where the picture would stand: the same answers either way.

    Nothing but next-token prediction ties the two together: what serves the same answers comes to be held alike.
    """
    talk = text.conversation(concept, facts, rng, "picture", keywords)[: rng.randint(1, 3)]
    if rng.random() < 0.6:
        talk[0] = ("", f"{concept.name}: {text.describe(facts[concept.name], rng)}")
    return talk


def _pad(rows: list[tuple[list[int], list[bool]]], pad: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    length = min(longest, max(len(ids) for ids, _ in rows))
    ids = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), -100)
    for i, (row, wanted) in enumerate(rows):
        row, wanted = row[:length], wanted[:length]
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, : len(row)] = torch.where(torch.tensor(wanted), torch.tensor(row), -100)
    return ids, labels


def _loss(
    model: Gemma3ForConditionalGeneration, ids: torch.Tensor, labels: torch.Tensor, pictures=None, *, causal=False
) -> torch.Tensor:
    """Mean next-token loss over the answers; right padding needs no mask, since nothing looks ahead.

    With `causal` image tokens, and words in their place, see only what is before them, as all other tokens do.
    Matrix products run in bfloat16 where the processor has it (twice as fast there), everything else in float32.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=tower.FAST):
        return _exact_loss(model, ids, labels, pictures, causal)


def _exact_loss(
    model: Gemma3ForConditionalGeneration,
    ids: torch.Tensor,
    labels: torch.Tensor,
    pictures: torch.Tensor | None,
    causal: bool,
) -> torch.Tensor:
    inner, length = model.model, ids.shape[1]
    hidden = inner.language_model.embed_tokens(ids)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    begins = torch.where(ids[0] == model.config.boi_token_index)[0].tolist()
    if begins:  # every row has its picture, or the words instead of it, at the same place: all see all of it
        place = slice(begins[0] + 1, begins[0] + 1 + GRID**2)
        if not causal:
            mask[place, place] = True
    if pictures is not None:
        with torch.no_grad():  # the tower is frozen
            seen = inner.vision_tower(2 * pictures - 1).last_hidden_state
        features = inner.multi_modal_projector(seen)
        here = ids == model.config.image_token_id
        hidden = hidden.masked_scatter(here[..., None], features.to(hidden.dtype))
    if begins:
        size = hidden[:, place].detach().square().mean().sqrt()
        own, shared = (n * size * torch.rand(len(ids), 1, 1) for n in NOISE[pictures is not None])
        noise = torch.zeros_like(hidden)
        noise[:, place] = own * torch.randn_like(hidden[:, place]) + shared * torch.randn_like(hidden[:, :1])
        hidden = hidden + noise
    mask = mask[None, None]
    both = {"full_attention": mask, "sliding_attention": mask}
    out = inner.language_model(inputs_embeds=hidden, attention_mask=both, use_cache=False).last_hidden_state
    chosen = labels[:, 1:] != -100
    return F.cross_entropy(model.lm_head(out[:, :-1][chosen]).float(), labels[:, 1:][chosen])


def several(pieces: torch.Tensor, counts: list[int], side: int, generator: torch.Generator) -> torch.Tensor:
    """Put one to four small copies of each art (n, 4, s, s) into one canvas (n, 4, side, side), apart from each other."""
    out = torch.zeros(len(pieces), 4, side, side)
    half = side // 2
    for i, count in enumerate(counts):
        for cell in torch.randperm(4, generator=generator)[:count].tolist():
            size = int(torch.randint(int(half * 0.7), half, (1,), generator=generator))
            small = F.interpolate(pieces[i : i + 1], (size, size), mode="bilinear", antialias=True)[0]
            y = (cell // 2) * half + int(torch.randint(0, half - size + 1, (1,), generator=generator))
            x = (cell % 2) * half + int(torch.randint(0, half - size + 1, (1,), generator=generator))
            out[i, :, y : y + size, x : x + size] = small
    return out


def keywords_of(concepts: list[art.Concept], npm: Path) -> dict[str, list[str]]:
    """CLDR keywords by concept name."""
    data = json.loads((npm / "emojibase-data@17.0.0" / "en" / "data.json").read_text(encoding="utf-8"))
    tags = {art.code(e["emoji"]): e.get("tags", []) for e in data}
    return {c.name: sorted({t for e in c.emoji for t in tags.get(art.code(e), [])}) for c in concepts}


# -- scores ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def named(
    model: Gemma3ForConditionalGeneration,
    words: PreTrainedTokenizerFast,
    pictures: torch.Tensor,
    names: list[set[str]],
    *,
    beams: int = 1,
    causal: bool = False,
    question: str = "What is in the image?",
) -> tuple[float, float]:
    """(top-1, top-`beams`) share of pictures (n, 3, side, side) whose free answer is one of its names."""
    model.eval()
    row, _ = _tokens(words, [(question, "")], True)
    row = row[: len(row) - 2]  # up to the model's turn
    first = any_ = 0
    for at in range(0, len(pictures), 64):
        x = pictures[at : at + 64]
        ids = torch.tensor(row).expand(len(x), -1)
        made = model.generate(
            input_ids=ids, pixel_values=2 * x - 1,
            token_type_ids=(ids == model.config.image_token_id).long() * (not causal),
            attention_mask=torch.ones_like(ids), max_new_tokens=8, num_beams=beams, num_return_sequences=beams, do_sample=False,
        )  # fmt: skip
        answers = words.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
        for i in range(len(x)):
            said = [a.split(":")[0].strip() for a in answers[i * beams : (i + 1) * beams]]
            first += said[0] in names[at + i]
            any_ += any(s in names[at + i] for s in said)
    model.train()
    return first / len(pictures), any_ / len(pictures)


# -- training ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """Steps of one kind: what is trained, at which rate, and how many rows of each kind a step has.

    A `settled` stage begins from the averages of the weights, not from the last ones.
    """

    name: str
    steps: int
    rate: float
    pictures: int
    texts: int
    instead: int
    settled: bool = False


# In a picture's place, in units of what stands there, at most: noise of each token's own, and one vector on all of a
# row's; for words there, and for pictures. What names a thing in spite of it has to lie where its pictures lie.
NOISE = ((6.0, 1.2), (1.0, 0.5))
SLOW = 0.02  # the projector's share of the rate
STAGES = (
    Stage("pictures", 300, 3e-3, 64, 0, 0),
    Stage("words", 160, 2e-2, 0, 8, 64),
    Stage("both", 80, 1e-3, 40, 24, 32),
    Stage("words", 600, 1e-2, 0, 8, 64, settled=True),
)


@dataclass
class Material:
    """What is learnt from: art with its concepts, facts and words about them, and lines of text without end."""

    art: torch.Tensor
    concept: torch.Tensor
    concepts: list[art.Concept]
    facts: dict[str, text.Facts]
    keywords: dict[str, list[str]]
    lines: Iterator[str]
    near: tuple[torch.Tensor, list[set[str]]]  # every twelfth of the art, untouched, with its names
    far: tuple[torch.Tensor, list[set[str]]]  # every second picture of held-out art
    more: dict[str, list[str]]  # words about a thing besides its name

    def shown(
        self, words: PreTrainedTokenizerFast, count: int, generator: torch.Generator, rng: random.Random, named: bool
    ):
        """`count` views of art and conversations about them, one view in seven with several copies.

        With `named` only what is seen is asked: reading pictures is the hard part, and short rows are cheap.
        """
        weight = (1.0 / torch.bincount(self.concept).clamp(min=1)[self.concept]) ** 0.5
        here = torch.multinomial(weight, count, replacement=True, generator=generator)
        counts = [rng.choice((2, 2, 3, 4, 1)) if not named and rng.random() < 0.15 else 0 for _ in range(count)]
        crowd = [i for i, c in enumerate(counts) if c]
        x = augment.view(self.art[here], tower.SIDE, generator, **augment.UPRIGHT)
        if crowd:
            many = several(self.art[here[crowd]], [counts[i] for i in crowd], tower.SIDE, generator)
            ground = augment.backgrounds(len(crowd), tower.SIDE, generator)
            x[crowd] = (many[:, :3] + (1 - many[:, 3:]) * ground).clamp(0, 1)
        rows = []
        for i, c in zip(here.tolist(), counts, strict=True):
            concept = self.concepts[int(self.concept[i])]
            if named or c:
                keywords = self.keywords[concept.name]
                talk = text.conversation(concept, self.facts, rng, "picture", keywords, counted=c or None)
                talk = talk[: 1 if named else 3]
            else:
                talk = _about(concept, self.facts, rng, self.keywords[concept.name])
            rows.append(_tokens(words, talk, True))
        return *_pad(rows, words.pad_token_id, 150), x

    def told(self, words: PreTrainedTokenizerFast, count: int, rng: random.Random):
        """`count` rows of text alone; a third of them has the name where a picture would stand."""
        rows = []
        for _ in range(count):
            way, concept = rng.random(), rng.choice(self.concepts)
            keywords = self.keywords[concept.name]
            if way < 0.35:
                (first, answer), *rest = _about(concept, self.facts, rng, keywords)
                asked = "\n\n".join(filter(None, (concept.name, first)))
                rows.append(_tokens(words, [(asked, answer), *rest], False))
            elif way < 0.5:
                line = words(next(self.lines), add_special_tokens=False)["input_ids"]
                line = [words.bos_token_id, *line, words.eos_token_id]
                rows.append((line, [False, *[True] * (len(line) - 1)]))
            elif way < 0.58:
                rows.append(_tokens(words, text.association(rng), False))
            else:
                mode = "reverse" if way < 0.72 else "name"
                rows.append(_tokens(words, text.conversation(concept, self.facts, rng, mode, keywords), False))
        return _pad(rows, words.pad_token_id, 90)

    def instead(self, words: PreTrainedTokenizerFast, count: int, rng: random.Random, named: bool):
        """`count` conversations as about a picture, with words about the thing in the picture's place.

        With `named` only what is there is asked.
        """
        rows = []
        for _ in range(count):
            concept = rng.choice(self.concepts)
            talk = _about(concept, self.facts, rng, self.keywords[concept.name])
            if named:
                talk = text.conversation(concept, self.facts, rng, "picture", self.keywords[concept.name])[:1]
            rows.append(_tokens(words, talk, True, _said(words, concept.name, self.more[concept.name], rng)))
        return _pad(rows, words.pad_token_id, 150)


def material(data: Path, npm: Path, rng: random.Random) -> Material:
    """Everything from the rendered art and the lists beside this file."""
    concepts, facts = art.concepts(), text.facts()
    keywords = keywords_of(concepts, npm)
    z, styles = np.load(data), list(art.STYLES.values())
    side_of = np.array([s.side for s in styles])[z["style"]]
    labels = torch.from_numpy(z["concept"])
    mine, unseen = (np.flatnonzero(side_of == s) for s in ("model", "held-out"))
    source, y = augment.masters(z["pictures"][mine], 80), labels[mine]
    names = [{c.name, *c.aliases} for c in concepts]
    more = {}
    for c in concepts:
        f = facts[c.name]
        good = [k for k in keywords[c.name] if text.plain_keyword(k)]
        more[c.name] = [*f.colours, *f.colours, *f.kinds, *f.parts, *f.shapes, *good]
    return Material(
        source,
        y,
        concepts,
        facts,
        keywords,
        text.plain_text(concepts, facts, keywords, rng),
        (augment.plain(source[::12], tower.SIDE), [names[i] for i in y[::12]]),
        (
            augment.plain(augment.masters(z["pictures"][unseen], 80), tower.SIDE)[::2],
            [names[i] for i in labels[unseen][::2]],
        ),
        more,
    )


def train(
    data: Path,
    npm: Path,
    tower_file: Path,
    out: Path,
    folder: Path,
    *,
    stages: Sequence[Stage] = STAGES,
    seed: int = 0,
    causal: bool = False,
) -> None:
    """Train through the stages; resumes from `out` if it holds a checkpoint; writes the finished model to `folder`.

    With `causal` image tokens see only what is before them. The folder's config cannot say so: a Gemma 3 lets them see
    each other where it is given token types, and not where those are zero.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    words = tokenizer()
    model = build(words, seed)
    model.model.vision_tower.requires_grad_(False)
    stuff = material(data, npm, rng)
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrix = [p for n, p in trained if p.ndim == 2 and ".layers." in n]
    slow = [p for n, p in trained if "mm_input_projection" in n]  # its numbers are small, and where it starts is good
    other = [p for n, p in trained if not (p.ndim == 2 and ".layers." in n) and "mm_input_projection" not in n]
    groups = [dict(params=other, share=1.0), dict(params=slow, share=SLOW, weight_decay=0.0)]
    optimisers = [
        Muon(matrix, weight_decay=0.02),
        torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98)),
    ]
    average = {n: p.detach().clone() for n, p in trained}
    step, steps = 0, sum(s.steps for s in stages)
    if out.exists():
        saved = torch.load(out, weights_only=False)
        model.load_state_dict(saved["model"])
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        average, step = saved["average"], saved["step"]
        generator.set_state(saved["generator"])
        rng.setstate(saved["rng"])
    model.model.vision_tower.load_state_dict(tower.fitted(tower.weights(tower_file)))
    if not out.exists():
        start_projector(model, tower_file, augment.plain(stuff.art, tower.SIDE, background=0.5))
    ends = np.cumsum([s.steps for s in stages])
    began, loss = time.time(), {}
    while step < steps:
        at = int(np.searchsorted(ends, step, side="right"))
        stage, done = stages[at], step - (int(ends[at]) - stages[at].steps)
        if stage.settled and done == 0:
            model.load_state_dict(average, strict=False)
        rate = stage.rate * min(1, (done + 1) / 50) * (0.04 + 0.96 * 0.5 * (1 + math.cos(math.pi * done / stage.steps)))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("share", 1.0)
        for n, p in trained:
            p.requires_grad_(stage.name != "words" or "embed_tokens" in n)
        model.zero_grad(set_to_none=True)
        if stage.pictures:
            only_name = done % 4 < 3 if stage.name == "pictures" else done % 2 < 1
            loss["seen"] = _loss(model, *stuff.shown(words, stage.pictures, generator, rng, only_name), causal=causal)
            loss["seen"].backward()
        if stage.texts:
            loss["text"] = _loss(model, *stuff.told(words, stage.texts, rng), causal=causal)
            loss["text"].backward()
        if stage.instead:
            loss["instead"] = _loss(model, *stuff.instead(words, stage.instead, rng, done % 4 < 3), causal=causal)
            table = model.get_input_embeddings().weight  # words find their place in what is there
            (gradient,) = torch.autograd.grad(loss["instead"], table)
            table.grad = gradient if table.grad is None else table.grad + gradient
        nn.utils.clip_grad_norm_([p for _, p in trained if p.grad is not None], 1.0)
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        keep = min(0.99, (1 + step) / (10 + step))
        for n, p in trained:
            average[n].lerp_(p.detach(), 1 - keep)
        if step % 25 == 0 and step % 100 != 0:
            said = dict(step=step, stage=stage.name, **{k: round(v.item(), 3) for k, v in loss.items()})
            print(json.dumps(said | {"seconds": round(time.time() - began)}), flush=True)
        if step % 100 == 0 or step in ends:
            live = {n: p.detach().clone() for n, p in trained}
            model.load_state_dict(average, strict=False)
            scores = dict(step=step, stage=stage.name, **{k: round(v.item(), 3) for k, v in loss.items()})
            if stage.pictures and step in ends:
                near, far = (named(model, words, *which, causal=causal)[0] for which in (stuff.near, stuff.far))
                scores |= dict(seen=near, unseen=far)
            print(json.dumps(scores | {"seconds": round(time.time() - began)}), flush=True)
            export(model, words, folder)
            model.load_state_dict(live, strict=False)
            partial = out.with_suffix(".partial")
            torch.save(
                dict(model=model.state_dict(), optimisers=[o.state_dict() for o in optimisers], average=average, step=step,
                     generator=generator.get_state(), rng=rng.getstate()), partial,
            )  # fmt: skip
            partial.rename(out)


def export(model: Gemma3ForConditionalGeneration, words: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model (bfloat16 on disk, float32 when loaded), tokenizer, template and processor as a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.bfloat16() for k, v in model.state_dict().items()}
    model.config.architectures = ["Gemma3ForConditionalGeneration"]
    model.save_pretrained(folder, state_dict=state)
    split(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    for part in ("text_config", "vision_config"):
        config[part]["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    processor(words).save_pretrained(folder)


def split(folder: Path) -> None:
    """Write tower, language model and table of words to files of their own: each is trained while the others stand."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    places = {
        name: 1 if name.startswith("vision_tower.") else 3 if "embed_tokens" in name else 2 for name in sorted(tensors)
    }
    files = {number: f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)}
    for number, file in files.items():
        part = {name: tensors[name].contiguous() for name, place in places.items() if place == number}
        save_file(part, folder / file, {"format": "pt"})
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": {name: files[place] for name, place in places.items()}}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    whole.unlink()
