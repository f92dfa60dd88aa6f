"""What every task registry promises of the leases that coordinators have on their sessions."""

from collections.abc import Sequence

import pytest

from shared.domain.errors import StaleEpoch
from shared.domain.ids import Attempt, Epoch, TaskId
from shared.domain.task import FinishReason
from shared.domain.task_state import TaskEvent, TaskState
from shared.registry.base import Commit, HeldSessions, TaskRegistry
from tests.contract.registry_steps import answer, claim, computing, submit
from tests.fakes.tasks import make_task, make_tokens

ONE, OTHER = "coordinator-1", "coordinator-2"
LONG_S = 60.0
AT_ONCE_S = 0.0


async def hold(
    registry: TaskRegistry, coordinator: str, *task_ids: TaskId, lease_s: float = LONG_S, adopt: int = 0
) -> HeldSessions:
    return await registry.hold_sessions(task_ids, coordinator=coordinator, lease_s=lease_s, adopt=adopt)


async def running(registry: TaskRegistry, *, lease_s: float = LONG_S) -> tuple[TaskId, Epoch]:
    """A task in Computing whose session is held by `ONE`."""
    task = make_task()
    _, epoch = await computing(registry, task)
    await hold(registry, ONE, task.task_id, lease_s=lease_s)
    return task.task_id, epoch


def one_token(task_id: TaskId, epoch: Epoch, at: int = 0) -> Sequence[Commit]:
    return (Commit(task_id, epoch, at, make_tokens(7)),)


async def test_a_session_is_its_coordinators_while_the_lease_holds(registry: TaskRegistry) -> None:
    task_id, epoch = await running(registry)
    others = await hold(registry, OTHER, adopt=10)
    assert (others.lost, others.adopted) == ((), ())
    assert others.next_lapse_s == pytest.approx(LONG_S, abs=5.0)
    assert (await hold(registry, ONE, task_id)).lost == ()
    assert await registry.commit(one_token(task_id, epoch)) == (1,)


async def test_a_lapsed_session_is_adopted_once_and_its_former_coordinator_is_fenced(registry: TaskRegistry) -> None:
    task_id, epoch = await running(registry, lease_s=AT_ONCE_S)
    assert (await hold(registry, OTHER, adopt=10)).adopted == (task_id,)
    assert (await hold(registry, "coordinator-3", adopt=10)).adopted == ()
    record = await registry.record(task_id)
    assert (record.state, record.epoch) == (TaskState.COMPUTING, epoch + 1)
    assert await registry.commit(one_token(task_id, epoch)) == (None,)
    assert not await registry.finish(task_id, epoch=epoch, finish=answer(FinishReason.LENGTH, 0), last=None)
    with pytest.raises(StaleEpoch):
        await registry.advance(task_id, TaskEvent.FAIL, epoch=epoch, error_code="x")
    with pytest.raises(StaleEpoch):
        await registry.open_session(task_id, attempt=None, plan_id="p", coordinator=ONE, lease_s=LONG_S)
    assert (await hold(registry, ONE, task_id)).lost == (task_id,)


async def test_who_adopted_a_session_opens_it_anew_and_goes_on(registry: TaskRegistry) -> None:
    task_id, epoch = await running(registry, lease_s=AT_ONCE_S)
    await registry.commit(one_token(task_id, epoch))
    await hold(registry, OTHER, adopt=10)
    fresh, _, tokens = await registry.open_session(
        task_id, attempt=None, plan_id="p", coordinator=OTHER, lease_s=LONG_S
    )
    assert (fresh, tokens) == (epoch + 2, make_tokens(7))
    await registry.advance(task_id, TaskEvent.COORDINATION_COMPLETE, epoch=fresh)
    assert await registry.commit(one_token(task_id, fresh, at=1)) == (2,)


async def test_a_lapsed_session_that_nobody_took_is_still_its_coordinators(registry: TaskRegistry) -> None:
    task_id, _ = await running(registry, lease_s=AT_ONCE_S)
    assert (await hold(registry, ONE, task_id)).lost == ()
    assert (await hold(registry, OTHER, adopt=10)).adopted == ()


async def test_no_more_sessions_are_adopted_than_wished(registry: TaskRegistry) -> None:
    for _ in range(3):
        await running(registry, lease_s=AT_ONCE_S)
    assert (await hold(registry, OTHER)).adopted == ()
    assert len((await hold(registry, OTHER, adopt=2)).adopted) == 2
    assert len((await hold(registry, OTHER, adopt=2)).adopted) == 1


async def test_more_sessions_than_one_script_takes_are_held_together(registry: TaskRegistry) -> None:
    task_ids = [(await running(registry))[0] for _ in range(3)]
    strangers = [TaskId(f"task_{number}") for number in range(300)]
    held = await hold(registry, ONE, *strangers, *task_ids)
    assert set(held.lost) == set(strangers)


async def test_an_ended_session_is_nobodys(registry: TaskRegistry) -> None:
    ended, epoch = await running(registry)
    assert await registry.finish(ended, epoch=epoch, finish=answer(FinishReason.LENGTH, 0), last=None)
    cancelled, _ = await running(registry)
    await registry.cancel(cancelled)
    held = await hold(registry, ONE, ended, cancelled)
    assert (set(held.lost), held.next_lapse_s) == ({ended, cancelled}, None)


async def test_a_task_that_is_queued_again_is_held_by_nobody(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    (claimed,) = await claim(registry, plan="plan-1")
    await registry.open_session(
        task.task_id, attempt=claimed.attempt, plan_id="plan-1", coordinator=ONE, lease_s=AT_ONCE_S
    )
    await registry.advance(task.task_id, TaskEvent.REQUEUE, attempt=claimed.attempt)
    assert await hold(registry, OTHER, adopt=10) == HeldSessions((), (), None)


async def test_a_session_that_is_being_coordinated_is_adopted_as_well(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    (claimed,) = await claim(registry, plan="plan-1")
    epoch, _, _ = await registry.open_session(
        task.task_id, attempt=claimed.attempt, plan_id="plan-1", coordinator=ONE, lease_s=AT_ONCE_S
    )
    assert (await hold(registry, OTHER, adopt=10)).adopted == (task.task_id,)
    with pytest.raises(StaleEpoch):
        await registry.advance(task.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=epoch)


async def test_the_scheduler_may_give_a_session_to_another_coordinator(registry: TaskRegistry) -> None:
    """Its first call may have got no answer: whoever is asked last has the session."""
    task = make_task()
    await submit(registry, task)
    (claimed,) = await claim(registry, plan="plan-1")
    opened = [
        await registry.open_session(
            task.task_id, attempt=claimed.attempt, plan_id="plan-1", coordinator=coordinator, lease_s=LONG_S
        )
        for coordinator in (ONE, OTHER)
    ]
    assert claimed.attempt == Attempt(1)
    with pytest.raises(StaleEpoch):
        await registry.advance(task.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=opened[0][0])
    assert (await hold(registry, ONE, task.task_id)).lost == (task.task_id,)
    assert (await hold(registry, OTHER, task.task_id)).lost == ()
