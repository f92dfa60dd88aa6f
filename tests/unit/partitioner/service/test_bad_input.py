"""Questions that have no answer: each is refused with what is wrong, and nothing of it is remembered."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from services.partitioner.domain.placement import SeatRoom
from services.partitioner.domain.planning import SeatRules
from services.partitioner.domain.rebalancing import Rebalancing, Terms
from services.partitioner.domain.strategies import StrategyRegistry
from services.partitioner.domain.strategies.base import Strategy
from services.partitioner.domain.strategies.custom import Checked
from services.partitioner.domain.strategies.load_balanced import LoadBalanced
from services.partitioner.domain.strategies.topology_aware import TopologyAware
from services.partitioner.domain.strategies.uniform import Uniform
from services.partitioner.service.pipelines import PipelinesService
from services.partitioner.service.plans import PartitionService
from services.partitioner.stores.memory_plan_cache import MemoryPlanCache
from shared.domain.errors import ButterflyError, InvalidPlanInput, NoCapacity
from shared.domain.ids import NodeId
from shared.domain.measured import Measured, Pace
from shared.domain.plan import LayerRange, Objective, Partition, PlanInput
from shared.events.catalogue import PartitionCacheHit, PartitionComputed
from tests.fakes.clock import FakeClock
from tests.fakes.events import RecordingPublisher
from tests.fakes.planning import node, planned_model, question

MODEL = planned_model((100,) * 6)
NODES = (node("a"), node("b"), node("c"))


class ByHand(Strategy):
    """Gives what it was made with."""

    def __init__(self, name: str, *seats: tuple[str, int, int]) -> None:
        self.name = name
        self._seats = tuple(
            Partition(stage, NodeId(holder), LayerRange(start, end)) for stage, (holder, start, end) in enumerate(seats)
        )

    def seat(
        self, rooms: Sequence[SeatRoom], num_layers: int, num_stages: int | None, objective: Objective
    ) -> tuple[Partition, ...]:
        return self._seats


STRATEGIES = StrategyRegistry(
    [
        Uniform(),
        LoadBalanced(),
        TopologyAware(),
        Checked(ByHand("gaps", ("a", 0, 2), ("b", 3, 6))),
        Checked(ByHand("overlaps", ("a", 0, 3), ("b", 2, 6))),
        Checked(ByHand("foreign", ("a", 0, 3), ("z", 3, 6))),
        Checked(ByHand("short", ("a", 0, 3), ("b", 3, 5))),
    ]
)
NO_FIGURES = (math.nan, 1e-10), (-1e-10, 1e-10), (1e-10, math.inf)
BAD: Sequence[tuple[str, PlanInput, type[ButterflyError], str]] = [
    ("no nodes", question(MODEL, ()), NoCapacity, "no node is ready"),
    ("too little memory", question(MODEL, [node(name, memory=150) for name in "abc"]), NoCapacity, "1 MiB are missing"),
    ("a layer larger than any node", question(MODEL, [node("a", memory=50)]), InvalidPlanInput, "layer 0 needs"),
    ("a node twice", question(MODEL, [node("a"), node("a")]), InvalidPlanInput, "the node a is given twice"),
    ("a negative speed", question(MODEL, [node("a", speed=-1.0)]), InvalidPlanInput, "a has the speed -1.0"),
    ("a speed that is none", question(MODEL, [node("a", speed=math.nan)]), InvalidPlanInput, "a has the speed nan"),
    ("negative memory", question(MODEL, [node("a", memory=-1)]), InvalidPlanInput, "a claims -1 bytes"),
    *(
        (
            f"a pace of {figures}",
            question(MODEL, [replace(node("a"), measured=Measured(Pace(*figures)))]),
            InvalidPlanInput,
            "the node a: pace",
        )
        for figures in NO_FIGURES
    ),
    (
        "an unknown strategy",
        question(MODEL, NODES, strategy="magic"),
        InvalidPlanInput,
        "known are: foreign, gaps, load_balanced, overlaps, short, topology_aware, uniform",
    ),
    ("gaps", question(MODEL, NODES, strategy="gaps", num_stages=2), InvalidPlanInput, "a gap: stage 1"),
    ("overlaps", question(MODEL, NODES, strategy="overlaps", num_stages=2), InvalidPlanInput, "an overlap: stage 1"),
    (
        "foreign nodes",
        question(MODEL, NODES, strategy="foreign", num_stages=2),
        InvalidPlanInput,
        "z of stage 1 is not",
    ),
    ("too few layers", question(MODEL, NODES, strategy="short", num_stages=2), InvalidPlanInput, "at layer 5 of 6"),
]
Ask = Callable[[PlanInput], Awaitable[object]]


@pytest.fixture
def events() -> RecordingPublisher:
    return RecordingPublisher()


@pytest.fixture(params=["plans", "pipelines", "preview"])
def ask(request: pytest.FixtureRequest, events: RecordingPublisher) -> Ask:
    """Each way to ask."""
    if request.param == "plans":
        plans = PartitionService(
            strategies=STRATEGIES,
            cache=MemoryPlanCache(capacity=10, recompute_threshold=0.1),
            events=events,
            preferred_stages=None,
            rules=SeatRules(),
            worth_changing=0.1,
            now=FakeClock().now_s,
        )
        return plans.compute_plan
    pipelines = PipelinesService(
        strategies=STRATEGIES,
        events=events,
        preferred_stages=None,
        rules=SeatRules(),
        terms=Terms(rule=Rebalancing.ALWAYS, threshold=0.1, least_s=0.0),
        capacity=10,
        now=FakeClock().now_s,
    )
    return pipelines.pipelines if request.param == "pipelines" else pipelines.would_be


@pytest.mark.parametrize(("wanted", "error", "reason"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
async def test_a_bad_question_is_refused_with_what_is_wrong_each_time(
    wanted: PlanInput, error: type[ButterflyError], reason: str, ask: Ask, events: RecordingPublisher
) -> None:
    for _ in range(2):
        with pytest.raises(error, match=reason):
            await ask(wanted)
    assert not events.of(PartitionCacheHit)
    assert not events.of(PartitionComputed)
    await ask(question(MODEL, NODES))  # and nobody else is harmed
