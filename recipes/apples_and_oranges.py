# %% [markdown]
# # Comparing apples and oranges
#
# Appendices A and D of arXiv 2601.08017: the cosine of the vectors of "apple" and "orange" with pictures of apples, of
# oranges and of white noise, by layer, as the mean over patches and as their maximum, with a permutation test. Then the
# same for every word at once, and what it says about where pictures can be climbed to ("middle-layer collapse").
#
#     python recipes/apples_and_oranges.py                                  bundled model and pictures
#     python recipes/apples_and_oranges.py --model google/gemma-3-4b-it --pictures FOLDER
#
# FOLDER holds one folder of pictures for each word: FOLDER/apple/*.jpg, FOLDER/orange/*.png ...

# %%
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

import nnsight_dream as nd
from nnsight_dream.alignment import cosines as alignment
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.io.pictures import ENDINGS, as_image, files
from nnsight_dream.report import figures, tables

QUICK = ["--quick"]


# %% [markdown]
# ## Pictures


# %%
def from_folder(folder: Path) -> dict[str, list[Image.Image]]:
    """Pictures by the name of the folder they are in."""
    pictures: dict[str, list[Image.Image]] = {}
    for path in files(folder, deep=True):
        if path.parent.parent == folder:
            pictures.setdefault(path.parent.name, []).append(as_image(path, path.name))
    if len(pictures) < 2:
        raise SystemExit(
            f"{folder}: at least two folders with pictures ({', '.join(ENDINGS)}) are needed, one per word"
        )
    return pictures


def bundled(words: list[str]) -> dict[str, list[Image.Image]]:
    """The bundled picture of each word, by an artist the model never saw, on five grounds."""
    grounds = [bundle.pictures(words, background=g) for g in (1.0, 0.75, 0.5, 0.25, 0.0)]
    return {word: [g[i].image for g in grounds] for i, word in enumerate(words)}


# %%
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Cosines of words with pictures, by layer.")
    parser.add_argument("--model", default="demo", help="'demo', a hub id or a folder")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is; demo: cpu)")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="one folder of pictures for each word")
    parser.add_argument("--words", nargs=2, default=["apple", "orange"], help="the two to compare")
    parser.add_argument("--layers", type=int, nargs="+", help="from 1; all by default")
    parser.add_argument("--noise", type=int, default=100, help="pictures of white noise")
    parser.add_argument("--seed", type=int, default=0, help="of the noise and of the permutations")
    parser.add_argument("--folder", type=option_path, default=Path("apples-and-oranges"), help="where results go")
    parser.add_argument("--quick", action="store_true", help="few pictures, two layers")
    args = parser.parse_args(arguments)
    check_folder(args.folder, "--folder")  # before any work
    args.folder.mkdir(parents=True, exist_ok=True)
    vlm = nd.load(args.model, device=args.device)
    layers = args.layers or ([1, vlm.layers] if args.quick else None)
    noise = alignment.white_noise(8 if args.quick else args.noise, vlm.image_size[0], args.seed)

    # two words, as in the paper
    if args.pictures:
        everything = from_folder(args.pictures)
        if missing := [w for w in args.words if w not in everything]:
            raise SystemExit(f"--words {' '.join(missing)}: {args.pictures} has folders {', '.join(everything)}")
    else:
        names = [c.name for c in bundle.concepts()]
        if missing := [w for w in args.words if w not in names]:
            raise SystemExit(
                f"--words {' '.join(missing)}: no bundled picture; `nnsight-dream concepts` lists them all"
            )
        everything = bundled(names[:: 40 if args.quick else 1])
        everything |= bundled(args.words)
    two = alignment.similarities(vlm, {w: everything[w] for w in args.words} | {alignment.NOISE: noise}, layers)
    for which in ("mean", "maximum"):
        rows = alignment.separation(two, which, seed=args.seed)
        tables.write_csv(rows, args.folder / f"two-words-{which}.csv")
        figures.curves(alignment.curves(two, which), args.folder / f"two-words-{which}")
        print(f"\n{' and '.join(args.words)}, {which} over patches\n{tables.to_markdown(rows)}")

    # every word, and what it predicts
    many = alignment.similarities(vlm, everything | {alignment.NOISE: noise}, layers)
    rows = alignment.diagnosis(many, seed=args.seed)
    tables.write_csv(rows, args.folder / "diagnosis.csv")
    print(f"\nall {len(everything)} words, mean over patches\n{tables.to_markdown(rows)}")
    figures.curves(alignment.curves(many, "mean"), args.folder / "all-words-mean")
    print(f"\nresults are in {args.folder}")
    return 0


# %%
if __name__ == "__main__":
    sys.exit(main())
