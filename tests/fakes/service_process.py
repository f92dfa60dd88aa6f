"""A service as the supervisor sees it: a real process that answers /readyz."""

import argparse
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--journal", type=Path, help="append `name start` and `name stop` here")
    parser.add_argument("--name", default="service")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--exit-at-once", type=int, metavar="CODE")
    parser.add_argument("--exit-on-usr1", type=int, metavar="CODE")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--say", default="", help="written to standard output at the start")
    options = parser.parse_args()
    journal = options.journal or Path(os.devnull)

    def note(what: str) -> None:
        with journal.open("a") as file:
            file.write(f"{options.name} {what}\n")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if options.never_ready else 200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            pass

    note("start")
    if options.say:
        print(options.say, flush=True)
    if options.exit_at_once is not None:
        sys.exit(options.exit_at_once)
    if options.exit_on_usr1 is not None:
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(options.exit_on_usr1))
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.serve_forever(poll_interval=0.02)
    note("stop")


if __name__ == "__main__":
    main()
