"""Faults that strike at random, so that no window is the first bad one by design; and how often they did."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np

from services.worker.domain.identity import Identity
from services.worker.ports import (
    EngineLoader,
    Ints,
    LoadedEngine,
    Mask,
    ReceiptSigner,
    Rows,
    StageEngine,
    StageFile,
    TrialStage,
)
from services.worker.service.receipts import KeySigner
from shared.contracts.messages import StageRef, WorkAssignment
from shared.domain.receipt import Receipt
from shared.domain.signing import Signed
from tests.byzantine.engine_faults import Fault, LyingEngine
from tests.byzantine.seat_watch import Place

SeatPlace = tuple[int, int]
"""(lane, stage)"""


@dataclass
class Told:
    """By one lying node."""

    is_stubborn: bool
    """It sticks to its lies: from the first one on it tells nothing else. Else it is honest when it is asked again."""
    lies: int = 0
    """Results or receipts that were not as an honest node's."""
    receipts: Counter[SeatPlace] = field(default_factory=Counter)
    """Signed, true ones included."""

    def is_due(self, chance: float, rng: Random) -> bool:
        """Whether it is to lie now."""
        return rng.random() < chance or (self.is_stubborn and self.lies > 0)


class SeldomEngine(LyingEngine):
    """An honest engine, and what a fault makes of some of its answers."""

    def __init__(
        self, honest: StageEngine, fault: Fault, *, is_last: bool, chance: float, rng: Random, told: Told
    ) -> None:
        """`chance`: of each call."""
        super().__init__(honest)
        self._fault, self._is_last = fault, is_last
        self._chance, self._rng, self._told = chance, rng, told
        self._calls = 0

    def forward(self, x: Ints | Rows, slots: Ints, positions: Ints, want: Mask | None = None) -> Rows:
        self._calls += 1
        if not self._told.is_due(self._chance, self._rng):
            return self._honest.forward(x, slots, positions, want)
        fed = self._fault.feed(x, positions)
        result = self._honest.forward(fed, slots, positions, want)
        altered = self._fault.alter(x, result, self._calls, is_last=self._is_last) if len(result) else result
        self._told.lies += not (np.array_equal(fed, x) and np.array_equal(altered, result))
        return altered


class SeldomLoader(EngineLoader):
    """Loads honest engines, passes their self-test, and then plugs the fault in."""

    def __init__(self, honest: EngineLoader, fault: Fault, *, chance: float, rng: Random, told: Told) -> None:
        self._honest, self._fault = honest, fault
        self._chance, self._rng, self._told = chance, rng, told

    def load(self, ref: StageRef, file: StageFile, *, n_slots: int, ctx_per_slot: int) -> LoadedEngine:
        loaded = self._honest.load(ref, file, n_slots=n_slots, ctx_per_slot=ctx_per_slot)
        engine = SeldomEngine(
            loaded.engine,
            self._fault,
            is_last=ref.layers.end == ref.num_layers,
            chance=self._chance,
            rng=self._rng,
            told=self._told,
        )
        return replace(loaded, engine=engine)

    def load_trial(self) -> TrialStage:
        return self._honest.load_trial()


class SeldomSigner(ReceiptSigner):
    def __init__(
        self,
        identity: Identity,
        make_signer: Callable[[Identity], ReceiptSigner],
        *,
        chance: float,
        rng: Random,
        told: Told,
    ) -> None:
        """`chance`: of each receipt."""
        self._honest, self._false = KeySigner(identity), make_signer(identity)
        self._chance, self._rng, self._told = chance, rng, told

    def sign(self, receipt: Receipt) -> Signed:
        self._told.receipts[receipt.lane, receipt.stage] += 1
        honest = self._honest.sign(receipt)
        if not self._told.is_due(self._chance, self._rng):
            return honest
        signed = self._false.sign(receipt)
        self._told.lies += signed != honest
        return signed


class SeldomPlace(Place):
    """Every seat, now and then: for lies about links and in reports."""

    def __init__(self, *, chance: float, rng: Random, told: Told) -> None:
        """`chance`: of each frame or report."""
        super().__init__(lane=0, stage=0, sleeps_tasks=0, told=Path())
        self._chance, self._rng, self._count = chance, rng, told

    def assigned(self, order: WorkAssignment) -> None:
        super().assigned(order)
        if order.next is not None:
            self.neighbour = order.next.node_id

    def lies_at(self, lane: int, stage: int) -> bool:
        return self._count.is_due(self._chance, self._rng)

    def lies_to(self, lane: int, stage: int) -> bool:
        return self._count.is_due(self._chance, self._rng)

    def tell(self, task_id: str, window: int, what: str) -> None:
        self._count.lies += 1
