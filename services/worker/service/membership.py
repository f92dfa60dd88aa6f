"""This worker as a member at one coordinator: joins, says that it lives, joins again when forgotten, leaves."""

import asyncio
import hmac
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence

from services.worker.domain.identity import CoordinatorKey, Identity
from services.worker.domain.seat import Seat
from services.worker.ports import Coordinator, JoinRefused
from services.worker.service.seating import Seating
from services.worker.service.sessions import SessionService
from services.worker.service.stages import StagePool
from shared.contracts.coordinator import Registered, RegisterNode
from shared.contracts.messages import Heartbeat, Leave, SessionPosition, SignedText
from shared.domain.errors import ButterflyError, InvalidCredentials, NodeNotFound
from shared.domain.node_proof import make_proof
from shared.domain.plan import NodeCapability
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.2
LONGEST_RETRY_S = 5.0
MAX_POSITIONS = 4_096


def registration(
    identity: Identity, capability: NodeCapability, address: str, *, boot_id: str, coordinator: str
) -> RegisterNode:
    """What this node sends to join. `coordinator`: the URL it joins at, without a slash at the end."""
    proof = make_proof(identity.key, address=address, boot_id=boot_id, coordinator=coordinator)
    return RegisterNode(
        capability=capability,
        address=address,
        boot_id=boot_id,
        public_key=identity.key.public_key.hex(),
        proof=SignedText.of(proof),
    )


class Membership:
    def __init__(
        self,
        *,
        coordinator: Coordinator,
        request: RegisterNode,
        coordinator_key: CoordinatorKey,
        stages: StagePool,
        seating: Seating,
        sessions: SessionService,
        on_joined: Callable[[Registered], None],
        on_heard: Callable[[Sequence[str]], None],
        on_refused: Callable[[str], None],
        is_told_here: Callable[[Seat], bool],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """`coordinator_key` is set, and `on_joined` hears the cluster's addresses, at every registration. `on_heard`
        hears of the coordinators that are here, at every answer. `on_refused` hears why this worker will never be a
        member. `is_told_here`: whether this coordinator is told of a seat. `rng`: for jitter."""
        self._coordinator = coordinator
        self._request = request
        self._coordinator_key = coordinator_key
        self._stages = stages
        self._seating = seating
        self._sessions = sessions
        self._on_joined = on_joined
        self._on_heard = on_heard
        self._on_refused = on_refused
        self._is_told_here = is_told_here
        self._clock = clock
        self._rng = rng
        self._joined: Registered | None = None
        self._not_joining = asyncio.Event()
        self._not_joining.set()
        self._timer_lag_ms = 0.0

    @property
    def is_joined(self) -> bool:
        return self._joined is not None

    def holds(self, token: str) -> bool:
        """Whether this is what the coordinator shows when it commands this worker."""
        joined = self._joined
        return joined is not None and hmac.compare_digest(joined.coordinator_token.encode(), token.encode())

    async def answered(self) -> None:
        """The coordinator may command before its answer to the registration is here: this waits for that."""
        await self._not_joining.wait()

    async def live(self) -> None:
        """One turn of the loop: join if need be, wait for the next beat, send it."""
        try:
            joined = self._joined or await self._join()
        except JoinRefused as refused:
            self._on_refused(refused.message)
            await asyncio.Event().wait()  # there is nothing left to do for this loop
            return
        await self._wait(joined.heartbeat_ms / 1000)
        try:
            answer = await self._coordinator.tell(self._beat())
        except (NodeNotFound, InvalidCredentials):
            log.warning("forgotten_by_coordinator")
            self._joined = None
        except ButterflyError as error:  # the next beat tries again; the lease is several beats long
            log.warning("heartbeat_failed", extra={"code": error.code})
        else:
            self._on_heard(answer.coordinators)

    async def leave(self) -> None:
        """Say that this worker stops, so that nobody waits for its lease."""
        if self._joined is None:
            return
        try:
            await self._coordinator.tell(Leave(boot_id=self._request.boot_id))
        except ButterflyError as error:
            log.warning("leave_failed", extra={"code": error.code})

    async def _join(self) -> Registered:
        wait_s = FIRST_RETRY_S
        while True:
            self._not_joining.clear()
            try:
                joined = self._joined = await self._coordinator.register(self._request)
            except JoinRefused:
                raise
            except ButterflyError as error:
                log.warning("not_registered", extra={"code": error.code, "reason": error.message})
            else:
                log.info("registered", extra={"node_id": self._request.capability.node_id})
                self._coordinator_key.value = bytes.fromhex(joined.coordinator_key)
                self._on_joined(joined)
                self._on_heard(joined.coordinators)
                return joined
            finally:
                self._not_joining.set()
            await self._clock.sleep(wait_s * self._rng.uniform(0.5, 1.0))
            wait_s = min(LONGEST_RETRY_S, wait_s * 2)

    async def _wait(self, seconds: float) -> None:
        """Sleep, and note how much longer it took: a worker short of time says so."""
        began_s = self._clock.now_s()
        await self._clock.sleep(seconds)
        self._timer_lag_ms = max(0.0, (self._clock.now_s() - began_s - seconds) * 1000)

    def _beat(self) -> Heartbeat:
        here = [one for one in self._seating if self._is_told_here(one.seat)]
        positions = [
            SessionPosition(
                task_id=one.seat.key.task_id,
                epoch=one.seat.epoch,
                lane=one.seat.key.lane,
                stage=one.seat.key.stage,
                rows=one.seat.reached,
            )
            for one in here
        ]
        runners = self._stages.runners
        elsewhere = Counter(one.runner for one in self._seating if not self._is_told_here(one.seat))
        return Heartbeat(
            boot_id=self._request.boot_id,
            stages=tuple(runner.ref for runner in runners),
            slots_used=len(self._seating),
            slots_elsewhere=tuple(elsewhere[runner] for runner in runners) if elsewhere else (),
            sessions=tuple(positions[:MAX_POSITIONS]),
            timer_lag_ms=self._timer_lag_ms,
            draining=self._sessions.is_draining,
            drift=self._stages.drift(),
        )
