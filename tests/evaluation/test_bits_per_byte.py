"""Bits-per-byte equals what a plain loop over documents gives, whatever is batched with what."""

from math import log
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.data.store import open_store, read_manifest, write_manifest
from t_elaine.errors import UserError
from t_elaine.evaluation import bits_per_byte, engines
from t_elaine.evaluation.bits_per_byte import Document, Held
from t_elaine.evaluation.engines import Engine, Model
from t_elaine.model import llama
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig, make_mesh
from tests.evaluation.making import TEXTS, make_run, make_store, make_vocabulary

COMPUTE = ComputeConfig(dtype="float32", remat="none", loss_chunk=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("judged")
    vocabulary = make_vocabulary(folder / "vocabulary")
    return engines.open_model(str(make_run(folder / "run", vocabulary)))


def engine_of(model: Model, batch_rows: int, length: int, mesh: MeshConfig | None = None) -> Engine:
    devices = jax.devices()[:1] if mesh is None else jax.devices()
    placed = make_mesh(mesh or MeshConfig(), devices)
    return engines.make_engine(model.load(placed), model.config, COMPUTE, placed, batch_rows=batch_rows, length=length)


def measured(engine: Engine, model: Model, held: list[Document]) -> Held:
    special = np.isin(np.arange(model.vocabulary.size), model.vocabulary.special_ids)
    return bits_per_byte.measure(engine, "store", held, special, model.vocabulary.byte_lengths())


def plain_nats(model: Model, tokens: np.ndarray, length: int, counted: np.ndarray) -> float:
    """One document by the definition: each piece alone, log-softmax of whole logits, one target at a time."""
    params = model.load(make_mesh(MeshConfig(), jax.devices()[:1]))
    whole = jax.jit(lambda ids: llama.logits(params, model.config, COMPUTE, ids))
    nats, start = 0.0, 0
    while start + 1 < len(tokens):
        piece = tokens[start : start + length + 1].astype(np.int32)
        logits = whole(np.pad(piece[:-1], (0, length + 1 - len(piece)))[None])  # causal: what follows is not seen
        log_p = np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)[0]
        for i in range(len(piece) - 1):
            if counted[start + i + 1]:
                nats -= log_p[i, piece[i + 1]]
        start += length
    return nats


def test_equals_a_plain_loop_with_documents_longer_than_a_row(model: Model, tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "held", model.vocabulary))
    held = bits_per_byte.documents(store, "validation")
    length = 24
    assert max(len(d.tokens) for d in held) > 2 * length, "no document is cut"
    found = measured(engine_of(model, 3, length), model, held)
    for i, document in enumerate(held):
        counted = ~np.isin(document.tokens, model.vocabulary.special_ids)
        assert counted.sum() == len(document.tokens) - 2, "BOS and EOS are not counted"
        assert found.tokens[i] == counted[1:].sum()
        np.testing.assert_allclose(found.nats[i], plain_nats(model, document.tokens, length, counted), rtol=1e-5)
    texts = [text for members in TEXTS.values() for text in members]
    assert found.bytes.tolist() == [len(text.encode()) for text in texts], "bytes of the text, not of the tokens"
    assert found.unpredicted == 0


@pytest.mark.slow
def test_same_whatever_runs_at_a_time_and_on_eight_devices(model: Model, tmp_path: Path) -> None:
    held = bits_per_byte.documents(open_store(make_store(tmp_path / "held", model.vocabulary)), "validation")
    first = measured(engine_of(model, 1, 32), model, held)
    for engine in (engine_of(model, 7, 32), engine_of(model, 8, 32, MeshConfig(fsdp=4, tensor=2))):
        again = measured(engine, model, held)
        np.testing.assert_allclose(again.nats, first.nats, rtol=1e-5)
        np.testing.assert_array_equal(again.tokens, first.tokens)


def test_hand_computed() -> None:
    """Two documents, a uniform model over 8 ids: 3 bits a token."""

    def uniform(rows: dict[str, np.ndarray]) -> jax.Array:
        return jnp.full(rows["tokens"].shape, log(8), jnp.float32)

    engine = Engine(rows=2, length=4, run=uniform)
    special = np.zeros(8, bool)
    special[0] = True
    held = [
        Document(tokens=np.array([0, 1, 2, 3, 4, 5, 0]), scored=None, group=("en", "a"), bytes=10, text_hash=1),
        Document(tokens=np.array([1, 2]), scored=None, group=("en", "a"), bytes=4, text_hash=2),
        Document(tokens=np.array([3]), scored=None, group=("en", "a"), bytes=1, text_hash=3),
    ]
    found = bits_per_byte.measure(engine, "s", held, special, np.full(8, 2, np.int32))
    # 5 text tokens after BOS; one after the unpredicted first; none.
    assert found.tokens.tolist() == [5, 1, 0] and found.bytes.tolist() == [10, 4, 1] and found.unpredicted == 2
    assert bits_per_byte.bits(found.nats[0], 10) == pytest.approx(1.5)
    assert bits_per_byte.bits(found.nats[1], 4) == pytest.approx(0.75)


def test_conversations_count_their_trained_tokens_and_those_tokens_bytes() -> None:
    engine = Engine(rows=1, length=8, run=lambda rows: jnp.ones(rows["tokens"].shape, jnp.float32))
    scored = np.array([False, False, True, True, False, True])
    document = Document(tokens=np.array([0, 1, 2, 3, 4, 0]), scored=scored, group=("en", "a"), bytes=99, text_hash=1)
    found = bits_per_byte.measure(engine, "s", [document], np.arange(8) == 0, np.arange(8).astype(np.int32))
    assert found.nats[0] == 2 and found.tokens[0] == 2 and found.bytes[0] == 2 + 3


def test_spans_are_read_from_the_store(model: Model, tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "chat", model.vocabulary, trained=[(1, 3), (5, 6)]))
    for document in bits_per_byte.documents(store, "validation"):
        assert document.scored is not None and np.flatnonzero(document.scored).tolist() == [1, 2, 5]


@pytest.mark.parametrize("n", [1, 2, 5, 6, 10, 11, 12])
def test_each_token_but_the_first_is_a_target_once(n: int) -> None:
    tokens = np.arange(100, 100 + n)
    pieces = bits_per_byte.cut(tokens, 5)
    assert all(len(piece) <= 6 for piece in pieces)
    targets = np.concatenate([piece[1:] for piece in pieces])
    np.testing.assert_array_equal(targets, tokens[1:])


def test_a_limit_is_the_same_sample_in_any_file_order(model: Model, tmp_path: Path) -> None:
    one = open_store(make_store(tmp_path / "one", model.vocabulary))
    held = bits_per_byte.documents(one, "validation", limit=3)
    assert len(held) == 3
    every = bits_per_byte.documents(one, "validation")
    assert {d.text_hash for d in held} == set(sorted(d.text_hash for d in every)[:3])


def test_a_store_without_held_out_text_says_so(model: Model, tmp_path: Path) -> None:
    folder = make_store(tmp_path / "held", model.vocabulary)
    with pytest.raises(UserError, match="no document in its train split"):
        bits_per_byte.documents(open_store(folder), "train")
    manifest = read_manifest(folder)
    write_manifest(folder, manifest | {"shards": [{**shard, "split": "train"} for shard in manifest["shards"]]})
    with pytest.raises(UserError, match="no document in its validation split") as caught:
        bits_per_byte.documents(open_store(folder), "validation")
    assert caught.value.mend == "the store has 6 documents: prepare it with a larger validation_share"


def test_rows_longer_than_the_context_are_refused(model: Model) -> None:
    with pytest.raises(UserError, match="sequence_length is 512"):
        engine_of(model, 1, 512)
