from services.worker.service.outbox import RETRY_S, Outbox
from shared.contracts.messages import LinkFault
from shared.domain.errors import NodeNotFound, PeerUnavailable, StaleEpoch
from shared.domain.ids import NodeId
from shared.runtime.tasks import BackgroundTasks
from tests.fakes.clock import FakeClock
from tests.fakes.worker_parts import RecordingCoordinator


def fault(peer: str) -> LinkFault:
    return LinkFault(peer=NodeId(peer), outgoing=True, reason="broke")


async def test_reports_arrive_in_order_also_when_the_coordinator_was_away() -> None:
    clock, coordinator = FakeClock(), RecordingCoordinator()
    tasks, outbox = BackgroundTasks(clock), Outbox(coordinator=coordinator, clock=clock)
    tasks.loop("reports", outbox.deliver)
    coordinator.errors += [PeerUnavailable("away"), NodeNotFound("register again")]
    outbox.report(fault("a"))
    outbox.report(fault("b"))
    await clock.advance(3 * RETRY_S)
    assert coordinator.told == [fault("a"), fault("b")]
    await tasks.stop(1.0)


async def test_a_report_that_is_refused_is_not_sent_again() -> None:
    clock, coordinator = FakeClock(), RecordingCoordinator()
    tasks, outbox = BackgroundTasks(clock), Outbox(coordinator=coordinator, clock=clock)
    tasks.loop("reports", outbox.deliver)
    coordinator.errors += [StaleEpoch("over")]
    outbox.report(fault("a"))
    outbox.report(fault("b"))
    await clock.advance(RETRY_S)
    assert coordinator.told == [fault("b")]
    assert outbox.num_waiting == 0
    await tasks.stop(1.0)
