"""One run of one node, and how a node is shown to operators."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.coordinator.domain.kinship import StageKey
from services.coordinator.domain.standing import Standing
from services.coordinator.domain.suspicion import Rhythm
from services.coordinator.ports import Worker
from shared.contracts.coordinator import NodeView, SeatView
from shared.contracts.messages import StageRef
from shared.domain.ids import NodeId
from shared.domain.numerics import StageFacts
from shared.domain.plan import NodeCapability
from shared.domain.session import NodeState


def stage_key(ref: StageRef) -> StageKey:
    return ref.model_root, ref.layers.start, ref.layers.end


@dataclass(slots=True, eq=False)
class Member:
    """One run of one node."""

    capability: NodeCapability
    public_key: bytes
    """Ed25519. Checked: the node id is its hash."""
    address: str
    joined_at: str
    """URL at which it reaches this coordinator."""
    boot_id: str
    token_hash: bytes
    worker: Worker
    heard_at_s: float
    rhythm: Rhythm
    state: NodeState = NodeState.READY
    is_stopping: bool = False
    """It takes no new work, as it said itself."""
    is_unreachable: bool = False
    timer_lag_s: float = 0.0
    """As it said with its last heartbeat."""
    loaded: Mapping[StageKey, StageRef] = field(default_factory=dict)
    loading: dict[StageKey, StageRef] = field(default_factory=dict)
    preparing: set[StageKey] = field(default_factory=set)
    """Stages that it fetches and tests, and holds no longer than that takes."""
    asked: set[StageKey] = field(default_factory=set)
    """Stages that it was asked to hold, in this run: what it says of others is not heard. Its word may come when it has
    dropped the stage again, or after another call about it has failed, so `loading` does not tell."""
    facts: dict[StageKey, StageFacts] = field(default_factory=dict)

    @property
    def node_id(self) -> NodeId:
        return self.capability.node_id


def reason_of(standing: Standing) -> str:
    return f"{standing.reason} (evidence {standing.evidence_id})" if standing.evidence_id else standing.reason


def view_of(
    member: Member, capability: NodeCapability, standing: Standing | None, *, slots_used: int, now_s: float
) -> NodeView:
    """`capability`: as much of it as is wanted. `standing`: what keeps the node away now."""
    refs = sorted({**member.loaded, **member.loading}.items())
    return NodeView(
        node_id=member.node_id,
        state=member.state,
        address=member.address,
        boot_id=member.boot_id,
        capability=capability,
        stages=tuple(
            SeatView(
                model=ref.model_id,
                start=ref.layers.start,
                end=ref.layers.end,
                lane=0,
                profile=member.facts[key].profile if key in member.facts else None,
            )
            for key, ref in refs
        ),
        slots_used=slots_used,
        heartbeat_age_ms=max(0, int((now_s - member.heard_at_s) * 1000)),
        reason=_reason(member, standing),
    )


def _reason(member: Member, standing: Standing | None) -> str:
    if standing is not None:
        return reason_of(standing)
    return "its self-test differs from most nodes': compared with its own kind only" if member.capability.kin else ""


def evicted_view(standing: Standing) -> NodeView:
    """It offers nothing any more."""
    return NodeView(
        node_id=standing.node_id,
        state=NodeState.EVICTED,
        address=standing.address,
        boot_id="",
        capability=NodeCapability(standing.node_id, memory_bytes=0, speed=0.0, slots=0, context_tokens=0),
        stages=(),
        slots_used=0,
        heartbeat_age_ms=0,
        reason=reason_of(standing),
    )


def token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
