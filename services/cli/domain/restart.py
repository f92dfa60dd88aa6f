"""Whether and when a process that ended is started again."""

from dataclasses import dataclass

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 15.0
HEALTHY_AFTER_S = 60.0
"""A process that ran this long starts over with the shortest delay."""
MAX_EXITS = 5
EXIT_WINDOW_S = 120.0
"""`MAX_EXITS` within this time: it is broken, starting it again helps nobody."""


@dataclass(frozen=True, slots=True)
class RestartHistory:
    exits_s: tuple[float, ...] = ()
    """When it ended, by the monotonic clock; only what still counts."""
    next_delay_s: float = FIRST_DELAY_S


@dataclass(frozen=True, slots=True)
class RestartDecision:
    history: RestartHistory
    delay_s: float | None
    """Wait this long, then start it again. None: it has failed for good."""


def after_exit(history: RestartHistory, *, started_s: float, exited_s: float) -> RestartDecision:
    recent = (*(at_s for at_s in history.exits_s if exited_s - at_s < EXIT_WINDOW_S), exited_s)
    if len(recent) >= MAX_EXITS:
        return RestartDecision(RestartHistory(recent), delay_s=None)
    delay_s = FIRST_DELAY_S if exited_s - started_s >= HEALTHY_AFTER_S else history.next_delay_s
    return RestartDecision(RestartHistory(recent, min(LONGEST_DELAY_S, delay_s * 2)), delay_s)


def exit_code_of(returncode: int) -> int:
    """The shell's exit code for a child's return code: a negative one is the signal that ended it.

    A service that ends by itself with 0 has failed nevertheless: it was not asked to go.
    """
    return 128 - returncode if returncode < 0 else returncode or 1
