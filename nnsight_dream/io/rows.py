"""Rows: tables and texts as they come from the world, from spreadsheets, hubs and other systems, as plain rows.

Lines end at a line feed or carriage return and nowhere else: U+2028, U+2029 and U+0085 are characters of a caption.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# by hand: datasets takes CSV for UTF-8 parted by commas unless told, names no row in its errors, and copies each table
# into a cache; those who want it use `from_hub`
FORMS = (".jsonl", ".json", ".csv", ".parquet")


_MARKS = (  # of 32 bits first: its mark begins as that of 16 does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def text_of(path: Path) -> str:
    """A file's text: UTF-8, or UTF-16 or UTF-32 with a byte-order mark, without the mark.

    Raises ValueError for another encoding, with the line and what to do.
    """
    raw = path.read_bytes()
    coding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(coding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: not {coding.upper()} ({error.reason}); it may be in an older "
            "encoding, such as cp1252: save it as UTF-8 (in spreadsheets 'CSV UTF-8')"
        ) from None
    if "\0" in text:
        raise ValueError(f"{path}: holds NUL characters, as UTF-16 without its mark does; save it as UTF-8")
    return text


def lines_of(path: Path) -> list[str]:
    """A file's lines, without their ends. Raises as `text_of`."""
    return re.split(r"\r\n|\n|\r", text_of(path))


def json_of(path: Path) -> Any:
    """A JSON file's value. Raises as `text_of`, ValueError where it is no JSON."""
    return _value(text_of(path), str(path))


def _value(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: no JSON ({error})") from None


def rows_of(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) of a .jsonl, .json, .csv or .parquet file; `where` names file and row, from 0, for messages.

    Raises ValueError for another ending and for what is no such table, ImportError for Parquet without pyarrow.
    """
    ending = path.suffix.lower()
    if ending == ".parquet":
        yield from _parquet(path)
    elif ending == ".csv":
        yield from _csv(path)
    elif ending == ".jsonl":
        whole = [(i, line) for i, line in enumerate(lines_of(path), 1) if line.strip()]
        for number, (i, line) in enumerate(whole):
            yield (where := f"{path}, row {number}"), _row(_value(line, f"{path}, line {i}"), where)
    elif ending == ".json":
        document = json_of(path)
        if not isinstance(document, list):
            raise ValueError(f"{path} holds no list of rows; of COCO annotations use from_coco")
        for number, value in enumerate(document):
            yield (where := f"{path}, row {number}"), _row(value, where)
    else:
        raise ValueError(f"{path}: allowed are {', '.join(FORMS[:-1])} and {FORMS[-1]}")


def _row(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: a row is an object with columns; got {type(value).__name__}")
    return value


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = text_of(path)
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    # spreadsheets of some languages save semicolons
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    before = csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a caption may be as long as it likes
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for number, row in enumerate(reader):
            where = f"{path}, row {number}"
            if None in row:
                raise ValueError(f"{where}: more columns than the first line; put texts with commas in quotes")
            yield where, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; save it as CSV anew") from None
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(64):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from None


def file_beside(table: Path, name: str) -> Path:
    """The file that a table names: relative to it, also as Windows writes paths and as macOS writes accents.

    Raises FileNotFoundError, with what the folder holds that is most like it.
    """
    import difflib

    names = dict.fromkeys([name, name.replace("\\", "/")])
    composed, decomposed = ([unicodedata.normalize(form, n) for n in names] for form in ("NFC", "NFD"))
    for form in (*names, *composed, *decomposed):
        if "\0" not in form and (path := table.parent / form).is_file():
            return path
    place = table.parent / name.replace("\\", "/")
    near: list[str] = []
    if place.parent.is_dir():
        near = difflib.get_close_matches(place.name, [p.name for p in place.parent.iterdir()], 1)
    raise FileNotFoundError(f"{table}: no file {place}" + (f"; there is {near[0]}" if near else ""))
