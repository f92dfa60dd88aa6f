"""What a node signs to join: that this key is at this address, and for which coordinator it says so."""

from collections.abc import Collection

from shared.domain import canonical
from shared.domain.errors import InvalidCredentials, InvalidInput
from shared.domain.ids import NodeId
from shared.domain.signing import Signed, SigningKey, is_signed_by, node_id_of

KIND = "node"


def make_proof(key: SigningKey, *, address: str, boot_id: str, coordinator: str) -> Signed:
    """`coordinator`: the URL the node joins at; the proof is worth nothing elsewhere."""
    return key.sign(KIND, _statement(key.node_id, address, boot_id, coordinator))


def check_proof(
    proof: Signed,
    *,
    node_id: NodeId,
    public_key: bytes,
    address: str,
    boot_id: str,
    coordinators: Collection[str],
) -> str:
    """Where the node joins: one of `coordinators`, all URLs of the coordinator that checks.

    Raises `InvalidInput` when the node, its key and its proof do not belong together or the proof is meant for another
    coordinator, `InvalidCredentials` when somebody else signed it.
    """
    if node_id != node_id_of(public_key):
        raise InvalidInput("a node's id is the hash of its public key", param="capability.node_id")
    if not is_signed_by(public_key, proof):
        raise InvalidCredentials("the proof is not signed with the node's key", param="proof")
    said = canonical.decode(KIND, proof.text)
    coordinator = said.get("coordinator")
    if not isinstance(coordinator, str) or said != _statement(node_id, address, boot_id, coordinator):
        raise InvalidInput("the proof says something else than the registration", param="proof")
    if coordinator.rstrip("/") not in coordinators:
        raise InvalidInput(
            f"this node joins {coordinator}, and this coordinator is {' or '.join(sorted(coordinators))}: join it"
            " there, or add the other URL to coordination.join_urls",
            param="proof",
        )
    return coordinator.rstrip("/")


def _statement(node_id: NodeId, address: str, boot_id: str, coordinator: str) -> dict[str, str | int]:
    return {"v": 1, "node_id": node_id, "address": address, "boot_id": boot_id, "coordinator": coordinator}
