"""The bearer of a link from one worker to another."""

import hashlib
import hmac

from shared.domain.ids import NodeId


def link_token(secret: bytes, sender: NodeId, receiver: NodeId) -> str:
    """Hex HMAC-SHA256. Node ids cannot contain the separator (`domain.admission`), so no two pairs share a token."""
    return hmac.new(secret, f"{sender}|{receiver}".encode(), hashlib.sha256).hexdigest()
