"""Which nodes take the seats of one session: at its admission, and again after every loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.coordinator.domain.lane_rules import Guarantee, check_lanes, draw_auditors, sits_apart
from services.coordinator.domain.refilling import Candidate, refill
from services.coordinator.domain.session import Session
from services.coordinator.service.assigning import stage_ref
from services.coordinator.service.member import Member, stage_key
from services.coordinator.service.parts import Parts
from services.coordinator.service.verifying import FirstTry
from shared.domain.errors import ButterflyError, NoCapacity
from shared.domain.ids import NodeId
from shared.domain.plan import NodeCapability, Partition, PartitionPlan, Seating, fits_memory
from shared.domain.task import Verification

Nodes = Mapping[NodeId, NodeCapability]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to find a plan for the next epoch."""

    nodes: Sequence[Member]
    """To choose from."""
    num_stages: int | None = None
    """To ask the partitioner for; None: as many as it likes."""
    refills: bool = False
    """The stages stay as they are, with nodes that keep the rows."""


class Choosing:
    def __init__(self, parts: Parts, session: Session) -> None:
        self._parts, self._session = parts, session

    def check(self, plan: PartitionPlan, nodes: Nodes, *, begins: bool) -> Guarantee:
        """Raises `NoCapacity`, and as `lane_rules.check_lanes`."""
        for seat in plan.seats:
            if seat.node_id not in nodes:
                raise NoCapacity(f"node {seat.node_id} is not ready for seats", retry_after_s=1.0)
        task = self._session.task
        return check_lanes(
            plan,
            nodes,
            self._session.subject.model,
            verification=task.verification,
            f=task.max_byzantine,
            begins=begins,
            rules=self._parts.lane_rules,
        )

    def drawn(self, plan: PartitionPlan, nodes: Nodes) -> PartitionPlan:
        """The plan with auditors drawn among the nodes that hold their stages and have a slot free there."""
        parts = self._parts

        def able(seat: Partition) -> Sequence[NodeId]:
            return [
                member.node_id
                for member in parts.members.ready()
                if self._has_loaded(member, plan, seat)
                and parts.slots.has_room(member.capability, plan.model_root, seat)
            ]

        return draw_auditors(
            plan, able=able, is_right=lambda drawn: self._is_right(drawn, nodes, begins=True), shuffled=parts.shuffled
        )

    # --- after a loss

    def ways(self, dispute: FirstTry | None) -> Sequence[Way]:
        """Best first. `dispute`: to be decided by the next epoch."""
        found: list[Way] = []
        for nodes in self._choices():
            if dispute is None and self._session.kept.seats:
                found.append(Way(nodes, refills=True))
            found += [Way(nodes, count) for count in self._stage_counts(nodes)]
        return found

    async def plan(self, way: Way, dispute: FirstTry | None) -> PartitionPlan:
        """Raises `NoCapacity`, and what the partitioner answers."""
        if way.refills:
            return self._refilled(way.nodes)
        return await self._parts.partitioner.plan(
            self._session.task.model_id,
            [member.capability for member in way.nodes],
            num_stages=way.num_stages,
            seating=self._wanted(way, dispute),
        )

    def _choices(self) -> tuple[Sequence[Member], ...]:
        """Sets of nodes to plan over, best first: without those under doubt, if that leaves enough; then with them."""
        session = self._session
        candidates = self._candidates()
        doubted = {fault.suspect for fault in session.faults[-1:]}
        others = [member for member in candidates if member.node_id not in doubted]
        if not candidates:
            return ()
        if not others or len(others) == len(candidates) or len(others) < len(session.seats):
            return (candidates,)
        return others, candidates

    def _candidates(self) -> Sequence[Member]:
        """Nodes that may take a seat of this session and have as much room as it was promised."""
        session = self._session
        now_s = self._parts.clock.now_s()
        room = session.max_rows or len(session.task.prompt_ids) + 1
        return [
            member
            for member in self._parts.members.ready()
            if not session.excludes(member.node_id, member.boot_id, now_s=now_s)
            and member.capability.context_tokens >= room
        ]

    def _stage_counts(self, nodes: Sequence[Member]) -> Sequence[int | None]:
        """Numbers of stages to ask for, best first. Fewer stages have fewer neighbours to keep apart."""
        if not self._session.seats:
            return (None,)
        most = min(len(self._session.seats), len(nodes))
        return range(most, 0, -1) if self._session.apart else (most,)

    def _wanted(self, way: Way, dispute: FirstTry | None) -> Seating:
        """What the next plan has to keep. With a dispute to decide the seats stay as they are, if their nodes are
        there, so that every node is asked the same again."""
        session, task = self._session, self._session.task
        with_referees = dispute is not None
        is_audit = task.verification is Verification.AUDIT and task.max_byzantine > 0
        present = {member.node_id for member in way.nodes}
        is_same_cut = way.num_stages == len(session.seats)
        stays = with_referees and is_same_cut and present.issuperset(session.nodes)
        mode = task.verification
        if with_referees and is_audit and task.max_byzantine > 1:
            mode = Verification.QUORUM  # one referee is not enough: as many lanes as make the honest ones f + 1
        return Seating(
            verification=mode,
            max_byzantine=task.max_byzantine if session.is_verified else 0,
            with_referee=with_referees and is_audit and mode is Verification.AUDIT,
            is_recovery=True,
            referees=tuple(sorted(self._parts.trusted)) if with_referees else (),
            disputed_stage=dispute.stage if dispute else None,
            apart=tuple(sorted(session.apart)),
            keep=session.plan.lanes[: session.num_lanes] if stays and session.plan else (),
            layers=tuple(seat.layers for seat in session.seats) if with_referees or is_same_cut else (),
        )

    def _refilled(self, nodes: Sequence[Member]) -> PartitionPlan:
        """Raises `NoCapacity`."""
        session, plan = self._session, self._session.plan
        capabilities = {member.node_id: member.capability for member in nodes}

        def is_right(found: PartitionPlan) -> bool:
            return (
                sits_apart(found.lanes, session.apart)
                and fits_memory(found.seats, capabilities, session.subject.model)
                and self._is_right(found, capabilities, begins=False)
            )

        candidates = [self._at_stage(plan, seat, nodes) for seat in session.seats] if plan else []
        found = plan and refill(plan, candidates, num_lanes=session.num_lanes, is_right=is_right)
        if not found:
            raise NoCapacity("the nodes that keep the rows are too few", retry_after_s=1.0)
        return found

    def _at_stage(self, plan: PartitionPlan, seat: Partition, nodes: Sequence[Member]) -> Sequence[Candidate]:
        return [
            Candidate(
                member.node_id,
                keeps_rows=self._session.keeps_rows(member.node_id, seat.layers),
                has_loaded=self._has_loaded(member, plan, seat),
            )
            for member in nodes
            if self._parts.slots.has_room(member.capability, plan.model_root, seat)
        ]

    def _has_loaded(self, member: Member, plan: PartitionPlan, seat: Partition) -> bool:
        return stage_key(stage_ref(plan, seat)) in member.loaded

    def _is_right(self, plan: PartitionPlan, nodes: Nodes, *, begins: bool) -> bool:
        try:
            self.check(plan, nodes, begins=begins)
        except ButterflyError:
            return False
        return True
