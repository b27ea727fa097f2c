"""The atlas: vectors on a grid, sheets of pictures, the page in a browser with 16,000 tiles, resumed sweeps."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
from PIL import Image

from nnsight_dream.atlas import layout, sheets
from nnsight_dream.atlas import page as pages
from nnsight_dream.atlas.likeness import likeness
from nnsight_dream.atlas.page import Tile

MANY = 16_000
WORDS = ("fox", "bear", "sea", "storm", "lamp", "river", "moon", "stone")


def clusters(count: int, groups: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors about a few centres, and which group each is of."""
    chance = np.random.default_rng(seed)
    group = np.arange(count) % groups
    return chance.normal(size=(groups, 12))[group] * 4 + chance.normal(size=(count, 12)), group


def coloured(group: int) -> Image.Image:
    """A square whose pattern tells its group."""
    return Image.fromarray(np.random.default_rng(1000 + group).integers(0, 255, (4, 4, 3), np.uint8)).resize(
        (32, 32), 0
    )


# -- layout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 50, 1501])
def test_every_point_has_a_cell_of_its_own_on_a_full_grid(count: int) -> None:
    points = np.random.default_rng(count).normal(size=(count, 2)) ** 3
    cells = layout.snapped(points)
    assert len({tuple(c) for c in cells.tolist()}) == count
    columns, rows = cells.max(0) + 1
    assert columns * rows < count + columns + rows  # no more than a part of a row and of a column stay empty
    assert (cells == layout.snapped(points)).all()


def test_points_that_are_a_grid_stay_it() -> None:
    grid = np.stack(np.meshgrid(np.arange(50), np.arange(40)), -1).reshape(-1, 2)
    order = np.random.default_rng(0).permutation(len(grid))
    assert (layout.snapped(grid[order] * 3.5 - 9, columns=50) == grid[order]).all()


def test_near_points_are_in_near_cells() -> None:
    points = np.random.default_rng(1).uniform(size=(4000, 2))
    cells = layout.snapped(points) / layout.snapped(points).max(0)
    assert np.abs(cells - points).mean() < 0.03  # random cells: a third


def test_vectors_of_a_group_lie_together() -> None:
    vectors, group = clusters(120)
    cells = layout.snapped(layout.flat(vectors))
    at = {tuple(c): g for c, g in zip(cells.tolist(), group, strict=True)}
    beside = [g == at[x + 1, y] for (x, y), g in at.items() if (x + 1, y) in at]
    assert np.mean(beside) > 0.7  # by chance an eighth
    assert (layout.flat(vectors) == layout.flat(vectors)).all()


def test_nearest_is_by_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(2).normal(size=(30, 5))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T - 9 * np.eye(30)
    monkeypatch.setattr(layout, "AT_ONCE", 70)  # three rows at a time
    found = layout.nearest(vectors * np.arange(1, 31)[:, None], 4)
    assert (found == np.argsort(-cosines, axis=1)[:, :4]).all()


@pytest.mark.parametrize("wrong", [np.zeros((0, 2)), np.zeros((3, 3)), [[0, np.nan]], np.zeros(4)])
def test_points_of_another_form_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"\(n, 2\), x and y of each"):
        layout.snapped(wrong)


# -- likeness --------------------------------------------------------------------------------------------------------


def test_neighbours_that_look_alike_are_told_from_chance() -> None:
    group = np.repeat(np.arange(5), 40)
    cells = np.stack([np.arange(200) // 10, np.arange(200) % 10], 1)
    pictures = [coloured(g) for g in group]
    sorted_map = likeness(pictures, cells, draws=100)
    assert sorted_map.pairs == 19 * 10 + 20 * 9
    assert sorted_map.p == pytest.approx(1 / 101)
    assert sorted_map.neighbours > 0.8 > 0.2 > sorted_map.high
    order = np.random.default_rng(0).permutation(200)
    mixed = likeness([pictures[i] for i in order], cells, draws=100)
    assert mixed.low <= mixed.neighbours <= mixed.high
    assert mixed.p > 0.02


def test_likeness_is_refused_where_there_are_no_neighbours() -> None:
    with pytest.raises(ValueError, match="no two of these 2 cells are neighbours"):
        likeness([coloured(0), coloured(1)], [[0, 0], [2, 0]])
    with pytest.raises(ValueError, match="one for each"):
        likeness([coloured(0)], [[0, 0], [1, 0]])


# -- sheets ----------------------------------------------------------------------------------------------------------


def test_sheets_hold_every_picture_at_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "SIDE", 96)  # three pictures a side
    cells = layout.snapped(np.random.default_rng(0).normal(size=(23, 2)))
    colours = np.random.default_rng(1).integers(0, 255, (23, 3))
    pictures = [Image.new("RGB", (32, 32), tuple(c)) for c in colours.tolist()]
    told = sheets.write_sheets(pictures, cells, 32, tmp_path)
    assert [level["tile"] for level in told] == [32, 16, 8]
    (tmp_path / "16-9-9.webp").write_bytes(b"of an atlas before")
    assert sheets.write_sheets(pictures, cells, 32, tmp_path) == told
    assert {p.name for p in tmp_path.iterdir()} == {name for level in told for _, _, name in level["files"]}
    for level in told:
        files = {(column, row): Image.open(tmp_path / name) for column, row, name in level["files"]}
        for colour, (x, y) in zip(colours, cells.tolist(), strict=True):
            sheet, size = files[x // level["across"], y // level["across"]], level["tile"]
            centre = [size * (v % level["across"]) + size // 2 for v in (x, y)]
            assert np.abs(np.array(sheet.convert("RGB").getpixel(centre)) - colour).max() < 24  # WebP loses a little


def test_a_thumbnail_is_the_middle_of_a_picture() -> None:
    wide = Image.new("RGB", (300, 100), "black")
    wide.paste("white", (100, 0, 200, 100))
    assert np.asarray(sheets.thumbnail(wide, 32)).min() == 255


# -- the folder ------------------------------------------------------------------------------------------------------


def test_what_is_told_is_only_text_and_large_pictures_lie_beside(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    tiles = [Tile(evil, 3, (evil, "fox"), 0.5, "both", "yes", "a fox", card="cards/x"), Tile("b")]
    made = pages.write([coloured(0), coloured(1).resize((300, 300))], tiles, [[0, 1], [1, 0]], tmp_path, tile=32)
    assert evil not in made.index.read_text(encoding="utf-8")
    told = chromium.data_of(made.index)
    assert told["names"] == [evil, "b"]
    assert told["vocabulary"] == [evil, "fox"]
    assert told["large"][0] == ""
    assert max(Image.open(tmp_path / told["large"][1]).size) == 256
    assert made.cells.tolist() == told["cells"]
    assert made.likeness is None


def test_the_page_tells_whether_neighbours_look_alike(tmp_path: Path) -> None:
    points = [(x, y) for x in range(4) for y in range(4)]
    pictures = [coloured(x // 2) for x, _ in points]
    made = pages.write(pictures, [Tile("a")] * 16, np.eye(16), tmp_path, points=points, told="Said.")
    assert made.likeness is not None
    assert made.likeness.p < 0.05
    assert chromium.data_of(made.index)["told"].startswith(
        f"Said. Neighbours' pictures correlate by {made.likeness.neighbours:.2f}"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(tiles=[]), "at least one"),
        (dict(tiles=[Tile("a"), Tile("b")]), "a row for each"),
        (dict(pictures=[]), "0 pictures for 1 tiles"),
        (dict(tile=8), "tile"),
        (dict(points=[[0, 0], [1, 1]]), "2 points for 1 tiles"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, given: dict, said: str) -> None:
    whole = dict(pictures=[coloured(0)], tiles=[Tile("a")], vectors=[[0.0, 1.0]], folder=tmp_path) | given
    with pytest.raises(ValueError, match=said):
        pages.write(**whole)


def test_tiles_say_what_they_may_be() -> None:
    for wrong in (dict(modality="smell"), dict(verdict="maybe"), dict(rate=1.2), dict(reached="far")):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Tile("a", **wrong)


# -- the page in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of 16,000 synthetic tiles."""
    folder = tmp_path_factory.mktemp("atlas")
    chance = np.random.default_rng(0)
    points = chance.normal(size=(MANY, 2))
    group = (np.digitize(points[:, 0], [-0.5, 0.5]) * 3 + np.digitize(points[:, 1], [-0.5, 0.5])) % len(WORDS)
    tiles = [
        Tile(f"feature {i}", i, (WORDS[g], f"word{i % 900}"), float(i % 100) / 100, ("text", "picture", "both")[i % 3],
             ("yes", "no")[i % 2], "a thing", f"https://neuronpedia.org/x/{i}", f"cards/index.html#feature-{i}",
             reached=(None, True, False, False)[i % 4], reach="0.5 of the best")
        for i, g in enumerate(group)
    ]  # fmt: skip
    kinds = [coloured(g) for g in range(len(WORDS))]
    return pages.write(
        (kinds[g] for g in group), tiles, np.c_[points, np.ones(MANY)], folder, points=points, tile=32
    ).index


PAN = """
const times = [], began = performance.now();
for (let k = 0; k < 60; k++) {
  await new Promise(requestAnimationFrame);
  const before = performance.now();
  jump({scale: SCALE, x: (columns - wide / SCALE) / 2 + 6 * Math.sin(k / 9), y: (rows - high / SCALE) / 2 + 6 * Math.cos(k / 7)});
  draw();
  times.push(performance.now() - before);
}
times.sort((a, b) => a - b);
return {draw: times[30], worst: times[57], frame: (performance.now() - began) / 60};
"""


@chromium.needed
def test_sixteen_thousand_tiles_are_looked_through(large: Path, tmp_path: Path) -> None:
    assert large.stat().st_size < 4_000_000
    with chromium.opened(large, tmp_path, 1440) as tab:
        times = {}
        for scale in (7, 18, 40, 120):
            tab.run(f"jump({{scale: {scale}, x: 40, y: 40}}); await new Promise(r => setTimeout(r, 150));")
            times[scale] = tab.run(PAN.replace("SCALE", str(scale)))
        print({scale: {k: round(v, 1) for k, v in t.items()} for scale, t in times.items()})
        assert all(t["draw"] < 100 for t in times.values()), times  # a machine that is busy; idle it is a few ms
        found = tab.run("""
            find.value = 'storm'; find.dispatchEvent(new Event('input'));
            const storms = matches.length, said = by('status').textContent;
            find.value = '4321'; find.dispatchEvent(new Event('input'));
            return [storms, said, matches];""")
        assert found[0] == int(re.match(r"\d+", found[1])[0]) > 500
        assert found[2] == [4321]
        tab.run("find.focus()")
        tab.press("Enter")
        tab.run("await new Promise(r => setTimeout(r, 500))")
        assert "feature 4321" in tab.run("return panel.textContent")
        assert tab.run("return panel.querySelector('dd a').href") == "https://neuronpedia.org/x/4321"
        assert tab.run("return [...panel.querySelectorAll('a')].at(-1).getAttribute('href')").startswith("cards/index")
        assert "picture of feature 4321" in tab.run("return panel.querySelector('[role=img]').ariaLabel")
        assert tab.troubles == []
        own = large.parent.as_uri()
        assert all(url.startswith(own) for url in tab.loaded if url.startswith("file")), tab.loaded
        assert not [url for url in tab.loaded if not url.startswith("file")]


@chromium.needed
def test_colours_brush_and_keys(large: Path, tmp_path: Path) -> None:
    with chromium.opened(large, tmp_path, 1440) as tab:
        counts = tab.run("""
            const menu = document.querySelector('select');
            menu.value = 'modality'; menu.dispatchEvent(new Event('change'));
            const legends = [...document.querySelectorAll('#legend button')].map(b => b.textContent);
            document.querySelector('#legend button').click();
            return [legends, matches.length];""")
        assert counts == [["text (5334)", "picture (5333)", "both (5333)"], 5334]
        tab.run("document.querySelector('#legend button').click()")
        reach = tab.run("""
            const menu = document.querySelector('select');
            menu.value = 'reach'; menu.dispatchEvent(new Event('change'));
            return [...document.querySelectorAll('#legend button')].map(b => b.textContent);""")
        assert reach == ["not compared (4000)", "reaches real pictures (4000)", "does not (8000)"]
        box = tab.run("const r = map.getBoundingClientRect(); return [r.x, r.y, r.width, r.height];")
        tab.run("jump(whole())")
        middle = (box[0] + box[2] / 2, box[1] + box[3] / 2)
        at = tab.run(f"return cellAt([{box[2] / 2}, {box[3] / 2}])")
        mouse = dict(button="left", buttons=1, clickCount=1, modifiers=8)  # Shift: brush
        for kind, dx in (("mousePressed", 0), ("mouseMoved", 30), ("mouseReleased", 60)):
            tab.call("Input.dispatchMouseEvent", type=kind, x=middle[0] + dx, y=middle[1] + dx, **mouse)
        assert tab.run("return [brushed.x0, brushed.y0]") == at
        words = tab.run("return [...panel.querySelectorAll('tr')].map(r => [...r.children].map(c => c.textContent))")
        assert words[0] == ["word", "here", "all"]
        assert words[1][0] in WORDS
        assert int(words[1][1]) > 20
        tab.press("Escape")
        assert tab.run("return [panel.hidden, document.activeElement.id]") == [True, "map"]
        for kind in ("mousePressed", "mouseReleased"):
            tab.call("Input.dispatchMouseEvent", type=kind, x=middle[0], y=middle[1], button="left", clickCount=1)
        here = tab.run("return data.cells[cursor]")
        assert here == at
        tab.press("ArrowRight")
        tab.run("await new Promise(r => setTimeout(r, 400))")
        assert tab.run("return data.cells[cursor]") == [at[0] + 1, at[1]]
        assert "feature" in tab.run("return map.getAttribute('aria-label')")
        tab.press("Enter")
        assert tab.run("return panel.contains(document.activeElement)")
        assert tab.troubles == []


@chromium.needed
def test_on_a_phone(large: Path, tmp_path: Path) -> None:
    with chromium.opened(large, tmp_path, 390) as tab:
        tab.run("choose(5); reveal(5); await new Promise(r => setTimeout(r, 500))")
        assert tab.run("return document.documentElement.scrollWidth") <= 390
        assert tab.run("return panel.getBoundingClientRect().width") == 390
        before = tab.run("return view.scale")
        box = tab.run("const r = map.getBoundingClientRect(); return [r.x + 100, r.y + 60];")
        for kind, gap in (("touchStart", 20), ("touchMove", 40), ("touchMove", 60), ("touchEnd", None)):
            fingers = [] if gap is None else [dict(x=box[0] + s * gap, y=box[1], id=i) for i, s in enumerate((-1, 1))]
            tab.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)
        assert (
            tab.run("return view.scale") == pytest.approx(3 * before, rel=0.05) or tab.run("return view.scale") == 320
        )
        assert tab.troubles == []


#: The ratio of WCAG 2 of every visible text with its ground, and what is smaller than a finger.
CONTRAST = """
const channel = v => (v /= 255, v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const parts = text => text.match(/[0-9.]+/g).map(Number);
const ground = node => { for (let n = node; n; n = n.parentElement) { const c = parts(getComputedStyle(n).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return dark ? [18, 18, 18] : [255, 255, 255]; };
const bad = [];
for (const node of document.querySelectorAll('body *')) {
  const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || ['SCRIPT', 'NOSCRIPT', 'OPTION'].includes(node.tagName) || !node.getClientRects().length) continue;
  const [a, b] = [light(parts(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) bad.push([node.tagName, node.textContent.slice(0, 30), (a + 0.05) / (b + 0.05)]);
}
const small = [...document.querySelectorAll('button, input, select')].filter(n => n.getClientRects().length && n.getBoundingClientRect().height < 24).map(n => n.outerHTML.slice(0, 80));
return [bad, small];
"""


@chromium.needed
@pytest.mark.parametrize("width", [390, 1440])
def test_texts_can_be_read_and_buttons_hit(large: Path, tmp_path: Path, width: int) -> None:
    with chromium.opened(large, tmp_path, width) as tab:
        tab.run("const m = document.querySelector('select'); m.value = 'rate'; m.dispatchEvent(new Event('change'));")
        for scheme in ("light", "dark"):
            tab.call("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value=scheme)])
            tab.run("choose(7); reveal(7); await new Promise(r => setTimeout(r, 300))")
            dark = f"const dark = {json.dumps(scheme == 'dark')};"
            assert tab.run(dark + CONTRAST) == [[], []], scheme
            tab.run("list(within(region()), 'pictures'); await new Promise(r => setTimeout(r, 100))")
            assert tab.run(dark + CONTRAST) == [[], []], scheme
        unnamed = "return [...document.querySelectorAll('button, input, select, img, [role=img]')].filter(n => !(n.ariaLabel || n.alt || n.textContent.trim() || n.closest('label'))).length"
        assert tab.run(unnamed) == 0
        assert tab.run("return document.documentElement.scrollWidth") <= width


def test_an_atlas_shows_its_map_and_a_link_in_a_notebook(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue", "white")]
    points = [[0, 0], [1, 0], [0, 1], [1, 1]]
    made = pages.write(pictures, [Tile(name) for name in "abcd"], np.eye(4), tmp_path / "a b", points=points, tile=32)
    assert repr(made) == f"<Atlas of 4 pictures in {made.index}>"
    shown = made._repr_html_()
    assert "a%20b/index.html" in shown
    code = re.search(r'data:image/png;base64,([^"]+)" alt="Map of 4 pictures"', shown)
    assert code is not None
    with Image.open(io.BytesIO(base64.b64decode(code[1]))) as overview:
        centres = [overview.getpixel((32 * int(x) + 16, 32 * int(y) + 16)) for x, y in made.cells]
    wanted = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    assert np.abs(np.subtract(centres, wanted)).max() < 12  # WebP keeps colours about
    (tmp_path / "a b" / "sheets").rename(tmp_path / "elsewhere")
    assert "<img" not in made._repr_html_()


def test_the_overview_is_the_largest_that_fits_one_sheet(tmp_path: Path) -> None:
    assert sheets.overview(tmp_path) is None
    for name, side in (("64-0-0", 300), ("64-1-0", 300), ("32-0-0", 280), ("16-0-0", 140)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.webp")
    widths = [picture.width for most in (640, 200, 100) if (picture := sheets.overview(tmp_path, most))]
    assert widths == [280, 140, 140]
