"""Joins the coordinator's parts: the only file that knows which concrete ones."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from fastapi import FastAPI

from services.coordinator.clients.http_links import HttpLinks
from services.coordinator.clients.http_partitioner import HttpPartitioner
from services.coordinator.clients.http_workers import HttpWorkers
from services.coordinator.domain.blame import PairMarks
from services.coordinator.domain.lane_rules import LaneRules
from services.coordinator.domain.link_token import link_secret
from services.coordinator.domain.replica import RENEW_EVERY_S, Replica, replica_name
from services.coordinator.domain.resuming import WindowSizes
from services.coordinator.domain.slots import SlotLedger
from services.coordinator.domain.tail_line import TailLine
from services.coordinator.own_series import CoordinatorMetrics
from services.coordinator.ports import EvidenceStore, Profiles, Replicas, Standings
from services.coordinator.routes import (
    PUBLIC_PATHS,
    build_evidence_router,
    build_links_router,
    build_nodes_router,
    build_router,
)
from services.coordinator.service.committer import Committer
from services.coordinator.service.evidence_shelf import EvidenceShelf
from services.coordinator.service.measuring import Measuring
from services.coordinator.service.membership import Membership, Terms
from services.coordinator.service.messages import Messages
from services.coordinator.service.models import Models
from services.coordinator.service.parts import Parts
from services.coordinator.service.placements import Placements
from services.coordinator.service.preparing import Preparing
from services.coordinator.service.profile_book import ProfileBook
from services.coordinator.service.relays import Relays
from services.coordinator.service.replica_set import ReplicaSet
from services.coordinator.service.sessions import Sessions
from services.coordinator.service.standing_book import StandingBook
from services.coordinator.service.tail_audits import TailAudits
from services.coordinator.service.tail_book import TailBook
from services.coordinator.stores.coordinator_key import load_coordinator_key
from services.coordinator.stores.evidence import RedisEvidenceStore
from services.coordinator.stores.profiles import RedisProfiles
from services.coordinator.stores.replicas import RedisReplicas
from services.coordinator.stores.standings import RedisStandings
from shared.domain.errors import RegistryUnavailable
from shared.domain.ids import NodeId
from shared.registry.base import TaskRegistry
from shared.registry.connection import make_clients
from shared.registry.receipts import ReceiptStore
from shared.registry.redis_receipts import RedisReceiptStore
from shared.registry.redis_registry import RedisTaskRegistry
from shared.resilience.pool import Connect
from shared.runtime.app import make_app
from shared.runtime.clock import Clock, SystemClock
from shared.runtime.config import Config, ConfigError, is_loopback
from shared.runtime.tasks import BackgroundTasks
from shared.runtime.telemetry import Telemetry

MESSAGE_BYTES = 4 * 1024 * 1024  # the most drafts that fit one message, with alternatives
NODE_BYTES = 64 * 1024
TOKEN_BYTES = 32
HEARTBEATS_TO_SETTLE = 2  # after which every living worker has registered with a coordinator started again


@dataclass(frozen=True, slots=True)
class Stores:
    """What outlives a coordinator."""

    registry: TaskRegistry
    receipts: ReceiptStore
    evidence: EvidenceStore
    standings: Standings
    profiles: Profiles
    replicas: Replicas


def create_app(
    config: Config,
    *,
    clock: Clock | None = None,
    connect: Connect | None = None,
    stores: Stores | None = None,
    secret: random.Random | None = None,
    rng: random.Random | None = None,
) -> FastAPI:
    """`connect` None: others are called over sockets. `stores` None: those in Redis. `secret` (None: the system's)
    draws what no worker may foresee: tokens, auditors, which answers are audited once more. `rng` (None: seeded by the
    system): for jitter."""
    clock = clock or SystemClock()
    secret = secret or secrets.SystemRandom()
    stores = stores or _redis_stores(config)
    registry = stores.registry
    coordination = config.coordination
    telemetry = Telemetry(
        source="coordinator", address=coordination.bind_address, config=config, clock=clock, connect=connect, rng=rng
    )
    key = load_coordinator_key(coordination.data_dir)
    tasks = BackgroundTasks(clock)
    draining = asyncio.Event()
    own = Replica(
        boot_id=secret.randbytes(8).hex(),
        address=coordination.advertise_url or config.services.coordinator_url[0],
        key=key.public_key.hex(),
    )
    replicas = ReplicaSet(stores.replicas, own, clock)
    partitioner_client = telemetry.replicas("partitioner", config.services.partitioner_url)
    partitioner = HttpPartitioner(partitioner_client)
    slots = SlotLedger()

    book, is_measured = ProfileBook(stores.profiles), coordination.speeds == "measured"

    def new_token() -> str:
        return secret.randbytes(TOKEN_BYTES).hex()

    members = Membership(
        terms=_terms(config, key.public_key),
        workers=HttpWorkers(telemetry.peers),
        standings=StandingBook(stores.standings, clock),
        slots=slots,
        events=telemetry.events,
        clock=clock,
        tasks=tasks,
        new_token=new_token,
        coordinators=lambda: replicas.addresses if coordination.advertise_url else (),
        figures_of=book.figures_of if is_measured else lambda declared: declared,
    )
    relays = Relays(
        links=HttpLinks(telemetry.peers),
        tasks=tasks,
        new_token=new_token,
        name=replica_name(own.address),
    )
    committer = Committer(registry=registry, events=telemetry.events, now=clock.now_s)
    pair_marks = PairMarks()
    parts = Parts(
        registry=registry,
        receipts=stores.receipts,
        evidence=stores.evidence,
        members=members,
        partitioner=partitioner,
        committer=committer,
        slots=slots,
        events=telemetry.events,
        clock=clock,
        tasks=tasks,
        boot_id=own.boot_id,
        key=key,
        windows=WindowSizes(
            coordination.checkpoint_interval, coordination.window_checkpoints, coordination.max_windows_ahead
        ),
        pair_marks=pair_marks,
        relays=relays,
        trusted=frozenset(map(NodeId, coordination.trusted_nodes)),
        lane_rules=LaneRules(spread_by=coordination.spread_by, always_blind=coordination.require_blind == "always"),
        shuffled=lambda nodes: secret.sample(nodes, len(nodes)),
        tail=TailBook(
            fraction=coordination.tail_audit_fraction,
            line=TailLine(keep_s=coordination.tail_keep_s),
            secret=secret,
            registry=registry,
            events=telemetry.events,
            clock=clock,
            tasks=tasks,
        ),
        link_secret=link_secret(key.secret),
    )
    sessions = Sessions(
        parts,
        models=Models(partitioner),
        tasks=tasks,
        draining=draining,
        phase_timeout_s=coordination.phase_timeout_ms / 1000,
        settle_s=HEARTBEATS_TO_SETTLE * coordination.heartbeat_ms / 1000,
    )
    members.watch(sessions)
    telemetry.registry.register(CoordinatorMetrics(members.counts))
    tail_audits = TailAudits(parts, sessions, spread_by=coordination.spread_by)
    measuring = Measuring(
        members=members,
        book=book,
        slots=slots,
        link_secret=parts.link_secret,
        is_on=is_measured,
        is_first=lambda: replicas.is_first,
        clock=clock,
    )
    preparing = Preparing(
        members=members,
        slots=slots,
        is_measuring=measuring.is_measuring,
        max_byzantine=coordination.max_byzantine,
        clock=clock,
    )
    messages = Messages(
        members=members,
        sessions=sessions,
        committer=committer,
        measuring=measuring,
        pair_marks=pair_marks,
        clock=clock,
        events=telemetry.events,
    )

    async def close_links_when_told() -> None:
        """The server waits for them before the lifespan ends."""
        await draining.wait()
        relays.close_all()

    async def hear_of_others() -> None:
        await clock.sleep(RENEW_EVERY_S)
        await members.hear_of_others()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with telemetry.running():
            tasks.loop("commit", committer.run_once)
            tasks.loop("watch", sessions.watch_once)
            tasks.loop("hold", sessions.hold_once)
            tasks.loop("announce", replicas.announce_once)
            tasks.loop("standings", hear_of_others)
            if is_measured:
                tasks.loop("measuring", measuring.run_once)
            _ = tasks.start(close_links_when_told(), name="close links when told")
            tasks.loop("prepare", preparing.run_once)
            tasks.loop("tail-audit", tail_audits.run_once)
            tasks.loop("held-answers", tail_audits.run_held_once)
            try:
                yield
            finally:
                # Running sessions stay in the registry: another coordinator adopts them under a new epoch.
                held = sessions.held()
                await tasks.stop(grace_s=2.0)
                with suppress(RegistryUnavailable):  # then the leases lapse
                    await sessions.give_up(held)
                    await replicas.withdraw()
                await registry.aclose()

    return make_app(
        "coordinator",
        routers=[
            build_nodes_router(members, measuring),
            build_evidence_router(EvidenceShelf(stores.evidence)),
            build_links_router(relays),
            build_router(sessions, Placements(members, preparing), messages),
        ],
        lifespan=lifespan,
        readiness={"registry": registry.ping, "partitioner": partitioner_client.check, "replicas": replicas.check},
        service_token=config.security.service_token.get_secret_value(),
        public_paths=PUBLIC_PATHS,
        body_limits={"/messages": MESSAGE_BYTES, "/nodes": NODE_BYTES, "/links": None},
        stream_paths=("/links",),
        clock=clock,
        registry=telemetry.registry,
        draining=draining,
        peers=telemetry.peers.states,
    )


def _redis_stores(config: Config) -> Stores:
    if config.redis.url is None:
        raise ConfigError(
            "redis.url is not set: the coordinator needs the task registry, such as redis://127.0.0.1:6379"
        )
    clients = make_clients(config.redis.url.get_secret_value())
    return Stores(
        registry=RedisTaskRegistry(clients, allow_weak_durability=config.redis.allow_weak_durability),
        receipts=RedisReceiptStore(clients),
        evidence=RedisEvidenceStore(clients.commands),
        standings=RedisStandings(clients.commands),
        profiles=RedisProfiles(clients.commands),
        replicas=RedisReplicas(clients.commands),
    )


def _terms(config: Config, coordinator_key: bytes) -> Terms:
    return Terms(
        join_token=config.security.join_token.get_secret_value(),
        admits_all=is_loopback(config.coordination.bind_address),
        heartbeat_ms=config.coordination.heartbeat_ms,
        lease_ms=config.coordination.lease_ms,
        partitioner_urls=config.services.partitioner_url,
        metrics_url=config.services.metrics_url,
        reach_at=config.coordination.advertise_url or "",
        join_urls=_join_urls(config),
        coordinator_key=coordinator_key,
    )


def _join_urls(config: Config) -> frozenset[str]:
    own = config.coordination.advertise_url
    return frozenset((*config.services.coordinator_url, *config.coordination.join_urls, *([own] if own else ())))
