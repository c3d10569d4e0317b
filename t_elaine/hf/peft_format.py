"""Adapters in PEFT's format (adapter_config.json and adapter_model.safetensors), both ways.

Weights alone: the base is not read but for its shape. Names and layouts: PEFT 0.11 and later, whose file format is
documented at https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from t_elaine import paths
from t_elaine.checkpoints import adapters, layout, reading, verify, writing
from t_elaine.errors import UserError
from t_elaine.hf import folders, hub, side_files, tensors
from t_elaine.hf.exporting import config_of
from t_elaine.model.config import LlamaConfig
from t_elaine.model.lora import HF_GROUPS, Lora, Matrix, adapter_shapes, from_record, matrices, targets

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base.json"  # ours, which PEFT does not read
PARTS = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
# What would make the adapters compute something else than ours do, by its harmless values.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}


def name(m: Matrix, layer: int, part: str) -> str:
    """A tensor's name in PEFT's file."""
    return f"base_model.model.model.layers.{layer}.{HF_GROUPS[m.group]}.{m.name}_proj.{PARTS[part]}"


def export_adapter(checkpoint: str, to: str, overwrite: bool = False, say: Callable[[str], None] = print) -> None:
    """Write a run's adapters as PEFT reads them, and read the files back.

    Args:
        checkpoint: RUN_DIR or RUN_DIR/checkpoints/STEP of a run that trains adapters.
        to: the folder to make.
        overwrite: replace `to` if it is there.
        say: takes lines of progress.

    Raises:
        UserError: the checkpoint holds a whole model, is damaged or holds a NaN; `to` is there; the disk is full.
    """
    run_dir, step = reading.resolve(checkpoint)
    meta = reading.read_meta(run_dir, step)
    where = layout.step_dir(run_dir, step)
    if meta.adapter is None:
        raise UserError("this checkpoint holds a whole model, no adapters", where, "leave --adapter out")
    if found := verify.faults(where, (layout.PARAMS, layout.META)):
        raise UserError(f"the checkpoint is damaged: {found[0]}", where, "export another checkpoint of this run")
    config, lora = config_of(meta), from_record(meta.adapter["lora"])
    read = reading.tensor_reader(run_dir, step)
    arrays = _arrays(config, lora, lambda path: read(path, None, None), where)
    with folders.new_folder(to, overwrite, sum(a.nbytes for a in arrays.values()), "export") as folder:
        save_file(arrays, folder / WEIGHTS, {"format": "pt"})
        origin = side_files.origin_record(run_dir) or meta.adapter["base"]
        values = to_peft(config, lora, origin.partition("@")[0] if hub.is_name(origin.partition("@")[0]) else None)
        (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        base = adapters.base_of(meta.adapter, where)
        told = {"base": origin, "sample": adapters.sample(*base)}
        (folder / BASE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        infos = tensors.read_header(folder / WEIGHTS)
        if any(tensors.read(infos[key]).tobytes() != array.tobytes() for key, array in arrays.items()):
            raise UserError("the file does not hold what was written", to, "look at this disk")
    count = sum(array.size for array in arrays.values())
    say(f"wrote {count:,} numbers of adapters for the base {origin} ({meta.adapter['fingerprint'][:16]}…) to {to}")


def to_peft(config: LlamaConfig, lora: Lora, base: str | None) -> dict[str, Any]:
    """adapter_config.json of adapters; `base` is its model's name on the hub."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [f"{m.name}_proj" for m in targets(config, lora)],
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }


def _arrays(config: LlamaConfig, lora: Lora, read: Callable[[str], np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Every tensor of the file: PEFT's are [out,in]."""
    found: dict[str, np.ndarray] = {}
    for m in targets(config, lora):
        for part in PARTS if lora.dora else ("down", "up"):
            stacked = read(f"{m.path}/{part}")
            if not np.isfinite(stacked).all():
                raise UserError(f"{m.path}/{part} holds numbers that are not finite", where, "take another checkpoint")
            for layer, array in enumerate(stacked):
                found[name(m, layer, part)] = np.ascontiguousarray(array.T)
    return found


def import_adapter(
    folder: Path, base: str, to: str, overwrite: bool = False, say: Callable[[str], None] = print
) -> None:
    """Make a run folder of PEFT's adapters and the run folder of their base; it appears whole or not at all.

    Raises:
        UserError: another kind of adapter, a setting that ours do not have (by name), a tensor that is missing, of
            another shape or not finite; no such base.
    """
    if not base:
        raise UserError(
            "this folder holds adapters", str(folder), "give --base=, the run folder of the model they are for"
        )
    run_dir, step = reading.resolve(base)
    meta = reading.read_meta(run_dir, step)
    config = config_of(meta)
    lora, infos = read_folder(folder, config)
    _check_base(folder, (run_dir, step))
    params = _tree(config, lora, infos)
    record = adapters.record((run_dir, step), lora)
    meta = dataclasses.replace(
        meta, step=0, tokens=0, row=0, config_hash="", parent=record["base"], has_optimizer=False, adapter=record
    )
    with folders.new_folder(to, overwrite, sum(i.nbytes for i in infos.values()), "import_hf") as building:
        for part, last in (("vocabulary", "vocabulary.json"), ("parent", "")):
            source = paths.join(run_dir, part)
            if paths.exists(source):
                folders.copy_into(Path(paths.brought_here(source)), str(building / part), last)
        writing.save_params(str(building), 0, params, meta)
    say(f"imported adapters of rank {lora.rank} on {', '.join(lora.targets)} from {folder} to {to}")


def _check_base(folder: Path, base: tuple[str, int]) -> None:
    """Refuse another base than the adapters' own, where their folder says which that is."""
    if not (folder / BASE).is_file():
        return
    try:
        told = json.loads((folder / BASE).read_text(encoding="utf-8"))
        wanted, named = str(told["sample"]), str(told["base"])
    except (ValueError, KeyError, TypeError) as problem:
        mend = "take the adapters' export again, or remove the file and see to it yourself that the base is theirs"
        raise UserError(f"{BASE} names no base ({problem!r})", str(folder / BASE), mend) from problem
    found = adapters.sample(*base)
    if wanted != found:
        what = f"the adapters are for the base {named} with the fingerprint {wanted}, this one has {found}"
        mend = f"give the base that they were trained beside; if it is only rounded otherwise, remove {BASE}"
        raise UserError(what, layout.step_dir(*base), mend)


def read_folder(folder: Path, config: LlamaConfig) -> tuple[Lora, dict[str, tensors.TensorInfo]]:
    """Settings and tensors of a folder in PEFT's format, names and shapes checked.

    Raises:
        UserError: see `import_adapter`.
    """
    where = str(folder / CONFIG)
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as problem:
        raise UserError(f"{CONFIG} cannot be read ({problem})", where, "give a folder of PEFT's adapters") from problem
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"there is no {WEIGHTS}", str(folder), "save the adapters as safetensors, PEFT's default")
    infos = tensors.read_header(folder / WEIGHTS)
    lora = from_peft(values, config, infos, where)
    expected = {
        name(m, layer, part): leaf.shape[:0:-1]
        for m in targets(config, lora)
        for part, leaf in adapter_shapes(config, lora)["layers"][m.group][m.name].items()
        for layer in range(config.layers)
    }
    for key in sorted(set(expected) ^ set(infos)):
        lack = "is missing" if key in expected else "has no place beside this base"
        raise UserError(f"{key} {lack}", str(folder / WEIGHTS), "give the base that the adapters were trained beside")
    for key, shape in expected.items():
        if infos[key].shape != shape or infos[key].tag not in tensors.DTYPES:
            what = f"{key} is {infos[key].tag} {list(infos[key].shape)}, this base makes it {list(shape)}"
            raise UserError(what, str(folder / WEIGHTS), "give the base that the adapters were trained beside")
    return lora, infos


def from_peft(values: Mapping[str, Any], config: LlamaConfig, names: Mapping[str, Any], where: str) -> Lora:
    """The settings; the targets are those that the file has tensors for, however target_modules says it."""
    if values.get("peft_type") != "LORA":
        raise UserError(f"peft_type is {values.get('peft_type')!r}", where, "only LoRA (and DoRA) adapters are read")
    for key, allowed in HARMLESS.items():
        if key in values and values[key] not in allowed:
            raise UserError(f"{key} is {values[key]!r}", where, f"only {key} = {allowed[0]!r} is read")
    chosen = tuple(m.name for m in matrices(config) if name(m, 0, "down") in names)
    if not chosen:
        raise UserError("no tensor is of an adapter of this model", where, "give the adapters' own base")
    numbers: dict[str, Any] = {
        "r": values.get("r"),
        "lora_alpha": values.get("lora_alpha"),
        "lora_dropout": values.get("lora_dropout") or 0.0,
    }
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{key} is {value!r}, no number", where, "give the file as PEFT wrote it")
    return Lora(
        rank=int(numbers["r"]),
        alpha=float(numbers["lora_alpha"]),
        dropout=float(numbers["lora_dropout"]),
        targets=chosen,
        rslora=bool(values.get("use_rslora")),
        dora=bool(values.get("use_dora")),
        base="float32",
    )


def _tree(config: LlamaConfig, lora: Lora, infos: Mapping[str, tensors.TensorInfo]) -> dict[str, Any]:
    tree: dict[str, Any] = {"layers": {}}
    for m in targets(config, lora):
        own: dict[str, Any] = {}
        for part in PARTS if lora.dora else ("down", "up"):
            listed = [infos[name(m, layer, part)] for layer in range(config.layers)]
            layers = [tensors.read(info).astype(np.float32).T for info in listed]
            for info, array in zip(listed, layers, strict=True):
                if not np.isfinite(array).all():
                    raise UserError(f"{info.name} holds numbers that are not finite", str(info.file), "save it anew")
            own[part] = jnp.asarray(np.stack(layers))
        tree["layers"].setdefault(m.group, {})[m.name] = own
    return tree
