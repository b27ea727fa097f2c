"""What the language side learns from: true facts about every concept, turned into conversations and plain sentences.

Nothing here ties words to pictures but next-token prediction: a picture is only ever followed by text about it.
Everything is drawn from the `random.Random` that is handed in; the same state gives the same text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import art

FACTS = Path(__file__).with_name("facts.txt")
Turn = tuple[str, str]  # what the user says, what the assistant answers

# The 100 words of appendix C of arXiv 2601.08017 (after Lindsey 2025), in its order and with its two repeats.
BASELINE = tuple(
    [
        "desk",
        "jacket",
        "gondola",
        "laughter",
        "intelligence",
        "bicycle",
        "chair",
        "orchestra",
        "sand",
        "pottery",
        "arrowhead",
        "jewelry",
        "daffodil",
        "plateau",
        "estuary",
        "quilt",
        "moment",
        "bamboo",
        "ravine",
        "archive",
        "hieroglyph",
        "star",
        "clay",
        "fossil",
        "wildlife",
        "flour",
        "traffic",
        "bubble",
        "honey",
        "geode",
        "magnet",
        "ribbon",
        "zigzag",
        "puzzle",
        "tornado",
        "anthill",
        "galaxy",
        "poverty",
        "diamond",
        "universe",
        "vinegar",
        "nebula",
        "knowledge",
        "marble",
        "fog",
        "river",
        "scroll",
        "silhouette",
        "marble",
        "cake",
        "valley",
        "whisper",
        "pendulum",
        "tower",
        "table",
        "glacier",
        "whirlpool",
        "jungle",
        "wool",
        "anger",
        "rampart",
        "flower",
        "research",
        "hammer",
        "cloud",
        "justice",
        "dog",
        "butterfly",
        "needle",
        "fortress",
        "bonfire",
        "skyscraper",
        "caravan",
        "patience",
        "bacon",
        "velocity",
        "smoke",
        "electricity",
        "sunset",
        "anchor",
        "parchment",
        "courage",
        "statue",
        "oxygen",
        "time",
        "butterfly",
        "fabric",
        "pasta",
        "snowflake",
        "mountain",
        "echo",
        "piano",
        "sanctuary",
        "abyss",
        "air",
        "dewdrop",
        "garden",
        "literature",
        "rice",
        "enigma",
    ]
)

NUMBERS = ("none", "one", "two", "three", "four")
# What a category is called in a question; where one of these words stands in its kinds (or places) that is honest,
# else the thing is an "object"; and the categories it may not be contrasted with ("Is it food?").
HINTS = {
    "animal": ("animal", "", "food"), "plant": ("plant", "", "food"), "food": ("food", "", "animal plant drink"),
    "drink": ("drink", "drink", "food"), "household": ("household object", "", "tool drink"),
    "place": ("place", "building landmark landform place landscape ride planet", "plant"),
    "vehicle": ("vehicle", "vehicle", "sport"), "sky": ("thing in the sky", "sky space", ""),
    "celebration": ("celebration", "celebration ceremony", "plant food"), "sport": ("sport", "sport game", ""),
    "activity": ("activity", "", "sport"), "instrument": ("instrument", "instrument", ""),
    "clothing": ("piece of clothing", "clothing wear hat cap shoe", ""), "tool": ("object", "", ""),
    "emotion": ("emotion", "emotion feeling", ""), "figure": ("figure", "symbol monster figure", "animal food"),
    "person": ("person", "person", "animal"), "nationality": ("flag", "", ""), "symbol": ("symbol", "", ""),
}  # fmt: skip
YES_NO = ("animal", "plant", "food", "drink", "vehicle", "clothing", "nationality", "sport")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
NEAR = {"orange": "red yellow brown", "brown": "orange red", "pink": "red purple", "grey": "white black blue",
        "red": "orange pink", "yellow": "orange", "purple": "blue pink", "white": "grey", "black": "grey brown",
        "blue": "grey purple", "beige": "brown yellow orange white", "gold": "yellow orange brown",
        "silver": "grey white", "green": ""}  # fmt: skip

FIRST = (
    "What is in the image?", "What is in the image? One word.", "What is in the image if you had to guess? One word.",
    "What is this?", "What do you see?", "What is it?", "What is shown here?", "Name it.", "What is in the picture?",
    "Name the thing in the image.", "Which thing is this? One word.", "What does the picture show?",
    "Say what this is.", "What can be seen in the image?", "Describe the image.",
    "Describe the picture in one word.", "",
)  # fmt: skip
FIRST_HINT = (
    "What {hint} is in the image?", "What {hint} is in the image? One word.",
    "What {hint} is in the image if you had to guess? One word.", "What {hint} is this?", "Which {hint} do you see?",
)  # fmt: skip

# Per attribute: questions ({it}, {is}, {does}, {has} are filled in), the short answer, and a sentence ({S} a subject).
ASK = {
    "size": (("How big {is} {it}?", "{Is} {it} big or small?"), "{v}", "{S} {is} {v}."),
    "does": (("What {does} {it} do?",), "it {v}", "{S} {v}."),
    "use": (("What {is} {it} used for?", "What {is} {it} for?"), "{v}", "{S} {is} used for {v}."),
    "sound": (("{Is} {it} loud or silent?", "What {does} {it} sound like?"), "{v}", "{S} {is} {v}."),
    "taste": (("How {does} {it} taste?", "What taste {does} {it} have?"), "{v}", "{S} {taste} {v}."),
    "feel": (("How {does} {it} feel?", "{Is} {it} smooth or rough, hard or soft?"), "{v}", "{S} {feel} {v}."),
    "season": (("What season {is} {it}?", "Which season {does} {it} belong to?"), "{v}", "{S} {belong} to {v}."),
    "celebration": (("What celebration {is} {it}?", "Which celebration {does} {it} go with?"), "{v}",
                    "{S} {go} with {v}."),
    "subject": (("What school subject {is} {it}?", "Which subject {does} {it} belong to?"), "{v}",
                "{S} {belong} to {v}."),
    "city": (("What city {is} {it}?", "Which city {does} {it} make you think of?"), "{v}",
             "{S} {make} people think of {v}."),
    "emotion": (("What emotion {is} {it}?", "Which feeling goes with {it}?"), "{v}", "{S} {go} with {v}."),
    "nation": (("What nationality {is} {it}?", "Which nationality {does} {it} make you think of?"), "{v}",
               "{S} {is} {v}."),
    "made": (("What {is} {it} made of?",), "{v}", "{S} {is} made of {v}."),
    "eats": (("What {does} {it} eat?",), "{v}", "{S} {eat} {v}."),
    "task": (("What task {is} {it}?", "Which task {does} {it} make you think of?"), "{v}",
             "{S} {make} people think of {v}."),
}  # fmt: skip
WHO = {"season": "season", "celebration": "celebration", "subject": "subject", "city": "city", "emotion": "emotion",
       "nation": "nationality", "taste": "taste", "sound": "sound", "feel": "feeling to the hand",
       "task": "task"}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What is true of one concept; `extra` maps a key of `ASK` to its values, `noun` says how the name behaves."""

    name: str
    kinds: tuple[str, ...]
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    parts: tuple[str, ...]
    counts: tuple[tuple[str, str], ...]  # ("eight", "arms")
    places: tuple[str, ...]
    extra: Mapping[str, tuple[str, ...]]
    noun: str = "a"  # a, mass, plural, the or name

    @property
    def reference(self) -> str:
        """The name as a noun phrase: "a tomato", "rice", "the moon"."""
        return {"a": a(self.name), "the": f"the {self.name}"}.get(self.noun, self.name)


def _section(title: str) -> list[str]:
    lines, inside = [], False
    for line in FACTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            inside = line == f"[{title}]"
        elif inside and line.strip() and not line.startswith("#"):
            lines.append(line.strip())
    if not lines:
        raise ValueError(f"{FACTS.name} has no section [{title}] or nothing in it")
    return lines


def _parse(line: str) -> Facts:
    fields = [field.strip() for field in line.split("|")]
    if len(fields) != 8 or not all(fields[:7]):
        raise ValueError(
            f"{FACTS.name}: expected 'name | kinds | colours | shapes | parts | counts | places | extra', got {line!r}"
        )
    kinds, colours, shapes, parts, counts, places = (tuple(x.strip() for x in f.split(",")) for f in fields[1:7])
    extra = {}
    for pair in filter(None, (p.strip() for p in fields[7].split(";"))):
        key, _, values = pair.partition(":")
        if (key not in ASK and key != "n") or not values.strip():
            raise ValueError(
                f"{FACTS.name}: {fields[0]}: {pair!r} is not 'key: value' with a key of {sorted(ASK)} or n"
            )
        extra[key] = tuple(v.strip() for v in values.split(","))
    noun = extra.pop("n", ("a",))[0]
    if noun not in ("a", "mass", "plural", "the", "name"):
        raise ValueError(f"{FACTS.name}: {fields[0]}: n is {noun!r}; allowed are a, mass, plural, the, name")
    strange = set(colours) - set(NEAR)
    if strange:
        raise ValueError(f"{FACTS.name}: {fields[0]}: unknown colours {sorted(strange)}; allowed are {sorted(NEAR)}")
    pairs = tuple((c.split(" ", 1)[0], c.split(" ", 1)[1]) for c in counts)
    return Facts(fields[0], kinds, colours, shapes, parts, pairs, places, extra, noun)


@cache
def facts() -> dict[str, Facts]:
    """Facts by concept name; raises ValueError where concepts.txt and facts.txt do not hold the same names."""
    found = [_parse(line) for line in _section("facts")]
    table = {f.name: f for f in found}
    names = {c.name for c in art.concepts()}
    if len(table) != len(found) or names != table.keys():
        twice = sorted({f.name for f in found if sum(g.name == f.name for g in found) > 1})
        raise ValueError(
            f"{FACTS.name} does not fit {art.CONCEPTS.name}: missing {sorted(names - table.keys())}, "
            f"orphaned {sorted(table.keys() - names)}, twice {twice}"
        )
    return table


@cache
def words() -> dict[str, str]:
    """Words without a picture of their own (the baseline, the paper's concepts, abstract nouns) and what they mean."""
    return dict([part.strip() for part in line.split("|")] for line in _section("words"))


@cache
def sentences() -> tuple[str, ...]:
    """Plain hand-written English."""
    return tuple(_section("sentences"))


SINGULAR_S = ("lens", "gymnastics")  # besides all in -ss, -us and -os
PLURAL = ("teeth", "feet", "people", "hooves", "antennae")
IRREGULAR = {"tooth": "teeth", "foot": "feet", "person": "people", "leaf": "leaves", "mouse": "mice", "knife": "knives",
             "half": "halves", "sheep": "sheep", "fish": "fish", "deer": "deer", "wolf": "wolves", "squid": "squid",
             "blowfish": "blowfish", "loaf": "loaves", "antenna": "antennae",
             "snowman": "snowmen"}  # fmt: skip
CONSONANT_SOUND = ("uni", "use", "one", "europe", "ufo")


@cache
def _listed(title: str) -> frozenset[str]:
    return frozenset(w for line in _section(title) for w in line.split())


def join(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _head(phrase: str) -> str:
    return phrase.split(" of ")[0].split(" in ")[0].split(" with ")[0].split(" from ")[0].split()[-1]


@cache
def is_plural(phrase: str) -> bool:
    """Whether the head noun of the phrase is a plural."""
    head = _head(phrase)
    return head in PLURAL or (head.endswith("s") and not head.endswith(("ss", "us", "os")) and head not in SINGULAR_S)


@cache
def a(phrase: str, like: str | None = None) -> str:
    """The phrase with "a" or "an", or bare if its head noun (or that of `like`) takes none."""
    noun = like or phrase
    if is_plural(noun) or _head(noun) in _listed("mass"):
        return phrase
    low = phrase.lower()
    vowel = (low[0] in "aeiou" and not low.startswith(CONSONANT_SOUND)) or low.startswith("hour")
    return f"{'an' if vowel else 'a'} {phrase}"


@cache
def plural_of(phrase: str) -> str:
    """The plural of a noun phrase's head: "piece of seaweed" -> "pieces of seaweed"; plurals stay."""
    before, of, after = phrase.partition(" of ")
    *front, head = before.split(" ")
    if is_plural(before):
        return phrase
    if head in IRREGULAR:
        head = IRREGULAR[head]
    elif head.endswith(("s", "x", "ch", "sh", "z")):
        head += "es"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    elif head.endswith(("tomato", "potato", "mosquito", "mango", "volcano", "tornado")):
        head += "es"
    else:
        head += "s"
    return " ".join([*front, head]) + of + after


@cache
def verbs(plural: bool) -> dict[str, str]:
    """Forms of the verbs in the templates, keyed by a neutral name."""
    forms = {"is": "is are", "has": "has have", "does": "does do", "taste": "tastes taste", "feel": "feels feel",
             "belong": "belongs belong", "go": "goes go", "make": "makes make", "eat": "eats eat"}  # fmt: skip
    return {k: v.split()[plural] for k, v in forms.items()}


def bare(phrase: str) -> str:
    """A verb phrase as it follows "they": "means yes" -> "mean yes"."""
    verb, _, rest = phrase.partition(" ")
    verb = {"is": "are", "has": "have", "goes": "go", "does": "do"}.get(verb, verb[:-1] if verb.endswith("s") else verb)
    return f"{verb} {rest}".strip()


def sentence_case(text: str) -> str:
    """First letter upper, the rest as it is."""
    return text[:1].upper() + text[1:]


def inside(subject: str) -> str:
    """A sentence's subject as it stands inside one: "It" -> "it", "A tomato" -> "a tomato"; proper names stay."""
    first = subject.split(" ")[0]
    return subject[0].lower() + subject[1:] if first in ("It", "A", "An", "The", "They") else subject


@cache
def plain_keyword(word: str) -> bool:
    """Whether a CLDR keyword is ordinary English about the thing."""
    return len(word) > 2 and word.isascii() and word.replace("-", "").isalpha() and word.lower() not in _listed("junk")


def leaks(text: str, name: str) -> bool:
    """Whether `text` gives away a word of `name`."""
    low = f" {text.lower()} "
    return any(w in low for w in name.lower().split() if len(w) > 2)


def _some(rng: random.Random, items: Sequence[str], most: int) -> list[str]:
    return rng.sample(items, min(len(items), rng.randint(1, most)))


def _colours(f: Facts) -> str:
    return join(f.colours)


def describe(f: Facts, rng: random.Random) -> str:
    """One line without subject: "a round red and green fruit with a stem and leaves"."""
    kind = rng.choice(f.kinds)
    shape = rng.choice(f.shapes) if rng.random() < 0.7 else ""
    parts = join([a(p) for p in _some(rng, f.parts, 3)])
    if f.noun == "name":
        return f"{a(kind)} with {parts}, {_colours(f)}"
    # Told together, "yellow big cat" and "big yellow cat" differ only in order; say the kind's own adjective first.
    return f"{a(' '.join(filter(None, (shape, _colours(f), kind))), like=kind)} with {parts}"


def clues(f: Facts, rng: random.Random, subject: str, plural: bool) -> list[str]:
    """Every single fact as a sentence about `subject` ("It", "A tomato"), in random order, narrowest kind first."""
    v = verbs(plural)
    said = [f"{subject} {v['is']} {_colours(f)}.", f"{subject} {v['is']} {rng.choice(f.shapes)}."]
    parts = join([a(p) for p in _some(rng, f.parts, 3)])
    if f.noun == "name" and subject != "It":
        said = [f"{subject} makes people think of {parts}."]
    else:
        said.append(f"{subject} {v['has']} {parts}.")
        said += [f"{subject} {v['has']} {n} {thing}." for n, thing in f.counts]
    place = rng.choice(f.places)
    said.append(rng.choice((f"You find {inside(subject)} {place}.", f"{subject} {v['is']} found {place}.")))
    for key, values in f.extra.items():
        value = rng.choice(values)
        if key == "does" and plural:
            value = bare(value)
        said.append(ASK[key][2].format(S=subject, v=value, **v))
    rng.shuffle(said)
    return [f"{subject} {v['is']} {a(f.kinds[0])}.", *said]


def _questions(
    f: Facts, category: str, keywords: Sequence[str], rng: random.Random, it: str, plural: bool
) -> Iterator[Turn]:
    """The short questions that the facts can answer, in random order, one phrasing each, about `it`."""
    v = {**verbs(plural), "it": it, "them": "them" if it == "they" else it}
    v["Is"] = v["is"].capitalize()

    def ask(*phrasings: str, **more: str) -> str:
        return rng.choice(phrasings).format(**v, **more)

    topics = [
        "colour",
        "colour",
        "shape",
        "parts",
        "kind",
        "place",
        "look",
        "count",
        "is colour",
        "is kind",
        "words",
        *f.extra,
    ]
    rng.shuffle(topics)
    for topic in dict.fromkeys(topics):
        if topic == "colour":
            yield ask("What colour {is} {it}?", "What color {is} {it}?", "Which colours {does} {it} have?"), _colours(f)
        elif topic == "shape":
            yield ask("What shape {is} {it}?", "What shape {does} {it} have?"), rng.choice(f.shapes)
        elif topic == "parts":
            yield (
                ask("What parts {does} {it} have?", "Name some parts of {them}."),
                join([a(x) for x in _some(rng, f.parts, 4)]),
            )
        elif topic == "kind":
            yield ask("What kind of thing {is} {it}?", "What kind of thing {is} {it}?"), a(rng.choice(f.kinds))
        elif topic == "place":
            yield ask("Where {is} {it} found?", "Where do you find {them}?"), rng.choice(f.places)
        elif topic == "look":
            yield ask("Describe {them}.", "What {does} {it} look like?"), describe(f, rng)
        elif topic == "count":
            number, thing = rng.choice(f.counts)
            if number != "many" and not leaks(thing, f.name):
                many = ask("How many {things} {does} {it} have?", things=plural_of(thing))
                yield many, "none" if number == "no" else number
        elif topic == "is colour":
            close = {w for c in f.colours for w in (c, *NEAR[c].split())}
            far = [c for c in COLOURS if c not in close]
            true = not far or rng.random() < 0.5
            yield ask("{Is} {it} {colour}?", colour=rng.choice(f.colours if true else far)), "yes" if true else "no"
        elif topic == "is kind":
            others = [HINTS[c][0] for c in YES_NO if c != category and c not in HINTS[category][2].split()]
            others = [o for o in others if not any(o.split()[-1] in k for k in f.kinds)]
            true = rng.random() < 0.5
            yield ask("{Is} {it} {kind}?", kind=a(rng.choice(f.kinds if true else others))), "yes" if true else "no"
        elif topic == "words":
            good = [k for k in keywords if plain_keyword(k) and not leaks(k, f.name)]
            if good:
                yield ask("Which words go with {them}?", "Say some words about {them}."), ", ".join(_some(rng, good, 4))
        elif topic == "does" and plural:
            yield ask(*ASK[topic][0]), f"they {bare(rng.choice(f.extra[topic]))}"
        else:
            yield ask(*ASK[topic][0]), ASK[topic][1].format(v=rng.choice(f.extra[topic]))


def _pick(
    turns: Iterator[Turn], rng: random.Random, low: int, high: int, *, hide: str = "", known: Sequence[Turn] = ()
) -> list[Turn]:
    """Between `low` and `high` of the turns, without questions that name `hide` or repeat a known answer."""
    wanted, said, picked = rng.randint(low, high), {answer for _, answer in known} - {"yes", "no", "one", "two"}, []
    for turn in turns:
        if len(picked) >= wanted:
            break
        if turn[1] not in said and not (hide and leaks(turn[0], hide)):
            picked.append(turn)
    return picked


def conversation(
    concept: art.Concept, facts: Mapping[str, Facts], rng: random.Random, mode: str, keywords: Sequence[str] = (),
    *, counted: int | None = None,
) -> list[Turn]:  # fmt: skip
    """Turns about one concept; `mode` is "picture", "name" or "reverse".

    In "picture" the caller puts the image before the first user text and the first answer begins with the name; later
    questions never name the thing, and `counted` things in the picture add a question on their number. In "name" the
    user names it; in "reverse" facts are given and the name is the answer. Raises ValueError on another mode.
    """
    f = facts[concept.name]
    if mode == "picture":
        turns = [_first(concept, f, rng)]
        turns += _pick(_questions(f, concept.category, keywords, rng, "it", False), rng, 3, 5, hide=f.name)
        if counted is not None:
            turns.insert(rng.randint(1, len(turns)), count_turn(concept, counted, rng))
        return turns
    if mode == "name":
        return _named(concept, f, rng, keywords)
    if mode == "reverse":
        said = clues(f, rng, "It", False)
        told = [s for s in said[1:] if not leaks(s, f.name)][: rng.randint(2, 4)]
        kind = [s for s in said[:1] if not leaks(s, f.name)] or [f"It is {a(_hint(concept.category, f))}."]
        end = rng.choice(
            ("What is it?", "What is it? One word.", "Name it.", "Guess what it is.", "What am I thinking of?")
        )
        rest = _questions(f, concept.category, keywords, rng, "it", False)
        return [(" ".join([*kind, *told, end]), f.name), *_pick(rest, rng, 0, 2, hide=f.name)]
    raise ValueError(f'mode is {mode!r}; allowed are "picture", "name" and "reverse"')


def _hint(category: str, f: Facts) -> str:
    word, signs, _ = HINTS[category]
    text = " ".join(f.kinds + f.places)
    if not signs or any(s in text for s in signs.split()):
        return word
    return next((k for k in ("activity", "face", "person", "toy", "part of the body") if k in f.kinds), "object")


def _first(concept: art.Concept, f: Facts, rng: random.Random) -> Turn:
    if rng.random() < 0.35:
        close = [k for k in f.kinds if " of " not in k and " thing" not in k and a(k) != k and not leaks(k, f.name)]
        hint = rng.choice(close) if close and rng.random() < 0.3 else _hint(concept.category, f)
        user = rng.choice(FIRST_HINT).format(hint=hint if rng.random() < 0.9 else "object")
    else:
        user = rng.choice(FIRST)
    short = "word" in user.lower() or user.startswith("Name")
    long = not short and rng.random() < (0.8 if user.startswith("Describe") else 0.15)
    return user, f"{f.name}: {describe(f, rng)}" if long else f.name


def _named(concept: art.Concept, f: Facts, rng: random.Random, keywords: Sequence[str]) -> list[Turn]:
    """Turns in which the user's text names the thing, by its name or, now and then, by another name."""
    plural, call = f.noun == "plural", rng.choice((f.name, *concept.aliases)) if rng.random() < 0.25 else f.name
    lead = describe(f, rng) if call == f.name else f"{f.name}: {describe(f, rng)}"
    bare = rng.random()
    if bare < 0.45:
        turns = [(call, lead)]
    elif bare < 0.6:
        turns = [(rng.choice(("Tell me about {}.", "Describe {}.", "What does {} make you think of?")).format(
            f.reference if call == f.name else call), lead)]  # fmt: skip
    elif f.noun == "name":
        turns = [(f"Think of {f.name}. {user}", answer) for user, answer in
                 _pick(_questions(f, concept.category, keywords, rng, "it", False), rng, 1, 1)]  # fmt: skip
    else:
        turns = _pick(_questions(f, concept.category, keywords, rng, f.reference, plural), rng, 1, 2)
    rest = _questions(f, concept.category, keywords, rng, "they" if plural else "it", plural)
    return turns + _pick(rest, rng, 2, 4, known=turns)


def count_turn(concept: art.Concept, n: int, rng: random.Random | None = None) -> Turn:
    """("How many are there?", "three") for a picture of `n` of the thing, 1 to 4; with `rng`, other phrasings too."""
    if not 1 <= n <= 4:
        raise ValueError(f"n is {n}; a composed picture holds 1 to 4 things")
    asks = ["How many are there?", "How many do you see?", "How many things are in the image?"]
    if facts()[concept.name].noun == "a":
        asks.append(f"How many {plural_of(concept.name)} are there?")
    return (rng.choice(asks) if rng else asks[0]), NUMBERS[n]


@cache
def _members() -> dict[tuple[str, str], list[str]]:
    """Concept names by (key, value) of `extra`: ("season", "winter") -> snowman, sled, ..."""
    found: dict[tuple[str, str], list[str]] = {}
    for f in facts().values():
        for key in WHO:
            for value in f.extra.get(key, ()):
                found.setdefault((key, value), []).extend([f.name] * (f.name != value))
    return {k: v for k, v in found.items() if len(v) > 1}


def association(rng: random.Random) -> list[Turn]:
    """Turns about a word that no single picture shows: a season, a subject, a city, a baseline word."""
    if rng.random() < 0.5:
        word, meaning = rng.choice(list(words().items()))
        user = rng.choice((word, word, f"What is {word}?", f"What does {word} mean?", f"Tell me about {word}."))
        return [(user, meaning)]
    (key, value), names = rng.choice(list(_members().items()))
    some = join(rng.sample(names, min(len(names), rng.randint(2, 4))))
    return [
        rng.choice(((value, f"{WHO[key]}: {some}"), (f"What goes with {value}?", some),
                    (f"What does {value} make you think of?", some), (f"Name things that go with {value}.", some))),
        (f"What is {value}?", words().get(value, a(WHO[key]))),
    ]  # fmt: skip


def plain_text(
    concepts: Sequence[art.Concept],
    facts: Mapping[str, Facts],
    keywords: Mapping[str, Sequence[str]],
    rng: random.Random,
) -> Iterator[str]:
    """Text-only lines without end, no dialogue: facts, lists, comparisons, meanings of words, everyday English."""
    by_category: dict[str, list[Facts]] = {}
    for c in concepts:
        by_category.setdefault(c.category, []).append(facts[c.name])
    kinds: dict[str, list[str]] = {}
    for f in facts.values():
        for kind in f.kinds:
            kinds.setdefault(kind, []).append(f.name)
    kinds = {k: v for k, v in kinds.items() if len(v) > 2}
    meanings, everyday, members = list(words().items()), sentences(), list(_members().items())
    while True:
        f = facts[rng.choice(concepts).name]
        way = rng.random()
        if way < 0.25:
            said = clues(f, rng, sentence_case(f.reference), f.noun == "plural")
            yield " ".join(said[: rng.randint(1, 3)] if rng.random() < 0.5 else rng.sample(said, 2))
        elif way < 0.32:
            yield f"{f.name}: {describe(f, rng)}."
        elif way < 0.42:
            kind, names = rng.choice(list(kinds.items()))
            some = rng.sample(names, min(len(names), rng.randint(2, 5)))
            yield rng.choice((
                f"{kind}: {join(some)}.", f"Things of the kind {kind} are {join(some)}.",
                f"{sentence_case(join([facts[n].reference for n in some]))} are all of one kind: {kind}.",
            ))  # fmt: skip
        elif way < 0.52:
            (key, value), names = rng.choice(members)
            some = rng.sample(names, min(len(names), rng.randint(2, 4)))
            yield rng.choice((f"{sentence_case(join(some))} go with {value}.", f"{value}, a {WHO[key]}: {join(some)}.",
                              f"{sentence_case(join(some))} make people think of {value}."))  # fmt: skip
        elif way < 0.64:
            yield _comparison(f, rng.choice(rng.choice(list(by_category.values()))), rng)
        elif way < 0.68:
            good = [k for k in keywords.get(f.name, ()) if plain_keyword(k)]
            if good:
                yield f"{f.name}: {', '.join(_some(rng, good, 5))}."
        elif way < 0.82:
            word, meaning = rng.choice(meanings)
            yield rng.choice((f"{word}: {meaning}.", f"The word {word} means {meaning}.", f"{meaning}: {word}."))
        else:
            yield " ".join(rng.sample(everyday, rng.randint(1, 3)))


def _comparison(f: Facts, g: Facts, rng: random.Random) -> str:
    one, other = sentence_case(f.reference), g.reference
    is1, is2 = (verbs(x.noun == "plural")["is"] for x in (f, g))
    shared = [c for c in f.colours if c in g.colours]
    if f.name == g.name:
        return f"{one} {is1} {_colours(f)}."
    if shared and rng.random() < 0.5:
        return f"Both {f.reference} and {other} are {rng.choice(shared)}."
    there = f"There {is1} {f.reference} {rng.choice(f.places)} and {other} {rng.choice(g.places)}."
    return rng.choice((
        f"{one} {is1} {_colours(f)}, but {other} {is2} {_colours(g)}.",
        f"{one} {is1} {rng.choice(f.shapes)} and {other} {is2} {rng.choice(g.shapes)}.",
        f"{one} {is1} {a(rng.choice(f.kinds))} and {other} {is2} {a(rng.choice(g.kinds))}.",
        f"I see {f.reference} and {other}.",
        there if f.noun != "name" and g.noun != "name" else f"{f.name} and {g.name}.",
    ))  # fmt: skip


def corpus(*, rounds: int = 6, seed: int = 0) -> list[str]:
    """Strings for training a byte-level BPE: conversations, plain lines, and the bare names again and again."""
    rng, table, concepts = random.Random(seed), facts(), art.concepts()
    lines: list[str] = []
    for _ in range(rounds):
        for c in concepts:
            for mode in ("picture", "name", "reverse"):
                lines += [text for turn in conversation(c, table, rng, mode) for text in turn if text]
        lines += [text for _ in range(400) for turn in association(rng) for text in turn]
        lines += [*BASELINE, *words(), *[c.name for c in concepts] * 8]
        lines += [n for c in concepts for n in (c.name, f"I see {table[c.name].reference}.", *c.aliases)]
    plain = plain_text(concepts, table, {}, rng)
    return lines + [next(plain) for _ in range(rounds * 2500)]
