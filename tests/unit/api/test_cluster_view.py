import pytest

from services.api.domain.cluster_view import MEBIBYTE, node_resources
from shared.contracts.coordinator import NodeView, SeatView
from shared.domain.layers import ModelInfo
from tests.fakes.catalogue import node_view
from tests.fakes.planning import node, planned_model

SMALL = planned_model((40 * MEBIBYTE, 20 * MEBIBYTE, 30 * MEBIBYTE), model_id="small", kv_bytes=MEBIBYTE)
LARGE = planned_model((400 * MEBIBYTE,) * 3, model_id="large")


def of_size(memory_mib: int, *held: tuple[int, int]) -> NodeView:
    """Two slots of three rows; holds layers of the small model."""
    capability = node("a", memory=memory_mib * MEBIBYTE, slots=2, context_tokens=3)
    stages = tuple(SeatView(model=SMALL.model_id, start=start, end=end, lane=0) for start, end in held)
    return node_view().model_copy(update={"capability": capability, "stages": stages})


def reason(node: NodeView, models: list[ModelInfo], *others: NodeView) -> object:
    return node_resources([node, *others], models)[0]["reason"]


def test_a_node_smaller_than_every_layer_says_what_it_lacks() -> None:
    assert reason(of_size(25), [LARGE, SMALL]) == (
        "too small: it offers 25 MiB, and small 1-2 needs 26 MiB with 2 slots of 3 tokens"
    )


def test_a_node_smaller_than_every_stage_that_is_held_says_what_it_lacks() -> None:
    others = of_size(500, (0, 1)), of_size(500, (1, 3))
    assert reason(of_size(30), [LARGE, SMALL], *others) == (
        "too small: it offers 30 MiB, and small 0-1 needs 46 MiB with 2 slots of 3 tokens"
    )
    assert reason(of_size(46), [LARGE, SMALL], *others) is None


@pytest.mark.parametrize("models", [[], [LARGE, SMALL]])
def test_a_node_that_could_hold_something_is_merely_not_needed(models: list[ModelInfo]) -> None:
    assert reason(of_size(26), models) is None


def test_a_model_that_is_not_cut_needs_room_for_all_of_it() -> None:
    whole = planned_model((20 * MEBIBYTE,) * 3, splittable=False)
    assert reason(of_size(59), [whole]) is not None
    assert reason(of_size(60), [whole]) is None


def test_a_reason_of_the_coordinator_comes_first_and_a_node_with_layers_needs_none() -> None:
    told = of_size(1).model_copy(update={"reason": "draining"})
    assert reason(told, [SMALL]) == "draining"
    assert reason(of_size(1, (0, 3)), [SMALL]) is None
