"""Whether an assignment is the coordinator's, and says the same as the order that was signed with it."""

from services.worker.domain.identity import CoordinatorKey
from shared.contracts.messages import WorkAssignment
from shared.domain.chain import RowChain, chain_start, id_bytes, sampler_hash
from shared.domain.errors import InvalidCredentials, InvalidInput
from shared.domain.ids import NodeId
from shared.domain.receipt import Assignment, read_assignment


class OrderCheck:
    def __init__(self, *, node_id: NodeId, numerics_hash: str, coordinator_key: CoordinatorKey) -> None:
        self._node_id = node_id
        self._numerics_hash = numerics_hash
        self._coordinator_key = coordinator_key

    def read(self, message: WorkAssignment) -> Assignment:
        """The signed order. Raises `InvalidInput` when it is not the coordinator's, or not that of this message, and
        `InvalidCredentials` before the coordinator is known."""
        key = self._coordinator_key.value
        if key is None:
            raise InvalidCredentials("this worker has no coordinator")
        order = read_assignment(message.order.signed(), key)
        for name, told, signed in self._told(message, order):
            if told != signed:
                raise InvalidInput(f"{name} of the assignment is not what its order says")
        _check_rows(message, order)
        return order

    def _told(self, message: WorkAssignment, order: Assignment) -> list[tuple[str, object, object]]:
        """Name, value of the message, value of the order."""
        ref = message.stage_ref
        return [
            ("node_id", self._node_id, order.node_id),
            ("task_id", message.task_id, order.task_id),
            ("choice", message.choice, order.choice),
            ("epoch", message.epoch, order.epoch),
            ("lane", message.lane, order.lane),
            ("stage", message.stage, order.stage),
            ("layer_start", ref.layers.start, order.layer_start),
            ("layer_end", ref.layers.end, order.layer_end),
            ("num_layers", ref.num_layers, order.num_layers),
            ("model_root", ref.model_root, order.model_root),
            ("numerics_hash", self._numerics_hash, order.numerics_hash),
            ("sampler_hash", sampler_hash(message.sampler), order.sampler_hash),
            ("num_prompt", message.num_prompt, order.num_prompt),
        ]


def _check_rows(message: WorkAssignment, order: Assignment) -> None:
    """Raises `InvalidInput` for windows that cannot be, and for a prefix that is not the one that was signed."""
    is_fresh = order.first_window == 0
    if order.num_prompt < 1 or order.checkpoint_interval < 1 or order.window_checkpoints < 1:
        raise InvalidInput("num_prompt, checkpoint_interval and window_checkpoints must be 1 or more")
    if is_fresh != (order.first_row == 0):
        raise InvalidInput("window 0 begins at row 0, and no other window does")
    sink_start = chain_start(
        order.model_root, order.num_layers, numerics_hash=order.numerics_hash, sampler=order.sampler_hash
    )
    if is_fresh and order.sink_start != sink_start.hex():
        raise InvalidInput("sink_start of a session that begins is the chain of no records")
    if order.layer_start != 0 and order.layer_end != order.num_layers:
        return
    prefix = message.prefix_ids
    if max(order.first_row, order.num_prompt - 1) != len(prefix) - 1:
        raise InvalidInput("the first row of the epoch is that of the last id of prefix_ids")
    chain = RowChain(chain_start(order.model_root, 0, numerics_hash=order.numerics_hash), row=0)
    chain.extend(map(id_bytes, prefix))
    if chain.at(len(prefix)).hex() != order.prefix_digest:
        raise InvalidInput("prefix_ids are not the ids that the order names")
