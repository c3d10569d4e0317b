"""A server as an engine: what it throttles is asked again, what it cannot answer is named, and nothing is lost."""

import json
import re
import time
from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.evaluate import evaluate
from t_elaine.evaluation import answers, official
from t_elaine.evaluation.items import load_exam
from t_elaine.evaluation.sitting import Sitting
from t_elaine.generation.requests import NoAnswer
from t_elaine.generation.sampling import Sampling
from t_elaine.peers import endpoint, patience
from t_elaine.peers.patience import Endpoint
from tests.evaluation.test_official import record, write
from tests.peers.stand_in import StandIn, completion, refusal, serving

GREEDY = Sampling(max_new=16)
HOW = Endpoint(concurrency=2, timeout=20, tries=3)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LONGEST_WAIT", 0.02)


@pytest.fixture
def sitting(tmp_path: Path) -> Sitting:
    path = tmp_path / "exam.jsonl"
    write(path, [record(i) for i in range(17)])
    return official.sitting(load_exam(f"en:{path}"))


def ask(server: StandIn, prompts: list[str], how: Endpoint = HOW, sampling: Sampling = GREEDY) -> dict[int, str | None]:
    return dict(endpoint.write(server.url, "tiny", how, prompts, sampling))


def test_the_prompt_goes_as_it_is_and_the_answer_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    with serving(StandIn(lambda body, before: completion(body["prompt"].upper()))) as server:
        how = Endpoint(concurrency=2, key="MY_KEY")
        assert ask(server, ["a\nＡ", "b"], how, Sampling(max_new=5, stop=("STOP",))) == {0: "A\nＡ", 1: "B"}
    body = next(one for one in server.asked if one["prompt"] == "a\nＡ")
    assert (body["max_tokens"], body["temperature"], body["stop"], body["model"]) == (5, 0.0, ["STOP"], "tiny")
    assert server.keys == ["Bearer secret"] * 2


def test_a_stop_string_that_the_server_left_in_is_cut() -> None:
    with serving(StandIn(lambda body, before: completion("b\nQuestion: and more"))) as server:
        assert ask(server, ["x"], sampling=Sampling(stop=("\nContext:", "\nQuestion:"))) == {0: "b"}


def test_so_many_are_under_way_at_once_and_no_more() -> None:
    def slowly(body: dict, before: int):
        time.sleep(0.02)
        return completion("a")

    with serving(StandIn(slowly)) as server:
        assert len(ask(server, [str(i) for i in range(12)], Endpoint(concurrency=3))) == 12
    assert server.most == 3


@pytest.mark.parametrize(
    "fault",
    [
        refusal(429, "slow down", Retry_After="0"),
        refusal(503, "loading", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        refusal(500, "oops"),
        (200, {}, b'{"choices": [{"te'),
        (200, {}, b'{"choices": []}'),
        (200, {"Content-Length": "400"}, b'{"choices": [{"text": "a"'),
        completion(None),
        None,
    ],
    ids=["429", "503", "500", "cut JSON", "no choice", "cut off", "no text", "closed"],
)
def test_what_may_pass_is_asked_again(fault) -> None:
    with serving(StandIn(lambda body, before: fault if before < 2 else completion("b"))) as server:
        assert ask(server, ["x"], Endpoint(tries=3, timeout=1)) == {0: "b"}
    assert len(server.asked) == 3


def test_waits_are_told_seldom_and_with_what_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    seldom, throttled = patience.Seldom(every=60.0), refusal(429, "slow\n down")
    monkeypatch.setattr(patience, "say", seldom)
    with serving(StandIn(lambda body, before: throttled if before < 4 else completion("b"))) as server:
        how = Endpoint(concurrency=1, tries=5)
        asked = endpoint.write(server.url, "tiny", how, ["x", "y", "z"], GREEDY, ["item 1", "item 2", "item 3"])
        assert next(asked) == (0, "b")
        seldom.last -= 61.0
        assert sorted(asked) == [(1, "b"), (2, "b")]
    lines = capsys.readouterr().err.strip().split("\n")
    assert lines == [
        "item 1: 429 Too Many Requests: slow down 429; asked again in 0.0 s, try 2 of 5",
        "item 2: 429 Too Many Requests: slow down 429; asked again in 0.0 s, try 2 of 5 "
        "(3 other waits since the last line)",
    ]


def test_an_answer_that_never_comes_is_given_up_in_time() -> None:
    def hanging(body: dict, before: int):
        time.sleep(1.5 if not before else 0)
        return completion("b")

    with serving(StandIn(hanging)) as server:
        assert ask(server, ["x"], Endpoint(tries=2, timeout=1)) == {0: "b"}


def test_a_prompt_longer_than_the_context_gets_no_answer() -> None:
    told = "This model's maximum context length is 64 tokens. However, you requested 99 tokens"
    reply = lambda body, before: refusal(400, told) if body["prompt"] == "long" else completion("a")  # noqa: E731
    with serving(StandIn(reply)) as server:
        assert ask(server, ["long", "short"]) == {0: None, 1: "a"}
    assert server.times("long") == 1


def test_a_refusal_is_told_at_once_with_the_servers_words() -> None:
    told = r"401 Unauthorized: no such key(.|\n)*variable OPENAI_API_KEY"
    refusing = serving(StandIn(lambda body, before: refusal(401, "no such key")))
    with refusing as server, pytest.raises(NoAnswer, match=told) as raised:
        ask(server, ["x"])
    assert raised.value.place == 0 and len(server.asked) == 1


def test_one_that_dies_midway_is_named_and_a_second_run_goes_on(sitting: Sitting, tmp_path: Path) -> None:
    path, life = str(tmp_path / "answers.jsonl"), [5]

    def dying(body: dict, before: int):
        life[0] -= 1
        return completion("a") if life[0] >= 0 else None

    def engine(server: StandIn):
        return lambda prompts, sampling: endpoint.write(server.url, "tiny", HOW, prompts, sampling)

    with serving(StandIn(dying)) as server, pytest.raises(UserError) as raised:
        answers.collect(engine(server), sitting, path)
    assert raised.value.what.startswith("no answer after 3 tries: ")
    named = next(item for item in sitting.items if f"line {item.line}, item {item.id!r}" in raised.value.where)
    assert raised.value.where.startswith("exam, official, line ") and server.url in raised.value.where
    assert "what was answered is kept" in raised.value.mend
    kept = answers.read(sitting, path)
    assert len(kept) == 5 and named.line not in kept, "all that came is kept"
    with serving(StandIn(lambda body, before: completion("b"))) as server:
        found = answers.collect(engine(server), sitting, path)
    assert len(server.asked) == 7 and len(found) == 12 and sorted(found.values()) == ["a"] * 5 + ["b"] * 7


def test_addresses() -> None:
    for given in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/completions"):
        assert patience.address(given) == "http://h:1/v1"
    assert patience.address("https://h/other/v2") == "https://h/other/v2"
    with pytest.raises(UserError, match="names no host"):
        patience.address("http://")


def test_the_command_names_the_item_that_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "exam.jsonl", [record(i) for i in range(7)])
    given = {"checkpoint": "tiny", "exams": (f"en:{tmp_path / 'exam.jsonl'}",), "to": str(tmp_path / "results")}
    faults = [refusal(503, "loading")]
    monkeypatch.setattr(patience, "say", patience.Seldom())
    with serving(StandIn(lambda body, before: faults.pop() if faults else completion("b"))) as server:
        how = {"engine": server.url, "endpoint": Endpoint(concurrency=1), "contamination": False, "resamples": 50}
        assert evaluate(**given, **how, protocols=("official",)) == 0
    told = capsys.readouterr().err.strip()
    assert re.fullmatch(r"exam, official, line 6, item '?5'?: 503 [\w ]+: loading.*, try 2 of 6", told), told


def test_the_command_with_a_server(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "exam.jsonl", [record(i) for i in range(9)])
    given = {"checkpoint": "tiny", "exams": (f"en:{tmp_path / 'exam.jsonl'}",), "to": str(tmp_path / "results")}
    given |= {"protocols": ("official", "repaired"), "resamples": 50, "contamination": False}
    with serving(StandIn(lambda body, before: completion("a\nmore"))) as server:
        how = {"engine": server.url, "endpoint": HOW}
        assert evaluate(**given, **how) == 0
        count = len(server.asked)
        assert evaluate(**given | {"resamples": 60, "overwrite": True}, **how) == 0
        assert len(server.asked) == count, "what is kept is not asked again"
        with pytest.raises(UserError, match=r"a server gives no vocabulary(.|\n)*--vocabulary=FOLDER"):
            evaluate(**given | {"protocols": ("likelihood",)}, **how)
        with pytest.raises(UserError, match=r"no model called 'other'(.|\n)*one of: tiny"):
            evaluate(**given | {"checkpoint": "other"}, **how)
    result = json.loads((tmp_path / "results" / "step-0.json").read_text())
    rows = result["generated"]["child"]
    assert [row["protocol"] for row in rows] == ["official", "official-rescored", "repaired"]
    assert result["models"]["child"]["kind"] == "served" and result["identity"]["engine"].startswith("http-127.0.0.1")
    names = {path.name for path in (tmp_path / "results" / "step-0-answers").iterdir()}
    assert len(names) == 2 and all(".http-127.0.0.1-" in name for name in names)
    with pytest.raises(UserError, match="cannot be asked what it serves"):
        evaluate(**given, **how | {"endpoint": Endpoint(tries=1)})


def test_settings_that_ask_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="tries is 0"):
        Endpoint(tries=0)
