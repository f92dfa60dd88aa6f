"""A committed window as it is kept and shown: the receipts of all its seats, and the coordinator's signature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.numerics import StageFacts
from shared.domain.plan import LayerRange
from shared.domain.receipt import Commitment, SignedReceipt, ids_digest, sign_commitment
from shared.domain.signing import Signed, SigningKey
from shared.domain.task import TokenRecord, Verification
from shared.domain.window_check import merkle_root
from shared.domain.windows import Window


@dataclass(frozen=True, slots=True)
class WindowEntry:
    """All that a third party needs to check one window, beside the prompt and the entries before."""

    epoch: Epoch
    window: int
    row_start: int
    row_end: int
    num_tokens: int
    """Generated tokens committed up to this window, this one's included; the answer may be cut shorter."""
    mode: Verification
    f: int
    numerics_class: str
    orders: tuple[Signed, ...]
    """The signed assignments of the epoch's seats. May be left out after the epoch's first window."""
    facts: tuple[tuple[LayerRange, StageFacts], ...]
    """What the self-tests of all seats found at each stage; like the orders. The coordinator's own word, not signed."""
    receipts: tuple[Signed, ...]
    """By lane, then stage."""
    keys: Mapping[NodeId, bytes]
    """Public keys of the signers."""
    records: tuple[TokenRecord, ...]
    """The window's new tokens, those that a stop string cuts off included."""
    root: str
    coordinator_key: bytes
    commit: Signed
    """The `Commitment`."""


def make_entry(
    key: SigningKey,
    *,
    task_id: TaskId,
    choice: int,
    epoch: Epoch,
    window: Window,
    mode: Verification,
    f: int,
    numerics_class: str,
    orders: Sequence[Signed],
    facts: Sequence[tuple[LayerRange, StageFacts]],
    receipts: Sequence[SignedReceipt],
    keys: Mapping[NodeId, bytes],
    prompt_ids: Sequence[int],
    committed: Sequence[TokenRecord],
    records: Sequence[TokenRecord],
) -> WindowEntry:
    """Sign the window's commit with the coordinator's `key`.

    `committed`: tokens of the windows before; `records`: those of this window; `receipts`: of all lanes, in any order.
    """
    ordered = sorted(receipts, key=lambda each: (each.receipt.lane, each.receipt.stage))
    ids = [*prompt_ids, *(record.token_id for record in (*committed, *records))]
    root = merkle_root([receipt.digest for receipt in ordered])
    commitment = Commitment(
        v=1,
        task_id=task_id,
        choice=choice,
        epoch=epoch,
        window=window.index,
        row_start=window.row_start,
        row_end=window.row_end,
        ids_digest=ids_digest(ids),
        root=root,
    )
    return WindowEntry(
        epoch=epoch,
        window=window.index,
        row_start=window.row_start,
        row_end=window.row_end,
        num_tokens=len(committed) + len(records),
        mode=mode,
        f=f,
        numerics_class=numerics_class,
        orders=tuple(orders),
        facts=tuple(facts),
        receipts=tuple(receipt.signed for receipt in ordered),
        keys=dict(keys),
        records=tuple(records),
        root=root,
        coordinator_key=key.public_key,
        commit=sign_commitment(key, commitment),
    )
