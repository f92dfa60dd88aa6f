"""The two Redis clients of a process, and what the server must be set to before anybody relies on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from shared.domain.errors import RegistryUnavailable
from shared.registry.keys import SINGLES

DURABLE_SETTINGS = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
MAX_CONNECTIONS = 32
BLOCKING_TIMEOUT_S = 10.0  # twice the longest block: a server that fell silent is not waited for for ever
POOL_WAIT_S = 2.0  # a full pool means wait, then an error, never unbounded sockets


@contextmanager
def reaching_registry() -> Iterator[None]:
    """Whatever goes wrong with the store is `RegistryUnavailable` to those who use it."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise RegistryUnavailable("the task registry does not answer", retry_after_s=1.0) from error


@dataclass(frozen=True, slots=True)
class RedisClients:
    """`commands` answer soon or fail; `blocking` may wait 5 s inside one command (BLPOP, XREAD BLOCK)."""

    commands: Redis
    blocking: Redis

    async def aclose(self) -> None:
        await self.blocking.aclose()
        await self.commands.aclose()


def make_clients(url: str) -> RedisClients:
    """Connects at first use. Raises `ValueError` for a URL that is none."""
    return RedisClients(
        commands=_client(url, socket_timeout=2.0), blocking=_client(url, socket_timeout=BLOCKING_TIMEOUT_S)
    )


def _client(url: str, *, socket_timeout: float) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=POOL_WAIT_S,
        socket_timeout=socket_timeout,
        socket_connect_timeout=1.0,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), 2),
        health_check_interval=15,
    )
    return Redis.from_pool(pool)


class DurabilityCheck:
    """Tells whether the store may be trusted: set to keep what it acknowledged, and the same as at the start."""

    def __init__(self, client: Redis, *, allow_weak_durability: bool) -> None:
        self._client = client
        self._settings_checked = allow_weak_durability
        self._generation: int | None = None

    async def check(self) -> None:
        """Raise `RegistryUnavailable` with the reason."""
        with reaching_registry():
            if not self._settings_checked:
                await self._check_settings()
            await self._check_generation()

    async def _check_settings(self) -> None:
        found = {name: (await self._client.config_get(name)).get(name) for name in DURABLE_SETTINGS}
        wrong = [f"{name} {wanted}" for name, wanted in DURABLE_SETTINGS.items() if _text(found[name]) != wanted]
        if wrong:
            raise RegistryUnavailable(
                f"the Redis server may forget acknowledged tasks: set {', '.join(wrong)},"
                " or accept the loss with redis.allow_weak_durability = true"
            )
        self._settings_checked = True

    async def _check_generation(self) -> None:
        """The counter rises with each process that starts: lower than seen means a backup or an emptied server."""
        key = SINGLES["generation"]
        if self._generation is None:
            self._generation = int(await self._client.incr(key))
            return
        found = await self._client.get(key)
        if found is None or int(found) < self._generation:
            raise RegistryUnavailable(
                "the Redis server lost data since this service started; look at it, then restart the service"
            )


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
