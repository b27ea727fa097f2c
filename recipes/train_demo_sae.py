# %% [markdown]
# # How is the bundled SAE made?
#
# A BatchTopK sparse autoencoder on the residual stream of the bundled model, trained by sae-lens's own trainer on text
# and image tokens in equal parts, and saved as sae-lens saves it: a JumpReLU SAE, in float16.
#
#     python recipes/train_demo_sae.py                      layer 4, into the package; needs build/train/art.npz
#     python recipes/train_demo_sae.py --layer 6            another layer, beside it
#     python recipes/train_demo_sae.py --pictures bundled   without the training art: on the held-out pictures (worse)
#     python recipes/train_demo_sae.py --quick              a few steps into a temporary folder, nothing worth keeping
#
# The art is what the model was trained on: `python recipes/train_demo.py --only fetch render` makes it. Bundle the
# model first: an SAE belongs to the weights that it was trained on.

# %%
from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.io.pictures import as_tensors
from nnsight_dream.models import spans
from nnsight_dream.sae.responses import Responses, chance, responses, selective

sys.path.insert(0, str(Path(__file__).parent))

from demo_training import art, augment, text

QUICK = ["--quick"]
READINGS = {"strict": dict(margin=0.2), "same first": {}, "among five": dict(among=5)}


# %% [markdown]
# ## Text tokens
# Names, other names, descriptions and plain lines, each as a user's turn: its own tokens, and one of those that the
# template closes it with. BOS and the template's opening, the same before every text, are left out.


# %%
def lines(count: int, seed: int) -> list[str]:
    """`count` texts, one in three a name; in random order."""
    chance_ = random.Random(seed)
    sentences = [line for line in text.corpus(rounds=1, seed=seed) if line.strip()]
    names = [n for c in art.concepts() for n in (c.name, c.name, *c.aliases)]
    return [chance_.choice(names if chance_.random() < 1 / 3 else sentences) for _ in range(count)]


def text_tokens(vlm: nd.VLM, layer: int, count: int, seed: int) -> torch.Tensor:
    """At least `count` activations (n, d) of text tokens, float32, text by text."""
    site, chance_, parts, have = vlm.site(layer), random.Random(seed), [], 0
    for texts in (lines(512, seed + i) for i in range(10**6)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of characters that the miniature tokenizer does not know
            prompts = spans.wrap(vlm.tokenizer, texts)
        for batch in spans.batches(prompts):
            longest = max(len(p.ids) for p in batch)
            ids = torch.tensor([[*p.ids, *[0] * (longest - len(p.ids))] for p in batch])
            mask = torch.tensor([[1] * len(p.ids) + [0] * (longest - len(p.ids)) for p in batch])
            states = nd.read_text(vlm, ids, mask, [site])[site]
            for prompt, state in zip(batch, states, strict=True):
                closing = chance_.randrange(prompt.own[-1] + 1, len(prompt.ids))
                parts.append(state[[*prompt.own, closing]].float())
                have += len(parts[-1])
        if have >= count:
            break
    return torch.cat(parts)


# %% [markdown]
# ## Image tokens
# Random views of the art, as the model saw it in training: all 64 tokens of each.


# %%
def art_views(data: Path, side: int, seed: int) -> Iterator[torch.Tensor]:
    """Views (16, 3, side, side) of the art of the model's own artists, every concept equally often, without end."""
    with np.load(data) as z:
        pictures, style, concept = z["pictures"], z["style"], z["concept"]
    mine = np.flatnonzero(np.array([s.side == "model" for s in art.STYLES.values()])[style])
    source, label = augment.masters(pictures[mine], 80), torch.from_numpy(concept[mine])
    weight = 1.0 / torch.bincount(label).clamp(min=1)[label]
    generator = torch.Generator().manual_seed(seed)
    while True:
        here = torch.multinomial(weight, 16, replacement=True, generator=generator)
        yield augment.view(source[here], side, generator, **augment.UPRIGHT)


def bundled_views(side: int, seed: int) -> Iterator[torch.Tensor]:
    """The same of the bundled held-out pictures."""
    pictures = bundle.pictures()
    clear = []
    for picture in pictures:
        numbers = np.dstack([np.asarray(picture.image), np.asarray(picture.mask)])
        clear.append(numbers)
    source, generator = augment.masters(np.stack(clear), side), torch.Generator().manual_seed(seed)
    while True:
        here = torch.randint(len(source), (16,), generator=generator)
        yield augment.view(source[here], side, generator, **augment.UPRIGHT)


def image_tokens(vlm: nd.VLM, layer: int, views: Iterator[torch.Tensor], count: int) -> torch.Tensor:
    """At least `count` activations (n, d) of image tokens, float32, picture by picture."""
    site, parts, have = vlm.site(layer), [], 0
    while have < count:
        with torch.no_grad():
            parts.append(nd.read_pictures(vlm, next(views), [site])[site].float().flatten(0, 1))
        have += len(parts[-1])
    return torch.cat(parts)


def batches(tokens: dict[str, torch.Tensor], size: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches (size, d) without end, the modalities in equal parts; each is gone through in a new order every time."""
    generator = torch.Generator().manual_seed(seed)

    def one(rows: torch.Tensor, take: int) -> Iterator[torch.Tensor]:
        while True:
            order = torch.randperm(len(rows), generator=generator)
            yield from (rows[part] for part in order.split(take) if len(part) == take)

    parts = [one(rows, size // len(tokens)) for rows in tokens.values()]
    while True:
        yield torch.cat([next(part) for part in parts])


# %% [markdown]
# ## Training


# %%
def train(vlm: nd.VLM, tokens: dict[str, torch.Tensor], args: argparse.Namespace) -> Any:
    """sae-lens's trainer on these tokens; returns its training SAE."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    smallest = min(map(len, tokens.values()))
    if smallest < args.batch // 2:
        raise SystemExit(f"--tokens gave {smallest} of one modality, fewer than half of --batch {args.batch}")
    site = vlm.site(args.layer)
    metadata = SAEMetadata(
        model_name=vlm.id,
        model_class_name=type(vlm.hf).__name__,
        hook_name=site.tl_name,
        hf_hook_name=f"model.layers.{site.layer - 1}.output",  # the path in the text-only class, as others write it
        dataset_path="recipes/train_demo_sae.py: text and image tokens in equal parts",
        prepend_bos=True,
        exclude_special_tokens=[vlm.tokenizer.bos_token_id],
        weights_tag=vlm.weights_tag(site),
    )
    torch.manual_seed(args.seed)
    cfg = BatchTopKTrainingSAEConfig(
        d_in=vlm.width_at(site),
        d_sae=args.d_sae,
        k=args.k,
        device="cpu",
        normalize_activations="expected_average_only_in",
        apply_b_dec_to_input=True,
        topk_threshold_lr=0.02,
        metadata=metadata,
    )
    sae = BatchTopKTrainingSAE(cfg)
    with torch.no_grad():  # about the middle of what is told apart, in the trainer's scale
        mean = torch.stack([rows.mean(0) for rows in tokens.values()]).mean(0)
        norm = torch.stack([rows.norm(dim=1).mean() for rows in tokens.values()]).mean()
        sae.b_dec.copy_(mean * cfg.d_in**0.5 / norm)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=args.steps * args.batch,
            train_batch_size_samples=args.batch,
            lr=args.rate,
            lr_warm_up_steps=min(100, args.steps // 10),
            lr_decay_steps=args.steps // 3,
            lr_end=args.rate / 100,
            dead_feature_window=min(200, args.steps // 4),
            n_batches_for_norm_estimate=20,
        ),
        sae,
        batches(tokens, args.batch, args.seed),
    )
    return trainer.fit()


def save(sae: Any, folder: Path) -> Any:
    """Write the SAE in sae-lens's format, weights in float16; returns it as sae-lens reads it back, in float32."""
    from sae_lens import SAE
    from safetensors.torch import load_file, save_file

    weights, _ = sae.save_inference_model(folder)
    save_file({k: v.half().contiguous() for k, v in load_file(weights).items()}, weights)
    return SAE.load_from_disk(str(folder))


# %% [markdown]
# ## Scores
# FVU is the squared error of the reconstruction over the variance about the modality's own mean; L0 how many features
# fire for a token. Both on texts and views that were not trained on. A feature is dead if it fires for none of the
# tokens, training's or others'. Selectivity: see `nnsight_dream.sae.responses.selective`; pictures are the bundled ones.


# %%
def reconstruction(sae: Any, tokens: torch.Tensor) -> dict[str, float]:
    """FVU and L0 on tokens (n, d)."""
    error, spread, active = 0.0, 0.0, 0.0
    mean = tokens.mean(0)
    for part in tokens.split(4096):
        with torch.no_grad():
            acts = sae.encode(part)
            error += (sae.decode(acts) - part).square().sum().item()
        spread += (part - mean).square().sum().item()
        active += (acts > 0).sum().item()
    return {"fvu": error / spread, "l0": active / len(tokens)}


def firing(sae: Any, tokens: torch.Tensor) -> torch.Tensor:
    """(d_sae,) whether each feature fires for any of the tokens."""
    with torch.no_grad():
        return torch.stack([(sae.encode(part) > 0).any(0) for part in tokens.split(4096)]).any(0)


def known(vlm: nd.VLM, sae: Any, layer: int) -> Responses:
    """What the concepts' names and bundled pictures, on white, grey and black, make fire."""
    names = [c.name for c in bundle.concepts()]
    items = [p for ground in (1.0, 0.5, 0.0) for p in bundle.pictures(names, background=ground)]
    return responses(vlm, sae, layer, names, as_tensors([p.image for p in items], "pictures"), [p.name for p in items])


def scores(vlm: nd.VLM, sae: Any, layer: int, trained: dict[str, torch.Tensor], held: dict[str, torch.Tensor]) -> dict:
    """Everything that is reported of an SAE."""
    fires = {kind: firing(sae, torch.cat([trained[kind], held[kind]])) for kind in trained}
    activations = known(vlm, sae, layer)
    count: dict[str, Any] = {kind: reconstruction(sae, rows) for kind, rows in held.items()}
    count["features"] = len(fires["text"])
    count["dead"] = int((~(fires["text"] | fires["image"])).sum())
    count["fire for both"] = int((fires["text"] & fires["image"]).sum())
    count["selective"] = {}
    for name, reading in READINGS.items():
        kept = selective(activations, **reading)
        count["selective"][name] = {
            "features": len(kept),
            "concepts": len({s.concept for s in kept}),
            "by chance": round(chance(activations, **reading), 1),
        }
    return count


# %%
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Trains the bundled SAE with sae-lens.")
    parser.add_argument("--work", type=Path, default=Path("build/train"), help="where train_demo.py keeps art.npz")
    parser.add_argument("--layer", type=int, default=4, help="from 1")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=option_path, help="default: layerL in the package's data/sae")
    parser.add_argument("--pictures", choices=("art", "bundled"), default="art", help="what image tokens are views of")
    parser.add_argument("--tokens", type=int, default=120_000, help="of each modality; gone through again and again")
    parser.add_argument("--d-sae", type=int, default=2048, help="features")
    parser.add_argument("--k", type=float, default=16, help="features that fire for a token, on average")
    parser.add_argument("--batch", type=int, default=2048, help="tokens of a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--model", default="demo", help="'demo', or a folder with another checkpoint of it")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is; demo: cpu)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="30 steps on the bundled pictures, into a temporary folder"
    )
    args = parser.parse_args(arguments)
    if args.out is not None:
        check_folder(args.out, "--out")  # before any work
    torch.set_num_threads(args.threads)
    if args.quick:
        args.steps, args.tokens, args.d_sae, args.batch, args.pictures = 30, 3000, 256, 512, "bundled"
    out = args.out or bundle.folder() / "sae" / f"layer{args.layer}"
    with tempfile.TemporaryDirectory() as spare:
        return run(args, Path(spare) / "sae" if args.quick and args.out is None else out)


def run(args: argparse.Namespace, out: Path) -> int:
    """Collect, train, save, score."""
    began, data = time.time(), args.work / "art.npz"
    if args.pictures == "art" and not data.is_file():
        raise SystemExit(
            f"no training art in {data}: make it with `python recipes/train_demo.py --only fetch render --work "
            f"{args.work}`, name another folder with --work, or train on the held-out pictures with --pictures bundled"
        )
    vlm = nd.load(args.model, device=args.device)
    side = vlm.image_size[0]
    views = art_views(data, side, args.seed) if args.pictures == "art" else bundled_views(side, args.seed)
    tokens = {
        "text": text_tokens(vlm, args.layer, args.tokens, args.seed),
        "image": image_tokens(vlm, args.layer, views, args.tokens),
    }
    cut = {kind: len(rows) - max(64, len(rows) // 20) for kind, rows in tokens.items()}
    trained = {kind: rows[: cut[kind]] for kind, rows in tokens.items()}
    held = {kind: rows[cut[kind] :] for kind, rows in tokens.items()}
    print(f"{', '.join(f'{len(r)} {k} tokens' for k, r in tokens.items())}: {time.time() - began:.0f} s", flush=True)
    sae = save(train(vlm, trained, args), out)
    report = {"layer": args.layer, "steps": args.steps, **scores(vlm, sae, args.layer, trained, held)}
    (out / "scores.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))
    size = sum(f.stat().st_size for f in out.iterdir()) / 1e6
    print(f"{out}: {size:.2f} MB, {time.time() - began:.0f} s")
    return 0


# %%
if __name__ == "__main__":
    sys.exit(main())
