# %% [markdown]
# # Which centre, which temperature, which type?
#
# Three choices hang on a model's activations, not on the direction. By layer, with bundled pictures by an artist whom no
# bundled model saw:
#
# - **Centre.** What all pictures share is taken off before patches are compared. How much of a mean patch is common to all
#   pictures, and how well a word tells its own picture from others (area under the curve, 0.5 is chance), with the grey
#   picture of the paper, natural noise, and pictures.
# - **Temperature.** Attention over patches is a softmax of cosine / tau. How far patches' cosines spread, and on how many
#   patches it rests (the exponential of its entropy): all of them, some, or one?
# - **Type.** What half types leave of patches, of the score's gradient and of attention, against float32.
#
#     python recipes/centres_and_temperatures.py                          the bundled model
#     python recipes/centres_and_temperatures.py --model gemma-270m
#     python recipes/centres_and_temperatures.py --quick                  two layers, few pictures
#
# Results: centres.csv, temperatures.csv, types.csv and centres-and-temperatures.png.

# %%
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import nnsight_dream as nd
from nnsight_dream.alignment import cosines as alignment
from nnsight_dream.checkup import numerics
from nnsight_dream.checkup.material import Material
from nnsight_dream.demo import bundle
from nnsight_dream.io.files import check_folder, option_path
from nnsight_dream.io.pictures import as_tensors
from nnsight_dream.report import tables
from nnsight_dream.report.figures import draw_panels, label_axis, saved
from nnsight_dream.synthesis.centres import centre

QUICK = ["--quick"]
TAUS = (0.5, 0.05, 0.005)
COMPARED = ("patches", "word", "gradient", "gradient_small", "weights", "score", "norm")


# %% [markdown]
# ## Centres


# %%
def centres(vlm: nd.VLM, names: list[str], layers: list[int], middles: dict[str, Any]) -> list[dict[str, Any]]:
    """By centre and layer: `alignment.diagnosis` of all words with one picture of each, and with white noise."""
    pictures: dict[str, Any] = {p.name: [p.image] for p in bundle.pictures(names)}
    pictures[alignment.NOISE] = alignment.white_noise(16, vlm.image_size[0])
    keep = ("layer", "matching", "mismatching", "auc", "p", "common", "largest", "sinks")
    return [
        {"centre": name} | {k: row[k] for k in keep}
        for name, middle in middles.items()
        for row in alignment.diagnosis(alignment.similarities(vlm, pictures, layers, middle=middle))
    ]


# %% [markdown]
# ## Temperatures


# %%
def temperatures(vlm: nd.VLM, names: list[str], layers: list[int], middle: Any) -> list[dict[str, Any]]:
    """By layer, over words with their own pictures: spread of patches' cosines, and on how many patches attention rests."""
    pictures = torch.cat(as_tensors([p.image for p in bundle.pictures(names)], "pictures"))
    words, rows = nd.concept(vlm, names, layers), []
    with torch.no_grad():
        read = nd.read_pictures(vlm, pictures.to(vlm.device), [vlm.site(layer) for layer in layers])
    for i, layer in enumerate(layers):
        site = vlm.site(layer)
        patches = read[site].float() - centre(vlm, site, middle)
        towards = torch.stack([of[i].vector for of in words]).to(patches)
        likeness = torch.cosine_similarity(patches, towards[:, None], dim=-1)
        row: dict[str, Any] = dict(layer=layer, patches=patches.shape[1], cosine=float(likeness.mean()))
        row |= dict(spread=float(likeness.std(1).mean()), best=float(likeness.amax(1).mean()))
        for tau in TAUS:
            weights = nd.Attention(tau)(patches, towards, vlm.grid, 1.0)[1]
            row[f"rests on, tau {tau}"] = float((-weights * weights.clamp(min=1e-30).log()).sum(1).exp().mean())
        rows.append(row)
    return rows


# %% [markdown]
# ## Types


# %%
def types(vlm: nd.VLM, layers: list[int], kinds: tuple[torch.dtype, ...]) -> list[dict[str, Any]]:
    """By type and layer, against the model in float32: see `checkup.numerics.compared`."""
    exact = vlm if vlm.dtype == torch.float32 else numerics.twin(vlm, torch.float32, vlm.device)
    rows = []
    for kind in kinds:
        other = numerics.twin(exact, kind, vlm.device)
        material = Material(exact, quick=True, asked=tuple(layers))
        for layer in layers:
            row: dict[str, Any] = {"type": str(kind)[6:], "layer": layer}
            try:
                row |= numerics.compared(material, other, exact, layer) | {"note": ""}
            except ValueError as error:  # activations beyond the type's largest number
                row |= dict.fromkeys(COMPARED) | {"note": str(error).split(";")[0]}
            rows.append(row)
        del other
    return rows


# %% [markdown]
# ## All of it


# %%
def figure(of_centres: list[dict[str, Any]], of_temperatures: list[dict[str, Any]], path: Path) -> None:
    """Three panels over layers: how well words are told apart, what is common, and how many patches attention rests on."""
    drawn, axes = draw_panels(3, 3, sharey=False)
    for axis, column, title in zip(
        axes, ("auc", "common"), ("right pair wins", "common to all pictures"), strict=False
    ):
        for name in dict.fromkeys(row["centre"] for row in of_centres):
            mine = [row for row in of_centres if row["centre"] == name]
            axis.plot([r["layer"] for r in mine], [r[column] for r in mine], marker="o", markersize=3, label=name)
        label_axis(axis, title)
    axes[0].axhline(0.5, color="grey", linestyle="--", linewidth=1)
    for tau in TAUS:
        xs, ys = [r["layer"] for r in of_temperatures], [r[f"rests on, tau {tau}"] for r in of_temperatures]
        axes[2].plot(xs, ys, marker="o", markersize=3, label=f"tau {tau}")
    label_axis(axes[2], f"patches attended to, of {of_temperatures[0]['patches']}")
    saved(drawn, path)


# %%
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a model's activations ask for: centre, temperature, type.")
    parser.add_argument("--model", default="demo", help="'demo', 'gemma-270m', a hub id or a folder")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is; demo: cpu)")
    parser.add_argument("--layers", type=int, nargs="+", help="from 1; all by default")
    parser.add_argument("--words", type=int, default=120, help="how many words and pictures are compared")
    parser.add_argument("--types", nargs="*", default=["bfloat16", "float16"], help="against float32; none: left out")
    parser.add_argument("--folder", type=option_path, default=Path("centres-and-temperatures"), help="where results go")
    parser.add_argument("--quick", action="store_true", help="24 words, two layers, bfloat16 alone")
    args = parser.parse_args(arguments)
    check_folder(args.folder, "--folder")  # before any work
    args.folder.mkdir(parents=True, exist_ok=True)
    vlm = nd.load(args.model, device=args.device)
    layers = args.layers or ([1, vlm.layers] if args.quick else list(range(1, vlm.layers + 1)))
    every = [c.name for c in bundle.concepts()]
    count = min(24 if args.quick else args.words, len(every) // 2)
    names, others = (every[half :: max(2, len(every) // count)][:count] for half in (0, 1))
    pictures = nd.Pictures([p.image for p in bundle.pictures(others)])  # of other things than are compared
    middles = {"grey": nd.Grey(), "natural noise": nd.NaturalNoise(), "pictures": pictures}
    kinds = tuple(getattr(torch, name) for name in (args.types[:1] if args.quick else args.types))

    results = {
        "centres": centres(vlm, names, layers, middles),
        "temperatures": temperatures(vlm, names[:48], layers, pictures),
    }
    if kinds:
        results["types"] = types(vlm, layers, kinds)
    for name, rows in results.items():
        tables.write_csv(rows, args.folder / f"{name}.csv")
        print(f"\n{name}\n{tables.to_markdown(rows)}")
    figure(results["centres"], results["temperatures"], args.folder / "centres-and-temperatures.png")
    print(f"\nresults are in {args.folder}")
    return 0


# %%
if __name__ == "__main__":
    sys.exit(main())
