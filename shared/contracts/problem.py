"""How one service tells another (and a task client) what went wrong: application/problem+json."""

from pydantic import BaseModel, ConfigDict

PROBLEM_MEDIA_TYPE = "application/problem+json"


class FieldError(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Where in the request, e.g. `messages.0.content`."""
    message: str


class Problem(BaseModel):
    """`code` is the stable word; `title` and `detail` are for people."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str
    title: str
    status: int
    detail: str
    instance: str = ""
    code: str
    retryable: bool
    request_id: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    errors: tuple[FieldError, ...] = ()


class Ack(BaseModel):
    """The reply of a call that has nothing to tell: `{}` or an empty body."""

    model_config = ConfigDict(frozen=True, extra="forbid")
