"""Bodies of the OpenAI routes, as clients send them.

Unknown keys are ignored; a known parameter whose value cannot be honoured is refused, since silently doing something
else would be worse. Every error names the exact path of its parameter.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from services.api.domain.chat_template import ChatMessage
from services.api.domain.wanted import (
    ChatPrompt,
    Prompt,
    TaskTerms,
    TextPrompt,
    TokenPrompt,
    WantedAnswer,
)
from shared.contracts.problem import FieldError
from shared.domain.errors import EmptyInput, InvalidInput, UnsupportedContentPart, UnsupportedParameter
from shared.domain.ids import ModelId
from shared.domain.task import SamplerParams, TaskKind, Verification
from shared.runtime.statuses import ValidationFailed

MAX_MESSAGES: Final = 2_048
MAX_PROMPT_IDS: Final = 1_048_576
MAX_STOPS: Final = 4
MAX_STOP_BYTES: Final = 256
MAX_FIELD_ERRORS: Final = 32

Body = TypeVar("Body", bound=BaseModel)

_OWN_CODES: Final = {kind.code: kind for kind in (EmptyInput, UnsupportedContentPart, UnsupportedParameter)}


def _unsupported(message: str) -> PydanticCustomError:
    return PydanticCustomError("unsupported_parameter", "{message}", {"message": message})


def _invalid(message: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_value", "{message}", {"message": message})


def only(neutral: Sequence[object] = ()) -> AfterValidator:
    """A known parameter that is taken at its neutral values alone."""

    def check(value: object) -> object:
        if value is None or any(type(value) is type(other) and value == other for other in neutral):
            return value
        raise _unsupported("this parameter is not supported")

    return AfterValidator(check)


def _stop_strings(value: object) -> object:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return None
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _invalid("should be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise _invalid(f"should hold at most {MAX_STOPS} strings")
    if not all(1 <= len(stop.encode()) <= MAX_STOP_BYTES for stop in stops):
        raise _invalid(f"a stop string should have 1 to {MAX_STOP_BYTES} bytes")
    return stops


def _content(value: object) -> object:
    """A message's content as one text: text parts are joined with a newline."""
    if not isinstance(value, list):
        return value
    texts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise _invalid(f"part {index} should be an object with a type")
        if kind != "text":
            message = f"part {index} is {kind[:50]}; this model takes text parts alone"
            raise PydanticCustomError("unsupported_content_part", "{message}", {"message": message})
        if not isinstance(part.get("text"), str):
            raise _invalid(f"part {index} should hold its text as a string")
        texts.append(part["text"])
    return "\n".join(texts)


def _prompt(value: object) -> object:
    """One text, or one list of token ids, out of the four forms a prompt may have."""
    if isinstance(value, str):
        return _filled(value)
    if not isinstance(value, list):
        raise _invalid("should be a string or a list")
    if value and isinstance(value[0], str | list):
        if len(value) > 1:
            raise _unsupported("several prompts in one request are not supported")
        return _prompt(value[0])
    if not all(type(token_id) is int for token_id in value):
        raise _invalid("should be a string, or a list of token ids")
    if len(value) > MAX_PROMPT_IDS:
        raise _invalid(f"should hold at most {MAX_PROMPT_IDS} token ids")
    return _filled(value)


def _filled(value: str | list[object]) -> object:
    if not value:
        raise PydanticCustomError("empty_input", "{message}", {"message": "the prompt is empty"})
    return value


def _messages(value: object) -> object:
    if value == []:
        raise PydanticCustomError("empty_input", "{message}", {"message": "there are no messages"})
    return value


def _logit_bias(value: object) -> object:
    if not isinstance(value, dict):
        return value
    if len(value) > 300:
        raise _invalid("should hold at most 300 entries")
    for token_id, bias in value.items():
        if not (token_id.isascii() and token_id.isdigit() and len(token_id) <= 10):
            raise _invalid("its keys should be token ids")
        if type(bias) not in {int, float} or not math.isfinite(bias) or abs(bias) > 100:
            raise _invalid("its values should be numbers from -100 to 100")
    return value


class Strict(BaseModel):
    """No guessing: a number is no string, true is no number."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool | None = None


class ButterflyOptions(Strict):
    """Our own options, in one object so that no name collides."""

    verification: Literal["none", "audit", "quorum"] | None = None
    max_byzantine: int | None = Field(default=None, ge=1, le=511)
    hold: bool | None = None
    priority: int | None = Field(default=None, ge=0, le=100)
    deadline_s: float | None = Field(default=None, gt=0, le=604_800)
    timings: Annotated[object, only([False])] = None
    receipt: Annotated[object, only([False])] = None

    def to_terms(self) -> TaskTerms:
        return TaskTerms(
            verification=None if self.verification is None else Verification(self.verification),
            max_byzantine=self.max_byzantine,
            hold=self.hold,
            priority=self.priority or 0,
            deadline_s=self.deadline_s,
        )


class Sampling(Strict):
    """What chat and completions have in common."""

    model: str = Field(min_length=1, max_length=512)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(_logit_bias)] = None
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    n: Annotated[int | None, Field(ge=1, le=8), only([1])] = None
    stop: Annotated[list[str] | None, BeforeValidator(_stop_strings)] = None
    stop_token_ids: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] | None = Field(default=None, max_length=64)
    ignore_eos: bool | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    butterfly: ButterflyOptions | None = None
    response_format: Annotated[object, only([{"type": "text"}])] = None
    tools: Annotated[object, only([[]])] = None
    functions: Annotated[object, only([[]])] = None
    tool_choice: Annotated[object, only(["none"])] = None
    function_call: Annotated[object, only(["none"])] = None
    modalities: Annotated[object, only([["text"]])] = None
    audio: Annotated[object, only()] = None
    prediction: Annotated[object, only()] = None
    web_search_options: Annotated[object, only()] = None

    def _wanted(self, kind: TaskKind, prompt: Prompt, *, max_tokens: int | None, logprobs: int | None) -> WantedAnswer:
        options, given = self.stream_options, SamplerParams()
        return WantedAnswer(
            kind=kind,
            model_id=ModelId(self.model),
            prompt=prompt,
            max_tokens=max_tokens,
            sampler=SamplerParams(
                temperature=_or(self.temperature, given.temperature),
                top_k=_or(self.top_k, given.top_k),
                top_p=_or(self.top_p, given.top_p),
                min_p=_or(self.min_p, given.min_p),
                presence_penalty=_or(self.presence_penalty, given.presence_penalty),
                frequency_penalty=_or(self.frequency_penalty, given.frequency_penalty),
                repetition_penalty=_or(self.repetition_penalty, given.repetition_penalty),
                logit_bias=tuple(sorted((int(key), bias) for key, bias in (self.logit_bias or {}).items())),
                seed=_or(self.seed, given.seed),
                logprobs=logprobs,
            ),
            seeded=self.seed is not None,
            stop_strings=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            terms=(self.butterfly or ButterflyOptions()).to_terms(),
            stream=bool(self.stream),
            include_usage=bool(self.stream and options is not None and options.include_usage),
        )


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_content)] = None
    tool_calls: Annotated[object, only([[]])] = None
    function_call: Annotated[object, only()] = None


class ChatBody(Sampling):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], BeforeValidator(_messages)] = Field(max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    def to_wanted(self) -> WantedAnswer:
        for index, message in enumerate(self.messages):
            if message.content is None and message.role != "assistant":
                raise InvalidInput("a message should have a content", param=f"messages.{index}.content")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidInput("top_logprobs needs logprobs = true", param="top_logprobs")
        messages = tuple(
            ChatMessage("system" if message.role == "developer" else message.role, message.content or "")
            for message in self.messages
        )
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._wanted(TaskKind.CHAT, ChatPrompt(messages), max_tokens=limit, logprobs=logprobs)


class CompletionBody(Sampling):
    """`POST /v1/completions`."""

    prompt: Annotated[object, BeforeValidator(_prompt)]
    logprobs: int | None = Field(default=None, ge=0, le=5)
    echo: Annotated[object, only([False])] = None
    best_of: Annotated[object, only([1])] = None
    suffix: Annotated[object, only([""])] = None

    def to_wanted(self) -> WantedAnswer:
        prompt: Prompt
        if isinstance(self.prompt, str):
            prompt = TextPrompt(self.prompt)
        else:
            prompt = TokenPrompt(tuple(self.prompt) if isinstance(self.prompt, list) else ())
        return self._wanted(TaskKind.COMPLETION, prompt, max_tokens=self.max_tokens, logprobs=self.logprobs)


def parse_body(schema: type[Body], body: Mapping[str, object], *, prefix: str = "") -> Body:
    """`body` by `schema`; raises the error of its first fault, all faults in `errors` of a `ValidationFailed`.

    `prefix` is put before each path.
    """
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_input=False), prefix) from None


def _refusal(details: list[ErrorDetails], prefix: str) -> InvalidInput:
    fields = tuple(
        FieldError(path=prefix + ".".join(str(part) for part in detail["loc"]), message=detail["msg"])
        for detail in details[:MAX_FIELD_ERRORS]
    )
    own = _OWN_CODES.get(details[0]["type"])
    if own is not None:
        return own(fields[0].message, param=fields[0].path)
    failed = ValidationFailed(f"{fields[0].path}: {fields[0].message}", param=fields[0].path)
    failed.errors = fields
    return failed


Number = TypeVar("Number", int, float)


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value
