"""An accepted answer whose client waits for it, from its first token to its end."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from services.api.domain.answer_text import AnswerPart, AnswerText, AnswerToken
from services.api.domain.failures import failure_from_code
from services.api.domain.openai_bodies import (
    AnswerHead,
    Json,
    Usage,
    closing_chunk,
    error_event,
    opening_chunk,
    text_chunk,
    usage_chunk,
    whole_answer,
)
from services.api.domain.stream_entries import End, committed, end_of
from services.api.metrics import AnswerMeter
from services.api.ports import EntryStream
from shared.domain.errors import ButterflyError, DeadlineExceeded, GenerationFailed, TaskCancelled
from shared.domain.task import FinishReason
from shared.domain.task_state import TaskState
from shared.registry.base import StreamEntry

DEADLINE_GRACE_S = 15.0  # a task fails by its own deadline; this is for a registry that cannot say so

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an answer ended well."""

    finish_reason: FinishReason
    usage: Usage


class Answer:
    """One reader. `close` must be called however the reading ended; it stops a task that nobody waits for any more."""

    def __init__(
        self,
        *,
        head: AnswerHead,
        prompt_tokens: int,
        entries: EntryStream,
        text: AnswerText,
        limit_s: float,
        meter: AnswerMeter,
        on_close: Callable[[bool], None],
    ) -> None:
        """`limit_s`: seconds from now until its task must have ended. `on_close` hears whether the task had ended."""
        self.head = head
        self._prompt_tokens = prompt_tokens
        self._entries = entries
        self._text = text
        self._limit_s = limit_s
        self._meter = meter
        self._on_close = on_close
        self._has_ended = False
        self._is_closed = False

    async def whole(self) -> Json:
        """The answer at once. Raises `DeadlineExceeded`, `GenerationFailed`, `TaskCancelled`, `ServerDraining`."""
        texts: list[str] = []
        tokens: list[AnswerToken] = []
        async for found in self._read():
            if isinstance(found, Outcome):
                part = AnswerPart("".join(texts), tuple(tokens))
                return whole_answer(self.head, part, finish_reason=found.finish_reason, usage=found.usage)
            texts.append(found.text)
            tokens.extend(found.tokens)
        raise GenerationFailed("the answer's stream stopped before its end")

    async def chunks(self, *, include_usage: bool) -> AsyncGenerator[Json]:
        """The answer as it comes. A failure is told as the last element, never raised."""
        try:
            opening = opening_chunk(self.head, include_usage=include_usage)
            if opening is not None:
                yield opening
            async for found in self._read():
                if isinstance(found, AnswerPart):
                    yield text_chunk(self.head, found, include_usage=include_usage)
                    continue
                yield closing_chunk(self.head, found.finish_reason, include_usage=include_usage)
                if include_usage:
                    yield usage_chunk(self.head, found.usage)
        except ButterflyError as error:
            log.info("stream_failed", extra={"task_id": self.head.task_id, "code": error.code})
            yield error_event(failure_from_code(error.code, error.message), self.head.task_id)
        except Exception:
            log.exception("stream_broken", extra={"task_id": self.head.task_id})
            yield error_event(GenerationFailed("internal error"), self.head.task_id)

    def close(self) -> None:
        """Idempotent; never waits."""
        if not self._is_closed:
            self._is_closed = True
            self._meter.close()
            self._on_close(self._has_ended)

    async def _read(self) -> AsyncGenerator[AnswerPart | Outcome]:
        """Parts as they are committed, then the outcome."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._limit_s + DEADLINE_GRACE_S
        while True:
            entry = await self._next(until_s)
            end = end_of(entry)
            if end is not None:
                break
            part = self._text.feed(committed(entry))
            self._meter.tokens(len(part.tokens))
            if part.tokens:
                yield part
        self._has_ended = True
        _raise_unless_completed(end)
        rest = self._text.finish()
        if rest.text:
            yield rest
        count = self._text.num_tokens if end.num_tokens is None else end.num_tokens
        yield Outcome(end.finish_reason or FinishReason.STOP, Usage(self._prompt_tokens, count))

    async def _next(self, until_s: float) -> StreamEntry:
        try:
            async with asyncio.timeout_at(until_s):
                return await self._entries.next()
        except TimeoutError:
            raise DeadlineExceeded("the task's deadline has passed") from None


def _raise_unless_completed(end: End) -> None:
    match end.state:
        case TaskState.COMPLETED:
            return
        case TaskState.CANCELLED:
            raise TaskCancelled("the task was cancelled")
        case _:
            raise failure_from_code(end.error_code, end.error)
