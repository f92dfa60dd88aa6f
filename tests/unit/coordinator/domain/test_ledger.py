from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.coordinator.domain.ledger import Accuse, Commit, Dispute, Ledger, Release, Seal, Seated
from shared.domain.chain import RowChain, chain_start, id_bytes, record_bytes
from shared.domain.errors import ProtocolViolation
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.receipt import Assignment, Receipt, SignedReceipt, sign_assignment, sign_receipt
from shared.domain.signing import Signed, SigningKey, digest_of
from shared.domain.task import TokenRecord
from shared.domain.window_check import DOUBLE_SIGNED, SINK
from shared.domain.windows import Window, WindowSchedule

COORDINATOR = SigningKey(bytes(32))
KEYS = [SigningKey(bytes([index]) * 32) for index in range(1, 5)]
ROOT, CLASS, SAMPLER = ("1" * 64, "2" * 64, "3" * 64)
PROMPT = (7, 8)
RECORDS = [TokenRecord(token_id, 1.5, 0, 0.5) for token_id in (4, 5, 6)]
SCHEDULE = WindowSchedule(num_prompt=2, first_index=0, first_row=0, checkpoint_interval=2, window_checkpoints=1)


def seated(lane: int, key: SigningKey) -> Seated:
    """The only stage of a lane."""
    assignment = Assignment(
        v=1,
        task_id=TaskId("task"),
        choice=0,
        epoch=Epoch(3),
        lane=lane,
        stage=0,
        node_id=key.node_id,
        layer_start=0,
        layer_end=1,
        num_layers=1,
        model_root=ROOT,
        numerics_hash=CLASS,
        sampler_hash=SAMPLER,
        num_prompt=2,
        first_window=0,
        first_row=0,
        checkpoint_interval=2,
        window_checkpoints=1,
        profile="exact",
        row_class=0,
        prefix_digest=ROOT,
        sink_start=ROOT,
    )
    return Seated(assignment, sign_assignment(COORDINATOR, assignment), key.public_key)


def ledger(num_lanes: int = 2, *, quorum: int = 2, decodes: bool = False, replay: Sequence[int] = ()) -> Ledger:
    return Ledger(
        schedule=SCHEDULE,
        lanes=[[seated(lane, KEYS[lane])] for lane in range(num_lanes)],
        quorum=quorum,
        decodes=decodes,
        prompt_ids=PROMPT,
        committed=(),
        sink_start="",
        replay=replay,
    )


def receipts(lane: int, records: Sequence[TokenRecord], *row_ends: int) -> list[SignedReceipt]:
    """Of a lane that yields these records, for windows that end at these rows."""
    order = seated(lane, KEYS[lane])
    ids = RowChain(chain_start(ROOT, 0, numerics_hash=CLASS), row=0)
    ids.extend(map(id_bytes, (*PROMPT, *(record.token_id for record in records))))
    sink = RowChain(chain_start(ROOT, 1, numerics_hash=CLASS, sampler=SAMPLER), row=1)
    sink.extend(map(record_bytes, records))
    signed: list[SignedReceipt] = []
    row_start, previous = 0, digest_of(order.order)
    for window, row_end in enumerate(row_ends):
        body = Receipt(
            v=1,
            task_id=TaskId("task"),
            choice=0,
            epoch=Epoch(3),
            lane=lane,
            stage=0,
            window=window,
            layer_start=0,
            layer_end=1,
            row_start=row_start,
            row_end=row_end,
            model_root=ROOT,
            numerics_hash=CLASS,
            sampler_hash=SAMPLER,
            in_start=ids.at(row_start).hex(),
            in_digest=ids.at(row_end).hex(),
            out_start=sink.at(max(row_start, 1)).hex(),
            out_digest=sink.at(row_end).hex(),
            prev_receipt=previous,
            node_id=KEYS[lane].node_id,
        )
        signed.append(sign_receipt(KEYS[lane], body))
        row_start, previous = row_end, signed[-1].digest
    return signed


def post(to: Ledger, receipt: SignedReceipt, records: Sequence[TokenRecord] = ()) -> None:
    to.receipt(receipt.receipt.node_id, receipt.signed, records)


def test_a_window_is_released_when_lane_0_has_signed_and_committed_when_its_auditor_agrees() -> None:
    book = ledger()
    book.draft(RECORDS[:1])
    assert book.steps() == ()
    first = receipts(0, RECORDS, 2)[0]
    post(book, first)
    assert book.steps() == (Release(lane=1, window=0, row_start=0, ids=PROMPT),)
    second = receipts(1, RECORDS, 2)[0]
    post(book, second, RECORDS[:1])
    (step,) = book.steps()
    assert isinstance(step, Commit)
    assert (step.window, step.num_tokens, step.receipts) == (Window(0, 0, 2), 1, (first, second))
    assert step.sink == book.sink_committed == first.receipt.out_digest
    assert step.in_out == ((first.receipt.in_digest, first.receipt.out_digest),)
    post(book, second, RECORDS[:1])
    assert book.steps() == ()


def test_receipts_may_come_before_the_tokens_and_in_any_order() -> None:
    book = ledger()
    for receipt in reversed(receipts(0, RECORDS, 2, 4)):
        post(book, receipt)
    assert book.steps() == ()
    book.draft(RECORDS)
    assert [type(step) for step in book.steps()] == [Release, Release]


def test_the_last_window_is_sealed_once_in_every_lane() -> None:
    book = ledger()
    book.draft(RECORDS[:2])
    book.end(2)
    assert book.steps() == (Seal(0, 1, 3), Seal(1, 1, 3))
    book.end(2)
    assert book.steps() == ()


def test_an_answer_that_ends_with_a_window_needs_no_seal() -> None:
    book = ledger()
    book.draft(RECORDS)
    book.end(3)
    assert book.steps() == ()


def test_a_lane_without_auditors_is_committed_as_it_signs() -> None:
    book = ledger(1, quorum=0)
    book.draft(RECORDS)
    for receipt in receipts(0, RECORDS, 2, 4):
        post(book, receipt)
    assert [step.num_tokens for step in book.steps() if isinstance(step, Commit)] == [1, 3]


def test_free_lanes_commit_when_enough_agree_and_who_comes_later_is_still_found_out() -> None:
    book = ledger(3, decodes=True)
    book.draft(RECORDS[:1])
    post(book, receipts(0, RECORDS, 2)[0])
    post(book, receipts(1, RECORDS, 2)[0], RECORDS[:1])
    assert [type(step) for step in book.steps()] == [Commit]
    post(book, receipts(2, RECORDS[1:], 2)[0], RECORDS[1:2])
    (step,) = book.steps()
    assert isinstance(step, Dispute)
    assert step.stage == 0


def test_two_contents_for_one_slot_convict_and_nothing_is_committed_after() -> None:
    book = ledger()
    book.draft(RECORDS[:1])
    for records in (RECORDS, RECORDS[1:]):
        post(book, receipts(1, records, 2)[0], records[:1])
    post(book, receipts(0, RECORDS, 2)[0])
    (step,) = book.steps()
    assert isinstance(step, Accuse)
    assert (step.finding.rule, step.finding.node_id) == (DOUBLE_SIGNED, KEYS[1].node_id)


def test_a_lane_that_shows_other_records_than_it_signs_is_accused() -> None:
    book = ledger()
    book.draft(RECORDS[1:2])
    post(book, receipts(0, RECORDS, 2)[0])
    (step,) = book.steps()
    assert isinstance(step, Accuse)
    assert (step.finding.rule, step.finding.node_id) == (SINK, KEYS[0].node_id)


def test_a_replay_gives_lane_0_the_disputed_ids_first_and_ends_with_all_receipts() -> None:
    book = ledger(3, replay=PROMPT)
    assert book.steps() == (Release(lane=0, window=0, row_start=0, ids=PROMPT),)
    post(book, receipts(0, RECORDS, 2)[0], RECORDS[:1])
    assert book.steps() == (Release(1, 0, 0, PROMPT), Release(2, 0, 0, PROMPT))
    for lane in (1, 2):
        post(book, receipts(lane, RECORDS, 2)[0], RECORDS[:1])
    (step,) = book.steps()
    assert isinstance(step, Dispute)
    assert (step.stage, step.fault, step.ids, len(step.receipts)) == (None, None, PROMPT, 3)


@pytest.mark.parametrize(
    ("sender", "change", "words"),
    [
        (KEYS[3], {}, "no seat in this session"),
        (KEYS[0], {"epoch": 2}, "another epoch"),
        (KEYS[0], {"lane": 1}, "no seat at stage 0 of lane 1"),
        (KEYS[0], {"window": 5_000}, "window 5000"),
        (KEYS[0], {"node_id": "node-b"}, "another node"),
    ],
)
def test_what_is_no_receipt_of_a_seat_of_the_sender_is_refused(
    sender: SigningKey, change: dict[str, int | str], words: str
) -> None:
    body = replace(receipts(0, RECORDS, 2)[0].receipt, **change)  # type: ignore[arg-type]
    with pytest.raises(ProtocolViolation, match=words):
        ledger().receipt(sender.node_id, sign_receipt(KEYS[0], body).signed, ())


def test_a_signature_of_somebody_else_is_refused() -> None:
    good = receipts(0, RECORDS, 2)[0]
    with pytest.raises(ProtocolViolation, match="signature"):
        ledger().receipt(NodeId(KEYS[0].node_id), Signed(good.signed.text, bytes(64)), ())


def test_records_that_have_no_bytes_are_refused() -> None:
    receipt = receipts(1, RECORDS, 2)[0]
    with pytest.raises(ProtocolViolation, match="out of range"):
        post(ledger(), receipt, [TokenRecord(-1, 0.0, 0, 0.0)])


def test_a_stage_needs_as_many_nodes_as_have_to_agree() -> None:
    with pytest.raises(ValueError, match="3 different nodes"):
        ledger(2, quorum=3)
