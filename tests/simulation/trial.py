"""One session from its first epoch to its last, with a faulty node, under random order, loss and duplication.

The ledger is the coordinator's own; what a service would do around it is told here in a few lines. Whatever must never
happen raises `Violation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from random import Random

from services.coordinator.domain.blame import PairMarks, convict, pair_of, same_window_again
from services.coordinator.domain.ledger import Accuse, Commit, Dispute, Ledger, Release, Seal, Seated, Step
from services.coordinator.domain.witness import Witness, hop_of
from shared.domain import canonical
from shared.domain.errors import ProtocolViolation
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.numerics import ANY_ROWS, Profile
from shared.domain.plan import LayerRange, Partition
from shared.domain.receipt import RECEIPT, Assignment, SignedReceipt, sign_assignment
from shared.domain.signing import SigningKey, digest_of
from shared.domain.task import TokenRecord
from shared.domain.window_check import Finding
from shared.domain.windows import WindowSchedule
from tests.simulation.attacks import Attack, Fate, Kind
from tests.simulation.seats import Committed, Drafted, Message, Place, Post, Posted, Seat, ToSeats, connect
from tests.simulation.toy_model import END_ID, MODEL_ROOT, NUM_IDS, NUMERICS_HASH, SAMPLER_HASH, Truth

MAX_EPOCHS = 60


class Violation(AssertionError):
    """The protocol failed."""


class Outcome(Enum):
    DONE = auto()
    RECOVER = auto()
    CRASHED = auto()
    STALLED = auto()


@dataclass
class Case:
    """quorum: every lane decodes."""

    seed: int
    quorum: bool
    num_stages: int
    num_prompt: int
    max_tokens: int
    checkpoint_interval: int
    window_checkpoints: int
    attacks: list[Attack]
    """f of them."""
    crash_after: int | None = None
    """Steps of the first epoch."""
    has_twins: bool = False
    """A plan that seats one node in two lanes at the attacked stage."""

    @property
    def f(self) -> int:
        return len(self.attacks)


def draw_case(seed: int) -> Case:
    rng = Random(seed)
    num_stages = rng.choice((1, 2, 3, 3, 3, 4))
    quorum = rng.random() < 0.25
    f = 2 if rng.random() < 0.15 else 1
    kinds = [kind for kind in Kind if kind is not Kind.HONEST or rng.random() < 0.5]
    attacks = [
        Attack(
            rng.choice(kinds),
            lane=rng.randrange(2 * f + 1 if quorum else f + 1),
            stage=rng.randrange(num_stages),
            window=rng.choice((0, 0, 1, 1, 2, 3)),
            persistent=rng.random() < 0.5,
        )
        for _ in range(f)
    ]
    for attack in attacks:
        if attack.kind is Kind.OTHER_IDS:
            attack.stage = 0
        if attack.kind in {Kind.RING_LIE, Kind.EXTRA_RECORD}:
            attack.stage = num_stages - 1
        if attack.kind is Kind.POISONED_PREFIX:
            attack.persistent, attack.window = True, 0
    needs_crash = any(attack.kind is Kind.POISONED_PREFIX for attack in attacks)
    return Case(
        seed=seed,
        quorum=quorum,
        num_stages=num_stages,
        num_prompt=rng.randrange(1, 5),
        max_tokens=rng.randrange(1, 12),
        checkpoint_interval=rng.randrange(1, 4),
        window_checkpoints=rng.randrange(1, 4),
        attacks=attacks,
        crash_after=rng.randrange(20, 200) if needs_crash or rng.random() < 0.25 else None,
        has_twins=quorum and rng.random() < 0.2,
    )


class Trial:
    def __init__(self, case: Case) -> None:
        self.case = case
        self._rng = Random(case.seed)
        self._prompt = [self._rng.randrange(1, NUM_IDS) for _ in range(case.num_prompt)]
        self.truth = Truth(case.num_stages, self._prompt, case.max_tokens)
        self._keys = _keys(max(case.num_stages, 2 * case.f + 1) + 4)
        self._post = Post()
        self._epoch = 0
        self._committed: list[TokenRecord] = []
        self._last_window = -1
        self._first_try: Dispute | None = None
        self._witness: Witness | None = None
        self._nodes: list[NodeId] = []
        """In the order of the latest seats."""
        self._marks = PairMarks()
        self._apart: set[frozenset[NodeId]] = set()
        self._absent: set[NodeId] = set()
        self._crashed: set[int] = set()
        self.evicted: dict[NodeId, Finding] = {}
        self.marked: set[NodeId] = set()
        self._must_audit = False

    @property
    def num_epochs(self) -> int:
        return self._epoch

    @property
    def faulty(self) -> set[NodeId]:
        return {attack.node for attack in self.case.attacks if attack.node is not None}

    def run(self) -> None:
        """Raises `Violation`."""
        while (outcome := self._run_epoch()) is not Outcome.DONE:
            if outcome is Outcome.CRASHED:
                self._crashed.add(self._epoch)
            if outcome is Outcome.STALLED:
                self._replace_silent()
            if self._epoch >= MAX_EPOCHS:
                raise Violation("the session does not end")
        if self._committed != self.truth.records:
            raise Violation("the answer is not complete")
        self._check_fates()

    # --- one epoch

    def _run_epoch(self) -> Outcome:
        self._epoch += 1
        is_replay, f = self._first_try is not None, self.case.f
        self._decodes = self.case.quorum and not is_replay and not self._must_audit
        self._must_audit = False
        num_lanes = 2 * f + 1 if self.case.quorum or is_replay else f + 1
        schedule = self._schedule()
        truth_sink = self._sink()
        lanes = self._seat(num_lanes)
        orders = self._orders(lanes, schedule)
        self._ledger = Ledger(
            schedule=schedule,
            lanes=orders,
            quorum=f + 1,
            decodes=self._decodes,
            prompt_ids=self._prompt,
            committed=self._committed,
            sink_start=truth_sink.hex() if self._rng.random() < 0.5 else "",
            replay=self._first_try.ids if self._first_try else (),
        )
        self._lanes: list[list[Place]] = [[self._place(seated) for seated in lane] for lane in orders]
        self._records = list(self._committed)
        self._ring_end: int | None = None
        self._posted: set[tuple[int, int, int]] = set()
        self._is_recovering = self._has_stopped = False
        prefix = [each.to_bytes(4, "little") for each in (*self._prompt, *(r.token_id for r in self._committed))]
        for lane in self._lanes:
            connect(lane)
            lane[0].inbox.extend(prefix if lane[0].decodes else prefix[: schedule.first_row])
        self._witness = self._watch(lanes)
        return self._play()

    def _watch(self, lanes: Sequence[Sequence[NodeId]]) -> Witness | None:
        first = self._first_try
        if first is None or first.fault is None:
            return None
        seats = [
            [Partition(stage, node, LayerRange(stage, stage + 1)) for stage, node in enumerate(lane)] for lane in lanes
        ]
        hop = hop_of(first.fault, seats)
        if hop is None:
            return None
        sender = self._lanes[hop.lane][hop.stage - 1]
        sender.witness = Witness(
            hop,
            task_id=sender.order.task_id,
            epoch=sender.order.epoch,
            boundary=hop.stage,
            model_root=MODEL_ROOT,
            numerics_hash=NUMERICS_HASH,
            window=first.window,
        )
        return sender.witness

    def _play(self) -> Outcome:
        num_steps = 0
        while True:
            self._follow()
            is_done = self._ring_end is not None and len(self._committed) >= self._ring_end
            if self._is_recovering:
                return Outcome.DONE if is_done else Outcome.RECOVER
            messages = self._post.messages
            seats = [seat for lane in self._lanes for seat in lane if seat.can_step]
            if not messages and not seats:
                return Outcome.DONE if is_done else Outcome.STALLED
            if self._epoch == 1 and num_steps == self.case.crash_after:
                return Outcome.DONE if is_done else Outcome.CRASHED
            num_steps += 1
            choice = self._rng.randrange(len(messages) + 2 * len(seats))
            if choice >= len(messages):
                seats[(choice - len(messages)) // 2].step()
                continue
            chance = self._rng.random()
            if chance < 0.1:
                continue  # lost; sent again later
            if chance < 0.2:
                self._deliver(messages[choice])  # the answer is lost; sent again later
            else:
                messages[choice], messages[-1] = messages[-1], messages[choice]
                self._deliver(messages.pop())

    def _follow(self) -> None:
        for step in self._ledger.steps():
            if self._has_stopped:
                raise Violation("the ledger goes on after an accusation")
            self._has_stopped = isinstance(step, Accuse | Dispute)
            if not self._is_recovering:
                self._do(step)

    def _deliver(self, message: Message) -> None:
        match message:
            case Posted():
                self._take_receipt(message)
            case Drafted() if message.epoch == self._epoch:
                self._take_draft(message)
            case ToSeats() if message.epoch == self._epoch:
                lane = self._lanes[message.what.lane]
                for seat in lane:
                    match message.what:
                        case Seal():
                            seat.seal(message.what)
                        case Committed():
                            seat.committed(message.what.window)
                        case Release() if seat is lane[0]:
                            seat.release(message.what)
            case _:
                pass  # of an epoch that is over

    def _take_receipt(self, message: Posted) -> None:
        try:
            self._ledger.receipt(message.sender, message.signed, message.records)
        except ProtocolViolation as error:
            if message.is_honest and message.epoch == self._epoch and message.sender not in self.faulty:
                raise Violation(f"an honest receipt is refused: {error}") from error
            return
        if message.epoch != self._epoch and message.sender not in self.faulty:
            raise Violation("a receipt of another epoch is taken")
        said = canonical.decode(RECEIPT, message.signed.text)
        self._posted.add((said["lane"], said["stage"], said["window"]))

    def _take_draft(self, message: Drafted) -> None:
        if self._ring_end is not None:
            return
        if message.first_index > len(self._records):
            self._post.messages.append(message)  # too early: refused, sent again
            return
        fresh = message.records[len(self._records) - message.first_index :]
        if not fresh:
            return
        self._records += fresh
        self._ledger.draft(fresh)
        if fresh[-1].token_id == END_ID or len(self._records) >= self.case.max_tokens:
            self._ring_end = len(self._records)
            self._ledger.end(self._ring_end)

    # --- what the ledger says

    def _do(self, step: Step) -> None:
        match step:
            case Seal() | Release():
                if isinstance(step, Release) and step.lane > 0:
                    self._check_sealed(step.window)
                self._post.messages.append(ToSeats(self._epoch, step))
            case Commit():
                self._commit(step)
            case Accuse():
                self._evict([step.finding])
            case Dispute():
                self._settle(step)

    def _commit(self, step: Commit) -> None:
        self._check_commit(step)
        self._committed = self._records[: step.num_tokens]
        self._last_window = step.window.index
        for lane in range(len(self._lanes)):
            self._post.messages.append(ToSeats(self._epoch, Committed(lane, step.window.index)))

    def _settle(self, step: Dispute) -> None:
        self._is_recovering = True
        first, self._first_try = self._first_try, None
        passage = self._witness.passage() if self._witness else None
        guilty = convict(first.receipts if first else (), _by_lane(step.receipts), self.case.f + 1, passage)
        if guilty:
            self._evict(guilty)
        elif first is None:
            if step.window.index == self._last_window + 1:
                self._first_try = step
        else:
            for fault in (first.fault, step.fault):
                if fault is not None:
                    self._mark(fault)

    def _evict(self, findings: Sequence[Finding]) -> None:
        self._is_recovering = True
        for found in findings:
            assert found.node_id is not None
            if found.node_id not in self.faulty:
                raise Violation(f"an honest node is convicted: {found.rule} {found.detail}")
            self.evicted[found.node_id] = found

    def _mark(self, fault: Finding) -> None:
        pair = pair_of(fault)
        if not self.case.quorum and not self.faulty & set(pair):
            raise Violation("an honest pair is marked")
        self.marked |= set(pair)
        self._apart.add(frozenset(pair))
        self._absent |= set(self._marks.add(*pair))

    def _replace_silent(self) -> None:
        silent = {
            attack.node
            for attack in self.case.attacks
            if attack.node and attack.fired and attack.kind in {Kind.SILENT, Kind.REPLAYS_ONLY, Kind.WITHHOLDS}
        } - self._absent
        if silent:
            self._absent |= silent
        elif self._decodes:
            self._must_audit = True  # lanes ran apart
        elif not self.faulty:
            raise Violation("a session of honest nodes does not go on")

    # --- what must hold

    def _check_sealed(self, window: int) -> None:
        if any((0, stage, window) not in self._posted for stage in range(self.case.num_stages)):
            raise Violation("released before lane 0 has signed")

    def _check_commit(self, step: Commit) -> None:
        if self._records[: step.num_tokens] != self.truth.records[: step.num_tokens]:
            raise Violation("a wrong commit")
        for stage, (below, above) in enumerate(step.in_out):
            right = (self.truth.value(stage, step.window.row_end), self.truth.value(stage + 1, step.window.row_end))
            if (below, above) != right:
                raise Violation("a commit of wrong rows")
        if step.sink != self.truth.value(self.case.num_stages, step.window.row_end):
            raise Violation("a commit of a wrong chain")

    def _check_fates(self) -> None:
        """Of an attack that had an effect: not of one in an epoch that a crash ended before it was seen."""
        if self.case.quorum or self.case.f > 1:
            return
        for attack in self.case.attacks:
            if not attack.fired - self._crashed:
                continue
            if Fate.CONVICTED in attack.fates and Fate.MARKED not in attack.fates and attack.node not in self.evicted:
                raise Violation(f"not convicted: {attack.kind}")
            if attack.fates & {Fate.CONVICTED, Fate.MARKED} and attack.node not in {*self.evicted, *self.marked}:
                raise Violation(f"not blamed: {attack.kind}")

    # --- epochs

    def _schedule(self) -> WindowSchedule:
        case, num_committed = self.case, len(self._committed)
        schedule = WindowSchedule(
            num_prompt=case.num_prompt,
            first_index=self._last_window + 1,
            first_row=case.num_prompt + num_committed - 1 if num_committed else 0,
            checkpoint_interval=case.checkpoint_interval,
            window_checkpoints=case.window_checkpoints,
        )
        return same_window_again(schedule, self._first_try.window) if self._first_try else schedule

    def _sink(self) -> bytes:
        row = self.case.num_prompt - 1 + len(self._committed)
        return bytes.fromhex(self.truth.value(self.case.num_stages, row))

    def _seat(self, num_lanes: int) -> list[list[NodeId]]:
        """Rotations of a random order; neighbours that fell out are kept apart. A dispute is repeated on the same seats
        where that is possible."""
        nodes = [node for node in self._keys if node not in self.evicted and node not in self._absent]
        lanes: list[list[NodeId]] = []
        for number in range(200):
            self._rng.shuffle(nodes)
            if self._first_try is not None and number == 0 and set(nodes) == set(self._nodes):
                nodes = list(self._nodes)
            lanes = [[nodes[s - lane] for s in range(self.case.num_stages)] for lane in range(num_lanes)]
            pairs = {frozenset(pair) for lane in lanes for pair in zip(lane, lane[1:] + lane[:1], strict=True)}
            if not pairs & self._apart:
                break
        self._nodes = nodes
        if self._epoch == 1:
            for attack in self.case.attacks:
                attack.node = lanes[attack.lane][attack.stage]
            if self.case.has_twins and self.case.f == 1:
                self._seat_twin(lanes, self.case.attacks[0])
        return lanes

    def _seat_twin(self, lanes: list[list[NodeId]], attack: Attack) -> None:
        """Put the faulty node into a second lane at its stage: a plan that nobody checked."""
        other = 1 if attack.lane == 0 else 0
        lanes[other][attack.stage] = lanes[attack.lane][attack.stage]

    def _orders(self, lanes: list[list[NodeId]], schedule: WindowSchedule) -> list[list[Seated]]:
        return [
            [self._order(node, lane, stage, schedule) for stage, node in enumerate(nodes)]
            for lane, nodes in enumerate(lanes)
        ]

    def _order(self, node: NodeId, lane: int, stage: int, schedule: WindowSchedule) -> Seated:
        assignment = Assignment(
            v=1,
            task_id=TaskId("task"),
            choice=0,
            epoch=Epoch(self._epoch),
            lane=lane,
            stage=stage,
            node_id=node,
            layer_start=stage,
            layer_end=stage + 1,
            num_layers=self.case.num_stages,
            model_root=MODEL_ROOT,
            numerics_hash=NUMERICS_HASH,
            sampler_hash=SAMPLER_HASH,
            num_prompt=schedule.num_prompt,
            first_window=schedule.first_index,
            first_row=schedule.first_row,
            checkpoint_interval=schedule.checkpoint_interval,
            window_checkpoints=schedule.window_checkpoints,
            profile=Profile.EXACT,
            row_class=ANY_ROWS,
            prefix_digest="00" * 32,
            sink_start=self._sink().hex(),
        )
        return Seated(assignment, sign_assignment(_COORDINATOR, assignment), self._keys[node].public_key)

    def _place(self, seated: Seated) -> Place:
        node = seated.assignment.node_id
        attack = next((each for each in self.case.attacks if each.node == node), self.case.attacks[0])
        return self._worker(seated, attack, self._post)

    def _worker(self, seated: Seated, attack: Attack, post: Post) -> Seat:
        order = seated.assignment
        return Seat(
            order,
            order_digest=digest_of(seated.order),
            key=self._keys[order.node_id],
            num_stages=self.case.num_stages,
            num_committed=len(self._committed),
            max_tokens=self.case.max_tokens,
            decodes=self._decodes or (order.lane == 0 and self._first_try is None),
            drafts_tokens=order.lane == 0 and self._first_try is None,
            attack=attack,
            post=post,
            rng=self._rng,
        )


_COORDINATOR = SigningKey(bytes(32))


@cache
def _keys(count: int) -> dict[NodeId, SigningKey]:
    keys = [SigningKey(bytes([index]) * 32) for index in range(1, count + 1)]
    return {key.node_id: key for key in keys}


def _by_lane(receipts: Sequence[SignedReceipt]) -> list[list[SignedReceipt]]:
    lanes: dict[int, list[SignedReceipt]] = {}
    for receipt in receipts:
        lanes.setdefault(receipt.receipt.lane, []).append(receipt)
    return [lanes[lane] for lane in sorted(lanes)]
