"""Pairs: pictures with their captions, masks and groups, from folders, tables, COCO annotations or the bundled set."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import arguments, demo, hub
from .coco import outlines
from .scores import at_least

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
CAPTIONS = ("captions", "caption", "text")  # as data sets call them
PHRASES = ("{name}", "a picture of {name}", "{name} ({category})", "this is {name}", "What does {name} look like?")


@dataclass(frozen=True, eq=False)
class Pair:
    """A picture and what is said of it.

    name      which picture it is, for messages
    captions  one text or more
    group     what belongs together, such as the thing that several pictures show; the name if there is nothing else
    source    the picture: a file, its bytes, or a PIL image;  covering, likewise, its mask or None
    """

    name: str
    captions: tuple[str, ...]
    group: str
    source: Any = field(repr=False)
    covering: Any = field(repr=False, default=None)

    @property
    def image(self) -> Image.Image:
        """The picture, RGB, on white where it is transparent; read anew each time. Raises ValueError with its name."""
        from PIL import Image

        picture = _opened(self.source, self.name)
        if "A" in picture.getbands() or "transparency" in picture.info:
            clear = picture.convert("RGBA")
            ground = Image.new("RGBA", clear.size, "white")
            ground.alpha_composite(clear)
            picture = ground
        return picture.convert("RGB")

    @property
    def mask(self) -> Image.Image | None:
        """What is thing (255) and what is ground (0), of the picture's size; None where that is not known.

        Without a mask of its own, a picture's alpha channel is one. Raises ValueError for a mask of another size.
        """
        picture = _opened(self.source, self.name)
        if self.covering is None:
            return picture.convert("RGBA").getchannel("A") if "A" in picture.getbands() else None
        if isinstance(self.covering, _Outlines):
            return outlines(self.covering.segments, picture.size)
        mask = _opened(self.covering, f"the mask of {self.name}").convert("L")
        if mask.size != picture.size:
            raise ValueError(f"{self.name}: the picture is {picture.size[0]} x {picture.size[1]}, its mask {mask.size}")
        return mask


@dataclass(frozen=True)
class _Outlines:
    segments: tuple[Any, ...]


def _opened(source: Any, name: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if hasattr(source, "convert"):
        return source
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            file.load()
            return file
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{name} cannot be read as a picture: {error}") from error


def pair(name: str, source: Any, captions: Any, group: Any = None, mask: Any = None) -> Pair:
    """A pair, checked. Raises ValueError for missing or empty captions."""
    told = [captions] if isinstance(captions, str) else list(captions if captions is not None else ())
    said = tuple(c.strip() for c in told if isinstance(c, str) and c.strip())
    if not said or len(said) < len(told):
        raise ValueError(f"{name}: one caption or more is needed, none of them empty; got {captions!r}")
    return Pair(name, said, name if group is None or group == "" else str(group), source, mask)


def _whole(found: Iterable[Pair], where: Any) -> list[Pair]:
    pairs = list(found)
    if not pairs:
        raise ValueError(f"{where}: no pair of a picture and a caption in it")
    names = [p.name for p in pairs]
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise ValueError(f"{where}: {twice!r} comes twice; give each picture once, with all its captions")
    return pairs


# -- where they come from ----------------------------------------------------------------------------------------


def bundled(names: Iterable[str] | None = None, *, phrases: Sequence[str] = PHRASES) -> list[Pair]:
    """One picture of each bundled concept, with its alpha channel as mask; captions are phrasings of its names.

    phrases   templates with {name} and {category}; each of the concept's names is put into each

    Raises ValueError for an unknown concept, or no phrase.
    """
    if isinstance(phrases, str) or not phrases:
        raise ValueError(f"phrases={phrases!r}: one template or more is needed, such as {PHRASES[:2]}")
    known = {c.name: c for c in demo.concepts()}
    made = []
    for shown in demo.pictures(names):
        said = (shown.name, *known[shown.name].aliases)
        captions = [p.format(name=name, category=shown.category) for p in phrases for name in said]
        made.append(pair(shown.name, shown.image, captions, None, shown.mask))
    return _whole(made, "bundled pictures")


def from_folder(folder: str | os.PathLike[str]) -> list[Pair]:
    """Pictures of a folder, with captions of metadata.jsonl, metadata.json or metadata.csv, or of text files beside.

    As Hugging Face's image folders have it: `file_name` and `captions` (also `caption` or `text`; in CSV one), and, if
    there are any, `mask` (a file) and `group`. Without metadata, fox.txt holds the captions of fox.png, one a line,
    fox.mask.png is its mask, and a picture's own folder, if it is in one, its group.

    Raises FileNotFoundError for a folder or picture that is not there, ValueError for missing captions.
    """
    folder = arguments.folder(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    for ending in (".jsonl", ".json", ".csv"):
        if (table := folder / f"metadata{ending}").is_file():
            return from_table(table)
    made = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in ENDINGS or path.stem.endswith(".mask"):
            continue
        text, mask = path.with_suffix(".txt"), path.with_name(f"{path.stem}.mask.png")
        if not text.is_file():
            raise ValueError(
                f"{path}: no captions; put them into {text.name} beside it, one a line, or into {folder}/metadata.jsonl"
            )
        captions = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
        group = None if path.parent == folder else path.parent.name
        made.append(pair(str(path.relative_to(folder)), path, captions, group, mask if mask.is_file() else None))
    return _whole(made, folder)


def from_table(path: str | os.PathLike[str]) -> list[Pair]:
    """Pairs of a .jsonl, .json, .csv or .parquet file: columns as in `from_folder`, files relative to the table.

    A picture is `file_name`, or `image`: a path, or in Parquet the bytes that Hugging Face's data sets hold.

    Raises FileNotFoundError for a file that is not there, ValueError for another ending, columns that are not there and
    missing captions, ImportError for Parquet without pyarrow.
    """
    path = arguments.path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return _whole((_of_row(row, i, path) for i, row in enumerate(_rows(path))), path)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    ending = path.suffix.lower()
    if ending == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise ImportError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from error
        for batch in parquet.ParquetFile(path).iter_batches(64):
            yield from batch.to_pylist()
    elif ending == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    elif ending == ".jsonl":
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield json.loads(line)
    elif ending == ".json":
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, Mapping):
            raise ValueError(f"{path} holds one object, not a list of rows; of COCO annotations use from_coco")
        yield from found
    else:
        raise ValueError(f"{path}: allowed are .jsonl, .json, .csv and .parquet")


def _of_row(row: Mapping[str, Any], number: int, path: Path) -> Pair:
    source = row.get("file_name") or row.get("image")
    column = next((c for c in CAPTIONS if c in row), None)
    if source is None or column is None:
        raise ValueError(
            f"{path}, row {number}: columns file_name (or image) and {', '.join(CAPTIONS[:-1])} or {CAPTIONS[-1]} are "
            f"needed; there are {', '.join(row)}"
        )
    name = str(row.get("file_name") or (source if isinstance(source, str) else f"row {number}"))
    group, mask = row.get("group"), row.get("mask")
    return pair(name, _file(source, path, name), row[column], group, _file(mask, path, name) if mask else None)


def _file(source: Any, table: Path, name: str) -> Any:
    source = _encoded(source)
    if isinstance(source, str):
        source = table.parent / source
        if not source.is_file():
            raise FileNotFoundError(f"{table}: {name}: no file {source}")
    return source


def from_coco(
    captions: str | os.PathLike[str],
    pictures: str | os.PathLike[str],
    instances: str | os.PathLike[str] | None = None,
    *,
    most: int | None = None,
) -> list[Pair]:
    """COCO's annotations: captions_val2017.json, the folder of pictures and, for masks, instances_val2017.json.

    most   the first so many pictures, in the file's order, that have captions

    The mask of things is the union of a picture's instances; one without any has an empty mask, all of it stuff. A
    picture's group is itself. Raises FileNotFoundError for files that are not there, ValueError for other annotations.
    """
    told = _annotations(captions, "caption")
    shapes: dict[Any, list[Any]] = {}
    if instances is not None:
        for row in _annotations(instances, "segmentation")["annotations"]:
            shapes.setdefault(row["image_id"], []).append(row["segmentation"])
    said: dict[Any, list[str]] = {}
    for row in told["annotations"]:
        said.setdefault(row["image_id"], []).append(row["caption"])
    made: list[Pair] = []
    for row in told["images"]:
        if row["id"] not in said or (most is not None and len(made) >= most):
            continue
        path = Path(pictures) / row["file_name"]
        if not path.is_file():
            raise FileNotFoundError(f"{captions}: no picture {path}")
        mask = _Outlines(tuple(shapes.get(row["id"], ()))) if instances is not None else None
        made.append(pair(row["file_name"], path, said[row["id"]], None, mask))
    return _whole(made, captions)


def _annotations(path: str | os.PathLike[str], key: str) -> dict[str, Any]:
    path = arguments.path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    rows = found.get("annotations") if isinstance(found, dict) else None
    if not rows or "images" not in found or key not in rows[0]:
        raise ValueError(f"{path}: COCO annotations with images and, of each annotation, {key!r} are needed")
    return found


def from_hub(
    name: str,
    split: str,
    *,
    most: int,
    image: str = "image",
    captions: str = "captions",
    mask: str | None = None,
    group: str | None = None,
    **options: Any,
) -> list[Pair]:
    """The first `most` rows of a Hugging Face data set, streamed: no more of it is fetched than is asked for.

    image, captions   the columns; captions may be texts or lists of texts
    mask, group       columns of masks (pictures) and of what belongs together, if there are any
    options           go to `datasets.load_dataset`

    Pictures stay in memory as the files that they came in, and are decoded when they are read. Raises ImportError
    without datasets, ValueError for columns that are not there, missing captions and `most` below 1, ConnectionError
    where the hub does not answer within seconds; what `load_dataset` raises for a name or split that it does not know.
    """
    at_least(most=most)
    try:
        import datasets
    except ImportError as error:
        raise ImportError("data sets by name need datasets: pip install datasets") from error
    here = Path(name).exists() or any(options.get(k) for k in ("data_files", "data_dir"))
    with contextlib.nullcontext() if here else hub.patient(f"the data set {name}"):
        stream = datasets.load_dataset(name, split=split, streaming=True, **options)
    for column, feature in (stream.features or {}).items():
        if isinstance(feature, datasets.Image):
            stream = stream.cast_column(column, datasets.Image(decode=False))
    made: list[Pair] = []
    for i, row in enumerate(stream.take(most)):
        if missing := [c for c in (image, captions, mask, group) if c is not None and c not in row]:
            raise ValueError(f"{name}: no column {', '.join(missing)}; there are {', '.join(row)}")
        covering = _encoded(row[mask]) if mask is not None else None
        made.append(
            pair(
                f"{name} {i}", _encoded(row[image]), row[captions], row[group] if group is not None else None, covering
            )
        )
    return _whole(made, name)


def _encoded(source: Any) -> Any:
    """A picture of a data set as the bytes of its file, or its path."""
    return (source.get("bytes") or source.get("path")) if isinstance(source, Mapping) else source
