"""Pairs from folders, tables, COCO annotations and the bundled set; what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnsight_dream.alignment import pairs
from nnsight_dream.alignment.coco import outlines, unpacked


def picture(path: Path, colour: str = "red", mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def test_bundled_pictures_have_names_as_captions_and_masks() -> None:
    fox, squirrel = pairs.bundled(["fox", "squirrel"])
    assert fox.captions[0] == "fox"
    assert len(fox.captions) == len(pairs.PHRASES)
    assert squirrel.captions[:2] == ("squirrel", "chipmunk")
    assert fox.image.mode == "RGB"
    assert fox.mask is not None
    assert fox.mask.size == fox.image.size
    assert 0.1 < np.asarray(fox.mask).mean() / 255 < 0.95
    assert len(pairs.bundled()) == 477
    with pytest.raises(ValueError, match="one template or more"):
        pairs.bundled(["fox"], phrases=[])


def test_a_folder_with_texts_beside(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("a red field\n\nred\n")
    picture(tmp_path / "dogs" / "b.jpg", "blue").with_suffix(".txt").write_text("blue")
    picture(tmp_path / "a.mask.png", 255, "L")
    a, b = pairs.from_folder(tmp_path)
    assert a.captions == ("a red field", "red")
    assert (a.group, b.group) == ("a.png", "dogs")
    assert np.asarray(a.mask).min() == 255
    assert b.mask is None
    picture(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c\.png: no captions; put them into c\.txt"):
        pairs.from_folder(tmp_path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_tables(tmp_path: Path, ending: str) -> None:
    rows = [
        dict(file_name="x/a.png", caption="a red field", group="red", mask="m.png"),
        dict(file_name="b.png", caption="blue", group="", mask=""),
    ]
    picture(tmp_path / "x" / "a.png"), picture(tmp_path / "b.png", "blue"), picture(tmp_path / "m.png", 0, "L")
    path = tmp_path / f"metadata.{ending}"
    if ending == "csv":
        path.write_text("file_name,caption,group,mask\nx/a.png,a red field,red,m.png\nb.png,blue,,\n")
    elif ending == "parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        kept = [dict(image={"bytes": (tmp_path / r["file_name"]).read_bytes(), "path": None}, **r) for r in rows]
        parquet.write_table(
            pa.Table.from_pylist([{k: v for k, v in r.items() if k != "file_name"} for r in kept]), path
        )
    else:
        lines = [json.dumps(r) for r in rows]
        path.write_text("\n".join(lines) if ending == "jsonl" else f"[{','.join(lines)}]")
    found = pairs.from_table(path) if ending == "parquet" else pairs.from_folder(tmp_path)
    assert [p.captions for p in found] == [("a red field",), ("blue",)]
    assert found[0].group == "red"
    assert found[0].image.getpixel((0, 0)) == (255, 0, 0)
    assert np.asarray(found[0].mask).max() == 0
    assert found[1].mask is None


def test_coco(tmp_path: Path) -> None:
    picture(tmp_path / "p" / "1.jpg"), picture(tmp_path / "p" / "2.jpg", "blue")
    images = [dict(id=7, file_name="1.jpg"), dict(id=9, file_name="2.jpg"), dict(id=11, file_name="3.jpg")]
    said = [dict(image_id=i, caption=c) for i, c in ((7, "one "), (9, "two"), (7, "also one"))]
    (tmp_path / "captions.json").write_text(json.dumps(dict(images=images, annotations=said)))
    shapes = [
        dict(image_id=7, segmentation=[[0, 0, 3, 0, 3, 2, 0, 2]]),
        dict(image_id=7, segmentation=dict(size=[6, 8], counts=[42, 6])),
    ]
    (tmp_path / "instances.json").write_text(json.dumps(dict(images=images, annotations=shapes)))
    one, two = pairs.from_coco(tmp_path / "captions.json", tmp_path / "p", tmp_path / "instances.json")
    assert one.captions == ("one", "also one")
    mask = np.asarray(one.mask) > 0
    assert mask[:3, :4].all()
    assert mask[:, 7].all()
    assert mask.sum() == 12 + 6
    assert np.asarray(two.mask).max() == 0  # no thing: all of it is stuff
    assert len(pairs.from_coco(tmp_path / "captions.json", tmp_path / "p", most=1)) == 1
    with pytest.raises(ValueError, match="of each annotation, 'segmentation'"):
        pairs.from_coco(tmp_path / "captions.json", tmp_path / "p", tmp_path / "captions.json")
    with pytest.raises(ValueError, match="use from_coco"):
        pairs.from_table(tmp_path / "captions.json")


def packed(runs: list[int]) -> str:
    """The writer of the format, from its description."""
    text = ""
    for i, run in enumerate(runs):
        value = run - (runs[i - 2] if i > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def test_packed_run_lengths() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        runs = random.integers(1, 3000, 9).tolist()
        assert list(unpacked(packed(runs))) == runs
    with pytest.raises(ValueError, match="run lengths of 8 x 6 for a picture of 6 x 8"):
        outlines([dict(size=[6, 8], counts=[48])], (6, 8))
    with pytest.raises(ValueError, match="run lengths of 47 pixels"):
        outlines([dict(size=[6, 8], counts=[47])], (8, 6))


def test_a_data_set_by_name_is_streamed(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps(dict(image=f"{i}.png", said=[f"number {i}"])) for i in range(9)))
    found = pairs.from_hub("json", "train", most=3, captions="said", data_files=str(path), cache_dir=str(tmp_path))
    assert [p.captions for p in found] == [("number 0",), ("number 1",), ("number 2",)]
    with pytest.raises(ValueError, match="no column text; there are image, said"):
        pairs.from_hub("json", "train", most=3, captions="text", data_files=str(path), cache_dir=str(tmp_path))


def test_pictures_of_a_data_set_stay_as_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = [str(picture(tmp_path / f"{i}.png", c)) for i, c in enumerate(("red", "blue", "green"))]
    masks = [str(picture(tmp_path / f"m{i}.png", 255 * (i == 0), "L")) for i in range(3)]
    told = dict(image=files, mask=masks, said=["a red field", "blue", "green"], thing=["a", "a", "b"])
    columns = dict(image=datasets.Image(), mask=datasets.Image(), said=datasets.Value("string"))
    table = datasets.Dataset.from_dict(told, datasets.Features(columns | dict(thing=datasets.Value("string"))))
    table.to_parquet(tmp_path / "d.parquet")
    options = dict(data_files=str(tmp_path / "d.parquet"), cache_dir=str(tmp_path))
    found = pairs.from_hub("parquet", "train", most=2, captions="said", mask="mask", group="thing", **options)
    assert [p.group for p in found] == ["a", "a"]
    assert not any(hasattr(p.source, "convert") for p in found)  # not decoded yet
    assert found[1].image.getpixel((0, 0)) == (0, 0, 255)
    assert [np.asarray(p.mask).max() for p in found] == [255, 0]
    with pytest.raises(ValueError, match="most=0"):
        pairs.from_hub("parquet", "train", most=0, **options)


def test_alpha_is_a_mask_and_its_ground_white() -> None:
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    picture.putpixel((1, 1), (0, 0, 255, 255))
    found = pairs.pair("dot", picture, "a dot")
    assert found.image.getpixel((0, 0)) == (255, 255, 255)
    assert found.mask is not None
    assert np.asarray(found.mask).sum() == 255


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        pairs.from_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="no pair of a picture and a caption"):
        pairs.from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file"):
        pairs.from_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"allowed are \.jsonl"):
        pairs.from_table(picture(tmp_path / "a.png"))
    for said in ([], None, "", ["a", " "], [3]):
        with pytest.raises(ValueError, match="x: one caption or more is needed"):
            pairs.pair("x", Image.new("RGB", (2, 2)), said)
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps(dict(file="a.png", caption="x")))
    with pytest.raises(ValueError, match=r"t\.jsonl, row 0: columns file_name \(or image\).*there are file, caption"):
        pairs.from_table(table)
    table.write_text(json.dumps(dict(file_name="b.png", caption="x")))
    with pytest.raises(FileNotFoundError, match=r"no file .*b\.png"):
        pairs.from_table(table)
    row = json.dumps(dict(file_name="a.png", caption="x"))
    table.write_text(f"{row}\n{row}\n")
    with pytest.raises(ValueError, match=r"'a\.png' comes twice"):
        pairs.from_table(table)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="b cannot be read as a picture"):
        _ = pairs.pair("b", tmp_path / "broken.png", "x").image
    with pytest.raises(ValueError, match="the picture is 4 x 4, its mask"):
        _ = pairs.pair("c", Image.new("RGB", (4, 4)), "x", None, Image.new("L", (3, 3))).mask


# -- from the world ----------------------------------------------------------------------------------------------

ENDS = "\u2028\u2029\x85\x0b\x0c\x1c"


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marks_and_line_separators(tmp_path: Path, coding: str) -> None:
    caption = f"one{ENDS}two \U0001f98a é"
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    row = json.dumps(dict(file_name="a.png", caption=caption), ensure_ascii=False)
    tables = {
        "t.csv": f'file_name,caption\r\na.png,"{caption}"\r\n',
        "semicolons.csv": f"file_name; caption\na.png;{caption}\n",
        "t.json": f"[{row}]",
        "t.jsonl": f"{row}\r\n\r\n",
    }
    for name, text in tables.items():
        (tmp_path / name).write_bytes(text.encode(coding))
        assert [p.captions for p in pairs.from_table(tmp_path / name)] == [(caption,)]
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_bytes(f"{caption}\r\nred\rblue\n".encode(coding))
    assert [p.captions for p in pairs.from_folder(tmp_path)] == [(caption, "red", "blue")] * 2


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("file_name,caption\na.png,red\na.png,café\n".encode("cp1252"), r"line 3: not UTF-8.*cp1252: save it as UTF-8"),
        ("file_name,caption\na.png,red\n".encode("utf-16-le"), "NUL characters, as UTF-16 without its mark does"),
        (b'file_name,caption\na.png,"red\n', "unexpected end of data; save it as CSV anew"),
        (b"file_name,caption\na.png,red, round\n", "row 0: more columns than the first line"),
        (b"file_name,caption\na.png\n", "a.png: one caption or more is needed"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, raw: bytes, words: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "t.csv").write_bytes(raw)
    with pytest.raises(ValueError, match=words):
        pairs.from_table(tmp_path / "t.csv")


def test_rows_that_are_none(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    table = tmp_path / "t.jsonl"
    for text, words in (
        ('{"file_name": "a.png", "caption": "\\ud83e"}', "half a character"),
        ("[1]", "row 0: a row is an object with columns; got list"),
        ('\n{"file_name":', "line 2: no JSON"),
        ("[" * 100000, "line 1: no JSON"),
        (
            '{"left_file_name": "a.png", "right_file_name": "a.png", "text": "x"}',
            "which is the picture, left_file_name or",
        ),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=words):
            pairs.from_table(table)
    table.write_text('{"file_name": "A.png", "caption": "x"}')
    if not (tmp_path / "A.png").exists():
        with pytest.raises(FileNotFoundError, match=r"no file .*A\.png; there is a\.png"):
            pairs.from_table(table)


def test_files_as_other_systems_name_them(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png"), picture(tmp_path / "e\u0301.png")
    rows = [dict(file_name="in\\a.png", text="x"), dict(file_name="\xe9.png", text="y")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [p.name for p in pairs.from_folder(tmp_path)] == ["in/a.png", "\xe9.png"]
    assert [p.image.getpixel((0, 0)) for p in pairs.from_folder(tmp_path)] == [(255, 0, 0)] * 2


def test_what_systems_leave_beside_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("red")
    picture(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png")
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/._b.png", ".git/metadata.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert [p.name for p in pairs.from_folder(tmp_path)] == ["a.png"]


@pytest.mark.parametrize(
    ("columns", "captions"),
    [
        (dict(file_name="a.png", text="x"), ("x",)),
        (dict(image_file_name="a.png", captions=["x", "y"]), ("x", "y")),
        (dict(front_file_name="a.png", mask_file_name="m.png", caption="x"), ("x",)),
        (dict(file_name="a.png", caption_0="x", caption_1="y", caption_10="z"), ("x", "y", "z")),
        (dict(file_name="a.png", captions=None, caption="x"), ("x",)),
    ],
)
def test_columns_of_a_hubs_folder(tmp_path: Path, columns: dict, captions: tuple) -> None:
    for part in ("train", "test"):
        picture(tmp_path / part / "a.png"), picture(tmp_path / part / "m.png", 255, "L")
        (tmp_path / part / "metadata.jsonl").write_text(json.dumps(columns))
    found = pairs.from_folder(tmp_path)
    assert [(p.name, p.group, p.captions) for p in found] == [
        (f"{s}/a.png",) * 2 + (captions,) for s in ("test", "train")
    ]
    assert found[0].image.getpixel((0, 0)) == (255, 0, 0)
    assert (found[0].mask is not None) == ("mask_file_name" in columns)


def test_a_folder_with_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    picture(tmp_path / "a.png")
    parquet.write_table(pa.Table.from_pylist([dict(file_name="a.png", text="x")]), tmp_path / "metadata.parquet")
    assert [p.captions for p in pairs.from_folder(tmp_path)] == [("x",)]
    (tmp_path / "metadata.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        pairs.from_folder(tmp_path)


def test_masks_go_with_their_pictures(tmp_path: Path) -> None:
    mask = Image.new("RGBA", (6, 4), (255, 255, 255, 0))
    mask.putpixel((1, 0), (255, 255, 255, 255))
    found = pairs.pair("a", Image.new("RGB", (6, 4)), "x", None, mask).mask
    assert found is not None
    assert np.asarray(found).sum() == np.asarray(found)[0, 1] == 255  # what is clear is ground
    exif = Image.Exif()
    exif[274] = 6
    mask.save(tmp_path / "turned.png", exif=exif)
    turned = pairs.pair("a", tmp_path / "turned.png", "x")
    assert turned.image.size == (4, 6)
    assert turned.mask is not None
    assert np.argwhere(np.asarray(turned.mask)).tolist() == [[1, 3]]
    outlined = pairs.Pair("a", ("x",), "a", tmp_path / "turned.png", pairs.Outlines(([[0, 0, 3, 0, 3, 5, 0, 5]],)))
    assert outlined.mask is not None
    assert outlined.mask.size == (4, 6)


@pytest.mark.parametrize(
    ("segment", "words"),
    [
        ([[0, 0, float("nan"), 0, 3, 3]], "a polygon is x and y in turn, finite numbers"),
        ([[0, 0, 1e400, 0, 3, 3]], "a polygon is x and y in turn, finite numbers"),
        ([[0, 0, 1e30, 0, 3, 3]], "a polygon is x and y in turn"),
        ([[0, 0, 3, 0, 3, 3, 1]], "a polygon is x and y in turn"),
        ([["a", 0, 3, 0, 3, 3]], "a polygon is x and y in turn"),
        ([[0, 0, None, 0, 3, 3]], "a polygon is x and y in turn"),
        ("polygon", "a segmentation is a list of polygons or run lengths"),
        ({"size": [4, 4], "counts": [20, -4]}, "run lengths are counts and a size"),
        ({"size": [4, 4], "counts": [1.5, 14.5]}, "run lengths are counts and a size"),
        ({"size": [4, 4]}, "run lengths are counts and a size"),
        ({"size": None, "counts": [16]}, "run lengths are counts and a size"),
        ({"size": [4, 4], "counts": "\u20ac\u20ac"}, "run lengths"),
    ],
)
def test_outlines_that_are_none(segment: object, words: str) -> None:
    with pytest.raises(ValueError, match=f"dot: .*{words}"):
        _ = pairs.Pair("dot", ("x",), "dot", Image.new("RGB", (4, 4)), pairs.Outlines((segment,))).mask


def test_coco_with_rows_that_lack_something(tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    for found, words in (
        (
            dict(images=[dict(id=1)], annotations=[dict(image_id=1, caption="x")]),
            "image 0 has id, not id and file_name",
        ),
        (dict(images=[], annotations=[dict(image_id=1, caption="x"), dict(caption="y")]), "annotation 1 has caption"),
        ([], "COCO annotations with images"),
    ):
        file.write_text(json.dumps(found), encoding="utf-8-sig")
        with pytest.raises(ValueError, match=words):
            pairs.from_coco(file, tmp_path)
