"""Reach: how far a picture gets by what it was climbed for, beside the best real picture of the same thing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from .. import arguments
from ..arguments import strict

if TYPE_CHECKING:
    from ..models.vlm import VLM
    from .prototype import Prototype
    from .request import Aim
    from .settings import Settings


UNITS = ("score", "activation")


@dataclass(frozen=True)
class Reach:
    """What a prototype reaches, and what the best real picture of the same thing does.

    unit       "score": the run's own pooling, centre and score function at its end, without augmentation and added
               terms; of a feature "activation": the highest over image tokens
    score      the prototype's; None where nothing was compared
    best_own   the best real picture's on the ground that the picture has itself (white, where it is transparent); None
               where no real picture is known
    best_cut   the best real picture's, cut out and laid on the prototype's ground; None where no picture is cut out
    pictures   how many real pictures were compared
    ground     (red, green, blue) in [0, 1]: the colour that the prototype's canvas begins as
    reason     why a share is missing; "" where none is

    `own` and `cut` are the shares of these, 1 where the prototype is level with the best real picture.
    """

    unit: str
    score: float | None = None
    best_own: float | None = None
    best_cut: float | None = None
    pictures: int = 0
    ground: tuple[float, float, float] | None = None
    reason: str = ""

    @property
    def own(self) -> float | None:
        """The score over the best real picture's on its own ground; None where there is none, or none above 0."""
        return _share(self.score, self.best_own)

    @property
    def cut(self) -> float | None:
        """The score over the best real picture's, cut out on the prototype's ground; None likewise."""
        return _share(self.score, self.best_cut)

    @property
    def reached(self) -> bool | None:
        """Whether every share that is known is at least 1; None where none is known."""
        shares = [share for share in (self.own, self.cut) if share is not None]
        return all(share >= 1 for share in shares) if shares else None

    @property
    def verdict(self) -> str:
        """`reached` in words."""
        words = {True: "reaches real pictures", False: "did not reach real pictures"}
        return words.get(self.reached, "not compared with real pictures")  # type: ignore[arg-type]

    def __str__(self) -> str:
        best = self.best_own if self.own is not None else self.best_cut
        if self.reached is None or self.score is None or best is None:
            return f"{self.verdict}: {self.reason}"
        if self.score <= 0:
            return f"{self.verdict}: its {self.unit} is {self.score:.2f}, the best real picture's {best:.2f}"
        grounds = (("the best real picture's as it is", self.own), ("the best cut out on the same ground", self.cut))
        shares = ", ".join(f"{share:.2f} times {where}" for where, share in grounds if share is not None)
        return f"{self.verdict}: its {self.unit} is {shares}"

    @classmethod
    def between(
        cls,
        unit: str,
        score: float,
        best_own: float,
        best_cut: float | None,
        pictures: int,
        ground: tuple[float, float, float],
    ) -> Reach:
        """A prototype's score beside those of real pictures, with the reason for each share that this leaves out."""
        what = "fires it" if unit == "activation" else "scores above 0"
        wanting = [
            f"no real picture {what} {where}"
            for where, best in (("on its own ground", best_own), ("cut out", best_cut))
            if best is not None and not best > 0
        ]
        if best_cut is None:
            wanting.append("no real picture is transparent, so that none could be cut out")
        return cls(unit, score, best_own, best_cut, pictures, ground, "; ".join(wanting))

    def record(self) -> dict[str, Any]:
        """All of it as plain data, with `own`, `cut` and `reached`, for JSON."""
        return {**dataclasses.asdict(self), "own": self.own, "cut": self.cut, "reached": self.reached}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Reach:
        """Read back what `record` gave. Raises TypeError for what is none."""
        values = {f.name: record[f.name] for f in dataclasses.fields(cls) if f.name in record}
        ground = values.get("ground")
        return cls(**{**values, "ground": None if ground is None else tuple(ground)})


def _share(score: float | None, best: float | None) -> float | None:
    return None if score is None or best is None or not best > 0 else score / best


@overload
def reach(
    vlm: VLM, prototypes: Prototype, pictures: Any = ..., *, towards: Aim | None = ..., settings: Settings | None = ...
) -> Reach: ...


@overload
def reach(
    vlm: VLM,
    prototypes: Sequence[Prototype],
    pictures: Any = ...,
    *,
    towards: Aim | Sequence[Aim] | None = ...,
    settings: Settings | None = ...,
) -> list[Reach]: ...


@strict
def reach(
    vlm: VLM,
    prototypes: Prototype | Sequence[Prototype],
    pictures: Any = None,
    *,
    towards: Any = None,
    settings: Any = None,
) -> Any:
    """Compare prototypes with the best real picture of the same thing, by what they were climbed for.

    Of a direction that is the run's own score, read of the finished picture without augmentation; of a feature its
    highest activation over image tokens. It is compared with the best real picture on its own ground, and cut out on
    the prototype's ground, since a score may hang on the ground as much as on the thing. 1 is level with it.

    prototypes   one, or several; each keeps its own as `.reach`, which is saved with it
    pictures     real pictures of the thing: PIL images, tensors (3, H, W) or (4, H, W) in [0, 1], paths, the path of a
                 folder, or a mapping from prototypes' labels to these. Those without transparency are compared on their
                 own ground alone. If not given, those of the bundled model: the held-out picture of the word, and for
                 features all of them; other models have none
    towards      the Direction or Feature that was climbed, one for all or one for each, where the record does not hold
                 it: of anything but concepts and features of the bundled autoencoder or of one in a folder
    settings     the run's `Settings`, where pooling, centre or score are the user's own

    Returns a `Reach`, or a list of them. Where no real picture is known, or none scores above 0, shares are None, and
    `reason` says why. Raises TypeError for what is no prototype, direction or picture; ValueError for a prototype of
    another model, for `towards` of another site or by which the picture scores otherwise than it is recorded.

    >>> import nnsight_dream as nd
    >>> vlm = nd.load("demo")
    >>> fox = nd.synthesize(vlm, nd.concept(vlm, "fox", layer=1), steps=2, batch=1)
    >>> nd.reach(vlm, fox).verdict, fox.reach.own < 1
    ('did not reach real pictures', True)
    """
    from .prototype import Prototype
    from .real_pictures import compared

    form = "a Prototype, or a list of them as nd.synthesize gives, is"
    several, single = arguments.several(prototypes, Prototype, "prototypes", form)
    aims = list(towards) if isinstance(towards, (list, tuple)) else [towards] * len(several)
    if len(aims) != len(several):
        raise ValueError(f"towards= holds {len(aims)} for {len(several)} prototypes: one, or one for each, is needed")
    results = []
    for prototype, aim in zip(several, aims, strict=True):
        results.append(compared(vlm, prototype, pictures, aim, settings))
        object.__setattr__(prototype, "reach", results[-1])
    return results[0] if single else results
