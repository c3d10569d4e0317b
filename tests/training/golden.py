"""The golden run (20 steps on the shipped samples) and the step's program: what is recorded of them, and how.

`python -m tests.training.golden` records both anew, in golden.json beside this file. Do so only where a change is meant
to change what is computed or sent, and say so in its message.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".json")
STEPS, ROWS, LENGTH = 20, 8, 64
LANGUAGES = ("en", "ja", "zh")
SAMPLES = Path(__file__).resolve().parent.parent.parent / "data_tasks" / "samples"


@functools.cache
def batches() -> tuple[int, list[dict[str, np.ndarray]]]:
    """(vocabulary's size, 20 batches [8,64]): documents in turn from three languages, cut where a row ends."""
    from t_elaine.data.vocabulary import load_vocabulary

    vocabulary = load_vocabulary(SAMPLES / "vocabulary")
    files = [(SAMPLES / name / "documents.jsonl").read_text(encoding="utf-8") for name in LANGUAGES]
    texts = [[json.loads(line)["text"] for line in file.splitlines()] for file in files]
    documents = [(group, text) for several in zip(*texts, strict=False) for group, text in enumerate(several)]
    tokens, owners, groups = [], [], []
    for number, (group, text) in enumerate(documents):
        ids = vocabulary.encode_batch([text])[0]
        tokens.append(ids.astype(np.int32))
        owners.append(np.full(len(ids), number))
        groups.append(np.full(len(ids), group, np.int32))
    stream, owner, group_of = map(np.concatenate, (tokens, owners, groups))
    rows = [_row(stream, owner, group_of, k * LENGTH) for k in range(STEPS * ROWS)]
    join = lambda few: {name: np.stack([row[name] for row in few]) for name in few[0]}  # noqa: E731
    return vocabulary.size, [join(rows[step * ROWS : (step + 1) * ROWS]) for step in range(STEPS)]


def _row(stream: np.ndarray, owner: np.ndarray, group_of: np.ndarray, start: int) -> dict[str, np.ndarray]:
    here, ahead = slice(start, start + LENGTH), slice(start + 1, start + LENGTH + 1)
    own = owner[here]
    begins = np.concatenate([[True], own[1:] != own[:-1]])
    place = np.arange(LENGTH)
    return {
        "tokens": stream[here],
        "targets": stream[ahead],
        "segments": np.cumsum(begins).astype(np.int32),
        "positions": (place - np.maximum.accumulate(np.where(begins, place, 0))).astype(np.int32),
        "weights": (own == owner[ahead]).astype(np.float32),
        "groups": group_of[ahead],
    }


def losses(mesh: Any, devices: int, accumulation: int = 1, **compute: Any) -> list[float]:
    """Loss of each of the 20 steps (nats a token) of a tiny model in float32, from random weights made in numpy."""
    import jax

    from t_elaine.model.config import ComputeConfig, LlamaConfig
    from t_elaine.parallel.mesh import make_mesh
    from t_elaine.training import step as steps
    from t_elaine.training.optimizer import AdamW, Schedule, learning_rate
    from tests.random_params import random_params

    size, parts = batches()
    config = LlamaConfig(vocab_size=size, embed=32, mlp=64, layers=2, q_heads=4, kv_heads=2, head_dim=8)
    settings = ComputeConfig(**{"dtype": "float32", "loss_chunk": 16, **compute})
    rate = learning_rate(Schedule(peak=1e-2, warmup_steps=4), STEPS)
    where = make_mesh(mesh, jax.devices()[:devices])
    step = steps.make_step(config, settings, AdamW(), rate, where, len(LANGUAGES), np.ones(size, np.int32))
    params = jax.device_put(random_params(config), step.state_shardings["params"])
    state = jax.jit(steps.init_state, out_shardings=step.state_shardings, donate_argnums=0)(params)
    found = []
    for part in parts:
        cut = {name: array.reshape(accumulation, ROWS // accumulation, LENGTH) for name, array in part.items()}
        state, metrics = step.run(state, jax.device_put(cut, step.batch_sharding))
        found.append(float(metrics["loss"]))
    return found


def recorded() -> dict[str, Any]:
    """What golden.json holds."""
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


def main() -> None:
    """Record."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    import jax

    from t_elaine.parallel.mesh import MeshConfig
    from tests import programs

    collectives = programs.collectives_of(programs.partitioned(programs.tiny_step(MeshConfig())))
    record = {
        "command": "python -m tests.training.golden",
        "jax": jax.__version__,
        "collectives": collectives,
        "collective_bytes": programs.bytes_of(collectives),
        "losses": losses(MeshConfig(fsdp=1), 1),
    }
    FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
