"""Bodies and queries of the task API. Unlike the OpenAI routes it refuses what it does not know."""

from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field
from starlette.datastructures import QueryParams

from services.api.domain.wanted import TaskTerms, WantedAnswer
from services.api.schemas import ChatBody, CompletionBody, Strict, parse_body
from shared.domain.errors import InvalidInput, UnsupportedParameter
from shared.domain.ids import ModelId
from shared.domain.task import Verification
from shared.domain.task_state import TaskState

MAX_WAIT_S: Final = 30.0
MAX_PAGE: Final = 100
DEFAULT_PAGE: Final = 20

Mode = Literal["none", "audit", "quorum"]
ShortText = Annotated[str, Field(max_length=512)]


class VerificationWish(Strict):
    model_config = ConfigDict(extra="forbid")

    mode: Mode | None = None
    max_byzantine: int | None = Field(default=None, ge=1, le=511)
    hold: bool | None = None


def terms_of_verification(wish: object) -> TaskTerms:
    """`wish`: a mode, an object as `VerificationWish`, or None. Raises `InvalidInput` and its kin."""
    given = wish if isinstance(wish, dict) else {"mode": wish}
    asked = parse_body(VerificationWish, given, prefix="verification.")
    return TaskTerms(
        verification=None if asked.mode is None else Verification(asked.mode),
        max_byzantine=asked.max_byzantine,
        hold=asked.hold,
    )


class TaskBody(Strict):
    """`POST /v1/tasks`."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["chat", "completion"]
    model: str = Field(min_length=1, max_length=512)
    input: dict[str, object]
    verification: object = None
    priority: int = Field(default=0, ge=0, le=100)
    deadline_s: float | None = Field(default=None, gt=0, le=604_800)
    result_ttl_s: int = Field(default=86_400, ge=60, le=604_800)
    metadata: dict[Annotated[str, Field(min_length=1, max_length=64)], ShortText] = Field(
        default_factory=dict, max_length=16
    )

    def to_wanted(self) -> WantedAnswer:
        """Raises `InvalidInput` and its kin with paths such as `input.messages.0.content`."""
        for key in ("stream", "butterfly"):
            if self.input.get(key) not in (None, False):
                raise UnsupportedParameter(
                    f"{key} belongs to the OpenAI routes; a task has fields of its own", param=f"input.{key}"
                )
        if self.input.get("model") not in (None, self.model):
            raise InvalidInput("should be absent, or the task's model", param="input.model")
        body = self.input | {"model": self.model}
        try:
            if self.kind == "chat":
                wanted = parse_body(ChatBody, body, prefix="input.").to_wanted()
            else:
                wanted = parse_body(CompletionBody, body, prefix="input.").to_wanted()
        except InvalidInput as error:
            if error.param is not None and not error.param.startswith("input."):
                error.param = f"input.{error.param}"
            raise
        return replace(wanted, terms=self._terms())

    def _terms(self) -> TaskTerms:
        return replace(
            terms_of_verification(self.verification),
            priority=self.priority,
            deadline_s=self.deadline_s,
            result_ttl_s=self.result_ttl_s,
            metadata=tuple(sorted(self.metadata.items())),
        )


@dataclass(frozen=True, slots=True)
class ListQuery:
    limit: int
    after: str | None
    states: frozenset[TaskState]
    """Empty: all."""
    model_id: ModelId | None


def parse_list_query(query: QueryParams) -> ListQuery:
    states = frozenset(_state(word) for word in query.get("status", "").split(",") if word)
    model = query.get("model")
    return ListQuery(
        limit=_whole_number(query, "limit", default=DEFAULT_PAGE, low=1, high=MAX_PAGE),
        after=query.get("after") or None,
        states=states,
        model_id=ModelId(model) if model else None,
    )


def parse_wait_s(query: QueryParams) -> float:
    """Seconds a client is ready to wait for the end of its task; 0: none."""
    return float(_whole_number(query, "wait", default=0, low=0, high=int(MAX_WAIT_S)))


def _state(word: str) -> TaskState:
    try:
        return TaskState(word)
    except ValueError:
        raise InvalidInput(f"there is no status {word[:50]!r}", param="status") from None


def _whole_number(query: QueryParams, name: str, *, default: int, low: int, high: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and low <= int(text) <= high):
        raise InvalidInput(f"should be a whole number from {low} to {high}", param=name)
    return int(text)
