"""Figures from sums, and where they are written: no line twice, none lost, and TensorBoard reads what was meant."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t_elaine.model.config import ComputeConfig, LlamaConfig
from t_elaine.training import metrics, sinks

CONFIG = LlamaConfig(vocab_size=100, embed=8, mlp=16, layers=3, q_heads=4, kv_heads=2, head_dim=2)


def test_figures_by_language_and_category() -> None:
    groups = [("en", "a"), ("en", "b"), ("ja", "a"), ("zh", "c")]
    sums = np.array([[10.0, 20.0, 30.0, 0], [5, 5, 10, 0], [9, 18, 30, 0], [20, 30, 25, 0]])
    record = metrics.by_group(sums, groups)
    assert record["loss"] == 3.0 and record["tokens"] == 20
    assert record["bits_per_byte"] == pytest.approx(57 / np.log(2) / 75)
    assert record["language"]["en"] == {"loss": 3.0, "bits_per_byte": pytest.approx(27 / np.log(2) / 50), "tokens": 10}
    assert record["category"]["a"]["loss"] == pytest.approx(40 / 15)
    assert set(record["language"]) == {"en", "ja"}, "a group without a target has no figures"


def test_what_is_not_finite_can_be_written() -> None:
    record = metrics.by_group(np.array([[np.nan], [4.0], [np.inf], [4.0]]), [("en", "a")])
    assert json.loads(json.dumps(record, allow_nan=False))["loss"] is None


def test_flops_are_six_for_each_matmul_weight_and_attention() -> None:
    attention, mlp, head = 8 * 4 * 2 * 2 + 8 * 2 * 2 * 2, 3 * 8 * 16, 8 * 100
    assert metrics.flops_per_token(CONFIG, 32) == 6 * (3 * (attention + mlp) + head) + 12 * 3 * 4 * 2 * 32


def test_mfu_only_where_the_peak_is_known() -> None:
    compute = ComputeConfig(dtype="bfloat16")
    rate = 197e12 / metrics.flops_per_token(CONFIG, 32)
    assert metrics.mfu(CONFIG, compute, 32, rate, ["TPU v5 lite"] * 2) == pytest.approx(0.5)
    assert metrics.peak_flops("TPU v5 lite", "bfloat16") != metrics.peak_flops("TPU v5", "bfloat16")
    assert metrics.mfu(CONFIG, compute, 32, rate, ["cpu"]) is None
    assert metrics.mfu(CONFIG, ComputeConfig(dtype="float32"), 32, rate, ["NVIDIA H100 80GB HBM3"]) is None


def record(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 1.0 / step, "language": {"ja": {"loss": 2.0}}}


def test_lines_past_the_restored_step_go_and_none_before(tmp_path: Path) -> None:
    first = sinks.Lines(str(tmp_path), -1)
    for step in (1, 2, 3, 4):
        first.write(record(step))
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"kind": "train", "step": 5, "lo')  # killed in the middle of a line
    second = sinks.Lines(str(tmp_path), 2)
    for step in (3, 4, 5):
        second.write(record(step))
    second.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]


def test_on_an_object_store_lines_go_up_in_parts() -> None:
    run_dir = "memory://metrics-test/run"
    for last_step, steps in ((-1, (1, 2, 3)), (2, (3, 4))):
        lines = sinks.Lines(run_dir, last_step)
        for step in steps:
            lines.write(record(step))
            if step == 2:
                lines.flush()
        lines.close()
    from t_elaine import paths

    names = [n for n in paths.listing(run_dir) if n.startswith("metrics")]
    rows = [json.loads(line) for n in names for line in paths.read_text(paths.join(run_dir, n)).splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and len(names) > 1


def events(path: Path) -> list[Any]:
    """The events of a TensorBoard file, read by its record format: length, crc, bytes, crc."""
    from tensorboardX.proto.event_pb2 import Event

    content, at, found = path.read_bytes(), 0, []
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        found.append(Event.FromString(content[at + 12 : at + 12 + size]))
        at += 16 + size
    return found


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    board = sinks.TensorBoard(str(tmp_path), -1)
    board.write(record(4))
    board.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    values = {v.tag: (e.step, v.simple_value) for e in events(path) for v in e.summary.value}
    assert values == {"train/loss": (4, 0.25), "train/language/ja/loss": (4, 2.0)}


def test_ctrl_c_waits_until_a_records_numbers_are_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the midst of it now and then left the writer's threads waiting for each other at the end."""
    board, handed, before = sinks.TensorBoard(str(tmp_path), -1), [], signal.getsignal(signal.SIGINT)

    def add(name: str, value: float, step: int) -> None:
        if not handed:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        handed.append(name)

    monkeypatch.setattr(board._writer, "add_scalar", add)
    with pytest.raises(KeyboardInterrupt):
        board.write(record(4))
    assert handed == ["train/loss", "train/language/ja/loss"] and signal.getsignal(signal.SIGINT) is before
    board.close()


def test_tensorboard_brings_no_pytorch(tmp_path: Path) -> None:
    script = f"""
import sys
from t_elaine.training import sinks
sinks.TensorBoard({str(tmp_path)!r}, 3).close()
print("torch" in sys.modules, "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_plain_lines_and_a_live_one(capsys: Any) -> None:
    line = {"kind": "train", "step": 2, "loss": 1.5, "learning_rate": 1e-4, "skipped": 0, "tokens_per_second": 1234.0}
    line |= {"mfu": 0.41, "seconds_left": 3725.0}
    terminal = sinks.Terminal(10, 0, every=2, live=False)
    terminal.write(line)
    terminal.write({**line, "step": 3})
    assert capsys.readouterr().out == "step 2/10  loss 1.5000  lr 1.00e-04  1,234 tokens/s  MFU 41.0%  1:02:05 left\n"
    live = sinks.Terminal(10, 0, every=2, live=True)
    live.write(line)
    live.close()
    assert "2/10" in capsys.readouterr().out
