"""A suite that can only pass proves nothing: with any one check left out, the trials of `test_faults` have to fail."""

from collections.abc import Callable, Sequence

import pytest

from services.coordinator.domain import blame, lane_book, ledger
from services.coordinator.domain.lane_book import LaneBook
from services.coordinator.domain.ledger import Ledger, Release
from services.coordinator.domain.witness import Witness
from shared.domain import passage, receipt, window_check
from shared.domain.ids import NodeId
from shared.domain.passage import Passage
from shared.domain.receipt import SignedReceipt
from shared.domain.windows import Window
from tests.simulation import trial
from tests.simulation.trial import Trial, Violation, draw_case

MAX_TRIALS = 6_000
RARE = (3243, 4843, 6002, 6699)
"""Seeds of answers that end where a lane that runs freely has run on: few do."""

Plant = Callable[[pytest.MonkeyPatch], None]


def replaced(target: object, name: str, value: object) -> Plant:
    return lambda monkeypatch: monkeypatch.setattr(target, name, value)


def nothing_found(*_args: object, **_kwargs: object) -> None:
    return None


def nothing_wrong(*_args: object) -> str:
    return ""


def always(*_args: object) -> bool:
    return True


def never(*_args: object) -> bool:
    return False


def released_after_one_receipt(self: Ledger, index: int) -> bool:
    executor, window = self._lanes[0], self._ended(index)
    is_drafted = not self._is_after_end(index) and executor.sink.row >= window.row_end
    if is_drafted and executor.of_window(index) and not self._decodes and not self._is_frozen:
        self._steps.append(Release(1, index, window.row_start, self._ids_of(window)))
    return ORIGINAL_MAY_SEAL(self, index)


def committed_without_a_lane(self: Ledger, index: int, alike: Sequence[LaneBook]) -> bool:
    return self._lanes[0] in alike


def lanes_in_place_of_nodes(lanes: Sequence[Sequence[SignedReceipt]]) -> int:
    return len(lanes)


def last_stage_only(one: Sequence[SignedReceipt], other: Sequence[SignedReceipt]) -> bool:
    return one[-1].receipt.out_digest == other[-1].receipt.out_digest


def ended_window_only(self: Ledger, index: int) -> tuple[Window, ...]:
    return (self._ended(index),)


def judged_after_a_link_fault(self: Ledger, lane: LaneBook) -> bool:
    return not self._is_frozen and lane.is_complete(lane.next_window)


def sink_beyond_the_end(last: SignedReceipt, sink: tuple[str, str], row_end: int) -> window_check.Finding | None:
    said = last.receipt
    if (said.out_start, said.out_digest) == sink:
        return None
    return window_check.finding(window_check.SINK, last, detail="")


def outvoted_by_the_first(
    answers: blame._Answers, quorum: int, trusted: frozenset[NodeId]
) -> list[window_check.Finding]:
    right = next(iter(answers))
    return [
        window_check.finding(window_check.OUTVOTED, signed, detail="")
        for above, signers in answers.items()
        for signed in signers.values()
        if above != right
    ]


def counted_from_the_window_on(self: Witness, first: int, rows: Sequence[bytes]) -> None:
    if first >= self._window.row_start:
        self._chain.extend(rows)


def never_the_end(passage: Passage) -> dict[int, str]:
    return {passage.row_start: passage.start_digest}


ORIGINAL_MAY_SEAL = Ledger._may_seal
ORIGINAL_OUTVOTED = blame._outvoted

BUGS: dict[str, Plant] = {
    "sink not checked": replaced(window_check, "check_sink", nothing_found),
    "sink checked beyond the end": replaced(window_check, "check_sink", sink_beyond_the_end),
    "records beyond the window not noticed": replaced(
        LaneBook, "_sink_end", lambda self, window: lane_book._value(self.sink, window.row_end)
    ),
    "source not checked": replaced(window_check, "check_source", nothing_found),
    "ring not checked": replaced(window_check, "check_ring", nothing_found),
    "links not checked": replaced(window_check, "check_link", nothing_found),
    "seat and order not checked": replaced(window_check, "_not_of_seat", nothing_wrong),
    "bounds of the window not checked": replaced(window_check, "_not_of_window", nothing_wrong),
    "prev_receipt not checked": replaced(window_check, "_not_after", nothing_wrong),
    "start values not checked": replaced(window_check, "_false_start", nothing_wrong),
    "signature not checked": replaced(receipt, "is_signed_by", always),
    "epoch not checked": replaced(ledger, "is_of_epoch", always),
    "double signing not noticed": replaced(ledger, "is_other", never),
    "released before lane 0 has signed": replaced(Ledger, "_may_seal", released_after_one_receipt),
    "committed with a lane missing": replaced(Ledger, "_may_commit", committed_without_a_lane),
    "quorum not counted": replaced(ledger, "num_signers", lambda lanes: 1_000),
    "lanes counted in place of nodes": replaced(ledger, "num_signers", lanes_in_place_of_nodes),
    "only the last stage compared": replaced(ledger, "is_same_work", last_stage_only),
    "nothing compared": replaced(ledger, "is_same_work", always),
    "whole windows after the end refused": replaced(Ledger, "_windows_of", ended_window_only),
    "windows after a link fault judged": replaced(Ledger, "_may_judge", judged_after_a_link_fault),
    "nobody outvoted": replaced(blame, "_outvoted", lambda answers, quorum, trusted: ()),
    "outvoted by whoever is first": replaced(blame, "_outvoted", outvoted_by_the_first),
    "no link carried by the coordinator": replaced(trial, "hop_of", nothing_found),
    "sender not held against what passed": replaced(passage, "_sent_other", never),
    "receiver not held against what passed": replaced(passage, "_claims_other", never),
    "only the start of the window held against what passed": replaced(passage, "_passed", never_the_end),
    "what passed before the window not counted": replaced(Witness, "take", counted_from_the_window_on),
    "one vote taken for a quorum": replaced(
        blame, "_outvoted", lambda answers, _, trusted: ORIGINAL_OUTVOTED(answers, 1, trusted)
    ),
}


def run_trials() -> None:
    for seed in (*RARE, *range(MAX_TRIALS)):
        Trial(draw_case(seed)).run()


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    with pytest.raises(Violation):
        run_trials()
