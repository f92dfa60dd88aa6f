"""What a plan will do, in round figures: every call of a stage takes what its node was found to take."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from services.partitioner.domain.hops import ON_A_NETWORK, ON_ONE_HOST
from services.partitioner.domain.prediction import predict, rates_together
from shared.domain.ids import ModelId, NodeId, PlanId
from shared.domain.measured import CallTime, Drift, Measured, Pace, PeerLink, StageTimes
from shared.domain.plan import Lane, LayerRange, NodeCapability, Partition, PartitionPlan
from shared.domain.plan_figures import Load, Prediction
from shared.domain.task import Verification
from tests.fakes.planning import node, planned_model

MODEL = planned_model((100,) * 6)
STAGES = (LayerRange(0, 2), LayerRange(2, 4), LayerRange(4, 6))
ROW_S, MORE_S, REPLAY_S = 0.010, 0.002, 0.004
"""A call with one row; each further row; each row that auditors replay, and of prompts."""
FREE = 1e9  # bytes per second of links


def tried(name: str, *, host: str = "", cores: int = 4, slower: float = 1.0) -> NodeCapability:
    """Knows all stages, and links that cost nothing."""

    def calls(*times: tuple[int, float]) -> tuple[CallTime, ...]:
        return tuple(CallTime(rows, seconds * slower, seconds * slower, 1) for rows, seconds in times)

    decode = calls((1, ROW_S), (16, ROW_S + 15 * MORE_S))
    chunks = calls((1, REPLAY_S), (64, 64 * REPLAY_S))
    stages = tuple(StageTimes("root", layers.start, layers.end, decode, chunks, chunks) for layers in STAGES)
    links = tuple(PeerLink(NodeId(peer), 0.0, FREE) for peer in "abcdef" if peer != name)
    pace = Pace(1e-4 * slower, 4e-5 * slower)
    return replace(node(name), host=host, cores=cores, measured=Measured(pace, links, stages))


def plan_of(*lanes: str) -> PartitionPlan:
    """A node for each stage."""
    return PartitionPlan(
        PlanId("p"),
        ModelId("m"),
        "root",
        "by_hand",
        tuple(
            Lane(index, tuple(Partition(stage, NodeId(name), STAGES[stage]) for stage, name in enumerate(names)))
            for index, names in enumerate(lanes)
        ),
    )


def predicted(plan: PartitionPlan, nodes: Sequence[NodeCapability], **load: Any) -> Prediction:  # fields of Load
    return predict(plan, MODEL, {each.node_id: each for each in nodes}, Load(**load))


def one_host(names: str, *, cores: int = 8) -> list[NodeCapability]:
    return [tried(name, host="box", cores=cores) for name in names]


def machines(names: str) -> list[NodeCapability]:
    return [tried(name, host=name) for name in names]


# --- rates


def test_one_sequence_goes_round_the_ring() -> None:
    told = predicted(plan_of("abc"), machines("abc"), sequences=1)
    assert told.token_s == pytest.approx(3 * ROW_S, rel=1e-3)
    assert told.tokens_per_s == pytest.approx(1 / (3 * ROW_S), rel=1e-3)
    assert told.verified_tokens_per_s == told.tokens_per_s


def test_on_one_host_a_batch_of_all_sequences_goes_round() -> None:
    told = predicted(plan_of("abc"), one_host("abc"), sequences=4)
    assert told.tokens_per_s == pytest.approx(4 / (3 * (ROW_S + 3 * MORE_S)), rel=1e-3)


def test_on_machines_of_their_own_stages_work_at_once() -> None:
    told = predicted(plan_of("abc"), machines("abc"), sequences=3)
    assert told.tokens_per_s == pytest.approx(1 / ROW_S, rel=1e-3)


def test_the_slowest_stage_sets_the_pace() -> None:
    nodes = [*machines("ab"), tried("c", host="c", slower=3.0)]
    assert predicted(plan_of("abc"), nodes, sequences=3).tokens_per_s == pytest.approx(1 / (3 * ROW_S), rel=1e-3)


def test_more_sequences_are_never_slower_together() -> None:
    for nodes in (one_host("abc"), machines("abc")):
        rates = [predicted(plan_of("abc"), nodes, sequences=count).tokens_per_s for count in (1, 2, 3, 6, 12, 48)]
        assert rates == sorted(rates)


def test_a_ring_of_one_sends_nothing() -> None:
    plan = plan_of("a")
    whole = replace(plan, lanes=(Lane(0, (Partition(0, NodeId("a"), LayerRange(0, 6)),)),))
    told = predicted(whole, machines("a"), sequences=1)
    assert told.network_bytes_per_token == 0
    assert told.tokens_per_s == pytest.approx(1 / (3 * ROW_S), rel=1e-3)  # its time is scaled from a shorter stage's


def test_what_a_row_takes_beside_the_calls_slows_the_ring_down() -> None:
    nodes = [
        replace(each, measured=replace(each.measured, by_now=Drift(1.0, 1.0, handling_s=0.002)))
        for each in machines("abc")
        if each.measured is not None
    ]
    told = predicted(plan_of("abc"), nodes, sequences=1)
    assert told.tokens_per_s == pytest.approx(1 / (3 * (ROW_S + 0.002)), rel=1e-3)


def test_a_ring_alone_on_its_host_has_all_cores_for_a_call() -> None:
    def on_four_threads(each: NodeCapability) -> NodeCapability:
        assert each.measured is not None
        quicker = tuple(
            replace(stage, decode=(CallTime(1, ROW_S / 2, ROW_S / 2, 4), *stage.decode))
            for stage in each.measured.stages
        )
        return replace(each, measured=replace(each.measured, stages=quicker))

    nodes = [on_four_threads(each) for each in one_host("abc", cores=4)]
    token_s = {
        verification: predicted(plan_of("abc", "bca"), nodes, sequences=1, verification=verification).token_s
        for verification in (Verification.AUDIT, Verification.QUORUM)
    }
    assert token_s == pytest.approx({Verification.AUDIT: 1.5 * ROW_S, Verification.QUORUM: 3 * ROW_S}, rel=1e-3)


# --- audits


def test_auditors_with_nodes_of_their_own_hold_nobody_up() -> None:
    told = predicted(plan_of("abc", "def"), machines("abcdef"), sequences=1)
    assert told.verified_tokens_per_s == pytest.approx(told.tokens_per_s)
    assert told.audit_s_per_token == pytest.approx(3 * REPLAY_S)


def test_a_batch_waits_at_nodes_that_audit() -> None:
    """A window of 40 rows takes a node 160 ms, a round 30 ms: each holds the batch up until half a round before its
    end."""
    told = predicted(plan_of("abc", "bca"), machines("abc"), sequences=1)
    round_s = 1 / told.verified_tokens_per_s
    assert round_s == pytest.approx(3 * ROW_S + 3 / 40 * (40 * REPLAY_S - round_s / 2), rel=1e-3)
    alone = predicted(plan_of("abc", "dea"), machines("abcde"), sequences=1)
    assert told.verified_tokens_per_s < alone.verified_tokens_per_s < told.tokens_per_s


def test_a_short_replay_seldom_holds_a_batch_up() -> None:
    long, short = (
        predicted(plan_of("abc", "bca"), machines("abc"), sequences=1, window_tokens=rows) for rows in (40, 1)
    )
    assert long.verified_tokens_per_s < short.verified_tokens_per_s < long.tokens_per_s


def test_a_host_computes_on_as_many_cores_as_it_has() -> None:
    """Sixteen sequences: the ring's calls take 40 ms each, and the window's share of each round 64 ms per stage."""
    plan = plan_of("abc", "def")
    few, many = (predicted(plan, one_host("abcdef", cores=cores), sequences=16) for cores in (2, 16))
    work_s = 3 * (ROW_S + 15 * MORE_S) + 3 * 16 * REPLAY_S
    assert 16 / few.verified_tokens_per_s == pytest.approx(work_s / 2, rel=1e-2)
    assert many.verified_tokens_per_s == pytest.approx(many.tokens_per_s)


def test_time_on_the_wire_is_no_work_of_the_hosts() -> None:
    """Two rings on the same hosts of one core: both wait for the wire most of the time."""

    def far(name: str) -> NodeCapability:
        links = tuple(PeerLink(NodeId(peer), 0.2, FREE) for peer in "abcdef" if peer != name)
        return replace(node(name), host="xyz"["abcdef".index(name) % 3], measured=Measured(Pace(1e-5, 4e-6), links))

    plans, nodes = (plan_of("abc"), plan_of("def")), {name: far(name) for name in map(NodeId, "abcdef")}
    assert rates_together(plans, MODEL, nodes) == rates_together(plans[:1], MODEL, nodes) * 2


def test_a_node_runs_one_call_at_a_time() -> None:
    nodes = machines("abc")
    told = predicted(plan_of("abc", "bca"), nodes, sequences=48)
    busy_s = 3 * (ROW_S + 15 * MORE_S) + 48 * REPLAY_S  # three batches of sixteen, and all the audits
    assert 48 / told.verified_tokens_per_s >= busy_s * 0.999


def test_a_quorum_decodes_in_every_lane() -> None:
    plan = plan_of("abc", "bca", "cab")
    vote = predicted(plan, machines("abc"), sequences=3, verification=Verification.QUORUM)
    audit = predicted(replace(plan, lanes=plan.lanes[:2]), machines("abc"), sequences=3)
    assert vote.verified_tokens_per_s <= 1 / (3 * ROW_S)
    assert vote.verified_tokens_per_s < audit.verified_tokens_per_s


def test_lanes_of_a_quorum_on_one_host_send_one_batch_round() -> None:
    """With a batch per stage each node would make nine calls for a token of every sequence; so it makes three."""
    plan = plan_of("abc", "bca", "cab")
    vote = predicted(plan, one_host("abc", cores=24), sequences=3, verification=Verification.QUORUM)
    assert 3 / (9 * ROW_S) < vote.verified_tokens_per_s < 3 / (3 * (ROW_S + 2 * MORE_S))


# --- first tokens


def test_tiles_follow_each_other_through_the_stages() -> None:
    told = predicted(plan_of("abc"), machines("abc"), prompt_tokens=128)
    assert told.first_token_s == pytest.approx((3 + 1) * 64 * REPLAY_S, rel=1e-2)


def test_prompts_of_other_sequences_come_between() -> None:
    """Of eight tiles the fifth is the first that ends a prompt."""
    told = predicted(plan_of("abc"), machines("abc"), prompt_tokens=128, sequences=4)
    tile_s = 64 * REPLAY_S
    assert told.first_token_s == pytest.approx(((3 + 4) * tile_s + (3 + 7) * tile_s) / 2, rel=1e-2)


def test_the_first_committed_token_waits_for_the_audit_of_its_prompt() -> None:
    plain = predicted(plan_of("abc"), machines("abc"), prompt_tokens=128)
    audited = predicted(plan_of("abc", "def"), machines("abcdef"), prompt_tokens=128)
    assert audited.first_token_s == pytest.approx(2 * plain.first_token_s)


def test_audits_of_prompts_compete_with_prompts_for_cores() -> None:
    few, many = (
        predicted(plan_of("abc", "def"), one_host("abcdef", cores=cores), prompt_tokens=128, sequences=16)
        for cores in (2, 32)
    )
    all_tiles_s = 16 * 2 * 2 * 3 * 64 * REPLAY_S
    assert few.answers_s > all_tiles_s / 2
    assert many.first_token_s < few.first_token_s / 2


def test_all_answers_take_their_prompts_their_tokens_and_the_last_audit() -> None:
    told = predicted(plan_of("abc"), machines("abc"), prompt_tokens=64, context_tokens=164)
    assert told.answers_s == pytest.approx(told.first_token_s + 99 / told.tokens_per_s)
    audited = predicted(plan_of("abc", "def"), machines("abcdef"), prompt_tokens=64, context_tokens=164)
    last_audit_s = 3 * 40 * REPLAY_S
    assert audited.answers_s == pytest.approx(audited.first_token_s + 99 / told.tokens_per_s + last_audit_s)


# --- what it rests on


def test_links_that_nobody_timed_are_assumed() -> None:
    nodes = [replace(each, measured=None) for each in machines("abc")]
    told = predicted(plan_of("abc"), nodes)
    assert [seat.hop_s for seat in told.seats] == pytest.approx(
        [ON_A_NETWORK.total_s(32)] * 2 + [ON_A_NETWORK.total_s(4)]
    )
    shared = predicted(plan_of("abc"), [replace(each, measured=None) for each in one_host("abc")])
    assert shared.seats[0].hop_s == pytest.approx(ON_ONE_HOST.total_s(32))


def test_a_prediction_says_what_it_rests_on() -> None:
    timed = machines("abc")
    by_pace = [replace(each, measured=replace(each.measured, stages=())) for each in timed if each.measured]
    for nodes, rests_on in (
        (timed, (True, True)),
        (by_pace, (True, False)),
        ([*by_pace[:2], node("c")], (False, False)),
    ):
        told = predicted(plan_of("abc"), nodes)
        assert (told.is_measured, told.is_timed) == rests_on


# --- several plans at once


def test_plans_on_machines_of_their_own_add_up_and_those_of_one_host_share_its_cores() -> None:
    plans = (plan_of("abc"), plan_of("def"))
    apart = {each.node_id: each for each in machines("abcdef")}
    assert rates_together(plans, MODEL, apart) == rates_together(plans[:1], MODEL, apart) * 2
    box = {each.node_id: each for each in one_host("abcdef", cores=1)}
    assert sum(rates_together(plans, MODEL, box)) == pytest.approx(rates_together(plans[:1], MODEL, box)[0], rel=1e-4)
