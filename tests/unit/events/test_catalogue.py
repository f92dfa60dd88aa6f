import dataclasses

import pytest

from shared.events.catalogue import EVENT_TYPES, BreakerChanged, Event, NodeJoined, TaskFailed, subject_of

SPECIFIED = [
    "TaskSubmitted",
    "TaskEnqueued",
    "TaskDispatching",
    "TaskDispatched",
    "PartitionComputed",
    "PartitionCacheHit",
    "PartitionCacheMiss",
    "PhaseTransition",
    "ConsensusReached",
    "MessageSent",
    "MessageReceived",
    "BytesTransferred",
    "NodeFailure",
    "TaskCompleted",
    "TaskFailed",
    "TaskCancelled",
]


@pytest.mark.parametrize("name", SPECIFIED)
def test_every_event_of_the_specification_has_its_class(name: str) -> None:
    assert EVENT_TYPES[name].__name__ == name


def test_no_event_carries_its_own_time() -> None:
    for kind in EVENT_TYPES.values():
        assert not {"time", "timestamp"} & {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("event", "subject"),
    [
        (TaskFailed("t1", "no_capacity"), "t1"),
        (NodeJoined("n1", "127.0.0.1:8090"), "n1"),
        (BreakerChanged("metrics", "control", "opened"), "metrics"),
    ],
)
def test_the_subject_is_what_an_event_is_about(event: Event, subject: str) -> None:
    assert subject_of(event) == subject
