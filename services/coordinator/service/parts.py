"""What every session works with, how its run may end, and its writes to the registry."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.coordinator.domain.blame import PairMarks
from services.coordinator.domain.lane_rules import LaneRules
from services.coordinator.domain.resuming import WindowSizes
from services.coordinator.domain.session import Session
from services.coordinator.domain.slots import SlotLedger
from services.coordinator.ports import EvidenceStore, Partitioner
from services.coordinator.service.committer import Committer
from services.coordinator.service.membership import Membership
from services.coordinator.service.relays import Relays
from services.coordinator.service.tail_book import TailBook
from shared.domain.errors import Fenced, NotFound, RegistryUnavailable
from shared.domain.ids import NodeId
from shared.domain.signing import SigningKey
from shared.events.publisher import Publisher
from shared.registry.base import TaskRegistry
from shared.registry.receipts import ReceiptStore
from shared.runtime.clock import Clock
from shared.runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)

T = TypeVar("T")

REGISTRY_RETRY_S = 0.25


@dataclass(frozen=True, slots=True)
class Parts:
    """What every session works with."""

    registry: TaskRegistry
    receipts: ReceiptStore
    evidence: EvidenceStore
    members: Membership
    partitioner: Partitioner
    committer: Committer
    slots: SlotLedger
    events: Publisher
    clock: Clock
    tasks: BackgroundTasks
    boot_id: str
    """Of this run of the coordinator: sessions are held under it."""
    key: SigningKey
    """The coordinator's: signs orders and commits."""
    windows: WindowSizes
    pair_marks: PairMarks
    trusted: frozenset[NodeId]
    """The operator's own: their word settles a dispute."""
    lane_rules: LaneRules
    shuffled: Callable[[Sequence[NodeId]], Sequence[NodeId]]
    """In an order that nobody can guess: who audits is drawn with it."""
    relays: Relays
    tail: TailBook
    link_secret: bytes
    """The same of all replicas: the sessions of all of them share the links between workers."""


class Lost(Exception):
    """No error: a seat is lost, the session recovers."""


class Over(Exception):
    """No error: the task is not ours any more, but cancelled, ended or taken over."""


class Failed(Exception):
    """The task cannot be saved."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


async def persist(parts: Parts, session: Session, write: Callable[[], Awaitable[T]]) -> T:
    """The result of a call to a store, tried again while the store is away. `Over` when we are fenced off."""
    is_away = False
    while True:
        try:
            return await write()
        except (Fenced, NotFound):
            raise Over from None
        except RegistryUnavailable as error:
            if not is_away:  # once per outage
                log.warning("registry_away", extra={"task_id": session.task.task_id, "error": error.message})
            is_away = True
            await parts.clock.sleep(REGISTRY_RETRY_S)
            if session.cancelled or session.expired:
                raise Over from None  # the scheduler's reconciler ends it in the registry
