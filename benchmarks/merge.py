"""Merges beside mergekit's, tensor by tensor, in float32; and the small record that the tests compare with.

    python -m benchmarks.merge --python=ENV/bin/python --base=FOLDER --models=FOLDER,FOLDER [--methods=ties,linear]
    python -m benchmarks.merge --python=ENV/bin/python --record=tests/hf/mergekit.json

ENV has mergekit 0.1.5 (`pip install mergekit`), apart because its pins clash with ours. What its DARE methods draw is
handed to ours, since only the generators differ. What is printed is of the tensor that differs most; of TIES also how
many weights differ, and how many of these lie where a model's difference has just the size at which `density` cuts: of
equal ones either may be kept. --record merges three tiny models of random weights and writes them and every result
down.
"""

import argparse
import base64
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine.hf import importing, mapping, merge_inputs, merge_methods, merging, tensors
from t_elaine.hf.merge_methods import Merging
from t_elaine.model.config import LlamaConfig, to_hf

CASES: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear", "weights": (2.0, 1.0)},
    "linear, not normalised": {"method": "linear", "weights": (0.25, 0.5), "normalize": False},
    "linear, by layer": {"method": "linear", "weights": ((0.0, 1.0), (1.0, 0.5))},
    "slerp": {"method": "slerp", "t": 0.3},
    "slerp, by layer": {"method": "slerp", "t": (0.0, 0.5, 1.0)},
    "task_arithmetic": {"method": "task_arithmetic", "weights": (1.0, 0.5)},
    "task_arithmetic, scaled": {"method": "task_arithmetic", "weights": (1.0, -0.5), "scale": 0.7, "normalize": True},
    "ties": {"method": "ties", "weights": (1.0, 0.6), "density": (0.5,)},
    "ties, two densities": {"method": "ties", "weights": (0.5, 0.9), "density": (0.2, 0.7), "normalize": False},
    "ties, rescaled": {"method": "ties", "weights": (1.0, 1.0), "density": (0.3,), "rescale": "l1", "scale": 1.5},
    "dare_ties": {"method": "dare_ties", "weights": (1.0, 0.6), "density": (0.5,)},
    "dare_ties, bare": {"method": "dare_ties", "weights": (1.0, 0.6), "density": (0.4, 0.8), "rescale": "none"},
    "dare_linear": {"method": "dare_linear", "weights": (0.7, 0.6), "density": (0.3,), "normalize": True},
}
TINY = LlamaConfig(
    vocab_size=10,
    embed=4,
    mlp=6,
    layers=3,
    q_heads=2,
    kv_heads=1,
    head_dim=2,
    rope_theta=1e4,
    norm_eps=1e-5,
    tied_embeddings=False,
    qkv_bias=False,
    max_position=32,
)


Tensors = dict[str, np.ndarray]


def listed(value: Any) -> Any:
    """A number, or a list of them, as YAML has it."""
    return list(value) if isinstance(value, tuple) else value


def peer_config(case: dict[str, Any], base: str, models: list[str]) -> dict[str, Any]:
    """mergekit's configuration for one of our cases."""
    how = merge_methods.settled(Merging(**case), len(models))
    shared: dict[str, Any] = {"normalize": how.normalize}
    per_model: list[dict[str, Any]] = [{"weight": listed(weight)} for weight in how.weights]
    if how.method == "slerp":
        shared, per_model = {"t": listed(how.t)}, [{} for _ in models]
    elif how.method in merge_methods.ON_DIFFERENCES:
        shared |= {"rescale": how.rescale == "l1", "lambda": how.scale}
        for parameters, density in zip(per_model, how.density, strict=True):
            parameters["density"] = density
    entries = [{"model": path, "parameters": p} for path, p in zip(models, per_model, strict=True)]
    named = {"base_model": base} if how.method != "linear" else {}
    return {"merge_method": how.method, "dtype": "float32", "models": entries, "parameters": shared, **named}


def run_peer(python: str, jobs: list[dict[str, Any]], folder: Path) -> None:
    """Merge through mergekit."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    peer = Path(__file__).with_name("mergekit_peer.py")
    subprocess.run([python, str(peer), str(file)], check=True, stdout=sys.stderr)


def masks_of(folder: Path) -> dict[str, list[bytes]]:
    """What mergekit's DARE kept, packed bits by tensor and model."""
    found = json.loads((folder / "masks.json").read_text(encoding="utf-8"))
    return {name: [base64.b64decode(bits) for bits in places] for name, places in found.items()}


def replayed(masks: dict[str, list[bytes]], config: LlamaConfig) -> Callable[..., np.ndarray | None]:
    """A stand-in for `merge_methods.drawn` that gives mergekit's draws, turned into our layout."""
    by_name = {tensor.name: tensor for tensor in mapping.hf_tensors(config)}

    def drawn(shape: tuple[int, ...], density: float, seed: str) -> np.ndarray | None:
        _, name, place = seed.split("/")
        tensor = by_name[name]
        bits = np.unpackbits(np.frombuffer(masks[name][int(place)], np.uint8), count=int(np.prod(tensor.shape)))
        kept = bits.astype(bool).reshape(tensor.shape)
        return mapping.from_hf(tensor.weight, config, lambda box: kept[tuple(box)])

    return drawn


def ours(
    case: dict[str, Any], base: merge_inputs.Input, models: list[merge_inputs.Input], masks: dict[str, list[bytes]]
) -> dict[str, np.ndarray]:
    """Every merged tensor by its Hugging Face name, in that layout."""
    config, how = base.config, merge_methods.settled(Merging(**case), len(models))
    merge = merging.Merge(base=None if how.method == "linear" else base, models=tuple(models), carrier=base, how=how)
    known = {(tensor.weight.path, tensor.layer): tensor for tensor in mapping.hf_tensors(config)}
    drawn, merge_methods.drawn = merge_methods.drawn, replayed(masks, config) if masks else merge_methods.drawn
    try:
        return {
            t.name: mapping.to_hf(t.weight, merging._merged_tensor(merge, config, known, t.weight, t.layer))
            for t in mapping.hf_tensors(config)
        }
    finally:
        merge_methods.drawn = drawn


def difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> tuple[float, float, str]:
    """Of the tensor that differs most: (root mean square over the tensor's, largest over its largest, name)."""
    found = {}
    for name, values in theirs.items():
        apart = (ours[name] - values).astype(np.float64)
        rms = float(np.sqrt(np.mean(apart**2) / np.mean(values.astype(np.float64) ** 2)))
        found[name] = (rms, float(np.abs(apart).max() / np.abs(values).max()), name)
    return max(found.values())


def apart(
    how: Merging, ours: Tensors, theirs: Tensors, base: Tensors, models: list[Tensors], limit: float = 1e-6
) -> tuple[int, int]:
    """(weights that differ by more than `limit` of their tensor's largest, those of them at a cut of TIES)."""
    differ = at_cut = 0
    for name, values in theirs.items():
        far = np.abs(ours[name] - values) > limit * np.abs(values).max()
        if not far.any():
            continue
        equal = np.zeros_like(far)
        for density, model in zip(how.density, models, strict=True):
            size = np.abs(model[name] - base[name])
            kept = size * merge_methods.largest(size, density)
            equal |= size == kept[kept > 0].min()
        differ += int(far.sum())
        at_cut += int((far & equal).sum())
    return differ, at_cut


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensors.read(info).astype(np.float32) for name, info in tensors.open_tensors(folder).items()}


def cases(methods: list[str]) -> dict[str, dict[str, Any]]:
    return {name: case for name, case in CASES.items() if not methods or case["method"] in methods}


def compare(python: str, base: str, models: list[str], methods: list[str]) -> None:
    """Print the largest difference of each case."""
    inputs = {path: merge_inputs.open_input(path) for path in (base, *models)}
    for name, case in cases(methods).items():
        given = models[:1] if case["method"] == "slerp" else models
        with tempfile.TemporaryDirectory(prefix="merge-") as temporary:
            folder = Path(temporary)
            run_peer(python, [{"config": peer_config(case, base, given), "out": str(folder / "out")}], folder)
            seconds = json.loads((folder / "out" / "seconds.json").read_text())
            theirs = read_folder(folder / "out")
            made = ours(case, inputs[base], [inputs[path] for path in given], masks_of(folder / "out"))
        spread, largest, where = difference(made, theirs)
        told = f"root mean square of the difference {spread:.1e} of the tensor's, largest {largest:.1e} of its largest"
        print(f"{name}: {told}, in {where}; mergekit {seconds:.1f} s", flush=True)
        if case["method"] == "ties":
            how = merge_methods.settled(Merging(**case), len(given))
            first, *others = (read_folder(Path(path)) for path in (base, *given))
            found = apart(how, made, theirs, first, others)
            count = sum(values.size for values in theirs.values())
            print(f"  {found[0]:,} of {count:,} weights differ, {found[1]:,} of them at a cut", flush=True)


def flat(values: dict[str, np.ndarray], config: LlamaConfig) -> str:
    """All tensors in their order as one text."""
    joined = np.concatenate([values[tensor.name].reshape(-1) for tensor in mapping.hf_tensors(config)])
    return base64.b64encode(joined.astype("<f4").tobytes()).decode()


def tiny_models(folder: Path) -> list[Path]:
    """A base and two models near it; some weights are equal to the base's, some differences have one size."""
    rng, made = np.random.default_rng(0), []
    base = {t.name: rng.normal(size=t.shape).astype(np.float32) for t in mapping.hf_tensors(TINY)}
    for number in range(3):
        values = dict(base)
        for name in base if number else ():
            change = rng.normal(scale=0.3, size=base[name].shape).astype(np.float32)
            values[name] = base[name] + change * (rng.random(change.shape) < 0.8)
        place = folder / str(number)
        place.mkdir()
        write_folder(place, values, TINY)
        made.append(place)
    return made


def write_folder(folder: Path, values: dict[str, np.ndarray], config: LlamaConfig) -> None:
    planned = [tensors.Planned(name=n, tag="F32", shape=v.shape) for n, v in values.items()]
    tensors.write_tensors(folder, planned, lambda name: values[name])
    (folder / "config.json").write_text(json.dumps(to_hf(config, "float32")), encoding="utf-8")


def record(python: str, to: Path) -> None:
    """Merge the tiny models in every way and write down models, results and draws."""
    with tempfile.TemporaryDirectory(prefix="merge-") as temporary:
        folder = Path(temporary)
        base, *models = map(str, tiny_models(folder))
        jobs = []
        for number, case in enumerate(CASES.values()):
            given = models[:1] if case["method"] == "slerp" else models
            jobs.append({"config": peer_config(case, base, given), "out": str(folder / f"out-{number}")})
        run_peer(python, jobs, folder)
        outs = [Path(job["out"]) for job in jobs]
        found = {
            "made by": "benchmarks/merge.py --record, with mergekit 0.1.5",
            "config": dataclasses.asdict(TINY),
            "models": [flat(read_folder(Path(path)), importing.read_config(Path(path))) for path in (base, *models)],
            "cases": {
                name: {
                    "settings": case,
                    "merged": flat(read_folder(out), TINY),
                    "masks": json.loads((out / "masks.json").read_text()),
                }
                for (name, case), out in zip(CASES.items(), outs, strict=True)
            },
        }
    to.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the Python that has mergekit")
    parser.add_argument("--base", help="Hugging Face folder")
    parser.add_argument("--models", default="", help="two Hugging Face folders")
    parser.add_argument("--methods", default="", help="some of the methods; all by default")
    parser.add_argument("--record", help="write the tests' record instead")
    given = parser.parse_args()
    if given.record:
        record(given.python, Path(given.record))
    else:
        compare(given.python, given.base, given.models.split(","), [m for m in given.methods.split(",") if m])


if __name__ == "__main__":
    main()
