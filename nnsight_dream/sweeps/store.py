"""A store: a folder that keeps the pictures of a sweep and the answers of judges, whole at every moment.

jobs/octopus-L4-s0-1f3a…/prototype.png heat.png prototype.json   as `Prototype.save` writes them
                         job.json                                 the job; written last: with it the folder counts
                         answers-demo.jsonl                       one line for each answer of a judge, never rewritten
failed/octopus-L4-s0-1f3a….json                                   jobs that raised, with their error
locks/                                                            who works on what; free once their holder is gone
judges/gpt-5.json                                                 whose answers lie under a short name
remote/1f3a….json                                                  jobs on a server that are not collected yet, by chunk
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import BaseFileLock, FileLock, Timeout

from .. import arguments
from ..io.files import digest, make_folder, reach_disk, sealed, sweep_up, to_json, write_whole
from ..io.json_values import encodable, plain
from ..synthesis.prototype import write_over
from .entries import RECORD, Entry, Failure, about, find_flaw, read_record
from .jobs import job_of, slug

if TYPE_CHECKING:
    from ..synthesis.prototype import Prototype
    from .jobs import Job


class Store:
    """The pictures of a sweep, in a folder; any number of processes may read and write it at once.

    Raises NotADirectoryError where the path is a file, FileNotFoundError for a folder that must exist and does not.
    """

    def __init__(self, folder: str | os.PathLike[str], *, must_exist: bool = False):
        if isinstance(folder, Store):
            raise TypeError(f"folder={folder!r} is a store already: use it as it is")
        self.folder = arguments.folder(folder)
        self._enrolled: dict[str, str] = {}
        self._noted: dict[str, dict[str, Any]] = {}
        if must_exist and not (self.folder / "jobs").is_dir():
            raise FileNotFoundError(f"{self.folder} is no store, or no folder; nnsight-dream sweep makes one")

    def __fspath__(self) -> str:
        return str(self.folder)  # so that a store can stand where its folder is asked for

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}: {sum(1 for _ in self.keys())} finished)"

    # -- jobs ----------------------------------------------------------------------------------------------------

    def place(self, key: str) -> Path:
        """The folder of a job. Raises ValueError for what is no key, and for a link that leads out of the store."""
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9-]+", key):
            raise ValueError(f"{arguments.shown(key)} is no key of a job: letters, digits and hyphens only")
        return self.inside(self.folder / "jobs" / key)

    def inside(self, path: Path) -> Path:
        """A path that is in the store, whatever links are on its way. Raises ValueError for one that is not."""
        root = os.path.realpath(self.folder)
        if not os.path.realpath(path).startswith(os.path.join(root, "")):
            raise ValueError(f"{path} is, or is behind, a link that leads out of the store; remove the link")
        return path

    def has(self, key: str) -> bool:
        """Whether a job is finished, and its files are as they were written."""
        place = self.place(key)
        return (place / RECORD).is_file() and not self.flaw(key)

    def flaw(self, key: str) -> str:
        """What is wrong with the files of a finished job; empty where nothing is, or where there is no record."""
        place = self.place(key)
        try:
            return find_flaw(place, read_record(place / RECORD))
        except FileNotFoundError:
            return ""
        except ValueError as error:
            return str(error)

    def note(self, key: str, of: Mapping[str, Any]) -> None:
        """What decides beside the job, as plain data (see `Job.key`), for the record that `put` will write."""
        self._noted[key] = dict(of)

    def put(self, key: str, job: Job, prototype: Prototype) -> Path:
        """Keep a finished job, whole or not at all; what is there already, and whole, stays. Raises OSError."""
        place = self.place(key)
        if not self.has(key):
            digests = write_over(prototype, place)
            record = {**dataclasses.asdict(job), **about(prototype, self._noted.pop(key, {})), "files": digests}
            write_whole(place / RECORD, to_json(sealed(record)))
        with contextlib.suppress(FileNotFoundError):
            self._failure(key).unlink()
        return place

    def tidy(self) -> int:
        """Remove what killed processes left half-written; returns how many files."""
        places = [self.folder / name for name in ("jobs", "features", "failed", "remote", "judges")]
        below = [folder for place in places for folder, _, _ in os.walk(place)]  # which follows no links
        return sum(sweep_up(Path(folder)) for folder in below)

    def keys(self) -> Iterator[str]:
        """Keys of the finished jobs, sorted."""
        for record in sorted((self.folder / "jobs").glob(f"*/{RECORD}")):
            yield record.parent.name

    def entries(self) -> Iterator[Entry]:
        """The finished jobs, by key. Raises ValueError for a job that is not as it was written."""
        for key in self.keys():
            place = self.place(key)
            try:
                record = read_record(place / RECORD)
            except ValueError as error:
                raise ValueError(
                    f"{place}: {error}; a sweep of the same jobs makes it anew, or remove the folder to make it anew"
                ) from error
            yield Entry(key, job_of(record), place, record)

    def fail(self, key: str, job: Job, error: BaseException) -> None:
        """Record that a job raised. Raises OSError."""
        failure = dict(
            job=dataclasses.asdict(job),
            error=f"{type(error).__name__}: {' '.join(str(error).split())}",
            trace="".join(traceback.format_exception(error)),
            when=now(),
        )
        path = self._failure(key)
        make_folder(path.parent)
        write_whole(path, to_json(failure))

    def has_failed(self, key: str) -> bool:
        """Whether a job raised and was not made since."""
        return self._failure(key).is_file() and not self.has(key)

    def failures(self) -> Iterator[Failure]:
        """The jobs that raised and have not been made since, by key."""
        for path in sorted((self.folder / "failed").glob("*.json")):
            try:
                failure = json.loads(self.inside(path).read_text(encoding="utf-8"))
                yield Failure(path.stem, job_of(failure.pop("job")), **failure)
            except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
                raise ValueError(f"{path} is no record of a failure ({error!r}): remove the file") from error

    def _failure(self, key: str) -> Path:
        return self.inside(self.folder / "failed" / f"{self.place(key).name}.json")

    # -- jobs on a server ----------------------------------------------------------------------------------------

    def keep_job(self, name: str, where: str, job: str) -> None:
        """Keep the id of a job on a server `where`, so that whoever goes on collects it. Raises OSError."""
        path = self._remote(name)
        make_folder(path.parent)
        write_whole(path, to_json({"where": where, "job": job, "when": now()}))

    def kept_job(self, name: str, where: str) -> str | None:
        """The id that was kept under a name for a server, or None."""
        try:
            record = json.loads(self._remote(name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return str(record["job"]) if record.get("where") == where else None

    def drop_job(self, name: str) -> None:
        """The job under a name is collected, or lost."""
        self._remote(name).unlink(missing_ok=True)

    def record(self, name: str, where: str, job: str) -> None:
        """Old name of `keep_job`."""
        _renamed("record", "keep_job")
        self.keep_job(name, where, job)

    def recorded(self, name: str, where: str) -> str | None:
        """Old name of `kept_job`."""
        _renamed("recorded", "kept_job")
        return self.kept_job(name, where)

    def forget(self, name: str) -> None:
        """Old name of `drop_job`."""
        _renamed("forget", "drop_job")
        self.drop_job(name)

    def _remote(self, name: str) -> Path:
        return self.inside(self.folder / "remote" / f"{slug(name, 80)}.json")

    # -- judges' answers -----------------------------------------------------------------------------------------

    def answers(self, key: str, judge: str, *, exact: bool = False) -> list[dict[str, Any]]:
        """The answers of a judge on a picture, one plain record for each, oldest first.

        judge   its name, or the short one that `judges` gives; exact: its name only

        A last line that a kill or a full disk cut short does not count.

        Raises ValueError for any other line that is not as it was written.
        """
        path = self._answers(key, self._short(judge, exact))
        if not path.is_file():
            return []
        lines = path.read_bytes().split(b"\n")
        records = []
        for n, line in enumerate(lines[:-1]):  # what follows the last line end was cut short
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {n + 1}, is not an answer: {error}; remove the line") from None
            if isinstance(row, dict) and row.pop("check", None) not in (None, _check(row)):
                raise ValueError(f"{path}, line {n + 1}, is not as it was written; remove the line")
            records.append(row)
        return records

    def add_answers(self, key: str, judge: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a judge's answers; they are on disk when this returns. Raises OSError."""
        if not rows:
            return
        short = self.enroll(judge)
        path = self._answers(key, short)
        checked = [{**row, "check": _check(row)} for row in map(plain, rows)]
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in checked).encode()
        with self._locked(f"answers-{short}"), open(path, "ab") as file:
            end = file.seek(0, os.SEEK_END)
            if end:  # mend a line that was cut short
                text = path.read_bytes()
                if not text.endswith(b"\n"):
                    file.truncate(text.rfind(b"\n") + 1)
            before = os.fstat(file.fileno()).st_size
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(path, before)
                raise
        if not end:
            reach_disk(path.parent)

    def judges(self) -> list[str]:
        """The judges that answered anything, by a short name each; by its own where the short one is another's name."""
        names = {p.name for p in (self.folder / "jobs").glob("*/answers-*.jsonl")}
        shorts = sorted(n.removeprefix("answers-").removesuffix(".jsonl") for n in names)
        return [s if self._short(s, exact=False) == s else self._owner(s) or s for s in shorts]

    def enroll(self, judge: str) -> str:
        """The short name under which a judge's answers lie; names that look alike as file names get one each.

        Raises OSError.
        """
        if judge not in self._enrolled:
            make_folder(self.inside(self.folder / "judges"))
            with self._locked("judges"):
                short = self._short(judge, exact=True)
                if self._owner(short) is None:
                    write_whole(self.folder / "judges" / f"{short}.json", to_json({"name": encodable(judge)}))
            self._enrolled[judge] = short
        return self._enrolled[judge]

    def _short(self, judge: str, exact: bool) -> str:
        """Where a judge's answers are: under its name as a file name, unless that is taken by a name like it."""
        judge, short = encodable(judge), slug(judge, 80)
        unlike = f"{short[:70]}-{hashlib.sha256(judge.encode()).hexdigest()[:8]}"
        if self._owner(unlike) == judge:
            return unlike
        owner = self._owner(short)
        return short if owner in (None, judge) or (judge == short and not exact) else unlike

    def _owner(self, short: str) -> str | None:
        """The judge that a short name belongs to; None for nobody yet, as in stores of older versions."""
        try:
            return str(json.loads((self.folder / "judges" / f"{short}.json").read_text(encoding="utf-8"))["name"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _answers(self, key: str, short: str) -> Path:
        return self.inside(self.place(key) / f"answers-{short}.jsonl")

    # -- several processes ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process may work on something that no other works on; free again once it ends or dies."""
        lock = self._locked(slug(name, 80))
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock.acquire(timeout=0))
            except Timeout:
                yield False
            else:
                yield True

    def _locked(self, name: str) -> BaseFileLock:
        """A lock that the system frees when its holder ends or dies."""
        path = self.inside(self.folder / "locks" / f"{name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)


def _renamed(old: str, new: str) -> None:
    warnings.warn(f"Store.{old} is Store.{new} now; the old name goes next time", FutureWarning, stacklevel=3)


def _check(row: Mapping[str, Any]) -> str:
    """A short digest of an answer's row."""
    plain = json.loads(json.dumps({k: v for k, v in row.items() if k != "check"}))
    return digest(json.dumps(plain, sort_keys=True).encode())[:12]


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
