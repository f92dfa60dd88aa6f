"""How long calls are taken to be: by what was timed, as near to the question as there is."""

from dataclasses import replace

import pytest

from services.partitioner.domain.call_costs import CallCosts
from shared.domain.ids import NodeId
from shared.domain.measured import STEADY, CallTime, Drift, Measured, Pace, StageTimes
from shared.domain.plan import LayerRange, NodeCapability
from tests.fakes.planning import node, planned_model

MODEL = planned_model((100,) * 6)
PACE = Pace(1e-4, 4e-5)  # 10 ms for a layer, 4 ms for each row of a prompt
FIRST, MIDDLE, LAST = LayerRange(0, 2), LayerRange(2, 4), LayerRange(4, 6)


def timed(layers: LayerRange, seconds: float, *, root: str = "root") -> StageTimes:
    calls = (
        CallTime(1, seconds, seconds, 2),
        CallTime(1, 2 * seconds, seconds, 1),
        CallTime(4, 4 * seconds, seconds, 1),
    )
    return StageTimes(root, layers.start, layers.end, calls, calls, calls)


def tried(name: str, *stages: StageTimes, slower: float = 1.0, by_now: Drift = STEADY) -> NodeCapability:
    pace = Pace(PACE.decode_s_per_byte * slower, PACE.prefill_s_per_byte * slower)
    return replace(node(name), measured=Measured(pace, stages=stages, by_now=by_now))


def decode_s(nodes: list[NodeCapability], name: str, layers: LayerRange, *, threads: int = 8) -> float:
    return CallCosts(MODEL, nodes).of(NodeId(name), layers).decode(1, threads).seconds


def test_a_stage_that_the_node_timed_takes_what_it_took() -> None:
    nodes = [tried("a", timed(FIRST, 0.01), timed(MIDDLE, 0.02))]
    assert decode_s(nodes, "a", MIDDLE) == pytest.approx(0.02)
    assert decode_s(nodes, "a", MIDDLE, threads=1) == pytest.approx(0.04)


def test_calls_that_have_become_slower_since_take_longer() -> None:
    """Each by as much, whatever it computes."""
    costs = CallCosts(MODEL, [tried("a", timed(FIRST, 0.01), by_now=Drift(1.5, 1.5))]).of(NodeId("a"), FIRST)
    assert [costs.decode(rows, 2).seconds for rows in (1, 4)] == pytest.approx([0.015, 0.045])


def test_calls_of_several_sequences_take_what_such_calls_took_of_late() -> None:
    by_now = Drift(wall=3.0, cpu=1.5, batch=2.0, chunk=1.2)
    costs = CallCosts(MODEL, [tried("a", timed(FIRST, 0.01), by_now=by_now)]).of(NodeId("a"), FIRST)
    assert [costs.decode(rows, 2).seconds for rows in (1, 4)] == pytest.approx([0.03, 0.08])
    assert costs.prompt(4, 2).seconds == pytest.approx(0.048)
    assert costs.decode(4, 2).cpu_s == pytest.approx(0.015)  # that they waited for cores keeps no core busy


def test_a_replay_takes_longer_by_what_calls_compute_longer() -> None:
    """However long calls beside replays waited of late."""
    by_now = Drift(wall=3.0, cpu=1.5, batch=2.0, chunk=4.0)
    costs = CallCosts(MODEL, [tried("a", timed(FIRST, 0.01), by_now=by_now)]).of(NodeId("a"), FIRST)
    assert costs.replay(4, 2).seconds == pytest.approx(0.06)


def test_no_call_is_taken_to_be_quicker_than_half_of_its_trial() -> None:
    assert decode_s([tried("a", timed(FIRST, 0.01), by_now=Drift(0.1, 0.1))], "a", FIRST) == pytest.approx(0.005)


def test_what_a_node_timed_itself_goes_before_what_equal_ones_did() -> None:
    nodes = [tried("a", timed(FIRST, 0.03)), tried("b", timed(FIRST, 0.01)), tried("c")]
    assert [decode_s(nodes, name, FIRST) for name in "abc"] == pytest.approx([0.03, 0.01, 0.01])


def test_of_equal_nodes_none_alone_says_what_a_stage_takes_on_another() -> None:
    honest = [tried(name, timed(FIRST, seconds)) for name, seconds in (("a", 0.011), ("b", 0.010), ("c", 0.012))]
    liar = tried("d", timed(FIRST, 1e-7))
    assert decode_s([*honest, liar, tried("e")], "e", FIRST) == pytest.approx(0.010)


def test_what_another_node_timed_is_scaled_by_the_pace_of_both() -> None:
    nodes = [tried("a", timed(FIRST, 0.01)), tried("b", slower=3.0)]
    assert decode_s(nodes, "b", FIRST) == pytest.approx(0.03)


def test_a_stage_of_another_length_is_scaled_by_its_work() -> None:
    nodes = [tried("a", timed(MIDDLE, 0.01), timed(LAST, 0.5))]
    assert decode_s(nodes, "a", LayerRange(1, 4)) == pytest.approx(0.015)


def test_ends_of_the_model_are_like_ends() -> None:
    nodes = [tried("a", timed(LayerRange(2, 5), 0.01), timed(LayerRange(3, 6), 0.09))]
    assert decode_s(nodes, "a", LAST) == pytest.approx(0.06)


def test_times_of_another_model_say_nothing() -> None:
    costs = CallCosts(MODEL, [tried("a", timed(FIRST, 0.5, root="other"))]).of(NodeId("a"), FIRST)
    assert not costs.is_timed
    assert costs.decode(1, 8).seconds == pytest.approx(200 * 1e-4)


def test_by_pace_alone_a_first_row_costs_more_than_those_that_follow() -> None:
    costs = CallCosts(MODEL, [tried("a")]).of(NodeId("a"), MIDDLE)
    assert costs.decode(4, 8).seconds == pytest.approx(200 * (1e-4 + 3 * 4e-5))
    assert costs.prompt(64, 8).seconds == pytest.approx(64 * 200 * 4e-5)


def test_the_head_counts_where_every_row_yields_a_token() -> None:
    model = planned_model((100,) * 6, n_vocab=100)  # the head is as much work as sixteen layers
    costs = CallCosts(model, [tried("a")]).of(NodeId("a"), LAST)
    assert costs.prompt(8, 1).seconds == pytest.approx(8 * 200 * 4e-5)
    assert costs.replay(8, 1).seconds == pytest.approx(8 * 1_800 * 4e-5)
