"""Whole lanes of workers, run as a coordinator would: lane 0 decodes, an audit lane replays what it is released."""

from collections.abc import Sequence

from shared.domain.receipt import SignedReceipt
from shared.domain.task import TokenRecord
from shared.domain.windows import Window, WindowSchedule
from tests.fakes.coordinator import FakeCoordinator, Job, Run
from tests.fakes.orders import CHECKPOINT_INTERVAL, WINDOW_CHECKPOINTS

Digests = list[tuple[str, str]]


def boundaries(lane: Sequence[Sequence[SignedReceipt]]) -> list[Digests]:
    """Per boundary, from the ids up, its chain before and after each window; neighbours agree on it."""
    below = [[(one.receipt.in_start, one.receipt.in_digest) for one in seat] for seat in lane]
    above = [[(one.receipt.out_start, one.receipt.out_digest) for one in seat] for seat in lane]
    assert below[1:] == above[:-1]
    return [*below, above[-1]]


def ended(windows: WindowSchedule, num_rows: int) -> list[Window]:
    """The epoch's windows of a session of so many rows."""
    found = [windows.window(windows.first_index)]
    while found[-1].row_end < num_rows:
        found.append(windows.window(found[-1].index + 1))
    return [*found[:-1], found[-1].closed_at(num_rows)]


def schedule_of(job: Job) -> WindowSchedule:
    first_row = len(job.prompt_ids) + len(job.generated_ids) - 1 if job.generated_ids else 0
    return WindowSchedule(
        len(job.prompt_ids), job.first_window or 0, first_row, CHECKPOINT_INTERVAL, WINDOW_CHECKPOINTS
    )


async def decode(coordinator: FakeCoordinator, run: Run) -> list[list[SignedReceipt]]:
    """All of lane 0, its last window closed where it ends."""
    await run.until()
    num_rows = len(run.job.prompt_ids) + len(run.job.generated_ids) + len(run.records) - 1
    windows = ended(schedule_of(run.job), num_rows)
    await coordinator.seal(run, windows[-1].index, num_rows)
    return await coordinator.signed(run, len(windows))


async def replay(
    coordinator: FakeCoordinator, job: Job, records: Sequence[TokenRecord]
) -> tuple[list[list[SignedReceipt]], list[TokenRecord]]:
    """All of an audit lane, window after window, from the ids alone: `records` are those of lane 0."""
    ids = (*job.prompt_ids, *job.generated_ids, *(record.token_id for record in records))
    run = await coordinator.begin(job)
    windows = ended(schedule_of(job), len(ids) - 1)
    await coordinator.seal(run, windows[-1].index, windows[-1].row_end)
    for count, window in enumerate(windows, 1):
        await coordinator.release(run, window.index, window.row_start, ids[window.row_start : window.row_end])
        await coordinator.signed(run, count)
    return run.receipts, run.records
