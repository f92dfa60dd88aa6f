"""How long auditors had for their windows."""

from services.coordinator.domain.window_clock import MAX_WINDOWS, WindowClock
from shared.domain.ids import Epoch, TaskId
from shared.domain.receipt import Slot


def slot(lane: int, stage: int, *, window: int = 1, epoch: int = 1) -> Slot:
    return Slot(TaskId("t"), 0, Epoch(epoch), lane, stage, window)


def test_a_stage_had_the_time_since_the_one_before_it_signed() -> None:
    clock = WindowClock()
    assert clock.signed(slot(1, 0), num_stages=3, now_s=1.0) is None  # when lane 0 ended is not known
    assert clock.signed(slot(1, 1), num_stages=3, now_s=1.5) == 0.5
    assert clock.signed(slot(1, 2), num_stages=3, now_s=1.75) == 0.25


def test_the_first_stage_of_an_audit_begins_when_lane_0_has_signed() -> None:
    clock = WindowClock()
    assert [clock.signed(slot(0, stage), num_stages=3, now_s=float(stage)) for stage in range(3)] == [None] * 3
    assert clock.signed(slot(1, 0), num_stages=3, now_s=2.5) == 0.5
    assert clock.signed(slot(2, 0), num_stages=3, now_s=4.0) == 2.0


def test_a_receipt_that_comes_twice_makes_the_next_stage_no_faster() -> None:
    clock = WindowClock()
    clock.signed(slot(1, 0), num_stages=3, now_s=1.0)
    assert clock.signed(slot(1, 1), num_stages=3, now_s=2.0) == 1.0
    assert clock.signed(slot(1, 1), num_stages=3, now_s=2.9) is None
    assert clock.signed(slot(1, 2), num_stages=3, now_s=3.0) == 1.0


def test_windows_and_epochs_are_told_apart() -> None:
    clock = WindowClock()
    clock.signed(slot(1, 0), num_stages=3, now_s=1.0)
    assert clock.signed(slot(1, 1, window=2), num_stages=3, now_s=1.5) is None
    assert clock.signed(slot(1, 1, epoch=2), num_stages=3, now_s=1.5) is None


def test_a_bounded_number_of_windows_is_remembered() -> None:
    clock = WindowClock()
    for window in range(MAX_WINDOWS + 1):
        clock.signed(slot(1, 0, window=window), num_stages=3, now_s=0.0)
    assert clock.signed(slot(1, 1, window=0), num_stages=3, now_s=1.0) is None
    assert clock.signed(slot(1, 1, window=MAX_WINDOWS), num_stages=3, now_s=1.0) == 1.0
