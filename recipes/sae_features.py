# %% [markdown]
# # What do the features of a sparse autoencoder look like?
#
# Features are picked, drawn, and put on cards: prototypes of several seeds, on their way, and the opposite; where the
# feature fires; the words, pictures and tokens that go with it; its neighbours. A judge says whether the picture shows
# what the most activating word says, beside shuffled words and random directions. All in one page. It stops and goes on
# at any moment.
#
#     python recipes/sae_features.py                                  word-and-picture features of the bundled SAE
#     python recipes/sae_features.py --word octopus                   those most active on a word
#     python recipes/sae_features.py --picture photo.jpg              those that make a picture
#     python recipes/sae_features.py --features 17 1234               these
#     python recipes/sae_features.py --data FOLDER                    those most active on a folder of pictures
#     python recipes/sae_features.py --sae gemma-scope-2-4b-it-res --sae-id layer_17_width_16k_l0_medium \
#         --model google/gemma-3-4b-it --word octopus --judge openai
#     python recipes/sae_features.py --quick                          three features, few steps

# %%
from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import nnsight_dream as nd
from nnsight_dream.cards.card import Material
from nnsight_dream.cards.gallery import page, seen_by
from nnsight_dream.cards.judged import Judged, judge_features
from nnsight_dream.cards.make import Made, make_cards
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.io.pictures import ENDINGS, as_image, files
from nnsight_dream.judges.desk import JudgeStopped
from nnsight_dream.report import tables
from nnsight_dream.sae.encoding import site_of
from nnsight_dream.sae.releases import load_sae
from nnsight_dream.sae.responses import Responses, responses, selective
from nnsight_dream.synthesis.settings import choose

QUICK = ["--quick"]


# %% [markdown]
# ## The autoencoder
# The bundled one, a folder or a release. The quick version, where none is bundled, trains a tiny one for the occasion.


# %%
def autoencoder(args: argparse.Namespace, spare: Path) -> Any:
    """The sae-lens object asked for."""
    try:
        return load_sae(args.sae, args.sae_id)
    except FileNotFoundError:
        if not (args.quick and args.sae == "demo"):
            raise
    sys.path.insert(0, str(Path(__file__).parent))
    import train_demo_sae as training

    print("no autoencoder is bundled: a tiny one is trained for this run", flush=True)
    small = argparse.Namespace(layer=2, seed=0, d_sae=256, k=16, batch=256, steps=30, rate=1e-3)
    vlm = nd.load("demo")
    views = training.bundled_views(vlm.image_size[0], small.seed)
    tokens = {
        "text": training.text_tokens(vlm, small.layer, 1000, small.seed),
        "image": training.image_tokens(vlm, small.layer, views, 1000),
    }
    return training.save(training.train(vlm, tokens, small), spare / "sae")


# %% [markdown]
# ## Which features
# Several wishes add up. Word-and-picture features are those whose most activating word and most activating pictures
# name the same thing; where there are fewer than `--count`, those whose word is among the five best pictures follow.


# %%
def picked(
    vlm: nd.VLM, sae: Any, material: Material, args: argparse.Namespace
) -> tuple[dict[int, str], Responses | None]:
    """Numbers of features with why each was picked, and the responses of all if they had to be read."""
    reasons: dict[int, str] = {int(i): "asked for" for i in args.features or []}
    if args.word:
        for candidate in nd.candidates(vlm, sae, words=args.word, top=args.count):
            reasons.setdefault(candidate.index, f"active on the word {', '.join(args.word)}")
    for file in args.picture or []:
        for active in nd.features_of(vlm, sae, as_image(file), top=args.count):
            reasons.setdefault(active.index, f"active on {file.name}")
    if args.data:
        images = [as_image(f) for f in files(args.data)]
        if not images:
            raise SystemExit(f"--data {args.data}: no picture there ({', '.join(ENDINGS)} are looked for)")
        for candidate in nd.candidates(vlm, sae, images=images, top=args.count):
            reasons.setdefault(candidate.index, f"active on the pictures of {args.data}")
    if args.bundled:
        for candidate in nd.candidates(vlm, sae, images=list(material.pictures), top=args.count):
            reasons.setdefault(candidate.index, "active on the bundled pictures")
    activations = None
    if args.both or not reasons:
        activations = responses(vlm, sae, site_of(vlm, sae), material.words, material.pictures, material.names)
        both = {s.feature: s.concept for reading in ({}, {"among": 5}) for s in selective(activations, **reading)}
        for index, concept in list(both.items())[: args.count]:
            reasons.setdefault(index, f"fires for the word and pictures of {concept}")
        if not both:
            print("no feature fires for word and picture alike")
    if not reasons:  # an autoencoder too small for that
        assert activations is not None
        best = activations.by_picture.amax(0).topk(min(args.count, len(activations.features)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        reasons = {i: "active on the pictures" for i, value in pairs if value > 0}
    if not reasons:
        raise SystemExit("no feature fires for any of these; give --features")
    return reasons, activations


# %% [markdown]
# ## Cards, the judge, and the page


# %%
def examiner(args: argparse.Namespace, material: Material) -> Any:
    if args.judge == "none":
        return None
    if args.judge == "demo":
        return nd.DemoExaminer()
    if args.judge == "openai":
        return nd.OpenAIJudge(base_url=args.base_url, max_cost=args.max_cost)
    return nd.ZeroShotJudge(args.judge, names=list(material.categories.items()), device=args.device)


def results(
    vlm: nd.VLM,
    sae: Any,
    result: Made,
    judged: Judged | None,
    material: Material,
    why: dict[int, str],
    labels: dict[int, str],
    args: argparse.Namespace,
) -> None:
    """Write the tables and the page."""
    images, names = [as_image(f) for f in args.picture or []], [f.name for f in args.picture or []]
    if not images:  # pictures that these features know
        examples = list(dict.fromkeys(name for card in result.cards for name, _ in card.shown[:1]))[:8]
        images, names = [material.pictures[material.names.index(n)] for n in examples], examples
    seen = seen_by(vlm, sae, images, names)
    for p in seen:
        print(f"{p.name}: {', '.join(f'{f.index} ({f.max:.2f})' for f in p.features[:5]) or 'no feature fires'}")
    rows = [
        dict(feature=c.index, word=c.label, activation=round(c.prototype().readings["act_max"], 3),
             highest_on_real_pictures=round(c.most_real, 3), picked=why.get(c.index, ""))
        for c in result.cards
    ]  # fmt: skip
    tables.write_csv(rows, args.folder / "features.csv")
    if judged:
        tables.write_csv(judged.rows, args.folder / "rates.csv")
        text = tables.to_markdown(judged.rows)
        (args.folder / "rates.md").write_text(text + "\n", encoding="utf-8")
        print(f"\nDoes the judge name what the most activating word says?\n\n{text}\n")
    index = page(
        result.cards,
        args.folder / "index.html",
        pictures=seen,
        verdicts=judged.verdicts if judged else None,
        rates=judged.rows if judged else (),
        labels=labels,
        title=f"Features of {args.sae if args.sae != 'demo' else 'the bundled autoencoder'}",
    )
    print(index)


# %%
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Feature cards of a sparse autoencoder, judged, in one page.")
    parser.add_argument("--sae", default="demo", help="'demo' (the bundled one), a folder or a release of sae-lens")
    parser.add_argument("--sae-id", help="the SAE's id in a release; of the bundled ones a layer")
    parser.add_argument("--model", default="demo", help="'demo', a hub id or a folder")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is; demo: cpu)")
    parser.add_argument("--features", type=int, nargs="+", metavar="N", help="these features")
    parser.add_argument("--word", nargs="+", help="the features most active on these words")
    parser.add_argument("--picture", type=Path, nargs="+", metavar="FILE", help="the features that make these pictures")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the features most active on a folder of pictures")
    parser.add_argument("--bundled", action="store_true", help="the features most active on the bundled pictures")
    parser.add_argument("--both", action="store_true", help="word-and-picture features (the default)")
    parser.add_argument("--count", type=int, default=50, help="how many for each wish")
    parser.add_argument("--show", type=Path, metavar="FOLDER", help="pictures on the cards, for the bundled ones")
    parser.add_argument(
        "--reference", type=Path, metavar="FOLDER", help="real pictures by which norms are measured, for bundled emoji"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="a prototype for each")
    parser.add_argument("--strengths", type=float, nargs="*", default=[0.25, 0.5], help="more, after a share of steps")
    parser.add_argument("--objective", choices=("encoder", "decoder"), default="encoder", help="what is climbed")
    parser.add_argument("--steps", type=int, help="of each climb (default: the preset's)")
    parser.add_argument("--judge", default="demo", help="demo, openai, none, or a CLIP / SigLIP checkpoint")
    parser.add_argument("--base-url", help="of an OpenAI-compatible server")
    parser.add_argument("--max-cost", type=float, help="dollars after which the OpenAI judge stops")
    parser.add_argument("--folder", type=option_path, default=Path("sae-features"), help="goes on where it stopped")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--quick", action="store_true", help="three features, few steps")
    args = parser.parse_args(arguments)
    check_folder(args.folder, "--folder")  # before any work
    if args.count < 1:
        parser.error(f"--count {args.count}: at least 1 is needed")
    for file in args.picture or []:
        if not file.is_file():
            parser.error(f"--picture {file}: there is no such file")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.count, args.seeds, args.strengths, args.steps = 3, args.seeds[:1], [0.5], args.steps or 8
    with tempfile.TemporaryDirectory() as spare:
        sae = autoencoder(args, Path(spare))
    return run(sae, args)


def run(sae: Any, args: argparse.Namespace) -> int:
    vlm = nd.load(args.model, device=args.device)
    site = site_of(vlm, sae)
    material = Material.of_folder(args.show) if args.show else Material.bundled()
    if args.quick and not args.show:
        names = material.names[::8]
        material = Material(names, material.pictures[::8], names, material.categories)
    settings = choose(vlm, site.layer)
    settings = settings.but(steps=args.steps or settings.steps)
    why, firing = picked(vlm, sae, material, args)
    print(f"{len(why)} features at {vlm.describe(site)}", flush=True)
    result = make_cards(
        vlm, sae, list(why), args.folder, material=material, responses=firing, seeds=args.seeds, strengths=args.strengths,
        objective=args.objective, settings=settings, reference=args.reference, progress=True,
    )  # fmt: skip
    print(result, file=sys.stderr)
    for index, error in result.failed.items():
        print(f"feature {index}: {error}", file=sys.stderr)
    if result.interrupted or not result.cards:
        return 130 if result.interrupted else 1
    judge, judged, failed = examiner(args, material), None, bool(result.failed)
    try:
        judged = judge and judge_features(
            vlm, sae, result.cards, args.folder / "judged", judge, material=material, settings=settings,
            reference=args.reference, progress=True,
        )  # fmt: skip
    except JudgeStopped as stop:
        print(f"judge {judge.name} stopped: {stop}", file=sys.stderr)
        failed = True
    except KeyboardInterrupt:
        return 130
    first = {i: firing.top_words(i, 1) for i in firing.features} if firing else {}
    labels = {i: words[0][0] for i, words in first.items() if words}
    results(vlm, sae, result, judged, material, why, labels, args)
    return int(failed)


# %%
if __name__ == "__main__":
    sys.exit(main())
