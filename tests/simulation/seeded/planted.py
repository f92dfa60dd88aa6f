"""Bugs to plant: each takes away one thing that keeps histories right. The seeds must find every one of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.coordinator.domain import session
from services.coordinator.domain.session import Session
from services.coordinator.service import sessions
from services.coordinator.service.assigning import Assigning
from services.coordinator.service.member import Member
from services.coordinator.service.sessions import Sessions
from services.scheduler.service.reconciling import Reconciler
from services.worker.service.membership import Membership
from shared.contracts.messages import SessionStop
from shared.domain.errors import ButterflyError
from shared.domain.ids import Epoch, TaskId
from shared.domain.task_state import TaskState
from shared.registry.base import HeldSessions
from tests.fakes.task_registry import MemoryTaskRegistry, _Entry
from tests.simulation.seeded.trial import MakeRegistry

Patch = tuple[object, str, object]


class Unfenced(MemoryTaskRegistry):
    """Takes the tokens of any epoch."""

    def _fenced(self, entry: _Entry, epoch: Epoch) -> bool:
        return entry.record.state is not TaskState.COMPUTING


async def _nothing(*_: object) -> None:
    return None


def _not_told(_: Sessions, task_id: TaskId, epoch: Epoch) -> None:
    return None


def _no_stop(_: Sessions, member: Member, stop: SessionStop) -> None:
    return None


async def _never_renewed(self: Sessions, task_ids: Sequence[TaskId], *, lease_s: float, adopt: int) -> HeldSessions:
    parts = self._parts
    return await parts.registry.hold_sessions((), coordinator=parts.boot_id, lease_s=lease_s, adopt=adopt)


async def _never_joined_again(self: Membership) -> None:
    joined = self._joined or await self._join()
    await self._wait(joined.heartbeat_ms / 1000)
    try:
        answer = await self._coordinator.tell(self._beat())
    except ButterflyError:
        return
    self._on_heard(answer.coordinators)


def _for_ever(_: str) -> float:
    return math.inf


_made = Assigning.__init__


def _one_token_short(self: Assigning, session: Session, *args: object, **options: object) -> None:
    _made(self, session, *args, **options)  # type: ignore[arg-type]  # whatever it takes
    if session.records:
        self._prefix = self._prefix[:-1]


@dataclass(frozen=True, slots=True)
class Bug:
    patches: Sequence[Patch] = ()
    make_registry: MakeRegistry = MemoryTaskRegistry
    first_seed: int = 0
    """From where on it is soon found."""


BUGS: Mapping[str, Bug] = {
    # Two lines of defence: alone, each of them all but always covers the other's absence.
    "tokens of an old epoch are taken, and who lost a session goes on": Bug(
        [(Sessions, "_lost", _not_told)], make_registry=Unfenced, first_seed=80
    ),
    "nothing is reconciled": Bug([(Reconciler, "reconcile", _nothing)], first_seed=10),
    "sessions of a lost coordinator are left alone": Bug([(sessions, "ADOPTED_AT_ONCE", 0)], first_seed=50),
    "leases of sessions are not renewed": Bug([(Sessions, "_hold", _never_renewed)]),
    "seats of sessions that are over are not stopped": Bug([(Sessions, "stop_stale", _no_stop)]),
    "a worker that was forgotten does not join again": Bug([(Membership, "live", _never_joined_again)]),
    "an answer goes on one token too early": Bug([(Assigning, "__init__", _one_token_short)], first_seed=30),
    "a node that refused a seat is never asked again": Bug([(session, "not_asked_for_s", _for_ever)], first_seed=10),
    "one receipt too few is enough": Bug([(Session, "quorum", property(lambda self: 1))]),
}
