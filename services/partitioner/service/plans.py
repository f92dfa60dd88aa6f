"""Answers which node holds which layers, and remembers the answer."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from weakref import WeakValueDictionary

from services.partitioner.domain.input_checks import check_input
from services.partitioner.domain.plan_key import plan_key
from services.partitioner.domain.planning import SeatRules, make_plan
from services.partitioner.domain.prediction import predict
from services.partitioner.domain.quality import estimate_quality
from services.partitioner.domain.rebalancing import Advice, advise
from services.partitioner.domain.strategies import StrategyRegistry
from services.partitioner.ports import PlanCache
from shared.domain.ids import ModelId, NodeId
from shared.domain.layers import ModelInfo
from shared.domain.plan import NodeCapability, PartitionPlan, PlanInput
from shared.domain.plan_figures import Load, PlanQuality, Prediction
from shared.events.catalogue import PartitionCacheHit, PartitionCacheMiss, PartitionComputed
from shared.events.publisher import Publisher


class PartitionInterface(ABC):
    @abstractmethod
    async def compute_plan(self, wanted: PlanInput) -> tuple[PartitionPlan, bool]:
        """The plan, and whether it was kept from before.

        Lanes hold every layer exactly once, within the nodes' memory, and keep the rules of `wanted.seating`. The same
        question gets the same plan, and so does one in which speeds differ by less than the configured threshold.
        Calls may overlap; equal ones compute once. Raises `NoCapacity` (the scheduler requeues the task),
        `InvalidPlanInput`, `UnsupportedModel`, `VerificationUnavailable`.
        """

    @abstractmethod
    def rate(self, plan: PartitionPlan, model: ModelInfo, nodes: Mapping[NodeId, NodeCapability]) -> PlanQuality:
        """How good a plan is. Raises `InvalidPlanInput` when it is none for this model and these nodes."""

    @abstractmethod
    def predict(
        self, plan: PartitionPlan, model: ModelInfo, nodes: Mapping[NodeId, NodeCapability], load: Load
    ) -> Prediction:
        """What a plan of this service will do under `load`."""

    @abstractmethod
    def advise(self, present: PartitionPlan, other: PartitionPlan, wanted: PlanInput) -> Advice:
        """Whether `other` saves more than the configured threshold. Raises `InvalidPlanInput` as `rate`."""

    @abstractmethod
    def forget(self, model_id: ModelId | None) -> int:
        """Drop what is remembered of one model, or all for None; returns how many plans there were."""


class PartitionService(PartitionInterface):
    def __init__(
        self,
        *,
        strategies: StrategyRegistry,
        cache: PlanCache,
        events: Publisher,
        preferred_stages: int | None,
        rules: SeatRules,
        worth_changing: float,
        now: Callable[[], float],
    ) -> None:
        """`worth_changing`: share of its time that another plan must save to be advised."""
        self._strategies, self._cache, self._events = strategies, cache, events
        self._preferred_stages, self._rules, self._now = preferred_stages, rules, now
        self._worth_changing = worth_changing
        self._computing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def compute_plan(self, wanted: PlanInput) -> tuple[PartitionPlan, bool]:
        strategy = self._strategies.get(wanted.strategy)
        check_input(wanted)
        key = plan_key(wanted)
        lock = self._computing.get(key)
        if lock is None:
            lock = self._computing[key] = asyncio.Lock()
        async with lock:  # a caller that gives up leaves the work to the next one
            kept = self._cache.get(wanted)
            if kept is not None:
                self._events.publish(PartitionCacheHit())
                return kept, True
            self._events.publish(PartitionCacheMiss())
            began_s = self._now()
            plan = await asyncio.to_thread(
                make_plan, wanted, strategy, preferred_stages=self._preferred_stages, rules=self._rules
            )
            self._cache.put(wanted, plan)
        self._events.publish(
            PartitionComputed(
                num_partitions=sum(len(lane.partitions) for lane in plan.lanes),
                duration_ms=(self._now() - began_s) * 1000,
                strategy=wanted.strategy,
            )
        )
        return plan, False

    def rate(self, plan: PartitionPlan, model: ModelInfo, nodes: Mapping[NodeId, NodeCapability]) -> PlanQuality:
        return estimate_quality(plan, model, nodes)

    def predict(
        self, plan: PartitionPlan, model: ModelInfo, nodes: Mapping[NodeId, NodeCapability], load: Load
    ) -> Prediction:
        return predict(plan, model, nodes, load)

    def advise(self, present: PartitionPlan, other: PartitionPlan, wanted: PlanInput) -> Advice:
        nodes = {node.node_id: node for node in wanted.nodes}
        return advise(present, other, wanted.model, nodes, objective=wanted.objective, threshold=self._worth_changing)

    def forget(self, model_id: ModelId | None) -> int:
        return self._cache.forget(model_id)
