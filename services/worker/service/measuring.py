"""Measures this node when a coordinator asks for it, and tells all of them."""

import logging
from collections.abc import Sequence

from services.worker.ports import ReportTo
from services.worker.service.incoming_links import IncomingLinks
from services.worker.service.outgoing_links import OutgoingLinks
from services.worker.service.probing import LinkProbes
from services.worker.service.seating import Seating
from services.worker.service.stages import StagePool
from services.worker.service.trials import Trials
from shared.contracts.messages import Ack, LinkEnds, MeasureNode, MeetPeers, NodeMeasured, StageRef
from shared.domain.errors import ButterflyError
from shared.domain.measured import Pace, PeerLink, StageTimes
from shared.runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)


class Measuring:
    """One measuring at a time: two would measure each other."""

    def __init__(
        self,
        *,
        trials: Trials,
        probes: LinkProbes,
        stages: StagePool,
        incoming: IncomingLinks,
        outgoing: OutgoingLinks,
        seating: Seating,
        report: ReportTo,
        tasks: BackgroundTasks,
    ) -> None:
        self._trials, self._probes, self._stages = trials, probes, stages
        self._incoming, self._outgoing, self._seating = incoming, outgoing, seating
        self._report = report
        self._tasks = tasks
        self._is_measuring = False

    async def meet(self, message: MeetPeers) -> Ack:
        for ends in message.peers:
            self._probes.expect(ends.previous.node_id)
        self._open(message.peers)
        return Ack()

    async def measure(self, message: MeasureNode) -> Ack:
        """`ready`: nothing was begun, for an earlier measuring is not over; all coordinators hear of that one."""
        if self._is_measuring:
            return Ack(ready=True)
        self._is_measuring = True
        _ = self._tasks.start(self._measure(message), name="measure this node")
        return Ack(ready=False)

    async def _measure(self, message: MeasureNode) -> None:
        found = NodeMeasured()
        try:
            found = await self._found(message)
        finally:  # whatever went wrong here, a coordinator waits for the answer
            self._is_measuring = False
            self._report(found, None)

    async def _found(self, message: MeasureNode) -> NodeMeasured:
        self._open(message.peers)
        pace = await self._pace() if message.has_pace else None
        stages = await self._stage_times(message.stages)
        return NodeMeasured(pace=pace, stages=stages, links=await self._links(message.peers))

    def _open(self, peers: Sequence[LinkEnds]) -> None:
        """Links that carry rows stay as they are: one that is opened anew loses the rows under way."""
        before = {one.seat.previous for one in self._seating}
        after = {one.seat.next for one in self._seating}
        for ends in peers:
            if ends.previous.node_id not in before:
                self._incoming.expect(ends.previous)
            if ends.next.node_id not in after:
                self._outgoing.open(ends.next)

    async def _pace(self) -> Pace | None:
        try:
            return await self._trials.pace()
        except ButterflyError as error:
            log.info("pace_not_measured", extra={"code": error.code, "reason": error.message[:200]})
            return None

    async def _stage_times(self, refs: Sequence[StageRef]) -> tuple[StageTimes, ...]:
        found: list[StageTimes] = []
        for ref in refs:
            runner = self._stages.get(ref)
            if runner is None:
                continue
            try:
                times = await self._trials.stage(runner)
            except ButterflyError as error:
                log.info("stage_not_measured", extra={"layers": str(ref.layers), "reason": error.message[:200]})
            else:
                self._stages.note_times(runner, times)
                found.append(times)
        return tuple(found)

    async def _links(self, peers: Sequence[LinkEnds]) -> tuple[PeerLink, ...]:
        timed = [await self._probes.time(ends.next.node_id) for ends in peers]
        return tuple(link for link in timed if link is not None)
