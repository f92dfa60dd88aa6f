"""Joins the worker's parts: the only file that knows which concrete ones."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from services.worker.clients.coordinator import HttpCoordinator
from services.worker.clients.link import HttpLinkCarrier
from services.worker.clients.metrics import MetricsUplink
from services.worker.clients.partitioner import PartitionerStages
from services.worker.domain.identity import CoordinatorKey, Identity
from services.worker.domain.row_log import RowLogs
from services.worker.engine.loader import LlamaLoader
from services.worker.engine.self_test import FileSelfTestCache
from services.worker.ports import Coordinator, EngineLoader, LinkCarrier, ReceiptSigner
from services.worker.routes import build_router
from services.worker.service.drafts import DraftSender
from services.worker.service.engine_thread import EngineThread
from services.worker.service.incoming_links import IncomingLinks
from services.worker.service.measuring import Measuring
from services.worker.service.membership import Membership, registration
from services.worker.service.orders import OrderCheck
from services.worker.service.outbox import Outbox
from services.worker.service.outgoing_links import OutgoingLinks
from services.worker.service.probing import PAYLOAD_BYTES, LinkProbes
from services.worker.service.receipts import KeySigner, ReceiptDesk
from services.worker.service.ring import Ring
from services.worker.service.seating import Seating
from services.worker.service.sessions import SessionService
from services.worker.service.stages import StagePool
from services.worker.service.state import StateReader
from services.worker.service.trials import Trials
from services.worker.service.uplinks import Uplink, Uplinks
from services.worker.stores.machine import available_memory_bytes, host_fingerprint, usable_cores
from services.worker.stores.node_identity import load_identity
from services.worker.stores.stage_files import CachedStageFiles
from shared.contracts.coordinator import Registered
from shared.contracts.frame import PROBE_NUMBERS
from shared.contracts.messages import (
    Ack,
    Drain,
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
from shared.domain.chain import class_hash
from shared.domain.errors import MissingLibrary
from shared.domain.message_router import MessageRouter
from shared.domain.plan import NodeCapability
from shared.events.local_metrics import LocalMetrics
from shared.events.peer_hooks import peer_hooks
from shared.events.publisher import FanOutPublisher, HttpPublisher
from shared.llama.library import Library, load_library
from shared.resilience.breaker import BreakerPolicy
from shared.resilience.http_client import PeerClient, PeerClients
from shared.resilience.pool import Connect
from shared.resilience.retry import RetryPolicy
from shared.runtime.app import make_app
from shared.runtime.clock import Clock, SystemClock
from shared.runtime.config import Config, ConfigError
from shared.runtime.giving_up import GivingUp
from shared.runtime.tasks import BackgroundTasks

MEBIBYTE = 1024 * 1024
ROW_LOG_SHARE = 16  # of the memory: half of what the KV cache of a small model takes
STOP_GRACE_S = 2.0
COORDINATOR_BREAKER = BreakerPolicy(open_s=1.0)  # a lease is short: a coordinator that is back must hear of it
PUBLIC_PATHS = ("/messages", "/links", "/state")


def create_app(config: Config) -> FastAPI:
    """Raises `ConfigError` where this machine lacks what a worker needs."""
    clock = SystemClock()
    try:
        library = load_library()
    except MissingLibrary as error:
        raise ConfigError(error.message) from error
    loader = llama_loader(config, library, clock)
    return assemble(config, loader=loader, numerics_class=library.build_class, clock=clock)


def llama_loader(config: Config, library: Library, clock: Clock) -> LlamaLoader:
    """Makes the folder of stages, where it keeps what self-tests found."""
    files_dir = config.worker.data_dir / "stages"
    files_dir.mkdir(parents=True, exist_ok=True)
    n_threads = config.worker.threads or usable_cores()
    return LlamaLoader(
        library, folder=files_dir, self_tests=FileSelfTestCache(files_dir), n_threads=n_threads, now=clock.now_s
    )


def assemble(
    config: Config,
    *,
    loader: EngineLoader,
    numerics_class: str,
    clock: Clock,
    make_signer: Callable[[Identity], ReceiptSigner] = KeySigner,
    make_carrier: Callable[[PeerClients], LinkCarrier] = HttpLinkCarrier,
    make_coordinator: Callable[[PeerClient, str], Coordinator] = HttpCoordinator,
    connect: Connect | None = None,
    thread: EngineThread | None = None,
    rng: random.Random | None = None,
    host: str | None = None,
) -> FastAPI:
    """The worker's app around a loader of engines. `make_coordinator` gets the join token beside the client. `connect`
    None: others are called over sockets. `thread` None: one of its own. `rng` (None: seeded by the system): for jitter.
    `host` None: the fingerprint of this machine.
    """
    rng = rng or random.Random()  # noqa: S311  jitter, not secrets
    thread = thread or EngineThread()
    network, settings = config.network, config.worker
    identity = load_identity(settings.data_dir)
    node_id = identity.node_id
    coordinator_key = CoordinatorKey()
    boot_id = secrets.token_hex(8)
    address = network.advertise_address or network.listen_address
    tasks = BackgroundTasks(clock)
    draining = asyncio.Event()
    giving_up = GivingUp()
    registry = CollectorRegistry()
    metrics = MetricsUplink(
        lambda client: HttpPublisher(
            client,
            source=node_id,
            boot_id=boot_id,
            address=address,
            capacity=config.metrics.channel_capacity,
            wall_s=clock.wall_s,
            sleep=clock.sleep,
        ),
        tasks=tasks,
        clock=clock,
        connect=connect,
    )
    events = FanOutPublisher((LocalMetrics(registry), metrics))
    hooks = peer_hooks(events, source=node_id, now=clock.now_s)
    retry = RetryPolicy(attempts=network.retry_attempts, base_s=network.retry_backoff_ms / 1000)
    peers = PeerClients(
        hooks=hooks,
        now=clock.now_s,
        max_connections=network.max_connections,
        retry=retry,
        rng=rng,
        connect=connect,
    )
    source = PartitionerStages(peers)

    seating = Seating()

    def make_uplink(url: str, uplinks: Uplinks) -> Uplink:
        """Called once all that it uses is there: a coordinator is looked for when the app runs."""
        client = PeerClient(
            name="coordinator",
            base_url=url,
            hooks=hooks,
            now=clock.now_s,
            retry=retry,
            breaker=COORDINATOR_BREAKER,
            rng=rng,
            connect=connect,
        )
        coordinator = make_coordinator(client, config.security.join_token.get_secret_value())
        own_tasks = BackgroundTasks(clock)

        def on_joined(joined: Registered) -> None:
            source.use(joined.partitioner_urls)
            metrics.connect(joined.metrics_url)
            uplinks.joined(url, joined)

        membership = Membership(
            coordinator=coordinator,
            request=registration(identity, capability, f"http://{address}", boot_id=boot_id, coordinator=url),
            coordinator_key=coordinator_key,
            stages=stages,
            seating=seating,
            sessions=sessions,
            on_joined=on_joined,
            on_heard=lambda coordinators: uplinks.heard(url, coordinators),
            on_refused=lambda reason: uplinks.refused(url, reason),
            is_told_here=lambda seat: uplinks.is_told(url, seat),
            clock=clock,
            rng=rng,
        )
        return Uplink(
            membership=membership,
            outbox=Outbox(coordinator=coordinator, clock=clock),
            drafts=DraftSender(coordinator=coordinator, tasks=own_tasks, clock=clock),
            tasks=own_tasks,
            client_state=client.state,
            close=client.aclose,
        )

    uplinks = Uplinks(
        joins=network.peer_addresses or config.services.coordinator_url,
        make=make_uplink,
        on_refused=giving_up.because,
        tasks=tasks,
        clock=clock,
    )
    outgoing = OutgoingLinks(
        node_id=node_id,
        carrier=make_carrier(peers),
        seating=seating,
        report=uplinks.report,
        tasks=tasks,
        clock=clock,
        events=events,
    )
    receipts = ReceiptDesk(signer=make_signer(identity), report=uplinks.report, send_drafts=uplinks.hurry)
    probes = LinkProbes(send=outgoing.send, clock=clock, new_number=lambda: secrets.randbelow(PROBE_NUMBERS))
    ring = Ring(
        node_id=node_id,
        seating=seating,
        send=outgoing.send,
        on_probe=probes.take,
        drafts=uplinks,
        receipts=receipts,
        report=uplinks.report,
        events=events,
        now=clock.now_s,
    )
    usable_bytes = settings.memory_mb * MEBIBYTE if settings.memory_mb else available_memory_bytes()
    row_log_bytes = usable_bytes // ROW_LOG_SHARE
    memory_bytes = usable_bytes - row_log_bytes
    stages = StagePool(
        node_id=node_id,
        files=CachedStageFiles(settings.data_dir / "stages", source),
        loader=loader,
        thread=thread,
        target=ring,
        memory_bytes=memory_bytes,
        n_slots=settings.slots,
        ctx_per_slot=settings.context_tokens,
        tasks=tasks,
        clock=clock,
        events=events,
    )
    incoming = IncomingLinks(
        take=ring.take,
        max_payload_bytes=lambda: max(stages.max_payload_bytes, PAYLOAD_BYTES),
        seating=seating,
        report=uplinks.report,
        clock=clock,
    )
    sessions = SessionService(
        seating=seating,
        stages=stages,
        outgoing=outgoing,
        incoming=incoming,
        orders=OrderCheck(node_id=node_id, numerics_hash=class_hash(numerics_class), coordinator_key=coordinator_key),
        receipts=receipts,
        report=uplinks.report,
        tasks=tasks,
        row_logs=RowLogs(row_log_bytes),
        context_tokens=settings.context_tokens,
    )
    cores = settings.threads or usable_cores()
    measuring = Measuring(
        trials=Trials(
            loader=loader,
            thread=thread,
            cores=cores,
            rows_per_slot=settings.context_tokens,
            is_busy=lambda: len(seating) > 0,
            clock=clock,
        ),
        probes=probes,
        stages=stages,
        incoming=incoming,
        outgoing=outgoing,
        seating=seating,
        report=uplinks.report,
        tasks=tasks,
    )
    capability = NodeCapability(
        node_id=node_id,
        memory_bytes=memory_bytes,
        speed=float(cores),  # until it is measured
        slots=settings.slots,
        context_tokens=settings.context_tokens,
        host=host or host_fingerprint(),
        cores=cores,
        numerics_class=numerics_class,
        labels=(("name", settings.name),) if settings.name else (),
    )

    # Any: each handler takes exactly the type under which it stands here.
    commands: MessageRouter[str, Any, Ack] = MessageRouter(
        {
            LoadStage: lambda _, message: sessions.load_stage(message),
            WorkAssignment: lambda coordinator, message: sessions.assign(message, coordinator),
            SessionStart: lambda _, message: sessions.start(message),
            SessionStop: lambda _, message: sessions.stop(message),
            WindowRelease: lambda _, message: sessions.release(message),
            SealWindow: lambda _, message: sessions.seal(message),
            WindowCommitted: lambda _, message: sessions.committed(message),
            MeetPeers: lambda _, message: measuring.meet(message),
            MeasureNode: lambda _, message: measuring.measure(message),
            Drain: lambda _, message: sessions.drain(message),
        }
    )

    async def stop_when_told() -> None:
        """Links end themselves: the server waits for them before the lifespan ends."""
        await draining.wait()
        await uplinks.leave()
        outgoing.close()
        incoming.close()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        tasks.loop("coordinators", uplinks.watch)
        tasks.loop("links", outgoing.keep_alive)
        tasks.loop("silence", incoming.watch)
        tasks.loop("forget-rows", stages.forget_once)
        _ = tasks.start(stop_when_told(), name="stop when told")
        try:
            yield
        finally:
            stages.close()
            await tasks.stop(STOP_GRACE_S)
            await uplinks.stop(STOP_GRACE_S)
            await asyncio.to_thread(thread.close)
            await metrics.aclose()
            await peers.aclose()

    return make_app(
        "worker",
        routers=[
            build_router(
                commands=commands,
                commander=uplinks.commander,
                links=incoming,
                state=StateReader(
                    node_id=node_id,
                    stages=stages,
                    seating=seating,
                    outgoing=outgoing,
                    incoming=incoming,
                    uplinks=uplinks,
                    ring=ring,
                    peers=lambda: (*uplinks.states(), *peers.states()),
                ),
            )
        ],
        lifespan=lifespan,
        readiness={"registered": uplinks.check},
        public_paths=PUBLIC_PATHS,
        body_limits={"/links": None},
        stream_paths=("/links",),
        clock=clock,
        registry=registry,
        draining=draining,
        giving_up=giving_up,
    )
