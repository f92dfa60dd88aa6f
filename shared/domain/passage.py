"""What the coordinator saw pass over a link that it carried itself, and who is guilty by it (verification.md, rule 5).

From two receipts alone it cannot be told whether the sender sent something else or the receiver claims something else.
Here the coordinator has taken the rows from the one and given them to the other: it is the witness.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.domain import canonical
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.receipt import Receipt, SignedReceipt
from shared.domain.signing import Signed, SigningKey
from shared.domain.window_check import RELAY, Finding, finding, statements

PASSAGE = "passage"


@dataclass(frozen=True, slots=True)
class Passage:
    """The rows [0, row_end) of one lane passed from `sender` to `receiver`, each counted before it was passed on."""

    v: int
    task_id: TaskId
    choice: int
    epoch: Epoch
    lane: int
    stage: int
    """The receiver's."""
    boundary: int
    """The layer above it."""
    model_root: str
    numerics_hash: str
    sender: NodeId
    receiver: NodeId
    row_start: int
    """Of the window; of what passed, if that is less. So for the other end."""
    row_end: int
    start_digest: str
    """Chain values of the boundary at these rows, hex."""
    end_digest: str


def sign_passage(key: SigningKey, passage: Passage) -> Signed:
    return key.sign(PASSAGE, canonical.fields_of(passage))


def check_passage(passage: Passage, receipts: Sequence[SignedReceipt]) -> tuple[Finding, ...]:
    """Rule 5 for the two ends of a link, by their receipts among `receipts`.

    A sender may have kept rows back, which proves nothing. A receiver cannot know rows that were not passed to it.
    """
    lane = (passage.task_id, passage.choice, passage.epoch, passage.lane)
    found: list[Finding] = []
    for signed in receipts:
        said = signed.receipt
        if (said.task_id, said.choice, said.epoch, said.lane) != lane:
            continue
        seat = (said.stage, said.node_id)
        if seat == (passage.stage - 1, passage.sender) and _sent_other(passage, said):
            found.append(finding(RELAY, signed, detail="sent other rows than it signed"))
        if seat == (passage.stage, passage.receiver) and _claims_other(passage, said):
            found.append(finding(RELAY, signed, detail="claims other rows than were passed to it"))
    return tuple(found)


def _sent_other(passage: Passage, said: Receipt) -> bool:
    passed = _passed(passage)
    return any(passed.get(row, above) != above for row, _, above in statements(said))


def _claims_other(passage: Passage, said: Receipt) -> bool:
    passed = _passed(passage)
    return any(row > passage.row_end or passed.get(row, below) != below for row, below, _ in statements(said))


def _passed(passage: Passage) -> dict[int, str]:
    return {passage.row_start: passage.start_digest, passage.row_end: passage.end_digest}
