import asyncio

from shared.domain.errors import PeerUnavailable, RegistryUnavailable, RegistryUntrusted
from shared.runtime.readiness import CheckState, Readiness, judge
from shared.runtime.tasks import BackgroundTasks
from tests.fakes.clock import FakeClock


class Dependency:
    def __init__(self) -> None:
        self.is_up = False
        self.asked = 0

    async def check(self) -> None:
        self.asked += 1
        if not self.is_up:
            raise PeerUnavailable("coordinator cannot be reached")


async def test_a_service_is_ready_once_every_dependency_was_reached() -> None:
    clock, one, other = FakeClock(), Dependency(), Dependency()
    readiness = Readiness({"one": one.check, "other": other.check}, clock)
    tasks = BackgroundTasks(clock)
    tasks.loop("readiness", readiness.round)
    await clock.settle()
    assert readiness.report(is_draining=False).status == "starting"
    one.is_up = True
    await clock.advance(0.3)
    report = readiness.report(is_draining=False)
    assert not report.is_ready
    assert report.checks["one"].ok
    assert report.checks["other"].error == "coordinator cannot be reached"
    other.is_up = True
    await clock.advance(0.3)
    assert readiness.report(is_draining=False).status == "ready"
    await tasks.stop(grace_s=1)


async def test_a_later_outage_degrades_but_takes_nothing_away() -> None:
    clock, dependency = FakeClock(), Dependency()
    dependency.is_up = True
    readiness = Readiness({"redis": dependency.check}, clock)
    tasks = BackgroundTasks(clock)
    tasks.loop("readiness", readiness.round)
    await clock.settle()
    dependency.is_up = False
    await clock.advance(2.1)
    report = readiness.report(is_draining=False)
    assert (report.status, report.is_ready) == ("degraded", True)
    await tasks.stop(grace_s=1)


async def test_the_answer_comes_from_memory() -> None:
    clock, dependency = FakeClock(), Dependency()
    dependency.is_up = True
    readiness = Readiness({"redis": dependency.check}, clock)
    round_ = asyncio.create_task(readiness.round())
    await clock.settle()
    for _ in range(10):
        readiness.report(is_draining=False)
    assert dependency.asked == 1
    await clock.advance(2)
    await round_


def test_a_draining_service_is_not_ready() -> None:
    report = Readiness({}, FakeClock()).report(is_draining=True)
    assert (report.status, report.is_ready) == ("draining", False)


def test_a_dependency_that_may_have_forgotten_takes_readiness_away() -> None:
    checks = {"registry": CheckState(ok=False, reached_once=True, untrusted=True, error="the server lost data")}
    report = judge(checks, is_draining=False)
    assert not report.is_ready
    assert report.status == "untrusted"


async def test_being_away_as_well_does_not_mend_what_may_have_forgotten() -> None:
    clock = FakeClock()
    answers: list[Exception | None] = [None, RegistryUntrusted("lost data"), RegistryUnavailable("away"), None]
    left = iter(answers)

    async def check() -> None:
        answer = next(left)
        if answer is not None:
            raise answer

    readiness = Readiness({"registry": check}, clock)
    statuses = []
    for _ in answers:
        turn = asyncio.ensure_future(readiness.round())
        await clock.settle()
        statuses.append(readiness.report(is_draining=False).status)
        await clock.advance(2)
        await turn
    assert statuses == ["ready", "untrusted", "untrusted", "ready"]
