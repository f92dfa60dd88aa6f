"""What proves a node guilty, complete enough that anybody can check it without this cluster."""

import hashlib
from collections.abc import Mapping, Sequence

from shared.domain.ids import NodeId
from shared.domain.receipt import SignedReceipt
from shared.domain.signing import Signed, SigningKey
from shared.domain.window_check import Finding

EvidenceBody = Mapping[str, object]
"""JSON-able: strings, integers, lists and objects of them."""


def make_evidence(
    finding: Finding,
    *,
    orders: Sequence[Signed],
    keys: Mapping[NodeId, bytes],
    key: SigningKey,
    ids: Sequence[int],
    num_prompt: int,
    first_try: Sequence[SignedReceipt],
    second_try: Sequence[SignedReceipt],
    passages: Sequence[Signed] = (),
) -> tuple[str, EvidenceBody]:
    """Its name, which is a hash of its content, and itself.

    `ids`: prompt and drafts; `first_try`, `second_try`: receipts of a dispute and of its repetition, the accused's and
    everybody else's; `orders`: the signed assignments of the epoch; `keys`: the signers'; `key`: the coordinator's. It
    signs the rest: for rules 3 and 4 it is the witness of what it gave the node, or got from it. `passages`: what it
    saw pass over links that it carried itself (`shared.domain.passage`).
    """
    body: dict[str, object] = {
        "v": 1,
        "rule": finding.rule,
        "node_id": finding.node_id or "",
        "lane": finding.lane,
        "stage": finding.stage,
        "window": finding.window,
        "detail": finding.detail,
        "receipts": [_text(receipt.signed) for receipt in finding.receipts],
        "first_try": [_text(receipt.signed) for receipt in first_try],
        "second_try": [_text(receipt.signed) for receipt in second_try],
        "passages": [_text(passage) for passage in passages],
        "orders": [_text(order) for order in orders],
        "keys": {node_id: key.hex() for node_id, key in keys.items()},
        "coordinator_key": key.public_key.hex(),
        "ids": list(ids),
        "num_prompt": num_prompt,
    }
    signed = key.sign("evidence", body)
    evidence_id = "ev-" + hashlib.blake2b(signed.text, digest_size=16, person=b"bfly/evidence/1").hexdigest()
    return evidence_id, body | {"signature": signed.signature.hex()}


def _text(signed: Signed) -> dict[str, str]:
    return {"text": signed.text.decode("ascii"), "signature": signed.signature.hex()}
