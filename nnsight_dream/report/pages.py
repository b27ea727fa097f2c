"""One page to look through a store."""

from __future__ import annotations

import functools
import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..arguments import rows_of
from ..io.files import check_file, make_folder, write_whole
from ..io.html_pages import Page
from ..judges.desk import standing
from ..judges.questions import in_words, question
from ..judges.tally import models_of, opened, results
from ..sweeps.store import now
from .page_pictures import Shelf

if TYPE_CHECKING:
    from ..sweeps.entries import Entry
    from ..sweeps.store import Store


Row = Mapping[str, Any]


PICTURE, HEAT = 256, 256  # most pixels a side of what the page holds


COLUMNS = ("id", "free", "chosen")  # of the raters' CSV, beside "rater"


NONE = "(none)"  # chosen where no name fits


FREE, CHOICE = question("strict"), "Which of these is it most likely?"


def page(
    store: Store, path: str | os.PathLike[str], *, rows: Sequence[Row] | None = None, title: str = "Prototypes"
) -> Page:
    """Write one HTML file with every finished picture of a store: concepts by layers, filters, details.

    It holds all it shows and loads nothing; of more than 200 pictures, or 20 MB, the pictures lie in a folder beside
    it, `index_files` for `index.html`, and go where it goes. Names are only ever text in it. Where there are several
    models or settings, they are shown and counted apart.

    rows   of `nd.results`; read from the store if not given
    Raises ValueError for a store without pictures, or with one that is not as it was written; OSError where the file
    cannot be written, before anything is read.
    """
    path, store, title = check_file(path), opened(store), arguments.text(title, "title")
    rows = results(store) if rows is None else rows_of(rows)
    entries = sorted(store.entries(), key=lambda e: (e.job.category, e.job.concept, e.job.seed, e.job.pooling))
    if not entries:
        raise ValueError(f"{store.folder} has no finished picture: run nd.sweep first")
    by_key: dict[str, list[Row]] = {}
    for row in rows:
        by_key.setdefault(row["key"], []).append(row)
    judges = sorted({str(r["judge"]) for r in rows})
    protocols = [p for p in ("hint", "strict") if any(r["protocol"] == p for r in rows)]
    shelf, models = Shelf(path, 2 * len(entries)), models_of(entries)
    data = dict(
        title=title,
        told=f"{len(entries)} pictures; judged by {', '.join(judges) or 'nobody yet'}; {now()[:10]}",
        judges=judges,
        protocols=protocols,
        cells=[_cell(store, e, by_key.get(e.key, []), judges, shelf) | {"model": models[e.key]} for e in entries],
    )
    data["images"] = shelf.urls()
    return written(path, filled(shelf.allowed(template("page")), data=data))


@functools.cache
def template(name: str) -> str:
    """The page of that name in `report/html` without its data, with the script that all pages share."""
    folder = Path(__file__).parent / "html"
    page, shared = ((folder / file).read_text(encoding="utf-8") for file in (f"{name}.html", "make.js"))
    return page.replace("__MAKE__\n", shared, 1)


def filled(template: str, *, data: Any, title: str = "") -> str:
    """The template with both in their places, in one pass: a name may be __TITLE__."""
    parts = {"__DATA__": _embedded(data), "__TITLE__": html.escape(title)}
    return re.sub("|".join(parts), lambda match: parts[match[0]], template)


def _embedded(data: Any) -> str:
    """JSON that no browser can take for the end of its script, or for markup."""
    text = json.dumps(data, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")


def written(path: Path, text: str) -> Page:
    """Write a page, with its folder, whole or not at all; returns the path, as a link. Raises OSError."""
    make_folder(path.parent)
    write_whole(path, text.encode())
    return Page(path)


def _cell(store: Store, entry: Entry, rows: Sequence[Row], judges: Sequence[str], shelf: Shelf) -> dict[str, Any]:
    prototype, job = entry.prototype(), entry.job
    facts = [
        ("site", f"{prototype.site.tl_name}, {prototype.hf_name}"),
        ("category", job.category),
        ("direction", f"random, in the place of {job.concept}" if job.control else f"the word {job.words!r}"),
        ("seed", str(job.seed)),
        ("cosine", ", ".join(f"{k} {v:.3f}" for k, v in prototype.scores.items())),
        *([] if prototype.reach is None else [("reach", str(prototype.reach))]),
        ("model", prototype.model + (f" @ {prototype.revision}" if prototype.revision else "")),
        *([("stopped", f"after {len(prototype.history)} steps, before its last")] if prototype.interrupted else []),
        *((f"{r['judge']}, {in_words(r['protocol'])}", _verdict(r)) for r in rows),
    ]
    return dict(
        key=entry.key,
        concept=job.concept,
        category=job.category,
        layer=job.layer,
        control=job.control,
        run=", ".join(filter(None, (f"seed {job.seed}", job.pooling))),
        settled=entry.settings,
        reached=None if prototype.reach is None else prototype.reach.reached,
        image=shelf.add(prototype.image, PICTURE),
        heat=shelf.add(prototype.heat_map(HEAT), HEAT, "JPEG"),
        history=[round(v, 4) for v in _thinned([v for v in prototype.history if math.isfinite(v)], 120)],
        steps=len(prototype.history),
        value=round(float(next(iter(prototype.scores.values()), 0.0)), 4),
        scores={
            f"{r['judge']}\n{r['protocol']}": dict(score=r["score"], top=r["top"], written=r["written"]) for r in rows
        },
        facts=facts,
        answers=[line for judge in judges for line in _answers(judge, job.concept, store.answers(entry.key, judge))],
        settings=json.dumps(
            {"direction": prototype.direction, "settings": prototype.settings, "versions": prototype.versions},
            indent=1,
            ensure_ascii=False,
            default=str,
        ),
    )


def _verdict(row: Row) -> str:
    verb = "read it" if row["protocol"] == "written" else "name it"
    score = "not graded" if row["score"] is None else f"{row['score']:.0%} {verb}"
    apart = [f"{row[k]} {k}" for k in ("refusals", "empty", "broken") if row[k]]
    return ", ".join([score, *([f"most often {row['top']!r}"] if row["top"] else []), *apart])


def _answers(judge: str, concept: str, rows: Sequence[Row]) -> list[list[str]]:
    """Judge, question, what was said, and whether that names the concept, of every sample."""
    rows = standing(rows)
    own = [r for r in rows if r["what"] == "grade" and r["concept"] == concept]
    scores: dict[tuple[str, int], int | None] = {}
    for r in own:
        scores.setdefault((r["protocol"], r["sample"]), r["score"])
    answers = []
    for r in (r for r in rows if r["what"] == "answer"):
        score = scores.get((r["protocol"], r["sample"]))
        text = r["text"] if r["kind"] == "answer" else f"({r['kind']}) {r['text']}"
        answers.append(
            [judge, in_words(r["protocol"]), text, {1: "yes", 0: "no"}.get(score, "–") if score is not None else "–"]
        )
    return answers


def _thinned(values: Sequence[float], most: int) -> list[float]:
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
