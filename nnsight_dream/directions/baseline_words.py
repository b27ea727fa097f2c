"""The 100 words whose mean activation is subtracted from a concept's."""

from __future__ import annotations


class Words(tuple[str, ...]):
    """Many words, shown by their first and their number, so that a signature that names them fits a screen."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"({', '.join(map(repr, self[:3]))}, ... {len(self)} words)"


# arXiv 2601.08017, appendix C (after Lindsey 2025), in its order and with its repeats: marble and butterfly twice.
BASELINE_WORDS: tuple[str, ...] = Words(
    """
    desk jacket gondola laughter intelligence bicycle chair orchestra sand pottery arrowhead jewelry daffodil
    plateau estuary quilt moment bamboo ravine archive hieroglyph star clay fossil wildlife flour traffic bubble
    honey geode magnet ribbon zigzag puzzle tornado anthill galaxy poverty diamond universe vinegar nebula
    knowledge marble fog river scroll silhouette marble cake valley whisper pendulum tower table glacier whirlpool
    jungle wool anger rampart flower research hammer cloud justice dog butterfly needle fortress bonfire
    skyscraper caravan patience bacon velocity smoke electricity sunset anchor parchment courage statue oxygen
    time butterfly fabric pasta snowflake mountain echo piano sanctuary abyss air dewdrop garden literature rice
    enigma
    """.split()  # noqa: SIM905
)
