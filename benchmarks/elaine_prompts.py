"""The published ELAINE evaluation's prompts, for comparisons of engines: few-shot text of an exam, byte for byte.

Source: aistairc/medLLM_QA_benchmark at 614599e5042052a374fca74590a2dd95c80a56b3, generation/hf_vllm.py: demonstrations
are the first items of the file and are not asked. Knows no model.
"""

import json
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# context, question, instruction, cue
WORDS = {
    "en": ("Context: ", "Question: ", "Be sure to choose exactly {n} from a, b, c, d, e.", "Answer:"),
    "ja": ("背景: ", "問題: ", "必ずa,b,c,d,eの中からちょうど{n}個選んでください。", "答え:"),
    "zh": ("背景: ", "问题: ", "请确保从 a、b、c、d、e 中准确选择 {n}。", "答话:"),
}


def suites(folder: Path) -> list[Path]:
    """The exams' files, folder/LANGUAGE/SUITE/FILE.jsonl, in order of their names."""
    return sorted(folder.glob("*/*/*.jsonl"))


def prompts(path: Path, shots: int = 5) -> list[str]:
    """The prompt of each item after the first `shots`."""
    words = WORDS[path.parent.parent.name]
    with open(path, encoding="utf-8") as lines:
        items = [json.loads(line) for line in lines if line.strip()]
    before = "".join(f"{_asked(item, words)}\n{','.join(item['answer'])}\n" for item in items[:shots])
    return [f"{before}{_asked(item, words)}\n" for item in items[shots:]]


def _asked(item: dict[str, Any], words: tuple[str, str, str, str]) -> str:
    context, question, instruction, cue = words
    lines = [context + item["context"]] if item.get("context") else []
    lines.append(question + item["problem_text"])
    lines += [f"{letter}: {choice}" for letter, choice in zip(LETTERS, item["choices"] or (), strict=False)]
    if item["choices"]:
        lines += [instruction.replace("{n}", str(len(item["answer"]))), cue]
    return "\n".join(lines)


def spread(path: Path, count: int, shots: int = 5) -> list[str]:
    """`count` of the prompts, evenly over the file."""
    every = prompts(path, shots)
    return [every[i * len(every) // count] for i in range(count)]
