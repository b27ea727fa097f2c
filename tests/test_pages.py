"""Every page that the package writes: read, reached by keys and looked at on a wide screen and on a phone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import chromium
import numpy as np
import pytest
import saes
from PIL import Image
from stores import COLOURS
from test_prototype import prototype
from test_report import answered

import nnsight_dream as nd
from nnsight_dream.atlas import page as atlas_page
from nnsight_dream.atlas.tiles import Tile
from nnsight_dream.cards import gallery
from nnsight_dream.checkup import page as check_page
from nnsight_dream.checkup.section import Report, Section
from nnsight_dream.report import pages, raters
from nnsight_dream.sweeps.jobs import Job
from nnsight_dream.sweeps.store import Store

LAYERS = (1, 4, 8)


@pytest.fixture(scope="module")
def shown(tiny_vlm: nd.VLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind, by name, with what opens its details."""
    folder = tmp_path_factory.mktemp("pages")
    store = Store(folder / "store")
    for n, (name, colour) in enumerate(COLOURS.items()):
        for layer in LAYERS:
            job = Job(name, "animal", layer)
            store.put(job.key(), job, prototype(name, layer, image=Image.new("RGB", (24, 24), colour)))
            for protocol in ("hint", "strict"):
                answered(store, job.key(), job, right=n % 2 == 0, protocol=protocol)
    drawn = [prototype("fox"), prototype("bear", seed=1)]
    sae, quick = saes.on_neuronpedia(), nd.Settings(steps=2, batch=1, canvas=nd.Pixels(28))
    material = nd.Material(("cat", "desk"), tuple(p.image for p in drawn), ("cat 0", "desk 0"), {"cat": "animal"})
    made = nd.make_cards(tiny_vlm, sae, [3, 17], folder / "cards", material=material, settings=quick)
    seen = gallery.seen_by(tiny_vlm, sae, [drawn[0].image], ["a picture"], top=5)
    rates = [dict(kind="features", question="hint", named=1, pictures=2, rate=0.5, low=0.1, high=0.9)]
    sections = [
        Section("layers", "Words and pictures by layer", state, "What was found.", "What to do.", [dict(layer=n, auc=n / 9) for n in LAYERS],
                {"auc": [0.1, 0.5, 0.9]}, ["a note"], 1.0, [(p.image, dict(number=n, word="fox", layer=1)) for n, p in enumerate(drawn, 1)])
        for state in ("pass", "fail", "unsure")
    ]  # fmt: skip
    facts = dict(model="demo", family="gemma3", dtype="float32", where="cpu", seconds=3)
    tiles = [Tile(f"feature {n}", n, ("fox", "bear"), n / 80, "both", "yes", "a fox", "", "") for n in range(80)]
    points = np.random.default_rng(0).normal(size=(80, 2))
    pictures = [Image.new("RGB", (32, 32), (3 * n, 90, 200)) for n in range(80)]
    return {
        "report": pages.page(store, folder / "index.html"),
        "raters": raters.raters_page(store, folder / "raters.html"),
        "cards": gallery.page(made.cards, folder / "cards.html", pictures=seen, rates=rates),
        "check": check_page.page(Report(facts, sections), folder / "check.html"),
        "atlas": atlas_page.write(pictures, tiles, np.c_[points, np.ones(80)], folder / "atlas", points=points).index,
        "compare": nd.compare(*drawn).save(folder / "compare.html"),
        "film": nd.Film([p.image for p in drawn], ("step 1", "step 2"), "fox").save(folder / "film.html"),
    }


@pytest.fixture(scope="module")
def tab(shown: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Tab]:
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(chromium.opened(shown["report"], tmp_path_factory.mktemp("tab")))


#: What is clicked to see a page's details.
DETAILS = {"report": ".cell", "cards": ".tile"}
KINDS = ("report", "raters", "cards", "check", "atlas", "compare", "film")


@chromium.needed
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("kind", KINDS)
def test_everyone_can_use_it(kind: str, width: int, shown: dict[str, Path], tab: chromium.Tab) -> None:
    for scheme in ("light", "dark"):
        tab.events.clear()
        tab.show(shown[kind], width, scheme)
        assert tab.faults(scheme == "dark") == []
        if kind in DETAILS:
            tab.click(DETAILS[kind])
            assert tab.faults(scheme == "dark") == []
            tab.press("Escape")
    tab.show(shown[kind], width)
    count = min(3, tab.run(CONTROLS))
    reached = []
    for _ in range(count):
        tab.press("Tab")
        reached.append(tab.run(FOCUS))
    assert len(set(reached)) == count > 0
    assert all(one.endswith("true") for one in reached), reached
    assert tab.troubles == []


CONTROLS = "return [...document.querySelectorAll('button, input, select, summary, a[href], [tabindex]')].filter(n => !n.disabled && n.tabIndex >= 0 && n.checkVisibility()).length;"
FOCUS = """
const n = document.activeElement, style = getComputedStyle(n);
return `${n.outerHTML.slice(0, 80)} ${n.matches(':focus-visible') && style.outlineStyle !== 'none'}`;
"""


@chromium.needed
def test_a_report_of_three_layers_fills_a_wide_screen(shown: dict[str, Path], tab: chromium.Tab) -> None:
    tab.show(shown["report"], 1440)
    right = "return Math.max(...[...document.querySelectorAll('.cell')].map(n => n.getBoundingClientRect().right));"
    assert tab.run(right) > 0.8 * 1440
    tab.run("const s = document.querySelector('[name=size]'); s.value = 256; s.dispatchEvent(new Event('input'));")
    assert tab.run("return document.documentElement.scrollWidth;") <= 1440
