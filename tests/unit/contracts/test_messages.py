"""What no worker can say, whatever it means by it."""

import math

import pytest
from pydantic import ValidationError

from shared.contracts.messages import MAX_STAGES_PER_NODE, to_coordinator

STAGE = {"model_id": "tiny", "model_root": "ab" * 32, "layers": {"start": 0, "end": 4}, "num_layers": 6}


def heartbeat(*stages: dict[str, object]) -> dict[str, object]:
    return {"type": "heartbeat", "boot_id": "boot-1", "stages": stages}


def test_a_heartbeat_names_the_stages_of_its_node() -> None:
    to_coordinator.validate_python(heartbeat(STAGE))


@pytest.mark.parametrize(
    "change",
    [
        {"model_id": "x" * 1_000},
        {"model_root": "x" * 1_000},
        {"layers": {"start": 0, "end": 10**30}},
        {"layers": {"start": -1, "end": 4}},
        {"layers": {"start": 4, "end": 4}},
        {"num_layers": 10**30},
    ],
)
def test_a_stage_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        to_coordinator.validate_python(heartbeat(STAGE | change))


def test_more_stages_than_a_node_can_hold_are_refused() -> None:
    with pytest.raises(ValidationError):
        to_coordinator.validate_python(heartbeat(*[STAGE] * (MAX_STAGES_PER_NODE + 1)))


DRIFT = {"wall": 1.2, "cpu": 1.1, "batch": 1.3, "chunk": None, "handling_s": 0.001}


def test_a_heartbeat_says_what_calls_take_by_now() -> None:
    to_coordinator.validate_python(heartbeat() | {"drift": DRIFT})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in ("wall", "cpu", "batch", "chunk") for value in (0.0, -1.0, math.nan, math.inf)),
        *(("handling_s", value) for value in (-1e-9, math.nan, math.inf)),
    ],
)
def test_calls_that_cannot_be_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError):
        to_coordinator.validate_python(heartbeat() | {"drift": DRIFT | {field: value}})
