"""Answers of pure functions that histories ask for again and again: kept from one history to the next.

Each depends on its arguments alone, or on files of `prepare_home`, which nobody changes: no history can tell.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, wraps
from typing import TypeVar

from services.partitioner import app as partitioner
from services.partitioner.domain.pipelines import make_pipelines
from services.partitioner.domain.planning import SeatRules, make_plan
from services.partitioner.domain.strategies.base import Strategy
from services.partitioner.service import pipelines, plans
from services.partitioner.stores import model_folder
from services.partitioner.stores.installed_strategies import installed_strategies
from services.worker.stores import stage_files
from shared.domain import node_proof, receipt
from shared.domain.plan import PlanInput
from shared.domain.signing import is_signed_by
from shared.llama.cutting import cut_stage, open_model, stage_digest_of
from tests.simulation.seeded.light import in_place

T = TypeVar("T")

MANY = 1 << 14


def _of_plans(make: Callable[..., T]) -> Callable[..., T]:
    """Strategies of one name are alike, and made anew at every start."""
    kept: dict[tuple[PlanInput, int | None, SeatRules], T] = {}

    @wraps(make)
    def remembered(wanted: PlanInput, strategy: Strategy, *, preferred_stages: int | None, rules: SeatRules) -> T:
        asked = wanted, preferred_stages, rules
        if asked not in kept:
            if len(kept) == MANY:
                kept.clear()
            kept[asked] = make(wanted, strategy, preferred_stages=preferred_stages, rules=rules)
        return kept[asked]

    return remembered


@cache
def _in_place() -> Sequence[tuple[object, str, object]]:
    checked = lru_cache(MANY)(is_signed_by)
    return (
        (partitioner, "installed_strategies", cache(installed_strategies)),
        (pipelines, "make_pipelines", _of_plans(make_pipelines)),
        (plans, "make_plan", _of_plans(make_plan)),
        (model_folder, "open_model", cache(open_model)),
        (model_folder, "cut_stage", cache(cut_stage)),
        (stage_files, "stage_digest_of", cache(stage_digest_of)),
        (receipt, "is_signed_by", checked),
        (node_proof, "is_signed_by", checked),
    )


@contextmanager
def remembered() -> Iterator[None]:
    with in_place(_in_place()):
        yield
