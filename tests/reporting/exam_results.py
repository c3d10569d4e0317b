"""Results of exams answered in text, through evaluate's own code, with an engine that draws its answers."""

import json
import random
from pathlib import Path
from typing import Any

from t_elaine.evaluation import exams, unseen
from t_elaine.evaluation.items import load_exam
from tests.reporting.making import evaluation

TEXTS = {
    "en": ("Which vessel carries blood to the lungs, case {}?", "The answer is {}. Because of the heart."),
    "ja": ("{}歳の男性。心不全の治療薬はどれか。", "正解は{}です。なぜなら右心不全を来しているからである。"),
    "zh": ("第{}题：治疗高血压首选的药物是哪一种？", "答案是{}。因为患者的血压明显升高。"),
}
BASE = "what the model it began from had read is not known"


def write_exam(folder: Path, language: str, count: int = 30) -> Path:
    path = folder / language / f"exam_{language}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    question, _ = TEXTS[language]
    items = [
        {
            "problem_id": f"{language}{i}",
            "problem_text": question.format(i),
            "choices": [f"{question[-4:]} {letter}{i}" for letter in "abcd"],
            "answer": ["abcd"[i % 4]],
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return path


def make_result(folder: Path, name: str = "step-240", seed: int = 0, parent: bool = True, count: int = 30) -> Path:
    """A result with two sides, three languages, `official` and `repaired`, and what was seen of each exam."""
    read = [load_exam(str(write_exam(folder / "exams", language, count))) for language in TEXTS]
    sittings = exams.sittings(read, ("official", "repaired"))
    asked = {prompt: item for one in sittings for prompt, item in zip(one.prompts, one.items, strict=True)}

    def engine(side: int):
        drawn = random.Random(100 * seed + side)

        def write(prompts, sampling):
            for place, prompt in enumerate(prompts):
                item = asked[prompt]
                letter = item.answer[0] if drawn.random() < 0.6 - 0.2 * side else drawn.choice("abcd")
                told = TEXTS[str(item.id)[:2]][1].format(letter)
                yield place, letter if drawn.random() < 0.7 else told

        return lambda sitting: write

    result = evaluation(parent)
    generated = {}
    for side, one in enumerate(result["models"]):
        made = {"model": one, "engine": "t-elaine", "dtype": "float32", "versions": {"jax": "0.10.2"}}
        generated[one] = exams.take(sittings, engine(side), str(folder / f"{name}-answers"), made, resamples=50)
    result |= {"generated": generated, "exam_files": {exam.name: exam.path for exam in read}}
    seen = {f"ja{i}": {"question": i / 30, "seen": True} for i in range(5, 15)}
    found = {"known": True, "why": "", "base": BASE, "settings": {}, "stores": {"notes": {}}, "untold": 0}
    unseen.put(result, sittings, [found | {"items": seen if one.exam.language == "ja" else {}} for one in sittings])
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
    return path


def as_published(row: dict[str, Any], suite: str, value: float) -> dict[str, Any]:
    """A score as `evaluate` writes it of a published exam asked whole."""
    language, _, column = suite.partition("/")
    cell = {"table": f"elaine/{language}", "column": column}
    accuracy = {"value": value, "low": value - 0.02, "high": value + 0.02}
    return row | {"suite": suite, "published_suite": True, "published_row": cell, "accuracy": accuracy}
