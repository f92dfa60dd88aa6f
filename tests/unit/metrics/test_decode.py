import dataclasses
from enum import Enum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from pydantic import ValidationError

from services.metrics.decode import decode_event
from shared.contracts.metrics import EventBatch, EventEnvelope
from shared.events.catalogue import EVENT_TYPES, BytesTransferred, StepTimed, TaskCompleted
from shared.events.publisher import envelope_of


def envelope(kind: str, data: dict[str, object]) -> EventEnvelope:
    return EventEnvelope.model_validate(
        {"id": "b-1", "time": 1.0, "type": kind, "source": "n1", "subject": "", "data": data}
    )


STEP = {"node_id": "n1", "stage": 0, "rows": 4, "duration_ms": 10.0, "role": "decode"}


def test_an_event_comes_back_as_it_was_sent() -> None:
    event = TaskCompleted("t1", 12.5, ("n1", "n2"))
    data = dataclasses.asdict(event)
    assert decode_event(envelope("TaskCompleted", data), is_trusted=True) == event


def sample(hint: Any) -> object:  # any annotation of a field of the catalogue
    """Some value of the type."""
    arguments = get_args(hint)
    if get_origin(hint) in {Union, UnionType, Literal}:
        return arguments[0] if get_origin(hint) is Literal else sample(arguments[0])
    if get_origin(hint) is tuple:
        return (sample(arguments[0]),) * 2
    if issubclass(hint, Enum):
        return next(iter(hint))
    return {str: "x", int: 1, float: 1.5, bool: True}[hint]


@pytest.mark.parametrize("kind", EVENT_TYPES.values(), ids=lambda kind: kind.__name__)
def test_every_event_of_the_catalogue_travels(kind: type[Any]) -> None:
    event = kind(**{name: sample(hint) for name, hint in get_type_hints(kind).items()})
    sent = envelope_of(event, event_id="b-1", at_s=1.0, source="n1")
    arrived = EventEnvelope.model_validate_json(sent.model_dump_json())
    assert decode_event(arrived, is_trusted=True) == event


def test_a_worker_may_tell_of_its_steps_but_not_that_a_task_is_done() -> None:
    assert decode_event(envelope("StepTimed", STEP), is_trusted=False) == StepTimed("n1", 0, 4, 10.0)
    completed = envelope("TaskCompleted", {"task_id": "t1", "latency_ms": 1.0})
    assert decode_event(completed, is_trusted=False) is None


@pytest.mark.parametrize(
    "change",
    [
        {"duration_ms": -1.0},
        {"rows": -1},
        {"role": "mine"},
        {"extra": 1},
        {"node_id": None},
        {"stage": "zero"},
    ],
)
def test_what_breaks_the_catalogue_is_left_out(change: dict[str, object]) -> None:
    assert decode_event(envelope("StepTimed", STEP | change), is_trusted=True) is None


def test_an_unknown_type_is_left_out() -> None:
    assert decode_event(envelope("ClusterIsMine", {}), is_trusted=True) is None


def test_negative_bytes_cannot_be_claimed() -> None:
    data = dataclasses.asdict(BytesTransferred("n1", "n2", 1, 1.0)) | {"size_bytes": -5}
    assert decode_event(envelope("BytesTransferred", data), is_trusted=False) is None


@pytest.mark.parametrize(
    "data",
    [
        {"x": "y" * 257},
        {"x": float("nan")},
        {"x": {"nested": 1}},
        {f"k{number}": 1 for number in range(17)},
        {"x": ["n"] * 257},
    ],
)
def test_values_out_of_bounds_are_refused_with_the_whole_batch(data: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        envelope("StepTimed", data)


def test_a_batch_of_501_events_is_refused() -> None:
    with pytest.raises(ValidationError):
        EventBatch(source="n1", events=(envelope("StepTimed", {}),) * 501)
