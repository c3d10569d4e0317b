"""A tiny store, tiny settings, and training runs on them: in this process, or in another one that may be killed.

As a script: `python tests/tiny_runs.py '{"run_dir": …, "stores": […], …}'` trains in a process of its own.
"""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, LENGTH = 61, 16
TIMINGS = ("seconds", "tokens_per_second", "seconds_left", "mfu")
GROUPS = [("en", "textbook"), ("ja", "guideline"), ("zh", "web text")]


def make_store(
    folder: Path,
    documents: int = 150,
    seed: int = 0,
    vocabulary: str = "v" * 64,
    pairs: bool = False,
    answers: bool = False,
) -> Path:
    """A store of random documents in three languages; id 0 is special (no bytes), the others have 1 to 3 bytes.

    pairs: they are preferences, whose answers go up (chosen) and down (rejected). answers: the second half is trained.
    """
    from t_elaine.data.store import Labels, Row, ShardWriter, write_manifest
    from t_elaine.paths import file_sha256

    rng = np.random.default_rng([seed, *hashlib.sha256(folder.name.encode()).digest()[:4]])
    labels = Labels(
        languages=tuple(g[0] for g in GROUPS), categories=tuple(g[1] for g in GROUPS), sources=(folder.name,)
    )
    (folder / "vocabulary").mkdir(parents=True)
    lengths = np.arange(VOCABULARY, dtype=np.int32) % 3 + 1
    lengths[0] = 0
    np.save(folder / "vocabulary" / "byte_lengths.npy", lengths)
    identity = {"kind": "made up", "sha256": vocabulary, "size": VOCABULARY, "bos": 0, "eos": 0, "pad": 0}
    (folder / "vocabulary" / "vocabulary.json").write_text(json.dumps(identity))
    shards = []
    for split, count in (("train", documents), ("validation", max(documents // 10, 3))):
        writer = ShardWriter(folder / f"{split}-00000-of-00001.arrow", labels, 400)
        for i in range(count):
            steps = rng.integers(1, 4, rng.integers(5, 60))
            tokens = (np.cumsum(steps) % (VOCABULARY - 1) + 1).astype(np.uint32)
            tokens[0] = 0
            half = [(len(tokens) // 2, len(tokens))] if answers else None
            tokens, trained = pair(rng) if pairs else (tokens, half)
            language, category = GROUPS[i % 3]
            row = Row(
                tokens=tokens,
                id=f"{split}{i}",
                language=language,
                category=category,
                source=folder.name,
                bytes=int(lengths[tokens].sum()),
                text_hash=i,
                trained=trained,
            )
            writer.add(row)
        path = writer.close()
        shards.append({"file": path.name, "split": split, "size": path.stat().st_size, "sha256": file_sha256(path)})
    told = {"name": folder.name, "groups": GROUPS, "vocabulary": identity, "shards": shards}
    write_manifest(folder, told | ({"pairs": True} if pairs else {}))
    return folder


def pair(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Two dialogues that part at the answer, and where the answers are; short enough for rows of LENGTH."""
    prompt, sizes = rng.integers(1, VOCABULARY, int(rng.integers(1, 4))), rng.integers(1, 5, 2)
    halves = [
        np.concatenate([prompt, (prompt[-1] + way * np.arange(1, size + 1)) % (VOCABULARY - 1) + 1])
        for way, size in zip((1, -1), sizes, strict=True)
    ]
    border, n = len(halves[0]), len(prompt)
    return np.concatenate(halves).astype(np.uint32), [(n, border), (border + n, border + len(halves[1]))]


def settings(run_dir: Path | str, stores: list[Any], **changes: Any) -> dict[str, Any]:
    """Keyword arguments of `train` for a tiny run; `changes` are fields of any of its settings, or arguments."""
    from t_elaine.checkpoints.writing import Checkpointing
    from t_elaine.data.mixture import Mixture
    from t_elaine.model.config import ComputeConfig, LlamaConfig
    from t_elaine.parallel.mesh import MeshConfig
    from t_elaine.training.loop import Loop
    from t_elaine.training.optimizer import AdamW, Schedule
    from t_elaine.training.start import Start

    plain = {
        "model": (LlamaConfig, {"vocab_size": 64, "embed": 16, "mlp": 24, "layers": 2, "q_heads": 2, "kv_heads": 1}),
        "compute": (ComputeConfig, {"dtype": "float32", "loss_chunk": 8}),
        "data": (Mixture, {"stores": tuple(map(str, stores)), "sequence_length": LENGTH, "batch_tokens": 8 * LENGTH}),
        "loop": (Loop, {"steps": 12, "evaluate_tokens": 200, "evaluate_every": 4}),
        "checkpoints": (Checkpointing, {"every": 3}),
        "schedule": (Schedule, {"peak": 1e-2, "warmup_steps": 2}),
        "optimizer": (AdamW, {}),
        "mesh": (MeshConfig, {}),
        "start": (Start, {}),
    }
    plain["model"][1]["head_dim"] = 8
    made: dict[str, Any] = {"run_dir": str(run_dir), "compilation_cache": None, "config_text": "tiny"}
    for name, (kind, values) in plain.items():
        own = {key: changes.pop(key) for key in list(changes) if key in kind.__dataclass_fields__}
        made[name] = kind(**values, **{}) if not own else kind(**{**values, **own})
    return made | changes


def train_here(run_dir: Path, stores: list[Path], **changes: Any) -> int:
    """Train in this process, on all its simulated devices."""
    from t_elaine.train import train

    return train(**settings(run_dir, stores, **changes))


def start_process(
    run_dir: Path, stores: list[Path], devices: int = 2, kill_at: str = "", **changes: Any
) -> "subprocess.Popen[str]":
    """Train in a process of its own; `kill_at` names a fault point at which it dies by SIGKILL."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "T_ELAINE_KILL_AT": kill_at,
    }
    arguments = json.dumps({"run_dir": str(run_dir), "stores": list(map(str, stores)), **changes})
    command = [sys.executable, __file__, arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def train_process(
    run_dir: Path, stores: list[Path], devices: int = 2, kill_at: str = "", **changes: Any
) -> tuple[int, str]:
    """`start_process`, waited for: (exit code, everything it printed)."""
    process = start_process(run_dir, stores, devices, kill_at, **changes)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def lines(run_dir: Path, timings: bool = False) -> list[dict[str, Any]]:
    """The run's metric lines; without timings they are what must not depend on how often the run was stopped."""
    measured = () if timings else (*TIMINGS, "chip_hours", "money", "compile_seconds", "device_memory")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in measured} for row in rows]


def parameters(run_dir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, moments and counters included."""
    from t_elaine.checkpoints import reading

    return {
        f"{item}/{name}": reading.read_tensor(run_dir, step, name, item=item)
        for item in ("params", "optimizer")
        for name in reading.tensors(run_dir, step, item)
    }


def fill_disk_at(step: int | None, largest: int = 20_000) -> None:
    """From this step on, no file of this process may grow past `largest` bytes, as on a full disk."""
    if step is None:
        return
    from t_elaine import assembly
    from t_elaine.training import loop as looping

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    report = looping.report

    def limited(done: int, *arguments: Any) -> None:
        report(done, *arguments)
        if done >= step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    looping.report = limited
    assert assembly.looping is looping


def main() -> int:
    """Train as told by the JSON in the first argument, guarded as commands are."""
    from t_elaine import cli
    from t_elaine.train import train

    told = json.loads(sys.argv[1])
    fill_disk_at(told.pop("full_disk_at", None))
    return cli.guarded(lambda: train(**settings(**told)), "train")


if __name__ == "__main__":
    sys.exit(main())
