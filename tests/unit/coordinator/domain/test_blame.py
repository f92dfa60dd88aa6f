from dataclasses import replace

import pytest

from services.coordinator.domain.blame import PairMarks, convict, is_settled, pair_of, same_window_again, undecided
from services.coordinator.domain.faults import Fault, FaultKind, suspect_of
from shared.domain.ids import Epoch, TaskId
from shared.domain.passage import Passage
from shared.domain.receipt import Receipt, SignedReceipt, sign_receipt
from shared.domain.signing import SigningKey
from shared.domain.window_check import CONTRADICTION, LINK, OUTVOTED, RELAY, SOURCE, finding
from shared.domain.windows import Window, WindowSchedule

KEYS = [SigningKey(bytes([index]) * 32) for index in range(1, 6)]
A, B, C, D = (letter * 64 for letter in "abcd")


def said(node: int, out: str, *, below: str = A, epoch: int = 1, lane: int = 0, layer_end: int = 2) -> SignedReceipt:
    """A node's word on what stage 1 made of the rows below."""
    body = Receipt(
        v=1,
        task_id=TaskId("task"),
        choice=0,
        epoch=Epoch(epoch),
        lane=lane,
        stage=1,
        window=1,
        layer_start=1,
        layer_end=layer_end,
        row_start=4,
        row_end=8,
        model_root=A,
        numerics_hash=A,
        sampler_hash=A,
        in_start=D,
        in_digest=below,
        out_start=D,
        out_digest=out,
        prev_receipt=A,
        node_id=KEYS[node].node_id,
    )
    return sign_receipt(KEYS[node], replace(body))


def test_one_word_against_another_convicts_nobody() -> None:
    assert convict((), [[said(0, B)], [said(1, C)]], 2) == ()


def test_the_result_with_f_plus_1_signers_wins() -> None:
    first = [said(0, B), said(1, C, lane=1)]
    second = [[said(0, B, epoch=2)], [said(1, C, epoch=2, lane=1)], [said(2, B, epoch=2, lane=2)]]
    (found,) = convict(first, second, 2)
    assert (found.rule, found.node_id) == (OUTVOTED, KEYS[1].node_id)


def test_who_lied_in_the_first_try_only_contradicts_itself() -> None:
    first = [said(0, B), said(1, C, lane=1)]
    second = [[said(0, B, epoch=2)], [said(1, B, epoch=2, lane=1)], [said(2, B, epoch=2, lane=2)]]
    (found,) = convict(first, second, 2)
    assert (found.rule, found.node_id) == (CONTRADICTION, KEYS[1].node_id)
    assert len(found.receipts) == 2


def test_who_lied_and_left_is_convicted_by_those_who_agree() -> None:
    first = [said(0, B), said(1, C, lane=1)]
    (found,) = convict(first, [[said(0, B, epoch=2)], [said(2, B, epoch=2, lane=1)]], 2)
    assert (found.rule, found.node_id) == (OUTVOTED, KEYS[1].node_id)


def test_a_node_is_judged_only_on_its_own_input() -> None:
    assert convict((), [[said(0, B)], [said(1, B)], [said(2, C, below=D)]], 2) == ()


def test_two_results_with_enough_signers_each_convict_nobody() -> None:
    assert convict((), [[said(0, B)], [said(1, B)], [said(2, C)], [said(3, C)]], 2) == ()


def test_one_node_has_one_vote() -> None:
    assert convict([said(0, B)], [[said(0, B, epoch=2)], [said(1, C, epoch=2)]], 2) == ()


def test_marks_with_three_different_partners_put_a_node_in_quarantine() -> None:
    marks = PairMarks()
    faults = [finding(LINK, said(0, B), said(partner, C), detail="") for partner in (1, 1, 2, 3)]
    assert pair_of(faults[0]) == (KEYS[0].node_id, KEYS[1].node_id)
    assert [marks.add(*pair_of(fault)) for fault in faults] == [(), (), (), (KEYS[0].node_id,)]


def test_partners_that_are_gone_do_not_count() -> None:
    marks = PairMarks()
    for partner in (1, 2, 3, 4):
        assert marks.add(KEYS[0].node_id, KEYS[partner].node_id) == ()
        marks.forget(KEYS[partner].node_id)


def test_only_a_link_fault_is_about_a_pair() -> None:
    with pytest.raises(ValueError, match="one node"):
        pair_of(finding(SOURCE, said(0, B), detail=""))


def test_a_disputed_window_is_computed_again_as_it_was_ended() -> None:
    schedule = WindowSchedule(num_prompt=5, first_index=0, first_row=0, checkpoint_interval=10, window_checkpoints=4)
    assert same_window_again(schedule, schedule.window(0)).window(0) == Window(0, 0, 5)
    ended = schedule.window(2).closed_at(22)
    assert same_window_again(schedule, ended).window(2) == ended == Window(2, 15, 22)


def test_a_trusted_referee_that_differs_from_both_sides_convicts_both() -> None:
    first = [said(0, B), said(1, C, lane=1)]
    second = [[said(0, B, epoch=2)], [said(1, C, epoch=2, lane=1)], [said(2, D, epoch=2, lane=2)]]
    found = convict(first, second, 2, trusted={KEYS[2].node_id})
    assert {(each.rule, each.node_id) for each in found} == {
        (OUTVOTED, KEYS[0].node_id),
        (OUTVOTED, KEYS[1].node_id),
    }


def test_three_results_without_a_trusted_referee_convict_nobody_and_all_three_are_under_doubt() -> None:
    first = [said(0, B), said(1, C, lane=1)]
    second = [[said(0, B, epoch=2)], [said(1, C, epoch=2, lane=1)], [said(2, D, epoch=2, lane=2)]]
    assert convict(first, second, 2) == ()
    again = [receipt for lane in second for receipt in lane]
    assert set(undecided(first, again)) == {KEYS[index].node_id for index in range(3)}
    assert undecided([said(0, B), said(1, B, lane=1)], again[:1]) == ()


def test_what_was_not_asked_again_tells_against_nobody() -> None:
    first = [said(0, B), said(1, C, lane=1)]
    of_another_cut = [said(2, D, epoch=2, layer_end=3), said(3, D, epoch=2, lane=1, layer_end=3)]
    assert undecided(first, of_another_cut) == ()


def test_a_dispute_with_a_node_that_was_proven_guilty_since_is_settled() -> None:
    first = [said(0, B), said(1, C, lane=1)]
    assert is_settled(first, None, {KEYS[1].node_id})
    assert not is_settled(first, None, frozenset())
    assert not is_settled(first, None, {KEYS[2].node_id})
    three = [*first, said(2, D, lane=2)]
    assert not is_settled(three, None, {KEYS[1].node_id})
    assert is_settled(three, None, {KEYS[1].node_id, KEYS[2].node_id})


def test_a_dispute_between_neighbours_is_settled_by_the_guilt_of_one_of_them() -> None:
    fault = finding(LINK, said(0, B), said(1, C), detail="")
    assert is_settled([], fault, {KEYS[0].node_id})
    assert is_settled([], fault, {KEYS[1].node_id})
    assert not is_settled([], fault, {KEYS[2].node_id})


def passage(start: str, end: str, *, row_end: int = 8) -> Passage:
    """What passed in epoch 2 from node 0 (stage 1 of lane 0) to node 1."""
    return Passage(
        v=1,
        task_id=TaskId("task"),
        choice=0,
        epoch=Epoch(2),
        lane=0,
        stage=2,
        boundary=2,
        model_root=A,
        numerics_hash=A,
        sender=KEYS[0].node_id,
        receiver=KEYS[1].node_id,
        row_start=min(4, row_end),
        row_end=row_end,
        start_digest=start,
        end_digest=end,
    )


def heard(below: str) -> SignedReceipt:
    """The receiver's word on what it got in epoch 2."""
    body = replace(said(1, C, below=below, epoch=2).receipt, stage=2)
    return sign_receipt(KEYS[1], body)


def test_who_signs_another_chain_than_passed_is_convicted() -> None:
    sent, got = said(0, B, epoch=2), heard(B)
    assert convict((), [[sent, got]], 2, passage(D, B)) == ()
    (found,) = convict((), [[said(0, C, epoch=2), got]], 2, passage(D, B))
    assert (found.rule, found.node_id) == (RELAY, KEYS[0].node_id)
    (found,) = convict((), [[sent, heard(A)]], 2, passage(D, B))
    assert (found.rule, found.node_id) == (RELAY, KEYS[1].node_id)
    (found,) = convict((), [[sent]], 2, passage(C, B))  # other rows before the window
    assert found.node_id == KEYS[0].node_id


def test_rows_kept_back_convict_nobody_but_who_signs_for_them() -> None:
    assert convict((), [[said(0, B, epoch=2)]], 2, passage(D, C, row_end=6)) == ()
    assert convict((), [[said(0, B, epoch=2)]], 2, passage(A, A, row_end=0)) == ()
    (found,) = convict((), [[said(0, B, epoch=2), heard(B)]], 2, passage(D, C, row_end=6))
    assert found.node_id == KEYS[1].node_id


def test_what_passed_says_nothing_of_other_epochs_and_seats() -> None:
    assert convict((), [[said(0, C)]], 2, passage(D, B)) == ()
    assert convict((), [[said(2, C, epoch=2)]], 2, passage(D, B)) == ()


def test_of_two_that_fall_out_the_one_that_does_so_again_is_suspect() -> None:
    one, other, third = (KEYS[index].node_id for index in range(3))
    first = Fault(FaultKind.LINK, "", between=(one, other))
    assert suspect_of((), one, other) == other
    assert suspect_of([first], one, third) == one
    assert suspect_of([first], third, one) == one
