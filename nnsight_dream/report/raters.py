"""A page on which people name pictures, and reading their answers back."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import random
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..arguments import several
from ..io.files import check_file
from ..judges.questions import WORDS, mentions
from ..judges.tally import opened
from ..sweeps.jobs import slug
from ..sweeps.store import now
from .page_pictures import Shelf
from .pages import CHOICE, COLUMNS, FREE, NONE, PICTURE, filled, template, written

if TYPE_CHECKING:
    from ..io.html_pages import Page
    from ..sweeps.entries import Entry
    from ..sweeps.store import Store


def raters_page(
    store: Store,
    path: str | os.PathLike[str],
    *,
    keys: Iterable[str] | None = None,
    choices: int = 8,
    seed: int = 0,
    repeats: bool = False,
    title: str = "What is in the picture?",
) -> Page:
    """Write one HTML file on which a person names pictures, first freely, then by choosing among names.

    The order is random; nothing on the page tells which name is right. Answers stay in the browser until a button saves
    them as CSV, which `read_ratings` reads.

    keys      which pictures; by default one of each concept, the layers in turn, and one of each that has a random
              direction in its place: how often these are named is a person's own chance level
    repeats   True: by default every picture; then a person sees a concept several times, and may know it again
    choices   names to choose from, beside "none of these": the right one and others of its category, or of any where
              there are too few

    Of more than 200 pictures, or 20 MB, the pictures lie in a folder beside the page.

    Raises ValueError for fewer than two names in all, unknown keys, or choices below 2; OSError where the file cannot
    be written.
    """
    path, store = check_file(path), opened(store)
    if not arguments.is_whole(choices) or choices < 2:
        raise ValueError(f"choices={arguments.shown(choices)}: at least 2 names are needed")
    entries = {e.key: e for e in store.entries()}
    if keys is None:
        wanted = list(entries) if repeats else _once_each(entries)
    else:
        wanted = list(dict.fromkeys(several(keys, str, "keys", "a key of a job, or a list of them, is")[0]))
    if missing := [k for k in wanted if k not in entries]:
        raise ValueError(f"no finished picture has the key {missing[0]!r}; store.keys() has them all")
    names = {(e.job.concept, e.job.category) for e in entries.values() if not e.job.control}
    if len({n for n, _ in names}) < 2 or not wanted:
        raise ValueError("at least two concepts are needed, to choose between")
    chance = random.Random(seed)
    chance.shuffle(wanted)
    items: list[dict[str, Any]] = []
    shelf = Shelf(path, len(wanted))
    for key in wanted:
        job = entries[key].job
        near = sorted({n for n, c in names if c == job.category} - {job.concept})
        others = sorted({n for n, _ in names} - {job.concept, *near})
        chance.shuffle(near)
        chance.shuffle(others)
        offered = [job.concept, *(near + others)[: choices - 1]]
        chance.shuffle(offered)
        number = shelf.add(entries[key].prototype().image, PICTURE)
        items.append(dict(id=_opaque(key), image=number, names=offered))
    urls = shelf.urls()
    items = [{**item, "image": urls[item["image"]]} for item in items]
    identity = hashlib.sha256(" ".join(str(i["id"]) for i in items).encode()).hexdigest()[:12]
    data = dict(items=items, place=f"nnsight-dream-{identity}", free=FREE, choice=CHOICE, none=NONE)
    return written(path, filled(shelf.allowed(template("raters")), data=data, title=title))


def _once_each(entries: Mapping[str, Entry]) -> list[str]:
    """Keys of one picture of each concept, and of each random direction in one's place; layers take turns."""
    by_concept: dict[tuple[str, str], list[str]] = {}
    for key, entry in entries.items():
        by_concept.setdefault((entry.job.control, entry.job.concept), []).append(key)
    groups = [sorted(keys, key=lambda key: str(entries[key].job.layer)) for _, keys in sorted(by_concept.items())]
    return [keys[i % len(keys)] for i, keys in enumerate(groups)]


def _opaque(key: str) -> str:
    return hashlib.sha256(f"rated {key}".encode()).hexdigest()[:16]


def read_ratings(store: Store, path: str | os.PathLike[str], rater: str | None = None) -> int:
    """Read a person's CSV back into a store, as the judge "rater-<name>"; returns how many answers are new.

    The free answer counts as "strict" (right if it names the concept), the chosen name as "hint"; each is compared with
    another concept too, for chance level. A free answer left empty is counted as such, never as wrong. What is there
    already is left.

    rater   a name; that in the file if not given, else the file's own name

    Raises ValueError that names line and column of what is wrong, or says what this rater said before and says no more;
    then nothing is stored.
    """
    store, path = opened(store), arguments.file(path)
    entries = {_opaque(e.key): e for e in store.entries()}
    name, ratings = _ratings(Path(path), {e.job.concept for e in entries.values()}, set(entries))
    judge = _judge(rater or name or Path(path).stem)
    fresh: list[tuple[Entry, list[dict[str, Any]]]] = []
    for line, key, free, chosen in ratings:
        entry, others = entries[key], sorted({e.job.concept for e in entries.values()})
        there = {a["protocol"]: a["text"] for a in store.answers(entry.key, judge) if a["what"] == "answer"}
        for protocol, text in (("strict", free), *([("hint", chosen)] if chosen else [])):
            if protocol not in there:
                fresh.append((entry, _rated(entry, protocol, text, judge, others)))
            elif there[protocol] != text:
                raise ValueError(
                    f"{path}, line {line}: {judge} said {there[protocol]!r} before, and now {text!r}; "
                    "give another person's answers a name of their own: read_ratings(..., rater='name')"
                )
    for entry, rows in fresh:
        store.add_answers(entry.key, judge, rows)
    return len(fresh)


def _judge(name: str) -> str:
    plain = slug(name)
    if plain != name.strip().lower():  # two names must not become one
        plain += "-" + hashlib.sha256(name.strip().casefold().encode()).hexdigest()[:6]
    return f"rater-{plain}"


def _ratings(path: Path, concepts: Set[str], ids: Set[str]) -> tuple[str, list[tuple[int, str, str, str]]]:
    """The rater's name, if the file has one, and line, id, free and chosen answer of each picture."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as CSV UTF-8") from None
    first = text.partition("\n")[0]
    # spreadsheets of some languages save semicolons
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    names, ratings, seen = set(), [], dict[str, int]()
    try:
        if absent := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
            raise ValueError(f"{path}, line 1: no column {', '.join(absent)}; the page's CSV has {', '.join(COLUMNS)}")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: it has {'more' if None in row else 'fewer'} columns than the first line")
            key, free, chosen = (row[name].strip() for name in COLUMNS)
            if key not in ids:
                raise ValueError(f"{where}, column id: {key!r} is no picture of this store")
            if key in seen:
                raise ValueError(f"{where}, column id: {key!r} is in line {seen[key]} already; keep one of them")
            if chosen and chosen != NONE and chosen not in concepts:
                raise ValueError(
                    f"{where}, column chosen: {chosen!r} is no concept of this store; leave it as it was saved"
                )
            seen[key] = reader.line_num
            names.add((row.get("rater") or "").strip())
            ratings.append((reader.line_num, key, free, chosen))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: {error}; save it as CSV anew") from None
    if len(names) > 1:
        raise ValueError(
            f"{path}, column rater: answers of {len(names)} people; put each person's into a file of its own"
        )
    return "".join(names), ratings


def _rated(entry: Entry, protocol: str, text: str, judge: str, concepts: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of an answer and of its comparison with the picture's concept and with another."""
    job = entry.job
    question = FREE if protocol == "strict" else CHOICE
    common = dict(protocol=protocol, sample=0, when=now())
    kind = "answer" if text else "empty"
    rows: list[dict[str, Any]] = [
        dict(what="answer", question=question, text=text, kind=kind, raw=text, model=judge, **common),
    ]
    others = [c for c in concepts if c != job.concept]
    for concept in [job.concept, *random.Random(entry.key).sample(others, min(1, len(others)))] if text else []:
        right = mentions(text, [concept]) if protocol == "strict" else text == concept
        grader = WORDS if protocol == "strict" else "choice"
        rows.append(dict(what="grade", concept=concept, score=int(right), raw=None, grader=grader, **common))
    return rows
