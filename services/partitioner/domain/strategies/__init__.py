"""The strategies by name."""

from collections.abc import Iterable

from services.partitioner.domain.strategies.base import Strategy
from shared.domain.errors import InvalidPlanInput


class StrategyRegistry:
    def __init__(self, strategies: Iterable[Strategy]) -> None:
        self._by_name = {strategy.name: strategy for strategy in strategies}

    def get(self, name: str) -> Strategy:
        """Raises `InvalidPlanInput` naming the known ones."""
        strategy = self._by_name.get(name)
        if strategy is None:
            known = ", ".join(sorted(self._by_name))
            raise InvalidPlanInput(f"there is no strategy {name!r}; known are: {known}", param="strategy")
        return strategy
