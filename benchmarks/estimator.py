"""The estimate of `plan` beside another reader of the same optimised HLO: they must agree within 2 %.

    python benchmarks/estimator.py --reference=hlo_estimate.py --chip=v5e --chips=256 --tokens=2097152 A.hlo.gz B.hlo

The reference is a script that takes an HLO file, --chip, --chips, --tokens-per-step, --cap-memory-bound, --json; it is
no part of this repository. Each file is read under the default assumptions and with --cap-memory-bound 1.5. Exit code 1
if any figure differs by more than --within. Of programs whose collectives run on SparseCores the seconds of all
collectives are not judged: after code generation they stand one call deeper, where `plan` looks and the reference
does not.
"""

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.planning import answer, costs, hlo, topology
from t_elaine.planning.assumptions import Assumptions, rates
from t_elaine.planning.question import Question

LLAMA_8B = LlamaConfig(vocab_size=128256, embed=4096, mlp=14336, layers=32, q_heads=32, kv_heads=8, head_dim=128)
FIGURES = (
    "compute",
    "collectives",
    "synchronous",
    "matmul FLOPs",
    "attention FLOPs",
    "hidden",
    "sync exposed",
    "exposed",
    "tokens/s/chip, sync exposed",
    "MFU, sync exposed",
)

UNSEEN = ("collectives", "exposed")  # of SparseCore programs


def ours(file: Path, chip: str, chips: int, tokens: int, cap: float) -> dict[str, float]:
    """What `plan` would say of a program of Llama-3-8B's shape on a mesh of one fsdp axis."""
    where = topology.read(f"{chip}:{chips}") if chip != "v5p" and chip != "v4" else topology.read(f"{chip}:{2 * chips}")
    assumed = Assumptions(cap_memory_bound=cap)
    question = Question(
        model=LLAMA_8B,
        compute=ComputeConfig(),
        topology=where,
        mesh={"replica": 1, "fsdp": chips, "context": 1, "tensor": 1},
        shape=(1, tokens // 8192, 8192),
        steps=1,
        assumed=assumed,
        rates=rates(assumed, where.chip, where.devices),
    )
    counted = costs.count(hlo.parse(read(file)), question.rates, question.mesh)
    told = answer.speed_record(question, counted)
    return dict(
        zip(
            FIGURES,
            (
                told["compute_seconds"],
                told["collective_seconds"],
                told["synchronous_seconds"],
                counted.matmul_flops,
                counted.attention_flops,
                *told["step_seconds"].values(),
                told["tokens_per_second_per_chip"]["sync exposed"],
                told["mfu"]["sync exposed"],
            ),
            strict=True,
        )
    )


def theirs(script: str, file: Path, chip: str, chips: int, tokens: int, cap: float) -> dict[str, float]:
    """What the reference says of the same file."""
    flags = [f"--chip={chip}", f"--chips={chips}", f"--tokens-per-step={tokens}", f"--cap-memory-bound={cap}", "--json"]
    done = subprocess.run([sys.executable, script, str(file), *flags], capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return dict(
        zip(
            FIGURES,
            (
                told["compute_seconds"],
                told["collective_seconds"],
                told["sync_collective_seconds"],
                told["executed_dot_flops_per_chip"],
                told["executed_attention_flops_per_chip"],
                *told["step_seconds"].values(),
                told["tokens_per_second_per_chip"]["sync exposed"],
                told["mfu"]["sync exposed"],
            ),
            strict=True,
        )
    )


def read(file: Path) -> str:
    """The program's text."""
    return gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()


def main() -> int:
    """Compare, print a table, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--chip", default="v5e")
    parser.add_argument("--chips", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=2097152)
    parser.add_argument("--within", type=float, default=0.02)
    given = parser.parse_args()
    where = (given.chip, given.chips, given.tokens)
    worst = 0.0
    print(f"{'file':18} {'cap':>4} {'largest difference':>20}  tokens/s/chip sync exposed: ours, reference")
    for file in given.files:
        for cap in (0.0, 1.5):
            a, b = ours(file, *where, cap), theirs(given.reference, file, *where, cap)
            apart = {name: abs(a[name] / b[name] - 1) if b[name] else float(a[name] != 0) for name in FIGURES}
            if 'execution_thread="sparsecore"' in read(file):
                apart = {figure: apart[figure] for figure in FIGURES if figure not in UNSEEN}
            name = max(apart, key=lambda figure: apart[figure])
            worst = max(worst, apart[name])
            rate = "tokens/s/chip, sync exposed"
            told = f"{100 * apart[name]:.4f} % {name if apart[name] > 1e-9 else ''}"
            print(f"{file.name:18} {cap:>4} {told:>20}  {a[rate]:.1f} {b[rate]:.1f}")
    print(f"largest difference of {len(FIGURES)} figures in {len(given.files)} files: {100 * worst:.4f} %")
    return int(worst > given.within)


if __name__ == "__main__":
    sys.exit(main())
