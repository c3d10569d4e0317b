"""A stand-in for the Hugging Face hub: an HTTP server in a thread that speaks as much of its protocol as we use.

Repositories are dictionaries of bytes. Trouble is ordered by `StandIn.trouble`: the next so many requests whose method
and path match are answered with a status, broken off in the middle, or changed. Every request is kept.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

FRIEND, STRANGER = "hf_friend", "hf_stranger"
LARGE = (".safetensors", ".bin", "tokenizer.json")


@dataclass
class Repo:
    """One repository: revision name → (commit, files)."""

    revisions: dict[str, tuple[str, dict[str, bytes]]]
    private: bool = False
    gated: bool = False

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        by_commit = {commit: (commit, files) for commit, files in self.revisions.values()}
        return self.revisions.get(revision) or by_commit.get(revision)


@dataclass
class Trouble:
    """What happens to the next `times` requests that match."""

    method: str
    path: str
    times: int
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    break_after: int = -1
    flip_bit: bool = False
    cut: int = 0


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any = None


class StandIn:
    """The hub's state and what befell it; `url` is its HF_ENDPOINT."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.troubles: list[Trouble] = []
        self.large: dict[str, bytes] = {}
        self.url = ""

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repo:
        """A repository whose main branch and tag `old` hold the files (`old` with another generation config)."""
        older = {**files, "generation_config.json": b'{"temperature": 0.1}'}
        self.repos[name] = Repo({"main": ("a" * 40, files), "old": ("b" * 40, older)}, **options)
        return self.repos[name]

    def trouble(self, method: str, path: str, times: int = 1000, **what: Any) -> None:
        self.troubles.append(Trouble(method, path, times, **what))

    def asked(self, method: str, path: str) -> list[Request]:
        return [r for r in self.requests if r.method == method and re.search(path, r.path)]

    def next_trouble(self, method: str, path: str) -> Trouble | None:
        for trouble in self.troubles:
            if trouble.times > 0 and trouble.method in (method, "*") and re.search(trouble.path, path):
                trouble.times -= 1
                return trouble
        return None


@contextmanager
def serving() -> Iterator[StandIn]:
    """A running stand-in on a free port of this machine."""
    hub = StandIn()
    handler = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            raw = b"".join(iter(self._chunk, b""))
        self.hub.requests.append(Request(self.command, path, dict(self.headers), raw))
        trouble = self.hub.next_trouble(self.command, path)
        if trouble and trouble.status:
            return self._answer(trouble.status, b"trouble", trouble.headers)
        for pattern, work in ROUTES:
            if found := re.fullmatch(pattern, path):
                return work(self, raw, trouble, *found.groups())
        self._answer(404, b"{}")

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, trouble: Trouble | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if trouble and 0 <= trouble.break_after < len(body):
            self.wfile.write(body[: trouble.break_after])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _find(self, name: str, revision: str, content: bool = False) -> tuple[str, dict[str, bytes]] | None:
        """The revision; or None, with the refusal already sent as the hub words it."""
        repo, token = self.hub.repos.get(name), self._token()
        if token not in ("", FRIEND, STRANGER):
            self._answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.private and token != FRIEND):
            self._answer(404 if token else 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif repo.gated and content and token != FRIEND:
            self._answer(403 if token else 401, b"", {"X-Error-Code": "GatedRepo"})
        elif (found := repo.at(revision)) is None:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return found
        return None

    def model(self, raw: bytes, trouble: Trouble | None, name: str, revision: str | None) -> None:
        if not (found := self._find(name, revision or "main")):
            return
        siblings = [sibling(file, data) for file, data in found[1].items()]
        private = self.hub.repos[name].private
        self._json({"id": name, "modelId": name, "sha": found[0], "private": private, "siblings": siblings})

    def tree(self, raw: bytes, trouble: Trouble | None, name: str, revision: str) -> None:
        if found := self._find(name, revision):
            self._json([{"type": "file", "path": f, "size": len(d), "oid": git_sha1(d)} for f, d in found[1].items()])

    def resolve(self, raw: bytes, trouble: Trouble | None, name: str, revision: str, file: str) -> None:
        if not (found := self._find(name, revision, content=True)):
            return
        commit, files = found
        if file not in files:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data = files[file]
        digest = hashlib.sha256(data).hexdigest() if file.endswith(LARGE) else git_sha1(data)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if trouble and trouble.flip_bit:
            data = bytes([*data[:-1], data[-1] ^ 1])
        if trouble and trouble.cut:
            data = data[: -trouble.cut]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(206 if start else 200, data[start:], headers, trouble)

    def create(self, raw: bytes, trouble: Trouble | None) -> None:
        wish = json.loads(raw)
        name = f"{wish.get('organization') or 'me'}/{wish['name']}"
        if self._token() != FRIEND:
            return self._answer(403 if self._token() else 401, b"", {"X-Error-Message": "no right to write"})
        if name in self.hub.repos:
            return self._json({"url": f"{self.hub.url}/{name}"}, 409)
        private = wish.get("visibility") == "private" or wish.get("private") is True
        self.hub.repos[name] = Repo({"main": ("0" * 40, {})}, private=private)
        self._json({"url": f"{self.hub.url}/{name}"})

    def preupload(self, raw: bytes, trouble: Trouble | None, name: str, revision: str) -> None:
        files = [f["path"] for f in json.loads(raw)["files"]]
        modes = {file: "lfs" if file.endswith(LARGE) else "regular" for file in files}
        self._json({"files": [{"path": f, "uploadMode": m, "shouldIgnore": False} for f, m in modes.items()]})

    def batch(self, raw: bytes, trouble: Trouble | None, name: str) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.url}/large/{entry['oid']}"}}}
            for entry in json.loads(raw)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def store(self, raw: bytes, trouble: Trouble | None, digest: str) -> None:
        right = hashlib.sha256(raw).hexdigest() == digest
        if right:
            self.hub.large[digest] = raw
        self._answer(200 if right else 422, b"")

    def commit(self, raw: bytes, trouble: Trouble | None, name: str, revision: str) -> None:
        old, files = self.hub.repos[name].revisions[revision]
        files = dict(files)
        for line in map(json.loads, raw.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        new = hashlib.sha1(old.encode() + raw).hexdigest()
        self.hub.repos[name].revisions[revision] = (new, files)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{new}", "commitOid": new, "success": True})

    def accept(self, raw: bytes, trouble: Trouble | None) -> None:
        self._json({"warnings": [], "errors": []})


def git_sha1(data: bytes) -> str:
    """Git's digest of a file."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def sibling(file: str, data: bytes) -> dict[str, Any]:
    """A file as the hub describes it."""
    described: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": git_sha1(data)}
    if file.endswith(LARGE):
        described["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return described


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    (rf"/api/models/{NAME}(?:/revision/(.+))?", Handler.model),
    (rf"/api/models/{NAME}/tree/(.+)", Handler.tree),
    (rf"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    (rf"/api/models/{NAME}/commit/(.+)", Handler.commit),
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.accept),
    (r"/large/(\w+)", Handler.store),
    (rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
)
