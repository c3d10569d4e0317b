"""Fetching the public texts: from a local server that breaks off, refuses, or sends something else; then the rules."""

import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import fetch_texts, public_texts
from t_elaine.errors import UserError

COMMIT = "0" * 40
QUICK: dict[str, Any] = {"pause": 0.01, "timeout": 5.0}


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path. `plan[path]`: what to do at each request, in turn; then all is well.

    A number: send so many bytes of what was asked for and close; "no range": send all; a status in words: answer it.
    `asked` keeps each request as (path, Range header).
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.plan: dict[str, list[Any]] = {}
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        assert isinstance(server, Server)
        server.asked.append((self.path, asked))
        turn = server.plan.get(self.path, [])
        todo = turn.pop(0) if turn else None
        if isinstance(todo, str) and todo.isdigit():
            return self.send_error(int(todo))
        if self.path not in server.files:
            return self.send_error(404)
        body, first = server.files[self.path], 0
        if asked and todo != "no range":
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        self.wfile.write(body[first : first + todo] if isinstance(todo, int) else body[first:])
        return None

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    one = Server()
    thread = threading.Thread(target=one.serve_forever, args=(0.01,))
    thread.start()
    yield one
    one.shutdown()
    thread.join()
    one.server_close()


BODIES = {"data/a.json": bytes(range(256)) * 4, "md/中 文.md": "# 標題\n".encode() * 50}


def offer(server: Server, bodies: dict[str, bytes] = BODIES) -> dict[str, Any]:
    """Put the files on the server; returns the table that names them."""
    files = {path: [len(body), hashlib.sha256(body).hexdigest()] for path, body in bodies.items()}
    table = {"repositories": {"owner/name": {"commit": COMMIT, "licence": "MIT", "files": files}}}
    for one, body in zip(fetch_texts.wanted(table, Path(), server.url), bodies.values(), strict=True):
        server.files[one.url.removeprefix(server.url)] = body
    return table


def one_file(server: Server, folder: Path) -> tuple[fetch_texts.Wanted, str]:
    """(a file to fetch, its path on the server)."""
    one = next(fetch_texts.wanted(offer(server), folder, server.url))
    return one, one.url.removeprefix(server.url)


def test_files_are_fetched_once_and_are_what_was_named(server: Server, tmp_path: Path) -> None:
    table = offer(server)
    assert fetch_texts.fetch_all(table, tmp_path, server.url, **QUICK) == 2
    assert {path: (tmp_path / "owner/name" / path).read_bytes() for path in BODIES} == BODIES
    assert fetch_texts.fetch_all(table, tmp_path, server.url, **QUICK) == 0
    assert len(server.asked) == 2 and all(COMMIT in path for path, _ in server.asked)
    assert not list(tmp_path.rglob("*.part"))


def test_a_connection_that_breaks_off_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    one, path = one_file(server, tmp_path)
    server.plan[path] = [300, 200]
    assert fetch_texts.fetch(one, **QUICK)
    assert one.target.read_bytes() == BODIES["data/a.json"]
    assert [asked for _, asked in server.asked] == [None, "bytes=300-", "bytes=500-"]


def test_a_server_without_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    one, path = one_file(server, tmp_path)
    server.plan[path] = [300, "no range"]
    assert fetch_texts.fetch(one, **QUICK)
    assert one.target.read_bytes() == BODIES["data/a.json"]


def test_giving_up_keeps_what_came_for_the_next_start(server: Server, tmp_path: Path) -> None:
    one, path = one_file(server, tmp_path)
    server.plan[path] = [100, 100, 0]
    with pytest.raises(UserError, match="3 tries with 200 of 1,024 bytes") as caught:
        fetch_texts.fetch(one, tries=3, **QUICK)
    assert caught.value.where == one.url and "start the command again" in caught.value.mend
    assert not one.target.exists()
    assert fetch_texts.fetch(one, **QUICK)
    assert server.asked[-1][1] == "bytes=200-"
    assert one.target.read_bytes() == BODIES["data/a.json"]


def test_another_file_under_the_name_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    one, path = one_file(server, tmp_path)
    server.files[path] = b"x" * one.bytes
    with pytest.raises(UserError, match=f"SHA-256 .*, not {one.sha256}") as caught:
        fetch_texts.fetch(one, **QUICK)
    assert caught.value.where == one.url
    assert list(tmp_path.rglob("*.*")) == []
    server.files[path] = BODIES["data/a.json"]
    assert fetch_texts.fetch(one, **QUICK)


def test_a_longer_file_is_refused(server: Server, tmp_path: Path) -> None:
    one, path = one_file(server, tmp_path)
    server.files[path] += b"more"
    with pytest.raises(UserError, match="1,028 bytes"):
        fetch_texts.fetch(one, **QUICK)
    assert not one.target.exists()


def test_a_damaged_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    one, _ = one_file(server, tmp_path)
    fetch_texts.fetch(one, **QUICK)
    one.target.write_bytes(BODIES["data/a.json"][:-1] + b"?")
    assert fetch_texts.fetch(one, **QUICK)
    assert one.target.read_bytes() == BODIES["data/a.json"]


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    one, path = one_file(server, tmp_path)
    server.plan[path] = ["503", "429"]
    assert fetch_texts.fetch(one, **QUICK)
    assert len(server.asked) == 3
    one.target.unlink()
    del server.files[path]
    with pytest.raises(UserError, match="answered 404"):
        fetch_texts.fetch(one, **QUICK)
    assert len(server.asked) == 4


def test_no_network_says_so_and_how_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        assert fetch_texts.main([f"--to={tmp_path}", f"--mirror={address}"]) == 2
    told = capsys.readouterr().err
    assert "cannot be reached" in told and "where: http" in told and "--mirror" in told


def test_the_shipped_table_names_whole_facts() -> None:
    table = json.loads(fetch_texts.TABLE.read_text(encoding="utf-8"))
    assert set(table["texts"]) == set(public_texts.RULES)
    for entry in table["repositories"].values():
        assert len(entry["commit"]) == 40 and entry["licence"]
        assert all(size > 0 and len(digest) == 64 for size, digest in entry["files"].values())


def publish(folder: Path, repository: str, files: dict[str, Any]) -> public_texts.Published:
    for path, content in files.items():
        target = folder / repository / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return public_texts.Published(folder, {"repositories": {repository: {"files": dict.fromkeys(files)}}})


def test_abstracts_of_the_test_set_are_left_out(tmp_path: Path) -> None:
    row = {"LABELS": ["AIM", "RESULTS"], "CONTEXTS": ["To see.", "Seen."], "LONG_ANSWER": "Yes."}
    files = {"data/ori_pqal.json": {"1": row, "2": row}, "data/test_ground_truth.json": {"1": "yes"}}
    found = list(public_texts.pubmedqa_abstracts(publish(tmp_path, public_texts.PUBMEDQA, files)))
    assert [(d.id, d.text) for d in found] == [("pmid-2", "AIM: To see.\nRESULTS: Seen.\nCONCLUSION: Yes.")]


def test_pages_lose_their_tags_and_pairs_without_answer(tmp_path: Path) -> None:
    pairs = "<QAPair><Question>Why ?</Question><Answer>So  it is.\n\n &lt; 5</Answer></QAPair>"
    pairs += "<QAPair><Question>How ?</Question><Answer/></QAPair>"
    files = {"2_GARD_QA/0000001.xml": f"<Document><Focus> Flu </Focus><QAPairs>{pairs}</QAPairs></Document>"}
    (page,) = public_texts.medquad_nih_web(publish(tmp_path, public_texts.MEDQUAD, files))
    assert page == ("medquad-2_GARD_QA-0000001", public_texts.MEDQUAD, "web text", "Flu\n\nWhy ?\nSo it is.\n< 5")


def test_a_report_that_many_questions_quote_stands_once(tmp_path: Path) -> None:
    report = "「症例は「高血圧」で，\n発熱あり．」"
    table = f'tag,question\nd,"所見は？\n{report}"\nm,"薬は？\n{report}"\n'
    published = publish(tmp_path, public_texts.JMED, {"datasets/all/CRNER.csv": table})
    found = list(public_texts.case_and_radiology_reports(published))
    assert [(d.id, d.text) for d in found] == [("jmed-case-0000", "症例は「高血圧」で，\n発熱あり．")]


def test_documents_that_are_not_the_named_ones_are_refused(tmp_path: Path) -> None:
    row = {"LABELS": ["AIM"], "CONTEXTS": ["To see."], "LONG_ANSWER": "Yes."}
    files = {"data/ori_pqal.json": {"2": row}, "data/test_ground_truth.json": {}}
    published = publish(tmp_path / "published", public_texts.PUBMEDQA, files)
    name = "corpora/en/pubmedqa_abstracts.jsonl.gz"
    good = public_texts.digest(list(public_texts.pubmedqa_abstracts(published)))
    table = {**published.table, "texts": {name: {"documents": 1, "sha256": good}}}
    fetch_texts.make_texts(table, published.folder, tmp_path / "texts")
    assert (tmp_path / "texts" / name).is_file()
    table["texts"][name]["sha256"] = "0" * 64
    with pytest.raises(UserError, match="1 documents came out"):
        fetch_texts.make_texts(table, published.folder, tmp_path / "other")
