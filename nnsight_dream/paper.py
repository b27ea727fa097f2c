"""The concepts of "Representations of Text and Images Align From Layer One" (arXiv 2601.08017, appendix E)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .demo import bundle

LAYERS = (1, 5, 10, 15, 20, 25, 30)  # of Gemma 3 4B


@dataclass(frozen=True)
class PaperConcept:
    """A concept: its `name` in the paper's spelling, its `category`, and the `prompt` that its vector is made of."""

    name: str
    category: str
    prompt: str


# category, what is asked for with a hint ("What ... is in the image"), the concepts as the paper spells them
_LISTS = (
    ("animals", "animal", "octopus, frog, squirrel, giraffe, bee, dog, lion, elephant, parrot, T-rex"),
    ("seasons", "season", "spring (season), summer, autumn, winter"),
    ("celebrations", "celebration", "Christmas, Halloween, Easter, birthday, wedding, funeral"),
    (
        "subjects",
        "school subject",
        "mathematics, philosophy, geometry, history, physics, chemistry, biology, computer science, geography, "
        "music (subject)",
    ),
    ("sensory", "sensory sensation", "loud, silent, smooth, rough, sweet"),
    (
        "people",
        "famous person",
        "Cleopatra, Caesar, Napoleon, Marilyn Monroe, Frida Kahlo, Elvis Presley, Einstein, William Shakespeare, "
        "Wolfgang Amadeus Mozart, Winston Churchill",
    ),
    ("cities", "city", "new york, san francisco, paris, rome, london"),
    ("sports", "sport", "soccer, poker, basketball, chess, hockey, rugby, tennis, golf, judo, boxing"),
    (
        "nationalities",
        "nationality",
        "french, italian, egyptian, czech, chinese, greek, american, indian, german, japanese",
    ),
    (
        "activities",
        "activity",
        "swimming, running, reading, eating, sleeping, crying, smiling, flying, screaming, dancing",
    ),
    ("emotions", "emotion", "love, fear, anger, sadness, happiness"),
    ("emotion adjectives", "emotion", "loving person, fearful person, angry person, sad person, happy person"),
    ("LLM tasks", "task", "programming, translating, refusing, summarizing, formatting"),
    (
        "physical objects",
        "physical object",
        "kettle, toaster, jupiter, armchair, bicycle, tree, camera, key, radio, phone",
    ),
)


HINTS: dict[str, str] = {category: hint for category, hint, _ in _LISTS}


def concepts() -> tuple[PaperConcept, ...]:
    """All 105 concepts, category by category.

    What stands in brackets tells meanings apart for readers and judges; the vector is made of the word alone.

    >>> from nnsight_dream import paper
    >>> next(c for c in paper.concepts() if c.prompt == "spring")
    PaperConcept(name='spring (season)', category='seasons', prompt='spring')
    """
    result = []
    for category, _, names in _LISTS:
        for name in names.split(", "):
            result.append(PaperConcept(name, category, re.sub(r"\s*\(.*\)$", "", name)))
    return tuple(result)


def known_to_demo() -> tuple[list[PaperConcept], list[PaperConcept]]:
    """The paper's concepts that the bundled model was shown under that name or an alias, and those it cannot know."""
    demo_names = {name.lower() for c in bundle.concepts() for name in (c.name, *c.aliases)}
    known = [c for c in concepts() if c.prompt.lower() in demo_names]
    return known, [c for c in concepts() if c not in known]
