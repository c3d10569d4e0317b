"""An OpenAI-compatible server on this machine that answers as it is told: a helper of the tests, no tests itself."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes] | None  # None: the connection is closed without a word


def reply(content: Any) -> Reply:
    """Some JSON."""
    return 200, {}, json.dumps(content).encode()


def completion(text: Any) -> Reply:
    """A good answer."""
    return reply({"object": "text_completion", "choices": [{"index": 0, "text": text}]})


def refusal(status: int, message: str, **headers: str) -> Reply:
    """An error as OpenAI-compatible servers give it."""
    return status, headers, json.dumps({"error": {"message": message, "code": status}}).encode()


@dataclass
class StandIn:
    """What the server does and what it was asked."""

    answer: Callable[[dict[str, Any], int], Reply]  # (body, how often its prompt came before) → reply
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "tiny", "max_model_len": 64}])
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most: int = 0
    running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def times(self, part: str) -> int:
        """How often prompts that hold this text came."""
        return sum(part in body["prompt"] for body in self.asked)


@contextmanager
def serving(server: StandIn) -> Iterator[StandIn]:
    """The server, on a free port of this machine, while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send((200, {}, json.dumps({"data": server.models}).encode()))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                before = sum(one["prompt"] == body["prompt"] for one in server.asked)
                server.asked.append(body)
                server.keys.append(self.headers.get("Authorization"))
                server.running += 1
                server.most = max(server.most, server.running)
            reply = server.answer(body, before)
            with server.lock:  # before it is sent: who gets it may ask again at once
                server.running -= 1
            self.send(reply)

        def send(self, reply: Reply) -> None:
            if reply is None:
                self.close_connection = True
                return
            status, headers, content = reply
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            with suppress(BrokenPipeError):  # whoever asked waits no more
                self.end_headers()
                self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
