"""What a prototype's record tells of its run, as values again: what was climbed, pooling, score, centre and ground."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import shown
from ..demo import bundle
from ..directions.baseline_words import BASELINE_WORDS
from ..directions.centres import Grey, NaturalNoise, Pictures
from ..directions.pattern import Pattern
from ..directions.text import concept
from ..engine.pooling import Attention, Max, Mean, WithoutSinks, cosine, dot
from ..sae.feature import Feature
from ..sae.make import feature
from .request import patterned
from .settings import as_plain

if TYPE_CHECKING:
    from ..directions.direction import Direction
    from ..models.vlm import VLM
    from .prototype import Prototype
    from .settings import Settings


POOLINGS: dict[str, Any] = {kind.__name__: kind for kind in (Attention, Mean, Max, WithoutSinks)}


SCORES = {score.__name__: score for score in (cosine, dot)}


PLAIN = ("MultiResolution", "Pixels", "Fourier", "MACO", "Native")  # canvases that begin as one share of white


class Untold(ValueError):
    """What a record does not tell, and how it can be given."""


def check_own(prototype: Prototype, vlm: VLM) -> None:
    """Raise ValueError for a prototype of another model or size of pictures."""
    if prototype.model != vlm.id or prototype.image_size not in (None, vlm.image_size):
        raise ValueError(
            f"this picture was made for {prototype.model} at {prototype.image_size} px; {vlm.id} sees "
            f"{vlm.image_size} px. nd.from_images(vlm, prototype.image, layer) reads pictures of any model and size"
        )


def pooling_of(prototype: Prototype) -> Any:
    """The pooling of its run. Raises Untold for one of the user's own."""
    record = prototype.settings.get("pooling")
    try:
        return _value(record)
    except (KeyError, TypeError, ValueError):
        raise Untold(f"the pooling of its run is recorded as {shown(record)}: give settings=") from None


def _value(record: Any) -> Any:
    if isinstance(record, Mapping):
        return POOLINGS[record["is"]](**{name: _value(value) for name, value in record.items() if name != "is"})
    return tuple(record) if isinstance(record, list) else record


def score_of(prototype: Prototype) -> Any:
    """The score function of its run. Raises Untold for one of the user's own."""
    name = prototype.settings.get("score")
    if name not in SCORES:
        raise Untold(f"the score of its run is recorded as {shown(name)}: give settings=")
    return SCORES[name]


def centre_of(prototype: Prototype, vlm: VLM) -> Any:
    """The centre of its run. Raises Untold for pictures or a tensor of the user's own."""
    record = prototype.settings.get("centre")
    for choice in (Grey(), NaturalNoise(), *([Pictures.bundled()] if vlm.is_demo else [])):
        if as_plain(choice) == record:
            return choice
    raise Untold(f"the centre of this picture's run is recorded as {shown(record)}")


def pattern_of(prototype: Prototype) -> Pattern | None:
    """The pattern of which its direction is one, if it is. Raises Untold for one among pictures of the user's own."""
    record = prototype.direction.get("pattern")
    if record is None:
        return None
    if record["digest"] == Pictures.bundled().digest:
        return Pattern(record["ridge"])
    raise Untold(f"the pattern of this picture's run is recorded as {shown(record)}: give settings=")


def climbed(
    vlm: VLM, prototype: Prototype, aim: Direction | Feature, settings: Settings | None = None
) -> Direction | Feature:
    """What was climbed of a direction: its pattern, where its run had one. Raises Untold as `pattern_of`."""
    if isinstance(aim, Feature) or "pattern" in aim.provenance:
        return aim
    chosen = None if settings is None else settings.pattern
    return patterned(vlm, aim, chosen or pattern_of(prototype))


def ground_of(prototype: Prototype) -> tuple[float, float, float]:
    """The colour (red, green, blue in 0 to 1) that its canvas begins as; of a canvas of the user's own, of which
    the record has only the name, the median colour along the picture's edges."""
    canvas = prototype.settings.get("canvas")
    if isinstance(canvas, Mapping) and canvas.get("is") in PLAIN:
        ground = canvas.get("ground", 0.5)  # spectra, and records of earlier versions, name none
        return ground, ground, ground
    pixels = np.asarray(prototype.image.convert("RGB"), dtype=np.float64) / 255
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = np.median(edges, 0).tolist()
    return red, green, blue


def aim_of(prototype: Prototype, vlm: VLM) -> Direction | Feature:
    """What was climbed, made anew: a concept's direction, or a feature of the bundled autoencoder or of a folder.

    Raises Untold for all else, of which the record holds a name but no numbers.
    """
    story = prototype.direction
    if story.get("method") == "concept":
        baseline = story.get("baseline")
        words = BASELINE_WORDS if baseline == "BASELINE_WORDS" else baseline
        with bundle.unshown_allowed():
            return concept(vlm, prototype.label, vlm.site(prototype.site), baseline=words)
    if story.get("method") == "feature" and isinstance(story.get("index"), int):
        for folder in _autoencoders(prototype, vlm):
            return feature(folder, story["index"])
    raise Untold(f"the record of {prototype.label!r} does not hold its direction or feature: give it as towards=")


def _autoencoders(prototype: Prototype, vlm: VLM) -> list[Path]:
    """Folders in which the autoencoder of a feature's prototype may be: where the record says, or the bundled one."""
    source = Path(str(prototype.direction.get("source")))
    places = [source] if (source / "cfg.json").is_file() else []
    if vlm.is_demo:
        with contextlib.suppress(FileNotFoundError, ValueError):
            places.append(bundle.sae_folder(prototype.site.layer))
    return places
