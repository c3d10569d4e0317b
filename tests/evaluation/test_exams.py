"""Exams: what is read, what is asked, and that an oracle gets 100 % and a constant predictor what it must."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from t_elaine.data.vocabulary import Vocabulary
from t_elaine.errors import UserError
from t_elaine.evaluation import benchmarks, options, protocols, suites, summary
from t_elaine.evaluation.engines import Engine
from t_elaine.evaluation.options import ExamRequests, ExamScores
from t_elaine.evaluation.suites import Question, Suite
from tests.evaluation.making import make_vocabulary

LENGTH = 1024


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return make_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def asked(vocabulary: Vocabulary, suite: Suite) -> ExamRequests:
    return options.exam_requests(vocabulary, suite, protocols.load_protocol(), [vocabulary.bos], LENGTH)


def sat(vocabulary: Vocabulary, suite: Suite, nats) -> ExamScores:
    """The exam sat by a stand-in: nats(text) a token of the piece that reads `text`."""

    def run(rows: dict[str, np.ndarray]) -> jnp.ndarray:
        found = np.zeros(rows["tokens"].shape, np.float32)
        for row, segments in enumerate(rows["segments"]):
            for segment in range(1, segments.max() + 1):
                at = segments == segment
                ids = [rows["tokens"][row][at][0], *rows["targets"][row][at]]
                found[row, at] = nats(vocabulary.decode(ids).removeprefix("<bos>"))
        return jnp.asarray(found)

    return options.sit(Engine(rows=4, length=LENGTH, run=run), suite, asked(vocabulary, suite))


def graded(suite: Suite, sides: list[ExamScores]) -> dict:
    return summary.exam_row(suite, sides, "text_per_byte", {"resamples": 200, "seed": 0})


@pytest.mark.parametrize("language", ["en", "ja", "zh"])
def test_an_oracle_gets_everything_right(vocabulary: Vocabulary, language: str) -> None:
    suite = suites.load_suite(f"samples/{language}")
    assert len(suite.questions) >= 24 and not suite.skipped
    protocol = protocols.load_protocol()
    right = set()
    for way in protocols.WAYS:
        for question in suite.questions:
            prompt, continuations = protocols.texts(protocol, way, language, question)
            right |= {prompt + continuations[i] for i in question.gold}
    row = graded(suite, [sat(vocabulary, suite, lambda text: 0.001 if text in right else 1.0)])
    for name in ("text_per_byte", "text", "letter"):
        assert row["scores"][name]["child"] == {"value": 1.0, "low": 1.0, "high": 1.0}, name


def test_a_constant_predictor_gets_what_its_constant_is_worth(vocabulary: Vocabulary) -> None:
    suite = suites.load_suite("samples/en")
    row = graded(suite, [sat(vocabulary, suite, lambda text: 0.0)])
    always_a = sum(question.gold == (0,) for question in suite.questions) / len(suite.questions)
    for name in ("text", "text_per_byte", "letter"):
        assert row["scores"][name]["child"]["value"] == pytest.approx(always_a, abs=1e-6)
    assert row["chance"] == pytest.approx(0.2)
    assert always_a <= row["majority"]["accuracy"] < 0.5, "the shipped golds are spread over the letters"


def test_parent_beside_child_is_paired(vocabulary: Vocabulary) -> None:
    suite = suites.load_suite("samples/en")
    one = sat(vocabulary, suite, lambda text: len(text) % 7 / 7)
    row = graded(suite, [one, one])
    assert row["scores"]["letter"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert row["scores"]["letter"]["child"] == row["scores"]["letter"]["parent"]


def test_prompts_as_they_are(vocabulary: Vocabulary) -> None:
    question = Question(id="1", text="1 + {option}?", choices=("one", "two"), gold=(0,))
    protocol = protocols.load_protocol()
    prompt, options = protocols.texts(protocol, "text", "en", question)
    assert (prompt, options) == ("Question: 1 + {option}?\nAnswer:", [" one", " two"])
    prompt, options = protocols.texts(protocol, "letter", "ja", question)
    assert (prompt, options) == ("質問：1 + {option}?\nA. one\nB. two\n答え：", ["A", "B"])
    made = protocols.requests(vocabulary, prompt, options, [vocabulary.bos], LENGTH)
    for request, option in zip(made, options, strict=True):
        assert vocabulary.decode(request.tokens) == f"<bos>{prompt}{option}"
        assert np.count_nonzero(request.tokens == vocabulary.bos) == 1, "exactly one BOS"
        assert vocabulary.decode(request.tokens[request.start :]) == option
        assert request.bytes == len(option.encode()) and not request.cut


class Merging:
    """An encoder of characters in which ":B" is one token: it merges across the border of prompt and option."""

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array([ord(c) for c in text.replace(":B", "\x01")], np.uint32) for text in texts]


def test_all_options_are_scored_from_the_same_token_where_one_merges_with_the_prompt() -> None:
    plain, merged = protocols.requests(Merging(), "ab:", ["A", "B"], [0], 16)
    assert plain.tokens[plain.start :].tolist() == [ord(":"), ord("A")]
    assert merged.tokens[merged.start :].tolist() == [1]
    assert plain.start == merged.start == 3


def test_a_prompt_that_does_not_fit_keeps_bos_its_end_and_the_option() -> None:
    (request,) = protocols.requests(Merging(), "abcdefgh", ["XY"], [0], 6)
    assert request.cut and request.tokens.tolist() == [0, *map(ord, "efgh"), *map(ord, "XY")]
    assert len(request.tokens) == 7 and request.start == 5
    with pytest.raises(UserError, match="an option has 9 tokens"):
        protocols.requests(Merging(), "ab", ["X" * 9], [0], 6)


ODD = [
    {"problem_id": 1, "problem_text": "two right", "choices": ["x", "y", "z"], "answer": ["a", "c"]},
    {"problem_id": 2, "problem_text": "a number", "choices": [], "answer": ["26"]},
    {"problem_id": 3, "problem_text": "not there", "choices": ["x", "y"], "answer": ["f"]},
    {"problem_id": 4, "problem_text": "NA", "choices": ["x", "y"], "answer": "NA"},
    {"problem_id": 5, "problem_text": "a word", "choices": ["x", "y"], "answer": ["a or d"]},
    {"problem_id": 6, "problem_text": "all", "choices": ["x", "y"], "answer": ["a", "b"]},
]


def test_questions_that_cannot_be_scored_are_counted_by_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in ODD), encoding="utf-8")
    with pytest.raises(UserError, match=r"item 3: the answer \('f',\) is outside its 2 options") as raised:
        suites.load_suite(f"ja:{path}")
    assert raised.value.where == f"{path}:3", "in a file of one's own"
    monkeypatch.setattr(benchmarks, "published", lambda sha256: benchmarks.named("ja/DenQA"))
    suite = suites.load_suite(f"ja:{path}")
    assert (suite.language, suite.name) == ("ja", "ja/DenQA")
    assert [question.gold for question in suite.questions] == [(0, 2)]
    assert suite.skipped == {
        "answer letters outside the choices": 2,
        "every choice is right": 1,
        "no answer letters": 1,
        "no choices": 1,
    }


def test_mmlu_by_subject(vocabulary: Vocabulary, shared_data: Path) -> None:
    suite = suites.load_suite("en/MMLU", suites_dir=str(shared_data / "benchmarks" / "elaine"))
    ways = ("text_per_byte", "text", "letter")
    side = ExamScores(scores={way: [[0.0] * 4] * 1089 for way in ways}, cut=0, first_prompt_ids=[])
    row = graded(suite, [side])
    parts = row["by_subject"]
    assert list(parts) == ["MMLU_CK", "MMLU_MG", "MMLU_AN", "MMLU_PM", "MMLU_CB", "MMLU_CM"]
    assert [one["questions"] for one in parts.values()] == [265, 100, 135, 272, 144, 173]
    right = sum(one["child"]["value"] * one["questions"] for one in parts.values())
    assert right / 1089 == pytest.approx(row["scores"]["text_per_byte"]["child"]["value"], abs=1e-5)
    assert parts["MMLU_CK"]["subject"] == "clinical_knowledge"


def test_exams_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"problem_id": 1}\n', encoding="utf-8")
    for spec, what in (
        (f"en:{path}", "this line lacks problem_text, choices, answer"),
        (str(path), "the language of"),
        ("samples/fr", "no shipped exam"),
        ("nowhere.jsonl", "no such exam"),
    ):
        with pytest.raises(UserError, match=what):
            suites.load_suite(spec)


def test_the_published_suites_can_be_read(shared_data: Path) -> None:
    counts = {"IgakuQA": 0, "DenQA": 0, "PubMedQA": 0, "CMExam": 0}
    for path in sorted(shared_data.glob("benchmarks/elaine/*/*/*.jsonl")):
        suite = suites.load_suite(str(path))
        assert suite.language == path.parts[-3]
        lines = sum(1 for line in path.read_bytes().split(b"\n") if line.strip())
        assert len(suite.questions) + sum(suite.skipped.values()) == lines
        counts[path.parts[-2]] = len(suite.questions)
    assert all(counts.values())
