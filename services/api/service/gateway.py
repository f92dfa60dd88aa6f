"""Chat and completions: accepts what a client asks for and follows it to its end."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack

from services.api.domain.answer_text import AnswerText
from services.api.domain.wanted import Caller, WantedAnswer
from services.api.metrics import GatewayMetrics
from services.api.ports import Scheduler, TaskReader
from services.api.service.answer import Answer
from services.api.service.attachments import Attachments
from services.api.service.preparation import PreparedTask, TaskPreparation, head_of
from shared.contracts.scheduler import SubmitTask
from shared.domain.errors import ButterflyError, ResultExpired, ServerDraining
from shared.domain.ids import TaskId
from shared.registry.base import TaskRecord
from shared.runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)


class GatewayInterface(ABC):
    @abstractmethod
    async def open(self, wanted: WantedAnswer, caller: Caller) -> Answer:
        """Accept a task with its client waiting; returns once it is durable. The caller must `close` the answer.

        An answer closed before its end stops its task down to the workers, unless an idempotency key lets the
        client come back for it. Calls may overlap. Raises what `TaskPreparation.prepare` and `Scheduler.submit`
        raise, and `ServerDraining`.
        """


class GatewayService(GatewayInterface):
    def __init__(
        self,
        *,
        preparation: TaskPreparation,
        scheduler: Scheduler,
        reader: TaskReader,
        attachments: Attachments,
        metrics: GatewayMetrics,
        tasks: BackgroundTasks,
        draining: asyncio.Event,
        wall_s: Callable[[], float],
    ) -> None:
        self._preparation = preparation
        self._scheduler = scheduler
        self._reader = reader
        self._attachments = attachments
        self._metrics = metrics
        self._tasks = tasks
        self._draining = draining
        self._wall_s = wall_s

    async def open(self, wanted: WantedAnswer, caller: Caller) -> Answer:
        if self._draining.is_set():
            raise ServerDraining("this server is stopping; try again", retry_after_s=1.0)
        prepared = await self._preparation.prepare(wanted, owner=caller.owner)
        submission = SubmitTask(
            task=prepared.task,
            idempotency_key=caller.idempotency_key,
            payload_hash=caller.payload_hash,
            attached=True,
            require_capacity=True,
        )
        submitted = await self._scheduler.submit(submission)
        if submitted.created:
            return self._answer(prepared, created_s=self._wall_s(), keep=caller.idempotency_key is not None)
        record = await self._reader.record(submitted.task_id)
        if record.expires_s is not None and record.expires_s <= self._wall_s():
            raise ResultExpired(f"the answer of task {submitted.task_id} is not kept any more")
        known = PreparedTask(record.task, prepared.model, prepared.vocabulary)
        return self._answer(known, created_s=record.created_s, keep=True, record=record)

    def _answer(
        self, prepared: PreparedTask, *, created_s: float, keep: bool, record: TaskRecord | None = None
    ) -> Answer:
        """`keep`: the client may come back with its idempotency key, so closing does not cancel."""
        task = prepared.task
        prompt_tokens = len(task.prompt_ids) if record is None else record.num_prompt_tokens
        head = head_of(task, prepared.model, created_s=created_s)
        open_parts = ExitStack()
        entries = open_parts.enter_context(self._reader.follow(task.task_id, patient=True))
        self._attachments.add(task.task_id)
        open_parts.callback(self._attachments.remove, task.task_id)

        def closed(has_ended: bool) -> None:  # noqa: FBT001  the one thing it hears
            open_parts.close()
            if not has_ended and not keep:
                _ = self._tasks.start(self._cancel(task.task_id), name=f"cancel {task.task_id}")

        return Answer(
            head=head,
            prompt_tokens=prompt_tokens,
            entries=entries,
            text=AnswerText(
                pieces=prepared.vocabulary.pieces,
                end_ids=task.stop.end_ids,
                stops=task.stop.strings,
                drop_leading_space=prepared.vocabulary.drops_leading_space,
            ),
            limit_s=task.deadline_s,
            meter=self._metrics.opened(task.model_id, verified=head.verified, prompt_tokens=prompt_tokens),
            on_close=closed,
        )

    async def _cancel(self, task_id: TaskId) -> None:
        log.info("client_left", extra={"task_id": task_id})
        try:
            await self._scheduler.cancel(task_id)
        except ButterflyError as error:  # its attachment lapses within 15 s, which cancels it too
            log.warning("cancel_failed", extra={"task_id": task_id, "error": error.message})
