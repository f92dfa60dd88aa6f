"""What every task registry promises of disputes about what was signed."""

import pytest

from shared.domain.errors import StaleEpoch, TaskNotFound
from shared.domain.ids import Epoch, TaskId
from shared.registry.base import TaskRegistry
from tests.contract.registry_steps import computing, stream
from tests.fakes.tasks import make_task


async def test_they_are_counted_once_per_epoch_and_told_on_the_stream(registry: TaskRegistry) -> None:
    task = make_task()
    _, epoch = await computing(registry, task)
    assert (await registry.record(task.task_id)).num_disputes == 0
    for _ in range(2):  # may arrive twice
        await registry.note_dispute(task.task_id, epoch=epoch, window=3, stage=1)
    second, record, _ = await registry.open_session(
        task.task_id, attempt=None, plan_id="plan-2", coordinator="coordinator-1", lease_s=3.0
    )
    assert record.num_disputes == 1
    await registry.note_dispute(task.task_id, epoch=second, window=3, stage=None)
    assert (await registry.record(task.task_id)).num_disputes == 2
    told = [entry.data for entry in await stream(registry, task.task_id) if entry.kind == "dispute"]
    assert told == [{"window": 3, "stage": 1}, {"window": 3, "stage": None}]


async def test_an_epoch_that_is_over_has_none(registry: TaskRegistry) -> None:
    task = make_task()
    _, epoch = await computing(registry, task)
    await registry.open_session(task.task_id, attempt=None, plan_id="plan-2", coordinator="coordinator-1", lease_s=3.0)
    with pytest.raises(StaleEpoch):
        await registry.note_dispute(task.task_id, epoch=epoch, window=0, stage=0)
    with pytest.raises(TaskNotFound):
        await registry.note_dispute(TaskId("unknown"), epoch=Epoch(1), window=0, stage=0)
    assert (await registry.record(task.task_id)).num_disputes == 0
