"""Strategies that other installed packages bring."""

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from services.partitioner.domain.strategies.base import Strategy
from shared.runtime.config import ConfigError

GROUP = "butterfly.strategies"


def installed_strategies() -> Sequence[Strategy]:
    """One per entry point of the group `butterfly.strategies`, whose name is the strategy's and whose object is a
    subclass of `Strategy` that takes no arguments.

    Raises `ConfigError` for one that cannot be had: who asks for it by name should not find out only then.
    """
    return [_made(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]


def _made(point: EntryPoint) -> Strategy:
    try:
        strategy = point.load()()
    except Exception as error:  # whatever a foreign package may raise
        raise _refusal(point, f"{type(error).__name__}: {error}") from error
    if not isinstance(strategy, Strategy):
        raise _refusal(point, f"{type(strategy).__name__} is no subclass of {Strategy.__module__}.Strategy")
    if getattr(strategy, "name", None) != point.name:
        raise _refusal(point, f"it calls itself {getattr(strategy, 'name', None)!r}; both names must be the same")
    return strategy


def _refusal(point: EntryPoint, reason: str) -> ConfigError:
    package = point.dist.name if point.dist is not None else "an unknown package"
    return ConfigError(
        f"the strategy {point.name!r} of {package} ({point.value}) cannot be used: {reason}. Repair or uninstall it"
    )
