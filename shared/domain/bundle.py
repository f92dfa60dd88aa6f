"""An answer with its proof, and the check that anyone can make of it: no service, no model, only public keys.

What is checked: every signature; the ids against the coordinator's commits; the receipts against their orders; per
stage and window f+1 different nodes with equal input and output; from the ids through all stages to the sample records
without a break; windows from the first row on without a gap, over all epochs. The sampling rule and the model itself
are only repeated by a replay (`services.worker.engine.replay`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from shared.domain import canonical
from shared.domain.chain import RowChain, chain_start, class_hash, id_bytes, record_chain, sampler_hash
from shared.domain.errors import InvalidInput
from shared.domain.guarantee import AgreedWindow, Guarantee
from shared.domain.ids import Epoch, ModelId, NodeId, TaskId
from shared.domain.numerics import Profile, smallest, weakest
from shared.domain.receipt import (
    ASSIGNMENT,
    RECEIPT,
    Assignment,
    Commitment,
    Receipt,
    SignedReceipt,
    ids_digest,
    read_assignment,
    read_commitment,
    read_receipt,
)
from shared.domain.signing import Signed, digest_of, node_id_of
from shared.domain.tail_audit import SeatedNode, TailAudit, check_tail
from shared.domain.tail_state import TailState
from shared.domain.task import FinishReason, SamplerParams, TokenRecord, Verification
from shared.domain.window_check import check_lane, check_receipt, merkle_root
from shared.domain.window_entry import WindowEntry
from shared.domain.windows import Window


@dataclass(frozen=True, slots=True)
class Bundle:
    """`answer_ids`: the answer as its client got it; the last window may have gone on beyond a stop string."""

    task_id: TaskId
    choice: int
    model_id: ModelId
    profile: Profile
    mode: Verification
    f: int
    complete: bool
    """False: the task still runs, or ended early."""
    finish_reason: FinishReason | None
    sampler: SamplerParams
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    entries: tuple[WindowEntry, ...]
    tail_state: TailState = TailState.NONE
    tail: TailAudit | None = None

    @property
    def records(self) -> tuple[TokenRecord, ...]:
        """Of all committed tokens, those after the answer's end included."""
        return tuple(record for entry in self.entries for record in entry.records)


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """The public keys that a reader knows from elsewhere."""

    coordinator: bytes
    nodes: frozenset[NodeId] | None = None
    """None: whoever the coordinator gave a seat."""


def check_bundle(bundle: Bundle, *, trusted: TrustedKeys | None = None) -> Guarantee:
    """Raises `InvalidInput`, with a sentence that names the first thing that does not hold."""
    return _BundleCheck(bundle, trusted).run()


def profile_of(entries: Iterable[WindowEntry]) -> Profile:
    """What the orders of these windows say that their stages promised. Raises `InvalidInput` for what is no order."""
    orders = [canonical.decode(ASSIGNMENT, signed.text) for entry in entries for signed in entry.orders]
    try:
        return weakest(Profile(str(order.get("profile"))) for order in orders)
    except ValueError as error:
        raise InvalidInput(f"an order of no known profile: {error}") from None


def committed_entries(
    entries: Sequence[WindowEntry], *, num_tokens: int, has_completed: bool
) -> tuple[WindowEntry, ...]:
    """The entries that were committed, of all that were kept (by window, then epoch).

    An entry is kept before its commit: one that a crash left alone is replaced by a later epoch's, or stands beyond
    the `num_tokens` that are committed. In mode `none`, where tokens do not wait for receipts, rows may have none: what
    comes after them is left out. `has_completed`: the answer may end inside its last window.
    """
    latest = {entry.window: entry for entry in sorted(entries, key=lambda each: (each.window, each.epoch))}
    found: list[WindowEntry] = []
    for window in range(len(latest)):
        entry = latest.get(window)
        before = found[-1] if found else None
        if entry is None or (before is not None and not _follows(before, entry)):
            break
        reached = before is not None and before.num_tokens >= num_tokens
        if reached or (entry.num_tokens > num_tokens and not has_completed):
            break
        found.append(entry)
    return tuple(found)


class _BundleCheck:
    """One run over the windows, in order."""

    def __init__(self, bundle: Bundle, trusted: TrustedKeys | None) -> None:
        if not bundle.entries or not bundle.prompt_ids:
            _refuse("the file holds no committed window")
        self._bundle = bundle
        self._trusted = trusted
        self._coordinator_key = bundle.entries[0].coordinator_key
        self._num_prompt = len(bundle.prompt_ids)
        self._ids = [*bundle.prompt_ids, *(record.token_id for record in bundle.records)]
        self._nodes: set[NodeId] = set()

    def run(self) -> Guarantee:
        self._check_shape()
        orders = self._read_orders()
        self._model = next(iter(orders.values())).assignment
        self._source, self._sink = self._chains()
        told = [order.assignment for order in orders.values()]
        for assignment in told:
            self._check_order(assignment)
        if self._bundle.profile != profile_of(self._bundle.entries):
            _refuse(f"the orders are not those of profile {self._bundle.profile}")
        windows: list[AgreedWindow] = []
        previous: _Previous = {}
        epoch: Epoch | None = None
        for entry in self._bundle.entries:
            if entry.epoch != epoch:
                epoch, previous = entry.epoch, {}
            receipts = self._check_receipts(entry, orders, previous)
            previous = {(each.receipt.lane, each.receipt.stage): each for each in receipts}
            windows.append(self._agree(entry, receipts, windows[-1].ends if windows else {}))
        tail_nodes = self._check_tail(orders, windows)
        return Guarantee(
            mode=self._bundle.mode,
            profile=self._bundle.profile,
            f=self._bundle.f,
            num_tokens=len(self._bundle.answer_ids),
            complete=self._bundle.complete,
            nodes=tuple(sorted(self._nodes)),
            windows=tuple(windows),
            model_root=self._model.model_root,
            numerics_class=self._bundle.entries[0].numerics_class,
            row_class=smallest(each.row_class for each in told),
            coordinator_key=self._coordinator_key,
            keys_are_known=self._trusted is not None,
            tail_state=self._bundle.tail_state,
            tail_nodes=tail_nodes,
        )

    def _check_tail(self, orders: "_Orders", windows: Sequence[AgreedWindow]) -> tuple[NodeId, ...]:
        """Who computed the answer once more; nobody, unless the file says that this went well."""
        bundle, trusted = self._bundle, self._trusted
        if bundle.tail_state is not TailState.PASSED:
            return ()
        if bundle.tail is None:
            _refuse("the file says that a tail audit passed, but does not hold it")
        first, last = bundle.entries[0], bundle.entries[-1]
        seated = {
            SeatedNode(order.assignment.node_id, order.assignment.layer_start, order.assignment.layer_end)
            for order in orders.values()
        }
        nodes = check_tail(
            bundle.tail,
            like=next(order.assignment for slot, order in orders.items() if slot[0] == first.epoch),
            after=last.epoch,
            row_end=last.row_end,
            agreed={(layer, each.window.row_end): value for each in windows for layer, value in each.ends.items()},
            seated=seated,
            coordinator_key=self._coordinator_key,
        )
        if trusted is not None and trusted.nodes is not None and not trusted.nodes.issuperset(nodes):
            _refuse("the tail audit was made by a node you do not trust")
        return nodes

    def _check_shape(self) -> None:
        """What needs no digest: all windows are there, and the answer is what they hold."""
        bundle = self._bundle
        if (bundle.f > 0) != (bundle.mode is not Verification.NONE):
            _refuse(f"mode {bundle.mode} does not go with f = {bundle.f}")
        if self._trusted is not None and self._trusted.coordinator != self._coordinator_key:
            _refuse(f"the coordinator's key {self._coordinator_key.hex()} is not the one you trust")
        row, num_tokens, epoch = 0, 0, Epoch(0)
        for index, entry in enumerate(bundle.entries):
            where = f"window {index}"
            if entry.window != index:
                _refuse(f"{where} is missing")
            if entry.row_start != row or entry.row_end <= row or entry.epoch < epoch:
                _refuse(f"{where} does not go on where the window before ended")
            if index == 0 and entry.row_end != self._num_prompt:
                _refuse("window 0 does not cover the prompt")
            row, epoch = entry.row_end, entry.epoch
            num_new = row - max(entry.row_start, self._num_prompt - 1)
            num_tokens += num_new
            if len(entry.records) != num_new or entry.num_tokens != num_tokens:
                _refuse(f"{where} has {len(entry.records)} tokens for {num_new} rows")
            self._check_terms(entry)
        self._check_answer(num_tokens)

    def _check_terms(self, entry: WindowEntry) -> None:
        """What stays the same over all windows."""
        where = f"window {entry.window}"
        if (entry.mode, entry.f) != (self._bundle.mode, self._bundle.f):
            _refuse(f"{where} was committed in mode {entry.mode} with f = {entry.f}")
        if entry.numerics_class != self._bundle.entries[0].numerics_class:
            _refuse(f"{where} was computed in another numerics class")
        if entry.coordinator_key != self._coordinator_key:
            _refuse(f"{where} was committed by another coordinator")

    def _check_answer(self, num_tokens: int) -> None:
        answer, entries = self._bundle.answer_ids, self._bundle.entries
        if list(answer) != self._ids[self._num_prompt : self._num_prompt + len(answer)]:
            _refuse("the answer's ids are not those that were committed")
        before = entries[-2].num_tokens if len(entries) > 1 else -1
        if self._bundle.complete and len(answer) <= before:
            _refuse(f"the answer ends at token {len(answer)}, but the windows go on beyond it")
        if not self._bundle.complete and len(answer) != num_tokens:
            _refuse("an answer that is not complete holds what is committed, no less")

    def _read_orders(self) -> "_Orders":
        orders: _Orders = {}
        for entry in self._bundle.entries:
            for signed in entry.orders:
                assignment = _in_file(
                    f"an order of window {entry.window}", read_assignment, signed, self._coordinator_key
                )
                slot = (assignment.epoch, assignment.lane, assignment.stage)
                known = orders.setdefault(slot, _Order(assignment, digest_of(signed)))
                if known.assignment != assignment:
                    _refuse(
                        f"two orders for lane {assignment.lane}, stage {assignment.stage} of epoch {assignment.epoch}"
                    )
        if not orders:
            _refuse("the file holds no order")
        return orders

    def _chains(self) -> tuple[RowChain, RowChain]:
        """Of the ids, and of the sample records."""
        root, top = self._model.model_root, self._model.num_layers
        numerics = class_hash(self._bundle.entries[0].numerics_class)
        source = RowChain(chain_start(root, 0, numerics_hash=numerics), row=0)
        source.extend(map(id_bytes, self._ids))
        start = chain_start(root, top, numerics_hash=numerics, sampler=sampler_hash(self._bundle.sampler))
        return source, record_chain(start, row=self._num_prompt - 1, records=self._bundle.records)

    def _check_order(self, order: Assignment) -> None:
        where = f"the order for lane {order.lane}, stage {order.stage} of epoch {order.epoch}"
        if (order.task_id, order.choice) != (self._bundle.task_id, self._bundle.choice):
            _refuse(f"{where} is of task {order.task_id}")
        if (order.model_root, order.num_layers) != (self._model.model_root, self._model.num_layers):
            _refuse(f"{where} is of another model")
        if order.sampler_hash != sampler_hash(self._bundle.sampler):
            _refuse(f"{where} has other sampling parameters")
        if order.numerics_hash != class_hash(self._bundle.entries[0].numerics_class):
            _refuse(f"{where} is of another numerics class")
        first = next((entry for entry in self._bundle.entries if entry.epoch == order.epoch), None)
        if first is None:
            return  # an epoch that committed nothing
        if (order.num_prompt, order.first_window, order.first_row) != (self._num_prompt, first.window, first.row_start):
            _refuse(f"{where} begins elsewhere than at window {first.window}")
        num_prefix = self._num_prompt if first.window == 0 else first.row_start + 1
        if order.prefix_digest != self._source.at(num_prefix).hex():
            _refuse(f"{where} was given other ids to begin with")
        if order.sink_start != self._sink.at(max(order.first_row, self._num_prompt - 1)).hex():
            _refuse(f"{where} was given other sample records to go on from")

    def _check_receipts(
        self, entry: WindowEntry, orders: "_Orders", previous: "_Previous"
    ) -> tuple[SignedReceipt, ...]:
        """Signatures, orders and commit of one window."""
        where = f"window {entry.window}"
        receipts: list[SignedReceipt] = []
        for signed in entry.receipts:
            node_id = _signer(signed.text)
            key = entry.keys.get(node_id)
            if key is None or node_id_of(key) != node_id:
                _refuse(f"{where} has a receipt of {node_id}, but not its public key")
            if self._trusted is not None and self._trusted.nodes is not None and node_id not in self._trusted.nodes:
                _refuse(f"{where} has a receipt of {node_id}, which is no node you trust")
            receipt = _in_file(f"a receipt of {node_id} for {where}", read_receipt, signed, key)
            seat = (receipt.receipt.lane, receipt.receipt.stage)
            order = orders.get((receipt.receipt.epoch, *seat))
            if order is None:
                _refuse(f"{where} has a receipt of {node_id} for a seat that nobody gave it")
            window = Window(entry.window, entry.row_start, entry.row_end)
            # A lane too slow for a commit leaves a gap: then only `*_start` ties the receipt to what was before.
            begins = order.digest if entry.window == order.assignment.first_window else receipt.receipt.prev_receipt
            finding = check_receipt(
                receipt,
                assignment=order.assignment,
                order_digest=begins,
                previous=previous.get(seat),
                window=window,
            )
            if finding is not None:
                _refuse(f"{where}: the receipt of {node_id} does not hold: {finding.detail}")
            receipts.append(receipt)
        seats = [(each.receipt.lane, each.receipt.stage) for each in receipts]
        if seats != sorted(set(seats)):
            _refuse(f"{where} has its receipts twice or out of order")
        self._check_commit(entry, receipts)
        return tuple(receipts)

    def _check_commit(self, entry: WindowEntry, receipts: Sequence[SignedReceipt]) -> None:
        where = f"window {entry.window}"
        commitment = _in_file(f"the commit of {where}", read_commitment, entry.commit, self._coordinator_key)
        wanted = Commitment(
            v=1,
            task_id=self._bundle.task_id,
            choice=self._bundle.choice,
            epoch=entry.epoch,
            window=entry.window,
            row_start=entry.row_start,
            row_end=entry.row_end,
            ids_digest=ids_digest(self._ids[: entry.row_end + 1]),
            root=entry.root,
        )
        if commitment.ids_digest != wanted.ids_digest:
            _refuse(f"the coordinator committed other ids for {where}")
        if commitment != wanted:
            _refuse(f"the commit of {where} is for something else")
        if merkle_root([receipt.digest for receipt in receipts]) != entry.root:
            _refuse(f"the receipts of {where} are not those that were committed")

    def _agree(self, entry: WindowEntry, receipts: Sequence[SignedReceipt], before: Mapping[int, str]) -> AgreedWindow:
        """Follow the ids through the stages: at each, f+1 different nodes must say the same of the agreed input."""
        where, num_needed = f"window {entry.window}", self._bundle.f + 1
        link = self._values(self._source, entry, row=0)
        starts, ends = {0: link[0]}, {0: link[1]}
        chosen: list[SignedReceipt] = []
        layer, stage = 0, 0
        while layer < self._model.num_layers:
            fit = [each for each in receipts if _takes(each.receipt, stage=stage, layer=layer, link=link)]
            said: defaultdict[tuple[int, str, str], dict[NodeId, SignedReceipt]] = defaultdict(dict)
            for each in fit:
                result = (each.receipt.layer_end, each.receipt.out_start, each.receipt.out_digest)
                said[result].setdefault(each.receipt.node_id, each)
            signers = max(said.values(), key=len, default={})
            if len(signers) < num_needed:
                _refuse(f"{where}, stage {stage}: {len(signers)} nodes signed the same, {num_needed} are needed")
            self._nodes.update(signers)
            agreed = next(iter(signers.values()))
            chosen.append(agreed)
            layer, stage = agreed.receipt.layer_end, stage + 1
            link = (agreed.receipt.out_start, agreed.receipt.out_digest)
            starts[layer], ends[layer] = link
            if before.get(layer, link[0]) != link[0]:
                _refuse(f"{where}, stage {stage - 1}: does not go on where the window before ended")
        finding = check_lane(
            chosen,
            source=(starts[0], ends[0]),
            sink=self._values(self._sink, entry, row=self._num_prompt - 1),
        )
        if finding is not None:
            _refuse(f"{where}: {finding.detail}")
        return AgreedWindow(Window(entry.window, entry.row_start, entry.row_end), starts, ends)

    @staticmethod
    def _values(chain: RowChain, entry: WindowEntry, *, row: int) -> tuple[str, str]:
        """Before and after the window's rows; `row`: where the chain begins."""
        return chain.at(max(row, entry.row_start)).hex(), chain.at(entry.row_end).hex()


@dataclass(frozen=True, slots=True)
class _Order:
    assignment: Assignment
    digest: str


_Orders = dict[tuple[Epoch, int, int], _Order]
_Previous = dict[tuple[int, int], SignedReceipt]
T = TypeVar("T")


def _follows(before: WindowEntry, entry: WindowEntry) -> bool:
    return entry.epoch >= before.epoch and entry.row_start == before.row_end


def _takes(receipt: Receipt, *, stage: int, layer: int, link: tuple[str, str]) -> bool:
    is_next = (receipt.stage, receipt.layer_start) == (stage, layer)
    return is_next and (receipt.in_start, receipt.in_digest) == link


def _signer(text: bytes) -> NodeId:
    """Whom a receipt names: tells which key to check it with."""
    return NodeId(str(canonical.decode(RECEIPT, text).get("node_id")))


def _in_file(what: str, read: Callable[[Signed, bytes], T], signed: Signed, key: bytes) -> T:
    try:
        return read(signed, key)
    except InvalidInput as error:
        raise InvalidInput(f"{what} does not hold: {error.message}") from None


def _refuse(sentence: str) -> NoReturn:
    raise InvalidInput(sentence)
