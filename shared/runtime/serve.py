"""The main function of every service: configuration in, uvicorn up, clean stop on SIGTERM."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shared.runtime.config import BIND_KEYS, Config, ConfigError, check_exposure, load_config, split_address
from shared.runtime.giving_up import EXIT_REFUSED, GivingUp
from shared.runtime.logging import configure_logging
from shared.runtime.parent import die_with_parent, is_orphan, watched_parent

log = logging.getLogger(__name__)

EXIT_CONFIG = 2
KEEPALIVE_S = 75  # above the clients' 30 s: they never put a call on a connection that is being closed
GRACEFUL_STOP_S = 25  # open answers end themselves on `draining`; after this they are cut
MAX_CONNECTIONS = 2_048
BACKLOG = 2_048
LAST_REQUEST_S = 0.3
"""How long connections are kept after the process was told to stop, for a request that was on its way: closing at once
would leave its client without a word."""


def serve(create_app: Callable[[Config], FastAPI], *, bind: Callable[[Config], str], service: str) -> None:
    """Run `service` until SIGTERM or SIGINT; then return, which ends the process with code 0.

    Exits with code 2 and one line on standard error when the configuration is wrong or the port is taken, with
    `EXIT_REFUSED` and one line when the app gave up.
    """
    try:
        config = load_config(None, os.environ)
        configure_logging(service, config.logging.level)
        parent_pid = watched_parent(os.environ)
        if parent_pid is not None:
            die_with_parent()
        address = bind(config)
        check_exposure(config, service, address)
        listener = listen(address, key=BIND_KEYS.get(service, service))
        app = create_app(config)
    except ConfigError as error:
        sys.stderr.write(f"butterfly {service}: {error.message}\n")
        sys.exit(EXIT_CONFIG)
    run(app, listener, head_limit_s=config.api.request_timeout_secs, parent_pid=parent_pid)
    giving_up: GivingUp = app.state.giving_up
    if giving_up.reason is not None:
        sys.stderr.write(f"butterfly {service}: {giving_up.reason}\n")
        sys.exit(EXIT_REFUSED)


def listen(address: str, *, key: str) -> socket.socket:
    """A socket bound to `address`; raises `ConfigError` naming the port and its setting `key` when it is taken."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off (40 ms per small answer) only where the protocol is given.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on port {port} of {host} ({error.strerror}): free it or set {key} to another"
        ) from None
    return listener


def run(app: FastAPI, listener: socket.socket, *, head_limit_s: float, parent_pid: int | None = None) -> None:
    """Serve `app` on `listener` until the process is told to stop, its watched parent is gone or the app gives up.

    A connection on which a request's head does not arrive within `head_limit_s` is closed.
    """
    config = uvicorn.Config(
        app,
        http=_protocol(head_limit_s),
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEPALIVE_S,
        timeout_graceful_shutdown=GRACEFUL_STOP_S,
        limit_concurrency=MAX_CONNECTIONS,
        backlog=BACKLOG,
    )
    server = _Server(config, draining=app.state.draining, giving_up=app.state.giving_up, parent_pid=parent_pid)
    server.run(sockets=[listener])
    log.info("stopped")


def _protocol(head_limit_s: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with what it lacks: an end to waiting for a request's head, and time for a last request."""

    class Protocol(HttpToolsProtocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._arrived()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            self._arrived()
            self._wait()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._arrived()
            super().on_headers_complete()

        def shutdown(self) -> None:
            # From the end of the answer under way.
            self.timeout_keep_alive = LAST_REQUEST_S  # type: ignore[assignment]  # seconds need not be whole
            if self.cycle is None or self.cycle.response_complete:
                self._unset_keepalive_if_required()
                self.timeout_keep_alive_task = self.loop.call_later(LAST_REQUEST_S, self.timeout_keep_alive_handler)

        def _wait(self) -> None:
            self._waiting = self.loop.call_later(head_limit_s, self.timeout_keep_alive_handler)

        def _arrived(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()

    return Protocol


class _Server(uvicorn.Server):
    """uvicorn that tells the app first that it stops, and ends with code 0 after a clean stop."""

    def __init__(
        self, config: uvicorn.Config, *, draining: asyncio.Event, giving_up: GivingUp, parent_pid: int | None
    ) -> None:
        super().__init__(config)
        self._draining = draining
        self._giving_up = giving_up
        self._parent_pid = parent_pid
        self._signal: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            log.info("listening", extra={"host": host, "port": port, "pid": os.getpid()})
        # What start-up made stays until the end: collections need not look at it again, in the middle of answers.
        gc.collect()
        gc.freeze()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On a signal: only notes it. Not handed on to the base class, which would raise it again at the end."""
        if self._signal is not None:
            self.force_exit = True  # told twice: no more grace
        self._signal = sig

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second, in the event loop."""
        if not self._draining.is_set():
            if self._signal is not None:
                self._drain("signal", name=signal.Signals(self._signal).name)
            elif is_orphan(self._parent_pid):
                self._drain("parent_gone", name=str(self._parent_pid))
            elif self._giving_up.reason is not None:
                self._drain("gave_up", name=self._giving_up.reason)
        return await super().on_tick(counter)

    def _drain(self, reason: str, *, name: str) -> None:
        log.info("draining", extra={"reason": reason, "what": name})
        self._draining.set()
        self.should_exit = True
