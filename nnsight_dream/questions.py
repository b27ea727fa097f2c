"""What judges are asked, how an answer is told from a refusal, and when words name a concept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

PROTOCOLS = ("strict", "hint", "written")
KINDS = ("answer", "refusal", "empty", "broken")
WORDS = "words"  # the grader that compares words, below

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

_REFUSALS = re.compile(
    r"\W*(?:"
    r"(?:i'm |i am )?(?:very |so )?(?:sorry\b|unable to\b|not able to\b)"
    r"|as an? (?:ai|language model)\b"
    r"|i (?:can't|cannot|can not|won't|will not) (?:\w+ ){0,2}(?:help|assist|identify|comply|provide|answer|name)\b"
    r")",
    re.IGNORECASE,
)
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
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r}: allowed are {', '.join(PROTOCOLS)}")
    if protocol == "hint" and not category.strip():
        raise ValueError("a hint needs a category, such as 'animal': give the job one, or ask 'strict'")
    return _QUESTIONS[protocol].replace("{category}", category)


def rubric(question: str, answer: str, concept: str, *, structured: bool = False) -> str:
    """What a grading model is asked; `structured` if its score comes in a field instead of at the end of the text."""
    told = {"request": question, "response": answer, "concept": concept}
    text = _RUBRIC + (_RESULT_AS_FIELD if structured else _RESULT_AS_TEXT)
    return re.sub(r"\{(request|response|concept)\}", lambda m: told[m[1]], text)  # once: an answer may hold braces


def result(text: str) -> int | None:
    """The score at the end of a grading model's text, 0 or 1; None if there is none.

    >>> result("It says octopus. **Result: 1**")
    1
    """
    found = re.findall(r"result\W{0,6}([01])(?!\w|\.\d)", text, re.IGNORECASE)
    return int(found[-1]) if found else None


def kind_of(text: str) -> str:
    """Whether what a judge said is an "answer", a "refusal" to answer, or "empty".

    >>> kind_of("Octopus."), kind_of("I'm sorry, but I can't help with that."), kind_of(" ")
    ('answer', 'refusal', 'empty')
    """
    if not text.strip():
        return "empty"
    return "refusal" if _REFUSALS.match(text.replace("’", "'")) else "answer"


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
    there = set().union(*map(_forms, _spans(_words(text), 5)))
    return any(there & _forms(_joined(name)) for name in names)


def spells(text: str, concept: str) -> bool:
    """Whether letters read from a picture write a concept's word: alone, among others, letter by letter, or repeated.

    >>> spells("FROG", "frog"), spells("f r o g", "frog"), spells("FROGFROG", "frog"), spells("none", "frog")
    (True, True, True, False)
    """
    word, words = _joined(concept), _words(text)
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
    found = {word, _IRREGULAR.get(word, word)}
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        found.add(word[:-1])
        for plural, singular in (("ies", "y"), ("ves", "f"), ("ves", "fe")):
            if word.endswith(plural):
                found.add(word[: -len(plural)] + singular)
        if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            found.add(word[:-2])
    return found - {""}
