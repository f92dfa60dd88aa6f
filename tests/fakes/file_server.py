"""A web server with one file: Range, If-Range, and the faults of real ones."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.tag: str | None = '"one"'
        self.break_after: int | None = None
        """Close the connection after so many bytes of each answer."""
        self.tells_length = True
        self.status: int | None = None
        """Answer everything with this."""
        self.ranges: list[str | None] = []
        """What was asked for."""
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.ranges.append(asked)
        if self.status is not None:
            handler.send_error(self.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if asked and handler.headers.get("If-Range") != self.tag:
            start = 0
        if start and start >= len(self.content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if self.tells_length:
            handler.send_header("Content-Length", str(len(self.content) - start))
        if self.tag is not None:
            handler.send_header("ETag", self.tag)
        handler.end_headers()
        stop = len(self.content) if self.break_after is None else start + self.break_after
        handler.wfile.write(self.content[start:stop])


@contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    files = FileServer(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            files.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    files.url = f"http://127.0.0.1:{server.server_address[1]}/a-model.gguf"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
