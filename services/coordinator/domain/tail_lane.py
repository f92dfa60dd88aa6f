"""The one lane of a tail audit: what it is given, and what follows from what its seats sign. No I/O, no clock."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from services.coordinator.domain.lane_book import LaneBook, Seated
from services.coordinator.domain.ledger import Accuse, Release, Seal, is_other, read_from
from shared.domain.chain import RowChain, chain_start, id_bytes
from shared.domain.errors import ProtocolViolation
from shared.domain.ids import NodeId
from shared.domain.numerics import Profile, StageFacts, smallest, weakest
from shared.domain.plan import LayerRange, NodeCapability, Partition
from shared.domain.receipt import Receipt, SignedReceipt, kept_receipt, read_assignment
from shared.domain.signing import Signed
from shared.domain.tail_audit import ChainValues, SeatedNode
from shared.domain.task import TokenRecord
from shared.domain.window_check import DOUBLE_SIGNED, LINK, Finding, finding
from shared.domain.window_entry import WindowEntry
from shared.domain.windows import Window, WindowSchedule

WINDOWS_AHEAD = 2
"""Windows given before they are signed, as to any audit lane."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer, as it was committed."""

    ids: tuple[int, ...]
    """Of the prompt, then of all windows, those that a stop string cut off included."""
    row_end: int
    numerics_class: str
    profile: Profile
    row_class: int
    receipts: tuple[SignedReceipt, ...]
    seated: frozenset[SeatedNode]
    cut: tuple[LayerRange, ...]
    """The stages of the last window."""
    seats: tuple[Seated, ...]
    """Of those that signed, with their orders: for evidence."""
    facts: Mapping[LayerRange, StageFacts]
    """What the self-tests of those that signed found."""

    @property
    def values(self) -> ChainValues:
        """What was agreed on, at the end of each window."""
        found: dict[tuple[int, int], str] = {}
        for each in self.receipts:
            said = each.receipt
            found[said.layer_start, said.row_end] = said.in_digest
            found[said.layer_end, said.row_end] = said.out_digest
        return found

    def doubted(self, said: Receipt, seats: Sequence[Seated]) -> "Answer":
        """The same; who signed `said`, in a lane of these seats, is not fresh for its layers any more."""
        node = SeatedNode(said.node_id, said.layer_start, said.layer_end)
        return replace(self, seated=self.seated | {node}, seats=(*self.seats, *seats))


def read_answer(prompt_ids: Sequence[int], entries: Sequence[WindowEntry]) -> Answer:
    """`entries`: those committed, in order, at least one. All are the coordinator's own, so signatures of receipts are
    not checked again. Raises `InvalidInput` for what it never kept."""
    receipts = tuple(kept_receipt(signed) for entry in entries for signed in entry.receipts)
    ordered = [(read_assignment(each, entry.coordinator_key), each) for entry in entries for each in entry.orders]
    orders = [order for order, _ in ordered]
    keys = {node_id: key for entry in entries for node_id, key in entry.keys.items()}
    layers = {
        LayerRange(said.receipt.layer_start, said.receipt.layer_end) for said in map(kept_receipt, entries[-1].receipts)
    }
    return Answer(
        ids=(*prompt_ids, *(record.token_id for entry in entries for record in entry.records)),
        row_end=entries[-1].row_end,
        numerics_class=entries[-1].numerics_class,
        profile=weakest(Profile(order.profile) for order in orders),
        row_class=smallest(order.row_class for order in orders),
        receipts=receipts,
        seated=frozenset(SeatedNode(order.node_id, order.layer_start, order.layer_end) for order in orders),
        cut=tuple(sorted(layers, key=lambda each: each.start)),
        seats=tuple(Seated(order, each, keys[order.node_id]) for order, each in ordered if order.node_id in keys),
        facts={layers: facts for entry in entries for layers, facts in entry.facts},
    )


def fresh_seats(
    answer: Answer,
    nodes: Sequence[NodeCapability],
    can_hold: Callable[[NodeCapability, LayerRange], bool],
    *,
    referees: Collection[NodeId] = (),
    doubted_stage: int | None = None,
) -> tuple[Partition, ...] | None:
    """A node for every stage, each another one, that had no part in that stage; None where there are too few.

    `nodes`: in the order in which they are to be taken, best drawn at random; `referees`: whom to have at
    `doubted_stage`, and rather there than elsewhere.
    """
    choices = [
        [
            index
            for index, node in enumerate(nodes)
            if node.numerics_class == answer.numerics_class
            and node.context_tokens > answer.row_end
            and can_hold(node, layers)
            and not any(
                seat.node_id == node.node_id and seat.shares(layers.start, layers.end) for seat in answer.seated
            )
        ]
        for layers in answer.cut
    ]
    if doubted_stage is not None:
        for stage, found in enumerate(choices):
            found.sort(key=lambda index: (nodes[index].node_id in referees) != (stage == doubted_stage))
    taken: dict[int, int] = {}
    for stage in range(len(choices)):
        if not _seat(stage, choices, taken, set()):
            return None
    node_of = {stage: index for index, stage in taken.items()}
    return tuple(Partition(stage, nodes[node_of[stage]].node_id, layers) for stage, layers in enumerate(answer.cut))


def _seat(stage: int, choices: Sequence[Sequence[int]], taken: dict[int, int], tried: set[int]) -> bool:
    """Give a stage a node, moving others to other nodes where that helps (Kuhn's augmenting path)."""
    for index in choices[stage]:
        if index not in tried:
            tried.add(index)
            if index not in taken or _seat(taken[index], choices, taken, tried):
                taken[index] = stage
                return True
    return False


@dataclass(frozen=True, slots=True)
class Alike:
    """The lane came to the committed values at every boundary of this window. `is_last`: of the whole answer."""

    window: Window
    is_last: bool


@dataclass(frozen=True, slots=True)
class Differs:
    """A seat made other rows of the rows that were agreed on. Either it is wrong, or all who signed before are."""

    said: SignedReceipt
    signers: tuple[SignedReceipt, ...]
    """For the answer, at that stage and window."""

    @property
    def place(self) -> tuple[int, int]:
        """Window and stage: audits of one answer look at them in this order."""
        return self.said.receipt.window, self.said.receipt.stage

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """All of whom some must be guilty, each once."""
        return tuple(dict.fromkeys(each.receipt.node_id for each in (self.said, *self.signers)))


@dataclass(frozen=True, slots=True)
class Parted:
    """Two seats of the lane disagree on what went between them: the audit tells nothing."""

    fault: Finding


Step = Seal | Release | Accuse | Alike | Differs | Parted


class TailLane:
    def __init__(self, answer: Answer, seats: Sequence[Seated], *, schedule: WindowSchedule) -> None:
        """`seats`: in order of stages; `schedule`: from row 0 on."""
        self._answer, self._schedule = answer, schedule
        self._values = answer.values
        order = seats[0].assignment
        ids = RowChain(chain_start(order.model_root, 0, numerics_hash=order.numerics_hash), row=0)
        ids.extend(id_bytes(token_id) for token_id in answer.ids[: answer.row_end])
        top = chain_start(
            order.model_root, order.num_layers, numerics_hash=order.numerics_hash, sampler=order.sampler_hash
        )
        self._lane = LaneBook(
            seats,
            first_window=0,
            ids=ids,
            sink=RowChain(top, row=schedule.num_prompt - 1),
            posts_records=True,
            runs_own_ids=False,
        )
        self._number = order.lane
        self._last = schedule.window_of(answer.row_end - 1).index
        self._agreed_row = 0
        """Up to here every boundary was compared."""
        self._given = 0
        """Windows released."""
        self._has_ended = False
        self._steps: list[Step] = []
        self._kept: list[SignedReceipt] = []
        self._give()

    @property
    def receipts(self) -> tuple[SignedReceipt, ...]:
        """Of all windows judged, by window, then stage."""
        return tuple(self._kept)

    @property
    def laggard(self) -> NodeId:
        """Whom all wait for: no accusation, the next try may do without."""
        return self._lane.laggard

    def receipt(self, sender: NodeId, signed: Signed, records: Sequence[TokenRecord]) -> None:
        """A receipt as posted, with its records. Idempotent. Raises `ProtocolViolation` for what no seat may say."""
        receipt = read_from(sender, signed, self._lane.seats)
        said = receipt.receipt
        if said.window >= self._given:
            raise ProtocolViolation(f"window {said.window} was not given to this lane")
        known = self._lane.receipt(said.window, said.stage)
        if known is not None:
            if is_other(known, receipt):
                self._end(Accuse(finding(DOUBLE_SIGNED, known, receipt, detail="two contents for one slot")))
            return
        self._lane.keep(receipt, records)
        found = self._lane.check_seat(said.stage, lambda index: (self._window(index),))
        if found is not None:
            self._end(Accuse(found))
        while not self._has_ended and self._lane.is_complete(self._lane.next_window):
            self._judge(self._window(self._lane.next_window))

    def steps(self) -> tuple[Step, ...]:
        """What is to be done now; each is given once. `Accuse`, `Differs`, `Parted` and the last `Alike` end it."""
        steps, self._steps = tuple(self._steps), []
        return steps

    def _window(self, index: int) -> Window:
        return self._schedule.window(index).closed_at(self._answer.row_end)

    def _give(self) -> None:
        while self._given <= min(self._last, self._lane.next_window + WINDOWS_AHEAD - 1):
            window = self._window(self._given)
            if window != self._schedule.window(window.index):  # told before the ids, as in a session
                self._steps.append(Seal(self._number, window.index, window.row_end))
            ids = self._answer.ids[window.row_start : window.row_end]
            self._steps.append(Release(self._number, window.index, window.row_start, ids))
            self._given += 1

    def _judge(self, window: Window) -> None:
        found = self._lane.judge(window, given=True)
        receipts = self._lane.of_window(window.index)
        self._kept += receipts
        if found is not None and found.rule != LINK:
            self._end(Accuse(found))
            return
        differing = next(self._differing(receipts, window), None)
        if differing is not None:
            self._end(differing)
        elif found is not None:
            self._end(Parted(found))
        else:
            self._steps.append(Alike(window, is_last=window.index == self._last))
            self._has_ended = window.index == self._last
            if all((each.receipt.layer_end, window.row_end) in self._values for each in receipts):
                self._agreed_row = window.row_end
            self._lane.forget_before(window.row_end)
            if not self._has_ended:
                self._give()

    def _differing(self, receipts: Sequence[SignedReceipt], window: Window) -> Iterator[Differs]:
        """The lowest stage first. Beyond a faulty link nobody is judged."""
        sent, agreed_at = receipts[0].receipt.in_digest, 0
        for each in receipts:
            said = each.receipt
            if said.in_digest != sent:
                return
            committed = self._values.get((said.layer_end, window.row_end))
            if committed is not None and committed != said.out_digest:
                span = SeatedNode(said.node_id, agreed_at, said.layer_end)
                rows = Window(window.index, self._agreed_row, window.row_end)
                yield Differs(each, tuple(_those_of(self._answer.receipts, span, rows)))
                return
            if committed is not None:
                agreed_at = said.layer_end
            sent = said.out_digest

    def _end(self, step: Step) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._steps.append(step)


def _those_of(receipts: Sequence[SignedReceipt], span: SeatedNode, rows: Window) -> Iterator[SignedReceipt]:
    for each in receipts:
        said = each.receipt
        is_near = said.row_start < rows.row_end and rows.row_start < said.row_end
        if is_near and span.shares(said.layer_start, said.layer_end):
            yield each
