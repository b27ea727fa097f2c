# %% [markdown]
# # Every feature at a glance
#
# The pictures of all live features of a sparse autoencoder (or of a layer's concept vectors) in one map: near in the
# map is near in decoder row. It is a folder that opens from disk: zoom, search by word or number, colour by firing rate,
# modality or the judge's verdict, brush a region for its common words, click for details. It stops and goes on at any
# moment.
#
#     python recipes/atlas.py                                   all live features of the bundled SAE
#     python recipes/atlas.py --most 200 --draft                fewer and rougher
#     python recipes/atlas.py --layer 4                         the concept vectors of all bundled words at layer 4
#     python recipes/atlas.py --sae gemma-scope-2-4b-it-res --sae-id layer_17_width_16k_l0_medium \
#         --model google/gemma-3-4b-it --pictures FOLDER --workers 8
#     python recipes/atlas.py --quick                           nine features, two steps

# %%
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nnsight_dream as nd
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.synthesis.settings import changed

QUICK = ["--quick"]


# %%
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A map of the pictures of features or concept vectors.")
    parser.add_argument("--sae", default="demo", help="'demo' (the bundled one), a folder or a release of sae-lens")
    parser.add_argument("--sae-id", help="the SAE's id in a release")
    parser.add_argument("--model", default="demo", help="'demo', a hub id or a folder")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is; demo: cpu)")
    parser.add_argument("--layer", type=int, help="concept vectors of this layer, in place of features")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="real pictures that features are read on")
    parser.add_argument("--most", type=int, help="so many pictures at most, evenly spread")
    parser.add_argument("--steps", type=int, help="of each climb (default: the preset's)")
    parser.add_argument("--draft", action="store_true", help="fewer steps and views: rougher pictures, sooner")
    parser.add_argument("--tile", type=int, default=64, help="pixels a side of a picture in the map")
    parser.add_argument("--cards", type=Path, metavar="FOLDER", help="of recipes/sae_features.py: a click leads there")
    parser.add_argument("--no-judge", action="store_true", help="of features: no verdicts of the bundled judge")
    parser.add_argument("--workers", type=int, help="spread over so many Ray workers, each with a model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=option_path, default=Path("atlas"), help="goes on where it stopped")
    parser.add_argument("--quick", action="store_true", help="nine pictures, two steps")
    args = parser.parse_args(arguments)
    check_folder(args.folder, "--folder")  # before any work
    if args.quick:
        args.most, args.steps = args.most or 9, args.steps or 2
    vlm = nd.load(args.model, device=args.device)
    settings = changed(vlm, steps=args.steps, quality="draft" if args.draft else None)
    ray = nd.sweeps.Cluster(args.model, args.workers) if args.workers else None
    how = dict(settings=settings, seed=args.seed, tile=args.tile, ray=ray)
    if args.layer:
        words = [c.name for c in bundle.concepts()]
        few = words if args.most is None else words[:: max(1, len(words) // args.most)][: args.most]
        result = nd.make_atlas(
            vlm, nd.concept(vlm, few, args.layer), args.folder, title=f"Words at layer {args.layer}", **how
        )
    else:
        material = nd.Material.of_folder(args.pictures) if args.pictures else nd.Material.bundled()
        judge = None if args.no_judge else nd.DemoExaminer()
        result = nd.atlas_of_sae(
            vlm, args.sae, args.folder, sae_id=args.sae_id, most=args.most, material=material, reference=args.pictures,
            judge=judge, cards=args.cards, title=f"Features of {args.sae}", **how,
        )  # fmt: skip
    for label, error in result.failed:
        print(f"{label}: {error}", file=sys.stderr)
    print(result)
    return int(bool(result.failed))


# %%
if __name__ == "__main__":
    sys.exit(main())
