"""What is kept of a node's measurements, and what plans go by."""

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.domain.profile import (
    LEAST_DRIFT,
    MAX_TRIALS,
    MIN_TRIALS,
    MOST_DRIFT,
    MOST_HANDLING_S,
    MOST_LIFT,
    NOISE,
    NodeProfile,
    after,
    assumed_speeds,
    drifted,
    forgotten,
    is_news,
    levelled,
    of_run,
    quickest,
    seen,
    wants_trial,
)
from shared.domain.ids import NodeId
from shared.domain.measured import (
    MAX_TIMED_STAGES,
    NOMINAL_DECODE_BYTES_PER_S,
    CallTime,
    Drift,
    Pace,
    PeerLink,
    StageTimes,
)

BASE = 2e-10
WITHIN = math.exp(NOISE * 0.45)
"""Two nodes, one faster and one slower by this than a third, are within noise of each other."""


def pace(slower: float = 1.0) -> Pace:
    return Pace(BASE * slower, BASE * slower / 3)


def noisy(name: str, *slower: float) -> NodeProfile:
    return NodeProfile(NodeId(name), tuple(map(pace, slower)))


def tried(name: str, slower: float) -> NodeProfile:
    """Often enough, with the same result each time."""
    return noisy(name, *[slower] * MIN_TRIALS)


def apart(*profiles: NodeProfile) -> tuple[NodeProfile, ...]:
    """Levelled, each on a host of its own."""
    return levelled(profiles, {profile.node_id: (profile.node_id, 2) for profile in profiles})


def together(*profiles: NodeProfile) -> tuple[NodeProfile, ...]:
    """Levelled, all on one host."""
    return levelled(profiles, {profile.node_id: ("host", 2) for profile in profiles})


def level_of(profile: NodeProfile) -> Pace | None:
    return profile.level


def levels(profiles: Iterable[NodeProfile]) -> list[object]:
    """By node id, as multiples of `BASE`."""
    return [pytest.approx(profile.level.decode_s_per_byte / BASE) for profile in profiles if profile.level]


def test_nodes_within_noise_of_each_other_are_equal() -> None:
    assert len(set(map(level_of, apart(tried("a", 1.0), tried("b", WITHIN), tried("c", 1 / WITHIN))))) == 1


def test_nodes_that_differ_by_more_are_not() -> None:
    assert levels(apart(tried("a", 1.0), tried("b", 2.0), tried("c", 4.0))) == [1.0, 2.0, 4.0]


def test_a_node_that_was_not_tried_often_enough_has_no_level() -> None:
    once = NodeProfile(NodeId("a"), (pace(),) * (MIN_TRIALS - 1))
    assert level_of(apart(once, tried("b", 1.0))[0]) is None


def test_a_measurement_that_moves_within_noise_changes_no_level() -> None:
    before = apart(tried("a", 1.0), tried("b", 1.0), tried("c", 2.0))
    moved = [
        replace(profile, trials=tried("", slower).trials)
        for profile, slower in zip(before, (1.1, 0.95, 2.2), strict=True)
    ]
    assert list(map(level_of, apart(*moved))) == list(map(level_of, before))


def test_what_all_nodes_have_in_common_changes_no_level() -> None:
    before = apart(tried("a", 1.0), tried("b", 1.0), tried("c", 2.0))
    slowed = [
        replace(profile, trials=tried("", 3.0 * by).trials) for profile, by in zip(before, (1, 1, 2), strict=True)
    ]
    assert apart(*slowed) == tuple(slowed)


def test_a_node_that_is_off_by_more_gets_the_level_of_those_it_is_like_now() -> None:
    a, b, c, d = apart(tried("a", 1.0), tried("b", 1.0), tried("c", 1.0), tried("d", 3.0))
    assert levels(apart(a, b, replace(c, trials=tried("c", 2.8).trials), d)) == [1.0, 1.0, 3.0, 3.0]


def test_a_node_that_joins_changes_no_other_level() -> None:
    before = apart(tried("b", 1.0), tried("c", 2.0))
    assert levels(apart(*before, tried("a", 1.1))) == [1.0, 1.0, 2.0]


def test_figures_are_levelled_apart() -> None:
    quick_at_prompts = NodeProfile(NodeId("b"), (Pace(BASE, BASE / 12),) * MIN_TRIALS)
    a, b = apart(tried("a", 1.0), quick_at_prompts)
    assert a.level is not None
    assert b.level == Pace(a.level.decode_s_per_byte, BASE / 12)


def test_equal_workers_of_one_host_are_equal_however_noisy_it_is() -> None:
    """Measured beside other load: 1.3 to 8.3 for workers that are the same."""
    profiles = together(noisy("a", 1.3, 8.3, 2.0), noisy("b", 4.0, 1.5, 3.0), noisy("c", 6.0, 7.0, 2.1))
    assert levels(profiles) == [1.3, 1.3, 1.3]


def test_a_worker_with_a_smaller_share_of_its_host_is_slower_than_the_others() -> None:
    profiles = together(noisy("a", 1.0, 1.1, 1.2), noisy("b", 2.0, 2.1, 2.0), noisy("c", 1.05, 1.3, 1.0))
    assert levels(profiles) == [1.0, 2.0, 1.0]


@given(st.lists(st.lists(st.floats(1.0, 8.0), min_size=1, max_size=MAX_TRIALS), min_size=2, max_size=6))
def test_levels_never_move_while_trials_of_nodes_stay_within_noise(noise: list[list[float]]) -> None:
    levels_seen = set()
    profiles = {NodeId(f"n{index}"): NodeProfile(NodeId(f"n{index}")) for index in range(len(noise))}
    for trial in range(MAX_TRIALS):
        for node_id, slower in zip(profiles, noise, strict=True):
            within = WITHIN ** (slower[trial % len(slower)] / 4 - 1)
            profiles[node_id] = after(profiles[node_id], pace(within), (), ())
            profiles |= {profile.node_id: profile for profile in apart(*profiles.values())}
            levels_seen |= {level_of(profile) for profile in profiles.values()} - {None}
    assert len(levels_seen) == 1


def test_a_node_that_seems_slower_than_others_like_it_is_tried_again_and_not_for_ever() -> None:
    others = quickest([tried("b", 1.0), noisy("c"), tried("d", 4.0)])
    assert wants_trial(noisy("a", 1.0), others)
    assert not wants_trial(tried("a", 9.0), quickest([noisy("c")]))
    assert not wants_trial(tried("a", 1.2), others)
    assert not wants_trial(tried("a", 0.3), others)
    assert wants_trial(tried("a", 2.0), others)
    assert not wants_trial(noisy("a", *[2.0] * MAX_TRIALS), others)


def test_the_latest_trials_count() -> None:
    profile = noisy("a")
    for slower in (1.0, *[3.0] * MAX_TRIALS):
        profile = after(profile, pace(slower), (), ())
    assert profile.trials == (pace(3.0),) * MAX_TRIALS


def test_a_node_that_was_not_tried_is_taken_for_one_like_the_others() -> None:
    nominal = 1 / NOMINAL_DECODE_BYTES_PER_S
    assert assumed_speeds([])(4) == 4.0
    like_others = assumed_speeds([(4, Pace(nominal / 2, nominal))])
    assert like_others(2) == pytest.approx(1.0)
    assert like_others(4_096) == pytest.approx(2.0)  # whatever it says it has


def test_of_another_run_only_the_level_and_the_ways_hold() -> None:
    (profile,) = apart(tried("a", 1.0))
    profile = after(of_run(profile, "boot", 2, today=7), pace(), STAGES[:1], [link(0.01)])
    profile = replace(profile, by_now=Drift(2.0, 2.0), slowness=5.0)
    assert of_run(profile, "boot", 2, today=7) is profile
    for boot_id, cores in (("another", 2), ("boot", 8)):
        found = of_run(profile, boot_id, cores, today=8)
        kept = replace(forgotten(profile), links=profile.links, boot_id=boot_id, cores=cores, last_day=8)
        assert found == kept
        assert apart(found) == (found,)  # plans go on by its level


def test_what_is_to_be_measured_anew_has_its_level_until_then() -> None:
    a, b = apart(tried("a", 1.0), tried("b", 1.0))
    anew = forgotten(a)
    assert levels(apart(anew, b)) == [1.0, 1.0]
    found = apart(replace(anew, trials=tried("a", 3.0).trials), b)
    assert levels(found) == [3.0, 1.0]
    assert not any(profile.is_anew for profile in found)


def test_a_lone_node_that_is_measured_anew_has_what_was_found_now() -> None:
    """It was tried under load before. What all nodes have in common would hide it."""
    (slow,) = apart(tried("a", 5.0))
    assert levels(apart(replace(slow, trials=tried("a", 1.0).trials))) == [5.0]
    assert levels(apart(replace(forgotten(slow), trials=tried("a", 1.0).trials))) == [1.0]


def test_a_node_that_is_measured_anew_keeps_its_level_within_noise() -> None:
    (profile,) = apart(tried("a", 1.0))
    assert levels(apart(replace(forgotten(profile), trials=tried("a", 1.2).trials))) == [1.0]


def test_small_drift_is_no_news_to_other_replicas() -> None:
    profile = replace(tried("a", 1.0), by_now=Drift(1.5, 1.0))
    assert not is_news(profile, replace(profile, by_now=Drift(1.8, 3.0)))
    assert is_news(profile, replace(profile, by_now=Drift(2.0, 1.0)))
    assert is_news(profile, after(profile, pace(), (), ()))


STAGES = [
    StageTimes(
        "root", index, index + 1, (CallTime(1, 0.1, 0.1, 1),), (CallTime(8, 0.1, 0.1, 1),), (CallTime(8, 0.1, 0.1, 1),)
    )
    for index in range(MAX_TIMED_STAGES + 2)
]


def test_the_stages_measured_last_are_kept() -> None:
    profile = after(tried("a", 1.0), None, STAGES[:-1], ())
    again = replace(STAGES[5], decode=(CallTime(1, 0.2, 0.2, 1),))
    profile = after(profile, None, [again, STAGES[-1]], ())
    assert len(profile.stages) == MAX_TIMED_STAGES
    assert profile.stages[-2:] == (again, STAGES[-1])
    assert STAGES[5] not in profile.stages


def link(rtt_s: float, bytes_per_s: float = 1e8, peer: str = "b") -> PeerLink:
    return PeerLink(NodeId(peer), rtt_s, bytes_per_s)


@pytest.mark.parametrize(
    ("told", "is_kept"),
    [
        (link(0.0108), True),
        (link(0.02), False),
        (link(0.01, 1.2e8), True),
        (link(0.01, 2e8), False),
    ],
)
def test_a_link_stays_as_it_was_until_it_is_off_by_more_than_noise(told: PeerLink, is_kept: bool) -> None:
    profile = after(tried("a", 1.0), None, (), [link(0.01)])
    assert after(profile, None, (), [told]).links == ((link(0.01),) if is_kept else (told,))


def test_links_within_a_host_differ_by_nothing() -> None:
    profile = after(tried("a", 1.0), None, (), [link(0.0003)])
    assert after(profile, None, (), [link(0.0007)]).links == (link(0.0003),)


def test_links_that_were_not_timed_again_stay() -> None:
    profile = after(tried("a", 1.0), None, (), [link(0.01), link(0.02, peer="c")])
    assert after(profile, None, (), [link(0.05)]).links == (link(0.02, peer="c"), link(0.05))


def test_drift_is_bounded() -> None:
    profile = apart(tried("a", 1.0))[0]
    assert drifted(profile, Drift(2.0, 1.2, 1.5, 1.1, 0.002)).by_now == Drift(2.0, 1.2, 1.5, 1.1, 0.002)
    assert drifted(profile, Drift(1e9, 1e9, 1e9, 1e9, 1e9)).by_now == Drift(
        MOST_DRIFT, MOST_DRIFT, MOST_DRIFT, MOST_DRIFT, MOST_HANDLING_S
    )
    assert drifted(profile, Drift(1e-9, 1e-9, 1e-9, 1e-9)).by_now == Drift(
        LEAST_DRIFT, LEAST_DRIFT, LEAST_DRIFT, LEAST_DRIFT
    )


def test_small_changes_of_drift_are_none() -> None:
    profile = apart(tried("a", 1.0))[0]
    assert drifted(profile, Drift(1.03, 1.03, handling_s=0.00005)) is profile
    assert drifted(profile, Drift(1.0, 1.0, 1.0)) is not profile  # such calls take what they took, not what others do
    seen_batches = replace(profile, by_now=Drift(1.0, 1.0, 1.0))
    assert drifted(seen_batches, Drift(1.0, 1.0)) == profile
    assert drifted(profile, Drift(1.0, 1.0, handling_s=0.0002)) is not profile


def test_of_a_node_without_calls_for_long_no_drift_is_known() -> None:
    profile = apart(tried("a", 1.0))[0]
    assert drifted(profile, None) is profile
    assert drifted(replace(profile, by_now=Drift(3.0, 1.0)), None) == profile


def test_a_node_of_its_own_host_that_has_become_slow_loses_its_level() -> None:
    a, b, c = apart(tried("a", 1.0), tried("b", 1.0), tried("c", 1.0))
    assert levels(apart(a, b, drifted(c, Drift(2.0, 1.0)))) == [1.0, 1.0, 2.0]
    assert levels(apart(a, b, drifted(c, Drift(0.6, 1.0)))) == [
        1.0,
        1.0,
        1.0,
    ]  # only that it is slower is news


def test_a_worker_of_a_shared_host_keeps_its_level_whatever_its_calls_compute() -> None:
    a, b, c = together(tried("a", 1.0), tried("b", 1.0), tried("c", 1.0))
    assert levels(together(a, b, drifted(c, Drift(3.0, 3.0)))) == [1.0, 1.0, 1.0]


def test_a_node_that_works_far_more_slowly_than_it_was_tried_is_taken_for_as_slow_as_it_works() -> None:
    nodes = apart(tried("a", 1.0), tried("b", 1.0), tried("c", 1.0))
    worked = {NodeId("a"): 6 * BASE, NodeId("b"): 7 * BASE, NodeId("c"): 70 * BASE}  # of another stage than was tried
    found = seen(nodes, worked)
    assert [profile.slowness for profile in found] == [1.0, 1.0, pytest.approx(10.0)]
    assert levels(apart(*found)) == [1.0, 1.0, 10.0]


def test_who_claims_to_be_fast_is_found_out_by_its_work() -> None:
    liar = noisy("c", *[0.01] * MIN_TRIALS)
    found = apart(*seen(apart(tried("a", 1.0), tried("b", 1.0), liar), dict.fromkeys(map(NodeId, "abc"), 6 * BASE)))
    assert levels(found) == [1.0, 1.0, 1.0]


def test_of_two_nodes_the_one_that_claims_too_much_is_found_out_as_well() -> None:
    liar = noisy("b", *[0.01] * MIN_TRIALS)
    found = apart(*seen(apart(tried("a", 1.0), liar), {NodeId("a"): 6 * BASE, NodeId("b"): 6 * BASE}))
    assert levels(found) == [1.0, 1.0]


def test_who_claims_too_much_of_decoding_alone_gains_no_more_than_prompts_show() -> None:
    honest = pace()
    liar = NodeProfile(NodeId("c"), (Pace(1e-16, honest.prefill_s_per_byte),) * MIN_TRIALS)
    found = apart(*seen(apart(tried("a", 1.0), tried("b", 1.0), liar), dict.fromkeys(map(NodeId, "abc"), 6 * BASE)))
    assert levels(found) == [1.0, 1.0, honest.prefill_s_per_byte / BASE]


def test_who_says_that_it_shares_a_machine_makes_no_other_look_much_faster() -> None:
    liar = NodeProfile(NodeId("b"), (Pace(1e-16, 1e-16), Pace(1e-3, 1e-3), Pace(1e-3, 1e-3)))
    a, _ = together(tried("a", 1.0), liar)
    assert levels([a]) == [1 / MOST_LIFT]


def test_who_has_to_wait_for_its_turn_now_and_then_is_not_slow_for_that() -> None:
    nodes = apart(tried("a", 1.0), tried("b", 1.0), tried("c", 1.0))
    assert seen(nodes, {NodeId("a"): BASE, NodeId("b"): BASE, NodeId("c"): 3 * BASE}) == nodes


def test_a_node_that_works_well_again_is_forgiven() -> None:
    nodes = apart(tried("a", 1.0), tried("b", 1.0), tried("c", 1.0))
    slow = seen(nodes, {NodeId("a"): BASE, NodeId("b"): BASE, NodeId("c"): 9 * BASE})
    assert seen(slow, {NodeId("a"): BASE, NodeId("b"): BASE, NodeId("c"): BASE}) == nodes
