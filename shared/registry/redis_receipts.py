"""Receipts in Redis: per task one hash, from epoch and window to the entry's JSON."""

from redis.asyncio import Redis

from shared.contracts.receipts import EntryBody
from shared.domain.errors import ResultExpired, StaleEpoch, TaskNotFound
from shared.domain.ids import TaskId
from shared.domain.window_entry import WindowEntry
from shared.registry import keys
from shared.registry.connection import RedisClients, reaching_registry
from shared.registry.receipts import ReceiptStore
from shared.registry.scripts import load_scripts


class RedisReceiptStore(ReceiptStore):
    def __init__(self, clients: RedisClients) -> None:
        """`clients`: those of the registry, which ends them."""
        self._commands: Redis = clients.commands
        self._append = clients.commands.register_script(load_scripts()["append_receipts"])

    async def append(self, task_id: TaskId, entry: WindowEntry) -> None:
        body = EntryBody.of(entry).model_dump_json()
        with reaching_registry():
            answer = await self._append(keys=[keys.ROOT], args=[task_id, entry.epoch, entry.window, body])
        if answer == b"not_found":
            raise _not_found(task_id)
        if answer == b"stale_epoch":
            raise StaleEpoch(f"task {task_id} is no longer at epoch {entry.epoch}")

    async def entries(self, task_id: TaskId) -> tuple[WindowEntry, ...]:
        with reaching_registry():
            async with self._commands.pipeline(transaction=False) as pipe:
                pipe.execute_command("HVALS", keys.receipts(task_id))
                pipe.execute_command("HMGET", keys.task(task_id), "state", "expires")
                pipe.execute_command("TIME")
                bodies, (state, expires), (seconds, _) = await pipe.execute()
        if state is None:
            raise _not_found(task_id)
        if expires and seconds * 1000 >= int(expires):
            raise ResultExpired(f"the receipts of task {task_id} were kept until its result's time to live was over")
        entries = (EntryBody.model_validate_json(body).entry() for body in bodies)
        return tuple(sorted(entries, key=lambda entry: (entry.window, entry.epoch)))


def _not_found(task_id: TaskId) -> TaskNotFound:
    return TaskNotFound(f"there is no task {task_id}")
