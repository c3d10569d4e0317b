"""MMedBench's test files as exams: a JSON object a line with question, options (letter → text), answer_idx, rationale.

The file's name is its language. Layout: MAGIC-AI4Med/MMedLM, inference/inference.py; human_check_passed says whether
people have passed the rationale. The files are not at hand here: whether one is as published is not known.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t_elaine.errors import UserError
from t_elaine.evaluation.items import LETTERS, Exam, Item, Rationale, check_fields, lines, record_of
from t_elaine.evaluation.sitting import load_rules

NAME = "mmedbench"
FIELDS = ("question", "options", "answer_idx", "rationale")
# Characters that a text in the language has, and such as it has not; of a line's texts together.
_LATIN = r"[A-Za-zÀ-ÿ]"
_KANA = r"[぀-ヿ]"
SCRIPTS: Mapping[str, tuple[str, str]] = {
    "en": (_LATIN, r"[Ѐ-ӿ぀-ヿ一-鿿]"),
    "fr": (_LATIN, r"[Ѐ-ӿ぀-ヿ一-鿿]"),
    "es": (_LATIN, r"[Ѐ-ӿ぀-ヿ一-鿿]"),
    "ru": (r"[Ѐ-ӿ]", r"[぀-ヿ一-鿿]"),
    "ja": (_KANA, r"[Ѐ-ӿ]"),
    "zh": (r"[一-鿿]", rf"{_KANA}|[Ѐ-ӿ]"),
}


def is_spec(spec: str) -> bool:
    """Whether an exam of this kind is meant: mmedbench/Japanese, or mmedbench:FILE."""
    return spec.startswith((f"{NAME}/", f"{NAME}:"))


def refuse_likelihood(spec: str) -> None:
    """Raise UserError where an exam of this kind is to be asked by likelihood."""
    if is_spec(spec):
        raise UserError("MMedBench is not asked by likelihood", spec, "give --protocols=mmedbench, or repaired")


def load(spec: str, suites_dir: str = "") -> Exam:
    """Read a test file.

    Args:
        spec: mmedbench/LANGUAGE for MMedBench/Test/LANGUAGE.jsonl in `suites_dir`, or mmedbench:FILE, whose name is
            its language.
        suites_dir: folder of the published exams.

    Raises:
        UserError: no such language or file, a line that lacks a field, is cut off, has an answer outside its options or
            is in another language.
    """
    path, name = _locate(spec, suites_dir)
    language = load_rules(NAME).data["languages"][name]
    content = path.read_bytes()
    found = enumerate(lines(content, str(path)), 1)
    items = tuple(_item(line, number, f"{path}:{number}", language) for number, line in found if line.strip())
    if not items:
        raise UserError("there is no item in it", str(path), _origin())
    return Exam(
        name=f"{NAME}/{name}",
        language=language,
        path=str(path),
        sha256=hashlib.sha256(content).hexdigest(),
        published=False,
        items=items,
    )


def _locate(spec: str, suites_dir: str) -> tuple[Path, str]:
    rules = load_rules(NAME).data
    given = spec[len(NAME) + 1 :]
    path = Path(given) if spec[len(NAME)] == ":" else Path(suites_dir) / rules["exams"]["path"].format(name=given)
    name = path.stem
    if name not in rules["languages"]:
        what = f"MMedBench has no language {name!r}; a file's name is its language"
        raise UserError(what, "exams", f"known are {', '.join(rules['languages'])}")
    if spec[len(NAME)] == "/" and not suites_dir:
        raise UserError(f"no folder of exams is given for {spec}", "suites_dir", f"give --suites_dir; {_origin()}")
    if not path.is_file():
        raise UserError(f"{NAME}/{name} is not there", str(path), _origin(suites_dir or "FOLDER"))
    return path, name


def _origin(folder: str = "FOLDER") -> str:
    """Where the files come from, and the command that fetches them."""
    exams = load_rules(NAME).data["exams"]
    told = f"it comes from {exams['repository']} at {exams['commit']} (licence: {exams['licence']}; its digest is not "
    url = exams["url"].format(commit=exams["commit"])
    return f"{told}known here); fetch it with: curl -L -o MMedBench.zip {url} && unzip MMedBench.zip -d {folder}"


def _item(line: str, number: int, where: str, language: str) -> Item:
    record = record_of(line, FIELDS, where)
    _check_types(record, where)
    _check_language(record, where, language)
    letters = record["answer_idx"].split(",") if isinstance(record["answer_idx"], str) else record["answer_idx"]
    if not letters or not set(letters) <= set(record["options"]):
        what = f"the answer {record['answer_idx']!r} is outside its {len(record['options'])} options"
        raise UserError(what, where, f"give letters of {', '.join(record['options'])}")
    passed = record["rationale"].strip() and record.get("human_check_passed", True)
    return Item(
        line=number,
        id=number,
        text=record["question"],
        context=None,
        choices=tuple(record["options"].values()),
        answer=tuple(letter.lower() for letter in letters),
        points=1,
        text_only=True,
        rationale=Rationale(text=record["rationale"], language=language) if passed else None,
    )


def _check_types(record: Mapping[str, Any], where: str) -> None:
    def lettered(value: Any) -> bool:
        wanted = list(LETTERS.upper()[: len(value)]) if isinstance(value, dict) else []
        return len(wanted) >= 2 and list(value) == wanted and all(isinstance(text, str) for text in value.values())

    answer = record["answer_idx"]
    texts = isinstance(answer, list) and all(isinstance(letter, str) for letter in answer)
    checks = (
        ("question", isinstance(record["question"], str), "give a text"),
        ("options", lettered(record["options"]), "give an object of texts under the letters A, B, C and on, in order"),
        ("answer_idx", isinstance(answer, str) or texts, "give a letter, or a list of letters"),
        ("rationale", isinstance(record["rationale"], str), "give a text; it may be empty"),
        (
            "human_check_passed",
            isinstance(record.get("human_check_passed", True), bool | int),
            "give true or false, or leave it out",
        ),
    )
    check_fields(record, checks, "its ", where)


def _check_language(record: Mapping[str, Any], where: str, language: str) -> None:
    """Raise UserError for a line that is plainly in another language than its file: by the script of its texts."""
    text = " ".join([record["question"], *record["options"].values(), record["rationale"]])
    own, other = (len(re.findall(pattern, text)) for pattern in SCRIPTS[language])
    if own == 0 or 4 * other > own:
        what = f"this line is not in the file's language, {language!r}: {record['question'][:40]!r}"
        raise UserError(what, where, "put it into the file of its language: prompts and words depend on it")
