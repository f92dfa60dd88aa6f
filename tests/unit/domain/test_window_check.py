from dataclasses import replace

import pytest

from shared.domain.errors import InvalidInput
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.numerics import ANY_ROWS, Profile
from shared.domain.receipt import RECEIPT, Assignment, Receipt, SignedReceipt, read_receipt, sign_receipt
from shared.domain.signing import SigningKey
from shared.domain.window_check import (
    CONTRADICTION,
    LINK,
    SINK,
    SOURCE,
    check_lane,
    check_receipt,
    compare_lanes,
    merkle_root,
)
from shared.domain.windows import Window

KEYS = [SigningKey(bytes([index]) * 32) for index in range(1, 4)]
A, B, C, D = (letter * 64 for letter in "abcd")
CHAINS = [A, B, C, D]


def receipt(stage: int, *, lane: int = 0, key: SigningKey | None = None, **changes: int | str) -> SignedReceipt:
    """Of one lane of three stages; boundary values A, B, C, D after the window."""
    key = key or KEYS[stage]
    body = Receipt(
        v=1,
        task_id=TaskId("task"),
        choice=0,
        epoch=Epoch(1),
        lane=lane,
        stage=stage,
        window=1,
        layer_start=stage,
        layer_end=stage + 1,
        row_start=4,
        row_end=8,
        model_root=A,
        numerics_hash=A,
        sampler_hash=A,
        in_start=A,
        in_digest=CHAINS[stage],
        out_start=A,
        out_digest=CHAINS[stage + 1],
        prev_receipt=A,
        node_id=key.node_id,
    )
    return sign_receipt(key, replace(body, **changes))  # type: ignore[arg-type]


def lane_of(*, lane: int = 0) -> list[SignedReceipt]:
    return [receipt(stage, lane=lane) for stage in range(3)]


def test_a_lane_in_order_has_no_finding() -> None:
    assert check_lane(lane_of(), source=(A, A), sink=(A, D)) is None


def test_a_stage_0_that_ran_other_ids_than_it_was_given_is_guilty() -> None:
    found = check_lane(lane_of(), source=(A, B), sink=(A, D))
    assert found is not None
    assert (found.rule, found.node_id, found.stage) == (SOURCE, KEYS[0].node_id, 0)


def test_ids_that_came_around_the_ring_accuse_nobody() -> None:
    found = check_lane(lane_of(), source=(A, B), sink=(A, D), given=False)
    assert found is not None
    assert (found.rule, found.node_id) == (LINK, None)
    assert [each.receipt.stage for each in found.receipts] == [2, 0]


def test_a_last_stage_that_sent_other_records_is_guilty_even_beside_a_link_fault() -> None:
    receipts = lane_of()
    receipts[1] = receipt(1, in_digest=D)
    found = check_lane(receipts, source=(A, A), sink=(A, C))
    assert found is not None
    assert (found.rule, found.node_id) == (SINK, KEYS[2].node_id)


def test_a_stage_fed_beyond_the_end_is_not_guilty() -> None:
    receipts = [receipt(0), receipt(1, row_end=9, in_digest=D), receipt(2, row_end=9, in_digest=C, out_digest=A)]
    found = check_lane(receipts, source=(A, A), sink=(A, D), row_end=8)
    assert found is not None
    assert found.rule == LINK
    assert [each.receipt.stage for each in found.receipts] == [0, 1]


def test_a_node_that_disagrees_with_itself_is_guilty() -> None:
    receipts = [receipt(0), receipt(1, key=KEYS[0], in_digest=D), receipt(2)]
    found = check_lane(receipts, source=(A, A), sink=(A, D))
    assert found is not None
    assert (found.rule, found.node_id) == (CONTRADICTION, KEYS[0].node_id)


def test_the_disputed_stage_is_the_lowest_that_made_different_rows_of_equal_ones() -> None:
    other = lane_of(lane=1)
    assert compare_lanes([lane_of(), other]) is None
    other[1] = receipt(1, lane=1, out_digest=D)
    other[2] = receipt(2, lane=1, in_digest=D, out_digest=A)
    assert compare_lanes([lane_of(), other]) == 1


def test_a_merkle_root_depends_on_every_digest_and_their_order() -> None:
    roots = {merkle_root(list(digests)) for digests in ((A,), (A, B), (B, A), (A, B, C), (A, B, C, C), (A, B, C, D))}
    assert len(roots) == 6
    with pytest.raises(ValueError, match="no digests"):
        merkle_root([])


@pytest.mark.parametrize(
    "change",
    [{"lane": [1]}, {"in_start": {"a": A}}, {"lane": "1"}, {"in_start": 5}, {"lane": -1}, {"in_start": A[1:]}],
    ids=str,
)
def test_a_receipt_with_a_value_of_another_type_is_refused(change: dict[str, object]) -> None:
    body = {field: getattr(receipt(0).receipt, field) for field in Receipt.__slots__}
    signed = KEYS[0].sign(RECEIPT, body | change)
    with pytest.raises(InvalidInput, match=next(iter(change))):
        read_receipt(signed, KEYS[0].public_key)


def test_a_receipt_that_names_another_node_is_refused() -> None:
    with pytest.raises(InvalidInput, match="another node"):
        read_receipt(receipt(0, node_id=NodeId("node-b")).signed, KEYS[0].public_key)


def test_a_last_stage_that_goes_on_from_other_records_than_it_was_ordered_to_contradicts_itself() -> None:
    order = Assignment(
        v=1,
        task_id=TaskId("task"),
        choice=0,
        profile=Profile.EXACT.value,
        row_class=ANY_ROWS,
        epoch=Epoch(1),
        lane=0,
        stage=2,
        node_id=KEYS[2].node_id,
        layer_start=2,
        layer_end=3,
        num_layers=3,
        model_root=A,
        numerics_hash=A,
        sampler_hash=A,
        num_prompt=2,
        first_window=1,
        first_row=4,
        checkpoint_interval=4,
        window_checkpoints=1,
        prefix_digest=A,
        sink_start=A,
    )

    def found(order: Assignment) -> int | None:
        said = check_receipt(
            receipt(2), assignment=order, order_digest=A, previous=None, window=Window(1, row_start=4, row_end=8)
        )
        return None if said is None else said.rule

    assert found(order) is None
    assert found(replace(order, sink_start=B)) == CONTRADICTION
