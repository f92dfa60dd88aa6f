from services.coordinator.domain.refusals import WITHIN_S, Refusals
from tests.fakes.identities import N1, N2


def test_the_third_refusal_within_ten_minutes_is_one_too_many() -> None:
    refusals = Refusals()
    assert [refusals.add(N1, now_s=now_s) for now_s in (0.0, 1.0, WITHIN_S - 1)] == [False, False, True]
    assert not refusals.add(N1, now_s=WITHIN_S)


def test_refusals_long_ago_and_those_of_others_do_not_count() -> None:
    refusals = Refusals()
    said = [(N1, 0.0), (N1, 1.0), (N2, 2.0), (N1, WITHIN_S + 0.5), (N2, WITHIN_S + 0.6)]
    assert not any(refusals.add(node_id, now_s=now_s) for node_id, now_s in said)
