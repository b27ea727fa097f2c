"""How it works, in one figure: an ascent of the bundled model with its own pictures at every station."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import nnsight_dream as nd

SIZE = (1600, 860)
INK, SOFT, LINE, BLUE, ORANGE = "#1c1c1e", "#5e5e63", "#8a8a8f", "#0072b2", "#b34700"

SOURCES = ('a word: "fox"', "pictures", "a probe, a tensor", "a steering vector", "a feature of an SAE")


class Board:
    """A sheet that boxes, pictures and arrows are put on."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", SIZE, "white")
        self.pen = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: int = 19, fill: str = INK, anchor: str = "mm") -> None:
        self.pen.multiline_text(
            (x, y), text, fill=fill, font=ImageFont.load_default(size), anchor=anchor, align="center"
        )

    def box(self, x: int, y: int, w: int, h: int, text: str, fill: str = "#f2f5f9", edge: str = LINE) -> None:
        self.pen.rounded_rectangle((x, y, x + w, y + h), 12, fill=fill, outline=edge, width=2)
        self.text(x + w / 2, y + h / 2, text)

    def picture(self, x: int, y: int, side: int, image: Image.Image, caption: str = "", size: int = 17) -> None:
        self.image.paste(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), (x, y))
        if caption:
            self.text(x + side / 2, y + side + 16, caption, size, SOFT)

    def arrow(self, *points: tuple[float, float], fill: str = INK, width: int = 4) -> None:
        self.pen.line(points, fill=fill, width=width, joint="curve")
        (x0, y0), (x, y) = points[-2:]
        turn = math.atan2(y - y0, x - x0)
        tips = [(x - 16 * math.cos(turn + s), y - 16 * math.sin(turn + s)) for s in (-0.45, 0.45)]
        self.pen.polygon([(x, y), *tips], fill=fill)


def views_of(picture: Image.Image, settings: nd.Settings, count: int = 4) -> list[Image.Image]:
    """The picture as the model is shown it: shifted, with noise."""
    import numpy as np

    tensor = torch.tensor(np.asarray(picture), dtype=torch.float32).permute(2, 0, 1)[None] / 255
    views = tensor.repeat_interleave(count, 0)
    generators = [torch.Generator().manual_seed(0)]
    for change in settings.augment:
        views = change(views, generators, count)
    pixels = (views.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(view) for view in pixels]


def grid_of(prototype: nd.Prototype, side: int) -> Image.Image:
    """Weights of the patches as squares."""
    part = prototype.heat / prototype.heat.max()
    small = Image.new("RGB", part.shape[::-1])
    small.putdata([tuple(round(255 - v * (255 - c)) for c in (0, 114, 178)) for v in part.reshape(-1).tolist()])
    return small.resize((side, side), Image.Resampling.NEAREST)


def history(board: Board, prototype: nd.Prototype, x: int, y: int, w: int, h: int) -> None:
    """The score by step as a line in a frame."""
    low, high = min(prototype.history), max(prototype.history)
    last = max(1, len(prototype.history) - 1)
    points = [
        (x + 10 + (w - 20) * i / last, y + h - 10 - (h - 20) * (v - low) / max(1e-9, high - low))
        for i, v in enumerate(prototype.history)
    ]
    board.pen.rounded_rectangle((x, y, x + w, y + h), 8, outline=LINE, width=2)
    board.pen.line(points, fill=BLUE, width=4, joint="curve")
    board.text(x + w / 2, y + h + 16, "score by step", 17, SOFT)


def draw(vlm: nd.VLM, path: Path) -> None:
    """Write the figure."""
    layer, board, settings = 1, Board(), nd.Settings.demo()
    made = nd.synthesize(vlm, nd.concept(vlm, "fox", layer=layer), settings=settings, film=6, progress=False)
    assert made.film is not None
    # what is asked for
    for n, name in enumerate(
        ('a word: "fox"', "pictures", "a probe, a tensor", "a steering vector", "a feature of an SAE")
    ):
        board.box(30 + 232 * n, 24, 216, 56, name)
        board.arrow((138 + 232 * n, 80), (138 + 232 * n, 112), fill=LINE, width=3)
    board.pen.line((138, 112, 138 + 232 * 4, 112), fill=LINE, width=3)
    board.arrow((1066, 112), (1300, 112), (1300, 150), fill=ORANGE)
    board.box(1190, 152, 380, 84, "direction d at a site:\nlayer, tokens", "#fdf1e3", ORANGE)
    # the loop
    middle = made.film.frames[2]
    board.picture(40, 290, 190, middle, "canvas: the picture so far")
    board.arrow((240, 385), (296, 385))
    for n, view in enumerate(views_of(middle, settings)):
        board.picture(306 + 96 * (n % 2), 290 + 96 * (n // 2), 90, view)
    board.text(400, 496, "views: shifted, with noise", 17, SOFT)
    board.arrow((502, 385), (556, 385))
    board.box(566, 280, 300, 210, "")
    board.text(716, 304, "model, through nnsight", 18, SOFT)
    board.box(586, 326, 260, 40, "vision tower")
    board.box(586, 374, 260, 40, "layers up to the site", "#dcebf7", BLUE)
    board.box(586, 436, 260, 40, "layers after it: not run", "#ffffff", "#c8c8cc")
    board.pen.line((580, 425, 852, 425), fill=ORANGE, width=3)
    board.arrow((866, 394), (936, 394))
    board.picture(946, 290, 190, grid_of(made, 190), "image tokens, weighed")
    board.pen.rectangle((946, 290, 1136, 480), outline=LINE, width=2)
    board.arrow((1146, 385), (1202, 385))
    board.box(1212, 320, 340, 130, "score: cosine of each\nimage token with d, pooled", "#fdf1e3", ORANGE)
    board.arrow((1380, 236), (1380, 320), fill=ORANGE)
    board.arrow((1380, 450), (1380, 552), (135, 552), (135, 516), fill=BLUE, width=5)
    board.text(
        760,
        574,
        "gradient of the score, back to the picture's pixels alone: the optimiser's step, again and again",
        19,
        BLUE,
    )
    # what comes of it
    for n, (frame, caption) in enumerate(zip(made.film.frames, made.film.captions, strict=True)):
        board.picture(40 + 158 * n, 630, 146, frame, caption)
    history(board, made, 1000, 630, 180, 146)
    board.picture(1196, 630, 146, made.heat_map(146), "where it looks")
    board.arrow((1350, 703), (1390, 703))
    board.box(1398, 630, 180, 146, "sweeps\njudges\npages, cards\natlas")
    board.text(
        800, 836, "every picture here is from one ascent of the bundled model: the word fox at layer 1", 17, SOFT
    )
    board.image.save(path, quality=85, method=6)
