"""Jobs: one picture to make each; their keys, which name their folders in a store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import arguments


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


def job_of(record: Mapping[str, Any]) -> Job:
    """A job as it was written, whatever else its record holds; one of an older version may hold a null or a number
    for a text. Raises TypeError or ValueError for what is no job's record."""
    own = {f.name: record[f.name] for f in dataclasses.fields(Job) if f.name in record}
    texts = {name: own.get(name) for name in ("category", "prompt", "control", "pooling")}
    return Job(**{**own, **{name: "" if text is None else str(text) for name, text in texts.items()}})
