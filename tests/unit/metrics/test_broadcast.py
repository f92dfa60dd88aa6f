import asyncio

import pytest

from services.metrics.broadcast import MAX_SUBSCRIBERS, PLACES, Broadcast, Bye, Gap, Silence
from services.metrics.sse import to_sse
from shared.contracts.metrics import EventEnvelope
from shared.domain.errors import Unavailable


def numbered(number: int) -> EventEnvelope:
    return EventEnvelope(id=str(number), time=1.0, type="TaskSubmitted", source="s", subject="t", data={})


async def test_a_slow_subscriber_loses_the_oldest_and_is_told_how_many() -> None:
    broadcast = Broadcast()
    with broadcast.subscribed(lambda _: True) as subscription:
        for number in range(PLACES + 7):
            broadcast.send(numbered(number))
        reader = subscription.items(silence_s=1.0)
        items = [await anext(reader) for _ in range(2)]
    assert items[0] == Gap(7)
    assert isinstance(items[1], EventEnvelope)
    assert items[1].id == "7"


async def test_events_come_in_order_and_only_the_wanted_ones() -> None:
    broadcast = Broadcast()
    with broadcast.subscribed(lambda envelope: envelope.id != "1") as subscription:
        for number in range(3):
            broadcast.send(numbered(number))
        reader = subscription.items(silence_s=1.0)
        assert [await anext(reader) for _ in range(2)] == [numbered(0), numbered(2)]


async def test_silence_is_said_and_bye_is_the_last_word() -> None:
    broadcast = Broadcast()
    with broadcast.subscribed(lambda _: True) as subscription:
        reader = subscription.items(silence_s=0.001)
        assert await anext(reader) == Silence()
        asyncio.get_running_loop().call_soon(broadcast.end)
        rest = [item async for item in reader if item != Silence()]
    assert rest == [Bye()]
    assert broadcast.num_subscribers == 0


async def test_there_are_64_places_for_subscribers() -> None:
    broadcast = Broadcast()
    held = [broadcast.subscribed(lambda _: True) for _ in range(MAX_SUBSCRIBERS)]
    for place in held:
        place.__enter__()
    with pytest.raises(Unavailable), broadcast.subscribed(lambda _: True):
        pass
    held[0].__exit__(None, None, None)
    with broadcast.subscribed(lambda _: True):
        assert broadcast.num_subscribers == MAX_SUBSCRIBERS


def test_an_id_cannot_forge_an_event() -> None:
    forged = numbered(1).model_copy(update={"id": "1\n\nevent: bye"})
    assert to_sse(forged).startswith("id: 1event: bye\nevent: TaskSubmitted\n")
