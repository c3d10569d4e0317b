"""Exams of the ELAINE benchmark that lm-eval lacks, asked as `t-elaine evaluate --protocols=likelihood` does.

Stands beside the task files and an export's weights; needs lm-eval alone. The exams are not here: their published files
are read from the folder that ELAINE_EXAMS (or --metadata '{"suites_dir": …}') names, and must be those to the byte.
Prompts are likelihood.json's. An answer of several letters is right where the best-scored options are exactly those.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = "https://github.com/aistairc/medLLM_QA_benchmark"


def load(suite: str, file: str, sha256: str, way: str, suites_dir: str = "", **_: Any) -> dict[str, Any]:
    """{"test": items} for a task.

    Args:
        suite: for example ja/IgakuQA; its folder in `suites_dir`.
        file: the published file's name.
        sha256: its digest.
        way: "text" (options by themselves) or "letter" (letters, with the options listed in the prompt).
        suites_dir: folder of the exams; "" takes ELAINE_EXAMS.

    Raises:
        SystemExit: the file is not there, or is another one.
    """
    import datasets

    folder = suites_dir or os.environ.get("ELAINE_EXAMS", "")
    path = Path(folder) / suite / file
    if not folder or not path.is_file():
        raise SystemExit(f"{suite}: no {path}; set ELAINE_EXAMS to the folder data/ of {REPOSITORY}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SystemExit(f"{suite}: {path} is not the published file (sha256 {sha256}); fetch it again")
    templates = json.loads((HERE / "likelihood.json").read_text(encoding="utf-8"))
    language = suite.partition("/")[0]
    found = [item(json.loads(line), templates, language, way) for line in content.decode().split("\n") if line.strip()]
    return {"test": datasets.Dataset.from_list([one for one in found if one])}


def item(record: dict[str, Any], templates: dict[str, Any], language: str, way: str) -> dict[str, Any] | None:
    """A question as a prompt with continuations; None where options cannot score it."""
    choices, answer = record["choices"], record["answer"]
    if not isinstance(choices, list) or not isinstance(answer, list) or len(choices) < 2 or not answer:
        return None
    letters = [str(letter).strip().lower() for letter in answer]
    gold = sorted({"abcdefghij".find(letter) for letter in letters})
    if any(len(letter) != 1 for letter in letters) or gold[0] < 0 or gold[-1] >= len(choices):
        return None
    if len(gold) == len(choices):
        return None
    text, context = str(record["problem_text"]), record.get("context")
    question = f"{context}\n{text}" if isinstance(context, str) and context else text
    template, names = templates[way][language], templates["letters"]
    prompt = template["prompt"].replace("{question}", question)
    fill = [{"{letter}": names[i], "{option}": str(choice)} for i, choice in enumerate(choices)]
    if way == "letter":
        prompt = prompt.replace("{options}", "\n".join(_filled(template["line"], one) for one in fill))
    continuations = [_filled(template["continuation"], one) for one in fill]
    return {"id": str(record["problem_id"]), "prompt": prompt, "continuations": continuations, "gold": gold}


def _filled(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def choose(scores: Sequence[float], count: int) -> list[int]:
    """Places of the `count` highest scores, ascending; of equal ones the first."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def text_results(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Accuracy by the options' log-likelihood, for each UTF-8 byte of them and whole."""
    sums = [value for value, _ in results]
    sizes = [max(1, len(text.encode())) for text in doc["continuations"]]
    by_byte = [value / size for value, size in zip(sums, sizes, strict=True)]
    count = len(doc["gold"])
    return {
        "text_per_byte": float(choose(by_byte, count) == doc["gold"]),
        "text": float(choose(sums, count) == doc["gold"]),
    }


def letter_results(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Accuracy by the letters' log-likelihood."""
    return {"letter": float(choose([value for value, _ in results], len(doc["gold"])) == doc["gold"])}
