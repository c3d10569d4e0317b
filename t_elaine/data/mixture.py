"""Settings of what a run reads: stores, weights, phases, replay, and the batch that recipe and hardware share.

Recipes own sequence length and global batch in tokens, hardware files rows per device; accumulation follows. The
weights that the settings lead to are worked out in `weights.py`, rows in `rows.py`; nothing here opens a store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from t_elaine.data.order import WINDOW_TOKENS
from t_elaine.errors import UserError

PACKINGS = ("split", "whole")
OVERLONG = ("drop", "truncate")


@dataclass(frozen=True, kw_only=True)
class Replay:
    """General text mixed in against forgetting: for each language a store and its share of all tokens of the run.

    Attributes:
        stores: language → name of the store that holds its general text. These stores take no part in the weights.
        shares: language → share of all tokens, together below 1; a language left out has none.
    """

    stores: Mapping[str, str]
    shares: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Other weights from a token count on. Every source goes on where it was.

    Attributes:
        from_tokens: tokens of the run (rows × sequence length) after which the phase begins, rounded up to a row.
        weights: as in `Mixture`; None: as before.
        replay: as in `Mixture`; None: as before. One without shares ends the replay.
    """

    from_tokens: int
    weights: Mapping[str, float] | None = None
    replay: Replay | None = None


@dataclass(frozen=True, kw_only=True)
class Priority:
    """Which stores come early and which late, where each is passed a stated number of times (HuatuoGPT-II, Apollo).

    Attributes:
        weights: store name → priority β: the next token comes from store i with probability ∝ β_i · what is left of it.
        passes: store name → epochs of it; 1 where it is not named.
        phases: steps in which the shares change over the run.
    """

    weights: Mapping[str, float]
    passes: Mapping[str, float] | None = None
    phases: int = 64


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What a run reads.

    Attributes:
        stores: folders of prepared stores; a store's name is its manifest's.
        weights: store name → share of the tokens (any scale; every store must be named, 0 leaves one out). None: from
            `defaults`, else in proportion to the stores' tokens.
        defaults: file of a SeqIO mixture's default weights that `prepare` wrote (mixtures/<name>.json).
        alpha: with neither weights nor defaults: a language's share ∝ tokens^alpha, within it ∝ tokens; 1 or None is no
            change, 0.7 lifts the small languages (recipe elaine_cpt).
        max_epochs: likewise, with `planned_tokens`: no store is passed more often than this; the excess goes to other
            stores of its language, then to other languages. Replay stores are left as they are.
        planned_tokens: length of the run in tokens; only `max_epochs` needs it.
        replay: general text.
        phases: other weights from later tokens on.
        priority: in place of weights, defaults, alpha, replay and phases: an order of the stores.
        sequence_length: T, inputs of a row.
        batch_tokens: tokens of a global batch, a multiple of T.
        seed: order of the documents; each source's is derived from this and its name.
        packing: "split" (documents cut at row ends, none lost) or "whole" (several whole documents a row).
        overlong: "whole" only: documents of more than T+1 tokens are dropped or truncated; either is counted.
        conversations: refuse stores where none of them says which tokens are trained, as stores of conversations do.
        window_tokens: documents are shuffled within windows of about this many tokens (and one document for each 512).
        split: which split of the stores.
        cache_gb: GB of memory for what is read of stores in an object store; 0.54 for each of them reads nothing twice.
    """

    stores: Sequence[str]
    weights: Mapping[str, float] | None = None
    defaults: str | None = None
    alpha: float | None = None
    max_epochs: float | None = None
    planned_tokens: int | None = None
    replay: Replay | None = None
    phases: Sequence[Phase] = ()
    priority: Priority | None = None
    sequence_length: int
    batch_tokens: int
    seed: int = 0
    packing: str = "split"
    overlong: str = "drop"
    conversations: bool = False
    window_tokens: int = WINDOW_TOKENS
    split: str = "train"
    cache_gb: float = 4.0


def rows_per_batch(mixture: Mixture) -> int:
    """Rows of a global batch.

    Raises:
        UserError: batch_tokens is no multiple of sequence_length, or a number is not positive.
    """
    tokens, length = mixture.batch_tokens, mixture.sequence_length
    for name, value in (
        ("sequence_length", length),
        ("batch_tokens", tokens),
        ("window_tokens", mixture.window_tokens),
    ):
        if value < 1:
            raise UserError(f"{name} is {value}", f"Mixture.{name}", "give a positive number")
    if tokens % length:
        near = [n * length for n in (tokens // length, tokens // length + 1) if n]
        what = f"a batch of {tokens} tokens is no whole number of rows of {length}"
        raise UserError(what, "Mixture.batch_tokens", f"batch_tokens = {' or '.join(map(str, near))}")
    return tokens // length


def accumulation(mixture: Mixture, rows_per_device: int, devices: int) -> int:
    """Microbatches A of a step: global batch = A × rows_per_device × devices.

    Args:
        devices: over which the batch axis is divided (the product of the mesh's batch axes, not of all its axes).

    Raises:
        UserError: it does not divide; names the values that would.
    """
    rows = rows_per_batch(mixture)
    if rows_per_device < 1 or rows % (rows_per_device * devices):
        per_device = rows // devices if rows % devices == 0 else 0
        fits = [n for n in range(1, per_device + 1) if per_device % n == 0]
        unit = max(1, rows_per_device) * devices * mixture.sequence_length
        near = [n * unit for n in (mixture.batch_tokens // unit, mixture.batch_tokens // unit + 1) if n]
        mend = f"batch_tokens = {' or '.join(map(str, near))}"
        if fits:
            mend = f"train.rows_per_device = {', '.join(map(str, fits))}; or {mend}"
        what = (
            f"batch_tokens {mixture.batch_tokens} / sequence_length {mixture.sequence_length} = {rows} rows, which do "
            f"not divide into microbatches of {rows_per_device} rows × {devices} devices"
        )
        raise UserError(what, "Mixture.batch_tokens and train.rows_per_device", mend)
    return rows // (rows_per_device * devices)
