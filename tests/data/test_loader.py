"""Batches: equal however a run is interrupted and divided, and made of what the plan says."""

import dataclasses
import threading
from collections import Counter

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from made_up_stores import PER, make_store

from t_elaine.data.loader import Loader, open_mixture, place, prefetch, slots_of
from t_elaine.data.mixture import Mixture, Phase, Replay
from t_elaine.data.rows import plan_rows
from t_elaine.data.store import Labels, Row, ShardWriter, write_manifest
from t_elaine.data.validation import validation_rows
from t_elaine.errors import UserError

T, B, A = 16, 8, 2
RNG = np.random.default_rng(7)
LENGTHS = {name: [RNG.integers(1, 90, 30).tolist() for _ in range(4)] for name in ("a", "b", "gen")}
MIXTURE = Mixture(
    stores=(),
    weights={"a": 2, "b": 1},
    replay=Replay(stores={"en": "gen"}, shares={"en": 0.1}),
    phases=(
        Phase(from_tokens=5 * A * B * T, weights={"a": 1, "b": 4}),
        Phase(from_tokens=10 * A * B * T, weights={"a": 1, "b": 1}),
    ),
    sequence_length=T,
    batch_tokens=A * B * T,
    window_tokens=1000,
)


def stores(*names):
    return [make_store(n, LENGTHS[n], first_document=1 + 200 * i) for i, n in enumerate(LENGTHS) if n in names]


def plan(mixture=MIXTURE, names=("a", "b", "gen")):
    """A new plan each time: a resumed process shares nothing with the one before it."""
    return plan_rows(mixture, stores(*names))


def equal(one, two):
    return one.keys() == two.keys() and all(
        one[k].dtype == two[k].dtype and one[k].shape == two[k].shape and (one[k] == two[k]).all() for k in one
    )


def mesh_sharding(shape=(8, 1, 1)):
    mesh = jax.make_mesh(shape, ("replica", "fsdp", "context"), axis_types=(AxisType.Auto,) * 3)
    return NamedSharding(mesh, PartitionSpec(None, ("replica", "fsdp"), "context"))


def run_on_hosts(hosts, start, stop, accumulation):
    """Global batches of steps start … stop-1, put together from what each of `hosts` new processes loads."""
    rows = A * B // accumulation
    sharding = mesh_sharding((2, 4, 1))
    found = [{} for _ in range(start, stop)]
    held = []
    for own in np.array(jax.devices()).reshape(hosts, -1):
        slots = slots_of(sharding, (accumulation, rows, T), own.tolist())
        held += slots
        for batch, part in zip(
            found, prefetch(Loader(plan(), accumulation, rows, slots).batch, start, stop), strict=True
        ):
            for name, array in part.items():
                batch.setdefault(name, np.zeros((accumulation, rows, T), array.dtype))[:, list(slots)] = array
    assert sorted(held) == list(range(rows))
    return [{name: array.reshape(A, B, T) for name, array in batch.items()} for batch in found]


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_batches_of_a_run_resumed_twice_are_bitwise_those_of_an_uninterrupted_one(hosts):
    whole = Loader(plan(), A, B, range(B))
    reference = [whole.batch(step) for step in range(12)]  # the phase changes within
    same = [run_on_hosts(hosts, start, stop, A) for start, stop in ((0, 4), (4, 9), (9, 12))]
    # The first resume on other hosts, the second on other hosts and another accumulation.
    other = [run_on_hosts(hosts, 0, 4, A), run_on_hosts(8 // hosts, 4, 9, A), run_on_hosts(hosts, 9, 12, 1)]
    for run in (same, other):
        batches = [batch for part in run for batch in part]
        assert len(batches) == 12 and all(equal(a, b) for a, b in zip(batches, reference, strict=True))


def test_resuming_on_another_number_of_hosts_and_microbatches_gives_the_same_rows():
    one = Loader(plan(), 1, A * B, range(A * B)).batch(6)
    for accumulation in (2, 4, 16):
        rows = A * B // accumulation
        halves = [Loader(plan(), accumulation, rows, s).batch(6) for s in (range(0, rows), range(rows // 2, rows))]
        assert equal({k: v.reshape(1, A * B, T) for k, v in halves[0].items()}, one)
        last = one["tokens"].reshape(accumulation, rows, T)[:, rows // 2 :]
        assert (halves[1]["tokens"] == last).all()


def test_a_step_does_not_depend_on_the_steps_asked_for_before():
    loader = Loader(plan(), A, B, range(B))
    far = loader.batch(10**7)
    loader.batch(3)
    assert equal(loader.batch(10**7), far) and equal(Loader(plan(), A, B, range(B)).batch(10**7), far)


def test_batches_have_the_arrays_of_the_contract():
    batch = Loader(plan(), A, B, [1, 5, 6]).batch(0)
    dtypes = {k: str(v.dtype) for k, v in batch.items()}
    names = ("tokens", "targets", "segments", "positions", "groups")
    assert dtypes == dict.fromkeys(names, "int32") | {"weights": "float32"}
    assert all(v.shape == (A, 3, T) and v.flags.c_contiguous for v in batch.values())


def source_rows(of, rows):
    """The tokens of each source's rows, in the order in which the run reaches them."""
    source, number = of.locate(np.arange(rows))
    tokens = of.rows(np.arange(rows))["tokens"]
    found = {s.name: tokens[source == i] for i, s in enumerate(of.sources)}
    for i in range(len(of.sources)):
        assert (number[source == i] == np.arange((source == i).sum())).all()
    return found


def test_adding_a_source_leaves_the_other_sources_rows_and_their_order():
    bare = dataclasses.replace(MIXTURE, weights=None, replay=None, phases=())
    two, three = source_rows(plan(bare, ("a", "b")), 60), source_rows(plan(bare), 90)
    first = source_rows(plan_rows(bare, stores("a", "b", "gen")[::-1]), 90)
    for name in ("a", "b"):
        for other in (three, first):
            n = min(len(two[name]), len(other[name]))
            assert n > 15 and (two[name][:n] == other[name][:n]).all()


def test_sources_of_equal_text_have_orders_of_their_own():
    bare = dataclasses.replace(MIXTURE, weights=None, replay=None, phases=())
    twins = source_rows(plan_rows(bare, [make_store(name, LENGTHS["a"]) for name in ("a", "twin")]), 40)
    assert not (twins["a"] == twins["twin"]).all()


def test_phases_change_weights_at_their_row_and_sources_go_on_where_they_were():
    of = plan()
    borders = [0, 5 * A * B, 10 * A * B, 1000]
    weights = np.array([[0.6, 0.3, 0.1], [0.18, 0.72, 0.1], [0.45, 0.45, 0.1]])
    for start, stop, weight, phase in zip(borders[:-1], borders[1:], weights, of.phases, strict=True):
        given = of.counts(stop) - of.counts(start)
        assert np.abs(given - (stop - start) * weight).max() <= phase.shares.bound
    together = source_rows(of, 300)  # asserts that each source's rows are consecutive across the borders
    single = plan(dataclasses.replace(MIXTURE, phases=()))
    for name, rows in source_rows(single, 300).items():
        n = min(len(rows), len(together[name]))
        assert (rows[:n] == together[name][:n]).all()


def test_describe_counts_what_the_batches_hold():
    loader = Loader(plan(), A, B, range(B))
    steps, owner = 9, {name: 1 + 200 * i for i, name in enumerate(LENGTHS)}
    seen = Counter()
    for step in range(steps):
        for token in loader.batch(step)["targets"].reshape(-1).tolist():
            seen[max((n for n in owner if owner[n] <= token // PER), key=owner.__getitem__)] += 1
    found = loader.describe(steps)
    assert found["tokens"] == steps * A * B * T and found["step"] == steps
    for name, source in found["sources"].items():
        assert source["tokens"] == seen[name]
        assert source["share"] == pytest.approx(seen[name] / found["tokens"])
        assert source["epochs"] == pytest.approx(seen[name] / sum(map(sum, LENGTHS[name])))
    assert found["sources"]["b"]["weight"] == pytest.approx(0.72) and found["weights_from"] == "gin"
    assert sum(found["languages"].values()) == pytest.approx(1)
    assert loader.describe(0)["sources"]["a"]["share"] == 0.0


def test_slots_follow_the_sharding_not_the_process_number():
    sharding = mesh_sharding((2, 2, 2))
    devices = sharding.mesh.devices
    # The context axis cuts rows, not slots: both of its devices hold the same ones.
    assert slots_of(sharding, (A, B, T), devices[0, 0].tolist()) == (0, 1)
    assert slots_of(sharding, (A, B, T), [devices[1, 1, 1]]) == (6, 7)
    backwards = NamedSharding(
        jax.sharding.Mesh(np.array(jax.devices()[::-1]), ("fsdp",)), PartitionSpec(None, "fsdp", None)
    )
    assert slots_of(backwards, (A, B, T), [jax.devices()[0]]) == (7,)
    assert slots_of(sharding, (A, B, T)) == tuple(range(B))
    rows = NamedSharding(sharding.mesh, PartitionSpec("fsdp", None))
    assert slots_of(rows, (B, T), [devices[0, 1, 0]]) == (4, 5, 6, 7)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_place_makes_the_global_arrays(shape):
    sharding = mesh_sharding(shape)
    batch = Loader(plan(), A, B, range(B)).batch(2)
    placed = place(batch, sharding, B, range(B))
    for name, array in placed.items():
        assert array.sharding == sharding and (np.asarray(array) == batch[name]).all()


def test_prefetch_raises_where_the_batch_is_asked_for_and_ends_its_thread():
    def failing(step):
        if step == 2:
            raise OSError("disk gone")
        return step

    found = []
    with pytest.raises(OSError, match="disk gone"):
        for made in prefetch(failing, 0):
            found.append(made)
    assert found == [0, 1]
    iterator = prefetch(failing, 3)
    assert [next(iterator) for _ in range(3)] == [3, 4, 5]
    iterator.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]
    assert list(prefetch(failing, 5, 7)) == [5, 6] and not list(prefetch(failing, 5, 5))


def test_prefetch_is_bounded():
    asked = []

    iterator = prefetch(asked.append, 0, depth=3)
    next(iterator)
    iterator.close()
    assert max(asked) <= 3


def test_loader_refuses_a_batch_that_is_not_the_recipes():
    with pytest.raises(UserError, match=r"3 microbatches of 8 rows are not the 16 rows"):
        Loader(plan(), 3, B, range(B))
    with pytest.raises(ValueError, match="slots"):
        Loader(plan(), A, B, [8])


@pytest.mark.parametrize("max_tokens", [None, 300, 1])
def test_validation_rows_hold_each_document_once(max_tokens):
    held = [make_store(n, LENGTHS[n], first_document=1 + 200 * i, split="validation") for i, n in enumerate(LENGTHS)]
    groups = [("ja", "web text"), ("en", "textbook")]
    sets = list(validation_rows(held, T, groups, max_tokens=max_tokens))
    assert [(s.store, s.group[0]) for s in sets] == [(n, lang) for n in LENGTHS for lang in ("en", "ja")]
    for s in sets:
        rows = s.rows
        learnt = rows["weights"] > 0
        assert len(rows["tokens"]) == max(1, -(-(s.tokens - 1) // T))
        # All documents' tokens but their first, each once; nothing else.
        counts = Counter(rows["targets"][learnt].tolist())
        assert set(counts.values()) <= {1}
        shown = np.append(rows["tokens"].reshape(-1), rows["targets"].reshape(-1))
        documents = {int(t) // PER for t in shown if t >= PER}
        store = next(x for x in held if x.name == s.store)
        lengths = {}
        for block in store.blocks:
            for i, n in enumerate(np.diff(block.offsets).tolist()):
                if store.groups[block.group[i]] == s.group:
                    lengths[int(block.tokens[block.offsets[i]]) // PER] = n
        taken = dict(list(lengths.items())[: s.documents])
        assert documents == set(taken) and sum(taken.values()) == s.tokens and s.bytes == 3 * s.tokens
        assert sorted(counts) == sorted(d * PER + i for d, n in taken.items() for i in range(1, n))
        assert (rows["groups"][learnt] == groups.index(s.group)).all()
        assert s.documents + s.left_out == len(lengths)
        if max_tokens is None:
            assert not s.left_out
        else:
            assert s.tokens <= max_tokens or s.documents == 1
        again = next(
            x
            for x in validation_rows(held, T, groups, max_tokens=max_tokens)
            if x.store == s.store and x.group == s.group
        )
        assert equal(again.rows, rows)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (T, 1), (T + 1, 1), (T + 2, 2), (2 * T + 1, 2)])
def test_validation_begins_no_row_that_predicts_nothing(tokens, rows):
    held = make_store("v", [[tokens]], split="validation")
    [found] = validation_rows([held], T, held.groups)
    assert len(found.rows["tokens"]) == rows and found.rows["weights"].sum() == tokens - 1


@pytest.mark.parametrize("packing", ["split", "whole"])
def test_rows_of_a_store_on_disk(tmp_path, packing):
    labels = Labels(languages=("en", "ja"), categories=("textbook",), sources=("x",))
    folder = tmp_path / "disk"
    folder.mkdir()
    documents = {d: list(range(d * PER, d * PER + 3 + 7 * d % 31)) for d in range(1, 41)}
    shards = []
    for shard in range(3):
        writer = ShardWriter(folder / f"train-{shard}.arrow", labels, batch_tokens=100)
        for d in range(shard + 1, 41, 3) if shard < 2 else ():
            tokens = np.array(documents[d], np.uint32)
            language = "en" if d % 2 else "ja"
            spans = [(1, 3)] if d == 4 else None
            writer.add(Row(tokens=tokens, id=str(d), language=language, category="textbook", source="x",
                           bytes=d, text_hash=d, trained=spans))  # fmt: skip
        path = writer.close()
        shards.append({"file": path.name, "split": "train", "size": path.stat().st_size, "sha256": ""})
    groups = [["en", "textbook"], ["ja", "textbook"]]
    write_manifest(
        folder,
        {"name": "disk", "groups": groups, "shards": shards, "vocabulary": {"sha256": "v" * 64, "pad": None, "eos": 2}},
    )
    mixture = Mixture(stores=(str(folder),), sequence_length=40, batch_tokens=40 * 4, packing=packing)
    of = open_mixture(mixture)
    kept = [d for d in documents if d % 3]
    tokens = sum(len(documents[d]) for d in kept)
    assert of.sources[0].rows.tokens == tokens and of.groups == [("en", "textbook"), ("ja", "textbook")]
    epochs = 1 if packing == "whole" else 40
    rows = int(of.sources[0].rows.rows_per_epoch) if packing == "whole" else tokens
    batch = of.rows(np.arange(rows))
    learnt = Counter(batch["targets"][batch["weights"] > 0].tolist())
    expected = {t for d in kept for t in documents[d][1:]} - set(documents[4][3:])
    assert learnt == Counter(dict.fromkeys(expected, epochs))
    real = batch["weights"] > 0
    assert (batch["groups"][real] == np.where(batch["targets"][real] // PER % 2, 0, 1)).all()


def test_no_store_is_refused():
    with pytest.raises(UserError, match="names no store"):
        open_mixture(dataclasses.replace(MIXTURE, stores=()))
    with pytest.raises(UserError, match="no such store"):
        open_mixture(dataclasses.replace(MIXTURE, stores=("nowhere/at/all",)))
