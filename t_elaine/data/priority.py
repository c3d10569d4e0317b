"""Priority sampling: sources of high priority early, the others late, each passed as often as it is meant to be.

HuatuoGPT-II's one-stage training draws the next example from source i with probability ∝ β_i n_i, where n_i is what is
left of it (FreedomIntelligence/HuatuoGPT-II adaption/one_stage_training/data_process.py; Apollo does the same). Drawn
so, what is left falls on average as dn_i/dt = −β_i n_i / Σ_j β_j n_j, that is n_i(s) = N_i e^(−β_i s), with an s that
grows with the tokens read. Here this average is the plan itself: phases of equal length, in each the exact share of
every source, so that a run can go on from any row. They count examples, this counts tokens.
"""

import math
from collections.abc import Mapping, Sequence

from t_elaine.data.mixture import Priority
from t_elaine.errors import UserError

WHERE = "Mixture.priority"


def priority_phases(
    priority: Priority, tokens: Mapping[str, float], row: Mapping[str, float]
) -> list[tuple[int, dict[str, float]]]:
    """(first row, tokens of each source in the phase) of every phase, until all is read.

    Args:
        priority: settings.
        tokens: source → tokens of an epoch.
        row: source → tokens that a row of it brings.

    Raises:
        UserError: a source without priority, or with one that is not positive; an unknown name.
    """
    _check(priority, tokens)
    passes = priority.passes or {}
    beta = {name: float(priority.weights[name]) for name in tokens}
    whole = {name: count * float(passes.get(name, 1.0)) for name, count in tokens.items()}
    whole = {name: count for name, count in whole.items() if count}
    rows = sum(count / row[name] for name, count in whole.items())
    pieces = max(1, min(priority.phases, int(rows)))
    phases: list[tuple[int, dict[str, float]]] = []
    left, at = dict(whole), 0.0
    for piece in range(1, pieces + 1):
        rest = sum(whole.values()) * (1 - piece / pieces)
        now = _left_when(whole, beta, rest) if piece < pieces else dict.fromkeys(whole, 0.0)
        # The last crumbs of a source that is as good as read would be less than a row.
        least = 1e-6 * sum(whole.values()) / pieces
        read = {name: left[name] - now[name] if left[name] - now[name] > least else 0.0 for name in whole}
        phases.append((math.ceil(at - 1e-9), read))
        at += sum(count / row[name] for name, count in read.items())
        left = now
    return phases


def _left_when(whole: Mapping[str, float], beta: Mapping[str, float], rest: float) -> dict[str, float]:
    """What is left of each source when `rest` is left of all, by halving intervals of s."""
    lowest = min(beta[name] for name in whole)
    low, high = 0.0, math.log(sum(whole.values()) / rest) / lowest
    for _ in range(80):
        middle = (low + high) / 2
        if sum(count * math.exp(-beta[name] * middle) for name, count in whole.items()) > rest:
            low = middle
        else:
            high = middle
    return {name: count * math.exp(-beta[name] * high) for name, count in whole.items()}


def _check(priority: Priority, names: Sequence[str] | Mapping[str, float]) -> None:
    for given in (*priority.weights, *(priority.passes or ())):
        if given not in names:
            raise UserError(f"no store is called {given!r}", WHERE, f"the stores are {', '.join(map(repr, names))}")
    missing = sorted(set(names) - set(priority.weights))
    if missing:
        raise UserError(f"store {missing[0]!r} has no priority", WHERE, "give every store one")
    for kind, values in (("priority", priority.weights), ("passes", priority.passes or {})):
        for name, value in values.items():
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"the {kind} of {name!r} is {value}", WHERE, "give a positive number")
