"""Tables: recognition rates of groups of pictures, with intervals and chance levels; as CSV and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..arguments import choice, rows_of, several, shown
from ..io.files import check_file, make_folder, write_whole
from ..judges.questions import PROTOCOLS, in_words
from ..judges.tally import agreement_of
from ..stats.intervals import bootstrap, wilson

Row = Mapping[str, Any]

#: What heads a column where people read it; the keys are those of rows, of JSON and CSV, and stay.
HEADINGS = {
    "rate": "named",
    "named": "times named",
    "low": "95 % from",
    "high": "to",
    "chance": "random directions",
    "controls": "pictures of these",
    "shuffled": "shuffled labels",
    "protocol": "the judge was",
    "question": "the judge was",
    "drawn": "named, no word in it",
    "written": "named, word in it",
    "reached": "reach real pictures",
    "reach": "median reach",
}


def rates(
    rows: Sequence[Row], *, by: Sequence[str] = ("layer",), protocol: str = "hint", judge: str | None = None
) -> list[dict[str, Any]]:
    """How often pictures are recognised, group by group, from the rows of `nd.results`.

    by   names of columns that make the groups: "layer", "category", "pooling", "seed"
    protocol   "hint": the judge was told the category; "strict": it was told nothing; "written": it was asked whether
               the word is written in the picture

    Of each group: `concepts` and `pictures` that were graded; `rate` of recognition with its 95 % interval `low` to
    `high` (over concepts; Wilson's where each has one picture and a score of 0 or 1); `chance`, the rate with random
    directions in the concepts' place, of `controls` pictures; `shuffled`, the rate against other concepts;
    `written` and `drawn`, the shares that are recognised and do or do not write the word (None if not asked);
    `unanswered`, the refusals, empty and broken answers; `reached`, the share of graded pictures whose reach was
    measured that reach what real pictures do (see `nd.reach`), and `reach`, the median of their scores over the best
    real picture's on its own ground. Rates are None where nothing is graded.

    Rows of several models, or of several settings at one layer and pooling, are never put into one rate: each has a
    group of its own, told apart by the columns `model` and `settings`.

    Raises ValueError for unknown columns, protocols and judges, and for several judges where none is chosen.
    """
    choice(protocol, "protocol", PROTOCOLS, quoted=False)
    rows = rows_of(rows)
    by, _ = several(by, str, "by", "a column's name, or a list of them, is")
    if unknown := [name for name in by if rows and name not in rows[0]]:
        raise ValueError(f"by={unknown}: the columns are {', '.join(rows[0])}")
    judges = sorted({str(r["judge"]) for r in rows})
    if judge is None and len(judges) > 1:
        raise ValueError(f"rows of several judges: choose judge= from {', '.join(judges)}")
    if judge is not None and judges and (not isinstance(judge, str) or judge not in judges):
        raise ValueError(f"judge={shown(judge)} is in no row; there are {', '.join(judges)}")
    mine = [r for r in rows if r["protocol"] == protocol and judge in (None, r["judge"])]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    names = [*by, *(name for name in mixed(mine) if name not in by)]
    for row in mine:
        groups.setdefault(tuple(row.get(name, "") for name in names), []).append(row)
    order = sorted(groups, key=lambda key: [(isinstance(k, str), k) for k in key])
    return [dict(zip(names, key, strict=True)) | _sources(groups[key]) | _rate(groups[key]) for key in order]


def mixed(rows: Sequence[Row]) -> list[str]:
    """Which of "model" and "settings" must tell rows apart, lest a rate mixes what was made otherwise.

    Settings may differ by layer and pooling; where they differ at one layer and pooling of a model, they are apart.
    """
    settings: dict[tuple[Any, ...], set[Any]] = {}
    for row in rows:
        settings.setdefault((row.get("model"), row["layer"], row["pooling"]), set()).add(row.get("settings"))
    models = {model for model, *_ in settings}
    columns = ["model"] if len(models) > 1 else []
    return [*columns, "settings"] if any(len(kinds) > 1 for kinds in settings.values()) else columns


def apart(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by model and settings, as far as `mixed` says that they must be apart; all under "" where it does not."""
    names = mixed(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(", ".join(str(row.get(name, "")) for name in names), []).append(row)
    return dict(sorted(groups.items()))


def _sources(rows: Sequence[Row]) -> dict[str, Any]:
    """The model and the settings of a group's rows, where they say."""
    sources = {}
    for name in ("model", "settings"):
        values = {row[name] for row in rows if name in row}
        if values:
            sources[name] = values.pop() if len(values) == 1 else f"{len(values)}, by layer or pooling"
    return sources


def _rate(rows: Sequence[Row]) -> dict[str, Any]:
    graded = [r for r in rows if r["score"] is not None and not r["control"]]
    controls = [r for r in rows if r["score"] is not None and r["control"]]
    scores = [float(r["score"]) for r in graded]
    low, high = interval(scores, [r["concept"] for r in graded])
    return dict(
        concepts=len({r["concept"] for r in graded}),
        pictures=len(graded),
        rate=_mean(scores),
        low=low,
        high=high,
        chance=_mean([float(r["score"]) for r in controls]),
        controls=len(controls),
        shuffled=_mean([float(r["shuffled"]) for r in graded if r.get("shuffled") is not None]),
        drawn=_mean([float(r["drawn"]) for r in graded if r.get("drawn") is not None]),
        written=_mean([r["score"] * (r["written"] >= 0.5) for r in graded if r.get("written") is not None]),
        unanswered=sum(int(r[k]) for r in rows for k in ("refusals", "empty", "broken")),
        reached=_mean([float(r["reached"]) for r in graded if r.get("reached") is not None]),
        reach=_median([float(r["reach"]) for r in graded if r.get("reach") is not None]),
    )


def interval(scores: Sequence[float], concepts: Sequence[Hashable]) -> tuple[float | None, float | None]:
    """95 %: Wilson's for one yes or no a concept, or where all say the same; else a bootstrap over concepts."""
    if not scores:
        return None, None
    apart = len(set(concepts))
    if len(set(scores)) == 1 and scores[0] in (0.0, 1.0):  # from none, or all, a bootstrap would draw no doubt
        return wilson(round(scores[0]) * apart, apart)
    if apart == len(concepts) and set(scores) <= {0.0, 1.0}:
        return wilson(round(sum(scores)), len(scores))
    return bootstrap(scores, concepts)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def seed_agreement(rows: Sequence[Row], *, protocol: str = "hint") -> dict[str, float | int | None]:
    """Whether two seeds of one concept, layer, pooling, model, settings and judge are both recognised or both not.

    n pairs of seeds, the `share` that agrees, Cohen's `kappa` (1960): 1 always, 0 as by chance; None where undefined.
    """
    choice(protocol, "protocol", PROTOCOLS, quoted=False)
    groups: dict[tuple[Any, ...], list[bool]] = {}
    for r in sorted(rows_of(rows), key=lambda r: int(r["seed"])):
        if r["protocol"] == protocol and r["score"] is not None and not r["control"]:
            key = tuple(r[n] for n in ("judge", "concept", "category", "layer", "pooling"))
            key += (r.get("model"), r.get("settings"))
            groups.setdefault(key, []).append(r["score"] >= 0.5)
    pairs = [(scores[0], other) for scores in groups.values() for other in scores[1:]]
    return dataclasses.asdict(agreement_of(pairs))


def write_csv(rows: Sequence[Row], path: str | os.PathLike[str]) -> Path:
    """Write rows as CSV, whole or not at all; empty where a value is None. Raises OSError."""
    path, rows = check_file(path), rows_of(rows)
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([{k: "" if v is None else v for k, v in row.items()} for row in rows])
    make_folder(path.parent)
    write_whole(path, text.getvalue().encode())
    return path


def to_markdown(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Rows as a Markdown table, headed by `HEADINGS`; rates in %, other fractions with two digits, "-" for None.

    >>> print(to_markdown([{"layer": 1, "protocol": "hint", "rate": 0.5, "p": 0.001, "works": True}]))
    | layer | the judge was | named | p | works |
    |---|---|---|---|---|
    | 1 | told the category | 50 % | 0.001 | yes |
    """
    rows = rows_of(rows)
    if not rows:
        return "(no rows)"
    columns = list(rows[0]) if columns is None else columns
    names, _ = several(columns, str, "columns", "a column's name, or a list of them, is")
    lines = [f"| {' | '.join(headings(names))} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells(rows, names)]
    return "\n".join(lines)


def headings(columns: Sequence[str]) -> list[str]:
    """What heads columns where people read them."""
    return [HEADINGS.get(name, name.replace("_", " ")) for name in columns]


def cells(rows: Sequence[Row], columns: Sequence[str]) -> list[list[str]]:
    """Rows as texts, column by column, each in one line."""
    return [[_cell(name, row.get(name)) for name in columns] for row in rows]


_PERCENT = {"rate", "low", "high", "chance", "shuffled", "drawn", "written", "share", "reached"}


def _cell(name: str, value: Any) -> str:
    say: Callable[[Any], str] = str
    if value is None or value != value:
        return "-"
    if name in ("protocol", "question"):
        return in_words(str(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        say = (
            (lambda v: f"{100 * v:.0f} %")
            if name in _PERCENT
            else (lambda v: f"{v:.3f}" if name == "p" else f"{v:.2f}")
        )
    return say(value).replace("\n", " ")
