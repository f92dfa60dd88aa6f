"""The coordinator without HTTP: real use cases on fake workers, a registry in memory and a clock that tests move."""

import asyncio
import random
from collections.abc import Sequence
from random import Random

from services.coordinator.domain.blame import PairMarks
from services.coordinator.domain.lane_rules import LaneRules
from services.coordinator.domain.resuming import WindowSizes
from services.coordinator.domain.session import Session
from services.coordinator.domain.slots import SlotLedger
from services.coordinator.domain.tail_line import TailLine
from services.coordinator.service.committer import Committer
from services.coordinator.service.measuring import Measuring
from services.coordinator.service.membership import Membership, Terms
from services.coordinator.service.messages import Messages
from services.coordinator.service.models import Models
from services.coordinator.service.parts import Parts
from services.coordinator.service.placements import Placements
from services.coordinator.service.preparing import Preparing
from services.coordinator.service.profile_book import ProfileBook
from services.coordinator.service.relays import Relays
from services.coordinator.service.sessions import Sessions
from services.coordinator.service.standing_book import StandingBook
from services.coordinator.service.tail_audits import TailAudits
from services.coordinator.service.tail_book import TailBook
from shared.contracts.coordinator import OpenSession
from shared.contracts.messages import (
    Ack,
    Draft,
    DraftTokens,
    Heartbeat,
    LoadStage,
    SessionPosition,
    StageReady,
    StageRef,
)
from shared.domain.ids import Attempt, NodeId
from shared.domain.plan import PartitionPlan, num_lanes
from shared.domain.task import InferenceTask
from shared.domain.task_state import TaskState
from shared.registry.base import TaskRecord
from shared.runtime.tasks import BackgroundTasks
from tests.fakes.clock import FakeClock
from tests.fakes.events import RecordingPublisher
from tests.fakes.evidence import MemoryEvidenceStore
from tests.fakes.identities import COORDINATOR_KEY, COORDINATOR_URL, N1, N2, N3, capability, registration
from tests.fakes.links import FakeLinks
from tests.fakes.partitioner import FakePartitioner, even_plan
from tests.fakes.profiles import MemoryProfiles
from tests.fakes.receipts import MemoryReceiptStore
from tests.fakes.standings import MemoryStandings
from tests.fakes.task_registry import MemoryTaskRegistry
from tests.fakes.tasks import make_tokens
from tests.fakes.workers import FakeWorkers

NODES = (N1, N2, N3)
BEAT_S = 0.5


class Coordinator:
    """One run of the coordinator. `registry`, `clock`, `workers`, `standings` and `profiles` may be those of another.
    `is_first`: of all replicas."""

    def __init__(
        self,
        *,
        clock: FakeClock | None = None,
        registry: MemoryTaskRegistry | None = None,
        workers: FakeWorkers | None = None,
        standings: MemoryStandings | None = None,
        profiles: MemoryProfiles | None = None,
        is_first: bool = True,
        receipts: MemoryReceiptStore | None = None,
        tail_audit_fraction: float = 0.0,
        trusted: frozenset[NodeId] = frozenset(),
        boot_id: str = "run-1",
    ) -> None:
        self.clock = clock or FakeClock()
        self.registry = registry or MemoryTaskRegistry(now=self.clock.wall_s)
        self.workers = workers or FakeWorkers()
        self.standings = standings or MemoryStandings()
        self.receipts = receipts or MemoryReceiptStore(self.registry, now=self.clock.wall_s)
        self.profiles = profiles or MemoryProfiles()
        self.evidence = MemoryEvidenceStore()
        self.events = RecordingPublisher()
        self.partitioner = FakePartitioner()
        self.tasks = BackgroundTasks(self.clock)
        self.draining = asyncio.Event()
        self.is_first = is_first
        self.tokens: dict[str, str] = {}
        self.silent: set[str] = set()
        """Nodes that send no heartbeats."""
        self.positions: dict[str, tuple[SessionPosition, ...]] = {}
        self.loaded: dict[str, tuple[StageRef, ...]] = {}
        self.random = Random(1)
        self._secrets = iter(range(1_000_000))
        self.links = FakeLinks()
        slots, book = SlotLedger(), ProfileBook(self.profiles)
        self.members = Membership(
            terms=Terms(
                join_token="join",
                admits_all=False,
                heartbeat_ms=500,
                lease_ms=2_000,
                partitioner_urls=("http://partitioner",),
                metrics_url="http://metrics",
                reach_at="",
                join_urls=frozenset({COORDINATOR_URL}),
                coordinator_key=COORDINATOR_KEY.public_key,
            ),
            workers=self.workers,
            standings=StandingBook(self.standings, self.clock),
            slots=slots,
            events=self.events,
            clock=self.clock,
            tasks=self.tasks,
            new_token=self._secret,
            coordinators=lambda: (),
            figures_of=book.figures_of,
        )
        self.committer = Committer(registry=self.registry, events=self.events, now=self.clock.now_s)
        pair_marks = PairMarks()
        self.relays = Relays(links=self.links, tasks=self.tasks, new_token=self._secret, name="replica")
        self.tail = TailBook(
            fraction=tail_audit_fraction,
            line=TailLine(keep_s=600),
            secret=random.Random(7),
            registry=self.registry,
            events=self.events,
            clock=self.clock,
            tasks=self.tasks,
        )
        parts = Parts(
            registry=self.registry,
            receipts=self.receipts,
            evidence=self.evidence,
            members=self.members,
            partitioner=self.partitioner,
            committer=self.committer,
            slots=slots,
            events=self.events,
            clock=self.clock,
            tasks=self.tasks,
            boot_id=boot_id,
            key=COORDINATOR_KEY,
            windows=WindowSizes(checkpoint_interval=2, window_checkpoints=4, max_windows_ahead=2),
            pair_marks=pair_marks,
            relays=self.relays,
            trusted=trusted,
            lane_rules=LaneRules(),
            shuffled=lambda nodes: self.random.sample(nodes, len(nodes)),
            tail=self.tail,
            link_secret=b"cluster",
        )
        self.sessions = Sessions(
            parts,
            models=Models(self.partitioner),
            tasks=self.tasks,
            draining=self.draining,
            phase_timeout_s=5.0,
            settle_s=1.0,
        )
        self.members.watch(self.sessions)
        self.tail_audits = TailAudits(parts, self.sessions, spread_by="operator")
        self.measuring = Measuring(
            members=self.members,
            book=book,
            slots=slots,
            link_secret=b"cluster",
            is_on=True,
            is_first=lambda: self.is_first,
            clock=self.clock,
        )
        self.messages = Messages(
            members=self.members,
            sessions=self.sessions,
            committer=self.committer,
            measuring=self.measuring,
            pair_marks=pair_marks,
            clock=self.clock,
            events=self.events,
        )
        self.preparing = Preparing(
            members=self.members,
            slots=slots,
            is_measuring=self.measuring.is_measuring,
            max_byzantine=1,
            clock=self.clock,
        )
        self.placements = Placements(self.members, self.preparing)

    def _secret(self) -> str:
        return f"secret-{next(self._secrets)}"

    async def start(self, nodes: Sequence[str] = NODES) -> "Coordinator":
        self.tasks.loop("commit", self.committer.run_once)
        self.tasks.loop("watch", self.sessions.watch_once)
        self.tasks.loop("hold", self.sessions.hold_once)
        self.tasks.loop("prepare", self.preparing.run_once)
        self.tasks.loop("tail-audit", self.tail_audits.run_once)
        self.tasks.loop("held-answers", self.tail_audits.run_held_once)
        for node in nodes:
            await self.join(node)
        await self.settle()
        return self

    async def stop(self) -> None:
        await self.tasks.stop(grace_s=1.0)

    async def join(self, node_id: str, *, boot_id: str = "boot-1", **changes: object) -> None:
        answer = await self.members.register(
            "join",
            registration(capability(node_id, **changes), f"http://{node_id}:8090", boot_id=boot_id),
        )
        self.tokens[node_id] = answer.node_token
        self.silent.discard(node_id)

    async def settle(self) -> None:
        for _ in range(5):
            await self.clock.settle()

    async def advance(self, seconds: float) -> None:
        """Move time; nodes that are not silent send their heartbeats meanwhile."""
        left = seconds
        while left > 0:
            step = min(left, BEAT_S / 2)
            await self.clock.advance(step)
            left -= step
            for node_id in self.tokens.keys() - self.silent:
                await self.beat(node_id)
            await self.settle()

    async def beat(self, node_id: str) -> None:
        worker = self.workers[node_id]
        beat = Heartbeat(
            boot_id=worker.boot_id,
            sessions=self.positions.get(node_id, ()),
            stages=self.loaded.get(node_id, ()),
        )
        await self.messages.handle(self.tokens[node_id], beat)

    async def lose(self, node_id: str) -> None:
        """The node's process is gone without a word."""
        self.workers[node_id].is_away = True
        self.silent.add(node_id)

    # --- the scheduler's side

    async def coordinate(self, task: InferenceTask, plan: PartitionPlan) -> Attempt:
        """Bring a task to the state in which the scheduler calls the coordinator."""
        await self.registry.submit(
            task,
            idempotency_key=None,
            payload_hash="",
            attached=False,
            max_queue_size=1_000,
            max_queued_per_owner=1_000,
        )
        claims = await self.registry.claim(task.group, 1, owner="s", lease_s=600, plan_id=plan.plan_id)
        assert claims[0].task_id == task.task_id
        return claims[0].attempt

    async def open(self, task: InferenceTask, nodes: Sequence[str] = NODES) -> Session:
        plan = even_plan(nodes, num_lanes=num_lanes(task.verification, task.max_byzantine))
        attempt = await self.coordinate(task, plan)
        await self.sessions.open(OpenSession(task_id=task.task_id, attempt=attempt, plan=plan))
        await self.settle()
        return self.session(task)

    def session(self, task: InferenceTask) -> Session:
        return self.sessions.get(task.task_id)

    def has_session(self, task: InferenceTask) -> bool:
        return task.task_id in self.sessions._runs

    def holds(self, task: InferenceTask) -> bool:
        """Whether its answer is held back here until its audit is over."""
        return self.tail.holds(task.task_id)

    # --- the last stage's side

    def drafts(
        self, task: InferenceTask, *token_ids: int, first: int | None = None, epoch: int | None = None
    ) -> DraftTokens:
        """The next tokens, or those from generated token `first` on."""
        session = self.session(task)
        first = len(session.records) if first is None else first
        draft = Draft(
            task_id=task.task_id,
            epoch=session.epoch if epoch is None else epoch,
            first_position=len(task.prompt_ids) + first,
            records=make_tokens(*token_ids),
        )
        return DraftTokens(drafts=(draft,))

    async def has_loaded(self, node_id: str) -> None:
        """The node has loaded what it was asked to load last."""
        worker = self.workers[node_id]
        asked = worker.heard(LoadStage)[-1]
        assert isinstance(asked, LoadStage)
        await self.messages.handle(self.tokens[node_id], StageReady(stage_ref=asked.stage_ref, facts=worker.facts))
        await self.settle()

    async def draft(self, task: InferenceTask, *token_ids: int) -> Ack:
        """The last stage sends the next tokens."""
        last = self.session(task).seats[-1].node_id
        answer = await self.messages.handle(self.tokens[last], self.drafts(task, *token_ids))
        await self.settle()
        return answer

    # --- what came out

    async def record(self, task: InferenceTask) -> TaskRecord:
        return await self.registry.record(task.task_id)

    async def state(self, task: InferenceTask) -> TaskState:
        return (await self.record(task)).state

    async def token_ids(self, task: InferenceTask) -> list[int]:
        return [record.token_id for record in await self.registry.tokens(task.task_id)]
