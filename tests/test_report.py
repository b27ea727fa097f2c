"""Tables, intervals, figures and pages, from a store of hand-made pictures; pages are clicked through in Chromium."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import random
import re
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import chromium
import numpy as np
import pytest
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.judges.tally import agreement_of
from nnsight_dream.report import figures, page_pictures, pages, raters, tables
from nnsight_dream.stats import intervals
from nnsight_dream.sweeps.jobs import Job
from nnsight_dream.sweeps.store import Store

CONCEPTS = [
    ("octopus", "animal"),
    ("<script>document.title='broken'</script>", "animal"),
    ("../../x", "food"),
    ('"quoted" & <b>bold</b>', "food"),
    ("日本", "place"),
]


def prototype(name: str, layer: int, seed: int) -> nd.Prototype:
    random_ = np.random.default_rng([layer, seed, len(name)])
    return nd.Prototype(
        image=Image.fromarray(random_.integers(0, 255, (32, 32, 3), dtype=np.uint8)),
        label=name,
        site=nd.Site(layer),
        hf_name=f"model.language_model.layers.{layer - 1}.output",
        history=tuple(np.linspace(0, 0.6, 300)),
        scores={"attention": 0.6, "mean": 0.5, "max": 0.7},
        heat=random_.random((4, 4), dtype=np.float32),
        settings={"steps": 300},
        seed=seed,
        model="demo",
    )


def answered(store: Store, key: str, job: Job, right: bool, protocol: str, kind: str = "answer") -> None:
    told = dict(protocol=protocol, sample=0, when="")
    rows = [
        dict(what="answer", question="?", text=job.concept if right else "cat", kind=kind, raw="", model="m", **told)
    ]
    if kind == "answer":
        grade = dict(what="grade", raw="", grader="g", **told)
        rows += [dict(concept=job.concept, score=int(right), **grade), dict(concept="other thing", score=0, **grade)]
    store.add_answers(key, "demo", rows)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """5 concepts at layers 1, 2 and 10; octopus a second time by seed 1, and with a random direction."""
    made = Store(tmp_path_factory.mktemp("store"))
    jobs = [Job(n, c, layer) for n, c in CONCEPTS for layer in (1, 2, 10)]
    jobs += [Job("octopus", "animal", layer, seed=1) for layer in (1, 2)] + [
        Job("octopus", "animal", 1, control="random")
    ]
    for i, job in enumerate(jobs):
        key = job.key()
        made.put(key, job, prototype(job.concept, int(job.layer), job.seed))
        answered(made, key, job, right=i % 3 != 1 and not job.control, protocol="hint")
        answered(made, key, job, right=i % 3 == 0, protocol="strict", kind="refusal" if i == 4 else "answer")
    return made


@pytest.fixture(scope="module")
def rows(store: Store) -> list[dict]:
    return nd.results(store)


# -- intervals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "n", "expected"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605))],
)
def test_wilson_against_published_values(hits: int, n: int, expected: tuple[float, float]) -> None:
    """The last two are Newcombe's (1998) examples, with z = 1.96."""
    assert intervals.wilson(hits, n) == pytest.approx(expected, abs=1e-4)


def test_bootstrap_covers_and_takes_clusters_whole() -> None:
    random_ = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        low, high = intervals.bootstrap(random_.normal(1.0, 1.0, 40).tolist(), seed=seed, draws=400)
        inside += low <= 1.0 <= high
    assert 0.88 <= inside / 200 <= 0.99
    values, groups = [0.0, 1.0] * 10, list(range(20))
    single = intervals.bootstrap(values, groups)
    doubled = intervals.bootstrap(values * 5, groups * 5)  # copies of a concept tell nothing new
    assert doubled == pytest.approx(single)
    assert tables.interval([0.0] * 6, [1, 1, 2, 2, 3, 3]) == intervals.wilson(0, 3)  # no bootstrap's [0, 0]
    naive = intervals.bootstrap(values * 5)
    assert naive[1] - naive[0] < 0.6 * (doubled[1] - doubled[0])


@pytest.mark.parametrize(
    "wrong",
    [dict(values=[]), dict(values=[1.0], draws=0), dict(values=[1.0], level=1.0), dict(values=[1.0], clusters=[1, 2])],
)
def test_wrong_bootstraps(wrong: dict) -> None:
    with pytest.raises(ValueError, match="needed"):
        intervals.bootstrap(**wrong)
    with pytest.raises(ValueError, match="from 0 to n"):
        intervals.wilson(3, 2)


# -- tables ------------------------------------------------------------------------------------------------------


def test_rates_by_hand(rows: list[dict]) -> None:
    table = {t["layer"]: t for t in tables.rates(rows)}
    assert list(table) == [1, 2, 10]
    of = [r for r in rows if r["protocol"] == "hint" and r["layer"] == 1 and not r["control"]]
    assert table[1]["pictures"] == len(of) == 6
    assert table[1]["concepts"] == 5
    assert table[1]["rate"] == pytest.approx(sum(r["score"] for r in of) / 6)
    assert (table[1]["chance"], table[1]["controls"], table[1]["shuffled"]) == (0.0, 1, 0.0)
    assert (table[10]["low"], table[10]["high"]) == intervals.wilson(round(table[10]["rate"] * 5), 5)
    assert table[10]["drawn"] is None
    assert table[1]["low"] <= table[1]["rate"] <= table[1]["high"]
    strict = tables.rates(rows, by=("category", "layer"), protocol="strict")
    assert sum(t["unanswered"] for t in strict) == 1
    assert [t for t in strict if t["pictures"] == 0 and t["rate"] is not None] == []


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two models, and two settings of the first, in one folder: of the first three are named, of the others none."""
    made = Store(tmp_path_factory.mktemp("mixed"))
    for model, steps, right in (("one", 3, True), ("one", 9, False), ("two", 3, False)):
        for concept in ("fox", "bee", "owl"):
            job = Job(concept, "animal", 1)
            key = job.key(model=model, steps=steps)
            made.put(key, job, dataclasses.replace(prototype(concept, 1, 0), model=model, settings={"steps": steps}))
            answered(made, key, job, right=right, protocol="hint")
    return made


def test_models_and_settings_are_never_one_rate(mixed: Store, tmp_path: Path) -> None:
    rows = nd.results(mixed)
    found = tables.rates(rows)
    assert [(t["model"], t["settings"].split(",")[0], t["rate"], t["pictures"]) for t in found] == [
        ("one", "3 steps", 1.0, 3),
        ("one", "9 steps", 0.0, 3),
        ("two", "3 steps", 0.0, 3),
    ]
    assert [t["rate"] for t in tables.rates(rows, by=["category"])] == [1.0, 0.0, 0.0]
    assert [t["rate"] for t in tables.rates(rows, by=["model"])] == [1.0, 0.0, 0.0]
    with open(tables.write_csv(found, tmp_path / "new" / "a.csv"), encoding="utf-8") as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["one", "one", "two"]
    assert "| two | 3 steps" in tables.to_markdown(found)
    parts = tables.apart(rows)
    assert [name.split(", ")[:2] for name in parts] == [["one", "3 steps"], ["one", "9 steps"], ["two", "3 steps"]]
    assert nd.rates([r for r in rows if r["model"] == "two"])[0]["model"] == "two"


def test_settings_that_differ_by_layer_alone_are_one_table(tmp_path: Path) -> None:
    made = Store(tmp_path)
    for layer in (1, 2):
        job = Job("fox", "animal", layer)
        made.put(job.key(), job, dataclasses.replace(prototype("fox", layer, 0), settings={"steps": layer}))
        answered(made, job.key(), job, right=layer == 1, protocol="hint")
    rows = nd.results(made)
    assert [t["rate"] for t in tables.rates(rows, by=["category"])] == [0.5]
    assert tables.rates(rows, by=["category"])[0]["settings"] == "2, by layer or pooling"
    assert [t["settings"].split(",")[0] for t in tables.rates(rows)] == ["1 steps", "2 steps"]


def test_changed_weights_of_one_name_are_two_models(tmp_path: Path) -> None:
    made = Store(tmp_path)
    for weights in ("aaaaaaaa", "bbbbbbbb"):
        job, of = Job("fox", "animal", 1), dict(model="demo", revision=None, weights=weights, settings="s")
        made.note(job.key(**of), of)
        made.put(job.key(**of), job, prototype("fox", 1, 0))
        answered(made, job.key(**of), job, right=True, protocol="hint")
    assert [t["model"] for t in tables.rates(nd.results(made))] == ["demo [aaaaaa]", "demo [bbbbbb]"]


def test_figures_of_many_models_and_of_mixed_rows(
    rows: list[dict], mixed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = [tuple(figures._look(i).values()) for i in range(49)]
    assert len(set(looks)) == 49
    figures.models({f"model {i}": rows for i in range(9)}, tmp_path / "nine")
    labels: list[str] = []
    real = figures._line
    monkeypatch.setattr(figures, "_line", lambda *args, **kw: (labels.append(args[4]), real(*args, **kw)))
    figures.recognition(nd.results(mixed), tmp_path / "mixed")
    assert len(set(labels)) == 3
    assert all("told the category" in label and "steps" in label for label in labels)
    labels.clear()
    figures.models({"a": rows, "b": [r | {"model": m} for r in rows for m in ("x", "y")]}, tmp_path / "of")
    assert labels == ["a", "b, x", "b, y"]


def test_wrong_tables(rows: list[dict]) -> None:
    with pytest.raises(ValueError, match="the columns are key, concept"):
        tables.rates(rows, by=("layers",))
    with pytest.raises(ValueError, match="protocol='loose': allowed are strict, hint, written"):
        tables.rates(rows, protocol="loose")
    with pytest.raises(ValueError, match="judge='dem' is in no row; there are demo"):
        tables.rates(rows, judge="dem")
    with pytest.raises(ValueError, match="choose judge= from demo, other"):
        tables.rates([*rows, {**rows[0], "judge": "other"}])


def test_written_and_drawn_are_apart() -> None:
    base = dict(key="k", category="c", layer=1, seed=0, control="", pooling="", judge="j", protocol="hint", shuffled=None,
                refusals=0, empty=0, broken=0)  # fmt: skip
    made = [
        dict(base, concept="a", score=1.0, written=1.0, drawn=0.0),
        dict(base, concept="b", score=1.0, written=0.0, drawn=1.0),
        dict(base, concept="c", score=0.0, written=1.0, drawn=0.0),
        dict(base, concept="d", score=0.0, written=0.0, drawn=0.0),
    ]
    (table,) = tables.rates(made)
    assert (table["rate"], table["drawn"], table["written"]) == (0.5, 0.25, 0.25)


def test_seed_agreement_by_hand(rows: list[dict]) -> None:
    told = tables.seed_agreement(rows)
    pairs = {}
    for r in rows:
        if r["concept"] == "octopus" and r["protocol"] == "hint" and not r["control"]:
            pairs.setdefault(r["layer"], {})[r["seed"]] = r["score"] >= 0.5
    both = [p for p in pairs.values() if len(p) == 2]
    assert told["n"] == len(both) == 2
    assert told["share"] == sum(p[0] == p[1] for p in both) / 2
    assert tables.seed_agreement([])["share"] is None


def test_csv_and_markdown(rows: list[dict], tmp_path: Path) -> None:
    table = tables.rates(rows, by=("category", "layer"))
    path = tables.write_csv(table, tmp_path / "t.csv")
    with open(path, newline="", encoding="utf-8") as file:
        back = list(csv.DictReader(file))
    assert [float(b["rate"]) for b in back if b["rate"]] == pytest.approx(
        [t["rate"] for t in table if t["rate"] is not None]
    )
    assert tables.to_markdown([{"a": "x|y", "rate": 0.333, "n": None}]).splitlines()[-1] == "| x\\|y | 33 % | - |"


# -- figures -----------------------------------------------------------------------------------------------------


def test_figures_are_written_twice_with_the_same_bytes(rows: list[dict], tmp_path: Path) -> None:
    for name in ("a", "b"):
        made = figures.recognition(rows, tmp_path / name)
        assert [p.suffix for p in made] == [".png", ".svg"]
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image.convert("RGB")).std() > 10
    svg = (tmp_path / "a.svg").read_text()
    assert "animal (2)" in svg or svg.count("<g id=") > 20
    import matplotlib

    assert "svg.hashsalt" in matplotlib.rcParams
    assert matplotlib.rcParams["svg.hashsalt"] is None


def test_layers_stand_in_order_where_a_line_lacks_one(rows: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list = []
    monkeypatch.setattr(figures, "_finish", lambda figure, axes, *more: drawn.extend(axes) or [])
    some = [r | {"category": "$x^{$"} for r in rows if (r["protocol"], r["layer"]) != ("hint", 2)]
    figures.recognition(some, "unused")
    for axis in drawn[:2]:
        assert [t.get_text() for t in axis.get_xticklabels()] == ["1", "2", "10"]
        hint, strict = ([round(float(x)) for x in c.lines[0].get_xdata()] for c in axis.containers[:2])
        assert (hint, strict) == ([0, 2], [0, 1, 2])
        assert not axis.title.get_parse_math()


def test_a_missing_matplotlib_is_told(rows: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'nnsight-dream\[figures\]'"):
        figures.recognition(rows, tmp_path / "a")


def test_other_figures(rows: list[dict], tmp_path: Path) -> None:
    both = [*rows, *({**r, "pooling": "mean"} for r in rows if not r["control"])]
    halves = {"one": rows, "other": [r | {"layer": 3} for r in rows if r["layer"] == 10]}
    assert all(p.stat().st_size > 2000 for p in figures.models(halves, tmp_path / "m"))
    with pytest.raises(ValueError, match="every model: there is nothing to compare"):
        figures.models({"one": rows, "none": []}, tmp_path / "m")
    assert all(p.stat().st_size > 2000 for p in figures.pooling(both, tmp_path / "p"))
    with pytest.raises(ValueError, match="nothing to compare"):
        figures.pooling(
            [
                r | {"pooling": "mean"} if r["concept"] == "octopus" else r
                for r in rows
                if r["seed"] == 0 and r["layer"] == 10
            ],
            tmp_path / "q",
        )
    points = [
        dict(layer=layer, word=w, kind=k, value=0.1 * layer, low=0.0, high=0.5, n=3)
        for layer in (1, 2)
        for w in ("apple", "orange")
        for k in ("matching", "mismatching", "noise")
    ]
    assert all(p.stat().st_size > 2000 for p in figures.curves(points, tmp_path / "c"))
    for wrong in (figures.recognition, figures.curves):
        with pytest.raises(ValueError, match="no rows"):
            wrong([], tmp_path / "w")


# -- the page ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pages.page(store, tmp_path_factory.mktemp("page") / "index.html", title="A <b>test</b> & more")


def test_the_page_holds_all_and_loads_nothing(page: Path, store: Store) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)(?:https?:)?//""", text)
    assert text.count("<script") == 2
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert len(data["cells"]) == len(list(store.entries()))
    assert {c["concept"] for c in data["cells"]} == {n for n, _ in CONCEPTS}
    assert all(len(c["history"]) == 120 for c in data["cells"])
    with pytest.raises(ValueError, match=r"run nd\.sweep first"):
        pages.page(Store(page.parent / "none"), page.parent / "x.html")


PICK = """
const cells = () => document.querySelectorAll(".cell").length, ticked = () => document.querySelectorAll(".cell.yes").length;
const pick = (name, value) => {
  const field = document.querySelector(`[name="${name}"]`);
  field.value = value;
  field.dispatchEvent(new Event(field.tagName === "INPUT" ? "input" : "change"));
};
"""


def test_a_large_page_has_its_pictures_beside_it(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_pictures, "MOST", 5)
    all_of_them = functools.partial(raters.raters_page, repeats=True)
    all_of_them.__name__ = "raters_page"
    for write, count in ((pages.page, 28), (all_of_them, 18)):
        path = write(store, tmp_path / f"{write.__name__} ü.html")
        text = path.read_text(encoding="utf-8")
        data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
        named = data["images"] if "images" in data else [item["image"] for item in data["items"]]
        assert "base64" not in text
        assert "img-src data: file: 'self'" in text
        places = [path.parent / unquote(name) for name in named]
        assert len(places) == count  # each once
        assert {p.parent for p in places} == {tmp_path / f"{write.__name__} ü_files"}
        assert all(Image.open(p).size[0] > 0 for p in places)
        assert not any(c.casefold() in name.casefold() for name in named for c, _ in CONCEPTS)
    monkeypatch.setattr(page_pictures, "MOST", 200)
    monkeypatch.setattr(page_pictures, "MOST_BYTES", 9000)  # found out on the way
    text = pages.page(store, tmp_path / "b.html").read_text(encoding="utf-8")
    assert "base64" not in text
    assert len(list((tmp_path / "b_files").iterdir())) == 28


def test_a_damaged_picture_is_not_shown_or_judged(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.folder, tmp_path / "copy")
    (entry, *_) = (e for e in Store(tmp_path / "copy").entries() if e.job.concept == "octopus")
    (entry.folder / "answers-demo.jsonl").unlink()
    data = (entry.folder / "prototype.png").read_bytes()
    (entry.folder / "prototype.png").write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    with pytest.raises(ValueError, match=r"prototype\.png is not as it was written; a sweep of the same jobs"):
        pages.page(entry.folder.parent.parent, tmp_path / "page.html")
    summary = nd.examine(tmp_path / "copy", nd.DemoExaminer(), protocols=["hint"], progress=False)
    assert sum(summary.errors.values()) == 1
    assert "is not as it was written" in next(iter(summary.errors))


@chromium.needed
def test_filters_of_the_page(page: Path, tmp_path: Path) -> None:
    with chromium.opened(page, tmp_path) as tab:
        said = tab.run(
            PICK
            + """
            const out = { title: document.title, head: document.querySelector("h1").textContent, all: cells() };
            out.names = [...document.querySelectorAll("tbody th")].map(t => t.firstChild.textContent);
            out.bold = document.querySelectorAll("b").length;
            pick("category", "food"); out.food = cells(); pick("category", "");
            pick("layer", "10"); out.ten = cells(); pick("layer", "");
            pick("seen", "yes"); out.yes = cells(); out.ticked = ticked(); pick("seen", "no"); out.no = cells();
            pick("protocol", "strict"); out.strict = [cells()]; pick("seen", "yes"); out.strict.push(cells()); pick("seen", "");
            pick("kind", "random"); out.random = cells(); pick("kind", "concepts");
            pick("text", "OCTO"); out.found = cells(); pick("text", "");
            return out;
            """
        )
        assert tab.troubles == []
        assert tab.loaded == [page.as_uri()]  # nothing but itself
    assert said["title"] == said["head"] == "A <b>test</b> & more"
    assert said["bold"] == 0
    assert set(said["names"]) == {n for n, _ in CONCEPTS}
    assert (said["all"], said["food"], said["ten"], said["random"], said["found"]) == (17, 6, 5, 1, 5)
    assert said["yes"] + said["no"] == 17
    assert said["ticked"] == said["yes"] > 0
    assert sum(said["strict"]) == 16  # a refusal is neither
    assert said["strict"][1] != said["yes"]


@chromium.needed
def test_a_detail_by_mouse_and_keys(page: Path, tmp_path: Path) -> None:
    heading = "return document.querySelector('dialog h2').textContent;"
    is_open = "return document.querySelector('dialog').open;"
    with chromium.opened(page, tmp_path) as tab:
        tab.click(".cell", 1)
        assert tab.run(is_open)
        text = tab.run("return document.querySelector('dialog').innerText;")
        for words in ("blocks.1.hook_resid_post", "in 300 steps", "seed", "demo", "settings and versions", "right"):
            assert words in text
        line = "return document.querySelector('polyline').getAttribute('points').split(' ').length;"
        assert tab.run(line) == 120
        sizes = "return Promise.all([...document.querySelectorAll('dialog img')].map(i => i.decode().then(() => i.naturalWidth)));"
        assert tab.run(sizes) == [
            32,
            32,
            256,
            32,
            32,
            32,
            32,
        ]  # the picture, its map over it, a film, the same at three layers
        wide = "return document.querySelector('dialog .zoom img').getBoundingClientRect().width;"
        small = tab.run(wide)
        tab.click("dialog .zoom")
        assert tab.run(wide) > 2 * small
        assert tab.run("return document.querySelectorAll('.beside [aria-current]').length;") == 1
        at = tab.run(heading)
        tab.click(".beside button", 2)
        assert tab.run(heading) != at
        tab.click(".beside [title='" + at.split(", ")[1] + "']")
        assert tab.run(heading) == at
        first = tab.run(heading)
        tab.press("ArrowRight")
        second = tab.run(heading)
        tab.press("ArrowLeft")
        assert tab.run(heading) == first != second
        tab.click("[aria-label=next]")
        tab.press("Enter")  # the button keeps the focus
        third = tab.run(heading)
        tab.press("Escape")
        assert not tab.run(is_open)
        assert third not in (first, second)
        # the dialog's close event comes a little later than its end
        focused = "document.activeElement.getAttribute('aria-label')"
        name = tab.run(f"return new Promise(done => setTimeout(() => done({focused}), 500));")
        assert name.startswith(third)  # back in the sheet, where one came to
        assert tab.troubles == []


@chromium.needed
def test_heat_over_the_picture_layers_as_a_film_and_two_compared(page: Path, tmp_path: Path) -> None:
    with chromium.opened(page, tmp_path) as tab:
        tab.click(".cell")
        seen = "return getComputedStyle(document.querySelector('.heat img + img')).opacity;"
        assert tab.run(seen) == "1"
        tab.click(".switch input")
        assert tab.run(seen) == "0"
        told = "return document.querySelector('.film output').textContent;"
        before = tab.run(told)
        tab.run("document.querySelector('.film input').value = '0'")
        tab.run("document.querySelector('.film input').focus()")
        tab.press("ArrowRight")
        assert tab.run(told) != before or tab.run("return document.querySelector('.film input').value;") == "1"
        assert tab.run("return document.querySelector('.film img').alt;").endswith(tab.run(told))
        title = tab.run("return document.getElementById('name').textContent;")
        tab.click(".pin")
        assert tab.run("return document.querySelector('.differ');") is None
        tab.click("[aria-label=next]")
        assert tab.run("return document.querySelector('[aria-label=compared] figcaption').textContent;").startswith(
            f"pinned: {title}"
        )
        assert (
            tab.run("return getComputedStyle(document.querySelector('.differ img + img')).mixBlendMode;")
            == "difference"
        )
        assert tab.troubles == []


@chromium.needed
def test_the_page_fits_a_phone(page: Path, tmp_path: Path) -> None:
    with chromium.opened(page, tmp_path, width=390) as tab:
        assert tab.run("return [document.documentElement.scrollWidth, innerWidth];") == [390, 390]
        tab.click(".cell", 3)
        wide, inner = tab.run("const d = document.querySelector('dialog'); return [d.scrollWidth, d.clientWidth];")
        assert wide <= inner <= 390


@chromium.needed
def test_pictures_that_differ_in_their_words_only_stand_side_by_side(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for prompt in ("", "an octopus"):
        job = Job("octopus", "animal", 1, prompt=prompt)
        store.put(job.key(), job, prototype("octopus", 1, 0))
    with chromium.opened(pages.page(store, tmp_path / "p.html"), tmp_path) as tab:
        assert tab.run("return document.querySelectorAll('tbody td .cell').length;") == 2
        assert tab.run("return document.getElementById('count').textContent;").endswith("not judged")


def test_names_that_look_like_the_template(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name in ("__TITLE__", "__DATA__"):
        store.put(Job(name).key(), Job(name), prototype(name, 1, 0))
    for write in (pages.page, raters.raters_page):
        text = write(store, tmp_path / "p.html", title='"quoted"').read_text(encoding="utf-8")
        told = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
        assert "__TITLE__" in json.dumps(told)
        assert "__DATA__" in json.dumps(told)


# -- people ------------------------------------------------------------------------------------------------------


@chromium.needed
def test_a_person_rates_and_is_read_back(store: Store, tmp_path: Path) -> None:
    page = raters.raters_page(store, tmp_path / "raters.html", choices=3)
    visible = re.sub(r'<script type="application/json".*?</script>', "", page.read_text(encoding="utf-8"), flags=re.S)
    assert "octopus" not in visible
    said = "return document.getElementById('told').textContent;"
    with chromium.opened(page, tmp_path, width=390) as tab:
        for i in range(3):
            assert tab.run(said).startswith(f"picture {i + 1} of 6")  # five concepts, and one random direction
            if i == 1:
                tab.click("main button", 1)  # no idea
            else:
                tab.type('an "octopus", maybe')
                tab.press("Enter")
            assert tab.run("return document.querySelectorAll('.names button').length;") == 4  # and none of these
            tab.press("0") if i == 2 else tab.press("1")
        tab.type("typed, then taken back")
        tab.press("Enter")
        tab.click("#back")  # to the word
        tab.click("#back")  # to the third picture
        assert tab.run(said).startswith("picture 3 of 6")
        tab.click("#rater")
        tab.type("Ann")
        tab.reload()
        assert tab.run(said).startswith("picture 3 of 6")
        tab.click("#save")
        file = tmp_path / "Ann.csv"
        for _ in range(100):
            if file.is_file() and file.stat().st_size:
                break
            time.sleep(0.1)
        assert tab.troubles == []
    assert raters.read_ratings(store, file) == 4
    assert raters.read_ratings(store, file) == 0
    mine = nd.results(store, "rater-ann")
    assert sorted(r["protocol"] for r in mine) == ["hint", "hint", "strict", "strict"]
    assert sum(r["empty"] for r in mine) == 1
    for row in mine:
        if row["protocol"] == "hint":
            assert row["score"] == (row["top"] == row["concept"])
        elif not row["empty"]:
            assert row["score"] == (row["concept"] == "octopus")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,free\n", "line 1: no column chosen"),
        ("id,free,chosen\nnobody,a,b\n", "line 2, column id: 'nobody'"),
        ("id,free,chosen\n{0},a,octopus\n{0}\n", "line 3: it has fewer columns"),
        ("id,free,chosen\n{0},a, and b,octopus\n", "line 2: it has more columns"),
        ("id,free,chosen\n{0},a,octopuss\n", "line 2, column chosen: 'octopuss' is no concept"),
        ("id,free,chosen\n{0},a,octopus\n{0},b,octopus\n", "line 3, column id: .* is in line 2 already"),
        ('id,free,chosen\n{0},"a,octopus\n', "line 2: unexpected end of data"),
        ("id,free,chosen,rater\n{0},a,octopus,ann\n{1},a,octopus,bob\n", "column rater: answers of 2 people"),
    ],
)
def test_broken_ratings_store_nothing(store: Store, tmp_path: Path, text: str, words: str) -> None:
    ids = [raters._opaque(e.key) for e in store.entries()]
    (tmp_path / "bob.csv").write_text(text.format(*ids))
    with pytest.raises(ValueError, match=words):
        raters.read_ratings(store, tmp_path / "bob.csv")
    assert not [judge for judge in store.judges() if "bob" in judge]


def test_ratings_from_a_spreadsheet_and_of_people_with_like_names(store: Store, tmp_path: Path) -> None:
    entry = next(e for e in store.entries() if e.job.concept == "日本")
    path = tmp_path / "x (1).csv"
    path.write_bytes(f"rater;id;free;chosen\r\n太郎;{raters._opaque(entry.key)};;日本\r\n".encode("utf-8-sig"))
    assert raters.read_ratings(store, path) == 2
    assert raters.read_ratings(store, path) == 0
    (judge,) = [j for j in store.judges() if j.startswith("rater-concept-")]
    strict, hint = nd.results(store, judge)
    assert (strict["empty"], strict["score"], strict["answers"]) == (1, None, 0)  # no word is not a wrong word
    assert (hint["score"], hint["shuffled"]) == (1, 0)
    assert raters.read_ratings(store, path, rater="次郎") == 2
    assert len([j for j in store.judges() if j.startswith("rater-concept-")]) == 2
    path.write_text(path.read_text(encoding="utf-8-sig").replace(";;", ";Nippon;"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2: rater-concept-\w+ said '' before, and now 'Nippon'"):
        raters.read_ratings(store, path)
    path.write_bytes(path.read_text(encoding="utf-8").encode("utf-16"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        raters.read_ratings(store, path)


def test_wrong_raters_pages(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choices=1"):
        raters.raters_page(store, tmp_path / "r.html", choices=1)
    with pytest.raises(ValueError, match="no finished picture has the key 'x'"):
        raters.raters_page(store, tmp_path / "r.html", keys=["x"])


def test_offered_names_hold_the_right_one_in_random_places(store: Store, tmp_path: Path) -> None:
    text = raters.raters_page(store, tmp_path / "r.html", choices=4, seed=random.Random(3).randrange(99)).read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    right = {raters._opaque(e.key): e.job.concept for e in store.entries()}
    places = [item["names"].index(right[item["id"]]) for item in data["items"]]
    assert len(set(places)) > 1
    assert all(len(set(item["names"])) == 4 for item in data["items"])


def test_kappa_is_scikit_learns() -> None:
    from sklearn.metrics import cohen_kappa_score

    pairs = [(True, True), (True, False), (False, False), (False, True), (True, True), (False, False), (True, True)]
    assert agreement_of(pairs).kappa == pytest.approx(cohen_kappa_score(*zip(*pairs, strict=True)), abs=1e-12)


def test_raters_see_each_concept_once_and_random_directions_too(store: Store, tmp_path: Path) -> None:
    """Without the latter there would be no chance level of theirs; none of these is an answer, and a wrong one."""
    text = raters.raters_page(store, tmp_path / "r.html", choices=3).read_text(encoding="utf-8")
    items = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])["items"]
    entries = {raters._opaque(e.key): e for e in store.entries()}
    shown = [entries[item["id"]].job for item in items]
    assert len({(job.control, job.concept) for job in shown}) == len(shown) == 6
    assert len({job.layer for job in shown}) == 3
    assert [job.control for job in shown].count("random") == 1
    key = next(item["id"] for item in items if not entries[item["id"]].job.control)
    (tmp_path / "eve.csv").write_text(f"id,free,chosen\n{key},,{raters.NONE}\n", encoding="utf-8")
    assert raters.read_ratings(store, tmp_path / "eve.csv") == 2
    (row,) = [row for row in nd.results(store, "rater-eve") if row["protocol"] == "hint"]
    assert row["score"] == 0


@chromium.needed
def test_a_page_is_ordered_and_sized(page: Path, tmp_path: Path) -> None:
    with chromium.opened(page, tmp_path) as tab:
        wide = "return document.querySelector('.cell img').getBoundingClientRect().width;"
        assert 96 < tab.run(wide) <= 176  # three layers on a wide screen
        assert tab.run(PICK + "pick('size', '200'); return 0;") == 0
        assert tab.run(wide) == 200
        heads = tab.run("return [...document.querySelectorAll('thead th')].map(h => h.textContent);")
        assert heads[0].startswith("layer ")
        value = "return [...document.querySelectorAll('tbody tr')].map(r => Math.max(...[...r.querySelectorAll('.cell')].map(c => data.cells.find(d => d.key === c.dataset.key).value)));"
        tab.run(PICK + "pick('order', 'score'); return 0;")
        values = tab.run(value)
        assert values == sorted(values, reverse=True)
        asked = tab.run("return document.getElementById('asked').textContent;")
        assert "the judge was asked" in asked
        assert tab.troubles == []


def contrast(a: str, b: str) -> float:
    """Of two colours, as WCAG 2 has it."""

    def light(colour: str) -> float:
        digits = "".join(c * 2 for c in colour) if len(colour) == 3 else colour
        shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [s / 12.92 if s <= 0.03928 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["page", "cards", "raters"])
def test_colours_can_be_told_apart(name: str) -> None:
    """Text 4.5 : 1, what bounds a control or a picture 3 : 1, in light and in dark."""
    assert contrast("fff", "000") == pytest.approx(21)
    text = (Path(pages.__file__).parent / "html" / f"{name}.html").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{([^}]*)\}", text)[:2]
    light = dict(re.findall(r"--(\w+): #(\w+)", blocks[0]))
    for colours in (light, light | dict(re.findall(r"--(\w+): #(\w+)", blocks[1]))):
        for front in ("front", "soft"):
            for back in ("back", "box"):
                assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
        for edge in ("edge", "no", "yes") if name != "raters" else ("line",):
            if edge in colours:
                assert contrast(colours[edge], colours["back"]) >= 3, edge
        if "tick" in colours:
            assert contrast("fff", colours["tick"]) >= 4.5
