"""Jobs: one picture to make each; their keys, which name their folders in a store; lists of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import arguments
from ..models import checked


@dataclass(frozen=True)
class Job:
    """One picture to make.

    concept    as it is shown and judged, such as "spring (season)"
    category   the hint that a judge is given, such as "animal"; empty for none
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
        """The words of the direction."""
        return self.prompt or self.concept

    def key(self, **given: Any) -> str:
        """The folder's name: concept, layer and seed for people, and a hash of the job and of all else that decides.

        `given` is plain data (model, settings ...), the same for equal results.
        """
        text = json.dumps({**dataclasses.asdict(self), **given}, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        layer = slug(str(self.layer), 40)
        return "-".join(filter(None, (slug(self.concept), self.control, f"L{layer}", f"s{self.seed}", digest)))


def _one_layer(value: Any) -> int | str:
    try:
        layers, single = checked.layers(value)
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


@arguments.strict
def jobs_of(
    concepts: Iterable[str | tuple[str, str, str]],
    layers: Sequence[int | str] | int | str,
    *,
    seeds: Sequence[int] | int = (0,),
    poolings: Sequence[str] | str = ("",),
    controls: int = 0,
) -> list[Job]:
    """Every concept, a word or (name, category, prompt), at every layer, for every seed and pooling.

    layers, seeds, poolings   one, or a list of them
    controls   that many of the concepts, evenly spread, are also made with a random direction in their place

    Raises TypeError for concepts of another form, ValueError for nothing to do and for more controls than concepts.

    >>> import nnsight_dream as nd
    >>> [(j.concept, j.layer) for j in nd.jobs_of([("fox", "animal", ""), ("calm", "", "calm sea")], [1, 4])]
    [('fox', 1), ('calm', 1), ('fox', 4), ('calm', 4)]
    """
    triples = _concepts(concepts)
    layers, seeds, poolings = _axes(layers, seeds, poolings)
    if not triples or not layers or not seeds or not poolings:
        raise ValueError("nothing to do: at least one concept, layer, seed and pooling are needed")
    if not arguments.is_whole(controls) or not 0 <= controls <= len(triples):
        raise ValueError(f"controls={arguments.shown(controls)}: from 0 to the number of concepts, {len(triples)}")
    spread = {round(i * len(triples) / controls) for i in range(controls)} if controls else set()
    return [
        Job(name, category, layer, seed, prompt, control, pooling)
        for layer in layers
        for pooling in poolings
        for seed in seeds
        for control in ("", "random")
        for i, (name, category, prompt) in enumerate(triples)
        if not control or i in spread
    ]


FORM = (
    "concepts= is a list of words, or of (name, category, prompt) such as ('octopus', 'animal', ''), and layers= such "
    "as [1, 4]"
)


def _concepts(concepts: Any) -> list[tuple[str, str, str]]:
    try:
        items = arguments.listed(concepts, "concepts", "")
        if isinstance(concepts, tuple) and len(items) == 3 and all(isinstance(part, str) for part in items):
            raise TypeError  # three words, or one concept? say which, in a list
    except TypeError:
        raise TypeError(f"{FORM}; got concepts={arguments.shown(concepts)}") from None
    items = [(item, "", "") if isinstance(item, str) else item for item in items]
    for i, item in enumerate(items):
        three = isinstance(item, (tuple, list)) and len(item) == 3
        if not (three and all(isinstance(part, str) for part in item) and item[0].strip()):
            raise TypeError(f"{FORM}; concepts[{i}] is {arguments.shown(item)}")
    return [tuple(item) for item in items]


def _axes(layers: Any, seeds: Any, poolings: Any) -> tuple[list[Any], list[int], list[str]]:
    """Layers, seeds and poolings, of which one may stand for a list, as lists; they may be empty."""
    if isinstance(layers, str) and layers.strip().isdecimal():  # "14": the layer 14, or 1 and 4?
        raise ValueError(
            f"layers={layers!r} is a text; of one layer write layers=[{int(layers)}], of several such as layers=[1, 4]"
        )
    names, _ = arguments.several(poolings, str, "poolings", "a pooling such as 'mean', or a list of them, is")
    return (
        [] if arguments.is_empty(layers) else checked.layers(layers, "layers")[0],
        [] if arguments.is_empty(seeds) else arguments.seeds(seeds, "seeds")[0],
        names,
    )
