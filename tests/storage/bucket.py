"""An object store in a process of its own: gcp-storage-emulator, with what it lacks and with faults on demand.

Added to the emulator: many requests at once, generations in headers, writes and reads under a condition on the
generation (which Google's store has, and which leases and TensorStore rest on), a record of all requests, and faults:
a status (429, 503), a delay, or a broken connection for the next requests that match.
"""

import argparse
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

BUCKET = "bucket"


class Faults:
    """Which of the coming requests go wrong, and what was asked so far."""

    def __init__(self) -> None:
        self._lock, self._rules, self.seen = threading.Lock(), list[dict[str, Any]](), list[str]()

    def set(self, rules: list[dict[str, Any]]) -> None:
        with self._lock:
            self._rules = rules

    def take(self, request: str) -> dict[str, Any]:
        """The fault of this request, if any: the first rule that matches and is not used up."""
        with self._lock:
            self.seen.append(request)
            for rule in self._rules:
                if re.search(rule["match"], request) and rule.get("times", 1) > rule.get("used", 0):
                    rule["met"] = rule.get("met", 0) + 1
                    if rule["met"] % rule.get("every", 1):
                        continue
                    rule["used"] = rule.get("used", 0) + 1
                    return rule
        return {}


def serve(port: int, folder: str) -> None:
    """Serve until killed; objects lie in `folder`, so that a test can look at them."""
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import buckets
    from gcp_storage_emulator.storage import Storage

    logging.disable(logging.CRITICAL)  # it logs each object that is not there
    storage, faults, lock = Storage(data_dir=folder), Faults(), threading.RLock()
    buckets.create_bucket(BUCKET, storage)

    class Handler(server.RequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60
        _body = b""

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            return

        def _answer(self, method: str) -> None:
            if self.path == "/_faults":
                length = int(self.headers.get("Content-Length") or 0)
                if method == "POST":
                    faults.set(json.loads(self.rfile.read(length)))
                self._reply(HTTPStatus.OK, json.dumps(faults.seen).encode())
                return
            span = self.headers.get("Range", "")
            fault = faults.take(f"{method} {unquote(self.path)} {span}".rstrip())
            time.sleep(fault.get("delay", 0))
            if fault.get("cut"):  # the connection ends in the middle of an upload
                self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
                self.close_connection = True
                return
            if fault.get("status"):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._reply(fault["status"], b'{"error": {"message": "as the test wished"}}')
                return
            self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.rfile, wire = io.BytesIO(self._body), self.rfile
            try:
                self._pass_on(method)
            finally:
                self.rfile = wire

        def _pass_on(self, method: str) -> None:
            if method == "GET" and self._sent_part():
                return
            with lock:
                if not self._refused(method):
                    server.Router(self).handle(method)

        do_GET = lambda self: self._answer("GET")  # noqa: E731
        do_POST = lambda self: self._answer("POST")  # noqa: E731
        do_PUT = lambda self: self._answer("PUT")  # noqa: E731
        do_DELETE = lambda self: self._answer("DELETE")  # noqa: E731
        do_PATCH = lambda self: self._answer("PATCH")  # noqa: E731

        def _reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _sent_part(self) -> bool:
            """Answer a ranged request from the file alone; the emulator reads the whole object for each of them."""
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            found = re.search(r"/b/[^/]+/o/([^?]+)", self.path)
            path = os.path.join(folder, ".cloudstorage", BUCKET, unquote(found.group(1))) if found else ""
            if not span or "ifGeneration" in self.path or not os.path.isfile(path):
                return False
            start, end = int(span.group(1)), min(int(span.group(2)) + 1, os.path.getsize(path))
            with open(path, "rb") as file:
                file.seek(start)
                body = file.read(max(0, end - start))
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{os.path.getsize(path)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return True

        def _generation(self) -> str:
            found = re.search(r"/b/[^/]+/o/([^?]+)|[?&]name=([^&]+)", self.path)
            named = re.search(rb'"name": *"([^"]+)"', self._body)  # an upload may name its object in its body
            if not found and not named:
                return "0"
            name = unquote(found.group(1) or found.group(2)) if found else named.group(1).decode()  # type: ignore
            try:
                meta = storage.get_file_obj(BUCKET, name)
            except Exception:  # the emulator has its own classes for what is not there
                return "0"
            return str(meta["generation"])

        def _refused(self, method: str) -> bool:
            """Answer 412 or 304 where the request's condition on the generation does not hold."""
            wanted = re.search(r"ifGenerationMatch=(\d+)", self.path)
            other = re.search(r"ifGenerationNotMatch=(\d+)", self.path)
            here = self._generation() if wanted or other else ""
            if wanted and wanted.group(1) != here:
                self._reply(HTTPStatus.PRECONDITION_FAILED, b'{"error": {"message": "conditionNotMet"}}')
                return True
            if other and other.group(1) == here:
                self.send_response(HTTPStatus.NOT_MODIFIED)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return True
            return False

        def end_headers(self) -> None:
            if self.command == "GET" and "alt=media" in self.path:
                self.send_header("x-goog-generation", self._generation())
            super().end_headers()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    Server(("127.0.0.1", port), partial(Handler, storage)).serve_forever()


def environment(port: int) -> dict[str, str]:
    """What makes gcsfs, Google's client and TensorStore talk to the stand-in."""
    url = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GOOGLE_CLOUD_PROJECT": "none",
    }


class Bucket:
    """A running stand-in: gs://bucket for every process with `environment(port)`."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"gs://{BUCKET}"

    def _ask(self, data: bytes | None) -> list[str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/_faults", data)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return list(json.loads(answer.read()))

    def faults(self, *rules: dict[str, Any]) -> None:
        """From now on: {"match": regular expression of "METHOD path range", "times": n, "every": m, "status": 429}."""
        self._ask(json.dumps(rules).encode())

    def seen(self) -> list[str]:
        """All requests so far."""
        return self._ask(None)


@contextmanager
def running(folder: str) -> Iterator[Bucket]:
    """A stand-in as long as the block lasts."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, "--port", str(port), "--folder", folder])
    bucket, until = Bucket(port), time.monotonic() + 30
    try:
        while True:
            try:
                bucket.seen()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.05)
        yield bucket
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--folder")
    given = parser.parse_args()
    os.makedirs(given.folder, exist_ok=True)
    serve(given.port, given.folder)
