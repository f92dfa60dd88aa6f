"""The strategies by name."""

from collections.abc import Iterable, Sequence

from services.partitioner.domain.strategies.base import Strategy
from shared.domain.errors import InvalidPlanInput


class StrategyRegistry:
    def __init__(self, strategies: Iterable[Strategy]) -> None:
        """Raises `ValueError` for a name that two of them have."""
        self._by_name: dict[str, Strategy] = {}
        for strategy in strategies:
            if strategy.name in self._by_name:
                raise ValueError(f"there are two strategies {strategy.name!r}")
            self._by_name[strategy.name] = strategy

    @property
    def names(self) -> Sequence[str]:
        return sorted(self._by_name)

    def get(self, name: str) -> Strategy:
        """Raises `InvalidPlanInput` naming the known ones."""
        strategy = self._by_name.get(name)
        if strategy is None:
            raise InvalidPlanInput(
                f"there is no strategy {name!r}; known are: {', '.join(self.names)}", param="strategy"
            )
        return strategy
