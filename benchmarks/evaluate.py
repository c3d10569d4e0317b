"""The speed of answering exams: our engine with and without a shared beginning, beside transformers and beside vLLM.

    python -m benchmarks.evaluate --suites=DATA/benchmarks/elaine [--engine_python=VLLM/bin/python] [--questions=16]
        [--pairs=3] [--rows=8] [--batches=1,4,8] [--parts=prompts,shared,transformers,vllm,memory] [--to=FILE]

SmolLM2-135M-Instruct in float32 on a CPU, MedQA (en) with five demonstrations, greedy, 16 new tokens, no end id: all
write the same number. Each ratio is the median over pairs, measured one after the other in turns, with questions of its
own for each pair; wall time, and beside it processor time, which says more where other programs run. Compilation is
left out: each side is run once before. vLLM runs compiled, with as many threads, forgets prompts between two runs and
keeps the demonstrations within one.

prompts: reading the suites, making all `official` and `repaired` prompts, encoding the former. memory: the peak of a
process that answers few and many questions with the same batch, and with a batch twice as large.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import elaine_prompts, smollm2
from benchmarks.generate import NEW, write_ours, write_theirs
from benchmarks.greedy import load_ours, load_theirs
from t_elaine.generation.sampling import Sampling
from t_elaine.peers import process

PARTS = ("prompts", "shared", "transformers", "vllm", "memory")
Side = Callable[[list[str]], Any]


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its children that live."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = [int(i) for task in Path(f"/proc/{pid}/task").glob("*/children") for i in task.read_text().split()]
    return used + sum(cpu_seconds(child) for child in children)


def pairs(ours: Side, other: Side, sets: list[list[str]], name: str) -> dict[str, Any]:
    """Both on each set of questions, in turns: medians of seconds, questions a second and ratios (other / ours)."""
    found: dict[str, list[float]] = {
        key: [] for key in ("ours_s", "other_s", "ratio", "ours_cpu", "other_cpu", "ratio_cpu")
    }
    for number, texts in enumerate(sets):
        times = {}
        for side in (ours, other) if number % 2 == 0 else (other, ours):
            began, used = time.perf_counter(), cpu_seconds(os.getpid())
            side(texts)
            times[side] = (time.perf_counter() - began, cpu_seconds(os.getpid()) - used)
        for key, at in (("", 0), ("_cpu", 1)):
            mine, peer = times[ours][at], times[other][at]
            found["ours_cpu" if key else "ours_s"].append(mine)
            found["other_cpu" if key else "other_s"].append(peer)
            found[f"ratio{key}"].append(peer / mine)
        print(f"{name}: {[round(x, 1) for side in (ours, other) for x in times[side]]} s, cpu; ours, other", flush=True)
    told = {key: round(statistics.median(values), 2) for key, values in found.items()}
    return told | {"ratios": [round(x, 2) for x in found["ratio"]], "questions": len(sets[0])}


def make_prompts(suites: Path, vocabulary: Any) -> dict[str, Any]:
    """Seconds for all prompts of all suites."""
    from t_elaine.evaluation import items, official, repaired

    began = time.perf_counter()
    names = [f"{path.parent.parent.name}/{path.parent.name}" for path in elaine_prompts.suites(suites)]
    exams = [items.load_exam(name, str(suites)) for name in names]
    asked = [official.sitting(exam) for exam in exams]
    others = sum(len(repaired.sitting(exam).prompts) for exam in exams)
    tokens = sum(len(ids) for one in asked for ids in vocabulary.encode_batch(list(one.prompts)))
    count = sum(len(one.prompts) for one in asked)
    seconds = round(time.perf_counter() - began, 1)
    return {"items": sum(len(exam.items) for exam in exams), "official": count, "repaired": others} | {
        "tokens": tokens,
        "seconds": seconds,
    }


def peak(rows: int, questions: int, arguments: argparse.Namespace, folder: Path) -> int:
    """MB at most of a process that answers so many questions (`_answer` in it)."""
    given = [f"--suites={arguments.suites}", f"--model={folder}", f"--rows={rows}", f"--questions={questions}"]
    command = [sys.executable, "-m", "benchmarks.evaluate", *given, "--parts=answer"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(arguments: argparse.Namespace, folder: Path, wanted: list[str]) -> dict[str, Any]:
    """All that is wanted."""
    vocabulary, engine = load_ours(folder, arguments.rows)
    (path,) = (p for p in elaine_prompts.suites(arguments.suites) if p.parts[-3:-1] == ("en", "MedQA"))
    every = elaine_prompts.spread(path, arguments.questions * (arguments.pairs + 1))
    first, *sets = [every[i :: arguments.pairs + 1] for i in range(arguments.pairs + 1)]

    def ours(texts: list[str], share: bool = True) -> Any:
        return write_ours(engine, [vocabulary.encode(text).astype(np.int32) for text in texts], share)

    if wanted == ["answer"]:
        ours(first)
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    found: dict[str, Any] = {}
    if "prompts" in wanted:
        found["prompts"] = make_prompts(arguments.suites, vocabulary)
    for texts in (first, *sets) if set(wanted) & set(PARTS[1:4]) else ():
        ours(texts)  # each set may need a program of another length
    alone: Side = lambda texts: ours(texts, False)  # noqa: E731
    if "shared" in wanted:
        equal = sum(a == b for a, b in zip(ours(first), alone(first), strict=True))
        found["shared"] = pairs(ours, alone, sets, "shared, alone") | {"equal": equal}
    if "transformers" in wanted:
        found["transformers"] = beside_transformers(arguments, folder, vocabulary, ours, first, sets)
    if "vllm" in wanted:
        found["vllm"] = beside_vllm(arguments, folder, ours, first, sets)
    if "memory" in wanted:
        asked = [(arguments.rows, arguments.questions), (arguments.rows, 4 * arguments.questions)]
        asked.append((2 * arguments.rows, 4 * arguments.questions))
        found["memory_mb"] = {f"{rows} rows, {n} questions": peak(rows, n, arguments, folder) for rows, n in asked}
    return found


def beside_transformers(
    arguments: argparse.Namespace, folder: Path, vocabulary: Any, ours: Side, first: list[str], sets: list[list[str]]
) -> dict[str, Any]:
    """transformers' `generate` at the fastest of the batch sizes, padded on the left."""
    model, tried = load_theirs(folder), {}

    def theirs(texts: list[str], rows: int) -> Any:
        return write_theirs(model, [vocabulary.encode(text).astype(np.int32) for text in texts], rows)

    for rows in map(int, arguments.batches.split(",")):
        used = cpu_seconds(os.getpid())
        theirs(first, rows)
        tried[rows] = cpu_seconds(os.getpid()) - used
        print(f"transformers, {rows} at a time: {tried[rows]:.1f} s of processor time", flush=True)
    best = min(tried, key=lambda rows: tried[rows])
    return pairs(ours, lambda texts: theirs(texts, best), sets, "ours, transformers") | {"batch": best}


def beside_vllm(
    arguments: argparse.Namespace, folder: Path, ours: Side, first: list[str], sets: list[list[str]]
) -> dict[str, Any]:
    """vLLM, compiled, on the same cores."""
    cores = sorted(os.sched_getaffinity(0))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with ExitStack() as stack:
        opened = process.working(
            "vllm", arguments.engine_python, str(folder), "float32", arguments.rows, eager=arguments.eager
        )
        worker = stack.enter_context(opened)

        def theirs(texts: list[str]) -> Any:
            list(worker.ask({"do": "forget"}))
            return list(process.write(worker, texts, Sampling(max_new=NEW), []))

        theirs(first)
        return pairs(ours, theirs, sets, "ours, vLLM") | {"eager": arguments.eager}


def main(argv: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--suites", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a folder that benchmarks.smollm2 made; made anew by default")
    parser.add_argument("--engine_python", default="", help="a Python with vLLM; without it vLLM is left out")
    parser.add_argument("--eager", action="store_true", help="vLLM without compilation, which takes minutes")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--batches", default="1,4,8")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--to", type=Path)
    arguments = parser.parse_args(argv)
    wanted = [part for part in arguments.parts.split(",") if part != "vllm" or arguments.engine_python]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.model or smollm2.make_folder(Path(temporary) / "f32")
        found = measure(arguments, folder, wanted)
    if wanted == ["answer"]:
        print(found["peak"])
        return 0
    found |= {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine()}
    found["load"] = round(os.getloadavg()[0], 1)
    print(json.dumps(found))
    if arguments.to:
        arguments.to.write_text(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
