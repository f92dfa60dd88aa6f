from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from services.worker.domain.identity import CoordinatorKey
from services.worker.service.orders import OrderCheck
from shared.contracts.messages import WorkAssignment
from shared.domain.chain import class_hash
from shared.domain.errors import InvalidCredentials, InvalidInput
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.receipt import Assignment, read_assignment
from shared.domain.signing import SigningKey
from shared.domain.task import SamplerParams
from tests.fakes.engine import NUMERICS_CLASS
from tests.fakes.identities import COORDINATOR_KEY
from tests.fakes.orders import signed_order
from tests.fakes.worker_parts import MemoryCluster, Order

ORDER = Order("task", (1, 2, 3), 9, ["a", "b", "c"])
RESUMED = replace(ORDER, generated_ids=(7, 8), epoch=Epoch(2))


@pytest.fixture
async def cluster() -> MemoryCluster:
    return MemoryCluster("a", "b", "c")


def check_of(node_id: str, key: bytes | None = COORDINATOR_KEY.public_key) -> OrderCheck:
    holder = CoordinatorKey()
    holder.value = key
    return OrderCheck(node_id=NodeId(node_id), numerics_hash=class_hash(NUMERICS_CLASS), coordinator_key=holder)


def signed_again(
    message: WorkAssignment, key: SigningKey = COORDINATOR_KEY, changes: Mapping[str, object] | None = None
) -> WorkAssignment:
    order = read_assignment(message.order.signed(), COORDINATOR_KEY.public_key)
    return message.model_copy(update={"order": signed_order(key, replace(order, **changes or {}))})  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [ORDER, RESUMED])
async def test_an_order_of_the_coordinator_is_taken(cluster: MemoryCluster, order: Order) -> None:
    for stage, node_id in enumerate(order.nodes):
        read = check_of(node_id).read(cluster.assignment(order, stage))
        assert (read.stage, read.node_id, read.epoch) == (stage, node_id, order.epoch)


async def test_an_order_that_somebody_else_signed_is_refused(cluster: MemoryCluster) -> None:
    message = cluster.assignment(ORDER, 0)
    with pytest.raises(InvalidInput, match="signature"):
        check_of("a").read(signed_again(message, SigningKey(b"x" * 32)))
    with pytest.raises(InvalidInput, match="signature"):
        check_of("a", SigningKey(b"x" * 32).public_key).read(message)
    with pytest.raises(InvalidCredentials):
        check_of("a", None).read(message)


async def test_an_order_for_another_node_is_refused(cluster: MemoryCluster) -> None:
    with pytest.raises(InvalidInput, match="node_id"):
        check_of("b").read(cluster.assignment(ORDER, 0))


CHANGES: list[tuple[str, object]] = [
    ("task_id", TaskId("other")),
    ("choice", 1),
    ("epoch", Epoch(9)),
    ("lane", 1),
    ("stage", 1),
    ("layer_start", 1),
    ("layer_end", 3),
    ("num_layers", 7),
    ("model_root", "another model"),
    ("numerics_hash", class_hash("other")),
    ("sampler_hash", "11" * 32),
    ("num_prompt", 4),
    ("prefix_digest", "11" * 32),
    ("sink_start", "11" * 32),
    ("first_row", 2),
    ("first_window", 3),
    ("checkpoint_interval", 0),
    ("window_checkpoints", 0),
]


@pytest.mark.parametrize(("name", "value"), CHANGES, ids=[name for name, _ in CHANGES])
async def test_an_order_that_says_something_else_than_its_message_is_refused(
    cluster: MemoryCluster, name: str, value: object
) -> None:
    message = cluster.assignment(ORDER, 0)
    with pytest.raises(InvalidInput):
        check_of("a").read(signed_again(message, changes={name: value}))


MESSAGE_CHANGES: list[tuple[str, Callable[[Assignment], object]]] = [
    ("sampler", lambda _: SamplerParams(temperature=0.5)),
    ("prefix_ids", lambda _: (1, 2, 4)),
    ("lane", lambda order: order.lane + 1),
]


@pytest.mark.parametrize(("name", "value"), MESSAGE_CHANGES, ids=[name for name, _ in MESSAGE_CHANGES])
async def test_a_message_that_says_something_else_than_its_order_is_refused(
    cluster: MemoryCluster, name: str, value: Callable[[Assignment], object]
) -> None:
    message = cluster.assignment(RESUMED, 2)
    order = read_assignment(message.order.signed(), COORDINATOR_KEY.public_key)
    with pytest.raises(InvalidInput):
        check_of("c").read(message.model_copy(update={name: value(order)}))
