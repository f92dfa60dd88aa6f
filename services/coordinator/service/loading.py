"""Having a node hold a stage, for a placement or for a session."""

from services.coordinator.service.member import Member
from services.coordinator.service.membership import Membership
from shared.contracts.messages import LoadStage, StageRef


async def load_stage(members: Membership, member: Member, ref: StageRef) -> bool:
    """Whether the node holds the stage already, and its facts are known; else it will say so, or that it cannot.

    Raises what the node answers.
    """
    members.loading(member.node_id, ref)
    facts = await member.worker.load(LoadStage(stage_ref=ref))
    if facts is not None:
        members.stage_loaded(member, ref, facts)
    return facts is not None
