"""Weights: what share of the tokens comes from where, exactly, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_stores import make_store

from t_elaine.data.mixture import Mixture, Phase, Priority, Replay, accumulation, rows_per_batch
from t_elaine.data.priority import priority_phases
from t_elaine.data.rows import plan_rows
from t_elaine.data.shares import make_shares
from t_elaine.data.weights import SourceSize, fill_up, phase_weights, tempered_weights
from t_elaine.errors import UserError

MIXTURE = Mixture(stores=(), sequence_length=8, batch_tokens=64)


def with_(**changes):
    return dataclasses.replace(MIXTURE, **changes)


def size(name, tokens, *languages):
    return SourceSize(name=name, tokens=tokens, languages=languages or ("en",))


def names(n):
    return [f"s{i}" for i in range(n)]


weights_of_sources = st.lists(st.floats(0.001, 1000) | st.just(0.0), min_size=1, max_size=12).filter(any)


@settings(deadline=None, max_examples=80)
@given(weights_of_sources, st.integers(0, 2**40))
def test_weights_are_realised_within_the_stated_bound_at_every_row(weights, start):
    shares = make_shares(weights, names(len(weights)))
    exact = np.array(weights) / sum(weights)
    source, number = shares.assign(np.arange(start, start + 300))
    count = shares.counts(start)
    assert count.sum() == start
    for row, (s, n) in enumerate(zip(source, number, strict=True), start):
        assert n == count[s]
        count[s] += 1
        # 2^-32 a level of the tree: what the integer shares lack of the weights.
        assert np.abs(count - exact * (row + 1)).max() <= shares.bound + (row + 1) * len(weights) * 2.0**-33 + 1e-6
    assert (count == shares.counts(start + 300)).all()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 16, 31])
def test_equal_weights_are_realised_within_one_row(n):
    assert make_shares([0.1] * n, names(n)).bound <= 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=40))
def test_the_bound_stays_below_two_rows(weights):
    assert make_shares(weights, names(len(weights))).bound < 2


def test_two_sources_alternate_as_their_weights_say():
    source, number = make_shares([3, 1], ["a", "b"]).assign(np.arange(8))
    assert np.bincount(source).tolist() == [6, 2]
    assert number[source == 0].tolist() == list(range(6)) and number[source == 1].tolist() == [0, 1]
    assert max(len(run) for run in "".join(map(str, source)).split("1")) <= 3


def test_a_negligible_weight_is_refused_rather_than_lost():
    with pytest.raises(UserError, match=r"'s1' is too small"):
        make_shares([1, 1e-12], names(2))


def test_weights_left_out_are_the_stores_tokens():
    [(row, weights, origin)] = phase_weights(MIXTURE, [size("a", 300), size("b", 100), size("empty", 0)])
    assert row == 0 and weights == [0.75, 0.25, 0.0] and origin == "the stores' tokens"


def test_weights_have_any_scale():
    [(_, weights, origin)] = phase_weights(with_(weights={"a": 30, "b": 10}), [size("a", 5), size("b", 9999)])
    assert weights == [0.75, 0.25] and origin == "gin"


def test_temperature_lifts_small_languages_and_keeps_proportions_within_one():
    sources = [size("en1", 8000), size("en2", 2000), size("ja", 1000, "ja")]
    found = tempered_weights(sources, alpha=0.7, max_epochs=None, planned_tokens=0)
    assert found["en1"] / found["en2"] == pytest.approx(4)
    assert (found["en1"] + found["en2"]) / found["ja"] == pytest.approx(10**0.7)
    assert sum(found.values()) == pytest.approx(1)


def test_no_store_is_passed_more_often_than_max_epochs():
    sources = [size("en1", 8000), size("en2", 2000), size("ja1", 500, "ja"), size("ja2", 100, "ja")]
    found = tempered_weights(sources, alpha=0.0, max_epochs=3, planned_tokens=12000)
    epochs = {s.name: found[s.name] * 12000 / s.tokens for s in sources}
    assert epochs["ja1"] == pytest.approx(3) and epochs["ja2"] == pytest.approx(3)
    assert found["en1"] / found["en2"] == pytest.approx(4)
    assert sum(found.values()) == pytest.approx(1)
    with pytest.raises(UserError, match=r"10600 tokens passed at most 3 times are 31800"):
        tempered_weights(sources, alpha=0.7, max_epochs=3, planned_tokens=32000)


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 2)), min_size=1, max_size=8), st.floats(0.01, 0.99))
def test_fill_up_keeps_caps_total_and_proportions(pairs, part):
    weights, caps = ({i: p[j] for i, p in enumerate(pairs)} for j in (0, 1))
    total = part * sum(caps.values())
    found = fill_up(weights, caps, total)
    assert sum(found.values()) == pytest.approx(total)
    assert all(found[i] <= caps[i] * (1 + 1e-12) for i in found)
    scale = {round(found[i] / weights[i], 9) for i in found if found[i] < caps[i] * (1 - 1e-9)}
    assert len(scale) <= 1 or max(scale) / min(scale) < 1 + 1e-6


def test_replay_takes_its_share_of_all_tokens_per_language():
    sources = [size("pubmed", 900), size("ja_text", 100, "ja"), size("gen_en", 50), size("gen_ja", 50, "ja")]
    replay = Replay(stores={"en": "gen_en", "ja": "gen_ja"}, shares={"en": 0.06, "ja": 0.04})
    [(_, weights, _)] = phase_weights(with_(weights={"pubmed": 3, "ja_text": 1}, replay=replay), sources)
    assert weights == pytest.approx([0.675, 0.225, 0.06, 0.04])
    [(_, weights, _)] = phase_weights(with_(replay=replay), sources)
    assert weights == pytest.approx([0.81, 0.09, 0.06, 0.04])


@pytest.mark.parametrize(
    ("replay", "message"),
    [
        (Replay(stores={}, shares={"en": 0.1}), "no store"),
        (Replay(stores={"en": "gen"}, shares={"en": 1.5}), "is 1.5"),
        (Replay(stores={"en": "gn"}, shares={"en": 0.1}), "did you mean 'gen'"),
        (Replay(stores={"ja": "gen"}, shares={"ja": 0.1}), "holds no text of 'ja'"),
        (Replay(stores={"en": "gen", "zh": "gen_zh"}, shares={"en": 0.6, "zh": 0.5}), "sum to 1.1"),
        (Replay(stores={"en": "empty"}, shares={"en": 0.1}), "no tokens"),
        (Replay(stores={"en": "a"}, shares={"en": 0.1}), "has a weight too"),
    ],
)
def test_replay_refusals(replay, message):
    sources = [size("a", 10), size("gen", 10), size("gen_zh", 10, "zh"), size("empty", 0)]
    weights = {"a": 1, "gen": 0, "gen_zh": 0, "empty": 0}
    with pytest.raises(UserError, match=message):
        phase_weights(with_(weights=weights, replay=replay), sources)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"pubmde": 1, "books": 1, "void": 0}, "did you mean 'pubmed'"),
        ({"pubmed": -1, "books": 1, "void": 0}, "'pubmed' is -1"),
        ({"pubmed": float("nan"), "books": 1, "void": 0}, "is nan"),
        ({"pubmed": 0, "books": 0, "void": 0}, "all weights are 0"),
        ({"pubmed": 1, "books": 1, "void": 1}, "'void' has a weight but no tokens"),
        ({"pubmed": 1, "void": 0}, "'books' has no weight"),
    ],
)
def test_weight_refusals(weights, message):
    with pytest.raises(UserError, match=message):
        phase_weights(with_(weights=weights), [size("pubmed", 10), size("books", 10), size("void", 0)])


def test_defaults_are_read_and_gin_overrides_them(tmp_path):
    path = tmp_path / "cpt.json"
    path.write_text(json.dumps({"name": "cpt", "weights": {"a": 3.0, "b": 1.0}}), encoding="utf-8")
    sources = [size("a", 10), size("b", 10)]
    [(_, weights, origin)] = phase_weights(with_(defaults=str(path)), sources)
    assert weights == [0.75, 0.25] and str(path) in origin
    [(_, weights, origin)] = phase_weights(with_(defaults=str(path), weights={"a": 1, "b": 1}), sources)
    assert weights == [0.5, 0.5] and origin.startswith("gin, instead of")
    replay = Replay(stores={"en": "b"}, shares={"en": 0.1})
    [(_, weights, _)] = phase_weights(with_(defaults=str(path), replay=replay), sources)
    assert weights == pytest.approx([0.9, 0.1])
    with pytest.raises(UserError, match="cannot read"):
        phase_weights(with_(defaults=str(tmp_path / "none.json")), sources)
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match="not a file of mixture weights"):
        phase_weights(with_(defaults=str(path)), sources)


def test_phases_begin_at_their_tokens_and_keep_what_they_do_not_change():
    sources = [size("a", 10), size("b", 10), size("gen", 10)]
    replay = Replay(stores={"en": "gen"}, shares={"en": 0.1})
    phases = (
        Phase(from_tokens=81, weights={"a": 0, "b": 1}),
        Phase(from_tokens=160, replay=dataclasses.replace(replay, shares={})),
    )
    found = phase_weights(with_(weights={"a": 1, "b": 1}, replay=replay, phases=phases), sources)
    assert [row for row, _, _ in found] == [0, 11, 20]
    assert [w for _, w, _ in found] == [pytest.approx(w) for w in ([0.45, 0.45, 0.1], [0, 0.9, 0.1], [0, 1, 0])]
    with pytest.raises(UserError, match="not after the one before"):
        phase_weights(with_(phases=phases[::-1]), sources)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": "spilt"}, "packing is 'spilt'"),
        ({"overlong": "cut"}, "overlong is 'cut'"),
        ({"max_epochs": 3}, "needs the length of the run"),
        ({"defaults": "x.json", "alpha": 0.7}, "do not go with weights"),
        ({"weights": {"a": 1}, "max_epochs": 3, "planned_tokens": 9}, "do not go with weights"),
    ],
)
def test_setting_refusals(changes, message):
    with pytest.raises(UserError, match=message):
        phase_weights(with_(**changes), [size("a", 10)])


def test_batch_and_accumulation_divide_or_say_what_would():
    assert rows_per_batch(with_(sequence_length=4096, batch_tokens=1 << 20)) == 256
    assert accumulation(with_(sequence_length=4096, batch_tokens=1 << 20), rows_per_device=2, devices=8) == 16
    with pytest.raises(UserError, match=r"batch_tokens = 96 or 104") as caught:
        rows_per_batch(with_(batch_tokens=100))
    assert "100 tokens" in caught.value.what and "rows of 8" in caught.value.what
    with pytest.raises(UserError) as caught:
        accumulation(with_(batch_tokens=8 * 24), rows_per_device=5, devices=4)
    with pytest.raises(UserError) as caught:
        accumulation(with_(batch_tokens=8 * 24), rows_per_device=5, devices=4)
    assert "train.rows_per_device" in caught.value.where
    assert caught.value.mend.startswith("train.rows_per_device = 1, 2, 3, 6; or batch_tokens = ")
    assert "192" in caught.value.what and "5 rows × 4 devices" in caught.value.what
    assert "1, 2, 3, 6" in caught.value.mend and "160 or 320" in caught.value.mend
    for rows in (1, 2, 3, 6):
        assert accumulation(with_(batch_tokens=8 * 24), rows_per_device=rows, devices=4) == 6 // rows
    with pytest.raises(UserError, match="sequence_length is 0"):
        rows_per_batch(with_(sequence_length=0))


def test_weights_count_tokens_where_rows_are_padded():
    # A row of 17 tokens holds one document of 10 or one of 16: the first source's rows bring fewer tokens.
    stores = [make_store("short", [[10] * 50]), make_store("long", [[16] * 50], first_document=500)]
    plan = plan_rows(
        with_(sequence_length=16, batch_tokens=16, packing="whole", weights={"short": 1, "long": 1}), stores
    )
    shares = plan.describe(2600)["sources"]
    assert shares["short"]["share"] == pytest.approx(0.5, abs=1e-3)
    assert shares["short"]["rows"] == 1600 and shares["long"]["rows"] == 1000


def test_stores_that_do_not_go_together_are_refused():
    one, two = make_store("a", [[5]]), make_store("b", [[5]], vocabulary={"sha256": "w" * 64, "pad": 0})
    with pytest.raises(UserError, match=r"'a' and 'b' were made with different vocabularies"):
        plan_rows(MIXTURE, [one, two])
    with pytest.raises(UserError, match="two stores are called 'a'"):
        plan_rows(MIXTURE, [one, one])


def test_priority_reads_every_store_as_often_as_it_is_meant_to_and_the_urgent_first():
    lengths = [[40] * 60]
    stores = [make_store(name, lengths, first_document=1 + 100 * i) for i, name in enumerate(("web", "books", "sft"))]
    priority = Priority(weights={"web": 32, "books": 8, "sft": 1}, passes={"sft": 3}, phases=16)
    mixture = dataclasses.replace(MIXTURE, stores=("a", "b", "c"), priority=priority)
    plan = plan_rows(mixture, stores)
    rows = 5 * 2400 // 8
    epochs = {name: source["epochs"] for name, source in plan.describe(rows)["sources"].items()}
    assert epochs == pytest.approx({"web": 1, "books": 1, "sft": 3}, abs=0.02)
    early = plan.describe(rows // 5)["sources"]
    assert early["web"]["share"] > 0.6 > early["books"]["share"] > early["sft"]["share"] - 0.1
    late = plan.counts(rows) - plan.counts(rows - rows // 5)
    assert late[2] == late.sum()
    # The law itself: at every phase's end ln(left of i / all of i) is proportional to i's priority.
    phases = priority_phases(
        priority, {"web": 2400.0, "books": 2400.0, "sft": 2400.0}, dict.fromkeys(priority.weights, 8.0)
    )
    read = np.cumsum([[part[name] for name in ("web", "books", "sft")] for _, part in phases], axis=0)[:2]
    logs = np.log1p(-read / [2400, 2400, 7200])
    assert np.allclose(logs / [32, 8, 1], logs[:, 2:], rtol=1e-4)


@pytest.mark.parametrize(
    ("priority", "more", "told"),
    [
        ({"weights": {"s": 1.0, "t": 2.0}}, {}, "no store is called 't'"),
        ({"weights": {}}, {}, "store 's' has no priority"),
        ({"weights": {"s": 0.0}}, {}, "the priority of 's' is 0.0"),
        ({"weights": {"s": 1.0}, "passes": {"s": -1.0}}, {}, "the passes of 's' is -1.0"),
        ({"weights": {"s": 1.0}}, {"alpha": 0.7}, "does not go with"),
    ],
)
def test_priorities_that_make_no_sense_are_refused(priority, more, told):
    mixture = dataclasses.replace(MIXTURE, stores=("a",), priority=Priority(**priority), **more)
    with pytest.raises(UserError, match=told):
        plan_rows(mixture, [make_store("s", [[40] * 6])])
