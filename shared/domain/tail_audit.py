"""The fresh audit of a finished answer (verification.md section 9): what is kept of it, and its check.

It is against more than f colluders: nodes that had no part in a stage compute all of it once more from the ids.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from shared.domain import canonical
from shared.domain.errors import InvalidInput
from shared.domain.ids import Epoch, NodeId
from shared.domain.receipt import RECEIPT, Assignment, SignedReceipt, read_assignment, read_receipt
from shared.domain.signing import Signed, digest_of, node_id_of
from shared.domain.window_check import check_receipt
from shared.domain.windows import WindowSchedule

ChainValues = Mapping[tuple[int, int], str]
"""(boundary, row) → chain value before that row, hex."""


@dataclass(frozen=True, slots=True)
class TailAudit:
    """What the seats of the audit's lane signed."""

    epoch: Epoch
    orders: tuple[Signed, ...]
    """The signed assignments, by stage."""
    receipts: tuple[Signed, ...]
    """By window, then stage."""
    keys: Mapping[NodeId, bytes]
    """Public keys of the signers."""


@dataclass(frozen=True, slots=True)
class SeatedNode:
    """A node that signed for these layers of the answer."""

    node_id: NodeId
    layer_start: int
    layer_end: int

    def shares(self, layer_start: int, layer_end: int) -> bool:
        return self.layer_start < layer_end and layer_start < self.layer_end


def check_tail(
    tail: TailAudit,
    *,
    like: Assignment,
    after: Epoch,
    row_end: int,
    agreed: ChainValues,
    seated: Collection[SeatedNode],
    coordinator_key: bytes,
) -> tuple[NodeId, ...]:
    """The nodes that computed all rows [0, row_end) again and came to the chain values `agreed`.

    `like`: an order of the answer's first epoch; `after`: the answer's last epoch; `seated`: who signed for the answer.
    Raises `InvalidInput`, with a sentence that names the first thing that does not hold.
    """
    orders = _read_orders(tail, like, after, coordinator_key)
    lanes: defaultdict[int, list[SignedReceipt]] = defaultdict(list)
    for signed in tail.receipts:
        node_id = NodeId(str(canonical.decode(RECEIPT, signed.text).get("node_id")))
        key = tail.keys.get(node_id)
        if key is None or node_id_of(key) != node_id:
            raise InvalidInput(f"the tail audit has a receipt of {node_id}, but not its public key")
        receipt = read_receipt(signed, key)
        lanes[receipt.receipt.stage].append(receipt)
    for stage, (order, digest) in enumerate(orders):
        if any(node.node_id == order.node_id and node.shares(order.layer_start, order.layer_end) for node in seated):
            raise InvalidInput(f"{order.node_id} is not fresh: it had a part in stage {stage} of the answer")
        _check_seat(lanes[stage], order, digest, row_end)
        for each in lanes[stage]:
            said = each.receipt
            for layer, value in ((said.layer_start, said.in_digest), (said.layer_end, said.out_digest)):
                if agreed.get((layer, said.row_end), value) != value:
                    raise InvalidInput(f"{said.node_id} came to another result at stage {stage}, window {said.window}")
    return tuple(order.node_id for order, _ in orders)


def _read_orders(
    tail: TailAudit, like: Assignment, after: Epoch, coordinator_key: bytes
) -> Sequence[tuple[Assignment, str]]:
    """By stage, with their digests: one lane that covers the model, over the ids of the answer's prompt."""
    found = [(read_assignment(signed, coordinator_key), digest_of(signed)) for signed in tail.orders]
    layer = 0
    for stage, (order, _) in enumerate(found):
        same = (
            "task_id",
            "choice",
            "num_layers",
            "model_root",
            "numerics_hash",
            "sampler_hash",
            "num_prompt",
            "first_window",
            "first_row",
            "prefix_digest",
        )
        wrong = next((name for name in same if getattr(order, name) != getattr(like, name)), None)
        if wrong is not None:
            raise InvalidInput(f"an order of the tail audit has another {wrong} than the answer")
        if order.epoch != tail.epoch or order.epoch <= after or (order.lane, order.stage) != (found[0][0].lane, stage):
            raise InvalidInput("the orders of the tail audit are not those of one lane after the answer's last epoch")
        if order.layer_start != layer:
            raise InvalidInput("the stages of the tail audit do not follow each other")
        layer = order.layer_end
    if layer != like.num_layers:
        raise InvalidInput("the tail audit does not cover the whole model")
    return found


def _check_seat(receipts: Sequence[SignedReceipt], order: Assignment, order_digest: str, row_end: int) -> None:
    """Every window up to `row_end`, each going on from the one before."""
    schedule = WindowSchedule(order.num_prompt, 0, 0, order.checkpoint_interval, order.window_checkpoints)
    previous: SignedReceipt | None = None
    for index, receipt in enumerate(receipts):
        window = schedule.window(index).closed_at(row_end)
        found = check_receipt(receipt, assignment=order, order_digest=order_digest, previous=previous, window=window)
        if found is not None:
            raise InvalidInput(f"the tail audit's receipt of {order.node_id} does not hold: {found.detail}")
        previous = receipt
    if previous is None or previous.receipt.row_end != row_end:
        raise InvalidInput(f"stage {order.stage} of the tail audit has not computed all rows")
