"""Receipts in Redis: per task one hash, from epoch and window to the entry's JSON, and that of the tail audit."""

from redis.asyncio import Redis

from shared.contracts.receipts import EntryBody, TailBody
from shared.domain.errors import ResultExpired, StaleEpoch, TaskNotFound
from shared.domain.ids import Epoch, TaskId
from shared.domain.tail_audit import TailAudit
from shared.domain.window_entry import WindowEntry
from shared.registry import keys
from shared.registry.connection import RedisClients, reaching_registry
from shared.registry.receipts import ReceiptStore
from shared.registry.scripts import load_scripts

TAIL = b"tail"
"""Where the tail audit stands among the entries."""


class RedisReceiptStore(ReceiptStore):
    def __init__(self, clients: RedisClients) -> None:
        """`clients`: those of the registry, which ends them."""
        self._commands: Redis = clients.commands
        self._append = clients.commands.register_script(load_scripts()["append_receipts"])

    async def append(self, task_id: TaskId, entry: WindowEntry) -> None:
        await self._keep(task_id, entry.epoch, f"{entry.epoch}:{entry.window}", EntryBody.of(entry).model_dump_json())

    async def entries(self, task_id: TaskId) -> tuple[WindowEntry, ...]:
        with reaching_registry():
            async with self._commands.pipeline(transaction=False) as pipe:
                pipe.execute_command("HGETALL", keys.receipts(task_id))
                pipe.execute_command("HMGET", keys.task(task_id), "state", "expires")
                pipe.execute_command("TIME")
                bodies, (state, expires), (seconds, _) = await pipe.execute()
        if state is None:
            raise _not_found(task_id)
        if expires and seconds * 1000 >= int(expires):
            raise ResultExpired(f"the receipts of task {task_id} were kept until its result's time to live was over")
        entries = (EntryBody.model_validate_json(body).entry() for field, body in bodies.items() if field != TAIL)
        return tuple(sorted(entries, key=lambda entry: (entry.window, entry.epoch)))

    async def keep_tail_audit(self, task_id: TaskId, audit: TailAudit) -> None:
        await self._keep(task_id, audit.epoch, TAIL.decode(), TailBody.of(audit).model_dump_json())

    async def tail_audit(self, task_id: TaskId) -> TailAudit | None:
        with reaching_registry():
            body = await self._commands.execute_command("HGET", keys.receipts(task_id), TAIL)  # type: ignore[no-untyped-call]
        return None if body is None else TailBody.model_validate_json(body).audit()

    async def _keep(self, task_id: TaskId, epoch: Epoch, field: str, body: str) -> None:
        with reaching_registry():
            answer = await self._append(keys=[keys.ROOT], args=[task_id, epoch, field, body])
        if answer == b"not_found":
            raise _not_found(task_id)
        if answer == b"stale_epoch":
            raise StaleEpoch(f"task {task_id} is no longer at epoch {epoch}")


def _not_found(task_id: TaskId) -> TaskNotFound:
    return TaskNotFound(f"there is no task {task_id}")
