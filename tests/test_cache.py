"""The cache folder: where it is, whole files only, and never a reason to fail."""

import os
import re
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nnsight_dream.io import cache, files


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "mine"))
    cache._warn_once.cache_clear()
    return tmp_path / "mine"


def test_round_trip_is_exact_and_leaves_nothing_else(folder):
    value = torch.randn(7)
    assert cache.read("shelf", "key", 7) is None
    cache.write("shelf", "key", value)
    assert torch.equal(cache.read("shelf", "key", 7), value)
    assert [p.name for p in folder.rglob("*") if p.is_file()] == ["key.safetensors"]


@pytest.mark.parametrize(
    ("platform", "environment", "place"),
    [
        ("linux", {"NNSIGHT_DREAM_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ("linux", {"NNSIGHT_DREAM_CACHE": "~/c"}, "/home/me/c"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/nnsight-dream"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/home/me/.cache/nnsight-dream"),
        ("linux", {}, "/home/me/.cache/nnsight-dream"),
        ("darwin", {}, "/home/me/Library/Caches/nnsight-dream"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/nnsight-dream/Cache"),
        ("win32", {}, "/home/me/AppData/Local/nnsight-dream/Cache"),
    ],
)
def test_where_it_is(monkeypatch, platform, environment, place):
    for name in ("NNSIGHT_DREAM_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache.folder() == Path(place)


def damage(path, how):
    good = path.read_bytes()
    vector = torch.zeros(5)
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(good[:-3])
    elif how == "garbage":
        path.write_bytes(os.urandom(200))
    elif how == "width":
        save_file({"vector": torch.zeros(6)}, path, {"key": "key"})
    elif how == "name":
        save_file({"other": vector}, path, {"key": "key"})
    elif how == "type":
        save_file({"vector": vector.double()}, path, {"key": "key"})
    elif how == "nan":
        save_file({"vector": vector / 0}, path, {"key": "key"})
    elif how == "key":
        save_file({"vector": vector}, path, {"key": "another"})


@pytest.mark.parametrize("how", ["empty", "cut", "garbage", "width", "name", "type", "nan", "key"])
def test_a_damaged_file_counts_as_none_and_can_be_replaced(folder, how):
    cache.write("shelf", "key", torch.ones(5))
    damage(folder / "shelf" / "key.safetensors", how)
    with pytest.warns(UserWarning, match="cannot be used .* made anew"):
        assert cache.read("shelf", "key", 5) is None
    cache.write("shelf", "key", torch.ones(5))
    assert torch.equal(cache.read("shelf", "key", 5), torch.ones(5))


def test_many_writers_and_readers_meet_only_whole_files(folder):
    stop, seen, trouble = threading.Event(), set(), []
    values = [torch.full((2000,), float(i)) for i in range(4)]

    def write(value):
        while not stop.is_set():
            cache.write("shelf", "key", value)

    def look():
        try:
            for _ in range(150):
                value = cache.read("shelf", "key", 2000)
                if value is not None:
                    assert value.unique().numel() == 1
                    seen.add(float(value[0]))
        except BaseException as error:
            trouble.append(error)

    writers = [threading.Thread(target=write, args=(v,)) for v in values]
    readers = [threading.Thread(target=look) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in (*writers, *readers):
            thread.start()
        for thread in readers:
            thread.join()
        stop.set()
        for thread in writers:
            thread.join()
    assert not trouble
    assert seen <= {0.0, 1.0, 2.0, 3.0}
    assert seen
    assert [p.name for p in folder.rglob("*") if p.is_file()] == ["key.safetensors"]


def test_a_failed_write_leaves_the_old_file_and_no_draft(folder, monkeypatch):
    path = folder / "file"
    folder.mkdir()
    path.write_bytes(b"old")

    def fail(*_):
        raise PermissionError("held by another program")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(folder.iterdir()) == [path]


def unwritable(tmp_path, how, monkeypatch):
    place = tmp_path / "blocked"
    if how == "a file stands there":
        place.write_text("in the way")
    elif how == "no permission":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        place.mkdir(mode=0o500)
    else:
        monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    return place


@pytest.mark.parametrize("how", ["a file stands there", "no permission", "read-only file system"])
def test_a_folder_that_cannot_be_written_warns_once_and_the_advice_helps(tmp_path, monkeypatch, how):
    place = unwritable(tmp_path, how, monkeypatch)
    monkeypatch.setenv(cache.FOLDER, str(place))
    with pytest.warns(
        UserWarning, match=f"nothing can be kept in the cache folder {re.escape(str(place))}.*set {cache.FOLDER}"
    ):
        cache.write("shelf", "key", torch.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.write("shelf", "key", torch.ones(3))
        assert cache.read("shelf", "key", 3) is None
    monkeypatch.undo()
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "better"))
    cache.write("shelf", "key", torch.ones(3))
    assert cache.read("shelf", "key", 3) is not None


def test_no_home_folder_is_no_reason_to_fail(monkeypatch):
    def lost():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(cache.FOLDER)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lost)
    assert cache.read("shelf", "key", 3) is None
    with pytest.warns(UserWarning, match="no home folder"):
        cache.write("shelf", "key", torch.ones(3))
