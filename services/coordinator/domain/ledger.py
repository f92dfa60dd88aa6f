"""The windows of one session in one epoch: what each seat signed, and what follows from it. No I/O, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.coordinator.domain.lane_book import LaneBook, Seated
from shared.domain.chain import RowChain, chain_start, id_bytes, record_bytes, record_chain
from shared.domain.errors import InvalidInput, ProtocolViolation
from shared.domain.ids import NodeId
from shared.domain.receipt import Assignment, Receipt, SignedReceipt, read_receipt
from shared.domain.signing import Signed
from shared.domain.task import TokenRecord
from shared.domain.window_check import DOUBLE_SIGNED, LINK, Finding, compare_lanes, finding
from shared.domain.windows import Window, WindowSchedule

MAX_WINDOWS_HELD = 1_024
"""Receipts further ahead of the last commit than this are refused: memory stays bounded."""

__all__ = ["Accuse", "Commit", "Dispute", "Ledger", "Release", "Seal", "Seated", "Step"]


@dataclass(frozen=True, slots=True)
class Seal:
    """Tell every seat of the lane that the window ends at `row_end`."""

    lane: int
    window: int
    row_end: int


@dataclass(frozen=True, slots=True)
class Release:
    """Give stage 0 of the audit lane the ids at rows row_start, row_start + 1, …"""

    lane: int
    window: int
    row_start: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """Enough nodes signed the same. Mode none: lane 0's receipts are complete and in order, and no more."""

    window: Window
    """As it was ended."""
    num_tokens: int
    """Of the answer, after it."""
    sink: str
    """Chain of the sample records after it, hex."""
    in_out: tuple[tuple[str, str], ...]
    """Per stage."""
    receipts: tuple[SignedReceipt, ...]
    """Of the lanes that agreed, by lane, then stage."""


@dataclass(frozen=True, slots=True)
class Accuse:
    """A guilty node, by its own receipts. Nothing is released or committed in this epoch any more."""

    finding: Finding


@dataclass(frozen=True, slots=True)
class Dispute:
    """Lanes parted, or neighbours: `blame.convict` may say who is guilty now, else a replay shows it. Also how a replay
    ends, with all its receipts, even if all lanes agree. Nothing is released or committed in this epoch any more."""

    window: Window
    """The one after the last commit, as it was ended."""
    stage: int | None
    """The lowest that made different rows of equal ones; None: no such stage (a link fault, or free lanes)."""
    receipts: tuple[SignedReceipt, ...]
    """All of the window so far, by lane, then stage."""
    fault: Finding | None
    """The first link fault, if there is one."""
    ids: tuple[int, ...]
    """At the window's rows, in lane 0: what a replay has to run."""


Step = Seal | Release | Commit | Accuse | Dispute


class Ledger:
    def __init__(
        self,
        *,
        schedule: WindowSchedule,
        lanes: Sequence[Sequence[Seated]],
        quorum: int,
        decodes: bool,
        prompt_ids: Sequence[int],
        committed: Sequence[TokenRecord],
        sink_start: str,
        replay: Sequence[int] = (),
    ) -> None:
        """`lanes`: seats in order of stages. quorum: f+1; 0 in mode none. decodes: every lane does, not only lane 0.
        sink_start: hex, the chain of sample records after the `committed` ones; empty: worked out from them.
        replay: the ids of a disputed window, the first of `schedule`: no lane decodes, each is given these ids, lane 0
        first; it ends with a `Dispute`. A try that decoded again might never come to the input that was lied about.

        Raises `ValueError` when a stage has fewer nodes than the quorum.
        """
        if any(len({seat.assignment.node_id for seat in seats}) < quorum for seats in zip(*lanes, strict=True)):
            raise ValueError(f"every stage needs {quorum} different nodes")
        self._schedule, self._quorum, self._decodes = schedule, quorum, decodes
        self._ids = [*prompt_ids, *(record.token_id for record in committed)]
        if replay:
            self._ids[schedule.first_row :] = replay
        self._replays = bool(replay)
        self._num_prompt = len(prompt_ids)
        sink_row = max(schedule.first_row, self._num_prompt - 1)
        order = lanes[0][-1].assignment
        begin = chain_start(
            order.model_root, order.num_layers, numerics_hash=order.numerics_hash, sampler=order.sampler_hash
        )
        if sink_start:
            begin = bytes.fromhex(sink_start)
        elif committed:
            begin = record_chain(begin, row=self._num_prompt - 1, records=committed).at(sink_row)
        released = self._ids_chain(order.model_root, order.numerics_hash)
        self._lanes = [
            LaneBook(
                seats,
                first_window=schedule.first_index,
                ids=self._ids_chain(order.model_root, order.numerics_hash) if decodes and lane > 0 else released,
                sink=RowChain(begin, row=sink_row),
                posts_records=lane > 0 or self._replays,
                runs_own_ids=decodes and lane > 0,
            )
            for lane, seats in enumerate(lanes)
        ]
        self._sealed = schedule.first_index
        """The window that lane 0 has to sign next …"""
        self._due = schedule.first_index
        """… and the one to commit next."""
        self._row_limit: int | None = None
        """Where the last window ends; None: not known yet."""
        self._sink_committed = begin
        self._accused: set[NodeId] = set()
        self._is_frozen = False
        self._steps: list[Step] = []
        if replay:
            self._row_limit = schedule.window(schedule.first_index).row_end
            self._steps.append(Release(0, schedule.first_index, schedule.first_row, tuple(replay)))

    @property
    def sink_committed(self) -> str:
        """Chain of the sample records after the last commit, hex."""
        return self._sink_committed.hex()

    def draft(self, records: Sequence[TokenRecord]) -> None:
        """Lane 0's new tokens, in order, already accepted: all of them, also those after a stop string."""
        self._ids += (record.token_id for record in records)
        self._lanes[0].ids.extend(id_bytes(record.token_id) for record in records)
        self._lanes[0].sink.extend(map(record_bytes, records))
        self._advance()

    def end(self, num_tokens: int) -> None:
        """The ring has stopped after so many tokens of the answer (end token or limit; not stop strings)."""
        row_end = self._num_prompt + num_tokens - 1
        if self._row_limit is not None or row_end <= self._schedule.first_row:
            return
        self._row_limit = row_end
        last = self._schedule.window_of(row_end - 1)
        if row_end < last.row_end:
            self._steps += (Seal(lane, last.index, row_end) for lane in range(len(self._lanes)))
        self._advance()

    def receipt(self, sender: NodeId, signed: Signed, records: Sequence[TokenRecord]) -> None:
        """A receipt as posted; `records`: those that came with it. Idempotent.

        Raises `ProtocolViolation` for what is no receipt of a seat of the sender in this epoch.
        """
        receipt = self._read(sender, signed)
        said = receipt.receipt
        if self._is_after_end(said.window):
            return  # whoever made this seat run on is not known
        lane = self._lanes[said.lane]
        known = lane.receipt(said.window, said.stage)
        if known is not None:
            if is_other(known, receipt):
                self._accuse(finding(DOUBLE_SIGNED, known, receipt, detail="two contents for one slot"))
            return
        lane.keep(receipt, records)
        found = lane.check_seat(said.stage, self._windows_of)
        if found is not None:
            self._accuse(found)
        self._advance()

    def steps(self) -> tuple[Step, ...]:
        """What is to be done now; each is given once."""
        steps, self._steps = tuple(self._steps), []
        return steps

    # --- reading

    def _ids_chain(self, model_root: str, numerics_hash: str) -> RowChain:
        chain = RowChain(chain_start(model_root, 0, numerics_hash=numerics_hash), row=0)
        chain.extend(map(id_bytes, self._ids))
        return chain

    def _read(self, sender: NodeId, signed: Signed) -> SignedReceipt:
        receipt = read_from(sender, signed, [seat for lane in self._lanes for seat in lane.seats])
        said = receipt.receipt
        if not self._schedule.first_index <= said.window <= self._due + MAX_WINDOWS_HELD:
            raise ProtocolViolation(f"window {said.window} is not one of those signed now")
        return receipt

    # --- windows

    def _windows_of(self, index: int) -> tuple[Window, ...]:
        """The window as it may be signed: to its end, or as ended early. Who signs on is fed by somebody."""
        window = self._schedule.window(index)
        ended = self._ended(index)
        return (window,) if ended == window else (window, ended)

    def _ended(self, index: int) -> Window:
        window = self._schedule.window(index)
        return window if self._row_limit is None else window.closed_at(self._row_limit)

    def _is_after_end(self, index: int) -> bool:
        return self._row_limit is not None and self._schedule.window(index).row_start >= self._row_limit

    # --- steps

    def _advance(self) -> None:
        """All that has become possible."""
        while self._may_seal(self._sealed):
            self._seal(self._sealed)
        for lane in self._lanes[1:]:
            while lane.next_window < self._sealed and self._may_judge(lane):
                self._judge_lane(lane)
        while not self._is_frozen and self._due < self._sealed and self._judge_window(self._due):
            pass

    def _may_seal(self, index: int) -> bool:
        """Lane 0 has signed at every stage, and its tokens are here."""
        if self._is_after_end(index) or not self._may_judge(self._lanes[0]):
            return False
        return self._replays or self._lanes[0].sink.row >= self._ended(index).row_end

    def _may_judge(self, lane: LaneBook) -> bool:
        """Windows after a link fault are not judged: honest seats run on with what they got."""
        return not self._is_frozen and not lane.faults and lane.is_complete(lane.next_window)

    def _seal(self, index: int) -> None:
        self._judge_lane(self._lanes[0])
        self._sealed += 1
        window = self._ended(index)
        if self._is_frozen or self._decodes:
            return
        ids = self._ids_of(window)
        self._steps += (Release(lane, index, window.row_start, ids) for lane in range(1, len(self._lanes)))

    def _ids_of(self, window: Window) -> tuple[int, ...]:
        return tuple(self._ids[window.row_start : window.row_end])

    def _judge_lane(self, lane: LaneBook) -> None:
        """A lane by itself. Link faults accuse nobody: the other lanes may show who was wrong."""
        window = self._ended(lane.next_window)
        is_given = window.index == 0 or self._replays or (lane is not self._lanes[0] and not self._decodes)
        found = lane.judge(window, given=is_given)
        if found is not None and found.rule != LINK:
            self._accuse(found)
        elif window.index < self._due and not self._is_alike(lane, window.index):
            self._dispute(window)  # too late to hinder the commit, not to be found out

    def _judge_window(self, index: int) -> bool:
        """All lanes against each other: True when the window is committed."""
        judged = [lane for lane in self._lanes if lane.next_window > index]
        alike = [lane for lane in judged if self._is_alike(lane, index)]
        is_all_in = len(judged) == len(self._lanes)
        if self._may_commit(index, alike):
            self._commit(self._ended(index), alike)
            if len(alike) < len(judged):
                self._dispute(self._ended(index))
            return True
        if is_all_in:
            self._dispute(self._ended(index))
        return False

    def _may_commit(self, index: int, alike: Sequence[LaneBook]) -> bool:
        """Auditors have to be unanimous; of lanes that run freely so many that one signer at each stage is honest."""
        if self._replays or (alike != self._lanes and not (self._decodes and self._lanes[0] in alike)):
            return False
        return num_signers([lane.of_window(index) for lane in alike]) >= self._quorum

    def _is_alike(self, lane: LaneBook, index: int) -> bool:
        return index not in lane.faults and is_same_work(self._lanes[0].of_window(index), lane.of_window(index))

    def _commit(self, window: Window, alike: Sequence[LaneBook]) -> None:
        receipts = self._lanes[0].of_window(window.index)
        self._sink_committed = self._lanes[0].sink.at(window.row_end)
        step = Commit(
            window=window,
            num_tokens=window.row_end - self._num_prompt + 1,
            sink=self._sink_committed.hex(),
            in_out=tuple((each.receipt.in_digest, each.receipt.out_digest) for each in receipts),
            receipts=tuple(receipt for lane in alike for receipt in lane.of_window(window.index)),
        )
        self._steps.append(step)
        self._due += 1
        first_needed = min(self._due, *(lane.next_window for lane in self._lanes))
        for lane in self._lanes:
            lane.forget_before(self._schedule.window(first_needed).row_start)

    def _dispute(self, window: Window) -> None:
        self._is_frozen = True
        receipts = [lane.of_window(window.index) for lane in self._lanes]
        complete = [lane for lane in receipts if len(lane) == len(self._lanes[0].seats)]
        faults = [lane.faults[window.index] for lane in self._lanes if window.index in lane.faults]
        together = tuple(receipt for lane in receipts for receipt in lane)
        fault = faults[0] if faults else None
        self._steps.append(Dispute(window, compare_lanes(complete), together, fault, self._ids_of(window)))

    def _accuse(self, found: Finding) -> None:
        self._is_frozen = True
        if found.node_id is not None and found.node_id not in self._accused:
            self._accused.add(found.node_id)
            self._steps.append(Accuse(found))


def read_from(sender: NodeId, signed: Signed, seats: Sequence[Seated]) -> SignedReceipt:
    """A receipt as posted by a node with one of `seats`, all of one epoch. Raises `ProtocolViolation` for what is no
    receipt of a seat of the sender."""
    own = [seat for seat in seats if seat.assignment.node_id == sender]
    if not own:
        raise ProtocolViolation(f"{sender} has no seat in this session")
    try:
        receipt = read_receipt(signed, own[0].public_key)
    except InvalidInput as error:
        raise ProtocolViolation(error.message) from None
    said = receipt.receipt
    if not is_of_epoch(said, own[0].assignment):
        raise ProtocolViolation("a receipt of another epoch or session")
    if (said.lane, said.stage) not in {(seat.assignment.lane, seat.assignment.stage) for seat in own}:
        raise ProtocolViolation(f"{sender} has no seat at stage {said.stage} of lane {said.lane}")
    return receipt


def is_of_epoch(said: Receipt, assignment: Assignment) -> bool:
    """A receipt of another epoch proves nothing in this one: anyone may send it again."""
    one = (said.task_id, said.choice, said.epoch)
    return one == (assignment.task_id, assignment.choice, assignment.epoch)


def is_other(known: SignedReceipt, receipt: SignedReceipt) -> bool:
    """Of one slot: is it double signed, and not just sent twice?"""
    return known.signed.text != receipt.signed.text


def num_signers(lanes: Sequence[Sequence[SignedReceipt]]) -> int:
    """Different nodes behind these lanes, at the stage that has the fewest."""
    return min(len({each.receipt.node_id for each in receipts}) for receipts in zip(*lanes, strict=True))


def is_same_work(one: Sequence[SignedReceipt], other: Sequence[SignedReceipt]) -> bool:
    """Did two lanes run the same rows to the same result, at every stage?"""
    return all(_work(a) == _work(b) for a, b in zip(one, other, strict=True))


def _work(signed: SignedReceipt) -> tuple[int | str, ...]:
    said = signed.receipt
    return (
        said.layer_start,
        said.layer_end,
        said.row_start,
        said.row_end,
        said.in_start,
        said.in_digest,
        said.out_start,
        said.out_digest,
    )
