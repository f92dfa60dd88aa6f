"""What this worker is doing now, for people and tests."""

from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict

from services.worker.service.incoming_links import IncomingLinks
from services.worker.service.outgoing_links import OutgoingLinks
from services.worker.service.ring import Ring
from services.worker.service.seating import Seating
from services.worker.service.stages import StagePool
from services.worker.service.uplinks import Uplinks
from shared.contracts.peer_state import BreakerState, PeerState
from shared.domain.ids import Epoch, NodeId, TaskId


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class StageView(_View):
    model_id: str
    start: int
    end: int
    seats: int
    waiting: int
    """Rows and chunks that wait for the engine."""
    memory_bytes: int
    profile: str


class SeatRows(_View):
    task_id: TaskId
    epoch: Epoch
    lane: int
    stage: int
    slot: int
    rows: int


class WorkerState(_View):
    """`GET /state`."""

    node_id: NodeId
    stages: tuple[StageView, ...]
    seats: tuple[SeatRows, ...]
    links_to: tuple[NodeId, ...]
    links_from: tuple[NodeId, ...]
    drafts_waiting: int
    reports_waiting: int
    rows_dropped: dict[str, int]
    breakers: dict[str, dict[str, BreakerState]]
    """Per peer and operation class; addresses are left out, since anybody may read this."""


class StateReader:
    def __init__(
        self,
        *,
        node_id: NodeId,
        stages: StagePool,
        seating: Seating,
        outgoing: OutgoingLinks,
        incoming: IncomingLinks,
        uplinks: Uplinks,
        ring: Ring,
        peers: Callable[[], Sequence[PeerState]],
    ) -> None:
        self._node_id = node_id
        self._stages = stages
        self._seating = seating
        self._outgoing = outgoing
        self._incoming = incoming
        self._uplinks = uplinks
        self._ring = ring
        self._peers = peers

    def read(self) -> WorkerState:
        return WorkerState(
            node_id=self._node_id,
            stages=tuple(
                StageView(
                    model_id=runner.ref.model_id,
                    start=runner.ref.layers.start,
                    end=runner.ref.layers.end,
                    seats=runner.num_seats,
                    waiting=runner.num_waiting,
                    memory_bytes=runner.memory_bytes,
                    profile=runner.loaded.profile,
                )
                for runner in self._stages.runners
            ),
            seats=tuple(
                SeatRows(
                    task_id=one.seat.key.task_id,
                    epoch=one.seat.epoch,
                    lane=one.seat.key.lane,
                    stage=one.seat.key.stage,
                    slot=one.seat.slot,
                    rows=one.seat.reached,
                )
                for one in self._seating
            ),
            links_to=tuple(self._outgoing.peers),
            links_from=tuple(self._incoming.peers),
            drafts_waiting=self._uplinks.drafts_waiting,
            reports_waiting=self._uplinks.reports_waiting,
            rows_dropped=dict(self._ring.dropped),
            breakers={
                peer.peer: {breaker.operation: breaker.state for breaker in peer.breakers} for peer in self._peers()
            },
        )
