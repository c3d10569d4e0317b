"""One batch in the making: what it compiles for, prompts read into its free rows, and what becomes of each answer.

The loop over calls of the device is `engine`'s; the programs are `programs`'.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from t_elaine.generation import requests as asked
from t_elaine.generation.cache import Shared
from t_elaine.generation.programs import Programs, State
from t_elaine.generation.requests import Generated, Request
from t_elaine.generation.sampling import How, Rows
from t_elaine.generation.stopping import Text
from t_elaine.model.config import LlamaConfig

PIECE = 512  # tokens of a prompt that go through a layer at once: bounds memory
LEAST_SHARED = 16  # a shorter beginning is not worth a program of its own
LEAST_SLOTS = 128
READ = 2048  # tokens of prompts read at once, about
NONE = np.zeros(0, np.int32)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model that writes, `rows` answers at a time. `pieces`: the bytes of each id, special ones none."""

    config: LlamaConfig
    rows: int
    ways: int
    weights: Any
    programs: Programs
    pieces: tuple[bytes, ...] = field(repr=False)


@dataclass(kw_only=True)
class Row:
    """An answer in the making."""

    index: int
    request: Request
    limit: int
    text: Text
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""

    def add(self, tokens: np.ndarray, logprobs: np.ndarray) -> int:
        """Take new tokens until one ends the answer; how many were taken."""
        before = len(self.tokens)
        for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            if token < 0 or self.finish:
                break
            self.tokens.append(token)
            self.logprobs.append(logprob)
            if token in self.request.end_ids:
                self.finish = "end"
            elif self.text.add(token):
                self.finish = "stop"
            elif len(self.tokens) == self.limit:
                self.finish = "length"
        return len(self.tokens) - before

    def result(self) -> Generated:
        return Generated(
            index=self.index,
            tokens=np.array(self.tokens, np.int32),
            text=self.text.close(),
            logprobs=np.array(self.logprobs, np.float32),
            finish=self.finish,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one call compiles for: rows, slots of the ring, end ids a row, arithmetic; the shared beginning's length."""

    rows: int
    slots: int
    ends: int
    how: How
    prefix: int


def make_plan(engine: Engine, requests: Sequence[Request], limits: Sequence[int], share: bool = True) -> Plan:
    """What a call compiles for; `share`: read once what all prompts begin with."""
    prompts = [request.tokens for request in requests]
    prefix = asked.common_prefix(prompts) if share and len(prompts) > 1 else 0
    prefix = prefix if prefix >= LEAST_SHARED else 0
    room = max(len(prompt) - prefix + limit - 1 for prompt, limit in zip(prompts, limits, strict=True))
    return Plan(
        rows=min(engine.rows, _rows_for(len(requests), engine.ways)),
        slots=asked.bucket(room, LEAST_SLOTS, 1),
        ends=_power(max(1, *(len(request.end_ids) for request in requests))),
        how=asked.how(requests),
        prefix=prefix,
    )


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _rows_for(number: int, ways: int) -> int:
    """A batch for so many rows: of a few sizes, each of which the mesh divides."""
    return _power(-(-number // ways)) * ways


def together(engine: Engine, length: int) -> int:
    """How many prompts of at most this length are read at once: enough to keep matmuls busy, few enough that those of
    like length come together and memory stays bounded."""
    count, piece = asked.pieces(length, PIECE)
    return engine.ways * max(1, READ // (count * piece))


def new_row(engine: Engine, index: int, request: Request, limit: int) -> Row:
    text = Text(engine.pieces, request.sampling.stop, request.sampling.min_new)
    return Row(index=index, request=request, limit=limit, text=text)


def read(
    engine: Engine, tokens: Sequence[np.ndarray], rows: int, shared: Shared | None, before: int, octave: int = 4
) -> tuple[list[Any], jax.Array, np.ndarray]:
    """Prompts, right-aligned in `rows` rows, through all layers: caches [rows,K,T,h], the last stream, paddings."""
    count, length = asked.pieces(max(len(row) for row in tokens), PIECE, octave)
    laid = np.zeros((rows, count * length), np.int32)
    pads = np.full(rows, count * length - 1, np.int32)
    for index, row in enumerate(tokens):
        pads[index] = count * length - len(row)
        laid[index, pads[index] :] = row
    positions = np.maximum(np.arange(count * length)[None] - pads[:, None], 0).astype(np.int32) + np.int32(before)
    programs, weights = engine.programs, engine.weights
    layers = [programs.empty(rows, count * length) for _ in weights["layers"]]
    for start in range(0, count * length, length):
        piece = slice(start, start + length)
        x, cos, sin = programs.enter(weights, laid[:, piece], positions[:, piece])
        for i, w in enumerate(weights["layers"]):
            common = (None, None) if shared is None else (shared.layers[i], shared.pad)
            x, layers[i] = programs.read(w, x, cos, sin, layers[i], np.int32(start), pads, *common)
    return layers, x, pads


def read_shared(engine: Engine, tokens: np.ndarray) -> Shared:
    # Few lengths of it: the large program of all layers is compiled for each.
    layers, _, pads = read(engine, [tokens], engine.ways, None, 0, 2)
    first = tuple((k[0], v[0]) for k, v in layers)
    return Shared(layers=first, pad=pads[0], length=np.int32(len(tokens)))


def empty_state(engine: Engine, plan: Plan) -> State:
    B, V = plan.rows, engine.config.vocab_size
    zeros = lambda dtype: np.zeros(B, dtype)  # noqa: E731
    return State(
        layers=tuple(engine.programs.empty(B, plan.slots) for _ in engine.weights["layers"]),
        slot=np.int32(0),
        held=zeros(np.int32),
        token=zeros(np.int32),
        live=zeros(bool),
        made=zeros(np.int32),
        seen=np.zeros((B, V), bool) if plan.how.penalised else None,
        rows=settings(plan, [], B, V),
    )


def settings(plan: Plan, rows: Sequence[Row], count: int, size: int) -> Rows:
    """The settings of the rows, filled up to `count`."""

    def column(dtype: Any, values: Sequence[Any], fill: Any) -> np.ndarray:
        return np.array([*values, *[fill] * (count - len(rows))], dtype)

    every = [row.request.sampling for row in rows]
    ends = np.full((count, plan.ends), size, np.int32)
    for index, row in enumerate(rows):
        ends[index, : len(row.request.end_ids)] = row.request.end_ids
    return Rows(
        max_new=column(np.int32, [row.limit for row in rows], 1),
        min_new=column(np.int32, [s.min_new for s in every], 0),
        temperature=column(np.float32, [s.temperature for s in every], 0),
        top_p=column(np.float32, [s.top_p for s in every], 1),
        penalty=column(np.float32, [s.repetition_penalty for s in every], 1),
        seed=column(np.uint32, [s.seed for s in every], 0),
        number=column(np.uint32, [row.index if (n := row.request.number) is None else n for row in rows], 0),
        ends=ends,
    )


def admit(
    engine: Engine, plan: Plan, state: State, shared: Shared | None, made: Sequence[Row], free: Sequence[int]
) -> tuple[State, np.ndarray, np.ndarray]:
    """Read prompts into free rows: the state, and each row's first token and logprob as [n,1]."""
    count, V = min(plan.rows, _rows_for(len(made), engine.ways)), engine.config.vocab_size
    own = [row.request.tokens[plan.prefix :] for row in made]
    layers, x, _ = read(engine, own, count, shared, plan.prefix)
    logits = engine.programs.leave(engine.weights, x)
    where = np.full(count, plan.rows, np.int32)
    where[: len(made)] = free[: len(made)]
    held = np.zeros(count, np.int32)
    held[: len(made)] = [len(tokens) for tokens in own]
    seen = None
    if plan.how.penalised:
        seen = np.zeros((count, V), bool)
        for index, row in enumerate(made):
            seen[index, row.request.tokens] = True
    fresh = State((), NONE, held, NONE, NONE, NONE, seen, settings(plan, made, count, V))
    rings = tuple(
        engine.programs.insert(ring, prompts, where, state.slot)
        for ring, prompts in zip(state.layers, layers, strict=True)
    )
    bare, token, logprob = engine.programs.admit(state._replace(layers=()), fresh, logits, where, plan.how)
    shown = slice(0, len(made))
    return bare._replace(layers=rings), np.asarray(token)[shown, None], np.asarray(logprob)[shown, None]
