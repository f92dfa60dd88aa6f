"""Two processes with one key (design page on verification, test T7): a copied data folder, honest or not.

Both hold every seat of their node, on the same orders. Links and messages between each of them and the rest break and
heal at random; what a process did not hear of, it does not know: it works on with orders that are long replaced.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from services.coordinator.domain.ledger import Commit, Release, Seal, Seated
from services.coordinator.domain.witness import Witness
from shared.domain.errors import InvalidInput
from shared.domain.ids import NodeId
from shared.domain.receipt import Assignment, read_receipt
from tests.simulation.attacks import Attack, Kind
from tests.simulation.seats import Place, Post, Posted, Receiver, Seat
from tests.simulation.trial import Case, Outcome, Trial, Violation, draw_case

MAX_ROWS_HEARD = 12
STALE_SHARE = 0.2
HEAL_SHARE = 0.05


@dataclass
class TwinCase:
    """`case`: its first attack is that of the second process."""

    case: Case
    first: Kind
    """What the first process does."""

    @property
    def are_honest(self) -> bool:
        """The twins; there may be another liar."""
        return self.first is self.case.attacks[0].kind is Kind.HONEST

    @property
    def is_honest(self) -> bool:
        """Everybody."""
        return self.are_honest and all(attack.kind is Kind.HONEST for attack in self.case.attacks)


def draw_twins(seed: int) -> TwinCase:
    """Half of them are honest, and half of the others have an honest first process."""
    case, rng = draw_case(seed), Random(f"twins {seed}")
    first = Kind.HONEST
    if rng.random() < 0.5:
        case.attacks[0].kind = Kind.HONEST
    elif rng.random() < 0.5:
        first = rng.choice(list(Kind))
    return TwinCase(case, first)


@dataclass
class Connection:
    """What of the rest of the world one process has in one epoch."""

    rows_heard: int | None
    """So many rows reach it, then no more; None: all."""
    hears: bool
    """Whether the coordinator's messages reach it."""
    speaks: bool
    """Whether its own reach the coordinator; else they come late, some in a later epoch."""
    sends: bool
    """Whether its rows reach the next seat."""


def draw_connection(rng: Random) -> Connection:
    return Connection(
        rows_heard=rng.randrange(MAX_ROWS_HEARD) if rng.random() < 0.2 else None,
        hears=rng.random() < 0.85,
        speaks=rng.random() < 0.85,
        sends=rng.random() < 0.9,
    )


class _Merged:
    """The rows of both processes become one stream: of each row the one that comes first."""

    def __init__(self) -> None:
        self.target: Receiver | None = None
        self.witness: Witness | None = None
        self._passed = 0

    def offer(self, index: int, row: bytes) -> None:
        if index == self._passed and self.target is not None:
            self._passed += 1
            if self.witness is not None:
                self.witness.take(index, [row])
            self.target.inbox.append(row)


class _Outlet:
    """Where one process sends its rows."""

    def __init__(self, merged: _Merged, *, sends: bool) -> None:
        self._merged, self._sends = merged, sends
        self._count = 0

    @property
    def inbox(self) -> "_Outlet":
        return self

    def append(self, row: bytes, /) -> None:
        if self._sends:
            self._merged.offer(self._count, row)
        self._count += 1

    def extend(self, rows: Iterable[bytes], /) -> None:
        for row in rows:
            self.append(row)


@dataclass
class _Process:
    seat: Seat
    connection: Connection
    withheld: Post
    """What it posted while nobody heard it; empty if it `speaks`."""
    num_rows: int = 0


class TwinSeat(Place):
    """One seat, and the processes that both think that it is theirs."""

    def __init__(self, processes: Sequence[_Process], stale: Sequence[Seat], post: Post, rng: Random) -> None:
        """`stale`: seats of earlier epochs that a process still works on."""
        self._processes, self._stale, self._post, self._rng = processes, stale, post, rng
        self._onward, self._around = _Merged(), _Merged()
        for each in processes:
            each.seat.next = _Outlet(self._onward, sends=each.connection.sends)
            each.seat.first = _Outlet(self._around, sends=each.connection.sends)

    @property
    def next(self) -> Receiver | None:
        return self._onward.target

    @next.setter  # noqa: A003  as a seat calls it
    def next(self, following: Receiver | None) -> None:
        self._onward.target = following

    @property
    def first(self) -> Receiver | None:
        return self._around.target

    @first.setter
    def first(self, first: Receiver | None) -> None:
        self._around.target = first

    @property
    def witness(self) -> Witness | None:
        return self._onward.witness

    @witness.setter
    def witness(self, witness: Witness | None) -> None:
        self._onward.witness = witness

    @property
    def order(self) -> Assignment:
        return self._processes[0].seat.order

    @property
    def decodes(self) -> bool:
        return self._processes[0].seat.decodes

    @property
    def inbox(self) -> "TwinSeat":
        return self

    def append(self, row: bytes, /) -> None:
        for each in self._processes:
            limit = each.connection.rows_heard
            if limit is None or each.num_rows < limit:
                each.seat.inbox.append(row)
            each.num_rows += 1

    def extend(self, rows: Iterable[bytes], /) -> None:
        for row in rows:
            self.append(row)

    @property
    def can_step(self) -> bool:
        return any(each.seat.can_step for each in self._processes)

    def step(self) -> None:
        self._heal()
        stale = [seat for seat in self._stale if seat.can_step]
        if stale and self._rng.random() < STALE_SHARE:
            self._rng.choice(stale).step()
            return
        self._rng.choice([each.seat for each in self._processes if each.seat.can_step]).step()

    def release(self, step: Release) -> None:
        for each in self._hearing():
            limit = each.connection.rows_heard
            if limit is None or each.num_rows < limit:
                each.seat.release(step)

    def committed(self, window: int) -> None:
        for each in self._hearing():
            each.seat.committed(window)

    def seal(self, step: Seal) -> None:
        for each in self._hearing():
            each.seat.seal(step)

    def _hearing(self) -> list[_Process]:
        return [each for each in self._processes if each.connection.hears]

    def _heal(self) -> None:
        """What was held back arrives late."""
        for each in self._processes:
            if each.withheld.messages and self._rng.random() < HEAL_SHARE:
                self._post.messages += each.withheld.messages
                each.withheld.messages.clear()


class TwinTrial(Trial):
    def __init__(self, twins: TwinCase, counts: Counter[str]) -> None:
        """`counts`: over many trials, what was seen in them."""
        super().__init__(twins.case)
        self._twins, self._counts = twins, counts
        second = twins.case.attacks[0]
        self._attacks = (
            Attack(twins.first, second.lane, second.stage, second.window, second.persistent),
            second,
        )
        self._stale: list[Seat] = []
        self._current: list[Seat] = []
        self._withheld: list[Post] = []
        self._own_seats: set[tuple[int, int]] = set()
        """Of the key, in this epoch."""
        self._contents: dict[tuple[int, int, int, int], set[bytes]] = {}
        """By slot: what was said in its own epoch, while that could still be answered."""
        self._has_double_signed = False

    @property
    def key(self) -> NodeId | None:
        """Of both."""
        return self.case.attacks[0].node

    def run(self) -> None:
        super().run()
        counts = self._counts
        counts["convicted"] += self.key in self.evicted
        counts["double signed"] += self._has_double_signed
        counts["honest twins"] += self._twins.are_honest
        counts["honest twins, convicted"] += self._twins.are_honest and self.key in self.evicted

    # --- both hold the key

    def _place(self, seated: Seated) -> Place:
        node = seated.assignment.node_id
        if node != self.key:
            return super()._place(seated)
        self._own_seats.add((seated.assignment.lane, seated.assignment.stage))
        processes = []
        for attack in self._attacks:
            attack.node = node
            connection, withheld = draw_connection(self._rng), Post(old_receipts=self._post.old_receipts)
            post = self._post if connection.speaks else withheld
            seat = self._worker(seated, attack, post)
            processes.append(_Process(seat, connection, withheld))
            self._current.append(seat)
            self._withheld.append(withheld)
        return TwinSeat(processes, self._stale, self._post, self._rng)

    def _run_epoch(self) -> Outcome:
        self._stale, self._current = self._current, []
        for post in self._withheld:
            self._post.messages += post.messages
        self._withheld = []
        self._own_seats = set()
        return super()._run_epoch()

    def _replace_silent(self) -> None:
        """Timeouts convict nobody: another node gets the seat, at the latest after a few tries."""
        super()._replace_silent()
        if self.key is not None and self._rng.random() < 0.5:
            self._absent.add(self.key)

    # --- what must hold

    def _take_receipt(self, message: Posted) -> None:
        if not self._is_recovering:
            self._note(message)
        super()._take_receipt(message)

    def _note(self, message: Posted) -> None:
        """What the key says of its own slots in this epoch, and the ledger hears."""
        if self.key is None or message.sender != self.key or message.epoch != self._epoch:
            return
        try:
            said = read_receipt(message.signed, self._keys[self.key].public_key).receipt
        except InvalidInput:
            return
        slot = (said.epoch, said.lane, said.stage, said.window)
        if said.epoch != self._epoch or (said.lane, said.stage) not in self._own_seats:
            return
        if said.window <= self._last_window or self._ledger._is_after_end(said.window):
            return
        contents = self._contents.setdefault(slot, set())
        contents.add(message.signed.text)
        self._has_double_signed = self._has_double_signed or len(contents) > 1

    def _check_commit(self, step: Commit) -> None:
        super()._check_commit(step)
        for stage in range(self.case.num_stages):
            nodes = {each.receipt.node_id for each in step.receipts if each.receipt.stage == stage}
            if len(nodes) <= self.case.f:
                raise Violation("a commit without a quorum of nodes")

    def _check_fates(self) -> None:
        """Messages of twins get lost, so what each of them did need not come out. Two contents for one slot do."""
        if self._has_double_signed and self.key not in self.evicted:
            raise Violation("a key said two things of one slot and is not convicted")
        if self._twins.is_honest and (self.evicted or self.marked):
            raise Violation("everybody was honest, and somebody is blamed")
