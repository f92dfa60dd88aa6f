"""Remembers the pipelines that new sessions go by, and changes them when that is worth it."""

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from services.partitioner.domain.input_checks import check_input
from services.partitioner.domain.pipelines import Plans, make_pipelines, rated
from services.partitioner.domain.plan_key import Figures, figures_alike, figures_of, plan_key
from services.partitioner.domain.planning import SeatRules, has_spares
from services.partitioner.domain.rebalancing import Terms, advise_pipelines, reason_to_change
from services.partitioner.domain.strategies import StrategyRegistry
from shared.domain.ids import ModelId, NodeId, PlanId
from shared.domain.plan import NodeCapability, Pipeline, PlanInput
from shared.events.catalogue import PartitionCacheHit, PartitionCacheMiss, PartitionComputed, PipelinesChanged
from shared.events.publisher import Publisher

Nodes = Mapping[NodeId, NodeCapability]


class PipelinesInterface(ABC):
    @abstractmethod
    async def pipelines(self, wanted: PlanInput) -> tuple[Pipeline, ...]:
        """The plans that new sessions are to go by, at least one, the best first; all their nodes are among
        `wanted.nodes`.

        They stay the same until the rules of `domain.rebalancing` have them change: sessions that run are none of
        theirs. Calls may overlap; equal ones compute once. Raises as `PartitionInterface.compute_plan`.
        """

    @abstractmethod
    async def would_be(self, wanted: PlanInput) -> tuple[Pipeline, ...]:
        """What `pipelines` would answer if it had never been asked before; nothing is remembered of it. Raises the
        same."""

    @abstractmethod
    def forget(self, model_id: ModelId | None) -> int:
        """The next question gets what is best then. Of one model, or all for None; returns how many there were."""


@dataclass(slots=True)
class _InUse:
    """Of one question, whatever its nodes."""

    model_id: ModelId
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    plans: Plans = ()
    nodes: Nodes = field(default_factory=dict)
    """As they were when the plans came into use."""
    since_s: float = 0.0
    best: Plans = ()
    """For the nodes as they were last; in use or not."""
    key: str = ""
    figures: Figures | None = None
    """What `best` was made from."""


class PipelinesService(PipelinesInterface):
    def __init__(
        self,
        *,
        strategies: StrategyRegistry,
        events: Publisher,
        preferred_stages: int | None,
        rules: SeatRules,
        terms: Terms,
        capacity: int,
        now: Callable[[], float],
    ) -> None:
        """`capacity`: questions remembered, those asked last."""
        self._strategies, self._events, self._now = strategies, events, now
        self._preferred_stages, self._rules = preferred_stages, rules
        self._terms, self._capacity = terms, capacity
        self._in_use: OrderedDict[str, _InUse] = OrderedDict()

    async def pipelines(self, wanted: PlanInput) -> tuple[Pipeline, ...]:
        check_input(wanted)
        in_use = self._remembered(wanted)
        async with in_use.busy:  # a caller that gives up leaves the work to the next one
            await self._look(in_use, wanted)
            usable = self._usable(in_use, wanted)
            if _names(usable) != _names(in_use.best):
                usable = self._decide(in_use, usable, wanted)
            else:
                usable = in_use.plans = in_use.best
                in_use.nodes = _by_id(wanted)
            return rated(usable, wanted.model, _by_id(wanted))

    async def would_be(self, wanted: PlanInput) -> tuple[Pipeline, ...]:
        check_input(wanted)
        return rated(await self._made(wanted), wanted.model, _by_id(wanted))

    def forget(self, model_id: ModelId | None) -> int:
        keys = [key for key, in_use in self._in_use.items() if model_id in (None, in_use.model_id)]
        for key in keys:
            del self._in_use[key]
        return len(keys)

    def _remembered(self, wanted: PlanInput) -> _InUse:
        question = plan_key(replace(wanted, nodes=()))
        in_use = self._in_use.setdefault(question, _InUse(wanted.model.model_id))
        self._in_use.move_to_end(question)
        if len(self._in_use) > self._capacity:
            self._in_use.popitem(last=False)
        return in_use

    async def _made(self, wanted: PlanInput) -> Plans:
        strategy = self._strategies.get(wanted.strategy)
        return await asyncio.to_thread(
            make_pipelines, wanted, strategy, preferred_stages=self._preferred_stages, rules=self._rules
        )

    async def _look(self, in_use: _InUse, wanted: PlanInput) -> None:
        """Find what is best now, if the nodes have changed enough to make a difference."""
        key, figures = plan_key(wanted), figures_of(wanted)
        known = in_use.figures
        if in_use.key == key and known is not None and figures_alike(known, figures, self._terms.threshold):
            self._events.publish(PartitionCacheHit())
            return
        self._events.publish(PartitionCacheMiss())
        began_s = self._now()
        in_use.best = await self._made(wanted)
        in_use.key, in_use.figures = key, figures
        self._events.publish(
            PartitionComputed(
                num_partitions=sum(len(plan.seats) for plan in in_use.best),
                duration_ms=(self._now() - began_s) * 1000,
                strategy=wanted.strategy,
            )
        )

    def _usable(self, in_use: _InUse, wanted: PlanInput) -> Plans:
        """The plans in use whose nodes are there and offer what they did, and that still have their referees."""
        present = {node.node_id: _offer(node) for node in wanted.nodes}
        same = {node_id for node_id, node in in_use.nodes.items() if present.get(node_id) == _offer(node)}
        return tuple(
            plan
            for plan in in_use.plans
            if same.issuperset(seat.node_id for seat in plan.seats) and has_spares(wanted, plan.lanes, self._rules)
        )

    def _decide(self, in_use: _InUse, usable: Plans, wanted: PlanInput) -> Plans:
        """Whether to stay with `usable`; what new sessions go by then."""
        now_s, nodes, advice = self._now(), _by_id(wanted), None
        if usable:
            advice = advise_pipelines(
                usable,
                in_use.best,
                wanted.model,
                nodes,
                objective=wanted.objective,
                threshold=self._terms.threshold,
            )
        reason = reason_to_change(advice, in_use_s=now_s - in_use.since_s, terms=self._terms)
        if reason is None:
            return usable
        if in_use.plans:
            gain = advice.gain if advice is not None else 1.0
            self._events.publish(
                PipelinesChanged(wanted.model.model_id, len(in_use.plans), len(in_use.best), reason, gain)
            )
        in_use.plans, in_use.nodes, in_use.since_s = in_use.best, nodes, now_s
        return in_use.plans


def _names(plans: Plans) -> list[PlanId]:
    return [plan.plan_id for plan in plans]


def _by_id(wanted: PlanInput) -> dict[NodeId, NodeCapability]:
    return {node.node_id: node for node in wanted.nodes}


def _offer(node: NodeCapability) -> NodeCapability:
    """Without what moves from time to time: plans stay right whatever that is."""
    return replace(node, speed=1.0, measured=None)
