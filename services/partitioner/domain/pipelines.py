"""How many pipelines the nodes are worth: plans that share no node's time, for sessions beside each other.

One session's lanes leave nodes idle once there are more of them than it has seats, and one ring gives no more than its
slowest stage. So the nodes are divided among several plans where that gives more verified tokens per second in total,
and of the nodes outside them some are kept that could decide a dispute at any stage.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from services.partitioner.domain.placement import decode_bytes_per_s
from services.partitioner.domain.planning import DEFAULT_RULES, SeatRules, make_plan
from services.partitioner.domain.prediction import rates_together
from services.partitioner.domain.strategies.base import Strategy
from shared.domain.errors import InvalidPlanInput, NoCapacity, VerificationUnavailable
from shared.domain.ids import NodeId
from shared.domain.layers import ModelInfo
from shared.domain.plan import NodeCapability, Objective, PartitionPlan, Pipeline, PlanInput, holders
from shared.domain.task import Verification

NUMBERS_TRIED = (2, 3, 4, 5, 6, 8, 12, 16)
MANY_NODES = 64
"""With more of them only the largest number is tried: each number costs about as long as one plan over all nodes."""
LEAST_GAIN = 0.1
"""Share by which more pipelines must beat fewer: predictions are no better than that, and a stage that many nodes hold
has more auditors to draw from."""

Plans = tuple[PartitionPlan, ...]
Nodes = Sequence[NodeCapability]


def make_pipelines(
    wanted: PlanInput, strategy: Strategy, *, preferred_stages: int | None = None, rules: SeatRules = DEFAULT_RULES
) -> Plans:
    """At least one plan, the best first; no node has seats in two of them.

    For `THROUGHPUT` the nodes are divided into as many groups as give the most in total. For `LATENCY` the first
    pipeline is the one that would be made alone, and what it leaves over may form others: no split makes a token
    slower. Two pipelines or more of verified sessions leave a node outside, for every stage one that could hold it. All
    have as many stages as one alone would have: cutting less is not what more pipelines are for.

    Raises as `make_plan` when not even one can be made.
    """
    return _Maker(wanted, strategy, preferred_stages=preferred_stages, rules=rules).make()


def rated(plans: Plans, model: ModelInfo, nodes: Mapping[NodeId, NodeCapability]) -> tuple[Pipeline, ...]:
    """With what each gives while all are busy. The plans' nodes are all there."""
    return tuple(map(Pipeline, plans, rates_together(plans, model, nodes)))


class _Maker:
    def __init__(
        self, wanted: PlanInput, strategy: Strategy, *, preferred_stages: int | None, rules: SeatRules
    ) -> None:
        self._wanted, self._strategy = wanted, strategy
        self._preferred_stages, self._rules = preferred_stages, rules
        self._is_verified = wanted.seating.verification is not Verification.NONE
        self._nodes = {node.node_id: node for node in wanted.nodes}

    def make(self) -> Plans:
        best: Plans = (self._plan(self._wanted.nodes),)
        if self._wanted.seating.is_recovery:
            return best
        self._wanted = replace(self._wanted, num_stages=len(best[0].lanes[0].partitions))
        divided = self._leftovers(best[0]) if self._wanted.objective is Objective.LATENCY else self._divided()
        best_rate = self._total(best)
        for plans in divided:
            rate = self._total(plans)
            if rate > best_rate * (1 + LEAST_GAIN):
                best, best_rate = plans, rate
        return best

    def _plan(self, among: Nodes) -> PartitionPlan:
        return make_plan(
            self._wanted,
            self._strategy,
            preferred_stages=self._preferred_stages,
            rules=self._rules,
            among=frozenset(node.node_id for node in among),
        )

    def _tried(self, groups: Sequence[Nodes]) -> Plans | None:
        """A plan for each group; None: one of them cannot seat the lanes."""
        try:
            return self._best_first([self._plan(group) for group in groups])
        except (NoCapacity, VerificationUnavailable, InvalidPlanInput):
            return None

    def _best_first(self, plans: Iterable[PartitionPlan]) -> Plans:
        return tuple(sorted(plans, key=lambda plan: -self._total((plan,))))

    def _total(self, plans: Plans) -> float:
        return sum(rates_together(plans, self._wanted.model, self._nodes))

    # --- more for all

    def _divided(self) -> Iterator[Plans]:
        """Nodes that compute alike among themselves, in two groups, in three..., their slowest or roomiest left out."""
        kinds = self._kinds()
        alone = [next(self._of_kind(kind, 1), ()) for kind in kinds] if len(kinds) > 1 else [()]
        if any(alone):
            yield self._best_first(chain.from_iterable(alone))
        for index, kind in enumerate(kinds):
            others = tuple(chain.from_iterable((*alone[:index], *alone[index + 1 :])))
            for count in NUMBERS_TRIED if len(kind) <= MANY_NODES else NUMBERS_TRIED[-1:]:
                if count * self._fewest_nodes() + self._is_verified > len(kind):
                    break
                for plans in self._of_kind(kind, count):
                    yield self._best_first((*plans, *others))

    def _of_kind(self, kind: Nodes, count: int) -> Iterator[Plans]:
        """Pipelines by each way to split that works with the slowest node left out, else with the roomiest."""
        for nodes in self._without_spare(kind):
            found = [plans for plans in map(self._tried, _splits(nodes, count)) if plans and self._leaves_spares(plans)]
            if found:
                yield from found
                return

    def _kinds(self) -> list[Nodes]:
        """Verified lanes need nodes of one kind; others take any."""
        if not self._is_verified:
            return [self._wanted.nodes]
        by_kind: dict[tuple[str, str], list[NodeCapability]] = {}
        for node in self._wanted.nodes:
            by_kind.setdefault(node.kind, []).append(node)
        return sorted(by_kind.values(), key=len, reverse=True)

    def _fewest_nodes(self) -> int:
        """With fewer a pipeline has no seats for its lanes: those of a lane, and of a stage, are on different nodes."""
        return max(self._wanted.num_stages or 1, self._wanted.seating.num_lanes)

    def _without_spare(self, nodes: Nodes) -> Iterator[Nodes]:
        if not self._is_verified:
            yield nodes
            return
        if len(nodes) <= self._fewest_nodes():
            return
        slowest = min(nodes, key=lambda node: (decode_bytes_per_s(node), node.node_id))
        roomiest = max(nodes, key=lambda node: (node.memory_bytes, -decode_bytes_per_s(node), node.node_id))
        for spare in dict.fromkeys((slowest.node_id, roomiest.node_id)):
            yield [node for node in nodes if node.node_id != spare]

    # --- none slower

    def _leftovers(self, first: PartitionPlan) -> Iterator[Plans]:
        plans: Plans = (first,)
        while len(plans) < NUMBERS_TRIED[-1]:
            seated = _seated(plans)
            left = [node for node in self._wanted.nodes if node.node_id not in seated]
            if len(left) < self._fewest_nodes() + self._is_verified:
                return
            tried = (self._tried([nodes]) for nodes in self._without_spare(left))
            more = next(((*plans, *found) for found in tried if found and self._leaves_spares((*plans, *found))), None)
            if more is None:
                return
            plans = more
            yield plans

    # --- disputes

    def _leaves_spares(self, plans: Plans) -> bool:
        if not self._is_verified:
            return True
        seated = _seated(plans)
        outside = [node for node in self._wanted.nodes if node.node_id not in seated]
        return all(
            holders(self._wanted.model, seat.layers, outside, self._nodes[seat.node_id].kind)
            for plan in plans
            for seat in plan.lanes[0].partitions
        )


def _seated(plans: Plans) -> frozenset[NodeId]:
    return frozenset(seat.node_id for plan in plans for seat in plan.seats)


def _splits(nodes: Nodes, count: int) -> Iterator[Sequence[Nodes]]:
    """Groups of equal size and about equal speed; where nodes share hosts, also such that keep hosts together."""
    by_speed = sorted(nodes, key=lambda node: (-decode_bytes_per_s(node), node.node_id))
    yield [[node for rank, node in enumerate(by_speed) if _snake(rank, count) == group] for group in range(count)]
    if len({node.host or node.node_id for node in nodes}) < len(nodes):
        by_host = sorted(nodes, key=lambda node: (node.host, node.node_id))
        borders = [round(group * len(nodes) / count) for group in range(count + 1)]
        yield [by_host[borders[group] : borders[group + 1]] for group in range(count)]


def _snake(rank: int, count: int) -> int:
    """Forth and back: the group that chooses first in one round chooses last in the next."""
    turn, place = divmod(rank, count)
    return place if turn % 2 == 0 else count - 1 - place
