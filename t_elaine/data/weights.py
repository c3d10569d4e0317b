"""The weights that a mixture's settings lead to: what share of the tokens comes from which store, in every phase.

Weights count tokens. They come from gin (`weights`), from the SeqIO mixture that `prepare` recorded (`defaults`), or
from the stores' own sizes, tempered by language if `alpha` is given. `Replay` sets aside named shares for general text;
the other sources divide the rest. Which row comes from which store: `shares.py`. Nothing here reads a token.
"""

import difflib
import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from t_elaine import paths
from t_elaine.data.mixture import OVERLONG, PACKINGS, Mixture, Replay
from t_elaine.data.priority import priority_phases
from t_elaine.errors import UserError

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class SourceSize:
    """What the weights depend on: name, tokens of an epoch and of a row, and the languages that the store holds."""

    name: str
    tokens: int
    languages: tuple[str, ...]
    tokens_per_row: float = 1.0


def phase_weights(mixture: Mixture, sources: Sequence[SourceSize]) -> list[tuple[int, list[float], str]]:
    """Weights of every phase: (first row, token weight of each source, in words where they come from).

    Raises:
        UserError: an unknown store, a negative weight, all weights 0, a weight for a store without tokens, …
    """
    _check_choices(mixture)
    if mixture.priority is not None:
        tokens = {s.name: float(s.tokens) for s in sources}
        phases = priority_phases(mixture.priority, tokens, {s.name: s.tokens_per_row for s in sources})
        return [(row, [read.get(s.name, 0.0) for s in sources], "priority") for row, read in phases]
    weights, origin = _first_weights(mixture)
    replay = mixture.replay
    found = [(0, *_resolve(mixture, sources, weights, replay, origin, "Mixture"))]
    for i, phase in enumerate(mixture.phases):
        row = -(-phase.from_tokens // mixture.sequence_length)
        if row <= found[-1][0]:
            what = f"phase {i + 1} begins at {phase.from_tokens} tokens, not after the one before it"
            raise UserError(what, "Mixture.phases", "list the phases in ascending order of from_tokens, above 0")
        if phase.weights is not None:
            weights, origin = phase.weights, "gin"
        replay = phase.replay if phase.replay is not None else replay
        found.append((row, *_resolve(mixture, sources, weights, replay, origin, f"Mixture.phases[{i}]")))
    return found


def _check_choices(mixture: Mixture) -> None:
    for name, value, allowed in (
        ("packing", mixture.packing, PACKINGS),
        ("overlong", mixture.overlong, OVERLONG),
        ("split", mixture.split, ("train", "validation")),
    ):
        if value not in allowed:
            raise UserError(f"{name} is {value!r}", f"Mixture.{name}", f"one of {', '.join(map(repr, allowed))}")
    if mixture.max_epochs is not None and mixture.planned_tokens is None:
        what = "max_epochs needs the length of the run"
        raise UserError(what, "Mixture.planned_tokens", "set planned_tokens to the tokens of the run")
    others = (mixture.weights, mixture.defaults, mixture.alpha, mixture.max_epochs, mixture.replay, mixture.phases)
    if mixture.priority is not None and any(value not in (None, ()) for value in others):
        what = "priority says how much of each store is read: it does not go with weights, alpha, max_epochs or replay"
        raise UserError(what, "Mixture.priority", "leave the others out")
    if (mixture.alpha is not None or mixture.max_epochs is not None) and (mixture.defaults or mixture.weights):
        raise UserError("alpha and max_epochs do not go with weights or defaults", "Mixture", "leave one of them out")


def _first_weights(mixture: Mixture) -> tuple[Mapping[str, float] | None, str]:
    """(weights by name or None, where they come from)."""
    if mixture.weights is not None:
        return mixture.weights, "gin" + (f", instead of {mixture.defaults}" if mixture.defaults else "")
    if mixture.defaults is None:
        return None, ""
    path = mixture.defaults
    try:
        weights = json.loads(paths.read_text(path))["weights"]
        # Replay has its own shares: a recorded weight of such a store does not count, where one in gin is an error.
        replayed = set(mixture.replay.stores.values()) if mixture.replay else set()
        found = {str(name): float(value) for name, value in weights.items() if name not in replayed}
    except OSError as error:
        raise UserError(f"cannot read the mixture's weights: {error}", path, "run prepare first") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError("this is not a file of mixture weights", path, "run prepare again") from error
    return found, f"defaults of {path}"


def _resolve(
    mixture: Mixture,
    sources: Sequence[SourceSize],
    weights: Mapping[str, float] | None,
    replay: Replay | None,
    origin: str,
    where: str,
) -> tuple[list[float], str]:
    by_name = {s.name: s for s in sources}
    kept = replay_shares(replay, by_name, where)
    others = [s for s in sources if s.name not in kept]
    rest = 1 - sum(kept.values())
    if weights is not None:
        _check_weights(weights, by_name, {s.name for s in others}, kept, where)
        chosen = {s.name: float(weights[s.name]) for s in others}
    else:
        chosen = tempered_weights(
            [s for s in others if s.tokens],
            alpha=1.0 if mixture.alpha is None else mixture.alpha,
            max_epochs=mixture.max_epochs,
            planned_tokens=(mixture.planned_tokens or 0) * rest,
        )
        origin = "the stores' tokens" + (f"^{mixture.alpha} by language" if mixture.alpha is not None else "")
    total = math.fsum(chosen.values())
    if total <= 0:
        raise UserError("all weights are 0", f"{where}.weights", "give at least one store a positive weight")
    # The rest is divided by the weights; exact fractions of it are taken later, in `shares.py`.
    resolved = {name: value / total * rest for name, value in chosen.items()} | kept
    return [resolved.get(s.name, 0.0) for s in sources], origin


def replay_shares(replay: Replay | None, by_name: Mapping[str, SourceSize], where: str = "Mixture") -> dict[str, float]:
    """Store name → share of all tokens, from shares by language."""
    found: dict[str, float] = {}
    if replay is None:
        return found
    for language in replay.shares:
        if language not in replay.stores:
            what = f"replay has a share for {language!r} but no store"
            raise UserError(what, f"{where}.replay", f"add {language!r} to Replay.stores")
    for language, name in replay.stores.items():
        share = replay.shares.get(language, 0.0)
        _known(name, by_name, f"{where}.replay")
        if not (math.isfinite(share) and 0 <= share < 1):
            raise UserError(f"replay share of {language!r} is {share}", f"{where}.replay", "a number from 0 to below 1")
        if share and not by_name[name].tokens:
            raise UserError(f"replay store {name!r} has no tokens", f"{where}.replay", "prepare it, or give share 0")
        if language not in by_name[name].languages:
            what = f"replay store {name!r} holds no text of {language!r}, only of {', '.join(by_name[name].languages)}"
            raise UserError(what, f"{where}.replay", "name a store of that language")
        found[name] = found.get(name, 0.0) + share
    if sum(found.values()) >= 1:
        what = f"the replay shares sum to {sum(found.values()):g}"
        raise UserError(what, f"{where}.replay", "leave something for the mixture: below 1")
    return found


def _known(name: str, names: Iterable[str], where: str) -> None:
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        mend = f"did you mean {near[0]!r}?" if near else f"the stores are {', '.join(map(repr, names))}"
        raise UserError(f"no store is called {name!r}", where, mend)


def _check_weights(
    weights: Mapping[str, float],
    by_name: Mapping[str, SourceSize],
    needed: set[str],
    replayed: Mapping[str, float],
    where: str,
) -> None:
    where = f"{where}.weights"
    for name, weight in weights.items():
        _known(name, by_name, where)
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"the weight of {name!r} is {weight}", where, "weights are finite and not negative")
        if weight and not by_name[name].tokens:
            what = f"{name!r} has a weight but no tokens in this split"
            raise UserError(what, where, "prepare it again, give it weight 0, or use overlong = 'truncate'")
        if name in replayed and weight:
            what = f"{name!r} is a replay store and has a weight too"
            raise UserError(what, where, "leave its weight out: its share is the replay's")
    missing = sorted(needed - set(weights))
    if missing:
        raise UserError(f"store {missing[0]!r} has no weight", where, "give every store a weight; 0 leaves it out")


def tempered_weights(
    sources: Sequence[SourceSize], *, alpha: float, max_epochs: float | None, planned_tokens: float
) -> dict[str, float]:
    """Shares (sum 1): a language ∝ its tokens^alpha, a store within it ∝ its tokens, none above its cap of passes.

    A store of several languages is a language of its own here.
    """
    total = sum(s.tokens for s in sources)
    if not total:
        mend = "raise Mixture.sequence_length, or Mixture.overlong = 'truncate'; stores without documents: prepare them"
        raise UserError("the stores hold no tokens, or all their examples are longer than a row", "Mixture", mend)
    caps = {s.name: math.inf if max_epochs is None else max_epochs * s.tokens / planned_tokens for s in sources}
    if sum(caps.values()) < 1 - 1e-9:
        most = int((max_epochs or 0) * total)
        what = f"{total} tokens passed at most {max_epochs:g} times are {most}, the run needs {planned_tokens:.0f}"
        raise UserError(what, "Mixture.max_epochs", "plan fewer tokens, allow more epochs, or add text")
    languages: dict[tuple[str, ...], list[SourceSize]] = {}
    for source in sources:
        languages.setdefault(source.languages, []).append(source)
    shares = fill_up(
        {k: float(sum(s.tokens for s in group)) ** alpha for k, group in languages.items()},
        {k: sum(caps[s.name] for s in group) for k, group in languages.items()},
        1.0,
    )
    found: dict[str, float] = {}
    for key, group in languages.items():
        found |= fill_up({s.name: float(s.tokens) for s in group}, {s.name: caps[s.name] for s in group}, shares[key])
    return found


def fill_up(weights: Mapping[K, float], caps: Mapping[K, float], total: float) -> dict[K, float]:
    """Divide `total` in proportion to `weights`, none above its cap; what a cap cuts off goes to the others."""
    found: dict[K, float] = {}
    open_keys = list(weights)
    while open_keys:
        left = total - sum(found.values())
        scale = left / sum(weights[k] for k in open_keys)
        full = [k for k in open_keys if weights[k] * scale > caps[k]]
        if not full:
            return {k: found[k] if k in found else weights[k] * scale for k in weights}
        found |= {k: caps[k] for k in full}
        open_keys = [k for k in open_keys if k not in full]
    return {k: found[k] for k in weights}
