"""Workers in this process, as the coordinator sees them: they note what they are told and answer as a test says."""

from collections.abc import Sequence

from services.coordinator.ports import Worker, Workers
from shared.contracts.messages import (
    AnyToWorker,
    LoadStage,
    MeasureNode,
    MeetPeers,
    SealWindow,
    SessionStart,
    SessionStop,
    WindowCommitted,
    WindowRelease,
    WorkAssignment,
)
from shared.domain.errors import ButterflyError, PeerUnavailable
from shared.domain.ids import NodeId, TaskId
from shared.domain.numerics import Profile, StageFacts


class FakeWorker(Worker):
    """One run of a node. `sessions`: what it holds, by task, as the latest assignment."""

    def __init__(self, node_id: NodeId, boot_id: str, token: str) -> None:
        self.node_id = node_id
        self.boot_id = boot_id
        self.token = token
        self.told: list[AnyToWorker] = []
        self.sessions: dict[TaskId, WorkAssignment] = {}
        self.is_away = False
        self.is_cold = False
        """Answers that the stage has to be loaded first."""
        self.is_measuring = False
        """For another coordinator."""
        self.facts = StageFacts("fake", "ab", Profile.EXACT, None)
        """Of every stage."""
        self.refusals: list[ButterflyError] = []
        """Raised by the next assignments, one each."""

    async def load(self, message: LoadStage) -> StageFacts | None:
        self._hear(message)
        return None if self.is_cold else self.facts

    async def assign(self, message: WorkAssignment) -> bool:
        self._hear(message)
        if self.refusals:
            raise self.refusals.pop(0)
        self.sessions[message.task_id] = message
        return not self.is_cold

    async def start(self, message: SessionStart) -> None:
        self._hear(message)

    async def tell(self, message: WindowRelease | SealWindow | WindowCommitted) -> None:
        self._hear(message)

    async def meet(self, message: MeetPeers) -> None:
        self._hear(message)

    async def measure(self, message: MeasureNode) -> bool:
        self._hear(message)
        return not self.is_measuring

    async def stop(self, message: SessionStop) -> None:
        self._hear(message)
        held = self.sessions.get(message.task_id)
        if held is not None and held.epoch <= message.epoch:
            del self.sessions[message.task_id]

    def heard(self, kind: type[AnyToWorker]) -> list[AnyToWorker]:
        """Messages of one type, oldest first."""
        return [message for message in self.told if isinstance(message, kind)]

    def assignments(self) -> list[WorkAssignment]:
        return [message for message in self.told if isinstance(message, WorkAssignment)]

    def stops(self) -> list[SessionStop]:
        return [message for message in self.told if isinstance(message, SessionStop)]

    def _hear(self, message: AnyToWorker) -> None:
        if self.is_away:
            raise PeerUnavailable(f"{self.node_id} cannot be reached")
        self.told.append(message)


class FakeWorkers(Workers):
    def __init__(self) -> None:
        self.runs: list[FakeWorker] = []
        self.forgotten: list[NodeId] = []

    def connect(self, node_id: NodeId, address: str, *, boot_id: str, token: str) -> Worker:
        worker = FakeWorker(node_id, boot_id, token)
        self.runs.append(worker)
        return worker

    async def forget(self, node_id: NodeId) -> None:
        self.forgotten.append(node_id)

    def __getitem__(self, node_id: str) -> FakeWorker:
        """The latest run of a node."""
        return [worker for worker in self.runs if worker.node_id == node_id][-1]

    def holding(self, task_id: TaskId) -> Sequence[NodeId]:
        return [worker.node_id for worker in self.runs if task_id in worker.sessions]
