"""Files that are whole: written at once or not at all, safe from a power cut, and known again by a digest.

Every draft is locked while it is written, so that whoever comes later can tell one that a kill left behind.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import arguments

# not filelock, which locks a file beside the one that it means, and leaves it there: here drafts and folders themselves
# are locked, so that nothing of ours is left in a user's folder, and a killed process's draft is told by its own lock
try:
    import fcntl
except ImportError:  # no locks on this system
    fcntl = None  # type: ignore[assignment]


DIGEST = "digest"


TRIES = 20  # another process may take a draft, in the moment before it is locked, for one that was left behind


OLD = 3600.0  # seconds after which a draft counts as left behind where there are no locks


SPARE = 2**20  # bytes that a folder must take before long work starts


def digest(data: bytes) -> str:
    """A digest of bytes, 32 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()[:32]


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that readers, and other writers, only ever meet it complete. Raises OSError.

    durable   whether it must be there after a power cut too: file and folder then reach the disk before this returns

    What a killed process left of the same file is swept up.
    """
    for trial in range(TRIES):
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            _write(draft, path, data, durable)
            break
        except FileNotFoundError:
            if trial == TRIES - 1 or not path.parent.is_dir():
                raise
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    if durable:
        reach_disk(path.parent)
    sweep_up(path.parent, path.name)


def _write(draft: Path, path: Path, data: bytes, durable: bool) -> None:
    with open(draft, "xb") as file:
        if fcntl is not None:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH)
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
        if fcntl is not None:  # still locked
            os.replace(draft, path)
    if fcntl is None:
        os.replace(draft, path)


def reach_disk(folder: Path) -> None:
    """Let the names in a folder reach the disk, where the system can do that for a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_new(path: Path, data: bytes) -> Path:
    """Write a file under its name, or with -2, -3 and so on where others of other content have it; returns where."""
    with locked(path.parent):
        chosen, copy = path, 2
        while os.path.lexists(chosen) and not (chosen.is_file() and chosen.read_bytes() == data):
            chosen, copy = path.with_name(f"{path.stem}-{copy}{path.suffix}"), copy + 1
        if not chosen.exists():
            write_whole(chosen, data)
    return chosen


def make_folder(folder: Path) -> None:
    """Make a folder and those that hold it, so that they are there after a power cut too. Raises OSError."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for part in missing:
        reach_disk(part.parent)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process is in this block for the same folder, where the system has such locks."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network disks have none
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sweep_up(folder: Path, name: str = "") -> int:
    """Remove the drafts that killed processes left in a folder, all or those of one file; returns how many."""
    removed = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            start = f".{name}." if name else "."
            if entry.name.startswith(start) and _is_draft(entry.name) and _left_behind(Path(entry.path)):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    removed += 1
    return removed


def _is_draft(name: str) -> bool:
    """Whether a name is one that `write_whole` gives: a point, the file's name, 32 digits, `.tmp`."""
    parts = name.rsplit(".", 2)
    return len(parts) == 3 and parts[2] == "tmp" and len(parts[1]) == 32 and not set(parts[1]) - set("0123456789abcdef")


def _left_behind(draft: Path) -> bool:
    """Whether no process holds a draft any more."""
    try:
        if fcntl is None:
            return time.time() - draft.stat().st_mtime > OLD
        descriptor = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def to_json(value: Any) -> bytes:
    """A value as JSON for people to read."""
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with a digest of its content."""
    content = {k: v for k, v in record.items() if k != DIGEST}
    return {**content, DIGEST: digest(_canonical(content))}


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Whether a record is as it was sealed; one without a digest, of an older version, counts as such."""
    content = {k: v for k, v in record.items() if k != DIGEST}
    return DIGEST not in record or record[DIGEST] == digest(_canonical(content))


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, ensure_ascii=True).encode()


def damage(folder: Path, digests: Mapping[str, str]) -> str:
    """What is wrong with the files of a folder, whose digests are known by name; empty if they are as written."""
    for name, expected in digests.items():
        if Path(name).is_absolute() or ".." in Path(name).parts or not isinstance(expected, str):
            return f"its record names {name!r}, which is no file of this folder"
        path = folder / name
        try:
            if path.is_symlink():
                return f"{name} is a link"
            if digest(path.read_bytes()) != expected:
                return f"{name} is not as it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return ""


_MARK, _ZEROS = b'"digest":"', b"0" * 64


def pack(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Tensors and texts as the bytes of a safetensors file that holds a digest of itself."""
    from safetensors.torch import save

    raw = save(dict(tensors), {**metadata, DIGEST: _ZEROS.decode()})
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8:end]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)  # in one order of keys: the same content is the same bytes
    data = len(header).to_bytes(8, "little") + header + raw[end:]
    return data.replace(_MARK + _ZEROS, _MARK + hashlib.sha256(data).hexdigest().encode(), 1)


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and texts of a safetensors file. Raises ValueError for one that is not as `pack` made it.

    A file without a digest, of an older version, is taken as it is.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"it is no safetensors file: {error}") from None
    metadata = dict(header.get("__metadata__", {}))
    if (own := metadata.pop(DIGEST, None)) is not None:
        blank = data.replace(_MARK + own.encode(), _MARK + _ZEROS, 1)
        if hashlib.sha256(blank).hexdigest() != own:
            raise ValueError("it is not as it was written: bytes of it have changed")
    return tensors, metadata


def check_folder(folder: Any, name: str = "folder", *, room: int = SPARE) -> Path:
    """A folder into which files can be written, now, before the work that fills it; nothing is left in it.

    room   bytes that it must have place for

    Raises as `arguments.folder`; PermissionError where nothing can be written; OSError for a disk that is full or
    cannot be written, and for a name that is not possible.
    """
    place = arguments.folder(folder, name)
    there = next((part for part in (place, *place.parents) if part.is_dir()), Path())
    probe = there / f".{uuid.uuid4().hex}.tmp"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(place)  # a name that is too long
        with _probing(probe):
            free = shutil.disk_usage(there).free
            if free < room:
                raise OSError(errno.ENOSPC, f"{free / 1e6:.1f} MB are free, {room / 1e6:.1f} MB are needed")
    except OSError as error:
        what = f"no file can be written in {there}" if error.errno in (errno.EACCES, errno.EPERM) else str(there)
        message = f"{name}={str(place)!r}: {what}: {error.strerror or error}; give another folder"
        raise type(error)(error.errno, message) from None
    return place


@contextlib.contextmanager
def _probing(probe: Path) -> Iterator[None]:
    """A file of some size that is there for the block."""
    try:
        with open(probe, "xb") as file:
            file.write(bytes(2**16))
            file.flush()
            os.fsync(file.fileno())
        yield
    finally:
        probe.unlink(missing_ok=True)


def option_path(text: str) -> Path:
    """The path that an option of a command gives; an empty one is not the folder that one is in.

    Raises argparse.ArgumentTypeError for an empty one.
    """
    import argparse

    if not text.strip():
        raise argparse.ArgumentTypeError("a path is needed; for the folder you are in, give .")
    return Path(text)


def check_file(path: Any, name: str = "path") -> Path:
    """The path of a file that can be written, now, before the work that fills it; what is there stays.

    Raises as `check_folder` of the folder that holds it; IsADirectoryError for a folder.
    """
    place = arguments.path(path, name)
    if place.is_dir():
        raise IsADirectoryError(f"{name}={str(place)!r} is a folder; give a file in it")
    check_folder(place.parent, name)
    return place


@functools.cache
def sweep_up_once(folder: Path) -> int:
    """As `sweep_up`, once a process and folder."""
    return sweep_up(folder)
