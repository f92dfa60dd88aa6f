import pytest

from services.cli.domain.model_cuts import trial_ranges
from services.cli.domain.placement import covers, is_placed
from shared.contracts.coordinator import NodeView, SeatView
from shared.domain.ids import ModelId, NodeId
from shared.domain.plan import NodeCapability
from shared.domain.session import NodeState


def node(name: str, state: NodeState, *ranges: tuple[int, int], model: str = "m") -> NodeView:
    capability = NodeCapability(NodeId(name), memory_bytes=1, speed=1.0, slots=1, context_tokens=16)
    return NodeView(
        node_id=NodeId(name),
        state=state,
        address="http://127.0.0.1:1",
        boot_id="b",
        capability=capability,
        stages=tuple(SeatView(model=ModelId(model), start=start, end=end, lane=0) for start, end in ranges),
        slots_used=0,
        heartbeat_age_ms=1,
    )


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(0, 10), (10, 20), (20, 30)], True),
        ([(20, 30), (0, 20)], True),
        ([(0, 10), (20, 30)], False),
        ([(0, 12), (10, 30)], False),
        ([(0, 10), (0, 15), (15, 30)], True),
        ([], False),
    ],
)
def test_a_model_is_covered_when_its_layers_can_be_walked(ranges: list[tuple[int, int]], expected: bool) -> None:
    assert covers(ranges, 30) is expected


def test_a_model_is_placed_on_ready_nodes_only() -> None:
    halves = node("a", NodeState.READY, (0, 15)), node("b", NodeState.READY, (15, 30))
    assert is_placed(halves, "m", 30)
    assert not is_placed((halves[0], node("b", NodeState.LOST, (15, 30))), "m", 30)


def test_stages_of_another_model_do_not_count() -> None:
    assert not is_placed((node("a", NodeState.READY, (0, 30), model="other"),), "m", 30)


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [(1, ((0, 1),)), (2, ((0, 1), (1, 2))), (3, ((0, 1), (1, 3))), (30, ((0, 1), (1, 15), (15, 30)))],
)
def test_a_model_is_tried_with_a_first_a_middle_and_a_last_stage(
    num_layers: int, expected: tuple[tuple[int, int], ...]
) -> None:
    assert trial_ranges(num_layers) == expected
