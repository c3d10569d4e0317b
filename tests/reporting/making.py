"""A run folder as train, evaluate and export leave it, with made-up figures: what the report is tested on."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine.evaluation import protocols, suites, summary
from t_elaine.evaluation.bits_per_byte import Held
from t_elaine.evaluation.options import ExamScores
from t_elaine.evaluation.suites import Suite

GROUPS = [("en", "PubMed abstract"), ("ja", "textbook"), ("zh", "guideline"), ("en", "general"), ("ja", "general")]
SOURCES = ("english_corpus", "japanese_corpus", "chinese_corpus", "general_replay")
DRAWS = {"resamples": 400, "seed": 0}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1)
    path.write_text(text, encoding="utf-8")


def figures(rng: np.random.Generator, progress: float, noise: float) -> dict[str, Any]:
    def of(start: float, end: float, per_token: float) -> dict[str, Any]:
        loss = end + (start - end) * math.exp(-4 * progress) + rng.normal(0, noise)
        return {"loss": loss, "bits_per_byte": loss / math.log(2) / per_token, "tokens": 4096}

    return {
        **of(3.1, 2.4, 3.6),
        "language": {"en": of(2.6, 2.2, 4.4), "ja": of(3.4, 2.6, 3.1), "zh": of(3.5, 2.7, 2.9)},
        "category": {name: of(3 + i / 8, 2.4 + i / 9, 3.6) for i, (_, name) in enumerate(GROUPS[:4])},
    }


def metric_lines(steps: int, resumes: tuple[int, ...]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for step in range(steps + 1):
        if step % max(1, steps // 8) == 0:
            lines.append({"kind": "validation", "step": step, **figures(rng, step / steps, 0.004)})
        if step in resumes:
            lines.append({"kind": "resume", "step": step})
        if not step:
            continue
        warm = min(1.0, step / (0.1 * steps))
        seconds = {"step": 1.4 + rng.random() / 5, "data": 0.01, "compute": 1.3, "checkpoint": 0.2 * (step % 50 == 0)}
        lines.append(
            {
                "kind": "train",
                "step": step,
                **figures(rng, step / steps, 0.06),
                "batch_tokens": 16384,
                "tokens": 16384 * step,
                "learning_rate": 2e-5 * warm * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2),
                "grad_norm": 0.8 + rng.gamma(2, 0.15),
                "skipped": 0,
                "skipped_in_a_row": 0,
                "seconds": seconds,
                "tokens_per_second": 16384 / seconds["step"],
                "mfu": None,
            }
        )
    return lines


def held(rng: np.random.Generator, shift: float) -> list[Held]:
    stores = []
    for store, groups in (
        ("english_corpus", GROUPS[:1]),
        ("japanese_corpus", GROUPS[1:2]),
        ("general_replay", GROUPS[3:]),
    ):
        members = [group for group in groups for _ in range(40)]
        sizes = np.random.default_rng(1).integers(800, 9000, len(members))
        general = np.array([category == "general" for _, category in members])
        each = 0.66 + 0.1 * np.random.default_rng(2).random(len(members)) + np.where(general, -shift / 3, shift)
        nats = sizes * (each + rng.normal(0, 0.004, len(members)))
        stores.append(Held(store=store, groups=members, nats=nats, tokens=sizes // 4, bytes=sizes, unpredicted=0))
    return stores


def exam(suite: Suite, rng: np.random.Generator, skill: float) -> ExamScores:
    scores: dict[str, list[list[float]]] = {"text_per_byte": [], "text": [], "letter": []}
    for question in suite.questions:
        for name in scores:
            lift = [skill * (i in question.gold) for i in range(len(question.choices))]
            scores[name].append((rng.normal(-2, 0.3, len(lift)) + lift).tolist())
    return ExamScores(scores=scores, cut=0, first_prompt_ids=[1, 2, 3])


def evaluation(parent: bool = True) -> dict[str, Any]:
    """A result as `evaluate` writes it, through its own code."""
    protocol = protocols.load_protocol()
    exams = [suites.load_suite(f"samples/{language}") for language in ("en", "ja", "zh")]
    sides = 2 if parent else 1
    measured = [held(np.random.default_rng(10 + i), 0.03 * i) for i in range(sides)]
    models = {"child": {"path": "runs/tiny", "kind": "run", "step": 240, "tokens": 3932160, "identity": "a" * 64}}
    if parent:
        models["parent"] = {"path": "imported/base", "kind": "run", "step": 0, "tokens": 0, "identity": "b" * 64}
    rngs = [np.random.default_rng(20 + i) for i in range(sides)]
    return {
        "format": 1,
        "identity": {"sequence_length": 1024, **DRAWS},
        "models": models,
        "bits_per_byte": summary.bits_rows(measured, DRAWS),
        "exams": [
            summary.exam_row(
                suite, [exam(suite, rng, 0.3 - 0.15 * i) for i, rng in enumerate(rngs)], protocol.headline, DRAWS
            )
            for suite in exams
        ],
        "protocol": {"sha256": protocol.sha256, **protocol.templates},
    }


def proof() -> dict[str, Any]:
    languages = {"en": 2.1e-6, "ja": 3.3e-6, "zh": 2.9e-6}
    pair = {
        "ours": "importer",
        "largest": languages,
        "relative_rms": languages,
        "limit": {"largest": 1e-4, "relative_rms": 1.0},
        "passed": True,
    }
    return {
        "dtype": "float32",
        "tolerances": {"absolute": 1e-4, "rounding": 1e-6},
        "prompts": {"en": 24, "ja": 24, "zh": 24, "tokens": 1712},
        "config_read_back_equal": True,
        "tensors": {"count": 272, "bytes": 538060544, "differing": []},
        "logits": [{**pair, "theirs": "checkpoint", "limit": {"relative_rms": 1e-6}}, {**pair, "theirs": "numpy"}],
        "files": {},
        "passed": True,
    }


def make_run_folder(folder: Path, steps: int = 240, resumes: tuple[int, ...] = (80, 160), parent: bool = True) -> Path:
    """Everything that a finished run, its evaluation and its export leave."""
    run = folder / "tiny run"
    write(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metric_lines(steps, resumes)))
    write(run / "config.gin", 'Loop.steps = 240\n# a comment with <tags> & "quotes"\n')
    write(run / "command.txt", "python -m t_elaine.train --gin_file=cpt.gin\n")
    write(run / "status.json", {"state": "finished", "reason": "finished", "step": steps})
    versions = {
        "source": {"commit": "0" * 40},
        "python": "3.11.9",
        "packages": {"jax": "0.10.2"},
        "devices": {"kind": "cpu"},
    }
    write(run / "versions.json", versions)
    sources = {
        name: {
            "rows": 10,
            "tokens": 983040,
            "share": 0.25,
            "weight": 0.25,
            "epochs": 0.4 * (i + 1),
            "dropped": 0,
            "truncated": 3 * (i == 1),
        }
        for i, name in enumerate(SOURCES)
    }
    shares = {"en": 0.3, "ja": 0.35, "zh": 0.35}
    write(run / "mixture.json", {"step": steps, "tokens": 3932160, "sources": sources, "languages": shares})
    data = {}
    for name in SOURCES:
        licence = {"licence": "CC BY 4.0", "url": f"https://example.org/{name}", "private": name == "japanese_corpus"}
        write(folder / "stores" / name / "manifest.json", {"name": name, "licences": {f"{name}_files": licence}})
        data[name] = {"folder": str(folder / "stores" / name), "manifest_sha256": "c" * 64}
    write(run / "data.json", data)
    write(run / "evaluation" / "step-240.json", evaluation(parent))
    write(run / "export" / "proof.json", proof())
    return run
