"""Prototypes: showing themselves, and keeping on disk, whatever a label holds."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import nnsight_dream as nd
from nnsight_dream import cli
from nnsight_dream.io import pictures


def prototype(label: str = "octopus", colour: tuple[int, int, int] = (250, 120, 10), **changes: Any) -> nd.Prototype:
    """One that no model was needed for."""
    picture = np.full((24, 24, 3), colour, dtype=np.uint8)
    picture[:4, :8] = (0, 0, 255)
    heat = np.arange(16, dtype=np.float32).reshape(4, 4)
    fields = dict(
        image=Image.fromarray(picture),
        label=label,
        site=nd.Site(2),
        hf_name="model.language_model.layers.1.output",
        history=(0.1, 1 / 3, float(np.float32(0.7))),
        scores={"attention": 0.7, "mean": 0.25, "max": 0.9},
        heat=heat / heat.sum(),
        settings={"steps": 3, "canvas": {"is": "Pixels", "size": 24}, "augment": [], "terms": []},
        seed=5,
        model="tiny",
        revision="abc",
        direction={"method": "concept", "norm": 2.5, "terms": [{"weight": 1.0}]},
        versions={"torch": "2"},
    )
    return nd.Prototype(**{**fields, **changes})


# -- keeping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_what_is_saved_comes_back(tmp_path: Path, kind: type) -> None:
    before = prototype(
        "日本 <b> 🐙 ../x",
        site=nd.Site(3, "self_attn.o_proj.input", (0, 5)),
        interrupted=True,
        revision=None,
    )
    folder = kind(tmp_path / "deep" / "er")
    assert before.save(folder) == Path(folder)
    assert sorted(os.listdir(folder)) == ["heat.png", "large.png", "prototype.json", "prototype.png"]
    with Image.open(Path(folder) / "large.png") as large:
        assert large.size == (240, 240)  # a whole number of times as large
    after = nd.Prototype.load(folder)
    for field in dataclasses.fields(nd.Prototype):
        a, b = getattr(before, field.name), getattr(after, field.name)
        if field.name == "image":
            assert (a.mode, a.size, a.tobytes()) == (b.mode, b.size, b.tobytes())
        elif field.name == "heat":
            assert b.dtype == np.float32
            assert (a == b).all()
        else:
            assert (type(a), a) == (type(b), b), field.name
    with Image.open(Path(folder) / "heat.png") as shown:
        assert shown.tobytes() == before.heat_map().tobytes()
    after.save(folder)  # again, into the same place
    assert nd.Prototype.load(folder).history == before.history


def test_a_record_is_json_for_others_too(tmp_path: Path) -> None:
    record = json.loads((prototype("日本").save(tmp_path) / "prototype.json").read_text(encoding="utf-8"))
    assert record["site"] == {"layer": 2, "kind": "resid_post", "tokens": "image"}
    assert record["label"] == "日本"
    assert np.sum(record["heat"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("missing", ["prototype.json", "prototype.png", None])
def test_a_folder_that_lacks_something(tmp_path: Path, missing: str | None) -> None:
    folder = tmp_path / "one"
    if missing is not None:
        prototype().save(folder)
        (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {missing or 'prototype.json'}: give a folder that"):
        nd.Prototype.load(folder)
    prototype().save(folder)
    assert nd.Prototype.load(folder).label == "octopus"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"site": 3}', '{"site": {"layer": 1}}'])
def test_a_broken_record(tmp_path: Path, text: str) -> None:
    prototype().save(tmp_path)
    (tmp_path / "prototype.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'prototype.json'} is not a prototype's record")):
        nd.Prototype.load(tmp_path)


def test_a_record_with_a_field_too_many_or_too_few(tmp_path: Path) -> None:
    path = prototype().save(tmp_path) / "prototype.json"
    record = json.loads(path.read_text())
    for wrong in ({**record, "more": 1}, {k: v for k, v in record.items() if k != "seed"}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="is not a prototype's record"):
            nd.Prototype.load(tmp_path)


def test_an_interrupted_save_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def fail(source: Any, target: Any) -> None:
        if str(target).endswith(".json"):
            raise OSError("no space left")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        prototype().save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no prototype\.json"):
        nd.Prototype.load(tmp_path)


LABELS = ["../../x", "/etc/x", "..", ".", "", "a/b", "a\\b", "C:x", "🐙", "日本", "x" * 500, "a\0b", "a b", "~", "-rf"]


def test_labels_stay_inside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "one" / "two" / "out"
    many = nd.Prototypes(prototype(label) for label in LABELS)
    assert many.save(folder) == folder
    outside = [p for p in tmp_path.rglob("*") if not p.is_relative_to(folder) and p not in folder.parents]
    assert outside == []
    made = list(folder.iterdir())
    assert all(p.is_dir() and p.parent == folder and len(p.name.encode()) < 255 for p in made)
    assert sorted(nd.Prototype.load(p).label for p in made) == sorted(LABELS)  # none took another's place
    assert any(p.name == "x-layer2-seed5" for p in made)


def test_nothing_saved_together_is_lost(tmp_path: Path) -> None:
    one = prototype()
    many = nd.Prototypes(
        [
            one,
            dataclasses.replace(one, site=nd.Site(2, "attn_out")),
            dataclasses.replace(one, site=nd.Site(2, tokens=(1, 2))),
            dataclasses.replace(one, site=nd.Site(3)),
            dataclasses.replace(one, seed=6),
            prototype("octopus!"),
            prototype(colour=(0, 0, 0)),  # of the same name and site, made otherwise
        ]
    )
    for _ in range(2):  # saved again they take their own places
        many.save(tmp_path)
        found = [nd.Prototype.load(p) for p in tmp_path.iterdir()]
        told = sorted((p.label, str(p.site), str(p.site.tokens), p.seed, p.image.tobytes()[-3:]) for p in found)
        assert told == sorted((p.label, str(p.site), str(p.site.tokens), p.seed, p.image.tobytes()[-3:]) for p in many)
    with pytest.warns(UserWarning, match="octopus-layer2-seed5 is there already and stays: see octopus-layer2-seed5-6"):
        nd.Prototypes([dataclasses.replace(one, history=(1.0,))]).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 8
    assert nd.Prototype.load(tmp_path / "octopus-layer2-seed5").history == one.history
    assert nd.Prototype.load(tmp_path / "octopus-layer2-seed5-6").history == (1.0,)


def test_another_models_picture_of_the_same_word_stays(tmp_path: Path) -> None:
    one, other = prototype(), prototype(model="another")
    assert one.save(tmp_path / "a") == one.save(tmp_path / "a") == tmp_path / "a"
    with pytest.warns(UserWarning, match=r"a holds another picture, which stays; this one is saved in .*a-2"):
        assert other.save(tmp_path / "a") == tmp_path / "a-2"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "prototype.png").write_bytes(b"the user's own")
    with pytest.warns(UserWarning, match="own-2"):
        one.save(tmp_path / "own")
    assert (tmp_path / "own" / "prototype.png").read_bytes() == b"the user's own"
    nd.Prototypes([one]).save(tmp_path / "all")
    with pytest.warns(UserWarning, match="octopus-layer2-seed5-2"):
        nd.Prototypes([other]).save(tmp_path / "all")
    models = {p.name: nd.Prototype.load(p).model for p in (tmp_path / "all").iterdir()}
    assert models == {"octopus-layer2-seed5": "tiny", "octopus-layer2-seed5-2": "another"}


def test_emoji_have_names(tmp_path: Path) -> None:
    places, moved = nd.Prototypes(prototype(label) for label in ("🐙", "🦊", "👩‍🚀", "日本", "!", "fox ❤️")).save_each(
        tmp_path
    )
    assert [p.name.removesuffix("-layer2-seed5") for p in places] == [
        "u1f419-octopus",
        "u1f98a-fox-face",
        "u1f469-u1f680-woman-rocket",
        "日本",
        "direction",
        "fox-u2764-heavy-black-heart",
    ]
    assert not moved


@pytest.mark.parametrize("name", ["prototype.png", "prototype.json"])
def test_a_flipped_bit_is_seen(tmp_path: Path, name: str) -> None:
    path = prototype().save(tmp_path) / name
    data = path.read_bytes()
    for at in range(0, len(data), max(1, len(data) // 40)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                nd.Prototype.load(tmp_path)
                assert name == "prototype.json"
                assert "was changed, or damaged" in str(caught[0].message)
            except ValueError:
                pass


def test_records_without_digests_are_read(tmp_path: Path) -> None:
    path = prototype().save(tmp_path) / "prototype.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in record.items() if k not in ("files", "digest")}))
    assert nd.Prototype.load(tmp_path).label == "octopus"
    assert prototype().save(tmp_path) == tmp_path  # the same picture: nothing to number


# -- showing -----------------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script> & \"x\" 'y' <img src=x onerror=1>"


def test_html_holds_no_label_as_markup() -> None:
    one = prototype(EVIL, site=nd.Site(2, "<b>.output"), hf_name="<script>2</script>")
    for text in (one._repr_html_(), nd.Prototypes([one, one])._repr_html_()):
        assert html.escape(EVIL) in text
        tags = set(re.findall(r"<\s*(\w+)", text))
        assert tags <= {"figure", "img", "figcaption", "b", "br", "table", "tr", "td", "div"}
        assert "onerror=1>" not in text
        assert "&lt;b&gt;.output" in text
    assert nd.Prototypes([one, one])._repr_html_().count("<figure") == 2


def test_html_shows_picture_heat_and_both_names() -> None:
    text = prototype()._repr_html_()
    picture, heat = (
        Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"data:image/png;base64,([\w+/=]+)", text)
    )
    assert picture.size == (240, 240)
    assert heat.size == (256, 256)
    assert picture.getpixel((100, 100)) == (250, 120, 10)
    for shown in ("octopus", "layer 2", "seed 5", "blocks.1.hook_resid_post", "model.language_model.layers.1.output"):
        assert shown in text
    assert "0.700" in text
    assert "0.250" in text
    assert "0.900" in text


def test_png_is_the_picture() -> None:
    data = prototype()._repr_png_()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(data)) as shown:
        assert shown.format == "PNG"
        assert shown.size == (144, 144)
        assert shown.getpixel((2, 2)) == (0, 0, 255)
        assert shown.getpixel((140, 140)) == (250, 120, 10)
    large = prototype(image=Image.new("RGB", (448, 448)))
    assert Image.open(io.BytesIO(large._repr_png_())).size == (448, 448)


def test_the_heat_map_is_bright_where_the_weight_is() -> None:
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[0, 3] = 1
    shown = prototype(heat=heat, image=Image.new("RGB", (24, 24), (200, 200, 200))).heat_map(64)
    assert shown.size == (64, 64)
    light = np.asarray(shown.convert("L"), dtype=float)
    assert light[4, 60] > 180
    assert light[60, 4] < 60
    assert light[4, 4] < 60
    assert light[60, 60] < 60


def rendered(thing: Any, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor", **options)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_a_terminal_shows_label_scores_and_picture() -> None:
    text = rendered(prototype("[bold]octopus[/bold] [/x]"))
    shown = plain(text)
    assert "[bold]octopus[/bold] [/x]" in shown  # a label is text, not markup
    assert all(part in shown for part in ("layer 2", "seed 5", "attention 0.700", "mean 0.250", "max 0.900"))
    lines = [line for line in shown.splitlines() if "▀" in line]
    assert [line.count("▀") for line in lines] == [32] * 16
    assert "38;2;250;120;10;48;2;250;120;10" in text
    assert "38;2;0;0;255" in text


def test_a_terminal_shows_several() -> None:
    shown = plain(rendered(nd.Prototypes([prototype("one"), prototype("two")])))
    assert "one" in shown
    assert "two" in shown
    assert shown.count("▀") == 2 * 32 * 16


def test_repr_is_one_line_with_both_names() -> None:
    shown = repr(prototype())
    assert "\n" not in shown
    assert "blocks.1.hook_resid_post" in shown
    assert "model.language_model.layers.1.output" in shown
    assert "'octopus'" in shown
    assert "attention 0.700" in shown
    assert "seed 5" in shown
    assert "stopped" not in shown
    assert "stopped after 3 steps" in repr(prototype(interrupted=True))


def test_a_prototype_is_frozen_and_has_one_picture() -> None:
    one = prototype()
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.seed = 3  # type: ignore[misc]
    assert one.images == [one.image]
    assert nd.Prototypes([one, one]).images == [one.image] * 2


@pytest.mark.parametrize(
    ("count", "columns", "labels", "size"),
    [(1, None, True, (40, 56)), (5, 2, False, (80, 120)), (9, None, True, (320, 112)), (4, 4, True, (160, 56))],
)
def test_grids(count: int, columns: int | None, labels: bool, size: tuple[int, int]) -> None:
    colours = [(25 * i, 255 - 25 * i, 100) for i in range(count)]
    many = nd.Prototypes(prototype(f"thing {i}", image=Image.new("RGB", (24, 24), c)) for i, c in enumerate(colours))
    sheet = many.grid(columns, side=40, labels=labels)
    assert sheet.size == size
    across, strip = columns or min(count, 8), 16 if labels else 0
    for i, colour in enumerate(colours):
        x, y = i % across * 40, i // across * (40 + strip)
        assert sheet.getpixel((x + 20, y + strip + 20)) == colour
        name = np.asarray(sheet.crop((x, y, x + 40, y + strip)))
        assert not labels or (name.min() < 100 and name.max() == 255)


def test_a_grid_of_nothing() -> None:
    with pytest.raises(ValueError, match="no prototype to show"):
        nd.Prototypes().grid()


# -- from others -------------------------------------------------------------------------------------------------

SCRIPT = '"><script>alert(1)</script>'
WRONG = {
    "label": 3,
    "hf_name": None,
    "seed": SCRIPT,
    "model": [],
    "revision": 1,
    "history": ["1"],
    "scores": {"mean": SCRIPT},
    "heat": [[1.0], [1.0, 2.0]],
    "settings": "x",
    "direction": {"link": ["javascript:alert(1)"]},
    "versions": {"torch": 2},
    "interrupted": 1,
    "readings": {"pre_max": SCRIPT},
    "image_size": ["448", "448"],
    "straight_through": "1",
    "site": {"layer": SCRIPT, "kind": "resid_post", "tokens": "image"},
}


@pytest.mark.parametrize("name", WRONG)
def test_fields_of_a_record_are_typed(tmp_path: Path, name: str) -> None:
    path = prototype().save(tmp_path) / "prototype.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, name: WRONG[name]}))
    with pytest.raises(ValueError, match=rf"is not a prototype's record: TypeError.*{name}.* is "):
        nd.Prototype.load(tmp_path)


def test_nothing_in_a_record_is_markup(tmp_path: Path) -> None:
    hostile = prototype(
        SCRIPT,
        hf_name=SCRIPT,
        site=nd.Site(2, SCRIPT),
        scores={SCRIPT: 0.5},
        model=SCRIPT,
        direction={"link": f"javascript:alert(1)//{SCRIPT}"},
    )
    for shown in (hostile, nd.Prototype.load(hostile.save(tmp_path))):
        page = nd.Prototypes([shown])._repr_html_()
        tags = re.findall(r"<\s*(\w+)", page)
        assert set(tags) == {"figure", "img", "figcaption", "b", "br", "table", "tr", "td"}  # no script, no link
        assert re.findall(r'<img src="(.{22})', page) == ["data:image/png;base64,"] * 2


@pytest.mark.parametrize(
    "link", ["http://a.org", "javascript:alert(1)", "data:text/html,x", " https://a.org", "//a.org"]
)
def test_links_go_to_the_web_only(link: str) -> None:
    assert "<a " not in prototype(direction={"link": link})._repr_html_()
    assert html.escape(link) in prototype(direction={"link": link})._repr_html_()


def test_a_link_cannot_leave_its_place() -> None:
    page = prototype(direction={"link": 'https://a.org/"onmouseover="alert(1)'})._repr_html_()
    assert re.findall(r"<a ([^>]*)>", page) == [
        'href="https://a.org/&quot;onmouseover=&quot;alert(1)" rel="noreferrer noopener"'
    ]


def test_a_picture_is_opened_as_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prototype().save(tmp_path / "one")
    prototype().image.save(folder / "prototype.png", "JPEG")
    for read in (lambda: nd.Prototype.load(folder), lambda: pictures.own_png(folder / "prototype.png")):
        with pytest.raises((ValueError, OSError), match=r"prototype\.png"):
            read()
    assert cli.main(["judge", str(folder)]) == 1
    assert "prototype.png" in capsys.readouterr().err
