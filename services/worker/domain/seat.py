"""One session's place at one stage of this worker, and what may come next at it.

A row is the place of one token in its sequence. Each part of a seat counts rows and refuses what does not continue
its count; nothing here acts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.worker.domain.row_log import RowLog
from services.worker.domain.window_keeper import WindowKeeper
from shared.domain.errors import InvalidInput, ProtocolViolation
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.numerics import ANY_ROWS, call_rows
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
    """Rows that go in chunks."""
    row_limit: int | None = None
    """Decode rows from here on wait for a commit; None: nothing waits."""
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
        """Past its prefix, not at its end and not too far ahead: takes part in decode batches."""
        if not self.running or self.ended or self.started < self.num_prefix:
            return False
        return self.row_limit is None or self.started < self.row_limit

    @property
    def decode_waits(self) -> bool:
        return self.decodes and self.started < len(self.ids)

    def is_due(self, position: int) -> bool:
        """Whether the row at `position` yields a token: the last row of the prefix and every one after it."""
        return position >= self.num_prefix - 1

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
class ReplayFeed(Feed):
    """At stage 0 of a lane that does not decode: every row goes in a chunk, once its id is released."""

    first_due: int = 0
    """The first row that yields a record."""
    early: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Ids released before those they follow, by their first row."""

    @property
    def decodes(self) -> bool:
        return False

    def is_due(self, position: int) -> bool:
        return position >= self.first_due

    def release(self, row: int, ids: Sequence[int], *, max_rows: int) -> None:
        """`ids` stand at the rows from `row` on. Known ones change nothing. Raises `InvalidInput` for rows beyond the
        session."""
        if row + len(ids) > max_rows:
            raise InvalidInput(f"ids up to row {row + len(ids)} of a session of {max_rows}")
        if row > len(self.ids):
            self.early[row] = tuple(ids)
            return
        self.ids += ids[len(self.ids) - row :]
        self.num_prefix = len(self.ids)
        if (following := min(self.early, default=None)) is not None and following <= len(self.ids):
            self.release(following, self.early.pop(following), max_rows=max_rows)

    def take_answer(self, position: int, token_id: int | None) -> bool:
        """Note that rows [0, position) have passed the ring. Raises `ProtocolViolation` for a token, or for rows that
        were never started."""
        if token_id is not None:
            raise ProtocolViolation("a token for a lane that does not decode")
        if position <= self.acknowledged:
            return False
        if position > self.started:
            raise ProtocolViolation(f"an answer for row {position - 1}, of {self.started} rows started")
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
    decodes: bool = True
    """False: its tokens go nowhere by themselves, so none ends the sequence."""
    ended: bool = False

    def is_due(self, position: int) -> bool:
        """Whether the row at `position` yields a token: the last row of the prefix and every one after it."""
        return position >= self.num_prefix - 1

    def take(self, record: TokenRecord) -> int | None:
        """Append a sampled token. Returns it if it goes round the ring: None when the sequence ends with it."""
        self.generated_ids.append(record.token_id)
        if not self.decodes:
            return None
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
    replay_threads: int
    """For calls with rows before this epoch."""
    previous: NodeId | None
    next: NodeId | None
    slot: int
    report_to: str
    """URL of the coordinator that gave the order."""
    windows: WindowKeeper
    row_class: int = ANY_ROWS
    """Most rows that a call with a row after the prompt may have (shared.domain.numerics)."""
    max_windows_ahead: int = 0
    """Stage 0 of a lane that decodes: windows it may be ahead of the last commit; 0: no limit."""
    drafts_tokens: bool = True
    """At the last stage: its tokens go to the coordinator as they come; else with the receipts."""
    feed: Feed | None = None
    tail: Tail | None = None
    start_row: int = 0
    """Rows before it were computed here in an earlier epoch."""
    next_row: int = 0
    """Rows before it were computed at the next stage in an earlier epoch: they are not passed on."""
    replay_stages: int = 0
    """Stages by which the rows before this epoch go once more (WorkAssignment)."""
    passed: RowLog | None = None
    """What it has passed on, for a later epoch; None: nobody will ask for it."""
    recalled: int = 0
    """Rows from an earlier epoch that have gone by once more, without being computed."""
    accepted: int = 0
    """Rows taken in, whether run already or still waiting."""
    computed: int = 0
    """Rows that have passed the engine."""
    waiting: int = 0
    """Decode rows and chunks taken in and not run yet."""
    live: bool = True
    """False once freed: what is still under way for it is forgotten."""

    def row_limit(self, committed: int) -> int:
        """Rows that may run once window `committed` is."""
        return self.windows.schedule.window(committed + self.max_windows_ahead).row_end

    def threads_at(self, first: int) -> int:
        """Cores that a call with rows from `first` on may use."""
        return self.replay_threads if first < self.windows.schedule.first_row else self.threads

    @property
    def ends_replay(self) -> bool:
        """No stage after it needs the rows before this epoch."""
        return self.key.stage + 1 >= self.replay_stages

    @property
    def reached(self) -> int:
        """Rows that are here and, if a stage after it needs them, have gone on: where it is below others it is this
        seat that waits."""
        return self.recalled if self._owes_rows else self.computed

    @property
    def _owes_rows(self) -> bool:
        return self.recalled < self.start_row and not self.ends_replay

    def recall(self, first: int) -> int:
        """Rows of an earlier epoch go by, from `first` on; how many.

        0: a second arrival, to be dropped. Raises `ProtocolViolation` unless they continue those before, and a stage
        after this one needs them.
        """
        if first < self.recalled:
            return 0
        if first > self.recalled or first >= self.start_row or self.ends_replay:
            raise ProtocolViolation(f"row {first} of {self.start_row} is not to go by once more")
        schedule = self.windows.schedule
        num_rows = call_rows(
            first, num_known=schedule.first_row, num_prompt=schedule.num_prompt, row_class=self.row_class
        )
        self.recalled += num_rows
        return num_rows

    def accept(self, first: int, num_rows: int) -> bool:
        """Take in rows [first, first + num_rows) from the stage before.

        False: a second arrival, to be dropped. Raises `ProtocolViolation` unless they continue the sequence.
        """
        if first + num_rows <= self.accepted:
            return False
        if first != self.accepted:
            raise ProtocolViolation(f"row {first} does not continue a sequence of {self.accepted} rows")
        if self._owes_rows:  # a stage after it would refuse the row, and its sender with it
            raise ProtocolViolation(f"row {first}, and those from {self.recalled} on have not gone by")
        if first + num_rows > self.max_rows:
            raise ProtocolViolation(f"rows up to {first + num_rows} in a session of {self.max_rows}")
        if not self._is_call(first, num_rows):
            raise ProtocolViolation(f"rows {first} to {first + num_rows} are not to be run in one call")
        # Rows before this epoch may come as fast as the sender is told to send them again, so those are bounded by the
        # prefix alone: whoever asks for them too fast must not bring the sender into disrepute.
        if self.waiting >= self.max_waiting and first >= self.windows.schedule.first_row:
            raise ProtocolViolation(f"more than {self.max_waiting} chunks under way")
        self.accepted += num_rows
        self.waiting += 1
        return True

    def _is_call(self, first: int, num_rows: int) -> bool:
        """Whether these rows get the bits that other lanes give them: a sender must not bring about others."""
        wanted = call_rows(
            first,
            num_known=first + num_rows,
            num_prompt=self.windows.schedule.num_prompt,
            row_class=self.row_class,
        )
        return num_rows == wanted
