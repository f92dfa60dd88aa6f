"""Keeps the plans used last in memory."""

from collections import OrderedDict
from dataclasses import dataclass

from services.partitioner.domain.plan_key import Figures, figures_alike, figures_of, plan_key
from services.partitioner.ports import PlanCache
from shared.domain.ids import ModelId
from shared.domain.plan import PartitionPlan, PlanInput


@dataclass(frozen=True, slots=True)
class _Kept:
    plan: PartitionPlan
    figures: Figures


class MemoryPlanCache(PlanCache):
    def __init__(self, *, capacity: int, recompute_threshold: float) -> None:
        """`recompute_threshold`: the change of a node's speed beside the others, or of a link, from which on a plan is
        made anew."""
        self._capacity, self._threshold = capacity, recompute_threshold
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def get(self, wanted: PlanInput) -> PartitionPlan | None:
        key = plan_key(wanted)
        kept = self._kept.get(key)
        if kept is None or not figures_alike(kept.figures, figures_of(wanted), self._threshold):
            return None
        self._kept.move_to_end(key)
        return kept.plan

    def put(self, wanted: PlanInput, plan: PartitionPlan) -> None:
        key = plan_key(wanted)
        self._kept[key] = _Kept(plan, figures_of(wanted))
        self._kept.move_to_end(key)
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    def forget(self, model_id: ModelId | None) -> int:
        keys = [key for key, kept in self._kept.items() if model_id in (None, kept.plan.model_id)]
        for key in keys:
            del self._kept[key]
        return len(keys)
