"""Draw the pictures of the README and of the pages on concepts with the bundled model: `make docs-pictures`.

Every panel is drawn, and saved as a small WebP beside this file; nothing is chosen after drawing but the twelve
animals at the top of the README, which are named here and stand among all fifty in `first.jpg`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import flow
from PIL import Image, ImageDraw, ImageFont

import nnsight_dream as nd
from nnsight_dream.demo import bundle

HERE = Path(__file__).parent
SIDE, GAP, TEXT = 128, 8, 22
BEST = ("fox", "bear", "frog", "flamingo", "camel", "panda", "dog", "fish", "lobster", "pig", "rabbit", "chick")

Panel = list[tuple[str, Image.Image]]


def sheet(panels: Sequence[tuple[str, Image.Image]], name: str, columns: int, side: int = SIDE) -> None:
    """One picture of captioned tiles, row by row."""
    rows = -(-len(panels) // columns)
    size = (columns * (side + GAP) - GAP, rows * (side + TEXT + GAP) - GAP)
    made, font = Image.new("RGB", size, "white"), ImageFont.load_default(13)
    draw = ImageDraw.Draw(made)
    for number, (caption, picture) in enumerate(panels):
        x, y = number % columns * (side + GAP), number // columns * (side + TEXT + GAP)
        draw.text((x + side / 2, y + TEXT / 2), caption, fill="black", font=font, anchor="mm")
        made.paste(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), (x, y + TEXT))
    made.save(HERE / f"{name}.webp", quality=82, method=6)


def drawn(vlm: nd.VLM, direction: nd.Direction, **changes: object) -> Image.Image:
    """The picture of a direction with the bundled model's settings, some of them changed."""
    picture = nd.synthesize(vlm, direction, settings=nd.Settings.demo().but(**changes), progress=False)
    assert isinstance(picture, nd.Prototype)
    return picture.image


def hero(vlm: nd.VLM) -> None:
    """Twelve animals at layer 1."""
    pictures = nd.synthesize(vlm, nd.concept(vlm, list(BEST), layer=1), progress=False)
    sheet(list(zip(BEST, pictures.images, strict=True)), "best", 6, 152)


def site(vlm: nd.VLM) -> None:
    """One word at every other layer, and inside a block."""
    layers = [1, 2, 4, 6, 8]
    pictures = nd.synthesize(vlm, nd.concept(vlm, ["fox", "flamingo"], layer=layers[0]), progress=False).images
    rows: list[Panel] = [[], []]
    for layer in layers:
        if layer > 1:
            pictures = nd.synthesize(vlm, nd.concept(vlm, ["fox", "flamingo"], layer=layer), progress=False).images
        for row, picture in zip(rows, pictures, strict=True):
            row.append((f"layer {layer}", picture))
    for place in ("attn_out", "mlp_out"):
        where = f"blocks.0.hook_{place}"
        pictures = nd.synthesize(vlm, nd.concept(vlm, ["fox", "flamingo"], layer=where), progress=False).images
        for row, picture in zip(rows, pictures, strict=True):
            row.append((f"1, {place}", picture))
    sheet([*rows[0], *rows[1]], "site", len(rows[0]))


def direction(vlm: nd.VLM) -> None:
    """The sources of a direction, and its arithmetic, for a fox and others."""
    fox, bear, panda = nd.concept(vlm, ["fox", "bear", "panda"], layer=1)
    shown = [p.image for p in bundle.pictures(["fox"])]
    panels: Panel = [
        ("a word: fox", drawn(vlm, fox)),
        ("no baseline", drawn(vlm, nd.concept(vlm, "fox", layer=1, baseline=None))),
        ("its picture", drawn(vlm, nd.from_images(vlm, shown, layer=1, minus=all_pictures()))),
        ("a contrast", drawn(vlm, nd.contrast(vlm, ["a fox"], ["a thing"], layer=1, tokens="all"))),
        ("fox + panda", drawn(vlm, fox.unit() + panda.unit())),
        ("fox - bear", drawn(vlm, fox.unit() - bear.unit())),
        ("- fox", drawn(vlm, -1 * fox)),
    ]
    sheet(panels, "direction", 7)


def all_pictures() -> list[Image.Image]:
    """The bundled pictures."""
    return [p.image for p in bundle.pictures()]


def centre(vlm: nd.VLM) -> None:
    """Three centres."""
    panels: Panel = []
    for word in ("fox", "flamingo"):
        vector = nd.concept(vlm, word, layer=1)
        panels += [
            ("real pictures", drawn(vlm, vector)),
            ("uniform grey", drawn(vlm, vector, centre=nd.Grey())),
            ("natural noise", drawn(vlm, vector, centre=nd.NaturalNoise())),
        ]
    sheet(panels, "centre", 6)


def pooling(vlm: nd.VLM) -> None:
    """Attention with several temperatures, the mean, the one best patch."""
    vector = nd.concept(vlm, "fox", layer=1)
    choices = {
        "attention 0.5": nd.Attention(tau=0.5),
        "attention 0.05": nd.Attention(tau=0.05),
        "attention 0.005": nd.Attention(tau=0.005),
        "mean": nd.Mean(),
        "max": nd.Max(),
    }
    sheet([(name, drawn(vlm, vector, pooling=value)) for name, value in choices.items()], "pooling", 5)


def canvas(vlm: nd.VLM) -> None:
    """Canvases at the rates that did best for each, and augmentations left out."""
    vector = nd.concept(vlm, "fox", layer=1)
    adam = {"optimiser": "adam"}
    panels: Panel = [
        ("pixels", drawn(vlm, vector)),
        ("multi-resolution", drawn(vlm, vector, canvas=nd.MultiResolution(32), rate=0.05, **adam)),
        ("Fourier", drawn(vlm, vector, canvas=nd.Fourier(32), rate=0.1, **adam)),
        ("MACO", drawn(vlm, vector, canvas=nd.MACO(32), rate=0.3, **adam)),
        ("pixels, 64", drawn(vlm, vector, canvas=nd.Pixels(64))),
        ("no shift", drawn(vlm, vector, augment=(nd.Noise(0.06),))),
        ("no noise", drawn(vlm, vector, augment=(nd.Shift(pixels=3),))),
    ]
    sheet(panels, "canvas", 7)


def prototype(vlm: nd.VLM) -> None:
    """A climb on its way, other seeds, the heat map, and another direction pushed away."""
    vector = nd.concept(vlm, "fox", layer=1)
    panels: Panel = [(f"{steps} steps", drawn(vlm, vector, steps=steps)) for steps in (5, 15, 30, 60)]
    done = nd.synthesize(vlm, vector, seed=[0, 1, 2], progress=False)
    panels += [("seed 1", done[1].image), ("seed 2", done[2].image), ("where it looks", done[0].heat_map(SIDE))]
    sheet(panels, "prototype", 7)


def how(vlm: nd.VLM) -> None:
    """The whole way, from a word to a picture, in one figure."""
    flow.draw(vlm, HERE / "how.webp")


SHEETS: dict[str, Callable[[nd.VLM], None]] = {
    f.__name__: f for f in (hero, how, site, direction, centre, pooling, canvas, prototype)
}


def main() -> None:
    """Draw the sheets named, or all of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("sheets", nargs="*", help=", ".join(SHEETS))
    names = parser.parse_args().sheets or list(SHEETS)
    vlm = nd.load("demo")
    for name in names:
        began = time.process_time()
        SHEETS[name](vlm)
        print(f"{name:<10} {time.process_time() - began:5.1f} s of processor", flush=True)


if __name__ == "__main__":
    main()
