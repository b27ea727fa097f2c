"""Reports: a store as one self-contained page to look through, and as a page on which people judge it."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .cache import write_whole
from .questions import mentions
from .store import Entry, Store, now, slug
from .tally import results

Row = Mapping[str, Any]
PICTURE, HEAT = 256, 256  # most pixels a side of what the page holds


def page(
    store: Store, path: str | os.PathLike[str], *, rows: Sequence[Row] | None = None, title: str = "Prototypes"
) -> Path:
    """Write one HTML file with every finished picture of a store: concepts by layers, filters, details.

    It holds all it shows and loads nothing. Names are only ever text in it.

    rows   of `nd.results`; read from the store if not given
    Raises ValueError for a store without pictures, OSError where the file cannot be written.
    """
    rows = results(store) if rows is None else rows
    entries = sorted(store.entries(), key=lambda e: (e.job.category, e.job.concept, e.job.seed, e.job.pooling))
    if not entries:
        raise ValueError(f"{store.folder} has no finished picture: run nd.sweep first")
    by_key: dict[str, list[Row]] = {}
    for row in rows:
        by_key.setdefault(row["key"], []).append(row)
    judges = sorted({str(r["judge"]) for r in rows})
    asked = [p for p in ("hint", "strict") if any(r["protocol"] == p for r in rows)]
    data = dict(
        title=title,
        told=f"{len(entries)} pictures; judged by {', '.join(judges) or 'nobody yet'}; {now()[:10]}",
        judges=judges,
        protocols=asked,
        cells=[_cell(store, entry, by_key.get(entry.key, []), judges) for entry in entries],
    )
    template = Path(__file__).with_name("report_page.html").read_text(encoding="utf-8")
    return _written(path, template.replace("__DATA__", _embedded(data)))


def _embedded(data: Any) -> str:
    """JSON that no browser can take for the end of its script, or for markup."""
    text = json.dumps(data, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")


def _written(path: str | os.PathLike[str], text: str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())
    return path


def _cell(store: Store, entry: Entry, rows: Sequence[Row], judges: Sequence[str]) -> dict[str, Any]:
    made, job = entry.prototype(), entry.job
    facts = [
        ("sites", f"{made.site.tl_name}, {made.hf_name}"),
        ("category", job.category),
        ("direction", f"random, in the place of {job.concept}" if job.control else f"the word {job.words!r}"),
        ("seed", str(job.seed)),
        ("cosine", ", ".join(f"{k} {v:.3f}" for k, v in made.scores.items())),
        ("model", made.model + (f" @ {made.revision}" if made.revision else "")),
        *((f"{r['judge']}, {r['protocol']}", _said(r)) for r in rows),
    ]
    return dict(
        key=entry.key,
        concept=job.concept,
        category=job.category,
        layer=job.layer,
        control=job.control,
        run=", ".join(filter(None, (f"seed {job.seed}", job.pooling))),
        image=_data_url(made.image, PICTURE),
        heat=_data_url(made.heat_map(HEAT), HEAT, "JPEG"),
        history=[round(v, 4) for v in _thinned(made.history, 120)],
        scores={
            f"{r['judge']}\n{r['protocol']}": dict(score=r["score"], top=r["top"], written=r["written"]) for r in rows
        },
        facts=facts,
        answers=[
            _answer(judge, a) for judge in judges for a in store.answers(entry.key, judge) if a["what"] == "answer"
        ],
        settings=json.dumps(
            {"settings": made.settings, "versions": made.versions}, indent=1, ensure_ascii=False, default=str
        ),
    )


def _said(row: Row) -> str:
    score = "not graded" if row["score"] is None else f"{row['score']:.0%} name it"
    apart = [f"{row[k]} {k}" for k in ("refusals", "empty", "broken") if row[k]]
    return ", ".join([score, *([f"most often {row['top']!r}"] if row["top"] else []), *apart])


def _answer(judge: str, row: Row) -> list[str]:
    text = row["text"] if row["kind"] == "answer" else f"({row['kind']}) {row['text']}"
    return [judge, row["protocol"], text]


def _thinned(values: Sequence[float], most: int) -> list[float]:
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _data_url(image: Image.Image, most: int, form: str = "PNG") -> str:
    if max(image.size) > most:
        image = image.copy()
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, form, **({"quality": 80} if form == "JPEG" else {"optimize": True}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# -- people as judges --------------------------------------------------------------------------------------------


def raters_page(
    store: Store,
    path: str | os.PathLike[str],
    *,
    keys: Iterable[str] | None = None,
    choices: int = 8,
    seed: int = 0,
    title: str = "What is in the picture?",
) -> Path:
    """Write one HTML file on which a person names pictures, first freely, then by choosing among names.

    The order is random; nothing on the page tells which name is right. Answers stay in the browser until a button saves
    them as CSV, which `read_ratings` reads.

    keys      which pictures; all but the controls by default
    choices   names to choose from: the right one and others of its category, or of any where there are too few

    Raises ValueError for fewer than two names in all, unknown keys, or choices below 2.
    """
    if choices < 2:
        raise ValueError(f"choices={choices!r}: at least 2 names are needed")
    entries = {e.key: e for e in store.entries()}
    wanted = [k for k, e in entries.items() if not e.job.control] if keys is None else list(keys)
    if missing := [k for k in wanted if k not in entries]:
        raise ValueError(f"no finished picture has the key {missing[0]!r}; store.keys() has them all")
    names = {(e.job.concept, e.job.category) for e in entries.values() if not e.job.control}
    if len({n for n, _ in names}) < 2 or not wanted:
        raise ValueError("at least two concepts are needed, to choose between")
    chance = random.Random(seed)
    chance.shuffle(wanted)
    items: list[dict[str, Any]] = []
    for key in wanted:
        job = entries[key].job
        near = sorted({n for n, c in names if c == job.category} - {job.concept})
        others = sorted({n for n, _ in names} - {job.concept, *near})
        chance.shuffle(near)
        chance.shuffle(others)
        offered = [job.concept, *(near + others)[: choices - 1]]
        chance.shuffle(offered)
        url = _data_url(entries[key].prototype().image, PICTURE)
        items.append(dict(id=_opaque(key), image=url, category=job.category, names=offered))
    told = hashlib.sha256(" ".join(str(i["id"]) for i in items).encode()).hexdigest()[:12]
    data = dict(title=title, items=items, place=f"nnsight-dream-{told}")
    template = Path(__file__).with_name("raters_page.html").read_text(encoding="utf-8")
    return _written(path, template.replace("__DATA__", _embedded(data)).replace("__TITLE__", html.escape(title)))


def _opaque(key: str) -> str:
    return hashlib.sha256(f"rated {key}".encode()).hexdigest()[:16]


def read_ratings(store: Store, path: str | os.PathLike[str], rater: str | None = None) -> int:
    """Read a person's CSV back into a store, as the judge "rater-<name>"; returns how many answers are new.

    The free answer counts as "strict" (it names the concept), the chosen name as "hint". What is there already is left.
    rater   a name; the file's own name if not given

    Raises ValueError that names line and column of what is wrong, before anything is stored.
    """
    path = Path(path)
    judge = f"rater-{slug(rater or path.stem)}"
    entries = {_opaque(e.key): e for e in store.entries()}
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        needed = ("id", "free", "chosen")
        if absent := [name for name in needed if name not in (reader.fieldnames or [])]:
            raise ValueError(f"{path}, line 1: no column {', '.join(absent)}; the page's CSV has {', '.join(needed)}")
        said: list[tuple[Entry, str, str]] = []
        for row in reader:
            if row["id"] not in entries:
                raise ValueError(
                    f"{path}, line {reader.line_num}, column id: {row['id']!r} is no picture of this store"
                )
            if any(row[name] is None for name in needed):
                raise ValueError(f"{path}, line {reader.line_num}: it has fewer columns than the first line")
            said.append((entries[row["id"]], row["free"].strip(), row["chosen"].strip()))
    new = 0
    for entry, free, chosen in said:
        there = {a["protocol"] for a in store.answers(entry.key, judge)}
        concept, rows = entry.job.concept, []
        for protocol, text, right in (("strict", free, mentions(free, [concept])), ("hint", chosen, chosen == concept)):
            if text and protocol not in there:
                told = dict(protocol=protocol, sample=0, when=now())
                rows += [
                    dict(what="answer", question="", text=text, kind="answer", raw=text, model=judge, **told),
                    dict(what="grade", concept=concept, score=int(right), raw=None, grader="comparison", **told),
                ]
                new += 1
        store.add_answers(entry.key, judge, rows)
    return new
