import pytest

from shared.domain.errors import InvalidPlanInput
from shared.domain.ids import ModelId, NodeId
from shared.domain.layers import LayerInfo, ModelInfo, stage_weight_bytes
from shared.domain.plan import Lane, LayerRange, NodeCapability, Partition, check_plan


def model(num_layers: int) -> ModelInfo:
    layer = LayerInfo(index=0, name="", weight_bytes=10, flops_per_token=20, activation_bytes=4, kv_bytes_per_token=1)
    return ModelInfo(
        model_id=ModelId("m"),
        root="00",
        architecture="llama",
        n_embd=8,
        n_vocab=16,
        context_tokens=64,
        layers=(layer,) * num_layers,
        embedding_bytes=100,
        head_bytes=1000,
        file_bytes=0,
        has_chat_template=False,
        splittable=True,
    )


def lane(*ranges: tuple[int, int], node: str = "a") -> Lane:
    partitions = tuple(Partition(i, NodeId(node), LayerRange(*r)) for i, r in enumerate(ranges))
    return Lane(index=0, partitions=partitions)


NODES = {NodeId("a"): NodeCapability(NodeId("a"), memory_bytes=1, speed=1.0, slots=1, context_tokens=1)}


def test_a_lane_that_covers_every_layer_once_passes() -> None:
    check_plan([lane((0, 2), (2, 5))], NODES, model(5))


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(0, 2), (3, 5)], "do not continue at 2"),
        ([(0, 3), (2, 5)], "do not continue at 3"),
        ([(0, 2), (2, 2), (2, 5)], "do not continue at 2"),
        ([(1, 5)], "do not continue at 0"),
        ([(0, 4)], "ends at layer 4 of 5"),
        ([(0, 6)], "ends at layer 6 of 5"),
        ([], "ends at layer 0 of 5"),
    ],
)
def test_gaps_overlaps_and_empty_stages_are_refused(ranges: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(InvalidPlanInput, match=message):
        check_plan([lane(*ranges)], NODES, model(5))


def test_a_foreign_node_is_refused() -> None:
    with pytest.raises(InvalidPlanInput, match="node stranger is not among the given nodes"):
        check_plan([lane((0, 5), node="stranger")], NODES, model(5))


def test_the_ends_of_the_pipeline_hold_embedding_and_head() -> None:
    assert [stage_weight_bytes(model(3), *r) for r in [(0, 1), (1, 2), (2, 3), (0, 3)]] == [110, 10, 1010, 1130]
