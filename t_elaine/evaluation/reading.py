"""What an answer says, read in the whole of it: letters of options, or a number. For the protocol `repaired`.

Letters count where they stand as an answer: at the beginning, after words such as "answer is" or 正解は, in brackets. A
letter elsewhere does not, since medical text is full of them (vitamin D, B型肝炎, hepatitis C). It judges nothing.
"""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

_OPEN = r"[\s(\[{<「『【《\"'*_`]*"
_CLOSE = r"[)\]}>」』】》\"'*_`]*"
# What may follow an answer's letter: no letter, digit or hyphen (B-cell), and of Japanese and Chinese a particle alone.
_END = r"(?![A-Za-z0-9\-'])(?=[^\w]|[でがはとをもだ是选選正和及与]|$)"
# The English article and the start of a sentence: "a beta blocker", "A 24-year-old".
_ARTICLE = r"(?![aA]\s+(?!(?i:is|are|and|or|because|since)\b|[A-Ha-h]\b)[A-Za-z0-9])"
_LETTER = rf"{_OPEN}{_ARTICLE}([A-Ha-h]){_CLOSE}{_END}"
_FIRST = re.compile(_LETTER)
_AND = r"[,、;/&+・]|と|および|及び|または|或|和|及|与|(?i:\band\b|\bor\b)"
_NEXT = re.compile(rf"(?:\s*(?:{_AND})\s*(?:と|(?i:and|or)\b)?|[ ]+){_LETTER}")
# ABD; of small letters only a line of nothing else.
_RUN = re.compile(rf"{_OPEN}(A?B?C?D?E?F?G?H?|a?b?c?d?e?f?g?h?(?={_CLOSE}[.。]?\s*(?:\n|$))){_CLOSE}{_END}")
_BRACKETED = re.compile(r"[(\[「『【]\s*([A-Ha-h])\s*[)\]」』】]|\*\*([A-Ha-h])\*\*")
_CUE = re.compile(
    r"(?:\b(?:answers?|options?|choices?|letters?)\b\s*(?:is|are|would be)?"
    r"|(?:答え|解答|正解|正答|回答|選択肢|答案|答话|正确选项|选项|应选|故选|选择|选)\s*(?:は|是|为)?)"
    r"\s*:?\s*(?:\b(?:option|choice)s?\b\s*)?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"-?\d+(?:,\d{3})+(?:\.\d+)?|-?\d*\.?\d+")


def own_part(answer: str, marks: Sequence[str]) -> str:
    """The answer, NFKC, up to where the model goes on with another question, which begins with one of `marks`."""
    text = unicodedata.normalize("NFKC", answer)
    ends = [text.find(unicodedata.normalize("NFKC", mark)) for mark in marks]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def read_letters(text: str) -> frozenset[str]:
    """Small letters of the options that the answer names; empty where it names none.

    Args:
        text: NFKC, the answer alone.
    """
    found = _letters_at(text, 0)
    if not found:
        cued = [_letters_at(text, cue.end()) for cue in _CUE.finditer(text)]
        found = next((letters for letters in reversed(cued) if letters), frozenset())
    if not found:
        found = frozenset("".join(groups).lower() for groups in _BRACKETED.findall(text))
    return found


def _letters_at(text: str, start: int) -> frozenset[str]:
    run = _RUN.match(text, start)
    if run and len(run[1]) > 1:
        return frozenset(run[1].lower())
    found = _FIRST.match(text, start)
    letters = set[str]()
    while found:
        letters.add(found[1].lower())
        found = _NEXT.match(text, found.end())
    return frozenset(letters)


def read_number(text: str) -> Decimal | None:
    """The number after the last "answer is" that has one, else the first number; None where there is none."""
    cued = [_NUMBER.match(text, cue.end()) for cue in _CUE.finditer(text)]
    found = next((match for match in reversed(cued) if match), None) or _NUMBER.search(text)
    return to_number(found[0]) if found else None


def to_number(text: str) -> Decimal | None:
    """A number's value; thousands may have commas."""
    try:
        return Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        return None
