"""The two Redis clients of a process, and what makes their server one to rely on."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from shared.domain.errors import RegistryUnavailable, RegistryUntrusted
from shared.registry.keys import SINGLES

log = logging.getLogger(__name__)

DURABLE_SETTINGS = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
MAX_CONNECTIONS = 32
BLOCKING_TIMEOUT_S = 10.0  # twice the longest block: a server that fell silent is not waited for for ever
POOL_WAIT_S = 2.0  # a full pool means wait, then an error, never unbounded sockets
LOST = "the Redis server lost data since this service started (a restored backup, or emptied): look at it, then restart"
_WROTE_TO_CLOSED = "the handler is closed"
"""uvloop's words for writing to a connection that broke meanwhile. The client library lets that error through."""


class ServerLostData(RedisError):
    """Raised in place of a connection; not retried by the library, which retries broken connections only."""


@contextmanager
def reaching_registry() -> Iterator[None]:
    """Whatever goes wrong with the store is `RegistryUnavailable` to those who use it."""
    try:
        yield
    except ServerLostData as error:
        raise RegistryUntrusted(LOST) from error
    except (RedisError, OSError) as error:
        raise RegistryUnavailable("the task registry does not answer", retry_after_s=1.0) from error
    except RuntimeError as error:
        if _WROTE_TO_CLOSED not in str(error):
            raise
        raise RegistryUnavailable("the connection to the task registry broke", retry_after_s=1.0) from error


class Lineage:
    """Whether the server still is the one whose data this process has seen.

    A counter in it rises with each process that starts; lower than seen, or gone, means a backup or an emptied
    server. Every new connection is checked before it carries a command, so that not one write goes to such a server
    when it came in place of the old one.
    """

    def __init__(self) -> None:
        self._seen: int | None = None
        self._is_lost = False

    async def connected(self, connection: AbstractConnection) -> None:
        """What redis-py calls for each new connection.

        Without its health checks, which would connect anew, and so come here again, before this connection is made.
        """
        await connection.on_connect_check_health(check_health=False)
        if self._seen is not None:
            await connection.send_command("GET", SINGLES["generation"], check_health=False)
            self._compare(await connection.read_response())

    async def check(self, client: Redis) -> None:
        """Raise `ServerLostData` when it did, at any time since the first call."""
        if self._seen is None:
            self._seen = int(await client.incr(SINGLES["generation"]))
        else:
            self._compare(await client.get(SINGLES["generation"]))

    def _compare(self, found: bytes | str | None) -> None:
        if self._seen is not None and (found is None or int(found) < self._seen):
            self._is_lost = True
        if self._is_lost:  # for good: counting on from a backup does not bring back what is lost
            raise ServerLostData


@dataclass(frozen=True, slots=True)
class RedisClients:
    """`commands` answer soon or fail; `blocking` may wait 5 s inside one command (BLPOP, XREAD BLOCK)."""

    commands: Redis
    blocking: Redis
    lineage: Lineage

    async def disconnect(self) -> None:
        """Break every connection, those in use too; the next command makes a new one."""
        for client in (self.commands, self.blocking):
            await client.connection_pool.disconnect(inuse_connections=True)

    async def aclose(self) -> None:
        await self.blocking.aclose()
        await self.commands.aclose()


def make_clients(url: str) -> RedisClients:
    """Connects at first use. Raises `ValueError` for a URL that is none."""
    lineage = Lineage()
    return RedisClients(
        commands=_client(url, lineage, socket_timeout=2.0),
        blocking=_client(url, lineage, socket_timeout=BLOCKING_TIMEOUT_S),
        lineage=lineage,
    )


def _client(url: str, lineage: Lineage, *, socket_timeout: float) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=POOL_WAIT_S,
        socket_timeout=socket_timeout,
        socket_connect_timeout=1.0,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), 2),
        health_check_interval=15,
        redis_connect_func=lineage.connected,
    )
    return Redis.from_pool(pool)


class DurabilityCheck:
    """Tells whether the store may be trusted: set to keep what it acknowledged, and the same as at the start."""

    def __init__(self, clients: RedisClients, *, allow_weak_durability: bool) -> None:
        self._clients = clients
        self._allow_weak_durability = allow_weak_durability
        self._warned_of: list[str] = []

    async def check(self) -> None:
        """Raise `RegistryUnavailable`, or `RegistryUntrusted` with the reason.

        To be called regularly: a server may be started anew with other settings.
        """
        with reaching_registry():
            await self._check_settings()
            try:
                await self._clients.lineage.check(self._clients.commands)
            except ServerLostData:
                await self._clients.disconnect()  # from here on no command of this process gets through
                raise

    async def _check_settings(self) -> None:
        found = await self._clients.commands.config_get(*DURABLE_SETTINGS)
        wrong = [f"{name} {wanted}" for name, wanted in DURABLE_SETTINGS.items() if _text(found.get(name)) != wanted]
        if wrong and not self._allow_weak_durability:
            raise RegistryUntrusted(
                f"the Redis server may forget acknowledged tasks: set {', '.join(wrong)},"
                " or accept the loss with redis.allow_weak_durability = true"
            )
        if wrong and wrong != self._warned_of:
            log.warning(
                "registry_may_forget",
                extra={
                    "set": wrong,
                    "loss": "tasks and tokens that were acknowledged are lost when the server or its machine dies",
                    "allowed_by": "redis.allow_weak_durability",
                },
            )
        self._warned_of = wrong


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
