from dataclasses import replace

import pytest

from services.partitioner.domain.planning import make_plan
from services.partitioner.domain.strategies.load_balanced import LoadBalanced
from services.partitioner.stores.memory_plan_cache import MemoryPlanCache
from shared.domain.ids import ModelId
from shared.domain.plan import PlanInput
from tests.fakes.planning import node, planned_model, question

NODES = (node("a"), node("b", speed=2.0))


@pytest.fixture
def cache() -> MemoryPlanCache:
    return MemoryPlanCache(capacity=2, recompute_threshold=0.1)


def put(cache: MemoryPlanCache, wanted: PlanInput) -> None:
    cache.put(wanted, make_plan(wanted, LoadBalanced()))


def test_an_equal_question_gets_the_kept_plan(cache: MemoryPlanCache) -> None:
    plan = make_plan(question(nodes=NODES), LoadBalanced())
    cache.put(question(nodes=NODES), plan)
    assert cache.get(question(planned_model(), NODES)) is plan


@pytest.mark.parametrize(
    "other",
    [
        question(planned_model(root="other"), NODES),
        question(planned_model(model_id="other"), NODES),
        question(nodes=NODES, strategy="uniform"),
        question(nodes=NODES, num_stages=2),
        question(nodes=NODES[:1]),
        question(nodes=(*NODES, node("c"))),
        question(nodes=(node("a", memory=9_999), NODES[1])),
        question(nodes=(node("a", slots=2), NODES[1])),
    ],
)
def test_any_other_question_misses(cache: MemoryPlanCache, other: PlanInput) -> None:
    put(cache, question(nodes=NODES))
    assert cache.get(other) is None


@pytest.mark.parametrize(
    ("speeds", "is_kept"),
    [((1.0, 2.0), True), ((1.05, 2.0), True), ((3.0, 6.0), True), ((1.2, 2.0), False), ((1.0, 1.8), False)],
)
def test_only_a_change_of_speed_beside_the_others_counts(
    cache: MemoryPlanCache, speeds: tuple[float, float], is_kept: bool
) -> None:
    put(cache, question(nodes=NODES))
    changed = tuple(replace(old, speed=speed) for old, speed in zip(NODES, speeds, strict=True))
    assert (cache.get(question(nodes=changed)) is not None) == is_kept


def test_small_steps_count_from_where_the_plan_was_made(cache: MemoryPlanCache) -> None:
    put(cache, question(nodes=NODES))
    assert cache.get(question(nodes=(node("a", speed=1.06), NODES[1]))) is not None
    assert cache.get(question(nodes=(node("a", speed=1.12), NODES[1]))) is None


def test_the_plan_used_longest_ago_makes_room(cache: MemoryPlanCache) -> None:
    first, second, third = (question(nodes=NODES, num_stages=wished) for wished in (1, 2, None))
    put(cache, first)
    put(cache, second)
    assert cache.get(first) is not None
    put(cache, third)
    assert [cache.get(wanted) is not None for wanted in (first, second, third)] == [True, False, True]


def test_forgetting_a_model_leaves_the_others(cache: MemoryPlanCache) -> None:
    one, two = question(planned_model(model_id="one"), NODES), question(planned_model(model_id="two"), NODES)
    put(cache, one)
    put(cache, two)
    assert cache.forget(ModelId("one")) == 1
    assert (cache.get(one), cache.get(two) is not None) == (None, True)
    assert cache.forget(ModelId("one")) == 0
    assert cache.forget(None) == 1
