"""How many sessions fit."""

from services.scheduler.domain.capacity import Share, claimable, free_slots, reserve, spread
from shared.domain.ids import ModelId, NodeId
from shared.domain.plan import Pipeline
from tests.fakes.scheduler_peers import make_node, make_plan

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def test_the_fullest_seat_decides() -> None:
    free = free_slots([make_node("a", slots=8, used=2), make_node("b", slots=4, used=1), make_node("c", slots=9)])
    assert free == {A: 6, B: 3, C: 9}
    assert claimable(make_plan(ModelId("m"), A, B), free) == 3
    assert claimable(make_plan(ModelId("m"), A, C), free) == 6


def test_a_node_with_two_stages_gives_a_slot_of_each() -> None:
    assert claimable(make_plan(ModelId("m"), A, B, A), {A: 5, B: 9}) == 5
    assert claimable(make_plan(ModelId("m"), A, B, C, num_lanes=2), {A: 5, B: 9, C: 4}) == 4


def test_a_seat_on_a_node_that_is_gone_or_overfull_takes_none() -> None:
    assert claimable(make_plan(ModelId("m"), A, B), {A: 5}) == 0
    assert free_slots([make_node("a", slots=2, used=3)]) == {A: 0}


def test_sessions_reserve_a_slot_at_each_seat() -> None:
    assert reserve(make_plan(ModelId("m"), A, B, A), 2, {A: 5, B: 9, C: 1}) == {A: 3, B: 7, C: 1}


ONE, OTHER = make_plan(ModelId("m"), A, B), make_plan(ModelId("m"), C, NodeId("d"))


def shares(*used: int, sessions: int, rates: tuple[float, float] = (1.0, 1.0)) -> tuple[Share, ...]:
    nodes = [make_node(name, slots=4, used=taken) for name, taken in zip("abcd", used, strict=True)]
    return spread((Pipeline(ONE, rates[0]), Pipeline(OTHER, rates[1])), sessions, nodes, free_slots(nodes))


def test_sessions_go_where_fewest_run() -> None:
    assert shares(0, 0, 0, 0, sessions=4) == (Share(ONE, 2), Share(OTHER, 2))
    assert shares(2, 1, 0, 0, sessions=2) == (Share(OTHER, 2),)
    assert shares(0, 0, 0, 0, sessions=1) == (Share(ONE, 1),)


def test_a_faster_pipeline_gets_more_sessions() -> None:
    assert shares(0, 0, 0, 0, sessions=4, rates=(1.0, 3.0)) == (Share(ONE, 1), Share(OTHER, 3))


def test_a_full_pipeline_gets_none_and_all_full_means_nobody_is_claimed() -> None:
    assert shares(4, 4, 3, 0, sessions=5) == (Share(OTHER, 1),)
    assert shares(4, 4, 4, 4, sessions=5) == ()
