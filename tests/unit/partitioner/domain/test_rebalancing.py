"""When new sessions change to other pipelines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.partitioner.domain.rebalancing import Advice, Reason, Rebalancing, Terms, reason_to_change

LEAST_S = 30.0


def terms(rule: Rebalancing) -> Terms:
    return Terms(rule=rule, threshold=0.1, least_s=LEAST_S)


BETTER, ABOUT_THE_SAME = Advice(worth_it=True, gain=0.3), Advice(worth_it=False, gain=0.05)


@pytest.mark.parametrize(
    ("rule", "advice", "in_use_s", "reason"),
    [
        (Rebalancing.ALWAYS, ABOUT_THE_SAME, 0.0, Reason.FRESH),
        (Rebalancing.ADVISED, ABOUT_THE_SAME, 2 * LEAST_S, None),
        (Rebalancing.ADVISED, BETTER, LEAST_S, Reason.GAIN),
        (Rebalancing.ADVISED, BETTER, LEAST_S - 1, None),
        (Rebalancing.ADVISED, None, 0.0, Reason.NODES),
        (Rebalancing.NEVER, BETTER, 2 * LEAST_S, None),
        (Rebalancing.NEVER, None, 0.0, Reason.NODES),
    ],
)
def test_what_the_configuration_allows_is_done(
    rule: Rebalancing, advice: Advice | None, in_use_s: float, reason: Reason | None
) -> None:
    assert reason_to_change(advice, in_use_s=in_use_s, terms=terms(rule)) is reason


@given(steps=st.lists(st.tuples(st.floats(0, 2 * LEAST_S), st.sampled_from((BETTER, ABOUT_THE_SAME))), max_size=50))
def test_changes_for_the_better_are_the_least_time_apart_whatever_is_advised(
    steps: list[tuple[float, Advice]],
) -> None:
    now_s, since_s = 0.0, 0.0
    for passed_s, advice in steps:
        now_s += passed_s
        if reason_to_change(advice, in_use_s=now_s - since_s, terms=terms(Rebalancing.ADVISED)) is not None:
            assert now_s - since_s >= LEAST_S
            assert advice.worth_it
            since_s = now_s
