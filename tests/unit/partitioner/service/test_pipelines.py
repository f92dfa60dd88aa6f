"""Which pipelines new sessions go by, as nodes come and go."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.partitioner.domain.planning import SeatRules
from services.partitioner.domain.rebalancing import Rebalancing, Terms
from services.partitioner.domain.strategies import StrategyRegistry
from services.partitioner.domain.strategies.load_balanced import LoadBalanced
from services.partitioner.service.pipelines import PipelinesService
from shared.domain.errors import VerificationUnavailable
from shared.domain.ids import ModelId
from shared.domain.plan import NodeCapability, PlanInput, Seating
from shared.events.catalogue import PartitionComputed, PipelinesChanged
from tests.fakes.clock import FakeClock
from tests.fakes.events import RecordingPublisher
from tests.fakes.planning import NO_LANES, audited, node, planned_model, question

LEAST_S = 30.0
MODEL = planned_model((2_700_000,) * 30)
NODES = tuple(node(f"n{index}", memory=10**9) for index in range(10))


def wanted(nodes: Sequence[NodeCapability], seating: Seating | None = None) -> PlanInput:
    return question(MODEL, nodes, seating=audited() if seating is None else seating)


class Partitioning:
    def __init__(self, rule: Rebalancing, *, capacity: int = 10) -> None:
        self.clock, self.events = FakeClock(), RecordingPublisher()
        self.service = PipelinesService(
            strategies=StrategyRegistry([LoadBalanced()]),
            events=self.events,
            preferred_stages=3,
            rules=SeatRules(),
            terms=Terms(rule=rule, threshold=0.1, least_s=LEAST_S),
            capacity=capacity,
            now=self.clock.now_s,
        )

    async def asked(self, nodes: Sequence[NodeCapability], seating: Seating | None = None) -> list[str]:
        """Names of the plans."""
        return [pipeline.plan.plan_id for pipeline in await self.service.pipelines(wanted(nodes, seating))]

    @property
    def reasons(self) -> list[str]:
        return [event.reason for event in self.events.of(PipelinesChanged)]


async def test_what_does_not_change_is_computed_once() -> None:
    cluster = Partitioning(Rebalancing.ADVISED)
    first, *others = await asyncio.gather(*(cluster.asked(NODES[:4]) for _ in range(5)))
    assert all(other == first for other in others)
    assert len(cluster.events.of(PartitionComputed)) == 1
    assert cluster.reasons == []


async def test_a_node_that_joins_changes_nothing_unless_that_is_worth_it_and_not_at_once() -> None:
    cluster = Partitioning(Rebalancing.ADVISED)
    one = await cluster.asked(NODES[:6])
    assert await cluster.asked(NODES[:7]) == one  # too soon
    await cluster.clock.advance(LEAST_S)
    two = await cluster.asked(NODES[:7])
    assert len(two) == 2
    assert cluster.events.of(PipelinesChanged)[0].after == 2
    await cluster.clock.advance(LEAST_S)
    assert await cluster.asked(NODES[:8]) == two  # an eighth node gains nothing
    assert cluster.reasons == ["gain"]


async def test_a_node_that_comes_and_goes_moves_nothing_to_and_fro() -> None:
    cluster = Partitioning(Rebalancing.ADVISED)
    two = await cluster.asked(NODES[:8])
    (spare,) = {each.node_id for each in NODES[:8]} - {
        seat.node_id for pipeline in await cluster.service.pipelines(wanted(NODES[:8])) for seat in pipeline.plan.seats
    }
    for _ in range(20):
        await cluster.clock.advance(LEAST_S)
        assert await cluster.asked([each for each in NODES[:8] if each.node_id != spare]) == two
        assert await cluster.asked(NODES[:8]) == two
    assert cluster.reasons == []


async def test_the_pipeline_that_has_its_nodes_goes_on_while_the_other_has_lost_one() -> None:
    cluster = Partitioning(Rebalancing.ADVISED)
    before = await cluster.service.pipelines(wanted(NODES[:7]))
    lost = before[1].plan.seats[0].node_id
    left = [each for each in NODES[:7] if each.node_id != lost]
    assert await cluster.asked(left) == [before[0].plan.plan_id]
    assert await cluster.asked(NODES[:7]) == [pipeline.plan.plan_id for pipeline in before]  # it was a moment's absence
    assert cluster.reasons == []


async def test_a_plan_whose_nodes_are_gone_is_replaced_at_once() -> None:
    cluster = Partitioning(Rebalancing.NEVER)
    before = await cluster.service.pipelines(wanted(NODES[:4]))
    gone = before[0].plan.seats[0].node_id
    after = await cluster.service.pipelines(wanted([each for each in NODES[:4] if each.node_id != gone]))
    assert gone not in {seat.node_id for seat in after[0].plan.seats}
    assert cluster.reasons == ["nodes"]


async def test_a_node_that_offers_less_than_before_is_planned_anew() -> None:
    cluster = Partitioning(Rebalancing.NEVER)
    await cluster.asked(NODES[:4])
    less = [replace(NODES[0], memory_bytes=10**7), *NODES[1:4]]
    (pipeline,) = await cluster.service.pipelines(wanted(less))
    assert NODES[0].node_id not in {seat.node_id for seat in pipeline.plan.lanes[0].partitions}
    assert cluster.reasons == ["nodes"]


async def test_speeds_count_only_from_the_threshold_on() -> None:
    cluster = Partitioning(Rebalancing.ADVISED)
    before = await cluster.asked(NODES[:3], NO_LANES)
    await cluster.clock.advance(LEAST_S)
    assert await cluster.asked([replace(NODES[0], speed=1.05), *NODES[1:3]], NO_LANES) == before
    assert len(cluster.events.of(PartitionComputed)) == 1
    assert await cluster.asked([replace(NODES[0], speed=3.0), *NODES[1:3]], NO_LANES) != before
    assert cluster.reasons == ["gain"]


async def test_always_follows_the_nodes_as_they_are() -> None:
    cluster = Partitioning(Rebalancing.ALWAYS)
    one = await cluster.asked(NODES[:4])
    five = await cluster.asked(NODES[:5])
    assert five != one
    assert await cluster.asked(NODES[:4]) == one
    assert cluster.reasons == ["fresh", "fresh"]


async def test_too_few_nodes_are_told_and_what_was_in_use_is_taken_up_again() -> None:
    cluster = Partitioning(Rebalancing.ADVISED)
    before = await cluster.asked(NODES[:3])
    for _ in range(2):
        with pytest.raises(VerificationUnavailable):
            await cluster.asked(NODES[:2])
    assert await cluster.asked(NODES[:3]) == before
    assert cluster.reasons == []


async def test_questions_asked_longest_ago_are_forgotten_and_models_when_told() -> None:
    cluster = Partitioning(Rebalancing.NEVER, capacity=2)
    for f in (1, 2, 3):
        await cluster.asked(NODES, audited(f))
    assert cluster.service.forget(ModelId("another")) == 0
    assert cluster.service.forget(MODEL.model_id) == 2
    assert cluster.service.forget(None) == 0
