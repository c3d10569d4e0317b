"""Run by a Python that has lm-eval: log-likelihoods of exported tasks' options, of a model through `--model hf`.

    python lm_eval_side.py MODEL TASKS_FOLDER EXAMS LIMIT TOLD.json

TOLD: task → a list of {"id", "scores" (nats of each option), "metrics"}, the first LIMIT items of each.
"""

import json
import sys

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def main(model: str, tasks: str, exams: str, limit: str, told: str) -> None:
    """See the module."""
    manager = TaskManager(include_path=tasks, include_defaults=False, metadata={"suites_dir": exams})
    names = sorted(name for name in manager.all_tasks if name.startswith("elaine_") and name.count("_") == 2)
    held = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=4, max_length=512)
    done = lm_eval.simple_evaluate(held, tasks=names, task_manager=manager, limit=int(limit), bootstrap_iters=0)
    metrics = ("text_per_byte", "text", "letter")
    found = {
        name: [
            {
                "id": one["doc"]["id"],
                "scores": [float(answer[0][0]) for answer in one["resps"]],
                "metrics": {metric: one[metric] for metric in metrics if metric in one},
            }
            for one in sorted(samples, key=lambda one: one["doc_id"])
        ]
        for name, samples in done["samples"].items()
    }
    with open(told, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
