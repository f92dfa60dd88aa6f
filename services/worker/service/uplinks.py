"""The coordinators of this worker: it is a member at every replica, and tells each what is about its sessions.

One URL is enough to join by; whoever answers there names the others, at every heartbeat. A replica that nobody names
any more is left alone.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from services.worker.domain.seat import Seat
from services.worker.ports import Report
from services.worker.service.drafts import DraftSender
from services.worker.service.membership import Membership
from services.worker.service.outbox import Outbox
from shared.contracts.coordinator import Registered
from shared.contracts.peer_state import PeerState
from shared.domain.errors import PeerUnavailable
from shared.domain.task import TokenRecord
from shared.runtime.clock import Clock
from shared.runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)

MAX_COORDINATORS = 16
LOOK_EVERY_S = 1.0
UNNAMED_S = 10.0  # a replica that is started again is named again by then
STOP_GRACE_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Uplink:
    """What this worker is to one coordinator. `tasks` run its loops."""

    membership: Membership
    outbox: Outbox
    drafts: DraftSender
    tasks: BackgroundTasks
    client_state: Callable[[], PeerState]
    close: Callable[[], Awaitable[None]]

    def start(self) -> None:
        self.tasks.loop("membership", self.membership.live)
        self.tasks.loop("reports", self.outbox.deliver)
        self.tasks.loop("drafts", self.drafts.send)

    async def stop(self, grace_s: float) -> None:
        await self.tasks.stop(grace_s)
        await self.close()


class Uplinks:
    def __init__(
        self,
        *,
        joins: Sequence[str],
        make: Callable[[str, "Uplinks"], Uplink],
        on_refused: Callable[[str], None],
        tasks: BackgroundTasks,
        clock: Clock,
    ) -> None:
        """`joins`: URLs to join by. `make`: what this worker is to the coordinator at a URL. `on_refused` hears why no
        coordinator wants this worker, and has to end the process."""
        self._joins = tuple(joins)
        self._make = make
        self._on_refused = on_refused
        self._tasks = tasks
        self._clock = clock
        self._uplinks: dict[str, Uplink] = {}
        self._named_at_s: dict[str, float] = {}

    # --- as one who commands

    async def commander(self, token: str) -> str | None:
        """URL of the coordinator that shows this token; None: nobody's."""
        found = self._holder(token)
        if found is None:
            for uplink in list(self._uplinks.values()):
                await uplink.membership.answered()
            found = self._holder(token)
        return found

    # --- as those who are told

    @property
    def drafts_waiting(self) -> int:
        return sum(uplink.drafts.num_waiting for uplink in self._uplinks.values())

    @property
    def reports_waiting(self) -> int:
        return sum(uplink.outbox.num_waiting for uplink in self._uplinks.values())

    def states(self) -> Sequence[PeerState]:
        """What the breakers towards the coordinators know."""
        return tuple(uplink.client_state() for uplink in self._uplinks.values())

    def report(self, report: Report, to: str | None) -> None:
        """`ports.ReportTo`. One that is left alone by now need not hear it."""
        for url, uplink in self._uplinks.items():
            if to in {None, url}:
                uplink.outbox.report(report)

    def add(self, seat: Seat, position: int, record: TokenRecord) -> None:
        """As `DraftSender.add`, to the coordinator of the seat."""
        uplink = self._uplinks.get(seat.report_to)
        if uplink is not None:
            uplink.drafts.add(seat, position, record)

    def hurry(self) -> None:
        for uplink in self._uplinks.values():
            uplink.drafts.hurry()

    def is_told(self, url: str, seat: Seat) -> bool:
        """Whether the coordinator at `url` hears of this seat: of its own, and of those whose coordinator is gone."""
        return seat.report_to == url or seat.report_to not in self._uplinks

    # --- membership

    async def check(self) -> None:
        """For readiness: raises `PeerUnavailable` until a coordinator knows this worker."""
        if not any(uplink.membership.is_joined for uplink in self._uplinks.values()):
            raise PeerUnavailable("not registered with a coordinator")

    async def watch(self) -> None:
        """One turn of the loop: join where nobody is left, leave those alone that nobody names."""
        if not any(uplink.membership.is_joined for uplink in self._uplinks.values()):
            for url in self._joins:
                self._open(url)
        else:
            oldest_s = self._clock.now_s() - UNNAMED_S
            for url in [url for url, named_at_s in self._named_at_s.items() if named_at_s < oldest_s]:
                self._drop(url)
        await self._clock.sleep(LOOK_EVERY_S)

    def joined(self, url: str, answer: Registered) -> None:
        """The coordinator at `url` has answered a registration."""
        if answer.reach_at and answer.reach_at != url:  # several answer there: this one wants to be told apart
            self._open(answer.reach_at)
            self._drop(url)

    def heard(self, url: str, coordinators: Sequence[str]) -> None:
        """The coordinator at `url` is there, and names these."""
        if url in self._uplinks:
            self._named_at_s[url] = self._clock.now_s()
        for other in coordinators:
            self._open(other)
            if other in self._uplinks:
                self._named_at_s[other] = self._clock.now_s()

    def refused(self, url: str, reason: str) -> None:
        """The coordinator at `url` does not want this worker. Others may."""
        if len(self._uplinks) == 1:
            self._on_refused(reason)
        else:
            log.warning("refused_by_coordinator", extra={"url": url, "reason": reason})
            self._drop(url)

    async def leave(self) -> None:
        """Say everywhere that this worker stops."""
        for uplink in list(self._uplinks.values()):
            await uplink.membership.leave()

    async def stop(self, grace_s: float) -> None:
        for uplink in list(self._uplinks.values()):
            await uplink.stop(grace_s)

    # ---

    def _holder(self, token: str) -> str | None:
        return next((url for url, uplink in self._uplinks.items() if uplink.membership.holds(token)), None)

    def _open(self, url: str) -> None:
        if url in self._uplinks or len(self._uplinks) >= MAX_COORDINATORS:
            return
        log.info("coordinator_found", extra={"url": url})
        uplink = self._uplinks[url] = self._make(url, self)
        self._named_at_s[url] = self._clock.now_s()
        uplink.start()

    def _drop(self, url: str) -> None:
        uplink = self._uplinks.pop(url, None)
        self._named_at_s.pop(url, None)
        if uplink is not None:
            log.info("coordinator_left_alone", extra={"url": url})
            _ = self._tasks.start(uplink.stop(STOP_GRACE_S), name=f"leave {url} alone")
