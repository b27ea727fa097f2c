"""Entries of a store: finished jobs, what their records say, and whether their files are as they were written."""

from __future__ import annotations

import functools
import io
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..io.files import damage, digest, is_sealed
from ..synthesis.prototype import PICTURE, Prototype
from ..synthesis.reach import Reach
from .jobs import job_of

if TYPE_CHECKING:
    from .jobs import Job


RECORD = "job.json"


PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Entry:
    """A finished job: its `key`, the `job`, the `folder` that holds its files, and all its `record` says."""

    key: str
    job: Job
    folder: Path
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def prototype(self) -> Prototype:
        """The picture with its history and settings. Raises ValueError where a file is not as it was written."""
        self.check()
        return Prototype.load(self.folder)

    def check(self) -> None:
        """Raise ValueError that names the file which is not as it was written."""
        if flaw := find_flaw(self.folder, self.record):
            raise ValueError(f"{self.folder}: {flaw}; a sweep of the same jobs makes it anew")

    @property
    def model(self) -> str:
        """The model that the picture is of, with its revision."""
        return _model(self._about)

    @property
    def settings(self) -> str:
        """Steps and a hash of all that was chosen but model and job: equal for pictures that can be compared."""
        return str(self._about["settings"])

    @property
    def reach(self) -> Reach | None:
        """The picture's score beside the best real picture's; None where that was not measured when it was made."""
        record = self.record.get("reach")
        return None if record is None else Reach.of_record(record)

    @functools.cached_property
    def _about(self) -> Mapping[str, Any]:
        return self.record if "settings" in self.record else _about_of(self.folder)


@dataclass(frozen=True)
class Failure:
    """A job that raised: `error` in one line, `trace` in full, `when` it was."""

    key: str
    job: Job
    error: str
    trace: str
    when: str


def read_record(path: Path) -> dict[str, Any]:
    """A job's record. Raises ValueError for one that is not as it was written, FileNotFoundError for none."""
    if path.is_symlink():
        raise ValueError(f"{path.name} is a link, which a store does not follow")
    try:
        record = json.loads(path.read_bytes().decode())
        job_of(record)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is not a job's record: {error}") from error
    if not is_sealed(record):
        raise ValueError(f"{path.name} is not as it was written")
    return record


def find_flaw(place: Path, record: Mapping[str, Any]) -> str:
    """What is wrong with the files beside a record; a record of an older version has no digests to compare with."""
    if isinstance(record.get("files"), dict):
        return damage(place, record["files"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Prototype.load(place)
        data = (place / PICTURE).read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()  # the checksum of every chunk
        return "" if data.endswith(PNG_END) else f"{PICTURE} was cut short"
    except (OSError, SyntaxError, ValueError) as error:
        return " ".join(str(error).split())


def about(prototype: Prototype, of: dict[str, Any]) -> dict[str, Any]:
    """The part of a record about the model and the settings of a picture."""
    steps = prototype.settings.get("steps", "?")
    choices = {k: v for k, v in of.items() if k not in ("model", "revision", "weights")}
    if not choices:
        settings = {k: v for k, v in prototype.settings.items() if k not in ("at_once", "terms")}
        choices = {"settings": re.sub(r" at 0x[0-9a-f]+", "", json.dumps(settings, sort_keys=True, default=str))}
        choices |= {"image_size": prototype.image_size, "straight_through": prototype.straight_through}
    text = json.dumps(choices, sort_keys=True, default=str)
    name = dict(model=prototype.model, revision=prototype.revision)
    reach = {} if prototype.reach is None else {"reach": prototype.reach.record()}
    return {**name, "settings": f"{steps} steps, {digest(text.encode())[:6]}", "of": of, **reach}


def _about_of(place: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return about(Prototype.load(place), {})


def _model(about: Mapping[str, Any]) -> str:
    revision = about.get("revision")
    return f"{about['model']}{f' @ {str(revision)[:8]}' if revision else ''}"
