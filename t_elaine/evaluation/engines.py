"""What computes: a model on a mesh that gives the log-likelihood of token rows, and the places a model comes from.

Pieces of any length up to the row are packed into rows of one shape, isolated by segments, so that one program is
compiled. The plan of rows depends on the pieces alone, never on how many rows run at a time. Knows no exam, no store.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from t_elaine import paths
from t_elaine.checkpoints import adapters, layout, reading, verify
from t_elaine.data.packing import best_fit
from t_elaine.data.vocabulary import Vocabulary, load_vocabulary
from t_elaine.errors import UserError
from t_elaine.hf import importing, proof, tensors
from t_elaine.model import llama
from t_elaine.model.config import ComputeConfig, LlamaConfig, RopeScaling
from t_elaine.model.loss import chunked_cross_entropy
from t_elaine.parallel.sharding import RULES, placing, sharding, shardings

# Pieces whose rows are planned at once.
WINDOW_PIECES = 4096
# The kind of a model that a server has: its shape is not known here, and its vocabulary where the user gives it.
SERVED = "served"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model to be judged, not yet loaded.

    Attributes:
        path: as the user gave it.
        kind: "run" (a run folder of ours), "hf" (a folder in Hugging Face format) or SERVED.
        step, tokens: how far it was trained.
        identity: what tells this model from every other: digest of its files.
        config: its shape.
        vocabulary: its vocabulary.
        load: onto a mesh: the parameters.
        context: of a SERVED model, the tokens that its server takes; 0 where it does not say.
    """

    path: str
    kind: str
    step: int
    tokens: int
    identity: str
    config: LlamaConfig
    vocabulary: Vocabulary
    load: Callable[[Mesh], Any]
    context: int = 0

    def describe(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("path", "kind", "step", "tokens", "identity")}


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Scores rows of `length` targets, `rows` at a time."""

    rows: int
    length: int
    run: Callable[[dict[str, np.ndarray]], jax.Array | np.ndarray]


@dataclass(frozen=True, kw_only=True)
class PieceEngine:
    """Scores pieces each by itself: what knows no packed rows, as vLLM or a server.

    Attributes:
        length: T, targets of a piece at most.
        questions: of an exam, whose options are scored and kept together.
        run: (int32 arrays [n] of 2 to T+1 tokens, what an error calls each) → (place, float32 [n-1] in nats) of each
            piece, in any order.
    """

    length: int
    questions: int
    run: Callable[[Sequence[np.ndarray], Sequence[str]], Iterable[tuple[int, np.ndarray]]]


Scorer = Engine | PieceEngine


def open_model(path: str) -> Model:
    """Find a model: RUN_DIR, RUN_DIR/checkpoints/N, or a folder in Hugging Face format.

    Raises:
        UserError: nothing there that can be judged, its vocabulary is not the one that it was trained with, or an
            export's weights are not those that its proof.json names.
    """
    if paths.exists(paths.join(path, "config.json")):
        return replace(_open_hf(Path(paths.brought_here(path))), path=path)
    run_dir, step = reading.resolve(path)
    meta, folder = reading.read_meta(run_dir, step), layout.step_dir(run_dir, step)
    vocabulary = load_vocabulary(paths.join(run_dir, "vocabulary"))
    if vocabulary.sha256 != meta.vocabulary_sha256:
        what = f"the model was trained with the vocabulary {meta.vocabulary_sha256[:16]}…, "
        what += f"{vocabulary.sha256[:16]}… lies beside it"
        raise UserError(what, paths.join(run_dir, "vocabulary"), "put the model's own vocabulary there")
    config = config_from_dict(meta.model)
    return Model(
        path=path,
        kind="run",
        step=step,
        tokens=meta.tokens,
        identity=_digest(paths.read_text(paths.join(folder, layout.DIGESTS))),
        config=config,
        vocabulary=vocabulary,
        load=lambda mesh: adapters.restore_whole(run_dir, step, parameter_targets(config, mesh)),
    )


def _open_hf(folder: Path) -> Model:
    config = importing.read_config(folder)
    proof.check_files(folder)
    infos = tensors.open_tensors(folder)
    importing.check_tensors(infos, config, folder)
    names = sorted({"config.json", *(info.file.name for info in infos.values())})

    def load(mesh: Mesh) -> Any:
        layouts = jax.tree.map(lambda target: target.sharding, parameter_targets(config, mesh))
        return importing.load_params(importing.hf_source(infos, config), config, layouts)

    return Model(
        path=str(folder),
        kind="hf",
        step=0,
        tokens=0,
        identity=_digest(json.dumps(verify.digests(str(folder), names), sort_keys=True)),
        config=config,
        vocabulary=load_vocabulary(folder),
        load=load,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def config_from_dict(fields: dict[str, Any]) -> LlamaConfig:
    """The model's shape from a checkpoint's record."""
    scaling = fields.get("rope_scaling")
    return LlamaConfig(**{**fields, "rope_scaling": RopeScaling(**scaling) if scaling else None})


def parameter_targets(config: LlamaConfig, mesh: Mesh) -> Any:
    """Tree of float32 `ShapeDtypeStruct`s with the shardings of this mesh."""
    shapes = llama.parameter_shapes(config)
    layouts = shardings(llama.parameter_axes(config), mesh, RULES, shapes)
    return jax.tree.map(lambda s, layout: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=layout), shapes, layouts)


def make_engine(
    params: Any, config: LlamaConfig, compute: ComputeConfig, mesh: Mesh, *, batch_rows: int, length: int
) -> Engine:
    """An engine over loaded parameters.

    Args:
        params: on the mesh, as `parameter_targets` says.
        config: the model.
        compute: dtype, attention, chunk of the loss.
        mesh: where.
        batch_rows: rows at a time, rounded up to what the mesh divides.
        length: T, targets of a row.

    Raises:
        UserError: rows longer than the model's context.
    """
    if length > config.max_position:
        what = f"sequence_length is {length}, the model's context {config.max_position}"
        raise UserError(what, "evaluate.sequence_length", f"give at most {config.max_position}")
    ways = mesh.shape["replica"] * mesh.shape["fsdp"]
    compute = replace(compute, remat="none", saved=(), offloaded=())
    batch = sharding(mesh, RULES, "batch", "sequence")

    def nll(params: Any, rows: dict[str, jax.Array]) -> jax.Array:
        with placing(mesh):
            x_BTD = llama.hidden(params, config, compute, rows["tokens"], rows["positions"], rows["segments"])
            return chunked_cross_entropy(x_BTD, llama.head_table(params, config), rows["targets"], compute.loss_chunk)

    compiled = jax.jit(nll, out_shardings=sharding(mesh, RULES))
    return Engine(
        rows=-(-batch_rows // ways) * ways,
        length=length,
        run=lambda rows: compiled(params, jax.device_put(rows, batch)),
    )


def score(
    engine: Scorer,
    pieces: Sequence[np.ndarray],
    done: Callable[[int], None] = lambda tokens: None,
    names: Sequence[str] = (),
) -> Iterator[np.ndarray]:
    """Negative log-likelihoods of each piece's tokens after its first, in nats.

    Args:
        engine: what computes.
        pieces: int arrays of 1 to T+1 tokens.
        done: told the targets of each batch.
        names: what an error of a `PieceEngine` calls each piece; () takes their places.

    Yields:
        float32 [n-1] for a piece of n tokens, in order.
    """
    for start in range(0, len(pieces), WINDOW_PIECES):
        window = pieces[start : start + WINDOW_PIECES]
        if isinstance(engine, PieceEngine):
            called = names[start : start + WINDOW_PIECES] or [f"piece {start + i}" for i in range(len(window))]
            yield from _score_pieces(engine, window, done, called)
        else:
            yield from _score_window(engine, window, done)


def _score_pieces(
    engine: PieceEngine, pieces: Sequence[np.ndarray], done: Callable[[int], None], names: Sequence[str]
) -> list[np.ndarray]:
    longest = max((len(piece) - 1 for piece in pieces), default=0)
    if longest > engine.length:
        raise ValueError(f"a piece of {longest} targets, at most {engine.length} are taken")
    found: list[np.ndarray | None] = [None if len(piece) > 1 else np.zeros(0, np.float32) for piece in pieces]
    asked = [i for i, piece in enumerate(pieces) if len(piece) > 1]
    for place, nll in engine.run([pieces[i] for i in asked], [names[i] for i in asked]):
        if found[asked[place]] is not None or nll.shape != (len(pieces[asked[place]]) - 1,):
            raise RuntimeError(f"{names[asked[place]]}: scored twice, or {nll.shape} figures of its tokens")
        found[asked[place]] = nll
        done(len(nll))
    made = [nll for nll in found if nll is not None]
    if len(made) < len(pieces):
        raise RuntimeError(f"{len(pieces) - len(made)} of {len(pieces)} pieces were not scored")
    return made


def _score_window(engine: Engine, pieces: Sequence[np.ndarray], done: Callable[[int], None]) -> list[np.ndarray]:
    found = [np.zeros(0, np.float32)] * len(pieces)
    plan = plan_rows([len(piece) - 1 for piece in pieces], engine.length)
    batches = [plan[i : i + engine.rows] for i in range(0, len(plan), engine.rows)]
    waiting: list[tuple[list[list[int]], jax.Array | np.ndarray]] = []

    def read() -> None:
        rows, result = waiting.pop(0)
        values = np.asarray(result)
        for row, members in enumerate(rows):
            at = 0
            for member in members:
                n = len(pieces[member]) - 1
                found[member] = values[row, at : at + n]
                at += n
        done(sum(len(pieces[member]) - 1 for members in rows for member in members))

    for rows in batches:
        # One batch ahead: the device computes while the host lays out the next and reads the last.
        waiting.append((rows, engine.run(lay_out(pieces, rows, engine.rows, engine.length))))
        if len(waiting) > 1:
            read()
    while waiting:
        read()
    return found


def plan_rows(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Which pieces share a row: best-fit decreasing over the lengths; pieces without a target stand in none.

    Raises:
        ValueError: a piece is longer than a row.
    """
    if max(lengths, default=0) > length:
        raise ValueError(f"a piece of {max(lengths)} targets in rows of {length}")
    waiting: dict[int, list[int]] = {}
    for index in reversed(range(len(lengths))):
        waiting.setdefault(lengths[index], []).append(index)
    histogram = np.bincount(np.asarray(lengths, np.int64), minlength=length + 1)
    return [[waiting[n].pop() for n in shape] for shape, count in best_fit(histogram, length) for _ in range(count)]


def lay_out(
    pieces: Sequence[np.ndarray], rows: Sequence[Sequence[int]], count: int, length: int
) -> dict[str, np.ndarray]:
    """Rows of pieces as a batch of int32 [count, length]; what is left over is padding (segment 0)."""
    batch = {name: np.zeros((count, length), np.int32) for name in ("tokens", "targets", "segments", "positions")}
    for row, members in enumerate(rows):
        at = 0
        for segment, member in enumerate(members, 1):
            piece, n = pieces[member], len(pieces[member]) - 1
            batch["tokens"][row, at : at + n] = piece[:-1]
            batch["targets"][row, at : at + n] = piece[1:]
            batch["segments"][row, at : at + n] = segment
            batch["positions"][row, at : at + n] = np.arange(n)
            at += n
    return batch
