"""The bearer of a link from one worker to another."""

import hashlib
import hmac

from shared.domain.ids import NodeId


def link_token(secret: bytes, sender: NodeId, receiver: NodeId, *, receiver_boot: str) -> str:
    """Hex HMAC-SHA256. Node ids cannot contain the separator (`domain.admission`), so no two pairs share a token.

    `receiver_boot`: a receiver that was started again gets another token, by which the sender knows that its link is
    dead.
    """
    return hmac.new(secret, f"{sender}|{receiver}|{receiver_boot}".encode(), hashlib.sha256).hexdigest()
