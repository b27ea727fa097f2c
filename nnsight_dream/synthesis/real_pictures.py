"""Real pictures beside a prototype: which there are of the same thing, and what they score by its own objective."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import arguments
from ..demo import bundle
from ..directions.centres import Pictures
from ..directions.direction import MODELS, Direction, climbable
from ..engine.measure import measured_direction
from ..engine.pixels import shares
from ..engine.pooling import Mean, reported
from ..engine.terms import placed
from ..io import cache
from ..io.pictures import as_tensors, files, read
from ..sae.encoding import patches
from ..sae.feature import Feature
from .centres import centre
from .digests import digest
from .reach import Reach
from .recorded import Untold, aim_of, centre_of, check_own, climbed, ground_of, pooling_of, score_of
from .settings import Settings, as_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from ..models.sites import Site
    from ..models.vlm import VLM
    from .prototype import Prototype


Ground = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Real:
    """A real picture: `own` (1, 3, H, W) in [0, 1], on white where it is clear; `cover` (1, 1, H, W), 0 where it is
    clear and 1 where it is not, or None for one without transparency."""

    own: torch.Tensor
    cover: torch.Tensor | None

    def on(self, ground: Ground) -> torch.Tensor:
        """Cut out and laid on another ground than white."""
        assert self.cover is not None
        darker = 1 - torch.tensor(ground, dtype=torch.float32).reshape(1, 3, 1, 1)
        return (self.own - darker * (1 - self.cover)).clamp(0, 1)


# -- which there are ---------------------------------------------------------------------------------------------


def given(pictures: Any) -> list[Real]:
    """Real pictures as the user gives them, see `reach`. Raises as `io.pictures.as_tensors`."""
    if isinstance(pictures, (str, os.PathLike)) and Path(pictures).is_dir():
        there = files(pictures)
        if not there:
            raise FileNotFoundError(f"pictures={str(pictures)!r} holds no picture")
        pictures = there
    pictures = getattr(pictures, "images", pictures)  # of nd.Pictures
    several = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    if not several:
        raise ValueError("pictures= is empty; give at least one picture, or leave it out")
    return [real for picture in several for real in _real(picture)]


def _real(picture: Any) -> list[Real]:
    if isinstance(picture, torch.Tensor) and picture.ndim in (3, 4) and picture.shape[-3] == 4:
        every = picture.detach().reshape(-1, *picture.shape[-3:])
        every = shares(every) if every.dtype == torch.uint8 else every.float()
        colour, opaque = every[:, :3], every[:, 3:]
        on_white = colour * opaque + 1 - opaque
        return [_with(own, cover) for own, cover in zip(on_white.split(1), opaque.split(1), strict=True)]
    several = isinstance(picture, np.ndarray) and (picture.dtype.kind == "f" or picture.ndim == 4)
    if isinstance(picture, torch.Tensor) or several:
        return [Real(own, None) for tensor in as_tensors([picture], "pictures") for own in tensor.split(1)]
    decoded = read(picture, "pictures")
    return [real_picture(decoded.image, picture.mask if isinstance(picture, bundle.Picture) else decoded.cover)]


def real_picture(image: Image.Image, mask: Image.Image | None) -> Real:
    """A picture on white, with what of it is opaque (255) and clear (0), mode L; None where it is not transparent."""
    (own,) = as_tensors([image], "pictures")
    return Real(own, None) if mask is None else _with(own, shares(torch.from_numpy(np.array(mask)))[None, None])


def _with(own: torch.Tensor, cover: torch.Tensor) -> Real:
    """A picture with its cover, unless that hides nothing."""
    (own,) = as_tensors([own], "pictures")
    return Real(own, cover if bool((cover < 1).any()) else None)


def bundled(label: str | None = None) -> list[Real]:
    """The bundled pictures that no model was trained on: that of a concept, by its name or another one, or all."""
    if label is None:
        return given(bundle.pictures())
    name = label.strip().casefold()
    names = [c.name for c in bundle.concepts() if c.name.casefold() == name]
    names = names or [c.name for c in bundle.concepts() if name in map(str.casefold, c.aliases)]
    return given(bundle.pictures(names)) if names else []


def known(vlm: VLM, prototype: Prototype, pictures: Any) -> list[Real] | None:
    """The real pictures to compare with; None for all the bundled ones. Raises Untold where none is known."""
    story, label = prototype.direction, prototype.label
    if isinstance(pictures, Mapping):
        if label not in pictures:
            raise Untold(f"pictures= holds none of {label!r}")
        return given(pictures[label])
    if pictures is not None:
        return given(pictures)
    if not vlm.is_demo:
        raise Untold(f"no real picture is known for {vlm.id}: give pictures=")
    if prototype.readings is not None:
        return None
    real = bundled(label) if story.get("method") == "concept" else []
    if not real:
        raise Untold(f"no bundled picture shows {arguments.brief(label)!r}: give pictures=")
    return real


# -- what they score ---------------------------------------------------------------------------------------------


def compared(vlm: VLM, prototype: Prototype, pictures: Any, towards: Any, settings: Any) -> Reach:
    """See `reach`."""
    check_own(prototype, vlm)
    if towards is not None and not isinstance(towards, (Direction, Feature)):
        raise TypeError(f"towards={arguments.shown(towards)}: a Direction or a Feature is needed, or None")
    if settings is not None and not isinstance(settings, Settings):
        raise TypeError(f"settings={arguments.shown(settings)}: Settings are needed, or None")
    unit = "score" if prototype.readings is None else "activation"
    site, ground = vlm.site(prototype.site), ground_of(prototype)
    try:
        real = known(vlm, prototype, pictures)
        aim = aim_of(prototype, vlm) if towards is None else towards
        aim = climbed(vlm, prototype, aim, settings)
        _check_site(vlm, aim, site)
        ((_, tokens),) = patches(vlm, as_tensors([prototype.image], "image"), site)
        score = _score(vlm, prototype, aim, site, settings)
        flaw = _flaw(vlm, prototype, aim, tokens, settings)
    except Untold as untold:
        return Reach(unit, reason=str(untold))
    if flaw and towards is not None:
        raise ValueError(flaw)
    if flaw:
        return Reach(unit, reason=flaw)
    best: tuple[float, float | None]
    if real is None:
        best, count = _best_of_bundled(vlm, site, aim, score, ground), len(bundle.concepts())
    else:
        own = _read(vlm, site, [picture.own for picture in real])
        cut = _read(vlm, site, [picture.on(ground) for picture in real if picture.cover is not None])
        best, count = (max(map(score, own)), max(map(score, cut), default=None)), len(real)
    return Reach.between(unit, score(tokens), *best, count, ground)


def _check_site(vlm: VLM, aim: Direction | Feature, site: Site) -> None:
    own = aim.site(vlm) if isinstance(aim, Feature) else aim.site
    if (own.layer, own.kind, aim.width) != (site.layer, site.kind, vlm.width_at(site)):
        raise ValueError(f"{aim} is at {own}, this picture's activations at {site}: give one made for that site")


def _best_of_bundled(
    vlm: VLM, site: Site, aim: Direction | Feature, score: Callable[[torch.Tensor], float], ground: Ground
) -> tuple[float, float]:
    """The best that any bundled picture scores on its own ground, and cut out; of features kept in the user's cache.

    The pictures' activations are kept for the next feature, but for grounds that are seldom met twice.
    """
    key = None
    if isinstance(aim, Feature) and vlm.remote is None:
        about = (vlm.weights_tag(site), str(site), str(vlm.dtype), vlm.device.type, list(vlm.image_size))
        key = digest((about, aim.parts, ground, Pictures.bundled().digest))
        if (cached := cache.read("reach", key, 2)) is not None:
            return cached[0].item(), cached[1].item()
    memo, best = vlm.memo.real_tokens.at(vlm, site), []
    for place in (None, ground):
        tokens = memo.get(where := (place, vlm.device, vlm.dtype))
        if tokens is None:
            every = [real for real in bundled() if place is None or real.cover is not None]
            tokens = torch.stack(_read(vlm, site, [real.own if place is None else real.on(place) for real in every]))
            if place is None or len(set(place)) == 1:  # white to black: what canvases begin as
                memo[where] = tokens
        together = isinstance(aim, Feature)  # the highest of all tokens; a direction is pooled over each picture's own
        best.append(score(tokens.flatten(0, 1)) if together else max(map(score, tokens)))
    if key is not None:
        cache.write("reach", key, torch.tensor(best))
    return best[0], best[1]


def _read(vlm: VLM, site: Site, pictures: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    rows = {number: tokens.cpu() for number, tokens in patches(vlm, pictures, site)}
    return [rows[number] for number in range(len(rows))]


def _score(
    vlm: VLM, prototype: Prototype, aim: Direction | Feature, site: Site, settings: Settings | None
) -> Callable[[torch.Tensor], float]:
    """What a picture's activations (n, d) are compared by. Raises Untold for a run whose record does not hold it."""
    if isinstance(aim, Feature):
        read_by = aim.to(torch.device("cpu"))
        return lambda tokens: float(read_by.readings(tokens.cpu())["act"].max())
    pooling = pooling_of(prototype) if settings is None else settings.pooling
    score = score_of(prototype) if settings is None else settings.score
    middle = _centre(vlm, prototype, site, settings).cpu()
    towards = climbable(aim.vector).cpu()[None]
    pooled_by = placed(pooling, site)

    def scored(tokens: torch.Tensor) -> float:
        pooled, _ = pooled_by(tokens.cpu()[None] - middle, towards, vlm.grid, 1.0)
        return float(score(pooled, towards))

    return scored


def _centre(vlm: VLM, prototype: Prototype, site: Site, settings: Settings | None) -> torch.Tensor:
    try:
        return centre(vlm, site, centre_of(prototype, vlm) if settings is None else settings.centre)
    except Untold as untold:
        raise Untold(f"{untold}: give settings=") from None


def _flaw(
    vlm: VLM, prototype: Prototype, aim: Direction | Feature, tokens: torch.Tensor, settings: Settings | None
) -> str:
    """Why the picture is read otherwise than its record says (another direction, a changed model); "" where it is not.

    Compared are the mean patch's cosine, or a feature's highest pre-activation, which every record holds.
    """
    if isinstance(aim, Feature):
        stored = (prototype.readings or {}).get("pre_max")
        here = float(aim.to(tokens.device).readings(tokens)["pre"].max())
    else:
        site, stored = vlm.site(prototype.site), prototype.scores.get("mean")
        middle = _centre(vlm, prototype, site, settings).to(tokens.device)
        towards = climbable(aim.vector).to(tokens.device)
        measured, _ = measured_direction(site, tokens[None], towards, middle, {"mean": Mean()}, vlm.grid)
        here = measured["mean"]
    room = 0.002 if vlm.dtype == torch.float32 else 0.05
    if stored is None or abs(here - stored) <= room * (1 + abs(here)):
        return ""
    return (
        f"{prototype.label!r} is recorded with {stored:.3f} and read with {here:.3f}: the direction, the centre or the "
        "model is another than that of its run"
    )


# -- beside the scores -------------------------------------------------------------------------------------------


def _demo_of(prototype: Prototype) -> VLM | None:
    """The bundled model, where it is loaded here and the prototype is of a concept by it."""
    vlm = MODELS.get(prototype.model)
    if vlm is None or not vlm.is_demo or vlm.remote is not None or prototype.direction.get("method") != "concept":
        return None
    return vlm if prototype.image_size == vlm.image_size else None


def reach_here(prototype: Prototype) -> Reach | None:
    """Its reach, measured where that takes no time and there is something to compare: of the bundled model's concepts.

    It is not kept.
    """
    if prototype.reach is not None or (vlm := _demo_of(prototype)) is None:
        return prototype.reach
    result = compared(vlm, prototype, None, None, None)
    return None if result.reached is None else result


def keep_reach(vlm: VLM, prototypes: Sequence[Prototype], aims: Sequence[Any], settings: Settings) -> None:
    """Measure and keep the reach of those prototypes that real pictures are known for here: the demo's concepts and
    features."""
    if not vlm.is_demo or vlm.remote is not None:
        return
    with vlm.alone():
        for prototype, aim in zip(prototypes, aims, strict=True):
            if isinstance(aim, Feature) or prototype.direction.get("method") == "concept":
                result = compared(vlm, prototype, None, aim, settings)
                object.__setattr__(prototype, "reach", None if result.reached is None else result)


def real_scores(prototype: Prototype) -> dict[str, float]:
    """By pooling, as `Prototype.scores`, of the bundled picture of its concept, which no model was trained on.

    Empty for what is no concept that the bundled model was shown, for other poolings and centres than the demo's, and
    for patterns among pictures of the user's own.
    """
    vlm, preset = _demo_of(prototype), Settings.demo()
    if vlm is None or not (real := bundled(prototype.label)):
        return {}
    if any(prototype.settings.get(name) != as_plain(getattr(preset, name)) for name in ("pooling", "centre")):
        return {}
    site = vlm.site(prototype.site)
    try:
        aim = climbed(vlm, prototype, aim_of(prototype, vlm))
    except Untold:
        return {}
    vector = aim.vector.to(vlm.device)  # type: ignore[union-attr]
    ((_, tokens),) = patches(vlm, [real[0].own], site)
    middle = centre(vlm, site, preset.centre).to(vlm.device)
    return measured_direction(site, tokens[None], vector, middle, reported(preset.pooling), vlm.grid)[0]
