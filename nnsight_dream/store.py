"""A store: a folder that keeps what a sweep made and what judges said of it, whole at every moment.

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
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import arguments
from .cache import write_whole
from .plain import encodable, plain
from .prototype import Prototype

RECORD = "job.json"


@dataclass(frozen=True)
class Job:
    """One picture to make.

    concept    as it is shown and judged, such as "spring (season)"
    category   what a judge is told with a hint, such as "animal"; empty for none
    layer      from 1, or the name of a site
    seed       of the ascent
    prompt     the words that the direction is made of; the concept itself if empty
    control    empty, or "random": a random direction of the same norm takes the place of the concept's
    pooling    "attention", "mean" or "max"; empty leaves the settings' own
    """

    concept: str
    category: str = ""
    layer: int | str = 1
    seed: int = 0
    prompt: str = ""
    control: str = ""
    pooling: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.concept, str) or not self.concept.strip():
            raise ValueError(f"concept={arguments.shown(self.concept)}: a word or phrase is needed, such as 'octopus'")
        fields = dict(
            concept=arguments.text(self.concept, "concept"),
            category=arguments.text(self.category, "category", "animal"),
            prompt=arguments.text(self.prompt, "prompt", "octopus"),
            control=arguments.choice(self.control, "control", ("", "random")),
            pooling=arguments.choice(self.pooling, "pooling", ("", "attention", "mean", "max")),
            seed=arguments.whole(self.seed, "seed", 0, arguments.SEED_MOST),
            layer=_one_layer(self.layer),
        )
        for name, value in fields.items():  # plain Python, so that a job is the same in every guise of its numbers
            object.__setattr__(self, name, value)

    @property
    def words(self) -> str:
        """What the direction is made of."""
        return self.prompt or self.concept

    def key(self, **given: Any) -> str:
        """The folder's name: concept, layer and seed for people, and a hash of the job and of all else that decides.

        `given` is plain data (model, settings ...), the same for equal results.
        """
        told = json.dumps({**dataclasses.asdict(self), **given}, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        layer = slug(str(self.layer), 40)
        return "-".join(filter(None, (slug(self.concept), self.control, f"L{layer}", f"s{self.seed}", digest)))


def _one_layer(value: Any) -> int | str:
    try:
        layers, single = arguments.layers(value)
    except TypeError:
        layers, single = [], False
    if not single or not isinstance(layers[0], (int, str)) or not str(layers[0]).strip():
        raise ValueError(
            f"layer={arguments.shown(value)}: a layer from 1, or the name of a site such as "
            "'blocks.3.hook_resid_post', is needed; jobs_of takes several layers"
        )
    return layers[0]


def slug(text: str, most: int = 40) -> str:
    """Letters, digits and single hyphens only, so that any name is a safe and readable file name on any system.

    >>> slug("../../x <script>")
    'x-script'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-").lower()[:most].strip("-") or "concept"


@dataclass(frozen=True)
class Entry:
    """A finished job: its `key`, the `job`, and the `folder` that holds its files."""

    key: str
    job: Job
    folder: Path

    def prototype(self) -> Prototype:
        """The picture with its history and settings."""
        return Prototype.load(self.folder)


@dataclass(frozen=True)
class Failure:
    """A job that raised: `error` in one line, `trace` in full, `when` it was."""

    key: str
    job: Job
    error: str
    trace: str
    when: str


class Store:
    """What a sweep made, in a folder; any number of processes may read and write it at once.

    Raises NotADirectoryError where the path is a file, FileNotFoundError for a folder that must exist and does not.
    """

    def __init__(self, folder: str | os.PathLike[str], *, must_exist: bool = False):
        if isinstance(folder, Store):
            raise TypeError(f"folder={folder!r} is a store already: use it as it is")
        self.folder = arguments.folder(folder)
        self._enrolled: dict[str, str] = {}
        if must_exist and not (self.folder / "jobs").is_dir():
            raise FileNotFoundError(f"{self.folder} is no store: it has no folder jobs; nd.sweep makes one")

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}: {sum(1 for _ in self.keys())} finished)"

    # -- jobs ----------------------------------------------------------------------------------------------------

    def place(self, key: str) -> Path:
        """The folder of a job."""
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9-]+", key):
            raise ValueError(f"{arguments.shown(key)} is no key of a job: letters, digits and hyphens only")
        return self.folder / "jobs" / key

    def has(self, key: str) -> bool:
        """Whether a job is finished."""
        return (self.place(key) / RECORD).is_file()

    def put(self, key: str, job: Job, prototype: Prototype) -> Path:
        """Keep a finished job, whole or not at all; what is there already stays. Raises OSError."""
        place = self.place(key)
        if not self.has(key):
            prototype.save(place)
            write_whole(place / RECORD, _json(dataclasses.asdict(job)))
        with contextlib.suppress(FileNotFoundError):
            self._failure(key).unlink()
        return place

    def keys(self) -> Iterator[str]:
        """Keys of the finished jobs, sorted."""
        for record in sorted((self.folder / "jobs").glob(f"*/{RECORD}")):
            yield record.parent.name

    def entries(self) -> Iterator[Entry]:
        """The finished jobs, by key."""
        for key in self.keys():
            place = self.place(key)
            yield Entry(key, _job(place / RECORD), place)

    def fail(self, key: str, job: Job, error: BaseException) -> None:
        """Record that a job raised. Raises OSError."""
        told = dict(
            job=dataclasses.asdict(job),
            error=f"{type(error).__name__}: {' '.join(str(error).split())}",
            trace="".join(traceback.format_exception(error)),
            when=now(),
        )
        path = self._failure(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _json(told))

    def failures(self) -> Iterator[Failure]:
        """The jobs that raised and have not been made since, by key."""
        for path in sorted((self.folder / "failed").glob("*.json")):
            told = json.loads(path.read_text(encoding="utf-8"))
            yield Failure(path.stem, _job_of(told.pop("job")), **told)

    def _failure(self, key: str) -> Path:
        return self.folder / "failed" / f"{self.place(key).name}.json"

    # -- jobs on a server ----------------------------------------------------------------------------------------

    def record(self, name: str, where: str, job: str) -> None:
        """Keep the id of a job on a server `where`, so that whoever goes on collects it. Raises OSError."""
        path = self._remote(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _json({"where": where, "job": job, "when": now()}))

    def recorded(self, name: str, where: str) -> str | None:
        """The id that was kept under a name for a server, or None."""
        try:
            told = json.loads(self._remote(name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return str(told["job"]) if told.get("where") == where else None

    def forget(self, name: str) -> None:
        """The job under a name is collected, or lost."""
        self._remote(name).unlink(missing_ok=True)

    def _remote(self, name: str) -> Path:
        return self.folder / "remote" / f"{slug(name, 80)}.json"

    # -- judges' answers -----------------------------------------------------------------------------------------

    def answers(self, key: str, judge: str, *, exact: bool = False) -> list[dict[str, Any]]:
        """What a judge said of a picture, one plain record for each answer, in the order it was said.

        judge   its name, or the short one that `judges` gives; exact: its name only

        A last line that a kill or a full disk cut short counts as not said.
        """
        path = self._answers(key, self._short(judge, exact))
        if not path.is_file():
            return []
        lines = path.read_bytes().split(b"\n")
        found = []
        for n, line in enumerate(lines[:-1]):  # what follows the last line end was cut short
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {n + 1}, is not an answer: {error}; remove the line") from None
        return found

    def add_answers(self, key: str, judge: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a judge's answers; they are on disk when this returns. Raises OSError."""
        if not rows:
            return
        path = self._answers(key, self.enroll(judge))
        data = "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows).encode()
        with open(path, "ab") as file, _locked(file.fileno()):
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

    def judges(self) -> list[str]:
        """The judges that answered anything, by a short name each; by its own where the short one is another's name."""
        found = {p.name for p in (self.folder / "jobs").glob("*/answers-*.jsonl")}
        shorts = sorted(n.removeprefix("answers-").removesuffix(".jsonl") for n in found)
        return [s if self._short(s, exact=False) == s else self._owner(s) or s for s in shorts]

    def enroll(self, judge: str) -> str:
        """The short name under which a judge's answers lie; names that look alike as file names get one each.

        Raises OSError.
        """
        if judge not in self._enrolled:
            (self.folder / "judges").mkdir(parents=True, exist_ok=True)
            with open(self.folder / "judges" / ".lock", "ab") as file, _locked(file.fileno()):
                short = self._short(judge, exact=True)
                if self._owner(short) is None:
                    write_whole(self.folder / "judges" / f"{short}.json", _json({"name": encodable(judge)}))
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
        return self.place(key) / f"answers-{short}.jsonl"

    # -- several processes ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process may work on something that no other works on; free again once it ends or dies."""
        path = self.folder / "locks" / f"{slug(name, 80)}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            yield _try_lock(file.fileno())


def _job(path: Path) -> Job:
    try:
        return _job_of(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a job's record: {error}; remove the folder to make it anew") from error


def _job_of(record: Mapping[str, Any]) -> Job:
    """A job as it was written; one of an older version may hold a category that is no text, or null."""
    texts = {name: record.get(name) for name in ("category", "prompt", "control", "pooling")}
    return Job(**{**record, **{name: "" if text is None else str(text) for name, text in texts.items()}})


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


try:
    import fcntl

    @contextlib.contextmanager
    def _locked(descriptor: int) -> Iterator[None]:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield  # closing the file frees it

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

except ImportError:  # no locks on this system: work may be done twice, but what is written stays whole

    @contextlib.contextmanager
    def _locked(descriptor: int) -> Iterator[None]:
        yield

    def _try_lock(descriptor: int) -> bool:
        return True
