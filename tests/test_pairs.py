"""Pairs from folders, tables, COCO annotations and the bundled set; what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnsight_dream import pairs
from nnsight_dream.coco import outlines, unpacked


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
