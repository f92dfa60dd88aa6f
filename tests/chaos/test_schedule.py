"""The nemesis's schedule."""

from random import Random

from tests.chaos.schedule import KILL_WINDOW_S, KILLS_PER_WINDOW, Fault, draw_schedule

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
