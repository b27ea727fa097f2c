"""Pairs: pictures with their captions, masks and groups, from folders, tables, COCO annotations or the bundled set."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..demo import bundle
from ..io.pictures import files, hidden
from ..io.rows import FORMS, file_beside, json_of, lines_of, rows_of
from ..models import hub
from ..stats.scores import at_least
from .pair import Outlines, Pair, pair, whole

if TYPE_CHECKING:
    pass


CAPTIONS = ("captions", "caption", "text")  # as data sets call them


PHRASES = ("{name}", "a picture of {name}", "{name} ({category})", "this is {name}", "What does {name} look like?")


def bundled(names: Iterable[str] | None = None, *, phrases: Sequence[str] = PHRASES) -> list[Pair]:
    """One picture of each bundled concept, with its alpha channel as mask; captions are phrasings of its names.

    phrases   templates with {name} and {category}; each of the concept's names is put into each

    Raises ValueError for an unknown concept, or no phrase.
    """
    many = isinstance(phrases, (list, tuple)) and all(isinstance(p, str) for p in phrases)
    if not many or not phrases:
        raise ValueError(f"phrases={arguments.shown(phrases)}: one template or more is needed, such as {PHRASES[:2]}")
    concepts = {c.name: c for c in bundle.concepts()}
    pairs = []
    for picture in bundle.pictures(names):
        all_names = (picture.name, *concepts[picture.name].aliases)
        captions = [p.format(name=name, category=picture.category) for p in phrases for name in all_names]
        pairs.append(pair(picture.name, picture.image, captions, None, picture.mask))
    return whole(pairs, "bundled pictures")


def from_folder(folder: str | os.PathLike[str]) -> list[Pair]:
    """Pictures of a folder, with captions of a metadata table (.jsonl, .json, .csv, .parquet), or of texts beside them.

    As Hugging Face's image folders have it: metadata.csv and the like in the folder, or one in each of several folders
    in it, with columns as in `from_table`. Without metadata, fox.txt holds the captions of fox.png, one a line,
    fox.mask.png is its mask, and a picture's own folder, if it is in one, its group. Hidden files are left out, and
    what macOS, Windows and notebooks leave beside pictures.

    Raises FileNotFoundError for a folder or picture that is not there, ValueError for missing captions.
    """
    folder = arguments.folder(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if tables := _metadata(folder):
        return whole((_moved(p, t.parent.relative_to(folder)) for t in tables for p in from_table(t)), folder)
    pairs = []
    for path in files(folder, deep=True):
        if path.stem.endswith(".mask"):
            continue
        captions, mask = path.with_suffix(".txt"), path.with_name(f"{path.stem}.mask.png")
        if not captions.is_file():
            raise ValueError(
                f"{path}: no captions; put them into {captions.name} beside it, one a line, or into "
                f"{folder}/metadata.jsonl"
            )
        lines = [line for line in lines_of(captions) if line.strip()]
        group = None if path.parent == folder else path.parent.name
        pairs.append(pair(path.relative_to(folder).as_posix(), path, lines, group, mask if mask.is_file() else None))
    return whole(pairs, folder)


def _metadata(folder: Path) -> list[Path]:
    """The folder's metadata table, or those of the folders in it."""
    tables: dict[Path, Path] = {}
    for path in sorted(folder.rglob("metadata.*"), key=lambda p: FORMS.index(p.suffix) if p.suffix in FORMS else 9):
        form = path.suffix in FORMS and (path.suffix != ".json" or path.parent == folder)
        if form and path.is_file() and not hidden(path.relative_to(folder)):
            tables.setdefault(path.parent, path)
    return [tables[folder]] if folder in tables else [tables[place] for place in sorted(tables)]


def _moved(of: Pair, below: Path) -> Pair:
    """A pair of a table in a folder below: its name tells the folder."""
    if below == Path():
        return of
    name = (below / of.name).as_posix()
    return replace(of, name=name, group=name if of.group == of.name else of.group)


def from_table(path: str | os.PathLike[str]) -> list[Pair]:
    """Pairs of a .jsonl, .json, .csv or .parquet file: a row for each picture, files relative to the table.

    The picture is `file_name`, `image_file_name` (or another column ending in _file_name) or `image`: a path, or in
    Parquet the bytes that Hugging Face's data sets hold. Captions are `captions`, `caption` or `text`, a text or a list
    of texts, or `caption_0`, `caption_1` and so on. There may be `mask` or `mask_file_name` (a file) and `group`.
    Tables are UTF-8, or UTF-16 with its mark; in CSV columns may be parted by semicolons or tabs.

    Raises FileNotFoundError for a file that is not there, ValueError for another ending or encoding, columns that are
    not there and missing captions, ImportError for Parquet without pyarrow.
    """
    path = arguments.path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return whole((_of_row(row, where, path) for where, row in rows_of(path)), path)


def _of_row(row: Mapping[str, Any], where: str, path: Path) -> Pair:
    column, captions = _picture_column(row, where), _captions(row)
    if column is None or not captions:
        raise ValueError(
            f"{where}: columns file_name (or image) and {', '.join(CAPTIONS[:-1])} or {CAPTIONS[-1]} are needed; there "
            f"are {', '.join(map(str, row))}"
        )
    source, mask = row[column], row.get("mask") or row.get("mask_file_name")
    name = source if isinstance(source, str) else str(row.get("file_name") or where.rpartition(", ")[2])
    name = name.replace("\\", "/")
    return pair(name, _file(source, path), captions[0], row.get("group"), _file(mask, path) if mask else None)


def _picture_column(row: Mapping[str, Any], where: str) -> str | None:
    """Which column is the picture."""
    custom = [c for c in row if str(c).endswith("_file_name") and c not in ("mask_file_name", "image_file_name")]
    standard = [c for c in ("file_name", "image_file_name", "image") if row.get(c)]
    if standard or not custom:
        return standard[0] if standard else None
    if len(custom) > 1:
        raise ValueError(f"{where}: which is the picture, {' or '.join(custom)}? Call its column file_name")
    return custom[0] if row[custom[0]] else None


def _captions(row: Mapping[str, Any]) -> list[Any]:
    """What columns of captions hold, the first that has some before the others; empty where there is no such column."""
    there = [row[c] for c in CAPTIONS if c in row]
    numbered = sorted((c for c in row if re.fullmatch(r"(caption|text)_?\d+", str(c))), key=lambda c: (len(c), c))
    if not there and numbered:
        return [[row[c] for c in numbered if row[c]]]
    return sorted(there, key=lambda c: not c)


def _file(source: Any, table: Path) -> Any:
    source = _encoded(source)
    return file_beside(table, source) if isinstance(source, str) else source


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
    shapes: dict[Any, list[Any]] = {}
    if instances is not None:
        for row in _annotations(instances, "segmentation")["annotations"]:
            shapes.setdefault(row["image_id"], []).append(row["segmentation"])
    caption_data = _annotations(captions, "caption")
    texts: dict[Any, list[str]] = {}
    for row in caption_data["annotations"]:
        texts.setdefault(row["image_id"], []).append(row["caption"])
    pairs: list[Pair] = []
    for row in caption_data["images"]:
        if row["id"] not in texts or (most is not None and len(pairs) >= most):
            continue
        path = Path(pictures) / row["file_name"].replace("\\", "/")
        if not path.is_file():
            raise FileNotFoundError(f"{captions}: no picture {path}")
        mask = Outlines(tuple(shapes.get(row["id"], ()))) if instances is not None else None
        pairs.append(pair(row["file_name"], path, texts[row["id"]], None, mask))
    return whole(pairs, captions)


def _annotations(path: str | os.PathLike[str], key: str) -> dict[str, Any]:
    path = arguments.path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    document = json_of(Path(path))
    rows = document.get("annotations") if isinstance(document, dict) else None
    pictures = document.get("images") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows or not isinstance(pictures, list):
        raise ValueError(f"{path}: COCO annotations with images and, of each annotation, {key!r} are needed")
    for kind, some, needed in (("annotation", rows, ("image_id", key)), ("image", pictures, ("id", "file_name"))):
        for i, row in enumerate(some):
            if not isinstance(row, dict) or any(name not in row for name in needed):
                there = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
                raise ValueError(
                    f"{path}: COCO annotations with images and, of each annotation, {key!r} are needed; {kind} {i} has "
                    f"{there}, not {' and '.join(needed)}"
                )
    return document


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
    pairs: list[Pair] = []
    for i, row in enumerate(stream.take(most)):
        if missing := [c for c in (image, captions, mask, group) if c is not None and c not in row]:
            raise ValueError(f"{name}: no column {', '.join(missing)}; there are {', '.join(row)}")
        covering = _encoded(row[mask]) if mask is not None else None
        pairs.append(
            pair(
                f"{name} {i}", _encoded(row[image]), row[captions], row[group] if group is not None else None, covering
            )
        )
    return whole(pairs, name)


def _encoded(source: Any) -> Any:
    """A picture of a data set as the bytes of its file, or its path."""
    return (source.get("bytes") or source.get("path")) if isinstance(source, Mapping) else source
