"""The command end to end on a tiny random model: prompts, files, the card's questions, a conversation, no network."""

import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t_elaine import generate, writing
from t_elaine.errors import UserError
from t_elaine.evaluation.engines import open_model
from t_elaine.generation import asking, conversation
from t_elaine.generation.sampling import Sampling
from t_elaine.interrupts import Terminated
from t_elaine.model.config import ComputeConfig
from t_elaine.parallel.mesh import MeshConfig
from tests.evaluation.making import make_run, make_vocabulary

ALONE = "--gin.generate.mesh=@MeshConfig()"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    run = make_run(folder / "run", make_vocabulary(folder / "vocabulary"))
    (run / "vocabulary" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '<bos>' + m['role'] + ': ' + m['content'] }}{% endfor %}{{ '<eos>' }}"
    )
    return run


@pytest.fixture(scope="module")
def writer(run: Path) -> writing.Writer:
    compute = ComputeConfig(dtype="float32", remat="none")
    return writing.open_writer(open_model(str(run)), MeshConfig(), compute, 1)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def no_network(*arguments: Any) -> None:
    raise AssertionError(f"a connection was attempted: {arguments}")


def test_prompts_offline(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    to = tmp_path / "answers.jsonl"
    flags = [f"--checkpoint={run}", "--prompt=Insulin, glucose,", "--prompt", "心臓には", f"--to={to}", "--max_new=9"]
    assert generate.main([*flags, "--offline", "--template=none"]) == 0
    found = sorted(records(to), key=lambda record: record["number"])
    assert [record["prompt"] for record in found] == ["Insulin, glucose,", "心臓には"]
    first = found[0]
    vocabulary = open_model(str(run)).vocabulary
    tokens = vocabulary.encode("Insulin, glucose,").astype("<i4")
    assert first["prompt_sha256"] == hashlib.sha256(tokens.tobytes()).hexdigest()
    assert first["sampling"]["max_new"] == 9 and first["template"] == "none" and first["dtype"] == "float32"
    assert set(first["versions"]) == {"python", "t-elaine", "jax", "jaxlib", "numpy"}
    assert first["model"]["identity"] == open_model(str(run)).identity
    printed = capsys.readouterr().out
    assert all(record["answer"].strip() in printed for record in found)
    assert generate.main([*flags, "--offline"]) == 2
    assert "this file is there already" in capsys.readouterr().err
    assert generate.main([f"--checkpoint={run}", "--prompt=x", "--max_new=-4"]) == 2
    assert "max_new is -4" in capsys.readouterr().err


def test_a_remote_path_is_refused_offline(capsys: Any) -> None:
    assert generate.main(["--checkpoint=gs://bucket/run", "--prompt=x", "--offline"]) == 2
    assert "gs://bucket/run" in capsys.readouterr().err


def test_a_file_of_prompts(run: Path, tmp_path: Path) -> None:
    plain, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_text("one\n\ntwo, three\n")
    lines.write_text('{"prompt": "one"}\n{"prompt": "two, three"}\n')
    answers = []
    for path in (plain, lines):
        to = tmp_path / f"{path.suffix}.out"
        flags = [f"--checkpoint={run}", f"--prompts_file={path}", f"--to={to}", "--temperature=1", "--seed=5"]
        assert generate.main([*flags, "--max_new=5"]) == 0
        found = sorted(records(to), key=lambda record: record["number"])
        assert [r["prompt"] for r in found] == ["one", "two, three"] and found[0]["sampling"]["seed"] == 5
        answers.append([r["answer"] for r in found])
    assert answers[0] == answers[1]
    lines.write_text('{"prompt": "one"}\n{"text": "two"}\n')


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text": "two", "id": 3}', "this record has no \"prompt\": it has 'text', 'id'"),
        ("{}", "it has nothing"),
        ('{"prompt": 5}', '"prompt" is no text: 5'),
        ('["two"]', "this line is no JSON object"),
        ("two", "this line is not JSON"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str, told: str) -> None:
    lines = tmp_path / "prompts.jsonl"
    lines.write_text(f'{{"prompt": "one"}}\n\n{line}\n')
    with pytest.raises(UserError) as caught:
        asking.read_prompts(str(lines))
    assert told in caught.value.what and "Error(" not in caught.value.what
    assert caught.value.where == f"{lines}:3" and '"prompt"' in caught.value.mend


def test_the_cards_questions(run: Path, tmp_path: Path) -> None:
    to = tmp_path / "card.jsonl"
    flags = [f"--checkpoint={run}", "--questions=card", "--template=chat", "--max_new=4", f"--to={to}"]
    assert generate.main(flags) == 0
    found = records(to)
    assert {r["language"]: sum(o["language"] == r["language"] for o in found) for r in found} == {
        "en": 14,
        "ja": 12,
        "zh": 13,
    }
    sampling = found[0]["sampling"]
    assert (sampling["temperature"], sampling["top_p"], sampling["repetition_penalty"]) == (0.1, 0.9, 1.2)
    assert sampling["min_new"] == 4 and sampling["stop"] == ["<|eot_id|>", "<|end_of_text|>"]
    assert generate.main([*flags[:2], "--max_new=4"]) == 2  # ELAINE's template asks for <|eot_id|>


def test_the_shipped_questions_are_the_cards(shared_data: Path) -> None:
    published = json.loads((shared_data.parent / "published_tables.json").read_text())
    found = asking.load_questions("card")
    for language, texts in published["sample_questions"].items():
        assert [item.text for item in found.items if item.language == language] == texts
    decoding = published["sample_decoding"]
    ours = found.sampling
    assert (ours.max_new, ours.min_new, ours.temperature) == (1024, 50, decoding["temperature"])
    assert (ours.top_p, ours.repetition_penalty) == (decoding["top_p"], decoding["repetition_penalty"])
    assert list(ours.stop) == decoding["stop"] and found.template == "elaine"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "nothing to answer"),
        (["--prompt=x", "--chat"], "several things"),
        (["--questions=other"], "give one of: card"),
        (["--prompts_file=nowhere"], "cannot be read"),
        (["--prompt=x", "--gin.generate.sampling=@Sampling()", "--gin.Sampling.top_p=2.0"], "Sampling.top_p"),
        (["--prompt=" + "long " * 300], "model's context 256"),
    ],
)
def test_what_is_refused(run: Path, flags: list[str], told: str, capsys: Any) -> None:
    assert generate.main([f"--checkpoint={run}", *flags]) == 2
    assert told in capsys.readouterr().err


def talk(
    writer: writing.Writer, lines: list[Any], show: Any = None, max_new: int = 6
) -> tuple[list[Any], str, list[int]]:
    """A conversation with these lines (exceptions are raised): what was said and shown, and the prompts' messages."""
    waiting, shown, sizes = list(lines), [], []

    def read(prompt: str) -> str:
        if not waiting:
            raise EOFError
        line = waiting.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    def template(messages: Any) -> np.ndarray:
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        sizes.append(len(messages))
        return writer.model.vocabulary.encode(text).astype(np.int32)

    said = conversation.converse(writer.engine, template, Sampling(max_new=max_new), (1,), read, show or shown.append)
    return said, "".join(shown), sizes


def test_a_conversation_keeps_its_history(writer: writing.Writer) -> None:
    said, shown, sizes = talk(writer, ["Hello", "", KeyboardInterrupt(), "And you?"])
    assert [message["role"] for message in said] == ["user", "assistant"] * 2
    assert sizes == [1, 3] and said[1]["content"] in shown


def test_history_is_kept_within_the_context(writer: writing.Writer) -> None:
    said, shown, sizes = talk(writer, ["x" * 90, "y" * 90, "z" * 90, "w" * 600, "short"])
    assert max(sizes) >= 3 and said[0]["content"].startswith(("y", "z", "short"))
    assert "write less at a time" in shown and not any("w" * 600 in message["content"] for message in said)


def test_ctrl_c_ends_the_answer_and_sigterm_the_program(writer: writing.Writer) -> None:
    def after(count: int, interrupt: BaseException) -> Any:
        pieces: list[str] = []

        def show(text: str) -> None:
            pieces.append(text)
            if text.strip() and len(pieces) == count:
                raise interrupt

        return show

    said, _, _ = talk(writer, ["Hello", "Again"], after(2, KeyboardInterrupt()), max_new=60)
    assert len(said) == 4 and 0 < len(said[1]["content"]) < len(said[3]["content"])
    with pytest.raises(Terminated):
        talk(writer, ["Hello", "Again"], after(2, Terminated()), max_new=60)


def test_heads_lie_over_devices_where_they_divide(writer: writing.Writer) -> None:
    config = writer.model.config
    assert writing.default_mesh(config, 1).tensor == 1
    assert writing.default_mesh(config, 2) == (
        MeshConfig(fsdp=1, tensor=2) if config.vocab_size % 2 == 0 else MeshConfig()
    )
    assert writing.default_mesh(config, 8) == MeshConfig()
