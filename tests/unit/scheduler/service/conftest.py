"""A scheduler on virtual time, with registry, partitioner and coordinator in memory."""

import asyncio

import pytest

from services.scheduler.domain.dispatch import QueueRules
from services.scheduler.service.dispatching import Dispatcher
from services.scheduler.service.following import Follower
from services.scheduler.service.reconciling import Reconciler
from services.scheduler.service.scheduling import SchedulingService
from shared.contracts.scheduler import SubmitTask
from shared.domain.ids import TaskId
from shared.domain.task import InferenceTask
from shared.domain.task_state import TaskState
from tests.fakes.clock import FakeClock
from tests.fakes.events import RecordingPublisher
from tests.fakes.scheduler_peers import FakeCoordinator, FakePartitioner, make_node
from tests.fakes.task_registry import MemoryTaskRegistry
from tests.fakes.tasks import MODEL


class Cluster:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.registry = MemoryTaskRegistry(now=self.clock.wall_s)
        self.partitioner = FakePartitioner(MODEL)
        self.coordinator = FakeCoordinator(self.registry, make_node("a"), make_node("b"))
        self.events = RecordingPublisher()
        self.draining = asyncio.Event()
        self.scheduling = SchedulingService(
            registry=self.registry,
            partitioner=self.partitioner,
            coordinator=self.coordinator,
            events=self.events,
            clock=self.clock,
            rules=QueueRules(is_fifo=False, max_queue_size=100, max_queued_per_owner=100),
        )
        self.follower = Follower(registry=self.registry, clock=self.clock, owner="replica-1")
        self.dispatcher = Dispatcher(
            registry=self.registry,
            partitioner=self.partitioner,
            coordinator=self.coordinator,
            follower=self.follower,
            events=self.events,
            clock=self.clock,
            batch_size=4,
            draining=self.draining,
        )
        self.reconciler = Reconciler(
            registry=self.registry,
            coordinator=self.coordinator,
            follower=self.follower,
            events=self.events,
            clock=self.clock,
            waiting=lambda: self.dispatcher.waiting,
        )

    async def submit(self, *tasks: InferenceTask) -> None:
        for task in tasks:
            await self.scheduling.submit_task(SubmitTask(task=task))

    async def state(self, task_id: TaskId) -> TaskState:
        return (await self.registry.record(task_id)).state


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()
