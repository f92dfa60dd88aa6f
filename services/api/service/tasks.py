"""The task API: submit and come back later."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from services.api.domain.answer_text import AnswerPart, AnswerText
from services.api.domain.openai_bodies import Json, Usage, whole_answer
from services.api.domain.receipt_bundle import bundle_of, why_withheld
from services.api.domain.stream_entries import committed, end_of, entry_order
from services.api.domain.task_ids import is_task_id
from services.api.domain.task_resource import event_body, is_terminal, task_error, task_resource
from services.api.domain.wanted import Caller, WantedAnswer
from services.api.ports import EntryStream, Scheduler, TaskReader
from services.api.service.preparation import PreparedTask, TaskPreparation, head_of
from services.api.task_schemas import ListQuery
from shared.contracts.receipts import BundleBody
from shared.contracts.scheduler import SubmitTask
from shared.domain.errors import ReceiptNotAvailable, ResultExpired, ServerDraining, TaskNotFound
from shared.domain.ids import TaskId
from shared.domain.task import FinishReason, Verification
from shared.domain.task_state import TaskState
from shared.domain.window_entry import WindowEntry
from shared.registry.base import StreamEntry, TaskRecord


@dataclass(frozen=True, slots=True)
class TaskView:
    resource: Json
    has_ended: bool


@dataclass(frozen=True, slots=True)
class CancelledView:
    resource: Json
    accepted: bool
    """False: the task had ended (or was committing) and is unchanged."""


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One event of a task's stream; `entry_id` None: not from the stream, nothing to resume from."""

    entry_id: str | None
    name: str
    body: Json


class TasksInterface(ABC):
    """Whoever is not a task's owner gets `TaskNotFound`. All raise `RegistryUnavailable`; calls may overlap."""

    @abstractmethod
    async def submit(self, wanted: WantedAnswer, caller: Caller) -> TaskView:
        """Accept a task; returns once it is durable. It waits for capacity until its deadline.

        Raises what `TaskPreparation.prepare` and `Scheduler.submit` raise, and `ServerDraining`.
        """

    @abstractmethod
    async def view(self, task_id: str, caller: Caller, *, wait_s: float) -> TaskView:
        """The task with its result, as soon as it has ended or `wait_s` is over."""

    @abstractmethod
    async def result(self, task_id: str, caller: Caller) -> Json | None:
        """The answer; of a failed or cancelled task what was committed (nothing where it was held back), with `error`;
        None while it runs.

        Raises `ResultExpired`.
        """

    @abstractmethod
    async def receipt(self, task_id: str, caller: Caller) -> Json:
        """The proof of the answer (`shared.contracts.receipts.BundleBody`); while the task runs, of what is committed.

        Raises `ReceiptNotAvailable` when nothing is, `ResultExpired`.
        """

    @abstractmethod
    async def cancel(self, task_id: str, caller: Caller) -> CancelledView:
        """Stop the task unless it has ended. Idempotent."""

    @abstractmethod
    async def page(self, query: ListQuery, caller: Caller) -> Json:
        """The caller's tasks, newest first, without results. Raises `InvalidCursor`."""

    @abstractmethod
    async def events(self, task_id: str, caller: Caller, *, after: str) -> AsyncGenerator[TaskEvent]:
        """What happened to the task after entry `after` and what happens next, until its end. Raises `ResultExpired`.

        When this process stops, the last event is `bye`: the client resumes elsewhere.
        """


class TasksService(TasksInterface):
    def __init__(
        self,
        *,
        preparation: TaskPreparation,
        scheduler: Scheduler,
        reader: TaskReader,
        draining: asyncio.Event,
    ) -> None:
        self._preparation = preparation
        self._scheduler = scheduler
        self._reader = reader
        self._draining = draining

    async def submit(self, wanted: WantedAnswer, caller: Caller) -> TaskView:
        if self._draining.is_set():
            raise ServerDraining("this server is stopping; try again", retry_after_s=1.0)
        prepared = await self._preparation.prepare(wanted, owner=caller.owner)
        submitted = await self._scheduler.submit(
            SubmitTask(task=prepared.task, idempotency_key=caller.idempotency_key, payload_hash=caller.payload_hash)
        )
        return await self._view(await self._reader.record(submitted.task_id))

    async def view(self, task_id: str, caller: Caller, *, wait_s: float) -> TaskView:
        record = await self._own(task_id, caller)
        if wait_s and not is_terminal(record):
            await self._wait_for_end(record.task.task_id, wait_s)
            record = await self._reader.record(record.task.task_id)
        return await self._view(record)

    async def result(self, task_id: str, caller: Caller) -> Json | None:
        record = await self._own(task_id, caller)
        return await self._result(record) if is_terminal(record) else None

    async def receipt(self, task_id: str, caller: Caller) -> Json:
        record = await self._own(task_id, caller)
        if record.is_withheld:
            raise ReceiptNotAvailable(why_withheld(record))
        entries = await self._reader.receipts(record.task.task_id)
        tokens = await self._reader.tokens(record.task.task_id)
        tail = await self._reader.tail_audit(record.task.task_id)
        return BundleBody.of(bundle_of(record, entries, tokens, tail)).model_dump(mode="json")

    async def cancel(self, task_id: str, caller: Caller) -> CancelledView:
        record = await self._own(task_id, caller)
        reply = await self._scheduler.cancel(record.task.task_id)
        record = await self._reader.record(record.task.task_id)
        return CancelledView(task_resource(record), accepted=reply.accepted)

    async def page(self, query: ListQuery, caller: Caller) -> Json:
        page = await self._reader.page(
            owner=caller.owner,
            states=query.states,
            model_id=query.model_id,
            limit=query.limit,
            cursor=query.after,
        )
        return {
            "object": "list",
            "data": [task_resource(record) for record in page.records],
            "has_more": page.next_cursor is not None,
            "next": page.next_cursor,
        }

    async def events(self, task_id: str, caller: Caller, *, after: str) -> AsyncGenerator[TaskEvent]:
        record = await self._own(task_id, caller)
        if is_terminal(record):
            await self._reader.tokens(record.task.task_id)  # raises when tokens and events are gone
        known = await self._preparation.known(record.task)
        return self._events(known, after)

    async def _events(self, known: PreparedTask, after: str) -> AsyncGenerator[TaskEvent]:
        """Reads from the beginning, so that a character cut by `after` comes out whole."""
        text = _text_of(known, stops=())
        with self._reader.follow(known.task.task_id, patient=False) as entries:
            has_ended = False
            while not has_ended:
                entry = await _next_or_none(entries)
                if entry is None:
                    yield TaskEvent(None, "bye", {"reason": ServerDraining.code})
                    return
                has_ended = end_of(entry) is not None
                added = text.finish() if has_ended else text.feed(committed(entry))
                if entry_order(entry.entry_id) > entry_order(after):
                    yield TaskEvent(entry.entry_id, entry.kind, event_body(entry, text=added.text))

    async def _own(self, task_id: str, caller: Caller) -> TaskRecord:
        if not is_task_id(task_id):
            raise TaskNotFound("there is no such task")
        record = await self._reader.record(TaskId(task_id))
        if record.task.owner != caller.owner:
            raise TaskNotFound("there is no such task")  # the same words: existence is not told
        return record

    async def _view(self, record: TaskRecord) -> TaskView:
        entries = await self._entries(record)
        if not is_terminal(record):
            return TaskView(task_resource(record, entries=entries), has_ended=False)
        try:
            result = await self._result(record)
        except ResultExpired:
            result = None
        return TaskView(task_resource(record, result=result, entries=entries), has_ended=True)

    async def _entries(self, record: TaskRecord) -> Sequence[WindowEntry]:
        if record.task.verification is Verification.NONE:
            return ()
        try:
            return await self._reader.receipts(record.task.task_id)
        except ResultExpired:
            return ()

    async def _result(self, record: TaskRecord) -> Json:
        tokens = await self._reader.tokens(record.task.task_id)
        if record.is_withheld:
            tokens = ()
        known = await self._preparation.known(record.task)
        text = _text_of(known, stops=record.task.stop.strings)
        part, rest = text.feed(tokens), text.finish()
        reason = record.finish_reason or FinishReason.STOP
        return whole_answer(
            head_of(record.task, known.model, created_s=record.created_s),
            AnswerPart(part.text + rest.text, part.tokens),
            finish_reason=reason if record.state is TaskState.COMPLETED else None,
            usage=Usage(record.num_prompt_tokens, text.num_tokens),
            error=task_error(record),
        )

    async def _wait_for_end(self, task_id: TaskId, wait_s: float) -> None:
        with self._reader.follow(task_id, patient=False) as entries:
            try:
                async with asyncio.timeout(wait_s):
                    while (entry := await _next_or_none(entries)) is not None and end_of(entry) is None:
                        pass
            except TimeoutError:
                return


async def _next_or_none(entries: EntryStream) -> StreamEntry | None:
    """The next entry; None when this process is about to stop."""
    try:
        return await entries.next()
    except ServerDraining:
        return None


def _text_of(known: PreparedTask, *, stops: Sequence[str]) -> AnswerText:
    return AnswerText(
        pieces=known.vocabulary.pieces,
        end_ids=known.task.stop.end_ids,
        stops=stops,
        drop_leading_space=known.vocabulary.drops_leading_space,
    )
