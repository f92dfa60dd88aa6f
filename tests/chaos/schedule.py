"""What the nemesis does and when: drawn from a seed before anything starts, so that a run can be repeated. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

KILLS_PER_WINDOW = 3
KILL_WINDOW_S = 125.0
"""`butterfly up` gives a process up that ends 5 times within 120 s; that is a promise of its own."""
HANG_S = (0.5, 6.0)
CUT_S = (0.5, 6.0)


class Fault(StrEnum):
    KILL = "kill"
    """SIGKILL."""
    HANG = "hang"
    """SIGSTOP, and SIGCONT after a while."""
    ISOLATE = "isolate"
    """Nothing gets through between the process and any other for a while; bytes on their way come late."""
    DEAFEN = "deafen"
    """Nothing from others gets through to it; its own calls still do."""
    MUTE = "mute"
    """Its own calls do not get through; it is still called. (Those of a worker to other workers do: one edge leads to a
    worker, whoever calls.)"""


CALLS_NOBODY = "redis"
"""Cannot be kept from calling."""
WEIGHTS: Mapping[Fault, int] = {Fault.KILL: 4, Fault.HANG: 3, Fault.ISOLATE: 2, Fault.DEAFEN: 1, Fault.MUTE: 1}


@dataclass(frozen=True, slots=True)
class Strike:
    at_s: float
    """Since the load began."""
    fault: Fault
    process: str
    lasts_s: float
    """0 for a kill."""


def can_take(process: str, fault: Fault) -> bool:
    return process != CALLS_NOBODY or fault is not Fault.MUTE


def draw_schedule(rng: Random, processes: Sequence[str], *, duration_s: float, every_s: float) -> tuple[Strike, ...]:
    """Strikes in order of time, one about `every_s` on average, the last early enough to be over by the end.

    They are dealt like cards, so that every process soon meets every fault.
    """
    strikes: list[Strike] = []
    deck: list[tuple[str, Fault]] = []
    at_s = 0.0
    while True:
        at_s += rng.uniform(0.3, 1.7) * every_s
        if not deck:
            deck = [(name, fault) for name in processes for fault, count in WEIGHTS.items() for _ in range(count)]
            rng.shuffle(deck)
        process, fault = deck.pop()
        lasts_s = 0.0 if fault is Fault.KILL else rng.uniform(*(HANG_S if fault is Fault.HANG else CUT_S))
        if at_s + lasts_s > duration_s:
            return tuple(strikes)
        if not can_take(process, fault):
            continue
        if fault is Fault.KILL and _kills_before(strikes, process, at_s) >= KILLS_PER_WINDOW:
            continue
        strikes.append(Strike(at_s, fault, process, lasts_s))


def _kills_before(strikes: Sequence[Strike], process: str, at_s: float) -> int:
    return sum(
        strike.fault is Fault.KILL and strike.process == process and at_s - strike.at_s < KILL_WINDOW_S
        for strike in strikes
    )
