"""What each seat of a session is told."""

from collections.abc import Sequence

from services.coordinator.domain.link_token import link_token
from services.coordinator.domain.pacing import pace
from services.coordinator.domain.session import Session
from services.coordinator.service.membership import Member
from shared.contracts.messages import Peer, StageRef, WorkAssignment
from shared.domain.plan import Partition, PartitionPlan


def stage_ref(plan: PartitionPlan, seat: Partition) -> StageRef:
    return StageRef(
        model_id=plan.model_id,
        model_root=plan.model_root,
        layers=seat.layers,
        num_layers=plan.lanes[0].partitions[-1].layers.end,
    )


def assignments(
    session: Session, plan: PartitionPlan, members: Sequence[Member], *, link_secret: bytes
) -> tuple[WorkAssignment, ...]:
    """One per stage, in order; `members` are the nodes seated there. The first and the last stage get the ids so far:
    one embeds them, the other needs them for penalties."""
    seats = session.seats
    pacing = pace([member.capability for member in members])
    prefix = (*session.task.prompt_ids, *(record.token_id for record in session.records))

    def peer(member: Member, *, sender: Member, receiver: Member) -> Peer:
        token = link_token(link_secret, sender.node_id, receiver.node_id, receiver_boot=receiver.boot_id)
        return Peer(node_id=member.node_id, address=member.address, link_token=token)

    def order(stage: int) -> WorkAssignment:
        own, previous, following = members[stage], members[stage - 1], members[(stage + 1) % len(members)]
        is_ring = len(members) > 1
        return WorkAssignment(
            task_id=session.task.task_id,
            epoch=session.epoch,
            lane=0,
            stage=stage,
            num_stages=len(seats),
            plan_id=plan.plan_id,
            stage_ref=stage_ref(plan, seats[stage]),
            previous=peer(previous, sender=previous, receiver=own) if is_ring else None,
            next=peer(following, sender=own, receiver=following) if is_ring else None,
            prefix_ids=prefix if stage in {0, len(seats) - 1} else (),
            num_prompt=len(session.task.prompt_ids),
            max_rows=session.max_rows,
            max_tokens=session.limit - len(session.records),
            sampler=session.task.sampler,
            end_ids=session.task.stop.end_ids,
            decode_batches_in_flight=pacing.decode_batches_in_flight,
            threads=pacing.threads[stage],
        )

    return tuple(order(stage) for stage in range(len(seats)))
