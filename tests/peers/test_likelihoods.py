"""Log-likelihoods from a server: what it sends counts only if it is of the ids that were sent, token by token."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t_elaine.data.vocabulary import Vocabulary, load_vocabulary
from t_elaine.errors import UserError
from t_elaine.evaluate import evaluate
from t_elaine.evaluation.options import exam_requests
from t_elaine.evaluation.protocols import load_protocol
from t_elaine.evaluation.suites import load_suite
from t_elaine.peers import likelihoods, patience
from t_elaine.peers.patience import Endpoint
from tests.evaluation import making
from tests.evaluation.test_official import record, write
from tests.peers.scoring_server import nll, scored
from tests.peers.stand_in import Reply, StandIn, completion, refusal, reply, serving

HOW = Endpoint(concurrency=3, timeout=20, tries=3)
PIECES = [np.array(ids, np.int32) for ids in ([3, 5, 8, 2], [7, 1], [9, 9, 9, 4, 4, 1, 2])]
NAMES = ["first", "second", "third"]
CONTEXT = [{"id": "tiny", "max_model_len": 256}]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LONGEST_WAIT", 0.02)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary, an exam of 24 items, and a store of held-out text."""
    folder = tmp_path_factory.mktemp("likelihoods")
    vocabulary = making.make_vocabulary(folder / "vocabulary")
    making.make_store(folder / "held", vocabulary)
    write(folder / "exam.jsonl", [record(i, problem_text=f"{i}? " + "why " * (i % 4)) for i in range(24)])
    return folder


@pytest.fixture(scope="module")
def vocabulary(place: Path) -> Vocabulary:
    return load_vocabulary(place / "vocabulary")


def ask(server: StandIn, how: Endpoint = HOW) -> dict[int, np.ndarray]:
    return dict(likelihoods.score(server.url, "tiny", how, PIECES, NAMES))


def check(server: StandIn, vocabulary: Vocabulary) -> None:
    likelihoods.check(server.url, "tiny", HOW, vocabulary.encode, "the vocabulary's folder")


def test_each_piece_gets_its_own_figures(vocabulary: Vocabulary) -> None:
    with serving(StandIn(lambda body, before: scored(vocabulary, body))) as server:
        found = ask(server)
    assert sorted(found) == [0, 1, 2] and {body["model"] for body in server.asked} == {"tiny"}
    for place, ids in enumerate(PIECES):
        np.testing.assert_array_equal(found[place], nll(ids.tolist()))
        assert found[place].dtype == np.float32


def told(values: Any, count: int | None = 4) -> Reply:
    """Log-probabilities of a prompt of four tokens, right or not."""
    usage = {} if count is None else {"usage": {"prompt_tokens": count}}
    return reply({"choices": [{"text": "", "logprobs": {"token_logprobs": values}}], **usage})


GOOD = [None, -1.0, -2.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (completion("and so on"), "sends no token_logprobs: it does not know `echo`"),
        (reply({"choices": [{"text": "", "logprobs": {"content": [{"logprob": -1.0}]}}]}), "sends no token_logprobs"),
        (told([-1.0]), "sends 1 log-probabilities for the 4 tokens.*: it ignores `echo`"),
        (told([]), "sends 0 log-probabilities for the 4 tokens.*: it ignores `echo`"),
        (told([None, -1.0, -2.0]), "sends 3 log-probabilities for the 4 tokens"),
        (told([*GOOD, -3.0, -3.0], None), "sends 6 log-probabilities for the 4 tokens"),
        (refusal(400, "Only no echo is supported"), "the server refuses: 400 Bad Request: Only no echo"),
        (told(GOOD, 5), "counts 5 tokens of the 4"),
        (told([-0.5, -1.0, -2.0, -3.0]), r"gives the first token a log-probability \(-0.5\)"),
        (told([None, -1.0, None, -3.0]), "log-probability of token 2 of 4 is null"),
        (told([None, -1.0, "-2", -3.0]), 'log-probability of token 2 of 4 is "-2"'),
        (told([None, -1.0, True, -3.0]), "log-probability of token 2 of 4 is true"),
        (told([None, math.nan, -1.0, -3.0]), "log-probability of token 1 of 4 is NaN"),
        (told([None, -math.inf, -1.0, -3.0]), "log-probability of token 1 of 4 is -Infinity"),
        (told([None, -1.0, -1.0, 0.25]), "log-probability of token 3 of 4 is 0.25"),
    ],
)
def test_a_reply_that_is_not_of_the_prompt_is_refused(answer: Reply, says: str) -> None:
    with serving(StandIn(lambda body, before: answer)) as server:
        with pytest.raises(UserError, match=says) as raised:
            dict(likelihoods.score(server.url, "tiny", HOW, PIECES[:1], NAMES))
        assert len(server.asked) == 1, "it would say the same again"
    assert raised.value.where.startswith(f"first ({server.url}/v1") and "vLLM's does" in raised.value.mend


def test_what_is_right_counts_with_and_without_a_count() -> None:
    for answer in (told(GOOD), told(GOOD, None), told([*GOOD, -3.0]), told([*GOOD, None], None)):
        with serving(StandIn(lambda body, before, answer=answer: answer)) as server:
            assert dict(likelihoods.score(server.url, "tiny", HOW, PIECES[:1], NAMES))[0].tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("fault", [refusal(429, "slow down"), None, (200, {}, b'{"choices": [{'), reply({})])
def test_what_may_pass_is_asked_again_and_told(
    fault: Reply, vocabulary: Vocabulary, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "say", patience.Seldom(every=60.0))
    answer = lambda body, before: fault if before < 2 else scored(vocabulary, body)  # noqa: E731
    with serving(StandIn(answer)) as server:
        assert len(ask(server)) == 3
    assert len(server.asked) == 9
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1 and lines[0].partition(":")[0] in NAMES and "; asked again in 0.0 s, try 2 of 3" in lines[0]


def test_one_that_stays_away_is_named(vocabulary: Vocabulary) -> None:
    answer = lambda body, before: None if len(body["prompt"]) == 2 else scored(vocabulary, body)  # noqa: E731
    got: dict[int, Any] = {}
    with serving(StandIn(answer)) as server, pytest.raises(UserError, match="no log-likelihoods after 3 tries") as e:
        for at, found in likelihoods.score(server.url, "tiny", HOW, PIECES, NAMES):
            got[at] = found
    assert e.value.where.startswith("second (") and "what was scored is kept" in e.value.mend
    assert sorted(got) == [0, 2], "what was under way is waited for"


def test_a_piece_beyond_the_context_says_what_to_give() -> None:
    long = refusal(400, "This model's maximum context length is 3 tokens")
    told = pytest.raises(UserError, match=r"give evaluate.sequence_length.*\d tokens")
    with serving(StandIn(lambda body, before: long)) as server, told:
        ask(server)


def test_the_vocabulary_is_checked_in_three_languages(vocabulary: Vocabulary) -> None:
    for before in ([], [vocabulary.bos]):
        with serving(StandIn(lambda body, _, before=before: scored(vocabulary, body, before))) as server:
            check(server, vocabulary)
        texts = [body["prompt"] for body in server.asked if isinstance(body["prompt"], str)]
        assert texts == list(likelihoods.TEXTS.values())


def test_another_vocabulary_is_refused(vocabulary: Vocabulary) -> None:
    def longer(body: dict[str, Any], before: int) -> Reply:
        """A few tokens more of one text."""
        text = body["prompt"]
        return scored(vocabulary, body | {"prompt": text + "!!"} if text == likelihoods.TEXTS["zh"] else body)

    def swapped(body: dict[str, Any], before: int) -> Reply:
        """As many tokens, and others."""
        text = body["prompt"]
        return scored(vocabulary, body | {"prompt": text.replace("8", "9")} if isinstance(text, str) else body)

    answers = {
        r"the server encodes 'Q. 胰岛素.* into \d+ tokens, the vocabulary into \d+": longer,
        r"otherwise: its token \d+ is '9', the vocabulary's '8'": swapped,
        r"the server encodes \"Insulin": lambda body, before: scored(vocabulary, body, [vocabulary.bos] * 2),
    }
    for says, answer in answers.items():
        with serving(StandIn(answer)) as server, pytest.raises(UserError, match=rf"{says}(.|\n)*--vocabulary=FOLDER"):
            check(server, vocabulary)
    assert len(server.asked) == 1, "where counts differ, no ids go there: it may not have them"


@pytest.mark.parametrize("counts", [True, False])
def test_a_server_that_shows_no_tokens_is_checked_by_their_number(counts: bool, vocabulary: Vocabulary) -> None:
    def silent(body: dict[str, Any], before: int) -> Reply:
        answer = scored(vocabulary, body, [vocabulary.bos], tokens=None)
        assert answer is not None
        content = json.loads(answer[2])
        return reply(content if counts else {"choices": content["choices"]})

    def shorter(body: dict[str, Any], before: int) -> Reply:
        text = body["prompt"]
        return silent(body | {"prompt": text[:-2]} if isinstance(text, str) else body, before)

    with serving(StandIn(silent)) as server:
        check(server, vocabulary)
    with serving(StandIn(shorter)) as server, pytest.raises(UserError, match="the server encodes"):
        check(server, vocabulary)


def given(place: Path, to: Path, server: StandIn, **more: Any) -> dict[str, Any]:
    return {
        "checkpoint": "tiny",
        "exams": (f"en:{place / 'exam.jsonl'}",),
        "stores": (str(place / "held"),),
        "to": str(to),
        "engine": server.url,
        "vocabulary": str(place / "vocabulary"),
        "endpoint": HOW,
        "sequence_length": 250,
        "resamples": 50,
        "contamination": False,
        **more,
    }


def test_the_command_goes_on_where_a_server_died(place: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    with serving(StandIn(lambda body, before: scored(vocabulary, body), CONTEXT)) as server:
        assert evaluate(**given(place, tmp_path / "whole", server)) == 0
        whole, total = read(tmp_path / "whole"), len(server.asked)
        alive = [total - 20]

        def dying(body: dict[str, Any], before: int) -> Reply:
            alive[0] -= 1
            return scored(vocabulary, body) if alive[0] >= 0 else None

        server.answer = dying
        told = pytest.raises(UserError, match=r"exam, item '\d+', option [A-E] by (text|letter)")
        with told as raised:
            evaluate(**given(place, tmp_path / "stopped", server))
        assert "the same command again: what was scored is kept" in raised.value.mend
        alive[0], server.asked[:] = total, []
        assert evaluate(**given(place, tmp_path / "stopped", server)) == 0
        assert len(server.asked) < total / 2, "what was kept is not asked again"
        assert {**read(tmp_path / "stopped"), "versions": 0} == {**whole, "versions": 0}
        assert whole["identity"]["engine"].startswith("http-127.0.0.1") and whole["identity"]["dtype"] == ""
        assert whole["identity"]["vocabulary"] == vocabulary.sha256 and whole["identity"]["sequence_length"] == 250
        assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["step-0.json"]
        with pytest.raises(UserError, match=r"takes pieces of 254 at most"):
            evaluate(**given(place, tmp_path, server, sequence_length=255))
    letters = [item["child"]["letter"]["scores"] for item in whole["exams"][0]["items"]]
    assert len(letters) == 24 and len({tuple(one) for one in letters}) > 4


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "step-0.json").read_text()))


def test_scores_are_those_of_the_ids(place: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    with serving(StandIn(lambda body, before: scored(vocabulary, body), CONTEXT)) as server:
        asked = given(place, tmp_path, server, stores=(), limit=2)
        assert evaluate(**asked) == 0
    suite = load_suite(asked["exams"][0], 2)
    requests = exam_requests(vocabulary, suite, load_protocol(), [vocabulary.bos], 250)
    for way in ("text", "letter"):
        for item, options in zip(read(tmp_path)["exams"][0]["items"], requests.ways[way], strict=True):
            wanted = [-nll(one.tokens.tolist())[one.start - 1 :].sum() for one in options]
            np.testing.assert_allclose(item["child"][way]["scores"], wanted, atol=1e-5)


def test_bits_per_byte_alone_need_the_vocabulary_too(place: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    with serving(StandIn(lambda body, before: scored(vocabulary, body), CONTEXT)) as server:
        with pytest.raises(UserError, match=r"bits-per-byte \(--stores\) is asked by token ids"):
            evaluate(**given(place, tmp_path, server, exams=(), vocabulary=""))
        assert evaluate(**given(place, tmp_path, server, exams=())) == 0
        wrong = making.make_vocabulary(tmp_path / "other").path
        wrong.write_text(wrong.read_text(encoding="utf-8") + " ", encoding="utf-8")
        with pytest.raises(UserError, match="the store was made with the vocabulary"):
            evaluate(**given(place, tmp_path, server, exams=(), vocabulary=str(tmp_path / "other"), name="other"))
