import asyncio

import pytest

from shared.events.catalogue import NodeFailure, TaskCompleted, TaskSubmitted
from shared.events.publisher import FanOutPublisher, HttpPublisher
from shared.resilience.hooks import PeerHooks
from shared.resilience.http_client import PeerClient
from tests.fakes.clock import FakeClock
from tests.fakes.events import RecordingPublisher


def unreachable(clock: FakeClock) -> PeerClient:
    """A metrics service that nobody runs: port 1 of this machine refuses."""
    return PeerClient(name="metrics", base_url="http://127.0.0.1:1", hooks=PeerHooks(), now=clock.now_s)


def publisher(client: PeerClient, clock: FakeClock, *, capacity: int = 10_000) -> HttpPublisher:
    return HttpPublisher(
        client,
        source="scheduler",
        boot_id="b0",
        address="127.0.0.1:8081",
        capacity=capacity,
        wall_s=clock.wall_s,
        sleep=clock.sleep,
    )


async def test_a_full_queue_drops_the_oldest_and_counts_it() -> None:
    clock = FakeClock()
    events = publisher(unreachable(clock), clock, capacity=3)
    for number in range(5):
        events.publish(TaskSubmitted(str(number), 0))
    assert (events.published, events.dropped) == (5, 2)
    batch = events.next_batch()
    assert [envelope.subject for envelope in batch.events] == ["2", "3", "4"]
    assert batch.dropped_total == 2


async def test_a_dead_metrics_service_costs_drops_and_never_raises() -> None:
    clock = FakeClock()
    client = unreachable(clock)
    events = publisher(client, clock)
    events.publish(TaskSubmitted("t", 0))
    await events.flush()
    assert events.dropped == 1
    await client.aclose()


async def test_a_stop_does_not_try_batch_after_batch_in_vain() -> None:
    clock = FakeClock()
    client = unreachable(clock)
    events = publisher(client, clock)
    for number in range(2_000):
        events.publish(TaskSubmitted(str(number), 0))
    await events.flush()
    assert events.dropped == 500
    await client.aclose()


async def test_an_envelope_names_type_source_and_subject_and_ids_never_repeat() -> None:
    clock = FakeClock()
    events = publisher(unreachable(clock), clock)
    events.publish(TaskCompleted("t1", 12.5, ("n1", "n2")))
    events.publish(NodeFailure("n1", "lease over"))
    first, second = events.next_batch().events
    assert (first.type, first.source, first.subject, first.time) == ("TaskCompleted", "scheduler", "t1", clock.wall_s())
    assert first.data == {"task_id": "t1", "latency_ms": 12.5, "nodes_involved": ("n1", "n2"), "verification": "none"}
    assert (second.type, second.subject) == ("NodeFailure", "n1")
    assert first.id != second.id


async def test_a_batch_holds_at_most_500_events() -> None:
    clock = FakeClock()
    events = publisher(unreachable(clock), clock)
    for number in range(501):
        events.publish(TaskSubmitted(str(number), 0))
    assert len(events.next_batch().events) == 500
    assert len(events.next_batch().events) == 1


async def test_a_long_text_is_cut_rather_than_refused() -> None:
    clock = FakeClock()
    events = publisher(unreachable(clock), clock)
    events.publish(NodeFailure("n1", "x" * 10_000))
    evidence = events.next_batch().events[0].data["evidence"]
    assert isinstance(evidence, str)
    assert len(evidence) == 256


async def test_publishing_never_waits_for_the_sender() -> None:
    clock = FakeClock()
    client = unreachable(clock)
    events = publisher(client, clock)
    running = asyncio.create_task(events.run())
    await clock.settle()
    for number in range(20_000):
        events.publish(TaskSubmitted(str(number), 0))
    assert events.dropped >= 10_000
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await client.aclose()


def test_a_fan_out_tells_all_in_order() -> None:
    one, other = RecordingPublisher(), RecordingPublisher()
    FanOutPublisher((one, other)).publish(TaskSubmitted("t", 1))
    assert one.events == other.events == [TaskSubmitted("t", 1)]
