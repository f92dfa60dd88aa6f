"""Has nodes measured, one at a time on each host and only while nobody needs it, and says what plans go by.

Of several replicas the first one does this; what it finds all read. A node's figures are its word: they are bounded,
and decide who gets how many layers, never whose results count.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from services.coordinator.domain.link_token import link_token
from services.coordinator.domain.profile import (
    Machine,
    NodeProfile,
    after,
    assumed_speed,
    drifted,
    levelled,
    name_of,
    seen,
    wants_trial,
)
from services.coordinator.domain.retries import Retries
from services.coordinator.domain.session import Session
from services.coordinator.domain.slots import SlotLedger
from services.coordinator.domain.window_clock import WindowClock
from services.coordinator.service.interfaces import MeasuringInterface
from services.coordinator.service.member import Member, stage_key
from services.coordinator.service.membership import Membership
from services.coordinator.service.profile_book import ProfileBook
from shared.contracts.messages import Heartbeat, LinkEnds, MeasureNode, MeetPeers, NodeMeasured, Peer, StageRef
from shared.domain.errors import ButterflyError, InvalidInput, NodeNotFound, ProtocolViolation
from shared.domain.ids import NodeId
from shared.domain.measured import MAX_LINKS, MAX_TIMED_STAGES, check_links, check_pace, check_stages
from shared.domain.numerics import TILE_ROWS
from shared.domain.receipt import kept_receipt
from shared.domain.signing import Signed
from shared.domain.task import Verification
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
SETTLE_S = 3.0
"""After a node joined its host is left alone: processes that start, and stages that load, would be measured too."""
PATIENCE_S = 120.0
"""For what a node was asked to measure."""
WINDOWS_SEEN = 8


@dataclass(frozen=True, slots=True)
class _Needs:
    """What there is to measure of a node."""

    has_pace: bool = False
    stages: tuple[StageRef, ...] = ()
    peers: tuple[Member, ...] = ()

    def __bool__(self) -> bool:
        return self.has_pace or bool(self.stages or self.peers)


@dataclass(frozen=True, slots=True)
class _Asked:
    node_id: NodeId
    needs: _Needs
    until_s: float


class Measuring(MeasuringInterface):
    def __init__(
        self,
        *,
        members: Membership,
        book: ProfileBook,
        slots: SlotLedger,
        link_secret: bytes,
        is_on: bool,
        is_first: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """`is_on`: else plans go by what nodes declare. `is_first`: whether of all replicas it is this one that has
        nodes measured."""
        self._members, self._book, self._slots = members, book, slots
        self._link_secret = link_secret
        self._is_on, self._is_first = is_on, is_first
        self._clock = clock
        self._windows = WindowClock()
        self._windows_seen: dict[NodeId, deque[float]] = {}
        """Seconds per layer-byte and row, of the windows that a node replayed last."""
        self._joined_at_s: dict[NodeId, tuple[str, float]] = {}
        """By node: its run, and when that was seen first."""
        self._asked: dict[str, _Asked] = {}
        """By host: whose answer is awaited."""
        self._retries: Retries[NodeId] = Retries()
        """Of measurings that brought nothing new, such as those that sessions cut short."""
        self._link_retries: Retries[tuple[NodeId, NodeId]] = Retries()
        """Of (node, peer): a peer that cannot be reached from there keeps nobody from measuring the rest."""

    @property
    def _acts(self) -> bool:
        return self._is_on and self._is_first()

    async def run_once(self) -> None:
        """To be called in a loop. Raises `RegistryUnavailable`."""
        await self._clock.sleep(LOOK_EVERY_S)
        await self.look()

    async def look(self) -> None:
        """Raises `RegistryUnavailable`."""
        for node_id in await self._book.refresh():
            self._retries.succeeded(node_id)
        here = self._members.ready()
        self._note_joined(here)
        if self._acts:
            machines = {member.node_id: _machine(member) for member in here}
            seconds = {
                node_id: min(windows) for node_id, windows in self._windows_seen.items() if len(windows) == WINDOWS_SEEN
            }
            self._book.put(levelled(seen(map(self._book.of, machines), seconds), machines))
            await self._book.save()
            for host in {member.capability.machine for member in here}:
                await self._look_at([member for member in here if member.capability.machine == host], here)
        self._publish(here)

    def is_measuring(self, host: str) -> bool:
        """Whether a node of this host measures something now, so that its neighbours had better rest."""
        asked = self._asked.get(host)
        return asked is not None and self._clock.now_s() < asked.until_s

    async def demand(self, node_id: NodeId) -> None:
        if not self._is_on:
            raise InvalidInput("this cluster goes by what nodes declare: set coordination.speeds to 'measured'")
        if self._members.find(node_id) is None:
            raise NodeNotFound(f"no node {node_id} is registered")
        self._book.put([replace(NodeProfile(node_id), level=self._book.of(node_id).level)])
        await self._book.save()

    # --- what nodes say

    def told(self, member: Member, message: NodeMeasured) -> None:
        """Raises `ProtocolViolation` for figures that no node has."""
        needs = self._answered(member)
        try:
            if message.pace is not None:
                check_pace(message.pace)
            check_stages(message.stages)
            check_links(member.node_id, message.links)
        except InvalidInput as error:
            if needs is not None:
                self._missed(member.node_id)
            raise ProtocolViolation(error.message) from None
        if needs is None:
            return  # it answers another replica
        names, peers = set(map(stage_key, needs.stages)), {peer.node_id for peer in needs.peers}
        stages = [stage for stage in message.stages if name_of(stage) in names]
        links = [link for link in message.links if link.peer in peers]
        pace = message.pace if needs.has_pace else None
        self._book.put([after(self._book.of(member.node_id), pace, stages, links)])
        if (pace is None) is needs.has_pace or len(stages) < len(names):
            self._missed(member.node_id)
        else:
            self._retries.succeeded(member.node_id)
        for peer in peers - {link.peer for link in links}:
            self._link_retries.failed((member.node_id, peer), now_s=self._clock.now_s())
        log.info(
            "node_measured",
            extra={
                "node_id": member.node_id,
                "decode_s_per_byte": None if pace is None else pace.decode_s_per_byte,
                "stages": len(stages),
                "links": len(links),
            },
        )

    def _answered(self, member: Member) -> _Needs | None:
        """What this node was asked for, which nobody waits for any more; None when it was not asked here."""
        asked = self._asked.get(member.capability.machine)
        if asked is None or asked.node_id != member.node_id or not self._acts:
            return None
        return self._asked.pop(member.capability.machine).needs

    def signed(self, member: Member, signed: Signed, session: Session) -> None:
        """For a window that this node has computed. Those of prompts are computed in several calls, which overlap."""
        if not self._acts or session.task.verification is not Verification.AUDIT:
            return
        try:
            receipt = kept_receipt(signed).receipt
        except InvalidInput:
            return  # whoever judges receipts says so
        seconds = self._windows.signed(receipt.slot, num_stages=len(session.seats), now_s=self._clock.now_s())
        rows = receipt.row_end - receipt.row_start
        layers = session.subject.model.layers[receipt.layer_start : receipt.layer_end]
        if seconds is not None and layers and 0 < rows <= TILE_ROWS:
            windows = self._windows_seen.setdefault(member.node_id, deque(maxlen=WINDOWS_SEEN))
            windows.append(seconds / (rows * sum(layer.weight_bytes for layer in layers)))

    def beat(self, member: Member, beat: Heartbeat) -> None:
        profile = self._book.of(member.node_id)
        if not self._acts or profile.level is None or beat.drift is None:
            return
        host = member.capability.machine
        is_alone = sum(other.capability.machine == host for other in self._members.ready()) == 1
        self._book.put([drifted(profile, beat.drift, is_alone=is_alone)])

    def _publish(self, here: Sequence[Member]) -> None:
        """What plans go by."""
        profiles = [(member, self._book.of(member.node_id)) for member in here]
        levels = [(member.capability.cores, profile.level) for member, profile in profiles if profile.level is not None]
        for member, profile in profiles:
            speed = assumed_speed(member.capability.cores, levels) if profile.level is None else profile.level.speed
            self._members.found(member.node_id, speed=speed, measured=profile.measured)

    # --- whose turn it is

    def _note_joined(self, here: Sequence[Member]) -> None:
        now_s = self._clock.now_s()
        known = self._joined_at_s
        self._joined_at_s = {
            member.node_id: known[member.node_id]
            if known.get(member.node_id, ("",))[0] == member.boot_id
            else (member.boot_id, now_s)
            for member in here
        }

    async def _look_at(self, neighbours: Sequence[Member], here: Sequence[Member]) -> None:
        """Of the nodes of one host, have the next one measured."""
        now_s, host = self._clock.now_s(), neighbours[0].capability.machine
        asked = self._asked.get(host)
        if asked is not None and now_s >= asked.until_s:
            del self._asked[host]
            self._missed(asked.node_id)
        if host in self._asked or not all(map(self._is_idle, neighbours)):
            return
        for needs_of in (self._trials_of, self._details_of):  # what plans go by comes first
            for member in sorted(neighbours, key=lambda member: len(self._book.of(member.node_id).trials)):
                needs = needs_of(member, here)
                if needs and self._retries.may_try(member.node_id, now_s=now_s):
                    self._asked[host] = _Asked(member.node_id, needs, now_s + PATIENCE_S)
                    await self._ask(member, needs)
                    return

    def _is_idle(self, member: Member) -> bool:
        _, joined_at_s = self._joined_at_s[member.node_id]
        has_settled = self._clock.now_s() >= joined_at_s + SETTLE_S
        is_busy = member.loading or member.preparing or self._slots.used(member.node_id)
        return has_settled and not is_busy

    def _trials_of(self, member: Member, here: Sequence[Member]) -> _Needs:
        alike = [other for other in here if other is not member and _machine(other) == _machine(member)]
        others = (self._book.of(other.node_id) for other in alike)
        return _Needs(has_pace=wants_trial(self._book.of(member.node_id), others))

    def _details_of(self, member: Member, here: Sequence[Member]) -> _Needs:
        timed = self._book.of(member.node_id).stage_names
        stages = [ref for key, ref in member.loaded.items() if key in member.asked and key not in timed]
        return _Needs(
            stages=tuple(stages[:MAX_TIMED_STAGES]),
            peers=tuple(peer for peer in _peers(member, here) if self._may_time(member.node_id, peer.node_id)),
        )

    def _may_time(self, one: NodeId, other: NodeId) -> bool:
        return not self._is_timed(one, other) and self._link_retries.may_try((one, other), now_s=self._clock.now_s())

    def _is_timed(self, one: NodeId, other: NodeId) -> bool:
        """Whether either of them has timed the way."""
        ends = ((one, other), (other, one))
        return any(link.peer == far for near, far in ends for link in self._book.of(near).links)

    async def _ask(self, member: Member, needs: _Needs) -> None:
        try:
            met = [peer for peer in needs.peers if await self._have_met(peer, member)]
            await member.worker.measure(
                MeasureNode(
                    has_pace=needs.has_pace,
                    stages=needs.stages,
                    peers=tuple(self._ends(member, peer) for peer in met),
                )
            )
        except ButterflyError as error:
            log.info("node_not_measured", extra={"node_id": member.node_id, "code": error.code})
            self._asked.pop(member.capability.machine, None)
            self._missed(member.node_id)

    def _missed(self, node_id: NodeId) -> None:
        self._retries.failed(node_id, now_s=self._clock.now_s())

    async def _have_met(self, peer: Member, member: Member) -> bool:
        try:
            await peer.worker.meet(MeetPeers(peers=(self._ends(peer, member),)))
        except ButterflyError:
            return False
        return True

    def _ends(self, own: Member, peer: Member) -> LinkEnds:
        """What `own` is told of `peer`."""
        return LinkEnds(previous=self._peer(peer, sender=peer, receiver=own), next=self._peer(peer, own, peer))

    def _peer(self, member: Member, sender: Member, receiver: Member) -> Peer:
        token = link_token(self._link_secret, sender.node_id, receiver.node_id, receiver_boot=receiver.boot_id)
        return Peer(node_id=member.node_id, address=member.address, link_token=token)


def _machine(member: Member) -> Machine:
    return member.capability.machine, member.capability.cores


def _peers(member: Member, here: Sequence[Member]) -> Iterable[Member]:
    """Those whom a node times the way to: of many the nearest by id, on both sides, so that each is timed by some."""
    place = here.index(member)
    around = [here[(place + off) % len(here)] for step in range(1, len(here)) for off in (step, -step)]
    return list(dict.fromkeys(peer for peer in around if peer is not member))[:MAX_LINKS]
