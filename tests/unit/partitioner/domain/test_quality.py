import pytest

from services.partitioner.domain.planning import make_plan
from services.partitioner.domain.quality import estimate_quality
from services.partitioner.domain.strategies.uniform import Uniform
from shared.domain.errors import InvalidPlanInput
from tests.fakes.planning import node, planned_model, question


def test_an_even_plan_is_in_balance_and_sends_a_hidden_state_per_hop() -> None:
    nodes = (node("a", memory=400), node("b", memory=400), node("c", memory=400))
    plan = make_plan(question(nodes=nodes), Uniform())
    quality = estimate_quality(plan, planned_model(), {entry.node_id: entry for entry in nodes})
    assert quality.balance == pytest.approx(1.0)
    assert quality.network_bytes_per_token == 2 * 32 + 4
    assert [stage.step_share for stage in quality.stages] == pytest.approx([1 / 3] * 3)
    assert [stage.memory_share for stage in quality.stages] == [0.5, 0.5, 0.5]


def test_the_slow_node_is_the_bottleneck() -> None:
    nodes = (node("a"), node("b", speed=0.5))
    plan = make_plan(question(nodes=nodes), Uniform())
    quality = estimate_quality(plan, planned_model(), {entry.node_id: entry for entry in nodes})
    assert (quality.bottleneck_stage, quality.bottleneck_node) == (1, "b")
    assert quality.balance == pytest.approx(0.75)


def test_one_stage_sends_nothing() -> None:
    plan = make_plan(question(nodes=[node("a")]), Uniform())
    assert estimate_quality(plan, planned_model(), {node("a").node_id: node("a")}).network_bytes_per_token == 0


def test_a_plan_for_another_model_or_other_nodes_is_refused() -> None:
    plan = make_plan(question(nodes=[node("a")]), Uniform())
    with pytest.raises(InvalidPlanInput, match="ends at layer 6 of 8"):
        estimate_quality(plan, planned_model((100,) * 8), {node("a").node_id: node("a")})
    with pytest.raises(InvalidPlanInput, match="node a is not among"):
        estimate_quality(plan, planned_model(), {})
