"""A gateway of prepared answers on a real port, and a record of what it was asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(slots=True)
class FakeGateway:
    answers: dict[str, tuple[int, object]] = field(default_factory=dict)
    """`GET /path` → status and body: JSON, or bytes as they stand."""
    asked: list[tuple[str, object]] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length", 0))
        what = f"{handler.command} {handler.path}"
        self.asked.append((what, json.loads(handler.rfile.read(length)) if length else None))
        status, body = self.answers.get(
            what, (404, {"error": {"message": f"no answer for {what}", "code": "unknown_url"}})
        )
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def stream(self, *events: object, ends: bool = True) -> None:
        """Answer chats with these events."""
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        text = ": keep-alive\n\n" + "".join(lines) + ("data: [DONE]\n\n" if ends else "")
        self.answers["POST /v1/chat/completions"] = 200, text.encode()


def delta(text: str) -> dict[str, object]:
    """A chunk of a streamed chat answer."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


@contextmanager
def fake_gateway() -> Iterator[FakeGateway]:
    gateway = FakeGateway()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gateway.answer(self)

        def do_POST(self) -> None:
            gateway.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    gateway.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield gateway
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
