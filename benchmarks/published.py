"""The protocol `official` beside the published evaluation's own scripts, item by item, and our engine beside others.

    python -m benchmarks.published --repository=REPOSITORY --engine_python=VLLM/bin/python [--items=40] [--to=FOLDER]
        [--model=FOLDER] [--suites=en/MMLU,…]

REPOSITORY: aistairc/medLLM_QA_benchmark at 614599e. SmolLM2-135M-Instruct in float32. Each suite is cut to its five
demonstrations and `--items` of its items, spread evenly, and asked four times: by the published scripts with vLLM (with
the Python given, which needs vllm, mojimoji and jsonlines besides), and by `t-elaine evaluate` with our engine, with
transformers and with vLLM. The scripts are changed in one word, dtype='float16' to 'float32'; what is around them says
`published_scripts`.

What is done is kept in `--to`: the same command goes on. Where two differ, transformers' logits say how far its first
two choices lie apart at the token where they part; below 1e-4 it is a tie. Exit code 1 for any other difference.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import elaine_prompts, smollm2
from benchmarks.greedy import TIE, load_theirs
from t_elaine.evaluation import official
from t_elaine.evaluation.items import load_exam

PATCH = ("dtype='float16'", "dtype='float32'")
SHOTS = 5
ENGINES = ("t-elaine", "transformers", "vllm")


def cut(path: Path, items: int, to: Path) -> Path:
    """The suite's demonstrations and some of its items, the ones that `--limit` takes, as a file of the same layout."""
    exam = load_exam(suite_name(path), str(path.parents[2]))
    lines = path.read_bytes().split(b"\n")
    chosen = [item.line for item in (*exam.items[:SHOTS], *official.sitting(exam, items).items)]
    made = to / "exams" / path.parent.parent.name / path.parent.name / path.name
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_bytes(b"".join(lines[line - 1] + b"\n" for line in chosen))
    return made


def patched(repository: Path, to: Path) -> None:
    """The scripts with the engine's dtype changed, and nothing else."""
    if not (to / "scripts").exists():
        shutil.copytree(repository / "scripts", to / "scripts")
    file = to / "scripts" / "generation" / "hf_vllm.py"
    text = (repository / "scripts" / "generation" / "hf_vllm.py").read_text(encoding="utf-8")
    assert text.count(PATCH[0]) == 1, "this is another version of the scripts"
    file.write_text(text.replace(*PATCH), encoding="utf-8")


def run_scripts(exams: list[Path], model: Path, python: str, to: Path) -> dict[str, list[dict[str, Any]]]:
    """What the published scripts predict: suite → {"problem_id", "prediction", "explanation"} an item."""
    outs = {exam: to / "published" / exam.parent.parent.name / exam.parent.name for exam in exams}
    jobs = [(exam.parent.parent.name, str(exam), str(out)) for exam, out in outs.items()]
    if not all((out / exam.name).exists() for exam, out in outs.items()):
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
        program = Path(__file__).with_name("published_scripts.py")
        with open(to / "published.log", "ab") as log:
            command = [python, str(program), json.dumps(jobs), str(model)]
            subprocess.run(command, cwd=to, env=environment, stdout=log, stderr=log, check=True)
    texts = {exam: (out / exam.name).read_text(encoding="utf-8") for exam, out in outs.items()}
    return {suite_name(exam): [json.loads(line) for line in text.splitlines()] for exam, text in texts.items()}


def run_ours(suites: Path, names: list[str], items: int, model: Path, engine: str, python: str, to: Path) -> Any:
    """The result of `t-elaine evaluate` with an engine: suite → its `official` score."""
    flags = [f"--checkpoint={model}", f"--suites_dir={suites}", f"--exams={','.join(names)}", f"--limit={items}"]
    flags += ["--protocols=official", f"--engine={engine}", "--gin.evaluate.contamination=False"]
    flags += [f"--engine_python={python}"] if engine == "vllm" else []
    flags += [f"--to={to / 'results'}", f"--name={engine}", "--batch_rows=8", "--overwrite"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
    with open(to / f"{engine}.log", "ab") as log:
        command = [sys.executable, "-m", "t_elaine.evaluate", *flags]
        subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)
    rows = json.loads((to / "results" / f"{engine}.json").read_text(encoding="utf-8"))["generated"]["child"]
    return {row["suite"]: row for row in rows if row["protocol"] == official.NAME}


def suite_name(path: Path) -> str:
    """As en/MedQA."""
    return f"{path.parent.parent.name}/{path.parent.name}"


def parting(model: Any, tokenizer: Any, prompt: str, texts: tuple[str, str]) -> tuple[int, float]:
    """(token, gap): where two answers part, and how far transformers has its first two logits apart there.

    Args:
        model, tokenizer: transformers'.
        prompt: of the item.
        texts: the two answers, or as much of them as is known.
    """
    import torch

    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    same = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    with torch.no_grad():
        options = {"max_new_tokens": 16, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    made = out.sequences[0, ids.shape[1] :].tolist()
    place = next((i for i in range(len(made)) if len(tokenizer.decode(made[: i + 1])) > same), len(made) - 1)
    top = torch.topk(out.logits[place][0], 2).values
    return place, float(top[0] - top[1])


def compare(ours: dict[str, Any], other: dict[Any, str], field: str, explain: Any) -> dict[str, Any]:
    """One suite: items, how many are equal, and where each of the others parts.

    Args:
        ours: the score of our engine.
        other: item → its prediction or answer; of all our items, or of some.
        field: "prediction" or "answer".
        explain: (place of the item, both answers) → (token, gap).
    """
    found = []
    for place, item in enumerate(ours["items"]):
        # An unfinished character at an answer's end: U+FFFD in ours and transformers', nothing in vLLM's.
        mine, peer = ((text or "").rstrip("\ufffd") for text in (item[field], other.get(item["id"], item[field])))
        if mine != peer:
            token, gap = explain(place, (item["answer"] or "", peer))
            parted = {"item": item["id"], "ours": mine, "theirs": peer, "token": token}
            found.append({**parted, "gap": round(gap, 7), "tie": gap < TIE})
    return {"items": len(other), "equal": len(other) - len(found), "apart": found}


def main(argv: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--engine_python", required=True)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--others", type=int, default=40, help="items of each suite for transformers and vLLM")
    parser.add_argument("--to", type=Path)
    parser.add_argument("--model", type=Path, help="a folder that benchmarks.smollm2 made; made anew by default")
    parser.add_argument("--suites", default="")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        to = (arguments.to or Path(temporary) / "to").absolute()
        to.mkdir(parents=True, exist_ok=True)
        model = (arguments.model or smollm2.make_folder(Path(temporary) / "f32")).absolute()
        told = run(arguments, to, model)
    print(json.dumps(told, ensure_ascii=False, indent=1))
    rows = [suite[side] for suite in told["suites"].values() for side in ("published", *ENGINES[1:])]
    return int(any(not one["tie"] for row in rows for one in row["apart"]))


def run(arguments: argparse.Namespace, to: Path, model: Path) -> dict[str, Any]:
    """All four, and what comes of comparing them."""
    paths = elaine_prompts.suites(arguments.repository / "data")
    wanted = arguments.suites.split(",") if arguments.suites else [suite_name(path) for path in paths]
    exams = [cut(path, arguments.items, to) for path in paths if suite_name(path) in wanted]
    patched(arguments.repository, to)
    published = run_scripts(exams, model, arguments.engine_python, to)
    print("the published scripts are done", flush=True)
    sides = {}
    for engine in ENGINES:
        items = arguments.items if engine == ENGINES[0] else arguments.others
        how = (items, model, engine, arguments.engine_python, to)
        sides[engine] = run_ours(arguments.repository / "data", list(published), *how)
        print(f"{engine} is done", flush=True)
    import transformers

    theirs, tokenizer = load_theirs(model), transformers.AutoTokenizer.from_pretrained(model)
    prompts = {}
    for name in published:
        prompts[name] = official.sitting(load_exam(name, str(arguments.repository / "data")), arguments.items).prompts
    suites: dict[str, Any] = {}
    one_letter = {}
    for name in published:
        ours = sides["t-elaine"][name]
        explain = lambda i, texts, name=name: parting(theirs, tokenizer, prompts[name][i], texts)  # noqa: E731
        assert [row["problem_id"] for row in published[name]] == [item["id"] for item in ours["items"]]
        predictions = {row["problem_id"]: row["prediction"] for row in published[name]}
        suites[name] = {"published": compare(ours, predictions, "prediction", explain)}
        for engine in ENGINES[1:]:
            texts = {item["id"]: item["answer"] for item in sides[engine][name]["items"]}
            suites[name][engine] = compare(ours, texts, "answer", explain)
        letter, count = Counter(predictions.values()).most_common(1)[0]
        suites[name]["most_often"] = {"prediction": letter, "share": round(count / len(predictions), 3)}
        if count > 0.9 * len(predictions):
            one_letter[name] = suites[name]["most_often"]
    versions = {engine: next(iter(rows.values())).get("answered_by") for engine, rows in sides.items()}
    return {"suites": suites, "over_90_percent": one_letter, "engines": versions}


if __name__ == "__main__":
    sys.exit(main())
