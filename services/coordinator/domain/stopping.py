"""Where an answer ends: end tokens, stop strings, the limit, looked for token by token."""

from dataclasses import dataclass

from services.coordinator.domain.token_table import TokenTable
from shared.domain.task import FinishReason, StopRules


@dataclass(frozen=True, slots=True)
class Ending:
    reason: FinishReason
    num_tokens: int
    """Generated tokens up to and with the one that ended the answer; the text is cut by whoever writes it."""


class AnswerEnd:
    """Fed with the generated tokens in order, tells at which of them the answer ends.

    Stop strings are looked for in the bytes of all tokens so far, so they may begin and end inside tokens.
    """

    def __init__(self, rules: StopRules, *, limit: int, table: TokenTable | None) -> None:
        """`limit`: tokens the answer may have. `table`: needed when the rules have stop strings."""
        self._end_ids = frozenset(rules.end_ids)
        self._limit = limit
        self._table = table if rules.strings else None
        self._patterns = tuple(text.encode() for text in rules.strings if text)
        self._keep = max((len(pattern) for pattern in self._patterns), default=1) - 1
        self._tail = b""
        self._num_tokens = 0

    def feed(self, token_id: int) -> Ending | None:
        """The ending if this token brings it, else None. Not to be called again after an ending."""
        self._num_tokens += 1
        if token_id in self._end_ids or self._completes_stop_string(token_id):
            return Ending(FinishReason.STOP, self._num_tokens)
        if self._num_tokens >= self._limit:
            return Ending(FinishReason.LENGTH, self._num_tokens)
        return None

    def _completes_stop_string(self, token_id: int) -> bool:
        if self._table is None:
            return False
        text = self._tail + self._table.bytes_of(token_id)
        self._tail = text[-self._keep :] if self._keep else b""
        return any(pattern in text for pattern in self._patterns)
