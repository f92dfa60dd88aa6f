"""What a node may say of itself, and what is read from it."""

import math
from dataclasses import replace

import pytest

from shared.domain.errors import InvalidInput
from shared.domain.ids import NodeId
from shared.domain.measured import (
    MAX_CALL_TIMES,
    MAX_LINKS,
    MAX_TIMED_STAGES,
    CallTime,
    Drift,
    Measured,
    Pace,
    PeerLink,
    StageTimes,
    check_measured,
    time_of,
)

ME = NodeId("me")
ROWS = (CallTime(1, 0.002, 0.002, 1), CallTime(4, 0.005, 0.005, 1), CallTime(16, 0.017, 0.017, 1))
STAGE = StageTimes("root", 0, 2, ROWS, ROWS, ROWS)
LINK = PeerLink(NodeId("other"), 0.001, 1e8)
MEASURED = Measured(Pace(1e-10, 4e-11), (LINK,), (STAGE,))


def test_times_between_two_sizes_lie_on_a_line() -> None:
    assert time_of(ROWS, 1) == ROWS[0]
    assert time_of(ROWS, 4) == ROWS[1]
    assert time_of(ROWS, 10).seconds == pytest.approx(0.011)


def test_times_beyond_the_largest_size_go_on_as_before() -> None:
    assert time_of(ROWS, 64).seconds == pytest.approx(0.065)


def test_times_below_the_smallest_size_are_no_less_than_half_of_their_share() -> None:
    chunks = (CallTime(8, 0.008, 0.008, 1), CallTime(32, 0.032, 0.032, 1))
    assert time_of(chunks, 2).seconds == pytest.approx(0.002)
    steep = (CallTime(8, 0.008, 0.008, 1), CallTime(32, 0.1, 0.1, 1))
    assert time_of(steep, 2).seconds == pytest.approx(0.001)


def test_with_one_size_known_every_row_costs_the_same() -> None:
    found = time_of((CallTime(8, 0.008, 0.008, 2),), 32)
    assert (found.rows, found.threads) == (32, 2)
    assert found.seconds == pytest.approx(0.032)


def test_of_several_numbers_of_threads_the_quickest_that_is_allowed_counts() -> None:
    calls = (CallTime(1, 0.004, 0.004, 1), CallTime(1, 0.003, 0.003, 4), CallTime(1, 0.0035, 0.0035, 2))
    assert time_of(calls, 1).threads == 4
    assert time_of(calls, 1, most_threads=2) == CallTime(1, 0.0035, 0.0035, 2)
    assert time_of(calls[1:2], 1, most_threads=1).threads == 4  # there is no other figure


def test_what_a_node_may_say_passes() -> None:
    check_measured(ME, MEASURED)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (replace(MEASURED, pace=Pace(math.nan, 4e-11)), "pace.decode_s_per_byte"),
        (replace(MEASURED, pace=Pace(1e-10, 0.0)), "pace.prefill_s_per_byte"),
        (replace(MEASURED, by_now=Drift(0.0, 1.0)), "by_now.wall"),
        (replace(MEASURED, by_now=Drift(1.0, math.inf)), "by_now.cpu"),
        (replace(MEASURED, by_now=Drift(1.0, 1.0, batch=math.nan)), "by_now.batch"),
        (replace(MEASURED, by_now=Drift(1.0, 1.0, chunk=1e9)), "by_now.chunk"),
        (replace(MEASURED, by_now=Drift(1.0, 1.0, handling_s=-1.0)), "by_now.handling_s"),
        (replace(MEASURED, links=(LINK, LINK)), "links"),
        (replace(MEASURED, links=(replace(LINK, peer=ME),)), "links"),
        (replace(MEASURED, links=(replace(LINK, rtt_s=-1.0),)), "links.rtt_s"),
        (replace(MEASURED, links=(replace(LINK, bytes_per_s=0.0),)), "links.bytes_per_s"),
        (replace(MEASURED, links=tuple(PeerLink(NodeId(str(i)), 0.1, 1e6) for i in range(MAX_LINKS + 1))), "links"),
        (replace(MEASURED, stages=(STAGE, STAGE)), "stages"),
        (replace(MEASURED, stages=(replace(STAGE, start=2),)), "stages"),
        (replace(MEASURED, stages=(replace(STAGE, model_root="r" * 129),)), "stages"),
        (replace(MEASURED, stages=tuple(replace(STAGE, end=i + 1) for i in range(MAX_TIMED_STAGES + 1))), "stages"),
        (replace(MEASURED, stages=(replace(STAGE, decode=()),)), "stages"),
        (replace(MEASURED, stages=(replace(STAGE, prompt=ROWS[:1] * (MAX_CALL_TIMES + 1)),)), "stages"),
        (replace(MEASURED, stages=(replace(STAGE, replay=ROWS[::-1]),)), "stages"),
        (replace(MEASURED, stages=(replace(STAGE, decode=(CallTime(0, 0.1, 0.1, 1),)),)), "stages.rows"),
        (replace(MEASURED, stages=(replace(STAGE, decode=(CallTime(1, 0.0, 0.0, 1),)),)), "stages.seconds"),
        (replace(MEASURED, stages=(replace(STAGE, decode=(CallTime(1, 0.1, 0.0, 1),)),)), "stages.cpu_s"),
        (replace(MEASURED, stages=(replace(STAGE, decode=(CallTime(1, 0.1, 0.1, 0),)),)), "stages.threads"),
    ],
)
def test_figures_that_no_node_has_are_refused_by_name(wrong: Measured, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_measured(ME, wrong)
    assert refused.value.param == f"measured.{field}"
