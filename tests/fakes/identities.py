"""Nodes with keys, the same in every run: `N1`, `N2`, … are their ids, in ascending order."""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType

from shared.contracts.coordinator import RegisterNode
from shared.contracts.messages import SignedText
from shared.domain.ids import NodeId
from shared.domain.plan import NodeCapability
from shared.domain.signing import SigningKey

COORDINATOR_URL = "http://coordinator"
COORDINATOR_KEY = SigningKey(hashlib.sha256(b"coordinator").digest())

_KEYS = sorted((SigningKey(hashlib.sha256(bytes([seed])).digest()) for seed in range(9)), key=lambda key: key.node_id)
KEYS: dict[NodeId, SigningKey] = {key.node_id: key for key in _KEYS}
N1, N2, N3, N4, N5, N6, N7, N8, N9 = KEYS


def capability(node_id: str = N1, **changes: object) -> NodeCapability:
    values: dict[str, object] = {
        "node_id": NodeId(node_id),
        "memory_bytes": 1 << 30,
        "speed": 1e9,
        "slots": 2,
        "context_tokens": 64,
        "host": f"host-{node_id}",
        "cores": 4,
    }
    return NodeCapability(**(values | changes))  # type: ignore[arg-type]  # a test names fields that exist


def registration(
    of: NodeCapability,
    address: str,
    *,
    boot_id: str = "boot-1",
    key: SigningKey | None = None,
    coordinator: str = COORDINATOR_URL,
    claims: Mapping[str, str | int] = MappingProxyType({}),
) -> RegisterNode:
    """What a node sends to join. `key`: another than its own; `claims`: what its proof says in place of the truth."""
    key = key or KEYS[of.node_id]
    body = {"v": 1, "node_id": of.node_id, "address": address, "boot_id": boot_id, "coordinator": coordinator}
    return RegisterNode(
        capability=of,
        address=address,
        boot_id=boot_id,
        public_key=key.public_key.hex(),
        proof=SignedText.of(key.sign("node", body | dict(claims))),
    )
