"""The English IgakuQA as an exam like the others: made of the translations that stand beside the Japanese items.

The published files (jungokasai/IgakuQA) hold translated questions and options alone; which items are about an image and
what they count is said in the Japanese ones. Nothing is fetched here.
"""

import json
from typing import Any

YEARS = {2018: 112, 2019: 113, 2020: 114, 2021: 115, 2022: 116}
PARTS = "ABCDEF"


def files() -> list[str]:
    """Of that repository: the Japanese ones, then the translations, both in the order of the exams."""
    exams = [f"data/{year}/{exam}-{part}" for year, exam in YEARS.items() for part in PARTS]
    return [*(f"{exam}.jsonl" for exam in exams), *(f"{exam}_translate.jsonl" for exam in exams)]


def english(content: bytes) -> bytes:
    """All those files, one after another, to the English exam in the layout of `suites`."""
    records = [json.loads(line) for line in content.decode("utf-8").split("\n") if line]
    half = len(records) // 2
    made = [_joined(*pair) for pair in zip(records[:half], records[half:], strict=True)]
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made).encode()


def _joined(japanese: dict[str, Any], translated: dict[str, Any]) -> dict[str, Any]:
    return {
        "problem_id": translated["problem_id"],
        "problem_text": translated["problem_text_en"],
        "choices": translated["choices_en"],
        "text_only": japanese["text_only"],
        "answer": translated["answer"],
        "points": japanese["points"],
    }
