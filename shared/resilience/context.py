"""What travels with a request from hop to hop: its id and its deadline, and the headers that carry them."""

from contextvars import ContextVar

from shared.domain.deadline import Deadline

REQUEST_ID_HEADER = "X-Request-Id"
DEADLINE_HEADER = "X-Butterfly-Deadline-Ms"
SERVICE_TOKEN_HEADER = "X-Butterfly-Service-Token"  # noqa: S105  a header's name, not a secret

current_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
current_deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)
"""The deadline of the HTTP request being answered, or None."""
