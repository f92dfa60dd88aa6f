"""Has nodes measured, one at a time on each host and only while nobody needs it, and says what plans go by.

Of several replicas the first one does this; what it finds all read. A node's figures are its word: they are bounded,
and decide who gets how many layers, never whose results count.
"""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.coordinator.domain.link_token import link_token
from services.coordinator.domain.profile import (
    Machine,
    NodeProfile,
    after,
    drifted,
    forgotten,
    levelled,
    name_of,
    of_run,
    quickest,
    seen,
    wants_trial,
    without_link,
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
ASKED_AT_ONCE = 64
_DAY_S = 86_400.0


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


class _Here:
    """The nodes that may take seats, as one look finds them."""

    def __init__(self, members: Sequence[Member] = ()) -> None:
        """`members`: by id."""
        self.members = members
        self.hosts: defaultdict[str, list[Member]] = defaultdict(list)
        for member in members:
            self.hosts[member.capability.machine].append(member)
        self._places = {member.node_id: place for place, member in enumerate(members)}

    @property
    def machines(self) -> Mapping[NodeId, Machine]:
        return {member.node_id: _machine(member) for member in self.members}

    def peers_of(self, member: Member) -> Sequence[Member]:
        """Those whom a node times the way to: of many the nearest by id, on both sides, so that each is timed by
        some."""
        count, place = len(self.members), self._places[member.node_id]
        steps = range(1, min(count, MAX_LINKS // 2 + 1))
        around = [self.members[(place + off) % count] for step in steps for off in (step, -step)]
        return list(dict.fromkeys(peer for peer in around if peer is not member))


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
        self._here = _Here()
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)
        self._windows = WindowClock()
        self._windows_seen: dict[tuple[NodeId, str], deque[float]] = {}
        """Seconds per layer-byte and row, of the windows that a run of a node replayed last."""
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
        await self.look()  # what is known of nodes is wanted as soon as they register
        await self._clock.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Raises `RegistryUnavailable`."""
        await self._refresh()
        self._here = here = _Here(self._members.ready())
        self._note_joined(here.members)
        self._forget_gone()
        await self._book.forget_before(self._today(), self._is_here)
        if self._acts:
            self._level(here)
            await self._book.save()
        self._publish(here.members)
        if self._acts:
            turns = [turn for host in here.hosts if (turn := self._turn_on(host, here)) is not None]
            async with asyncio.TaskGroup() as group:
                for member, needs in turns:
                    group.create_task(self._ask(member, needs))

    def is_measuring(self, host: str) -> bool:
        """Whether a node of this host measures something now, so that its neighbours had better rest. A replica that is
        not the first any more waits for nobody."""
        return self._acts and host in self._asked

    async def demand(self, node_id: NodeId) -> None:
        if not self._is_on:
            raise InvalidInput("this cluster goes by what nodes declare: set coordination.speeds to 'measured'")
        if self._members.find(node_id) is None:
            raise NodeNotFound(f"no node {node_id} is registered")
        is_saved = False
        while not is_saved:
            await self._refresh()
            self._book.put([forgotten(self._book.of(node_id))])
            self._book.put([without_link(profile, node_id) for profile in self._book.all()])
            is_saved = await self._book.save()
        self._retries.succeeded(node_id)
        self._link_retries.forget(lambda link: node_id in link)

    async def _refresh(self) -> None:
        for node_id in await self._book.refresh():
            self._retries.succeeded(node_id)

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
        self._book.put([after(self._of_run(member), pace, stages, links)])
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
            run = member.node_id, member.boot_id
            windows = self._windows_seen.setdefault(run, deque(maxlen=WINDOWS_SEEN))
            windows.append(seconds / (rows * sum(layer.weight_bytes for layer in layers)))

    def beat(self, member: Member, beat: Heartbeat) -> None:
        profile = self._book.of(member.node_id)
        if self._acts and profile.level is not None:
            self._book.put([drifted(profile, beat.drift)])

    # --- what plans go by

    def _level(self, here: _Here) -> None:
        seconds = {
            node_id: min(windows)
            for (node_id, _), windows in self._windows_seen.items()
            if len(windows) == WINDOWS_SEEN
        }
        known = (member for member in here.members if not self._book.of(member.node_id).is_empty)
        self._book.put(levelled(seen(map(self._of_run, known), seconds), here.machines))

    def _of_run(self, member: Member) -> NodeProfile:
        profile = self._book.of(member.node_id)
        return of_run(profile, member.boot_id, member.capability.cores, today=self._today())

    def _publish(self, members: Sequence[Member]) -> None:
        profiles = ((member, self._book.of(member.node_id)) for member in members)
        self._book.assume(
            [(member.capability.cores, profile.level) for member, profile in profiles if profile.level is not None]
        )
        self._members.refresh_figures()

    def _today(self) -> int:
        return int(self._clock.wall_s() / _DAY_S)

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

    def _is_here(self, node_id: NodeId) -> bool:
        return self._members.find(node_id) is not None

    def _forget_gone(self) -> None:
        """What concerns nodes, and runs of nodes, that are not here any more."""
        runs = ((node_id, boot_id, self._members.find(node_id)) for node_id, boot_id in self._windows_seen)
        over = [(node_id, boot_id) for node_id, boot_id, here in runs if here is None or here.boot_id != boot_id]
        for run in over:
            del self._windows_seen[run]
        self._asked = {host: asked for host, asked in self._asked.items() if self._is_here(asked.node_id)}
        self._retries.forget(lambda node_id: not self._is_here(node_id))
        self._link_retries.forget(lambda link: not all(map(self._is_here, link)))

    def _turn_on(self, host: str, here: _Here) -> tuple[Member, _Needs] | None:
        """Of the nodes of one host the one that is to be measured now, and what of it."""
        now_s = self._clock.now_s()
        asked = self._asked.get(host)
        if asked is not None and now_s >= asked.until_s:
            del self._asked[host]
            self._missed(asked.node_id)
        if self.is_measuring(host) or not all(map(self._is_idle, here.hosts[host])):
            return None
        turn = self._next_of(here.hosts[host], here)
        if turn is not None:
            self._asked[host] = _Asked(turn[0].node_id, turn[1], now_s + PATIENCE_S)
        return turn

    def _next_of(self, neighbours: Sequence[Member], here: _Here) -> tuple[Member, _Needs] | None:
        now_s = self._clock.now_s()
        in_turns = sorted(neighbours, key=lambda member: len(self._book.of(member.node_id).trials))
        ready = [member for member in in_turns if self._retries.may_try(member.node_id, now_s=now_s)]
        alike: defaultdict[Machine, list[NodeProfile]] = defaultdict(list)
        for member in neighbours:
            alike[_machine(member)].append(self._book.of(member.node_id))
        than = {machine: quickest(profiles) for machine, profiles in alike.items()}
        for member in ready:  # what plans go by comes first
            if wants_trial(self._book.of(member.node_id), than[_machine(member)]):
                return member, _Needs(has_pace=True)
        for member in ready:
            if needs := self._details_of(member, here):
                return member, needs
        return None

    def _is_idle(self, member: Member) -> bool:
        _, joined_at_s = self._joined_at_s[member.node_id]
        has_settled = self._clock.now_s() >= joined_at_s + SETTLE_S
        is_busy = member.loading or member.preparing or self._slots.used(member.node_id)
        return has_settled and not is_busy

    def _details_of(self, member: Member, here: _Here) -> _Needs:
        timed = self._book.of(member.node_id).stage_names
        stages = [ref for key, ref in member.loaded.items() if key in member.asked and key not in timed]
        return _Needs(
            stages=tuple(stages[:MAX_TIMED_STAGES]),
            peers=tuple(peer for peer in here.peers_of(member) if self._may_time(member.node_id, peer.node_id)),
        )

    def _may_time(self, one: NodeId, other: NodeId) -> bool:
        return not self._is_timed(one, other) and self._link_retries.may_try((one, other), now_s=self._clock.now_s())

    def _is_timed(self, one: NodeId, other: NodeId) -> bool:
        """Whether either of them has timed the way."""
        ends = ((one, other), (other, one))
        return any(link.peer == far for near, far in ends for link in self._book.of(near).links)

    async def _ask(self, member: Member, needs: _Needs) -> None:
        try:
            async with self._asking:
                have_met = await asyncio.gather(*(self._have_met(peer, member) for peer in needs.peers))
                met = [peer for peer, has_met in zip(needs.peers, have_met, strict=True) if has_met]
                has_begun = await member.worker.measure(
                    MeasureNode(
                        has_pace=needs.has_pace,
                        stages=needs.stages,
                        peers=tuple(self._ends(member, peer) for peer in met),
                    )
                )
        except ButterflyError as error:
            has_begun = False
            log.info("node_not_measured", extra={"node_id": member.node_id, "code": error.code})
        if not has_begun:
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
