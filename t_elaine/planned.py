"""The root of `plan`: the settings that `train` would be given → a question, its arithmetic, its compiled answer.

It stands beside the commands, as `assembly` does: it alone joins the recipe's batch (data) to the step (training) and
the estimates (planning).
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine import feeding, paths
from t_elaine.checkpoints.writing import Checkpointing
from t_elaine.data.store import MANIFEST
from t_elaine.errors import UserError
from t_elaine.model import capability
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import AXES, MeshConfig, make_mesh, mesh_shape
from t_elaine.planning import answer, costs, hlo, topology
from t_elaine.planning.answer import Record
from t_elaine.planning.assumptions import Assumptions, rates
from t_elaine.planning.compile import TooLarge, compile_step
from t_elaine.planning.machines import machines
from t_elaine.planning.question import Question
from t_elaine.training.building import build_step
from t_elaine.training.optimizer import AdamW


def answered(
    training: Mapping[str, Any],
    name: str,
    slices: int,
    groups: int,
    token_budget: int | None,
    assumed: Assumptions,
    compile: bool,
    hlo_out: str,
) -> Record:
    """The record of a plan.

    Raises:
        UserError: no such topology, a mesh or batch that does not divide, an option that the compiler refuses.
    """
    question = asked(training, name, slices, groups, token_budget, assumed)
    why = ""
    if answer.arithmetic(question)["decided"]:
        why = "arithmetic alone, which decides it"
    elif question.topology.chip.kind == "gpu":
        why = "arithmetic alone: nothing compiles for GPUs that are not there"
    elif not compile:
        why = "arithmetic alone, as asked (plan.compile)"
    elif question.topology.chip.kind == "tpu" and not topology.has_compiler():
        why = "arithmetic alone: libtpu, which compiles for TPUs, is not installed (Linux x86-64: the extra `plan`)"
    told = answer.by_arithmetic(question, why) if why else by_compiler(question, training, hlo_out)
    if hlo_out and told["by"] != answer.COMPILED:
        print(f"warning: {hlo_out} was not written: no step was compiled (told by {told['by']})", file=sys.stderr)
    return told | {"machines": around(question, training)}


def asked(
    training: Mapping[str, Any], name: str, slices: int, groups: int, token_budget: int | None, assumed: Assumptions
) -> Question:
    """The question that the settings put."""
    where = topology.read(name, slices)
    sizes = mesh_shape(training.get("mesh") or MeshConfig(), where.devices, where.slices)
    mesh = dict(zip(AXES, sizes, strict=True))
    data, loop = training["data"], training["loop"]
    shape = feeding.batch_shape(data, training.get("rows_per_device", 1), mesh)
    compute = training.get("compute") or ComputeConfig()
    usable, warning = capability.usable(
        compute, data.sequence_length, training["model"].head_dim, where.chip.kind, mesh["context"], where.chip.label
    )
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    optimizer = training.get("optimizer") or AdamW()
    return Question(
        model=training["model"],
        compute=usable,
        topology=where,
        mesh=mesh,
        shape=shape,
        steps=loop.steps,
        token_budget=token_budget,
        price=loop.price_per_chip_hour,
        groups=groups,
        first_moment_dtype=optimizer.first_moment_dtype,
        averaged=optimizer.average is not None,
        lora=training.get("lora"),
        options=training.get("compiler_options") or {},
        assumed=assumed,
        rates=rates(assumed, where.chip, where.devices),
    )


def around(question: Question, training: Mapping[str, Any]) -> Record:
    """What the run takes of its hosts. A store in an object store is not asked for its size."""
    data, saving = training["data"], training.get("checkpoints") or Checkpointing()
    remote = any(map(paths.is_remote, data.stores))
    return machines(
        question,
        every=saving.every,
        keep=saving.keep,
        permanent_every=saving.permanent_every,
        stores={str(folder): shard_bytes(folder) for folder in data.stores},
        cache=int(data.cache_gb * 1e9) if remote else 0,
    )


def shard_bytes(folder: str) -> int | None:
    """Bytes of a store's shards; None where it does not lie on a disk here."""
    if paths.is_remote(folder) or not paths.exists(paths.join(folder, MANIFEST)):
        return None
    return sum(size for name, size in paths.sizes(folder).items() if name.endswith(".arrow"))


def by_compiler(question: Question, training: Mapping[str, Any], hlo_out: str) -> Record:
    """The answer of the compiled step."""
    if hlo_out and not paths.is_remote(hlo_out) and (Path(hlo_out).is_dir() or not Path(hlo_out).parent.is_dir()):
        raise UserError("the program cannot be written there", hlo_out, "name a file in a folder that is there")
    devices = topology.described(question.topology)
    mesh = make_mesh(training.get("mesh") or MeshConfig(), devices)
    lengths = np.full(question.model.vocab_size, 4, np.int32)  # a constant of the program; its values cost nothing
    step = build_step(
        question.model,
        question.compute,
        training.get("optimizer"),
        training.get("schedule"),
        question.steps,
        mesh,
        question.groups,
        lengths,
        question.options,
        training.get("z_loss", 0.0),
        training.get("lora"),
        preference=training.get("preference"),
    )
    done = compile_step(step, question.shape)
    if isinstance(done, TooLarge):
        return answer.too_large(question, done)
    if hlo_out:
        try:
            paths.write_text(hlo_out, done.hlo)
        except OSError as error:
            raise UserError(f"the program cannot be written: {error}", hlo_out, "name another file") from error
    module = hlo.parse(done.hlo)
    counted = costs.count(module, question.rates, question.mesh, question.topology.slices)
    return answer.compiled_answer(question, done, module, counted)
