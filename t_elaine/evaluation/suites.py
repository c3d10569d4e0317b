"""Exams for option likelihoods: their questions, and which items cannot be scored so and why.

It knows no prompt and no model; files are read by `items`.
"""

from collections import Counter
from dataclasses import dataclass

from t_elaine.errors import UserError
from t_elaine.evaluation.items import LETTERS, Item, load_exam, spread

# Options of a question at most: more have no letter in the prompt.
MOST = 10


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question. `gold`: indices of the right options, ascending; `line`: of its file, from 1."""

    id: str
    text: str
    choices: tuple[str, ...]
    gold: tuple[int, ...]
    line: int = 0


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One exam. `skipped`: reason → questions left out; `sha256`: digest of the file `path` as it is."""

    name: str
    language: str
    questions: tuple[Question, ...]
    skipped: dict[str, int]
    sha256: str
    path: str = ""


def load_suite(spec: str, limit: int = 0, suites_dir: str = "") -> Suite:
    """Load an exam.

    Args:
        spec: as `items.load_exam` takes it.
        limit: take only so many scorable questions, spread evenly over the file; 0 takes all.
        suites_dir: folder of the published exams.

    Raises:
        UserError: what `items.load_exam` refuses, or nothing that can be scored.
    """
    exam = load_exam(spec, suites_dir)
    made = [question(item) for item in exam.items]
    skipped = Counter(one for one in made if isinstance(one, str))
    questions = tuple(one for one in made if isinstance(one, Question))
    if not questions:
        raise UserError("no question of this exam can be scored", exam.path, f"reasons: {dict(skipped)}")
    return Suite(
        name=exam.name,
        language=exam.language,
        questions=spread(questions, limit),
        skipped=dict(sorted(skipped.items())),
        sha256=exam.sha256,
        path=exam.path,
    )


def question(item: Item) -> Question | str:
    """The question, or the reason why it cannot be scored by options."""
    if len(item.choices) < 2:
        return "no choices"
    if len(item.choices) > MOST:
        return "too many choices"
    if isinstance(item.answer, str) or not item.answer:
        return "no answer letters"
    letters = [letter.strip().lower() for letter in item.answer]
    if not all(len(letter) == 1 and letter in item.letters for letter in letters):
        return "answer letters outside the choices"
    gold = {LETTERS.index(letter) for letter in letters}
    if len(gold) == len(item.choices):
        return "every choice is right"
    # PubMedQA's questions come with the abstract that they are about.
    text = f"{item.context}\n{item.text}" if item.context else item.text
    return Question(id=str(item.id), text=text, choices=item.choices, gold=tuple(sorted(gold)), line=item.line)
