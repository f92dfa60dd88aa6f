"""The bearer of a link from one worker to another."""

import hashlib
import hmac

from shared.domain.ids import NodeId


def link_secret(key: bytes) -> bytes:
    """For `link_token`, 32 bytes. `key`: the secret one that all replicas sign with, so that two workers use one link
    for the sessions of all of them."""
    return hmac.new(key, b"butterfly/links", hashlib.sha256).digest()


def link_token(secret: bytes, sender: NodeId, receiver: NodeId, *, receiver_boot: str) -> str:
    """Hex HMAC-SHA256. Node ids cannot contain the separator (`domain.admission`), so no two pairs share a token.

    `receiver_boot`: a receiver that was started again gets another token, by which the sender knows that its link is
    dead.
    """
    return hmac.new(secret, f"{sender}|{receiver}|{receiver_boot}".encode(), hashlib.sha256).hexdigest()
