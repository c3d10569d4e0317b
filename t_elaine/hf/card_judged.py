"""Parts of the model card that say how a checkpoint was judged: held-out text, exams, what it forgot, what it had seen.

Read from the run's metrics and from the results of `evaluate` that belong to this step. No figure is computed anew.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from t_elaine import paths
from t_elaine.checkpoints.layout import CheckpointMeta
from t_elaine.hf import hub
from t_elaine.hf.card_data import table

GENERAL = "general"


def results(run_dir: str, meta: CheckpointMeta) -> list[dict[str, Any]]:
    """The results of `evaluate` in RUN_DIR/evaluation whose model is this checkpoint; those of a part (`limit`) only
    where there are no whole ones."""
    folder, found = paths.join(run_dir, "evaluation"), []
    for name in sorted(name for name in paths.listing(folder) if name.endswith(".json")):
        try:
            content = json.loads(paths.read_text(paths.join(folder, name)))
        except ValueError:
            continue  # somebody else's file; a result is written whole or not at all
        child = content.get("models", {}).get("child", {}) if isinstance(content, dict) else {}
        if child.get("kind") == "run" and child.get("step") == meta.step:
            found.append(content)
    whole = [content for content in found if not content.get("identity", {}).get("limit")]
    return whole or found


def evaluation_section(run_dir: str, meta: CheckpointMeta, say: dict[str, Any]) -> str:
    """Held-out text while training, and what `evaluate` had written by then."""
    judged = results(run_dir, meta)
    parts = [say["evaluation"], *_held_out(run_dir, meta, say)]
    for found in judged:
        parts += [*_bits(found, say), *_exams(found, say), *_written(found, say)]
    return "\n\n".join([*parts, *([] if judged else [say["evaluation_none"]])])


def _held_out(run_dir: str, meta: CheckpointMeta, say: dict[str, Any]) -> Iterator[str]:
    line = None
    for name in sorted(n for n in paths.listing(run_dir) if n.startswith("metrics") and n.endswith(".jsonl")):
        for text in paths.read_text(paths.join(run_dir, name)).split("\n"):
            if '"kind": "validation"' in text and f'"step": {meta.step},' in text and text.endswith("}"):
                line = json.loads(text)
    if line is None:
        return
    told = {name: v for name, v in line["language"].items() if v["bits_per_byte"] is not None}
    rows = [[name, f"{v['bits_per_byte']:.4f}", f"{v['tokens']:,}"] for name, v in told.items()]
    if rows:
        yield f"{say['held']}\n\n{table(say['held_header'], rows)}"
    pairs = {name: v for name, v in line["language"].items() if v.get("margin") is not None}
    rows = [[name, f"{v['pairs']:,}", f"{100 * v['accuracy']:.1f}", f"{v['margin']:.3f}"] for name, v in pairs.items()]
    if rows:
        yield f"{say['held_pairs']}\n\n{table(say['held_pairs_header'], rows)}"


def _sides(found: dict[str, Any]) -> tuple[str, ...]:
    return ("child", "parent", "difference") if found["models"].get("parent") else ("child",)


def _bits(found: dict[str, Any], say: dict[str, Any], level: str = "language") -> Iterator[str]:
    sides = _sides(found)
    if len(sides) > 1 and level == "language":
        yield say["beside"].format(name=_model_name(found["models"]["parent"]))
    rows = [
        [row["language"], f"{row['documents']:,}", *(value(row[side]) for side in sides)]
        for row in found["bits_per_byte"]
        if row["level"] == level and all(side in row for side in sides)
    ]
    if rows:
        header = [*say["bits_header"], *(say["sides"][side] for side in sides)]
        yield f"{say['bits' if level == 'language' else 'forgetting_told']}\n\n{table(header, rows)}"


def _exams(found: dict[str, Any], say: dict[str, Any]) -> Iterator[str]:
    sides = _sides(found)
    rows = [
        [
            exam["suite"],
            exam["questions"],
            f"{exam['chance']:.3f}",
            *(value(exam["scores"][exam["headline"]][side]) for side in sides),
        ]
        for exam in found["exams"]
    ]
    if rows:
        header = [*say["exams_header"], *(say["sides"][side] for side in sides)]
        yield f"{say['exams'].format(way=found['exams'][0]['headline'])}\n\n{table(header, rows)}"


def _written(found: dict[str, Any], say: dict[str, Any]) -> Iterator[str]:
    """Exams that were answered in text: a line an exam and protocol, the parent's beside it."""
    generated = found.get("generated", {})
    other = {(row["suite"], row["protocol"]): row for row in generated.get("parent", [])}
    rows = []
    for row in generated.get("child", []):
        beside = other.get((row["suite"], row["protocol"]))
        if row["questions"]:
            chance = row.get("chance")
            cells = [row["suite"], row["protocol"], row["questions"], "–" if chance is None else f"{chance:.3f}"]
            rows.append(
                [*cells, value(row["accuracy"]), *([value(beside["accuracy"])] if beside else ["–"] * bool(other))]
            )
    if rows:
        names = [say["sides"][side] for side in ("child", "parent")[: 2 if other else 1]]
        yield f"{say['written']}\n\n{table([*say['written_header'], *names], rows)}"


def value(figure: dict[str, Any]) -> str:
    """A figure with its interval, where it has one."""
    if figure["value"] is None:
        return "–"
    interval = f" [{figure['low']:.3f}, {figure['high']:.3f}]" if figure["low"] is not None else ""
    return f"{figure['value']:.3f}{interval}"


def _model_name(model: dict[str, Any]) -> str:
    """A model's name without the folders of a machine."""
    name = re.sub(r"/checkpoints/\d+$", "", model["path"].rstrip("/"))
    name = name if hub.is_name(name) and model["kind"] != "run" else name.rpartition("/")[2]
    return f"{name}, step {model['step']}" if model["kind"] == "run" else name


def forgetting_section(run_dir: str, meta: CheckpointMeta, base: str, say: dict[str, Any]) -> str:
    """General text beside the parent's."""
    if not base:
        return f"{say['forgetting']}\n\n{say['forgetting_none']}"
    told = [part for found in results(run_dir, meta) if beside_parent(found) for part in _bits(found, say, GENERAL)]
    return "\n\n".join([say["forgetting"], *(told or [say["forgetting_lack"]])])


def beside_parent(found: dict[str, Any]) -> bool:
    """Whether a result has general text of both models."""
    return any(row["level"] == GENERAL and "difference" in row for row in found["bits_per_byte"])


def contamination_section(run_dir: str, meta: CheckpointMeta, say: dict[str, Any]) -> str:
    """Exam questions that stood in the training texts, and the scores without them."""
    rows = [row for found in results(run_dir, meta) for row in _seen(found, say)]
    if not rows:
        return f"{say['contamination']}\n\n{say['contamination_lack']}"
    return f"{say['contamination']}\n\n{say['contamination_told']}\n\n{table(say['contamination_header'], rows)}"


def _seen(found: dict[str, Any], say: dict[str, Any]) -> Iterator[list[Any]]:
    for exam in found["exams"]:
        if (seen := exam.get("contamination")) is not None:
            score, without = exam["scores"][exam["headline"]], seen.get("scores", {}).get(exam["headline"])
            yield _line(exam["suite"], exam["questions"], seen, score["child"], without and without["child"], say)
    for row in found.get("generated", {}).get("child", []):
        if row["questions"] and (seen := row.get("contamination")) is not None:
            without = seen.get("without", {}).get("accuracy")
            name = f"{row['suite']} ({row['protocol']})"
            yield _line(name, row["questions"], seen, row["accuracy"], without, say)


def _line(
    name: str, questions: int, seen: dict[str, Any], score: dict[str, Any], without: Any, say: dict[str, Any]
) -> list[Any]:
    if not seen["known"]:
        return [name, questions, say["contamination_unknown"].format(why=seen["why"]), "–", value(score), "–", "–"]
    left = value(without) if without else "–"
    return [name, questions, seen["seen"], seen["half"], value(score), left, seen["unseen"]]


def looked_for(found: dict[str, Any]) -> bool:
    """Whether every score of a result has its contamination beside it."""
    rows = [*found["exams"], *(row for row in found.get("generated", {}).get("child", []) if row["questions"])]
    return bool(rows) and all(row.get("contamination", {}).get("known") for row in rows)
