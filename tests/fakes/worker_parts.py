"""Workers in one process without HTTP: real services around synthetic engines, links as plain iterators."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.worker.domain.identity import CoordinatorKey, Identity
from services.worker.domain.row_log import RowLogs
from services.worker.ports import Coordinator, LinkCarrier, Report, StageFile, StageFiles
from services.worker.service.drafts import DraftSender
from services.worker.service.engine_thread import EngineThread
from services.worker.service.incoming_links import IncomingLinks
from services.worker.service.measuring import Measuring
from services.worker.service.orders import OrderCheck
from services.worker.service.outbox import Outbox
from services.worker.service.outgoing_links import OutgoingLinks
from services.worker.service.probing import PAYLOAD_BYTES, LinkProbes
from services.worker.service.receipts import KeySigner, ReceiptDesk
from services.worker.service.ring import Ring
from services.worker.service.seating import Seating
from services.worker.service.sessions import SessionService
from services.worker.service.stages import StagePool
from services.worker.service.trials import Trials
from shared.contracts.coordinator import Registered, RegisterNode
from shared.contracts.frame import PROBE_NUMBERS
from shared.contracts.messages import (
    Ack,
    DraftTokens,
    Peer,
    ReceiptPosted,
    SealWindow,
    SessionStart,
    SessionStop,
    StageRef,
    WindowCommitted,
    WindowRelease,
    WorkAssignment,
)
from shared.domain import canonical
from shared.domain.chain import class_hash
from shared.domain.errors import ButterflyError, PeerUnavailable
from shared.domain.ids import Epoch, ModelId, NodeId, TaskId
from shared.domain.plan import LayerRange
from shared.domain.receipt import RECEIPT, Receipt, SignedReceipt
from shared.domain.signing import SigningKey, is_signed_by
from shared.domain.task import SamplerParams
from shared.runtime.clock import Clock, SystemClock
from shared.runtime.tasks import BackgroundTasks
from tests.fakes.engine import NUMERICS_CLASS, SyntheticLoader
from tests.fakes.events import RecordingPublisher
from tests.fakes.identities import COORDINATOR_KEY, COORDINATOR_URL
from tests.fakes.orders import order_of, signed_order

GREEDY = SamplerParams(temperature=0.0)
FIRST_EPOCH = Epoch(1)
SOME_DIGEST = "ab" * 32


async def wait_until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    """For what nobody announces: look again after every turn of the event loop."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


class RecordingCoordinator(Coordinator):
    """Notes what it is told. `errors`: raised by the next calls, one each."""

    def __init__(self) -> None:
        self.told: list[Report] = []
        self.registered: list[RegisterNode] = []
        self.errors: list[ButterflyError] = []
        self.gate = asyncio.Event()
        """Nothing is answered while it is not set."""
        self.gate.set()
        self.changed = asyncio.Event()
        self.coordinators: tuple[str, ...] = ()
        """Named in every answer."""
        self.reach_at = ""
        self.register_token = ""
        """Given at each registration, in place of a new one each time."""

    async def register(self, request: RegisterNode) -> Registered:
        await self._answer()
        self.registered.append(request)
        self.changed.set()
        return Registered(
            node_token="node",
            coordinator_token=self.register_token or f"coordinator {len(self.registered)}",
            heartbeat_ms=500,
            lease_ms=2_000,
            partitioner_urls=("http://partitioner",),
            metrics_url="http://metrics",
            coordinator_key=COORDINATOR_KEY.public_key.hex(),
            reach_at=self.reach_at,
            coordinators=self.coordinators,
        )

    async def tell(self, report: Report) -> Ack:
        await self._answer()
        self.told.append(report)
        self.changed.set()
        return Ack(coordinators=self.coordinators)

    async def until(self, condition: Callable[[], bool], limit_s: float = 10.0) -> None:
        async with asyncio.timeout(limit_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def _answer(self) -> None:
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)


class MemoryStageFiles(StageFiles):
    """Every stage is there, `size_bytes` long. `errors`: raised by the next calls, one each."""

    def __init__(self, size_bytes: int = 100) -> None:
        self.size_bytes = size_bytes
        self.fetched: list[StageRef] = []
        self.errors: list[ButterflyError] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, ref: StageRef) -> StageFile:
        self.fetched.append(ref)
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        return StageFile(Path("stage.gguf"), f"{ref.model_root}-{ref.layers}", self.size_bytes)


class MemoryCarrier(LinkCarrier):
    """Hands a link's chunks straight to the worker it goes to."""

    def __init__(self, cluster: "MemoryCluster") -> None:
        self._cluster = cluster
        self._cut: dict[NodeId, asyncio.Event] = {}

    async def carry(self, peer: Peer, chunks: AsyncIterator[bytes]) -> None:
        cut = self._cut.setdefault(peer.node_id, asyncio.Event())
        receiver = self._cluster[peer.node_id]
        try:
            await receiver.incoming.receive(peer.link_token, _until(cut, chunks))
        except ButterflyError as error:
            raise PeerUnavailable(f"{peer.node_id} closed the link: {error.message}") from error
        if cut.is_set():
            del self._cut[peer.node_id]
            raise PeerUnavailable(f"the link to {peer.node_id} broke")

    def cut(self, node_id: NodeId) -> None:
        """The link to this node breaks, on both sides."""
        self._cut[node_id].set()


async def _until(cut: asyncio.Event, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    broken = asyncio.create_task(cut.wait())
    try:
        while True:
            chunk = asyncio.ensure_future(anext(chunks))
            await asyncio.wait({chunk, broken}, return_when=asyncio.FIRST_COMPLETED)
            if broken.done():
                chunk.cancel()
                return
            try:
                yield chunk.result()
            except StopAsyncIteration:
                return
    finally:
        broken.cancel()


class MemoryWorker:
    def __init__(
        self,
        cluster: "MemoryCluster",
        node_id: NodeId,
        *,
        coordinator: RecordingCoordinator,
        clock: Clock,
        memory_bytes: int = 10_000_000,
        n_slots: int = 4,
        ctx_per_slot: int = 512,
        row_log_bytes: int = 1_000_000,
        before_step: Callable[[], object] | None = None,
    ) -> None:
        self.node_id = node_id
        self.key = SigningKey(hashlib.sha256(node_id.encode()).digest())
        self.coordinator_key = CoordinatorKey()
        self.coordinator_key.value = COORDINATOR_KEY.public_key
        self.coordinator = coordinator
        self.tasks = BackgroundTasks(clock)
        self.events = RecordingPublisher()
        self.files = MemoryStageFiles()
        self.loader = SyntheticLoader(before_step=before_step)
        self.carrier = MemoryCarrier(cluster)
        self.seating = Seating()
        self.outbox = Outbox(coordinator=coordinator, clock=clock)
        self.drafts = DraftSender(coordinator=coordinator, tasks=self.tasks, clock=clock)
        self.outgoing = OutgoingLinks(
            node_id=node_id,
            carrier=self.carrier,
            seating=self.seating,
            report=self.report,
            tasks=self.tasks,
            clock=clock,
            events=self.events,
        )
        self.receipts = ReceiptDesk(
            signer=KeySigner(Identity(node_id, self.key)), report=self.report, send_drafts=self.drafts.hurry
        )
        self.probes = LinkProbes(
            send=self.outgoing.send, clock=clock, new_number=lambda: secrets.randbelow(PROBE_NUMBERS)
        )
        self.ring = Ring(
            node_id=node_id,
            seating=self.seating,
            send=self.outgoing.send,
            on_probe=self.probes.take,
            drafts=self.drafts,
            receipts=self.receipts,
            report=self.report,
            events=self.events,
            now=clock.now_s,
        )
        self.row_logs = RowLogs(row_log_bytes)
        self.thread = EngineThread()
        self.stages = StagePool(
            node_id=node_id,
            files=self.files,
            loader=self.loader,
            thread=self.thread,
            target=self.ring,
            memory_bytes=memory_bytes,
            n_slots=n_slots,
            ctx_per_slot=ctx_per_slot,
            tasks=self.tasks,
            clock=clock,
            events=self.events,
        )
        self.incoming = IncomingLinks(
            take=self.ring.take,
            max_payload_bytes=lambda: max(self.stages.max_payload_bytes, PAYLOAD_BYTES),
            seating=self.seating,
            report=self.report,
            clock=clock,
        )
        self.sessions = SessionService(
            seating=self.seating,
            stages=self.stages,
            outgoing=self.outgoing,
            incoming=self.incoming,
            orders=OrderCheck(
                node_id=node_id, numerics_hash=class_hash(NUMERICS_CLASS), coordinator_key=self.coordinator_key
            ),
            receipts=self.receipts,
            report=self.report,
            tasks=self.tasks,
            row_logs=self.row_logs,
            context_tokens=ctx_per_slot,
        )
        self.measuring = Measuring(
            trials=Trials(
                loader=self.loader,
                thread=self.thread,
                cores=2,
                rows_per_slot=ctx_per_slot,
                is_busy=lambda: len(self.seating) > 0,
                clock=clock,
            ),
            probes=self.probes,
            stages=self.stages,
            incoming=self.incoming,
            outgoing=self.outgoing,
            seating=self.seating,
            report=self.report,
            tasks=self.tasks,
        )

    def report(self, report: Report, _to: str | None) -> None:
        """There is one coordinator."""
        self.outbox.report(report)

    def start(self) -> None:
        self.tasks.loop("reports", self.outbox.deliver)
        self.tasks.loop("drafts", self.drafts.send)

    async def stop(self) -> None:
        self.outgoing.close()
        self.incoming.close()
        self.stages.close()
        await self.tasks.stop(2.0)
        await asyncio.to_thread(self.thread.close)


@dataclass
class Order:
    """A session to run: one node per stage."""

    task: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    nodes: Sequence[str]
    epoch: Epoch = FIRST_EPOCH
    generated_ids: tuple[int, ...] = ()
    sampler: SamplerParams = GREEDY
    end_ids: tuple[int, ...] = ()
    batches_in_flight: int = 1
    max_rows: int = 400
    num_layers: int = 6
    model: str = "synthetic"
    lane: int = 0
    decodes: bool = True
    max_windows_ahead: int = 0
    first_window: int | None = None
    sink_start: str = SOME_DIGEST
    """For epochs that go on after `generated_ids`."""
    cold: Collection[int] | None = None
    """Stages that compute the rows before this epoch again; None: all."""

    @property
    def task_id(self) -> TaskId:
        return TaskId(self.task)


class MemoryCluster:
    """Workers by node id, and one coordinator that notes what all of them say."""

    def __init__(self, *node_ids: str, clock: Clock | None = None, **settings: int | Callable[[], object]) -> None:
        self.clock = clock or SystemClock()
        self.coordinator = RecordingCoordinator()
        self.workers = {
            NodeId(node_id): MemoryWorker(
                self,
                NodeId(node_id),
                coordinator=self.coordinator,
                clock=self.clock,
                **settings,  # type: ignore[arg-type]  # as MemoryWorker names them
            )
            for node_id in node_ids
        }

    def __getitem__(self, node_id: str) -> MemoryWorker:
        return self.workers[NodeId(node_id)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator["MemoryCluster"]:
        for worker in self.workers.values():
            worker.start()
        try:
            yield self
        finally:
            for worker in self.workers.values():
                await worker.stop()

    def assignment(self, order: Order, stage: int) -> WorkAssignment:
        nodes, count = order.nodes, len(order.nodes)
        cold = range(count) if order.cold is None else order.cold
        bounds = [order.num_layers * place // count for place in range(count + 1)]
        own, following = nodes[stage], nodes[(stage + 1) % count]
        ref = StageRef(
            model_id=ModelId(order.model),
            model_root=f"root of {order.model}",
            layers=LayerRange(bounds[stage], bounds[stage + 1]),
            num_layers=order.num_layers,
        )
        signed = order_of(
            node_id=NodeId(own),
            task_id=order.task_id,
            epoch=order.epoch,
            lane=order.lane,
            stage=stage,
            ref=ref,
            sampler=order.sampler,
            numerics_class=NUMERICS_CLASS,
            prompt_ids=order.prompt_ids,
            generated_ids=order.generated_ids,
            first_window=order.first_window,
            sink_start=order.sink_start,
        )
        return WorkAssignment(
            task_id=order.task_id,
            epoch=order.epoch,
            lane=order.lane,
            stage=stage,
            num_stages=count,
            plan_id="-".join(nodes),
            stage_ref=ref,
            previous=_peer(nodes[stage - 1], nodes[stage - 1], own) if count > 1 else None,
            next=_peer(following, own, following) if count > 1 else None,
            prefix_ids=(*order.prompt_ids, *order.generated_ids) if stage in {0, count - 1} else (),
            num_prompt=len(order.prompt_ids),
            max_rows=order.max_rows,
            max_tokens=order.max_tokens - len(order.generated_ids),
            sampler=order.sampler,
            end_ids=order.end_ids,
            decode_batches_in_flight=order.batches_in_flight,
            order=signed_order(COORDINATOR_KEY, signed),
            decodes=order.decodes,
            max_windows_ahead=order.max_windows_ahead,
            start_row=0 if stage in cold else signed.first_row,
            next_row=signed.first_row if stage + 1 < count and stage + 1 not in cold else 0,
            replay_stages=max(cold, default=-1) + 1,
            keeps_passed=True,
        )

    async def assign(self, order: Order) -> None:
        """Seat a session; its stages are loaded if need be."""
        for stage, node_id in enumerate(order.nodes):
            assignment = self.assignment(order, stage)
            await self[node_id].stages.load(assignment.stage_ref)
            assert (await self[node_id].sessions.assign(assignment, COORDINATOR_URL)).ready

    async def start(self, order: Order) -> None:
        start = SessionStart(task_id=order.task_id, epoch=order.epoch, lane=order.lane)
        await self[order.nodes[0]].sessions.start(start)

    async def release(self, order: Order, window: int, row_start: int, ids: Sequence[int]) -> None:
        message = WindowRelease(
            task_id=order.task_id,
            epoch=order.epoch,
            lane=order.lane,
            window=window,
            row_start=row_start,
            ids=tuple(ids),
        )
        await self[order.nodes[0]].sessions.release(message)

    async def seal(self, order: Order, window: int, row_end: int) -> None:
        message = SealWindow(task_id=order.task_id, epoch=order.epoch, lane=order.lane, window=window, row_end=row_end)
        for node_id in dict.fromkeys(order.nodes):
            await self[node_id].sessions.seal(message)

    async def committed(self, order: Order, window: int) -> None:
        message = WindowCommitted(task_id=order.task_id, epoch=order.epoch, lane=order.lane, window=window)
        for node_id in dict.fromkeys(order.nodes):
            await self[node_id].sessions.committed(message)

    async def stop(self, order: Order, *, keep: bool = False) -> None:
        stop = SessionStop(task_id=order.task_id, epoch=order.epoch, reason="test", keep=keep)
        for node_id in order.nodes:
            await self[node_id].sessions.stop(stop)

    async def run(self, order: Order) -> list[int]:
        """All tokens of a session, from its assignment to its end."""
        await self.assign(order)
        await self.start(order)
        tokens = await self.tokens(order)
        await self.stop(order)
        return tokens

    async def tokens(self, order: Order, count: int | None = None) -> list[int]:
        """Wait until the session has drafted `count` tokens, or to its end."""
        wanted = order.max_tokens - len(order.generated_ids) if count is None else count
        await self.coordinator.until(
            lambda: len(self.drafted(order)) >= wanted or bool(set(self.drafted(order)) & set(order.end_ids))
        )
        return self.drafted(order)

    def posted(self, order: Order) -> list[list[ReceiptPosted]]:
        """Per stage what its seat has signed in this epoch, in the order in which it came."""
        found: list[list[ReceiptPosted]] = [[] for _ in order.nodes]
        for report in self.coordinator.told:
            if isinstance(report, ReceiptPosted) and (report.task_id, report.epoch, report.lane) == (
                order.task_id,
                order.epoch,
                order.lane,
            ):
                found[report.stage].append(report)
        return found

    async def receipts(self, order: Order, windows: int) -> list[list[SignedReceipt]]:
        """Wait until every seat has signed so many windows; their signatures are checked."""
        await self.coordinator.until(lambda: all(len(seat) >= windows for seat in self.posted(order)))
        return [
            [_receipt_of(one, self[node_id]) for one in seat]
            for node_id, seat in zip(order.nodes, self.posted(order), strict=True)
        ]

    def drafted(self, order: Order) -> list[int]:
        """The tokens this epoch has drafted so far; their positions are checked."""
        tokens: list[int] = []
        for report in self.coordinator.told:
            if not isinstance(report, DraftTokens):
                continue
            for draft in report.drafts:
                if (draft.task_id, draft.epoch) == (order.task_id, order.epoch):
                    expected = len(order.prompt_ids) + len(order.generated_ids) + len(tokens)
                    assert draft.first_position == expected
                    tokens += [record.token_id for record in draft.records]
        return tokens


def _receipt_of(posted: ReceiptPosted, worker: MemoryWorker) -> SignedReceipt:
    """Nodes have short names here, not those of their keys."""
    signed = posted.receipt.signed()
    assert is_signed_by(worker.key.public_key, signed)
    receipt = Receipt(**canonical.decode(RECEIPT, signed.text))
    assert receipt.node_id == worker.node_id
    return SignedReceipt(receipt, signed)


def _peer(node_id: str, sender: str, receiver: str) -> Peer:
    return Peer(node_id=NodeId(node_id), address=f"http://{node_id}", link_token=f"{sender}|{receiver}")
