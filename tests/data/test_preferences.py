"""Preferences: forms become two dialogues, bad records go aside with file and line, rows hold pairs undivided."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_tasks as small
from made_up_stores import FakeBlock, FakeStore
from rich.console import Console
from small_vocabularies import SAMPLE_VOCABULARY, train_byte_level

from t_elaine.data.chat import ASSISTANT, SYSTEM, USER, Turn
from t_elaine.data.identity import Making
from t_elaine.data.mixture import Mixture
from t_elaine.data.pair_rows import fit, spans
from t_elaine.data.pair_sets import pair_sets
from t_elaine.data.preference_forms import preferences
from t_elaine.data.rows import open_mixture, plan_rows
from t_elaine.data.store import Store, open_store
from t_elaine.data.validation import validation_rows
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.data.workers import prepare_stores
from t_elaine.errors import UserError


def say(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


ASKED, GOOD, BAD = ("user", "熱が出ました"), ("assistant", "休みましょう"), ("assistant", "走りましょう")
WHOLE = (Turn(USER, "熱が出ました"), Turn(ASSISTANT, "休みましょう"))
EARLIER = (("user", "你好"), ("assistant", "你好，请说"))
HH = "\n\nHuman: Hello\n\nAssistant: Yes?\n\nHuman: 熱が出ました\n\nAssistant: "
FORMS: dict[str, tuple[dict[str, Any], tuple[Turn, ...]]] = {
    "texts": ({"prompt": " 熱が出ました\n", "chosen": "休みましょう ", "rejected": "走りましょう"}, WHOLE),
    "question": ({"question": "熱が出ました", "chosen": "休みましょう", "rejected": "走りましょう"}, WHOLE),
    "explicit messages": ({"prompt": say(ASKED), "chosen": say(GOOD), "rejected": say(BAD)}, WHOLE),
    "implicit messages": ({"chosen": say(ASKED, GOOD), "rejected": say(ASKED, BAD)}, WHOLE),
    "prompt said twice": ({"prompt": "熱が出ました", "chosen": say(ASKED, GOOD), "rejected": say(ASKED, BAD)}, WHOLE),
    "messages": (
        {"messages": say(*EARLIER, ASKED), "chosen": "休みましょう", "rejected": say(BAD)},
        (Turn(USER, "你好"), Turn(ASSISTANT, "你好，请说"), *WHOLE),
    ),
    "system": (
        {"system": "Be brief.", "prompt": "熱が出ました", "chosen": "休みましょう", "rejected": "走りましょう"},
        (Turn(SYSTEM, "Be brief."), *WHOLE),
    ),
    "system on one side": (
        {
            "system": "Be brief.",
            "prompt": "熱が出ました",
            "chosen": say(ASKED, GOOD),
            "rejected": say(("system", "Be brief."), ASKED, BAD),
        },
        (Turn(SYSTEM, "Be brief."), *WHOLE),
    ),
    "instruction": (
        {"instruction": "熱が出ました", "input": "38度", "chosen": "休みましょう", "rejected": "走りましょう"},
        (Turn(USER, "熱が出ました", "38度"), WHOLE[1]),
    ),
    "sharegpt": (
        {
            "prompt": [{"from": "human", "value": "熱が出ました"}],
            "chosen": [{"from": "gpt", "value": "休みましょう"}],
            "rejected": "走りましょう",
        },
        WHOLE,
    ),
    "HH-RLHF": (
        {"chosen": f"{HH}休みましょう", "rejected": f"{HH}走りましょう"},
        (Turn(USER, "Hello"), Turn(ASSISTANT, "Yes?"), *WHOLE),
    ),
    "HH-RLHF's prompt": (
        {"prompt": HH, "chosen": "休みましょう", "rejected": "走りましょう"},
        (Turn(USER, "Hello"), Turn(ASSISTANT, "Yes?"), *WHOLE),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_become_two_dialogues(name: str) -> None:
    fields, turns = FORMS[name]
    found = preferences(fields)
    assert found["turns"] == turns
    assert found["rejected_turns"] == (*turns[:-1], Turn(ASSISTANT, "走りましょう"))


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "equal": ({"prompt": "q", "chosen": "a", "rejected": " a"}, "are the same"),
    "no rejected": ({"prompt": "q", "chosen": "a"}, "no rejected answer: field 'rejected' is missing"),
    "empty": ({"prompt": "q", "chosen": "", "rejected": "b"}, "no chosen answer: field 'chosen' is empty"),
    "blank": ({"prompt": "q", "chosen": "a", "rejected": " \n"}, "the rejected answer is empty"),
    "blank message": ({"prompt": "q", "chosen": "a", "rejected": say(("assistant", " "))}, "rejected answer is empty"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "no prompt"),
    "empty prompt": ({"prompt": " ", "chosen": "a", "rejected": "b"}, "empty turn: 1 of 2"),
    "other prompts": (
        {"chosen": say(("user", "q"), ("assistant", "a")), "rejected": say(("user", "r"), ("assistant", "b"))},
        "differ before the last answer",
    ),
    "another prompt than the record's": (
        {"prompt": "q", "chosen": say(("user", "r"), ("assistant", "a")), "rejected": "b"},
        "the chosen dialogue has another prompt",
    ),
    "ends on the user": (
        {"chosen": say(("user", "q"), ("assistant", "a"), ("user", "r")), "rejected": say(("user", "q"))},
        "the chosen dialogue does not end on an assistant's turn",
    ),
    "open end": (
        {"chosen": HH, "rejected": f"{HH}x"},
        "the chosen dialogue does not end on an assistant's turn",
    ),
    "unknown role": ({"prompt": "q", "chosen": "a", "rejected": say(("tool", "b"))}, "does not end on an assistant's"),
    "unknown role before": (
        {"prompt": say(("tool", "x"), ("user", "q")), "chosen": "a", "rejected": "b"},
        "unknown role: 'tool' in turn 1",
    ),
    "assistant first": ({"prompt": say(("assistant", "x")), "chosen": "a", "rejected": "b"}, "assistant speaks first"),
    "no text": ({"prompt": 3, "chosen": "a", "rejected": "b"}, "no list of messages"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_records_that_nobody_can_learn_from_are_refused(name: str) -> None:
    fields, told = BROKEN[name]
    with pytest.raises(ValueError, match=told):
        preferences(fields)


def prepared(folder: Path, rows: list[dict[str, Any]], vocabulary: Any = SAMPLE_VOCABULARY, **making: Any) -> Store:
    task = small.task("p", small.source(small.write_rows(folder / "p.jsonl", rows), "p"), preprocessors=(preferences,))
    made = Making(**{"validation_share": 0.0, "shards": 2, "template": "plain"} | making)
    quiet = Console(file=io.StringIO())
    prepare_stores([task], load_vocabulary(vocabulary), folder / "stores", made, workers=1, console=quiet)
    return open_store(folder / "stores" / "p")


GOOD_ROWS = [
    {
        "id": f"r{i}",
        "prompt": "熱が出ました。" * (1 + i % 3),
        "chosen": f"休んで {i}" + "水。" * i,
        "rejected": f"走る {i}",
    }
    for i in range(12)
]


def test_a_document_is_both_dialogues_and_trains_both_answers_with_their_ends(tmp_path: Path) -> None:
    store, vocabulary = prepared(tmp_path, GOOD_ROWS), load_vocabulary(SAMPLE_VOCABULARY)
    assert store.pairs and sum(batch.docs for batch in store.batches()) == 12
    for batch in store.batches():
        ids = batch.ids()
        for i in range(batch.docs):
            row = GOOD_ROWS[int(ids[i][1:])]
            tokens = batch.tokens[batch.offsets[i] : batch.offsets[i + 1]]
            (a, border), (c, end) = batch.spans(i)
            assert end == len(tokens) and (tokens[[border - 1, end - 1]] == vocabulary.eos).all()
            assert vocabulary.decode(tokens[a : border - 1]).strip() == row["chosen"]
            assert vocabulary.decode(tokens[c : end - 1]).strip() == row["rejected"]
            assert tokens[:a].tolist() == tokens[border:c].tolist()


def test_of_a_template_with_more_behind_the_end_and_earlier_answers_the_last_answer_is_trained(tmp_path: Path) -> None:
    folder, template = train_byte_level(tmp_path / "v", "gpt2"), tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|endoftext|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rows = [{"prompt": say(*EARLIER, ASKED), "chosen": say(GOOD), "rejected": say(BAD)}]
    store, vocabulary = prepared(tmp_path, rows, folder, template=str(template)), load_vocabulary(folder)
    (batch,) = (batch for batch in store.batches() if batch.docs)
    (a, border), (c, end) = batch.spans(0)
    assert (batch.tokens[[border - 1, end - 1]] == vocabulary.eos).all() and end == len(batch.tokens)
    assert vocabulary.decode(batch.tokens[a : border - 1]) == "休みましょう"
    assert vocabulary.decode(batch.tokens[c : end - 1]) == "走りましょう"
    assert vocabulary.decode(batch.tokens[:a]).endswith("熱が出ました<|endoftext|>\n<|im_start|>assistant\n")


def test_bad_records_go_aside_with_file_and_line(tmp_path: Path) -> None:
    bad = [fields for fields, _ in BROKEN.values()]
    store = prepared(tmp_path, [*GOOD_ROWS, *bad], max_rejected_share=0.9)
    aside = [json.loads(line) for line in (tmp_path / "stores" / "p" / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(entry["line"] for entry in aside) == list(range(13, 13 + len(bad)))
    for entry, (_, told) in zip(sorted(aside, key=lambda entry: entry["line"]), BROKEN.values(), strict=True):
        assert told in entry["reason"] and entry["file"].endswith("p.jsonl")
    assert sum(batch.docs for batch in store.batches()) == 12
    (tmp_path / "strict").mkdir()
    with pytest.raises(UserError, match="malformed"):
        prepared(tmp_path / "strict", [*GOOD_ROWS, *bad])


def either(fields: dict[str, Any]) -> dict[str, Any]:
    """Preferences where a record has two answers, else a text."""
    return preferences(fields) if "rejected" in fields else {**fields, "text": fields["chosen"]}


def test_a_task_of_preferences_and_texts_is_refused(tmp_path: Path) -> None:
    rows = small.write_rows(tmp_path / "p.jsonl", [*GOOD_ROWS, {"id": "x", "chosen": "text"}])
    task = small.task("p", small.source(rows, "p"), preprocessors=(either,))
    making = Making(validation_share=0.0, template="plain")
    with pytest.raises(UserError, match="12 are preferences and the others are not"):
        prepare_stores([task], load_vocabulary(SAMPLE_VOCABULARY), tmp_path / "s", making, workers=1)


# --- rows


def made_up(sizes: list[tuple[int, int, int]], blocks: int = 2) -> FakeStore:
    """A store of pairs (prompt, chosen, rejected tokens); token = document · 1000 + position."""
    made = []
    for part in np.array_split(np.arange(len(sizes)), blocks):
        lengths = [2 * sizes[i][0] + sizes[i][1] + sizes[i][2] for i in part]
        tokens = [np.arange(n, dtype=np.uint32) + np.uint32(i + 1) * 1000 for i, n in zip(part, lengths, strict=True)]
        borders = np.array([[p, p + c, 2 * p + c, 2 * p + c + r] for p, c, r in (sizes[i] for i in part)], np.int64)
        trained = (2 * np.arange(len(part) + 1), borders[:, ::2].reshape(-1), borders[:, 1::2].reshape(-1))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        group = (part % 2).astype(np.int32)
        made.append(FakeBlock(np.concatenate(tokens), offsets, group, 3 * np.asarray(lengths, np.int64), trained))
    return FakeStore("pairs", made, pairs=True)


SIZES = [(1 + i % 3, 1 + i % 5, 1 + (3 * i) % 4) for i in range(40)]


def mixture(**changes: Any) -> Mixture:
    return Mixture(**{"stores": ("pairs",), "sequence_length": 24, "batch_tokens": 96, "packing": "whole"} | changes)


def test_rows_hold_each_pair_once_an_epoch_undivided() -> None:
    store = made_up(SIZES)
    plan = plan_rows(mixture(), [store])
    rows = int(plan.sources[0].rows.rows_per_epoch)
    for epoch in range(2):
        seen = []
        for k in range(epoch * rows, (epoch + 1) * rows):
            row = plan.row(k)
            for chosen in range(1, int(row["segments"].max()), 2):
                seen.append(check_pair(row, chosen))
            assert (row["weights"][row["segments"] == 0] == 0).all() and not row["reference"].any()
        assert sorted(seen) == list(range(len(SIZES)))


def check_pair(row: dict[str, np.ndarray], chosen: int) -> int:
    """The document of a pair, after a look at both of its segments."""
    document = int(row["tokens"][row["segments"] == chosen][0]) // 1000 - 1
    prompt, *answers = SIZES[document]
    starts = (0, prompt + answers[0])
    for side, (start, answer) in enumerate(zip(starts, answers, strict=True)):
        here = np.flatnonzero(row["segments"] == chosen + side)
        cut = here[-1] == len(row["tokens"]) - 1  # the row's last token is a target alone
        assert prompt + answer - len(here) in ((0, 1) if cut else (0,)) and (np.diff(here) == 1).all()
        assert row["tokens"][here].tolist() == (1000 * (document + 1) + start + np.arange(len(here))).tolist()
        assert row["positions"][here].tolist() == list(range(len(here)))
        learnt = row["targets"][here][row["weights"][here] > 0]
        assert learnt.tolist() == (1000 * (document + 1) + start + prompt + np.arange(answer)).tolist()
        assert (row["groups"][here[:-1]] == document % 2).all()
    return document


def test_the_reference_stands_at_the_first_token_of_each_segment() -> None:
    plan = plan_rows(mixture(), [made_up(SIZES)])
    documents = [np.arange(20), np.arange(20, 40)]
    table = [np.stack([1.0 + block, -1.0 - block], axis=1).astype(np.float32) for block in documents]
    plan = type(plan)(**{**plan.__dict__, "reference": table})
    for k in range(10):
        row = plan.row(k)
        for segment in range(1, int(row["segments"].max()) + 1):
            here = np.flatnonzero(row["segments"] == segment)
            document = int(row["tokens"][here[0]]) // 1000
            assert row["reference"][here].tolist() == [document * (1 if segment % 2 else -1), *[0] * (len(here) - 1)]


def test_what_is_read_of_pairs_is_kept_by_document() -> None:
    (found,) = pair_sets([made_up(SIZES)], mixture(), [("en", "textbook"), ("ja", "web text")], "train")
    table = np.full((len(SIZES), 2), np.nan)
    for batch, pieces in found.batches(3, 10**9):
        given = np.zeros((3, 12))
        for row in range(3):
            for segment in range(int(batch["segments"][row].max())):
                given[row, segment] = batch["tokens"][row][batch["segments"][row] == segment + 1][0]
        found.by_document(given, pieces, table)
    border = [prompt + chosen for prompt, chosen, _ in SIZES]
    assert table.tolist() == [[1000 * (i + 1), 1000 * (i + 1) + border[i]] for i in range(len(SIZES))]
    assert found.tokens.tolist() == [chosen for _, chosen, _ in SIZES]
    assert found.group.tolist() == [i % 2 for i in range(len(SIZES))]


@pytest.mark.parametrize(
    ("size", "truncate", "kept"),
    [
        ((2, 3, 4), False, (5, 6)),
        ((2, 3, 6), False, (0, 0)),  # 13 tokens
        ((2, 3, 6), True, (5, 7)),  # the shorter one stays whole
        ((2, 9, 9), True, (6, 6)),  # both to the same length
        ((6, 1, 1), True, (0, 0)),  # both would lose their whole answers
        ((5, 1, 9), True, (6, 6)),
        ((7, 1, 1), False, (0, 0)),
    ],
)
def test_pairs_longer_than_a_row_are_left_out_or_cut_alike(
    size: tuple[int, int, int], truncate: bool, kept: tuple[int, int]
) -> None:
    (block,) = made_up([size], 1).blocks
    assert fit(np.diff(block.offsets), spans(block), 12, truncate).tolist() == [list(kept)]


def test_what_is_left_out_and_cut_is_counted() -> None:
    store = made_up([(2, 3, 4), (2, 3, 9), (2, 9, 9), (20, 1, 1)], 1)
    for overlong, counts in (("drop", (3, 0)), ("truncate", (1, 2))):
        plan = plan_rows(mixture(sequence_length=11, batch_tokens=44, overlong=overlong), [store])
        rows = plan.sources[0].rows
        assert (rows.dropped, rows.truncated) == counts
        assert plan.describe(0)["sources"]["pairs"]["dropped"] == counts[0]


def test_other_uses_of_pairs_are_refused_by_name(tmp_path: Path) -> None:
    store = made_up(SIZES)
    with pytest.raises(UserError, match="'split'"):
        plan_rows(mixture(packing="split"), [store])
    with pytest.raises(UserError, match="'other' does not"):
        plan_rows(mixture(weights=None), [store, FakeStore("other", [])])
    with pytest.raises(UserError, match="preferences"):
        list(validation_rows([store], 24, store.groups, split="train"))
    real = prepared(tmp_path, GOOD_ROWS)
    assert open_mixture(mixture(stores=(real.folder,), sequence_length=96, batch_tokens=96)).pairs
