"""Who this node is, and whose orders it takes."""

from dataclasses import dataclass

from shared.domain.ids import NodeId
from shared.domain.signing import SigningKey


@dataclass(frozen=True, slots=True)
class Identity:
    node_id: NodeId
    """The hash of the public key."""
    key: SigningKey
    """Signs what this node says: its registration and its receipts."""


class CoordinatorKey:
    """The coordinator's Ed25519 public key, as the last registration told it. Orders are checked with it."""

    def __init__(self) -> None:
        self.value: bytes | None = None
        """32 bytes; None before the first registration."""
