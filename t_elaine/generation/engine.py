"""Batched generation: requests in, answers out as they are finished, each the same in whatever company it was written.

Rows that are finished are replaced (a quarter of the batch at a time, prompts of like length together). Exam answers of
16 tokens end together, so that this is a batch after a batch; chat answers end one by one, and nobody waits for the
longest. The device writes 16 tokens a call and stops early where no row goes on; end ids it sees by itself, stop
strings are looked for here, between calls. What begins every prompt of a call, as an exam's demonstrations do, is read
once. An answer depends on its neighbours by rounding alone: sums of other shapes are added in another order.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from t_elaine.generation import requests as asked
from t_elaine.generation.batch import Engine, Row, admit, empty_state, make_plan, new_row, read_shared, together
from t_elaine.generation.programs import STEPS, lay_out, make_programs
from t_elaine.generation.requests import Generated, Request
from t_elaine.model.config import ComputeConfig, LlamaConfig

STREAMED = 4  # tokens between two pieces of streamed text


class Decoder(Protocol):
    """What the engine needs of a vocabulary; `t_elaine.data.vocabulary.Vocabulary` is one."""

    @property
    def pieces(self) -> tuple[bytes, ...]: ...

    @property
    def special_ids(self) -> tuple[int, ...]: ...


def make_engine(
    params: Any,
    config: LlamaConfig,
    compute: ComputeConfig,
    mesh: Mesh,
    vocabulary: Decoder,
    *,
    rows: int = 16,
    donate: bool = False,
) -> Engine:
    """An engine over loaded parameters.

    Args:
        params: on the mesh, by the training's rules; float32.
        config: the model.
        compute: dtype (weights are cast to it once).
        mesh: where. Rows lie along replica and fsdp, heads along tensor; along fsdp weights
            are gathered at every token.
        vocabulary: gives each id's bytes.
        rows: answers at a time, rounded up to what the mesh divides; memory is in proportion to it.
        donate: free the parameters while they are laid out anew; the caller's are gone then.

    Raises:
        UserError: the mesh cuts rows.
    """
    ways = mesh.shape["replica"] * mesh.shape["fsdp"]
    special = set(vocabulary.special_ids)
    return Engine(
        config=config,
        rows=-(-rows // ways) * ways,
        ways=ways,
        programs=make_programs(config, compute, mesh),
        weights=lay_out(params, config, compute, mesh, donate),
        pieces=tuple(b"" if i in special else piece for i, piece in enumerate(vocabulary.pieces)),
    )


def generate(
    engine: Engine,
    requests: Sequence[Request],
    done: Callable[[int], None] = lambda tokens: None,
    share: bool = True,
) -> Iterator[Generated]:
    """Answer the requests.

    Args:
        engine: what writes.
        requests: of any lengths and settings. What all of them begin with is read once, so give an exam's together.
        done: told the tokens written by each call of the device.
        share: read what all begin with once; else each prompt is read whole, which takes longer.

    Yields:
        answers in the order in which they are finished.

    Raises:
        UserError: a request that cannot be answered, before any is.
    """
    for touched in _turns(engine, requests, STEPS, share):
        done(sum(new for _, new in touched))
        for row, _ in touched:
            if row.finish:
                yield row.result()


def stream(engine: Engine, request: Request) -> Generator[str, None, Generated]:
    """Answer one request, yielding its text as it is written, in whole characters.

    What may yet become a stop string is held back until it is known. The generator's value is the `Generated`.
    """
    for touched in _turns(engine, [request], STREAMED):
        (row, _) = touched[0]
        if row.finish:
            result = row.result()
            if piece := row.text.ready(whole=True):
                yield piece
            return result
        if piece := row.text.ready():
            yield piece
    raise AssertionError("a request that never ended")


def _turns(
    engine: Engine, requests: Sequence[Request], steps: int, share: bool = True
) -> Iterator[list[tuple[Row, int]]]:
    """After each call of the device: the rows that it wrote to, with their new tokens."""
    limits = asked.check(requests, engine.config.max_position, engine.config.vocab_size)
    if not requests:
        return
    plan = make_plan(engine, requests, limits, share)
    shared = read_shared(engine, requests[0].tokens[: plan.prefix]) if plan.prefix else None
    state = empty_state(engine, plan)
    rows: list[Row | None] = [None] * plan.rows
    # The longest first: what does not fit into memory is known at once.
    waiting = sorted(range(len(requests)), key=lambda i: len(requests[i].tokens))
    filling = False
    while waiting or any(rows):
        free = [place for place, row in enumerate(rows) if row is None]
        filling = bool(waiting and (len(free) >= max(1, plan.rows // 4) or (filling and free)))
        if filling:
            most = together(engine, len(requests[waiting[-1]].tokens) - plan.prefix)
            fresh = [waiting.pop() for _ in range(min(most, len(free), len(waiting)))]
            made = [new_row(engine, i, requests[i], limits[i]) for i in fresh]
            state, tokens, logprobs = admit(engine, plan, state, shared, made, free)
            places = free[: len(made)]
            for place, row in zip(places, made, strict=True):
                rows[place] = row
        else:
            live = [row for row in rows if row]
            limit = np.int32(min(steps, max(row.limit - len(row.tokens) for row in live)))
            alive = np.array([row is not None for row in rows])
            call = engine.programs.write(engine.weights, state, shared, alive, limit, plan.how)
            state, (tokens, logprobs) = call[0], (np.asarray(part) for part in call[1:])
            places = [place for place, row in enumerate(rows) if row]
            tokens, logprobs = tokens[places], logprobs[places]
        touched = []
        for place, new, scores in zip(places, tokens, logprobs, strict=True):
            if written := rows[place]:
                touched.append((written, written.add(new, scores)))
                rows[place] = None if written.finish else written
        yield touched
