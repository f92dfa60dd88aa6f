"""Who sends a request, and which earlier one it repeats."""

import re
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request

from services.api.domain.wanted import Caller
from services.api.json_body import payload_hash
from shared.domain.errors import InvalidInput

ANONYMOUS: Final = "anonymous"  # without API keys everybody is the same client, and any bearer value is accepted
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


def caller_of(request: Request, *, route: str = "", body: Mapping[str, object] | None = None) -> Caller:
    """`route` and `body`: of a request that creates a task, which may carry an idempotency key."""
    key = request.headers.get("idempotency-key")
    if key is None or body is None:
        return Caller(ANONYMOUS)
    if not _KEY.fullmatch(key):
        raise InvalidInput("should be 1 to 255 visible characters", param="Idempotency-Key")
    return Caller(ANONYMOUS, key, payload_hash(route, body))
