"""Texts to words, for measures that compare texts: six languages. No measure here.

Japanese by janome and Chinese by jieba, which MMedBench's published code takes too; they are loaded when such a text
comes. The others by the rules of the Penn Treebank's tokenizer (MacIntyre 1995), as NLTK's word_tokenize: punctuation
apart, English contractions in two, a full stop apart where a sentence ends.
"""

import functools
import importlib.util
import logging
import re
from collections.abc import Callable

from t_elaine.errors import UserError

# Language → the package that tells its words apart.
PACKAGES = {"ja": "janome", "zh": "jieba"}
# Words whose full stop ends no sentence, beside those with a full stop inside (e.g., i.v.).
ABBREVIATIONS = frozenset(
    ["dr", "mr", "mrs", "ms", "prof", "vs", "etc", "fig", "al", "approx", "ca", "cf", "jr", "sr", "st"]
)
_SPACED = [
    # Quotes open at the beginning and after a blank or a bracket, and close elsewhere.
    (re.compile(r'(^|[\s(\[{<])"'), r"\1 `` "),
    (re.compile(r'"'), " '' "),
    (re.compile(r"(\.{2,}|--)"), r" \1 "),
    (re.compile(r"([;@#$%&?!()\[\]{}<>«»“”„‘…—])"), r" \1 "),
    (re.compile(r"([:,])(?!\d)"), r" \1 "),  # in a number they stay: 1,000
    (re.compile(r"(?<!')'(?=\s|$)|(?<!\S)'(?!')"), " ' "),
    (re.compile(r"(?i)(n't|'(?:s|m|d|ll|re|ve))\b"), r" \1 "),
    (re.compile(r"(?i)\b(can)(not)\b"), r"\1 \2"),
]
_END = re.compile(r"([^.]+(?:\.[^.]+)*)\.([\])}>\"'»”’]*)")


def check(language: str) -> None:
    """Raise UserError where the package that a language needs is not installed."""
    package = PACKAGES.get(language, "")
    if package and importlib.util.find_spec(package) is None:
        what = f"words of {language!r} are told apart by {package}, which is not installed"
        raise UserError(what, "mmedbench:rationale", "pip install 't-elaine[mmedbench]', or leave these texts out")


def words(text: str, language: str) -> list[str]:
    """A text's words and punctuation marks.

    Args:
        text: any.
        language: ja, zh, or one that is written with blanks.

    Raises:
        UserError: the language's package is not installed.
    """
    check(language)
    return {"ja": _japanese, "zh": _chinese}.get(language, _spaced)(text)


def _japanese(text: str) -> list[str]:
    return [str(word) for word in _janome()(text)]


@functools.cache
def _janome() -> Callable[[str], list[str]]:
    from janome.tokenizer import Tokenizer

    tokenizer = Tokenizer()
    return lambda text: list(tokenizer.tokenize(text, wakati=True))


def _chinese(text: str) -> list[str]:
    import jieba

    jieba.setLogLevel(logging.WARNING)  # it says on stderr where its dictionary lies
    return list(jieba.cut(text))


def _spaced(text: str) -> list[str]:
    for pattern, by in _SPACED:
        text = pattern.sub(by, text)
    found = text.split()
    last = max((i for i, word in enumerate(found) if word.strip("])}>'»”’")), default=-1)
    return [part for i, word in enumerate(found) for part in _full_stop_apart(word, i == last)]


def _full_stop_apart(word: str, last: bool) -> list[str]:
    """`last`: of the text, where a full stop is the sentence's whatever it stands behind."""
    found = _END.fullmatch(word)
    if found is None or (_is_short(found[1]) and not last):
        return [word]
    return [part for part in (found[1], ".", found[2]) if part]


def _is_short(word: str) -> bool:
    """A word whose full stop is its own: an initial, an abbreviation."""
    initial = len(word) == 1 and word.isalpha()
    return initial or word.lower() in ABBREVIATIONS or bool(re.search(r"[^\W\d]\.[^\W\d]", word))
