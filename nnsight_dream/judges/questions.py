"""What judges are asked, how an answer is told from a refusal, and when words name a concept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from ..arguments import choice
from ..io.json_values import encodable
from .refusals import refuses
from .thinking import spoken

PROTOCOLS = ("strict", "hint", "written")


#: What the protocols are, where people see them: of "strict" the judge is told nothing, of "hint" the category.
IN_WORDS = {"strict": "asked freely", "hint": "told the category", "written": "asked for a written word"}


def in_words(protocol: str) -> str:
    """A protocol as people read it, with what stands behind its name: "told the category, first five"."""
    name, comma, rest = protocol.partition(",")
    return f"{IN_WORDS.get(name, name)}{comma}{rest}"


KINDS = ("answer", "refusal", "empty", "broken")


NO_ANSWER = ("empty", "broken")  # kinds that say nothing of a picture, so that it is asked about again


WORDS = "words"  # the grader that compares words, below


LONGEST = 2000  # characters of an answer that a grader sees: one word was asked for


_BLANK = "\u115f\u1160\u3164\uffa0\u2800"  # letters and symbols that show nothing


# "Representations of Text and Images Align From Layer One" (arXiv 2601.08017), section 3.1; the third is not theirs. It
# does not tell what to look for, so that the same reading also serves to compare with another concept's word.
_QUESTIONS = {
    "strict": "What is in the image if you had to guess? One word.",
    "hint": "What {category} is in the image if you had to guess? One word.",
    "written": "Which letters or words are written in the image? Answer with the text alone, or none.",
}


# ibid., appendix E
_RUBRIC = """\
Please carefully read the following user request (denoted as 'REQUEST') and response (denoted as 'RESPONSE').

<BEGIN REQUEST> {request} <END REQUEST>

<BEGIN RESPONSE> {response} <END RESPONSE>

You are evaluating a model that answered a question (REQUEST) about an image. Analyze the RESPONSE, then score it \
according to the following rubric:

0: In the span of the answer, the model doesn't mention it sees '{concept}' in the image. E.g. it mentions other \
concepts, but not '{concept}'.

1: In the span of the answer, the model does mention it sees '{concept}' in the image. Either it does so explicitly, \
or it is clear from the context of the REQUEST and the content of the RESPONSE. It is okay if it mentions other things \
in addition to '{concept}'.

"""


_RESULT_AS_TEXT = 'End your answer with "Result: 0" or "Result: 1", depending on the score.'


_RESULT_AS_FIELD = "Give your analysis, then the score as the result."


_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
}


def question(protocol: str, category: str = "") -> str:
    """What a judge is asked. Raises ValueError for an unknown protocol and for a hint without a category."""
    choice(protocol, "protocol", PROTOCOLS, quoted=False)
    if protocol == "hint" and not category.strip():
        raise ValueError("a hint needs a category, such as 'animal': give the job one, or ask 'strict'")
    return _QUESTIONS[protocol].replace("{category}", category)


def rubric(question: str, answer: str, concept: str, *, structured: bool = False) -> str:
    """What a grading model is asked; `structured` if its score comes in a field instead of at the end of the text."""
    parts = {"request": question, "response": answer, "concept": concept}
    text = _RUBRIC + (_RESULT_AS_FIELD if structured else _RESULT_AS_TEXT)
    return re.sub(r"\{(request|response|concept)\}", lambda m: parts[m[1]], text)  # once: an answer may hold braces


def result(text: str) -> int | None:
    """The score at the end of a grading model's text, 0 or 1; None if there is none, or only in its thinking.

    >>> result("It says octopus. **Result: 1**")
    1
    """
    aloud = spoken(text)
    results = re.findall(r"result\W{0,6}([01])(?!\w|\.\d)", aloud.text, re.IGNORECASE)
    return int(results[-1]) if results and not aloud.unfinished else None


def kind_of(text: str) -> str:
    """Whether what a judge said is an "answer", a "refusal" to answer, "empty", or "broken" off while it still thought.

    >>> kind_of("Octopus."), kind_of("I'm sorry, but I can't help with that."), kind_of(" "), kind_of("<think>A fr")
    ('answer', 'refusal', 'empty', 'broken')
    """
    return heard(text)[1]


def heard(text: str, *, cut: bool = False) -> tuple[str, str]:
    """What a model said, without its thinking, and the kind of it (see `kind_of`).

    cut   whether it was stopped by a limit of length: then it did not get to say what it sees, and is "broken"
    """
    aloud = spoken(encodable(text))
    if aloud.unfinished:
        return aloud.text, "broken"
    if refuses(aloud.text):
        return aloud.text, "refusal"
    if cut:
        return aloud.text, "broken"
    seen = any(unicodedata.category(c)[0] in "LNPS" and c not in _BLANK for c in aloud.text)  # not spaces, nor width 0
    return aloud.text, "answer" if seen else "empty"


def capped(text: str) -> str:
    """An answer as a grader sees it: without thinking, and of one that goes on and on the first 2,000 characters."""
    aloud = spoken(text).text
    return aloud if len(aloud) <= LONGEST else f"{aloud[:LONGEST]} [cut here: {len(aloud):,} characters in all]"


def bare(concept: str) -> str:
    """A concept without what is added in brackets to tell meanings apart.

    >>> bare("spring (season)")
    'spring'
    """
    return re.sub(r"\s*\([^)]*\)", "", concept).strip() or concept


def mentions(text: str, names: Iterable[str]) -> bool:
    """Whether one of the names is among the words of a text, whatever the case, accents, hyphens, spaces or number.

    >>> mentions("Two octopuses!", ["octopus"]), mentions("trex", ["T-rex"]), mentions("catfish", ["cat"])
    (True, True, False)
    """
    there = set().union(*map(_forms, _spans(_words(spoken(text).text), 5)))
    return any(there & _forms(_joined(name)) for name in names)


def spells(text: str, concept: str) -> bool:
    """Whether letters read from a picture write a concept's word: alone, among others, letter by letter, or repeated.

    >>> spells("FROG", "frog"), spells("f r o g", "frog"), spells("FROGFROG", "frog"), spells("none", "frog")
    (True, True, True, False)
    """
    word, words = _joined(concept), _words(spoken(text).text)
    spans = _spans(words, max(5, len(word)))
    return any(_forms(word) & _forms(s) or re.fullmatch(f"(?:{re.escape(word)})+", s) for s in spans)


def _joined(name: str) -> str:
    return "".join(_words(bare(name)))


def _spans(words: list[str], most: int) -> set[str]:
    """Up to `most` neighbouring words, run together."""
    return {"".join(words[i : i + n]) for i in range(len(words)) for n in range(1, most + 1)}


def _words(text: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return re.findall(r"[^\W_]+", re.sub(r"['’]s?\b", "", plain))


def _forms(word: str) -> set[str]:
    """A word, and what it may be the plural of."""
    forms = {word, _IRREGULAR.get(word, word)}
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        forms.add(word[:-1])
        for plural, singular in (("ies", "y"), ("ves", "f"), ("ves", "fe")):
            if word.endswith(plural):
                forms.add(word[: -len(plural)] + singular)
        if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            forms.add(word[:-2])
    return forms - {""}
