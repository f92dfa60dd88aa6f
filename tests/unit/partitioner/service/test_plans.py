import asyncio
import threading
from collections.abc import Sequence

import pytest

from services.partitioner.domain.placement import SeatRoom
from services.partitioner.domain.planning import SeatRules
from services.partitioner.domain.strategies import StrategyRegistry
from services.partitioner.domain.strategies.load_balanced import LoadBalanced
from services.partitioner.service.plans import PartitionService
from services.partitioner.stores.memory_plan_cache import MemoryPlanCache
from shared.domain.errors import InvalidPlanInput, NoCapacity
from shared.domain.ids import ModelId
from shared.domain.plan import Objective, Partition
from shared.events.catalogue import PartitionCacheHit, PartitionCacheMiss, PartitionComputed
from tests.fakes.clock import FakeClock
from tests.fakes.events import RecordingPublisher
from tests.fakes.planning import node, planned_model, question

NODES = (node("a"), node("b"), node("c"), node("d"))


class CountingStrategy(LoadBalanced):
    """Counts its calls, and does not answer before it is let go."""

    def __init__(self) -> None:
        self.calls = 0
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()

    def seat(
        self, rooms: Sequence[SeatRoom], num_layers: int, num_stages: int | None, objective: Objective
    ) -> tuple[Partition, ...] | None:
        self.calls += 1
        self.entered.release()
        assert self.go.wait(10)
        return super().seat(rooms, num_layers, num_stages, objective)


@pytest.fixture
def strategy() -> CountingStrategy:
    return CountingStrategy()


@pytest.fixture
def events() -> RecordingPublisher:
    return RecordingPublisher()


@pytest.fixture
def service(strategy: CountingStrategy, events: RecordingPublisher) -> PartitionService:
    return PartitionService(
        strategies=StrategyRegistry([strategy]),
        cache=MemoryPlanCache(capacity=10, recompute_threshold=0.1),
        events=events,
        preferred_stages=3,
        rules=SeatRules(),
        worth_changing=0.1,
        now=FakeClock().now_s,
    )


async def test_a_plan_is_computed_once_and_told(
    service: PartitionService, strategy: CountingStrategy, events: RecordingPublisher
) -> None:
    first, was_kept = await service.compute_plan(question(nodes=NODES))
    again, is_kept = await service.compute_plan(question(nodes=NODES))
    assert first is again
    assert (was_kept, is_kept, strategy.calls) == (False, True, 1)
    assert events.events == [
        PartitionCacheMiss(),
        PartitionComputed(num_partitions=3, duration_ms=0.0, strategy="load_balanced"),
        PartitionCacheHit(),
    ]


async def test_equal_questions_at_once_are_computed_once(service: PartitionService, strategy: CountingStrategy) -> None:
    strategy.go.clear()
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(service.compute_plan(question(nodes=NODES))) for _ in range(20)]
        other = group.create_task(service.compute_plan(question(nodes=NODES, num_stages=2)))
        for _ in range(2):
            assert await asyncio.to_thread(strategy.entered.acquire, timeout=10)
        strategy.go.set()
    assert strategy.calls == 2
    assert len({task.result()[0].plan_id for task in asked}) == 1
    assert len(other.result()[0].lanes[0].partitions) == 2


async def test_a_caller_that_gives_up_does_not_fail_the_others(
    service: PartitionService, strategy: CountingStrategy
) -> None:
    strategy.go.clear()
    leader = asyncio.create_task(service.compute_plan(question(nodes=NODES)))
    assert await asyncio.to_thread(strategy.entered.acquire, timeout=10)
    follower = asyncio.create_task(service.compute_plan(question(nodes=NODES)))
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    strategy.go.set()
    plan, _ = await follower
    assert len(plan.lanes[0].partitions) == 3


async def test_a_failure_is_not_remembered(service: PartitionService) -> None:
    small = tuple(node(name, memory=110) for name in "abc")
    for _ in range(2):
        with pytest.raises(NoCapacity):
            await service.compute_plan(question(nodes=small))
    await service.compute_plan(question(nodes=NODES))


async def test_an_unknown_strategy_is_refused(service: PartitionService) -> None:
    with pytest.raises(InvalidPlanInput, match="known are: load_balanced"):
        await service.compute_plan(question(nodes=NODES, strategy="magic"))


async def test_forgetting_one_model_keeps_the_plans_of_others(
    service: PartitionService, strategy: CountingStrategy
) -> None:
    one, two = question(planned_model(model_id="one"), NODES), question(planned_model(model_id="two"), NODES)
    await service.compute_plan(one)
    await service.compute_plan(two)
    assert service.forget(ModelId("one")) == 1
    assert [(await service.compute_plan(wanted))[1] for wanted in (one, two)] == [False, True]
