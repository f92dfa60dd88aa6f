"""HTTP bodies of the coordinator: nodes and sessions. Messages of workers are in `shared.contracts.messages`."""

from pydantic import Field

from shared.contracts.base import Contract
from shared.contracts.messages import SignedText
from shared.domain.ids import Attempt, ModelId, NodeId, TaskId
from shared.domain.numerics import Profile
from shared.domain.plan import NodeCapability, PartitionPlan
from shared.domain.session import NodeState


class SeatView(Contract):
    """A stage that a node holds."""

    model: ModelId
    start: int
    end: int
    lane: int
    profile: Profile | None = None
    """None: not known yet."""


class RegisterNode(Contract):
    """`POST /nodes` of a worker, with the join token as bearer. Also after a lapsed lease or a coordinator restart."""

    capability: NodeCapability
    address: str = Field(max_length=300, pattern=r"^https?://")
    """Base URL at which the other nodes reach this worker."""
    boot_id: str = Field(max_length=64)
    """New with each start of the process: what the node held before is gone."""
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Ed25519. The node id is its hash (shared.domain.signing.node_id_of)."""
    proof: SignedText
    """Canonical text of kind `node`: {v, node_id, address, boot_id, coordinator}, signed with that key; `coordinator`
    is the URL the worker registers at, so that nobody can register with it elsewhere."""


class QuarantineNode(Contract):
    """`POST /nodes/{node_id}/quarantine` of an operator."""

    reason: str = Field("by the operator", max_length=500)


class Registered(Contract):
    node_token: str
    """Bearer of every later request of this worker to the coordinator."""
    coordinator_token: str
    """Bearer that the coordinator presents to this worker's `POST /messages`."""
    heartbeat_ms: int
    lease_ms: int
    partitioner_urls: tuple[str, ...] = Field(min_length=1)
    """Where this worker fetches its stages, any of them."""
    metrics_url: str
    """Where it posts its events."""
    coordinator_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Ed25519: assignments are signed with it. The same of all replicas."""
    reach_at: str = ""
    """URL of the very replica that answers. Empty: where the worker joined, for nobody else answers there."""
    coordinators: tuple[str, ...] = ()
    """URLs of all replicas that are here: a worker is a member at each of them."""


class NodeView(Contract):
    """One node, as `GET /nodes` shows it."""

    node_id: NodeId
    state: NodeState
    address: str
    boot_id: str
    capability: NodeCapability
    stages: tuple[SeatView, ...]
    """Stages loaded or being loaded."""
    slots_used: int
    heartbeat_age_ms: int
    reason: str = ""
    """Why it is quarantined, evicted or compared with few others."""


class NodeList(Contract):
    """`GET /nodes`; with `?with_stage_times=true` also what predictions go by, and plans do not."""

    nodes: tuple[NodeView, ...]


class PublicKeys(Contract):
    """`GET /keys`, and `GET /v1/keys` of the gateway: Ed25519, hex. What `butterfly receipts verify --keys` reads."""

    coordinator: str
    nodes: dict[NodeId, str]
    """Of the nodes that are registered now."""


class EvidenceSummary(Contract):
    evidence_id: str
    node_id: NodeId
    rule: int
    detail: str


class EvidenceList(Contract):
    """`GET /evidence`: what is kept, by id. `GET /evidence/{id}` has all of it."""

    evidence: tuple[EvidenceSummary, ...]


class OpenSession(Contract):
    """`POST /sessions` of the scheduler: run this task by this plan.

    Refused with `no_capacity` when a seat has no free slot.
    """

    task_id: TaskId
    attempt: Attempt
    plan: PartitionPlan


class Place(Contract):
    """`POST /placements`: load the plan's stages now, so that the first task need not wait."""

    plan: PartitionPlan


class CoordinatorState(Contract):
    """`GET /state`."""

    sessions: int
    nodes: dict[str, int]
    """Count per node state."""
