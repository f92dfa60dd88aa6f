import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.partitioner.domain.placement import SeatRoom, rooms_of, sums_of
from services.partitioner.domain.strategies.one_stage import INFINITE, NO_WAY, Way, first_starts, one_stage
from shared.domain.plan import Objective
from tests.fakes.planning import node, planned_model

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12)
ROOMS = st.builds(
    lambda sizes, memory: rooms_of(sums_of(planned_model(sizes)), [node("a", memory=memory)])[0],
    SIZES,
    st.integers(0, 40),
)
SECONDS = st.floats(0, 30) | st.just(INFINITE)


def best_by_trying(room: SeatRoom, arrived: list[float], end: int, objective: Objective, limit_s: float) -> float:
    ways = [
        before + room.step_s(start, end) if objective is Objective.LATENCY else max(before, room.step_s(start, end))
        for start, before in enumerate(arrived[:end])
        if room.holds(start, end) and room.step_s(start, end) <= limit_s
    ]
    return min(ways, default=INFINITE)


@given(
    room=ROOMS,
    objective=st.sampled_from(Objective),
    limit_s=st.floats(0, 30) | st.just(INFINITE),
    data=st.data(),
)
def test_each_end_gets_the_best_of_all_starts(
    room: SeatRoom, objective: Objective, limit_s: float, data: st.DataObject
) -> None:
    room = replace(room, speed=float(room.step_sums[-1] or 1) / 40)  # paces near the arrivals
    num_layers = len(room.step_sums) - 1
    first = data.draw(st.integers(0, num_layers - 1))
    arrived = [INFINITE] * first + data.draw(
        st.lists(SECONDS, min_size=num_layers - first, max_size=num_layers - first)
    )
    done_s = [flops / room.speed for flops in room.step_sums]
    stage = one_stage(done_s, first_starts(room, limit_s), objective, first)
    for end, (seconds, start) in enumerate(map(stage.send, arrived[first:]), first + 1):
        assert math.isclose(seconds, best_by_trying(room, arrived, end, objective, limit_s), abs_tol=1e-9)
        if seconds < INFINITE:
            assert first <= start < end
            assert room.holds(start, end)
            assert room.step_s(start, end) <= limit_s


def test_where_the_row_never_is_no_stage_starts() -> None:
    (room,) = rooms_of(sums_of(planned_model([1, 1])), [node("a", memory=10)])
    stage = one_stage([0.0, 1.0, 2.0], first_starts(room), Objective.LATENCY)
    ways: list[Way] = [stage.send(INFINITE), stage.send(3.0)]
    assert ways == [NO_WAY, (4.0, 1)]
