"""One session: all that is known of a task's run, and the rules by which it changes. No I/O, no clock.

Messages and timers change it from outside, the session's own runner waits for those changes and acts.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from services.coordinator.domain.drafts import new_records
from services.coordinator.domain.faults import Fault, FaultKind, kind_of_refusal, not_asked_for_s, suspect_of
from services.coordinator.domain.session_machine import ENDED, RUNNING, SessionEvent, next_phase
from services.coordinator.domain.stopping import AnswerEnd, Ending
from services.coordinator.domain.token_table import TokenTable
from shared.domain.errors import ContextLengthExceeded, Forbidden, ProtocolViolation, RowsNotKept, StaleEpoch
from shared.domain.ids import Attempt, Epoch, NodeId
from shared.domain.layers import ModelInfo
from shared.domain.numerics import StageFacts
from shared.domain.plan import LayerRange, Partition, PartitionPlan, num_lanes
from shared.domain.session import SessionPhase
from shared.domain.task import InferenceTask, TokenRecord, Verification

NO_EPOCH = Epoch(0)
"""Below every epoch that the registry gives."""

SeatKey = tuple[int, int]
"""Lane and stage."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a session is about; the same for all its epochs. Times are readings of the monotonic clock."""

    task: InferenceTask
    model: ModelInfo
    table: TokenTable | None
    """Bytes per token; needed when the task has stop strings."""
    attempt: Attempt
    deadline_at_s: float
    created_at_s: float


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Which nodes still have the rows of a session at a stage, computed as enough others did: what they were sent is
    known to be right, so they may go on from there in another epoch."""

    num_tokens: int = 0
    """Committed when they did."""
    seats: frozenset[tuple[NodeId, LayerRange]] = frozenset()
    """Signers of that commit; those that had to begin anew since are not among them."""


class Session:
    def __init__(
        self,
        subject: Subject,
        *,
        now_s: float,
        phase: SessionPhase = SessionPhase.ASSIGNING,
        epoch: Epoch = NO_EPOCH,
        on_change: Callable[[], None],
        on_phase: Callable[[SessionPhase, SessionPhase], None],
    ) -> None:
        """`on_change` hears that something may now be possible; `on_phase` (before, after) every step of the table."""
        self.subject = subject
        self.task = subject.task
        self.phase = phase
        self.epoch = epoch
        self.plan: PartitionPlan | None = None
        self.max_rows = 0
        """Rows (prompt and answer) that every seat has room for."""
        self.records: list[TokenRecord] = []
        """Generated tokens: committed, then drafted."""
        self.num_committed = 0
        self.num_verified = 0
        """Tokens of a verified session that may be committed."""
        self.ring_ends_at: int | None = None
        """After how many tokens lane 0 stops by itself: at an end token or the limit. It knows no stop strings."""
        self.ending: Ending | None = None
        self.faults: list[Fault] = []
        self.awaited: set[SeatKey] = set()
        """Seats that are not ready yet."""
        self.cancelled = False
        self.expired = False
        self.progress_at_s = now_s
        self.lost_at_s = now_s if phase is SessionPhase.RECOVERING else None
        """Since when it has been recovering; None once it goes on."""
        self.apart: set[tuple[NodeId, NodeId]] = set()
        """Neighbours that disagreed, which accuses neither: they are not seated side by side again."""
        self._drafted: deque[tuple[int, float]] = deque()
        """How many tokens there were, and since when."""
        self.kept = KeptRows()
        self._counted_on: frozenset[NodeId] = frozenset()
        """Nodes that were asked to go on from their rows in this epoch."""
        self.facts: dict[LayerRange, StageFacts] = {}
        """What the stages promise on which the committed tokens were computed."""
        self._answer = AnswerEnd(subject.task.stop, limit=subject.task.max_tokens, table=subject.table)
        self._excluded_until_s: dict[tuple[NodeId, str], float] = {}
        self._rows_seen: dict[SeatKey, int] = {}
        self._on_change, self._on_phase = on_change, on_phase

    # --- what it is

    @property
    def seats(self) -> tuple[Partition, ...]:
        """The seats of lane 0 in order of stages; none before the first plan of this coordinator."""
        return self.plan.lanes[0].partitions if self.plan else ()

    @property
    def lanes(self) -> tuple[tuple[Partition, ...], ...]:
        """The seats of every lane, in order of stages."""
        return tuple(lane.partitions for lane in self.plan.lanes) if self.plan else ()

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """Every node with a seat, once."""
        return tuple(dict.fromkeys(seat.node_id for lane in self.lanes for seat in lane))

    @property
    def is_verified(self) -> bool:
        """Commits nothing but what enough nodes have signed."""
        return self.task.verification is not Verification.NONE

    @property
    def quorum(self) -> int:
        """Nodes that have to sign the same for each stage of a window; 0: nothing waits for signatures."""
        return self.task.max_byzantine + 1 if self.is_verified else 0

    @property
    def num_lanes(self) -> int:
        """Lanes that its verification takes; one that decides a dispute has more."""
        return num_lanes(self.task.verification, self.task.max_byzantine)

    @property
    def is_complete(self) -> bool:
        """The answer has ended, and all of it may be committed."""
        if self.ending is None:
            return False
        return not self.is_verified or self.num_verified >= self.ending.num_tokens

    @property
    def limit(self) -> int:
        """Tokens the answer may have in all, on the present seats."""
        return min(self.task.max_tokens, self.max_rows - len(self.task.prompt_ids))

    @property
    def is_running(self) -> bool:
        """Depends on its seats: drafts may come, faults count."""
        return self.phase in RUNNING

    @property
    def is_wanted(self) -> bool:
        """Runs, and nobody has called it off: worth asking for seats."""
        return self.is_running and not self.cancelled and not self.expired

    @property
    def has_ended(self) -> bool:
        return self.phase in ENDED

    def seats_of(self, node_id: NodeId) -> tuple[SeatKey, ...]:
        return tuple(
            (index, seat.stage) for index, lane in enumerate(self.lanes) for seat in lane if seat.node_id == node_id
        )

    def keeps_rows(self, node_id: NodeId, layers: LayerRange) -> bool:
        """Whether the node may go on at this stage from what is committed."""
        return self.kept.num_tokens == self.num_committed and (node_id, layers) in self.kept.seats

    def rows_seen(self, seat: SeatKey) -> int:
        """How far a seat's node says that it is there."""
        return self._rows_seen.get(seat, 0)

    def excludes(self, node_id: NodeId, boot_id: str, *, now_s: float) -> bool:
        return now_s < self._excluded_until_s.get((node_id, boot_id), now_s)

    def uncommitted(self) -> tuple[TokenRecord, ...]:
        """Drafts to append now. None of an answer that has ended: those are written with its end, in one step; none of
        a cancelled session, which is fenced or soon will be; and none of a verified one, whose windows are committed
        one by one."""
        if self.ending is not None or self.cancelled or not self.is_running or self.is_verified:
            return ()
        return tuple(self.records[self.num_committed :])

    # --- what changes it

    def move(self, event: SessionEvent) -> None:
        before, self.phase = self.phase, next_phase(self.phase, event)
        self._on_phase(before, self.phase)
        self._on_change()

    def seat(
        self,
        plan: PartitionPlan,
        epoch: Epoch,
        *,
        committed: Sequence[TokenRecord],
        context_tokens: int,
        now_s: float,
    ) -> None:
        """Begin an epoch on new seats, from what is committed. `context_tokens`: rows the smallest seat has room for.

        Raises `ContextLengthExceeded` when they leave no room for an answer.
        """
        num_prompt = len(self.task.prompt_ids)
        self.plan, self.epoch = plan, epoch
        self.max_rows = min(num_prompt + self.task.max_tokens, context_tokens)
        self.records = list(committed)
        self.num_committed = len(self.records)
        self.num_verified = self.num_committed
        self._drafted.clear()
        self.ring_ends_at = None
        self.awaited = {(index, seat.stage) for index, lane in enumerate(self.lanes) for seat in lane}
        self.progress_at_s = now_s
        self._rows_seen.clear()
        if self.limit < 1:
            raise ContextLengthExceeded(
                f"the prompt has {num_prompt} tokens, the nodes have room for {context_tokens} in all"
            )
        self._answer = AnswerEnd(self.task.stop, limit=self.limit, table=self.subject.table)
        self.ending = None
        for record in self.records:
            self.ending = self.ending or self._answer.feed(record.token_id)
        if self.phase is SessionPhase.RECOVERING:
            self.move(SessionEvent.REASSIGN)

    def seat_ready(self, sender: NodeId, epoch: Epoch, stage: int, *, lane: int = 0, now_s: float) -> None:
        """Idempotent. Raises `StaleEpoch`, `Forbidden` as `check_sender`."""
        self.check_sender(sender, epoch, stage, lane=lane)
        self.awaited.discard((lane, stage))
        self.progressed(now_s=now_s)
        self._on_change()

    def draft(
        self, sender: NodeId, epoch: Epoch, first_position: int, records: Sequence[TokenRecord], *, now_s: float
    ) -> int:
        """Take new tokens of the last stage; returns how many were new. Position 0 is the prompt's first token.

        Raises `StaleEpoch`, `Forbidden`, `ProtocolViolation`. Tokens after the end of the answer are dropped (the last
        stage does not know stop strings), but those of a verified session: its window has to be computed to the end.
        """
        if not self.seats:
            raise Forbidden(f"nobody drafts for task {self.task.task_id} in epoch {self.epoch}")
        self.check_sender(sender, epoch, len(self.seats) - 1)
        if self.ring_ends_at is not None or (self.ending is not None and not self.is_verified):
            return 0
        if self.phase is SessionPhase.DRAINING:
            return 0  # an honest stage does not know yet
        if self.phase not in {SessionPhase.PREFILLING, SessionPhase.DRAFTING}:
            raise ProtocolViolation(f"drafts for a session that is {self.phase}")
        fresh = new_records(
            records,
            first_index=first_position - len(self.task.prompt_ids),
            known=self.records,
            limit=self.limit,
            n_vocab=self.subject.model.n_vocab,
            num_logprobs=self.task.sampler.logprobs,
        )
        if not fresh:
            return 0
        if self.phase is SessionPhase.PREFILLING:
            self.move(SessionEvent.FIRST_TOKEN)
        taken = self._take(fresh)
        self._drafted.append((len(self.records), now_s))
        self.progressed(now_s=now_s)
        if self.ending is not None or self.is_verified:
            self._on_change()
        return taken

    def _take(self, fresh: Sequence[TokenRecord]) -> int:
        """Append tokens up to the end; how many that were."""
        for count, record in enumerate(fresh, start=1):
            self.records.append(record)
            if self.ending is None:
                self.ending = self._answer.feed(record.token_id)
            if record.token_id in self.task.stop.end_ids or len(self.records) >= self.limit:
                self.ring_ends_at = len(self.records)
                return count
            if self.ending is not None and not self.is_verified:
                return count
        return len(fresh)

    def waited_ms(self, *, now_s: float) -> float:
        """Since the first token was drafted that is not committed yet."""
        while self._drafted and self._drafted[0][0] <= self.num_committed:
            self._drafted.popleft()
        return (now_s - self._drafted[0][1]) * 1000 if self._drafted else 0.0

    def verified(self, num_tokens: int) -> None:
        """So many tokens may be committed now."""
        self.num_verified = num_tokens

    def committed(self, epoch: Epoch, num_committed: int | None) -> None:
        """What the registry said of an append in `epoch`; None: this writer is fenced."""
        if epoch != self.epoch:
            return
        if not self.is_running:
            return  # the epoch is being replaced by this very coordinator
        if num_committed is None:
            self.cancel()
        else:
            self.num_committed = min(num_committed, len(self.records))

    def position(self, node_id: NodeId, epoch: Epoch, seat: SeatKey, rows: int, *, now_s: float) -> bool:
        """A heartbeat's word on how far a node is at one of its seats: True when that is progress."""
        rows = min(rows, self.max_rows)
        if epoch != self.epoch or rows <= self.rows_seen(seat) or seat not in self.seats_of(node_id):
            return False
        self._rows_seen[seat] = rows
        self.progressed(now_s=now_s)
        return True

    def count_on(self, seats: Iterable[tuple[NodeId, LayerRange]]) -> None:
        """These seats are asked to go on from the rows that they keep, and no others."""
        self.kept = KeptRows(self.num_committed, frozenset(seats))
        self._counted_on = frozenset(node_id for node_id, _ in self.kept.seats)

    def forget_rows(self, node_id: NodeId) -> None:
        """The node has nothing left that it could go on from."""
        left = {seat for seat in self.kept.seats if seat[0] != node_id}
        self.kept = KeptRows(self.kept.num_tokens, frozenset(left))

    def progressed(self, *, now_s: float) -> None:
        self.progress_at_s = now_s

    def lose(
        self,
        kind: FaultKind,
        reason: str,
        *,
        suspect: NodeId | None = None,
        between: tuple[NodeId, NodeId] | None = None,
        now_s: float,
    ) -> None:
        """Some seat cannot go on. Counts once per epoch: whatever follows is a consequence. `between`: two nodes that
        fell out, of which one is suspect (`faults.suspect_of`)."""
        if not self.is_running or self.is_complete:
            return
        suspect = suspect_of(self.faults, *between) if between else suspect
        self.faults.append(Fault(kind, reason, len(self.records), suspect, between))
        self.lost_at_s = now_s if self.lost_at_s is None else self.lost_at_s
        self.move(SessionEvent.LOSE)

    def exclude(self, node_id: NodeId, boot_id: str, *, until_s: float = math.inf) -> None:
        """This run of a node could not take a seat, or broke the rules: it is not asked again, for a while or ever."""
        self._excluded_until_s[node_id, boot_id] = until_s

    def refused(self, node_id: NodeId, boot_id: str, code: str, *, now_s: float) -> FaultKind:
        """This run of a node could not take a seat: it is taken to have no rows, and unless it was only for those it is
        not asked again, for a while or ever. Returns what this counts as."""
        self.forget_rows(node_id)
        if code == RowsNotKept.code and node_id in self._counted_on:
            return FaultKind.ROWS
        self.exclude(node_id, boot_id, until_s=now_s + not_asked_for_s(code))
        return kind_of_refusal(code)

    def cancel(self) -> None:
        """The task is not this session's any more: cancelled, or taken over."""
        self.cancelled = True
        self._on_change()

    def expire(self) -> None:
        """The task's deadline has passed."""
        self.expired = True
        self._on_change()

    def poke(self) -> None:
        """Something around the session changed: nodes, slots."""
        self._on_change()

    def check_sender(self, sender: NodeId, epoch: Epoch, stage: int, *, lane: int = 0) -> None:
        """A worker speaks for the seats it holds in the present epoch, and for no other."""
        if epoch < self.epoch or not (self.is_running or self.phase is SessionPhase.DRAINING):
            raise StaleEpoch(f"epoch {epoch} of task {self.task.task_id} is over")
        if epoch > self.epoch:
            raise ProtocolViolation(f"epoch {epoch} of task {self.task.task_id} has not begun")
        lanes = self.lanes
        if not 0 <= lane < len(lanes) or not 0 <= stage < len(lanes[lane]):
            raise ProtocolViolation(f"task {self.task.task_id} has no stage {stage} of lane {lane}")
        if lanes[lane][stage].node_id != sender:
            raise Forbidden(f"stage {stage} of lane {lane} of task {self.task.task_id} is not held by node {sender}")
