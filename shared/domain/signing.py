"""Who signed what: Ed25519 keys, and texts in canonical form with their signature."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.domain import canonical
from shared.domain.ids import NodeId

KEY_BYTES = 32
SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Signed:
    text: bytes
    """Canonical (shared.domain.canonical)."""
    signature: bytes
    """Ed25519, 64 bytes, over `text`."""


class SigningKey:
    """Its owner's secret. Never printed."""

    def __init__(self, secret: bytes) -> None:
        """`secret`: 32 bytes."""
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public_key = self._key.public_key().public_bytes_raw()
        """32 bytes."""

    @classmethod
    def generate(cls) -> "SigningKey":
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def secret(self) -> bytes:
        return self._key.private_bytes_raw()

    @property
    def node_id(self) -> NodeId:
        return node_id_of(self.public_key)

    def sign(self, kind: str, body: Mapping[str, Any]) -> Signed:
        text = canonical.encode(kind, body)
        return Signed(text, self._key.sign(text))


def node_id_of(public_key: bytes) -> NodeId:
    """A node is its key: another key is another node."""
    return NodeId("node-" + hashlib.blake2b(public_key, digest_size=16, person=b"bfly/node/1").hexdigest())


def is_signed_by(public_key: bytes, signed: Signed) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signed.signature, signed.text)
    except (InvalidSignature, ValueError):
        return False
    return True


def digest_of(signed: Signed) -> str:
    """Names a signed text, in hex: what a later receipt calls its predecessor."""
    return hashlib.blake2b(signed.text, digest_size=32, person=b"bfly/signed/1").hexdigest()
