"""Files: whole or not there, known again by a digest, drafts of killed processes swept up, places tried before work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import nnsight_dream as nd
from nnsight_dream.alignment.encoders import image_side
from nnsight_dream.alignment.features import features
from nnsight_dream.cards import gallery
from nnsight_dream.io import cache, files
from nnsight_dream.report import pages, raters, tables
from nnsight_dream.sweeps.store import Store

KILLED = """
import os, signal, sys
from pathlib import Path
from nnsight_dream.io import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_whole(Path(sys.argv[1]), b"never")
"""


def test_a_kill_leaves_the_old_file_and_the_next_write_sweeps_up(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_whole(path, b"old")
    died = subprocess.run([sys.executable, "-c", KILLED, str(path)], env={**os.environ}).returncode
    assert died == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2  # the draft that was left
    files.write_whole(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"new"


def test_what_is_written_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name[:6]))
    files.make_folder(tmp_path / "deep" / "er")
    assert synced == ["deep", tmp_path.name[:6]]
    synced.clear()
    files.write_whole(tmp_path / "deep" / "file", b"x")
    assert synced == [".file.", "deep"]  # the content before the name
    synced.clear()
    files.write_whole(tmp_path / "deep" / "file", b"y", durable=False)
    assert synced == []


def test_every_flipped_bit_of_a_direction_or_a_cached_vector_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = torch.randn(40, generator=torch.Generator().manual_seed(0))
    path = nd.Direction(vector, nd.Site(2), 'a "digest":"000', "m", {"note": "ä"}).save(tmp_path / "d.safetensors")
    good = path.read_bytes()
    assert torch.equal(nd.Direction.load(path).vector, vector)
    for at in range(0, len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        try:
            again = nd.Direction.load(path)  # only a bit of the digest's own name may pass
        except (ValueError, NotImplementedError):
            continue
        assert torch.equal(again.vector, vector)
        assert again.label == 'a "digest":"000'
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    cache.write("shelf", "key", vector)
    (kept,) = (tmp_path / "shelf").iterdir()
    data = kept.read_bytes()
    kept.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.warns(UserWarning, match=r"cannot be used \(it is not as it was written.*made anew"):
        assert cache.read("shelf", "key", 40) is None


def test_files_of_older_versions_have_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    (tmp_path / "shelf").mkdir()
    save_file({"vector": torch.ones(3)}, tmp_path / "shelf" / "key.safetensors", {"key": "key"})
    assert torch.equal(cache.read("shelf", "key", 3), torch.ones(3))


def test_damaged_features_are_read_anew(tiny_vlm: nd.VLM, tmp_path: Path) -> None:
    pictures = [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    first = features(image_side(tiny_vlm), pictures, [1, 2], folder=tmp_path)
    values = first[1]
    (path,) = tmp_path.rglob("layer-1.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-6] + bytes([data[-6] ^ 16]) + data[-5:])
    with pytest.raises(ValueError, match=r"layer-1.safetensors cannot be used \(it is not as it was written"):
        first[1]
    with pytest.warns(UserWarning, match="it is made anew"):
        again = features(image_side(tiny_vlm), pictures, [1, 2], folder=tmp_path)
    assert again.made == 1
    assert (again[1] == values).all()
    assert path.read_bytes() == data


def test_an_impossible_place_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotADirectoryError, match=r"file is a file, so .* cannot be in it"):
        files.check_folder(tmp_path / "file" / "deep" / "er")
    with pytest.raises(OSError, match="name too long"):
        files.check_folder(tmp_path / ("x" * 300))
    with pytest.raises(IsADirectoryError, match="give a file in it"):
        files.check_file(tmp_path)
    assert files.check_folder(tmp_path / "new" / "er") == tmp_path / "new" / "er"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    if Path("/proc/self").is_dir():  # nobody can write there, root neither
        with pytest.raises(OSError, match="give another folder"):
            files.check_folder("/proc/self/x")


@pytest.mark.parametrize("write", [pages.page, raters.raters_page, tables.write_csv, gallery.page])
def test_pages_and_tables_try_their_place_first(tmp_path: Path, write: Callable[..., Path]) -> None:
    (tmp_path / "file").write_text("in the way")
    for wrong, words in (("", "a path is needed"), (tmp_path, "is a folder"), (tmp_path / "file" / "x", "is a file")):
        with pytest.raises((ValueError, OSError), match=words):
            write([] if write in (tables.write_csv, gallery.page) else Store(tmp_path / "none"), wrong)
