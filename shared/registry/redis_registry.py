"""The task registry in Redis: each change is one Lua script (`lua/`), all keys are in `keys`."""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from shared.domain.errors import (
    ButterflyError,
    IdempotencyKeyReused,
    InvalidCursor,
    InvalidTransition,
    QueueFull,
    QuotaExceeded,
    RegistryUnavailable,
    ResultExpired,
    StaleAttempt,
    StaleEpoch,
    TaskNotFound,
)
from shared.domain.ids import Attempt, Epoch, ModelId, TaskId
from shared.domain.tail_state import TailState
from shared.domain.task import InferenceTask, TaskGroup, TokenRecord
from shared.domain.task_state import TERMINAL, TaskEvent, TaskState
from shared.registry import keys
from shared.registry.base import (
    ATTACHMENT_TTL_S,
    Claim,
    Commit,
    Finish,
    HeldSessions,
    QueueView,
    Reconciled,
    StreamEntry,
    Submission,
    TaskPage,
    TaskRecord,
    TaskRegistry,
)
from shared.registry.connection import DurabilityCheck, RedisClients, make_clients, reaching_registry
from shared.registry.records import (
    decode_entry,
    decode_record,
    decode_token,
    encode_prompt,
    encode_task,
    encode_token,
)
from shared.registry.scripts import load_scripts

MAX_CLAIM = 32
IDS_PER_CALL = 200  # scripts touch a bounded number of keys
STREAM_BATCH = 200  # entries of one stream per read
LISTED_AT_ONCE = 100
MAX_LISTED = 2_000  # ids looked at for one page
ENTRY_ID = re.compile(r"\d{1,20}(-\d{1,20})?")

Argument = str | int | float | bytes


def connect_registry(url: str, *, allow_weak_durability: bool) -> "RedisTaskRegistry":
    """The registry at a redis://, rediss:// or unix:// URL; connects at first use, `aclose` ends it."""
    return RedisTaskRegistry(make_clients(url), allow_weak_durability=allow_weak_durability)


class RedisTaskRegistry(TaskRegistry):
    def __init__(self, clients: RedisClients, *, allow_weak_durability: bool) -> None:
        self.clients = clients
        """Other stores of the same server may use them until `aclose`."""
        self._commands: Redis = clients.commands
        self._durability = DurabilityCheck(clients, allow_weak_durability=allow_weak_durability)
        self._sources = load_scripts()
        self._scripts: dict[str, AsyncScript] = {
            name: clients.commands.register_script(source) for name, source in self._sources.items()
        }
        self._sweep_cursor = "0"

    async def aclose(self) -> None:
        await self.clients.aclose()

    async def submit(
        self,
        task: InferenceTask,
        *,
        idempotency_key: str | None,
        payload_hash: str,
        attached: bool,
        max_queue_size: int,
        max_queued_per_owner: int,
        rank: int | None = None,
    ) -> Submission:
        code, *rest = await self._run(
            "submit",
            task.task_id,
            task.owner,
            keys.idempotency(task.owner, idempotency_key) if idempotency_key else "",
            payload_hash,
            _ms(ATTACHMENT_TTL_S) if attached else 0,
            max_queue_size,
            max_queued_per_owner,
            task.priority if rank is None else rank,
            str(task.group),
            _ms(task.deadline_s),
            task.result_ttl_s,
            encode_task(task),
            encode_prompt(task.prompt_ids),
            len(task.prompt_ids),
            int(task.hold),
        )
        match code:
            case b"ok":
                task_id, state, created, queue_size = rest
                return Submission(TaskId(task_id.decode()), TaskState(state.decode()), bool(created), queue_size)
            case b"queue_full":
                raise QueueFull(f"{max_queue_size} tasks are waiting already", retry_after_s=1.0)
            case b"quota_exceeded":
                raise QuotaExceeded(f"{max_queued_per_owner} tasks of this key are unfinished", retry_after_s=1.0)
            case _:
                raise IdempotencyKeyReused("this idempotency key came with another request before")

    async def groups(self) -> tuple[TaskGroup, ...]:
        (members,) = await self._together(("SMEMBERS", keys.SINGLES["groups"]))
        return tuple(sorted(TaskGroup.parse(member.decode()) for member in members))

    async def claim(
        self, group: TaskGroup, count: int, *, owner: str, lease_s: float, plan_id: str | None = None
    ) -> tuple[Claim, ...]:
        found = await self._run("claim", str(group), min(count, MAX_CLAIM), owner, _ms(lease_s), plan_id or "")
        return tuple(
            Claim(TaskId(task_id.decode()), Attempt(int(attempt)))
            for task_id, attempt in zip(found[::2], found[1::2], strict=True)
        )

    async def advance(
        self,
        task_id: TaskId,
        event: TaskEvent,
        *,
        attempt: Attempt | None = None,
        epoch: Epoch | None = None,
        plan_id: str | None = None,
        error_code: str = "",
        error: str = "",
    ) -> TaskState:
        code, *rest = await self._run(
            "advance", task_id, event, _optional(attempt), _optional(epoch), plan_id or "", error_code, error
        )
        if code != b"ok":
            raise _refusal(code, task_id, rest, what=f"the event {event}")
        return TaskState(rest[0].decode())

    async def open_session(
        self, task_id: TaskId, *, attempt: Attempt | None, plan_id: str, coordinator: str, lease_s: float
    ) -> tuple[Epoch, TaskRecord, tuple[TokenRecord, ...]]:
        code, *rest = await self._run("open_session", task_id, _optional(attempt), plan_id, coordinator, _ms(lease_s))
        if code != b"ok":
            raise _refusal(code, task_id, rest, what="a session")
        flat, prompt, tokens = rest
        record = decode_record(dict(zip(flat[::2], flat[1::2], strict=True)), prompt)
        return record.epoch, record, tuple(map(decode_token, tokens))

    async def hold_sessions(
        self, task_ids: Sequence[TaskId], *, coordinator: str, lease_s: float, adopt: int
    ) -> HeldSessions:
        lost: list[TaskId] = []
        some, *more = _chunks(task_ids) or ((),)
        for ids in more:
            _, gone, _ = await self._run("hold_sessions", coordinator, _ms(lease_s), 0, *ids)
            lost += _ids(gone)
        next_lapse, gone, adopted = await self._run("hold_sessions", coordinator, _ms(lease_s), adopt, *some)
        lost += _ids(gone)
        return HeldSessions(tuple(lost), _ids(adopted), int(next_lapse) / 1000 if next_lapse else None)

    async def commit(self, commits: Sequence[Commit]) -> tuple[int | None, ...]:
        calls = [
            ("EVALSHA", self._scripts["commit"].sha, 1, keys.ROOT, *_commit_arguments(commit)) for commit in commits
        ]
        try:
            counts = await self._together(*calls)  # together: the server syncs its log once for all of them
        except RegistryUnavailable as error:
            if not isinstance(error.__cause__, NoScriptError):
                raise
            await self._together(("SCRIPT LOAD", self._sources["commit"]))
            counts = await self._together(*calls)
        return tuple(None if count < 0 else count for count in counts)

    async def finish(self, task_id: TaskId, *, epoch: Epoch, finish: Finish, last: Commit | None) -> bool:
        code, *rest = await self._run(
            "finish",
            task_id,
            epoch,
            finish.finish_reason,
            finish.num_tokens,
            last.first_index if last else 0,
            *(map(encode_token, last.records) if last else ()),
        )
        match code:
            case b"ok":
                return True
            case b"fenced":
                return False
            case b"gap":
                raise InvalidTransition(f"the answer has {finish.num_tokens} tokens, only {int(rest[0])} are there")
            case _:
                raise _refusal(code, task_id, rest, what="its end")

    async def note_dispute(self, task_id: TaskId, *, epoch: Epoch, window: int, stage: int | None) -> None:
        code, *rest = await self._run("dispute", task_id, epoch, window, _optional(stage))
        if code != b"ok":
            raise _refusal(code, task_id, rest, what="a dispute")

    async def begin_tail_audit(self, task_id: TaskId, *, epoch: Epoch) -> Epoch:
        return await self._tail_audit(task_id, epoch, TailState.PENDING, next_epoch=True)

    async def note_tail_audit(
        self, task_id: TaskId, *, epoch: Epoch, state: TailState, error_code: str = "", error: str = ""
    ) -> None:
        await self._tail_audit(task_id, epoch, state, error_code, error, next_epoch=False)

    async def _tail_audit(
        self, task_id: TaskId, epoch: Epoch, state: TailState, *failure: str, next_epoch: bool
    ) -> Epoch:
        code, *rest = await self._run("tail_audit", task_id, epoch, state, int(next_epoch), *failure)
        if code != b"ok":
            raise _refusal(code, task_id, rest, what="a tail audit")
        return Epoch(int(rest[0]))

    async def cancel(self, task_id: TaskId) -> tuple[TaskState, bool]:
        code, *rest = await self._run("cancel", task_id)
        if code != b"ok":
            raise _refusal(code, task_id, rest, what="the event cancel")
        return TaskState(rest[0].decode()), bool(rest[1])

    async def renew(self, task_ids: Sequence[TaskId], *, owner: str, lease_s: float) -> tuple[TaskId, ...]:
        lost: list[TaskId] = []
        for some in _chunks(task_ids):
            lost += _ids(await self._run("renew", owner, _ms(lease_s), *some))
        return tuple(lost)

    async def attach(self, task_ids: Sequence[TaskId], *, ttl_s: float) -> None:
        for some in _chunks(task_ids):
            await self._run("attach", _ms(ttl_s), *some)

    async def reconcile(
        self, *, limit: int, max_attempts: int, owner: str, lease_s: float, waiting: Mapping[TaskGroup, str]
    ) -> Reconciled:
        reasons = [text for group, reason in waiting.items() for text in (str(group), reason)]
        cursor, next_lapse, *mended = await self._run(
            "reconcile", limit, max_attempts, owner, _ms(lease_s), self._sweep_cursor, *reasons
        )
        self._sweep_cursor = cursor.decode()
        requeued, adopted, expired, detached, exhausted = map(_ids, mended)
        next_lapse_s = int(next_lapse) / 1000 if next_lapse else None
        return Reconciled(requeued, adopted, expired, detached, exhausted, next_lapse_s)

    async def wait_for_work(self, timeout_s: float) -> bool:
        with reaching_registry():
            nudge = await self.clients.blocking.blpop([keys.SINGLES["wake"]], timeout=max(timeout_s, 0.001))
        return nudge is not None

    async def record(self, task_id: TaskId) -> TaskRecord:
        fields, prompt = await self._together(("HGETALL", keys.task(task_id)), ("GET", keys.request(task_id)))
        if not fields:
            raise _not_found(task_id)
        return decode_record(fields, prompt)

    async def tokens(self, task_id: TaskId) -> tuple[TokenRecord, ...]:
        tokens, (state, expires), (seconds, _) = await self._together(
            ("LRANGE", keys.tokens(task_id), 0, -1), ("HMGET", keys.task(task_id), "state", "expires"), ("TIME",)
        )
        if state is None:
            raise _not_found(task_id)
        if expires and seconds * 1000 >= int(expires):
            raise ResultExpired(f"the result of task {task_id} was kept until its time to live was over")
        return tuple(map(decode_token, tokens))

    async def read_streams(
        self, after: Mapping[TaskId, str], *, block_s: float
    ) -> Mapping[TaskId, tuple[StreamEntry, ...]]:
        if not after:
            return {}
        block = ("BLOCK", _ms(block_s)) if block_s > 0 else ()  # BLOCK 0 would wait for ever
        names = map(keys.events, after)
        seen = (entry_id if ENTRY_ID.fullmatch(entry_id) else "0" for entry_id in after.values())
        client = self.clients.blocking if block else self._commands
        with reaching_registry():
            found = await client.execute_command(  # type: ignore[no-untyped-call]
                "XREAD", "COUNT", STREAM_BATCH, *block, "STREAMS", *names, *seen
            )
        prefix = len(keys.events(TaskId("")))
        return {
            TaskId(name.decode()[prefix:]): tuple(decode_entry(entry_id, fields) for entry_id, fields in entries)
            for name, entries in _pairs(found)
        }

    async def list_tasks(
        self,
        *,
        owner: str | None,
        states: frozenset[TaskState],
        model_id: ModelId | None,
        limit: int,
        cursor: str | None,
    ) -> TaskPage:
        index = keys.index(owner, unfinished_only=bool(states) and states.isdisjoint(TERMINAL))
        newest = "+" if cursor is None else f"({_from_cursor(cursor)}"
        batch = max(limit, LISTED_AT_ONCE)
        records: list[TaskRecord] = []
        for _ in range(MAX_LISTED // batch + 1):
            (found,) = await self._together(("ZREVRANGEBYLEX", index, newest, "-", "LIMIT", 0, batch + 1))
            task_ids = _ids(found)
            hashes = await self._together(*(("HGETALL", keys.task(task_id)) for task_id in task_ids[:batch]))
            for place, (task_id, fields) in enumerate(zip(task_ids, hashes, strict=False), start=1):
                newest = f"({task_id}"
                record = decode_record(fields, None) if fields else None
                if record is not None and _wanted(record, owner, states, model_id):
                    records.append(record)
                    if len(records) == limit:
                        is_last = place == len(task_ids)
                        return TaskPage(tuple(records), None if is_last else _to_cursor(task_id))
            if len(task_ids) <= batch:
                return TaskPage(tuple(records), None)
        return TaskPage(tuple(records), _to_cursor(newest[1:]))

    async def queue(self) -> QueueView:
        now_ms, depth, running, oldest, *per_rank = await self._run("queue")
        return QueueView(
            depth=depth,
            oldest_age_s=(int(now_ms) - int(oldest)) / 1000 if oldest else None,
            by_priority={int(rank): count for rank, count in zip(per_rank[::2], per_rank[1::2], strict=True)},
            running=running,
        )

    async def ping(self) -> None:
        await self._durability.check()

    async def _run(self, name: str, *args: Argument) -> list:  # type: ignore[type-arg]  # what the script returns
        with reaching_registry():
            answer: list = await self._scripts[name](keys=[keys.ROOT], args=args)  # type: ignore[type-arg]
            return answer

    async def _together(self, *commands: Sequence[Argument]) -> list:  # type: ignore[type-arg]  # what each returns
        with reaching_registry():
            async with self._commands.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                answers: list = await pipe.execute()  # type: ignore[type-arg]
                return answers


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _optional(fence: int | None) -> Argument:
    return "" if fence is None else fence


def _ids(raw: Iterable[bytes]) -> tuple[TaskId, ...]:
    return tuple(TaskId(task_id.decode()) for task_id in raw)


def _chunks(task_ids: Sequence[TaskId]) -> Sequence[Sequence[TaskId]]:
    return [task_ids[start : start + IDS_PER_CALL] for start in range(0, len(task_ids), IDS_PER_CALL)]


def _commit_arguments(commit: Commit) -> tuple[Argument, ...]:
    return commit.task_id, commit.epoch, commit.first_index, *map(encode_token, commit.records)


def _pairs(found: object) -> Iterable[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]:
    return found or ()  # type: ignore[return-value]


def _wanted(record: TaskRecord, owner: str | None, states: frozenset[TaskState], model_id: ModelId | None) -> bool:
    """No states: all of them."""
    is_in_state = not states or record.state in states
    return is_in_state and owner in {None, record.task.owner} and model_id in {None, record.task.model_id}


def _to_cursor(task_id: str) -> str:
    return base64.urlsafe_b64encode(f"1:{task_id}".encode()).decode().rstrip("=")


def _from_cursor(cursor: str) -> str:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        version, _, task_id = base64.b64decode(padded, altchars=b"-_", validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        version, task_id = "", ""
    if version != "1" or not task_id:
        raise InvalidCursor("the cursor is not one that a list of tasks gave", param="after")
    return task_id


def _not_found(task_id: TaskId) -> TaskNotFound:
    return TaskNotFound(f"there is no task {task_id}")


def _refusal(code: bytes, task_id: TaskId, rest: Sequence[bytes], *, what: str) -> ButterflyError:
    match code:
        case b"not_found":
            return _not_found(task_id)
        case b"stale_attempt":
            return StaleAttempt(f"task {task_id} is at attempt {int(rest[0])} by now")
        case b"stale_epoch":
            return StaleEpoch(f"task {task_id} is at epoch {int(rest[0])} by now")
        case _:
            return InvalidTransition(f"a {rest[0].decode()} task cannot take {what}")
