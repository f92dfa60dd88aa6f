"""A coordinator that does what a test says: takes workers in, assigns seats, collects what they report.

Real HTTP on both sides. It also serves the stage files of one model, so that workers need nothing else, and takes
their events.
"""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response, StreamingResponse

from shared.contracts.coordinator import Registered, RegisterNode
from shared.contracts.messages import (
    Ack,
    DraftTokens,
    Heartbeat,
    Leave,
    LinkFault,
    Peer,
    ReceiptPosted,
    SealWindow,
    SeatReady,
    SessionFault,
    SessionStart,
    SessionStop,
    StageReady,
    StageRef,
    ToCoordinator,
    WindowCommitted,
    WindowRelease,
    WorkAssignment,
)
from shared.contracts.partitioner import StageFileInfo
from shared.contracts.problem import Ack as Taken
from shared.domain.errors import InvalidCredentials, ModelNotFound, NodeNotFound
from shared.domain.ids import Epoch, ModelId, NodeId, TaskId
from shared.domain.node_proof import check_proof
from shared.domain.numerics import ANY_ROWS
from shared.domain.plan import LayerRange
from shared.domain.receipt import SignedReceipt, read_receipt
from shared.domain.task import SamplerParams, TokenRecord
from shared.llama.cutting import cut_stage, open_model
from shared.resilience.hooks import PeerHooks
from shared.resilience.http_client import PeerClients
from shared.runtime.app import make_app
from shared.runtime.clock import SystemClock
from tests.fakes.identities import COORDINATOR_KEY
from tests.fakes.orders import order_of, signed_order

JOIN_TOKEN = "join"
FIRST_EPOCH = Epoch(1)
GREEDY = SamplerParams(temperature=0.0)


def even_cuts(num_layers: int, num_stages: int) -> list[LayerRange]:
    """`num_stages` ranges as equal as can be."""
    bounds = [num_layers * stage // num_stages for stage in range(num_stages + 1)]
    return [LayerRange(start, end) for start, end in itertools.pairwise(bounds)]


@dataclass(frozen=True)
class Job:
    """One session, before it is told to anybody."""

    task_id: TaskId
    prompt_ids: tuple[int, ...]
    max_tokens: int
    nodes: tuple[NodeId, ...]
    """One per stage, in order."""
    cuts: tuple[LayerRange, ...]
    epoch: Epoch = FIRST_EPOCH
    generated_ids: tuple[int, ...] = ()
    """Committed in earlier epochs."""
    sampler: SamplerParams = GREEDY
    end_ids: tuple[int, ...] = ()
    batches_in_flight: int = 1
    threads: int = 1
    max_rows: int = 512
    plan_id: str = ""
    lane: int = 0
    decodes: bool = True
    max_windows_ahead: int = 0
    first_window: int | None = None
    row_class: int = ANY_ROWS
    sink_start: str = "ab" * 32
    """For epochs that go on after `generated_ids`; nobody checks the chain unless a test does."""

    def again(self, generated_ids: Sequence[int], nodes: Sequence[NodeId] | None = None) -> "Job":
        """The same in the next epoch, going on after `generated_ids`."""
        return replace(
            self,
            epoch=Epoch(self.epoch + 1),
            generated_ids=tuple(generated_ids),
            max_tokens=self.max_tokens + len(self.generated_ids) - len(generated_ids),
            nodes=tuple(nodes or self.nodes),
        )


@dataclass
class Run:
    """What came back for one epoch and lane of a session."""

    job: Job
    receipts: list[list[SignedReceipt]] = field(default_factory=list)
    """Per stage."""
    records: list[TokenRecord] = field(default_factory=list)
    arrived_at_s: list[float] = field(default_factory=list)
    error: str | None = None
    ready: set[int] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def token_ids(self) -> list[int]:
        return [record.token_id for record in self.records]

    @property
    def has_ended(self) -> bool:
        last = self.records[-1].token_id if self.records else None
        return len(self.records) >= self.job.max_tokens or last in self.job.end_ids

    async def until(self, num_tokens: int | None = None, limit_s: float = 30.0) -> list[int]:
        """Wait for so many tokens, or for the end; raises `AssertionError` when the session failed."""
        async with asyncio.timeout(limit_s):
            while not self.has_ended and (num_tokens is None or len(self.records) < num_tokens):
                assert self.error is None, self.error
                self.changed.clear()
                await self.changed.wait()
        return self.token_ids


class FakeCoordinator:
    def __init__(self, model: Path, *, model_id: str = "model", heartbeat_ms: int = 200) -> None:
        """`model`: a GGUF file whose stages are served."""
        self._model = open_model(model)
        self.model_id = ModelId(model_id)
        self.model_root = self._model.root()
        self.num_layers = self._model.num_layers
        self.heartbeat_ms = heartbeat_ms
        self.url = ""
        self.key = COORDINATOR_KEY
        self.nodes: dict[NodeId, RegisterNode] = {}
        self.runs: dict[tuple[TaskId, Epoch, int], Run] = {}
        """By task, epoch and lane."""
        self.reports: list[StageReady | SeatReady | SessionFault | LinkFault | Leave] = []
        self.heartbeats: dict[NodeId, Heartbeat] = {}
        self.downloaded_bytes = 0
        self.changed = asyncio.Event()
        self._node_tokens: dict[str, NodeId] = {}
        self._tokens: dict[NodeId, str] = {}
        self._clock = SystemClock()
        self._peers = PeerClients(hooks=PeerHooks(), now=self._clock.now_s)

    def app(self) -> FastAPI:
        return make_app("coordinator", routers=[self._router()], lifespan=self._lifespan)

    async def until(self, condition: Callable[[], bool], limit_s: float = 30.0) -> None:
        """Wait until `condition()`; looked at after everything that comes in."""
        async with asyncio.timeout(limit_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def wait_for_nodes(self, count: int) -> list[NodeId]:
        await self.until(lambda: len(self.nodes) >= count)
        return sorted(self.nodes)

    def forget_nodes(self) -> None:
        """As after a restart."""
        self.nodes.clear()
        self._node_tokens.clear()

    async def begin(self, job: Job) -> Run:
        """Assign every seat, wait until all are ready, start."""
        run = self.runs[job.task_id, job.epoch, job.lane] = Run(job, [[] for _ in job.nodes])
        orders = [self.order(job, stage) for stage in range(len(job.nodes))]
        answers = await asyncio.gather(*(self.tell(job.nodes[order.stage], order) for order in orders))
        run.ready |= {stage for stage, answer in enumerate(answers) if answer.ready}
        async with asyncio.timeout(60):
            while len(run.ready) < len(orders):
                assert run.error is None, run.error
                run.changed.clear()
                await run.changed.wait()
        await self.tell(job.nodes[0], SessionStart(task_id=job.task_id, epoch=job.epoch, lane=job.lane))
        return run

    async def signed(self, run: Run, windows: int) -> list[list[SignedReceipt]]:
        """Wait until every seat of the lane has signed so many windows."""
        async with asyncio.timeout(30):
            while any(len(receipts) < windows for receipts in run.receipts):
                assert run.error is None, run.error
                run.changed.clear()
                await run.changed.wait()
        return run.receipts

    async def release(self, run: Run, window: int, row_start: int, ids: Sequence[int]) -> None:
        job = run.job
        message = WindowRelease(
            task_id=job.task_id, epoch=job.epoch, lane=job.lane, window=window, row_start=row_start, ids=tuple(ids)
        )
        await self.tell(job.nodes[0], message)

    async def seal(self, run: Run, window: int, row_end: int) -> None:
        job = run.job
        message = SealWindow(task_id=job.task_id, epoch=job.epoch, lane=job.lane, window=window, row_end=row_end)
        await asyncio.gather(*(self.tell(node_id, message) for node_id in dict.fromkeys(job.nodes)))

    async def committed(self, run: Run, window: int) -> None:
        job = run.job
        message = WindowCommitted(task_id=job.task_id, epoch=job.epoch, lane=job.lane, window=window)
        await asyncio.gather(*(self.tell(node_id, message) for node_id in dict.fromkeys(job.nodes)))

    async def finish(self, run: Run) -> None:
        """Free its seats."""
        stop = SessionStop(task_id=run.job.task_id, epoch=run.job.epoch, reason="done")
        await asyncio.gather(*(self.tell(node_id, stop) for node_id in set(run.job.nodes)))

    async def generate(self, job: Job) -> list[int]:
        run = await self.begin(job)
        tokens = await run.until()
        await self.finish(run)
        return tokens

    async def tell(
        self,
        node_id: NodeId,
        message: WorkAssignment | SessionStart | SessionStop | WindowRelease | SealWindow | WindowCommitted,
    ) -> Ack:
        client = self._peers.get(node_id, self.nodes[node_id].address)
        return await client.post("/messages", message, Ack, bearer=self._tokens[node_id], timeout_s=30.0)

    def order(self, job: Job, stage: int) -> WorkAssignment:
        num_stages = len(job.nodes)
        is_ring = num_stages > 1
        prefix = (*job.prompt_ids, *job.generated_ids)
        order = order_of(
            node_id=job.nodes[stage],
            task_id=job.task_id,
            epoch=job.epoch,
            lane=job.lane,
            stage=stage,
            ref=self.ref(job.cuts[stage]),
            sampler=job.sampler,
            numerics_class=self.nodes[job.nodes[stage]].capability.numerics_class,
            prompt_ids=job.prompt_ids,
            generated_ids=job.generated_ids,
            first_window=job.first_window,
            sink_start=job.sink_start,
            row_class=job.row_class,
        )
        return WorkAssignment(
            task_id=job.task_id,
            epoch=job.epoch,
            lane=job.lane,
            stage=stage,
            num_stages=num_stages,
            plan_id=job.plan_id or "-".join(job.nodes),
            stage_ref=self.ref(job.cuts[stage]),
            previous=self._peer(job.nodes[stage - 1], job.nodes[stage - 1], job.nodes[stage]) if is_ring else None,
            next=self._peer(job.nodes[(stage + 1) % num_stages], job.nodes[stage], job.nodes[(stage + 1) % num_stages])
            if is_ring
            else None,
            prefix_ids=prefix if stage in {0, num_stages - 1} else (),
            num_prompt=len(job.prompt_ids),
            max_rows=job.max_rows,
            max_tokens=job.max_tokens,
            sampler=job.sampler,
            end_ids=job.end_ids,
            decode_batches_in_flight=job.batches_in_flight,
            threads=job.threads,
            order=signed_order(self.key, order),
            decodes=job.decodes,
            max_windows_ahead=job.max_windows_ahead,
        )

    def ref(self, layers: LayerRange) -> StageRef:
        return StageRef(model_id=self.model_id, model_root=self.model_root, layers=layers, num_layers=self.num_layers)

    def _peer(self, node_id: NodeId, sender: NodeId, receiver: NodeId) -> Peer:
        return Peer(node_id=node_id, address=self.nodes[node_id].address, link_token=f"{sender}|{receiver}")

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        yield
        await self._peers.aclose()

    def _router(self) -> APIRouter:
        router = APIRouter()

        @router.post("/nodes")
        async def register(body: RegisterNode, request: Request) -> Registered:
            if _bearer(request) != JOIN_TOKEN:
                raise InvalidCredentials("the join token is wrong")
            node_id, node_token = body.capability.node_id, secrets.token_hex(8)
            check_proof(
                body.proof.signed(),
                node_id=node_id,
                public_key=bytes.fromhex(body.public_key),
                address=body.address,
                boot_id=body.boot_id,
                coordinators=[self.url],
            )
            self.nodes[node_id] = body
            self._node_tokens[node_token] = node_id
            self._tokens[node_id] = secrets.token_hex(8)
            self.changed.set()
            return Registered(
                node_token=node_token,
                coordinator_token=self._tokens[node_id],
                heartbeat_ms=self.heartbeat_ms,
                lease_ms=10 * self.heartbeat_ms,
                partitioner_urls=(self.url,),
                metrics_url=self.url,
                coordinator_key=self.key.public_key.hex(),
            )

        @router.post("/messages")
        async def take(body: ToCoordinator, request: Request) -> Ack:
            sender = self._node_tokens.get(_bearer(request))
            if sender is None:
                raise NodeNotFound("register again")
            self._note(sender, body)
            self.changed.set()
            return Ack()

        @router.post("/events")
        async def take_events() -> Taken:
            return Taken()

        @router.get("/models/{model_id}/stages/{start}-{end}/info")
        async def stage_info(model_id: str, start: int, end: int) -> StageFileInfo:
            return self._stage_info(model_id, LayerRange(start, end))

        @router.get("/models/{model_id}/stages/{start}-{end}")
        async def stage_bytes(model_id: str, start: int, end: int, request: Request) -> Response:
            return self._stage_bytes(LayerRange(start, end), request.headers.get("range", "bytes=0-"))

        return router

    def _note(self, sender: NodeId, message: object) -> None:
        match message:
            case DraftTokens(drafts=drafts):
                for draft in drafts:
                    run = self.runs[draft.task_id, draft.epoch, draft.lane]
                    job = run.job
                    expected = len(job.prompt_ids) + len(job.generated_ids) + len(run.records)
                    assert draft.first_position == expected, (draft.first_position, expected)
                    run.records += draft.records
                    run.arrived_at_s += [self._clock.now_s()] * len(draft.records)
                    run.changed.set()
            case Heartbeat():
                self.heartbeats[sender] = message
            case ReceiptPosted():
                run = self.runs[message.task_id, message.epoch, message.lane]
                key = bytes.fromhex(self.nodes[sender].public_key)
                run.receipts[message.stage].append(read_receipt(message.receipt.signed(), key))
                run.records += message.records
                run.changed.set()
            case SeatReady():
                self.reports.append(message)
                run = self.runs[message.task_id, message.epoch, message.lane]
                if message.error_code is None:
                    run.ready.add(message.stage)
                else:
                    run.error = f"{message.error_code}: {message.error}"
                run.changed.set()
            case SessionFault():
                self.reports.append(message)
                run = self.runs[message.task_id, message.epoch, message.lane]
                run.error = f"{message.error_code}: {message.error}"
                run.changed.set()
            case StageReady() | LinkFault() | Leave():
                self.reports.append(message)
            case _:
                raise AssertionError(f"no worker says {message}")

    def _stage_info(self, model_id: str, layers: LayerRange) -> StageFileInfo:
        if model_id != self.model_id:
            raise ModelNotFound(f"there is no model {model_id}")
        stage = cut_stage(self._model, layers.start, layers.end)
        return StageFileInfo(
            model_id=self.model_id,
            model_root=self.model_root,
            start=layers.start,
            end=layers.end,
            size_bytes=stage.size_bytes,
            stage_digest=stage.stage_digest(),
            n_embd=self._model.n_embd,
            num_layers=self.num_layers,
        )

    def _stage_bytes(self, layers: LayerRange, wanted: str) -> Response:
        stage = cut_stage(self._model, layers.start, layers.end)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.downloaded_bytes += stage.size_bytes - start
        return StreamingResponse(
            stage.read(start, stage.size_bytes),
            206,
            {"Content-Length": str(stage.size_bytes - start)},
            media_type="application/octet-stream",
        )


def _bearer(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ")
