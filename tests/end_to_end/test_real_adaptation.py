"""The real adaptation in miniature: both branches from text to merge, through the same program and its pages."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from test_real_road import BINDINGS, SAMPLES, make_model, make_texts

from benchmarks import adaptation_page, real_adaptation, real_road

# Set of conversations → (file, what a record is made of).
FORMS = {
    "messages": lambda ask, answer: {"messages": [*turn("user", ask), *turn("assistant", answer)]},
    "sharegpt": lambda ask, answer: {
        "conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]
    },
    "alpaca": lambda ask, answer: {"instruction": ask, "input": "", "output": answer},
}
FILES = {
    "en": ("icliniq.messages", "wikidoc_patient.alpaca"),
    "ja": ("medical_school_quiz.alpaca", "physiology_quiz.sharegpt", "pharmacist_hygiene.messages"),
    "zh": ("medical_sft.sharegpt",),
}


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def said(who: str, value: str) -> dict[str, str]:
    return {"from": who, "value": value}


def make_chats(folder: Path) -> None:
    """The shipped sample instructions, dealt to the files that the public sets would be in."""
    for language, files in FILES.items():
        lines = (SAMPLES / language / "instructions.jsonl").read_text(encoding="utf-8").split("\n")
        pairs = [[one["content"] for one in json.loads(line)["messages"][-2:]] for line in lines if line]
        (folder / "instructions" / language).mkdir(parents=True)
        for number, name in enumerate(files):
            rows = [FORMS[name.split(".")[1]](*pair) for pair in pairs[number :: len(files)]]
            write(folder / f"instructions/{language}/{name}.jsonl.gz", rows)
        if language == "zh":
            table = "".join(f'内科,题目,"{ask}","{answer}"\n' for ask, answer in pairs)
            target = folder / "instructions/zh/internal_medicine_qa.csv.gz"
            target.write_bytes(gzip.compress(f"department,title,ask,answer\n{table}".encode()))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row | {"id": str(i)}, ensure_ascii=False) + "\n" for i, row in enumerate(rows))
    path.write_bytes(gzip.compress(text.encode("utf-8")))


@pytest.mark.full
def test_both_branches_in_miniature(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts")
    make_chats(texts)
    road = real_road.Road(
        texts=texts,
        out=tmp_path / "out",
        model=make_model(tmp_path / "model"),
        length=64,
        limit=4,
        tokens=200,
        validation_share=0.4,
    )
    model = tuple(one for one in BINDINGS if one.startswith("LlamaConfig"))
    text = ("Mixture.sequence_length=64", "Mixture.batch_tokens=256", "train.rows_per_device=4")
    steps = ("Loop.steps=40", "Checkpointing.every=40", "Schedule.peak=1e-2")
    what = real_adaptation.Adaptation(
        road=road, chat_length=512, template="plain", new=8, cpt=(*text, *steps), sft=steps, model=model
    )
    facts = real_adaptation.adapt(what)
    for kind, language, _ in adaptation_page.lines():
        before = adaptation_page.scored(facts, "parent", kind, language)["child"]["value"]
        after = adaptation_page.scored(facts, "sft" if kind == "answers" else "cpt", kind, language)
        assert after["child"]["value"] < before and after["child"]["value"] != after["parent"]["value"]
    mixed = json.loads((road.out / "cpt-plain" / "mixture.json").read_text(encoding="utf-8"))
    assert "general" not in json.dumps(mixed)
    again = real_adaptation.adapt(what)
    assert again["seconds"] == facts["seconds"], "a stage that was done was done again"
    page = tmp_path / "answers.md"
    told = adaptation_page.section(facts, page)
    assert "answers, Chinese" in told and "](answers.md)" in told and "nan" not in told and "None" not in told
    assert adaptation_page.all_answers(facts).count("**merged:**") == 39
