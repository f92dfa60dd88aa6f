from dataclasses import replace

from services.coordinator.domain.tail_lane import Differs
from services.coordinator.domain.tail_opinions import Opinions, heard, unheard
from shared.domain.ids import NodeId
from shared.domain.receipt import kept_receipt, sign_receipt
from tests.fakes.bundles import HonestRun
from tests.fakes.identities import KEYS, N1, N2, N3, N4, N5

RECEIPT = kept_receipt(HonestRun().tail().receipts[0]).receipt


def differs(node_id: NodeId, *, window: int = 3, stage: int = 1, digest: str = "11") -> Differs:
    """Against what N1 and N2 signed."""

    def signed(signer: NodeId, out_digest: str) -> object:
        said = replace(RECEIPT, node_id=signer, window=window, stage=stage, out_digest=out_digest * 32)
        return sign_receipt(KEYS[signer], said)

    return Differs(signed(node_id, digest), (signed(N1, "00"), signed(N2, "00")))  # type: ignore[arg-type]


def after(*results: Differs | None) -> Opinions:
    opinions = Opinions()
    for each in results:
        opinions = heard(opinions, each)
    return opinions


def test_an_answer_passes_by_the_first_audit_that_finds_it_right() -> None:
    assert after(None) == Opinions(has_passed=True)


def test_one_other_result_settles_nothing_unless_nobody_else_can_be_asked() -> None:
    assert not after(differs(N3)).is_settled
    assert unheard(after(differs(N3))).guilty == (N3, N1, N2)
    assert unheard(after()).guilty is None


def test_who_is_contradicted_by_a_fresh_node_too_is_alone() -> None:
    assert after(differs(N3), None) == Opinions(alone=frozenset({N3}), has_passed=True)


def test_two_fresh_nodes_that_say_the_same_are_believed() -> None:
    opinions = after(differs(N3), differs(N4))
    assert opinions.guilty == (N1, N2)
    assert opinions.alone == frozenset()
    assert unheard(opinions) == opinions


def test_three_results_are_nobodys_truth() -> None:
    assert after(differs(N3), differs(N4, digest="22")).guilty == (N3, N4, N1, N2)


def test_a_later_difference_contradicts_the_first_and_is_a_new_doubt() -> None:
    second = differs(N4, window=4)
    assert after(differs(N3), second) == Opinions(doubt=second, alone=frozenset({N3}))
    assert after(differs(N3), second, differs(N5, window=4)).guilty == (N1, N2)


def test_an_earlier_difference_is_contradicted_by_the_first_whose_doubt_remains() -> None:
    first = differs(N3)
    assert after(first, differs(N4, stage=0)) == Opinions(doubt=first, alone=frozenset({N4}))


def test_nothing_that_one_says_counts_once_it_is_alone() -> None:
    for window in (2, 4):
        opinions = after(differs(N3), differs(N3, window=window))
        assert opinions == Opinions(alone=frozenset({N3}))
        assert unheard(opinions).guilty is None
