"""Adaptation on real input: continued pre-training, fine-tuning on conversations, merging; with replay and without.

    python -m benchmarks.real_adaptation --texts=FOLDER --out=FOLDER [--page=docs/numerics.md --answers=docs/answers.md]

FOLDER of texts: as data_tasks/public_corpora.py describes it, with the instruction sets. Two branches start at one
model: `replay` is trained on medical text in three languages with 15 % general text, `plain` on the medical text alone;
both on the same number of tokens, then on the same conversations, then merged with the model they began from. Only our
own commands are run. A stage that is done is not done again, so the script may be killed. What was measured lands in
OUT/adaptation.json; `benchmarks/adaptation_page.py` writes the page from it.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import adaptation_page, held_out, real_road
from benchmarks.real_page import put
from benchmarks.real_road import STORES, Road, do, machine, timed

BRANCHES = ("replay", "plain")
# Small sets of each language whose turns are a patient's or student's question and an answer.
CHATS = (
    *("icliniq", "wikidoc_patient"),
    *("medical_school_quiz", "physiology_quiz", "pharmacist_hygiene"),
    *("medical_sft_zh", "internal_medicine_qa"),
)
HELD_CHATS = ("icliniq", "medical_school_quiz", "medical_sft_zh")
CPT = ("cpt.gin", "hardware/cpu.gin", "recipes/smollm2_cpt.gin")
SFT = ("sft.gin", "hardware/cpu.gin", "models/smollm2_135m.gin")
# Stage → (its model, the same of the branch without replay); a child beside a parent, to `evaluate`.
STAGES: dict[str, tuple[str, str | None]] = {"parent": ("import", None)}
STAGES |= {name: (f"{name}-replay", f"{name}-plain") for name in ("cpt", "sft", "merged")}
ASKED = ("import", "sft-replay", "merged-replay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What is done. The defaults are a processor's; a test makes them small.

    Attributes:
        road: folders of texts and results, the model, held-out documents.
        chat_length: tokens of a row of conversations.
        share: of the child in the merge; the rest is the parent's.
        template: chat template of conversations and questions.
        new: tokens of an answer at most.
        cpt, sft: gin bindings of the two trainings, "NAME=VALUE".
        model: bindings of both.
    """

    road: Road
    chat_length: int = 1024
    share: float = 0.5
    template: str = "chat"
    new: int = 96
    cpt: tuple[str, ...] = ("Loop.steps=32", "Checkpointing.every=32", "Schedule.peak=1e-4")
    sft: tuple[str, ...] = ("Loop.steps=16", "Checkpointing.every=16", "Schedule.peak=5e-5")
    model: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        return self.road.out

    @property
    def chats(self) -> Path:
        return self.out / "chats"


def place(what: Adaptation, name: str) -> Path:
    """A model's folder."""
    return what.road.parent if name == "import" else what.out / name


def make_chats(what: Adaptation) -> None:
    """Token stores of the conversations, in the model's own template."""
    share = f"--gin.prepare.validation_share={what.road.validation_share}"
    own = ("--gin.prepare.modules=('data_tasks.public_corpora',)", share)
    where = (f"--vocabulary={what.road.parent}", f"--stores={what.chats}", f"--data_root={what.road.texts}")
    do(what.road, "prepare", f"--tasks={','.join(CHATS)}", f"--template={what.template}", *where, *own, log="chats")


def train(what: Adaptation, name: str, start: str, files: tuple[str, ...], bindings: tuple[str, ...]) -> None:
    """Train one model; what a kill left is gone on with."""
    own = {
        "RUN_DIR": str(place(what, name)),
        "Start.checkpoint": str(place(what, start)),
        "train.compilation_cache": str(what.out / "xla"),
        "Loop.evaluate_every": 10**6,
        "Loop.evaluate_tokens": 1024,
    }
    settings = [f"{key}={value!r}" for key, value in own.items()] + [*what.model, *bindings]
    arguments = [*(f"--gin_file={file}" for file in files), *(f"--gin.{binding}" for binding in settings)]
    do(what.road, "train", *arguments, log=f"train-{name}")


def train_cpt(what: Adaptation, branch: str) -> None:
    """On text; without replay the general stores are not opened."""
    plain = branch == "plain"
    stores = tuple(str(s) for s in what.road.stores if not (plain and s.name.startswith("general_")))
    more = ("Mixture.replay=None",) if plain else ()
    train(what, f"cpt-{branch}", "import", CPT, (f"STORES={stores!r}", *what.cpt, *more))


def train_sft(what: Adaptation, branch: str) -> None:
    """On conversations, each language's share growing with the root of its tokens."""
    rows = (f"Mixture.sequence_length={what.chat_length}", f"Mixture.batch_tokens={what.chat_length}")
    stores = tuple(str(what.chats / name) for name in CHATS)
    train(what, f"sft-{branch}", f"cpt-{branch}", SFT, (f"STORES={stores!r}", "Mixture.alpha=0.5", *rows, *what.sft))


def merge(what: Adaptation, branch: str) -> None:
    """The mean of the child and the model that it began from."""
    models = f"--models={place(what, f'sft-{branch}')},{what.road.parent}"
    weights = f"--weights={what.share},{round(1 - what.share, 6)}"
    target = place(what, f"merged-{branch}")
    if target.is_dir():  # a merge is there whole or not at all
        return
    do(what.road, "merge", models, weights, f"--carrier={what.road.parent}", f"--to={target}", log=target.name)


def evaluate(what: Adaptation, stage: str) -> dict[str, Any]:
    """Held-out bits-per-byte of text and of answers; each branch by itself and their paired difference."""
    child, other = STAGES[stage]
    road, found = what.road, {}
    held = [held_out.cut_store(store, road.held / store.name, road.limit, road.tokens) for store in road.stores]
    chats = [what.chats / name for name in HELD_CHATS]
    for kind, stores, length in (("text", held, road.tokens), ("answers", chats, what.chat_length)):
        arguments = [f"--checkpoint={place(what, child)}", f"--stores={','.join(map(str, stores))}"]
        arguments += [f"--parent={place(what, other)}"] if other else []
        arguments += [f"--limit={road.limit}", "--gin.evaluate.exams=()", "--batch_rows=4"]
        arguments += [f"--gin.evaluate.sequence_length={length}"]
        name = f"{stage}-{kind}"
        do(road, "evaluate", *arguments, f"--name={name}", f"--to={what.out / 'scores'}", log=f"evaluate-{name}")
        found[kind] = json.loads((what.out / "scores" / f"{name}.json").read_text(encoding="utf-8"))["bits_per_byte"]
    return found


def answers(what: Adaptation, name: str) -> list[dict[str, Any]]:
    """The sample questions, answered by the likeliest token with the penalty that their card has."""
    target = what.out / f"answers-{name}.jsonl"
    asked = ["--questions=card", f"--template={what.template}", f"--max_new={what.new}", "--batch_rows=13"]
    how = ["--gin.generate.sampling=@Sampling()", "--gin.Sampling.repetition_penalty=1.2"]
    where = [f"--checkpoint={place(what, name)}", f"--to={target}", "--overwrite"]
    do(what.road, "generate", *where, *asked, *how, log=f"generate-{name}")
    kept = ("language", "number", "prompt", "answer", "finish", "new_tokens")
    lines = [json.loads(line) for line in target.read_text(encoding="utf-8").split("\n") if line]
    return [{key: line[key] for key in kept} for line in lines]


def stages(what: Adaptation) -> list[tuple[str, Callable[[], Any]]]:
    """Every stage by name, in order; what one returns is kept under its name."""
    road = what.road
    found: list[tuple[str, Callable[[], Any]]] = [
        ("import", lambda: None if road.parent.is_dir() else real_road.make_parent(road)),
        ("prepare", lambda: real_road.make_stores(road)),
        ("chats", lambda: make_chats(what)),
    ]
    for stage, work in (("cpt", train_cpt), ("sft", train_sft), ("merged", merge)):
        found += [(f"{stage}-{branch}", partial(work, what, branch)) for branch in BRANCHES]
    found += [(f"answers {name}", partial(answers, what, name)) for name in ASKED]
    return found + [(f"scores {stage}", partial(evaluate, what, stage)) for stage in STAGES]


def adapt(what: Adaptation) -> dict[str, Any]:
    """All stages that are not done; returns the facts that are also in OUT/adaptation.json."""
    what.out.mkdir(parents=True, exist_ok=True)
    path = what.out / "adaptation.json"
    facts: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"machine": machine(), "done": {}}
    for name, work in stages(what):
        if name not in facts["done"]:
            facts["done"][name] = timed(facts, name, work)
            path.write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    facts["trained"] = {f"{s}-{b}": trained(place(what, f"{s}-{b}")) for s in ("cpt", "sft") for b in BRANCHES}
    facts["arguments"] = {"limit": what.road.limit, "tokens": what.road.tokens, "share": what.share}
    facts["arguments"] |= {"length": what.road.length, "chat_length": what.chat_length, "new": what.new}
    facts["arguments"] |= {"cpt": what.cpt, "sft": what.sft, "chats": CHATS, "text": STORES}
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    return facts


def trained(run: Path) -> dict[str, Any]:
    """Updates, targets, losses and seconds of a run."""
    lines = real_road.train_lines(run / "metrics.jsonl")
    losses = [lines[step]["loss"] for step in sorted(lines)]
    targets = sum(line["batch_tokens"] for line in lines.values())
    seconds = sum(line["seconds"]["step"] for line in lines.values())
    return {"updates": len(losses), "targets": targets, "first": losses[0], "last": losses[-1], "seconds": seconds}


def main(argv: list[str] | None = None) -> int:
    """Command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--texts", type=Path, required=True, help="folder of texts")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything made (9 GB)")
    parser.add_argument("--model", type=Path, help="Hugging Face folder; absent: SmolLM2-135M-Instruct")
    parser.add_argument("--limit", type=int, default=6, help="held-out documents of each store to score")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of each text of them at most")
    parser.add_argument("--page", type=Path, help="page whose section is written")
    parser.add_argument("--answers", type=Path, help="page of all answers")
    given = parser.parse_args(argv)
    folders = {name: getattr(given, name).resolve() for name in ("texts", "out")}
    road = Road(**folders, model=given.model, limit=given.limit, tokens=given.tokens, validation_share=0.2)
    facts = adapt(Adaptation(road=road))
    text = adaptation_page.section(facts, given.answers)
    if given.page:
        put(given.page, text, adaptation_page.MARKS)
    if given.answers:
        given.answers.write_text(adaptation_page.all_answers(facts), encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
