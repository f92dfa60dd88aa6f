"""What each seat of a session is told."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from services.coordinator.domain.ledger import Seated
from services.coordinator.domain.link_token import link_token
from services.coordinator.domain.refilling import num_replaying
from services.coordinator.domain.resuming import ids_chain, sink_chain
from services.coordinator.domain.session import Session
from services.coordinator.service.member import Member
from services.coordinator.service.relays import Detour
from shared.contracts.messages import Peer, SignedText, StageRef, WorkAssignment
from shared.domain.chain import class_hash, sampler_hash
from shared.domain.numerics import Profile
from shared.domain.pacing import pace, replay_threads
from shared.domain.plan import Partition, PartitionPlan
from shared.domain.receipt import Assignment, sign_assignment
from shared.domain.signing import SigningKey
from shared.domain.windows import WindowSchedule


@dataclass(frozen=True, slots=True)
class SeatOrder:
    """A seat's orders: what its node is told, and what the node's receipts are held against."""

    assignment: WorkAssignment
    seated: Seated


def stage_ref(plan: PartitionPlan, seat: Partition) -> StageRef:
    return StageRef(
        model_id=plan.model_id,
        model_root=plan.model_root,
        layers=seat.layers,
        num_layers=num_layers(plan),
    )


def num_layers(plan: PartitionPlan) -> int:
    return plan.lanes[-1].partitions[-1].layers.end


class Assigning:
    """The orders of one epoch of a session, for all its lanes."""

    def __init__(
        self,
        session: Session,
        plan: PartitionPlan,
        *,
        schedule: WindowSchedule,
        decoding: Collection[int],
        max_windows_ahead: int,
        profile: Profile,
        row_class: int,
        key: SigningKey,
        link_secret: bytes,
        detour: Detour | None,
    ) -> None:
        """`decoding`: lanes that do; the others run the ids they are given. `detour`: of the witnessed link."""
        self._session, self._plan = session, plan
        self._schedule = schedule
        self._decoding, self._max_windows_ahead = decoding, max_windows_ahead
        self._profile, self._row_class = profile, row_class
        self._key, self._link_secret = key, link_secret
        self._detour = detour
        self._prefix = (*session.task.prompt_ids, *(record.token_id for record in session.records))
        self._sampler_hash = sampler_hash(session.task.sampler)
        self._ids_chains: dict[str, str] = {}
        self._sink_chains: dict[str, str] = {}

    def sink_start(self, numerics_class: str) -> str:
        """The chain of sample records that this epoch goes on from."""
        if numerics_class not in self._sink_chains:
            self._sink_chains[numerics_class] = sink_chain(
                self._plan.model_root,
                num_layers(self._plan),
                numerics_class,
                self._session.task.sampler,
                num_prompt=len(self._session.task.prompt_ids),
                committed=self._session.records,
            )
        return self._sink_chains[numerics_class]

    def lane(
        self,
        lane: int,
        members: Sequence[Member],
        public_keys: Sequence[bytes],
        *,
        keeps_rows: Sequence[bool],
        beside: Sequence[Member],
        replaying: Sequence[Member],
    ) -> tuple[SeatOrder, ...]:
        """One per stage, in order; `members` are the nodes seated there, `beside` those that other lanes keep busy
        meanwhile, `replaying` those of all lanes that compute the committed rows again. `keeps_rows`: per stage,
        whether its node has them already. The first and the last stage get the ids so far: one embeds them, the other
        needs them for penalties."""
        decodes = lane in self._decoding
        start_rows = [self._schedule.first_row if keeps else 0 for keeps in keeps_rows]
        next_rows = [*start_rows[1:], 0]
        pacing = pace([member.capability for member in members], beside=[member.capability for member in beside])
        orders = []
        for stage, (member, public_key) in enumerate(zip(members, public_keys, strict=True)):
            core = self._core(lane, stage, member)
            signed = sign_assignment(self._key, core)
            previous, following = self._neighbours(members, lane, stage)
            is_end = stage in {0, len(members) - 1}
            task = self._session.task
            assignment = WorkAssignment(
                task_id=task.task_id,
                epoch=self._session.epoch,
                lane=lane,
                stage=stage,
                num_stages=len(members),
                plan_id=self._plan.plan_id,
                stage_ref=stage_ref(self._plan, self._session.lanes[lane][stage]),
                previous=previous,
                next=following,
                prefix_ids=self._prefix if is_end else (),
                num_prompt=len(task.prompt_ids),
                max_rows=self._session.max_rows,
                max_tokens=self._session.limit - len(self._session.records),
                sampler=task.sampler,
                end_ids=task.stop.end_ids,
                decode_batches_in_flight=pacing.decode_batches_in_flight,
                threads=pacing.threads[stage],
                replay_threads=replay_threads(member.capability, [each.capability for each in replaying]),
                order=SignedText.of(signed),
                start_row=start_rows[stage],
                next_row=next_rows[stage],
                replay_stages=num_replaying(keeps_rows),
                keeps_passed=self._session.is_verified,
                decodes=decodes,
                max_windows_ahead=self._max_windows_ahead if decodes else 0,
            )
            orders.append(SeatOrder(assignment, Seated(core, signed, public_key)))
        return tuple(orders)

    def _core(self, lane: int, stage: int, member: Member) -> Assignment:
        seat = self._session.lanes[lane][stage]
        numerics_class = member.capability.numerics_class
        if numerics_class not in self._ids_chains:
            self._ids_chains[numerics_class] = ids_chain(self._plan.model_root, numerics_class, self._prefix)
        return Assignment(
            v=1,
            task_id=self._session.task.task_id,
            choice=0,
            epoch=self._session.epoch,
            lane=lane,
            stage=stage,
            node_id=member.node_id,
            layer_start=seat.layers.start,
            layer_end=seat.layers.end,
            num_layers=num_layers(self._plan),
            model_root=self._plan.model_root,
            numerics_hash=class_hash(numerics_class),
            sampler_hash=self._sampler_hash,
            num_prompt=self._schedule.num_prompt,
            first_window=self._schedule.first_index,
            first_row=self._schedule.first_row,
            checkpoint_interval=self._schedule.checkpoint_interval,
            window_checkpoints=self._schedule.window_checkpoints,
            profile=self._profile.value,
            row_class=self._row_class,
            prefix_digest=self._ids_chains[numerics_class],
            sink_start=self.sink_start(numerics_class),
        )

    def _neighbours(self, members: Sequence[Member], lane: int, stage: int) -> tuple[Peer | None, Peer | None]:
        """Who sends to this seat, and to whom it sends, around the ring of its lane."""
        if len(members) == 1:
            return None, None
        own, before, after = members[stage], members[stage - 1], members[(stage + 1) % len(members)]
        previous = self._peer(before, sender=before, receiver=own)
        following = self._peer(after, sender=own, receiver=after)
        if self._detour is not None and self._detour.witness.hop.lane == lane:
            witnessed = self._detour.witness.hop.stage
            previous = self._detour.previous if stage == witnessed else previous
            following = self._detour.next if stage == witnessed - 1 else following
        return previous, following

    def _peer(self, member: Member, *, sender: Member, receiver: Member) -> Peer:
        token = link_token(self._link_secret, sender.node_id, receiver.node_id, receiver_boot=receiver.boot_id)
        return Peer(node_id=member.node_id, address=member.address, link_token=token)
