"""The published exams by name: what is said where one is absent, another, or misspelt; that fetching verifies."""

import hashlib
from pathlib import Path

import pytest

from t_elaine.errors import UserError
from t_elaine.evaluation import benchmarks, protocols
from t_elaine.evaluation.items import load_exam
from t_elaine.evaluation.suites import load_suite

COMMIT = "614599e5042052a374fca74590a2dd95c80a56b3"


def test_an_absent_exam_is_told_with_all_that_is_needed_to_get_it(tmp_path: Path) -> None:
    for load in (load_exam, lambda name, folder: load_suite(name, suites_dir=folder)):
        with pytest.raises(UserError) as raised:
            load("ja/JJSIMQA", str(tmp_path))
        for part in (
            "https://github.com/aistairc/medLLM_QA_benchmark",
            COMMIT,
            "CC-BY-NC-SA-4.0",
            f"python -m t_elaine.evaluation.benchmarks {tmp_path} ja/JJSIMQA",
        ):
            assert part in raised.value.mend
        assert raised.value.where == str(tmp_path / "ja" / "JJSIMQA" / "jjsimqa.jsonl")
    with pytest.raises(UserError, match=r"no folder of exams is given for en/MedQA(.|\n)*--suites_dir=FOLDER"):
        load_exam("en/MedQA")


@pytest.mark.parametrize(("name", "near"), [("en/MedQ", "en/MedQA"), ("ja/igakuqa", "ja/IgakuQA"), ("CMExam", "zh/CM")])
def test_an_unknown_name_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"no benchmark is called '{name}'(.|\n)*did you mean (.*){near}"):
        load_suite(name)


def test_all_are_there_as_published(shared_data: Path) -> None:
    folder = shared_data / "benchmarks" / "elaine"
    for benchmark in benchmarks.benchmarks().values():
        if benchmark.name in benchmarks.MADE:
            continue
        exam = load_exam(benchmark.name, str(folder))
        assert exam.published and (exam.name, exam.language) == (benchmark.name, benchmark.language)
        assert len(exam.items) == benchmark.items and benchmark.commit == COMMIT
        assert load_exam(str(folder / benchmark.path)).name == benchmark.name, "a file is known by its digest"


def test_a_cut_file_is_not_taken_for_the_published_one(shared_data: Path, tmp_path: Path) -> None:
    benchmark = benchmarks.named("ja/DenQA")
    content = (shared_data / "benchmarks" / "elaine" / benchmark.path).read_bytes()
    path = tmp_path / benchmark.path
    path.parent.mkdir(parents=True)
    path.write_bytes(content[: content.index(b"\n") + 1])
    with pytest.raises(UserError, match=r"not ja/DenQA as published(.|\n)*cut off") as raised:
        load_exam("ja/DenQA", str(tmp_path))
    assert raised.value.where == str(path)


def test_fetching_verifies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content = "{}\n心\n".encode()
    one = benchmarks.Benchmark(
        name="ja/One",
        file="one.jsonl",
        items=2,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        licence="MIT",
        repository="https://example.org/repository",
        commit="0" * 40,
        url="https://example.org/one.jsonl",
    )
    monkeypatch.setattr(benchmarks, "benchmarks", lambda: {one.name: one})
    asked = list[str]()

    def read(url: str) -> bytes:
        asked.append(url)
        return content

    for _ in range(2):
        (path,) = benchmarks.fetch(str(tmp_path), ["ja/One"], read)
    assert path.read_bytes() == content and asked == [one.url], "what is there stays"
    path.unlink()
    with pytest.raises(UserError, match="not ja/One as published"):
        benchmarks.fetch(str(tmp_path), [], lambda url: content[:-1])
    assert not path.exists()
    assert benchmarks.main([str(tmp_path), "ja/Two"]) == 2
    assert "no benchmark is called 'ja/Two'" in capsys.readouterr().err


def test_urls_name_the_commit() -> None:
    url = benchmarks.named("zh/MedQA-4op").url
    assert url.endswith(f"/aistairc/medLLM_QA_benchmark/{COMMIT}/data/zh/MedQA-4op/medqa_zh_4op.jsonl")


@pytest.mark.parametrize(("name", "what"), [("official", "generates answers"), ("likelyhood", "is not there")])
def test_only_protocols_that_score_options_are_taken_for_it(name: str, what: str) -> None:
    with pytest.raises(UserError, match=f"the protocol '{name}' {what}(.|\n)*give one of: likelihood$"):
        protocols.load_protocol(name)
