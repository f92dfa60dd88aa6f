"""Joins what callers tell about their calls to events."""

from collections.abc import Callable

from shared.events.catalogue import BreakerChanged, BytesTransferred, CallRetried, ConnectionPoolRebuilt
from shared.events.publisher import Publisher
from shared.resilience.hooks import BytesSent, PeerHooks

TELL_BYTES_EVERY_S = 1.0


def peer_hooks(events: Publisher, *, source: str, now: Callable[[], float]) -> PeerHooks:
    """Hooks that publish. `source`: who sends the bytes, as in `BytesTransferred.from_node`."""
    sent = _BytesTold(events, source=source, now=now)
    return PeerHooks(
        breaker_changed=lambda change: events.publish(BreakerChanged(change.peer, change.operation, change.state)),
        retried=lambda retried: events.publish(CallRetried(retried.peer, retried.operation)),
        bytes_sent=sent.add,
        pool_rebuilt=lambda rebuilt: events.publish(ConnectionPoolRebuilt(rebuilt.peer)),
    )


class _BytesTold:
    """One event per peer and second, not one per call: events must cost less than what they tell of."""

    def __init__(self, events: Publisher, *, source: str, now: Callable[[], float]) -> None:
        self._events = events
        self._source = source
        self._now = now
        self._sums: dict[str, tuple[float, int, float]] = {}

    def add(self, sent: BytesSent) -> None:
        now_s = self._now()
        since_s, size_bytes, duration_s = self._sums.get(sent.peer, (now_s, 0, 0.0))
        size_bytes, duration_s = size_bytes + sent.size_bytes, duration_s + sent.duration_s
        if now_s - since_s < TELL_BYTES_EVERY_S or not size_bytes:
            self._sums[sent.peer] = (since_s, size_bytes, duration_s)
            return
        del self._sums[sent.peer]
        self._events.publish(BytesTransferred(self._source, sent.peer, size_bytes, duration_s * 1000, link="control"))
