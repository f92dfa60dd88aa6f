"""Who is here: registration, heartbeats, leases.

Nodes are kept in memory only: after a restart of the coordinator a heartbeat is answered with `node_not_found`, and
the worker registers again, so within a heartbeat the picture is whole again. Durable is only who may not serve or gets
no new work (`standing_book`).
"""

import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from services.coordinator.domain.admission import check_address, check_capability
from services.coordinator.domain.faults import FaultKind
from services.coordinator.domain.kinship import StageKey, kin_of
from services.coordinator.domain.liveness import node_state
from services.coordinator.domain.slots import SlotLedger
from services.coordinator.domain.suspicion import Rhythm
from services.coordinator.ports import Workers
from services.coordinator.service.interfaces import MembershipInterface
from services.coordinator.service.member import (
    Member,
    evicted_view,
    reason_of,
    stage_key,
    token_hash,
    view_of,
)
from services.coordinator.service.standing_book import StandingBook
from shared.contracts.coordinator import NodeList, PublicKeys, Registered, RegisterNode
from shared.contracts.messages import MAX_STAGES_PER_NODE, Heartbeat, Leave, StageReady, StageRef
from shared.domain.errors import (
    ButterflyError,
    Forbidden,
    InvalidCredentials,
    NoCapacity,
    NodeNotFound,
    RegistryUnavailable,
)
from shared.domain.ids import NodeId
from shared.domain.node_proof import check_proof
from shared.domain.numerics import StageFacts
from shared.domain.plan import NodeCapability, for_plans
from shared.domain.session import NodeState
from shared.events.catalogue import NodeFailure, NodeJoined, NodeStateChanged
from shared.events.publisher import Publisher
from shared.runtime.clock import Clock
from shared.runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)

MAX_NODES = 10_000
MAX_FACTS = 4_096  # of one run of a node: stages of all models, however they are cut
SAVE_AGAIN_S = 1.0


class MembershipWatcher(Protocol):
    def node_gone(self, node_id: NodeId, kind: FaultKind, reason: str) -> None:
        """Whatever this node held is lost."""

    def nodes_changed(self) -> None:
        """More may be possible than before."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a registered node is told, and by what it is admitted."""

    join_token: str
    """Empty: everybody is admitted, see `admits_all`."""
    admits_all: bool
    """Whether an empty join token is good enough: only where nobody but this machine can connect."""
    heartbeat_ms: int
    lease_ms: int
    partitioner_urls: tuple[str, ...]
    metrics_url: str
    reach_at: str
    """As in `Registered`."""
    join_urls: frozenset[str]
    """Where nodes may join: their proofs name one of them."""
    coordinator_key: bytes
    """Ed25519, public: what assignments are signed with."""


class Membership(MembershipInterface):
    def __init__(
        self,
        *,
        terms: Terms,
        workers: Workers,
        standings: StandingBook,
        slots: SlotLedger,
        events: Publisher,
        clock: Clock,
        tasks: BackgroundTasks,
        new_token: Callable[[], str],
        coordinators: Callable[[], tuple[str, ...]],
        figures_of: Callable[[NodeCapability], NodeCapability],
    ) -> None:
        """`new_token`: a fresh secret at each call. `coordinators`: URLs of all replicas that are here. `figures_of`:
        what plans go by of a node that declares this."""
        self._terms = terms
        self._workers = workers
        self._standings = standings
        self._slots = slots
        self._events = events
        self._clock = clock
        self._tasks = tasks
        self._new_token = new_token
        self.coordinators = coordinators
        self._figures_of = figures_of
        self._members: dict[NodeId, Member] = {}
        self._by_token: dict[bytes, Member] = {}
        self._mixed_classes: set[str] = set()
        """Numerics classes in which nodes were found to differ."""
        self._watchers: list[MembershipWatcher] = []

    def watch(self, watcher: MembershipWatcher) -> None:
        self._watchers.append(watcher)

    # --- for operators and other services

    async def register(self, join_token: str, node: RegisterNode) -> Registered:
        self._check_join_token(join_token)
        check_capability(node.capability)
        check_address(node.address)
        node_id, public_key = node.capability.node_id, bytes.fromhex(node.public_key)
        joined_at = check_proof(
            node.proof.signed(),
            node_id=node_id,
            public_key=public_key,
            address=node.address,
            boot_id=node.boot_id,
            coordinators=self._terms.join_urls,
        )
        await self._standings.recall()
        standing = self._standings.of(node_id)
        if standing is not None and standing.is_evicted:
            raise Forbidden(f"node {node_id} is evicted until an operator reinstates it: {reason_of(standing)}")
        before = self._members.get(node_id)
        if before is None and len(self._members) >= MAX_NODES:
            raise NoCapacity(f"there are {MAX_NODES} nodes already")
        node_token, coordinator_token = self._new_token(), self._new_token()
        member = Member(
            capability=self._figures_of(replace(node.capability, kin="", measured=None)),  # not for the node to say
            public_key=public_key,
            address=node.address,
            joined_at=joined_at,
            boot_id=node.boot_id,
            token_hash=token_hash(node_token),
            worker=self._workers.connect(node_id, node.address, boot_id=node.boot_id, token=coordinator_token),
            heard_at_s=self._clock.now_s(),
            rhythm=Rhythm(self._terms.heartbeat_ms / 1000),
        )
        if before is not None:
            self._by_token.pop(before.token_hash, None)
            if before.address != node.address:  # else a node that moves about would leave connections behind
                _ = self._tasks.start(self._workers.forget(node_id), name=f"forget-{node_id}")
            if before.boot_id == node.boot_id:
                member.loaded, member.loading = before.loaded, before.loading
                member.asked, member.preparing, member.facts = before.asked, before.preparing, before.facts
        self._members[node_id] = member
        self._sort_kin(member.capability.numerics_class)
        self._by_token[member.token_hash] = member
        log.info("node_registered", extra={"node_id": node_id, "address": node.address, "boot_id": node.boot_id})
        if before is None or before.boot_id != node.boot_id:
            self._events.publish(NodeJoined(node_id, node.address.partition("://")[2], node.boot_id))
        if before is not None and before.boot_id != node.boot_id:
            self._tell_gone(node_id, FaultKind.CRASH, f"node {node_id} was started anew")
        self._update(member)
        self._tell_changed()
        return Registered(
            node_token=node_token,
            coordinator_token=coordinator_token,
            heartbeat_ms=self._terms.heartbeat_ms,
            lease_ms=self._terms.lease_ms,
            partitioner_urls=self._terms.partitioner_urls,
            metrics_url=self._terms.metrics_url,
            coordinator_key=self._terms.coordinator_key.hex(),
            reach_at=self._terms.reach_at,
            coordinators=self.coordinators(),
        )

    def nodes(self, *, with_stage_times: bool = False) -> NodeList:
        now_s = self._clock.now_s()
        views = [
            view_of(
                member,
                member.capability if with_stage_times else for_plans(member.capability),
                self._standings.of(node_id),
                slots_used=self._slots.used(node_id),
                now_s=now_s,
            )
            for node_id, member in self._members.items()
        ]
        views += map(evicted_view, self._standings.evicted())
        return NodeList(nodes=tuple(sorted(views, key=lambda view: view.node_id)))

    def keys(self) -> PublicKeys:
        return PublicKeys(
            coordinator=self._terms.coordinator_key.hex(),
            nodes={node_id: member.public_key.hex() for node_id, member in sorted(self._members.items())},
        )

    async def drain(self, node_id: NodeId) -> None:
        member = self._member(node_id)
        await self._standings.set_drained(node_id, is_drained=True)
        self._update(member)

    async def resume(self, node_id: NodeId) -> None:
        await self._standings.recall()
        if not self._standings.is_drained(node_id):
            self._member(node_id)
        await self._standings.set_drained(node_id, is_drained=False)
        member = self._members.get(node_id)
        if member is not None and self._update(member):
            self._tell_changed()

    async def quarantine(self, node_id: NodeId, reason: str, *, until_reinstated: bool = False) -> None:
        member = self._member(node_id)
        self._standings.quarantine(node_id, reason=reason, address=member.address, until_reinstated=until_reinstated)
        self._update(member)
        await self._standings.save(node_id)

    async def reinstate(self, node_id: NodeId) -> None:
        await self._standings.recall()
        ended = await self._standings.reinstate(node_id)
        log.info("node_reinstated", extra={"node_id": node_id, "was": reason_of(ended)})
        if ended.is_evicted:  # its worker asks to be let in every few seconds
            self._publish_state(node_id, NodeState.EVICTED, NodeState.LOST, ended.address)
        member = self._members.get(node_id)
        if member is not None and self._update(member):
            self._tell_changed()

    # --- for workers' messages

    def authenticate(self, node_token: str) -> Member:
        """Whose token this is. Raises `NodeNotFound`: the worker has to register (again)."""
        member = self._by_token.get(token_hash(node_token))  # a lookup by hash tells nothing by its timing
        if member is None:
            raise NodeNotFound("no node is registered with this token: register again")
        return member

    def heartbeat(self, member: Member, beat: Heartbeat) -> None:
        """Renew the lease. Raises `NodeNotFound` for another run than the one registered."""
        if beat.boot_id != member.boot_id:
            raise NodeNotFound("this run of the node is not registered: register again")
        now_s = self._clock.now_s()
        member.rhythm = member.rhythm.after(now_s - member.heard_at_s)
        member.heard_at_s = now_s
        member.timer_lag_s = beat.timer_lag_ms / 1000
        member.is_stopping = beat.draining
        member.is_unreachable = False
        member.loaded = {stage_key(ref): ref for ref in beat.stages}
        for key in member.loaded:
            member.loading.pop(key, None)
        others = dict(zip(member.loaded, beat.slots_elsewhere, strict=False))
        self._slots.elsewhere(member.node_id, {key: count for key, count in others.items() if count})
        if self._update(member):
            self._tell_changed()

    def stage_ready(self, member: Member, message: StageReady) -> None:
        key = stage_key(message.stage_ref)
        if not message.holds:
            member.preparing.discard(key)
        if message.error_code is not None:
            if message.holds:
                member.loading.pop(key, None)
            log.warning(
                "stage_not_loaded",
                extra={"node_id": member.node_id, "code": message.error_code[:64], "error": message.error[:500]},
            )
            return
        if message.facts is not None and key in member.asked:
            noted = self.stage_loaded if message.holds else self.stage_known
            noted(member, message.stage_ref, message.facts)

    def stage_loaded(self, member: Member, ref: StageRef, facts: StageFacts) -> None:
        """A node holds a stage it was asked for."""
        key = stage_key(ref)
        member.loading.pop(key, None)
        member.loaded = {**member.loaded, key: ref}
        self.stage_known(member, ref, facts)

    def stage_known(self, member: Member, ref: StageRef, facts: StageFacts) -> None:
        """Of what a node says of a stage it was asked for only the first word counts, for this run of the node: another
        one later could but make trouble."""
        key = stage_key(ref)
        if key not in member.facts and len(member.facts) < MAX_FACTS:
            member.facts[key] = facts
            if any(other.facts.get(key, facts) != facts for other in self._members.values()):
                self._mixed_classes.add(member.capability.numerics_class)
            self._sort_kin(member.capability.numerics_class)

    def leave(self, member: Member, message: Leave) -> None:
        """Gone at once. A word of an earlier run changes nothing."""
        if message.boot_id == member.boot_id:
            self._remove(member, f"node {member.node_id} left")

    # --- for sessions

    def find(self, node_id: NodeId) -> Member | None:
        return self._members.get(node_id)

    def is_evicted(self, node_id: NodeId) -> bool:
        standing = self._standings.of(node_id)
        return standing is not None and standing.is_evicted

    def key_of(self, node_id: NodeId) -> bytes:
        """Its public key, 32 bytes. Raises `NodeNotFound`."""
        return self._member(node_id).public_key

    async def evict(self, node_id: NodeId, evidence_id: str, reason: str) -> None:
        """A node is proven guilty: out at once, and its key is refused until an operator reinstates it. Idempotent.

        Returns when that is durable: while the registry is away it waits.
        """
        member = self._members.get(node_id)
        address = "" if member is None else member.address
        if self._standings.evict(node_id, evidence_id=evidence_id, reason=reason, address=address):
            log.warning("node_evicted", extra={"node_id": node_id, "evidence": evidence_id, "reason": reason})
            self._events.publish(NodeFailure(node_id, evidence=evidence_id, reason="evidence"))
            if member is not None:
                self._remove(member, f"node {node_id} is evicted: {reason}", state=NodeState.EVICTED)
        while True:
            try:
                return await self._standings.save(node_id)
            except RegistryUnavailable as error:
                log.warning("eviction_not_saved", extra={"node_id": node_id, "error": error.message})
                await self._clock.sleep(SAVE_AGAIN_S)

    async def hear_of_others(self) -> None:
        """Whom other coordinators have evicted, put in quarantine, reinstated, drained or resumed. Raises
        `RegistryUnavailable`."""
        await self._standings.refresh()
        has_changed = False
        for member in list(self._members.values()):
            standing = self._standings.of(member.node_id)
            if standing is not None and standing.is_evicted:
                reason = f"node {member.node_id} is evicted: {reason_of(standing)}"
                self._remove(member, reason, state=NodeState.EVICTED)
            else:
                has_changed |= self._update(member)
        if has_changed:
            self._tell_changed()

    async def set_aside(self, node_id: NodeId, reason: str) -> None:
        """Put a node in quarantine, if it is still here."""
        try:
            await self.quarantine(node_id, reason)
        except ButterflyError as error:  # what is not saved holds until this process ends
            log.warning("quarantine_not_saved", extra={"node_id": node_id, "code": error.code})

    def ready(self) -> tuple[Member, ...]:
        """Nodes that may take new seats, in order of their ids."""
        return tuple(member for _, member in sorted(self._members.items()) if member.state is NodeState.READY)

    def loading(self, node_id: NodeId, ref: StageRef) -> None:
        """A node was asked to hold a stage."""
        member, key = self._members.get(node_id), stage_key(ref)
        if member is None:
            return
        self._asked_for(member, key)
        if key not in member.loaded and len(member.loading) < MAX_STAGES_PER_NODE:
            member.loading[key] = ref

    def not_loading(self, node_id: NodeId, ref: StageRef) -> None:
        """The node said that it cannot hold the stage."""
        member = self._members.get(node_id)
        if member is not None:
            member.loading.pop(stage_key(ref), None)

    def preparing(self, member: Member, ref: StageRef) -> None:
        """A node was asked to fetch and test a stage."""
        key = stage_key(ref)
        self._asked_for(member, key)
        member.preparing.add(key)

    def not_preparing(self, member: Member, ref: StageRef) -> None:
        """It has, or cannot."""
        member.preparing.discard(stage_key(ref))

    def refresh_figures(self) -> None:
        """More is known of how fast nodes are."""
        for member in self._members.values():
            member.capability = self._figures_of(member.capability)

    def unreachable(self, node_id: NodeId) -> None:
        """A call to this node got no answer: no new seats until it is heard of again."""
        member = self._members.get(node_id)
        if member is not None:
            member.is_unreachable = True
            self._update(member)

    def sweep(self, *, overslept_s: float) -> None:
        """End leases that are over. `overslept_s`: how late this call comes; a coordinator that missed its own timer
        may have missed heartbeats as well, so nobody is blamed for that time."""
        for member in list(self._members.values()):
            member.heard_at_s += overslept_s
            state = self._state(member)
            if state is NodeState.LOST:
                self._events.publish(NodeFailure(member.node_id, evidence="", reason="lease"))
                self._remove(member, f"the lease of node {member.node_id} is over")
            else:
                self._become(member, state)

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for member in self._members.values():
            counts[member.state] = counts.get(member.state, 0) + 1
        evicted = len(self._standings.evicted())
        return counts | ({NodeState.EVICTED: evicted} if evicted else {})

    # ---

    def _check_join_token(self, given: str) -> None:
        expected = self._terms.join_token
        if not expected and not self._terms.admits_all:
            raise InvalidCredentials(
                "this coordinator can be reached from other machines and has no join token: set security.join_token"
            )
        if expected and not hmac.compare_digest(given.encode(), expected.encode()):
            raise InvalidCredentials("the join token is wrong")

    def _member(self, node_id: NodeId) -> Member:
        member = self._members.get(node_id)
        if member is None:
            raise NodeNotFound(f"no node {node_id} is registered")
        return member

    def _state(self, member: Member) -> NodeState:
        silent_s = self._clock.now_s() - member.heard_at_s
        return node_state(
            silent_s=silent_s,
            lease_s=self._terms.lease_ms / 1000,
            phi=member.rhythm.phi(silent_s),
            timer_lag_s=member.timer_lag_s,
            quarantined=self._standings.of(member.node_id) is not None,
            draining=self._standings.is_drained(member.node_id) or member.is_stopping,
            unreachable=member.is_unreachable,
        )

    def _update(self, member: Member) -> bool:
        """Whether the state is another than before."""
        return self._become(member, self._state(member))

    def _become(self, member: Member, state: NodeState) -> bool:
        before, member.state = member.state, state
        if before is state:
            return False
        self._tell_state(member, before)
        return True

    def _remove(self, member: Member, reason: str, *, state: NodeState = NodeState.LOST) -> None:
        if self._members.get(member.node_id) is not member:
            return
        del self._members[member.node_id]
        self._sort_kin(member.capability.numerics_class)
        self._by_token.pop(member.token_hash, None)
        self._slots.elsewhere(member.node_id, {})
        before, member.state = member.state, state
        self._tell_state(member, before)
        self._tell_gone(member.node_id, FaultKind.GONE, reason)
        _ = self._tasks.start(self._forget(member.node_id), name=f"forget-{member.node_id}")

    def _asked_for(self, member: Member, key: StageKey) -> None:
        if len(member.asked) < MAX_FACTS:
            member.asked.add(key)

    def _sort_kin(self, numerics_class: str) -> None:
        """Nodes of this class came, went or told of a stage."""
        if numerics_class not in self._mixed_classes:
            return
        nodes = [member for member in self._members.values() if member.capability.numerics_class == numerics_class]
        kin = kin_of({member.node_id: member.facts for member in nodes})
        for member in nodes:
            before, now = member.capability.kin, kin[member.node_id]
            if before != now:
                log.info("node_kin_changed", extra={"node_id": member.node_id, "from": before, "to": now})
                member.capability = replace(member.capability, kin=now)

    async def _forget(self, node_id: NodeId) -> None:
        if node_id not in self._members:
            await self._workers.forget(node_id)

    def _tell_state(self, member: Member, before: NodeState) -> None:
        self._publish_state(member.node_id, before, member.state, member.address)

    def _publish_state(self, node_id: NodeId, before: NodeState, state: NodeState, address: str) -> None:
        log.info("node_state_changed", extra={"node_id": node_id, "from": before, "to": state})
        self._events.publish(NodeStateChanged(node_id, before, state, address.partition("://")[2]))

    def _tell_gone(self, node_id: NodeId, kind: FaultKind, reason: str) -> None:
        for watcher in self._watchers:
            watcher.node_gone(node_id, kind, reason)

    def _tell_changed(self) -> None:
        for watcher in self._watchers:
            watcher.nodes_changed()
