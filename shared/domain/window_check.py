"""What can be told from the receipts of one window: who contradicts itself, and where lanes part (verification.md
sections 5 and 8). Pure: the coordinator asks while an answer is made, the offline check afterwards.

A node is blamed only for what no honest node can sign. Lanes of one window share the cut into stages.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shared.domain.chain import DIGEST_BYTES, chain_start
from shared.domain.ids import NodeId
from shared.domain.receipt import Assignment, Receipt, SignedReceipt
from shared.domain.windows import Window

LINK, DOUBLE_SIGNED, CONTRADICTION, SOURCE, SINK, RELAY, OUTVOTED = 0, 1, 2, 3, 4, 5, 6
"""Numbers of the rules; a link fault is nobody's guilt."""

Statement = tuple[int, str, str]
"""A row, and the chain values before it below and above a stage: what the stage made of every row so far."""

_OF_THE_SEAT = (
    "task_id",
    "choice",
    "epoch",
    "lane",
    "stage",
    "node_id",
    "layer_start",
    "layer_end",
    "model_root",
    "numerics_hash",
    "sampler_hash",
)


@dataclass(frozen=True, slots=True)
class Finding:
    rule: int
    """Of the table in section 8. `LINK`: nobody's guilt yet, `receipts` are those of sender and receiver."""
    node_id: NodeId | None
    """Who is guilty; None for a link fault."""
    lane: int
    stage: int
    window: int
    detail: str
    receipts: tuple[SignedReceipt, ...]
    """The proof."""


def finding(rule: int, *receipts: SignedReceipt, detail: str) -> Finding:
    """A finding at the seat of the last of `receipts`, which names the guilty node unless it is a link fault."""
    said = receipts[-1].receipt
    guilty = None if rule == LINK else said.node_id
    return Finding(rule, guilty, said.lane, said.stage, said.window, detail, receipts)


def check_receipt(
    receipt: SignedReceipt,
    *,
    assignment: Assignment,
    order_digest: str,
    previous: SignedReceipt | None,
    window: Window,
) -> Finding | None:
    """Rule 2: does a receipt contradict its seat, its window or the seat's receipt before?

    `previous`: of the window before in this epoch; None for the epoch's first. `order_digest` names the signed
    assignment. `window` is as the seat was told to end it.
    """
    said = receipt.receipt
    wrong = (
        _not_of_seat(said, assignment)
        or _not_of_window(said, window)
        or _not_after(said, previous, order_digest)
        or _false_start(said, previous, assignment)
    )
    if not wrong:
        return None
    proof = (previous, receipt) if previous else (receipt,)
    return finding(CONTRADICTION, *proof, detail=f"{wrong} is not what it has to be")


def check_lane(
    receipts: Sequence[SignedReceipt],
    *,
    source: tuple[str, str],
    sink: tuple[str, str] | None,
    row_end: int | None = None,
    given: bool = True,
) -> Finding | None:
    """Rules 3 and 4, then the links, for the receipts of one lane in order of stages.

    source, sink: chain values in hex before and after the window, of the ids and of the sample records; None: the
    records are not known. row_end: where the window ends; by default where stage 0 says. given: the coordinator gave
    stage 0 every id; else they came around the ring, and a wrong one is a link fault.
    """
    row_end = receipts[0].receipt.row_end if row_end is None else row_end
    return (
        check_source(receipts, source, row_end, given=given)
        or (check_sink(receipts[-1], sink, row_end) if sink else None)
        or check_ring(receipts, source, row_end)
        or next((fault for pair in pairwise(receipts) if (fault := check_link(*pair))), None)
    )


def check_source(
    receipts: Sequence[SignedReceipt], source: tuple[str, str], row_end: int, *, given: bool
) -> Finding | None:
    """Rule 3. The ids before an epoch's first window are always the coordinator's, so a wrong start is guilt there;
    later windows start as the one before ended, and are not to be asked about after a link fault."""
    first = receipts[0].receipt
    is_answerable = given or len(receipts) == 1
    if first.in_start != source[0] or (is_answerable and (first.row_end, first.in_digest) != (row_end, source[1])):
        return finding(SOURCE, receipts[0], detail="in_digest is not the chain of the ids it was given")
    return None


def check_sink(last: SignedReceipt, sink: tuple[str, str], row_end: int) -> Finding | None:
    """Rule 4. Rows after the end are not held against it: whoever sent them may be at fault."""
    said = last.receipt
    if said.row_end == row_end and (said.out_start, said.out_digest) != sink:
        return finding(SINK, last, detail="out_digest is not the chain of the records it sent")
    return None


def check_ring(receipts: Sequence[SignedReceipt], source: tuple[str, str], row_end: int) -> Finding | None:
    """The link from the last stage back to stage 0."""
    first = receipts[0].receipt
    if (first.row_end, first.in_digest) == (row_end, source[1]):
        return None
    return _link_fault(receipts[-1], receipts[0], detail="stage 0 ran other ids than the last stage chose")


def check_link(sender: SignedReceipt, receiver: SignedReceipt) -> Finding | None:
    """Do two neighbours agree on what went from the one to the other?"""
    sent, got = sender.receipt, receiver.receipt
    if (sent.row_end, sent.out_start, sent.out_digest) == (got.row_end, got.in_start, got.in_digest):
        return None
    return _link_fault(sender, receiver, detail="in_digest is not the out_digest of the stage before")


def compare_lanes(lanes: Sequence[Sequence[SignedReceipt]]) -> int | None:
    """The lowest stage where lanes made different rows of equal ones; None if there is none."""
    for stage, receipts in enumerate(zip(*lanes, strict=True)):
        made: dict[tuple[int, str], set[str]] = {}
        for receipt in receipts:
            for row, below, above in statements(receipt.receipt):
                made.setdefault((row, below), set()).add(above)
        if any(len(values) > 1 for values in made.values()):
            return stage
    return None


def statements(receipt: Receipt) -> tuple[Statement, Statement]:
    """What a receipt says of its stage: as the window began, and as it ended."""
    return (
        (receipt.row_start, receipt.in_start, receipt.out_start),
        (receipt.row_end, receipt.in_digest, receipt.out_digest),
    )


def merkle_root(digests: Sequence[str]) -> str:
    """Names a list of digests, all in hex; an odd one goes up a level as it is. Raises `ValueError` for none."""
    if not digests:
        raise ValueError("a root of no digests")
    level = [_hash(b"bfly/leaf/1", bytes.fromhex(digest)) for digest in digests]
    while len(level) > 1:
        pairs = [_hash(b"bfly/tree/1", left + right) for left, right in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]
    return level[0].hex()


def _not_of_seat(said: Receipt, assignment: Assignment) -> str:
    """The first field that is not as ordered; empty if there is none. So the functions below."""
    return next((name for name in _OF_THE_SEAT if getattr(said, name) != getattr(assignment, name)), "")


def _not_of_window(said: Receipt, window: Window) -> str:
    if said.window != window.index:
        return "window"
    return next((name for name in ("row_start", "row_end") if getattr(said, name) != getattr(window, name)), "")


def _not_after(said: Receipt, previous: SignedReceipt | None, order_digest: str) -> str:
    return "" if said.prev_receipt == (previous.digest if previous else order_digest) else "prev_receipt"


def _false_start(said: Receipt, previous: SignedReceipt | None, assignment: Assignment) -> str:
    """Of an epoch that resumes, the first start values are known to the lane only, save that of its sample
    records: its links and votes judge them."""
    if previous is not None:
        below, above = previous.receipt.in_digest, previous.receipt.out_digest
    elif said.row_start == 0:
        below, above = (_start(assignment, layer) for layer in (said.layer_start, said.layer_end))
    elif said.layer_end == assignment.num_layers and said.window == assignment.first_window:
        below, above = said.in_start, assignment.sink_start
    else:
        return ""
    if said.in_start != below:
        return "in_start"
    return "" if said.out_start == above else "out_start"


def _start(assignment: Assignment, boundary: int) -> str:
    sampler = assignment.sampler_hash if boundary == assignment.num_layers else ""
    return chain_start(assignment.model_root, boundary, numerics_hash=assignment.numerics_hash, sampler=sampler).hex()


def _link_fault(sender: SignedReceipt, receiver: SignedReceipt, *, detail: str) -> Finding:
    """A node that disagrees with itself is guilty."""
    is_one_node = sender.receipt.node_id == receiver.receipt.node_id
    return finding(CONTRADICTION if is_one_node else LINK, sender, receiver, detail=detail)


def _hash(person: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES, person=person).digest()
