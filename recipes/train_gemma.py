"""How does real Gemma 3 270M come to see? A projector and a low-rank adapter, trained on next tokens about pictures alone.

    python recipes/train_demo.py --only fetch render --work build/train      # the art, once
    python recipes/train_gemma.py --art build/train --work build/gemma [--minutes 120] [--steps 6000]

The tower is frozen (the bundled demo's, or that of --tower), and so are Gemma's own weights; nothing compares words with
pictures. It goes on where it stopped. Into --work go `trained` (as `demo.gemma_folder` takes it), twelve such folders
`checkpoints/STEP` spread over the training, closer at its start, for the question when alignment emerges, and
`log.jsonl`. Needs `pip install "nnsight-dream[gemma,train]"`; what it writes is under the Gemma Terms of Use.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

sys.path.insert(0, str(Path(__file__).parent))
from demo_training import art, augment, language, text, tower

from nnsight_dream.demo import gemma

DATA = Path(__file__).parents[1] / "nnsight_dream" / "data"
LIMIT = 12 * 2**20  # bytes of what may be bundled
KEPT = 12  # checkpoints
ALONE = 150  # steps of the projector by itself: it learns the form of answers first
RATE_ALONE, RATE = 3e-3, 1e-3
OTHERS = 4096  # pieces drawn anew at each step that stand for all those that no answer uses
LENGTHS = 4  # a step's conversations are of one of so many classes of length
LONGEST = 72  # tokens of a conversation beside the picture's
QUESTION = "What is in the image?"


class LowRank(nn.Module):
    """A frozen linear map with b @ a added to it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.a.T) @ self.b.T


# -- the model ---------------------------------------------------------------------------------------------------


def eyes(place: Path, image_tokens: int | None) -> tuple[dict[str, Tensor], dict]:
    """Weights ("vision_tower.") and settings of the tower of a model's folder, or of one of the tower's own training."""
    home = place if (place / "config.json").exists() else DATA / "vlm"
    whole, pictures = (json.loads((home / n).read_text()) for n in ("config.json", "processor_config.json"))
    if home == place:
        config, tokens = whole["vision_config"], whole["mm_tokens_per_image"]
        weights = {k: v for k, v in tower.tensors_of(place).items() if k.startswith("vision_tower.")}
    else:
        config, tokens = dict(whole["vision_config"], **tower.CONFIG), tower.GRID**2
        weights = {f"vision_tower.{k}": v for k, v in tower.fitted(tower.weights(place)).items()}
    side = config["image_size"]
    images = dict(pictures["image_processor"], size=dict(height=side, width=side))
    return weights, dict(vision_config=config, image_processor=images, mm_tokens_per_image=image_tokens or tokens)


def build(work: Path, place: Path, image_tokens: int | None, rank: int, seed: int):
    """The model with its untrained projector and adapter (rank 0: none), its processor, and the tower's settings."""
    weights, settings = eyes(place, image_tokens)
    width = weights["vision_tower.post_layernorm.weight"].numel()
    words = json.loads((gemma.language_folder() / "config.json").read_text())["hidden_size"]
    blank = {"mm_soft_emb_norm.weight": torch.zeros(width), "mm_input_projection_weight": torch.zeros(width, words)}
    gemma.write_trained(
        work / "untrained", weights | {f"multi_modal_projector.{k}": v for k, v in blank.items()}, settings
    )
    folder = gemma.gemma_folder(work / "untrained")
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()
    for module in list(model.model.language_model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                if tower.FAST:
                    child.bfloat16()  # frozen: products run in bfloat16 anyway, everything else in float32
                if rank:
                    setattr(module, name, LowRank(child, rank))
    model.model.multi_modal_projector.float().requires_grad_(True)
    return model, AutoProcessor.from_pretrained(folder), settings


def fast(device: torch.device):
    """Products in bfloat16 where the device is quicker at them."""
    quick = tower.FAST if device.type == "cpu" else device.type == "cuda"
    return torch.autocast(device.type, torch.bfloat16) if quick else contextlib.nullcontext()


@torch.no_grad()
def start_projector(model: nn.Module, pictures: Tensor, seed: int) -> None:
    """Begin on whitened features at random, as long as words are: a few directions (brightness) outweigh all else."""
    projector, table = model.model.multi_modal_projector, model.get_input_embeddings()
    generator = torch.Generator().manual_seed(seed)
    width, words = projector.mm_input_projection_weight.shape
    keep = projector.mm_input_projection_weight
    seen = []
    for x in pictures.split(32):
        hidden = model.model.vision_tower(2 * x - 1).last_hidden_state
        side = math.isqrt(hidden.shape[1])
        pooled = projector.avg_pool(hidden.transpose(1, 2).reshape(len(x), width, side, side)).flatten(2)
        seen.append(projector.mm_soft_emb_norm(pooled.transpose(1, 2)).reshape(-1, width).cpu())
    x = torch.cat(seen)
    values, axes = torch.linalg.eigh(x.T @ x / len(x))
    turned = torch.linalg.qr(torch.randn(max(words, width), min(words, width), generator=generator)).Q
    start = axes / (values + 0.01 * values.mean()).sqrt() @ (turned.T if words >= width else turned)
    count = len(table.weight)
    some = table(torch.arange(0, count, max(1, count // 4096), device=keep.device)).norm(dim=-1).mean().cpu()
    keep.copy_(start * some / (x @ start).norm(dim=1).mean())


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What was trained, and the frozen tower, by the names of `gemma.write_trained`."""
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = {
        n.replace("model.language_model.", "adapter.").removeprefix("model."): p.detach() for n, p in names.items()
    }
    frozen = {f"vision_tower.{k}": v for k, v in model.model.vision_tower.state_dict().items()}
    return found | frozen


# -- what is learnt ----------------------------------------------------------------------------------------------


@dataclass
class Material:
    """Art trained on with its concepts, facts and keywords, and plain pictures to score with: of it, and never seen."""

    art: Tensor
    concept: Tensor
    concepts: list[art.Concept]
    facts: dict[str, text.Facts]
    keywords: dict[str, list[str]]
    scored: dict[str, tuple[Tensor, list[set[str]]]]


def material(folder: Path, side: int, count: int) -> Material:
    """Everything from rendered art and the lists of the demo's training; `count` pictures of each kind are scored."""
    concepts = art.concepts()
    with np.load(folder / "art.npz") as z:
        drawn, style, concept = z["pictures"], z["style"], z["concept"]
    side_of = np.array([s.side for s in art.STYLES.values()])[style]
    rows = {k: np.flatnonzero(side_of == s) for k, s in (("seen", "model"), ("held-out", "held-out"))}
    scored = {}
    for kind, all_of in rows.items():
        some = all_of[np.linspace(0, len(all_of) - 1, min(count, len(all_of))).astype(int)]
        names = [{concepts[c].name, *concepts[c].aliases} for c in concept[some]]
        scored[kind] = augment.plain(augment.masters(drawn[some], side + side // 4), side), names
    mine = rows["seen"]
    masters = augment.masters(drawn[mine], side + side // 4)
    keywords = language.keywords_of(concepts, folder / "npm")
    return Material(masters, torch.from_numpy(concept[mine]), concepts, text.facts(), keywords, scored)


def prompt(processor, turns: Sequence[text.Turn]) -> str:
    """The conversation by the chat template, with its picture's tokens; an empty last answer opens the model's turn."""
    messages = []
    for i, (user, answer) in enumerate(turns):
        shown = [dict(type="image")] if i == 0 else []
        messages.append(dict(role="user", content=[*shown, dict(type="text", text=user)]))
        if answer:
            messages.append(dict(role="assistant", content=[dict(type="text", text=answer)]))
    said = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=not turns[-1][1])
    return said.replace(processor.tokenizer.boi_token, processor.full_image_sequence)


def row(processor, turns: Sequence[text.Turn]) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and which of them are answers, their end of turn among them."""
    ids, wanted, told = [], [], ""
    for i, (user, answer) in enumerate(turns):
        asked = prompt(processor, [*turns[:i], (user, "")])
        answered = asked + answer + "<end_of_turn>"
        for piece, is_answer in ((asked[len(told) :], False), (answered[len(asked) :], True)):
            new = processor.tokenizer(piece, add_special_tokens=False)["input_ids"]
            ids += new
            wanted += [is_answer] * len(new)
        told = answered
    return ids, wanted


def batch(stuff: Material, processor, side: int, count: int, generator: torch.Generator, rng: random.Random):
    """Views of art (count, 3, side, side) with ids (count, length) and labels, -100 where nothing is to be predicted."""
    weight = (1.0 / torch.bincount(stuff.concept).clamp(min=1)[stuff.concept]) ** 0.5
    drawn = []
    for i in torch.multinomial(weight, LENGTHS * count, replacement=True, generator=generator).tolist():
        concept = stuff.concepts[int(stuff.concept[i])]
        talk = text.conversation(concept, stuff.facts, rng, "picture", stuff.keywords[concept.name])
        drawn.append((i, row(processor, talk[: 1 if rng.random() < 0.7 else 2])))
    drawn.sort(key=lambda pair: len(pair[1][0]))
    first = rng.randrange(LENGTHS) * count  # conversations of about one length: nothing is spent on padding
    here = torch.tensor([i for i, _ in drawn[first : first + count]])
    rows = [found for _, found in drawn[first : first + count]]
    length = min(max(len(ids) for ids, _ in rows), processor.image_seq_length + LONGEST)
    ids = torch.full((count, length), processor.tokenizer.pad_token_id)
    labels = torch.full((count, length), -100)
    for i, (found, wanted) in enumerate(rows):
        found, wanted = found[:length], wanted[:length]
        ids[i, : len(found)] = torch.tensor(found)
        labels[i, : len(found)] = torch.where(torch.tensor(wanted), torch.tensor(found), -100)
    return augment.view(stuff.art[here], side, generator, **augment.UPRIGHT), ids, labels


def answer_pieces(stuff: Material, processor, rng: random.Random) -> Tensor:
    """The pieces that answers use, sorted: each concept's names, and all of six conversations about it."""
    said = set()
    for concept in stuff.concepts:
        for _ in range(6):
            talk = text.conversation(concept, stuff.facts, rng, "picture", stuff.keywords[concept.name])
            said.update(answer for _, answer in talk)
    ids = processor.tokenizer([f"{answer}<end_of_turn>" for answer in sorted(said)], add_special_tokens=False)
    return torch.tensor(sorted({i for line in ids["input_ids"] for i in line}))


def loss_of(model: nn.Module, pictures: Tensor, ids: Tensor, labels: Tensor, pieces: Tensor, generator) -> Tensor:
    """Mean next-token loss over the answers.

    The sum over the vocabulary is that over the answers' pieces and, for the rest, over `OTHERS` drawn at random, each
    counted as many times as makes the sum right on average: the whole table would cost as much as the decoder.
    """
    inner, length, device = model.model, ids.shape[1], ids.device
    here = ids == model.config.image_token_id
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    place = torch.where(here[0])[0]  # the same in all rows; a picture's tokens see each other
    mask[place[0] : place[-1] + 1, place[0] : place[-1] + 1] = True
    with fast(device):
        with torch.no_grad():
            seen = inner.vision_tower(2 * pictures - 1).last_hidden_state
        hidden = inner.language_model.embed_tokens(ids.masked_fill(here, 0))
        hidden = hidden.masked_scatter(here[..., None], inner.multi_modal_projector(seen).to(hidden.dtype))
        both = dict.fromkeys(("full_attention", "sliding_attention"), mask[None, None])
        out = inner.language_model(inputs_embeds=hidden, attention_mask=both, use_cache=False).last_hidden_state
    chosen = labels[:, 1:] != -100
    wanted, table = labels[:, 1:][chosen], model.get_output_embeddings().weight
    known = torch.unique(torch.cat([pieces.to(device), wanted]))
    free = torch.ones(len(table), dtype=torch.bool)
    free[known.cpu()] = False
    free = torch.where(free)[0]
    others = free[torch.randint(len(free), (OTHERS,), generator=generator)].to(device)
    with fast(device):
        logits = F.linear(out[:, :-1][chosen], table[torch.cat([known, others])]).float()
    logits[:, len(known) :] += math.log(len(free) / OTHERS)
    return F.cross_entropy(logits, torch.searchsorted(known, wanted))


@torch.no_grad()
def named(model: nn.Module, processor, pictures: Tensor, names: list[set[str]], said: list[str] | None = None) -> float:
    """The share of pictures whose free answer, by greedy generation, is one of its names; `said` gets the answers."""
    ids = processor.tokenizer(prompt(processor, [(QUESTION, "")]), add_special_tokens=False, return_tensors="pt")
    ids, device, right = ids["input_ids"], model.device, 0
    for at in range(0, len(pictures), 32):
        x = pictures[at : at + 32].to(device)
        given = ids.expand(len(x), -1).to(device)
        with fast(device), torch.compiler.set_stance("force_eager"):
            made = model.generate(
                input_ids=given, pixel_values=2 * x - 1, attention_mask=torch.ones_like(given),
                token_type_ids=(given == model.config.image_token_id).long(), max_new_tokens=8, do_sample=False,
            )  # fmt: skip
        answers = processor.batch_decode(made[:, given.shape[1] :], skip_special_tokens=True)
        answers = [a.split(":")[0].split("\n")[0].strip() for a in answers]
        right += sum(a in names[at + i] for i, a in enumerate(answers))
        if said is not None:
            said += answers
    return right / len(pictures)


# -- training ----------------------------------------------------------------------------------------------------


def rates(step: int, steps: int) -> tuple[float, float]:
    """(projector's, adapter's) rate: the projector alone first, then both, warmed up and let down by a cosine."""
    if step < ALONE:
        return RATE_ALONE, 0.0
    down = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - ALONE) / max(1, steps - ALONE)))
    return RATE * down, RATE * down * min(1.0, (step - ALONE + 1) / 50)


def kept_steps(steps: int) -> set[int]:
    """The steps whose checkpoints are kept."""
    return {max(1, round(steps * (i / KEPT) ** 2)) for i in range(1, KEPT + 1)}


class Run:
    """A training as far as it has come: model, optimiser, chance, and where it is written."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.step, self.device = args, 0, torch.device(args.device)
        args.work.mkdir(parents=True, exist_ok=True)
        rank = 0 if args.projector_alone else args.rank
        self.model, self.processor, self.settings = build(args.work, args.tower, args.image_tokens, rank, args.seed)
        self.side = self.settings["vision_config"]["image_size"]
        self.stuff = material(args.art, self.side, args.scored)
        self.rng, self.generator = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
        self.pieces = answer_pieces(self.stuff, self.processor, random.Random(args.seed))
        groups: list[list[nn.Parameter]] = [[], []]
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                groups["language_model" in name].append(p)
        self.optimiser = torch.optim.AdamW([dict(params=g) for g in groups if g], betas=(0.9, 0.98), weight_decay=0.01)
        if (args.work / "last.pt").exists():
            self._resume(torch.load(args.work / "last.pt", weights_only=False))
        else:
            some = self.stuff.art[:: max(1, len(self.stuff.art) // 256)]
            start_projector(self.model, augment.plain(some, self.side, background=0.5), args.seed)
        self.model.to(self.device)
        if args.compile:
            for layer in self.model.model.language_model.layers:
                layer.compile()

    def _resume(self, saved: dict) -> None:
        if saved["given"] != self._given():
            raise SystemExit(f"{self.args.work} holds a training with {saved['given']}, not {self._given()}")
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in saved["weights"].items():
                own[name].copy_(value)
        self.model.to(self.device)
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step = saved["step"]
        self.generator.set_state(saved["generator"])
        self.rng.setstate(saved["rng"])

    def _given(self) -> dict:
        names = ("steps", "rank", "batch", "projector_alone", "seed")
        tokens = self.settings["mm_tokens_per_image"]
        return {n: getattr(self.args, n) for n in names} | dict(image_tokens=tokens, side=self.side)

    def save(self) -> None:
        """Write what resuming needs, whole or not at all."""
        weights = {n: p.detach().cpu() for n, p in self.model.named_parameters() if p.requires_grad}
        state = dict(weights=weights, optimiser=self.optimiser.state_dict(), step=self.step, given=self._given(),
                     generator=self.generator.get_state(), rng=self.rng.getstate())  # fmt: skip
        partial = self.args.work / "last.partial"
        torch.save(state, partial)
        partial.replace(self.args.work / "last.pt")

    def export(self, folder: Path, **scores: float) -> None:
        """Write the trained files as `demo.gemma_folder` takes them, with notice and terms."""
        told = dict(trained_on=gemma.HUB, steps=self.step, of=self.args.steps, rank=self.args.rank, scores=scores)
        size = gemma.write_trained(folder, trained_state(self.model), {**self.settings, **told})
        if size > LIMIT:
            print(f"{folder} holds {size / 2**20:.1f} MB, more than may be bundled ({LIMIT // 2**20}): lower --rank")

    def advance(self) -> tuple[float, int]:
        """One step; its loss, and the tokens of a row."""
        for group, rate in zip(self.optimiser.param_groups, rates(self.step, self.args.steps), strict=False):
            group["lr"] = rate
        some = (t.to(self.device) for t in batch(
            self.stuff, self.processor, self.side, self.args.batch, self.generator, self.rng))  # fmt: skip
        pictures, ids, labels = some
        loss = loss_of(self.model, pictures, ids, labels, self.pieces, self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimiser.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimiser.step()
        self.step += 1
        return loss.item(), ids.shape[1]

    def scores(self) -> dict[str, float]:
        """Shares named, of seen and of held-out art."""
        return {k: round(named(self.model, self.processor, *which), 3) for k, which in self.stuff.scored.items()}

    def tell(self, **line: object) -> None:
        """One line, shown and kept."""
        with (self.args.work / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def main() -> None:
    """Train until it is done, or the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--art", type=Path, default=Path("build/train"), help="what train_demo.py rendered")
    parser.add_argument("--work", type=Path, default=Path("build/gemma"))
    parser.add_argument("--tower", type=Path, default=DATA / "vlm", help="a model's folder, or a tower's training")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many, to go on later")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=12)
    parser.add_argument("--image-tokens", type=int, help="of a picture; the tower's model's own by default")
    parser.add_argument("--projector-alone", action="store_true", help="train no adapter")
    parser.add_argument("--scored", type=int, default=160, help="pictures of each kind that are named at a checkpoint")
    parser.add_argument("--device", default=str(tower.best_device()))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the layers: a minute, then 1.5 times as fast"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run, began, losses, kept = Run(args), time.time(), [], kept_steps(args.steps)
    while run.step < args.steps and time.time() - began < 60 * args.minutes:
        loss, tokens = run.advance()
        losses.append(loss)
        if run.step % 25 == 0 or run.step <= 5:
            seconds = round(time.time() - began)
            run.tell(step=run.step, loss=round(sum(losses) / len(losses), 3), tokens=tokens, seconds=seconds)
            losses = []
        if run.step in kept:
            scores = run.scores() if args.scored else {}
            run.export(args.work / "checkpoints" / f"{run.step:05d}", **scores)
            run.tell(step=run.step, kept=True, **scores)
        if run.step % 100 == 0 or run.step in kept:
            run.save()
    run.save()
    run.export(args.work / "trained", **(run.scores() if args.scored else {}))
    if run.step < args.steps:
        print(f"step {run.step} of {args.steps}: run this again to go on")


if __name__ == "__main__":
    main()
