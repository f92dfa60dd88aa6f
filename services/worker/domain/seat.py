"""One session's place at one stage of this worker, and what may come next at it.

A row is the place of one token in its sequence. Each part of a seat counts rows and refuses what does not continue
its count; nothing here acts.
"""

from dataclasses import dataclass
from typing import NamedTuple

from shared.domain.errors import ProtocolViolation
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.task import SamplerParams, TokenRecord


class SeatKey(NamedTuple):
    """What a frame names a seat by; the epoch is compared apart."""

    task_id: TaskId
    lane: int
    stage: int


class FlowKey(NamedTuple):
    """Sessions with equal keys go round the same ring."""

    plan_id: str
    lane: int


@dataclass(slots=True)
class Feed:
    """At stage 0: which rows are ready to start."""

    ids: list[int]
    """The prefix, then every token that came back."""
    num_prefix: int
    started: int = 0
    """Rows handed to the ring."""
    acknowledged: int = 0
    """Rows known to have passed the last stage."""
    running: bool = False
    ended: bool = False

    @property
    def prefill_waits(self) -> bool:
        return self.running and self.started < self.num_prefix

    @property
    def decodes(self) -> bool:
        """Past its prefix and not at its end: takes part in decode batches."""
        return self.running and not self.ended and self.started >= self.num_prefix

    @property
    def decode_waits(self) -> bool:
        return self.decodes and self.started < len(self.ids)

    def take_answer(self, position: int, token_id: int | None) -> bool:
        """Note that rows [0, position) have passed the ring and that `token_id` stands at `position` now.

        False: a second arrival, nothing changed. `token_id` None: part of the prefix has passed, or the sequence
        ended. Raises `ProtocolViolation` for an answer to rows that were never started.
        """
        if position <= self.acknowledged:
            return False
        if position > self.started:
            raise ProtocolViolation(f"an answer for row {position - 1}, of {self.started} rows started")
        if position < self.num_prefix:
            if token_id is not None:
                raise ProtocolViolation("a token inside the prefix")
        elif position != self.started:
            raise ProtocolViolation(f"an answer at {position}, not at the last row started ({self.started - 1})")
        elif token_id is None:
            self.ended = True
        else:
            self.ids.append(token_id)
        self.acknowledged = position
        return True


@dataclass(slots=True)
class Tail:
    """At the last stage: which rows yield a token, and when the sequence ends."""

    prompt_ids: tuple[int, ...]
    generated_ids: list[int]
    """Those of earlier epochs, then those of this one."""
    num_prefix: int
    sampler: SamplerParams
    end_ids: frozenset[int]
    tokens_left: int
    ended: bool = False

    def is_due(self, position: int) -> bool:
        """Whether the row at `position` yields a token: the last row of the prefix and every one after it."""
        return position >= self.num_prefix - 1

    def take(self, record: TokenRecord) -> int | None:
        """Append a sampled token. Returns it, or None when the sequence ends with it."""
        self.generated_ids.append(record.token_id)
        self.tokens_left -= 1
        self.ended = record.token_id in self.end_ids or self.tokens_left <= 0
        return None if self.ended else record.token_id


@dataclass(slots=True, eq=False)
class Seat:
    """Hashed by identity: a seat of a later epoch is another seat."""

    key: SeatKey
    epoch: Epoch
    flow: FlowKey
    max_rows: int
    max_waiting: int
    """Chunks an honest sender may have under way: more waiting here at once break the protocol."""
    threads: int
    previous: NodeId | None
    next: NodeId | None
    slot: int
    feed: Feed | None = None
    tail: Tail | None = None
    accepted: int = 0
    """Rows taken in, whether run already or still waiting."""
    computed: int = 0
    """Rows that have passed the engine."""
    waiting: int = 0
    """Decode rows and chunks taken in and not run yet."""
    live: bool = True
    """False once freed: what is still under way for it is forgotten."""

    def accept(self, first: int, num_rows: int) -> bool:
        """Take in rows [first, first + num_rows) from the stage before.

        False: a second arrival, to be dropped. Raises `ProtocolViolation` unless they continue the sequence.
        """
        if first + num_rows <= self.accepted:
            return False
        if first != self.accepted:
            raise ProtocolViolation(f"row {first} does not continue a sequence of {self.accepted} rows")
        if first + num_rows > self.max_rows:
            raise ProtocolViolation(f"rows up to {first + num_rows} in a session of {self.max_rows}")
        if self.waiting >= self.max_waiting:
            raise ProtocolViolation(f"more than {self.max_waiting} chunks under way")
        self.accepted += num_rows
        self.waiting += 1
        return True
