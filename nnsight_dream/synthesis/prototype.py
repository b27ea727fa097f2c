"""Prototypes: a picture of a direction, with everything that made it and everything measured on it."""

from __future__ import annotations

import html
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .. import arguments
from ..io import files, records
from ..io.files import write_whole
from ..models.sites import Site
from .blocks import Blocks, enlarged, image_tag, link_tag, picture_row, reading_rows, to_png
from .film import Film, slider
from .reach import Reach

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..models.vlm import VLM
    from .patches import Patches


RECORD, PICTURE, HEAT, LARGE = "prototype.json", "prototype.png", "heat.png", "large.png"


FILM = "film.png"  # all frames one below the other


LARGE_SIDE = 256  # pixels


def heat_map(weights: np.ndarray, site: Site, grid: tuple[int, int]) -> np.ndarray:
    """Weights (n,) of a site's tokens as a map (rows, cols), zero at others."""
    if site.tokens != "image":
        full = np.zeros(grid[0] * grid[1], dtype=weights.dtype)
        np.add.at(full, np.asarray(site.tokens, dtype=int), weights)  # a token may stand twice
        weights = full
    return weights.reshape(grid)


@dataclass(frozen=True, eq=False, repr=False)
class Prototype:
    """The picture that an ascent towards a direction ended at.

    image     PIL image, RGB
    label     the direction's label; `direction` is its story (how it was made)
    history   score at each step, on augmented views
    scores    score of the finished 8-bit picture by pooling ("attention", "mean", "max"), no augmentation; of a feature
              the mean over image tokens by objective ("encoder", "decoder"), without guard
    heat      (rows, cols) patch weights on the finished picture, sum 1
    readings  of a feature: how it reads the finished picture, see `engine.measure`; None for a direction
    settings  plain data: every choice of the run
    interrupted   True if the run was stopped before its last step
    image_size    (height, width) in pixels at which the model saw the picture; None in records that do not tell
    straight_through   the temperature of a surrogate gradient, None where the gradient was the model's own
    film      pictures on the way, where they were asked for: see `synthesize`
    reach     its score beside the best real picture's, once `nd.reach` has measured it
    """

    image: Image.Image
    label: str
    site: Site
    hf_name: str
    history: tuple[float, ...]
    scores: Mapping[str, float]
    heat: np.ndarray
    settings: Mapping[str, Any]
    seed: int
    model: str
    revision: str | None = None
    direction: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    interrupted: bool = False
    readings: Mapping[str, Any] | None = None
    image_size: tuple[int, int] | None = None
    straight_through: float | None = None
    film: Film | Any = None  # None where none was asked for; `Any` spares a check where `film=True` stands beside it
    reach: Reach | None = None

    @property
    def images(self) -> list[Image.Image]:
        """The picture in a list, as a `Prototypes` has several."""
        return [self.image]

    def __repr__(self) -> str:
        scores = ", ".join(f"{k} {v:.3f}" for k, v in self.scores.items())
        more = f"seed {self.seed}" + (f", stopped after {len(self.history)} steps" if self.interrupted else "")
        return f"Prototype({arguments.brief(self.label)!r} at {self.site} = {self.hf_name}; {scores}; {more})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.image, dtype=dtype)

    def patches(self, vlm: VLM, towards: Any = None, *, centre: Any = None) -> Patches:
        """Activations and scores of its image tokens, see `Patches`: "heat" and "norm", and what `towards` adds.

        A Direction adds "cosine" and "projection", less `centre`, the run's own; a Feature "pre", "act" and "cosine".
        Raises ValueError for another model or site and where the centre must be given, TypeError for no direction.
        """
        from .patches import patches

        return patches(self, vlm, towards, centre)

    def scores_in_words(self) -> dict[str, str]:
        """Its scores in words; of the bundled model's concepts each with what a real picture of it scores."""
        from .real_pictures import real_scores

        beside = real_scores(self)
        real = {name: f" (a real picture {value:.3f})" for name, value in beside.items()}
        return {name: f"{float(value):.3f}{real.get(name, '')}" for name, value in self.scores.items()}

    def known_reach(self) -> Reach | None:
        """Its reach as far as it is known; of the bundled model's concepts it is measured now, and not kept."""
        from .real_pictures import reach_here

        return reach_here(self)

    # -- showing -------------------------------------------------------------------------------------------------

    def enlarged(self, side: int = 256) -> Image.Image:
        """The picture a whole number of times as large, at most `side` pixels wide; a larger one as it is."""
        return enlarged(self.image, side)

    def heat_map(self, side: int = 256) -> Image.Image:
        """The picture under its patch weights: bright where the score looks, at `side` pixels."""
        weight = self.heat / max(float(self.heat.max()), 1e-12)
        mask = Image.fromarray((255 * weight).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        light = self.image.resize((side, side), Image.Resampling.BICUBIC)
        dark = Image.blend(light, Image.new("RGB", light.size), 0.8)
        return Image.composite(light, dark, mask)

    def _repr_png_(self) -> bytes:
        return to_png(enlarged(self.image))

    def _repr_html_(self) -> str:
        rows = "".join(picture_row(k, v) for k, v in self.scores_in_words().items())
        rows += "".join(picture_row(*reading) for reading in reading_rows(self.readings))
        if reached := self.known_reach():
            rows += picture_row("reach", str(reached))
        elif self.readings is not None:
            rows += picture_row("reach", "not measured yet: nd.reach(vlm, prototype) compares it with real pictures")
        if link := self.direction.get("link"):
            rows += f'<tr><td colspan="2">{link_tag(str(link))}</td></tr>'
        return (
            f'<figure style="display:inline-block;margin:4px;font:12px sans-serif">'
            f"{image_tag(self.enlarged(), self.label) if self.film is None else slider(self.film)}"
            f"{image_tag(self.heat_map(), f'where the score looks, of {self.label}')}"
            f"<figcaption><b>{html.escape(arguments.brief(self.label))}</b> "
            f"layer {int(self.site.layer)}, seed {int(self.seed)}<br>"
            f"{html.escape(self.site.tl_name)}<br>{html.escape(self.hf_name)}"
            f"<table>{rows}</table></figcaption></figure>"
        )

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        title = Text(arguments.brief(self.label), style="bold").append(
            f"  layer {self.site.layer}  seed {self.seed}  ", style="default"
        )
        title.append("  ".join(f"{k} {v:.3f}" for k, v in self.scores.items()), style="dim")
        lines = [Text(str(reached))] if (reached := self.known_reach()) else []
        if self.readings:
            readings = "  ".join(f"{name} {value}" for name, value in reading_rows(self.readings))
            lines.append(Text(readings, style="dim"))
        return Group(title, *lines, Blocks(self.image))

    # -- keeping -------------------------------------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """What is kept of it, by the file's name; the record, which is written last, holds digests of the others."""
        record = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in ("image", "site", "heat", "film")}
        record = {k: dict(v) if isinstance(v, Mapping) else v for k, v in record.items()}
        record["site"] = {"layer": self.site.layer, "kind": self.site.kind, "tokens": self.site.tokens}
        record["heat"] = self.heat.tolist()
        if (reached := record.pop("reach")) is not None:
            record["reach"] = reached.record()
        pictures = {PICTURE: to_png(self.image), HEAT: to_png(self.heat_map())}
        if self.film is not None:
            record["film"], pictures[FILM] = list(self.film.captions), to_png(self.film.strip())
        record["files"] = {name: files.digest(data) for name, data in pictures.items()}
        return {**pictures, RECORD: files.to_json(files.sealed(record))}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write prototype.png, heat.png and prototype.json into a folder (made if missing); returns the folder.

        Of a picture of at most 128 pixels also large.png, the same a whole number of times as large, to look at.

        Nothing is overwritten: where the folder holds another picture, that stays, this one is saved beside it in a
        folder of the same name with -2, -3 and so on, and a warning says so. The record is written last, and each file
        under a temporary name first, so that a folder with a record is whole.

        Raises OSError where nothing can be written.
        """
        place = arguments.folder(folder)
        chosen = save_beside(self, place, set())
        if chosen != place:
            arguments.warn(f"{place} holds another picture, which stays; this one is saved in {chosen}")
        return chosen

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Prototype:
        """Read back what `save` wrote.

        Raises FileNotFoundError or ValueError that names the missing, broken or exchanged file. A record that was
        changed by hand is taken with a warning.
        """
        folder = arguments.folder(folder)
        for name in (RECORD, PICTURE):
            if not (folder / name).is_file():
                several = any(folder.glob(f"*/{RECORD}"))
                mend = "; of all in its folders: nd.Prototypes.load(folder)" if several else ""
                raise FileNotFoundError(f"{folder} holds no {name}: give a folder that Prototype.save wrote{mend}")
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            records.check(record, records.PROTOTYPE)
            as_written = files.is_sealed(record)
            record.pop(files.DIGEST, None)
            digests = record.pop("files", {})
            data, expected = (folder / PICTURE).read_bytes(), digests.get(PICTURE)
            film = _film(folder, record.pop("film", None), digests.get(FILM), str(record["label"]))
            site = record.pop("site")
            tokens = site["tokens"] if isinstance(site["tokens"], str) else tuple(site["tokens"])
            record["history"] = tuple(record["history"])
            record["heat"] = np.array(record["heat"], dtype=np.float32)
            if record.get("reach") is not None:
                record["reach"] = Reach.of_record(record["reach"])
            if record.get("image_size") is not None:
                record["image_size"] = tuple(record["image_size"])
            if expected not in (None, files.digest(data)):
                raise ValueError(f"{folder / PICTURE} is not the picture of its record: it was damaged or exchanged")
            with Image.open(io.BytesIO(data), formats=["PNG"]) as file:
                image = file.convert("RGB")
            prototype = cls(image=image, site=Site(site["layer"], site["kind"], tokens), film=film, **record)
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{folder / RECORD} is not a prototype's record: {error!r}") from error
        except (OSError, SyntaxError) as error:  # what Pillow says of a broken file
            raise ValueError(f"{folder / PICTURE} is not the picture that Prototype.save wrote: {error}") from error
        if not as_written:
            arguments.warn(f"{folder / RECORD} was changed, or damaged, since it was written")
        return prototype


def _film(folder: Path, captions: Any, expected: str | None, title: str) -> Film | None:
    """The film beside a record that has its captions."""
    if captions is None:
        return None
    data = (folder / FILM).read_bytes()
    if expected not in (None, files.digest(data)):
        raise ValueError(f"{folder / FILM} is not the film of its record: it was damaged or exchanged")
    with Image.open(io.BytesIO(data), formats=["PNG"]) as file:
        return Film.of_strip(file.convert("RGB"), [str(caption) for caption in captions], title)


def write_over(prototype: Prototype, place: Path) -> dict[str, str]:
    """Write a prototype into its own folder of a store, over what is there; returns digests of its files by name."""
    content = prototype.files()
    files.make_folder(place)
    for name, data in content.items():
        write_whole(place / name, data)
    return {name: files.digest(data) for name, data in content.items()}


def save_beside(prototype: Prototype, place: Path, taken: set[Path]) -> Path:
    """Write a prototype into a folder, or beside it where that is taken or holds anything else; returns where."""
    content, chosen, copy = prototype.files(), place, 2
    if prototype.image.width <= LARGE_SIDE // 2:
        content = {LARGE: to_png(prototype.enlarged(LARGE_SIDE)), **content}  # the record is last
    files.make_folder(place.parent)
    with files.locked(place.parent):
        while chosen in taken or _is_another(chosen, content):
            chosen, copy = place.with_name(f"{place.name}-{copy}"), copy + 1
        files.make_folder(chosen)
        for name, data in content.items():
            if not (chosen / name).exists() or (name == RECORD and prototype.reach is not None):  # measured since
                write_whole(chosen / name, data)
    return chosen


def _is_another(folder: Path, content: Mapping[str, bytes]) -> bool:
    """Whether a folder holds a file of these names with other content, of which nothing may be lost."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return True
    for name, data in content.items():
        path = folder / name
        if not os.path.lexists(path):
            continue
        if not path.is_file() or (_record(there := path.read_bytes()) or there) != (_record(data) or data):
            return True
    return False


def _record(data: bytes) -> dict[str, Any] | None:
    """A record without its digests, which older versions did not write; None for other files."""
    try:
        record = json.loads(data)
        return {k: v for k, v in record.items() if k not in ("files", files.DIGEST, "reach")}
    except (ValueError, AttributeError):
        return None
