from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.coordinator.domain.lane_book import Seated
from services.coordinator.domain.ledger import Accuse, Release, Seal
from services.coordinator.domain.tail_lane import Alike, Answer, Differs, Parted, TailLane, fresh_seats, read_answer
from shared.domain.errors import ProtocolViolation
from shared.domain.ids import NodeId
from shared.domain.numerics import ANY_ROWS, Profile
from shared.domain.plan import LayerRange, NodeCapability
from shared.domain.receipt import Receipt, SignedReceipt, kept_receipt, read_assignment, sign_receipt
from shared.domain.tail_audit import SeatedNode
from shared.domain.task import TokenRecord
from shared.domain.window_check import CONTRADICTION, DOUBLE_SIGNED, SINK, SOURCE
from shared.domain.windows import WindowSchedule
from tests.fakes.bundles import CHECKPOINT, HonestRun
from tests.fakes.identities import COORDINATOR_KEY, KEYS, N1, N2, N3, N4, N5, capability

RUN = HonestRun()
WRONG = "5a" * 32


def lane_of(run: HonestRun = RUN) -> TailLane:
    seats = [
        Seated(order := read_assignment(signed, COORDINATOR_KEY.public_key), signed, KEYS[order.node_id].public_key)
        for signed in run.tail().orders
    ]
    schedule = WindowSchedule(len(run.prompt_ids), 0, 0, CHECKPOINT, 2)
    return TailLane(read_answer(run.prompt_ids, run.entries()), seats, schedule=schedule)


def signed_by_all(run: HonestRun = RUN) -> list[SignedReceipt]:
    return [kept_receipt(signed) for signed in run.tail().receipts]


def records_of(receipt: Receipt, run: HonestRun = RUN) -> Sequence[TokenRecord]:
    if receipt.layer_end < run.cuts[-1]:
        return ()
    start, end = (max(0, row + 1 - len(run.prompt_ids)) for row in (receipt.row_start, receipt.row_end))
    return run.records[start:end]


def post(lane: TailLane, *receipts: SignedReceipt) -> None:
    for each in receipts:
        lane.receipt(each.receipt.node_id, each.signed, records_of(each.receipt))


def resigned(receipt: SignedReceipt, **changes: object) -> SignedReceipt:
    said = replace(receipt.receipt, **changes)  # type: ignore[arg-type]  # a test names fields that exist
    return sign_receipt(KEYS[said.node_id], said)


def outcome(lane: TailLane) -> object:
    return lane.steps()[-1]


@pytest.mark.parametrize("epochs", [(4,), (2, 2)])
def test_an_honest_lane_is_alike_to_the_end(epochs: tuple[int, ...]) -> None:
    run = HonestRun(epochs=epochs)
    lane = lane_of(run)
    for each in signed_by_all(run):
        post(lane, each)
    alike = [step for step in lane.steps() if isinstance(step, Alike)]
    assert [step.is_last for step in alike] == [False] * (len(alike) - 1) + [True]
    assert alike[-1].window.row_end == run.entries()[-1].row_end
    assert lane.receipts == tuple(signed_by_all(run))


def test_ids_are_given_two_windows_ahead_and_a_short_last_window_is_announced() -> None:
    lane, receipts = lane_of(), signed_by_all()
    given = list(lane.steps())
    assert given == [Release(2, 0, 0, RUN.ids[:3]), Release(2, 1, 3, RUN.ids[3:5])]
    for each in receipts:
        post(lane, each)
        given += [step for step in lane.steps() if isinstance(step, Release | Seal)]
    released = [step for step in given if isinstance(step, Release)]
    row_end = RUN.entries()[-1].row_end
    assert tuple(token_id for step in released for token_id in step.ids) == RUN.ids[:row_end]
    last = WindowSchedule(3, 0, 0, CHECKPOINT, 2).window_of(row_end - 1)
    seals = [step for step in given if isinstance(step, Seal)]
    assert seals == ([Seal(2, last.index, row_end)] if last.row_end > row_end else [])


@pytest.mark.parametrize("stage", [0, 1])
def test_a_seat_that_makes_other_rows_of_the_agreed_ones_stands_against_all_signers(stage: int) -> None:
    lane, receipts = lane_of(), signed_by_all()
    other = resigned(receipts[stage], out_digest=WRONG)
    post(lane, *receipts[:stage], other, *receipts[stage + 1 : 3])
    differs = outcome(lane)
    assert isinstance(differs, Differs)
    assert differs.said == other
    assert set(differs.nodes) == {RUN.node(lane, stage).node_id for lane in (0, 1, 2)}
    post(lane, *receipts[3:6])
    assert lane.steps() == ()


def test_another_token_differs() -> None:
    lane, other = lane_of(), HonestRun(token_ids=(99, *RUN.token_ids[1:]))
    mine = signed_by_all()[:2]
    last = signed_by_all(other)[2]
    post(lane, *mine)
    lane.receipt(last.receipt.node_id, last.signed, other.records[:1])
    differs = outcome(lane)
    assert isinstance(differs, Differs)
    assert differs.said.receipt.stage == 2


def test_beyond_a_faulty_link_nobody_is_judged() -> None:
    lane, receipts = lane_of(), signed_by_all()
    post(lane, receipts[0], resigned(receipts[1], in_digest=WRONG, out_digest=WRONG), receipts[2])
    assert isinstance(outcome(lane), Parted)


@pytest.mark.parametrize(
    ("place", "changes", "rule"),
    [
        (0, {"in_digest": WRONG}, SOURCE),
        (2, {"out_digest": WRONG}, SINK),
        (1, {"prev_receipt": WRONG}, CONTRADICTION),
        (1, {"row_end": 2}, CONTRADICTION),
    ],
)
def test_an_auditor_is_convicted_by_the_rules_of_any_lane(place: int, changes: dict[str, object], rule: int) -> None:
    lane, receipts = lane_of(), signed_by_all()[:3]
    receipts[place] = resigned(receipts[place], **changes)
    post(lane, *receipts)
    accuse = outcome(lane)
    assert isinstance(accuse, Accuse)
    assert (accuse.finding.rule, accuse.finding.node_id) == (rule, receipts[place].receipt.node_id)


def test_two_contents_for_one_slot_convict() -> None:
    lane, receipts = lane_of(), signed_by_all()
    post(lane, receipts[0], receipts[0])
    post(lane, resigned(receipts[0], out_digest=WRONG))
    accuse = outcome(lane)
    assert isinstance(accuse, Accuse)
    assert accuse.finding.rule == DOUBLE_SIGNED


def test_windows_that_were_not_given_are_refused() -> None:
    lane, receipts = lane_of(), signed_by_all()
    with pytest.raises(ProtocolViolation):
        post(lane, receipts[6])
    with pytest.raises(ProtocolViolation):
        lane.receipt(N4, receipts[0].signed, ())


class TestFreshSeats:
    cut = tuple(LayerRange(start, start + 2) for start in (0, 2, 4))

    def answer(self, *seated: tuple[NodeId, int, int]) -> Answer:
        nodes = frozenset(SeatedNode(*each) for each in seated)
        return Answer((1, 2), 10, "", Profile.EXACT, ANY_ROWS, (), nodes, self.cut, (), {})

    def seats(
        self, answer: Answer, *nodes: NodeId, unfit: frozenset[tuple[NodeId, int]] = frozenset()
    ) -> list[NodeId] | None:
        def can_hold(node: NodeCapability, layers: LayerRange) -> bool:
            return (node.node_id, layers.start) not in unfit

        found = fresh_seats(answer, [capability(node) for node in nodes], can_hold)
        return None if found is None else [seat.node_id for seat in found]

    def test_with_three_nodes_it_is_the_rotation_that_is_left(self) -> None:
        lanes = ((N1, N2, N3), (N3, N1, N2))
        answer = self.answer(*((node, 2 * s, 2 * s + 2) for lane in lanes for s, node in enumerate(lane)))
        assert self.seats(answer, N1, N2, N3) == [N2, N3, N1]
        assert self.seats(answer, N1, N2) is None

    def test_a_node_that_had_a_part_of_the_layers_in_another_cut_is_not_fresh(self) -> None:
        assert self.seats(self.answer((N1, 1, 3)), N1, N2, N3) in ([N2, N3, N1], [N3, N2, N1])

    def test_nodes_are_taken_as_they_come_where_that_leaves_some_for_all(self) -> None:
        found = self.seats(self.answer(), N5, N4, N3, N2)
        assert found is not None
        assert set(found) == {N5, N4, N3}
        unfit = frozenset({(N2, 2), (N2, 4)})
        assert self.seats(self.answer(), N2, N3, N4, unfit=unfit) in ([N2, N3, N4], [N2, N4, N3])
        assert self.seats(self.answer((N3, 0, 2), (N4, 0, 2)), N3, N4, N5) in ([N5, N3, N4], [N5, N4, N3])

    def test_room_class_and_memory_are_asked_for(self) -> None:
        assert fresh_seats(self.answer(), [capability(n, context_tokens=10) for n in (N1, N2, N3)], always) is None
        assert fresh_seats(self.answer(), [capability(n, numerics_class="b") for n in (N1, N2, N3)], always) is None
        unfit = frozenset((node, 0) for node in (N1, N2, N3))
        assert self.seats(self.answer(), N1, N2, N3, unfit=unfit) is None


def always(node: NodeCapability, layers: LayerRange) -> bool:
    return True
