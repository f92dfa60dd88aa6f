"""The nemesis's schedule."""

from random import Random

import pytest

from services.cli.domain.cluster import Kind, seats
from tests.chaos.play import REPLICAS, S_PER_REAL_TASK, S_PER_SYNTHETIC_TASK, WORKERS, struck_by_kind
from tests.chaos.schedule import KILL_WINDOW_S, KILLS_PER_WINDOW, Fault, can_take, draw_schedule

PROCESSES = ("api", "redis", "worker-0")


def test_the_same_seed_gives_the_same_schedule() -> None:
    drawn = [draw_schedule(Random("7 strikes"), PROCESSES, duration_s=300, every_s=2) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != draw_schedule(Random("8 strikes"), PROCESSES, duration_s=300, every_s=2)


def test_everything_is_over_by_the_end_and_every_fault_is_played() -> None:
    strikes = draw_schedule(Random(1), PROCESSES, duration_s=300, every_s=2)
    assert max(strike.at_s + strike.lasts_s for strike in strikes) <= 300
    assert {strike.fault for strike in strikes} == set(Fault)
    assert {strike.process for strike in strikes} == set(PROCESSES)


def test_no_process_is_killed_so_often_that_the_supervisor_gives_it_up() -> None:
    strikes = draw_schedule(Random(1), PROCESSES, duration_s=2_000, every_s=1)
    kills = [strike for strike in strikes if strike.fault is Fault.KILL]
    for kill in kills:
        near = [one for one in kills if one.process == kill.process and 0 <= one.at_s - kill.at_s < KILL_WINDOW_S]
        assert len(near) <= KILLS_PER_WINDOW


@pytest.mark.parametrize("duration_s", [2_000 * S_PER_SYNTHETIC_TASK, 200 * S_PER_REAL_TASK])
def test_in_long_plays_every_kind_of_process_meets_every_fault(duration_s: float) -> None:
    names = [seat.name for seat in seats(0, WORKERS, with_redis=True, replicas=REPLICAS)]
    strikes = draw_schedule(Random("1 strikes"), names, duration_s=duration_s, every_s=2)
    struck = struck_by_kind([(strike.at_s, strike) for strike in strikes])
    for kind in Kind:
        assert struck[kind].keys() == {fault for fault in Fault if can_take(kind, fault)}


def test_redis_calls_nobody_so_it_is_never_muted() -> None:
    strikes = draw_schedule(Random(1), PROCESSES, duration_s=2_000, every_s=1)
    muted = {strike.process for strike in strikes if strike.fault is Fault.MUTE}
    assert muted == {"api", "worker-0"}
